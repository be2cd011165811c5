"""Reductions over axes, and cumulative sums and products.

No axes at all means that nothing is reduced. Axes of size 0 reduce to the neutral element: 0, 1, or the lowest number
for Max.

Source: tensorflow/core/ops/math_ops.cc, tensorflow/core/kernels/reduction_ops*.cc, argmax_op.cc, scan_ops.cc,
bincount_op.cc.
"""

import math

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.axes import axes_of
from torch_tfckpt.graph_ops.integers import axis_of
from torch_tfckpt.graph_ops.limits import check_size
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.unsigned import ordered, wrapping
from torch_tfckpt.graph_ops.values import Axes, Tensor


@op("Sum")
@wrapping
def reduce_sum(input: Tensor, reduction_indices: Axes, *, keep_dims: bool = False) -> Tensor:
    dims = axes_of(reduction_indices, input.dim())
    return torch.sum(input, dims, keepdim=keep_dims, dtype=input.dtype) if dims else input


@op("Mean")
@ordered
def reduce_mean(input: Tensor, reduction_indices: Axes, *, keep_dims: bool = False) -> Tensor:
    """Return the mean; that of integers is rounded towards zero."""
    dims = axes_of(reduction_indices, input.dim())
    if not dims:
        return input
    if input.is_floating_point() or input.is_complex():
        return torch.mean(input, dims, keepdim=keep_dims)
    count = math.prod(input.shape[axis] for axis in dims)
    total = torch.sum(input, dims, keepdim=keep_dims, dtype=torch.int64)
    return torch.div(total, count, rounding_mode="trunc").to(input.dtype)


@op("Prod")
@wrapping
def reduce_prod(input: Tensor, reduction_indices: Axes, *, keep_dims: bool = False) -> Tensor:
    for axis in reversed(axes_of(reduction_indices, input.dim())):
        input = torch.prod(input, axis, keepdim=keep_dims, dtype=input.dtype)
    return input


@op("Max")
@ordered
def reduce_max(input: Tensor, reduction_indices: Axes, *, keep_dims: bool = False) -> Tensor:
    dims = axes_of(reduction_indices, input.dim())
    if not dims:
        return input
    if _is_empty(input, dims):
        return _reduced_empty(input, dims, keep_dims, -math.inf if input.is_floating_point() else _lowest(input))
    return torch.amax(input, dims, keepdim=keep_dims)


@op("Min")
@ordered
def reduce_min(input: Tensor, reduction_indices: Axes, *, keep_dims: bool = False) -> Tensor:
    dims = axes_of(reduction_indices, input.dim())
    if not dims:
        return input
    if _is_empty(input, dims):
        return _reduced_empty(input, dims, keep_dims, math.inf if input.is_floating_point() else _highest(input))
    return torch.amin(input, dims, keepdim=keep_dims)


@op("All")
def reduce_all(input: Tensor, reduction_indices: Axes, *, keep_dims: bool = False) -> Tensor:
    dims = axes_of(reduction_indices, input.dim())
    return torch.all(input, dims, keepdim=keep_dims) if dims else input


@op("Any")
def reduce_any(input: Tensor, reduction_indices: Axes, *, keep_dims: bool = False) -> Tensor:
    dims = axes_of(reduction_indices, input.dim())
    return torch.any(input, dims, keepdim=keep_dims) if dims else input


@op("EuclideanNorm")
def euclidean_norm(input: Tensor, reduction_indices: Axes, *, keep_dims: bool = False) -> Tensor:
    squares = input * input.conj()
    return torch.sqrt(reduce_sum(squares, reduction_indices, keep_dims=keep_dims))


@op("L2Loss")
def l2_loss(t: Tensor) -> Tensor:
    """Return half the sum of squares."""
    return torch.sum(t * t) / 2


@op("ArgMax")
def arg_max(input: Tensor, dimension: int, *, output_type: torch.dtype = torch.int64) -> Tensor:
    """Return the index of the first of the largest elements, NaN not counted."""
    return torch.argmax(*_searched(input, dimension, -math.inf)).to(output_type)


