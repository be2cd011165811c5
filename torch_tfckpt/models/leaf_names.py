"""What the last part of a variable's name implies without a module: torch's name, possible layouts.

    kernel, weights    weight, in a layout that depends on the layer
    gamma, scale       weight, as stored; a gamma of several axes may be [1, 1, 1, channels]
    moving_variance    running_var
    embeddings         weight, as stored
    query              not the name of a variable of a layer: nothing is known

Derived from the layers in `layer_names`: a leaf is known if layers that are not recurrent have such a variable, and if
they agree on the attribute.
"""

import copy
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache
from typing import Final

import torch
from torch import nn

from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.models.layers.layer_names import variants_of
from torch_tfckpt.models.layers.layouts import Layout
from torch_tfckpt.models.layers.tensor_origins import Variant

# Attributes that are made from several variables, or from a part of one; "weight_g" gets additional axes.
_OF_SEVERAL: Final = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_g", "original0", "in_proj_")


@dataclass(slots=True)
class Leaf:
    """The last part of the names of some variables.

    Attributes:
        attribute: Its name in torch.
        layouts: The layouts that layers have for it.
    """

    attribute: str
    layouts: dict[Layout, None] = field(default_factory=dict)

    @property
    def is_turned(self) -> bool:
        """Whether a layer of TensorFlow has the axes in a different order than torch."""
        return any(layout.changes_values for layout in self.layouts)


@cache
def _prototypes() -> list[tuple[nn.Module, Variant]]:
    """Return one module of each kind, without tensors, and how it is stored; those with more variables first."""
    with torch.device("meta"):
        modules = [
            nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1, groups=2), nn.Linear(2, 2), nn.Conv1d(2, 2, 1), nn.Conv2d(2, 3, 1),
            nn.Conv3d(2, 3, 1), nn.ConvTranspose1d(2, 2, 1), nn.ConvTranspose2d(2, 2, 1), nn.ConvTranspose3d(2, 2, 1),
            nn.LayerNorm(2), nn.LayerNorm((2, 2)), nn.PReLU(), nn.Embedding(2, 2),
        ]  # fmt: skip
    found = [(module, variants_of(module)[0]) for module in modules]
    for module in modules:
        module._parameters.clear()
        module._buffers.clear()
    return found


@cache
def known_leaves() -> dict[str, Leaf]:
    """Return the last parts of names that imply an attribute of torch."""
    found: dict[str, Leaf] = {}
    for _, variant in _prototypes():
        for attribute, origin in variant.items():
            for leaves in origin.variables:
                for name, layout in leaves.items():
                    found.setdefault(name, Leaf(attribute)).layouts[layout] = None
    return found


def layer_with(leaves: Collection[str]) -> nn.Module:
    """Return a new layer, without tensors, of the kind that has most of these variables.

    If no kind has any of them, it is a plain nn.Module. Only the names of the variables matter: the order of their axes
    must be given.
    """
    best, score = nn.Module(), 0
    for module, variant in _prototypes():
        own = {name for origin in variant.values() for name in origin.leaves()}
        if len(own.intersection(leaves)) > score:
            best, score = module, len(own.intersection(leaves))
    return copy.deepcopy(best)


def is_of_several(attribute: str) -> bool:
    """Return whether the way in which a tensor of this name is made from variables depends on the layer."""
    return attribute.startswith(_OF_SEVERAL)


def needs_layout(variable_name: str, shape: Shape) -> bool:
    """Return whether the last part of a variable's name and its shape leave the order of its axes unknown."""
    leaf = known_leaves().get(variable_name)
    return len(shape) > 1 and (leaf is None or len(leaf.layouts) > 1 or leaf.is_turned)
