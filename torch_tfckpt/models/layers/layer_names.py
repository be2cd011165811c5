"""TensorFlow's variables of a layer, and how the tensors of a torch module are made from them.

    Linear      weight          kernel, layout "dense"
    BatchNorm2d running_var     moving_variance
    PReLU       weight          alpha, layout "vector"
    MultiheadAttention  in_proj_weight  query/kernel, key/kernel and value/kernel, joined

The layout follows from the stored name and the module, never from the values of a shape: a square kernel is transposed
like any other. Names with a leading underscore are from Keras 3, which tracks the `kernel` of a layer as `_kernel`.

Source: keras/src/layers; tf_slim/layers; sonnet/src.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from torch_tfckpt.models.layers.layouts import (
    CONV1D,
    CONV2D,
    CONV3D,
    CONV_TRANSPOSE1D,
    CONV_TRANSPOSE2D,
    CONV_TRANSPOSE3D,
    DENSE,
    DEPTHWISE,
    HEADS,
    SAME,
    VECTOR,
    WEIGHT_NORM,
    Layout,
)
from torch_tfckpt.models.layers.recurrent_layers import recurrent_variants
from torch_tfckpt.models.layers.tensor_origins import Leaves, TensorOrigin, Variant

KERNELS: Final = ("kernel", "_kernel", "weights")  # of any layer, whether or not it is in the table below
# Names that torch and TensorFlow's programs both give to weights, in different orders of axes.
AMBIGUOUS: Final = frozenset({"weight", "w", "W"})
# Names that only variables of a layer have, not layers or variables on their own.
OF_LAYERS: Final = frozenset((
    "kernel", "recurrent_kernel", "depthwise_kernel", "pointwise_kernel", "depthwise_weights", "pointwise_weights",
    "bias", "biases", "gamma", "beta", "moving_mean", "moving_variance", "w", "b",
))  # fmt: skip

_BIAS: Final = TensorOrigin(({"bias": SAME, "biases": SAME, "b": SAME},))


def variants_of(module: nn.Module) -> Sequence[Variant]:
    """Return the ways in which TensorFlow may store a layer; saving uses the first. Empty: unknown module."""
    for kind, variants in _OF_LAYERS:
        if isinstance(module, kind):
            return variants(module)
    return ()


def _named(layout: Layout, *names: str) -> Leaves:
    return dict.fromkeys(names, layout)


def _kernel(layout: Layout) -> TensorOrigin:
    return TensorOrigin((_named(layout, "kernel", "_kernel", "weights"),))


def _linear(module: Any) -> Sequence[Variant]:
    bias = TensorOrigin((dict.fromkeys(_BIAS.leaves(), HEADS),))
    return [_weight_normed(module, {"weight": _kernel(DENSE), "bias": bias})]


def _conv(layout: Layout) -> Callable[[Any], Sequence[Variant]]:
    def variants(module: Any) -> Sequence[Variant]:
        names = [*_kernel(layout).leaves(), "pointwise_kernel", "pointwise_weights"]
        each_channel = DEPTHWISE.with_lengths(
            **{"in": module.groups, "multiplier": module.out_channels // module.groups}
        )
        is_depthwise = module.in_channels in (0, module.groups)  # 0: not known yet
        # Keras 3 calls the variable of its DepthwiseConv2D "kernel", too.
        either = replace(each_channel, otherwise=layout) if is_depthwise and module.groups > 1 else layout
        kernel = _named(either, *names)
        if is_depthwise:
            kernel = {**kernel, **_named(each_channel, "depthwise_kernel", "depthwise_weights")}
        return [_weight_normed(module, {"weight": TensorOrigin((kernel,)), "bias": _BIAS})]

    return variants


def _conv_transpose(layout: Layout) -> Callable[[Any], Sequence[Variant]]:
    return lambda module: [_weight_normed(module, {"weight": _kernel(layout), "bias": _BIAS})]


def _weight_normed(module: nn.Module, variant: Variant) -> Variant:
    """Return the variant; with weight normalization, also the direction and length of the weight."""
    (kernel,) = variant["weight"].variables
    direction = TensorOrigin(({"v": kernel["kernel"], **kernel},))
    if parametrize.is_parametrized(module, "weight"):
        parts = "parametrizations.weight."
        lengths = module.get_submodule("parametrizations.weight")._parameters.get("original0")
        return {**variant, f"{parts}original0": _lengths(lengths), f"{parts}original1": direction}
    if "weight_v" in module._parameters:  # the older torch.nn.utils.weight_norm
        return {**variant, "weight_g": _lengths(module._parameters["weight_g"]), "weight_v": direction}
    return variant


def _lengths(held: torch.Tensor | None) -> TensorOrigin:
    """Return the origin of weight normalization's magnitudes; torch gives them the rank of the weight."""
    rank = 0 if held is None or is_lazy(held) else held.dim()
    patterns = WEIGHT_NORM.patterns[max(rank - 1, 0) : rank or None]
    layout = replace(WEIGHT_NORM, patterns=patterns, otherwise=SAME)  # "weight_g" is also torch's name
    return TensorOrigin((_named(layout, "g", "weight_g"),))


def _norm(module: nn.Module) -> Sequence[Variant]:
    layout = SAME if len(getattr(module, "normalized_shape", ())) > 1 else VECTOR
    return [
        {
            "weight": TensorOrigin((_named(layout, "gamma", "scale", "g"),), fill=1.0),
            "bias": TensorOrigin((_named(layout, "beta", "offset", "b"),), fill=0.0),
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
        # "out": Flax, whose models are published as .npz files.
        layers = ("attention_output", "output", "out")
        names = {name: own for layer in layers for name, own in projection(layer, leaf, layout).items()}
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
    (nn.RNNBase, recurrent_variants),
    (nn.RNNCellBase, recurrent_variants),
    (nn.MultiheadAttention, _attention),
]
