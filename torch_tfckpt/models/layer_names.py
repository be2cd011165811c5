"""TensorFlow's variables of a layer, and how the tensors of a torch module are made from them.

    Linear      weight          kernel, layout "dense"
    BatchNorm2d running_var     moving_variance
    LSTM        weight_ih_l0    kernel, "dense" (Keras); or the first rows of kernel, "lstm_tf1" (TensorFlow 1)
    MultiheadAttention  in_proj_weight  query/kernel, key/kernel and value/kernel, joined

A module of a known type has one or more variants: ways in which TensorFlow stores such a layer. A variant has a
`TensorOrigin` for each attribute: variables that are joined along an axis, or a range of such an axis, or a constant
where TensorFlow stores nothing. The layout follows from the stored name and the module, never from the values of a
shape: a square kernel is transposed like any other. Names with a leading underscore are from Keras 3, which tracks the
`kernel` of a layer as `_kernel`.

Source: keras/src/layers; tensorflow/python/ops/rnn_cell_impl.py; tf_slim/layers; sonnet/src.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import nn
from torch.nn.utils import parametrize

from torch_tfckpt.models.layouts import (
    CONV1D,
    CONV2D,
    CONV3D,
    CONV_TRANSPOSE1D,
    CONV_TRANSPOSE2D,
    CONV_TRANSPOSE3D,
    DENSE,
    DEPTHWISE,
    GRU,
    GRU_BIAS,
    HEADS,
    LSTM_TF1,
    SAME,
    VECTOR,
    WEIGHT_NORM,
    Layout,
)

Leaves = Mapping[str, Layout]
"""Possible names of one variable, relative to its layer, each with its layout; the first is used to save."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """A range of an axis of the joined tensor."""

    start: int
    stop: int
    size: int  # of the whole axis


@dataclass(frozen=True, slots=True)
class TensorOrigin:
    """How one tensor of a module is made from stored variables.

    Attributes:
        variables: The variables that are joined, in order.
        axis: Axis, in torch's order, along which they are joined; also the axis of `bounds`.
        bounds: The part of the joined variables that this tensor contains; None: all of it.
        fill: Value for all elements if none of the variables is stored, but other variables of the layer are. None:
            the tensor is then missing.
        summed_with: Attribute to which a tensor without a variable is added when the layer is written: torch has two
            biases where TensorFlow has one.
    """

    variables: tuple[Leaves, ...] = ()
    axis: int = 0
    bounds: Bounds | None = None
    fill: float | None = None
    summed_with: str | None = None

    def leaves(self) -> Iterator[str]:
        """Yield all possible names of the variables."""
        for names in self.variables:
            yield from names


Variant = Mapping[str, TensorOrigin]
"""Attribute of a module, or "child.attribute" -> how it is made."""

KERNELS: Final = ("kernel", "_kernel", "weights")  # of any layer, whether or not it is in the table below
# Names that torch and TensorFlow's programs both give to weights, in different orders of axes.
AMBIGUOUS: Final = frozenset({"weight", "w", "W"})

_BIAS: Final = TensorOrigin(({"bias": SAME, "biases": SAME, "b": SAME},))
_CELLS: Final = ("", "cell/", "lstm_cell/", "basic_lstm_cell/", "gru_cell/", "simple_rnn_cell/", "rnn_cell/")
_DIRECTIONS: Final = (
    ("forward_layer/", "forward_rnn/", "forward_lstm/", "forward_gru/", "forward/", "bidirectional_rnn/fw/", "fw/"),
    (
        "backward_layer/",
        "backward_rnn/",
        "backward_lstm/",
        "backward_gru/",
        "backward/",
        "bidirectional_rnn/bw/",
        "bw/",
    ),
)


def variants_of(module: nn.Module) -> Sequence[Variant]:
    """Return the ways in which TensorFlow may store a layer; the first is used to save. Empty: an unknown module."""
    for kind, variants in _OF_LAYERS:
        if isinstance(module, kind):
            return variants(module)
    return ()


def _named(layout: Layout, *names: str) -> Leaves:
    return dict.fromkeys(names, layout)


def _kernel(layout: Layout) -> TensorOrigin:
    return TensorOrigin((_named(layout, "kernel", "_kernel", "weights"),))


def _linear(module: Any) -> Sequence[Variant]:
    return [_weight_normed(module, {"weight": _kernel(DENSE), "bias": _BIAS})]


def _conv(layout: Layout) -> Callable[[Any], Sequence[Variant]]:
    def variants(module: Any) -> Sequence[Variant]:
        kernel = {**_kernel(layout).variables[0], **_named(layout, "pointwise_kernel", "pointwise_weights")}
        if module.groups > 1 or module.in_channels <= 1:
            each_channel = DEPTHWISE.with_lengths(**{"in": module.in_channels}) if module.in_channels else DEPTHWISE
            kernel |= _named(each_channel, "depthwise_kernel", "depthwise_weights")
        return [_weight_normed(module, {"weight": TensorOrigin((kernel,)), "bias": _BIAS})]

    return variants


def _conv_transpose(layout: Layout) -> Callable[[Any], Sequence[Variant]]:
    return lambda module: [_weight_normed(module, {"weight": _kernel(layout), "bias": _BIAS})]


def _weight_normed(module: nn.Module, variant: Variant) -> Variant:
    """Return the variant, with direction and length of the weight if it has weight normalization."""
    length = TensorOrigin((_named(WEIGHT_NORM, "g", "weight_g"),))
    (kernel,) = variant["weight"].variables
    direction = TensorOrigin(({"v": kernel["kernel"], **kernel},))
    if parametrize.is_parametrized(module, "weight"):
        parts = "parametrizations.weight."
        return {**variant, f"{parts}original0": length, f"{parts}original1": direction}
    if "weight_v" in module._parameters:  # the older torch.nn.utils.weight_norm
        return {**variant, "weight_g": length, "weight_v": direction}
    return variant


def _norm(_: nn.Module) -> Sequence[Variant]:
    return [
        {
            "weight": TensorOrigin((_named(VECTOR, "gamma", "scale", "g"),), fill=1.0),
            "bias": TensorOrigin((_named(VECTOR, "beta", "offset", "b"),), fill=0.0),
        }
    ]


def _batch_norm(module: nn.Module) -> Sequence[Variant]:
    [norm] = _norm(module)
    statistics = {
        "running_mean": TensorOrigin((_named(VECTOR, "moving_mean"),)),
        "running_var": TensorOrigin((_named(VECTOR, "moving_variance"),)),
    }
    return [{**norm, **statistics}]


def _prelu(_: nn.Module) -> Sequence[Variant]:
    return [{"weight": TensorOrigin((_named(VECTOR, "alpha"),))}]


def _embedding(_: nn.Module) -> Sequence[Variant]:
    return [{"weight": TensorOrigin((_named(SAME, "embeddings", "_embeddings", "embedding"),))}]


def _recurrent(module: Any) -> Sequence[Variant]:
    """Return the variants of LSTM, GRU and RNN, with one or two directions, and of their cells."""
    if isinstance(module, nn.RNNCellBase):
        return _recurrent_cell(module, _gates_of(module), module.input_size, "", ("",))
    if module.num_layers > 1 or getattr(module, "proj_size", 0):
        return []  # TensorFlow stores each layer apart: a rule for each tensor is needed
    parts = _DIRECTIONS if module.bidirectional else (("",),)
    found: list[dict[str, TensorOrigin]] = []
    for number, starts in enumerate(parts):
        suffix = "_l0_reverse" if number else "_l0"
        for at, variant in enumerate(_recurrent_cell(module, _gates_of(module), module.input_size, suffix, starts)):
            if at == len(found):
                found.append({})
            found[at].update(variant)
    return found


def _gates_of(module: nn.Module) -> str:
    kind = module.mode if isinstance(module, nn.RNNBase) else type(module).__name__
    return "LSTM" if "LSTM" in kind else "GRU" if "GRU" in kind else "RNN"


def _recurrent_cell(module: Any, gates: str, inputs: int, suffix: str, starts: Sequence[str]) -> Sequence[Variant]:
    size = module.hidden_size
    cells = [start + cell for start in starts for cell in _CELLS]

    def variable(layout: Layout, *names: str) -> tuple[Leaves, ...]:
        return (dict.fromkeys([cell + name for name in names for cell in cells], layout),)

    kernel, recurrent = ("kernel", "_kernel"), ("recurrent_kernel", "_recurrent_kernel")
    weights, biases = (
        [f"weight_{part}{suffix}" for part in ("ih", "hh")],
        [f"bias_{part}{suffix}" for part in ("ih", "hh")],
    )
    layout = GRU if gates == "GRU" else DENSE
    keras = {
        weights[0]: TensorOrigin(variable(layout, *kernel), axis=0),
        weights[1]: TensorOrigin(variable(layout, *recurrent), axis=0),
    }
    if gates == "GRU":
        # With reset_after=False the bias has one row and torch has no such layer; it does not fit.
        rows = [Bounds(row * 3 * size, (row + 1) * 3 * size, 6 * size) for row in range(2)]
        keras |= {
            bias: TensorOrigin(variable(GRU_BIAS, "bias", "_bias"), 0, row)
            for bias, row in zip(biases, rows, strict=True)
        }
        return [keras]
    keras |= {
        biases[0]: TensorOrigin(variable(SAME, "bias", "_bias")),
        biases[1]: TensorOrigin(fill=0.0, summed_with=biases[0]),
    }
    one_kernel = LSTM_TF1 if gates == "LSTM" else DENSE
    parts = [Bounds(0, inputs, inputs + size), Bounds(inputs, inputs + size, inputs + size)]
    cell_of_tf1 = {
        weight: TensorOrigin(variable(one_kernel, *kernel), 1, part)
        for weight, part in zip(weights, parts, strict=True)
    }
    bias = LSTM_TF1 if gates == "LSTM" else SAME
    cell_of_tf1 |= {
        biases[0]: TensorOrigin(variable(bias, "bias", "biases")),
        biases[1]: TensorOrigin(fill=0.0, summed_with=biases[0]),
    }
    return [keras, cell_of_tf1]


def _attention(module: Any) -> Sequence[Variant]:
    """Return the variant of Keras's MultiHeadAttention."""

    def projection(part: str, leaf: str, layout: Layout) -> Leaves:
        layers = (part, f"{part}_dense", f"_{part}_dense")
        return {f"{layer}/{name}": layout for layer in layers for name in (leaf, f"_{leaf}")}

    parts = ("query", "key", "value")
    variant = {
        "in_proj_weight": TensorOrigin(tuple(projection(part, "kernel", DENSE) for part in parts)),
        "in_proj_bias": TensorOrigin(tuple(projection(part, "bias", HEADS) for part in parts)),
    }
    for part in parts:
        variant[f"{part[0]}_proj_weight"] = TensorOrigin((projection(part, "kernel", DENSE),))
    for attribute, leaf, layout in (("weight", "kernel", DENSE), ("bias", "bias", SAME)):
        names = {**projection("attention_output", leaf, layout), **projection("output", leaf, layout)}
        variant[f"out_proj.{attribute}"] = TensorOrigin((names,))
    return [variant]


_OF_LAYERS: Final[Sequence[tuple[type[nn.Module], Callable[[Any], Sequence[Variant]]]]] = [
    (nn.Linear, _linear),
    (nn.ConvTranspose1d, _conv_transpose(CONV_TRANSPOSE1D)),
    (nn.ConvTranspose2d, _conv_transpose(CONV_TRANSPOSE2D)),
    (nn.ConvTranspose3d, _conv_transpose(CONV_TRANSPOSE3D)),
    (nn.Conv1d, _conv(CONV1D)),
    (nn.Conv2d, _conv(CONV2D)),
    (nn.Conv3d, _conv(CONV3D)),
    (nn.modules.batchnorm._BatchNorm, _batch_norm),
    (nn.modules.instancenorm._InstanceNorm, _batch_norm),
    (nn.LayerNorm, _norm),
    (nn.GroupNorm, _norm),
    (nn.RMSNorm, _norm),
    (nn.PReLU, _prelu),
    (nn.Embedding, _embedding),
    (nn.EmbeddingBag, _embedding),
    (nn.RNNBase, _recurrent),
    (nn.RNNCellBase, _recurrent),
    (nn.MultiheadAttention, _attention),
]
