"""Fused recurrent cells.

    gates   [x, h_prev] @ w + b, split into four: i, ci, f, o; in BlockLSTMV2 i, f, ci, o
    i, f    sigmoid(gate + peephole * cs_prev); f with forget_bias added
    ci      tanh(gate)
    cs      f * cs_prev + i * ci, clipped to cell_clip if that is positive
    o       sigmoid(gate + peephole * cs)
    co, h   tanh(cs), o * co

As in TensorFlow, only `cs` and `h` of a BlockLSTM have gradients, and clipping does not stop them.

Source: tensorflow/core/ops/rnn_ops.cc.
"""

from typing import NamedTuple

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.limits import check_shape_of
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.values import Tensor

_OUTPUTS = ("i", "cs", "f", "o", "ci", "co", "h")


class Lstm(NamedTuple):
    """What an LSTM computes: of one step, or of all steps."""

    i: Tensor
    cs: Tensor
    f: Tensor
    o: Tensor
    ci: Tensor
    co: Tensor
    h: Tensor


class _LstmWeights(NamedTuple):
    """Weights of an LSTM: of x, of h, the bias, and the peepholes or None."""

    of_x: Tensor
    of_h: Tensor
    b: Tensor
    peepholes: tuple[Tensor, Tensor, Tensor] | None
    forget_bias: float
    cell_clip: float
    forget_first: bool


@op("LSTMBlockCell", outputs=_OUTPUTS)
def lstm_block_cell(
    x: Tensor,
    cs_prev: Tensor,
    h_prev: Tensor,
    w: Tensor,
    wci: Tensor,
    wcf: Tensor,
    wco: Tensor,
    b: Tensor,
    *,
    forget_bias: float = 1.0,
    cell_clip: float = 3.0,
    use_peephole: bool = False,
) -> Lstm:
    peepholes = (wci, wcf, wco) if use_peephole else None
    weights = _checked(x, cs_prev, h_prev, w, b, peepholes, forget_bias, cell_clip, False, 2)
    return _step(x @ weights.of_x + weights.b, cs_prev, h_prev, weights)


@op("BlockLSTM", outputs=_OUTPUTS)
def block_lstm(
    seq_len_max: int,
    x: Tensor,
    cs_prev: Tensor,
    h_prev: Tensor,
    w: Tensor,
    wci: Tensor,
    wcf: Tensor,
    wco: Tensor,
    b: Tensor,
    *,
    forget_bias: float = 1.0,
    cell_clip: float = 3.0,
    use_peephole: bool = False,
) -> Lstm:
    peepholes = (wci, wcf, wco) if use_peephole else None
    weights = _checked(x, cs_prev, h_prev, w, b, peepholes, forget_bias, cell_clip, False, 3)
    return _steps(seq_len_max, x, cs_prev, h_prev, weights)


@op("BlockLSTMV2", outputs=_OUTPUTS)
def block_lstm_v2(
    seq_len_max: int,
    x: Tensor,
    cs_prev: Tensor,
    h_prev: Tensor,
    w: Tensor,
    wci: Tensor,
    wcf: Tensor,
    wco: Tensor,
    b: Tensor,
    *,
    cell_clip: float = 0.0,
    use_peephole: bool = False,
) -> Lstm:
    peepholes = (wci, wcf, wco) if use_peephole else None
    weights = _checked(x, cs_prev, h_prev, w, b, peepholes, 0.0, cell_clip, True, 3)
    return _steps(seq_len_max, x, cs_prev, h_prev, weights)


