"""Convert Python indices: `t[2:5, ..., -1]` becomes a TensorSlice to read, and an index into it.

shape [10, 4], index [1::2, -1]  ->  read rows 1 to 9 of column 3, then take [::2, 0]
"""

from types import EllipsisType

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.tensor_slice import Extent, Shape, TensorSlice

AxisIndex = int | slice
Index = AxisIndex | EllipsisType | tuple[AxisIndex | EllipsisType, ...]


def indexed_part(index: Index, shape: Shape) -> tuple[TensorSlice, tuple[AxisIndex, ...]]:
    """Return the part of a tensor that contains all elements at `index`, and their index in that part.

    Raises:
        InvalidArgumentError: an index is out of range or is neither an integer nor a slice with a positive step, or
            there are more indices than dimensions.
    """
    extents: list[Extent] = []
    within: list[AxisIndex] = []
    for axis, (wanted, size) in enumerate(zip(_axes(index, len(shape)), shape, strict=True)):
        if isinstance(wanted, slice):
            start, stop, step = _bounds(wanted, axis, size)
            extents.append(Extent(start, max(0, stop - start)))
            within.append(slice(None, None, step))
        else:
            extents.append(Extent(_position(wanted, axis, size), 1))
            within.append(0)
    return TensorSlice(tuple(extents)), tuple(within)


def _axes(index: Index, rank: int) -> list[AxisIndex]:
    """Return one index for each dimension."""
    items = list(index) if isinstance(index, tuple) else [index]
    if sum(item is ... for item in items) > 1 or sum(item is not ... for item in items) > rank:
        raise InvalidArgumentError(f"index {index} has too many parts for rank {rank}")
    axes: list[AxisIndex] = []
    for item in items if any(item is ... for item in items) else [*items, ...]:
        if isinstance(item, EllipsisType):
            axes += [slice(None)] * (rank - len(items) + any(other is ... for other in items))
        else:
            axes.append(item)
    return axes


def _bounds(wanted: slice, axis: int, size: int) -> tuple[int, int, int]:
    try:
        start, stop, step = wanted.indices(size)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"index of dimension {axis}: {error}") from error
    if step < 1:
        raise InvalidArgumentError(f"step {step} in dimension {axis}; steps must be positive")
    return start, stop, step


def _position(wanted: object, axis: int, size: int) -> int:
    if not isinstance(wanted, int) or isinstance(wanted, bool):
        raise InvalidArgumentError(
            f"index of dimension {axis} has type {type(wanted).__name__}. Use integers and slices"
        )
    if not -size <= wanted < size:
        raise InvalidArgumentError(f"index {wanted} is out of range in dimension {axis}")
    return wanted % size
