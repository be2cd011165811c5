"""Mathematical functions of each element.

Source: tensorflow/core/ops/math_ops.cc, tensorflow/core/kernels/cwise_ops.h.
"""

import math

import torch

from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.unsigned import wrapping
from torch_tfckpt.graph_ops.values import Tensor


@op("Neg")
def neg(x: Tensor) -> Tensor:
    return torch.neg(x)


@op("Abs")
def absolute(x: Tensor) -> Tensor:
    return torch.abs(x)


@op("Sign")
def sign(x: Tensor) -> Tensor:
    """Return -1, 0, 1 or NaN, and x / |x| of complex numbers."""
    found = torch.sgn(x)
    return torch.where(x.isnan(), x.detach(), found) if x.is_floating_point() else found


@op("Square")
@wrapping
def square(x: Tensor) -> Tensor:
    return torch.square(x)


@op("Sqrt")
def sqrt(x: Tensor) -> Tensor:
    return torch.sqrt(x)


@op("Rsqrt")
def rsqrt(x: Tensor) -> Tensor:
    return torch.rsqrt(x)


@op("Reciprocal", "Inv")
def reciprocal(x: Tensor) -> Tensor:
    return torch.reciprocal(x)


@op("Exp")
def exp(x: Tensor) -> Tensor:
    return torch.exp(x)


@op("Expm1")
def expm1(x: Tensor) -> Tensor:
    return torch.expm1(x)


@op("Log")
def log(x: Tensor) -> Tensor:
    return torch.log(x)


@op("Log1p")
def log1p(x: Tensor) -> Tensor:
    return torch.log1p(x)


@op("Floor")
def floor(x: Tensor) -> Tensor:
    return torch.floor(x)


@op("Ceil")
def ceil(x: Tensor) -> Tensor:
    return torch.ceil(x)


@op("Round")
def rounded(x: Tensor) -> Tensor:
    """Round to the nearest integer, halves to the even one."""
    return torch.round(x)


@op("Rint")
def rint(x: Tensor) -> Tensor:
    return torch.round(x)


@op("Sin")
def sin(x: Tensor) -> Tensor:
    return torch.sin(x)


@op("Cos")
def cos(x: Tensor) -> Tensor:
    return torch.cos(x)


@op("Tan")
def tan(x: Tensor) -> Tensor:
    return torch.tan(x)


@op("Asin")
def asin(x: Tensor) -> Tensor:
    return torch.asin(x)


@op("Acos")
def acos(x: Tensor) -> Tensor:
    return torch.acos(x)


@op("Atan")
def atan(x: Tensor) -> Tensor:
    return torch.atan(x)


@op("Sinh")
def sinh(x: Tensor) -> Tensor:
    return torch.sinh(x)


@op("Cosh")
def cosh(x: Tensor) -> Tensor:
    return torch.cosh(x)


@op("Tanh")
def tanh(x: Tensor) -> Tensor:
    return torch.tanh(x)


@op("Asinh")
def asinh(x: Tensor) -> Tensor:
    return torch.asinh(x)


@op("Acosh")
def acosh(x: Tensor) -> Tensor:
    return torch.acosh(x)


@op("Atanh")
def atanh(x: Tensor) -> Tensor:
    return torch.atanh(x)


@op("Erf")
def erf(x: Tensor) -> Tensor:
    return torch.erf(x)


@op("Erfc")
def erfc(x: Tensor) -> Tensor:
    return torch.erfc(x)


@op("Erfinv")
def erfinv(x: Tensor) -> Tensor:
    return torch.erfinv(x)


@op("Ndtri")
def ndtri(x: Tensor) -> Tensor:
    result: Tensor = torch.special.ndtri(x)
    return result


@op("Lgamma")
def lgamma(x: Tensor) -> Tensor:
    return torch.lgamma(x)


@op("Digamma")
def digamma(x: Tensor) -> Tensor:
    return torch.where(x == 0, math.nan, torch.digamma(x))  # the limit has another sign on each side


@op("BesselI0e")
def bessel_i0e(x: Tensor) -> Tensor:
    result: Tensor = torch.special.i0e(x)
    return result


@op("BesselI1e")
def bessel_i1e(x: Tensor) -> Tensor:
    result: Tensor = torch.special.i1e(x)
    return result


@op("IsNan")
def is_nan(x: Tensor) -> Tensor:
    return torch.isnan(x)


@op("IsInf")
def is_inf(x: Tensor) -> Tensor:
    return torch.isinf(x)


@op("IsFinite")
def is_finite(x: Tensor) -> Tensor:
    return torch.isfinite(x)
