"""Axes of tensors and of Python integers: negative numbers count from the end."""

from collections.abc import Sequence

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.integers import axis_of
from torch_tfckpt.graph_ops.values import Axes


def axes_of(axes: Axes, rank: int) -> tuple[int, ...]:
    """Return the axes as numbers from 0 to rank - 1, in ascending order."""
    return tuple(sorted(given_axes_of(axes, rank)))


def given_axes_of(axes: Axes, rank: int) -> list[int]:
    """Return the axes as numbers from 0 to rank - 1, in the order in which they are given."""
    found = [axis_of(axis, rank) for axis in ((axes,) if isinstance(axes, int) else axes)]
    if len(set(found)) < len(found):
        raise InvalidArgumentError(f"an axis is given twice: {axes}")
    return found


def torch_pads(pairs: Sequence[Sequence[int]]) -> list[int]:
    """Return paddings before and after each axis in the order of torch.nn.functional.pad: the last axis first."""
    return [each for pair in reversed(pairs) for each in pair]


def new_axis_of(dim: Axes, rank: int) -> int:
    """Return where ExpandDims puts its axis; a vector of one number stands for the number."""
    if isinstance(dim, tuple):
        if len(dim) != 1:
            raise InvalidArgumentError(f"dim must be one number, found {list(dim)}")
        (dim,) = dim
    return axis_of(dim, rank + 1)


def squeezed_axes_of(axes: Sequence[int], sizes: Sequence[int]) -> set[int]:
    """Return the axes that Squeeze removes, which must have one element."""
    found = {axis_of(axis, len(sizes)) for axis in axes}
    if any(sizes[axis] != 1 for axis in found):
        raise InvalidArgumentError(f"cannot squeeze axes {list(axes)} of the shape {list(sizes)}")
    return found


def gathered_axes_of(axis: int, batch_dims: int, sizes: Sequence[int], index_sizes: Sequence[int]) -> tuple[int, int]:
    """Return the axis that GatherV2 takes elements from, and how many axes before it params and indices share."""
    at = axis_of(axis, len(sizes))
    shared = batch_dims + len(index_sizes) if batch_dims < 0 else batch_dims
    if not 0 <= shared <= at or sizes[:shared] != index_sizes[:shared]:
        raise InvalidArgumentError(
            f"batch_dims {batch_dims} and axis {axis} for params {list(sizes)}, indices {list(index_sizes)}"
        )
    return at, shared
