"""State of parameters that an optimizer gets after a restore: kept until `add_param_group` adds them.

A resumed run often starts like the first one, with a frozen backbone, which a callback unfreezes later. The stored
state of the backbone's parameters is kept in host memory until then.

torch has no hook for added groups, so this optimizer's `add_param_group` is replaced by an object that calls the
original and then restores. It removes itself when no state is left, is not pickled or copied with the optimizer, and is
replaced by the next restore. A save includes this state, so that it is not lost if the run stops before it is restored.
"""

from collections.abc import Callable, Collection, Set
from typing import Any, Final

import torch

from torch_tfckpt.saveables.optimizer_form import MODULE
from torch_tfckpt.saveables.optimizer_groups import names_in
from torch_tfckpt.saveables.optimizer_renaming import in_full, names_after

_METHOD: Final = "add_param_group"


class LateParameters:
    """Stored state of parameters that an optimizer does not have yet.

    Args:
        names: The names of the parameters that are still missing.
        restore: Restores the state of the missing parameters that have been added since, and returns their names.
        state: Returns the stored value, and the names of the parameters in it that are still missing.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        names: Collection[str],
        restore: Callable[[], set[str]],
        state: Callable[[], tuple[dict[str, Any], Set[str]]],
    ) -> None:
        self._optimizer, self._waiting, self._restore, self.state = optimizer, set(names), restore, state
        self._replaced = optimizer.__dict__.get(_METHOD)  # None unless other code has set it on the instance

    def wait(self) -> None:
        """Start intercepting the optimizer's `add_param_group`."""
        self._optimizer.__dict__[_METHOD] = self

    def stop(self) -> None:
        """Stop intercepting `add_param_group`, and discard the kept state."""
        if self._optimizer.__dict__.get(_METHOD) is self:
            if self._replaced is None:
                del self._optimizer.__dict__[_METHOD]
            else:
                self._optimizer.__dict__[_METHOD] = self._replaced

    def __call__(self, param_group: dict[str, Any]) -> None:
        """Add the group, then restore the kept state of its parameters.

        Raises: any error of the original; errors of the restore, such as InvalidArgumentError for a different shape.
        If the restore fails, the group has been added nevertheless.
        """
        add = self._replaced or type(self._optimizer).add_param_group.__get__(self._optimizer)
        add(param_group)
        self._waiting -= self._restore()
        if not self._waiting:
            self.stop()


def forget_late_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Discard the state that is kept for parameters that this optimizer does not have yet."""
    waiting = optimizer.__dict__.get(_METHOD)
    if isinstance(waiting, LateParameters):
        waiting.stop()


def with_late_state(optimizer: torch.optim.Optimizer, value: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state in the stored form, plus the state of parameters it does not have yet."""
    late = optimizer.__dict__.get(_METHOD)
    if not isinstance(late, LateParameters):
        return value
    stored, names = late.state()
    if value.get(MODULE) != stored.get(MODULE):
        value, short, stored = in_full(value), stored, in_full(stored)
        names = names_after(names, short, stored)
    waiting = names - set(names_in(value["param_groups"]))
    joined: dict[str, Any] = {
        entry: {**value[entry], **{name: each for name, each in stored.get(entry, {}).items() if name in waiting}}
        for entry in ("param_shapes", "param_dtypes", "state")
    }
    groups = [
        {**group, "params": [name for name in group["params"] if name in waiting]} for group in stored["param_groups"]
    ]
    joined["param_groups"] = value["param_groups"] + [group for group in groups if group["params"]]
    return {**value, **joined}
