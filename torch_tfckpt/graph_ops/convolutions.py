"""Convolutions, their gradients as operations, and BiasAdd.

Filters are [height, width, input channels / groups, output channels], those of depthwise convolutions [height, width,
input channels, multiplier]. Each is permuted to torch's order as a view. A filter whose memory is already that of a
torch filter in channels_last (`filter.permute(3, 2, 0, 1)`) therefore costs nothing, and any other one copy a call.

Gradients with respect to the input are transposed convolutions, for which Keras and tf.layers use them.

Source: tensorflow/core/ops/nn_ops.cc.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.axes import torch_pads
from torch_tfckpt.graph_ops.limits import check_shape_of, check_size, is_empty
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.sliding import (
    Windows,
    as_format,
    axes_without_channels,
    channel_axis,
    channels_first,
    is_channels_first,
    per_channel,
    spatial,
)
from torch_tfckpt.graph_ops.values import Ints, Tensor

_FORWARD: Final[dict[int, Callable[..., Tensor]]] = {2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: Final[dict[int, Callable[..., Tensor]]] = {2: F.conv_transpose2d, 3: F.conv_transpose3d}


@op("BiasAdd")
def bias_add(value: Tensor, bias: Tensor, *, data_format: str = "NHWC") -> Tensor:
    if bias.dim() != 1:
        raise InvalidArgumentError(f"bias must be a vector, found the shape {list(bias.shape)}")
    if value.dim() < 2 or value.shape[channel_axis(data_format, value.dim())] != bias.shape[0]:
        raise InvalidArgumentError(
            f"a bias of the shape {list(bias.shape)} does not fit a value of the shape {list(value.shape)}"
        )
    return value + per_channel(bias, data_format, value.dim())


@op("BiasAddV1")
def bias_add_v1(value: Tensor, bias: Tensor) -> Tensor:
    return bias_add(value, bias)


@op("BiasAddGrad")
def bias_add_grad(out_backprop: Tensor, *, data_format: str = "NHWC") -> Tensor:
    if out_backprop.dim() < 2:
        raise InvalidArgumentError(f"expected at least two dimensions, found the shape {list(out_backprop.shape)}")
    return out_backprop.sum(axes_without_channels(data_format, out_backprop.dim()), dtype=out_backprop.dtype)


@op("Conv2D")
def conv2d(
    input: Tensor,
    filter: Tensor,
    *,
    strides: Ints,
    padding: str,
    explicit_paddings: Ints = (),
    data_format: str = "NHWC",
    dilations: Ints = (1, 1, 1, 1),
) -> Tensor:
    return convolve(input, torch_filter(filter), strides, padding, explicit_paddings, data_format, dilations)


@op("Conv3D")
def conv3d(
    input: Tensor,
    filter: Tensor,
    *,
    strides: Ints,
    padding: str,
    data_format: str = "NDHWC",
    dilations: Ints = (1, 1, 1, 1, 1),
) -> Tensor:
    return convolve(input, torch_filter(filter), strides, padding, (), data_format, dilations)


@op("DepthwiseConv2dNative")
def depthwise_conv2d(
    input: Tensor,
    filter: Tensor,
    *,
    strides: Ints,
    padding: str,
    explicit_paddings: Ints = (),
    data_format: str = "NHWC",
    dilations: Ints = (1, 1, 1, 1),
) -> Tensor:
    channels = channels_first(input, data_format).shape[1]
    if filter.dim() != 4 or filter.shape[2] != channels:
        raise InvalidArgumentError(
            f"a depthwise filter of the shape {list(filter.shape)} does not fit {channels} channels"
        )
    weight = torch_depthwise_filter(filter)
    return convolve(input, weight, strides, padding, explicit_paddings, data_format, dilations)


@op("Conv2DBackpropInput")
def conv2d_backprop_input(
    input_sizes: Ints,
    filter: Tensor,
    out_backprop: Tensor,
    *,
    strides: Ints,
    padding: str,
    explicit_paddings: Ints = (),
    data_format: str = "NHWC",
    dilations: Ints = (1, 1, 1, 1),
) -> Tensor:
    weight = torch_filter(filter)
    inner, groups = input_sizes, 1  # of two sizes: height and width only
    if len(input_sizes) != 2:
        inner, groups = _inner(input_sizes, data_format), _groups(_channels(input_sizes, data_format), weight)
    _check_batch(input_sizes, out_backprop)
    return _transpose(inner, weight, out_backprop, groups, strides, padding, explicit_paddings, data_format, dilations)


@op("Conv2DBackpropInputV2")
def conv2d_backprop_input_v2(
    input: Tensor,
    filter: Tensor,
    out_backprop: Tensor,
    *,
    strides: Ints,
    padding: str,
    explicit_paddings: Ints = (),
    data_format: str = "NHWC",
    dilations: Ints = (1, 1, 1, 1),
) -> Tensor:
    return conv2d_backprop_input(
        tuple(input.shape),
        filter,
        out_backprop,
        strides=strides,
        padding=padding,
        explicit_paddings=explicit_paddings,
        data_format=data_format,
        dilations=dilations,
    )


@op("Conv3DBackpropInputV2")
def conv3d_backprop_input(
    input_sizes: Ints,
    filter: Tensor,
    out_backprop: Tensor,
    *,
    strides: Ints,
    padding: str,
    data_format: str = "NDHWC",
    dilations: Ints = (1, 1, 1, 1, 1),
) -> Tensor:
    weight = torch_filter(filter)
    groups = _groups(_channels(input_sizes, data_format), weight)
    _check_batch(input_sizes, out_backprop)
    inner = _inner(input_sizes, data_format)
    return _transpose(inner, weight, out_backprop, groups, strides, padding, (), data_format, dilations)


@op("DepthwiseConv2dNativeBackpropInput")
def depthwise_backprop_input(
    input_sizes: Ints,
    filter: Tensor,
    out_backprop: Tensor,
    *,
    strides: Ints,
    padding: str,
    explicit_paddings: Ints = (),
    data_format: str = "NHWC",
    dilations: Ints = (1, 1, 1, 1),
) -> Tensor:
    weight = torch_depthwise_filter(filter)
    groups = _channels(input_sizes, data_format)
    _check_batch(input_sizes, out_backprop)
    inner = _inner(input_sizes, data_format)
    return _transpose(inner, weight, out_backprop, groups, strides, padding, explicit_paddings, data_format, dilations)


@op("Conv2DBackpropFilter")
def conv2d_backprop_filter(
    input: Tensor,
    filter_sizes: Ints,
    out_backprop: Tensor,
    *,
    strides: Ints,
    padding: str,
    explicit_paddings: Ints = (),
    data_format: str = "NHWC",
    dilations: Ints = (1, 1, 1, 1),
) -> Tensor:
    slope = _filter_slope(
        input, _torch_order(filter_sizes), out_backprop, strides, padding, explicit_paddings, data_format, dilations
    )
    return slope.permute(2, 3, 1, 0)


@op("Conv2DBackpropFilterV2")
def conv2d_backprop_filter_v2(
    input: Tensor,
    filter: Tensor,
    out_backprop: Tensor,
    *,
    strides: Ints,
    padding: str,
    explicit_paddings: Ints = (),
    data_format: str = "NHWC",
    dilations: Ints = (1, 1, 1, 1),
) -> Tensor:
    return conv2d_backprop_filter(
        input,
        tuple(filter.shape),
        out_backprop,
        strides=strides,
        padding=padding,
        explicit_paddings=explicit_paddings,
        data_format=data_format,
        dilations=dilations,
    )


@op("Conv3DBackpropFilterV2")
def conv3d_backprop_filter(
    input: Tensor,
    filter_sizes: Ints,
    out_backprop: Tensor,
    *,
    strides: Ints,
    padding: str,
    data_format: str = "NDHWC",
    dilations: Ints = (1, 1, 1, 1, 1),
) -> Tensor:
    slope = _filter_slope(input, _torch_order(filter_sizes), out_backprop, strides, padding, (), data_format, dilations)
    return slope.permute(2, 3, 4, 1, 0)


@op("DepthwiseConv2dNativeBackpropFilter")
def depthwise_backprop_filter(
    input: Tensor,
    filter_sizes: Ints,
    out_backprop: Tensor,
    *,
    strides: Ints,
    padding: str,
    explicit_paddings: Ints = (),
    data_format: str = "NHWC",
    dilations: Ints = (1, 1, 1, 1),
) -> Tensor:
    if len(filter_sizes) != 4:
        raise InvalidArgumentError(f"filter_sizes is {list(filter_sizes)}, expected four sizes")
    height, width, channels, multiplier = filter_sizes
    slope = _filter_slope(
        input,
        (channels * multiplier, 1, height, width),
        out_backprop,
        strides,
        padding,
        explicit_paddings,
        data_format,
        dilations,
    )
    return slope.reshape(channels, multiplier, height, width).permute(2, 3, 0, 1)


def torch_filter(filter: Tensor) -> Tensor:
    """[*kernel, in / groups, out] -> [out, in / groups, *kernel]."""
    if filter.dim() < 3:
        raise InvalidArgumentError(f"a filter cannot have the shape {list(filter.shape)}")
    return filter.movedim((-1, -2), (0, 1))


def torch_depthwise_filter(filter: Tensor) -> Tensor:
    """[height, width, channels, multiplier] -> [channels * multiplier, 1, height, width]."""
    if filter.dim() != 4:
        raise InvalidArgumentError(f"a depthwise filter cannot have the shape {list(filter.shape)}")
    height, width, channels, multiplier = filter.shape
    if multiplier == 1:
        return filter.permute(2, 3, 0, 1)
    return filter.permute(2, 3, 0, 1).reshape(channels * multiplier, 1, height, width)


def _torch_order(filter_sizes: Ints) -> Ints:
    if len(filter_sizes) < 3:
        raise InvalidArgumentError(f"filter_sizes is {list(filter_sizes)}: too few sizes")
    return (filter_sizes[-1], filter_sizes[-2], *filter_sizes[:-2])


def _groups(channels: int, weight: Tensor) -> int:
    each = weight.shape[1]
    if each == 0 or channels % each or weight.shape[0] % (channels // each or 1):
        raise InvalidArgumentError(
            f"{channels} channels cannot be divided into groups for a filter with {each} input channels and "
            f"{weight.shape[0]} output channels"
        )
    return channels // each


def _channels(sizes: Ints, data_format: str) -> int:
    if len(sizes) != len(data_format):
        raise InvalidArgumentError(f"sizes are {list(sizes)}, expected {len(data_format)} of them ({data_format})")
    return sizes[channel_axis(data_format, len(sizes))]


def _inner(sizes: Ints, data_format: str) -> Ints:
    return tuple(sizes[2:] if is_channels_first(data_format) else sizes[1:-1])


def _check_batch(sizes: Ints, out_backprop: Tensor) -> None:
    if len(sizes) == out_backprop.dim() and sizes[0] != out_backprop.shape[0]:
        raise InvalidArgumentError(
            f"input_sizes {list(sizes)} and out_backprop, of the shape {list(out_backprop.shape)}, differ in the batch"
        )


def _windows(
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Ints,
    padding: str,
    explicit: Ints,
    data_format: str,
    dilations: Ints,
) -> Windows:
    if len(sizes) != len(kernel):
        raise InvalidArgumentError(f"a filter over {list(kernel)} does not fit an input with {list(sizes)}")
    steps = spatial(strides, data_format, "strides")
    distances = spatial(dilations or (1,) * len(data_format), data_format, "dilations")
    return Windows.of(sizes, kernel, steps, padding, distances, explicit, data_format)


def convolve(
    input: Tensor,
    weight: Tensor,
    strides: Ints,
    padding: str,
    explicit: Ints,
    data_format: str,
    dilations: Ints,
    bias: Tensor | None = None,
) -> Tensor:
    """Convolve with a filter in torch's order; the groups follow from its channels."""
    x = channels_first(input, data_format)
    windows = _windows(x.shape[2:], weight.shape[2:], strides, padding, explicit, data_format, dilations)
    groups = _groups(x.shape[1], weight)
    if windows.is_empty or is_empty((groups, weight.shape[0])):
        return as_format(x.new_zeros((x.shape[0], weight.shape[0], *windows.counts)), data_format)
    padded, pads = windows.padded(x)
    of_torch = _FORWARD[len(windows.sizes)]
    y = _in_floats(lambda a, b: of_torch(a, b, bias, windows.strides, pads, windows.dilations, groups), padded, weight)
    return as_format(y, data_format)


