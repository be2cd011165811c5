"""Ragged tensors equal TensorFlow's: values, shapes, gradients, refusals."""

import numpy as np
import pytest
from op_inputs import Inputs, Results
from op_inputs import float32 as f32
from op_inputs import int32 as i32
from op_inputs import int64 as i64
from op_rows import check, operations, row

normal = Inputs(6).normal


WORDS = np.array([b"a", b"", b"ccc", b"d", b"e"], dtype=object)
NO_WORD = np.array(b"-", dtype=object)
SPLITS = i64([0, 2, 2, 5])
ROWIDS = i64([0, 0, 2, 2, 2])
DEEP = [i64([0, 2, 2, 3]), i64([0, 1, 4, 5])]

ROWS = [
    *(
        row("RaggedTensorToTensor", kind(shape), values, default, [SPLITS], row_partition_types=["ROW_SPLITS"])
        for kind in (i32, i64)
        for shape in ([-1, -1], [3, 4], [2, 2], [5, 1], [3, 3], -1, [-1, 0], [0, -1], [-1], [-1, -1, -1], 3)
        for values, default in ((normal(5), normal()), (WORDS, NO_WORD))
    ),
    *(
        row("RaggedTensorToTensor", i64(shape), normal(5, 2), default, [SPLITS], row_partition_types=["ROW_SPLITS"])
        for shape in ([-1, -1, 2], [-1, -1, -1], [2, 2, 2], [-1, -1, 3], -1)
        for default in (normal(), normal(2), normal(1), normal(3), normal(1, 2))
    ),
    *(
        row(
            "RaggedTensorToTensor", i64(shape), values, normal(), [i64(count), ROWIDS],
            row_partition_types=["FIRST_DIM_SIZE", "VALUE_ROWIDS"],
        )
        for shape in ([-1, -1], [4, 2])
        for count in (3, 4)
        for values in (normal(5),)
    ),
    *(
        row("RaggedTensorToTensor", i64(shape), normal(5), normal(), DEEP, row_partition_types=["ROW_SPLITS"] * 2)
        for shape in ([-1, -1, -1], [2, 2, 2], [4, 1, 4], [-1, 3, -1])
    ),
    row("RaggedTensorToTensor", i64(-1), i64([1, 2]), i64(0), [i64([0, 1, 2])], row_partition_types=["ROW_SPLITS"]),
    row("RaggedTensorToTensor", i64(-1), normal(0), normal(), [i64([0])], row_partition_types=["ROW_SPLITS"]),
    row("RaggedTensorToTensor", i64(-1), normal(0), normal(), [i64([0, 0, 0])], row_partition_types=["ROW_SPLITS"]),
    row("RaggedTensorToTensor", i64(-1), normal(2), normal(), [i64([0, 2])], row_partition_types=["VALUE_ROWIDS"]),
    row("RaggedTensorToTensor", i64(-1), normal(2), normal(), [i64([0, 2])], row_partition_types=["ROW_LIMITS"]),
    *(
        row("RaggedRange", kind(starts), kind(limits), kind(deltas), Tsplits=splits)
        for kind in (i32, i64)
        for starts, limits, deltas in (
            (0, 5, 1), ([0, 3], [3, 3], 1), ([0, 5, 8], [8, 8, 8], [2, 3, -1]), ([5, 0], [0, 5], [-2, 2]),
            ([0], [5, 6], 1), ([0], [5], 0), ([], [], 1), ([0, 0], 7, [3, 4]), ([[0]], 1, 1),
        )
        for splits in ("int32", "int64")
    ),
    *(
        row("RaggedRange", f32(starts), f32(limits), f32(deltas), gradients=False, tolerance=1e-6)
        for starts, limits, deltas in ((0.0, 2.0, 0.5), ([0.0, 1.0], [1.0, -1.0], [0.3, -0.3]), (0.0, np.inf, 1.0))
    ),
    *(
        row("RaggedGather", splits, values, kind(indices), OUTPUT_RAGGED_RANK=rank)
        for kind in (i32, i64)
        for splits, values, indices, rank in (
            ([SPLITS], normal(5), [2, 0, 2], 1),
            ([SPLITS], normal(5, 2), [1], 1),
            ([SPLITS], WORDS, [[0, 2], [2, 1]], 2),
            ([SPLITS], normal(5), [], 1),
            (DEEP, normal(5), [2, 0], 2),
            (DEEP, normal(5, 3), [[1, 2]], 3),
            ([SPLITS], normal(5), [3], 1),
            ([SPLITS], normal(5), [-1], 1),
            ([SPLITS], normal(4), [2], 1),
            ([i32([0, 2, 5])], normal(5), [1, 0], 1),
        )
    ),
    *(
        row("RaggedTensorToSparse", splits, values)
        for splits, values in (
            ([SPLITS], normal(5)),
            ([SPLITS], WORDS),
            ([SPLITS], normal(5, 2)),
            (DEEP, normal(5)),
            (DEEP, normal(5, 2, 2)),
            ([i64([0])], normal(0)),
            ([i64([0, 0])], normal(0)),
            ([i32([0, 1, 3])], i64([1, 2, 3])),
            ([i64([0, 2])], normal(3)),
            ([i64([1, 2])], normal(2)),
            ([i64([0, 3, 2])], normal(2)),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("name", operations(ROWS))
def test_operation(name: str, results: Results) -> None:
    """Equal to TensorFlow; what it refuses is refused."""
    check(name, results)
