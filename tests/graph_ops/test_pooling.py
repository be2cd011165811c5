"""Pools and their gradient operations equal TensorFlow's: values, dtypes, shapes, gradients."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from op_inputs import Inputs, Results, int32, output_size
from op_rows import Row, check, operations, row

from torch_tfckpt.graph_ops.pooling import avg_pool, avg_pool_grad, max_pool, max_pool3d, max_pool_grad

INPUTS = Inputs(3)
floats, bfloats, integers = INPUTS.normal, INPUTS.bfloat16, INPUTS.integers


def ties(*shape: int) -> np.ndarray[Any, Any]:
    """Floats with many equal neighbours."""
    return INPUTS.integers(*shape, low=-1, high=2).astype(np.float32)


def plane(ksize: Any, strides: Any, padding: str, **others: Any) -> dict[str, Any]:
    return {"ksize": [1, *ksize, 1], "strides": [1, *strides, 1], "padding": padding, **others}


def forward_rows() -> list[Row]:
    rows = []
    for padding, stride, kernel, size in product(["SAME", "VALID"], [1, 2, 3], [1, 2, 3, 4], [5, 8]):
        settings = plane([kernel, kernel], [stride, stride], padding)
        x = floats(2, size, size + 1, 3)
        rows.append(row("MaxPool", x, **settings))
        rows.append(row("AvgPool", x, **settings))
        if size == 5:
            rows.append(row("MaxPoolWithArgmax", ties(2, size, size + 1, 3), **settings))
    for padding, (window, steps) in product(["SAME", "VALID"], [([2, 3], [2, 1]), ([3, 1], [1, 3]), ([1, 4], [5, 2])]):
        settings = plane(window, steps, padding)
        rows += [
            row("MaxPool", ties(2, 7, 6, 3), **settings),
            row("AvgPool", floats(2, 7, 6, 3), **settings, view=True),
            row("MaxPoolV2", floats(2, 7, 6, 3), int32([1, *window, 1]), int32([1, *steps, 1]), padding=padding),
            row("MaxPoolWithArgmax", floats(2, 7, 6, 3), **settings, include_batch_in_index=True),
            row("MaxPoolWithArgmax", floats(2, 7, 6, 3), **settings, Targmax=torch.int32, gradients=False),
        ]
    settings = plane([3, 2], [2, 2], "SAME")
    explicit = plane([3, 2], [2, 2], "EXPLICIT", explicit_paddings=[0, 0, 1, 2, 0, 1, 0, 0])
    for dtype in ["int32", "int64", "int16", "int8", "uint8"]:
        rows.append(row("MaxPool", INPUTS.integers(2, 6, 5, 3, dtype=dtype, low=0), **settings))
    rows += [
        row("MaxPool", floats(2, 6, 5, 3, dtype="float64"), **settings),
        row("MaxPool", floats(2, 6, 5, 3, dtype="float16"), **settings),
        row("MaxPool", bfloats(2, 6, 5, 3), **settings),
        row("MaxPool", -np.abs(floats(2, 6, 5, 3)), **settings),
        row("MaxPool", floats(2, 6, 5, 3), **settings, view=True),
        row("MaxPool", floats(2, 6, 5, 3), **explicit),
        row("MaxPool", floats(0, 6, 5, 3), **settings),
        row("MaxPool", floats(2, 2, 5, 3), **plane([4, 1], [2, 1], "VALID"), gradients=False),
        row("MaxPool", floats(2, 2, 5, 3), **plane([5, 1], [2, 1], "VALID"), gradients=False),
        # Channels.
        row("MaxPool", floats(2, 3, 2, 6), ksize=[1, 1, 1, 3], strides=[1, 1, 1, 3], padding="VALID", gradients=False),
        row("MaxPool", floats(2, 3, 2, 6), ksize=[1, 1, 1, 4], strides=[1, 1, 1, 4], padding="VALID", gradients=False),
        row("MaxPool", floats(2, 3, 2, 6), ksize=[1, 1, 1, 3], strides=[1, 1, 1, 2], padding="VALID", gradients=False),
        row("MaxPool", floats(2, 3, 2, 6), ksize=[1, 2, 1, 3], strides=[1, 1, 1, 3], padding="VALID", gradients=False),
        row("AvgPool", floats(2, 6, 5, 3, dtype="float64"), **settings),
        row("AvgPool", floats(2, 6, 5, 3, dtype="float16"), **settings, tolerance=2e-3),
        row("AvgPool", bfloats(2, 6, 5, 3), **settings, tolerance=1e-2),
        row("AvgPool", floats(0, 6, 5, 3), **settings),
        row("MaxPoolWithArgmax", integers(2, 6, 5, 3), **settings),
        row("MaxPoolWithArgmax", floats(2, 6, 5, 3, dtype="float64"), **settings),
        row("MaxPoolWithArgmax", floats(2, 6, 5, 3), **settings, view=True),
        # Refused.
        row("MaxPool", floats(2, 6, 5), **settings),
        row("MaxPool", floats(2, 6, 5, 3), ksize=[2, 1, 1, 1], strides=[2, 1, 1, 1], padding="SAME"),
        row("MaxPool", floats(2, 6, 5, 3), ksize=[1, 0, 1, 1], strides=[1, 1, 1, 1], padding="SAME"),
        row("MaxPool", floats(2, 6, 5, 3), ksize=[1, 2, 2], strides=[1, 1, 1, 1], padding="SAME"),
        row("MaxPool", floats(2, 2, 5, 3), **plane([6, 1], [2, 1], "VALID")),
        row("AvgPool", floats(2, 6, 5, 3), ksize=[1, 2, 2, 1], strides=[1, 0, 1, 1], padding="SAME"),
        row("AvgPool", floats(2, 6, 5, 3), ksize=[1, 2, 2, 3], strides=[1, 1, 1, 3], padding="SAME"),
    ]
    for padding, window, steps in product(["SAME", "VALID"], [[2, 2, 2], [3, 1, 2]], [[2, 2, 2], [1, 2, 3]]):
        settings = plane(window, steps, padding)
        rows.append(row("MaxPool3D", floats(2, 5, 4, 6, 2), **settings))
        rows.append(row("AvgPool3D", floats(2, 5, 4, 6, 2), **settings))
    rows.append(row("MaxPool3D", floats(0, 5, 4, 6, 2), **settings))
    rows.append(row("AvgPool3D", floats(2, 5, 4, 6, 2), **settings, view=True))
    rows.append(row("AvgPool3D", floats(2, 5, 4, 6), **settings))
    return rows


def gradient_rows() -> list[Row]:
    rows = []
    for padding, stride, kernel in product(["SAME", "VALID"], [1, 2, 3], [2, 3, 4]):
        settings = plane([kernel, kernel], [stride, stride], padding)
        x = ties(2, 6, 7, 3)
        slope = floats(2, output_size(6, kernel, stride, padding), output_size(7, kernel, stride, padding), 3)
        pooled = max_pool(torch.from_numpy(x), **settings).numpy()
        rows.append(row("MaxPoolGrad", x, pooled, slope, **settings))
        rows.append(row("AvgPoolGrad", int32(x.shape), slope, **settings))
        if kernel == 3:
            sizes = [int32([1, kernel, kernel, 1]), int32([1, stride, stride, 1])]
            rows.append(row("MaxPoolGradV2", x, pooled, slope, *sizes, padding=padding))
            argmax = INPUTS.integers(*slope.shape, dtype="int64", low=0, high=6 * 7 * 3)
            rows.append(row("MaxPoolGradWithArgmax", x, slope, argmax, **settings, gradients=False))
    settings = plane([3, 2], [2, 2], "SAME")
    shape, small = [2, 6, 5, 3], [2, 3, 3, 3]
    rows += [
        row("AvgPoolGrad", int32(shape), floats(*small, dtype="float64"), **settings),
        row("AvgPoolGrad", int32([0, 6, 5, 3]), floats(0, 3, 3, 3), **settings),
        row("AvgPoolGrad", int32(shape), floats(*small), **settings, view=True),
        row("AvgPoolGrad", int32([2, 6, 5]), floats(*small), **settings),
        row("MaxPoolGrad", floats(*shape), floats(*small), floats(2, 3, 2, 3), **settings),
        row("MaxPoolGrad", floats(*shape), floats(2, 3, 2, 3), floats(*small), **settings),
        row("MaxPoolGradWithArgmax", floats(*shape), floats(*small), np.zeros([2, 3, 3, 2], np.int64), **settings),
    ]
    for padding, stride in product(["SAME", "VALID"], [1, 2]):
        settings = plane([2, 2, 3], [stride] * 3, padding)
        x = floats(2, 5, 4, 6, 2)
        inner = [output_size(size, kernel, stride, padding) for size, kernel in [(5, 2), (4, 2), (6, 3)]]
        slope = floats(2, *inner, 2)
        rows.append(row("AvgPool3DGrad", int32(x.shape), slope, **settings))
        pooled = max_pool3d(torch.from_numpy(x), **settings).numpy()
        rows.append(row("MaxPool3DGrad", x, pooled, slope, **settings))
    return rows


def dilation_rows() -> list[Row]:
    rows = []
    for padding, strides, rates in product(["SAME", "VALID"], [[1, 1], [2, 3]], [[1, 1], [2, 1], [1, 2]]):
        settings: dict[str, Any] = {"strides": [1, *strides, 1], "rates": [1, *rates, 1], "padding": padding}
        rows.append(row("Dilation2D", floats(2, 7, 8, 3), floats(2, 3, 3), **settings))
        rows.append(row("Dilation2D", integers(2, 7, 8, 3), integers(3, 2, 3), **settings))
    ones: dict[str, Any] = {"strides": [1] * 4, "rates": [1] * 4, "padding": "SAME"}
    rows += [
        row("Dilation2D", floats(2, 4, 3, 3, dtype="float64"), floats(2, 2, 3, dtype="float64"), **ones),
        row("Dilation2D", ties(2, 4, 3, 3), ties(2, 2, 3), **ones),
        row("Dilation2D", floats(2, 4, 3, 3), floats(2, 2, 3), **ones, view=True),
        row("Dilation2D", floats(2, 4, 3, 3), floats(2, 2, 2), **ones),
        row("Dilation2D", floats(2, 4, 3, 3), floats(2, 2), **ones),
    ]
    return rows


ROWS = [*forward_rows(), *gradient_rows(), *dilation_rows()]


@pytest.mark.parametrize("name", operations(ROWS))
def test_operation(name: str, results: Results) -> None:
    """Every row of the table."""
    check(name, results)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_channels_first(padding: str) -> None:
    """NCHW, which TensorFlow's CPU kernels refuse, is NHWC with the axes exchanged."""
    x = torch.from_numpy(floats(2, 6, 7, 3))
    outer: dict[str, Any] = {"ksize": (1, 3, 2, 1), "strides": (1, 2, 1, 1), "padding": padding}
    inner: dict[str, Any] = {"ksize": (1, 1, 3, 2), "strides": (1, 1, 2, 1), "padding": padding, "data_format": "NCHW"}
    first = x.movedim(-1, 1)
    y = avg_pool(x, **outer)
    torch.testing.assert_close(avg_pool(first, **inner).movedim(1, -1), y)
    torch.testing.assert_close(
        avg_pool_grad((2, 3, 6, 7), y.movedim(-1, 1), **inner).movedim(1, -1), avg_pool_grad((2, 6, 7, 3), y, **outer)
    )
    largest = max_pool(x, **outer)
    torch.testing.assert_close(max_pool(first, **inner).movedim(1, -1), largest)
    slope = max_pool_grad(first, largest.movedim(-1, 1), y.movedim(-1, 1), **inner).movedim(1, -1)
    torch.testing.assert_close(slope, max_pool_grad(x, largest, y, **outer))


def test_a_large_size_in_a_small_graph_is_refused() -> None:
    """`orig_input_shape` is a list of numbers of the file."""
    huge = 1 << 20
    with pytest.raises(ValueError, match="limit"):
        avg_pool_grad(
            (1, huge, huge, 1), torch.zeros(1, 1, 1, 1), ksize=(1, 1, 1, 1), strides=(1, huge, huge, 1), padding="SAME"
        )
