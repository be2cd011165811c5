"""State that is not a tensor: objects with state_dict and load_state_dict, and plain dicts and lists.

Under the key K stands one string, the state as `state_tree` spells it, and under K/... its tensors. Which tensors there
are is looked up at every save, and at a restore in the file: an optimizer has its moments from the first step on only.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol, TypeGuard

import numpy as np
import torch

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.devices import HOST
from torch_tfckpt.errors import DataLossError, InvalidArgumentError, NotFoundError, error_context
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.saveables.save_spec import SaveableObject, SaveSpec
from torch_tfckpt.saveables.state_tree import flatten, tensor_keys, unflatten
from torch_tfckpt.text import did_you_mean, escaped, quoted
from torch_tfckpt.values import Value, value_dtype


class Stateful(Protocol):
    """What torch's optimizers, schedulers and scalers have in common."""

    def state_dict(self) -> Any:
        """The state, as a value that `state_tree.flatten` takes."""

    def load_state_dict(self, state_dict: Any, /) -> object:
        """Takes over a state that `state_dict` gave."""


def is_stateful(value: object) -> TypeGuard[Stateful]:
    """Whether an object has both methods; a class that has them is not meant."""
    has_both = callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None))
    return has_both and not isinstance(value, type)


class SaveableState(Protocol):
    """How one kind of state is read and written. Nothing is kept between calls."""

    def value(self) -> object:
        """The state now, as a value that `flatten` takes."""

    def plan(self, stored: object) -> object:
        """What `load` is to be given for a stored value. Changes nothing.

        Tensors may be stand-ins of the right shape and dtype whose elements mean nothing.

        Raises:
            InvalidArgumentError: the stored value does not fit what is here.
        """

    def load(self, planned: Any) -> None:
        """Takes over what `plan` gave."""


class FunctionState:
    """State that two functions get and put, which decide what fits."""

    def __init__(self, get: Callable[[], object], put: Callable[[Any], object]) -> None:
        self._get, self._put = get, put

    def value(self) -> object:
        """Call `get`."""
        return self._get()

    def plan(self, stored: object) -> object:
        """The stored value as it is."""
        return stored

    def load(self, planned: Any) -> None:
        """Pass the value to `put`."""
        self._put(planned)


class ObjectState(FunctionState):
    """State of an object through its own two methods."""

    def __init__(self, target: Stateful) -> None:
        super().__init__(target.state_dict, target.load_state_dict)


class ContainerState:
    """State of a dict or a list itself: its contents are replaced, it stays the same object.

    Tensors in it come back on the device where the one at the same place is now, else in host memory.
    """

    def __init__(self, target: dict[Any, Any] | list[Any]) -> None:
        self._target = target

    def value(self) -> object:
        """A shallow copy."""
        return dict(self._target) if isinstance(self._target, dict) else list(self._target)

    def plan(self, stored: object) -> object:
        """InvalidArgumentError where a dict is stored and a list is here, or the other way round."""
        kind = dict if isinstance(self._target, dict) else list
        if not isinstance(stored, kind):
            raise InvalidArgumentError(f"stored is a {type(stored).__name__}, here is a {kind.__name__}")
        return stored

    def load(self, planned: Any) -> None:
        """Replaces the contents."""
        placed = placed_like(planned, self.value())
        if isinstance(self._target, dict):
            self._target.clear()
            self._target.update(placed)
        else:
            self._target[:] = placed


def placed_like(new: Any, old: object) -> Any:
    """`new`, its tensors on the devices of the tensors at the same places of `old`."""
    if isinstance(new, torch.Tensor):
        return new.to(old.device) if isinstance(old, torch.Tensor) else new
    if type(new) is dict:
        here = old if isinstance(old, dict) else {}
        return {key: placed_like(item, here.get(key)) for key, item in new.items()}
    if type(new) in (list, tuple):
        others = old if isinstance(old, list | tuple) and len(old) == len(new) else (None,) * len(new)
        return type(new)(placed_like(item, other) for item, other in zip(new, others, strict=True))
    return new


