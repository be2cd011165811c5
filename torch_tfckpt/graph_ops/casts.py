"""Conversions between dtypes.

Source: tensorflow/core/ops/math_ops.cc, array_ops.cc, tensorflow/core/kernels/cast_op.h, bitcast_op.cc.
"""

from collections.abc import Mapping
from typing import Final

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.values import ElementType, Tensor

# The bits that Truncate clears: the difference between the widths of the mantissas. TensorFlow does not truncate
# float64 to bfloat16.
_CLEARED_BITS: Final[Mapping[tuple[torch.dtype, torch.dtype], int]] = {
    (torch.float64, torch.float32): 29,
    (torch.float64, torch.float16): 42,
    (torch.float32, torch.float16): 13,
    (torch.float32, torch.bfloat16): 16,
}


@op("Cast")
def cast(x: Tensor, *, DstT: ElementType, Truncate: bool = False) -> Tensor:
    """Convert numbers: fractions towards zero, other floating-point numbers to the nearest one.

    With `Truncate`, floating-point numbers are rounded towards zero, too. A float that does not fit into an integer
    type becomes whatever the processor makes of it, in TensorFlow and here.
    """
    if isinstance(DstT, DataType):
        raise InvalidArgumentError(f"cannot cast {x.dtype} to {DstT.name}")
    if x.is_complex() and not DstT.is_complex:
        x = torch.real(x)
    if Truncate and (x.dtype, DstT) in _CLEARED_BITS:
        x = _without_bits(x, _CLEARED_BITS[x.dtype, DstT])
    return x.to(DstT)


@op("Bitcast")
def bitcast(input: Tensor, *, type: ElementType) -> Tensor:
    """Return the same bytes with another dtype.

    An element that is several elements of the other dtype becomes a new last axis; elements that are one element
    of the other dtype are a last axis, which disappears.
    """
    if isinstance(type, DataType):
        raise InvalidArgumentError(f"torch has no dtype for {type.name}")
    before, after = input.element_size(), type.itemsize
    if before == after:
        return input.view(type)
    if before > after:
        return input.unsqueeze(-1).contiguous().view(type)
    if not input.dim() or input.shape[-1] * before != after:
        raise InvalidArgumentError(
            f"a bitcast from {input.dtype} to {type} needs a last axis of {after // before} elements, "
            f"but the input has the shape {list(input.shape)}"
        )
    return input.contiguous().view(type).squeeze(-1)


def _without_bits(x: Tensor, count: int) -> Tensor:
    """Clear the last bits of floating-point numbers; the derivative is that of a plain conversion."""
    bits = x.detach().contiguous().view(torch.int32 if x.dtype == torch.float32 else torch.int64)
    cleared = (bits & (-1 << count)).view(x.dtype)
    return cleared if not x.requires_grad else x + (cleared - x).detach()
