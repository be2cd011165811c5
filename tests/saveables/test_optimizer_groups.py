"""Parameters and groups of an optimizer that differ from the stored ones."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from both_ways import in_both_ways, moved, restored, saved
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.saveables.optimizer_groups import hyperparameters_of_groups

Group = dict[str, Any]


def net() -> Any:
    """Return a module whose parts are found by their keys."""
    return nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 2)})


def train(model: Any, optimizer: torch.optim.Optimizer, steps: int = 2) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model["b"](model["a"](torch.ones(2, 3))).square().mean().backward()
        optimizer.step()


def assert_same_state(
    one: nn.Module, optimizer: torch.optim.Optimizer, other: nn.Module, of_other: torch.optim.Optimizer
) -> None:
    pairs = list(zip(one.parameters(), other.parameters(), strict=True))
    assert pairs
    for here, there in pairs:
        for key, value in optimizer.state[here].items():
            assert torch.equal(of_other.state[there][key], value), key
        assert optimizer.state[here].keys() == of_other.state[there].keys()


def grouped(model: Any, *groups: tuple[str, Group], **hyperparameters: Any) -> torch.optim.AdamW:
    """Return an optimizer with one group for each pattern: "a", "b.weight", "weight bias"."""
    named = dict(model.named_parameters())
    of = [
        {"params": [p for n, p in named.items() if any(part in n for part in names.split())], **more}
        for names, more in groups
    ]
    return torch.optim.AdamW(of, **hyperparameters)


FORMS: dict[str, tuple[list[tuple[str, Group]], list[tuple[str, Group]], list[Group], str]] = {
    "split": (
        [("a. b.", {"lr": 0.5, "weight_decay": 0.25})], [("weight", {}), ("bias", {"weight_decay": 0.0})],
        [{"lr": 0.5, "weight_decay": 0.01}, {"lr": 0.5, "weight_decay": 0.0}], "weight_decay of param_groups[1]",
    ),
    "split by rates": (
        [("a. b.", {"lr": 0.5})], [("a.", {"lr": 0.125}), ("b.", {})],
        [{"lr": 0.125}, {"lr": 0.001}], "lr of param_groups[1]",
    ),
    "merged, agreeing": (
        [("a.", {"lr": 0.5}), ("b.", {"lr": 0.5})], [("a. b.", {})], [{"lr": 0.5}], "",
    ),
    "merged, differing": (
        [("a.", {"lr": 0.5, "eps": 0.125}), ("b.", {"lr": 0.25, "eps": 0.125})], [("a. b.", {})],
        [{"lr": 0.001, "eps": 0.125}], "lr of param_groups[0]",
    ),
    "reordered": (
        [("a.", {"lr": 0.5}), ("b.", {"lr": 0.25})], [("b.", {}), ("a.", {})], [{"lr": 0.25}, {"lr": 0.5}], "",
    ),
    "crossed": (
        [("a.", {"lr": 0.5}), ("b.", {"lr": 0.25})], [("weight", {}), ("bias", {})],
        [{"lr": 0.001}, {"lr": 0.001}], "lr of param_groups[0]",
    ),
    "frozen": ([("a. b.", {"lr": 0.5})], [("b.", {})], [{"lr": 0.5}], "only in the checkpoint"),
    "new in a group": ([("a.", {"lr": 0.5})], [("a. b.", {})], [{"lr": 0.001}], "only in this optimizer"),
    "new group": (
        [("a.", {"lr": 0.5})], [("a.", {}), ("b.", {"lr": 0.25})], [{"lr": 0.5}, {"lr": 0.25}],
        "only in this optimizer",
    ),
}  # fmt: skip


@in_both_ways
@pytest.mark.parametrize("form", FORMS)
def test_other_groups(tmp_path: Path, kind: str, form: str, caplog: pytest.LogCaptureFixture) -> None:
    """State goes by name; hyperparameters where the groups agree, and a warning names those that keep their value."""
    before, after, expected, warning = FORMS[form]
    model, fresh = net(), net()
    optimizer, other = grouped(model, *before), grouped(fresh, *after)
    train(model, optimizer)
    path = saved(kind, {"m": model, "o": optimizer}, tmp_path)
    restored(kind, path, {"m": fresh, "o": other}, consumed=form not in ("frozen", "new in a group", "new group"))
    of_both = {
        name: (here, there)
        for (name, here), there in zip(model.named_parameters(), fresh.parameters(), strict=True)
        if here in optimizer.state and any(there is each for group in other.param_groups for each in group["params"])
    }
    assert of_both
    for name, (here, there) in of_both.items():
        assert torch.equal(other.state[there]["exp_avg"], optimizer.state[here]["exp_avg"]), name
    assert [{key: group[key] for key in want} for group, want in zip(other.param_groups, expected, strict=True)] == (
        expected
    )
    assert (warning in caplog.text) if warning else not caplog.records
    train(fresh, other)


@in_both_ways
@pytest.mark.parametrize("rate", [0.01, 0.5])
def test_a_group_that_is_added_after_the_restore(
    tmp_path: Path, kind: str, rate: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Its state and hyperparameters wait for add_param_group; then the runs are the same."""
    model, fresh = net(), net()
    optimizer = torch.optim.AdamW(model["b"].parameters(), lr=0.1)
    train(model, optimizer)
    optimizer.add_param_group({"params": model["a"].parameters(), "lr": 0.01})
    train(model, optimizer)
    other = torch.optim.AdamW(fresh["b"].parameters(), lr=0.5)
    path = saved(kind, {"m": model, "o": optimizer}, tmp_path)
    restored(kind, path, {"m": fresh, "o": other}, consumed=False)
    assert 'only in the checkpoint: "' in caplog.text
    assert_same_state(model["b"], optimizer, fresh["b"], other)
    kept: Group = {"params": list(fresh["a"].parameters()), "lr": rate}
    other.add_param_group(kept)
    assert_same_state(model, optimizer, fresh, other)
    assert [group["lr"] for group in other.param_groups] == [0.1, 0.01]
    assert other.param_groups[1] is kept  # the caller may change it later
    assert "add_param_group" not in vars(other)
    train(model, optimizer)
    train(fresh, other)
    assert torch.equal(fresh["a"].weight, model["a"].weight)


