"""A convolution with its bias, normalisation and activation in one step.

TensorFlow's graphs have a node for each. A caller who knows that the weights do not change and that no gradients are
needed may compute such a chain at once: for MobileNetV2 on one CPU thread this takes half of the time, because a large
intermediate result costs as much to allocate as to compute.

    stored_filter   a filter in the memory layout that torch's convolutions want, computed once
    folded          filter and bias that include a batch normalisation, computed once
    convolution     the convolution, with bias and activation
"""

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.convolutions import convolve, torch_depthwise_filter, torch_filter
from torch_tfckpt.graph_ops.values import Ints, Tensor
from torch_tfckpt.text import quoted

DEPTHWISE = "DepthwiseConv2dNative"


def stored_filter(filter: Tensor, operation: str = "Conv2D") -> Tensor:
    """Return the filter with the same shape and values, in the memory of a torch filter in channels_last.

    Args:
        filter: Of Conv2D, or of DepthwiseConv2dNative.
        operation: Name of the operation that reads it.
    """
    weight = _in_torch_order(filter, operation)
    stored = weight.contiguous(memory_format=torch.channels_last)
    if operation != DEPTHWISE:
        return stored.permute(2, 3, 1, 0)
    height, width, channels, multiplier = filter.shape
    return stored.reshape(channels, multiplier, height, width).permute(2, 3, 0, 1)


def folded(
    filter: Tensor,
    scale: Tensor,
    offset: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float,
    bias: Tensor | None = None,
    operation: str = "Conv2D",
) -> tuple[Tensor, Tensor]:
    """Return a filter and a bias which do what the convolution and a FusedBatchNorm after it do, out of training.

    Args:
        filter: Of Conv2D, or of DepthwiseConv2dNative.
        scale: With `offset`, `mean` and `variance`, the inputs of FusedBatchNorm.
        offset: See `scale`.
        mean: See `scale`.
        variance: See `scale`.
        epsilon: The attribute of FusedBatchNorm.
        bias: Of a BiasAdd between the two.
        operation: Name of the convolution.

    Returns:
        The filter in the shape of the old one, stored as by `stored_filter`, and the bias.
    """
    factor = scale * torch.rsqrt(variance + epsilon)
    shift = offset + ((0 if bias is None else bias) - mean) * factor
    of_filter = factor.reshape(filter.shape[-2:]) if operation == DEPTHWISE else factor
    return stored_filter(filter * of_filter, operation), shift


def convolution(
    input: Tensor,
    filter: Tensor,
    bias: Tensor | None = None,
    *,
    operation: str = "Conv2D",
    activation: str = "",
    strides: Ints,
    padding: str,
    explicit_paddings: Ints = (),
    data_format: str = "NHWC",
    dilations: Ints = (1, 1, 1, 1),
) -> Tensor:
    """Convolve, add the bias and apply the activation: "", "Relu" or "Relu6"."""
    weight = _in_torch_order(filter, operation)
    y = convolve(input, weight, strides, padding, explicit_paddings, data_format, dilations, bias)
    in_place = not y.requires_grad  # the result is not used elsewhere yet
    if activation == "Relu":
        return torch.relu_(y) if in_place else torch.relu(y)
    if activation == "Relu6":
        return torch.clamp_(y, 0, 6) if in_place else torch.clamp(y, 0, 6)
    if activation:
        raise InvalidArgumentError(f"activation {quoted(activation)} is unknown: expected Relu or Relu6")
    return y


def _in_torch_order(filter: Tensor, operation: str) -> Tensor:
    return torch_depthwise_filter(filter) if operation == DEPTHWISE else torch_filter(filter)
