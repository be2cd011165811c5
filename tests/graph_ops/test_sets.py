"""Operations on sets, and places in sorted rows, equal TensorFlow's."""

from typing import Any

import numpy as np
import pytest
import torch
from op_inputs import Results
from op_rows import check, operations, row

from torch_tfckpt.graph_ops.registry import OPS

RANDOM = np.random.default_rng(9)
WORDS = np.array([[b"b", b"a", b"b"], [b"\xff", b"", b"a"]], dtype=object)
MORE_WORDS = np.array([[b"a", b"c"], [b"a", b"\xff"]], dtype=object)


def numbers(*shape: int, dtype: Any = np.int64) -> np.ndarray[Any, Any]:
    return RANDOM.integers(0, 6, shape).astype(dtype)


def ordered(*shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.sort(numbers(*shape, dtype=dtype), -1)


ROWS = [
    *(
        row("DenseToDenseSetOperation", first, second, set_operation=operation)
        for operation in ("a-b", "b-a", "intersection", "union", "A-B", "other")
        for first, second in (
            (numbers(3, 4), numbers(3, 5)),
            (numbers(2, 3, 4), numbers(2, 3, 1)),
            (numbers(2, 3, dtype=np.int32), numbers(2, 3, dtype=np.int32)),
            (numbers(2, 0), numbers(2, 3)),
            (numbers(0, 3), numbers(0, 3)),
            (WORDS, MORE_WORDS),
            (numbers(2, 3), numbers(3, 3)),
            (numbers(3), numbers(3)),
        )
    ),
    *(
        row(op, rows, values, out_type=out_type, gradients=False)
        for op in ("LowerBound", "UpperBound")
        for out_type in ("int32", "int64")
        for rows, values in (
            (ordered(2, 7), numbers(2, 5, dtype=np.float32)),
            (ordered(1, 4, dtype=np.int64), numbers(1, 3)),
            (ordered(2, 0), numbers(2, 3, dtype=np.float32)),
            (ordered(2, 3), numbers(2, 0, dtype=np.float32)),
            (ordered(2, 3), numbers(3, 3, dtype=np.float32)),
            (ordered(3), numbers(3, dtype=np.float32)),
        )
    ),
]


@pytest.mark.parametrize("name", operations(ROWS))
def test_operation(name: str, results: Results) -> None:
    """Equal to TensorFlow; what it refuses is refused."""
    check(name, results)


def test_bucketize() -> None:
    """TensorFlow has no kernel of this operation any more: the first boundary that is not below the value."""
    boundaries = torch.tensor([0.0, 1.0, 2.0])
    (found,) = OPS["BoostedTreesBucketize"].function([torch.tensor([-1.0, 0.0, 0.5, 2.0, 9.0])], [boundaries])
    assert found.dtype == torch.int32
    assert found.tolist() == [0, 0, 1, 2, 2]
