"""State that is not a tensor: objects with state_dict and load_state_dict, and plain dicts and lists.

The key K stores the state as a JSON string (see `state_tree`); keys K/... store its tensors. The set of tensors is
looked up at every save, and in the file at every restore: an optimizer has its moments only after the first step.
"""

import copy
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeGuard, cast

import numpy as np
import torch

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.devices import HOST
from torch_tfckpt.distributed.shards import any_dtensors, is_dtensor, local_tensor
from torch_tfckpt.errors import DataLossError, InvalidArgumentError, NotFoundError, error_context
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.saveables.named_types import is_named_tuple
from torch_tfckpt.saveables.optimizer_loading import keeping_dtypes
from torch_tfckpt.saveables.save_spec import SaveableObject, SaveSpec
from torch_tfckpt.saveables.spread_state import KnowsLayouts, Layouts, layouts_like, spread
from torch_tfckpt.saveables.state_tree import flatten, tensor_keys, unflatten
from torch_tfckpt.text import did_you_mean, escaped, first_lines, quoted
from torch_tfckpt.transfer.uploads import assign
from torch_tfckpt.values import Value, value_dtype

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

_LISTED: Final = 10  # maximum number of remarks in a warning
_log = logging.getLogger(__name__)


class Stateful(Protocol):
    """The methods that torch's optimizers, schedulers and scalers have in common."""

    def state_dict(self) -> Any:
        """Return the state, as a value that `state_tree.flatten` accepts."""

    def load_state_dict(self, state_dict: Any, /) -> object:
        """Restore a state returned by `state_dict`."""


def is_stateful(value: object) -> TypeGuard[Stateful]:
    """Return whether an object has both methods; False for a class that has them."""
    has_both = callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None))
    return has_both and not isinstance(value, type)


class SaveableState(Protocol):
    """Interface to read and write one kind of state; nothing is kept between calls."""

    def value(self) -> object:
        """Return the current state, as a value that `flatten` accepts."""

    def plan(self, stored: object) -> object:
        """Return the argument of `load` for a stored value. Changes nothing.

        Tensors may be placeholders of the right shape and dtype with meaningless elements.

        Raises:
            InvalidArgumentError: the stored value does not fit the object.
        """

    def load(self, planned: Any) -> None:
        """Restore the state that `plan` returned."""


class FunctionState:
    """State that is read and written by two functions; `put` raises if a value does not fit."""

    def __init__(self, get: Callable[[], object], put: Callable[[Any], object]) -> None:
        self._get, self._put = get, put

    def value(self) -> object:
        """Call `get`."""
        return self._get()

    def plan(self, stored: object) -> object:
        """Return the stored value unchanged."""
        return stored

    def load(self, planned: Any) -> None:
        """Pass the value to `put`."""
        self._put(planned)


class ObjectState(FunctionState):
    """State of an object with state_dict and load_state_dict."""

    def __init__(self, target: Stateful) -> None:
        super().__init__(target.state_dict, target.load_state_dict)
        self._target = target

    def load(self, planned: Any) -> None:
        """Call load_state_dict. State of optimizers in the object's attributes keeps its dtypes."""
        with keeping_dtypes(self._target):
            super().load(planned)


class ContainerState:
    """State of a plain dict, list, set or deque: a restore replaces its contents in place.

    A tensor that is at the same position now, with the stored shape and dtype, is filled in place, so that other
    references to it see the value: model.state_dict() has references to the tensors of a model. Other tensors are new,
    on the device of the tensor that is at the same position now, else in host memory.
    """

    def __init__(self, target: dict[Any, Any] | list[Any] | set[Any] | deque[Any]) -> None:
        self._target = target
        self._kind = next(kind for kind in (dict, list, set, deque) if isinstance(target, kind))

    def value(self) -> object:
        """Return a shallow copy."""
        if isinstance(self._target, deque):
            return deque(self._target, self._target.maxlen)
        return self._kind(self._target)

    def plan(self, stored: object) -> object:
        """Return the stored value.

        Raises:
            InvalidArgumentError: the file has a different kind of container, or more elements than the deque can hold.
        """
        if not isinstance(stored, self._kind):
            raise InvalidArgumentError(
                f"the checkpoint stores a {type(stored).__name__}, but the object to restore is a {self._kind.__name__}"
            )
        limit = self._target.maxlen if isinstance(self._target, deque) else None
        if limit is not None and len(stored) > limit:
            raise InvalidArgumentError(
                f"the checkpoint stores {len(stored)} elements, but the deque to restore has maxlen={limit}. Give it a "
                f"larger maxlen"
            )
        return stored

    def load(self, planned: Any) -> None:
        """Replace the contents."""
        placed = placed_like(planned, self.value(), fill=True)
        self._target.clear()
        if isinstance(self._target, dict | set):
            self._target.update(placed)
        else:
            self._target.extend(placed)


