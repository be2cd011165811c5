"""Variables that a graph changes while it runs: Assign and its relatives.

An assignment changes the variable's tensor in place, at its place in the order of control dependencies. It is not
recorded by autograd.

Source: tensorflow/core/ops/{state_ops,resource_variable_ops}.cc.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.tensor_slice import shape_text


def assign(variable: Any, value: Any) -> Any:
    """Set a variable."""
    if isinstance(variable, np.ndarray):
        variable[...] = value
        return variable
    _check(variable, value)
    with torch.no_grad():
        return variable.copy_(value)


def assign_add(variable: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Add to a variable."""
    _check(variable, value)
    with torch.no_grad():
        return variable.add_(value)


def assign_sub(variable: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Subtract from a variable."""
    _check(variable, value)
    with torch.no_grad():
        return variable.sub_(value)


def scatter_update(variable: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
    """Set rows of a variable."""
    flat, rows = _rows(variable, indices, updates)
    with torch.no_grad():
        variable[flat] = rows
    return variable


def scatter_add(variable: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
    """Add to rows of a variable; a row that is named several times gets all its updates."""
    flat, rows = _rows(variable, indices, updates)
    with torch.no_grad():
        return variable.index_add_(0, flat, rows)


def scatter_sub(variable: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
    """Subtract from rows of a variable."""
    return scatter_add(variable, indices, -updates)


CHANGES: Final[dict[str, Callable[..., Any]]] = {
    "Assign": assign,
    "AssignVariableOp": assign,
    "AssignAdd": assign_add,
    "AssignAddVariableOp": assign_add,
    "AssignSub": assign_sub,
    "AssignSubVariableOp": assign_sub,
    "ScatterUpdate": scatter_update,
    "ResourceScatterUpdate": scatter_update,
    "ScatterAdd": scatter_add,
    "ResourceScatterAdd": scatter_add,
    "ScatterSub": scatter_sub,
    "ResourceScatterSub": scatter_sub,
}


def _check(variable: torch.Tensor, value: Any) -> None:
    if not isinstance(value, torch.Tensor) or value.dtype != variable.dtype or value.shape != variable.shape:
        found = f"{value.dtype} {shape_text(tuple(value.shape))}" if hasattr(value, "shape") else type(value).__name__
        raise InvalidArgumentError(
            f"the variable is {variable.dtype} {shape_text(tuple(variable.shape))}, but the assigned value is {found}"
        )


def _rows(variable: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    flat = indices.reshape(-1).long()
    if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < len(variable):
        raise InvalidArgumentError(f"indices must be in [0, {len(variable)})")
    return flat, updates.expand(*indices.shape, *variable.shape[1:]).reshape(len(flat), *variable.shape[1:])
