"""Modules that a built torch.fx graph calls: loops and conditions."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from torch_tfckpt.errors import FailedPreconditionError


class WhileLoop(torch.nn.Module):
    """A loop: `condition` and `body` take the loop variables and then the captured values.

    Args:
        count: Number of loop variables.
    """

    def __init__(self, condition: torch.nn.Module, body: torch.nn.Module, count: int) -> None:
        super().__init__()
        self.condition, self.body, self.count = condition, body, count

    def forward(self, *args: Any) -> tuple[Any, ...]:
        variables, captured = args[: self.count], args[self.count :]
        condition, body = _function(self.condition), _function(self.body)
        while is_true(condition(*variables, *captured)):
            variables = body(*variables, *captured)
        return tuple(variables)


class OneOfBranches(torch.nn.Module):
    """A condition: the first argument chooses the branch that gets the others."""

    def __init__(self, branches: Sequence[torch.nn.Module], choose: Callable[[Any, int], int]) -> None:
        super().__init__()
        self.branches = torch.nn.ModuleList(branches)
        self._choose = choose

    def forward(self, selector: Any, *captured: Any) -> Any:
        branch = self.branches[self._choose(selector, len(self.branches))]
        return _function(branch)(*captured)


class TrainingBranches(torch.nn.Module):
    """The same computation in training and in evaluation; `train` and `eval` choose."""

    def __init__(self, when_training: torch.nn.Module, when_evaluating: torch.nn.Module) -> None:
        super().__init__()
        self.when_training, self.when_evaluating = when_training, when_evaluating

    def forward(self, *captured: Any) -> Any:
        return _function(self.when_training if self.training else self.when_evaluating)(*captured)


def _function(module: torch.nn.Module) -> Callable[..., Any]:
    """Return what a module computes; without hooks, calling `forward` directly saves time in each round of a loop."""
    return module if torch.compiler.is_compiling() else module.forward


def is_true(value: Any) -> bool:
    """Return whether a predicate holds: a boolean, a number that is not 0, a string or an array that is not empty."""
    if isinstance(value, torch.Tensor):
        return bool(value) if value.dim() == 0 else value.numel() > 0
    if isinstance(value, np.ndarray):
        return bool(value.item()) if value.ndim == 0 else value.size > 0
    if isinstance(value, tuple):
        return len(value) > 0
    return bool(value)


def by_predicate(selector: Any, count: int) -> int:
    """Choose between the branches for false and true."""
    return int(is_true(selector))


def number_of_branch(selector: object, inverted: bool) -> int:
    """Return the number of the input of a Merge that has a value."""
    return by_predicate(selector, 2) ^ int(inverted)


def by_index(selector: Any, count: int) -> int:
    """Choose a branch by its number; the last one for numbers that are out of range."""
    index = int(selector)
    return index if 0 <= index < count else count - 1


def require_branch(predicate: Any, branch: int) -> None:
    """Raise FailedPreconditionError if the branch in which a wanted value is computed does not run."""
    if is_true(predicate) != bool(branch):
        raise FailedPreconditionError("the wanted value is computed in a branch of a condition that does not run")
