"""Fake quantisation equals TensorFlow's: values, shapes, gradients."""

from itertools import product
from typing import Any

import pytest
from op_inputs import Inputs, Results, float32
from op_rows import Row, check, operations, row

INPUTS = Inputs(5)
floats = INPUTS.normal
VARS, CHANNELS, ARGS = "FakeQuantWithMinMaxVars", "FakeQuantWithMinMaxVarsPerChannel", "FakeQuantWithMinMaxArgs"
# Around zero, one end at zero, both on one side of zero, a point.
LIMITS = [(-1.0, 1.0), (-0.7, 2.3), (0.0, 1.5), (-2.0, 0.0), (0.3, 1.1), (-1.5, -0.2), (0.0, 0.0)]


def rows_of_variables() -> list[Row]:
    rows = []
    for (low, high), bits, narrow in product(LIMITS, [2, 8, 16], [False, True]):
        settings: dict[str, Any] = {"num_bits": bits, "narrow_range": narrow}
        x, slope = floats(3, 7, scale=1.5), floats(3, 7)
        rows.append(row(VARS, x, float32(low), float32(high), **settings))
        rows.append(row(f"{VARS}Gradient", slope, x, float32(low), float32(high), **settings, gradients=False))
    x = floats(3, 7)
    rows += [
        row(VARS, x, float32([-1]), float32([1])),
        row(VARS, floats(), float32(-1), float32(1)),
        row(VARS, floats(0, 3), float32(-1), float32(1)),
        row(VARS, floats(2, 3, 4), float32(-1), float32(1), view=True),
        row(VARS, float32([-5, -1, -0.5, 0, 0.5, 1, 5]), float32(-1), float32(1), num_bits=3),
        row(VARS, x, float32(-1), float32(1), num_bits=1),
        row(VARS, x, float32(-1), float32(1), num_bits=17),
        row(VARS, x, float32([-1, 1]), float32(1)),
        row(f"{VARS}Gradient", floats(3, 6), x, float32(-1), float32(1), gradients=False),
    ]
    return rows


def rows_of_channels() -> list[Row]:
    low, high = (float32([each[end] for each in LIMITS]) for end in (0, 1))
    rows = []
    for shape, bits, narrow in product([(7,), (4, 7), (2, 3, 7), (2, 3, 2, 7)], [4, 8], [False, True]):
        settings: dict[str, Any] = {"num_bits": bits, "narrow_range": narrow}
        x, slope = floats(*shape, scale=1.5), floats(*shape)
        rows.append(row(CHANNELS, x, low, high, **settings))
        rows.append(row(f"{CHANNELS}Gradient", slope, x, low, high, **settings, gradients=False))
    rows += [
        row(CHANNELS, floats(4, 7), low, high, view=True),
        row(CHANNELS, floats(4, 6), low, high),
        row(CHANNELS, floats(4, 7), low, high[:6]),
        row(CHANNELS, floats(4, 7), low, high, num_bits=20),
        row(f"{CHANNELS}Gradient", floats(4, 6), floats(4, 7), low, high, gradients=False),
    ]
    return rows


def rows_of_numbers() -> list[Row]:
    rows = []
    for (low, high), bits, narrow in product(LIMITS[:4], [3, 8], [False, True]):
        settings: dict[str, Any] = {"min": low, "max": high, "num_bits": bits, "narrow_range": narrow}
        x, slope = floats(3, 7, scale=2), floats(3, 7)
        rows.append(row(ARGS, x, **settings))
        rows.append(row(f"{ARGS}Gradient", slope, x, **settings, gradients=False))
    rows += [
        row(ARGS, floats(3, 7, scale=5)),
        row(ARGS, floats(0, 7)),
        row(ARGS, floats(3, 7), min=1.0, max=0.0),
        row(ARGS, floats(3, 7), min=0.0, max=0.0),
        row(ARGS, floats(3, 7), num_bits=1),
        row(f"{ARGS}Gradient", floats(3, 7), floats(3, 6), gradients=False),
    ]
    return rows


ROWS = [*rows_of_variables(), *rows_of_channels(), *rows_of_numbers()]


@pytest.mark.parametrize("name", operations(ROWS))
def test_operation(name: str, results: Results) -> None:
    """Every row of the table."""
    check(name, results)
