"""The variables of a graph, as the builder of modules sees them."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from torch_tfckpt.graph_run.steps import GraphStep
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


def variable_name(variables: VariableSource, step: GraphStep) -> str | None:
    """Return the name of the variable that a step is; None if it is not one.

    The node of a function may be another handle of a variable of the graph, with the same `shared_name`.
    """
    names = [step.node.name] if step.node is not None else []
    shared = step.attributes.get("shared_name")
    if shared is not None and shared.s:
        names.append(shared.s.decode("utf-8", "replace"))
    return next((found for name in names if (found := variables.name_of(name)) is not None), None)
