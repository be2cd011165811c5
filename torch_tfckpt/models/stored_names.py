"""Find the names and the prefix under which a checkpoint stores the tensors of a module.

    by key         fc1.weight, fc1/kernel, model/fc1.weight: any tensor; "." and "/" are the same
    by object      root -"model"-> -"fc1"-> -"kernel"->: objects with the names of the module's attributes
    by full name   the variable's own name in an object-based checkpoint

All names of a module may be below a prefix, such as "model/". One of these three schemes and one prefix are chosen for
the whole module, so that all layers come from one stored model. Several equally good choices are an error.
"""

import re
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.errors import InvalidArgumentError, NotFoundError
from torch_tfckpt.format.object_graph import ROOT, VARIABLE_VALUE, ObjectGraph
from torch_tfckpt.format.tensor_names import short_key
from torch_tfckpt.models.auxiliary.averages import AVERAGE, OUTPUT
from torch_tfckpt.saveables.name_prefixes import prefixes_of_names
from torch_tfckpt.saveables.stored_keys import shared_names
from torch_tfckpt.saveables.wrappers import may_be_wrapped, stored_wrapper, without_wrappers, wrapper_prefix
from torch_tfckpt.text import listed, quoted

_LISTED: Final = 8  # candidates in a message
# Parts of names that are chosen and numbered automatically: "lstm_cell_7", "stacked_rnn_cells", "forward_lstm_1".
_AUTOMATIC_PART: Final = re.compile(
    r"(?:(?P<direction>forward|backward)_\w*?|\w*?(?P<cell>cells?))(?:_(?P<number>\d{1,9}))?"
)
_NUMBERED_PART: Final = re.compile(r"\[\d+ of \d+\]")  # "cell[1 of 2]"
_AUTOMATIC_NAME: Final = re.compile(r"(?:cells?|(?:forward|backward)_\w*)[_\d]*[./]")


class StoredVariable(NamedTuple):
    """Variable of a checkpoint."""

    key: str
    variable_name: str  # last part of its name, which implies its layout


class StoredNames(Protocol):
    """Naming scheme by which variables are found.

    Names are given as in modules; their parts may contain "/". Prefixes are dotted, and are empty or end in a dot.
    """

    def below(self, wanted: Mapping[str, set[str]]) -> dict[str, set[str]]:
        """Map each prefix to the tensors found below it. `wanted`: name -> the tensors that it may name."""

    def find(self, prefix: str, name: str) -> list[StoredVariable]:
        """Return the variables with this name; several if their names differ only in spelling."""

    def spelled(self, prefix: str) -> str:
        """Return a prefix as the checkpoint spells it."""

    def keys_below(self, prefix: str) -> set[str]:
        """Return the keys of all variables below a prefix."""


class Names:
    """Variables by name.

    Args:
        names: (name, key) pairs; several names may have the same key.
        variable_names: Key -> last part of the variable's name.
        unique: Omit names that several variables share.
    """

    def __init__(self, names: Iterable[tuple[str, str]], variable_names: Mapping[str, str], *, unique: bool) -> None:
        self._found: dict[str, list[StoredVariable]] = {}
        self._spelling: dict[str, str] = {}
        for name, key in names:
            name_here = dotted(name.removesuffix(OUTPUT))
            self._spelling.setdefault(name_here, name)
            self._found.setdefault(name_here, []).append(StoredVariable(key, variable_names[key]))
        if unique:
            self._found = {name: stored for name, stored in self._found.items() if len(stored) == 1}

    def below(self, wanted: Mapping[str, set[str]]) -> dict[str, set[str]]:
        owners: dict[str, set[str]] = {}
        for name, of in wanted.items():
            owners.setdefault(dotted(name), set()).update(of)
        found = prefixes_of_names(self._found, owners, ".")
        return {prefix: of for prefix, of in found.items() if not _NUMBERED_PART.search(prefix)}

    def find(self, prefix: str, name: str) -> list[StoredVariable]:
        stored = self._found.get(prefix + dotted(name), [])
        # If both "fc.weight" and "fc/weight" are stored, prefer the exact spelling: "fc.weight" is from a state_dict.
        exact = [each for each in stored if each.key.removesuffix(OUTPUT).endswith(name)]
        return exact if len(exact) == 1 else stored

    def spelled(self, prefix: str) -> str:
        return next((self._spelling[name][: len(prefix)] for name in self._found if name.startswith(prefix)), prefix)

    def keys_below(self, prefix: str) -> set[str]:
        return {each.key for name, stored in self._found.items() if name.startswith(prefix) for each in stored}


