"""Variables that a checkpoint stores several times under one full name, as Keras 3 does in `model.export()`."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

import torch

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.format.tensor_names import short_key
from torch_tfckpt.saveables.stored_keys import same_stored


class HasKey(Protocol):
    """A stored tensor."""

    @property
    def key(self) -> str: ...


Stored = TypeVar("Stored", bound=HasKey)


def without_copies(reader: CheckpointReader, stored: Sequence[Stored]) -> list[Stored]:
    """Return the stored tensors without copies of earlier ones. Cost: as for `stored_copies`."""
    kept: list[Stored] = []
    of_name: dict[str, str] = {}
    for each in stored:
        name = reader.variable_name(each.key) if len(stored) > 1 else None
        first = each.key if name is None else of_name.setdefault(name, each.key)
        if first == each.key or not same_stored(reader, first, each.key):
            kept.append(each)
    return kept


def stored_copies(reader: CheckpointReader) -> dict[str, str]:
    """Return a dict that maps the key of each further copy of a variable to the key of the first.

    Copies have the same full name and the same value. Variables with the same name and different values are not copies.

    Cost: reads the variables that share a name.
    """
    graph = reader.object_graph
    if graph is None:
        return {}
    of_name: dict[str, dict[str, None]] = {}
    for variable in graph.variables():
        if variable.full_name and variable.checkpoint_key in reader:
            of_name.setdefault(variable.full_name, {})[variable.checkpoint_key] = None
    found: dict[str, str] = {}
    for keys in of_name.values():
        first, *others = sorted(keys, key=str.encode)
        if others and all(same_stored(reader, first, other) for other in others):
            found.update(dict.fromkeys(others, first))
    return found


def further_copies(reader: CheckpointReader) -> set[str]:
    """Return the keys of the redundant copies: for each variable, all copies but one.

    The remaining copy is one that belongs to a layer, if there is one, and not an element of a list of variables.

    Cost: as for `stored_copies`.
    """
    groups: dict[str, list[str]] = {}
    for key, first in stored_copies(reader).items():
        groups.setdefault(first, [first]).append(key)
    kept = {next((key for key in keys if not _is_numbered(key)), keys[0]) for keys in groups.values()}
    return {key for keys in groups.values() for key in keys} - kept


def is_copy(reader: CheckpointReader, one: str, other: str) -> bool:
    """Return whether two tensors are one weight that is stored twice, as tied weights are.

    They have at least two axes and equal values, which are not all the same number, as before training. The axes of a
    matrix may be swapped.

    Cost: reads both, if their types and shapes allow it.
    """
    shape, shape_of_other = tuple(reader.shape(one)), tuple(reader.shape(other))
    is_swapped = len(shape) == 2 and shape[::-1] == shape_of_other
    if len(shape) < 2 or not (shape == shape_of_other or is_swapped) or reader.dtype(one) != reader.dtype(other):
        return False
    first, second = reader.get_tensor(one), reader.get_tensor(other)
    if not isinstance(first, torch.Tensor) or not isinstance(second, torch.Tensor) or first.numel() == 0:
        return False
    is_equal = torch.equal(first, second) or (is_swapped and torch.equal(first.t(), second))
    return is_equal and bool((first != first.flatten()[0]).any())


def _is_numbered(key: str) -> bool:
    return short_key(key).rpartition("/")[2].isdecimal()
