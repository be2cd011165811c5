"""Fake quantisation: floats rounded to the levels that an integer of `num_bits` would have.

    lowest level   narrow_range ? 1 : 0
    highest level  2 ** num_bits - 1
    scale          (max - min) / (highest - lowest)
    zero point     lowest - min / scale, rounded to the nearest level ("nudged")
    nudged range   (lowest - zero point) * scale ... (highest - zero point) * scale
    result         floor((clamp(x) - nudged min) / scale - zero point + 0.5) * scale

The gradient passes inside the nudged range; outside it goes to `min` or `max`.

Source: tensorflow/core/kernels/fake_quant_ops_functor.h.
"""

from typing import Final, NamedTuple

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.values import Tensor

_SLOPES = ("backprops_wrt_input", "backprop_wrt_min", "backprop_wrt_max")
MIN_BITS: Final = 2
MAX_BITS: Final = 16


@op("FakeQuantWithMinMaxArgs")
def fake_quant_args(
    inputs: Tensor, *, min: float = -6.0, max: float = 6.0, num_bits: int = 8, narrow_range: bool = False
) -> Tensor:
    _check(num_bits)
    return _quantised(inputs, *_limits(inputs, min, max), num_bits, narrow_range)


@op("FakeQuantWithMinMaxVars")
def fake_quant_vars(
    inputs: Tensor, min: Tensor, max: Tensor, *, num_bits: int = 8, narrow_range: bool = False
) -> Tensor:
    _check(num_bits)
    return _quantised(inputs, _number("min", min), _number("max", max), num_bits, narrow_range, divide=True)


@op("FakeQuantWithMinMaxVarsPerChannel")
def fake_quant_channels(
    inputs: Tensor, min: Tensor, max: Tensor, *, num_bits: int = 8, narrow_range: bool = False
) -> Tensor:
    _check(num_bits)
    _check_channels(inputs, min, max)
    return _quantised(inputs, min, max, num_bits, narrow_range)


@op("FakeQuantWithMinMaxArgsGradient")
def fake_quant_args_gradient(
    gradients: Tensor,
    inputs: Tensor,
    *,
    min: float = -6.0,
    max: float = 6.0,
    num_bits: int = 8,
    narrow_range: bool = False,
) -> Tensor:
    _check(num_bits)
    _check_slope(gradients, inputs)
    return _slopes(gradients, inputs, *_limits(inputs, min, max), num_bits, narrow_range)[0]


@op("FakeQuantWithMinMaxVarsGradient", outputs=_SLOPES)
def fake_quant_vars_gradient(
    gradients: Tensor, inputs: Tensor, min: Tensor, max: Tensor, *, num_bits: int = 8, narrow_range: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    _check(num_bits)
    _check_slope(gradients, inputs)
    inside, below, above = _slopes(gradients, inputs, _number("min", min), _number("max", max), num_bits, narrow_range)
    return inside, below.sum(), above.sum()


@op("FakeQuantWithMinMaxVarsPerChannelGradient", outputs=_SLOPES)
def fake_quant_channels_gradient(
    gradients: Tensor, inputs: Tensor, min: Tensor, max: Tensor, *, num_bits: int = 8, narrow_range: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    _check(num_bits)
    _check_slope(gradients, inputs)
    _check_channels(inputs, min, max)
    inside, below, above = _slopes(gradients, inputs, min, max, num_bits, narrow_range)
    return inside, below.reshape(-1, min.shape[0]).sum(0), above.reshape(-1, min.shape[0]).sum(0)


class _NudgedRange(NamedTuple):
    """The nudged range of one quantisation, or of one for each channel.

    Attributes:
        low: Value of the lowest level.
        high: Value of the highest level.
        scale: Distance of levels.
        inverse: Levels per unit.
        is_zero: Whether min and max are both 0: the result is 0, and the gradient passes everywhere.
    """

    low: Tensor
    high: Tensor
    scale: Tensor
    inverse: Tensor
    is_zero: Tensor

    @classmethod
    def of(cls, min: Tensor, max: Tensor, num_bits: int, narrow_range: bool) -> "_NudgedRange":
        lowest, highest = (1.0 if narrow_range else 0.0), float(2**num_bits - 1)
        is_zero = (min == 0) & (max == 0)
        width = torch.where(is_zero, 1, max - min)
        scale = width / (highest - lowest)
        zero_point = torch.clamp(torch.floor(lowest - min / scale + 0.5), lowest, highest)
        low, high = (lowest - zero_point) * scale, (highest - zero_point) * scale
        return cls(low, high, scale, (highest - lowest) / width, is_zero)


def _quantised(
    inputs: Tensor, min: Tensor, max: Tensor, num_bits: int, narrow_range: bool, divide: bool = False
) -> Tensor:
    """Round; `divide` by the scale or multiply by its inverse, as TensorFlow does for the operation."""
    nudged = _NudgedRange.of(min.detach(), max.detach(), num_bits, narrow_range)
    low, high, scale, inverse, is_zero = nudged
    shifted = torch.clamp(inputs.detach(), low, high) - low
    levels = torch.floor((shifted / scale if divide else shifted * inverse) - torch.floor(0.5 - low * inverse) + 0.5)
    rounded = torch.where(is_zero, 0, levels * scale)
    if not (inputs.requires_grad or min.requires_grad or max.requires_grad):
        return rounded
    passed = torch.where((inputs < low) & ~is_zero, min, torch.where((inputs > high) & ~is_zero, max, inputs))
    return rounded + (passed - passed.detach())  # adds zero, with a gradient


def _slopes(
    gradients: Tensor, inputs: Tensor, min: Tensor, max: Tensor, num_bits: int, narrow_range: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the parts of the gradients that go to the inputs, to min and to max."""
    low, high, _, _, is_zero = _NudgedRange.of(min, max, num_bits, narrow_range)
    below, above = (inputs < low) & ~is_zero, (inputs > high) & ~is_zero
    return gradients * ~(below | above), gradients * below, gradients * above


def _check(num_bits: int) -> None:
    if not MIN_BITS <= num_bits <= MAX_BITS:
        raise InvalidArgumentError(f"num_bits is {num_bits}, expected {MIN_BITS} to {MAX_BITS}")


def _check_slope(gradients: Tensor, inputs: Tensor) -> None:
    if gradients.shape != inputs.shape:
        raise InvalidArgumentError(
            f"gradients and inputs differ in shape: {list(gradients.shape)} and {list(inputs.shape)}"
        )


def _limits(inputs: Tensor, min: float, max: float) -> tuple[Tensor, Tensor]:
    if not min < max:
        raise InvalidArgumentError(f"min is {min}, which must be less than max, {max}")
    return inputs.new_tensor(min), inputs.new_tensor(max)


def _number(name: str, value: Tensor) -> Tensor:
    if value.dim() != 0:
        raise InvalidArgumentError(f"{name} must be one number, found the shape {list(value.shape)}")
    return value


def _check_channels(inputs: Tensor, min: Tensor, max: Tensor) -> None:
    expected = tuple(inputs.shape[-1:])
    for name, limits in (("min", min), ("max", max)):
        if not expected or tuple(limits.shape) != expected:
            raise InvalidArgumentError(f"{name} has the shape {list(limits.shape)}, expected {list(expected)}")
