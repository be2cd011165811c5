"""Slices, splits and gathers equal TensorFlow's: values, dtypes, shapes, gradients."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from op_inputs import Inputs, Results, masks_of
from op_inputs import int32 as i
from op_rows import check, operations, row

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.registry import OPS

normal = Inputs(2).normal


WORDS = np.array([b"a", b"", b"ccc", b"dd", b"e", b"\xff"], dtype=object)
MASKS = ["begin", "end", "ellipsis", "new_axis", "shrink_axis"]


# Shape, begin, end, strides, masks.
STRIDED: list[tuple[tuple[int, ...], list[int], list[int], list[int], dict[str, int]]] = [
    ((5, 7), [1, 2], [4, 6], [1, 2], {}),
    ((5, 7), [0], [3], [2], {}),
    ((5, 7), [-3, -100], [100, -1], [1, 3], {}),
    ((5, 7), [4, 6], [0, -8], [-1, -2], {}),
    ((5, 7), [100, -1], [-100, 2], [-2, -3], {}),
    ((5, 7), [2, 3], [-2, -3], [-1, -1], {}),
    ((5, 7), [0, 0], [0, 0], [-1, -1], {"begin": 3, "end": 3}),
    ((5, 7), [3, 2], [0, 0], [-1, -2], {"end": 3}),
    ((5, 7), [0, 0], [1, 4], [-1, -2], {"begin": 3}),
    ((5, 7), [1, 1], [1, 4], [1, 1], {}),
    ((5, 7), [3, 5], [1, 4], [1, 1], {}),
    ((5, 7), [1, 4], [3, 5], [-1, -1], {}),
    ((5, 7), [2, -1], [3, 0], [1, 1], {"shrink_axis": 3}),
    ((5, 7), [-5, 1], [3, 4], [1, 1], {"shrink_axis": 1}),
    ((5, 7), [1, 1], [3, 4], [2, 1], {"shrink_axis": 1}),
    ((5, 7), [1, 1], [3, 4], [1, 1], {"shrink_axis": 1, "begin": 1, "end": 3}),
    ((5, 7), [5, 1], [6, 4], [1, 1], {"shrink_axis": 1}),
    ((5, 7), [-6, 1], [6, 4], [1, 1], {"shrink_axis": 1}),
    ((5, 7), [1, 1], [2, 4], [-1, 1], {"shrink_axis": 1}),
    ((5, 7), [0, 1], [0, 4], [1, 2], {"ellipsis": 1}),
    ((5, 7), [1, 0], [4, 0], [1, 1], {"ellipsis": 2}),
    ((3, 4, 5), [1, 0, -1], [2, 0, 9], [1, 1, 1], {"ellipsis": 2, "shrink_axis": 5}),
    ((3, 4, 5), [0, 0, 2], [0, 0, 4], [1, 1, 1], {"ellipsis": 1, "new_axis": 2}),
    ((3, 4, 5), [0, 0, 2], [0, 0, 4], [1, 1, 1], {"new_axis": 1, "ellipsis": 2}),
    ((3, 4, 5), [0, 1, 0, 2, 0], [0, 3, 0, 4, 0], [1] * 5, {"new_axis": 17, "ellipsis": 4}),
    ((3, 4, 5), [0, 0, 0, 0], [0, 0, 0, 0], [1] * 4, {"ellipsis": 1, "begin": 14, "end": 14}),
    ((3, 4), [0, 0], [0, 0], [1, 1], {"new_axis": 3, "shrink_axis": 3}),
    ((3, 4), [0, 0], [0, 0], [1, 1], {"ellipsis": 1, "new_axis": 1, "shrink_axis": 3}),
    ((3, 4), [0, 0, 0], [1, 1, 1], [1, 1, 1], {}),
    ((3, 4), [0, 0], [1, 1], [1, 1], {"ellipsis": 3}),
    ((3, 4), [0, 0], [1, 1], [0, 1], {}),
    ((3, 4), [0, 0], [0, 0], [0, 1], {"new_axis": 1}),
    ((3, 4), [], [], [], {}),
    ((), [], [], [], {}),
    ((), [0], [0], [1], {"new_axis": 1}),
    ((), [0], [0], [1], {"ellipsis": 1}),
    ((0, 3), [0], [5], [1], {}),
    ((0, 3), [0, 0], [0, 1], [-1, 1], {"begin": 1, "end": 1, "shrink_axis": 2}),
    ((0, 3), [0], [1], [1], {"shrink_axis": 1}),
]
INTS = np.arange(35, dtype=np.int64).reshape(5, 7)


def slice_shape(shape: tuple[int, ...], args: Sequence[Any]) -> tuple[int, ...] | None:
    """The shape of a slice of zeros; None if it is refused."""
    begin, end, strides, masks = args
    try:
        found = OPS["StridedSlice"].function(
            torch.zeros(shape), tuple(begin), tuple(end), tuple(strides), **masks_of(masks)
        )
    except (RuntimeError, ValueError, IndexError):
        return None
    return tuple(found.shape)


ROWS = [
    *(
        row("StridedSlice", normal(*shape), i(begin), i(end), i(strides), **masks_of(masks))
        for shape, begin, end, strides, masks in STRIDED
    ),
    *(
        row("StridedSliceGrad", i(shape), *map(i, args[:3]), normal(*found), **masks_of(args[3]))
        for shape, *args in map(list[Any], STRIDED)
        if (found := slice_shape(shape, args)) is not None
    ),
    row("StridedSliceGrad", i([5]), i([1]), i([3]), i([1]), normal(3)),
    row("StridedSlice", INTS, i([-1]), i([0]), i([-2])),
    row("StridedSlice", normal(4, 6), *(np.array(x, np.int64) for x in ([1, 5], [9, 0], [1, -2])), view=True),
    row("StridedSlice", normal(4, 6), i([1]), i([3, 4]), i([1, 1])),
    row("StridedSlice", WORDS, i([4]), i([0]), i([-2])),
    row("StridedSlice", WORDS, i([2]), i([0]), i([1]), shrink_axis_mask=1),
    row("StridedSlice", torch.arange(6).bfloat16(), i([1]), i([5]), i([2]), gradients=False),
    *(
        row("Slice", normal(*shape), i(begin), i(size))
        for shape, begin, size in (
            ((5, 7), [1, 2], [3, 4]),
            ((5, 7), [1, 2], [-1, -1]),
            ((5, 7), [5, 0], [0, 7]),
            ((5, 7), [0, 0], [0, -1]),
            ((), [], []),
            ((0, 2), [0, 1], [-1, 1]),
            ((5, 7), [4, 2], [3, 4]),
            ((5, 7), [-1, 2], [1, 4]),
            ((5, 7), [6, 2], [-1, 4]),
            ((5, 7), [0, 0], [-2, 4]),
            ((5, 7), [0], [1]),
        )
    ),
    row("Slice", INTS, np.array([1, 1], np.int64), np.array([2, 2], np.int64)),
    row("Slice", WORDS, i([1]), i([3])),
    row("Slice", normal(4, 6), i([1, 2]), i([2, -1]), view=True),
    *(
        row("Unpack", x, num=num, axis=axis)
        for x, num, axis in (
            (normal(2, 3, 4), 2, 0),
            (normal(2, 3, 4), 3, 1),
            (normal(2, 3, 4), 4, -1),
            (normal(2, 0), 2, 0),
            (normal(0, 2), 2, 1),
            (normal(1), 1, 0),
            (normal(2, 3), 3, 0),
            (normal(2, 3), 2, 2),
            (WORDS.reshape(2, 3), 3, 1),
            (INTS, 5, 0),
        )
    ),
    *(
        row("Split", i(axis), x, num_split=num)
        for axis, x, num in (
            (0, normal(4, 3), 2),
            (1, normal(4, 6), 3),
            (-1, normal(4, 6), 6),
            (0, normal(0, 3), 2),
            (0, normal(4), 1),
            (0, normal(4, 3), 3),
            (2, normal(4, 3), 1),
            (0, WORDS, 3),
        )
    ),
    row("Split", i(0), normal(4, 3), num_split=2, view=True),
    *(
        row("SplitV", x, i(sizes), i(axis), num_split=len(sizes))
        for x, sizes, axis in (
            (normal(4, 3), [1, 3], 0),
            (normal(4, 6), [1, 2, -1], 1),
            (normal(4, 6), [0, 6], -1),
            (normal(0, 3), [0, 0], 0),
            (normal(4), [4], 0),
            (normal(4, 3), [1, 2], 0),
            (normal(4, 3), [5, -1], 0),
            (normal(4, 3), [-1, -1], 0),
            (normal(4, 3), [5, -1, 0], 0),
            (WORDS, [2, 4], 0),
        )
    ),
    row("SplitV", INTS, np.array([2, 3], np.int64), i(0), num_split=2),
    *(
        row("Gather", x, i(indices))
        for x, indices in (
            (normal(5, 3), [0, 4, 4]),
            (normal(5), [[1, 2], [0, 0]]),
            (normal(5, 3), 2),
            (normal(5, 3), []),
            (normal(5, 3), [5]),
            (normal(5, 3), [-1]),
            (WORDS, [5, 0]),
        )
    ),
    *(
        row("GatherV2", x, i(indices), i(axis), batch_dims=same)
        for x, indices, axis, same in (
            (normal(5, 3), [0, 4, 4], 0, 0),
            (normal(5, 3), [[0, 2], [1, 1]], 1, 0),
            (normal(5, 3), 2, -1, 0),
            (normal(5), 2, 0, 0),
            (normal(2), [1, 0], 0, 0),
            (normal(2, 5), [1, 4], 1, 1),
            (normal(2, 5, 3), [[0, 2], [1, 1]], 1, 0),
            (normal(2, 5, 3), [[0, 2], [1, 4]], 1, 1),
            (normal(2, 5, 3), [[0, 2], [1, 1]], 2, 1),
            (normal(2, 5, 3), [[0, 2], [1, 1]], -1, -1),
            (normal(2, 5, 3), [1, 4], 1, 1),
            (normal(2, 2, 4, 3), [[[0], [3]], [[1], [2]]], 2, 2),
            (normal(2, 2, 4, 3), [[0, 3], [1, 2]], 2, 2),
            (normal(2, 2, 4, 3), [[[0, 1], [2, 0]], [[1, 1], [2, 2]]], 3, 2),
            (normal(2, 2, 4, 3), [[0, 1, 2], [2, 0, 0]], 3, 1),
            (normal(0, 3), [], 0, 0),
            (normal(2, 0), [1], 0, 0),
            (normal(2, 5, 3), [[0, 2, 5], [1, 1, 1]], 1, 1),
            (normal(2, 5, 3), [[0, -1], [1, 1]], 1, 1),
            (normal(2, 5, 3), [[0, 2], [1, 1], [0, 0]], 1, 1),
            (normal(2, 5, 3), [[0, 2], [1, 1]], 0, 1),
            (normal(2, 5, 3), [[0, 2], [1, 1]], 2, 3),
            (normal(5, 3), [5], 0, 0),
            (normal(5, 3), [-1], 0, 0),
            (normal(5, 3), [0], 2, 0),
            (normal(), [0], 0, 0),
            (WORDS.reshape(3, 2), [2, 0], 0, 0),
            (WORDS.reshape(3, 2), [[1], [1], [0]], 1, 1),
            (INTS, [[1, 0]], 1, 0),
        )
    ),
    row("GatherV2", normal(5, 3), np.array([4, 0], np.int64), np.array(0, np.int64)),
    row("GatherV2", normal(5, 3), i([4, 0]), i(1), view=True),
    row("GatherV2", normal(5, 3), i([2, 0]), i(1), view=True),
    row("GatherV2", torch.arange(6).half(), i([4, 0]), i(0), gradients=False),
    *(
        # TensorFlow's gradient does not know batch_dims.
        row("ResourceGather", normal(*shape), i(indices), dtype=torch.float32, batch_dims=same, gradients=same == 0)
        for shape, indices, same in (
            ((5, 3), [0, 4, 4], 0),
            ((5,), 2, 0),
            ((2, 5, 3), [[0, 2], [1, 4]], 1),
            ((5, 3), [5], 0),
            ((5, 3), [-1], 0),
        )
    ),
    *(
        # TensorFlow's gradient needs two axes of indices.
        row("GatherNd", x, i(indices), gradients=x.dtype == np.float32 and np.ndim(indices) > 1)
        for x, indices in (
            (normal(3, 4), [[0, 1], [2, 3]]),
            (normal(3, 4), [[0], [2]]),
            (normal(3, 4, 2), [[[0, 1]], [[2, 3]]]),
            (normal(3, 4), [2, 3]),
            (normal(3), [2]),
            (normal(3), 2),
            (normal(3, 4), np.zeros((0, 2))),
            (normal(3, 4), np.zeros((0, 1))),
            (normal(0, 4), [[0, 1]]),
            (normal(3, 4), [[0, 4]]),
            (normal(3, 4), [[-1, 0]]),
            (normal(3, 4), [[0, 1, 0]]),
            (WORDS.reshape(3, 2), [[2, 1], [0, 0]]),
            (WORDS.reshape(3, 2), [[2], [2]]),
            (INTS, [[1], [4]]),
        )
    ),
    row("GatherNd", normal(3, 4), i([[0, 4], [3, 0], [1, -1], [2, 3]]), bad_indices_policy="IGNORE", gradients=False),
    row("GatherNd", normal(3, 4), i([[0], [-2]]), bad_indices_policy="IGNORE", gradients=False),
    row("GatherNd", normal(3, 4), i(np.zeros((2, 0))), gradients=False),
    row("GatherNd", WORDS, i([[5], [6], [-1], [0]]), bad_indices_policy="IGNORE"),
    row("GatherNd", normal(3, 4), i([[0, 4]]), bad_indices_policy="ERROR"),
    row("GatherNd", normal(3, 4), np.array([[0, 1]], np.int64), view=True),
]


@pytest.mark.parametrize("name", operations(ROWS))
def test_operation(name: str, results: Results) -> None:
    """Every row of the table."""
    check(name, results)


def test_large_result() -> None:
    """Numbers in a file do not decide how much memory is taken."""
    with pytest.raises(InvalidArgumentError, match="the limit"):
        OPS["StridedSliceGrad"].function((1 << 20, 1 << 20), (1,), (3,), (1,), torch.ones(2, 1 << 10))


def test_slice_of_symbolic_size() -> None:
    """Slices of a symbolic axis stay symbolic in torch.export, reversed ones too."""

    class Slices(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            slices = OPS["StridedSlice"].function
            return (
                slices(x, (1, 0), (0, 2), (1, 1), end_mask=1),
                slices(x, (0, 0), (0, 0), (-1, 1), begin_mask=3, end_mask=3),
                slices(x, (-1, 0), (0, 0), (1, 1), shrink_axis_mask=1, end_mask=2),
                slices(x, (-1,), (0,), (-1,)),
            )

    exported = torch.export.export(
        Slices(), (torch.ones(3, 4),), dynamic_shapes={"x": {0: torch.export.Dim("batch", min=3)}}
    ).module()
    x = torch.arange(28.0).reshape(7, 4)
    for found, expected in zip(exported(x), (x[1:, :2], x.flip(0), x[-1], x.flip(0)[:-1]), strict=True):
        assert torch.equal(found, expected)
