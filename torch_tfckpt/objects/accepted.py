"""Which objects a Checkpoint accepts as its root and as its children."""

import torch

from torch_tfckpt.objects.trackables.plain_values import must_be_replaced
from torch_tfckpt.objects.trackables.registry import trackable_of
from torch_tfckpt.saveables.state_tree import flatten


def assert_root(value: object) -> None:
    """Raise ValueError if other objects cannot be attached to `value` as its children."""
    if must_be_replaced(value) or isinstance(value, dict | list | tuple | torch.optim.Optimizer):
        raise ValueError(
            f"`Checkpoint` was expecting root to be a trackable object with children, such as a module, got "
            f"{type(value).__name__}. Pass it under a name: Checkpoint(name=...)"
        )


def assert_trackable(value: object, name: str) -> None:
    """Raise ValueError if objects of this type cannot be saved."""
    if must_be_replaced(value):
        try:
            flatten(value, name)
        except TypeError as error:
            raise ValueError(f"`Checkpoint` was expecting {name} to be a trackable object: {error}") from error
    else:
        trackable_of(value, name)
