"""Batch normalisation, local response normalisation, softmax.

The fused batch normalisations give, besides the normalised values, what TensorFlow's CPU kernel gives:

                     is_training                                          not is_training
    batch_mean       mean of the batch, mixed with `mean` by              `mean`
                     exponential_avg_factor if that is not 1
    batch_variance   the same, with Bessel's correction                   `variance`
    reserve_space_1  mean of the batch                                    `mean`; undefined in TensorFlow
    reserve_space_2  variance of the batch, not corrected                 `variance`; undefined in TensorFlow
    reserve_space_3  a number without meaning                             a number without meaning

As in TensorFlow, only `y` has gradients, with respect to `x`, `scale` and `offset`. Statistics of half precision are
computed in float32.

Source: tensorflow/core/kernels/fused_batch_norm_op.cc.
"""

import torch
import torch.nn.functional as F

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.limits import check_shape_of, is_empty
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.sliding import axes_without_channels, channel_axis, per_channel
from torch_tfckpt.graph_ops.values import Ints, Tensor

_OUTPUTS = ("y", "batch_mean", "batch_variance", "reserve_space_1", "reserve_space_2")
_SLOPES = ("x_backprop", "scale_backprop", "offset_backprop")
Five = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@op("FusedBatchNorm", "FusedBatchNormV2", outputs=_OUTPUTS)
def fused_batch_norm(
    x: Tensor,
    scale: Tensor,
    offset: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float = 0.0001,
    exponential_avg_factor: float = 1.0,
    data_format: str = "NHWC",
    is_training: bool = True,
) -> Five:
    _check(x, data_format, scale=scale, offset=offset)
    if not is_training or exponential_avg_factor != 1:
        _check(x, data_format, mean=mean, variance=variance)
    mean, variance = mean.detach(), variance.detach()
    if is_empty(x.shape):  # as TensorFlow: not a number
        nothing = torch.full_like(scale, float("nan"))
        return x.clone(), nothing, nothing, scale.new_zeros(scale.shape), scale.new_zeros(scale.shape)
    if not is_training:
        y = _normalised(x, scale, offset, mean, variance, epsilon, data_format)
        return y, mean, variance, mean, variance
    wide = x.to(torch.promote_types(x.dtype, scale.dtype))
    axes = axes_without_channels(data_format, x.dim())
    batch_variance, batch_mean = torch.var_mean(wide, axes, correction=0)
    y = _normalised(wide, scale, offset, batch_mean, batch_variance, epsilon, data_format).to(x.dtype)
    batch_mean, batch_variance = batch_mean.detach(), batch_variance.detach()
    count = x.numel() // scale.shape[0]
    others = torch.sym_max(count - 1, 1)  # type: ignore[no-untyped-call]
    corrected = batch_variance * (count / others)
    factor = exponential_avg_factor
    if factor == 1:
        return y, batch_mean, corrected, batch_mean, batch_variance
    moved = [(1 - factor) * old + factor * new for old, new in ((mean, batch_mean), (variance, corrected))]
    return y, moved[0], moved[1], batch_mean, batch_variance


