"""Convolutions, their gradient operations and BiasAdd equal TensorFlow's: values, dtypes, shapes, gradients."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from op_inputs import Inputs, Results, float32, int32, output_size
from op_rows import Row, check, operations, row

from torch_tfckpt.graph_ops.convolutions import (
    conv2d,
    conv2d_backprop_filter,
    conv2d_backprop_input,
    conv3d,
    depthwise_conv2d,
)

INPUTS = Inputs(2)
floats, bfloats, integers = INPUTS.normal, INPUTS.bfloat16, INPUTS.integers


def square(stride: int) -> list[int]:
    return [1, stride, stride, 1]


def forward_rows() -> list[Row]:
    rows = []
    for padding, stride, kernel, size in product(["SAME", "VALID"], [1, 2, 3], [1, 2, 3], [5, 6]):
        x, w = floats(2, size, size + 1, 4), floats(kernel, kernel, 4, 6)
        rows.append(row("Conv2D", x, w, strides=square(stride), padding=padding))
        depthwise = floats(kernel, kernel, 4, 1 + size % 2)
        rows.append(row("DepthwiseConv2dNative", x, depthwise, strides=square(stride), padding=padding))
    for dilation, padding in product([[1, 2, 2, 1], [1, 2, 3, 1], [1, 1, 2, 1]], ["SAME", "VALID"]):
        x, w = floats(2, 9, 10, 3), floats(3, 2, 3, 4)
        settings: dict[str, Any] = {"strides": square(1), "padding": padding, "dilations": dilation}
        rows.append(row("Conv2D", x, w, **settings, gradients=False))  # TensorFlow's CPU has no gradient
    explicit: dict[str, Any] = {"padding": "EXPLICIT", "explicit_paddings": [0, 0, 1, 2, 0, 3, 0, 0]}
    strides = square(2)
    same: dict[str, Any] = {"strides": strides, "padding": "SAME"}
    rows += [
        row("Conv2D", floats(2, 6, 5, 3), floats(3, 3, 3, 2), strides=strides, **explicit),
        row("Conv2D", floats(2, 6, 5, 3), floats(5, 3, 3, 2), strides=[1, 2, 3, 1], **explicit),
        row("DepthwiseConv2dNative", floats(2, 6, 6, 3), floats(3, 3, 3, 2), strides=strides, **explicit),
        # Groups: the filter has fewer input channels than the input. TensorFlow's CPU has no gradients of these.
        row("Conv2D", floats(2, 6, 5, 6), floats(3, 3, 2, 9), **same, gradients=False),
        row("Conv2D", floats(2, 6, 5, 6), floats(3, 3, 1, 6), strides=square(1), padding="VALID", gradients=False),
        row("Conv2D", floats(2, 6, 5, 6), floats(2, 3, 3, 4), **same, view=True, gradients=False),
        row("Conv2D", floats(2, 6, 5, 3), floats(3, 3, 3, 2), strides=[1, 1, 3, 1], padding="SAME", view=True),
        row("DepthwiseConv2dNative", floats(1, 5, 5, 2), floats(3, 2, 2, 3), **same, view=True),
        row(
            "Conv2D", floats(2, 6, 5, 3, dtype="float64"), floats(3, 3, 3, 2, dtype="float64"), **same, tolerance=1e-12
        ),
        row("Conv2D", floats(2, 6, 5, 3, dtype="float16"), floats(3, 3, 3, 2, dtype="float16"), **same, tolerance=5e-3),
        row("Conv2D", bfloats(2, 6, 5, 3), bfloats(3, 3, 3, 2), **same, tolerance=2e-2),
        row("Conv2D", integers(2, 6, 5, 3), integers(3, 3, 3, 2), **same),
        row(
            "DepthwiseConv2dNative",
            floats(2, 6, 5, 3, dtype="float64"),
            floats(3, 3, 3, 2, dtype="float64"),
            **same,
            tolerance=1e-12,
        ),
        # Nothing, or less than the window.
        row("Conv2D", floats(0, 6, 5, 3), floats(3, 3, 3, 2), **same),
        # TensorFlow leaves the filter's gradient uninitialised.
        row("Conv2D", floats(2, 0, 5, 3), floats(3, 3, 3, 2), **same, gradients=False),
        row("Conv2D", floats(2, 2, 5, 3), floats(3, 3, 3, 2), strides=square(1), padding="VALID", gradients=False),
        row("Conv2D", floats(2, 2, 5, 3), floats(5, 3, 3, 2), strides=square(1), padding="VALID"),
        row("Conv2D", floats(2, 1, 1, 3), floats(3, 3, 3, 2), strides=square(1), padding="SAME"),
        row(
            "Conv2D",
            float32([[[[1], [np.nan], [2]], [[np.inf], [3], [4]]]]),
            floats(2, 2, 1, 1),
            strides=square(1),
            padding="SAME",
            gradients=False,
        ),
        # Refused.
        row("Conv2D", floats(2, 6, 5, 3), floats(3, 3, 4, 2), **same),
        row("Conv2D", floats(2, 6, 5), floats(3, 3, 5, 2), **same),
        row("Conv2D", floats(2, 6, 5, 3), floats(3, 3, 3), **same),
        row("Conv2D", floats(2, 6, 5, 3), floats(3, 3, 3, 2), strides=[1, 0, 1, 1], padding="SAME"),
        row("Conv2D", floats(2, 6, 5, 3), floats(3, 3, 3, 2), strides=[2, 1, 1, 1], padding="SAME"),
        row("Conv2D", floats(2, 6, 5, 3), floats(3, 3, 3, 2), strides=[1, 1, 1], padding="SAME"),
        row("Conv2D", floats(2, 6, 5, 3), floats(3, 3, 3, 2), strides=strides, padding="OTHER"),
        row("Conv2D", floats(2, 6, 5, 3), floats(3, 3, 3, 2), **same, explicit_paddings=[0, 0, 1, 1, 1, 1, 0, 0]),
        row(
            "Conv2D",
            floats(2, 6, 5, 3),
            floats(3, 3, 3, 2),
            strides=strides,
            padding="EXPLICIT",
            explicit_paddings=[0, 0, 1, 1],
        ),
        row("DepthwiseConv2dNative", floats(2, 6, 5, 3), floats(3, 3, 2, 2), **same),
    ]
    for padding, strides in product(["SAME", "VALID"], [[1] * 5, [1, 2, 2, 2, 1], [1, 1, 2, 3, 1]]):
        rows.append(row("Conv3D", floats(2, 5, 4, 6, 2), floats(3, 2, 3, 2, 3), strides=strides, padding=padding))
    rows += [
        row("Conv3D", floats(0, 5, 4, 6, 2), floats(2, 2, 2, 2, 3), strides=[1] * 5, padding="SAME"),
        row("Conv3D", floats(1, 5, 4, 6, 2), floats(2, 2, 2, 2, 3), strides=[1] * 5, padding="SAME", view=True),
        row("Conv3D", floats(1, 5, 4, 6, 3), floats(2, 2, 2, 2, 3), strides=[1] * 5, padding="SAME"),
    ]
    return rows


def gradient_rows() -> list[Row]:
    rows = []
    for padding, stride, kernel, size in product(["SAME", "VALID"], [1, 2, 3], [1, 2, 3, 4], [5, 6]):
        sizes, weight = int32([2, size, size + 1, 3]), floats(kernel, kernel, 3, 4)
        height, width = (output_size(each, kernel, stride, padding) for each in (size, size + 1))
        slope = floats(2, height, width, 4)
        settings: dict[str, Any] = {"strides": square(stride), "padding": padding}
        rows.append(row("Conv2DBackpropInput", sizes, weight, slope, **settings))
        if size == 5:
            x = floats(2, size, size + 1, 3)
            rows.append(row("Conv2DBackpropFilter", x, int32(weight.shape), slope, **settings))
            depthwise = floats(2, height, width, 6)
            shape = int32([kernel, kernel, 3, 2])
            rows.append(row("DepthwiseConv2dNativeBackpropFilter", x, shape, depthwise, **settings))
            rows.append(row("DepthwiseConv2dNativeBackpropInput", sizes, floats(*shape), depthwise, **settings))
    same: dict[str, Any] = {"strides": square(2), "padding": "SAME"}
    explicit: dict[str, Any] = {
        "padding": "EXPLICIT",
        "explicit_paddings": [0, 0, 1, 2, 0, 3, 0, 0],
        "strides": square(2),
    }
    rows += [
        row("Conv2DBackpropInput", int32([2, 6, 5, 3]), floats(3, 3, 3, 2), floats(2, 4, 3, 2), **explicit),
        row("Conv2DBackpropFilter", floats(2, 6, 5, 3), int32([3, 3, 3, 2]), floats(2, 4, 3, 2), **explicit),
        # Height and width only.
        row("Conv2DBackpropInput", int32([6, 6]), floats(3, 3, 3, 2), floats(2, 3, 3, 2), **same),
        # More rows than the windows reach.
        row(
            "Conv2DBackpropInput",
            int32([2, 7, 8, 3]),
            floats(1, 2, 3, 2),
            floats(2, 2, 2, 2),
            strides=square(4),
            padding="VALID",
        ),
        row(
            "Conv2DBackpropInput",
            int32([2, 6, 6, 3]),
            floats(3, 3, 3, 2, dtype="float64"),
            floats(2, 3, 3, 2, dtype="float64"),
            **same,
            tolerance=1e-12,
        ),
        row("Conv2DBackpropInput", int32([0, 6, 6, 3]), floats(3, 3, 3, 2), floats(0, 3, 3, 2), **same),
        row("Conv2DBackpropInput", int32([2, 6, 6, 3]), floats(3, 3, 3, 2), floats(2, 3, 3, 2), **same, view=True),
        row("Conv2DBackpropFilter", floats(0, 6, 6, 3), int32([3, 3, 3, 2]), floats(0, 3, 3, 2), **same),
        row("Conv2DBackpropFilter", floats(2, 6, 6, 3), int32([3, 3, 3, 2]), floats(2, 3, 3, 2), **same, view=True),
        # Refused.
        row("Conv2DBackpropInput", int32([2, 6, 6, 3]), floats(3, 3, 3, 2), floats(2, 4, 3, 2), **same),
        row("Conv2DBackpropInput", int32([2, 6, 6, 3]), floats(3, 3, 3, 2), floats(1, 3, 3, 2), **same),
        row("Conv2DBackpropInput", int32([2, 6, 6, 4]), floats(3, 3, 3, 2), floats(2, 3, 3, 2), **same),
        row("Conv2DBackpropFilter", floats(2, 6, 6, 3), int32([3, 3, 3, 2]), floats(2, 3, 3, 3), **same),
    ]
    for padding, strides in product(["SAME", "VALID"], [[1] * 5, [1, 2, 2, 2, 1]]):
        inner = [output_size(size, 2, strides[1], padding) for size in (5, 4, 6)]
        weight, slope = floats(2, 2, 2, 2, 3), floats(2, *inner, 3)
        settings = {"strides": strides, "padding": padding}
        rows.append(row("Conv3DBackpropInputV2", int32([2, 5, 4, 6, 2]), weight, slope, **settings))
        rows.append(row("Conv3DBackpropFilterV2", floats(2, 5, 4, 6, 2), int32(weight.shape), slope, **settings))
    return rows


ROWS = [
    row("BiasAdd", floats(2, 3), floats(3)),
    row("BiasAdd", floats(2, 4, 5, 3), floats(3)),
    row("BiasAdd", floats(2, 3, 5, 4), floats(3), data_format="NCHW"),
    row("BiasAdd", floats(2, 3, 4), floats(3), data_format="NCHW"),
    row("BiasAdd", floats(2, 3, 5, 4, 2), floats(3), data_format="NCHW", view=True),
    row("BiasAdd", floats(0, 3), floats(3)),
    row("BiasAdd", integers(2, 3), integers(3)),
    row("BiasAdd", floats(2, 3, dtype="float64"), floats(3, dtype="float64")),
    row("BiasAdd", bfloats(2, 3), bfloats(3)),
    row("BiasAdd", floats(2, 3), floats(4)),
    row("BiasAdd", floats(2, 3), floats(1)),
    row("BiasAdd", floats(3), floats(3)),
    row("BiasAdd", floats(2, 3), floats(1, 3)),
    row("BiasAddV1", floats(2, 4, 3), floats(3)),
    row("BiasAddGrad", floats(2, 4, 5, 3)),
    row("BiasAddGrad", floats(2, 3, 5, 4), data_format="NCHW"),
    row("BiasAddGrad", integers(6, 3), gradients=False),
    row("BiasAddGrad", floats(0, 3)),
    row("BiasAddGrad", floats(3)),
    *forward_rows(),
    *gradient_rows(),
]


@pytest.mark.parametrize("name", operations(ROWS))
def test_operation(name: str, results: Results) -> None:
    """Every row of the table."""
    check(name, results)


def channels_first(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [each.movedim(-1, 1) for each in tensors]


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_channels_first(padding: str) -> None:
    """NCHW, which TensorFlow's CPU kernels refuse, is NHWC with the axes exchanged."""
    x, w, depthwise = (torch.from_numpy(floats(*shape)) for shape in [(2, 6, 7, 3), (3, 2, 3, 4), (3, 2, 3, 2)])
    (first,) = channels_first(x)
    outer: dict[str, Any] = {"strides": (1, 2, 2, 1), "padding": padding}
    inner: dict[str, Any] = {
        "strides": (1, 1, 2, 2),
        "padding": padding,
        "data_format": "NCHW",
        "dilations": (1, 1, 1, 1),
    }
    y = conv2d(x, w, **outer)
    torch.testing.assert_close(conv2d(first, w, **inner).movedim(1, -1), y)
    assert conv2d_backprop_input((2, 3, 6, 7), w, y.movedim(-1, 1), **inner).shape == (2, 3, 6, 7)
    slope = conv2d_backprop_filter(first, (3, 2, 3, 4), y.movedim(-1, 1), **inner)
    torch.testing.assert_close(slope, conv2d_backprop_filter(x, (3, 2, 3, 4), y, **outer))
    found = depthwise_conv2d(first, depthwise, **inner).movedim(1, -1)
    torch.testing.assert_close(found, depthwise_conv2d(x, depthwise, **outer))
    volume, cube = torch.from_numpy(floats(1, 4, 5, 6, 2)), torch.from_numpy(floats(2, 2, 2, 2, 3))
    expected = conv3d(volume, cube, strides=(1, 1, 2, 2, 1), padding=padding)
    found = conv3d(
        volume.movedim(-1, 1), cube, strides=(1, 1, 1, 2, 2), padding=padding, data_format="NCDHW", dilations=(1,) * 5
    )
    torch.testing.assert_close(found.movedim(1, -1), expected)


