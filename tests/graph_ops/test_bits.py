"""Operations on the bits of integers equal TensorFlow's: values, dtypes, shapes."""

import numpy as np
import pytest
from op_inputs import Inputs, Results
from op_rows import Row, check, operations, row

INPUTS = Inputs(14)
DTYPES = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


def rows() -> list[Row]:
    found = []
    for dtype in DTYPES:
        limits = np.iinfo(dtype)
        x = np.array([0, 1, 2, 100, limits.max, limits.min, limits.max - 1, limits.max // 3, limits.min // 3], dtype)
        for name in ["BitwiseAnd", "BitwiseOr", "BitwiseXor"]:
            found += [row(name, x[:, None], x), row(name, x, x[1]), row(name, x[:0], x[0])]
        found += [row(name, x) for name in ["Invert", "PopulationCount"]]
        found.append(row("PopulationCount", x.reshape(3, 3), view=True))
        shifts = np.array([0, 1, 3, limits.bits - 1, limits.bits, 100], dtype)
        # TensorFlow's shifts of large unsigned numbers are those of torch, except for uint64, which torch refuses.
        found += [row("LeftShift", x[:, None], shifts)]
        if dtype != "uint64":
            found += [row("RightShift", x[:, None], shifts)]
    for name in ["BitwiseAnd", "LeftShift"]:
        found.append(row(name, INPUTS.integers(3), INPUTS.integers(4)))
    found += [row("LeftShift", np.array([1, 5], "int32"), np.array([-1, -40], "int32"))]
    found += [row("RightShift", np.array([9, 5], "int64"), np.array([-1, -40], "int64"))]
    return found


ROWS = rows()


@pytest.mark.parametrize("name", operations(ROWS))
def test_operation(name: str, results: Results) -> None:
    """Every row of the table."""
    check(name, results)
