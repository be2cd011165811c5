"""Comparisons, logic and choices equal TensorFlow's: values, dtypes, shapes, gradients."""

import numpy as np
import pytest
import torch
from op_inputs import Inputs, Results, float32, int32
from op_rows import Row, check, operations, row

NAN, INF = float("nan"), float("inf")
INPUTS = Inputs(6)
SPECIAL = float32([NAN, INF, -INF, 0, -0.0, 1, -1, 3e38])
ORDERS = ["Less", "LessEqual", "Greater", "GreaterEqual"]
SHAPES = [((3, 1, 5), (7, 1)), ((), (2, 3)), ((4,), ()), ((0, 3), (1,)), ((2, 3), (2, 3)), ((3,), (4,))]
DTYPES = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "float16", "float64"]


def booleans(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    return INPUTS.integers(*shape) > 0


def strings(*values: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.object_]]:
    return np.array(values, dtype=object)


def comparison_rows() -> list[Row]:
    rows = []
    for name in [*ORDERS, "Equal", "NotEqual"]:
        for left, right in SHAPES:
            x, y = INPUTS.integers(*left, high=2).astype("float32"), INPUTS.integers(*right, high=2).astype("float32")
            rows.append(row(name, x, y, gradients=False, view=left == right))
        for dtype in DTYPES:
            x = np.array([0, 1, 2, 100, 127], dtype)
            if "int" in dtype:
                x = np.concatenate([x, np.array([np.iinfo(dtype).max, np.iinfo(dtype).min], dtype)])
            rows.append(row(name, x[:, None], x, gradients=False))
        rows.append(row(name, SPECIAL[:, None], SPECIAL, gradients=False))
        rows.append(row(name, torch.tensor([1.0, 2.0]).bfloat16(), torch.tensor([1.0, 1.0]).bfloat16()))
    for name in ["Equal", "NotEqual"]:
        for shapes in [((3,), (4,)), ((3,), (1,)), ((2, 3), (3,)), ((2, 3), (2,))]:
            first, second = (np.ones(shape, "int32") for shape in shapes)
            rows.append(row(name, first, second, incompatible_shape_error=False))
        rows.append(row(name, booleans(3, 1), booleans(4)))
        rows.append(row(name, np.array([1, 2], "uint64"), np.array([1, 2**64 - 1], "uint64")))
        rows.append(row(name, np.array([1 + 2j, 1], "complex64"), np.array([1 + 2j, 2], "complex64")))
        rows.append(row(name, strings(b"a", b"", b"\xff\0"), strings(b"a", b"b", b"\xff\0")))
        rows.append(row(name, strings(b"a", b"bc"), strings(b"bc")))
        rows.append(row(name, strings(b"a", b"bc")[:, None], strings(b"bc", b"a", b"")))
        rows.append(row(name, strings(b"a", b"bc"), strings(b"bc", b"a", b"")))
    x = float32([[1, 2, 3], [4, 5, 6]])
    for tolerance in [1e-5, 0.5]:
        rows.append(row("ApproximateEqual", x, x + 0.25, tolerance=tolerance, gradients=False))
    rows.append(row("ApproximateEqual", x, x + float32(1e-6), gradients=False))
    rows.append(row("ApproximateEqual", x, x[0], gradients=False))
    return rows


def logic_rows() -> list[Row]:
    rows = []
    for name in ["LogicalAnd", "LogicalOr"]:
        for left, right in SHAPES:
            rows.append(row(name, booleans(*left), booleans(*right)))
    rows += [row("LogicalNot", booleans(*shape)) for shape in [(3, 2), (), (0,)]]
    return rows


