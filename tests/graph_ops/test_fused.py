"""A fused convolution equals its parts, which other tests compare with TensorFlow."""

from typing import Any

import pytest
import torch
from op_inputs import Inputs

from torch_tfckpt.graph_ops.convolutions import bias_add, conv2d, depthwise_conv2d
from torch_tfckpt.graph_ops.fused import DEPTHWISE, convolution, folded, stored_filter
from torch_tfckpt.graph_ops.normalization import fused_batch_norm_v3

INPUTS = Inputs(11)
CASES = [
    ("Conv2D", (3, 3, 4, 6), 6, "SAME"),
    ("Conv2D", (1, 1, 4, 6), 6, "VALID"),
    ("Conv2D", (3, 2, 2, 6), 6, "SAME"),  # two groups
    (DEPTHWISE, (3, 3, 4, 1), 4, "SAME"),
    (DEPTHWISE, (2, 3, 4, 2), 8, "VALID"),
]


def tensor(*shape: int, low: float = -1) -> torch.Tensor:
    return torch.from_numpy(INPUTS.uniform(*shape, low=low, high=2))


@pytest.mark.parametrize(("operation", "shape", "channels", "padding"), CASES, ids=str)
@pytest.mark.parametrize(("with_bias", "activation"), [(True, ""), (False, "Relu"), (True, "Relu6")])
def test_chain(
    operation: str, shape: tuple[int, ...], channels: int, padding: str, with_bias: bool, activation: str
) -> None:
    """Convolution, bias, normalisation, activation."""
    x, filter = tensor(2, 7, 6, 4), tensor(*shape)
    bias = tensor(channels) if with_bias else None
    vectors = tensor(channels, low=0.5), tensor(channels), tensor(channels), tensor(channels, low=0.5)
    settings: dict[str, Any] = {"strides": (1, 2, 2, 1), "padding": padding}
    expected = (depthwise_conv2d if operation == DEPTHWISE else conv2d)(x, filter, **settings)
    if bias is not None:
        expected = bias_add(expected, bias)
    expected = fused_batch_norm_v3(expected, *vectors, epsilon=0.01, is_training=False)[0]
    if activation:
        expected = torch.clamp(expected, 0, 6 if activation == "Relu6" else None)
    weight, shift = folded(filter, *vectors, epsilon=0.01, bias=bias, operation=operation)
    assert weight.shape == filter.shape
    found = convolution(x, weight, shift, operation=operation, activation=activation, **settings)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("operation", "shape"), [("Conv2D", (3, 3, 4, 6)), (DEPTHWISE, (3, 3, 4, 2))])
def test_stored_filter(operation: str, shape: tuple[int, ...]) -> None:
    """Shape and values stay; the memory is that of a torch filter."""
    filter = tensor(*shape)
    stored = stored_filter(filter, operation)
    assert torch.equal(stored, filter)
    if operation == "Conv2D":
        assert stored.permute(3, 2, 0, 1).is_contiguous(memory_format=torch.channels_last)


def test_gradients() -> None:
    """With gradients, nothing is changed in place."""
    x, filter = tensor(2, 5, 5, 3), tensor(3, 3, 3, 4).requires_grad_()
    settings: dict[str, Any] = {"strides": (1, 1, 1, 1), "padding": "SAME"}
    found = convolution(x, filter, activation="Relu6", **settings)
    expected = torch.clamp(conv2d(x, filter, **settings), 0, 6)
    slope = tensor(*found.shape)
    (ours,), (theirs,) = (torch.autograd.grad(each, [filter], slope) for each in (found, expected))
    torch.testing.assert_close(ours, theirs)


def test_inputs_stay() -> None:
    """Only the result of the convolution is changed in place."""
    x = tensor(2, 5, 5, 3)
    before = x.clone()
    convolution(x, tensor(1, 1, 3, 3), activation="Relu", strides=(1, 1, 1, 1), padding="SAME")
    assert torch.equal(x, before)


def test_unknown_activation() -> None:
    """Only those that TensorFlow fuses as well."""
    with pytest.raises(ValueError, match="expected Relu or Relu6"):
        convolution(tensor(1, 2, 2, 1), tensor(1, 1, 1, 1), activation="Elu", strides=(1, 1, 1, 1), padding="SAME")
