"""Optimizers saved by the names of their parameters, and training that resumes bit for bit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from saveables_files import restore, save
from torch import nn
from torch.optim import lr_scheduler

import torch_tfckpt as tfckpt
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.saveables.rng_state import RNGState
from torch_tfckpt.saveables.var_list import VarList
from torch_tfckpt.saveables.variables import Variable

STEPS = 6
MakeOptimizer = Callable[[Any], torch.optim.Optimizer]
MakeScheduler = Callable[[torch.optim.Optimizer], Any]

OPTIMIZERS: dict[str, MakeOptimizer] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "tensor lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01)),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
}
SCHEDULERS: dict[str, MakeScheduler] = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 20),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 7, 7]),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, total_iters=3), lr_scheduler.ExponentialLR(o, 0.9)], [4]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=1.0),
}


class Training:
    """A small model with dropout, its optimizer and its scheduler."""

    def __init__(self, optimizer: MakeOptimizer, scheduler: MakeScheduler, *, named: bool = False) -> None:
        self.model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.3), nn.Linear(5, 1))
        self.optimizer = optimizer(self.model.named_parameters() if named else self.model.parameters())
        self.scheduler = scheduler(self.optimizer)

    def run(self, steps: int) -> list[float]:
        """Run some steps on random data and return the losses."""
        losses = []
        for _ in range(steps):
            inputs = torch.randn(8, 4)
            loss = float(self.optimizer.step(self._closure(inputs)))
            plateau = isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau)
            self.scheduler.step(*([loss] if plateau else []))
            losses.append(loss)
        return losses

    def _closure(self, inputs: torch.Tensor) -> Callable[[], float]:
        def closure() -> float:
            self.optimizer.zero_grad()
            loss: torch.Tensor = (self.model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
            loss.backward()  # type: ignore[no-untyped-call]
            return float(loss.detach())

        return closure

    @property
    def var_list(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler, "rng": RNGState()}


def resumed_equals_uninterrupted(tmp_path: Path, make: Callable[[], Training]) -> None:
    torch.manual_seed(1)
    first = make()
    first.run(STEPS)
    save(first.var_list, tmp_path / "ckpt")
    expected = first.run(STEPS)
    torch.manual_seed(2)
    second = make()
    second.run(1)
    restore(second.var_list, tmp_path / "ckpt")
    assert second.run(STEPS) == expected
    assert second.optimizer.param_groups[0]["lr"] == first.optimizer.param_groups[0]["lr"]


# SequentialLR of torch 2.6 emits a warning about its own call.
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW"])
def test_a_resumed_run_continues_bit_for_bit(tmp_path: Path, optimizer: str, scheduler: str) -> None:
    """With model, optimizer, scheduler and generators restored, the losses are the same numbers."""
    resumed_equals_uninterrupted(tmp_path, lambda: Training(OPTIMIZERS[optimizer], SCHEDULERS[scheduler]))


@pytest.mark.parametrize("optimizer", ["tensor lr", "Adafactor", "LBFGS"])
def test_unusual_optimizers_resume_too(tmp_path: Path, optimizer: str) -> None:
    """A learning rate that is a tensor; state of other shapes than the parameter; state that is lists."""
    resumed_equals_uninterrupted(tmp_path, lambda: Training(OPTIMIZERS[optimizer], SCHEDULERS["StepLR"]))


def test_a_run_with_named_parameters_resumes(tmp_path: Path) -> None:
    """The optimizer's own names are used; an optimizer without names gets the same ones from the module."""
    make = Training(OPTIMIZERS["Adam"], SCHEDULERS["StepLR"], named=True)
    resumed_equals_uninterrupted(tmp_path, lambda: Training(OPTIMIZERS["Adam"], SCHEDULERS["StepLR"], named=True))
    restore({"optimizer": make.optimizer}, tmp_path / "ckpt")
    assert make.optimizer.param_groups[0]["param_names"] == [name for name, _ in make.model.named_parameters()]
    restore(Training(OPTIMIZERS["Adam"], SCHEDULERS["StepLR"]).var_list, tmp_path / "ckpt")


