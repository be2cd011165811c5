"""Named tuples and members of enumerations: restored as the type of the program's current value.

A file does not store their class, only its name and the fields of a named tuple. If the program's current value at the
same place is a named tuple with these fields, or a member of an enumeration with this name, the restored value has
the same class. Otherwise it is a plain tuple, or the plain value of the member; for named tuples, IntEnum and StrEnum,
this compares equal to the saved value. `fitted` reports each value that gets a plain type.
"""

import enum
from collections import OrderedDict, defaultdict, deque
from collections.abc import Mapping
from typing import Any, Protocol, TypeGuard, cast

from torch_tfckpt.text import quoted


class _NamedTupleLike(Protocol):
    _fields: tuple[str, ...]


def is_named_tuple(value: object) -> TypeGuard[_NamedTupleLike]:
    """Return whether a value is a named tuple (collections.namedtuple or typing.NamedTuple)."""
    fields = getattr(value, "_fields", None)
    return isinstance(value, tuple) and isinstance(fields, tuple) and len(fields) == len(value)


class StoredTuple(tuple[Any, ...]):
    """A named tuple in a file: the values, and the name of its class."""

    name: str
    fields: tuple[str, ...]


class StoredMember:
    """A member of an enumeration in a file."""

    def __init__(self, name: str, value: object) -> None:
        self.name, self.value = name, value


def class_name(value: object) -> str:
    """Return the name by which the class of a value is stored and compared."""
    return type(value).__qualname__


def fitted(stored: Any, present: object, remarks: list[str], path: str = "") -> Any:
    """Return `stored` with the types of the values in `present`. Changes dicts, lists and deques in place.

    Args:
        stored: A value without cycles that nothing else refers to.
        remarks: Receives a line for each value that gets a plain type.
    """
    if isinstance(stored, StoredMember):
        return _member(stored, present, remarks, path)
    if isinstance(stored, StoredTuple):
        others = present if isinstance(present, tuple) and len(present) == len(stored) else (None,) * len(stored)
        items = [
            fitted(item, other, remarks, f"{path}/{name}")
            for name, item, other in zip(stored.fields, stored, others, strict=True)
        ]
        if is_named_tuple(present) and present._fields == stored.fields:
            return cast("Any", type(present))._make(items)
        remarks.append(f"{path or 'the value'} was a {stored.name} and is restored as a tuple")
        return tuple(items)
    if type(stored) in (dict, OrderedDict, defaultdict):
        here = present if isinstance(present, Mapping) else {}
        for key, item in stored.items():
            stored[key] = fitted(item, here.get(key), remarks, f"{path}/{key}" if path else str(key))
    elif type(stored) in (list, deque, tuple):
        others = (None,) * len(stored)
        if isinstance(present, list | tuple | deque) and len(present) == len(stored):
            others = tuple(present)
        items = [
            fitted(item, other, remarks, f"{path}/{number}" if path else str(number))
            for number, (item, other) in enumerate(zip(stored, others, strict=True))
        ]
        if type(stored) is tuple:
            return tuple(items)
        for number, item in enumerate(items):
            stored[number] = item
    return stored


def _member(stored: StoredMember, present: object, remarks: list[str], path: str) -> object:
    if isinstance(present, enum.Enum) and class_name(present) == stored.name:
        try:
            return type(present)(stored.value)
        except ValueError:  # the program's class no longer has such a member
            pass
    remarks.append(f"{path or 'the value'} was a {stored.name} and is restored as {quoted(str(stored.value))}")
    return stored.value