def choice_rows() -> list[Row]:
    rows = []
    for condition, shape in [
        ((), (2, 3)), ((2,), (2, 3)), ((2, 3), (2, 3)), ((2,), (2,)), ((), ()), ((4,), (4, 1, 3)), ((0,), (0, 2)),
        ((3,), (2, 3)), ((2, 1), (2, 3)), ((1,), (2, 3)), ((1,), (1, 3)), ((1,), ()),
    ]:  # fmt: skip
        rows.append(row("Select", booleans(*condition), INPUTS.normal(*shape), INPUTS.normal(*shape)))
    rows.append(row("Select", booleans(2, 3), INPUTS.normal(2, 3), INPUTS.normal(3)))
    rows.append(row("Select", booleans(2), INPUTS.normal(2, 3), INPUTS.normal(2, 3), view=True))
    rows.append(row("Select", booleans(2), np.ones((2, 2), "uint16"), np.zeros((2, 2), "uint16")))
    rows.append(row("Select", np.array([True, False]), strings(b"a", b"b"), strings(b"c", b"d")))
    rows.append(row("Select", np.array(False), strings(b"a", b"b"), strings(b"c", b"d")))
    for condition, left, right in [
        ((2, 3), (2, 3), (2, 3)), ((), (2, 3), ()), ((3,), (2, 1), ()), ((2, 1), (3,), (2, 3)), ((0, 1), (1,), (3,)),
        ((), (), ()), ((2,), (3,), (3,)), ((2, 1, 1), (4, 1), (3,)), ((3,), (1,), (2, 3)),
    ]:  # fmt: skip
        rows.append(row("SelectV2", booleans(*condition), INPUTS.normal(*left), INPUTS.normal(*right)))
    for dtype in ["int32", "int64", "uint8", "float64", "float16", "bool", "complex64"]:
        x, y = INPUTS.normal(2, 3).astype(dtype), INPUTS.normal(3).astype(dtype)
        rows.append(row("SelectV2", booleans(2, 3), x, y))
    # A derivative of the other choice that is NaN does not spread.
    rows.append(row("SelectV2", np.array([True, False]), float32([1, NAN]), float32([INF, 2])))
    rows.append(row("SelectV2", np.array([[True], [False]]), strings(b"a", b"b"), strings(b"c")))
    for shape in [(5,), (3, 4), (2, 3, 4), (0,), (3, 0), (2, 1, 3, 2), (1,)]:
        rows.append(row("Where", booleans(*shape)))
    rows.append(row("Where", np.array(True)))
    for dtype in [*DTYPES, "float32", "complex64", "uint64"]:
        if dtype == "float16":
            continue  # for which TensorFlow has no kernel
        rows.append(row("Where", np.array([[0, 1, 0], [2, 0, 3]], dtype), gradients=False))
    rows.append(row("Where", SPECIAL, gradients=False))
    return rows


def bucket_rows() -> list[Row]:
    rows = []
    for dtype in ["int32", "int64", "float32", "float64"]:
        x = np.array([[-5, 0, 1, 2], [3, 10, 100, -1]], dtype)
        for boundaries in [[0.0, 2.0, 10.0], [1.5], [], [1.0, 1.0, 2.0]]:
            rows.append(row("Bucketize", x, boundaries=boundaries, gradients=False))
    rows.append(row("Bucketize", SPECIAL, boundaries=[-1.0, 0.0, 1.0], gradients=False))
    rows.append(row("Bucketize", float32(1), boundaries=[2.0, 1.0], gradients=False))
    rows.append(row("Bucketize", float32([]), boundaries=[2.0, 3.0], gradients=False))
    predictions = float32([[1, 3, 2, 3], [4, 1, 0, 2], [NAN, 1, 2, 3], [1, 1, 1, INF], [0, 1, 2, 3]])
    targets = int32([1, 3, 3, 0, 9])
    for k in [0, 1, 2, 3, 5]:
        rows.append(row("InTopK", predictions, targets, k=k, gradients=False))
        rows.append(row("InTopKV2", predictions, targets.astype("int64"), np.array(k, "int64"), gradients=False))
    rows.append(row("InTopK", predictions, targets[:2], k=1, gradients=False))
    rows.append(row("InTopKV2", predictions[0], targets[:1], int32(1), gradients=False))
    return rows


ROWS = [*comparison_rows(), *logic_rows(), *choice_rows(), *bucket_rows()]


@pytest.mark.parametrize("name", operations(ROWS))
def test_operation(name: str, results: Results) -> None:
    """Every row of the table."""
    check(name, results)
