"""Numbers of axes: negative ones count from the end."""

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.values import Axes


def one(axis: int, rank: int) -> int:
    """Return the axis as a number from 0 to rank - 1."""
    if not -rank <= axis < rank:
        raise InvalidArgumentError(f"a tensor with {rank} axes has no axis {axis}")
    return axis % rank


def several(numbers: Axes, rank: int) -> tuple[int, ...]:
    """Return the axes as numbers from 0 to rank - 1, in ascending order."""
    found = sorted(one(axis, rank) for axis in ((numbers,) if isinstance(numbers, int) else numbers))
    if len(set(found)) < len(found):
        raise InvalidArgumentError(f"the axes {numbers} contain the same axis twice")
    return tuple(found)
