"""Activation functions and their derivatives equal TensorFlow's: values, dtypes, shapes, gradients."""

import numpy as np
import pytest
import torch
from op_inputs import Inputs, Results, float32
from op_rows import Row, check, operations, row

NAN, INF = float("nan"), float("inf")
INPUTS = Inputs(5)
SPECIAL = float32([NAN, INF, -INF, 0, -0.0, 1, -1, 6, 7, 100, -100, 17, -17, 1e-20, 3e38])
KINKS = float32([-7, -6, -1, -0.0, 0, 1, 5.5, 6, 6.5, 30, 39, 41, -30, -50])
FUNCTIONS = ["Sigmoid", "Softplus", "Softsign", "Relu", "Relu6", "LeakyRelu", "Elu", "Selu"]
OF_INPUTS = ["SoftplusGrad", "SoftsignGrad", "ReluGrad", "Relu6Grad", "LeakyReluGrad", "EluGrad", "SeluGrad"]
OF_OUTPUTS = ["SigmoidGrad", "TanhGrad", "SqrtGrad", "RsqrtGrad", "InvGrad", "ReciprocalGrad"]
INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"]


def function_rows() -> list[Row]:
    rows = []
    for name in FUNCTIONS:
        x = INPUTS.normal(3, 5, scale=4)
        rows += [row(name, x), row(name, x.astype("float64")), row(name, x, view=True)]
        rows += [row(name, x[0, 0]), row(name, x[:0]), row(name, KINKS), row(name, KINKS.astype("float64"))]
        rows.append(row(name, x.astype("float16"), tolerance=2e-3))
        rows.append(row(name, torch.from_numpy(x).bfloat16(), tolerance=1.6e-2))
        rows += [row(name, SPECIAL, gradients=False), row(name, SPECIAL.astype("float64"), gradients=False)]
    rows += [row("LeakyRelu", KINKS, alpha=alpha) for alpha in (0.0, 0.01, 1.5, -0.5)]
    for dtype in INTEGERS:
        x = np.array([0, 1, 5, 6, 7, np.iinfo(dtype).max, np.iinfo(dtype).min], dtype)
        rows += [row("Relu", x), row("Relu6", x)]
    for dtype in ["complex64", "complex128"]:
        rows.append(row("Sigmoid", INPUTS.complex(4, dtype=dtype)))
    return rows


def derivative_rows() -> list[Row]:
    rows = []
    for name in OF_INPUTS + OF_OUTPUTS:
        gradients = name != "SoftsignGrad"  # TensorFlow has no second derivative of Softsign
        first, second = INPUTS.normal(3, 5), INPUTS.normal(3, 5, scale=3)
        if name in OF_OUTPUTS:
            first = INPUTS.uniform(3, 5, low=0.1, high=0.9)
        rows.append(row(name, first, second, gradients=gradients))
        rows.append(row(name, first.astype("float64"), second.astype("float64"), gradients=gradients, view=True))
        rows.append(row(name, first[0, 0], second[0, 0], gradients=gradients))
        rows.append(row(name, first[:0], second[:0], gradients=gradients))
        rows.append(row(name, first.astype("float16"), second.astype("float16"), tolerance=2e-3))
        shorter = torch.from_numpy(first).bfloat16(), torch.from_numpy(second).bfloat16()
        rows.append(row(name, *shorter, tolerance=1.6e-2))
        if name in OF_INPUTS:
            rows.append(row(name, np.ones_like(KINKS), KINKS, gradients=gradients))
        else:
            x = INPUTS.complex(4)
            rows.append(row(name, x, x * 1j))
    rows += [row("LeakyReluGrad", np.ones_like(KINKS), KINKS, alpha=alpha) for alpha in (0.0, 0.01, 1.5)]
    for dtype in ["int32", "int64", "uint8"]:
        x = np.array([0, 1, 5, 6, 7], dtype)
        rows += [row("ReluGrad", x, x[::-1]), row("Relu6Grad", x, x[::-1])]
    return rows


ROWS = [*function_rows(), *derivative_rows()]


@pytest.mark.parametrize("name", operations(ROWS))
def test_operation(name: str, results: Results) -> None:
    """Every row of the table."""
    check(name, results)
