"""The kind of node for each kind of object."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

import torch_tfckpt as tfckpt
from torch_tfckpt.objects.trackables.modules import CustomTrackable, ModuleTrackable
from torch_tfckpt.objects.trackables.optimizers import OptimizerTrackable
from torch_tfckpt.objects.trackables.plain_values import (
    DictTrackable,
    ListTrackable,
    PlainContainer,
    PythonStateTrackable,
    StateTrackable,
)
from torch_tfckpt.objects.trackables.registry import trackable_of
from torch_tfckpt.objects.trackables.tensors import TensorTrackable
from torch_tfckpt.objects.trackables.trackable import Trackable


class Text:
    def serialize(self) -> str:
        return ""

    def deserialize(self, string_value: str) -> None: ...


class Both(Text):
    """Object with both a string and children: the methods of TensorFlow's trackables take precedence."""

    def _trackable_children(self) -> dict[str, Any]:
        return {}


SGD = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (torch.ones(1), TensorTrackable),
        (nn.Parameter(torch.ones(1)), TensorTrackable),
        (tfckpt.Variable(torch.ones(1), "v"), TensorTrackable),
        (nn.ReLU(), ModuleTrackable),
        (nn.ModuleDict(), ModuleTrackable),
        (SGD, OptimizerTrackable),
        (StepLR(SGD, 1), StateTrackable),
        (tfckpt.RNGState(), StateTrackable),
        (Text(), PythonStateTrackable),
        (Both(), CustomTrackable),
        ({"a": 1}, PlainContainer),
        ([1, [2]], PlainContainer),
        ([], PlainContainer),
        ({}, PlainContainer),
        ({"a": torch.ones(1)}, DictTrackable),
        ([[nn.ReLU()]], ListTrackable),
        ((nn.ReLU(),), ListTrackable),
        ([[]], ListTrackable),
        (tfckpt.Checkpoint(), CustomTrackable),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else type(value).__name__,
)
def test_kinds(value: object, kind: type[Trackable]) -> None:
    """Each kind of object has its kind of node, with the object as its target."""
    trackable = trackable_of(value, "x")
    assert type(trackable) is kind
    assert trackable.target is value


def test_a_trackable_is_returned_unchanged() -> None:
    """Nodes that represent a part of an object are returned unchanged."""
    trackable = Trackable(object())
    assert trackable_of(trackable, "x") is trackable


@pytest.mark.parametrize(
    "value", [object(), {1, nn.ReLU}, nn.ReLU, lambda: 1, torch.float32], ids=lambda value: type(value).__name__
)
def test_values_without_a_node(value: object) -> None:
    """The error has the name, the type and the accepted kinds."""
    with pytest.raises(ValueError, match=rf"expecting x to be a trackable object.*got {type(value).__name__}\. Pass"):
        trackable_of(value, "x")