def stepped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Make one step with different gradients for each parameter."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.full_like(parameter, float(parameter.numel()))
    optimizer.step()
    return optimizer


def two_layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))


def test_names_in_the_file_are_readable_and_never_positions(tmp_path: Path) -> None:
    """optimizer/state/fc1.weight/exp_avg; before the first step only the JSON is stored."""
    model = nn.Sequential()
    model.add_module("fc1", nn.Linear(2, 1))
    optimizer = torch.optim.Adam(model.parameters())
    assert save({"model": model, "optimizer": optimizer}, tmp_path / "a") == [
        "model/fc1.bias", "model/fc1.weight", "optimizer"
    ]  # fmt: skip
    var_list = VarList({"model": model, "optimizer": optimizer})
    stepped(optimizer)
    states = [each.name for each in var_list.to_save() if each.name.startswith("optimizer/")]
    assert states == [
        f"optimizer/state/fc1.{name}/{slot}"
        for name in ("bias", "weight")
        for slot in ("exp_avg", "exp_avg_sq", "step")
    ]
    save({"model": model, "optimizer": optimizer}, tmp_path / "b")
    text = tfckpt.load_variable(tmp_path / "b", "optimizer")
    assert isinstance(text, np.ndarray)
    stored = json.loads(text.item())
    assert stored["param_groups"][0]["params"] == ["fc1.weight", "fc1.bias"]
    assert (stored["optimizer"], stored["param_shapes"]) == ("Adam", {"fc1.weight": [1, 2], "fc1.bias": [1]})


def names_in(var_list: object, key: str = "o") -> list[str]:
    """Return the names of parameters that have state, as they would be stored."""
    prefix = f"{key}/state/"
    names = [each.name.removeprefix(prefix) for each in VarList(var_list).to_save() if each.name.startswith(prefix)]
    return list(dict.fromkeys(name.rpartition("/")[0] for name in names))


def test_names_come_from_the_modules_and_tensors_of_the_var_list() -> None:
    """Bare names if one module has all parameters, else with the module's key; tensors under their own key."""
    one, other, scale = nn.Linear(1, 1, bias=False), nn.Linear(2, 2, bias=False), nn.Parameter(torch.ones(1))
    both = [*one.parameters(), *other.parameters()]
    within = stepped(torch.optim.Adam(one.parameters()))
    assert names_in({"one": one, "other": other, "o": within}) == ["weight"]
    across = stepped(torch.optim.Adam(both))
    assert names_in({"one": one, "other": other, "o": across}) == ["one/weight", "other/weight"]
    mixed = stepped(torch.optim.Adam([*both, scale]))
    assert names_in([("one", one), ("other", other), ("scale", scale), ("o", mixed)]) == [
        "one/weight", "other/weight", "scale"
    ]  # fmt: skip
    # If several modules have a parameter, the first one names it.
    assert names_in({"c": one, "b": nn.ModuleList([one]), "d": other, "o": across}) == ["b/0.weight", "d/weight"]
    assert names_in([Variable(scale, "listed"), ("o", stepped(torch.optim.Adam([scale])))]) == ["listed"]


def test_a_parameter_without_a_name_is_rejected_at_construction() -> None:
    """The error has group, position, shape and a hint; an optimizer with its own names needs no module."""
    model = two_layers()
    groups: list[dict[str, Any]] = [{"params": [model[0].bias]}, {"params": [model[1].bias, model[0].weight]}]
    optimizer = torch.optim.SGD(groups)
    with pytest.raises(InvalidArgumentError) as caught:
        VarList({"o": optimizer, "last": model[1], "b": model[0].bias})
    assert r'state "o": parameter 1 of param_groups[1], of shape [3,2], has no name' in str(caught.value)
    assert "Add its module to var_list, or build the optimizer from model.named_parameters()" in str(caught.value)
    assert not VarList({"o": torch.optim.SGD(model.named_parameters())}).is_empty


