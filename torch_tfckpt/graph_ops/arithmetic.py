"""Operations on pairs of elements, with broadcasting, and sums of many tensors.

Inputs of one operation have the same dtype in a valid graph. That is not checked, so that `torch.autocast` works.
Where a derivative is not unique, as of Maximum(x, x), it is the one that TensorFlow chooses.

Source: tensorflow/core/ops/math_ops.cc, tensorflow/core/kernels/cwise_ops.h, tensorflow/python/ops/math_grad.py.
"""

import math

import numpy as np
import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.unsigned import ordered, wrapping
from torch_tfckpt.graph_ops.values import AnyTensor, Ints, Strings, Tensor, Tensors


@op("AddV2")
@wrapping
def add(x: Tensor, y: Tensor) -> Tensor:
    return torch.add(x, y)


@op("Add")
def add_or_join(x: AnyTensor, y: AnyTensor) -> AnyTensor:
    """Return the sum; that of strings is one after the other."""
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return add(x, y)
    joined: Strings = np.asarray(np.add(x, y), dtype=object)
    return joined


@op("Sub")
@wrapping
def sub(x: Tensor, y: Tensor) -> Tensor:
    return torch.sub(x, y)


@op("Mul")
def mul(x: Tensor, y: Tensor) -> Tensor:
    return torch.mul(x, y)


@op("MulNoNan")
def mul_no_nan(x: Tensor, y: Tensor) -> Tensor:
    """Return 0 where y is 0, even if x is infinite or NaN."""
    return torch.where((y == 0) & ~torch.isfinite(x), 0, x) * y


@op("Div")
def div(x: Tensor, y: Tensor) -> Tensor:
    """Return the quotient; that of integers is rounded towards zero."""
    return torch.div(x, y) if x.is_floating_point() or x.is_complex() else truncate_div(x, y)


@op("RealDiv")
def real_div(x: Tensor, y: Tensor) -> Tensor:
    return torch.div(x, y)


@op("TruncateDiv")
@ordered
def truncate_div(x: Tensor, y: Tensor) -> Tensor:
    if not x.dtype.is_signed:
        return torch.div(x, y, rounding_mode="trunc")
    # The processor has no quotient for the lowest number and -1: the division would end the process.
    negated = y == -1
    return torch.where(negated, -x, torch.div(x, torch.where(negated, 1, y), rounding_mode="trunc"))


@op("FloorDiv")
@ordered
def floor_div(x: Tensor, y: Tensor) -> Tensor:
    if x.is_floating_point():
        return torch.floor(torch.div(x, y))  # torch's floor division rounds differently: 1.0 // 0.1 is 9
    return torch.div(x, y, rounding_mode="floor")


@op("DivNoNan")
def div_no_nan(x: Tensor, y: Tensor) -> Tensor:
    """Return 0 where y is 0."""
    zero = y == 0
    return torch.where(zero, 0, x / torch.where(zero, 1, y))


@op("FloorMod")
@ordered
def floor_mod(x: Tensor, y: Tensor) -> Tensor:
    """Return the remainder with the sign of y."""
    return torch.remainder(x, y)


@op("Mod", "TruncateMod")
def truncate_mod(x: Tensor, y: Tensor) -> Tensor:
    """Return the remainder with the sign of x."""
    return torch.fmod(x, y)


@op("Pow")
def power(x: Tensor, y: Tensor) -> Tensor:
    if x.is_floating_point():
        if not (torch.is_grad_enabled() and y.requires_grad):
            return torch.pow(x, y)
        # The derivative with respect to y is 0 where x is not positive.
        positive = x > 0
        return torch.where(positive, torch.pow(torch.where(positive, x, 1), y), torch.pow(x, y.detach()))
    if not x.is_complex() and not torch.compiler.is_compiling() and bool((y < 0).any()):
        raise InvalidArgumentError("integers have no negative integer powers; cast to a floating-point type first")
    return torch.pow(x, y)


