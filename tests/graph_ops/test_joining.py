"""Concatenations, paddings and reversals equal TensorFlow's: values, dtypes, shapes, gradients."""

from typing import Any

import numpy as np
import pytest
import torch
from op_inputs import Inputs, Results
from op_inputs import int32 as i
from op_rows import check, operations, row

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.registry import OPS

normal = Inputs(3).normal


WORDS = np.array([b"a", b"", b"ccc", b"dd", b"e", b"\xff"], dtype=object)
BATCH = [normal(2, 3), normal(4, 3), normal(0, 3)]
PADDINGS: list[tuple[tuple[int, ...], Any]] = [
    ((2, 3), [[1, 2], [0, 3]]),
    ((2, 3), [[0, 0], [0, 0]]),
    ((4, 3, 2), [[3, 0], [0, 2], [1, 1]]),
    ((2, 2, 2, 2, 2), [[1, 0], [0, 1], [1, 1], [0, 0], [1, 0]]),
    ((), np.zeros((0, 2))),
    ((3,), [[2, 2]]),
    ((0, 2), [[0, 0], [1, 0]]),
    ((0, 2), [[1, 0], [1, 0]]),
    ((2, 3), [[3, 0], [0, 0]]),
    ((2, 3), [[0, 0], [0, 4]]),
    ((2, 3), [[-1, 0], [0, 0]]),
    ((2, 3), [[1, 1]]),
    ((2, 3), [[1, 1, 1], [1, 1, 1]]),
]

ROWS = [
    *(row("Pack", [normal(2, 3), normal(2, 3)], axis=axis) for axis in (0, 1, 2, -1, -3, 3, -4)),
    row("Pack", [normal(), normal(), normal()]),
    row("Pack", [normal(0, 2), normal(0, 2)], axis=1),
    row("Pack", [normal(2)]),
    row("Pack", [normal(2), normal(3)]),
    row("Pack", [WORDS, WORDS[::-1].copy()], axis=1),
    row("Pack", [normal(2, 3), normal(2, 3)], axis=1, view=True),
    row("Pack", [np.array([True]), np.array([False])]),
    row("ConcatV2", BATCH, i(0)),
    row("ConcatV2", BATCH, i(-2)),
    row("ConcatV2", [normal(2, 3), normal(2, 0), normal(2, 1)], i(1)),
    row("ConcatV2", [normal(2, 3, 2), normal(2, 3, 4)], np.array(-1, np.int64)),
    row("ConcatV2", [normal(2, 3), normal(3, 3)], i(1)),
    row("ConcatV2", [normal(2, 3), normal(0)], i(0)),
    row("ConcatV2", [normal(2, 3), normal(2, 3)], i(2)),
    row("ConcatV2", [normal(), normal()], i(0)),
    row("ConcatV2", [WORDS, WORDS[:2]], i(0)),
    row("ConcatV2", [normal(2, 3), normal(2, 3)], i(0), view=True),
    row("ConcatV2", [torch.ones(2).bfloat16(), torch.zeros(1).bfloat16()], i(0), gradients=False),
    row("ConcatV2", [np.array([1], np.uint8), np.array([2], np.uint8)], i(0)),
    row("Concat", i(0), BATCH),
    row("Concat", i(1), [normal(2, 3), normal(2, 1)]),
    row("Concat", i(1), [WORDS.reshape(3, 2), WORDS.reshape(3, 2)]),
    row("Concat", i(1), BATCH),
    *(row("Pad", normal(*shape), i(paddings)) for shape, paddings in PADDINGS),
    *(row("PadV2", normal(*shape), i(paddings), normal()) for shape, paddings in PADDINGS),
    *(
        row("MirrorPad", normal(*shape), i(paddings), gradients=0 not in shape, mode=mode)
        for mode in ("REFLECT", "SYMMETRIC")
        for shape, paddings in PADDINGS
    ),
    row("MirrorPad", np.arange(6).reshape(2, 3), np.array([[1, 1], [2, 2]], np.int64), mode="REFLECT"),
    row("Pad", np.array([[1, 2]], np.int64), np.array([[1, 1], [2, 2]], np.int64)),
    row("Pad", np.array([[True, True]]), i([[1, 1], [2, 2]])),
    row("Pad", normal(2, 3), i([[1, 1], [2, 2]]), view=True),
    row("Pad", WORDS, i([[1, 2]])),
    row("PadV2", WORDS, i([[1, 2]]), np.array(b"-", dtype=object)),
    row("MirrorPad", WORDS, i([[1, 2]]), mode="REFLECT"),
    row("Pad", np.array([1 + 2j], np.complex64), i([[1, 1]])),
    row("Pad", torch.ones(2).half(), i([[1, 1]]), gradients=False),
    row("PadV2", np.array([[1, 2]], np.int32), i([[1, 1], [2, 2]]), i(7)),
    row("PadV2", normal(2, 3), i([[1, 1], [2, 2]]), np.float32(-np.inf), view=True),
    *(
        row("ReverseV2", x, i(axis))
        for x, axis in (
            (normal(3, 4), [0]),
            (normal(3, 4), [-1]),
            (normal(3, 4), [0, 1]),
            (normal(3, 4), []),
            (normal(0, 4), [0]),
            (normal(), []),
            (normal(3, 4), [0, 0]),
            (normal(3, 4), [1, -1]),
            (normal(3, 4), [2]),
            (WORDS, [0]),
            (np.arange(4), [0]),
        )
    ),
    *(
        row("Reverse", x, np.array(dims, np.bool_))
        for x, dims in (
            (normal(3, 4), [True, False]),
            (normal(3, 4), [True, True]),
            (normal(3, 4), [False, False]),
            (normal(), []),
            (normal(3, 4), [True]),
            (WORDS, [True]),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("name", operations(ROWS))
def test_operation(name: str, results: Results) -> None:
    """Every row of the table."""
    check(name, results)


@pytest.mark.parametrize("more", [(), (torch.zeros(()),)], ids=["Pad", "PadV2"])
def test_large_result(more: tuple[torch.Tensor, ...]) -> None:
    """Numbers in a file do not decide how much memory is taken."""
    with pytest.raises(InvalidArgumentError, match="the limit"):
        OPS["PadV2" if more else "Pad"].function(torch.ones(2), ((1 << 40, 1 << 40),), *more)
