"""Roll and ReverseSequence equal TensorFlow's: values, dtypes, shapes, gradients."""

from typing import Any

import numpy as np
import pytest
from op_inputs import Inputs, Results, int32
from op_rows import Row, check, operations, row

INPUTS = Inputs(15)


def rows() -> list[Row]:
    found = []
    for shift, axis in [
        (1, 0), (-2, 1), (7, -1), (0, 0), ([1, 2], [0, 1]), ([1, -1], [1, 1]), ([3], [2]), ([5, 6, 7], [0, 1, 2]),
        ([], []), (1, 3), (1, -4), ([1, 2], [0]), ([1], 0),
    ]:  # fmt: skip
        found.append(row("Roll", INPUTS.normal(3, 4, 5), int32(shift), int32(axis)))
        found.append(
            row("Roll", INPUTS.normal(3, 4, 5, dtype="float64"), np.array(shift, "int64"), int32(axis), view=True)
        )
    found += [row("Roll", INPUTS.normal(0, 2), int32(1), int32(0)), row("Roll", INPUTS.normal(), int32(1), int32(0))]
    for dtype in ["int32", "bool", "uint16", "complex64"]:
        found.append(row("Roll", INPUTS.integers(3, 2).astype(dtype), int32(1), int32(0)))
    for shape, seq_dim, batch_dim, lengths in [
        ((3, 5), 1, 0, [0, 3, 5]), ((5, 3), 0, 1, [1, 2, 4]), ((2, 4, 3), 1, 0, [4, 2]),
        ((2, 4, 3), 2, 1, [0, 1, 2, 3]),
        ((2, 3, 2, 4), 3, 1, [4, 0, 2]), ((0, 3), 1, 0, []), ((2, 0), 1, 0, [0, 0]),
        ((3, 5), 1, 0, [0, 3, 6]), ((3, 5), 1, 0, [0, -1, 2]), ((3, 5), 1, 0, [1, 2]), ((3, 5), 1, 1, [1, 2, 3]),
        ((3, 5), 2, 0, [1, 2, 3]), ((3, 5), 1, 2, [1, 2, 3]), ((3, 5), 1, 0, [[1, 2, 3]]),
    ]:  # fmt: skip
        options: dict[str, Any] = {"seq_dim": seq_dim, "batch_dim": batch_dim}
        found.append(row("ReverseSequence", INPUTS.normal(*shape), np.array(lengths, "int64"), **options))
        found.append(
            row("ReverseSequence", INPUTS.normal(*shape, dtype="float64"), int32(lengths), **options, view=True)
        )
    for dtype in ["int32", "bool", "uint16", "uint8", "complex64", "float16"]:
        x = INPUTS.integers(2, 3).astype(dtype)
        found.append(row("ReverseSequence", x, int32([2, 3]), seq_dim=1))
    return found


ROWS = rows()


@pytest.mark.parametrize("name", operations(ROWS))
def test_operation(name: str, results: Results) -> None:
    """Every row of the table."""
    check(name, results)
