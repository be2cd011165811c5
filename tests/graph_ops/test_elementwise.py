"""Operations on each element equal TensorFlow's: values, dtypes, shapes, gradients."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from op_rows import Computed, Row, check, compute, operations, row
from tensorflow_process import TensorFlowProcess

RANDOM = np.random.default_rng(1)


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return RANDOM.normal(size=shape).astype(np.float32)


ROWS = [
    row("AddV2", normal(3, 1, 5), normal(7, 1)),
    row("AddV2", normal(), normal(0, 3)),
    row("Add", np.array([1, 2], np.int32), np.array(2**31 - 1, np.int32)),
    row("AddV2", normal(3, 4), normal(4), view=True),
    row("AddV2", normal(3), normal(4)),
]


@pytest.fixture(scope="module")
def results(tensorflow: TensorFlowProcess) -> Mapping[str, Sequence[tuple[Row, Computed]]]:
    return compute(tensorflow, ROWS)


@pytest.mark.parametrize("name", operations(ROWS))
def test_operation(name: str, results: Mapping[str, Sequence[tuple[Row, Computed]]]) -> None:
    """Every row of the table."""
    check(name, results)