@op("ArgMin")
def arg_min(input: Tensor, dimension: int, *, output_type: torch.dtype = torch.int64) -> Tensor:
    """Return the index of the first of the smallest elements, NaN not counted."""
    return torch.argmin(*_searched(input, dimension, math.inf)).to(output_type)


@op("Cumsum")
@wrapping
def cumsum(x: Tensor, axis: int, *, exclusive: bool = False, reverse: bool = False) -> Tensor:
    axis = axis_of(axis, x.dim())
    return _ordered(torch.cumsum(_terms(x, axis, exclusive, reverse, 0), axis, dtype=x.dtype), axis, reverse)


@op("Cumprod")
@wrapping
def cumprod(x: Tensor, axis: int, *, exclusive: bool = False, reverse: bool = False) -> Tensor:
    axis = axis_of(axis, x.dim())
    return _ordered(torch.cumprod(_terms(x, axis, exclusive, reverse, 1), axis, dtype=x.dtype), axis, reverse)


@op("CumulativeLogsumexp")
def cumulative_logsumexp(x: Tensor, axis: int, *, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """Return log(cumsum(exp(x)))."""
    axis = axis_of(axis, x.dim())
    return _ordered(torch.logcumsumexp(_terms(x, axis, exclusive, reverse, -math.inf), axis), axis, reverse)


@op("Bincount")
def bincount(arr: Tensor, size: int, weights: Tensor) -> Tensor:
    """Count the numbers 0 to size - 1, or add up their weights; larger numbers are not counted."""
    return dense_bincount(arr.reshape(-1), size, weights.reshape(-1))


@op("DenseBincount")
def dense_bincount(input: Tensor, size: int, weights: Tensor, *, binary_output: bool = False) -> Tensor:
    """Count as `bincount` does, each row of a matrix alone; with `binary_output`, mark which numbers there are."""
    if input.dim() not in (1, 2):
        raise InvalidArgumentError(f"numbers to count must be a vector or a matrix, not of shape {list(input.shape)}")
    if weights.numel() and weights.shape != input.shape:
        raise InvalidArgumentError(f"{list(weights.shape)} weights do not belong to {list(input.shape)} numbers")
    check_size((*input.shape[:-1], size))
    place = torch.where(input < size, input, size).to(torch.int64)  # the last bin is for those not counted
    given = weights if weights.numel() and not binary_output else torch.ones_like(input, dtype=weights.dtype)
    bins = torch.zeros((*input.shape[:-1], size + 1), dtype=weights.dtype, device=input.device)
    counted = bins.scatter_add(-1, place, given)[..., :size]
    return (counted > 0).to(weights.dtype) if binary_output else counted


def _is_empty(input: Tensor, dims: tuple[int, ...]) -> bool:
    return any(input.shape[axis] == 0 for axis in dims)


def _reduced_empty(input: Tensor, dims: tuple[int, ...], keep_dims: bool, value: float) -> Tensor:
    sizes = [1 if axis in dims else size for axis, size in enumerate(input.shape) if keep_dims or axis not in dims]
    check_size(sizes)
    return torch.full(sizes, value, dtype=input.dtype, device=input.device)


def _lowest(input: Tensor) -> int:
    return torch.iinfo(input.dtype).min


def _highest(input: Tensor) -> int:
    return torch.iinfo(input.dtype).max


def _searched(input: Tensor, dimension: int, ignored: float) -> tuple[Tensor, int]:
    dimension = axis_of(dimension, input.dim())
    if input.dtype in (torch.bool, torch.uint16, torch.uint32):
        input = input.to(torch.int64)
    if input.is_floating_point():
        input = torch.nan_to_num(input, ignored, math.inf, -math.inf)
    return input, dimension


def _terms(x: Tensor, axis: int, exclusive: bool, reverse: bool, first: float) -> Tensor:
    """Return x in the order of the sum; an exclusive sum begins with `first` and does not need the last element."""
    if reverse:
        x = torch.flip(x, (axis,))
    size = x.shape[axis]
    if not exclusive or size == 0:
        return x
    start = torch.full_like(x.narrow(axis, 0, 1), first)
    return torch.cat([start, x.narrow(axis, 0, size - 1)], axis)


def _ordered(result: Tensor, axis: int, reverse: bool) -> Tensor:
    return torch.flip(result, (axis,)) if reverse else result
