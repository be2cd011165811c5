"""Classify the values of a var_list, and flatten nested ones.

    {"G": {"model": m, "opt": o, "epoch": 3}}     "G/model", "G/opt", and "G/epoch", a plain value that is replaced
    {"opts": [o1, o2]}                            "opts/0", "opts/1"
    {"parts": (t1, t2)}                           "parts/0", "parts/1": a tuple cannot change, but its tensors can
    {"history": [t1, t2], "config": {"a": 1}}     one value each: plain containers, which may contain tensors
    {"emb": [Variable(...), Variable(...)]}       one value: slices of a tensor, as in TensorFlow
    {"scheduler": None}                           switched off: nothing is saved

A container is flattened if it contains a module, an optimizer or another object with state, at any depth. Its keys must
be str or int. Later changes to the container are ignored, as are later changes to the var_list itself.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeGuard

import torch
from torch import nn

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.saveables.save_spec import SaveableObject
from torch_tfckpt.saveables.state_tree import MAX_DEPTH
from torch_tfckpt.saveables.stateful import FunctionState, is_stateful
from torch_tfckpt.saveables.tensor_saveable import VarListValue, has_saveables
from torch_tfckpt.saveables.variables import PartitionedVariable, Variable
from torch_tfckpt.text import quoted

Container = dict[Any, Any] | list[Any] | set[Any] | deque[Any]
CONTAINERS: Final = (dict, list, set, deque)
_NESTING: Final = (dict, list, tuple)


class ItemValue(FunctionState):
    """A plain value in a dict or list that is flattened. A restore replaces it in the container."""

    def __init__(self, container: Any, key: object) -> None:
        super().__init__(lambda: container[key], lambda value: container.__setitem__(key, value))


def is_saved(value: object) -> TypeGuard[VarListValue]:
    """Return whether `saveables_of` accepts a value.

    It accepts tensors, Variables, PartitionedVariables, SaveableObjects, lists of slices, and objects that list their
    own saveables. A list is a list of slices if it contains Variables or SaveableObjects; a list of tensors is a plain
    container.
    """
    if isinstance(value, list | tuple):
        objects = any(isinstance(part, nn.Module | torch.optim.Optimizer) for part in value)
        return not objects and any(isinstance(part, Variable | SaveableObject) for part in value)
    return isinstance(value, torch.Tensor | Variable | SaveableObject | PartitionedVariable) or has_saveables(value)


def taken_apart(values: Mapping[str, object]) -> dict[str, object]:
    """Return the values of a var_list, with nested ones under their own names, by the contract above.

    Raises:
        TypeError: a container of objects has a key that is neither a str nor an int, or is a tuple with a plain value.
        ValueError: two values have the same name.
        InvalidArgumentError: the state_dict() of an optimizer; a container that contains itself.
    """
    found: dict[str, object] = {}
    for name, value in values.items():
        for part, item in _parts(name, value, 0):
            if part in found:
                raise ValueError(f"At least two variables have the same name: {part}. Rename one of the keys")
            found[part] = item
    return found


def _parts(name: str, value: object, depth: int) -> Iterator[tuple[str, object]]:
    if depth > MAX_DEPTH:
        raise _too_deep(name)
    if not depth:
        refuse_snapshots(name, value)
    whole = is_saved(value) or not isinstance(value, _NESTING) or is_stateful(value)
    if whole or not (_has_objects(value, name) or (isinstance(value, tuple) and _has_tensors(value))):
        yield name, value
        return
    assert isinstance(value, _NESTING)
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if type(key) not in (str, int):
            raise TypeError(
                f"{quoted(name)} is a dict that contains objects to save, but its key {key!r} is a "
                f"{type(key).__name__}. The names of the objects are derived from the keys: use str"
            )
        part = f"{name}/{key}"
        if item is None or isinstance(item, (torch.Tensor, *_NESTING, *CONTAINERS)) or _is_object(item):
            yield from _parts(part, item, depth + 1)
        elif isinstance(value, tuple):
            raise TypeError(
                f"{quoted(part)} has type {type(item).__name__} and is in a tuple, so it could not be restored: a "
                f"tuple cannot change. Use a list"
            )
        else:
            yield part, ItemValue(value, key)


def _is_object(value: object) -> bool:
    kinds = (nn.Module, torch.optim.Optimizer, Variable, SaveableObject, PartitionedVariable, ItemValue)
    return isinstance(value, kinds) or has_saveables(value) or is_stateful(value)


def _has_objects(value: object, name: str) -> bool:
    return any(_is_object(each) for each in _leaves(value, name, 0))


def _has_tensors(value: tuple[object, ...]) -> bool:
    return any(isinstance(each, torch.Tensor) for each in value)


def _leaves(value: object, name: str, depth: int) -> Iterator[object]:
    """Yield the values in dicts, lists and tuples at any depth."""
    if depth > MAX_DEPTH:
        raise _too_deep(name)
    if isinstance(value, _NESTING) and not is_stateful(value):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item, name, depth + 1)
    else:
        yield value


def _too_deep(name: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{quoted(name[:100])} is nested deeper than {MAX_DEPTH} levels, or contains itself. Save its parts"
    )


def refuse_snapshots(name: str, value: object, depth: int = 0) -> None:
    """Raise InvalidArgumentError if a container is, or contains, the state_dict() of an optimizer.

    It is a snapshot: it lacks what later steps add, and a restore into it would not reach the optimizer.
    """
    if not isinstance(value, dict | list | tuple) or depth > MAX_DEPTH:
        return
    groups = value.get("param_groups") if isinstance(value, dict) and "state" in value else None
    if isinstance(groups, list) and groups and all(isinstance(each, dict) and "params" in each for each in groups):
        raise InvalidArgumentError(
            f"{quoted(name)} is the state_dict() of an optimizer, a snapshot: later steps would not be saved, and a "
            f"restore would not change the optimizer. Pass the optimizer itself: {{{quoted(name)}: optimizer}}"
        )
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(item, dict | list | tuple):
            refuse_snapshots(f"{name}/{key}", item, depth + 1)


def is_module_snapshot(value: object) -> bool:
    """Return whether a value is the result of a module's state_dict()."""
    return isinstance(value, OrderedDict) and hasattr(value, "_metadata")
