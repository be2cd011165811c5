"""Operations on Python integers equal TensorFlow's on tensors: values and shapes, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from op_inputs import Results, masks_of
from op_rows import check_integers, operations, row

from torch_tfckpt.errors import UnimplementedError
from torch_tfckpt.graph_ops.integers import INTEGER_OPS, as_integers, as_tensor, fits


def i(value: Any, dtype: Any = np.int32) -> np.ndarray[Any, Any]:
    return np.array(value, dtype)


def b(value: Any) -> np.ndarray[Any, Any]:
    return np.array(value, np.bool_)


VECTOR, MATRIX, SCALAR = i([7, -3, 0, 2]), i([[1, 2, 3], [-4, 5, -6]]), i(-3)
EDGES = i([2**31 - 1, -(2**31), 5])
WIDE = i([2**63 - 1, -(2**63), 5], np.int64)
PAIRS = [
    (VECTOR, i([2, 2, -2, -5])),
    (VECTOR, SCALAR),
    (SCALAR, MATRIX),
    (MATRIX, i([3, -1, 2])),
    (MATRIX, i([[2], [3]])),
    (i([], np.int64), i(3, np.int64)),
    (EDGES, i([-1, -1, 7])),
    (WIDE, i([-1, -1, 7], np.int64)),
    (VECTOR, i([1, 2])),
]
DIVISIONS = ["FloorDiv", "FloorMod", "Div", "TruncateDiv", "Mod", "TruncateMod"]
ARITHMETIC = ["Add", "AddV2", "Sub", "Mul", *DIVISIONS, "Maximum", "Minimum"]
COMPARISONS = ["Equal", "NotEqual", "Less", "LessEqual", "Greater", "GreaterEqual"]
REDUCTIONS = ["Sum", "Prod", "Max", "Min"]

ROWS = [
    *(row(name, *pair) for name in (*ARITHMETIC, *COMPARISONS) for pair in PAIRS),
    *(row(name, VECTOR, i(0)) for name in DIVISIONS),
    *(row(name, x) for name in ("Neg", "Abs", "Square", "Sign") for x in (SCALAR, VECTOR, MATRIX, EDGES, WIDE, i([]))),
    row("Equal", VECTOR, i([1, 2]), incompatible_shape_error=False),
    row("NotEqual", VECTOR, i([1, 2]), incompatible_shape_error=False),
    row("AddN", [VECTOR, VECTOR, VECTOR]),
    row("AddN", [EDGES, EDGES]),
    row("AddN", [VECTOR, SCALAR]),
    row("Cast", VECTOR, DstT=torch.bool),
    row("Cast", b([True, False]), DstT=torch.int64),
    row("Cast", WIDE, DstT=torch.int32),
    row("Cast", MATRIX, DstT=torch.int64),
    *(row(name, b([True, True, False]), b([True, False, False])) for name in ("LogicalAnd", "LogicalOr")),
    *(row(name, b([[True], [False]]), b([True, False, False])) for name in ("LogicalAnd", "LogicalOr")),
    row("LogicalNot", b([[True], [False]])),
    row("LogicalNot", b(True)),
    *(
        row(name, *inputs)
        for name in ("Select", "SelectV2")
        for inputs in (
            (b([True, False, True, True]), VECTOR, VECTOR * 2),
            (b(True), VECTOR, VECTOR * 2),
            (b([True, False]), MATRIX, -MATRIX),
            (b([True, False, True]), MATRIX, -MATRIX),
            (b([[True, False, True]]), MATRIX, -MATRIX),
            (b([True, False]), i(1), i(2)),
            (b([]), i([]), i([])),
            (b([True, False]), VECTOR, VECTOR),
        )
    ),
    *(
        row(name, x, i(axes), keep_dims=keep)
        for name in REDUCTIONS
        for keep in (False, True)
        for x, axes in ((VECTOR, 0), (VECTOR, []), (MATRIX, 1), (MATRIX, [0, -1]), (SCALAR, []), (i([]), 0))
    ),
    *(
        row(name, x, i(axes))
        for name in REDUCTIONS
        for x, axes in ((EDGES, 0), (WIDE, [0]), (MATRIX, 2), (MATRIX, [0, 0]))
    ),
    *(
        row(name, x, i(axes), keep_dims=keep)
        for name in ("All", "Any")
        for keep in (False, True)
        for x, axes in ((b([True, False]), 0), (b([[True, False], [True, True]]), [0]), (b([]), 0), (b(True), []))
    ),
    *(row(name, x) for name in ("Identity", "StopGradient", "Snapshot") for x in (SCALAR, MATRIX)),
    *(row(name, x) for name in ("ZerosLike", "OnesLike") for x in (SCALAR, MATRIX, b([True, False]))),
    *(row(name, x) for name in ("Shape", "Size", "Rank") for x in (SCALAR, VECTOR, MATRIX, i([]), b([[True]]))),
    row("ShapeN", [MATRIX, MATRIX]),
    *(
        row("Reshape", x, i(shape))
        for x, shape in (
            (MATRIX, [3, 2]),
            (MATRIX, [-1]),
            (MATRIX, [-1, 2]),
            (VECTOR, [4, 1]),
            (i([5]), []),
            (i(5), [1, 1]),
            (VECTOR, [3, -1]),
            (VECTOR, [-1, -1]),
            (VECTOR, [-2, -2]),
            (i([]), [-1]),
            (i([]), [2, 0]),
        )
    ),
    *(
        row("Squeeze", x, squeeze_dims=axes)
        for x, axes in ((i([[1], [2]]), []), (i([[1], [2]]), [1]), (i([[1]]), [0, -1]), (i([[1]]), [-2]), (MATRIX, [0]))
    ),
    *(
        row("ExpandDims", x, i(axis))
        for x, axis in ((SCALAR, 0), (VECTOR, 0), (VECTOR, -1), (VECTOR, [1]), (VECTOR, 2), (VECTOR, -3))
    ),
    row("Transpose", MATRIX, i([1, 0])),
    row("Transpose", MATRIX, i([0, 1])),
    row("Transpose", MATRIX, i([0, 0])),
    row("Transpose", VECTOR, i([0])),
    row("InvertPermutation", i([2, 0, 1])),
    row("InvertPermutation", i([])),
    row("InvertPermutation", i([0, 0])),
    *(row("Pack", [VECTOR, -VECTOR], axis=axis) for axis in (0, 1, -1, -2, 2)),
    row("Pack", [SCALAR, i(5), i(6)]),
    row("Pack", [b(True), b(False)]),
    row("Pack", [i([]), i([])]),
    row("Pack", [VECTOR, i([1])]),
    *(row("Unpack", MATRIX, num=num, axis=axis) for num, axis in ((2, 0), (3, 1), (3, -1), (2, -2), (3, 0), (2, 2))),
    row("Unpack", VECTOR, num=4),
    row("ConcatV2", [VECTOR, i([9]), i([])], i(0)),
    row("ConcatV2", [MATRIX, MATRIX], i(1)),
    row("ConcatV2", [MATRIX, MATRIX], i(-2)),
    row("ConcatV2", [MATRIX, MATRIX], i(2)),
    row("ConcatV2", [MATRIX, VECTOR], i(0)),
    row("Concat", i(1), [MATRIX, MATRIX]),
    row("Concat", i(0), [VECTOR, i([9])]),
    *(row("Split", i(axis), x, num_split=num) for axis, x, num in ((0, VECTOR, 2), (1, MATRIX, 3), (-2, MATRIX, 2))),
    row("Split", i(0), VECTOR, num_split=3),
    *(
        row("SplitV", x, i(sizes), i(axis), num_split=len(sizes))
        for x, sizes, axis in ((VECTOR, [1, 3], 0), (VECTOR, [4, 0], 0), (MATRIX, [1, -1], 1), (MATRIX, [1, -1, -1], 1))
    ),
    row("SplitV", VECTOR, i([1, 2]), i(0), num_split=2),
    *(
        row("Slice", x, i(begin), i(size))
        for x, begin, size in (
            (VECTOR, [1], [2]),
            (VECTOR, [1], [-1]),
            (VECTOR, [4], [0]),
            (MATRIX, [0, 1], [1, 2]),
            (MATRIX, [1, 0], [-1, -1]),
            (VECTOR, [3], [2]),
            (VECTOR, [-1], [1]),
            (VECTOR, [5], [-1]),
            (MATRIX, [0], [1]),
        )
    ),
    *(
        row("StridedSlice", x, i(begin), i(end), i(strides), **masks_of(masks))
        for x, begin, end, strides, masks in (
            (VECTOR, [1], [3], [1], {}),
            (VECTOR, [0], [1], [1], {"shrink_axis": 1}),
            (VECTOR, [-1], [0], [1], {"shrink_axis": 1}),
            (VECTOR, [4], [5], [1], {"shrink_axis": 1}),
            (VECTOR, [-5], [5], [1], {"shrink_axis": 1}),
            (VECTOR, [0], [0], [-1], {"begin": 1, "end": 1}),
            (VECTOR, [3], [-9], [-2], {}),
            (VECTOR, [-9], [9], [3], {}),
            (VECTOR, [2], [1], [1], {}),
            (VECTOR, [0], [0], [1], {"new_axis": 1}),
            (VECTOR, [0], [2], [0], {}),
            (VECTOR, [0, 0], [1, 1], [1, 1], {}),
            (MATRIX, [1], [2], [1], {"shrink_axis": 1}),
            (MATRIX, [0, 1], [0, 2], [1, 1], {"ellipsis": 1, "shrink_axis": 2}),
            (MATRIX, [0, 0], [2, 2], [1, 1], {"begin": 3}),
            (MATRIX, [0, 0], [0, 0], [1, 1], {"ellipsis": 3}),
            (SCALAR, [0], [0], [1], {"new_axis": 1}),
        )
    ),
    row("Gather", VECTOR, i([3, 0, 0])),
    row("Gather", MATRIX, i(1)),
    row("Gather", VECTOR, i([4])),
    *(
        row("GatherV2", x, i(indices), i(axis), batch_dims=same)
        for x, indices, axis, same in (
            (VECTOR, [[3, 0], [1, 1]], 0, 0),
            (VECTOR, 2, 0, 0),
            (VECTOR, [], 0, 0),
            (MATRIX, [2, 0], 1, 0),
            (MATRIX, [2, 0], -1, 1),
            (MATRIX, [[2], [0]], 1, 1),
            (MATRIX, [[2], [0]], 1, -1),
            (VECTOR, [-1], 0, 0),
            (MATRIX, [0, 1, 2], 1, 1),
        )
    ),
    *(row("Range", *map(i, args)) for args in ((0, 5, 1), (5, 0, -2), (3, 3, 1), (0, 5, 0), (0, 5, -1))),
    row("Fill", i([2, 3]), i(7)),
    row("Fill", i([]), b(True)),
    row("Fill", i([2]), i([1])),
    row("Fill", i([-1]), i(1)),
    row("Tile", VECTOR, i([3])),
    row("Tile", MATRIX, i([2, 1])),
    row("Tile", MATRIX, i([1, 0])),
    row("Tile", MATRIX, i([1])),
    row("Tile", VECTOR, i([-1])),
    row("BroadcastTo", VECTOR, i([2, 4])),
    row("BroadcastTo", SCALAR, i([3])),
    row("BroadcastTo", MATRIX, i([3])),
    row("BroadcastTo", VECTOR, i([2])),
    row("ReverseV2", VECTOR, i([0])),
    row("ReverseV2", MATRIX, i([0, -1])),
    row("ReverseV2", MATRIX, i([0, 0])),
    row("ReverseV2", MATRIX, i([2])),
    row("ListDiff", i([1, 2, 3, 2, 9]), i([3, 9])),
    row("ListDiff", i([]), i([3, 9])),
    row("ConcatOffset", i(1), [i([2, 3]), i([2, 5]), i([2, 0])]),
    row("ConcatOffset", i(-2), [i([2, 3]), i([4, 3])]),
    row("ConcatOffset", i(0), [i([2, 3]), i([4, 4])]),
    *(
        row(name, i(a), i(c))
        for name in ("BroadcastArgs", "BroadcastGradientArgs")
        for a, c in (
            ([2, 3], [3]),
            ([2, 3], [2, 3]),
            ([], [4]),
            ([2, 1, 3], [5, 1]),
            ([1, 1], [1]),
            ([1], [1]),
            ([0, 1], [1, 5]),
            ([2], [3]),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("name", operations(ROWS))
def test_operation(name: str, results: Results) -> None:
    """Every row of the table."""
    check_integers(name, results)


def test_every_operation_has_rows() -> None:
    """No operation on integers is left out. PreventGradient is Identity, and cannot run eagerly."""
    assert set(INTEGER_OPS) - {each.op for each in ROWS} == {"PreventGradient"}


def test_lost_sizes() -> None:
    """A result of no rows is refused, because a tuple of no tuples has lost the number of columns."""
    strided_slice = INTEGER_OPS["StridedSlice"].function
    with pytest.raises(UnimplementedError):
        strided_slice(((1, 2), (3, 4)), (0,), (0,), (1,))
    assert not fits(torch.int32, (0, 2))
    assert fits(torch.int32, (2, 0))
    assert not fits(torch.int32, (33, 32))
    assert not fits(torch.int8, (2,))


def test_symbolic_sizes() -> None:
    """Arithmetic on sizes stays symbolic in torch.export, and becomes a tensor that does."""

    class Sizes(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            call = {name: each.function for name, each in INTEGER_OPS.items()}
            first = call["StridedSlice"](tuple(x.shape), (0,), (1,), (1,), shrink_axis_mask=1)
            doubled = call["Maximum"](call["Mul"](first, 2, T=torch.int32), 3)
            size = call["Prod"](call["Pack"]([doubled, x.shape[1]]), 0, T=torch.int32)
            return x.new_zeros(size), as_tensor((doubled, size), torch.int32)

    exported = torch.export.export(
        Sizes(), (torch.ones(2, 3),), dynamic_shapes={"x": {0: torch.export.Dim("batch")}}
    ).module()
    zeros, sizes = exported(torch.ones(7, 3))
    assert zeros.shape == (42,)
    assert as_integers(sizes) == (14, 42)
    assert sizes.dtype == torch.int32