def _transpose(
    inner: Ints,
    weight: Tensor,
    out_backprop: Tensor,
    groups: int,
    strides: Ints,
    padding: str,
    explicit: Ints,
    data_format: str,
    dilations: Ints,
) -> Tensor:
    """Return the gradient of a convolution with respect to its input, whose height and width are `inner`."""
    slope = channels_first(out_backprop, data_format)
    windows = _windows(inner, weight.shape[2:], strides, padding, explicit, data_format, dilations)
    _check_slope(slope, weight.shape[0], windows)
    shape = (slope.shape[0], weight.shape[1] * groups, *inner)
    check_size(shape)
    if windows.is_empty or 0 in inner:
        return as_format(slope.new_zeros(shape), data_format)
    starts = windows.before
    # What is missing at the end if the start is cut by `starts`, and the end as well.
    left = tuple(
        size - ((count - 1) * stride + extent - 2 * start)
        for size, count, stride, extent, start in zip(
            inner, windows.counts, windows.strides, windows.extents, starts, strict=True
        )
    )
    transpose = _TRANSPOSED[len(inner)]
    if all(0 <= extra < stride for extra, stride in zip(left, windows.strides, strict=True)):
        y = _in_floats(
            lambda a, b: transpose(a, b, None, windows.strides, starts, left, groups, windows.dilations), slope, weight
        )
        return as_format(y, data_format)
    y = _in_floats(lambda a, b: transpose(a, b, None, windows.strides, 0, 0, groups, windows.dilations), slope, weight)
    cuts = [(-start, size + start - full) for start, size, full in zip(starts, inner, y.shape[2:], strict=True)]
    return as_format(F.pad(y, torch_pads(cuts)), data_format)


