"""Batching of small tensors that are adjacent in a file.

A view, a buffer and a request cost several microseconds per tensor, a hundred times more than copying a scalar. So
adjacent tensors of one type are gathered into one flat tensor, or cut from one, with a few calls for all of them. The
results do not depend on the batching.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Final, cast

import torch

from torch_tfckpt.format.tensor_slice import Shape, element_count

SMALL_BYTES: Final = 64 * 1024  # above this size, copying the bytes takes longer than the overhead per tensor
RUN_BYTES: Final = 1024 * 1024  # limits memory: a run exists twice, as a flat tensor and as the tensors cut from it

# torch.cat([tensor.reshape(-1) for tensor in tensors]), without a call from Python for each tensor.
_flatten: Final = torch._C._nn.flatten_dense_tensors
# Its stub declares that it returns None.
_unbind_copy: Final = cast(Callable[[torch.Tensor], list[torch.Tensor]], torch.unbind_copy)

Place = tuple[object, int, int, object]
"""File, offset, size in bytes, and a value that must be equal for two tensors to be batched together."""


def find_runs(places: Sequence[Place]) -> Iterator[tuple[int, int]]:
    """Yield index ranges, in order and without gaps: adjacent tensors to batch, or a single tensor."""
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
        # Negative room: nothing is batched with a large tensor, not even an empty tensor. So only a run of a single
        # tensor is ever split.
        room = RUN_BYTES - size if small else -1
    if places:
        yield first, len(places)


def gather(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Return the elements of all tensors in one flat tensor. REQUIRES: one dtype, one device."""
    with torch.no_grad():
        if all([tensor.dim() == 1 for tensor in tensors]):
            return torch.cat(tensors)
        return _flatten(tensors)


def cut(flat: torch.Tensor, shapes: Sequence[Shape]) -> list[torch.Tensor]:
    """Return tensors of `shapes` with consecutive elements of `flat`, each in its own memory."""
    runs = [(shape, len(list(same))) for shape, same in groupby(shapes)]
    if len(runs) > len(shapes) // 4:
        pieces = torch.split(flat, [element_count(shape) for shape in shapes])
        return [piece.view(shape).clone() for piece, shape in zip(pieces, shapes, strict=True)]
    tensors: list[torch.Tensor] = []
    at = 0
    for shape, count in runs:
        end = at + count * element_count(shape)
        tensors += _unbind_copy(flat[at:end].view(count, *shape))
        at = end
    return tensors
