"""Operations on pairs of elements equal TensorFlow's: values, dtypes, shapes, gradients."""

from typing import Any

import numpy as np
import pytest
import torch
from op_inputs import Inputs, Results, float32, int32
from op_rows import Row, check, operations, row

from torch_tfckpt.graph_ops.arithmetic import accumulate_n

NAN, INF = float("nan"), float("inf")
INPUTS = Inputs(3)
floats, positive, integers = INPUTS.normal, INPUTS.uniform, INPUTS.integers
SHAPES = [((3, 1, 5), (7, 1)), ((), (2, 3)), ((4,), ()), ((0, 3), (1,)), ((1, 1), (5,)), ((2, 3), (2, 3))]
SIGNED, UNSIGNED = ["int8", "int16", "int32", "int64"], ["uint8", "uint16", "uint32", "uint64"]
ANY_FLOAT = ["Add", "AddV2", "Sub", "Mul", "Div", "RealDiv", "Maximum", "Minimum", "SquaredDifference", "DivNoNan"]
NO_GRADIENT = {"Mod", "TruncateMod", "NextAfter"}
SPECIAL = float32([NAN, INF, -INF, 0, -0.0, 1, -1, 0.5, -2.5, 3e38])


def both(values: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    """Every pair of values."""
    return values[:, None], values[None, :]


def broadcasting_rows() -> list[Row]:
    rows = []
    for name in [*ANY_FLOAT, "FloorDiv", "FloorMod", "Mod", "TruncateMod", "MulNoNan", "Atan2", "NextAfter"]:
        for number, (left, right) in enumerate(SHAPES):
            dtype = "float64" if number % 2 else "float32"
            gradients = name not in NO_GRADIENT
            x, y = floats(*left, dtype=dtype), floats(*right, dtype=dtype)
            rows.append(row(name, x, y, gradients=gradients, view=number == 5))
    for name in ["Pow", "Xdivy", "Xlogy", "Xlog1py"]:
        for number, (left, right) in enumerate(SHAPES):
            dtype = "float64" if number % 2 else "float32"
            x, y = positive(*left, dtype=dtype, low=0.1, high=3), positive(*right, dtype=dtype, low=0.1, high=3)
            rows.append(row(name, x, y, view=number == 5))
    for name in ["AddV2", "Mul", "Pow", "FloorMod", "DivNoNan", "Maximum"]:
        rows.append(row(name, floats(3), floats(4)))  # shapes that do not match
    return rows


def short_float_rows() -> list[Row]:
    rows = []
    for name in [*ANY_FLOAT, "FloorDiv", "FloorMod", "MulNoNan", "Xdivy", "Xlogy", "Xlog1py", "Pow", "Atan2"]:
        x, y = positive(3, 1, low=0.5, high=4), positive(1, 4, low=0.5, high=4)
        rows.append(row(name, x.astype("float16"), y.astype("float16"), tolerance=2e-3))
        rows.append(row(name, torch.from_numpy(x).bfloat16(), torch.from_numpy(y).bfloat16(), tolerance=1.6e-2))
    return rows


def integer_rows() -> list[Row]:
    rows = []
    quotients = ["Div", "TruncateDiv", "FloorDiv", "FloorMod"]
    for dtype in SIGNED + UNSIGNED:
        limits = np.iinfo(dtype)
        values = np.array([limits.max, limits.min, limits.max - 1, 7, 3, 2, 1, 5, 4, 9, 100], dtype)
        if dtype in SIGNED:
            values = np.concatenate([values, np.array([-1, -7, -2, -3, limits.min + 1], dtype)])
        x, y = both(values)
        not_zero = values[values != 0][None, :]
        rows += [row(name, x, y) for name in ["AddV2", "Sub", "Mul"]]
        if dtype != "uint64":
            rows += [row(name, x, y) for name in ["Maximum", "Minimum"]]
            rows += [row(name, x, not_zero) for name in quotients]
            rows.append(row("FloorDiv", x, y * 0))
        if dtype in ("int32", "int64"):
            rows += [row("SquaredDifference", x, y)]
            rows += [row(name, x, not_zero) for name in ["Mod", "TruncateMod"]]
            rows += [row(name, x, y * 0) for name in ["Mod", "TruncateDiv", "FloorMod", "Div"]]
        if dtype in SIGNED:
            small = np.array([-3, -2, -1, 0, 1, 2, 3], dtype)
            rows.append(row("Pow", small[:, None], np.array([[0, 1, 2, 3, 5, 40]], dtype)))
    rows.append(row("Pow", int32([1, 2]), int32([-1, 1])))
    rows.append(row("Pow", int32([1, 2]), int32(3)))
    rows.append(row("Add", integers(0, 3), integers(3)))
    return rows


def special_rows() -> list[Row]:
    """NaN, infinities and zeros of both signs. Infinite derivatives differ in the order of products."""
    rows = []
    names = [*ANY_FLOAT, "FloorDiv", "MulNoNan", "Xdivy", "Xlogy", "Pow", "Atan2", "FloorMod", "TruncateMod"]
    for name in names:
        x, y = both(SPECIAL)
        rows.append(row(name, x, y, gradients=False))
        rows.append(row(name, x.astype("float64"), y.astype("float64"), gradients=False))
    return rows


def tie_rows() -> list[Row]:
    """Derivatives where several would do."""
    x, y = both(float32([-1, 0, 1, 2, 0]))
    rows = [row(name, x, y) for name in ["Maximum", "Minimum", "SquaredDifference", "DivNoNan", "MulNoNan"]]
    rows += [
        row("Maximum", x[0], x[0]),
        row("Minimum", x, float32(0)),
        row("Maximum", x.astype("float64"), y.astype("float64")),
    ]
    rows += [row("Pow", x, float32([2])), row("Pow", float32([-2, -1, 1, 3]), float32([2, 3, -1, 0]))]
    rows += [row("Pow", float32([0, 0, 0]), float32([1, 2, 3])), row("Pow", float32([-2.5, 2.5]), float32(2))]
    rows += [row("Xdivy", float32([0, 0, 1]), float32([0, 2, 2])), row("Xlogy", float32([0, 0, 2]), float32([0, 2, 3]))]
    rows += [row("Xlog1py", float32([0, 0, 2]), float32([-1, 2, 3]))]
    return rows


def complex_rows() -> list[Row]:
    rows = []
    for dtype in ["complex64", "complex128"]:
        x = INPUTS.complex(3, 1, dtype=dtype)
        y = INPUTS.complex(4, dtype=dtype)
        names = ["Add", "AddV2", "Sub", "Mul", "Div", "RealDiv", "Pow", "SquaredDifference", "DivNoNan", "MulNoNan"]
        rows += [row(name, x, y) for name in [*names, "Xdivy", "Xlogy"]]
        rows.append(row("DivNoNan", x, y * 0))
    strings = np.array([[b"a"], [b""]], dtype=object)
    for other in [np.array([b"b", b"\xff"], dtype=object), np.array(b"c", dtype=object), strings[:, 0]]:
        rows.append(row("Add", strings, other))
    rows.append(row("Add", np.array(b"c", dtype=object), np.array(b"d", dtype=object)))
    return rows


def list_rows() -> list[Row]:
    rows = []
    for dtype in ["float32", "float64", "int32", "int64", "float16"]:
        many: Any = [floats(2, 3, dtype=dtype) for _ in range(3)]
        rows.append(row("AddN", many, tolerance=2e-3 if dtype == "float16" else 1e-5))
    rows.append(row("AddN", [floats(2, 3)]))
    rows += [row("AddN", [floats(2, 3), floats(3)]), row("AddN", [floats(), floats()]), row("AddN", [floats(0, 2)] * 4)]
    rows.append(row("AddN", [floats(2, 3), floats(2, 3)], view=True))
    rows.append(row("ClipByValue", floats(2, 3), float32(1), float32(-1), gradients=False))
    for low, high in [(floats(2, 3) - 1, floats(2, 3) + 3), (float32(-0.5), float32(0.5)), (float32(-1), float32(1))]:
        rows.append(row("ClipByValue", floats(2, 3), low, high))
    edges = float32([-1, -0.5, 0, 0.5, 1, NAN])
    rows.append(row("ClipByValue", edges[:-1], float32(-0.5), float32(0.5)))
    rows.append(row("ClipByValue", edges, float32(-0.5), float32(0.5), gradients=False))
    for dtype in ["int32", "int64", "uint8", "int16", "float64", "float16"]:
        x: Any = np.arange(12).astype(dtype).reshape(3, 4)
        rows.append(row("ClipByValue", x, np.array(2, dtype), np.array(7, dtype)))
    return rows


def gamma_rows() -> list[Row]:
    """torch has no derivatives with respect to the first argument."""
    a, x = positive(3, 1, low=0.5, high=4), positive(5, low=0.1, high=6)
    rows = [row(name, a, x, gradients=False) for name in ["Igamma", "Igammac"]]
    rows += [row(name, a.astype("float64"), x.astype("float64"), gradients=False) for name in ["Igamma", "Igammac"]]
    orders = float32([[0], [1], [2], [5], [1.5], [-1]])
    for dtype in ["float32", "float64"]:
        rows.append(row("Polygamma", orders.astype(dtype), x.astype(dtype), gradients=False))
    rows += [row("Zeta", a + 1.5, x), row("Zeta", (a + 1.5).astype("float64"), x.astype("float64"))]
    return rows


ROWS = [
    *broadcasting_rows(),
    *short_float_rows(),
    *integer_rows(),
    *special_rows(),
    *tie_rows(),
    *complex_rows(),
    *list_rows(),
    *gamma_rows(),
]


@pytest.mark.parametrize("name", operations(ROWS))
def test_operation(name: str, results: Results) -> None:
    """Every row of the table."""
    check(name, results)


def test_accumulate() -> None:
    """TensorFlow replaces AccumulateNV2 before it runs a graph, so it cannot be called alone."""
    assert accumulate_n([torch.tensor([1.0]), torch.tensor([2.0])], shape=(1,)).tolist() == [3]
