"""Which part of a larger tensor a variable holds, as TensorFlow's variables declare it. No torch.

Source: tensorflow/python/ops/variables.py (Variable.SaveSliceInfo).
"""

from collections.abc import Sequence
from typing import Self

from torch_tfckpt.errors import InvalidArgumentError, error_context
from torch_tfckpt.format.tensor_slice import Shape, parse_shape_and_slice, shape_text
from torch_tfckpt.text import quoted


class SaveSliceInfo:
    """Which part of which tensor a variable is.

    Args:
        full_name: Name of the whole tensor.
        full_shape: Its shape.
        var_offset: First element of the part, in each dimension.
        var_shape: Shape of the part; no dimension of it is empty.

    Raises:
        InvalidArgumentError: the part is not inside the whole tensor, or the numbers of dimensions differ.
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

    @classmethod
    def of_spec(cls, full_name: str, slice_spec: str) -> Self:
        """Return the part of `full_name` that a SaveSpec's slice such as "4 5 0,2:-" describes.

        Raises:
            InvalidArgumentError: `slice_spec` is not a slice.
        """
        full_shape, part, _ = parse_shape_and_slice(slice_spec)
        extents = part.resolve(full_shape).extents
        return cls(full_name, full_shape, [each.start for each in extents], [each.length for each in extents])

    @property
    def spec(self) -> str:
        """Slice string of a SaveSpec: "4 5 2,2:0,5" for rows 2 and 3 of a tensor of shape [4, 5]."""
        extents = zip(self.var_offset, self.var_shape, strict=True)
        return f"{' '.join(map(str, self.full_shape))} {':'.join(f'{start},{length}' for start, length in extents)}"
