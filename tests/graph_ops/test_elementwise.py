"""Functions of each element equal TensorFlow's: values, dtypes, shapes, gradients."""

import numpy as np
import pytest
import torch
from op_inputs import Inputs, Results, float32
from op_rows import Row, check, operations, row

NAN, INF = float("nan"), float("inf")
INPUTS = Inputs(4)
SPECIAL = float32([NAN, INF, -INF, 0, -0.0, 1, -1, 0.5, -0.5, 1.5, 2.5, -2.5, 1e-30, 3e38, -90, 90])
EVERYWHERE = (-4.0, 4.0)

# Operation -> the range of the random inputs.
FUNCTIONS = {
    "Neg": EVERYWHERE, "Abs": EVERYWHERE, "Sign": EVERYWHERE, "Square": EVERYWHERE, "Sqrt": (0.1, 9), "Rsqrt": (0.1, 9),
    "Reciprocal": (0.2, 4), "Inv": (-4, -0.2), "Exp": EVERYWHERE, "Expm1": EVERYWHERE, "Log": (0.1, 9),
    "Log1p": (-0.9, 9), "Floor": EVERYWHERE, "Ceil": EVERYWHERE, "Round": EVERYWHERE, "Rint": EVERYWHERE,
    "Sin": EVERYWHERE, "Cos": EVERYWHERE, "Tan": (-1.3, 1.3), "Asin": (-0.9, 0.9), "Acos": (-0.9, 0.9),
    "Atan": EVERYWHERE, "Sinh": EVERYWHERE, "Cosh": EVERYWHERE, "Tanh": EVERYWHERE, "Asinh": EVERYWHERE,
    "Acosh": (1.1, 9), "Atanh": (-0.9, 0.9), "Erf": EVERYWHERE, "Erfc": EVERYWHERE, "Erfinv": (-0.9, 0.9),
    "Ndtri": (0.05, 0.95), "Lgamma": (0.1, 9), "BesselI0e": EVERYWHERE, "BesselI1e": EVERYWHERE, "Digamma": (0.1, 9),
}  # fmt: skip
NOT_HALF = {"Rint", "Erfinv"}  # for which TensorFlow has no kernel
NOT_BFLOAT16 = {"Rint", "Erfinv", "Lgamma", "Digamma", "BesselI0e", "BesselI1e"}
TESTS = ["IsNan", "IsInf", "IsFinite"]
COMPLEX = [
    "Neg", "Sign", "Square", "Sqrt", "Rsqrt", "Reciprocal", "Inv", "Exp", "Expm1", "Log", "Log1p", "Sin", "Cos", "Tan",
    "Asin", "Acos", "Atan", "Sinh", "Cosh", "Tanh", "Asinh", "Acosh", "Atanh",
]  # fmt: skip
# Halves exactly, and every sign.
HALVES = np.arange(-12, 13).astype("float32") / 4


def float_rows() -> list[Row]:
    rows = []
    for name, (low, high) in FUNCTIONS.items():
        x = INPUTS.uniform(3, 5, low=low, high=high)
        rows += [row(name, x), row(name, x.astype("float64")), row(name, x, view=True)]
        rows += [row(name, x[0, 0]), row(name, x[:0])]
        if name not in NOT_HALF:
            rows.append(row(name, x.astype("float16"), tolerance=2e-3))
        if name not in NOT_BFLOAT16:
            rows.append(row(name, torch.from_numpy(x).bfloat16(), tolerance=1.6e-2))
        rows.append(row(name, SPECIAL, gradients=False))
        # TensorFlow 2.21 computes NaN for Erf of an infinite float64.
        rows.append(row(name, (SPECIAL[3:] if name == "Erf" else SPECIAL).astype("float64"), gradients=False))
    for name in TESTS:
        for x in [SPECIAL, SPECIAL.astype("float64"), float32(NAN), SPECIAL[:0]]:
            rows.append(row(name, x, gradients=False))
        rows += [row(name, SPECIAL[:-3].astype("float16")), row(name, torch.from_numpy(SPECIAL).bfloat16())]
    for name in ["Round", "Rint", "Floor", "Ceil", "Sign", "Abs"]:
        rows.append(row(name, HALVES))
    return rows


def integer_rows() -> list[Row]:
    rows = []
    for dtype in ["int8", "int16", "int32", "int64"]:
        limits = np.iinfo(dtype)
        x = np.array([0, 1, -1, 7, -7, limits.max, limits.min], dtype)
        rows += [row(name, x) for name in ["Neg", "Abs", "Sign", "Square"]]  # Round of integers is 0 in TensorFlow 2.21
    for dtype in ["uint8", "uint16", "uint32", "uint64"]:
        rows.append(row("Square", np.array([0, 1, 7, np.iinfo(dtype).max], dtype)))
    return rows


def complex_rows() -> list[Row]:
    rows = []
    for name in COMPLEX:
        x = INPUTS.complex(3, 4)
        rows += [row(name, x.astype("complex64")), row(name, x.astype("complex128"))]
    return rows


ROWS = [*float_rows(), *integer_rows(), *complex_rows()]


@pytest.mark.parametrize("name", operations(ROWS))
def test_operation(name: str, results: Results) -> None:
    """Every row of the table."""
    check(name, results)
