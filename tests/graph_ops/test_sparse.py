"""Sparse tensors equal TensorFlow's: values, dtypes, shapes, gradients."""

from typing import Any

import numpy as np
import pytest
import torch
from op_inputs import Inputs, Results
from op_inputs import int64 as i64
from op_rows import check, operations, row

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.registry import OPS

normal = Inputs(8).normal


WORDS = np.array([b"a", b"", b"ccc"], dtype=object)
WORD = np.array(b"none", dtype=object)
NONE = np.zeros((0, 2), np.int64)
INDICES = i64([[0, 1], [2, 0], [2, 3]])

ROWS = [
    *(
        row("SparseReshape", i64(indices), i64(shape), i64(new))
        for indices, shape, new in (
            (INDICES, [3, 4], [12]),
            (INDICES, [3, 4], [4, 3]),
            (INDICES, [3, 4], [2, -1, 3]),
            (INDICES, [3, 4], [-1, 2]),
            (NONE, [3, 4], [6, -1]),
            ([[5]], [6], [2, 3]),
            (NONE, [0, 4], [2, 0]),
            (INDICES, [3, 4], [5, -1]),
            (INDICES, [3, 4], [-1, -1]),
            (INDICES, [3, 4], [11]),
            (INDICES, [3, 4, 1], [12]),
        )
    ),
    *(
        row("SparseFillEmptyRows", i64(indices), values, i64(shape), default)
        for indices, values, shape, default in (
            (INDICES, normal(3), [5, 4], normal()),
            (INDICES, normal(3), [3, 4], normal()),
            ([[2, 0], [0, 1], [2, 1]], normal(3), [4, 4], normal()),
            (NONE, normal(0), [3, 4], normal()),
            ([[0, 1], [1, 0]], normal(2), [2, 4], normal()),
            ([[0, 1, 1], [3, 0, 2]], i64([4, 5]), [4, 2, 3], np.int64(9)),
            (INDICES, WORDS, [5, 4], WORD),
            (INDICES, normal(3), [2, 4], normal()),
            ([[-1, 0]], normal(1), [2, 4], normal()),
            (INDICES, normal(2), [5, 4], normal()),
            (INDICES, normal(3), [5, 4], normal(1)),
            (INDICES, normal(3), [5, 4, 1], normal()),
        )
    ),
    *(
        row("SparseReorder", i64(indices), values, i64(shape))
        for indices, values, shape in (
            ([[2, 3], [0, 1], [2, 0]], normal(3), [3, 4]),
            (INDICES, normal(3), [3, 4]),
            (NONE, normal(0), [3, 4]),
            ([[1, 1, 0], [0, 0, 2], [1, 0, 9]], normal(3), [2, 2, 10]),
            ([[2, 3], [0, 1], [2, 0]], WORDS, [3, 4]),
            ([[2], [1], [0]], i64([5, 6, 7]), [3]),
        )
    ),
    *(
        row(
            "SparseToDense",
            np.array(indices, dtype),
            np.array(shape, dtype),
            values,
            default,
            validate_indices=check_,
            # TensorFlow's gradient is only defined for these.
            gradients=np.ndim(indices) == 2 and np.ndim(values) == 1 and values.dtype == np.float32,
        )
        for dtype, check_ in ((np.int32, True), (np.int64, False))
        for indices, shape, values, default in (
            (INDICES, [3, 4], normal(3), normal()),
            (INDICES, [3, 4], normal(), normal()),
            ([1, 4], [6], normal(2), normal()),
            (2, [4], normal(), normal()),
            (NONE, [2, 2], normal(0), normal()),
            (INDICES, [3, 4], i64([7, 8, 9]), np.int64(-1)),
            (INDICES, [3, 4], WORDS, WORD),
            (INDICES, [3, 3], normal(3), normal()),
            ([[-1, 0]], [3, 3], normal(1), normal()),
            (INDICES, [3, 4], normal(2), normal()),
            (INDICES, [3, 4, 2], normal(3), normal()),
            (INDICES, [3, 4], normal(3), normal(1)),
        )
    ),
    row("SparseToDense", i64([3, 1]), i64([6]), normal(2), normal()),
    row("SparseToDense", i64([1, 1]), i64([6]), normal(2), normal()),
    row("SparseToDense", i64([3, 1]), i64([6]), normal(2), normal(), validate_indices=False, gradients=False),
    *(
        row("SparseTensorDenseMatMul", i64(indices), values, i64(shape), b, adjoint_a=adjoint_a, adjoint_b=adjoint_b)
        for indices, values, shape, b, adjoint_a, adjoint_b in (
            (INDICES, normal(3), [3, 4], normal(4, 2), False, False),
            (INDICES, normal(3), [3, 4], normal(3, 2), True, False),
            (INDICES, normal(3), [3, 4], normal(2, 4), False, True),
            (INDICES, normal(3), [3, 4], normal(2, 3), True, True),
            ([[0, 0], [0, 0]], normal(2), [3, 4], normal(4, 2), False, False),
            (NONE, normal(0), [3, 4], normal(4, 2), False, False),
            (INDICES, normal(3), [3, 4], normal(4, 0), False, False),
            (INDICES, normal(3), [3, 4], normal(3, 2), False, False),
            (INDICES, normal(3), [3, 3], normal(3, 2), False, False),
            (INDICES, normal(3), [2, 4], normal(4, 2), False, False),
            (INDICES, normal(2), [3, 4], normal(4, 2), False, False),
            (INDICES, np.array([1 + 2j, 3, 1j]), [3, 4], np.array([[1 - 1j], [2], [3j]]), True, False),
            (INDICES, normal(3).astype(np.float64), [3, 4], normal(4, 1).astype(np.float64), False, False),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("name", operations(ROWS))
def test_operation(name: str, results: Results) -> None:
    """Every row of the table."""
    check(name, results)


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("SparseToDense", (torch.tensor([[1]]), (1 << 40,), torch.ones(1), torch.zeros(()))),
        ("SparseFillEmptyRows", (torch.tensor([[1]]), torch.ones(1), (1 << 40,), torch.zeros(()))),
        ("SparseTensorDenseMatMul", (torch.tensor([[0, 0]]), torch.ones(1), (1 << 40, 2), torch.ones(2, 2))),
    ],
    ids=["SparseToDense", "SparseFillEmptyRows", "SparseTensorDenseMatMul"],
)
def test_large_result(name: str, inputs: tuple[Any, ...]) -> None:
    """Numbers in a file do not decide how much memory is taken."""
    with pytest.raises(InvalidArgumentError, match="the limit"):
        OPS[name].function(*inputs)
