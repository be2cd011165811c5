"""The variables of a graph, as the builder of modules sees them."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from torch_tfckpt.values import Value


class VariableSource(Protocol):
    """Binds the nodes of variables to tensors."""

    def name_of(self, node: str) -> str | None:
        """Return the name of the variable whose node or handle has this name; None if there is none."""

    def value_of(self, name: str) -> Value:
        """Return the tensor of a variable, or its array of strings: the object that savers restore."""

    def require(self, names: Sequence[str]) -> None:
        """Make sure that variables have values, or raise FailedPreconditionError."""

    def changed(self, names: Iterable[str]) -> None:
        """Record that a graph has set variables."""

    def is_trainable(self, name: str) -> bool:
        """Return whether the variable becomes a Parameter."""
