"""The variables of a graph, as the builder of modules sees them."""

from typing import Protocol

from torch_tfckpt.values import Value


class BoundVariables(Protocol):
    """Binds the nodes of variables to tensors."""

    def name_of(self, node: str) -> str | None:
        """Return the name of the variable whose node or handle has this name; None if there is none."""

    def value_of(self, name: str) -> Value:
        """Return the tensor of a variable, or its array of strings: the object that savers restore."""

    def is_trainable(self, name: str) -> bool:
        """Return whether the variable becomes a Parameter."""
