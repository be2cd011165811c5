"""Reductions over segments equal TensorFlow's: values, dtypes, shapes, gradients."""

from typing import Any

import numpy as np
import pytest
import torch
from op_inputs import Inputs, Results
from op_inputs import int32 as i
from op_rows import check, operations, row

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.registry import OPS

normal = Inputs(6).normal


SORTED = ["SegmentSum", "SegmentMean", "SegmentProd", "SegmentMax", "SegmentMin"]
UNSORTED = ["UnsortedSegmentSum", "UnsortedSegmentProd", "UnsortedSegmentMax", "UnsortedSegmentMin"]
SPARSE = ["SparseSegmentSum", "SparseSegmentMean", "SparseSegmentSqrtN"]

ROWS = [
    *(
        row(name, data, i(ids))
        for name in SORTED
        for data, ids in (
            (normal(5, 3), [0, 0, 1, 3, 3]),
            (normal(4), [2, 2, 2, 3]),
            (normal(3, 2, 2), [0, 1, 2]),
            (i([[5, 7], [-3, 2], [4, 4]]), [0, 0, 2]),
            (normal(3, 0), [0, 1, 1]),
            (normal(4), [0, 2, 1, 3]),
            (normal(4), [0, 1]),
            (normal(4, 2), [[0, 1], [1, 1], [1, 1], [2, 2]]),
        )
    ),
    *(row(name, normal(0, 3), i([]), gradients=False) for name in SORTED),
    *(row(name, normal(4, 2), np.array([0, 1, 1, 1], np.int64), view=True) for name in SORTED),
    row("SegmentSum", torch.arange(6).reshape(3, 2).bfloat16(), i([0, 0, 1]), gradients=False),
    *(
        row(name, data, i(ids), i(count))
        for name in UNSORTED
        for data, ids, count in (
            (normal(5, 3), [0, 3, 1, 3, 0], 4),
            (normal(5, 3), [0, -1, 1, -1, 0], 3),
            (normal(2, 3, 2), [[0, 1, 1], [2, 2, 0]], 3),
            (normal(2, 3), [[0, 1, 1], [4, 4, 0]], 6),
            (i([[5, 7], [-3, 2], [4, 4]]), [0, 0, 2], 3),
            (normal(3), [0, 3, 1], 3),
            (normal(3), [0, 1], 3),
            (normal(3), [0, 1, 1], -1),
            (normal(0, 2), [], 2),
        )
    ),
    *(row(name, np.array([[0.5, 2], [0.5, -1]]), i([1, 1]), np.array(3, np.int64)) for name in UNSORTED),
    *(row(name, normal(), i(1), i(3)) for name in UNSORTED),
    *(
        row(name, normal(6, 3), i(indices), i(ids))
        for name in SPARSE
        for indices, ids in (
            ([0, 5, 5], [0, 0, 1]),
            ([1, 2, 3, 4], [0, 2, 2, 2]),
            ([4, 0], [1, 3]),
            ([6, 0], [0, 1]),
            ([-1, 0], [0, 1]),
            ([1, 0], [1, 0]),
            ([1, 0], [0]),
            ([1, 0], [-1, 0]),
        )
    ),
    *(row(name, normal(6, 3), i([]), i([]), gradients=False) for name in SPARSE),
    *(
        # TensorFlow adds up in float32.
        row(name, torch.from_numpy(normal(9, 3)).to(dtype), i([*range(9), 3]), i([0] * 7 + [2] * 3), gradients=False)
        for name in SPARSE
        for dtype in (torch.float16, torch.bfloat16)
    ),
    *(row(name, normal(6), np.array([3, 2], np.int64), np.array([0, 0], np.int64)) for name in SPARSE),
    *(
        # TensorFlow's gradient is uninitialised memory.
        row(f"{name}WithNumSegments", normal(6, 3), i([]), i([]), i(2), gradients=False)
        for name in SPARSE
    ),
    *(
        row(f"{name}WithNumSegments", normal(6, 3), i(indices), i(ids), i(count))
        for name in SPARSE
        for indices, ids, count in (
            ([0, 5, 5], [0, 0, 1], 2),
            ([0, 5, 5], [0, 0, 1], 4),
            ([0, 5, 5], [0, 0, 1], 1),
            ([0, 5, 5], [0, 0, 1], -1),
        )
    ),
]


@pytest.mark.parametrize("name", operations(ROWS))
def test_operation(name: str, results: Results) -> None:
    """Every row of the table."""
    check(name, results)


@pytest.mark.parametrize("name", [*SORTED, *SPARSE, *UNSORTED])
def test_huge_number(name: str) -> None:
    """Numbers in a file do not decide how much memory is taken."""
    data, ids = torch.ones(2, 3), torch.tensor([0, 1 << 40])
    inputs: list[Any] = [data, torch.tensor([0, 1]), ids] if name in SPARSE else [data, ids]
    if name in UNSORTED:
        inputs.append(1 << 41)
    with pytest.raises(InvalidArgumentError, match="the limit"):
        OPS[name].function(*inputs)
