"""Choose the Trackable for a Python object."""

from collections import deque

import torch
from torch import nn

from torch_tfckpt.objects.trackables.modules import CustomTrackable, ModuleTrackable, has_trackable_methods
from torch_tfckpt.objects.trackables.optimizers import OptimizerTrackable
from torch_tfckpt.objects.trackables.plain_values import (
    DictTrackable,
    ListTrackable,
    PlainContainer,
    PythonStateTrackable,
    StateTrackable,
    has_scalars,
    is_plain,
    is_python_state,
)
from torch_tfckpt.objects.trackables.tensors import TensorTrackable
from torch_tfckpt.objects.trackables.trackable import Trackable
from torch_tfckpt.saveables.nested_values import refuse_snapshots
from torch_tfckpt.saveables.optimizer_names import has_groups
from torch_tfckpt.saveables.stateful import ObjectState, is_stateful
from torch_tfckpt.saveables.variables import Variable


def trackable_of(value: object, name: str) -> Trackable:
    """Return the node for an object.

    Args:
        value: A tensor, Variable, Module, Optimizer; a dict, list or tuple; an object with state_dict and
            load_state_dict, with serialize and deserialize, or with methods of TensorFlow's trackable objects; a
            Trackable.
        name: Its name in error messages.

    Raises:
        ValueError: anything else.
    """
    if isinstance(value, Trackable):
        return value
    if isinstance(value, torch.Tensor | Variable):
        return TensorTrackable(value)
    if isinstance(value, nn.Module):
        return ModuleTrackable(value)
    if has_groups(value):
        return OptimizerTrackable(value)
    if isinstance(value, dict | list | tuple):
        refuse_snapshots(name, value)
        return _container(value)
    if isinstance(value, set | deque) and is_plain(value):
        return PlainContainer(value)
    if has_trackable_methods(value):
        return CustomTrackable(value)
    if is_stateful(value):
        return StateTrackable(value, ObjectState(value))
    if is_python_state(value):
        return PythonStateTrackable(value)
    raise ValueError(
        f"`Checkpoint` was expecting {name} to be a trackable object (an object derived from `Trackable`), got "
        f"{type(value).__name__}. Pass tensors, modules, optimizers, objects with state_dict and load_state_dict, "
        f"plain values, or dicts and lists of them"
    )


def _container(value: dict[object, object] | list[object] | tuple[object, ...]) -> Trackable:
    if isinstance(value, tuple):
        return ListTrackable(value)
    if is_plain(value) and (not value or has_scalars(value)):
        return PlainContainer(value)
    return DictTrackable(value) if isinstance(value, dict) else ListTrackable(value)
