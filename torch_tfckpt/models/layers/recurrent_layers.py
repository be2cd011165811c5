"""TensorFlow's variables of recurrent layers: LSTM, GRU and RNN, their cells, several layers and both directions.

    Keras          kernel [in, 4h]          weight_ih
                   recurrent_kernel [h, 4h] weight_hh
                   bias [4h]                bias_ih; of a GRU [2, 3h]: bias_ih and bias_hh
    TensorFlow 1   kernel [in + h, 4h]      weight_ih and weight_hh
                   bias [4h]                bias_ih
                   projection/kernel [h, p] weight_hr
    CudnnGRU       gates/kernel [in + h, 2h], candidate/input_projection/kernel [in, h]: weight_ih
                   gates/kernel, candidate/hidden_projection/kernel [h, h]: weight_hh; biases likewise

The variables of one layer and direction have a path of up to three parts: which of several layers, such as "cells/0/"
or "multi_rnn_cell/cell_0/"; the direction, "forward_layer/" or "bidirectional_rnn/fw/"; and the cell. Names of cells
and directions that Keras and TensorFlow choose and number by themselves are written as `stored_names` numbers them:
"cell[1 of 1]" is the only cell of its layer, whatever its name and number, and "cell[2 of 3]" the second of three.

A stack of cells that runs in both directions is not the same as torch's stack of layers with two directions, in which
each layer sees both directions of the previous layer; only names of torch's kind of stack are known.

Source: keras/src/layers/rnn; tensorflow/python/ops/rnn_cell_impl.py; tensorflow/contrib/rnn/python/ops/rnn.py;
tensorflow/contrib/cudnn_rnn.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch import nn

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.models.layers.layouts import DENSE, GRU, GRU_BIAS, LSTM_TF1, SAME, Layout
from torch_tfckpt.models.layers.tensor_origins import Bounds, Leaves, TensorOrigin, Variant

_ONLY_LAYER: Final = (
    *("", "rnn/", "multi_rnn_cell/cell_0/", "rnn/multi_rnn_cell/cell_0/"),
    *("cell_0/", "stack_bidirectional_rnn/cell_0/", "cells/0/", "cell/cells/0/", "cells[1 of 1]/"),
)
_DIRECTIONS: Final = (
    ("forward_layer/", "forward[1 of 1]/", "bidirectional_rnn/fw/", "fw/"),
    ("backward_layer/", "backward[1 of 1]/", "bidirectional_rnn/bw/", "bw/"),
)
_CELLS: Final = ("", "cell/", "cell[1 of 1]/")
# CudnnLSTM is saved as an LSTMBlockCell of this name, with forget_bias=0.
_CUDNN_CELL: Final = "cudnn_compatible_lstm_cell/"
_WITHOUT_FORGET_BIAS: Final = replace(LSTM_TF1, added=())


def recurrent_variants(module: Any) -> Sequence[Variant]:
    """Return the variants of LSTM, GRU and RNN, and of their cells."""
    if isinstance(module, nn.RNNCellBase):
        return _variants(module, module.input_size, "", ("",))
    found: list[dict[str, TensorOrigin]] = []
    directions = _DIRECTIONS if module.bidirectional else (("",),)
    size = module.proj_size or module.hidden_size
    for layer in range(module.num_layers):
        inputs = size * len(directions) if layer else module.input_size
        for number, names in enumerate(directions):
            suffix = f"_l{layer}_reverse" if number else f"_l{layer}"
            paths = [start + name for start in _layer_paths(layer, module.num_layers) for name in names]
            for at, variant in enumerate(_variants(module, inputs, suffix, paths)):
                if at == len(found):
                    found.append({})
                found[at].update(variant)
    return found


def other_formula(module: nn.Module, bias: Shape) -> str:
    """Return why a layer whose stored bias has this shape cannot be loaded; "" if its shape is supported."""
    if not isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return ""
    gates, size = _gates_of(module), module.hidden_size
    count = {"LSTM": 4, "GRU": 3, "RNN": 1}[gates]
    if gates == "GRU" and bias == (3 * size,):
        return f"stored with reset_after=False, {reset_gate_reason(module)}"
    if gates in ("LSTM", "GRU") and bias == (2 * count * size,):
        return (
            f"stored by CuDNN{gates} of Keras 2, whose kernels are in a different order, too. Read the kernels and "
            f"the bias with load_file, and convert them as docs/conversion/layouts.md shows for CuDNN{gates}"
        )
    return ""


def reset_gate_reason(module: nn.Module) -> str:
    """Return why the variables of a GRU that resets the state before multiplying it cannot be loaded."""
    kind = type(module).__name__
    return (
        f"which nn.{kind} cannot compute: that GRU multiplies the state by the reset gate before the recurrent kernel, "
        f"nn.{kind} afterwards. Write a cell with that formula, and load the kernels into its Linear layers"
    )


def _cudnn_gru(
    weights: Sequence[str], biases: Sequence[str], inputs: int, variable: Callable[..., tuple[Leaves, ...]]
) -> Variant:
    """Return the variant of CudnnGRU, as its Saveable stores it: one kernel for the gates r and z, two for n.

    It can only be loaded: saving uses the first variant.
    """
    input_part, state_part = ("candidate/input_projection/", "candidate/hidden_projection/")

    def joined(layout: Layout, gates: str, candidate: str, own: Layout) -> TensorOrigin:
        return TensorOrigin((*variable(layout, gates), *variable(own, candidate)))

    return {
        weights[0]: joined(_part("gates of the input", slice(inputs)), "gates/kernel", f"{input_part}kernel", DENSE),
        weights[1]: joined(
            _part("gates of the state", slice(inputs, None)), "gates/kernel", f"{state_part}kernel", DENSE
        ),
        biases[0]: joined(SAME, "gates/bias", f"{input_part}bias", SAME),
        # The gates have one bias, which is loaded into bias_ih.
        biases[1]: joined(_ZEROS, "gates/bias", f"{state_part}bias", SAME),
    }


def _part(name: str, rows: slice) -> Layout:
    return Layout(name, functions=(lambda kernel: kernel[rows].t(), _not_stored))


def _not_stored(_: torch.Tensor) -> torch.Tensor:
    raise InvalidArgumentError("the variables of a CudnnGRU cannot be written. Save with the names of Keras's GRU")


def _layer_paths(layer: int, count: int) -> Iterator[str]:
    """Yield the paths of one of several layers."""
    if count == 1:
        yield from _ONLY_LAYER
        return
    yield from (f"cells/{layer}/", f"cell/cells/{layer}/", f"cells[1 of 1]/cell[{layer + 1} of {count}]/")
    yield from (f"{start}multi_rnn_cell/cell_{layer}/" for start in ("", "rnn/"))
    yield from (f"stack_bidirectional_rnn/cell_{layer}/", f"cell_{layer}/")


_ZEROS: Final = Layout("zeros", functions=(torch.zeros_like, _not_stored))


def _gates_of(module: nn.Module) -> str:
    kind = module.mode if isinstance(module, nn.RNNBase) else type(module).__name__
    return "LSTM" if "LSTM" in kind else "GRU" if "GRU" in kind else "RNN"


def _variants(module: Any, inputs: int, suffix: str, paths: Sequence[str]) -> Sequence[Variant]:
    """Return the variants of one layer in one direction.

    Args:
        inputs: Its number of inputs.
        suffix: End of the names of its parameters.
        paths: Possible paths of its variables, without the cell.
    """
    gates, size = _gates_of(module), module.hidden_size
    projected = getattr(module, "proj_size", 0)
    cells = [path + cell for path in paths for cell in _CELLS]

    def variable(layout: Layout, *names: str) -> tuple[Leaves, ...]:
        return (dict.fromkeys([cell + name for name in names for cell in cells], layout),)

    weights = [f"weight_{part}{suffix}" for part in ("ih", "hh")]
    biases = [f"bias_{part}{suffix}" for part in ("ih", "hh")]
    kernel, recurrent = ("kernel", "_kernel"), ("recurrent_kernel", "_recurrent_kernel")
    layout = GRU if gates == "GRU" else DENSE
    keras = {
        weights[0]: TensorOrigin(variable(layout, *kernel)),
        weights[1]: TensorOrigin(variable(layout, *recurrent)),
    }
    if gates == "GRU":
        # With reset_after=False the bias has one row, which does not fit, and torch has no such layer.
        rows = [Bounds(row * 3 * size, (row + 1) * 3 * size, 6 * size) for row in range(2)]
        keras |= {
            bias: TensorOrigin(variable(GRU_BIAS, "bias", "_bias"), 0, row)
            for bias, row in zip(biases, rows, strict=True)
        }
        return [keras, _cudnn_gru(weights, biases, inputs, variable)]
    second_bias = TensorOrigin(fill=0.0, summed_with=biases[0])
    keras |= {biases[0]: TensorOrigin(variable(SAME, "bias", "_bias")), biases[1]: second_bias}
    one_kernel = LSTM_TF1 if gates == "LSTM" else DENSE
    state = projected or size
    parts = [Bounds(0, inputs, inputs + state), Bounds(inputs, inputs + state, inputs + state)]
    one_bias = variable(LSTM_TF1 if gates == "LSTM" else SAME, "bias", "biases")
    if gates == "LSTM":
        first, *others = one_bias[0].items()
        of_cudnn = dict.fromkeys([f"{path}{_CUDNN_CELL}bias" for path in paths], _WITHOUT_FORGET_BIAS)
        one_bias = (dict([first]) | of_cudnn | dict(others),)
    cell_of_tf1 = {
        weight: TensorOrigin(variable(one_kernel, "kernel", "weights"), 1, part)
        for weight, part in zip(weights, parts, strict=True)
    }
    cell_of_tf1 |= {biases[0]: TensorOrigin(one_bias), biases[1]: second_bias}
    if projected:
        # Keras has no LSTM with a projection.
        return [{**cell_of_tf1, f"weight_hr{suffix}": TensorOrigin(variable(DENSE, "projection/kernel"))}]
    return [keras, cell_of_tf1]
