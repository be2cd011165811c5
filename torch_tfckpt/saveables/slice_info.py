"""Position of a variable in a larger tensor, as TensorFlow's variables declare it. Does not import torch.

Source: tensorflow/python/ops/variables.py (Variable.SaveSliceInfo).
"""

from collections.abc import Sequence
from typing import Self

from torch_tfckpt.errors import InvalidArgumentError, error_context
from torch_tfckpt.format.tensor_slice import Shape, parse_shape_and_slice, shape_text
from torch_tfckpt.text import quoted


class SaveSliceInfo:
    """Position of a variable in the larger tensor that it is a slice of.

    Args:
        full_name: Name of the whole tensor.
        full_shape: Shape of the whole tensor.
        var_offset: First element of the slice, in each dimension.
        var_shape: Shape of the slice; no dimension may be 0.

    Raises:
        InvalidArgumentError: the slice is not inside the whole tensor, or the numbers of dimensions differ.

    Examples:
        >>> import torch_tfckpt as tfckpt
        >>> tfckpt.SaveSliceInfo("emb", full_shape=[4, 5], var_offset=[2, 0], var_shape=[2, 5]).spec
        '4 5 2,2:0,5'
    """

    def __init__(
        self, full_name: str, full_shape: Sequence[int], var_offset: Sequence[int], var_shape: Sequence[int]
    ) -> None:
        self.full_name = full_name
        self.full_shape: Shape = tuple(full_shape)
        self.var_offset: Shape = tuple(var_offset)
        self.var_shape: Shape = tuple(var_shape)
        with error_context(f"slice of {quoted(full_name)}"):
            if not len(self.full_shape) == len(self.var_offset) == len(self.var_shape):
                raise InvalidArgumentError(
                    f"full_shape {shape_text(self.full_shape)}, var_offset {shape_text(self.var_offset)} and var_shape "
                    f"{shape_text(self.var_shape)} must have one number for each dimension"
                )
            parse_shape_and_slice(self.spec)

    def __repr__(self) -> str:
        return f"SaveSliceInfo({self.full_name!r}, {self.spec!r})"

    @classmethod
    def of_spec(cls, full_name: str, slice_spec: str) -> Self:
        """Return the slice of `full_name` that a SaveSpec's `slice_spec`, e.g. "4 5 0,2:-", describes.

        Raises:
            InvalidArgumentError: the string does not describe a slice.
        """
        full_shape, part, _ = parse_shape_and_slice(slice_spec)
        extents = part.resolve(full_shape).extents
        return cls(full_name, full_shape, [each.start for each in extents], [each.length for each in extents])

    @property
    def spec(self) -> str:
        """The `slice_spec` for a SaveSpec: "4 5 2,2:0,5" for rows 2 and 3 of a tensor of shape [4, 5]."""
        extents = zip(self.var_offset, self.var_shape, strict=True)
        return f"{' '.join(map(str, self.full_shape))} {':'.join(f'{start},{length}' for start, length in extents)}"
