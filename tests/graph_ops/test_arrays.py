"""Sequences of numbers, one-hot vectors, largest and unique elements equal TensorFlow's."""

from typing import Any

import numpy as np
import pytest
import torch
from op_inputs import Inputs, Results
from op_inputs import float32 as f
from op_inputs import int32 as i
from op_rows import check, operations, row

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.registry import OPS

normal = Inputs(4).normal


ROWS = [
    *(
        row("Range", *(np.array(each, dtype) for each in args), gradients=False)
        for dtype in (np.int32, np.int64, np.float32, np.float64)
        for args in ((0, 5, 1), (3, 18, 3), (3, 17, 3), (5, -4, -2), (2, 2, 1), (0, 3, 0), (0, 3, -1), (3, 0, 1))
    ),
    *(
        row("Range", f(start), f(limit), f(delta), gradients=False)
        for start, limit, delta in ((0, 1, 0.1), (0, 1, 0.3), (1, 0, -0.25), (0.5, 7, 1.5), (0, np.nan, 1))
    ),
    row("Range", f([0]), f(3), f(1), gradients=False),
    *(
        row("LinSpace", f(start), f(stop), i(num), gradients=False)
        for start, stop, num in ((0, 1, 5), (3, -2, 4), (1, 1, 3), (2, 9, 1), (0, 1, 2), (0, 1, 0), (0, 1, -1))
    ),
    row("LinSpace", np.float64(0), np.float64(1), np.array(7, np.int64), gradients=False),
    row("LinSpace", f(0), f([1]), i(7), gradients=False),
    *(
        row("OneHot", np.array(indices, dtype), i(depth), f(on), f(off), axis=axis, gradients=True)
        for dtype in (np.int32, np.int64)
        for indices, depth, on, off, axis in (
            ([0, 2, 1], 3, 1, 0, -1),
            ([0, 2, -1, 5], 3, 1, 0, 0),
            ([[0, 2], [1, 1]], 3, 5, -1, 1),
            ([[0, 2], [1, 1]], 3, 5, -1, -1),
            ([[0, 2], [1, 1]], 3, 5, -1, 2),
            (1, 4, 1, 0, -1),
            ([0], 0, 1, 0, -1),
            ([], 3, 1, 0, -1),
            ([0], -1, 1, 0, -1),
            ([0], 3, 1, 0, 2),
            ([0], 3, 1, 0, -2),
        )
    ),
    row("OneHot", np.array([1, 200], np.uint8), i(201), i(1), i(0)),
    row("OneHot", i([1, 0]), i(2), np.array(True), np.array(False)),
    row("OneHot", i([1, 0]), i(2), np.array(b"yes", dtype=object), np.array(b"no", dtype=object)),
    *(
        row("TopKV2", x, i(k))
        for x, k in (
            (normal(3, 7), 3),
            (normal(3, 7), 7),
            (normal(3, 7), 0),
            (normal(7), 1),
            (normal(2, 3, 4), 2),
            (normal(0, 4), 2),
            (f([1, 3, 3, 2, 3, 1]), 4),
            (f([0, -0.0, 0, -0.0]), 3),
            (f([1, np.inf, -np.inf, 3]), 4),
            (f([2] * 20), 5),
            (normal(3, 7), 8),
            (normal(3, 7), -1),
            (normal(), 1),
            (i([[5, 5, 9, 1]]), 3),
            (np.array([3, 200, 7], np.uint8), 2),
        )
    ),
    row("TopKV2", normal(3, 7), i(3), gradients=False, index_type=torch.int64),
    row("TopKV2", normal(3, 7), i(3), view=True),
    row("TopKV2", torch.tensor([1, 3, 3, 2]).bfloat16(), i(3), gradients=False),
    *(
        row("ListDiff", np.array(x, dtype), np.array(y, dtype), gradients=False)
        for dtype in (np.int32, np.int64, np.float32)
        for x, y in (([1, 2, 3, 2, 5], [2, 9]), ([], [1]), ([1, 1], []), ([3], [3]))
    ),
    row("ListDiff", i([4, 2]), i([2]), out_idx=torch.int64),
    *(
        row(name, np.array(x, dtype), gradients=False)
        for name in ("Unique", "UniqueWithCounts")
        for dtype in (np.int32, np.int64, np.float32)
        for x in ([5, 1, 5, 5, 2, 1, 9], [], [3], [4, 3, 2, 1], [[1, 2]])
    ),
    *(
        row(name, np.array([b"x", b"", b"x", b"a"], dtype=object), gradients=False)
        for name in ("Unique", "UniqueWithCounts")
    ),
    row("Unique", i([7, 7, 1]), out_idx=torch.int64),
    row("Unique", f([0.0, -0.0, 1]), gradients=False),
    *(
        row(name, i(x), i(axis))
        for name in ("UniqueV2", "UniqueWithCountsV2")
        for x, axis in (
            ([5, 1, 5], []),
            ([5, 1, 5], [0]),
            ([[3, 4], [1, 2], [3, 4]], [0]),
            ([[3, 4, 3], [1, 2, 1]], [1]),
            ([[3, 4, 3], [1, 2, 1]], [-1]),
            ([[3, 4], [1, 2]], []),
            ([[3, 4], [1, 2]], [2]),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("name", operations(ROWS))
def test_operation(name: str, results: Results) -> None:
    """Every row of the table."""
    check(name, results)


def test_top_k() -> None:
    """TopK, which TensorFlow 2.21 does not run any more, is TopKV2 with an attribute."""
    values, places = OPS["TopK"].function(torch.tensor([1.0, 4.0, 4.0, 2.0]), k=3)
    assert values.tolist() == [4, 4, 2]
    assert places.tolist() == [1, 2, 3]
    assert places.dtype == torch.int32


def test_range_of_sizes() -> None:
    """Range of a symbolic size stays symbolic in torch.export."""

    class Positions(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = OPS["Range"].function(0, x.shape[0], 1, Tidx=torch.int32)
            return found

    exported = torch.export.export(
        Positions(), (torch.ones(2, 3),), dynamic_shapes={"x": {0: torch.export.Dim("length")}}
    ).module()
    assert torch.equal(exported(torch.ones(5, 3)), torch.arange(5, dtype=torch.int32))


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("Range", (torch.tensor(0), torch.tensor(1 << 60), torch.tensor(1))),
        ("Range", (torch.tensor(0.0), torch.tensor(1e30), torch.tensor(1.0))),
        ("Range", (0, 1 << 60, 1)),
        ("LinSpace", (torch.tensor(0.0), torch.tensor(1.0), 1 << 60)),
        ("OneHot", (torch.tensor([1]), 1 << 60, torch.tensor(1), torch.tensor(0))),
    ],
    ids=["integers", "floats", "sizes", "linspace", "one_hot"],
)
def test_large_result(name: str, inputs: tuple[Any, ...]) -> None:
    """Numbers in a file do not decide how much memory is taken."""
    with pytest.raises(InvalidArgumentError, match="the limit"):
        OPS[name].function(*inputs)
