"""Saveables of tensors: whole tensors, slices, and the saveables that an object lists itself.

Source: tensorflow/python/training/saving/saveable_object_util.py.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import prod
from typing import Protocol, TypeGuard

import torch
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter, is_lazy

from torch_tfckpt.distributed.reading import part_of
from torch_tfckpt.distributed.shards import check_storable, is_dtensor, local_tensor, memory_of
from torch_tfckpt.dtypes import data_type
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.object_graph import VARIABLE_VALUE
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.saveables.save_spec import SaveableObject, SaveSpec
from torch_tfckpt.saveables.variables import PartitionedVariable, Variable
from torch_tfckpt.text import escaped, quoted
from torch_tfckpt.transfer.uploads import assign
from torch_tfckpt.values import PLAIN_CLASSES, Value, is_ordinary


class VariableSaveable(SaveableObject):
    """One tensor, restored in place. Like TensorFlow's VariableSaveable and ResourceVariableSaveable.

    Args:
        var: The tensor. A restore fills its memory, so its views and the optimizer's reference to it remain valid; of a
            DTensor, this rank's part is filled.
        slice_spec: "" for a whole tensor; else the position of the slice in the larger tensor.
        name: Key in the checkpoint.

    Raises:
        InvalidArgumentError: a lazy parameter that has no shape yet.
        UnimplementedError: TensorFlow has no such dtype.
    """

    def __init__(self, var: torch.Tensor | Variable, slice_spec: str, name: str) -> None:
        self.variable = var if isinstance(var, Variable) else Variable(var, name, trainable=var.requires_grad)
        self.tensor = self.variable.tensor
        self._stored_as = self.variable.dtype
        spec = SaveSpec(self.tensor, slice_spec, name, self._stored_as, self.variable.device)
        super().__init__(self.tensor, [spec], name)
        self._memory = _memory_of(self.tensor)

    def is_current(self) -> bool:
        """Return whether a new saveable of the same variable would be equal to this one.

        False if the variable has a different tensor now, or the tensor's memory, shape, dtype or device has changed.
        """
        variable, tensor = self.variable, self.tensor
        if variable.tensor is not tensor or variable.dtype is not self._stored_as:
            return False
        return self._memory is not None and self._memory == _memory_of(tensor)

    def check(self, shapes: Sequence[Shape], restored_shapes: Sequence[Shape] | None = None) -> None:
        """Raise InvalidArgumentError if the tensor cannot be filled in place, or the shape does not fit."""
        _check_fillable(self.name, self.tensor)
        shape = tuple(shapes[0])
        if restored_shapes is not None:
            wanted = tuple(restored_shapes[0])
            if prod(shape) != prod(wanted):
                raise InvalidArgumentError(
                    f"Input to reshape is a tensor with {prod(shape)} values, but the requested shape {wanted} of "
                    f"variable {quoted(self.name)} has {prod(wanted)}"
                )
            shape = wanted
        if shape != tuple(self.tensor.shape):
            raise InvalidArgumentError(
                f"Received incompatible tensor with shape {shape} when attempting to restore variable with shape "
                f"{tuple(self.tensor.shape)} and name {escaped(self.name)}."
            )

    def restore(self, restored_tensors: Sequence[Value], restored_shapes: Sequence[Shape] | None) -> None:
        """Copy the value into the tensor, on any device and with any strides; no gradient is recorded.

        Raises:
            InvalidArgumentError: as `check`, or the value has a different dtype; the tensor is left untouched.
        """
        value = restored_tensors[0]
        if is_dtensor(self.tensor) and isinstance(value, torch.Tensor):
            self._restore_part(self.tensor, value, restored_shapes)
            return
        if not isinstance(value, torch.Tensor) or value.dtype != self.tensor.dtype:
            found = value.dtype if isinstance(value, torch.Tensor) else "string"
            raise self._other_dtype(found)
        self.check([tuple(value.shape)], restored_shapes)
        # A tensor created in inference mode can only be written in that mode.
        with torch.inference_mode() if self.tensor.is_inference() else torch.no_grad():
            assign(self.tensor, value if value.shape == self.tensor.shape else value.reshape(self.tensor.shape))

    def _restore_part(self, tensor: torch.Tensor, value: torch.Tensor, restored_shapes: Sequence[Shape] | None) -> None:
        """Copy this rank's part, or its elements in a whole value, into this rank's part of a DTensor."""
        assert is_dtensor(tensor)
        if value.dtype != tensor.dtype:
            raise self._other_dtype(value.dtype)
        local = local_tensor(self.name, tensor)
        if value.shape != local.shape:
            self.check([tuple(value.shape)], restored_shapes)
        with torch.no_grad():
            assign(local, part_of(self.name, value, tensor))

    def _other_dtype(self, found: object) -> InvalidArgumentError:
        return InvalidArgumentError(
            f"variable {quoted(self.name)} is {self.tensor.dtype}, but the checkpoint's original dtype is {found}"
        )


class LazySaveable(SaveableObject):
    """A parameter or buffer of a lazy module that has no shape yet; a restore gives it the stored shape."""

    def __init__(self, tensor: UninitializedParameter | UninitializedBuffer, key: str) -> None:
        spec = SaveSpec(None, "", key, data_type(tensor.dtype, key), tensor.device)
        super().__init__(tensor, [spec], key)
        self._tensor = tensor

    def check(self, shapes: Sequence[Shape], restored_shapes: Sequence[Shape] | None = None) -> None:
        check_memory(self.name, self._tensor)

    def restore(self, restored_tensors: Sequence[Value], restored_shapes: Sequence[Shape] | None) -> None:
        (value,) = restored_tensors
        assert isinstance(value, torch.Tensor), "its dtype was checked"
        if is_lazy(self._tensor):  # no longer lazy if it was already restored under a second name
            self._tensor.materialize(value.shape)
        with torch.no_grad():
            self._tensor.copy_(value)


def _memory_of(tensor: torch.Tensor) -> tuple[object, ...] | None:
    """Return the address and layout of a tensor's values; None if it has no single address."""
    try:
        here = memory_of(tensor)
        return here.data_ptr(), tensor.shape, here.stride(), tensor.dtype, tensor.device
    except (NotImplementedError, RuntimeError):  # sparse tensors and wrappers around several tensors
        return None


