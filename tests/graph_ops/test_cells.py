"""Fused recurrent cells equal TensorFlow's: all outputs, and the gradients of BlockLSTM."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from op_inputs import Array, Inputs, Results
from op_rows import Row, check, operations, row, undefined

from torch_tfckpt.graph_ops.cells import block_lstm, block_lstm_v2

INPUTS = Inputs(8)
floats = INPUTS.normal
ALL_BUT_STATES = (0, 2, 3, 4, 5)  # TensorFlow leaves these uninitialised after seq_len_max


def lstm(*x: int, units: int = 3, dtype: str = "float32") -> list[Array]:
    """x, cs_prev, h_prev, w, wci, wcf, wco, b."""
    sizes = [x, (x[-2], units), (x[-2], units), (x[-1] + units, 4 * units), (units,), (units,), (units,), (4 * units,)]
    return [floats(*each, dtype=dtype) for each in sizes]


def lstm_rows() -> list[Row]:
    rows = []
    for peephole, clip, bias in product([False, True], [0.0, 0.4, 3.0], [0.0, 1.0]):
        settings: dict[str, Any] = {"use_peephole": peephole, "cell_clip": clip}
        # TensorFlow has no gradient of single cells.
        rows.append(row("LSTMBlockCell", *lstm(2, 4), **settings, forget_bias=bias, gradients=False))
        rows.append(row("BlockLSTM", np.array(5), *lstm(5, 2, 4), **settings, forget_bias=bias))
        short = row("BlockLSTM", np.array(3), *lstm(5, 2, 4), **settings, forget_bias=bias)
        rows.append(undefined(short, *ALL_BUT_STATES))
        # TensorFlow's gradient of BlockLSTMV2 takes the gates in the order of BlockLSTM, and is wrong.
        rows.append(row("BlockLSTMV2", np.array(4), *lstm(4, 3, 2), **settings, gradients=False))
    rows += [
        row("LSTMBlockCell", *lstm(2, 4), gradients=False),
        row("LSTMBlockCell", *lstm(2, 4), gradients=False, view=True),
        row("LSTMBlockCell", *lstm(2, 4, dtype="float16"), gradients=False, tolerance=1e-2),
        row("LSTMBlockCell", *lstm(2, 4, units=1), gradients=False),
        row("BlockLSTM", np.array(3), *lstm(3, 2, 4)),
        row("BlockLSTM", np.array(3), *lstm(3, 2, 4), view=True),
        row("BlockLSTMV2", np.array(3), *lstm(3, 2, 4), gradients=False),
        undefined(row("BlockLSTMV2", np.array(2), *lstm(3, 2, 4), gradients=False), *ALL_BUT_STATES),
        row("BlockLSTMV2", np.array(1), *lstm(1, 1, 1, units=1), gradients=False),
    ]
    for position, wrong in [(1, (2, 4)), (2, (1, 3)), (3, (6, 12)), (7, (11,)), (0, (2, 2, 2, 4))]:
        inputs = lstm(3, 2, 4)
        inputs[position] = floats(*wrong)
        rows.append(row("BlockLSTM", np.array(3), *inputs, gradients=False))
    return rows


def gru(batch: int, inputs: int, units: int) -> list[Array]:
    """x, h_prev, w_ru, w_c, b_ru, b_c."""
    joined = inputs + units
    sizes = [(batch, inputs), (batch, units), (joined, 2 * units), (joined, units), (2 * units,), (units,)]
    return [floats(*each) for each in sizes]


def gru_rows() -> list[Row]:
    rows = [row("GRUBlockCell", *gru(*sizes), gradients=False) for sizes in [(2, 4, 3), (1, 1, 1), (3, 2, 5)]]
    rows.append(row("GRUBlockCell", *gru(2, 4, 3), gradients=False, view=True))
    for position, wrong in [(0, (3, 4)), (2, (7, 5)), (3, (7, 2)), (4, (5,)), (5, (1,))]:
        inputs = gru(2, 4, 3)
        inputs[position] = floats(*wrong)
        rows.append(row("GRUBlockCell", *inputs, gradients=False))
    return rows


ROWS = [*lstm_rows(), *gru_rows()]


@pytest.mark.parametrize("name", operations(ROWS))
def test_operation(name: str, results: Results) -> None:
    """Every row of the table."""
    check(name, results)


def test_gradients_of_the_second_version() -> None:
    """With the gates exchanged they are those of BlockLSTM, which the rows compare with TensorFlow."""
    first = [torch.from_numpy(each).requires_grad_() for each in lstm(4, 2, 3, units=2)]
    second = [each.detach().clone().requires_grad_() for each in first]
    for position in (3, 7):  # i, ci, f, o -> i, f, ci, o
        i, ci, f, o = first[position].detach().chunk(4, -1)
        second[position] = torch.cat([i, f, ci, o], -1).requires_grad_()
    weights = torch.from_numpy(floats(4, 2, 2))
    h = block_lstm(4, *first, forget_bias=0.0, cell_clip=0.5, use_peephole=True).h
    slopes = torch.autograd.grad(h, first, weights)
    h = block_lstm_v2(4, *second, cell_clip=0.5, use_peephole=True).h
    found = torch.autograd.grad(h, second, weights)
    for position, (expected, slope) in enumerate(zip(slopes, found, strict=True)):
        if position in (3, 7):
            i, ci, f, o = expected.chunk(4, -1)
            torch.testing.assert_close(slope, torch.cat([i, f, ci, o], -1))
            continue
        torch.testing.assert_close(slope, expected)


def test_more_steps_than_there_are() -> None:
    """TensorFlow ends the process."""
    with pytest.raises(ValueError, match="seq_len_max is 4, expected 0 to 3"):
        block_lstm(4, *map(torch.from_numpy, lstm(3, 2, 4)))
