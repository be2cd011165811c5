"""How the tensors of a layer in torch are made from TensorFlow's variables.

A layer has one or more variants: ways in which TensorFlow stores it. A variant has a `TensorOrigin` for each attribute:
variables that are joined along an axis, or a range of such an axis, or a constant where TensorFlow stores nothing.
`layer_names` and `recurrent_layers` list the variants of torch's modules.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch_tfckpt.format.tensor_names import short_key
from torch_tfckpt.models.layers.layouts import Layout
from torch_tfckpt.models.stored_names import variable_name_of

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

    def layouts(self) -> Iterator[Layout]:
        """Yield the layout of each of these names."""
        for names in self.variables:
            yield from names.values()


Variant = Mapping[str, TensorOrigin]
"""Attribute of a module, or "child.attribute" -> how it is made."""


def leaf_of(name: str, leaves: Leaves, *, loosely: bool = False) -> str | None:
    """Return the longest name in `leaves` that the stored name ends with; None if there is no such name.

    Args:
        loosely: Compare only the last parts of the names if necessary, since a rule determines the layer.
    """
    stored = f"/{short_key(name)}"
    ends = [leaf for leaf in leaves if stored.endswith((f"/{leaf}", f".{leaf}"))]
    if ends or not loosely:
        return max(ends, key=len, default=None)
    last = variable_name_of(name)
    return next((leaf for leaf in leaves if leaf.rpartition("/")[2] == last), None)