class Objects:
    """Variables by their path in the object graph, from the root or from one of its children."""

    def __init__(self, graph: ObjectGraph, available: Container[str]) -> None:
        self._graph, self._available = graph, available
        self._children: dict[int, dict[str, int]] = {}

    def below(self, wanted: Mapping[str, set[str]]) -> dict[str, set[str]]:
        prefixes = ["", *(f"{name}." for name in self._below(ROOT) if "." not in name)]
        found: dict[str, set[str]] = {}
        for prefix in prefixes:
            for name, owners in wanted.items():
                if self.find(prefix, name):
                    found.setdefault(prefix, set()).update(owners)
        return found

    def find(self, prefix: str, name: str) -> list[StoredVariable]:
        *_, variable_name = parts = (prefix + name).split(".")
        node_id = self._node(parts)
        if node_id is None and "/" in name:  # then a "/" may be a separator of parts
            *_, variable_name = parts = dotted(prefix + name).split(".")
            node_id = self._node(parts)
        return [
            StoredVariable(attribute.checkpoint_key, variable_name)
            for attribute in (() if node_id is None else self._graph.nodes[node_id].attributes)
            if attribute.name == VARIABLE_VALUE and attribute.checkpoint_key in self._available
        ]

    def spelled(self, prefix: str) -> str:
        return prefix.replace(".", "/")

    def keys_below(self, prefix: str) -> set[str]:
        start = self._node(prefix.split(".")[:-1])
        seen = set() if start is None else {start}
        waiting = list(seen)
        while waiting:
            new = set(self._below(waiting.pop()).values()) - seen
            seen |= new
            waiting += new
        return {
            attribute.checkpoint_key
            for node_id in seen
            for attribute in self._graph.nodes[node_id].attributes
            if attribute.name == VARIABLE_VALUE
        }

    def _node(self, parts: Iterable[str]) -> int | None:
        """Return the node at the path of these names; None if one of them is missing."""
        here = ROOT
        for part in parts:
            child = self._below(here).get(part)
            if child is None:
                return None
            here = child
        return here

    def _below(self, node_id: int) -> dict[str, int]:
        if node_id not in self._children:
            children = self._graph.nodes[node_id].children if self._graph.nodes else ()
            found = {child.local_name: child.node_id for child in children}
            self._children[node_id] = found
            part = stored_wrapper(found)
            if part is not None:  # the children of the wrapped module are also found without the wrapper's part
                for name, below in self._below(found[part]).items():
                    found.setdefault(name, below)
        return self._children[node_id]


def stored_names(
    reader: CheckpointReader,
    averaged: Iterable[str],
    *,
    leave_out: Container[str],
    with_wrapper: bool = False,
    copies: Container[str] = (),
) -> list[StoredNames]:
    """Return the naming schemes of a checkpoint, in the order in which they are tried.

    Args:
        averaged: Keys of variables whose moving average is wanted and stored, even if the variable itself is not.
        leave_out: Keys to ignore.
        with_wrapper: Whether the module is a wrapper with tensors of its own. Then the wrapper's part, with which all
            other names begin, is not mistaken for a prefix.
        copies: Keys of variables that are stored again under the full name of another variable with the same value.
            They are not found by this name.

    Raises:
        DataLossError: the object graph, or a list of shared names, is damaged.
    """
    stored = dict.fromkeys((*reader.keys(), *averaged))
    own = {key: None for key in stored if key not in leave_out}
    # The other names of a shared tensor can be found even if its first name was mapped to something else.
    shared = [(alias, key) for alias, key in shared_names(reader).items() if key in stored and alias not in stored]
    names = [*((key, key) for key in own), *shared]
    names += _without_wrappers(names, with_wrapper=with_wrapper)
    names += numbered_names(names)
    found: list[StoredNames] = [Names(names, {key: variable_name_of(key) for key in stored}, unique=False)]
    graph = reader.object_graph
    if graph is not None:
        found.append(Objects(graph, own))
        named = dict.fromkeys(
            (variable.full_name, variable.checkpoint_key)
            for variable in graph.variables()
            if variable.full_name and variable.checkpoint_key in own and variable.checkpoint_key not in copies
        )
        found.append(
            Names(
                [*named, *numbered_names(list(named))],
                {key: variable_name_of(name) for name, key in named},
                unique=True,
            )
        )
    return found