@in_both_ways
def test_parameters_that_are_added_one_by_one(tmp_path: Path, kind: str) -> None:
    """Each gets its state when it comes, once: what it has learned since then stays."""
    model, fresh = net(), net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    train(model, optimizer)
    other = torch.optim.AdamW([fresh["b"].bias])
    path = saved(kind, {"m": model, "o": optimizer}, tmp_path)
    restored(kind, path, {"m": fresh, "o": other}, consumed=False)
    for part in (fresh["b"].weight, fresh["a"].bias):
        other.add_param_group({"params": [part]})
        assert other.state[part]["exp_avg"].abs().sum() > 0
        other.state[part]["exp_avg"].fill_(7)
    assert [group["lr"] for group in other.param_groups] == [0.5, 0.5, 0.5]
    assert "add_param_group" in vars(other)
    other.add_param_group({"params": [fresh["a"].weight]})
    assert "add_param_group" not in vars(other)
    assert other.state[fresh["b"].weight]["exp_avg"].eq(7).all()
    assert torch.equal(other.state[fresh["a"].weight]["exp_avg"], optimizer.state[model["a"].weight]["exp_avg"])


def test_a_checkpoint_counts_late_state_as_restored(tmp_path: Path) -> None:
    """assert_consumed fails until the group is added."""
    model, fresh = net(), net()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer)
    other = torch.optim.AdamW(fresh["b"].parameters())
    checkpoint = tfckpt.Checkpoint(m=fresh, o=other)
    status = checkpoint.restore(saved("Checkpoint", {"m": model, "o": optimizer}, tmp_path))
    with pytest.raises(AssertionError, match="Unresolved object"):
        status.assert_consumed()
    other.add_param_group({"params": fresh["a"].parameters()})
    status.assert_consumed()


@in_both_ways
def test_a_later_restore_replaces_what_waits(tmp_path: Path, kind: str) -> None:
    """State of the first checkpoint is not applied after the second one was restored."""
    model, fresh = net(), net()
    optimizer = torch.optim.AdamW(model.parameters())
    other = torch.optim.AdamW(fresh["b"].parameters())
    states = []
    for number in range(2):
        train(model, optimizer)
        (tmp_path / str(number)).mkdir()
        path = saved(kind, {"m": model, "o": optimizer}, tmp_path / str(number))
        states.append(optimizer.state[model["a"].weight]["exp_avg"].clone())
        restored(kind, path, {"m": fresh, "o": other}, consumed=False)
    other.add_param_group({"params": fresh["a"].parameters()})
    assert torch.equal(other.state[fresh["a"].weight]["exp_avg"], states[1])


def test_an_optimizer_that_waits_can_be_copied(tmp_path: Path) -> None:
    """The copy and the pickle do not wait, and torch's methods are unchanged."""
    model, fresh = net(), net()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer)
    other = torch.optim.AdamW(fresh["b"].parameters())
    moved("Saver", {"m": model, "o": optimizer}, {"m": fresh, "o": other}, tmp_path)
    assert "add_param_group" in vars(other) and "add_param_group" not in other.__getstate__()  # what is pickled
    copied = copy.deepcopy(other)
    assert "add_param_group" not in vars(copied)
    copied.add_param_group({"params": [nn.Parameter(torch.ones(1))]})