def placed_like(new: Any, old: object, *, fill: bool = False) -> Any:
    """Return `new` with its tensors on the devices of the tensors at the same positions in `old`.

    Args:
        fill: Copy values into tensors of `old` that can hold them, and return those tensors.
    """
    if isinstance(new, torch.Tensor):
        if not isinstance(old, torch.Tensor):
            return new
        return _filled(old, new) if fill and _can_take(old, new) else new.to(old.device)
    if isinstance(new, dict):
        here = old if isinstance(old, Mapping) else {}
        placed = copy.copy(new)
        for key, item in new.items():
            placed[key] = placed_like(item, here.get(key), fill=fill)
        return placed
    if isinstance(new, list | tuple | deque) and not isinstance(new, torch.Size):
        same = isinstance(old, list | tuple | deque) and len(old) == len(new)
        pairs = zip(new, cast("list[Any]", old) if same else [None] * len(new), strict=True)
        items = [placed_like(item, other, fill=fill) for item, other in pairs]
        if isinstance(new, deque):
            return deque(items, new.maxlen)
        return cast("Any", type(new))._make(items) if is_named_tuple(new) else type(new)(items)
    return new


def _can_take(old: torch.Tensor, new: torch.Tensor) -> bool:
    if (old.dtype, old.shape, old.layout) != (new.dtype, new.shape, new.layout) or old.is_inference():
        return False
    if is_dtensor(old) != is_dtensor(new):
        return False
    shared = any(stride == 0 and size > 1 for stride, size in zip(old.stride(), old.shape, strict=True))
    return not old.is_meta and not shared


