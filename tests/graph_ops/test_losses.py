"""Cross entropies equal TensorFlow's: values, dtypes, shapes, gradients."""

import numpy as np
import pytest
import torch
from op_inputs import Array, Inputs, Results, float32, int32
from op_rows import Row, check, operations, row

INPUTS = Inputs(10)
floats = INPUTS.normal
DENSE, SPARSE = "SoftmaxCrossEntropyWithLogits", "SparseSoftmaxCrossEntropyWithLogits"
INF = float("inf")


def probabilities(*shape: int, dtype: str = "float32") -> Array:
    values: Array = np.exp(floats(*shape, dtype="float64"))
    found: Array = (values / values.sum(-1, keepdims=True)).astype(dtype)
    return found


def dense_rows() -> list[Row]:
    rows = []
    for shape in [(3, 5), (1, 1), (4, 2), (0, 3)]:
        rows.append(row(DENSE, floats(*shape, scale=3), probabilities(*shape)))
        rows.append(row(DENSE, floats(*shape, dtype="float64"), probabilities(*shape, dtype="float64"), view=True))
        rows.append(row(DENSE, floats(*shape), floats(*shape)))  # labels that do not add up to 1
    pairs: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
        *(((1, 5), (3, 5)), ((3, 5), (1, 5)), ((3, 1), (3, 5)), ((5,), (3, 5)), ((), (2, 3))),
    ]
    for logits, labels in pairs:  # TensorFlow's derivatives of these do not have the shape of the input
        rows.append(row(DENSE, floats(*logits), probabilities(*labels), gradients=False))
    for logits, labels in [((3, 5), (3, 4)), ((3, 5), (2, 5)), ((5,), (5,)), ((2, 3, 4), (2, 3, 4))]:
        rows.append(row(DENSE, floats(*logits), probabilities(*labels)))
    x, y = floats(3, 5), probabilities(3, 5)
    rows.append(row(DENSE, x.astype("float16"), y.astype("float16"), tolerance=3e-3))
    rows.append(row(DENSE, torch.from_numpy(x).bfloat16(), torch.from_numpy(y).bfloat16(), tolerance=2e-2))
    rows.append(row(DENSE, float32([[1000, 0, -1000], [0, 0, 0]]), float32([[1, 0, 0], [0, 1, 0]])))
    rows.append(row(DENSE, float32([[1000, 0, -1000], [88, 89, 90]]), float32([[0.2, 0.3, 0.5], [1, 0, 0]])))
    rows.append(row(DENSE, float32([[1, -INF, 2]]), float32([[0.5, 0.25, 0.25]]), gradients=False))
    return rows


def sparse_rows() -> list[Row]:
    rows = []
    for dtype in ["int32", "int64"]:
        for shape in [(3, 5), (1, 1), (6, 2), (0, 3)]:
            labels = INPUTS.integers(shape[0], low=0, high=shape[1], dtype=dtype)
            rows.append(row(SPARSE, floats(*shape, scale=3), labels))
            rows.append(row(SPARSE, floats(*shape, dtype="float64"), labels, view=True))
    x, labels = floats(3, 5), int32([4, 0, 2])
    rows.append(row(SPARSE, x.astype("float16"), labels, tolerance=3e-3))
    rows.append(row(SPARSE, torch.from_numpy(x).bfloat16(), labels, tolerance=2e-2))
    rows.append(row(SPARSE, float32([[1000, 0, -1000], [0, 0, 0]]), int32([2, 1])))
    rows.append(row(SPARSE, float32([[1, -INF, 2], [1, -INF, 3]]), int32([0, 1]), gradients=False))
    rows += [row(SPARSE, x, int32(refused)) for refused in ([4, 0, 5], [-1, 0, 2], [1, 2], [[1, 2, 3]], 1)]
    return [*rows, row(SPARSE, x[0], labels), row(SPARSE, x[None], labels[None])]


ROWS = [*dense_rows(), *sparse_rows()]


@pytest.mark.parametrize("name", operations(ROWS))
def test_operation(name: str, results: Results) -> None:
    """Every row of the table."""
    check(name, results)