@pytest.mark.parametrize(("padding", "groups", "dilations"), list(product(["SAME", "VALID"], [1, 2], [(1, 1), (2, 3)])))
def test_gradient_operations(padding: str, groups: int, dilations: tuple[int, int]) -> None:
    """With groups and dilations, which TensorFlow's CPU kernels refuse, they are the gradients of Conv2D."""
    x, w = torch.from_numpy(floats(2, 9, 8, 4)), torch.from_numpy(floats(3, 2, 4 // groups, 6))
    settings: dict[str, Any] = {"padding": padding, "strides": (1, 2, 1, 1), "dilations": (1, *dilations, 1)}
    y = conv2d(x.requires_grad_(), w.requires_grad_(), **settings)
    slope = torch.from_numpy(floats(*y.shape))
    of_x, of_w = torch.autograd.grad(y, [x, w], slope)
    torch.testing.assert_close(conv2d_backprop_input((2, 9, 8, 4), w, slope, **settings), of_x)
    torch.testing.assert_close(conv2d_backprop_filter(x, tuple(w.shape), slope, **settings), of_w)


def test_explicit_paddings_with_channels_first() -> None:
    """The paddings follow the data format."""
    x, w = torch.from_numpy(floats(2, 6, 7, 3)), torch.from_numpy(floats(3, 2, 3, 4))
    y = conv2d(x, w, strides=(1, 1, 2, 1), padding="EXPLICIT", explicit_paddings=(0, 0, 1, 2, 3, 0, 0, 0))
    first = conv2d(
        x.movedim(-1, 1),
        w,
        strides=(1, 1, 1, 2),
        padding="EXPLICIT",
        explicit_paddings=(0, 0, 0, 0, 1, 2, 3, 0),
        data_format="NCHW",
    )
    torch.testing.assert_close(first.movedim(1, -1), y)


def test_stored_filters_are_used_as_they_are() -> None:
    """A filter in the memory of a torch filter gives the same result, in NHWC without a copy."""
    x, w = torch.from_numpy(floats(2, 6, 7, 3)), torch.from_numpy(floats(3, 3, 3, 4))
    stored = w.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last).permute(2, 3, 1, 0)
    expected = conv2d(x, w, strides=(1, 1, 1, 1), padding="SAME")
    found = conv2d(x, stored, strides=(1, 1, 1, 1), padding="SAME")
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous()


def test_a_large_size_in_a_small_graph_is_refused() -> None:
    """`input_sizes` and `filter_sizes` are numbers of the file."""
    huge = 1 << 20
    slope = torch.zeros(1, 1, 1, 1)
    with pytest.raises(ValueError, match="limit"):
        conv2d_backprop_input(
            (1, huge, huge, 1), torch.zeros(1, 1, 1, 1), slope, strides=(1, huge, huge, 1), padding="SAME"
        )
    with pytest.raises(ValueError, match="limit"):
        conv2d_backprop_filter(slope, (huge, huge, 1, 1), slope, strides=(1, 1, 1, 1), padding="SAME")
