"""Comparisons, logic, and the choice of elements.

Source: tensorflow/core/ops/math_ops.cc, array_ops.cc, tensorflow/core/kernels/cwise_op_select.cc, where_op.cc,
bucketize_op.cc, in_topk_op.cc.
"""

from itertools import pairwise

import numpy as np
import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.limits import is_empty
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.unsigned import ordered
from torch_tfckpt.graph_ops.values import AnyTensor, Strings, Tensor


@op("Equal")
def equal(x: AnyTensor, y: AnyTensor, *, incompatible_shape_error: bool = True) -> Tensor:
    """Compare numbers or strings. Without `incompatible_shape_error`, shapes that do not match are one False."""
    if not incompatible_shape_error and not _broadcast(x, y):
        return torch.tensor(False, device=x.device if isinstance(x, Tensor) else None)
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return torch.eq(x, y)
    return torch.from_numpy(np.asarray(np.equal(x, y)).astype(np.bool_))


@op("NotEqual")
def not_equal(x: AnyTensor, y: AnyTensor, *, incompatible_shape_error: bool = True) -> Tensor:
    """Compare numbers or strings. Without `incompatible_shape_error`, shapes that do not match are one True."""
    return torch.logical_not(equal(x, y, incompatible_shape_error=incompatible_shape_error))


def _broadcast(x: AnyTensor, y: AnyTensor) -> bool:
    try:
        np.broadcast_shapes(tuple(x.shape), tuple(y.shape))
    except ValueError:
        return False
    return True


@op("Less")
@ordered
def less(x: Tensor, y: Tensor) -> Tensor:
    return torch.lt(x, y)


@op("LessEqual")
@ordered
def less_equal(x: Tensor, y: Tensor) -> Tensor:
    return torch.le(x, y)


@op("Greater")
@ordered
def greater(x: Tensor, y: Tensor) -> Tensor:
    return torch.gt(x, y)


@op("GreaterEqual")
@ordered
def greater_equal(x: Tensor, y: Tensor) -> Tensor:
    return torch.ge(x, y)


@op("ApproximateEqual")
def approximate_equal(x: Tensor, y: Tensor, *, tolerance: float = 1e-5) -> Tensor:
    if x.shape != y.shape:
        raise InvalidArgumentError(f"shapes {list(x.shape)} and {list(y.shape)} of the inputs are not the same")
    return torch.abs(x - y) < tolerance


@op("LogicalAnd")
def logical_and(x: Tensor, y: Tensor) -> Tensor:
    return torch.logical_and(x, y)


@op("LogicalOr")
def logical_or(x: Tensor, y: Tensor) -> Tensor:
    return torch.logical_or(x, y)


@op("LogicalNot")
def logical_not(x: Tensor) -> Tensor:
    return torch.logical_not(x)


@op("Select")
def select(condition: Tensor, t: AnyTensor, e: AnyTensor) -> AnyTensor:
    """Choose between two tensors of one shape; a condition that is a vector chooses between rows."""
    if t.shape != e.shape:
        raise InvalidArgumentError(f"the shapes of both choices must be equal: {list(t.shape)} and {list(e.shape)}")
    if condition.dim() == 1 and t.ndim > 1:
        if condition.shape[0] != t.shape[0]:
            raise InvalidArgumentError(
                f"a condition of {condition.shape[0]} elements cannot choose between the rows of {list(t.shape)}"
            )
        condition = condition.reshape(condition.shape[0], *[1] * (t.ndim - 1))
    elif condition.dim() and tuple(condition.shape) != tuple(t.shape):
        raise InvalidArgumentError(
            f"a condition of shape {list(condition.shape)} cannot choose between tensors of shape {list(t.shape)}"
        )
    return select_v2(condition, t, e)


@op("SelectV2")
def select_v2(condition: Tensor, t: AnyTensor, e: AnyTensor) -> AnyTensor:
    """Choose between the elements of two tensors, with broadcasting."""
    if isinstance(t, Tensor) and isinstance(e, Tensor):
        return torch.where(condition, t, e)
    chosen: Strings = np.asarray(np.where(condition.cpu().numpy(), t, e), dtype=object)
    return chosen


@op("Where")
def where(input: Tensor) -> Tensor:
    """Return the indices of elements that are not 0 or False, as int64 [count, rank]."""
    if input.dim() == 0:
        raise InvalidArgumentError("Where needs an input of at least one axis, not a scalar")
    return torch.nonzero(input if input.dtype == torch.bool else input != 0)


@op("Bucketize")
def bucketize(input: Tensor, *, boundaries: tuple[float, ...]) -> Tensor:
    """Return, for each element, how many boundaries are not greater."""
    if any(before > after for before, after in pairwise(boundaries)):
        raise InvalidArgumentError(f"the boundaries of buckets must be in ascending order: {list(boundaries)}")
    dtype = input.dtype if input.is_floating_point() else torch.float32
    edges = torch.tensor(boundaries, dtype=dtype, device=input.device)
    return torch.bucketize(input.to(dtype), edges, out_int32=True, right=True)


@op("InTopK")
def in_top_k(predictions: Tensor, targets: Tensor, *, k: int) -> Tensor:
    return in_top_k_v2(predictions, targets, k)


@op("InTopKV2")
def in_top_k_v2(predictions: Tensor, targets: Tensor, k: int) -> Tensor:
    """Return for each row whether fewer than k predictions are greater than that of the target.

    The answer is False for a target that is not a class, and for rows with numbers that are not finite.
    """
    if predictions.dim() != 2 or targets.shape != predictions.shape[:1]:
        raise InvalidArgumentError(
            f"predictions must be a matrix and targets a vector of its rows, not {list(predictions.shape)} and "
            f"{list(targets.shape)}"
        )
    classes = predictions.shape[1]
    if is_empty((classes,)):
        return torch.zeros_like(targets, dtype=torch.bool)
    known = (targets >= 0) & (targets < classes)
    place = torch.where(known, targets, 0).to(torch.int64)
    greater_ones = (predictions > predictions.gather(1, place[:, None])).sum(1)
    return known & torch.isfinite(predictions).all(1) & (greater_ones < k)
