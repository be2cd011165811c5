"""Plain Python values, dicts, lists and tuples as nodes; also objects with state stored as a string.

A container that has a tensor or module in it, at any depth, is a node with a child for each item, as in TensorFlow. A
container that has only plain values is a single value, `PlainContainer`. It is stored like any object with a state: as
a string in the attribute `py_state`, next to the tensors that the string names:

    scheduler/.ATTRIBUTES/py_state              {"last_epoch": 3, "ema": {"$tensor": ".../py_state/ema"}}
    scheduler/.ATTRIBUTES/py_state/ema          the tensor, listed as the attribute "py_state.Sema"

`saveables.state_tree` creates the string from a state. TensorFlow's PythonState stores a string in a different format
under the same attribute.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from functools import cached_property
from typing import Any, Final, Protocol, TypeGuard

import numpy as np
import torch

from torch_tfckpt.devices import HOST
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.object_graph import (
    PYTHON_STATE,
    VARIABLE_VALUE,
    TrackableObject,
    checkpoint_key,
    escape_local_name,
)
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.objects.trackables.trackable import RestoredValues, SavedValues, StoredNode, Trackable
from torch_tfckpt.saveables.identity import Identity
from torch_tfckpt.saveables.nested_values import CONTAINERS, Container
from torch_tfckpt.saveables.plain_types import PLAIN_TYPES
from torch_tfckpt.saveables.save_spec import SaveableObject, SaveSpec
from torch_tfckpt.saveables.stateful import (
    ContainerState,
    FunctionState,
    SaveableState,
    state_to_restore,
    state_to_save,
)
from torch_tfckpt.text import quoted
from torch_tfckpt.values import Value

_TENSORS = escape_local_name(f"{PYTHON_STATE}/")  # prefix of the attribute names of the tensors in a state


class StateTrackable(Trackable):
    """An object with state.

    Args:
        state: Reads and writes the state.
    """

    holds_values = True

    def __init__(self, target: object, state: SaveableState) -> None:
        super().__init__(target)
        self._state = state

    def to_save(self, path: str) -> SavedValues:
        key = checkpoint_key(path, PYTHON_STATE)
        saveables = state_to_save(key, self._state)
        names = [spec.name for saveable in saveables for spec in saveable.specs]
        return SavedValues(
            {escape_local_name(PYTHON_STATE + name.removeprefix(key)): name for name in names}, saveables
        )

    def to_restore(self, stored: StoredNode) -> RestoredValues:
        key = stored.keys.get(PYTHON_STATE)
        if key is None:
            return RestoredValues()
        used = [name for name in stored.keys if name == PYTHON_STATE or name.startswith(_TENSORS)]
        return RestoredValues([state_to_restore(key, self._state, stored.reader)], frozenset(used))


class ValueTrackable(StateTrackable):
    """An immutable plain value, such as an int, which a restore replaces.

    Args:
        holder: The object or container that contains it.
        name: Its attribute, key or index in `holder`.
        get: Returns the current value.
        put: Replaces the value.
    """

    is_part = True

    def __init__(self, holder: object, name: object, get: Callable[[], object], put: Callable[[Any], object]) -> None:
        super().__init__(holder, FunctionState(get, put))
        self._name, self._get, self._put = name, get, put

    @cached_property
    def identity(self) -> Identity:
        return ("value", id(self.target), self._name)

    def is_placeholder_for(self, node: TrackableObject) -> bool:
        return self._get() is None and not _has_state(node)

    def to_restore(self, stored: StoredNode) -> RestoredValues:
        """Return the saveable. A number can also be restored from a scalar variable, such as `tf.Variable(0)`."""
        key = stored.keys.get(VARIABLE_VALUE)
        value = self._get()
        if key is None or not isinstance(value, int | float):
            return super().to_restore(stored)
        return RestoredValues([_NumberSaveable(self._put, type(value), key)], frozenset([VARIABLE_VALUE]))


class _NumberSaveable(SaveableObject):
    """Restores a Python number from a scalar."""

    def __init__(self, put: Callable[[Any], object], kind: type[int] | type[float], key: str) -> None:
        super().__init__(None, [SaveSpec(None, "", key, device=HOST)], key)
        self._put, self._kind = put, kind

    def check(self, shapes: Sequence[Shape], restored_shapes: Sequence[Shape] | None = None) -> None:
        if tuple(shapes[0]) != ():
            raise InvalidArgumentError(
                f"{quoted(self.name)}: the stored tensor has shape {tuple(shapes[0])}, but the object is a Python "
                f"number. Use a tensor of that shape"
            )

    def restore(self, restored_tensors: Sequence[Value], restored_shapes: Sequence[Shape] | None) -> None:
        (value,) = restored_tensors
        self._put(self._kind(value.item()))


class PlainContainer(StateTrackable):
    """A dict, list, set or deque of plain values. If empty, it saves nothing; its node has no attributes."""

    def __init__(self, target: Container) -> None:
        super().__init__(target, ContainerState(target))
        self._container = target
        self.holds_values = bool(target)

    def is_placeholder_for(self, node: TrackableObject) -> bool:
        return not self._container and not _has_state(node) and bool(node.children or node.attributes)

    def to_save(self, path: str) -> SavedValues:
        return super().to_save(path) if self._container else SavedValues()

    def to_restore(self, stored: StoredNode) -> RestoredValues:
        if self._container and not stored.node.attributes and not stored.node.children:
            return RestoredValues([_Emptied(self._container)])
        return super().to_restore(stored)


class _Emptied(SaveableObject):
    """Restores a container that was empty when it was saved."""

    def __init__(self, container: Container) -> None:
        super().__init__(container, [], "")
        self._container = container

    def restore(self, restored_tensors: Sequence[Value], restored_shapes: Sequence[Shape] | None) -> None:
        self._container.clear()


def _has_state(node: TrackableObject) -> bool:
    return any(attribute.name == PYTHON_STATE for attribute in node.attributes)


class PythonState(Protocol):
    """An object that encodes itself as a string, like tf.train.experimental.PythonState."""

    def serialize(self) -> str:
        """Return the state."""

    def deserialize(self, string_value: str, /) -> object:
        """Restore a state that `serialize` returned."""


def is_python_state(value: object) -> TypeGuard[PythonState]:
    """Whether an object, not a class or tensor, has the methods of PythonState."""
    has_both = callable(getattr(value, "serialize", None)) and callable(getattr(value, "deserialize", None))
    return has_both and not isinstance(value, type | torch.Tensor)


class PythonStateTrackable(Trackable):
    """An object that encodes itself as a string."""

    holds_values = True

    def __init__(self, target: PythonState) -> None:
        super().__init__(target)
        self._object = target

    def to_save(self, path: str) -> SavedValues:
        key = checkpoint_key(path, PYTHON_STATE)
        return SavedValues(
            {PYTHON_STATE: key}, [SaveableObject(self._object, [SaveSpec(self._object.serialize(), "", key)], key)]
        )

    def to_restore(self, stored: StoredNode) -> RestoredValues:
        return stored.restored(PYTHON_STATE, lambda key: _SerializedSaveable(self._object, key))


class _SerializedSaveable(SaveableObject):
    def __init__(self, target: PythonState, key: str) -> None:
        super().__init__(target, [SaveSpec("", "", key, device=HOST)], key)
        self._object = target

    def check(self, shapes: Sequence[Shape], restored_shapes: Sequence[Shape] | None = None) -> None:
        if tuple(shapes[0]) != ():
            raise InvalidArgumentError(
                f"{quoted(self.name)}: the stored strings have shape {shapes[0]}, but one string is needed"
            )

    def restore(self, restored_tensors: Sequence[Value], restored_shapes: Sequence[Shape] | None) -> None:
        (text,) = restored_tensors
        assert isinstance(text, np.ndarray), "its dtype was checked"
        self._object.deserialize(text.item().decode("utf-8", "surrogateescape"))


_SCALARS: Final[tuple[type, ...]] = (
    str,
    bytes,
    int,
    float,
    complex,
    type(None),
    np.generic,
    np.ndarray,
    bytearray,
    slice,
    *PLAIN_TYPES,
)


def is_plain(value: object) -> bool:
    """Return whether an encoded state may contain the value.

    If it is a dict, list, tuple, set or deque, all its values must be allowed, too.
    """
    waiting, seen = [value], set()
    while waiting:
        here = waiting.pop()
        if isinstance(here, Enum):
            waiting.append(here.value)
        elif isinstance(here, dict | list | tuple | set | frozenset | deque):
            if id(here) not in seen:  # it may contain itself
                seen.add(id(here))
                waiting += here.values() if isinstance(here, dict) else here
        elif not isinstance(here, _SCALARS):
            return False
    return True


def has_scalars(value: Container) -> bool:
    """Return whether a plain container has anything but nested empty containers with str keys."""
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


def _restored_whole(target: dict[Any, Any] | list[Any], stored: StoredNode) -> RestoredValues:
    """Return the values for a container of empty containers that had plain values when it was saved.

    {"loss": []} is stored with a node for the list, but {"loss": [0.5]} as one value.
    """
    if PYTHON_STATE in stored.keys and is_plain(target):
        return StateTrackable(target, ContainerState(target)).to_restore(stored)
    return RestoredValues()


class DictTrackable(Trackable):
    """A dict, with its items as children."""

    def __init__(self, target: dict[Any, Any]) -> None:
        super().__init__(target)
        self._dict = target

    def children(self) -> Iterable[tuple[str, object]]:
        """Yield the items; ValueError if a key is not a str."""
        for key, value in self._dict.items():
            if isinstance(key, str):
                yield key, _item(self._dict, key, value)
            else:
                raise ValueError(
                    f"Unable to save the object {type(self._dict).__name__}: it contains tensors or modules, and "
                    f"has the non-string key {key!r}. Use str for keys"
                )

    def to_restore(self, stored: StoredNode) -> RestoredValues:
        return _restored_whole(self._dict, stored)


class ListTrackable(Trackable):
    """A list or tuple: the items are children "0", "1", ..."""

    def __init__(self, target: list[Any] | tuple[Any, ...]) -> None:
        super().__init__(target)
        self._items = target

    def children(self) -> Iterable[tuple[str, object]]:
        """Yield the items; ValueError if a tuple contains a plain value, which could not be restored."""
        for index, value in enumerate(self._items):
            if isinstance(self._items, list):
                yield str(index), _item(self._items, index, value)
            elif must_be_replaced(value):
                raise ValueError(
                    f"Unable to save the object {type(self._items).__name__}: its item {index} "
                    f"({type(value).__name__}) could not be restored, since a tuple cannot change. Use a list"
                )
            else:
                yield str(index), value

    def to_restore(self, stored: StoredNode) -> RestoredValues:
        return _restored_whole(self._items, stored) if isinstance(self._items, list) else RestoredValues()


def must_be_replaced(value: object) -> bool:
    """Return whether `value` is an immutable plain value, which a restore replaces."""
    return not isinstance(value, CONTAINERS) and is_plain(value)


def _item(container: Any, key: object, value: object) -> object:
    """Return the object for an item of a dict or list; for a plain value, an object that can replace it."""
    if not must_be_replaced(value):
        return value

    def put(new: object) -> None:
        container[key] = new

    return ValueTrackable(container, key, lambda: container[key], put)