@op("FusedBatchNormV3", outputs=(*_OUTPUTS, "reserve_space_3"))
def fused_batch_norm_v3(
    x: Tensor,
    scale: Tensor,
    offset: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float = 0.0001,
    exponential_avg_factor: float = 1.0,
    data_format: str = "NHWC",
    is_training: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    found = fused_batch_norm(
        x,
        scale,
        offset,
        mean,
        variance,
        epsilon=epsilon,
        exponential_avg_factor=exponential_avg_factor,
        data_format=data_format,
        is_training=is_training,
    )
    return (*found, scale.new_zeros(()))


@op("FusedBatchNormGrad", "FusedBatchNormGradV2", outputs=(*_SLOPES, "reserve_space_3", "reserve_space_4"))
def fused_batch_norm_grad(
    y_backprop: Tensor,
    x: Tensor,
    scale: Tensor,
    reserve_space_1: Tensor,
    reserve_space_2: Tensor,
    *,
    epsilon: float = 0.0001,
    data_format: str = "NHWC",
    is_training: bool = True,
) -> Five:
    if y_backprop.shape != x.shape:
        raise InvalidArgumentError(f"y_backprop and x differ in shape: {list(y_backprop.shape)} and {list(x.shape)}")
    _check(x, data_format, scale=scale, reserve_space_1=reserve_space_1, reserve_space_2=reserve_space_2)
    axes = axes_without_channels(data_format, x.dim())
    slope, wide = y_backprop.to(scale.dtype), x.to(scale.dtype)
    mean, variance = (per_channel(each, data_format, x.dim()) for each in (reserve_space_1, reserve_space_2))
    inverse = torch.rsqrt(variance + epsilon)
    centered = (wide - mean) * inverse
    scale_backprop, offset_backprop = (slope * centered).sum(axes), slope.sum(axes)
    of_x = slope
    if is_training:
        of_x = slope - slope.mean(axes, keepdim=True) - centered * (slope * centered).mean(axes, keepdim=True)
    x_backprop = of_x * (inverse * per_channel(scale, data_format, x.dim()))
    nothing = scale.new_zeros(0)
    return x_backprop.to(x.dtype), scale_backprop, offset_backprop, nothing, nothing


@op("FusedBatchNormGradV3", outputs=(*_SLOPES, "reserve_space_4", "reserve_space_5"))
def fused_batch_norm_grad_v3(
    y_backprop: Tensor,
    x: Tensor,
    scale: Tensor,
    reserve_space_1: Tensor,
    reserve_space_2: Tensor,
    reserve_space_3: Tensor,
    *,
    epsilon: float = 0.0001,
    data_format: str = "NHWC",
    is_training: bool = True,
) -> Five:
    return fused_batch_norm_grad(
        y_backprop,
        x,
        scale,
        reserve_space_1,
        reserve_space_2,
        epsilon=epsilon,
        data_format=data_format,
        is_training=is_training,
    )


@op("BatchNormWithGlobalNormalization")
def batch_norm_with_global_normalization(
    t: Tensor,
    m: Tensor,
    v: Tensor,
    beta: Tensor,
    gamma: Tensor,
    *,
    variance_epsilon: float,
    scale_after_normalization: bool,
) -> Tensor:
    _check(t, "NHWC", m=m, v=v, beta=beta, gamma=gamma)
    inverse = torch.rsqrt(v + variance_epsilon)
    if scale_after_normalization:
        inverse = inverse * gamma
    return t * inverse + (beta - m * inverse)


@op("LRN")
def local_response_normalization(
    input: Tensor, *, depth_radius: int = 5, bias: float = 1.0, alpha: float = 1.0, beta: float = 0.5
) -> Tensor:
    return input * torch.pow(_response(input, depth_radius, bias, alpha), -beta)


@op("LRNGrad")
def local_response_normalization_grad(
    input_grads: Tensor,
    input_image: Tensor,
    output_image: Tensor,
    *,
    depth_radius: int = 5,
    bias: float = 1.0,
    alpha: float = 1.0,
    beta: float = 0.5,
) -> Tensor:
    if not input_grads.shape == input_image.shape == output_image.shape:
        shapes = [list(each.shape) for each in (input_grads, input_image, output_image)]
        raise InvalidArgumentError(f"input_grads, input_image and output_image differ in shape: {shapes}")
    response = _response(input_image, depth_radius, bias, alpha)
    spread = _window_sums(input_grads * output_image / response, depth_radius)
    return input_grads * torch.pow(response, -beta) - 2 * alpha * beta * input_image * spread


@op("Softmax")
def softmax(logits: Tensor) -> Tensor:
    _check_matrix(logits)
    return torch.softmax(logits, -1)


@op("LogSoftmax")
def log_softmax(logits: Tensor) -> Tensor:
    _check_matrix(logits)
    return torch.log_softmax(logits, -1)


def _check(x: Tensor, data_format: str, **vectors: Tensor) -> None:
    if x.dim() not in (4, 5):
        raise InvalidArgumentError(f"expected a tensor of rank 4 or 5, found the shape {list(x.shape)}")
    channels = x.shape[channel_axis(data_format, x.dim())]
    for name, vector in vectors.items():
        check_shape_of(name, vector, (channels,))


def _normalised(
    x: Tensor, scale: Tensor, offset: Tensor, mean: Tensor, variance: Tensor, epsilon: float, data_format: str
) -> Tensor:
    """One multiplication and addition per element: half the time of torch's batch_norm on a CPU."""
    factor = scale * torch.rsqrt(variance + epsilon)
    shift = offset - mean * factor
    factor, shift = (per_channel(each, data_format, x.dim()) for each in (factor, shift))
    return torch.addcmul(shift, x.to(factor.dtype), factor).to(x.dtype)


def _response(input: Tensor, depth_radius: int, bias: float, alpha: float) -> Tensor:
    if input.dim() != 4:
        raise InvalidArgumentError(f"expected a tensor of rank 4, found the shape {list(input.shape)}")
    if depth_radius < 0:
        raise InvalidArgumentError(f"depth_radius is {depth_radius}, which must not be negative")
    return bias + alpha * _window_sums(input * input, depth_radius)


def _window_sums(x: Tensor, depth_radius: int) -> Tensor:
    """Sum over the channels that are at most `depth_radius` away."""
    radius = min(depth_radius, max(x.shape[-1] - 1, 0))  # windows of a larger radius hold the same channels
    rows: Ints = (1, -1, x.shape[-1])
    if 0 in x.shape:
        return x
    sums = F.avg_pool1d(x.reshape(rows), 2 * radius + 1, 1, radius) * (2 * radius + 1)
    return sums.reshape(x.shape)


def _check_matrix(logits: Tensor) -> None:
    if logits.dim() < 1:
        raise InvalidArgumentError("logits must have at least one dimension, found a number")
