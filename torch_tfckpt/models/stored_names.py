"""Find the names and the prefix under which a checkpoint stores the tensors of a module.

    by key         fc1.weight, fc1/kernel, model/fc1.weight: any tensor; "." and "/" are one
    by object      root -"model"-> -"fc1"-> -"kernel"->: objects named as the module's attributes are
    by full name   what an object-based checkpoint says a variable is called by itself

The names of a module may all stand below a prefix, such as "model/". Which of the three it is, and which prefix, is
decided for the module as a whole, so that no two layers come from two models. Where several are as good, that is an
error.
"""

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.errors import InvalidArgumentError, NotFoundError
from torch_tfckpt.format.object_graph import ROOT, VARIABLE_VALUE, ObjectGraph
from torch_tfckpt.format.tensor_names import short_key
from torch_tfckpt.models.auxiliary import AVERAGE, OUTPUT
from torch_tfckpt.saveables.module_state import shared_names
from torch_tfckpt.text import listed, quoted

_LISTED: Final = 8  # candidates that a text lists


class StoredVariable(NamedTuple):
    """One variable of a checkpoint."""

    key: str
    variable_name: str  # last part of its name, which implies its layout


class StoredNames(Protocol):
    """One way of finding variables. Names are those of modules, whose parts may have a "/" in them; prefixes are
    dotted, with a dot at their end or empty."""

    def below(self, wanted: Mapping[str, set[str]]) -> dict[str, set[str]]:
        """Prefix -> what is found below it. `wanted`: name -> what it is a name of."""

    def find(self, prefix: str, name: str) -> list[StoredVariable]:
        """The variables that have this name; several where they differ in spelling only."""

    def spelled(self, prefix: str) -> str:
        """A prefix as the checkpoint writes it."""

    def keys_below(self, prefix: str) -> set[str]:
        """Keys of all variables below a prefix."""


