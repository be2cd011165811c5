"""What of a module takes values, and how it takes them."""

from pathlib import Path

import pytest
import torch
from torch import nn

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.models.targets import targets_of


class Mixed(nn.Module):
    """Tied parameters, a module under two names, a view of a parameter, buffers of both kinds, and nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 2)
        self.again = self.a
        self.b = nn.Linear(2, 2, bias=False)
        self.b.weight = self.a.weight
        self.register_parameter("none", None)
        self.register_buffer("kept", torch.zeros(1))
        self.register_buffer("passing", torch.zeros(1), persistent=False)


def test_targets_are_the_state_dict_each_once() -> None:
    """All names of the state_dict, in its order of first names, without None and buffers that are not saved."""
    model = Mixed()
    targets = targets_of(model)
    assert [target.names for target in targets] == [
        ["kept"], ["a.weight", "again.weight", "b.weight"], ["a.bias", "again.bias"],
    ]  # fmt: skip
    assert {name for target in targets for name in target.names} == set(model.state_dict())


def test_replace_reaches_all_places() -> None:
    """Tied parameters stay tied; what is a parameter stays one."""
    model = Mixed()
    kept, weight, _ = targets_of(model)
    weight.replace(torch.ones(2, 2))
    kept.replace(torch.ones(1))
    assert model.a.weight is model.b.weight and isinstance(model.a.weight, nn.Parameter)
    assert torch.equal(model.b.weight, torch.ones(2, 2)) and torch.equal(model.get_buffer("kept"), torch.ones(1))


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (torch.zeros(1, device="meta"), "on the meta device"), (torch.zeros(1).expand(3), "is expanded"),
        (torch.zeros(2, 2).to_sparse(), "sparse"),
    ],
    ids=["meta", "expanded", "sparse"],
)  # fmt: skip
def test_what_cannot_be_filled(tensor: torch.Tensor, text: str) -> None:
    """The error is raised before anything is filled."""
    model = nn.Module()
    model.register_buffer("x", tensor)
    (target,) = targets_of(model)
    with pytest.raises(InvalidArgumentError, match=text):
        target.check_fillable()


def test_tensors_of_inference_mode_are_filled(tmp_path: Path) -> None:
    """A module made for inference only."""
    with torch.inference_mode():
        model = nn.Linear(2, 2)
    for target in targets_of(model):
        target.check_fillable()
        target.fill(torch.ones(target.tensor.shape))
    assert torch.equal(model.weight, torch.ones(2, 2))


def test_batch_counts_are_those_of_batch_norm() -> None:
    """And not of anything that has a tensor of that name."""
    model = nn.ModuleDict({"bn": nn.BatchNorm1d(1), "own": nn.Module()})
    model["own"].register_buffer("num_batches_tracked", torch.zeros(1))
    assert [t.name for t in targets_of(model) if t.counts_batches] == ["bn.num_batches_tracked"]


def test_a_batch_count_without_memory_starts_at_zero() -> None:
    """One that has memory stays as it is."""
    with torch.device("meta"):
        model = nn.BatchNorm1d(1)
        targets_of(model)[-1].start_counting()
    count = model.get_buffer("num_batches_tracked")
    assert count.device.type == "cpu" and torch.equal(count, torch.tensor(0))
    count += 1
    targets_of(model)[-1].start_counting()
    assert model.get_buffer("num_batches_tracked") is count and count == 1


def test_replace_keeps_a_parameter_and_a_buffer_of_the_same_memory_together() -> None:
    """The parameter stays one, whichever of the two comes first."""
    model = nn.ModuleDict({"layer": nn.Linear(2, 2, bias=False)})
    weight = model["layer"].get_parameter("weight")
    model.register_buffer("view", weight.data)
    (target,) = targets_of(model)
    assert target.names == ["view", "layer.weight"]
    target.replace(torch.ones(2, 2))
    new = model["layer"].get_parameter("weight")
    assert new is not weight and new.requires_grad and new.data_ptr() == model.get_buffer("view").data_ptr()