def check_memory(name: str, tensor: torch.Tensor) -> None:
    """Raise InvalidArgumentError if a tensor has no memory to restore into. Lazy tensors are accepted."""
    if tensor.device.type == "meta":
        raise InvalidArgumentError(
            f"variable {quoted(name)} is on the meta device and has no memory to restore into. Materialize it first, "
            f"for instance by module.to_empty(device=...)"
        )


def _check_fillable(name: str, tensor: torch.Tensor) -> None:
    if type(tensor) in PLAIN_CLASSES and is_ordinary(tensor) and tensor.is_contiguous():
        return  # none of the checks below would fail
    check_memory(name, tensor)
    check_storable(name, tensor)
    here = memory_of(tensor)
    if any(stride == 0 and size > 1 for stride, size in zip(here.stride(), here.shape, strict=True)):
        raise InvalidArgumentError(
            f"variable {quoted(name)} is expanded: several of its elements share memory. Save tensor.contiguous()"
        )


class HasSaveables(Protocol):
    """An object that lists its own saveables."""

    def _gather_saveables_for_checkpoint(self) -> dict[str, object]:
        """Return attribute -> a tensor, Variable or SaveableObject, or a function of a name that returns one."""


Slices = Sequence[Variable | SaveableObject] | PartitionedVariable
VarListValue = torch.Tensor | Variable | SaveableObject | Slices | HasSaveables


def has_saveables(value: object) -> TypeGuard[HasSaveables]:
    """Return whether the object lists its own saveables."""
    return callable(getattr(value, "_gather_saveables_for_checkpoint", None)) and not isinstance(value, type)


def saveables_of(key: str, value: VarListValue) -> list[SaveableObject]:
    """Return the saveables of the value under `key` in a var_list.

    Args:
        key: Name of tensors and slices; an object's attribute `x` is named `key_x`, its VARIABLE_VALUE `key`.
            SaveableObjects keep their own names.

    Raises:
        ValueError: a list whose elements are not slices of one tensor.
        TypeError: an object lists something that cannot be saved.
        InvalidArgumentError, UnimplementedError: as VariableSaveable.
    """
    if isinstance(value, SaveableObject):
        return [value]
    if isinstance(value, torch.Tensor | Variable):
        return [VariableSaveable(value, "", key)]
    if isinstance(value, list | tuple | PartitionedVariable):
        return list(_slices(key, value))
    assert has_saveables(value)
    found: list[SaveableObject] = []
    for attribute, item in value._gather_saveables_for_checkpoint().items():
        found += saveables_of_attribute(key if attribute == VARIABLE_VALUE else f"{key}_{attribute}", item)
    return found


def saveables_of_attribute(name: str, item: object) -> list[SaveableObject]:
    """Return the saveables of one item that an object lists, under `name`.

    Raises:
        TypeError: the item cannot be saved.
    """
    made = item(name) if _is_factory(item) else item
    if not isinstance(made, torch.Tensor | Variable | SaveableObject):
        raise TypeError(
            f"{quoted(name)}: _gather_saveables_for_checkpoint returned a value of type {type(made).__name__}. It must "
            f"return tensors, Variables and SaveableObjects, or functions of a name that return them"
        )
    return saveables_of(name, made)


def own_saveables(value: HasSaveables) -> list[object]:
    """Return the items that an object lists, with their own names."""
    gathered = value._gather_saveables_for_checkpoint().values()
    return [item() if _is_factory(item) else item for item in gathered]


def _is_factory(item: object) -> TypeGuard[Callable[..., object]]:
    return callable(item) and not isinstance(item, torch.Tensor | Variable | SaveableObject)


def _slices(key: str, parts: Iterable[object]) -> Iterator[SaveableObject]:
    """Yield the saveable of each part under `key`, with its slice of the whole tensor."""
    full_name: str | None = None
    for part in parts:
        if isinstance(part, SaveableObject):
            yield part
            continue
        if not isinstance(part, Variable):
            raise ValueError(f"Slices must all be Variables: {type(part).__name__} under {quoted(key)}")
        if part.slice_info is None:
            raise ValueError(f"Slices must all be slices: {part!r} under {quoted(key)} has no slice_info")
        if full_name is not None and part.slice_info.full_name != full_name:
            raise ValueError(f"Slices must all be from the same tensor: {full_name} != {part.slice_info.full_name}")
        full_name = part.slice_info.full_name
        yield VariableSaveable(part, part.slice_info.spec, key)
