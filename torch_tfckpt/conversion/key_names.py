"""Choose names for the tensors of an object-based checkpoint, and leave out what is not a weight.

    keys          model/fc/kernel/.ATTRIBUTES/VARIABLE_VALUE     as stored
    paths         model.fc.kernel                                the object
    variables     fc/kernel                                      the full name of the variable

Contract:

    paths, variables    the object graph is left out, since it refers to keys. A tensor without such a name, such as a
                        string, keeps its key without the suffix. Two tensors with one name are an error,
                        unless they are equal, as in a SavedModel of Keras 3, which stores variables twice
    weights only        what is not a weight according to `models.auxiliary` is left out. A checkpoint keeps its object
                        graph, which is edited to match
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from torch_tfckpt.conversion.selection import Selection
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.foreign_files.protocols import TensorSource, names_of
from torch_tfckpt.format.object_graph import OBJECT_GRAPH_KEY
from torch_tfckpt.format.tensor_names import short_key
from torch_tfckpt.models.auxiliary.named_kinds import VariableKind
from torch_tfckpt.models.auxiliary.recognition import kinds
from torch_tfckpt.models.file_reader import reader_of
from torch_tfckpt.saveables.stored_keys import same_stored
from torch_tfckpt.text import listed, printable, quoted

NAMES: Final = ("keys", "paths", "variables")
_LISTED: Final = 4
_NO_GRAPH: Final = "the names are not those of the object graph"


def check_names(names: str) -> None:
    """Raise InvalidArgumentError for an unknown value of `names`."""
    if names not in NAMES:
        raise InvalidArgumentError(f'names={names!r}: pass "keys", "paths" or "variables"')


def auxiliary_tensors(source: TensorSource, *, keep_graph: bool) -> tuple[dict[str, str], list[str]]:
    """Return the tensors that are not weights, each with the reason, and remarks on uncertain cases.

    Args:
        keep_graph: Whether the object graph is kept.
    """
    found = kinds(reader_of(source))
    omitted = {
        name: "the object graph" if name == OBJECT_GRAPH_KEY else str(kind)
        for name, kind in found.of.items()
        if kind is not VariableKind.WEIGHT and not (keep_graph and name == OBJECT_GRAPH_KEY)
    }
    uncertain = [name for name in found.uncertain if name in omitted]
    if not uncertain:
        return omitted, []
    variable = found.slots[uncertain[0]].variable
    return omitted, [
        f"left out as optimizer state: {listed(uncertain, _LISTED)}, because the name begins with the name of the "
        f"stored tensor {quoted(variable)} and the shapes are equal. If it is a weight, omit weights_only, and leave "
        f"out the others with `exclude`"
    ]


def use_names(source: TensorSource, names: str, selection: Selection, omitted: dict[str, str]) -> None:
    """Let a selection use `names` for the tensors, and leave out the object graph.

    Raises:
        InvalidArgumentError: two selected tensors would get the same name.
    """
    known = source.object_names
    stored = names_of(source)
    if names == "keys" or known is None:
        return
    if OBJECT_GRAPH_KEY in source.names():
        omitted.setdefault(OBJECT_GRAPH_KEY, _NO_GRAPH)

    def name_of(key: str) -> str:
        if names == "variables":
            return known.variable(key) or short_key(key)
        paths = [name for name in stored(key)[1:] if name not in (short_key(key), known.variable(key))]
        return paths[0] if paths else short_key(key)

    selection.names_of = lambda key: tuple(dict.fromkeys((name_of(key), *stored(key))))
    taken = [key for key in source.names() if key not in omitted and selection.takes(key)]
    omitted.update(_copies(source, names, taken, name_of))


def _copies(source: TensorSource, names: str, keys: Sequence[str], name_of: Callable[[str], str]) -> dict[str, str]:
    """Return the keys of copies of tensors with the same name, and the reason to leave out each of them.

    Raises InvalidArgumentError if the values differ.
    """
    seen: dict[str, str] = {}
    copies: dict[str, str] = {}
    for key in keys:
        other = seen.setdefault(name_of(key), key)
        if other != key and same_stored(reader_of(source), other, key):
            copies[key] = f"a copy of another tensor with the name {quoted(name_of(key))}"
        elif other != key:
            instead = '"paths"' if names == "variables" else '"keys"'
            raise InvalidArgumentError(
                f"{printable(source.path)}: {quoted(other)} and {quoted(key)} are both called {quoted(name_of(key))}. "
                f"Pass names={instead}, or leave one of them out with `exclude`"
            )
    return copies


def without(names: Iterable[str], omitted: Mapping[str, str]) -> list[str]:
    """Return the names that are not omitted."""
    return [name for name in names if name not in omitted]