def test_one_name_for_two_parameters_is_rejected() -> None:
    """They would share their state."""
    named: list[dict[str, Any]] = [
        {"params": [("a", nn.Parameter(torch.ones(1)))]},
        {"params": [("a", nn.Parameter(torch.ones(1)))]},
    ]
    with pytest.raises(InvalidArgumentError, match='two parameters of the optimizer have the name "a"'):
        VarList({"o": torch.optim.SGD(named)})


def test_parameters_and_groups_may_come_in_another_order(tmp_path: Path) -> None:
    """Names map the state to the positions in the present optimizer, and each group keeps its hyperparameters."""
    model, fresh = two_layers(), two_layers()
    make = torch.optim.Adam
    first: list[dict[str, Any]]
    first = [{"params": [model[0].weight, model[0].bias], "lr": 0.5}, {"params": [model[1].weight, model[1].bias]}]
    optimizer = stepped(make(first, lr=0.25))
    save({"m": model, "o": optimizer}, tmp_path / "ckpt")
    second = [{"params": [fresh[1].bias, fresh[1].weight]}, {"params": [fresh[0].bias, fresh[0].weight]}]
    other = make(second, lr=1.0)
    restore({"m": fresh, "o": other}, tmp_path / "ckpt")
    assert [group["lr"] for group in other.param_groups] == [0.25, 0.5]
    for (name, here), there in zip(fresh.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(other.state[here]["exp_avg"], optimizer.state[there]["exp_avg"]), name


def test_groups_without_parameters_keep_their_order(tmp_path: Path) -> None:
    """They have no names to distinguish them."""
    model = nn.Linear(1, 1)

    def make(*rates: float) -> torch.optim.Optimizer:
        groups: list[dict[str, Any]] = [{"params": list(model.parameters())}, *({"params": [], "lr": r} for r in rates)]
        return torch.optim.SGD(groups, lr=1.0)

    save({"m": model, "o": make(0.1, 0.2)}, tmp_path / "ckpt")
    other = make(0.3, 0.4)
    restore({"m": model, "o": other}, tmp_path / "ckpt")
    assert [group["lr"] for group in other.param_groups] == [1.0, 0.1, 0.2]


def test_a_parameter_without_state_is_restored_without(tmp_path: Path) -> None:
    """A frozen one never got a gradient; restoring removes the state that it has by now."""
    model, fresh = two_layers(), two_layers()
    optimizer = torch.optim.Adam(model.parameters())
    model.get_parameter("0.weight").grad = torch.ones(3, 2)
    optimizer.step()
    save({"m": model, "o": optimizer}, tmp_path / "ckpt")
    other = stepped(torch.optim.Adam(fresh.parameters()))
    restore({"m": fresh, "o": other}, tmp_path / "ckpt")
    assert list(other.state) == [fresh[0].weight]


def refused(tmp_path: Path, optimizer: torch.optim.Optimizer, model: nn.Module, text: str) -> None:
    """Assert that the optimizer raises before anything in it changes."""
    before = repr(optimizer.state_dict())
    with pytest.raises(InvalidArgumentError, match=text):
        with tfckpt.load_checkpoint(tmp_path / "ckpt") as reader:
            VarList({"m": model, "o": optimizer}).to_restore(reader)
    assert repr(optimizer.state_dict()) == before


def test_unrelated_parameters_other_shapes_and_algorithms_are_rejected(tmp_path: Path) -> None:
    """InvalidArgumentError with the names, and nothing has changed."""
    model = two_layers()
    save({"m": model, "o": stepped(torch.optim.Adam(model.parameters()))}, tmp_path / "ckpt")
    parameters = list(model.parameters())
    renamed = nn.ModuleDict({"a": nn.Linear(2, 3)})
    there, here = r'Only in the checkpoint: "0\.bias", "0\.weight"', r'Only in this optimizer: "a\.bias", "a\.weight"'
    for text in (there, here):
        refused(tmp_path, stepped(torch.optim.Adam(renamed.parameters())), renamed, text)
    fewer = torch.optim.NAdam(parameters[:2])
    refused(tmp_path, fewer, model, "has the state of Adam, but this optimizer is NAdam")
    wider = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 1))
    refused(tmp_path, torch.optim.Adam(wider.parameters()), wider, r'"0\.weight" was stored for shape \[3, 2\]')
    sgd = torch.optim.SGD(parameters)
    refused(tmp_path, sgd, model, 'has the state of Adam, which lacks hyperparameters of this SGD: .*"momentum"')


