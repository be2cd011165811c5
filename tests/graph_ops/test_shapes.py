"""Shapes and reshaping equal TensorFlow's: values, dtypes, shapes, gradients."""

from typing import Any

import numpy as np
import pytest
import torch
from op_inputs import Inputs, Results
from op_inputs import int32 as i
from op_rows import check, operations, row

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.registry import OPS

normal = Inputs(1).normal


def strings(*values: bytes) -> np.ndarray[Any, Any]:
    return np.array(values, dtype=object)


WORDS = strings(b"a", b"", b"ccc", b"dd", b"e", b"\xff")

ROWS = [
    *(
        row(name, x, gradients=False, out_type=out_type)
        for name in ("Shape", "Size")
        for x in (normal(2, 0, 3), normal(), normal(4), WORDS.reshape(2, 3))
        for out_type in (torch.int32, torch.int64)
    ),
    row("ShapeN", [normal(2, 3), normal(), normal(0)], gradients=False),
    row("ShapeN", [normal(2, 3), normal(1)], gradients=False, out_type=torch.int64),
    *(row("Rank", x, gradients=False) for x in (normal(2, 0, 3), normal(), WORDS)),
    *(
        row("Reshape", x, i(shape))
        for x, shape in (
            (normal(2, 3, 4), [4, 6]),
            (normal(2, 3, 4), [-1]),
            (normal(2, 3, 4), [2, -1, 2]),
            (normal(1), []),
            (normal(), [1, 1]),
            (normal(2, 0), [0, 5]),
            (normal(2, 0), [3, -1]),
            (normal(0), [-1, 0]),
            (normal(0), [0, -1, 2]),
            (normal(2, 3), [4, 2]),
            (normal(2, 3), [-1, -1]),
            (normal(2, 3), [-2, -3]),
            (normal(2, 3), [4, -1]),
            (WORDS, [2, -1]),
            (WORDS, [4]),
        )
    ),
    row("Reshape", normal(2, 3, 4), np.array([4, 6], np.int64), view=True),
    row("Reshape", torch.ones(2, 3, dtype=torch.bfloat16), i([6]), gradients=False),
    *(
        row("Squeeze", x, squeeze_dims=axes)
        for x, axes in (
            (normal(1, 2, 1), []),
            (normal(1, 2, 1), [0]),
            (normal(1, 2, 1), [-1]),
            (normal(1, 2, 1), [0, 2]),
            (normal(1, 2, 1), [2, -1]),
            (normal(1, 1), []),
            (normal(), []),
            (normal(1, 0), [0]),
            (normal(1, 2, 1), [1]),
            (normal(1, 2, 1), [3]),
            (WORDS.reshape(6, 1), [1]),
        )
    ),
    *(
        row("ExpandDims", x, i(axis))
        for x, axis in (
            (normal(2, 3), 0),
            (normal(2, 3), 1),
            (normal(2, 3), -1),
            (normal(2, 3), -3),
            (normal(), 0),
            (normal(0), [1]),
            (normal(2, 3), 3),
            (normal(2, 3), -4),
            (normal(2, 3), [0, 1]),
            (WORDS, 1),
        )
    ),
    *(
        row(name, x, i(perm))
        for name in ("Transpose", "ConjugateTranspose")
        for x, perm in (
            (normal(2, 3, 4), [2, 0, 1]),
            (normal(2, 3), [1, 0]),
            (normal(2, 0, 3), [1, 2, 0]),
            (normal(), []),
            (normal(2, 3), [0, 0]),
            (normal(2, 3), [0]),
            (normal(2, 3), [0, 2]),
        )
    ),
    row("Transpose", normal(2, 3), i([-1, 0]), gradients=False),
    row("Transpose", WORDS.reshape(2, 3), i([1, 0])),
    row("Transpose", normal(2, 3, 4), np.array([1, 0, 2], np.int64), view=True),
    row("ConjugateTranspose", np.array([[1 + 2j, 3 - 1j]], np.complex64), i([1, 0])),
    *(row("InvertPermutation", i(x)) for x in ([3, 0, 2, 1], [], [0], [1, 1], [0, 2], [-1, 0])),
    row("InvertPermutation", np.array([1, 2, 0], np.int64)),
    *(
        row("BroadcastTo", x, i(shape))
        for x, shape in (
            (normal(3), [2, 3]),
            (normal(2, 1), [2, 3]),
            (normal(), [2, 2]),
            (normal(), []),
            (normal(1, 3), [0, 3]),
            (normal(1), [4, 0]),
            (normal(3), [2]),
            (normal(2, 3), [3]),
            (normal(3), [3, -1]),
            (WORDS, [2, 6]),
        )
    ),
    row("BroadcastTo", np.array([[True], [False]]), i([2, 3])),
    *(
        row(name, i(a), i(b))
        for name in ("BroadcastArgs", "BroadcastGradientArgs")
        for a, b in (([2, 1], [1, 3]), ([], []), ([5, 2, 1], [2, 4]), ([3], [4]), ([1, 1], [7]), ([0], [1]))
    ),
    row("BroadcastArgs", np.array([3, 1], np.int64), np.array([2], np.int64)),
    *(
        row("Fill", i(dims), value)
        for dims, value in (
            ([2, 3], normal()),
            ([], normal()),
            ([0, 3], normal()),
            ([3], np.array(7, np.int64)),
            ([2], np.array(True)),
            ([2], np.array(1 + 2j, np.complex64)),
            ([2], np.array(b"x", dtype=object)),
            ([2], torch.tensor(1.5, dtype=torch.bfloat16)),
            ([2], i([5])),
            ([2], normal(2)),
            ([-1], normal()),
        )
    ),
    *(
        row(name, x, gradients=False)
        for name in ("ZerosLike", "OnesLike")
        for x in (
            normal(2, 3),
            normal(),
            normal(0, 2),
            np.array([True, False]),
            np.array([1 + 2j]),
            np.array([np.nan, np.inf]),
            torch.ones(2, dtype=torch.float16),
        )
    ),
    row("ZerosLike", WORDS),
    *(
        row("Tile", x, i(multiples))
        for x, multiples in (
            (normal(2, 3), [2, 3]),
            (normal(2, 3), [1, 0]),
            (normal(), []),
            (normal(0, 2), [3, 2]),
            (normal(2, 1, 2), [1, 3, 1]),
            (normal(2, 3), [2]),
            (normal(2), [-1]),
            (WORDS, [2]),
        )
    ),
    row("Tile", normal(2, 3), np.array([2, 2], np.int64), view=True),
    row("Tile", np.array([[True], [False]]), i([1, 3])),
    *(
        row("ConcatOffset", i(axis), [i(shape) for shape in shapes])
        for axis, shapes in (
            (0, ([2, 3], [4, 3], [1, 3])),
            (1, ([2, 3], [2, 0])),
            (-1, ([2, 3], [2, 5])),
            (0, ([2, 3], [2, 4])),
            (2, ([2, 3], [2, 3])),
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
        ("Fill", ((1 << 20, 1 << 20), torch.ones(()))),
        ("Fill", ((1 << 62, 1 << 62, 1 << 62), torch.ones(()))),
        ("Tile", (torch.ones(2), (1 << 40,))),
        ("BroadcastTo", (torch.ones(1), (1 << 20, 1 << 20))),
    ],
    ids=["fill", "fill_overflow", "tile", "broadcast"],
)
def test_large_result(name: str, inputs: tuple[Any, ...]) -> None:
    """Numbers in a file do not decide how much memory is taken."""
    with pytest.raises(InvalidArgumentError, match="the limit"):
        OPS[name].function(*inputs)