def test_a_late_parameter_of_another_shape(tmp_path: Path) -> None:
    """add_param_group raises an error that names it."""
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer)
    path = saved("Saver", {"o": torch.optim.AdamW(model.named_parameters())}, tmp_path)
    head = [(name, each) for name, each in model.named_parameters() if name.startswith("b")]
    other = torch.optim.AdamW(head)
    restored("Saver", path, {"o": other})
    with pytest.raises(InvalidArgumentError, match=r'"a\.bias" was stored for shape \[3\]'):
        other.add_param_group({"params": [("a.bias", nn.Parameter(torch.ones(7)))]})


@in_both_ways
def test_a_save_keeps_what_waits(tmp_path: Path, kind: str) -> None:
    """A run that stops again before it unfreezes loses nothing, however often."""
    model = net()
    optimizer = grouped(model, ("b.", {"lr": 0.5}), ("a.", {"lr": 0.25}))
    train(model, optimizer)
    path = saved(kind, {"m": model, "o": optimizer}, tmp_path / "first")
    for name in ("second", "third"):
        other = net()
        frozen = grouped(other, ("b.", {}))
        restored(kind, path, {"m": other, "o": frozen}, consumed=False)
        path = saved(kind, {"m": other, "o": frozen}, tmp_path / name)
    again = net()
    unfrozen = grouped(again, ("b.", {}))
    restored(kind, path, {"m": again, "o": unfrozen}, consumed=False)
    unfrozen.add_param_group({"params": list(again["a"].parameters())})
    assert_same_state(model, optimizer, again, unfrozen)
    assert [group["lr"] for group in unfrozen.param_groups] == [0.5, 0.25]

    whole = net()
    at_once = grouped(whole, ("a. b.", {}))
    restored(kind, path, {"m": whole, "o": at_once})
    assert_same_state(model, optimizer, whole, at_once)


@in_both_ways
def test_another_class_with_the_same_hyperparameters(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, other = net(), net()
    optimizer, new = torch.optim.Adam(model.parameters()), torch.optim.AdamW(other.parameters())
    train(model, optimizer)
    moved(kind, {"m": model, "o": optimizer}, {"m": other, "o": new}, tmp_path)
    assert_same_state(model, optimizer, other, new)
    assert "this AdamW gets the state and the hyperparameters of Adam" in caplog.text


@in_both_ways
def test_parameters_that_are_not_initialised(tmp_path: Path, kind: str) -> None:
    """They are refused by name; once the module is restored, the optimizer can be."""
    model, lazy = nn.Sequential(nn.Linear(3, 2)), nn.Sequential(nn.LazyLinear(2))
    optimizer = torch.optim.SGD(model.parameters(), 0.5, momentum=0.5)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    path = saved(kind, {"m": model, "o": optimizer}, tmp_path)
    new = torch.optim.SGD(lazy.parameters(), 0.5, momentum=0.5)
    with pytest.raises(InvalidArgumentError, match=r"weight\" is not initialised yet|bias\" is not initialised yet"):
        restored(kind, path, {"m": lazy, "o": new})
    restored(kind, path, {"m": lazy}, consumed=False)
    restored(kind, path, {"m": lazy, "o": new})
    assert_same_state(model, optimizer, lazy, new)


@in_both_ways
def test_the_flat_vectors_of_lbfgs_need_the_same_order(tmp_path: Path, kind: str) -> None:
    """Its state is one vector over all parameters."""
    model, fresh = net(), net()
    optimizer = torch.optim.LBFGS(model.parameters())
    path = saved(kind, {"m": model, "o": optimizer}, tmp_path)
    other = torch.optim.LBFGS(list(fresh.parameters())[::-1])
    with pytest.raises(InvalidArgumentError, match="LBFGS depends on the order"):
        restored(kind, path, {"m": fresh, "o": other})


def test_tensors_among_the_hyperparameters() -> None:
    """A rate may be a tensor; equal values are equal in any form."""
    stored = [{"params": ["a"], "lr": torch.tensor(0.5)}, {"params": ["b"], "lr": 0.5, "betas": (0.5, 0.25)}]
    plan = hyperparameters_of_groups([{"params": [], "lr": 1.0, "betas": [0.5, 0.25]}], [["a", "b"]], stored)
    assert plan.groups == [{"lr": torch.tensor(0.5), "betas": [0.5, 0.25]}] and plan.used == {0, 1}
    assert plan.remarks == [
        'betas of param_groups[0] ("a", "b") keeps its current value: the stored groups have no value, (0.5, 0.25)'
    ]