def test_a_related_algorithm_accepts_the_state(tmp_path: Path) -> None:
    """AdamW has Adam's hyperparameters; those missing in the file, e.g. from an older torch, keep their values."""
    model = two_layers()
    save({"m": model, "o": stepped(torch.optim.Adam(model.parameters(), lr=0.5))}, tmp_path / "ckpt")
    other = torch.optim.AdamW(model.parameters())
    restore({"m": model, "o": other}, tmp_path / "ckpt")
    assert other.param_groups[0]["lr"] == 0.5 and len(other.state) == 4
    text = tfckpt.load_variable(tmp_path / "ckpt", "o")
    assert isinstance(text, np.ndarray)
    stored = json.loads(text.item())
    del stored["param_groups"][0]["amsgrad"]
    stored["state"] = {}
    tfckpt.save_file({"o": json.dumps(stored)}, tmp_path / "older")
    older = stepped(torch.optim.Adam(model.named_parameters(), amsgrad=True))
    restore({"o": older}, tmp_path / "older")
    assert older.param_groups[0]["amsgrad"] is True and not older.state


@pytest.mark.parametrize(
    "text",
    [
        "{}", "[]", '{"state": {}, "param_groups": {}}', '{"state": [], "param_groups": []}',
        '{"state": {}, "param_groups": [{"params": [0]}]}', '{"state": {"$dict": [[0, 1]]}, "param_groups": []}',
        '{"state": {}, "param_groups": [], "other_state": 5}', '{"state": {}, "param_groups": [{"params": "weight"}]}',
    ],
)  # fmt: skip
def test_a_value_that_is_not_an_optimizers_state_is_rejected(tmp_path: Path, text: str) -> None:
    """Including optimizer state by positions."""
    model = two_layers()
    tfckpt.save_file({"o": text}, tmp_path / "ckpt")
    refused(tmp_path, torch.optim.SGD(model.parameters()), model, 'state "o": the stored value is not the state')


def test_state_of_a_parameter_in_no_group_is_rejected(tmp_path: Path) -> None:
    """Otherwise it would be dropped silently."""
    model = nn.Linear(1, 1)
    text = '{"state": {"x": {}}, "param_groups": [{"params": ["weight", "bias"]}]}'
    tfckpt.save_file({"o": text}, tmp_path / "ckpt")
    refused(tmp_path, torch.optim.SGD(model.parameters()), model, 'state is stored for "x", which is not in any')


def test_state_that_belongs_to_no_parameter_is_kept(tmp_path: Path) -> None:
    """Some optimizers keep a counter of their own in `state`."""
    model = nn.Linear(1, 1)
    optimizer, other = torch.optim.SGD(model.parameters()), torch.optim.SGD(model.parameters())
    optimizer.state["steps"] = {"n": 3, "mean": torch.ones(1)}  # type: ignore[index]
    assert "o/other_state/steps/mean" in save({"m": model, "o": optimizer}, tmp_path / "ckpt")
    restore({"m": model, "o": other}, tmp_path / "ckpt")
    assert other.state["steps"] == {"n": 3, "mean": torch.ones(1)}  # type: ignore[index]
