"""Small tensors that lie side by side travel as one.

A view, a buffer and a request take several microseconds for each tensor, a hundred times what the bytes of a scalar
take. So neighbours of one type are gathered into one flat tensor, or cut from one: a few calls for all of them. What
they are afterwards does not depend on it.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import torch

from torch_tfckpt.format.tensor_slice import Shape, element_count

SMALL_BYTES: Final = 64 * 1024  # above, the bytes of a tensor cost more than its handling
RUN_BYTES: Final = 1024 * 1024  # a run's flat tensor lives beside the tensors it is cut into

Place = tuple[object, int, int, object]
"""File, offset, bytes, and what must be equal for two tensors to travel together."""


def find_runs(places: Sequence[Place]) -> Iterator[tuple[int, int]]:
    """Ranges of positions, in order and without gaps: neighbours in a file that travel together, or one by itself."""
    first, end, room = 0, -1, 0
    joint: tuple[object, object] = (None, None)
    for position, (file, offset, size, kind) in enumerate(places):
        if offset == end and size <= room and joint == (file, kind):
            end, room = end + size, room - size
            continue
        if position:
            yield first, position
        small = size <= SMALL_BYTES
        first, end, joint = position, offset + size, (file, kind)
        # Below zero: nothing travels with a large one, not even an empty tensor. Only a run of one is ever cut.
        room = RUN_BYTES - size if small else -1
    if places:
        yield first, len(places)


def gather(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The elements of all, one behind the other, on their device. REQUIRES: one dtype, one device."""
    with torch.no_grad():
        return torch.cat([tensor.reshape(-1) for tensor in tensors])


def cut(flat: torch.Tensor, shapes: Sequence[Shape]) -> list[torch.Tensor]:
    """The tensors of `shapes` whose elements lie one behind the other in `flat`, each in memory of its own."""
    pieces = torch.split(flat, [element_count(shape) for shape in shapes])
    return [piece.view(shape).clone() for piece, shape in zip(pieces, shapes, strict=True)]
