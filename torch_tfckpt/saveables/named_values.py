"""Normalize the accepted forms of a var_list to one dictionary, name -> value to save.

Source: tensorflow/python/training/saving/saveable_object_util.py (op_list_to_dict).
"""

import reprlib
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import nn

from torch_tfckpt.saveables.save_spec import SaveableObject
from torch_tfckpt.saveables.stateful import is_stateful
from torch_tfckpt.saveables.tensor_saveable import has_saveables, own_saveables
from torch_tfckpt.saveables.variables import PartitionedVariable, Variable
from torch_tfckpt.text import quoted

_FORMS = (
    "a dict of names, a torch.nn.Module, (name, tensor) pairs such as model.named_parameters(), or a list of Variables "
    "and SaveableObjects"
)


def named_values(var_list: object) -> dict[str, object]:
    """Return the dictionary that a var_list is equivalent to.

    Args:
        var_list: A Module (its key is ""); a dict; an iterable, consumed here, of (name, value) pairs, Variables,
            SaveableObjects, PartitionedVariables and objects that list their own saveables; lists may be nested.

    Returns:
        Name -> value: a dict in its own order, other forms sorted by name. Slices of one variable are collected in a
        list under the name of the whole tensor. If several SaveableObjects have the same name, the last one wins.

    Raises:
        TypeError: `var_list` has any other form; a name that is not a str; an element of a list that is not a
            variable.
        AttributeError: an element of a list has no name.
        ValueError: two variables have the same name, or slices and a whole variable do.
    """
    if isinstance(var_list, nn.Module):
        return {"": var_list}
    if isinstance(var_list, Mapping):
        for name in var_list:
            if not isinstance(name, str):
                raise TypeError(
                    f"names_to_saveables must be a dict mapping string names to Tensors/Variables. Name is not a "
                    f"string: {reprlib.repr(name)}"
                )
        return dict(var_list)
    if isinstance(var_list, str | bytes | torch.Tensor) or is_stateful(var_list) or not isinstance(var_list, Iterable):
        raise TypeError(
            f"Variables to save should be passed in a dict or a list: {reprlib.repr(var_list)} is a "
            f"{type(var_list).__name__}. Pass {_FORMS}"
        )
    return _from_elements(sorted(_flat(var_list), key=_name_of))


def _flat(elements: Iterable[object]) -> Iterator[object]:
    """Yield the elements of nested lists. A pair of a name and a value counts as one element."""
    for element in elements:
        if isinstance(element, list | tuple | set | frozenset) and not _is_pair(element):
            yield from _flat(element)
        else:
            yield element


def _is_pair(element: object) -> bool:
    return isinstance(element, tuple) and len(element) == 2 and isinstance(element[0], str)


def _name_of(element: object) -> str:
    if isinstance(element, tuple):
        return str(element[0])
    name = getattr(element, "name", None)
    if not isinstance(name, str):
        raise AttributeError(
            f"an element of var_list, a {type(element).__name__}, has no name. Pass {_FORMS}", name="name", obj=element
        )
    return name


def _from_elements(elements: Iterable[object]) -> dict[str, object]:
    """Return name -> value. REQUIRES: `elements` are sorted by name."""
    found: dict[str, object] = {}
    for element in elements:
        if isinstance(element, tuple):
            _add(found, element[0], element[1])
        elif isinstance(element, SaveableObject):
            found[element.name] = element
        elif isinstance(element, PartitionedVariable):
            _add(found, element.name, element)
        elif isinstance(element, Variable) and element.slice_info is not None:
            _add_slice(found, element.slice_info.full_name, element)
        elif isinstance(element, Variable):
            _add(found, element.name.removesuffix(":0"), element)
        elif has_saveables(element):
            found.update(_from_elements(sorted(own_saveables(element), key=_name_of)))
        else:
            raise TypeError(f"Variable to save is not a Variable: {reprlib.repr(element)}. Pass {_FORMS}")
    return found


def _add(found: dict[str, object], name: str, value: object) -> None:
    if found.setdefault(name, value) is not value:
        raise ValueError(
            f"At least two variables have the same name: {name}. Two different ResourceVariable objects with the same "
            f"shared_name '{name}' cannot be distinguished in a checkpoint; rename one"
        )


def _add_slice(found: dict[str, object], name: str, part: Variable) -> None:
    parts = found.setdefault(name, [])
    if not isinstance(parts, list):
        raise ValueError(
            f"Mixing slices and non-slices with the same name: {name}. {quoted(part.name)} is a slice of this tensor"
        )
    parts.append(part)
