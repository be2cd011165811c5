"""Saveables of what a TensorFlow graph stores and a torch tensor of known shape is not."""

from collections.abc import Sequence

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
        array: Of dtype object.
        name: Key in the checkpoint.
        slice_spec: Which part of a larger array it is; "" for none.
    """

    def __init__(self, array: Strings, name: str, slice_spec: str = "") -> None:
        self.array = array
        super().__init__(array, [SaveSpec(array, slice_spec, name, DataType.DT_STRING, HOST)], name)

    def check(self, shapes: Sequence[Shape], restored_shapes: Sequence[Shape] | None = None) -> None:
        """InvalidArgumentError where the value has another shape."""
        _check_shape(self.name, tuple((restored_shapes or shapes)[0]), self.array.shape)

    def restore(self, restored_tensors: Sequence[Value], restored_shapes: Sequence[Shape] | None) -> None:
        """Copies the strings into the array."""
        self.array[...] = restored_tensors[0].reshape(self.array.shape)


class UnshapedVariable(SaveableObject):
    """A variable whose graph does not say its whole shape: the tensor takes that of the value restored into it.

    Args:
        variable: Its tensor gets other memory with each restore, so views of it are left behind.
        shape: What is known: None, or -1 where a dimension is not.
        name: Key in the checkpoint.
        slice_spec: Which part of a larger tensor it is; "" for none.
    """

    def __init__(self, variable: Variable, shape: Shape | None, name: str, slice_spec: str = "") -> None:
        self.variable = variable
        self._shape = shape
        tensor = variable.tensor
        spec = SaveSpec(lambda: tensor, slice_spec, name, variable.dtype or tensor.dtype, variable.device)
        super().__init__(tensor, [spec], name)

    def check(self, shapes: Sequence[Shape], restored_shapes: Sequence[Shape] | None = None) -> None:
        """InvalidArgumentError where the value contradicts what is known of the shape."""
        _check_shape(self.name, tuple(shapes[0]), self._shape)

    def restore(self, restored_tensors: Sequence[Value], restored_shapes: Sequence[Shape] | None) -> None:
        """Puts the value under the tensor, which stays the object it is."""
        value = restored_tensors[0]
        assert isinstance(value, torch.Tensor), "of the dtype that was checked before"
        with torch.no_grad():
            # Mirrors of it would share the memory otherwise.
            self.variable.tensor.set_(value.to(self.variable.tensor.dtype, copy=True))  # type: ignore[call-overload]


class Mirrors(SaveableObject):
    """Variables that hold the same value, as those of several devices do: the first is saved, all are restored."""

    def __init__(self, mirrors: Sequence[SaveableObject]) -> None:
        self._mirrors = mirrors
        first = mirrors[0]
        super().__init__(first.op, first.specs, first.name)

    def check(self, shapes: Sequence[Shape], restored_shapes: Sequence[Shape] | None = None) -> None:
        """InvalidArgumentError where one of them cannot take the value."""
        for each in self._mirrors:
            each.check(shapes, restored_shapes)

    def restore(self, restored_tensors: Sequence[Value], restored_shapes: Sequence[Shape] | None) -> None:
        """Hands the value to each, which copies it."""
        for each in self._mirrors:
            each.restore(restored_tensors, restored_shapes)


class HeldValue(SaveableObject):
    """A value that belongs to no variable, as of a table or an iterator: kept as it was read, and saved as that.

    Args:
        name: Key in the checkpoint.
        value: Before the first restore; None: it cannot be saved before.
    """

    def __init__(self, name: str, slice_spec: str, dtype: DataType, value: Value | None = None) -> None:
        self.value = value
        super().__init__(None, [SaveSpec(lambda: self.value, slice_spec, name, dtype, HOST)], name)

    def restore(self, restored_tensors: Sequence[Value], restored_shapes: Sequence[Shape] | None) -> None:
        """Keeps the value."""
        self.value = restored_tensors[0]


def is_whole(shape: Shape | None) -> bool:
    """Whether a graph says the whole shape of a variable."""
    return shape is not None and -1 not in shape


def fits(shape: Sequence[int], known: Shape | None) -> bool:
    """Whether a value of `shape` contradicts nothing that is known."""
    if known is None:
        return True
    return len(shape) == len(known) and all(want in (-1, size) for want, size in zip(known, shape, strict=True))


def _check_shape(name: str, shape: Shape, known: Shape | None) -> None:
    if not fits(shape, known):
        wanted = shape_text(known) if known is not None else "any"
        raise InvalidArgumentError(
            f"variable {quoted(name)} has shape {wanted}, but the checkpoint {shape_text(shape)}. Restore from a "
            f"checkpoint of this graph"
        )
