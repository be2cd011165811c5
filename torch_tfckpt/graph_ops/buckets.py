"""Numbers of buckets for numbers, and places in sorted rows.

Source: tensorflow/core/ops/{boosted_trees_ops,array_ops}.cc.
"""

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.values import Tensor, Tensors


@op("BoostedTreesBucketize", list_output=True)
def boosted_trees_bucketize(float_values: Tensors, bucket_boundaries: Tensors) -> tuple[Tensor, ...]:
    """Return the first boundary that is not below a value; the last one if all are."""
    return tuple(
        torch.searchsorted(boundaries, values.contiguous()).clamp(max=max(boundaries.shape[0] - 1, 0)).to(torch.int32)
        for values, boundaries in zip(float_values, bucket_boundaries, strict=True)
    )


@op("LowerBound")
def lower_bound(sorted_inputs: Tensor, values: Tensor, *, out_type: torch.dtype = torch.int32) -> Tensor:
    return _searched(sorted_inputs, values, False, out_type)


@op("UpperBound")
def upper_bound(sorted_inputs: Tensor, values: Tensor, *, out_type: torch.dtype = torch.int32) -> Tensor:
    return _searched(sorted_inputs, values, True, out_type)


def _searched(rows: Tensor, values: Tensor, right: bool, out_type: torch.dtype) -> Tensor:
    if rows.dim() != 2 or values.dim() != 2 or rows.shape[0] != values.shape[0]:
        raise InvalidArgumentError(
            f"sorted_inputs {list(rows.shape)} and values {list(values.shape)} must be matrices of as many rows"
        )
    return torch.searchsorted(rows.contiguous(), values.contiguous(), right=right).to(out_type)
