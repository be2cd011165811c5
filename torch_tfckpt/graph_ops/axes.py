"""Numbers of several axes: negative ones count from the end."""

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.integers import axis_of
from torch_tfckpt.graph_ops.values import Axes


def axes_of(axes: Axes, rank: int) -> tuple[int, ...]:
    """Return the axes as numbers from 0 to rank - 1, in ascending order."""
    found = sorted(axis_of(axis, rank) for axis in ((axes,) if isinstance(axes, int) else axes))
    if len(set(found)) < len(found):
        raise InvalidArgumentError(f"an axis is given twice: {axes}")
    return tuple(found)
