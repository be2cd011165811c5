"""Conversions between dtypes equal TensorFlow's: values, dtypes, shapes, gradients."""

import numpy as np
import pytest
import torch
from op_inputs import Inputs, Results, float32
from op_rows import Row, check, operations, row

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.graph_ops.casts import bitcast, cast

INPUTS = Inputs(13)
DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.uint64,
    torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
]  # fmt: skip
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
BITS = [dtype for dtype in DTYPES if dtype != torch.bool]
VALUES = torch.tensor([0, 1, 2, 3, 100, 127], dtype=torch.float64)
FRACTIONS = torch.tensor([-2.5, -1.75, -0.5, 0.5, 0.75, 1.5, 2.5, 99.9], dtype=torch.float64)
SPECIAL = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-8, 3e4, 1.0009765625], dtype=torch.float64)


def cast_rows() -> list[Row]:
    rows = []
    for before in DTYPES:
        for after in DTYPES:
            gradients = before in (torch.float32, torch.float64) and after in FLOATS
            rows.append(
                row("Cast", VALUES.to(before), DstT=after, gradients=gradients, tolerance=1e-2 if gradients else 0)
            )
    for before in FLOATS:
        for after in [torch.int8, torch.int16, torch.int32, torch.int64, torch.bool]:
            rows.append(row("Cast", FRACTIONS.to(before), DstT=after))
        for after in FLOATS:
            rows.append(row("Cast", SPECIAL.to(before), DstT=after, tolerance=0))
    for truncate, before, after in [(t, x, y) for t in (False, True) for x in FLOATS for y in FLOATS]:
        x = torch.from_numpy(INPUTS.normal(20, scale=100)).to(before)
        rows.append(row("Cast", x, DstT=after, Truncate=truncate, tolerance=0))
    for dtype in [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32]:
        limits = torch.tensor([torch.iinfo(dtype).min, torch.iinfo(dtype).max], dtype=dtype)
        rows += [row("Cast", limits, DstT=after) for after in DTYPES[1:9]]
        rows += [row("Cast", limits, DstT=after, tolerance=0) for after in (torch.float32, torch.float64)]
    rows += [row("Cast", np.array(value, "complex64"), DstT=torch.float32) for value in (1 + 2j, [[-1j, 3]])]
    rows += [row("Cast", np.array([1j, 0, 1], "complex64"), DstT=torch.bool)]
    rows += [
        row("Cast", INPUTS.normal(), DstT=torch.int32, gradients=False),
        row("Cast", float32([]), DstT=torch.float64),
    ]
    rows.append(row("Cast", INPUTS.normal(3, 4), DstT=torch.float64, view=True))
    return rows


def bitcast_rows() -> list[Row]:
    rows = []
    for before in BITS:
        for after in BITS:
            x = torch.from_numpy(INPUTS.integers(2, 3, low=0, high=99)).to(before)
            rows.append(row("Bitcast", x, type=after, gradients=False))
            ratio = after.itemsize // before.itemsize
            if ratio > 1:
                some = torch.from_numpy(INPUTS.integers(2, ratio, low=0, high=99)).to(before)
                rows.append(row("Bitcast", some, type=after, gradients=False, view=True))
    rows += [row("Bitcast", INPUTS.normal(), type=dtype, gradients=False) for dtype in (torch.uint8, torch.int32)]
    rows += [row("Bitcast", INPUTS.normal(), type=torch.float64, gradients=False)]
    rows += [row("Bitcast", INPUTS.normal(0, 2), type=dtype, gradients=False) for dtype in (torch.uint8, torch.float64)]
    return rows


ROWS = [*cast_rows(), *bitcast_rows()]


@pytest.mark.parametrize("name", operations(ROWS))
def test_operation(name: str, results: Results) -> None:
    """Every row of the table."""
    check(name, results)


def test_strings() -> None:
    """Dtypes that torch lacks are named."""
    with pytest.raises(InvalidArgumentError, match=r"cannot cast torch\.float32 to DT_STRING"):
        cast(torch.ones(1), DstT=DataType.DT_STRING)
    with pytest.raises(InvalidArgumentError, match="no dtype for DT_STRING"):
        bitcast(torch.ones(1), type=DataType.DT_STRING)
