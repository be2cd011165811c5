"""Reductions over rows that have the same number.

Source: tensorflow/core/kernels/segment_reduction_ops_impl.h; the documentation of tf.math.segment_sum and others.
"""

import math

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.limits import check_all, check_size
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.values import Tensor


@op("SegmentSum")
def segment_sum(data: Tensor, segment_ids: Tensor) -> Tensor:
    return _summed(*_rows_of(data, segment_ids), _count(data, segment_ids), data.shape[1:])


@op("SegmentMean")
def segment_mean(data: Tensor, segment_ids: Tensor) -> Tensor:
    count = _count(data, segment_ids)
    return _divided(segment_sum(data, segment_ids), segment_ids, count, root=False)


@op("SegmentProd")
def segment_prod(data: Tensor, segment_ids: Tensor) -> Tensor:
    return _reduced(data, segment_ids, _count(data, segment_ids), "prod", 1)


@op("SegmentMax")
def segment_max(data: Tensor, segment_ids: Tensor) -> Tensor:
    return _reduced(data, segment_ids, _count(data, segment_ids), "amax", 0)


@op("SegmentMin")
def segment_min(data: Tensor, segment_ids: Tensor) -> Tensor:
    return _reduced(data, segment_ids, _count(data, segment_ids), "amin", 0)


@op("UnsortedSegmentSum")
def unsorted_segment_sum(data: Tensor, segment_ids: Tensor, num_segments: int) -> Tensor:
    return _summed(*_rows_of(data, segment_ids), num_segments, data.shape[segment_ids.dim() :])


@op("UnsortedSegmentProd")
def unsorted_segment_prod(data: Tensor, segment_ids: Tensor, num_segments: int) -> Tensor:
    return _reduced(data, segment_ids, num_segments, "prod", 1)


@op("UnsortedSegmentMax")
def unsorted_segment_max(data: Tensor, segment_ids: Tensor, num_segments: int) -> Tensor:
    return _reduced(data, segment_ids, num_segments, "amax", _limits(data.dtype).min)


@op("UnsortedSegmentMin")
def unsorted_segment_min(data: Tensor, segment_ids: Tensor, num_segments: int) -> Tensor:
    return _reduced(data, segment_ids, num_segments, "amin", _limits(data.dtype).max)


@op("SparseSegmentSum")
def sparse_segment_sum(data: Tensor, indices: Tensor, segment_ids: Tensor) -> Tensor:
    return _sparse(_wide(data), indices, segment_ids, None).to(data.dtype)


@op("SparseSegmentMean")
def sparse_segment_mean(data: Tensor, indices: Tensor, segment_ids: Tensor) -> Tensor:
    count = _count(indices, segment_ids)
    return _divided(_sparse(_wide(data), indices, segment_ids, count), segment_ids, count, root=False).to(data.dtype)


@op("SparseSegmentSqrtN")
def sparse_segment_sqrt_n(data: Tensor, indices: Tensor, segment_ids: Tensor) -> Tensor:
    count = _count(indices, segment_ids)
    return _divided(_sparse(_wide(data), indices, segment_ids, count), segment_ids, count, root=True).to(data.dtype)


@op("SparseSegmentSumWithNumSegments")
def sparse_segment_sum_with_num_segments(
    data: Tensor, indices: Tensor, segment_ids: Tensor, num_segments: int
) -> Tensor:
    return _sparse(_wide(data), indices, segment_ids, num_segments).to(data.dtype)


@op("SparseSegmentMeanWithNumSegments")
def sparse_segment_mean_with_num_segments(
    data: Tensor, indices: Tensor, segment_ids: Tensor, num_segments: int
) -> Tensor:
    sums = _sparse(_wide(data), indices, segment_ids, num_segments)
    return _divided(sums, segment_ids, num_segments, root=False).to(data.dtype)


