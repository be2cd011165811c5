"""Sequences of numbers, one-hot vectors, largest elements, unique elements.

Source: tensorflow/core/ops/array_ops.cc, nn_ops.cc and math_ops.cc.
"""

from typing import Any

import numpy as np
import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.integers import axis_of
from torch_tfckpt.graph_ops.limits import check_size
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.text_arrays import array_of
from torch_tfckpt.graph_ops.values import AnyTensor, Scalar, Tensor


@op("Range")
def range_(start: Scalar, limit: Scalar, delta: Scalar, *, Tidx: torch.dtype = torch.int32) -> Tensor:
    """Numbers from start to limit. `Tidx` is only used if all inputs are Python integers."""
    given = next((each for each in (start, limit, delta) if isinstance(each, Tensor)), None)
    if given is None:
        return _whole_numbers(start, limit, delta, Tidx, None)
    parts = [torch.as_tensor(each, dtype=given.dtype) for each in (start, limit, delta)]
    if any(each.dim() > 1 or each.numel() != 1 for each in parts):  # TensorFlow accepts vectors of one number
        raise InvalidArgumentError(f"start, limit and delta must be scalars: {[list(each.shape) for each in parts]}")
    first, last, step = (each.item() for each in parts)
    if not given.is_floating_point():
        return _whole_numbers(first, last, step, given.dtype, given.device)
    count = ((parts[1] - parts[0]) / parts[2]).reshape(()).ceil().item()
    if not 0 <= count < float("inf"):
        raise InvalidArgumentError(f"cannot go from {first} to {last} in steps of {step}")
    check_size([int(count)])
    return first + torch.arange(int(count), dtype=given.dtype, device=given.device) * step


def _whole_numbers(start: Any, limit: Any, delta: Any, dtype: torch.dtype, device: torch.device | None) -> Tensor:
    if delta == 0:
        raise InvalidArgumentError(f"cannot go from {start} to {limit} in steps of 0")
    check_size([max((limit - start) // delta, 0)])
    return torch.arange(start, limit, delta, dtype=dtype, device=device)


@op("LinSpace")
def lin_space(start: Tensor, stop: Tensor, num: int) -> Tensor:
    if num < 1 or start.dim() or stop.dim():
        raise InvalidArgumentError(f"start and stop must be scalars, num positive; found num {num}")
    check_size([num])
    first, last = start.detach(), stop.detach()
    steps = torch.arange(num, dtype=start.dtype, device=start.device)
    numbers = first + steps * ((last - first) / max(num - 1, 1))
    return torch.where(steps == num - 1, last, numbers) if num > 1 else numbers


@op("OneHot")
def one_hot(indices: Tensor, depth: int, on_value: AnyTensor, off_value: AnyTensor, *, axis: int = -1) -> AnyTensor:
    """Other indices than 0 to depth-1 give no one. TensorFlow gives no gradient for the values."""
    if axis < -1:
        raise InvalidArgumentError(f"axis must be -1 or at least 0, found {axis}")
    at = axis_of(axis, indices.dim() + 1)
    check_size([depth])
    check_size([*indices.shape, depth])
    classes = torch.arange(depth, device=indices.device).reshape(-1, *(1,) * (indices.dim() - at))
    is_one = indices.to(torch.int64).unsqueeze(at) == classes
    if isinstance(on_value, np.ndarray) or isinstance(off_value, np.ndarray):
        return np.where(is_one.numpy(), on_value, off_value)
    return torch.where(is_one, on_value.detach(), off_value.detach())


@op("TopKV2", outputs=("values", "indices"))
def top_k_v2(
    input: Tensor, k: int, *, sorted: bool = True, index_type: torch.dtype = torch.int32
) -> tuple[Tensor, Tensor]:
    """Of equal elements the first comes first, which torch.topk does not promise."""
    if not input.dim() or not 0 <= k <= input.shape[-1]:
        raise InvalidArgumentError(f"cannot take {k} elements of the last axis of the shape {list(input.shape)}")
    values, places = input.sort(dim=-1, descending=True, stable=True)
    return values.narrow(-1, 0, k), places.narrow(-1, 0, k).to(index_type)


@op("TopK", outputs=("values", "indices"))
def top_k(input: Tensor, *, k: int, sorted: bool = True) -> tuple[Tensor, Tensor]:
    return top_k_v2(input, k)


@op("ListDiff", outputs=("out", "idx"))
def list_diff(x: Tensor, y: Tensor, *, out_idx: torch.dtype = torch.int32) -> tuple[Tensor, Tensor]:
    """The elements of x that are not in y, and their places."""
    (places,) = torch.isin(x, y, invert=True).nonzero(as_tuple=True)
    return x[places], places.to(out_idx)


@op("Unique", outputs=("y", "idx"))
def unique(x: AnyTensor, *, out_idx: torch.dtype = torch.int32) -> tuple[AnyTensor, Tensor]:
    return unique_with_counts(x, out_idx=out_idx)[:2]


@op("UniqueWithCounts", outputs=("y", "idx", "count"))
def unique_with_counts(x: AnyTensor, *, out_idx: torch.dtype = torch.int32) -> tuple[AnyTensor, Tensor, Tensor]:
    """Elements in the order of their first appearance."""
    if len(x.shape) != 1:
        raise InvalidArgumentError(f"x must be a vector, found the shape {list(x.shape)}")
    if isinstance(x, np.ndarray):
        numbers = {each: number for number, each in enumerate(dict.fromkeys(x))}
        _, index, counts = _unique_along(torch.tensor([numbers[each] for each in x], dtype=torch.int64), 0, out_idx)
        return array_of(numbers), index, counts
    return _unique_along(x, 0, out_idx)


@op("UniqueV2", outputs=("y", "idx"))
def unique_v2(x: Tensor, axis: Tensor, *, out_idx: torch.dtype = torch.int32) -> tuple[Tensor, Tensor]:
    return unique_with_counts_v2(x, axis, out_idx=out_idx)[:2]


@op("UniqueWithCountsV2", outputs=("y", "idx", "count"))
def unique_with_counts_v2(
    x: Tensor, axis: Tensor, *, out_idx: torch.dtype = torch.int32
) -> tuple[Tensor, Tensor, Tensor]:
    """An empty `axis` stands for the only axis of a vector."""
    axes = axis.tolist() if axis.dim() == 1 else []
    if axis.dim() != 1 or len(axes) > 1 or (not axes and x.dim() != 1):
        raise InvalidArgumentError(f"axis must be a vector of at most one number, found {axis.tolist()}")
    return _unique_along(x, axis_of(axes[0], x.dim()) if axes else 0, out_idx)


def _unique_along(x: Tensor, axis: int, out_idx: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    count = x.shape[axis]
    if count == 0:
        return x, torch.zeros(0, dtype=out_idx, device=x.device), torch.zeros(0, dtype=out_idx, device=x.device)
    if x.dim() == 1:
        _, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True)
    else:
        _, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True, dim=axis)
    distinct = counts.shape[0]
    places = torch.arange(count, device=x.device)
    first = torch.full((distinct,), count, device=x.device).scatter_reduce(0, inverse, places, "amin")
    order = first.argsort()
    numbers = torch.zeros_like(order).scatter(0, order, torch.arange(distinct, device=x.device))
    return x.index_select(axis, first[order]), numbers[inverse].to(out_idx), counts[order].to(out_idx)
