"""Reductions, cumulative sums and counts equal TensorFlow's: values, dtypes, shapes, gradients."""

from itertools import product

import numpy as np
import pytest
import torch
from op_inputs import Inputs, Results, float32, int32
from op_rows import Row, check, operations, row

NAN, INF = float("nan"), float("inf")
INPUTS = Inputs(7)
REDUCTIONS = ["Sum", "Mean", "Prod", "Max", "Min", "EuclideanNorm"]
CUMULATIVE = ["Cumsum", "Cumprod", "CumulativeLogsumexp"]
SHAPES_AND_AXES: list[tuple[tuple[int, ...], object]] = [
    ((3, 4, 5), [0]), ((3, 4, 5), [-1, 0]), ((3, 4, 5), 1), ((3, 4, 5), []), ((3, 4, 5), [0, 1, 2]), ((), []),
    ((7,), 0), ((2, 3), [-2, -1]), ((1, 5), [0]),
    ((3, 4), [2]), ((3, 4), [-3]), ((3, 4), [0, 0]), ((3, 4), [0, -2]), ((), [0]),  # refused
]  # fmt: skip
EMPTY: list[tuple[tuple[int, ...], list[int]]] = [((0, 3), [0]), ((0, 3), [1]), ((3, 0), [0, 1]), ((0,), [0])]


def reduction_rows() -> list[Row]:
    rows = []
    for name in REDUCTIONS:
        for number, (shape, axis) in enumerate(SHAPES_AND_AXES):
            dtype, index = ("float64", "int64") if number % 2 else ("float32", "int32")
            x = INPUTS.normal(*shape, dtype=dtype)
            indices = np.array(axis, index)
            rows.append(row(name, x, indices, keep_dims=number % 3 == 0, view=number % 4 == 0))
        for shape, some in EMPTY:
            gradients = name != "EuclideanNorm"
            rows.append(row(name, np.zeros(shape, "float32"), int32(some), keep_dims=True, gradients=gradients))
        for dtype in ["int32", "int64", "uint8", "int8", "int16", "uint16", "uint32"]:
            if name == "EuclideanNorm":
                continue  # TensorFlow has kernels for floating-point numbers only
            x = INPUTS.integers(3, 7, low=0 if dtype[0] == "u" else -9, dtype=dtype)
            rows.append(row(name, x, int32([1])))
            if name in ("Max", "Min", "Sum", "Prod"):
                rows.append(row(name, np.zeros((0, 2), dtype), int32([0])))
        x = INPUTS.uniform(3, 5, low=0.5, high=2)
        rows.append(row(name, x.astype("float16"), int32([1]), tolerance=3e-3))
        rows.append(row(name, torch.from_numpy(x).bfloat16(), int32([1]), tolerance=2e-2))
        special = float32([[NAN, 1], [INF, 1], [-INF, INF], [0, -0.0], [-1, NAN]])
        rows.append(row(name, special, int32([1]), gradients=False))
    for name in ["Sum", "Mean", "Prod"]:
        x = INPUTS.complex(3, 4)
        rows += [row(name, x.astype(dtype), int32([0])) for dtype in ["complex64", "complex128"]]
    return rows


def tie_rows() -> list[Row]:
    """Derivatives of equal elements, and of products with zeros."""
    x = float32([[1, 3, 3, 2], [0, 0, 0, 0], [-1, -1, -2, 5]])
    rows = [row(name, x, int32(axis)) for name in ["Max", "Min"] for axis in ([0], [1], [0, 1])]
    rows += [row("Prod", x, int32(axis)) for axis in ([0], [1], [0, 1])]
    rows += [row("Sum", INPUTS.integers(100, high=127, dtype="int8"), int32([0]))]
    rows += [row("Prod", np.array([2**20, 2**20], "int32"), int32([0]))]
    rows += [row("Mean", np.array([-7, 2], dtype), int32([0])) for dtype in ["int32", "int64", "int8"]]
    rows += [row("Mean", np.full(5, np.iinfo(dtype).max, dtype), int32([0])) for dtype in ["int32", "int8", "uint8"]]
    return rows


def logical_rows() -> list[Row]:
    rows = []
    for name in ["All", "Any"]:
        for number, (shape, axis) in enumerate([*SHAPES_AND_AXES, *EMPTY]):
            rows.append(row(name, INPUTS.integers(*shape) > -5, int32(axis), keep_dims=number % 2 == 0))
    return rows


def loss_rows() -> list[Row]:
    x = INPUTS.normal(3, 4)
    rows = [row("L2Loss", each) for each in [x, x.astype("float64"), x[0, 0], x[:0]]]
    rows += [row("L2Loss", x.astype("float16"), tolerance=3e-3), row("L2Loss", x, view=True)]
    return [*rows, row("L2Loss", torch.from_numpy(x).bfloat16(), tolerance=2e-2)]


