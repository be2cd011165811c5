"""What TensorFlow calls the tensors of a layer, and torch those of the module that stands for it.

    dense/kernel, [in, out]          Linear.weight, [out, in], layout "dense"
    bn/moving_variance               BatchNorm2d.running_var

The layout follows from the stored name, never from shapes: a square kernel is transposed like any other. Leaves with an
underscore are those of Keras 3, which tracks a layer's `kernel` as `_kernel`.

Source: spec CONVERT 1 and 5.
"""

from collections.abc import Mapping
from typing import Final

from torch import nn

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.models.layouts import CONV2D, DENSE, LAYOUTS, SAME, Layout, layout_named
from torch_tfckpt.text import quoted

Leaves = Mapping[str, Mapping[str, Layout]]
"""torch's leaf -> the stored leaves that mean it, that which is written first."""

_BIAS: Final[Mapping[str, Layout]] = {"bias": SAME, "biases": SAME}
_SCALE: Final[Leaves] = {"weight": {"gamma": SAME}, "bias": {"beta": SAME}}
_EMBEDDING: Final[Leaves] = {"weight": {"embeddings": SAME, "_embeddings": SAME}}

_KERNELS: Final = ("kernel", "_kernel", "weights")  # of any layer, known here or not

_OF_MODULES: Final[Mapping[type[nn.Module], Leaves]] = {
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


def stored_leaves(module: nn.Module, leaf: str) -> Mapping[str, Layout]:
    """The names under which TensorFlow may have stored a tensor of a module, each with its layout; "bias" of a Linear
    among them. Empty where no row of the table is of that module."""
    for kind, leaves in _OF_MODULES.items():
        if isinstance(module, kind):
            return leaves.get(leaf, {})
    return {}


def layout_of(module: nn.Module, leaf: str, stored_leaf: str) -> Layout:
    """The layout of what is stored under a name that ends in `stored_leaf` and is the tensor `leaf` of the module."""
    return stored_leaves(module, leaf).get(stored_leaf, SAME)


def layout_by_rule(said: str | None, module: nn.Module, leaf: str, stored_leaf: str, rank: int) -> Layout:
    """The layout of what a rule maps to the tensor `leaf` of the module: that which it says, or the stored name tells.

    InvalidArgumentError where neither does: the order of a square kernel's axes shows nowhere else.
    """
    if said is not None:
        return layout_named(said)
    turned = any(layout is not SAME for layout in stored_leaves(module, leaf).values())
    if rank < 2 or is_leaf_of(module, leaf, stored_leaf) or not (turned or stored_leaf in _KERNELS):
        return layout_of(module, leaf, stored_leaf)
    raise InvalidArgumentError(
        f"a name that ends in {quoted(stored_leaf)} does not tell the layout of {quoted(leaf)} of a "
        f'{type(module).__name__}. Say it in the rule, as in ("fc.weight", "dense"); "same" if the axes are in '
        f"torch's order. Layouts: {', '.join(LAYOUTS)}"
    )


def is_leaf_of(module: nn.Module, leaf: str, stored_leaf: str) -> bool:
    """Whether a stored name that ends so is known to mean the tensor `leaf` of the module."""
    return stored_leaf == leaf or stored_leaf in stored_leaves(module, leaf)


def written_leaf(module: nn.Module, leaf: str) -> str:
    """TensorFlow's name for a tensor of the module; torch's own where the table has none."""
    return next(iter(stored_leaves(module, leaf)), leaf)
