"""Patterns that describe how the axes of a stored tensor become those of a torch tensor, and back.

    height width in out -> out in height width                move axes
    height width in times -> (in times) 1 height width        join two axes, and add an axis of length 1
    (height width in) out -> out (in height width)            split an axis, and join its parts in a different order

A name is an axis or, in parentheses, a part of a joined axis, whose first part varies slowest; 1 is an axis of length
1. Both sides have the same names. A pattern never changes the number of elements, and fits only tensors of its rank
with length 1 where it has a 1. The length of at most one part of a joined axis may be unknown.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final, Self

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.tensor_slice import Shape, shape_text
from torch_tfckpt.text import quoted

Axes = tuple[tuple[str, ...], ...]  # the parts of each axis; no part: an axis of length 1

_ARROW: Final = "->"
_TOKEN: Final = re.compile(r"\s*(?:(\w+)|\(([\w\s]+)\))\s*")
_EXAMPLE: Final = '"in out -> out in"'


@dataclass(frozen=True, slots=True)
class AxisPattern:
    """The axes of a tensor as stored and as torch has them."""

    stored: Axes
    held: Axes

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a pattern. InvalidArgumentError if `text` is not a pattern."""
        left, arrow, right = text.partition(_ARROW)
        if not arrow:
            raise InvalidArgumentError(f"{quoted(text)} is not a pattern of axes, such as {_EXAMPLE}")
        sides = _axes(text, left), _axes(text, right)
        names = [[part for axis in side for part in axis] for side in sides]
        if sorted(names[0]) != sorted(names[1]) or len(set(names[0])) != len(names[0]):
            raise InvalidArgumentError(
                f"{quoted(text)}: both sides of the pattern must have the same names, each once, as in {_EXAMPLE}"
            )
        return cls(*sides)

    @classmethod
    def of_permutation(cls, axes: Sequence[int]) -> Self:
        """Return the pattern for `tensor.permute(axes)`; InvalidArgumentError if `axes` is not a permutation."""
        if sorted(axes) != list(range(len(axes))):
            raise InvalidArgumentError(f"{tuple(axes)} is not a permutation of {len(axes)} axes, such as (1, 0)")
        return cls(tuple((f"axis{axis}",) for axis in range(len(axes))), tuple((f"axis{axis}",) for axis in axes))

    def __str__(self) -> str:
        return f"{_text(self.stored)} {_ARROW} {_text(self.held)}"

    @property
    def names(self) -> list[str]:
        """The names of the axes, as stored."""
        return [part for axis in self.stored for part in axis]

    def inverse(self) -> "AxisPattern":
        """Return the pattern from torch's axes to the stored ones."""
        return AxisPattern(self.held, self.stored)

    def lengths(self, shape: Shape, known: Mapping[str, int]) -> dict[str, int] | None:
        """Return the length of each named axis of a stored shape.

        None if the pattern does not fit or a length is unknown.

        Args:
            known: Lengths that are given, for parts of joined axes.
        """
        if len(shape) != len(self.stored):
            return None
        found: dict[str, int] = {}
        for size, parts in zip(shape, self.stored, strict=True):
            unknown = [part for part in parts if part not in known]
            rest = math.prod(known[part] for part in parts if part in known)
            if len(unknown) > 1 or (not unknown and rest != size) or (unknown and (not rest or size % rest)):
                return None
            found.update({part: known[part] if part in known else size // rest for part in parts})
        return found

    def shape(self, lengths: Mapping[str, int]) -> Shape:
        """Return the shape in torch for these lengths of axes."""
        return tuple(math.prod(lengths[part] for part in parts) for parts in self.held)

    def apply(self, tensor: torch.Tensor, lengths: Mapping[str, int]) -> torch.Tensor:
        """Return a stored tensor with torch's axes: a view, unless axes that are joined are moved."""
        order = [part for axis in self.held for part in axis]
        names = self.names
        parts = tensor.reshape([lengths[part] for part in names])
        return parts.permute([names.index(part) for part in order]).reshape(self.shape(lengths))


@cache
def pattern(text: str) -> AxisPattern:
    """Return `AxisPattern.parse(text)`, parsed once."""
    return AxisPattern.parse(text)


def misfit(name: str, patterns: Sequence[AxisPattern], shape: Shape, known: Mapping[str, int]) -> InvalidArgumentError:
    """Return the error for a shape that none of the patterns of a layout fits."""
    ranks = sorted({len(each.stored) for each in patterns})
    if len(shape) not in ranks:
        expected = " or ".join(map(str, ranks))
        return InvalidArgumentError(
            f'layout "{name}" is for tensors with {expected} dimensions; {shape_text(shape)} has {len(shape)}. Choose '
            f"another layout"
        )
    given = "".join(f", {part}={length}" for part, length in known.items())
    shown = " or ".join(quoted(_text(each.stored)) for each in patterns if len(each.stored) == len(shape))
    return InvalidArgumentError(
        f'layout "{name}" is for tensors with the axes {shown}; {shape_text(shape)}{given} does not fit. Give the '
        f"lengths of the parts of joined axes, or choose another layout"
    )


def _axes(text: str, side: str) -> Axes:
    axes: list[tuple[str, ...]] = []
    at = 0
    while at < len(side.rstrip()):
        token = _TOKEN.match(side, at)
        if token is None:
            raise InvalidArgumentError(f"{quoted(text)} is not a pattern of axes, such as {_EXAMPLE}")
        parts = (token[1] or token[2]).split()
        axes.append(() if parts == ["1"] else tuple(parts))
        at = token.end()
    return tuple(axes)


def _text(axes: Axes) -> str:
    return " ".join("1" if not parts else parts[0] if len(parts) == 1 else f"({' '.join(parts)})" for parts in axes)
