"""Dicts, lists and tuples as nodes, and which Python values are plain.

A container with a tensor or module in it, at any depth, is a node with a child for each item, as in TensorFlow. One of
plain values only is a single value: `states.PlainContainer`.
"""

from collections.abc import Iterable
from typing import Any, Final

import numpy as np

from torch_tfckpt.trackables.states import ValueTrackable
from torch_tfckpt.trackables.trackable import Trackable

_SCALARS: Final = (str, bytes, int, float, complex, type(None), np.generic, np.ndarray)


def is_plain(value: object) -> bool:
    """Whether it is a value such as state texts hold, or a dict, list or tuple of nothing else."""
    waiting, seen = [value], set()
    while waiting:
        here = waiting.pop()
        if isinstance(here, dict | list | tuple):
            if id(here) not in seen:  # it may contain itself
                seen.add(id(here))
                waiting += here.values() if isinstance(here, dict) else here
        elif not isinstance(here, _SCALARS):
            return False
    return True


def has_scalars(value: dict[Any, Any] | list[Any]) -> bool:
    """Whether there is more in a plain container than empty ones under str keys."""
    waiting: list[object] = [value]
    seen: set[int] = set()
    while waiting:
        here = waiting.pop()
        if not isinstance(here, dict | list | tuple):
            return True
        if id(here) in seen:
            continue
        seen.add(id(here))
        if isinstance(here, dict) and not all(isinstance(key, str) for key in here):
            return True
        waiting += here.values() if isinstance(here, dict) else here
    return False


class DictTrackable(Trackable):
    """A dict: the items under str keys are children."""

    def __init__(self, target: dict[Any, Any]) -> None:
        super().__init__(target)
        self._dict = target

    def children(self) -> Iterable[tuple[str, object]]:
        """ValueError where a key is no str."""
        for key, value in self._dict.items():
            if isinstance(key, str):
                yield key, _item(self._dict, key, value)
            else:
                raise ValueError(
                    f"Unable to save the object {type(self._dict).__name__}: it holds tensors or modules, and has the "
                    f"non-string key {key!r}. Use str for keys"
                )


class ListTrackable(Trackable):
    """A list or tuple: the items are children "0", "1", ..."""

    def __init__(self, target: list[Any] | tuple[Any, ...]) -> None:
        super().__init__(target)
        self._items = target

    def children(self) -> Iterable[tuple[str, object]]:
        """ValueError where a tuple holds a plain value, which could not be put back."""
        for index, value in enumerate(self._items):
            if isinstance(self._items, list):
                yield str(index), _item(self._items, index, value)
            elif must_be_replaced(value):
                raise ValueError(
                    f"Unable to save the object {type(self._items).__name__}: its item {index}, a "
                    f"{type(value).__name__}, could not be restored, since a tuple cannot change. Use a list"
                )
            else:
                yield str(index), value


def must_be_replaced(value: object) -> bool:
    """Whether it is a plain value that cannot change, so that a restored one takes its place."""
    return not isinstance(value, dict | list) and is_plain(value)


def _item(container: Any, key: object, value: object) -> object:
    """What stands for an item of a dict or list: the item, or of a plain value the place it has."""
    if not must_be_replaced(value):
        return value

    def put(new: object) -> None:
        container[key] = new

    return ValueTrackable(container, key, lambda: container[key], put)