def _filled(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        if is_dtensor(old) and is_dtensor(new):
            assign(local_tensor("state", old), local_tensor("state", new))
        else:
            assign(old, new)
    return old


def state_to_save(
    key: str, state: SaveableState, stored_as: Mapping[int, str] = MappingProxyType({})
) -> list[SaveableObject]:
    """Return saveables of the current state: its JSON under `key`, then one for each tensor.

    Args:
        stored_as: As in `flatten`.

    Raises:
        TypeError: a value can only be pickled; the message has its path.
        InvalidArgumentError, UnimplementedError: as `flatten` and SaveSpec.
    """
    text, tensors = flatten(state.value(), key, stored_as=stored_as)
    saveables = [SaveableObject(None, [SaveSpec(text, "", key)], key)]
    return saveables + [SaveableObject(None, [SaveSpec(tensor, "", name)], name) for name, tensor in tensors.items()]


def state_to_restore(key: str, state: SaveableState, reader: CheckpointReader) -> SaveableObject:
    """Return one saveable that restores the JSON under `key` and the tensors that it names, in order.

    Raises:
        NotFoundError: "Key N not found in checkpoint", for the JSON or one of its tensors.
        InvalidArgumentError: the stored state does not fit the object; nothing was changed.
        DataLossError: the JSON is not in the form that `flatten` writes.

    Cost: reads the JSON, and the index entries of the tensors.
    """
    stand_ins, value = stored_state(key, reader)
    with error_context(f"{reader.path}: state {quoted(key)}"):
        state.plan(value)
        layouts = _layouts(state, value) if stand_ins and any_dtensors() else {}
    templates = {name: layouts.get(id(stand_in)) for name, stand_in in stand_ins.items()}
    return _StoredState(key, state, stand_ins, {name: reader.dtype(name) for name in stand_ins}, templates)


def _layouts(state: SaveableState, stored: object) -> Layouts:
    return state.layouts(stored) if isinstance(state, KnowsLayouts) else layouts_like(stored, state.value())


def stored_state(key: str, reader: CheckpointReader) -> tuple[dict[str, torch.Tensor], object]:
    """Return placeholders for all tensors named in the stored JSON, and the value that contains them.

    Raises: as `state_to_restore`.
    """
    text = read_text(reader, key)
    with error_context(f"{reader.path}: state {quoted(key)}"):
        stand_ins = {name: _stand_in(reader, name) for name in tensor_keys(text)}
        return stand_ins, unflatten(text, stand_ins)


def read_text(reader: CheckpointReader, key: str) -> bytes:
    """Return the string under `key`.

    Raises: InvalidArgumentError if the value is not a single string; other errors as `get_tensor`.
    """
    _require_key(reader, key)
    value = reader.get_tensor(key) if reader.dtype(key) == DataType.DT_STRING else None
    if not isinstance(value, np.ndarray) or value.shape != ():
        raise InvalidArgumentError(
            f"{reader.path}: {quoted(key)} is {reader.dtype(key).name} of shape {reader.shape(key)}, not the JSON of "
            f"stored state. Restore it into a tensor"
        )
    text: bytes = value.item()
    return text


def _require_key(reader: CheckpointReader, key: str) -> None:
    """Raise NotFoundError unless the checkpoint has this key; other names of a tensor are not accepted."""
    if key not in reader:
        closest = did_you_mean(key, reader.keys())
        raise NotFoundError(f"{reader.path}: Key {escaped(key)} not found in checkpoint. {closest}".rstrip())


def _stand_in(reader: CheckpointReader, name: str) -> torch.Tensor:
    """Return a tensor of the stored shape and dtype that takes no memory."""
    _require_key(reader, name)
    dtype, shape = reader.dtype(name), reader.shape(name)
    if dtype == DataType.DT_STRING:
        raise DataLossError(f"{quoted(name)} should be a tensor of the state, but contains strings")
    return torch.zeros((), dtype=value_dtype(name, dtype), device="cpu").expand(shape)


class _StoredState(SaveableObject):
    """Saveable that restores a state from the checkpoint that it was created for."""

    def __init__(
        self,
        key: str,
        state: SaveableState,
        stand_ins: dict[str, torch.Tensor],
        dtypes: dict[str, DataType],
        templates: Mapping[str, "DTensor | None"],
    ) -> None:
        # All on one device, as a saveable's specs must be; the object moves its tensors where it needs them.
        specs = [SaveSpec("", "", key, device=HOST)]
        for name, stand_in in stand_ins.items():
            template = templates[name]
            specs.append(SaveSpec(stand_in if template is None else template, "", name, dtypes[name], HOST))
        super().__init__(None, specs, key)
        self._state, self._templates = state, templates

    def restore(self, restored_tensors: Sequence[Value], restored_shapes: Sequence[Shape] | None) -> None:
        """Restore the state. All of it is checked before the object is changed.

        Raises:
            InvalidArgumentError, DataLossError: as `state_to_restore`; plus any error of the object's load_state_dict.
        """
        text, *values = restored_tensors
        with error_context(f"state {quoted(self.name)}"):
            tensors = {
                name: value if template is None else spread(template, name, value)
                for (name, template), value in zip(self._templates.items(), values, strict=True)
                if torch.is_tensor(value)
            }
            if not isinstance(text, np.ndarray) or text.shape != () or not isinstance(text.item(), bytes):
                raise InvalidArgumentError("the first value is not the JSON of stored state")
            remarks: list[str] = []
            value = unflatten(text.item(), tensors, present=self._state.value, remarks=remarks)
            planned = self._state.plan(value)
        self._state.load(planned)
        if remarks:
            _log.warning("state %s: %s", quoted(self.name), "; ".join(first_lines(remarks, _LISTED)))