@op("SparseSegmentSqrtNWithNumSegments")
def sparse_segment_sqrt_n_with_num_segments(
    data: Tensor, indices: Tensor, segment_ids: Tensor, num_segments: int
) -> Tensor:
    sums = _sparse(_wide(data), indices, segment_ids, num_segments)
    return _divided(sums, segment_ids, num_segments, root=True).to(data.dtype)


def _wide(data: Tensor) -> Tensor:
    """Return the data in the type in which TensorFlow adds it up."""
    return data.to(torch.float32) if data.dtype in (torch.float16, torch.bfloat16) else data


def _count(data: Tensor, segment_ids: Tensor) -> int:
    """Return the number of segments of sorted numbers."""
    if segment_ids.dim() != 1 or not data.dim() or data.shape[0] != segment_ids.shape[0]:
        raise InvalidArgumentError(
            f"segment_ids must be a vector as long as the data: {list(segment_ids.shape)}, {list(data.shape)}"
        )
    if segment_ids.shape[0] == 0:
        return 0
    _check_sorted(segment_ids)
    return int(segment_ids[-1]) + 1


def _check_sorted(segment_ids: Tensor) -> None:
    check_all(segment_ids.diff() >= 0, "segment_ids must be sorted")


def _rows_of(data: Tensor, segment_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the data as a matrix, and the numbers of its rows as a vector."""
    leading = segment_ids.dim()
    if data.shape[:leading] != segment_ids.shape:
        raise InvalidArgumentError(
            f"the shape of segment_ids, {list(segment_ids.shape)}, must be the beginning of the data's, "
            f"{list(data.shape)}"
        )
    rows = data.reshape(segment_ids.numel(), math.prod(data.shape[leading:]))
    return rows, segment_ids.reshape(-1).to(torch.int64)


def _checked(numbers: Tensor, count: int, rest: tuple[int, ...]) -> Tensor:
    """Return the numbers of segments with `count` for rows that are left out: their number is negative."""
    check_size((count, *rest))
    check_all(numbers < count, "segment_ids must be less than the number of segments")
    return torch.where(numbers < 0, count, numbers)


def _summed(rows: Tensor, numbers: Tensor, count: int, rest: tuple[int, ...]) -> Tensor:
    places = _checked(numbers, count, rest)
    found = rows.new_zeros(count + 1, rows.shape[1]).index_add(0, places, rows)
    return found[:count].reshape(count, *rest)


def _reduced(data: Tensor, segment_ids: Tensor, count: int, how: str, empty: float) -> Tensor:
    rows, numbers = _rows_of(data, segment_ids)
    rest = data.shape[segment_ids.dim() :]
    places = _checked(numbers, count, rest)[:, None].expand(rows.shape)
    found = rows.new_full((count + 1, rows.shape[1]), empty).scatter_reduce(0, places, rows, how, include_self=False)
    return found[:count].reshape(count, *rest)


def _sparse(data: Tensor, indices: Tensor, segment_ids: Tensor, count: int | None) -> Tensor:
    known = _count(indices, segment_ids)
    if segment_ids.shape[0]:
        check_all(segment_ids >= 0, "segment_ids must not be negative")
    rows = data.index_select(0, indices).reshape(indices.shape[0], math.prod(data.shape[1:]))
    return _summed(rows, segment_ids.to(torch.int64), known if count is None else count, data.shape[1:])


def _divided(sums: Tensor, segment_ids: Tensor, count: int, root: bool) -> Tensor:
    numbers = _checked(segment_ids.to(torch.int64), count, ())
    sizes = torch.bincount(numbers, minlength=count + 1)[:count].clamp(min=1)
    sizes = sizes.reshape(-1, *(1,) * (sums.dim() - 1))
    if not (sums.is_floating_point() or sums.is_complex()):
        return sums.div(sizes, rounding_mode="trunc").to(sums.dtype)
    return sums / (sizes.sqrt() if root else sizes).to(sums.dtype)


def _limits(dtype: torch.dtype) -> torch.finfo | torch.iinfo:
    return torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
