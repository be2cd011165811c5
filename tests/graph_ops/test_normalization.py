"""Normalisations and softmax equal TensorFlow's: values, dtypes, shapes, gradients."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from op_inputs import Array, Inputs, Results, float32
from op_rows import Row, check, operations, row, undefined

from torch_tfckpt.graph_ops.normalization import batch_norm_with_global_normalization

INPUTS = Inputs(4)
floats, bfloats = INPUTS.normal, INPUTS.bfloat16


def positive(*shape: int) -> Array:
    return INPUTS.uniform(*shape, low=0.5, high=2)


def channels(count: int) -> list[Array]:
    """scale, offset, mean, variance."""
    return [positive(count), floats(count), floats(count), positive(count)]


def empty(count: int) -> list[Array]:
    return [positive(count), floats(count), np.zeros(0, np.float32), np.zeros(0, np.float32)]


def batch_norm_rows() -> list[Row]:
    rows = []
    for name, epsilon, (data_format, shape) in product(
        ["FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"],
        [0.0001, 0.1],
        [("NHWC", (2, 3, 4, 5)), ("NCHW", (2, 5, 3, 4))],
    ):
        settings: dict[str, Any] = {"epsilon": epsilon, "data_format": data_format}
        x = floats(*shape, scale=2) + 1
        rows += [
            undefined(row(name, x, *channels(5), is_training=False, **settings), 3, 4),
            row(name, x, *empty(5), is_training=True, **settings),
            row(name, x, *channels(5), is_training=True, exponential_avg_factor=0.25, **settings),
        ]
    name = "FusedBatchNormV3"
    for training in [False, True]:
        settings = {"is_training": training}
        found = [
            row(name, floats(2, 2, 3, 4, 5), *channels(5), data_format="NDHWC", **settings),
            row(name, floats(2, 5, 2, 3, 4), *channels(5), data_format="NCDHW", **settings),
            row(name, floats(2, 3, 4, 5, dtype="float16"), *channels(5), **settings, tolerance=2e-3),
            row(name, bfloats(2, 3, 4, 5), *channels(5), **settings, tolerance=1e-2),
            row("FusedBatchNormV2", floats(2, 3, 4, 5, dtype="float16"), *channels(5), **settings, tolerance=2e-3),
            row(name, floats(2, 3, 4, 5), *channels(5), **settings, view=True),
            row(name, floats(1, 1, 1, 5), *channels(5), **settings),
            # No statistics of nothing: TensorFlow gives NaN or what was in memory.
            undefined(row(name, floats(0, 3, 4, 5), *channels(5), is_training=training), 1, 2, 3, 4),
            row(name, floats(2, 3, 4, 1), *channels(1), **settings),
            row(name, floats(2, 3, 4, 5), *channels(4), **settings),
            row(name, floats(2, 3, 4), *channels(4), **settings),
        ]
        # Out of training the reserved values are what was in memory.
        rows += found if training else [undefined(each, 3, 4) if not each.undefined else each for each in found]
    rows.append(row(name, floats(2, 3, 4, 5), *empty(5), is_training=False))
    return rows


def slope_rows() -> list[Row]:
    rows = []
    # TensorFlow's CPU has no gradient with channels first out of training.
    for training, data_format in [(True, "NHWC"), (True, "NCHW"), (False, "NHWC")]:
        shape = (2, 3, 4, 5) if data_format == "NHWC" else (2, 5, 3, 4)
        settings: dict[str, Any] = {"is_training": training, "data_format": data_format, "gradients": False}
        x, slope, vectors = floats(*shape), floats(*shape), [positive(5), floats(5), positive(5)]
        rows += [
            row("FusedBatchNormGrad", slope, x, *vectors, **settings),
            row("FusedBatchNormGradV2", slope, x, *vectors, **settings, epsilon=0.01),
            row("FusedBatchNormGradV3", slope, x, *vectors, np.zeros(0, np.float32), **settings),
            row("FusedBatchNormGrad", slope, x, *vectors, **settings, view=True),
        ]
    vectors = [positive(5), floats(5), positive(5)]
    rows += [
        row("FusedBatchNormGrad", floats(2, 3, 4, 5), floats(2, 3, 4, 4), *vectors),
        row("FusedBatchNormGrad", floats(2, 3, 4, 4), floats(2, 3, 4, 4), *vectors),
    ]
    return rows


def softmax_rows() -> list[Row]:
    rows = []
    for name in ["Softmax", "LogSoftmax"]:
        rows += [
            row(name, floats(3, 5)),
            row(name, floats(5)),
            row(name, floats(2, 3, 4, 5)),
            row(name, floats(3, 5, dtype="float64"), tolerance=1e-12),
            row(name, floats(3, 5, dtype="float16"), tolerance=2e-3),
            row(name, bfloats(3, 5), tolerance=1e-2),
            row(name, floats(3, 5, scale=1000)),
            row(name, floats(0, 5)),
            row(name, floats(3, 1)),
            row(name, floats(3, 5, 4), view=True),
            row(name, float32([[np.nan, 1, 2], [0, -np.inf, 1], [3, 4, 5]]), gradients=False),
            row(name, floats()),
        ]
    return rows


def response_rows() -> list[Row]:
    rows = []
    for radius, depth in product([0, 1, 2, 5, 9], [1, 4, 7]):
        rows.append(row("LRN", floats(2, 2, 3, depth), depth_radius=radius))
    settings: dict[str, Any] = {"depth_radius": 2, "bias": 1.5, "alpha": 0.3, "beta": 0.75}
    rows += [
        row("LRN", floats(2, 2, 3, 7), **settings),
        row("LRN", floats(2, 2, 3, 7)),
        row("LRN", floats(2, 2, 3, 7, dtype="float16"), **settings, tolerance=5e-3),
        row("LRN", floats(0, 2, 3, 7), **settings),
        row("LRN", floats(2, 2, 3, 7), **settings, view=True),
        row("LRN", floats(2, 3, 7), **settings),
        row("LRNGrad", floats(2, 2, 3, 7), floats(2, 2, 3, 7), floats(2, 2, 3, 7), **settings, gradients=False),
        row("LRNGrad", floats(2, 2, 3, 4), floats(2, 2, 3, 4), floats(2, 2, 3, 4), gradients=False),
        row("LRNGrad", floats(2, 2, 3, 4), floats(2, 2, 3, 4), floats(2, 2, 3, 3), gradients=False),
    ]
    return rows


ROWS = [*batch_norm_rows(), *slope_rows(), *softmax_rows(), *response_rows()]


@pytest.mark.parametrize("name", operations(ROWS))
def test_operation(name: str, results: Results) -> None:
    """Every row of the table."""
    check(name, results)


@pytest.mark.parametrize("scaled", [True, False])
def test_global_normalization(scaled: bool) -> None:
    """An operation of graphs from 2015, which TensorFlow does not run any more."""
    x = torch.from_numpy(floats(2, 3, 4, 5))
    gamma, beta, mean, variance = map(torch.from_numpy, channels(5))
    found = batch_norm_with_global_normalization(
        x, mean, variance, beta, gamma, variance_epsilon=0.01, scale_after_normalization=scaled
    )
    scale = gamma if scaled else None
    expected = torch.nn.functional.batch_norm(x.movedim(-1, 1), mean, variance, scale, beta, eps=0.01)
    torch.testing.assert_close(found, expected.movedim(1, -1))
