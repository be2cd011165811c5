"""Saveables for an imported graph: strings, variables of unknown shape, mirrors, and other values."""

from collections.abc import Callable, Sequence

import torch

from torch_tfckpt.devices import HOST
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_slice import Shape, shape_text
from torch_tfckpt.saveables.save_spec import SaveableObject, SaveSpec
from torch_tfckpt.saveables.variables import Variable
from torch_tfckpt.text import quoted
from torch_tfckpt.values import Strings, Value


class StringVariable(SaveableObject):
    """A variable of strings: an array of `bytes`, filled in place.

    Args:
        array: An array of dtype object.
        name: Key in the checkpoint.
        slice_spec: Its slice of a larger array; "" for a whole array.
        restored: Called after each restore.
    """

    def __init__(
        self, array: Strings, name: str, slice_spec: str = "", restored: Callable[[], None] = lambda: None
    ) -> None:
        self.array = array
        self._restored = restored
        super().__init__(array, [SaveSpec(array, slice_spec, name, DataType.DT_STRING, HOST)], name)

    def check(self, shapes: Sequence[Shape], restored_shapes: Sequence[Shape] | None = None) -> None:
        """Raise InvalidArgumentError if the value has a different shape."""
        _check_shape(self.name, tuple((restored_shapes or shapes)[0]), self.array.shape)

    def restore(self, restored_tensors: Sequence[Value], restored_shapes: Sequence[Shape] | None) -> None:
        """Copy the strings into the array."""
        self.array[...] = restored_tensors[0].reshape(self.array.shape)
        self._restored()


class UnshapedVariable(SaveableObject):
    """A variable of unknown or partly known shape: the tensor gets the shape of the restored value.

    Args:
        variable: The variable. Each restore gives its tensor new memory, so views of the tensor keep the old values.
        shape: The shape in the graph: None if unknown, -1 for an unknown dimension.
        name: Key in the checkpoint.
        slice_spec: Its slice of a larger tensor; "" for a whole tensor.
    """

    def __init__(self, variable: Variable, shape: Shape | None, name: str, slice_spec: str = "") -> None:
        self.variable = variable
        self._shape = shape
        tensor = variable.tensor
        spec = SaveSpec(lambda: tensor, slice_spec, name, variable.dtype or tensor.dtype, variable.device)
        super().__init__(tensor, [spec], name)

    def check(self, shapes: Sequence[Shape], restored_shapes: Sequence[Shape] | None = None) -> None:
        """Raise InvalidArgumentError if the value contradicts the known dimensions."""
        _check_shape(self.name, tuple(shapes[0]), self._shape)

    def restore(self, restored_tensors: Sequence[Value], restored_shapes: Sequence[Shape] | None) -> None:
        """Give the tensor the value's shape and new memory; the tensor stays the same Python object."""
        value = restored_tensors[0]
        assert isinstance(value, torch.Tensor), "the dtype was checked before"
        with torch.no_grad():
            # A copy: otherwise the mirrors of the variable would share its memory.
            self.variable.tensor.set_(value.to(self.variable.tensor.dtype, copy=True))  # type: ignore[call-overload]


class Mirrors(SaveableObject):
    """Variables with the same value, e.g. one per device: the first is saved, all are restored."""

    def __init__(self, mirrors: Sequence[SaveableObject]) -> None:
        self._mirrors = mirrors
        first = mirrors[0]
        super().__init__(first.op, first.specs, first.name)

    def check(self, shapes: Sequence[Shape], restored_shapes: Sequence[Shape] | None = None) -> None:
        """Raise InvalidArgumentError if the value does not fit one of the variables."""
        for each in self._mirrors:
            each.check(shapes, restored_shapes)

    def restore(self, restored_tensors: Sequence[Value], restored_shapes: Sequence[Shape] | None) -> None:
        """Restore a copy of the value into each variable."""
        for each in self._mirrors:
            each.restore(restored_tensors, restored_shapes)


class SavedAgain(SaveableObject):
    """Another copy of a variable, under another key than the one that the variable is restored from."""

    def __init__(self, original: SaveableObject) -> None:
        self._original = original
        super().__init__(None, original.specs, original.name)

    def check(self, shapes: Sequence[Shape], restored_shapes: Sequence[Shape] | None = None) -> None:
        """Raise InvalidArgumentError if the value does not fit the variable."""
        self._original.check(shapes, restored_shapes)

    def restore(self, restored_tensors: Sequence[Value], restored_shapes: Sequence[Shape] | None) -> None:
        """Do nothing: the variable is restored from its own key."""


class HeldValue(SaveableObject):
    """A value without a variable, e.g. of a table or an iterator. It is saved again unchanged.

    Args:
        name: Key in the checkpoint.
        value: The value before the first restore; None if it is unknown until then, so that it cannot be saved.
    """

    def __init__(self, name: str, slice_spec: str, dtype: DataType, value: Value | None = None) -> None:
        self.value = value
        super().__init__(None, [SaveSpec(lambda: self.value, slice_spec, name, dtype, HOST)], name)

    def restore(self, restored_tensors: Sequence[Value], restored_shapes: Sequence[Shape] | None) -> None:
        """Store the value for the next save."""
        self.value = restored_tensors[0]


def is_whole(shape: Shape | None) -> bool:
    """Return whether all dimensions of a graph's shape are known."""
    return shape is not None and -1 not in shape


def fits(shape: Sequence[int], known: Shape | None) -> bool:
    """Return whether `shape` agrees with all known dimensions."""
    if known is None:
        return True
    return len(shape) == len(known) and all(want in (-1, size) for want, size in zip(known, shape, strict=True))


def _check_shape(name: str, shape: Shape, known: Shape | None) -> None:
    if not fits(shape, known):
        wanted = shape_text(known) if known is not None else "any"
        raise InvalidArgumentError(
            f"variable {quoted(name)} has shape {wanted}, but the stored value has {shape_text(shape)}. Restore from a "
            f"checkpoint of this graph"
        )
