"""Operations on the bits of integers.

Source: tensorflow/core/ops/bitwise_ops.cc, tensorflow/core/kernels/bitwise_ops.cc, population_count_op.cc.
"""

import torch

from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.unsigned import ordered, wrapping
from torch_tfckpt.graph_ops.values import Tensor


@op("BitwiseAnd")
@wrapping
def bitwise_and(x: Tensor, y: Tensor) -> Tensor:
    return torch.bitwise_and(x, y)


@op("BitwiseOr")
@wrapping
def bitwise_or(x: Tensor, y: Tensor) -> Tensor:
    return torch.bitwise_or(x, y)


@op("BitwiseXor")
@wrapping
def bitwise_xor(x: Tensor, y: Tensor) -> Tensor:
    return torch.bitwise_xor(x, y)


@op("Invert")
@wrapping
def invert(x: Tensor) -> Tensor:
    return torch.bitwise_not(x)


@op("LeftShift")
def left_shift(x: Tensor, y: Tensor) -> Tensor:
    return _shifted_left(x, _limited(y, x.dtype))


@op("RightShift")
def right_shift(x: Tensor, y: Tensor) -> Tensor:
    return _shifted_right(x, _limited(y, x.dtype))


@op("PopulationCount")
def population_count(x: Tensor) -> Tensor:
    """Return how many bits are 1, as uint8."""
    bits = x.contiguous().view(torch.uint8).reshape(*x.shape, x.element_size())
    return sum(((bits >> place) & 1 for place in range(8)), torch.zeros_like(bits)).sum(-1, dtype=torch.uint8)


@wrapping
def _shifted_left(x: Tensor, y: Tensor) -> Tensor:
    return torch.bitwise_left_shift(x, y)


@ordered
def _shifted_right(x: Tensor, y: Tensor) -> Tensor:
    return torch.bitwise_right_shift(x, y)


def _limited(shift: Tensor, dtype: torch.dtype) -> Tensor:
    """TensorFlow shifts by at least 0 and at most all bits but one."""
    return shift.to(torch.int64).clamp(0, 8 * dtype.itemsize - 1).to(dtype)
