"""How a Checkpoint names what is in a module: as the module does ("torch"), or as a Keras model does ("keras").

Other namings than torch's are provided by packages above this one, which add them to MODULES.
"""

from collections.abc import Callable
from typing import Final

from torch import nn

from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError
from torch_tfckpt.objects.trackables.trackable import Trackable
from torch_tfckpt.saveables.optimizer_names import has_groups
from torch_tfckpt.text import quoted

TORCH: Final = "torch"
MODULES: Final[dict[str, Callable[[nn.Module], Trackable]]] = {}
"""Naming -> function that returns the node of a module."""


def check_naming(naming: object) -> None:
    """Raise InvalidArgumentError if there is no such naming."""
    if naming != TORCH and naming not in MODULES:
        raise InvalidArgumentError(f"Checkpoint: unknown naming {naming!r}. Namings: {', '.join([TORCH, *MODULES])}")


def named(value: object, name: str, naming: str) -> object:
    """Return an object as a Checkpoint with this naming stores it: a node for a module, others unchanged.

    Raises:
        UnimplementedError: an optimizer or a container, which this naming does not cover.
    """
    if naming == TORCH:
        return value
    if isinstance(value, nn.Module):
        return MODULES[naming](value)
    if has_groups(value) or _has_modules(value):
        raise UnimplementedError(
            f"Checkpoint(naming={quoted(naming)}): {quoted(name)} is a {type(value).__name__}. Pass modules, "
            f"tensors and plain values, each under a name; save an optimizer with a Checkpoint of its own"
        )
    return value


def _has_modules(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_has_modules, value.values()))
    return any(map(_has_modules, value)) if isinstance(value, list | tuple) else isinstance(value, nn.Module)