def _without_wrappers(names: list[tuple[str, str]], *, with_wrapper: bool) -> list[tuple[str, str]]:
    """Return the names that contain parts added by wrappers, without these parts.

    Parts at the beginning of a name are removed only if `with_wrapper`.
    """
    if not may_be_wrapped(name for name, _ in names):
        return []
    key_of = {dotted(name): key for name, key in names}
    found: list[tuple[str, str]] = []
    for bare, name in without_wrappers(key_of).items():
        prefix = "" if with_wrapper else wrapper_prefix(name)
        if prefix + bare != name:
            found.append((prefix + bare, key_of[name]))
    return found


def numbered_names(names: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the names in which cells and directions are numbered by their order: "lstm/cell[1 of 1]/kernel".

    Keras and TensorFlow number the objects of a program, so a cell may be called "lstm_cell_7". The position of the
    cell among the cells of its layer, and the number of these cells, are the same in every program.
    """
    split = [(dotted(name).split("."), key) for name, key in names if _AUTOMATIC_NAME.search(name)]
    siblings: dict[tuple[tuple[str, ...], str], set[tuple[int, str]]] = {}
    for parts, _ in split:
        for at, part in enumerate(parts[:-1]):
            kind = _AUTOMATIC_PART.fullmatch(part)
            if kind is not None:
                number = kind["number"]
                siblings.setdefault((tuple(parts[:at]), _kind(kind)), set()).add((int(number or 0), part))
    ordered = {place: [part for _, part in sorted(found)] for place, found in siblings.items()}
    result: list[tuple[str, str]] = []
    for parts, key in split:
        changed = list(parts)
        for at in reversed(range(len(parts) - 1)):
            kind = _AUTOMATIC_PART.fullmatch(parts[at])
            if kind is not None:
                those = ordered[tuple(parts[:at]), _kind(kind)]
                changed[at] = f"{_kind(kind)}[{those.index(parts[at]) + 1} of {len(those)}]"
                result.append((".".join(changed), key))
    return result


def _kind(part: re.Match[str]) -> str:
    return part["direction"] or part["cell"]


@dataclass(frozen=True, slots=True)
class Naming:
    """Scheme and prefix by which the variables of one module are found."""

    names: StoredNames
    prefix: str
    remark: str = ""  # about a prefix that finds more tensors, but too few to be chosen automatically

    def find(self, name: str) -> list[StoredVariable]:
        return self.names.find(self.prefix, name)

    @property
    def spelled_prefix(self) -> str:
        """The prefix as the checkpoint spells it: "model/"; empty without a prefix."""
        return self.names.spelled(self.prefix)

    def keys_below(self) -> set[str]:
        """Return the keys of all variables below the prefix."""
        return self.names.keys_below(self.prefix)


def choose_naming(
    ways: list[StoredNames], wanted: Mapping[str, set[str]], counted: Collection[str], place: str
) -> Naming:
    """Return the naming scheme and the prefix that match the most tensors of a module.

    Args:
        ways: The naming schemes, in order of preference.
        wanted: Possible stored name -> the tensors of the module that it may name.
        counted: Tensors that every checkpoint of the module has. A prefix is considered only if it has more than
            half of them.
        place: The checkpoint, for messages.

    Raises:
        InvalidArgumentError: several prefixes are equally good; the message lists them.

    Cost: looks at all names, and at all children of the root.
    """
    owners = {(order, prefix): of for order, way in enumerate(ways) for prefix, of in way.below(wanted).items()}
    found = {where: len(of) for where, of in owners.items()}
    count = len(counted)
    best = max(found.values(), default=0)
    without_prefix = max((number for (_, prefix), number in found.items() if not prefix), default=0)
    leading = [Naming(ways[order], prefix) for (order, prefix), number in found.items() if number == best]
    # Tensors that are not in `counted` may be found as well, such as num_batches_tracked, which TensorFlow lacks.
    found_of_counted = min((len(of.intersection(counted)) for of in owners.values() if len(of) == best), default=0)
    if without_prefix == best or best * 2 <= count:
        order = next((order for order in range(len(ways)) if found.get((order, ""), 0) == without_prefix), 0)
        remark = ""
        if without_prefix < best and next(_rivals(leading, wanted), None) is None:
            spelled = quoted(leading[0].spelled_prefix)
            remark = f"{found_of_counted} of {count} tensors are below {spelled}; pass prefix={spelled}"
        return Naming(ways[order], "", remark)
    rivals = list(_rivals(leading, wanted))
    if rivals:
        prefixes = [naming.spelled_prefix for naming in (leading[0], *rivals)]
        raise InvalidArgumentError(
            f"{place}: the prefix of the module is ambiguous: below each of {len(prefixes)} prefixes, "
            f"{found_of_counted} of its "
            f"{count} tensors are found: {listed(prefixes, _LISTED)}. Choose one with prefix=, or map names"
        )
    return leading[0]


def _rivals(leading: list[Naming], wanted: Mapping[str, set[str]]) -> Iterator[Naming]:
    """Yield the namings that do not find the same variables as the first; two schemes may find the same."""
    keys = _keys(leading[0], wanted)
    yield from (naming for naming in leading[1:] if _keys(naming, wanted) != keys)


def naming_below(ways: list[StoredNames], wanted: Mapping[str, set[str]], prefix: str, place: str) -> Naming:
    """Return the scheme that finds the most tensors below a prefix, spelled "model/", "model" or "model.".

    Raises NotFoundError if nothing is found.
    """
    start = dotted_prefix(prefix)
    best = max((Naming(way, start) for way in ways), key=lambda naming: len(_keys(naming, wanted)))
    if start and wanted and not _keys(best, wanted):
        raise NotFoundError(f"{place}: no tensor of the module is stored below the prefix {quoted(prefix)}")
    return best


def names_for_rules(reader: CheckpointReader) -> Callable[[str], tuple[str, ...]]:
    """Return a function that maps a key to the names on which rules are tried, in this order.

    First the key without "/.ATTRIBUTES/VARIABLE_VALUE", then the whole key, then, in an object-based checkpoint, the
    paths of the object and the full name of the variable.
    """

    def names(key: str) -> tuple[str, ...]:
        others = [name for name in reader.names_of(key, every_path=True) if name not in (key, short_key(key))]
        return (short_key(key), key, *others)

    return names


def dotted(name: str) -> str:
    return name.replace("/", ".")


def dotted_prefix(prefix: str) -> str:
    """Return a prefix, however it is spelled, with exactly one dot at its end; empty for no prefix."""
    bare = dotted(prefix).rstrip(".")
    return f"{bare}." if bare else ""


def variable_name_of(name: str) -> str:
    """Return the last part of a key or path: "kernel" for "fc/kernel/.ATTRIBUTES/VARIABLE_VALUE".

    For a moving average, this is the last part of its variable's name. Keras 3 calls this part `variable.name`.
    """
    bare = short_key(name).removesuffix(OUTPUT).removesuffix(AVERAGE).removesuffix(OUTPUT)
    return bare.rpartition("/")[2].rpartition(".")[2]


def is_spelled_by_torch(key: str, names: Iterable[str], name: str) -> bool:
    """Return whether the key or the full name of a variable ends as this package spells it: "fc.weight".

    TensorFlow's programs write "fc/weight". If `name` has no parent, as in "weight", both spellings are the same, and
    the result is True.

    Args:
        names: The names of the variable. The path of its object, joined with dots, may be among them and is ignored.
        name: Its name in the module.
    """
    _, separator, leaf = name.rpartition(".")
    path = short_key(key)
    stored = {path, *(short_key(each) for each in names if each != dotted(path))}
    return not separator or any(each.endswith(f".{leaf}") for each in stored)


def _keys(naming: Naming, wanted: Iterable[str]) -> set[str]:
    return {stored.key for name in wanted for stored in naming.find(name)}
