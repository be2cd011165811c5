"""TensorFlow's names for the variables of a layer, and the module attributes that they correspond to.

    dense/kernel, [in, out]          Linear.weight, [out, in], layout "dense"
    bn/moving_variance               BatchNorm2d.running_var

The layout follows from the stored name, never from the shape: a square kernel is transposed like any other. Names with
a leading underscore are from Keras 3, which tracks the `kernel` of a layer as `_kernel`.
"""

from collections.abc import Mapping
from typing import Final

from torch import nn

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.models.layouts import CONV2D, DENSE, LAYOUTS, SAME, Layout, layout_named
from torch_tfckpt.text import quoted

VariableNames = Mapping[str, Mapping[str, Layout]]
"""Module attribute -> possible names of the corresponding variable, with layouts; the first is used to save."""

_BIAS: Final[Mapping[str, Layout]] = {"bias": SAME, "biases": SAME}
_SCALE: Final[VariableNames] = {"weight": {"gamma": SAME}, "bias": {"beta": SAME}}
_EMBEDDING: Final[VariableNames] = {"weight": {"embeddings": SAME, "_embeddings": SAME}}

KERNELS: Final = ("kernel", "_kernel", "weights")  # of any layer, whether or not it is in the table below

_OF_LAYERS: Final[Mapping[type[nn.Module], VariableNames]] = {
    nn.Linear: {"weight": {"kernel": DENSE, "_kernel": DENSE, "weights": DENSE}, "bias": _BIAS},
    nn.Conv2d: {"weight": {"kernel": CONV2D, "_kernel": CONV2D, "weights": CONV2D}, "bias": _BIAS},
    nn.modules.batchnorm._BatchNorm: {
        **_SCALE,
        "running_mean": {"moving_mean": SAME},
        "running_var": {"moving_variance": SAME},
    },
    nn.LayerNorm: _SCALE,
    nn.GroupNorm: _SCALE,
    nn.Embedding: _EMBEDDING,
    nn.EmbeddingBag: _EMBEDDING,
}


def variable_names(module: nn.Module, attribute: str) -> Mapping[str, Layout]:
    """Return the names under which TensorFlow may have stored a tensor of a module, each with its layout.

    They may include torch's own name, such as "bias" of a Linear. Empty if the module is not in the table.
    """
    for kind, names in _OF_LAYERS.items():
        if isinstance(module, kind):
            return names.get(attribute, {})
    return {}


def layout_of(module: nn.Module, attribute: str, variable_name: str) -> Layout:
    """Return the layout of the variable with this name that corresponds to `attribute` of the module."""
    return variable_names(module, attribute).get(variable_name, SAME)


def layout_by_rule(layout: str | None, module: nn.Module, attribute: str, variable_name: str, rank: int) -> Layout:
    """Return the layout of a tensor mapped to `attribute`: the rule's, or the one implied by the name.

    InvalidArgumentError if neither is known: nothing else shows the order of a square kernel's axes.
    """
    if layout is not None:
        return layout_named(layout)
    turned = any(each is not SAME for each in variable_names(module, attribute).values())
    if rank < 2 or is_variable_name(module, attribute, variable_name) or not (turned or variable_name in KERNELS):
        return layout_of(module, attribute, variable_name)
    raise InvalidArgumentError(
        f"the layout of {quoted(attribute)} of a {type(module).__name__} is unknown: a name that ends in "
        f'{quoted(variable_name)} does not imply it. Give it in the rule, as in ("fc.weight", "dense"); '
        f'use "same" if the axes are in torch\'s order. Layouts: {", ".join(LAYOUTS)}'
    )


def is_variable_name(module: nn.Module, attribute: str, variable_name: str) -> bool:
    """Return whether a variable with this name is known to correspond to `attribute` of the module."""
    return variable_name == attribute or variable_name in variable_names(module, attribute)


def written_variable_name(module: nn.Module, attribute: str) -> str:
    """Return TensorFlow's name for a tensor of the module, or torch's own if the table has none."""
    return next(iter(variable_names(module, attribute)), attribute)
