"""Host tensors seen as plain bytes, without a copy and without numpy's idea of their dtype.

numpy has no bfloat16 and no float8; every view here is of unsigned bytes, so all of torch's dtypes travel alike.
"""

import torch


def byte_view(tensor: torch.Tensor) -> memoryview:
    """The bytes of `tensor`, shared with it, in row-major order.

    REQUIRES: a contiguous CPU tensor. An empty tensor gives an empty view.
    """
    if not tensor.numel():
        return memoryview(b"")
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def swap_bytes(tensor: torch.Tensor, width: int) -> None:
    """Reverses every group of `width` bytes in place. REQUIRES: a contiguous CPU tensor."""
    if width > 1 and tensor.numel():
        groups = tensor.detach().reshape(-1).view(torch.uint8).view(-1, width)
        groups.copy_(groups.flip(1))


def copy_slice(target: torch.Tensor, where: tuple[slice, ...], source: torch.Tensor) -> None:
    """target[where] = source, for every dtype, float8 included. REQUIRES: equal dtypes and shapes."""
    if target.dtype.itemsize == 1:
        # torch lacks strided copies of some one-byte floats on some devices; their bytes it can copy everywhere.
        target, source = target.view(torch.uint8), source.view(torch.uint8)
    target[where].copy_(source)


def host_copy(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` itself where it is contiguous host memory, else its values there."""
    plain = tensor.detach()
    if plain.is_conj() or plain.is_neg():
        # Conjugation and negation may be mere marks on a tensor; the bytes below them are of other values.
        plain = plain.resolve_conj().resolve_neg()
    return plain.cpu().contiguous()
