"""Pools, and their gradients as operations.

Padding never counts: a largest value is never a padded one, and an average divides by the number of real elements.
If several elements of a window are largest, the first one gets the gradient.

Source: tensorflow/core/ops/nn_ops.cc, kernels/maxpooling_op.cc.
"""

import math
from collections.abc import Callable
from typing import Final

import torch
import torch.nn.functional as F

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.limits import check_shape_of, check_size, is_empty
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.sliding import (
    Windows,
    as_format,
    ceil_div,
    channel_axis,
    channels_first,
    is_channels_first,
    spatial,
)
from torch_tfckpt.graph_ops.values import Ints, Tensor

_MAX: Final[dict[int, Callable[..., Tensor]]] = {2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE: Final[dict[int, Callable[..., Tensor]]] = {2: F.avg_pool2d, 3: F.avg_pool3d}


@op("MaxPool")
def max_pool(
    input: Tensor,
    *,
    ksize: Ints,
    strides: Ints,
    padding: str,
    explicit_paddings: Ints = (),
    data_format: str = "NHWC",
) -> Tensor:
    channels = channel_axis(data_format, len(ksize))
    if len(ksize) == len(strides) == input.dim() and ksize[channels] != 1:
        return _max_of_channels(input.movedim(channels, -1), ksize, strides, channels).movedim(-1, channels)
    return _max(input, ksize, strides, padding, explicit_paddings, data_format)


@op("MaxPoolV2")
def max_pool_v2(input: Tensor, ksize: Ints, strides: Ints, *, padding: str, data_format: str = "NHWC") -> Tensor:
    return max_pool(input, ksize=ksize, strides=strides, padding=padding, data_format=data_format)


@op("MaxPool3D")
def max_pool3d(input: Tensor, *, ksize: Ints, strides: Ints, padding: str, data_format: str = "NDHWC") -> Tensor:
    return _max(input, ksize, strides, padding, (), data_format)


@op("AvgPool")
def avg_pool(value: Tensor, *, ksize: Ints, strides: Ints, padding: str, data_format: str = "NHWC") -> Tensor:
    return _average(value, ksize, strides, padding, data_format)


@op("AvgPool3D")
def avg_pool3d(input: Tensor, *, ksize: Ints, strides: Ints, padding: str, data_format: str = "NDHWC") -> Tensor:
    return _average(input, ksize, strides, padding, data_format)


@op("MaxPoolWithArgmax", outputs=("output", "argmax"))
def max_pool_with_argmax(
    input: Tensor,
    *,
    ksize: Ints,
    strides: Ints,
    padding: str,
    Targmax: torch.dtype = torch.int64,
    include_batch_in_index: bool = False,
) -> tuple[Tensor, Tensor]:
    x = channels_first(input, "NHWC")
    windows = _windows(x, ksize, strides, padding, (), "NHWC")
    if is_empty(x.shape):
        raise InvalidArgumentError(f"the input must not be empty, but has the shape {list(input.shape)}")
    batch, channels, height, width = x.shape
    values, places = _with_places(x, windows)
    padded_width = windows.padded_sizes[1]
    rows = places // padded_width - windows.before[0]
    columns = places % padded_width - windows.before[1]
    if include_batch_in_index:
        rows = rows + height * torch.arange(batch, device=x.device).reshape(-1, 1, 1, 1)
    index = (rows * width + columns) * channels + torch.arange(channels, device=x.device).reshape(-1, 1, 1)
    return as_format(values, "NHWC"), as_format(index, "NHWC").to(Targmax)


@op("MaxPoolGrad")
def max_pool_grad(
    orig_input: Tensor,
    orig_output: Tensor,
    grad: Tensor,
    *,
    ksize: Ints,
    strides: Ints,
    padding: str,
    explicit_paddings: Ints = (),
    data_format: str = "NHWC",
) -> Tensor:
    return _max_slope(orig_input, orig_output, grad, ksize, strides, padding, explicit_paddings, data_format)


@op("MaxPoolGradV2")
def max_pool_grad_v2(
    orig_input: Tensor,
    orig_output: Tensor,
    grad: Tensor,
    ksize: Ints,
    strides: Ints,
    *,
    padding: str,
    data_format: str = "NHWC",
) -> Tensor:
    return _max_slope(orig_input, orig_output, grad, ksize, strides, padding, (), data_format)


@op("MaxPool3DGrad")
def max_pool3d_grad(
    orig_input: Tensor,
    orig_output: Tensor,
    grad: Tensor,
    *,
    ksize: Ints,
    strides: Ints,
    padding: str,
    data_format: str = "NDHWC",
) -> Tensor:
    return _max_slope(orig_input, orig_output, grad, ksize, strides, padding, (), data_format)


@op("MaxPoolGradWithArgmax")
def max_pool_grad_with_argmax(
    input: Tensor,
    grad: Tensor,
    argmax: Tensor,
    *,
    ksize: Ints,
    strides: Ints,
    padding: str,
    include_batch_in_index: bool = False,
) -> Tensor:
    if grad.shape != argmax.shape:
        raise InvalidArgumentError(f"grad and argmax differ in shape: {list(grad.shape)} and {list(argmax.shape)}")
    places = argmax.long()
    if not include_batch_in_index:
        each = math.prod(input.shape[1:])
        places = places + each * torch.arange(input.shape[0], device=input.device).reshape(-1, 1, 1, 1)
    flat = grad.new_zeros(input.numel()).scatter_add(0, places.reshape(-1), grad.reshape(-1))
    return flat.reshape(input.shape)


@op("AvgPoolGrad")
def avg_pool_grad(
    orig_input_shape: Ints, grad: Tensor, *, ksize: Ints, strides: Ints, padding: str, data_format: str = "NHWC"
) -> Tensor:
    return _average_slope(orig_input_shape, grad, ksize, strides, padding, data_format)


@op("AvgPool3DGrad")
def avg_pool3d_grad(
    orig_input_shape: Ints, grad: Tensor, *, ksize: Ints, strides: Ints, padding: str, data_format: str = "NDHWC"
) -> Tensor:
    return _average_slope(orig_input_shape, grad, ksize, strides, padding, data_format)


@op("Dilation2D")
def dilation2d(input: Tensor, filter: Tensor, *, strides: Ints, rates: Ints, padding: str) -> Tensor:
    if filter.dim() != 3 or filter.shape[2] != input.shape[-1]:
        raise InvalidArgumentError(
            f"a filter of the shape {list(filter.shape)} does not fit an input of the shape {list(input.shape)}"
        )
    x = channels_first(input, "NHWC")
    steps, distances = spatial(strides, "NHWC", "strides"), spatial(rates, "NHWC", "rates")
    windows = Windows.of(x.shape[2:], filter.shape[:2], steps, padding, distances)
    is_float = input.is_floating_point()
    # Integers leave room below for the filter to be added to the padding.
    padded = windows.fully_padded(x if is_float else x.long(), _lowest(x.dtype) if is_float else -(1 << 40))
    rows, columns = windows.counts
    reach = [(count - 1) * stride + 1 for count, stride in zip((rows, columns), steps, strict=True)]
    moved = []
    for down in range(filter.shape[0]):
        for right in range(filter.shape[1]):
            top, left = down * distances[0], right * distances[1]
            part = padded[:, :, top : top + reach[0] : steps[0], left : left + reach[1] : steps[1]]
            moved.append(part + filter[down, right].reshape(-1, 1, 1))
    return as_format(torch.stack(moved).max(0).values, "NHWC").to(input.dtype)


def _windows(x: Tensor, ksize: Ints, strides: Ints, padding: str, explicit: Ints, data_format: str) -> Windows:
    kernel, steps = spatial(ksize, data_format, "ksize"), spatial(strides, data_format, "strides")
    return Windows.of(x.shape[2:], kernel, steps, padding, explicit=explicit, data_format=data_format)


def _lowest(dtype: torch.dtype) -> float:
    return -math.inf if dtype.is_floating_point else torch.iinfo(dtype).min


def _torch_padding(windows: Windows) -> tuple[Ints, bool] | None:
    """Return the padding and ceil_mode with which torch has these windows, or None if it has not."""
    pads = windows.before
    if any(2 * pad > kernel for pad, kernel in zip(pads, windows.kernel, strict=True)):
        return None
    if windows.before == windows.after:
        return pads, False
    by_ceiling = tuple(
        ceil_div(size + 2 * pad - kernel, stride) + 1
        for size, pad, kernel, stride in zip(windows.sizes, pads, windows.kernel, windows.strides, strict=True)
    )
    return (pads, True) if by_ceiling == windows.counts else None


def _max(input: Tensor, ksize: Ints, strides: Ints, padding: str, explicit: Ints, data_format: str) -> Tensor:
    x = channels_first(input, data_format)
    windows = _windows(x, ksize, strides, padding, explicit, data_format)
    if windows.is_empty or 0 in x.shape[1:]:
        return as_format(x.new_zeros((*x.shape[:2], *windows.counts)), data_format)
    known = _torch_padding(windows)
    if not x.is_floating_point():
        y = windows.fully_padded(x, _lowest(x.dtype))
        for axis, (kernel, stride) in enumerate(zip(windows.kernel, windows.strides, strict=True)):
            y = y.unfold(axis + 2, kernel, stride).amax(-1)
    elif known is None:
        y = _MAX[len(windows.sizes)](windows.fully_padded(x, -math.inf), windows.kernel, windows.strides)
    else:
        pads, ceil_mode = known
        y = _MAX[len(windows.sizes)](x, windows.kernel, windows.strides, pads, 1, ceil_mode)
    return as_format(y, data_format)


def _max_of_channels(x: Tensor, ksize: Ints, strides: Ints, channels: int) -> Tensor:
    """Pool the last axis; TensorFlow pools channels only alone, and without overlap."""
    window, others = ksize[channels], [*ksize[:channels], *ksize[channels + 1 :]]
    steps = [*strides[:channels], *strides[channels + 1 :]]
    if window < 1 or strides[channels] != window or x.shape[-1] % window or {*others, *steps} != {1}:
        raise InvalidArgumentError(
            f"ksize {list(ksize)} and strides {list(strides)}: channels, of which there are {x.shape[-1]}, can only be "
            f"pooled alone, without overlap and remainder"
        )
    return x.reshape(*x.shape[:-1], x.shape[-1] // window, window).max(-1).values


def _average(input: Tensor, ksize: Ints, strides: Ints, padding: str, data_format: str) -> Tensor:
    x = channels_first(input, data_format)
    windows = _windows(x, ksize, strides, padding, (), data_format)
    if windows.is_empty or 0 in x.shape[1:]:
        return as_format(x.new_zeros((*x.shape[:2], *windows.counts)), data_format)
    average = _AVERAGE[len(windows.sizes)]
    known = _torch_padding(windows)
    if known is None:
        y = average(windows.fully_padded(x), windows.kernel, windows.strides, divisor_override=1)
        return as_format(y / _real_elements(windows, x), data_format)
    pads, ceil_mode = known
    y = average(x, windows.kernel, windows.strides, pads, ceil_mode, count_include_pad=False)
    return as_format(y, data_format)


def _real_elements(windows: Windows, like: Tensor) -> Tensor:
    """Return how many elements of each window are not padding, as [1, 1, *counts]."""
    ones = windows.fully_padded(like.new_ones((1, 1, *windows.sizes)))
    return _AVERAGE[len(windows.sizes)](ones, windows.kernel, windows.strides, divisor_override=1)


def _with_places(x: Tensor, windows: Windows) -> tuple[Tensor, Tensor]:
    """Return the largest values of the windows, and where they are in the padded [height, width]."""
    padded = windows.fully_padded(x if x.is_floating_point() else x.double(), -math.inf)
    if 0 in windows.counts or 0 in x.shape:
        empty = x.new_zeros((*x.shape[:2], *windows.counts))
        return empty, empty.long()
    pool = F.max_pool2d if len(windows.sizes) == 2 else F.max_pool3d
    values, places = pool(padded, windows.kernel, windows.strides, return_indices=True)
    return values.to(x.dtype), places


def _max_slope(
    orig_input: Tensor,
    orig_output: Tensor,
    grad: Tensor,
    ksize: Ints,
    strides: Ints,
    padding: str,
    explicit: Ints,
    data_format: str,
) -> Tensor:
    x, slope = channels_first(orig_input, data_format), channels_first(grad, data_format)
    windows = _windows(x, ksize, strides, padding, explicit, data_format)
    check_shape_of("grad with channels first", slope, (*x.shape[:2], *windows.counts))
    if orig_output.shape != grad.shape:
        raise InvalidArgumentError(
            f"orig_output has the shape {list(orig_output.shape)}, expected that of grad, {list(grad.shape)}"
        )
    _, places = _with_places(x.detach(), windows)
    sizes = windows.padded_sizes
    flat = slope.new_zeros((*x.shape[:2], math.prod(sizes)))
    spread = flat.scatter_add(2, places.reshape(*x.shape[:2], -1), slope.reshape(*x.shape[:2], -1))
    return as_format(_cut(spread.reshape(*x.shape[:2], *sizes), windows), data_format)


def _average_slope(sizes: Ints, grad: Tensor, ksize: Ints, strides: Ints, padding: str, data_format: str) -> Tensor:
    slope = channels_first(grad, data_format)
    if len(sizes) != len(data_format):
        raise InvalidArgumentError(f"orig_input_shape is {list(sizes)}, expected {len(data_format)} sizes")
    check_size(sizes)
    shape = sizes if is_channels_first(data_format) else (sizes[0], sizes[-1], *sizes[1:-1])
    windows = _windows(slope.new_zeros(1).expand(shape), ksize, strides, padding, (), data_format)
    check_shape_of("grad with channels first", slope, (*shape[:2], *windows.counts))
    if 0 in shape or windows.is_empty:
        return as_format(slope.new_zeros(shape), data_format)
    each = slope / _real_elements(windows, slope)
    like = slope.new_zeros(1).expand(*shape[:2], *windows.padded_sizes)
    kernel, steps = list(windows.kernel), list(windows.strides)
    backward = torch.ops.aten.avg_pool2d_backward if len(windows.sizes) == 2 else torch.ops.aten.avg_pool3d_backward
    return as_format(_cut(backward(each, like, kernel, steps, [0], False, True, 1), windows), data_format)


def _cut(x: Tensor, windows: Windows) -> Tensor:
    """Remove the padding."""
    for axis, (before, size) in enumerate(zip(windows.before, windows.sizes, strict=True)):
        x = x.narrow(axis + 2, before, size)
    return x
