"""Host tensors as plain bytes, without a copy and independent of numpy's dtypes.

numpy lacks bfloat16 and float8; every view here consists of unsigned bytes, so all torch dtypes are handled alike.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import torch

from torch_tfckpt.storage.protocol import Buffer

_PIECE_BYTES: Final = 8 * 1024 * 1024


def byte_view(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of `tensor` in row-major order, sharing its memory.

    REQUIRES: a contiguous CPU tensor. The view of an empty tensor is empty.
    """
    if not tensor.numel():
        return memoryview(b"")
    # The same expression as in `flat_bytes`, inlined to save a call per tensor.
    return tensor.detach().as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy().data


def flat_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bytes of `tensor` in row-major order as a view of its memory. REQUIRES: it is contiguous."""
    # torch considers a tensor with one element contiguous whatever its stride is, but refuses to view it as a
    # different dtype; `as_strided` fixes the stride.
    return tensor.detach().as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def copy_bytes(pieces: Sequence[Buffer], target: torch.Tensor) -> None:
    """Copy `pieces` back to back to the flat uint8 tensor `target`, with the calling thread alone.

    It does not hold the GIL meanwhile. (Assigning memoryviews would; `copy_` would use more threads.)
    """
    at, memory = 0, target.numpy()
    for piece in pieces:
        if end := len(piece):
            end += at
            np.copyto(memory[at:end], np.frombuffer(piece, np.uint8))
            at = end


def is_row_major(tensor: torch.Tensor) -> bool:
    """Return whether the memory of a tensor is its values in row-major order.

    Conjugation and negation may be lazy flags of a tensor; its memory then contains different values.
    """
    return tensor.is_contiguous() and not (tensor.is_conj() or tensor.is_neg())


def row_major_pieces(tensor: torch.Tensor) -> Iterator[memoryview]:
    """Yield the bytes of a CPU tensor of any strides in row-major order, in pieces.

    A contiguous tensor is one piece, without a copy. Other tensors, such as a transposed kernel, are copied a few
    megabytes at a time.
    """
    if tensor.is_contiguous():
        yield byte_view(tensor)
        return
    row = tensor.numel() // tensor.shape[0] * tensor.dtype.itemsize
    step = max(1, _PIECE_BYTES // max(1, row))
    for start in range(0, tensor.shape[0], step):
        part = tensor[start : start + step]
        if len(part) == 1 and row > _PIECE_BYTES:
            yield from row_major_pieces(part[0])
        else:
            yield byte_view(part.contiguous())


def swap_bytes(tensor: torch.Tensor, width: int) -> None:
    """Reverse every group of `width` bytes in place. REQUIRES: a contiguous CPU tensor."""
    if width > 1 and tensor.numel():
        groups = flat_bytes(tensor).view(-1, width)
        groups.copy_(groups.flip(1))


def copy_slice(target: torch.Tensor, where: tuple[slice, ...], source: torch.Tensor) -> None:
    """Assign target[where] = source for every dtype, including float8. REQUIRES: equal dtypes and shapes."""
    if target.dtype.itemsize == 1:
        # On some devices torch cannot copy strided tensors of some one-byte floats, but it can copy their bytes.
        target, source = target.view(torch.uint8), source.view(torch.uint8)
    (target[where] if where else target).copy_(source)


def host_copy(tensor: torch.Tensor) -> torch.Tensor:
    """Return `tensor` itself if it is in contiguous host memory, otherwise a copy there."""
    plain = tensor.detach()
    if plain.is_conj() or plain.is_neg():
        plain = plain.resolve_conj().resolve_neg()
    return plain.cpu().contiguous()