@op("GRUBlockCell", outputs=("r", "u", "c", "h"))
def gru_block_cell(
    x: Tensor, h_prev: Tensor, w_ru: Tensor, w_c: Tensor, b_ru: Tensor, b_c: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if x.dim() != 2 or h_prev.dim() != 2 or x.shape[0] != h_prev.shape[0]:
        raise InvalidArgumentError(f"x {list(x.shape)} and h_prev {list(h_prev.shape)} do not fit together")
    inputs, units = x.shape[1], h_prev.shape[1]
    check_shape_of("w_ru", w_ru, (inputs + units, 2 * units))
    check_shape_of("w_c", w_c, (inputs + units, units))
    check_shape_of("b_ru", b_ru, (2 * units,))
    check_shape_of("b_c", b_c, (units,))
    r, u = torch.chunk(torch.sigmoid(torch.cat([x, h_prev], 1) @ w_ru + b_ru), 2, 1)
    c = torch.tanh(torch.cat([x, h_prev * r], 1) @ w_c + b_c)
    return r, u, c, u * h_prev + (1 - u) * c


def _checked(
    x: Tensor,
    cs_prev: Tensor,
    h_prev: Tensor,
    w: Tensor,
    b: Tensor,
    peepholes: tuple[Tensor, Tensor, Tensor] | None,
    forget_bias: float,
    cell_clip: float,
    forget_first: bool,
    rank: int,
) -> _LstmWeights:
    if x.dim() != rank or cs_prev.dim() != 2:
        raise InvalidArgumentError(
            f"x must have rank {rank} and cs_prev rank 2, found {list(x.shape)} and {list(cs_prev.shape)}"
        )
    inputs, units = x.shape[-1], cs_prev.shape[1]
    for name, state in (("cs_prev", cs_prev), ("h_prev", h_prev)):
        check_shape_of(name, state, (x.shape[-2], units))
    check_shape_of("w", w, (inputs + units, 4 * units))
    check_shape_of("b", b, (4 * units,))
    for peephole in peepholes or ():
        check_shape_of("a peephole", peephole, (units,))
    return _LstmWeights(w[:inputs], w[inputs:], b, peepholes, forget_bias, cell_clip, forget_first)


def _step(of_x: Tensor, cs_prev: Tensor, h_prev: Tensor, weights: _LstmWeights) -> Lstm:
    """Compute one step; `of_x` is x @ w + b."""
    gates = of_x + h_prev @ weights.of_h
    i, second, third, o = torch.chunk(gates, 4, 1)
    f, ci = (second, third) if weights.forget_first else (third, second)
    if weights.forget_bias:
        f = f + weights.forget_bias
    if weights.peepholes is not None:
        i, f = i + cs_prev * weights.peepholes[0], f + cs_prev * weights.peepholes[1]
    i, f, ci = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(ci)
    cs = f * cs_prev + i * ci
    if weights.cell_clip > 0:
        clipped = torch.clamp(cs, -weights.cell_clip, weights.cell_clip).detach()
        cs = clipped + (cs - cs.detach())
    if weights.peepholes is not None:
        o = o + cs * weights.peepholes[2]
    o, co = torch.sigmoid(o), torch.tanh(cs)
    return Lstm(i, cs, f, o, ci, co, o * co)


def _steps(count: int, x: Tensor, cs: Tensor, h: Tensor, weights: _LstmWeights) -> Lstm:
    """Compute the first `count` steps; the outputs of the others are zero."""
    if not 0 <= count <= x.shape[0]:
        raise InvalidArgumentError(f"seq_len_max is {count}, expected 0 to {x.shape[0]}, the length of x")
    of_x = x @ weights.of_x + weights.b
    found: list[Lstm] = []
    for time in range(count):
        found.append(_step(of_x[time], cs, h, weights))
        cs, h = found[-1].cs, found[-1].h
    nothing = torch.zeros_like(cs)
    found += [Lstm(*[nothing] * len(_OUTPUTS))] * (x.shape[0] - count)
    if not found:
        return Lstm(*[x.new_zeros((0, *cs.shape))] * len(_OUTPUTS))
    stacked = Lstm(*map(torch.stack, zip(*found, strict=True)))
    return Lstm(*(each if name in ("cs", "h") else each.detach() for name, each in stacked._asdict().items()))