class Names:
    """Variables by text.

    Args:
        names: Name and key of each; several may have one key.
        unique: Leave out names that several variables have, rather than give them all.
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
        found: dict[str, set[str]] = {}
        owners: dict[str, set[str]] = {}
        for name, of in wanted.items():
            owners.setdefault(dotted(name), set()).update(of)
        longest = max(map(len, owners), default=0)
        for name in self._found:
            for start in _starts(name, len(name) - longest):
                if name[start:] in owners:
                    found.setdefault(name[:start], set()).update(owners[name[start:]])
        return found

    def find(self, prefix: str, name: str) -> list[StoredVariable]:
        stored = self._found.get(prefix + dotted(name), [])
        # Of "fc.weight" and "fc/weight" the first is the state_dict's own.
        exact = [each for each in stored if each.key.removesuffix(OUTPUT).endswith(name)]
        return exact if len(exact) == 1 else stored

    def spelled(self, prefix: str) -> str:
        return next((self._spelling[name][: len(prefix)] for name in self._found if name.startswith(prefix)), prefix)

    def keys_below(self, prefix: str) -> set[str]:
        return {each.key for name, stored in self._found.items() if name.startswith(prefix) for each in stored}


class Objects:
    """Variables by the way that leads to them in the object graph: from the root, or from one of its children."""

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
        """The node to which these names lead; None where one of them is missing."""
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
            self._children[node_id] = {child.local_name: child.node_id for child in children}
        return self._children[node_id]


def stored_names(reader: CheckpointReader, averaged: Iterable[str], *, leave_out: Container[str]) -> list[StoredNames]:
    """The ways of finding variables in a checkpoint, in the order in which they are tried.

    Args:
        averaged: Keys of variables of which an average is wanted and stored, whether or not they are stored themselves.
        leave_out: Keys that are not to be found.

    Raises:
        DataLossError: the object graph, or a text of shared names, is damaged.
    """
    stored = dict.fromkeys((*reader.keys(), *averaged))
    own = {key: None for key in stored if key not in leave_out}
    # The other names of a shared tensor are names of their own, also where the first was mapped to something.
    shared = [(alias, key) for alias, key in shared_names(reader).items() if key in stored and alias not in stored]
    found: list[StoredNames] = [
        Names([*((key, key) for key in own), *shared], {key: variable_name_of(key) for key in stored}, unique=False)
    ]
    graph = reader.object_graph
    if graph is not None:
        found.append(Objects(graph, own))
        named = dict.fromkeys(
            (variable.full_name, variable.checkpoint_key)
            for variable in graph.variables()
            if variable.full_name and variable.checkpoint_key in own
        )
        found.append(Names(named, {key: variable_name_of(name) for name, key in named}, unique=True))
    return found


@dataclass(frozen=True, slots=True)
class Naming:
    """How the variables of one module are found."""

    names: StoredNames
    prefix: str
    remark: str = ""  # of another prefix, below which more is found, but too little to take it unasked

    def find(self, name: str) -> list[StoredVariable]:
        return self.names.find(self.prefix, name)

    @property
    def spelled_prefix(self) -> str:
        """As the checkpoint writes it: "model/"; empty where there is none."""
        return self.names.spelled(self.prefix)

    def keys_below(self) -> set[str]:
        """Keys of all variables below the prefix."""
        return self.names.keys_below(self.prefix)


def choose_naming(ways: list[StoredNames], wanted: Mapping[str, set[str]], count: int, place: str) -> Naming:
    """The way, and the prefix, by which most of a module is found.

    Args:
        wanted: Possible stored name -> the tensors of the module that it may be of.
        count: Tensors to be found. A prefix counts only where more than half of them stand below it.
        place: The checkpoint, for texts.

    Raises:
        InvalidArgumentError: several prefixes are as good as each other; the text lists them.

    Cost: looks at all names, and at all children of the root.
    """
    found = {(order, prefix): len(of) for order, way in enumerate(ways) for prefix, of in way.below(wanted).items()}
    best = max(found.values(), default=0)
    without_prefix = max((number for (_, prefix), number in found.items() if not prefix), default=0)
    leading = [Naming(ways[order], prefix) for (order, prefix), number in found.items() if number == best]
    if without_prefix == best or best * 2 <= count:
        order = next((order for order in range(len(ways)) if found.get((order, ""), 0) == without_prefix), 0)
        remark = ""
        if without_prefix < best and next(_rivals(leading, wanted), None) is None:
            spelled = quoted(leading[0].spelled_prefix)
            remark = f"{best} of {count} stand below {spelled}; pass prefix={spelled}"
        return Naming(ways[order], "", remark)
    rivals = list(_rivals(leading, wanted))
    if rivals:
        prefixes = [naming.spelled_prefix for naming in (leading[0], *rivals)]
        raise InvalidArgumentError(
            f"{place}: the module may be what stands below any of {len(prefixes)} prefixes, {best} of its {count} "
            f"tensors are found below each: {listed(prefixes, _LISTED)}. Say which, by prefix=, or map names"
        )
    return leading[0]


def _rivals(leading: list[Naming], wanted: Mapping[str, set[str]]) -> Iterator[Naming]:
    """Those that find other variables than the first. By object and by full name the same may be found."""
    keys = _keys(leading[0], wanted)
    yield from (naming for naming in leading[1:] if _keys(naming, wanted) != keys)


def naming_below(ways: list[StoredNames], wanted: Mapping[str, set[str]], prefix: str, place: str) -> Naming:
    """The way by which most of a module is found below one prefix: "model/", "model" and "model." are the same.

    NotFoundError where nothing is.
    """
    start = dotted_prefix(prefix)
    best = max((Naming(way, start) for way in ways), key=lambda naming: len(_keys(naming, wanted)))
    if start and wanted and not _keys(best, wanted):
        raise NotFoundError(f"{place}: nothing of the module is stored below the prefix {quoted(prefix)}")
    return best


def dotted(name: str) -> str:
    return name.replace("/", ".")


def dotted_prefix(prefix: str) -> str:
    """A prefix with one dot at its end, however it was given; empty for none."""
    bare = dotted(prefix).rstrip(".")
    return f"{bare}." if bare else ""


def variable_name_of(name: str) -> str:
    """Keras 3's `variable.name`, the last part of a key or path: "kernel" of "fc/kernel/.ATTRIBUTES/VARIABLE_VALUE".

    Of a moving average it is the name of its variable.
    """
    bare = short_key(name).removesuffix(OUTPUT).removesuffix(AVERAGE).removesuffix(OUTPUT)
    return bare.rpartition("/")[2].rpartition(".")[2]


def _keys(naming: Naming, wanted: Iterable[str]) -> set[str]:
    return {stored.key for name in wanted for stored in naming.find(name)}


def _starts(name: str, earliest: int) -> Iterator[int]:
    """Where the parts of a dotted name begin, from some place on: of a name as long as a book only the end counts."""
    if earliest <= 0:
        yield 0
    at = name.find(".", max(0, earliest - 1))
    while at >= 0:
        yield at + 1
        at = name.find(".", at + 1)
