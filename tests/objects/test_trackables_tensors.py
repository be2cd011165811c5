"""Tensors, Parameters and Variables as nodes: what they store and restore."""

from pathlib import Path

import pytest
import torch
from stored_nodes import restore, stored_node
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.objects.checkpoint import Checkpoint
from torch_tfckpt.objects.trackables.tensors import TensorTrackable
from torch_tfckpt.saveables.slice_info import SaveSliceInfo
from torch_tfckpt.saveables.variables import Variable

KEY = "a/.ATTRIBUTES/VARIABLE_VALUE"


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Write a checkpoint with a tensor x, [1, 2, 3], and an object m without values."""
    return Checkpoint(x=torch.tensor([1.0, 2.0, 3.0]), m=nn.Module()).write(tmp_path / "m")


def test_one_attribute() -> None:
    """A tensor stores itself under VARIABLE_VALUE and has no children."""
    trackable = TensorTrackable(torch.ones(2))
    saved = trackable.to_save("a")
    assert saved.attributes == {"VARIABLE_VALUE": KEY}
    assert [spec.name for saveable in saved.saveables for spec in saveable.specs] == [KEY]
    assert list(trackable.children()) == []
    assert trackable.holds_values and trackable.needs_values


def test_identity_is_by_memory() -> None:
    """A Variable, its tensor and a view of all of it are one node; equal values are two."""
    tensor = torch.ones(2)
    same = TensorTrackable(tensor).identity
    assert TensorTrackable(Variable(tensor, "v")).identity == same
    assert TensorTrackable(tensor.view(2)).identity == same
    assert TensorTrackable(torch.ones(2)).identity != same
    assert TensorTrackable(tensor[:1]).identity != same


def test_names_of_variables() -> None:
    """Variables have their own names, slices that of the whole; tensors have none."""
    assert TensorTrackable(torch.ones(2)).own_name == ""
    assert TensorTrackable(Variable(torch.ones(2), "a/b:0")).own_name == "a/b"
    part = SaveSliceInfo("whole", [4], [0], [2])
    assert TensorTrackable(Variable(torch.ones(2), "part", part)).own_name == "whole"


def test_restored_in_place(path: str) -> None:
    """The parameter remains the same object, and gets no gradient function."""
    parameter = nn.Parameter(torch.zeros(3))
    memory = parameter.data_ptr()
    with stored_node(path, "x") as stored:
        assert restore(TensorTrackable(parameter), stored).used == {"VARIABLE_VALUE"}
    assert parameter.tolist() == [1.0, 2.0, 3.0]
    assert parameter.data_ptr() == memory
    assert parameter.grad_fn is None


def test_a_node_without_a_value(path: str) -> None:
    """Nothing is restored, and nothing counts as used."""
    with stored_node(path, "m") as stored:
        restored = TensorTrackable(torch.zeros(3)).to_restore(stored)
    assert (list(restored.saveables), restored.used) == ([], frozenset())


@pytest.mark.parametrize("make", [UninitializedParameter, UninitializedBuffer], ids=["parameter", "buffer"])
def test_lazy_parameters_get_the_stored_shape(
    path: str, make: type[UninitializedParameter | UninitializedBuffer]
) -> None:
    """They are not lazy afterwards. The dtype must match."""
    lazy, other = make(), make(dtype=torch.float64)  # type: ignore[call-arg]
    with stored_node(path, "x") as stored:
        restore(TensorTrackable(lazy), stored)
        with pytest.raises(InvalidArgumentError, match="dtype"):
            restore(TensorTrackable(other), stored)
    assert lazy.tolist() == [1.0, 2.0, 3.0]
    assert torch.nn.parameter.is_lazy(other)


def test_a_lazy_parameter_on_the_meta_device(path: str) -> None:
    """It has no memory to restore into, and the error says how to allocate it."""
    with stored_node(path, "x") as stored:
        with pytest.raises(InvalidArgumentError, match=r"x/\.ATTRIBUTES.*meta device.*to_empty"):
            lazy = UninitializedParameter(device="meta")  # type: ignore[call-arg]
            restore(TensorTrackable(lazy), stored)


def test_a_lazy_parameter_cannot_be_saved() -> None:
    """It has no shape yet, and the error says how to initialize it."""
    with pytest.raises(InvalidArgumentError, match="not initialised yet"):
        TensorTrackable(UninitializedParameter()).to_save("a")
