"""load_model(optimizer=) on checkpoints whose optimizer state was stored by a Saver."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.errors import CheckpointError, NotFoundError, UnimplementedError

Make = Callable[[Any], torch.optim.Optimizer]

KINDS: dict[str, Make] = {
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
    "Adagrad": torch.optim.Adagrad,
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "Rprop": torch.optim.Rprop,
}


def trained(make: Make) -> tuple[nn.Linear, torch.optim.Optimizer]:
    model = nn.Linear(3, 2)
    optimizer = make(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def hinted(message: str) -> str:
    """Return the expression in the hint."""
    found = re.search(r"with this Saver: (Saver\(.*\)\.restore\(path\))", message)
    assert found is not None, message
    return found[1]


def run(expression: str, model: nn.Module, optimizer: torch.optim.Optimizer, path: str) -> None:
    names = {"Saver": tfckpt.Saver, "model": model, "optimizer": optimizer, "path": path}
    eval(expression, names)  # noqa: S307 - what a user would paste; its keys are those of this test


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("model_key", "key"), [("model", "optimizer"), ("net", "opt"), ("train/model", "train/opt")])
def test_the_hint_restores_the_optimizer(tmp_path: Path, kind: str, model_key: str, key: str) -> None:
    """Nothing is loaded; the expression has the keys of the checkpoint, and works when it is run."""
    trained_model, trained_optimizer = trained(KINDS[kind])
    path = tfckpt.Saver({model_key: trained_model, key: trained_optimizer}).save(tmp_path / "m")
    model = nn.Linear(3, 2)
    optimizer = KINDS[kind](model.parameters())
    expected: type[CheckpointError] = UnimplementedError if kind == "Rprop" else NotFoundError
    with pytest.raises(expected, match=f'stored the state of {kind} under "{key}"') as caught:
        tfckpt.load_model(model, path, optimizer=optimizer)
    expression = hinted(str(caught.value))
    assert expression == f'Saver({{"{model_key}": model, "{key}": optimizer}}).restore(path)'
    run(expression, model, optimizer, path)
    assert torch.equal(model.weight, trained_model.weight)
    for parameter, other in zip(model.parameters(), trained_model.parameters(), strict=True):
        state, stored = optimizer.state[parameter], trained_optimizer.state[other]
        assert state.keys() == stored.keys() and all(torch.equal(state[name], stored[name]) for name in state)


def test_parameters_saved_one_by_one(tmp_path: Path) -> None:
    """Without a prefix the hint passes the parameters by their names."""
    trained_model, trained_optimizer = trained(torch.optim.Adam)
    path = tfckpt.Saver({**dict(trained_model.named_parameters()), "opt": trained_optimizer}).save(tmp_path / "m")
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(NotFoundError) as caught:
        tfckpt.load_model(model, path, optimizer=optimizer)
    expression = hinted(str(caught.value))
    run(expression, model, optimizer, path)
    assert len(optimizer.state) == 2 and torch.equal(model.bias, trained_model.bias)


@pytest.mark.parametrize("strict", [True, False])
def test_an_optimizer_that_needs_no_state(tmp_path: Path, strict: bool) -> None:
    """Nothing is missing for SGD without momentum, but its learning rate is not loaded: the report has the remark."""
    model, _ = trained(torch.optim.Adam)
    path = tfckpt.Saver({"model": model, "opt": torch.optim.SGD(model.parameters(), lr=0.5)}).save(tmp_path / "m")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    report = tfckpt.load_model(model, path, optimizer=optimizer, strict=strict)
    (remark,) = report.remarks
    assert hinted(remark) == 'Saver({"model": model, "opt": optimizer}).restore(path)' and remark in str(report)
    run(hinted(remark), model, optimizer, path)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_several_optimizers_and_another_class(tmp_path: Path) -> None:
    """Those of the class in use are named; if there is none, the hint says which class is stored."""
    model, adam = trained(torch.optim.Adam)
    one, two = torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD(model.parameters(), lr=0.2)
    path = tfckpt.Saver({"model": model, "a": adam, "s1": one, "s2": two}).save(tmp_path / "m")
    report = tfckpt.load_model(model, path, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    assert 'stored the state of SGD under "s1", "s2"' in report.remarks[0]
    with pytest.raises(
        UnimplementedError, match=r'state of "Adam" under "a", "s1", "s2".*with an optimizer of class "Adam"'
    ):
        tfckpt.load_model(model, path, optimizer=torch.optim.Rprop(model.parameters()))


def test_strings_that_are_not_optimizers(tmp_path: Path) -> None:
    """Other strings, damaged or not, bring no hint."""
    model, _ = trained(torch.optim.Adam)
    texts = {
        "a": b"{",
        "b": b"[1]",
        "c": b'{"optimizer": 3, "param_groups": []}',
        "d": b'{"optimizer": "Adam"}',
        "e": b"\xff",
    }
    weights = dict(model.state_dict())
    tfckpt.save_file({**weights, **texts}, tmp_path / "m")
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    assert tfckpt.load_model(model, tmp_path / "m", optimizer=sgd).remarks == []
    with pytest.raises(UnimplementedError, match=r"Omit optimizer$"):
        tfckpt.load_model(model, tmp_path / "m", optimizer=torch.optim.Rprop(model.parameters()))


def test_a_load_without_an_optimizer_has_no_hint(tmp_path: Path) -> None:
    model, adam = trained(torch.optim.Adam)
    path = tfckpt.Saver({"model": model, "opt": adam}).save(tmp_path / "m")
    assert tfckpt.load_model(model, path).remarks == []
