"""Diagonals and bands of matrices equal TensorFlow's: values, dtypes, shapes, gradients."""

from itertools import product

import numpy as np
import pytest
from op_inputs import Inputs, Results, float32, int32, int64
from op_rows import Row, check, operations, row

INPUTS = Inputs(9)
floats = INPUTS.normal
# TensorFlow computes the derivatives of operations of version 2 with the alignment of version 3: they are wrong for
# diagonals that are not at the left.
V2: dict[str, bool] = {"gradients": False}
ALIGNMENTS = ["RIGHT_LEFT", "LEFT_RIGHT", "LEFT_LEFT", "RIGHT_RIGHT"]
BANDS: list[object] = [0, 1, -2, [0, 0], [-1, 1], [-2, 0], [1, 2], [-2, 3], [-2, -1]]
REFUSED: list[object] = [4, -3, [1, 0], [-3, 1], [0, 1, 2]]


def band_rows() -> list[Row]:
    rows = []
    for lower, upper in [(0, 0), (1, 0), (0, 2), (-1, 0), (0, -1), (-1, -1), (2, 1), (3, 4), (4, 0), (0, 5), (-7, 2)]:
        rows.append(row("MatrixBandPart", floats(2, 3, 4), int64(lower), int64(upper)))
    for dtype in ["float64", "int32", "int64", "bool", "complex64", "uint8"]:
        rows.append(row("MatrixBandPart", (9 * floats(3, 3)).astype(dtype), int32(1), int32(0), view=True))
    for shape in [(0, 3), (3, 0), (0, 2, 2), (3,)]:
        rows.append(row("MatrixBandPart", floats(*shape), int32(0), int32(0)))
    return rows


def main_diagonal_rows() -> list[Row]:
    rows = []
    for shape in [(3,), (2, 3), (1, 2, 1), (0,), (2, 0), ()]:
        rows.append(row("MatrixDiag", floats(*shape)))
    for shape in [(3, 4), (4, 3), (2, 3, 3), (0, 3), (1, 1), (3,)]:
        rows.append(row("MatrixDiagPart", floats(*shape)))
        diagonal = floats(*shape[:-2], min(shape[-2:]))
        rows.append(row("MatrixSetDiag", floats(*shape), diagonal))
    rows.append(row("MatrixSetDiag", floats(3, 4), floats(4)))
    rows.append(row("MatrixSetDiag", floats(3, 4, dtype="float64"), floats(3, dtype="float64"), view=True))
    for dtype in ["int32", "bool", "complex64"]:
        x = (9 * floats(3, 3)).astype(dtype)
        rows += [row("MatrixDiag", x), row("MatrixDiagPart", x), row("MatrixSetDiag", x, x[0]), row("DiagPart", x)]
        rows.append(row("Diag", x[0])) if dtype != "bool" else rows.pop()  # TensorFlow has no kernels for bool
    for shape in [(3,), (2, 3), (2, 1, 2), ()]:
        rows.append(row("Diag", floats(*shape)))
    for shape in [(3, 3), (2, 3, 2, 3), (3, 4), (3,), (), (2, 2, 2)]:
        rows.append(row("DiagPart", floats(*shape)))
    return rows


def part_rows() -> list[Row]:
    rows = []
    for band in [*BANDS, *REFUSED]:
        for shape in [(3, 4), (2, 3, 4)]:
            x, padding = floats(*shape), float32(-9)
            rows.append(row("MatrixDiagPartV2", x, int32(band), padding, **V2))
            rows += [row("MatrixDiagPartV3", x, int32(band), padding, align=align) for align in ALIGNMENTS]
    rows.append(row("MatrixDiagPartV3", floats(5, 2, dtype="float64"), int32([-4, 1]), np.array(2.0), view=True))
    rows.append(row("MatrixDiagPartV3", INPUTS.integers(3, 3), int32([-1, 1]), int32(7)))
    return rows


def lengths(rows: int, columns: int, band: object) -> tuple[int, ...]:
    """The shape of the packed diagonals of a band."""
    numbers = int32(band).reshape(-1)
    low, high = int(numbers[0]), int(numbers[-1])
    longest = min(rows + min(high, 0), columns - max(low, 0))
    return (longest,) if low == high else (high - low + 1, longest)


def set_rows() -> list[Row]:
    rows = []
    for band, batch in product(BANDS, [(), (2,)]):
        x, diagonal = floats(*batch, 3, 4), floats(*batch, *lengths(3, 4, band))
        rows.append(row("MatrixSetDiagV2", x, diagonal, int32(band), **V2))
        rows += [row("MatrixSetDiagV3", x, diagonal, int32(band), align=align) for align in ALIGNMENTS]
    rows += [row("MatrixSetDiagV3", floats(3, 4), floats(2, 3), int32(band)) for band in REFUSED]
    rows.append(row("MatrixSetDiagV3", floats(3, 4), floats(2, 3), int32([-1, 1])))
    return rows


def make_rows() -> list[Row]:
    rows = []
    padding = float32(0.5)
    for band in BANDS:
        diagonal = floats(2, *lengths(3, 4, band))
        for sizes in [(-1, -1), (3, 4), (-1, 4), (3, -1), (4, 4), (3, 5), (2, 2), (9, 9)]:
            inputs = (diagonal, int32(band), int32(sizes[0]), int32(sizes[1]), padding)
            # TensorFlow has no derivatives if there are more diagonals than the matrix has.
            rows += [row("MatrixDiagV2", *inputs, **V2), row("MatrixDiagV3", *inputs, gradients=band != [-2, 3])]
        options = (int32(band), int32(3), int32(4), padding)
        rows += [row("MatrixDiagV3", diagonal, *options, align=align) for align in ALIGNMENTS[1:]]
    rows.append(row("MatrixDiagV3", floats(3), int32([0, 1]), int32(-1), int32(-1), padding))
    rows.append(row("MatrixDiagV3", INPUTS.integers(3), int32(0), int32(-1), int32(-1), int32(1)))
    return rows


ROWS = [*band_rows(), *main_diagonal_rows(), *part_rows(), *set_rows(), *make_rows()]


@pytest.mark.parametrize("name", operations(ROWS))
def test_operation(name: str, results: Results) -> None:
    """Every row of the table."""
    check(name, results)