def state_to_save(
    key: str, state: SaveableState, stored_as: Mapping[int, str] = MappingProxyType({})
) -> list[SaveableObject]:
    """The state now: its text under `key`, then each tensor as a saveable of its own, for each lives on its own device.

    Args:
        stored_as: As of `flatten`.

    Raises:
        TypeError: something in it can only be pickled; the text has its path.
        InvalidArgumentError, UnimplementedError: as `flatten` and SaveSpec.
    """
    text, tensors = flatten(state.value(), key, stored_as=stored_as)
    saveables = [SaveableObject(None, [SaveSpec(text, "", key)], key)]
    return saveables + [SaveableObject(None, [SaveSpec(tensor, "", name)], name) for name, tensor in tensors.items()]


def state_to_restore(key: str, state: SaveableState, reader: CheckpointReader) -> SaveableObject:
    """One saveable that takes the text under `key` and the tensors it names, in order of appearance.

    Raises:
        NotFoundError: "Key N not found in checkpoint": the text, or one of its tensors.
        InvalidArgumentError: what is stored does not fit what is here; nothing was changed.
        DataLossError: the text is not of `flatten`'s form.

    Cost: reads the text, and of tensors their entries in the index.
    """
    stand_ins, value = stored_state(key, reader)
    with error_context(f"{reader.path}: state {quoted(key)}"):
        state.plan(value)
    return _StoredState(key, state, stand_ins, {name: reader.dtype(name) for name in stand_ins})


def stored_state(key: str, reader: CheckpointReader) -> tuple[dict[str, torch.Tensor], object]:
    """Stand-ins of all tensors that a stored text names, and the value with them. Errors as `state_to_restore`."""
    text = read_text(reader, key)
    with error_context(f"{reader.path}: state {quoted(key)}"):
        stand_ins = {name: _stand_in(reader, name) for name in tensor_keys(text)}
        return stand_ins, unflatten(text, stand_ins)


def read_text(reader: CheckpointReader, key: str) -> bytes:
    """The one string under `key`. InvalidArgumentError where it is something else; other errors as `get_tensor`."""
    _require_key(reader, key)
    value = reader.get_tensor(key) if reader.dtype(key) == DataType.DT_STRING else None
    if not isinstance(value, np.ndarray) or value.shape != ():
        raise InvalidArgumentError(
            f"{reader.path}: {quoted(key)} is {reader.dtype(key).name} of shape {reader.shape(key)}, not the text of "
            f"stored state. Restore a tensor under this key"
        )
    text: bytes = value.item()
    return text


def _require_key(reader: CheckpointReader, key: str) -> None:
    """NotFoundError if nothing is stored under this key, even if it is another name of a tensor."""
    if key not in reader:
        closest = did_you_mean(key, reader.keys())
        raise NotFoundError(f"{reader.path}: Key {escaped(key)} not found in checkpoint. {closest}".rstrip())


def _stand_in(reader: CheckpointReader, name: str) -> torch.Tensor:
    """A tensor of the stored shape and dtype that takes no memory."""
    _require_key(reader, name)
    dtype, shape = reader.dtype(name), reader.shape(name)
    if dtype == DataType.DT_STRING:
        raise DataLossError(f"{quoted(name)} holds strings where a tensor of the state belongs")
    return torch.zeros((), dtype=value_dtype(name, dtype)).expand(shape)


class _StoredState(SaveableObject):
    """Takes a state from the checkpoint it was made for."""

    def __init__(
        self, key: str, state: SaveableState, stand_ins: dict[str, torch.Tensor], dtypes: dict[str, DataType]
    ) -> None:
        # All on one device, as a saveable's specs must be; the object moves what it wants elsewhere.
        specs = [SaveSpec("", "", key, device=HOST)]
        specs += [SaveSpec(tensor, "", name, dtypes[name], HOST) for name, tensor in stand_ins.items()]
        super().__init__(None, specs, key)
        self._state, self._tensors = state, list(stand_ins)

    def restore(self, restored_tensors: Sequence[Value], restored_shapes: Sequence[Shape] | None) -> None:
        """Takes over the state. It is looked through as a whole before the object is told of it.

        Raises:
            InvalidArgumentError, DataLossError: as state_to_restore. Whatever the object's load_state_dict raises.
        """
        text, *values = restored_tensors
        tensors = {name: value for name, value in zip(self._tensors, values, strict=True) if torch.is_tensor(value)}
        with error_context(f"state {quoted(self.name)}"):
            if not isinstance(text, np.ndarray) or text.shape != () or not isinstance(text.item(), bytes):
                raise InvalidArgumentError("the first value is not the text of stored state")
            planned = self._state.plan(unflatten(text.item(), tensors))
        self._state.load(planned)
