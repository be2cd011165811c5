"""Scattered rows and partitions equal TensorFlow's: values, dtypes, shapes, gradients."""

from typing import Any

import numpy as np
import pytest
import torch
from op_inputs import Inputs, Results
from op_inputs import int32 as i
from op_rows import check, operations, row

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.registry import OPS

normal = Inputs(7).normal


WORDS = np.array([b"a", b"", b"ccc", b"dd", b"e", b"\xff"], dtype=object)
TENSOR_SCATTERS = [
    "TensorScatterUpdate",
    "TensorScatterAdd",
    "TensorScatterSub",
    "TensorScatterMax",
    "TensorScatterMin",
]
# Indices, the shape of the updates, and the shape of the result.
SCATTERED: list[tuple[Any, tuple[int, ...], list[int]]] = [
    ([[4], [1], [7]], (3,), [8]),
    ([[0, 1], [2, 3]], (2,), [3, 4]),
    ([[2], [0]], (2, 4), [3, 4]),
    ([[[0, 1]], [[2, 3]]], (2, 1, 2), [3, 4, 2]),
    ([[[2, 0]]], (1, 1), [3, 4]),
    ([2, 0], (2, 4), [3, 4]),
    ([2, 0], (), [3, 4]),
    (2, (4,), [3, 4]),
    (np.zeros((0, 1)), (0, 4), [3, 4]),
    ([[3], [0]], (2, 4), [3, 4]),
    ([[-1], [0]], (2, 4), [3, 4]),
    ([[1], [0]], (2, 3), [3, 4]),
    ([[0, 1, 1]], (1,), [3, 4]),
]

ROWS = [
    *(row("ScatterNd", i(indices), normal(*updates), i(shape)) for indices, updates, shape in SCATTERED),
    row("ScatterNd", i([[1], [1], [0]]), normal(3, 2), i([3, 2])),
    row("ScatterNd", i([[1], [1], [0]]), i([5, 6, 7]), i([3])),
    row("ScatterNd", i([[1], [1]]), np.array([True, True]), i([3])),
    row("ScatterNd", i([[1], [1]]), normal(2), i([-3])),
    row("ScatterNd", i([[1], [9], [-1]]), normal(3), i([3]), bad_indices_policy="IGNORE", gradients=False),
    row("ScatterNd", np.array([[1]], np.int64), normal(1, 2), np.array([3, 2], np.int64), view=True),
    *(
        row(name, normal(*shape), i(indices), normal(*updates))
        for name in TENSOR_SCATTERS
        for indices, updates, shape in SCATTERED
    ),
    *(row(name, normal(3, 2), i([[1], [2]]), normal(2, 2), view=True) for name in TENSOR_SCATTERS),
    *(row(name, i([1, 2, 3]), i([[1], [1]]), i([7, -5])) for name in TENSOR_SCATTERS),
    row("TensorScatterUpdate", WORDS, i([[1], [3]]), WORDS[[0, 0]]),
    *(
        row("DynamicPartition", data, i(partitions), num_partitions=count)
        for data, partitions, count in (
            (normal(5, 3), [0, 2, 1, 2, 0], 3),
            (normal(5), [0, 0, 0, 0, 0], 2),
            (normal(2, 3, 2), [[0, 1, 1], [1, 0, 0]], 2),
            (normal(2, 3), [[0, 1, 1], [1, 0, 0]], 2),
            (normal(3), [0, 2, 1], 2),
            (normal(3), [0, -1, 1], 2),
            (normal(3), [0, 1], 2),
            (WORDS, [0, 1, 0, 1, 0, 1], 2),
            (i([4, 5, 6]), [1, 1, 0], 3),
        )
    ),
    row("DynamicPartition", normal(0, 2), i([]), num_partitions=2, gradients=False),
    *(
        row(name, [i(each) for each in indices], data)
        for name in ("DynamicStitch", "ParallelDynamicStitch")
        for indices, data in (
            (([0, 2], [1, 3]), [normal(2, 3), normal(2, 3)]),
            ((1, [[0, 2]]), [normal(2), normal(1, 2, 2)]),
            (([0, 1], [1, 2]), [normal(2), normal(2)]),
            (([0, 1], []), [normal(2, 2), normal(0, 2)]),
            (([0, 1], [2]), [normal(2, 2), normal(1, 3)]),
            (([0, 1], [2]), [normal(3), normal(1)]),
            (([1, 0],), [i([7, 8])]),
            (([0, 2], [1]), [WORDS[:2], WORDS[2:3]]),
            (([0, 4], [1]), [WORDS[:2], WORDS[2:3]]),
        )
    ),
    row("DynamicStitch", [i([]), i([])], [normal(0, 2), normal(0, 2)], gradients=False),
]  # fmt: skip


@pytest.mark.parametrize("name", operations(ROWS))
def test_operation(name: str, results: Results) -> None:
    """Every row of the table."""
    check(name, results)


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("ScatterNd", (torch.tensor([[1]]), torch.ones(1), (1 << 40,))),
        ("DynamicStitch", ([torch.tensor([1 << 40])], [torch.ones(1)])),
    ],
    ids=["ScatterNd", "DynamicStitch"],
)
def test_large_result(name: str, inputs: tuple[Any, ...]) -> None:
    """Numbers in a file do not decide how much memory is taken."""
    with pytest.raises(InvalidArgumentError, match="the limit"):
        OPS[name].function(*inputs)