def _filter_slope(
    input: Tensor,
    sizes: Ints,
    out_backprop: Tensor,
    strides: Ints,
    padding: str,
    explicit: Ints,
    data_format: str,
    dilations: Ints,
) -> Tensor:
    """Return the gradient of a convolution with respect to its filter, which has `sizes` in torch's order."""
    x, slope = channels_first(input, data_format), channels_first(out_backprop, data_format)
    windows = _windows(x.shape[2:], sizes[2:], strides, padding, explicit, data_format, dilations)
    check_size(sizes)
    _check_slope(slope, sizes[0], windows)
    placeholder = x.new_zeros(1).expand(sizes)
    groups = _groups(x.shape[1], placeholder)
    if windows.is_empty or x.shape[0] == 0:
        return x.new_zeros(sizes)
    padded, pads = windows.padded(x)
    steps, distances = list(windows.strides), list(windows.dilations)
    slopes: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        slope, padded, placeholder, None, steps, list(pads), distances, False, [0], groups, (False, True, False)
    )
    return slopes[1]


def _check_slope(slope: Tensor, channels: int, windows: Windows) -> None:
    check_shape_of("out_backprop with channels first", slope, (slope.shape[0], channels, *windows.counts))


def _in_floats(function: Callable[[Any, Any], Tensor], x: Tensor, weight: Tensor) -> Tensor:
    """Call a convolution; torch has none for integers."""
    if x.is_floating_point():
        return function(x, weight)
    return function(x.double(), weight.double()).long().to(x.dtype)
