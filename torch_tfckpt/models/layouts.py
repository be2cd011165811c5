"""Layouts: the order of axes in which TensorFlow stores a weight, and the order that torch uses.

    dense    kernel [in, out]                     <-> Linear.weight [out, in]
    conv2d   kernel [height, width, in, out]      <-> Conv2d.weight [out, in, height, width]
    same     everything else

A layout moves axes and never reshapes. A rank that does not fit is an error, because a reshape to the wanted shape
would hide a wrong order.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.tensor_slice import Shape, shape_text
from torch_tfckpt.text import did_you_mean, quoted


@dataclass(frozen=True, slots=True)
class Layout:
    """Order of axes in TensorFlow and in torch. `axes`: the stored axes in torch's order; None: unchanged."""

    name: str
    axes: tuple[int, ...] | None

    def fits(self, rank: int) -> bool:
        """Return whether tensors of this rank can have this layout."""
        return self.axes is None or rank == len(self.axes)

    def torch_shape(self, stored: Shape) -> Shape:
        """Convert a stored shape to the shape in torch. InvalidArgumentError if the rank does not fit."""
        return tuple(stored[axis] for axis in self._order(tuple(stored)))

    def stored_shape(self, held: Shape) -> Shape:
        """Convert a shape in torch to the stored shape. Raises like `torch_shape`."""
        return tuple(held[axis] for axis in _inverse(self._order(tuple(held))))

    def to_torch(self, stored: torch.Tensor) -> torch.Tensor:
        """Return a view of a stored tensor with its axes in torch's order. Raises like `torch_shape`."""
        return stored.permute(self._order(tuple(stored.shape)))

    def to_stored(self, held: torch.Tensor) -> torch.Tensor:
        """Return a view with the stored order of axes; the inverse of `to_torch`."""
        return held.permute(_inverse(self._order(tuple(held.shape))))

    def _order(self, shape: Shape) -> tuple[int, ...]:
        if self.axes is None:
            return tuple(range(len(shape)))
        if len(shape) != len(self.axes):
            raise InvalidArgumentError(
                f'layout "{self.name}" is for tensors with {len(self.axes)} dimensions; {shape_text(shape)} has '
                f"{len(shape)}. Choose another layout"
            )
        return self.axes


SAME: Final = Layout("same", None)
DENSE: Final = Layout("dense", (1, 0))
CONV2D: Final = Layout("conv2d", (3, 2, 0, 1))

# By the names that rules and reports use.
LAYOUTS: Final[Mapping[str, Layout]] = {layout.name: layout for layout in (SAME, DENSE, CONV2D)}


def layout_named(name: str) -> Layout:
    """Return the layout with this name; InvalidArgumentError, listing all layouts, if there is none."""
    layout = LAYOUTS.get(name) if isinstance(name, str) else None
    if layout is None:
        hint = did_you_mean(name, LAYOUTS) if isinstance(name, str) else ""
        shown = quoted(name) if isinstance(name, str) else repr(name)
        raise InvalidArgumentError(f"unknown layout {shown}. {hint} Layouts: {', '.join(LAYOUTS)}".replace("  ", " "))
    return layout


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(order.index(axis) for axis in range(len(order)))
