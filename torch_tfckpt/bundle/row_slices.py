"""Cut tensors into slices of limited size, each of which gets a checksum of its own.

A reader that needs some rows of a tensor must read whole slices to verify them; and several slices of a large tensor
can be written to several files.
"""

from collections.abc import Iterator

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.tensor_slice import Extent, Shape, TensorSlice


def row_slices(
    full_shape: Shape, part: TensorSlice | None, tensor: torch.Tensor, max_piece_bytes: int | None
) -> list[tuple[TensorSlice | None, torch.Tensor]]:
    """Cut a tensor, or one slice of a tensor, into row slices of at most `max_piece_bytes` each.

    Args:
        full_shape: The shape of the whole tensor.
        part: The slice of it that `tensor` contains; None: all of it.
        max_piece_bytes: The limit; a single element may exceed it. None: no limit.

    Returns:
        (slice of the whole tensor, view of `tensor`) in row-major order; together they contain each element once. If
        nothing has to be cut, the only item is (part, tensor).

    Raises:
        InvalidArgumentError: the limit is not positive.
    """
    if max_piece_bytes is None:
        return [(part, tensor)]
    if max_piece_bytes < 1:
        raise InvalidArgumentError(f"max_piece_bytes is {max_piece_bytes}, but must be at least 1")
    if tensor.nbytes <= max_piece_bytes:
        return [(part, tensor)]
    whole = TensorSlice.full(len(full_shape)) if part is None else part
    return list(_cut(whole.resolve(full_shape).extents, tensor, max_piece_bytes, 0))


def _cut(
    extents: tuple[Extent, ...], tensor: torch.Tensor, limit: int, axis: int
) -> Iterator[tuple[TensorSlice, torch.Tensor]]:
    if tensor.nbytes <= limit or axis == tensor.dim():
        yield TensorSlice(extents), tensor
        return
    start, length = extents[axis]
    step = max(1, limit * length // tensor.nbytes)  # rows that fit
    for first in range(0, length, step):
        rows = min(step, length - first)
        inner = (*extents[:axis], Extent(start + first, rows), *extents[axis + 1 :])
        yield from _cut(inner, tensor.narrow(axis, first, rows), limit, axis + 1)