@op("SquaredDifference")
def squared_difference(x: Tensor, y: Tensor) -> Tensor:
    difference = torch.sub(x, y)
    return difference * difference.conj()


@op("Maximum")
@ordered
def maximum(x: Tensor, y: Tensor) -> Tensor:
    if _differentiated(x, y):
        return torch.where((x >= y) | x.isnan(), x, y)  # of equal numbers, x gets the whole gradient
    return torch.maximum(x, y)


@op("Minimum")
@ordered
def minimum(x: Tensor, y: Tensor) -> Tensor:
    if _differentiated(x, y):
        return torch.where((x <= y) | x.isnan(), x, y)
    return torch.minimum(x, y)


@op("Xdivy")
def xdivy(x: Tensor, y: Tensor) -> Tensor:
    """Return x / y, and 0 where x is 0."""
    zero = x == 0
    return torch.where(zero, 0, x / torch.where(zero, 1, y))


@op("Xlogy")
def xlogy(x: Tensor, y: Tensor) -> Tensor:
    """Return x * log(y), and 0 where x is 0."""
    zero = x == 0
    return torch.where(zero, 0, x * torch.log(torch.where(zero, 1, y)))


@op("Xlog1py")
def xlog1py(x: Tensor, y: Tensor) -> Tensor:
    """Return x * log(1 + y), and 0 where x is 0."""
    zero = x == 0
    return torch.where(zero, 0, x * torch.log1p(torch.where(zero, 1, y)))


@op("Atan2")
def atan2(y: Tensor, x: Tensor) -> Tensor:
    return torch.atan2(y, x)


@op("NextAfter")
def next_after(x1: Tensor, x2: Tensor) -> Tensor:
    return torch.nextafter(x1, x2)


@op("Igamma")
def igamma(a: Tensor, x: Tensor) -> Tensor:
    return torch.igamma(a, x)


@op("Igammac")
def igammac(a: Tensor, x: Tensor) -> Tensor:
    return torch.igammac(a, x)


@op("Zeta")
def zeta(x: Tensor, q: Tensor) -> Tensor:
    result: Tensor = torch.special.zeta(x.detach(), q)
    return result


@op("Polygamma")
def polygamma(a: Tensor, x: Tensor) -> Tensor:
    """Return the derivative of order a of Digamma, NaN if a is not a natural number."""
    sign = torch.where(torch.remainder(a, 2) == 0, -1, 1)
    result: Tensor = sign * torch.exp(torch.lgamma(a + 1)) * torch.special.zeta((a + 1).detach(), x)
    result = torch.where(a == 0, torch.digamma(x), result)
    return torch.where((a < 0) | (a != torch.floor(a)), math.nan, result)


@op("AddN")
def add_n(inputs: Tensors) -> Tensor:
    """Return the sum of tensors of one shape."""
    if not inputs:
        raise InvalidArgumentError("a sum of no tensors has no shape and no dtype")
    total = inputs[0]
    for each in inputs[1:]:
        if each.shape != total.shape:
            raise InvalidArgumentError(
                f"the tensors of a sum must have one shape, but there are {list(total.shape)} and {list(each.shape)}"
            )
        total = add(total, each)
    return total


@op("AccumulateNV2")
def accumulate_n(inputs: Tensors, *, shape: Ints | None) -> Tensor:
    """Return the sum of tensors. Their shape is known, so the attribute `shape` is not needed."""
    return add_n(inputs)


@op("ClipByValue")
def clip_by_value(t: Tensor, clip_value_min: Tensor, clip_value_max: Tensor) -> Tensor:
    return torch.clamp(torch.clamp(t, max=clip_value_max), min=clip_value_min)  # the lower limit comes last


def _differentiated(*inputs: Tensor) -> bool:
    return torch.is_grad_enabled() and any(each.requires_grad for each in inputs)
