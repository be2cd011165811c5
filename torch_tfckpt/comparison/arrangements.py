"""The ways in which torch and TensorFlow arrange the same tensor, and whether two tensors are equal.

    identity              [batch, features]
    channels first        TensorFlow's [batch, height, width, channels] is torch's [batch, channels, height, width]
    time first            [batch, time, features] is [time, batch, features]
    other shapes          [batch, 1, 1, channels] is [batch, channels]
    rows                  [batch, time, features] is [batch * time, features]

Errors are relative to the largest value of the tensor of the graph.
"""

import math
from collections.abc import Iterator

import torch


def channels_first(rank: int) -> tuple[int, ...]:
    """Return the axes for `permute` that make TensorFlow's layout torch's: (0, 3, 1, 2) for images."""
    return (0, rank - 1, *range(1, rank - 1))


def arranged(tensor: torch.Tensor, shape: torch.Size) -> Iterator[torch.Tensor]:
    """Yield the arrangements of a tensor of the graph that have this shape, the most likely one first."""
    rank = tensor.dim()
    if tensor.numel() != math.prod(shape):
        return
    if tensor.shape == shape:
        yield tensor
    if rank >= 3 and rank == len(shape):
        turned = tensor.permute(channels_first(rank))
        if turned.shape == shape:
            yield turned
    if rank == 3 and len(shape) == 3:
        turned = tensor.transpose(0, 1)
        if turned.shape == shape:
            yield turned
    if tensor.shape != shape and rank != len(shape):
        same_sizes = [size for size in tensor.shape if size != 1] == [size for size in shape if size != 1]
        rows = rank and len(shape) and tensor.shape[-1] == shape[-1]
        if same_sizes or rows:
            yield tensor.reshape(shape)


def resized(tensor: torch.Tensor, shape: torch.Size) -> Iterator[torch.Tensor]:
    """Yield the arrangements of a tensor of the graph that differ from a shape only in sizes of images or times."""
    rank = tensor.dim()
    if rank < 3 or rank != len(shape) or not tensor.numel() or tensor.shape[0] != shape[0]:
        return
    for each in (tensor.permute(channels_first(rank)), tensor):
        if each.shape != shape and (each.shape[1] == shape[1] or each.shape[-1] == shape[-1]):
            yield each


def error_of(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest error of `found`, relative to the largest value of `expected`.

    Infinite if the shapes differ, or if something is NaN or infinite in only one of them.
    """
    if found.shape != expected.shape:
        return math.inf
    if not expected.numel():
        return 0.0
    found, expected = found.detach().cpu(), expected.detach().cpu()
    kind = torch.complex128 if expected.is_complex() or found.is_complex() else torch.float64
    a, b = found.to(kind), expected.to(kind)
    same = (a == b) | (a.isnan() & b.isnan())
    finite = a.isfinite() & b.isfinite()
    if not bool((same | finite).all()):
        return math.inf
    apart = torch.where(same, 0.0, (a - b).abs())
    largest = torch.where(b.isfinite(), b.abs(), 0.0).max().item()
    error = apart.max().item()
    return 0.0 if error == 0 else error / largest if largest else math.inf


def is_uniform(tensor: torch.Tensor) -> bool:
    """Return whether all elements are the same number, which proves nothing about a computation."""
    if tensor.numel() < 2:
        return True
    low, high = tensor.aminmax()
    return not bool(high - low > 1e-7 * high.abs().maximum(low.abs()))