def index_rows() -> list[Row]:
    rows = []
    for name in ["ArgMax", "ArgMin"]:
        for dtype in ["float32", "float64", "float16", "int32", "int64", "uint8", "int8", "int16", "uint16", "uint32"]:
            x = INPUTS.integers(3, 4, 5, low=0, high=4, dtype=dtype)  # with equal elements
            rows += [row(name, x, int32(axis), gradients=False) for axis in (0, 1, -1)]
        x = INPUTS.normal(3, 4)
        rows += [row(name, x, int32(1), output_type=kind, gradients=False) for kind in (torch.int32, torch.int64)]
        rows += [row(name, x, np.array(0, "int64"), gradients=False, view=True)]
        rows += [row(name, x, int32(axis), gradients=False) for axis in (2, -3)]
        rows += [row(name, float32([[1, NAN, 3], [NAN, 1, NAN], [NAN] * 3, [4, 5, NAN]]), int32(1), gradients=False)]
        rows += [row(name, x[:0], int32(1), gradients=False), row(name, x[:0], int32(0), gradients=False)]
        rows += [row(name, x[0, 0], int32(0), gradients=False), row(name, x[0], int32(0), gradients=False)]
        rows += [row(name, x > 0, int32(1)), row(name, torch.from_numpy(x).bfloat16(), int32(1))]
        rows += [row(name, float32([[INF, -INF, 1], [-INF, -INF, -INF]]), int32(1), gradients=False)]
    rows += [row("ArgMax", x, int32(1), output_type=kind, gradients=False) for kind in (torch.int16, torch.uint16)]
    return rows


def cumulative_rows() -> list[Row]:
    rows = []
    for name, exclusive, reverse in product(CUMULATIVE, [False, True], [False, True]):
        options = {"exclusive": exclusive, "reverse": reverse}
        x = INPUTS.uniform(3, 4, 2, low=0.5, high=2)
        rows.append(row(name, x, int32(1), **options))
        rows.append(row(name, x.astype("float64"), np.array(-1, "int64"), **options, view=True))
        rows.append(row(name, x[:1], int32(0), **options))
        rows.append(row(name, x[:0], int32(0), **options, gradients=False))
        rows.append(row(name, x[:0], int32(1), **options, gradients=False))
        rows.append(row(name, x.astype("float16"), int32(1), **options, tolerance=5e-3))
        if name != "CumulativeLogsumexp":
            for dtype in ["int32", "int64", "uint8", "int8", "int16", "complex64", "uint16"]:
                rows.append(row(name, INPUTS.integers(3, 5, low=0, high=9, dtype=dtype), int32(1), **options))
    for name in CUMULATIVE:
        x = INPUTS.normal(3, 4)
        rows += [row(name, x, int32(2)), row(name, x, int32(-3)), row(name, x[0, 0], int32(0))]
    rows.append(row("CumulativeLogsumexp", float32([[-INF, 0, 500, -500], [1000, 1000, -1000, 0]]), int32(1)))
    return rows


def count_rows() -> list[Row]:
    rows = []
    numbers = int32([[1, 0, 3], [1, 1, 7]])
    weights = INPUTS.normal(2, 3)
    for dtype in ["float32", "float64", "int32", "int64"]:
        for size in [0, 1, 4, 10]:
            none, some = np.zeros(0, dtype), (10 * weights).astype(dtype)
            rows.append(row("Bincount", numbers, int32(size), none, gradients=False))
            rows.append(row("Bincount", numbers, int32(size), some, gradients=False))
            rows.append(row("DenseBincount", numbers, int32(size), none, gradients=False))
            rows.append(row("DenseBincount", numbers[0], int32(size), some[0], gradients=False))
            rows.append(row("DenseBincount", numbers, int32(size), some, gradients=False))
            options = {"binary_output": True, "gradients": False}
            rows.append(row("DenseBincount", numbers, int32(size), none, **options))
    wide = numbers.astype("int64")
    rows.append(row("DenseBincount", wide, np.array(5, "int64"), np.zeros(0, "float32"), gradients=False))
    rows.append(row("Bincount", int32([]), int32(3), float32([]), gradients=False))
    rows.append(row("Bincount", int32([1, -1]), int32(3), float32([]), gradients=False))
    rows.append(row("DenseBincount", int32([1, -1]), int32(3), float32([]), gradients=False))
    rows.append(row("Bincount", int32([1, 1]), int32(-3), float32([]), gradients=False))
    rows.append(row("Bincount", int32([1, 1]), int32(3), float32([1, 2, 3]), gradients=False))
    rows.append(row("DenseBincount", int32([[[1]]]), int32(3), float32([]), gradients=False))
    return rows


ROWS = [
    *reduction_rows(),
    *tie_rows(),
    *logical_rows(),
    *loss_rows(),
    *index_rows(),
    *cumulative_rows(),
    *count_rows(),
]


@pytest.mark.parametrize("name", operations(ROWS))
def test_operation(name: str, results: Results) -> None:
    """Every row of the table."""
    check(name, results)
