"""What the masks of StridedSlice mean, as Python slices.

    x[..., 0, tf.newaxis, 2:, ::-1]

is stored as three vectors (begin, end, strides) with an element for each of the five items, and five masks with a bit
for each. For positive strides TensorFlow's rules about negative numbers and numbers out of range are Python's.

Source: tensorflow/core/util/strided_slice_op.cc, ValidateStridedSliceOp.
"""

from dataclasses import dataclass

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.values import Ints

NEW_AXIS = "new axis"
Item = slice | int | str  # a range, an index that removes the axis, or NEW_AXIS


@dataclass(frozen=True, slots=True)
class Masks:
    """Bit i is about item i; see the documentation of tf.strided_slice."""

    begin: int
    end: int
    ellipsis: int
    new_axis: int
    shrink_axis: int


def items_of(rank: int, begin: Ints, end: Ints, strides: Ints, masks: Masks) -> list[Item]:
    """Return one item for each axis of the input, and the new axes in between.

    Raises:
        InvalidArgumentError: there are more items than axes, a stride is 0, or there is more than one ellipsis.
    """
    count = len(strides)
    if not len(begin) == len(end) == count:
        raise InvalidArgumentError(f"begin, end and strides have {len(begin)}, {len(end)} and {count} elements")
    ellipses = [at for at in range(count) if masks.ellipsis >> at & 1]
    if len(ellipses) > 1:
        raise InvalidArgumentError(f"several ellipses, at {ellipses}")
    used = sum(not (masks.ellipsis | masks.new_axis) >> at & 1 for at in range(count))
    if used > rank:
        raise InvalidArgumentError(f"{used} indices for an input of rank {rank}")
    whole: list[Item] = [slice(None)] * (rank - used)
    found: list[Item] = []
    for at in range(count):
        if at in ellipses:
            found += whole
        elif masks.new_axis >> at & 1:
            found.append(NEW_AXIS)
        else:
            found.append(_item(at, begin[at], end[at], strides[at], masks))
    return found if ellipses else found + whole


def _item(at: int, begin: int, end: int, stride: int, masks: Masks) -> Item:
    if stride == 0:
        raise InvalidArgumentError(f"stride {at} is 0")
    if masks.shrink_axis >> at & 1:
        if stride < 0:
            raise InvalidArgumentError(f"index {at} removes its axis and has the stride {stride}")
        return begin
    return slice(None if masks.begin >> at & 1 else begin, None if masks.end >> at & 1 else end, stride)


def check_index(index: int, size: int, axis: int) -> None:
    """Raise InvalidArgumentError unless an index, which may count from the end, is in range."""
    if not -size <= index < size:
        raise InvalidArgumentError(f"index {index} is out of range for axis {axis} of size {size}")
