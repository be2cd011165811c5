"""convert(to="tf") of a training that was saved with torch.save: a Saver restores it, and it continues bit for bit.

The oracle is torch: a training that was not interrupted, and a checkpoint that a Saver wrote of the same objects.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.cli.main import main
from torch_tfckpt.conversion.parameter_order import AmbiguousPositionsError, ModelTensor, match_positions
from torch_tfckpt.errors import InvalidArgumentError

Make = Callable[[nn.Module], torch.optim.Optimizer]


class Tied(nn.Module):
    """Tied weights, buffers of torch's classes and of its own, an unused parameter, and extra state."""

    def __init__(self) -> None:
        super().__init__()
        last = nn.Linear(6, 4, bias=False)
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), last)
        self.unused = nn.Parameter(torch.ones(3))
        self.register_buffer("mask", torch.ones(4, dtype=torch.bool))
        self.decoder = nn.Linear(6, 4, bias=False)
        self.decoder.weight = last.weight
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        hidden = self.body[1](self.body[0](x)).relu()
        result: torch.Tensor = (self.body[2](hidden) + self.decoder(hidden)) * self.mask
        return result

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": self.calls}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.calls = state["calls"]


def by_decay(model: nn.Module) -> torch.optim.Optimizer:
    """Matrices and vectors in two groups, so that positions are not in the order of the model."""
    matrices = [each for each in model.parameters() if each.dim() > 1]
    vectors = [each for each in model.parameters() if each.dim() <= 1]
    return torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "lr": 1e-2}], lr=1e-3)


def by_names(model: nn.Module) -> torch.optim.Optimizer:
    named = list(model.named_parameters())
    groups: list[dict[str, Any]] = [{"params": named[3:]}, {"params": named[:3], "lr": 0.1}]
    return torch.optim.Adam(groups)


OPTIMIZERS: dict[str, Make] = {
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2, amsgrad=True),
    "momentum": lambda model: torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9),
    "two-groups": by_decay,
    "named": by_names,
    "adafactor": lambda model: torch.optim.Adafactor(model.parameters()),
}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, schedulers: Iterable[Any], steps: range) -> None:
    for step in steps:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        for each in schedulers:
            each.step()


def parts(make: Make) -> tuple[Tied, torch.optim.Optimizer, torch.optim.lr_scheduler.MultiStepLR]:
    torch.manual_seed(1)
    model = Tied()
    optimizer = make(model)
    return model, optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5])


def assert_equal(one: Any, other: Any) -> None:
    """Compare state dicts, at any depth, bit for bit."""
    if isinstance(one, torch.Tensor):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert (type(one), len(one)) == (type(other), len(other))
        for each, there in zip(one, other, strict=True):
            assert_equal(each, there)
    else:
        assert (type(one), one) == (type(other), other)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_continues_as_if_it_had_not_stopped(tmp_path: Path, name: str) -> None:
    """Everything is restored bit for bit into fresh objects, and later steps are those of an uninterrupted run."""
    model, optimizer, scheduler = parts(OPTIMIZERS[name])
    train(model, optimizer, [scheduler], range(3))
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "epoch": 3,
        "rng": {"torch": torch.get_rng_state()},
    }
    torch.save(state, tmp_path / "x.pt")
    report = tfckpt.convert(tmp_path / "x.pt", tmp_path / "ckpt", to="tf")
    assert (report.refused, report.skipped, report.complete) == ({}, {}, True)
    assert list(report.training) == ["model", "scheduler", "epoch", "rng", "optimizer"]

    torch.manual_seed(99)
    fresh, new, clock = parts(OPTIMIZERS[name])
    epoch, rng = torch.tensor(0), {"torch": torch.zeros(1)}
    objects = {"model": fresh, "optimizer": new, "scheduler": clock, "epoch": epoch, "rng": rng}
    tfckpt.Saver(objects).restore(str(tmp_path / "ckpt"))
    assert_equal(fresh.state_dict(), dict(state["model"]))  # type: ignore[call-overload]
    assert_equal(new.state_dict(), state["optimizer"])
    assert_equal(clock.state_dict(), state["scheduler"])
    assert (epoch.item(), fresh.calls) == (3, 3)
    assert torch.equal(rng["torch"], state["rng"]["torch"])  # type: ignore[index]
    train(model, optimizer, [scheduler], range(3, 8))
    train(fresh, new, [clock], range(3, 8))
    assert_equal(fresh.state_dict(), model.state_dict())
    assert_equal(new.state_dict(), optimizer.state_dict())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_result_is_what_a_saver_writes(tmp_path: Path, name: str) -> None:
    """The same keys and values, except the class of the optimizer, which a state_dict does not tell."""
    model, optimizer, scheduler = parts(OPTIMIZERS[name])
    train(model, optimizer, [scheduler], range(2))
    objects = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    torch.save({key: each.state_dict() for key, each in objects.items()}, tmp_path / "x.pt")  # type: ignore[attr-defined]
    tfckpt.convert(tmp_path / "x.pt", tmp_path / "ckpt", to="tf")
    saved = tfckpt.load_file(tfckpt.Saver(objects).save(str(tmp_path / "saver")))
    found = tfckpt.load_file(str(tmp_path / "ckpt"))
    assert found.keys() == saved.keys()
    for key, value in saved.items():
        if isinstance(value, torch.Tensor):
            assert_equal(found[key], value)
        else:
            expected = json.loads(np.asarray(value).item())
            expected.pop("optimizer", None)
            assert json.loads(np.asarray(found[key]).item()) == expected


def lightning(model: nn.Module, optimizers: list[Any], schedulers: list[Any]) -> dict[str, Any]:
    """The layout of Lightning's Trainer.save_checkpoint."""
    return {
        "epoch": 1,
        "global_step": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": model.state_dict(),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 2}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5), "best_k_models": {}}},
        "optimizer_states": [each.state_dict() for each in optimizers],
        "lr_schedulers": [each.state_dict() for each in schedulers],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 0.1},
    }


def test_lightning(tmp_path: Path) -> None:
    """Its model, optimizer and scheduler get the usual keys, the rest keeps its keys."""
    model, optimizer, scheduler = parts(OPTIMIZERS["adamw"])
    train(model, optimizer, [scheduler], range(3))
    torch.save(lightning(model, [optimizer], [scheduler]), tmp_path / "last.ckpt")
    report = tfckpt.convert(tmp_path / "last.ckpt", tmp_path / "run" / "model", to="tf")
    assert report.complete

    fresh, new, clock = parts(OPTIMIZERS["adamw"])
    step, callbacks, loops = torch.tensor(0), {"x": 1}, {"x": 1}
    objects = {"model": fresh, "optimizer": new, "scheduler": clock, "global_step": step}
    tfckpt.Saver({**objects, "callbacks": callbacks, "loops": loops}).restore(str(tmp_path / "run" / "model"))
    expected = lightning(model, [optimizer], [scheduler])
    assert_equal(callbacks, expected["callbacks"])
    assert_equal(loops, expected["loops"])
    assert step.item() == 3
    train(model, optimizer, [scheduler], range(3, 6))
    train(fresh, new, [clock], range(3, 6))
    assert_equal(new.state_dict(), optimizer.state_dict())
    assert_equal(fresh.state_dict(), model.state_dict())


def test_several_optimizers_and_models(tmp_path: Path) -> None:
    """Lists are numbered, and nested dicts are taken apart, as by a Saver; each optimizer finds its model by shapes."""
    generator, critic = nn.Linear(2, 3), nn.Linear(3, 1)
    optimizers = [torch.optim.Adam(generator.parameters()), torch.optim.SGD(critic.parameters(), momentum=0.9)]
    critic(generator(torch.ones(1, 2))).sum().backward()
    for each in optimizers:
        each.step()
    both = nn.ModuleDict({"G": generator, "D": critic})
    both_optimizers = [each.state_dict() for each in optimizers]
    torch.save({"state_dict": both.state_dict(), "optimizer_states": both_optimizers}, tmp_path / "list.pt")
    nested = {"G": {"net": generator.state_dict(), "opt": both_optimizers[0], "n": 3}}
    torch.save({**nested, "D": {"net": critic.state_dict(), "opt": both_optimizers[1]}}, tmp_path / "nested.pt")

    for name in ("list", "nested"):
        assert tfckpt.convert(tmp_path / f"{name}.pt", tmp_path / name, to="tf").complete
        other, judge = nn.Linear(2, 3), nn.Linear(3, 1)
        adam, momentum = torch.optim.Adam(other.parameters()), torch.optim.SGD(judge.parameters(), momentum=0.9)
        counts: dict[str, Any] = {"net": other, "opt": adam, "n": 0}
        objects: dict[str, Any] = {"G": counts, "D": {"net": judge, "opt": momentum}}
        if name == "list":
            objects = {"model": nn.ModuleDict({"G": other, "D": judge}), "optimizers": [adam, momentum]}
        tfckpt.Saver(objects).restore(str(tmp_path / name))
        assert_equal([adam.state_dict(), momentum.state_dict()], both_optimizers)
        assert torch.equal(judge.weight, critic.weight)
        assert counts["n"] == (3 if name == "nested" else 0)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_dropped(tmp_path: Path, prefix: str) -> None:
    """A training with DistributedDataParallel and torch.compile continues with the plain model."""
    model, optimizer, _ = parts(OPTIMIZERS["adamw"])
    train(model, optimizer, [], range(2))
    wrapped = OrderedDict((prefix + name, value) for name, value in model.state_dict().items())
    torch.save({"model": wrapped, "optimizer": optimizer.state_dict()}, tmp_path / "x.pt")
    assert tfckpt.convert(tmp_path / "x.pt", tmp_path / "ckpt", to="tf").complete
    assert "model/body.0.weight" in tfckpt.load_file(str(tmp_path / "ckpt"))
    fresh, new, _ = parts(OPTIMIZERS["adamw"])
    tfckpt.Saver({"model": fresh, "optimizer": new}).restore(str(tmp_path / "ckpt"))
    assert_equal(new.state_dict(), optimizer.state_dict())
    assert_equal(fresh.state_dict(), model.state_dict())


class Masked(nn.Module):
    """A float buffer of the shape of a parameter, in the middle, and a frozen part."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.first.register_buffer("scale", torch.ones(4))
        self.second = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.second(self.first(x) * self.first.scale)
        return result


def head_first(model: nn.Module) -> torch.optim.Optimizer:
    assert isinstance(model, Masked)
    return torch.optim.Adam([{"params": model.second.parameters()}, {"params": model.first.parameters()}])


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda model: torch.optim.Adam(model.parameters()), id="buffer"),
        pytest.param(lambda model: torch.optim.Adam(model.second.parameters()), id="frozen"),
        pytest.param(head_first, id="groups"),
    ],
)
def test_ambiguous_positions_are_refused(
    tmp_path: Path, make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is converted; the optimizer is reported, with the fix. The exit status is 1 unless it is excluded."""
    model = Masked()
    optimizer = make(model)
    train(model, optimizer, [], range(1))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1}, tmp_path / "x.pt")
    monkeypatch.chdir(tmp_path)
    assert main(["convert", "x.pt", "ckpt", "--to", "tf"]) == 1
    shown = capsys.readouterr().out
    assert '"optimizer" was NOT converted: "model": its' in shown
    assert "Load the file with torch.load into the model and the optimizer, and save these with a Saver" in shown
    assert not [name for name in tfckpt.load_file("ckpt") if name.startswith("optimizer")]
    assert main(["convert", "x.pt", "ckpt", "--to", "tf", "--exclude", "^optimizer"]) == 0
    tfckpt.Saver({"model": Masked()}).restore("ckpt")


def test_names_in_the_groups_decide(tmp_path: Path) -> None:
    """Where the order is ambiguous, an optimizer that was made from named_parameters() is converted."""
    model = Masked()
    optimizer = torch.optim.Adam(
        [
            {"params": list(each.named_parameters(name))}
            for name, each in (("second", model.second), ("first", model.first))
        ]
    )
    train(model, optimizer, [], range(2))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x.pt")
    assert tfckpt.convert(tmp_path / "x.pt", tmp_path / "ckpt", to="tf").complete
    fresh = Masked()
    new = torch.optim.Adam(fresh.parameters())  # in another order, in one group
    tfckpt.Saver({"model": fresh, "optimizer": new}).restore(str(tmp_path / "ckpt"))
    for (_, old), (name, parameter) in zip(model.named_parameters(), fresh.named_parameters(), strict=True):
        assert_equal(new.state[parameter], optimizer.state[old])
        assert torch.equal(old, parameter), name


def test_another_class_of_optimizer_is_refused_on_restore(tmp_path: Path) -> None:
    """The class is unknown, but hyperparameters tell; those that older versions of torch lack are not asked for."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    for added in ("maximize", "foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay"):
        state["param_groups"][0].pop(added, None)
    torch.save({"model": model.state_dict(), "optimizer": state}, tmp_path / "old.pt")
    tfckpt.convert(tmp_path / "old.pt", tmp_path / "ckpt", to="tf")
    with pytest.raises(
        InvalidArgumentError, match='lacks hyperparameters of this SGD: "dampening", "momentum", "nesterov"'
    ):
        tfckpt.Saver({"model": model, "optimizer": torch.optim.SGD(model.parameters())}).restore(str(tmp_path / "ckpt"))
    new = torch.optim.AdamW(model.parameters())
    tfckpt.Saver({"model": model, "optimizer": new}).restore(str(tmp_path / "ckpt"))
    assert new.param_groups[0]["lr"] == 0.5
    assert_equal(new.state_dict()["state"], state["state"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rename": [("^optimizer/", "opt/")]}, 'because the state "optimizer" refers'),
        ({"rename": [("weight", "w")], "include": ["model/", "^optimizer$"]}, 'because the state "optimizer" refers'),
        ({"rename": [("/weight", "/w")], "include": ["^model/", "^optimizer"]}, 'because the state "optimizer" refers'),
        ({"rename": [("^model/weight", "model/w")]}, 'has the names of the parameters of "model", such as "weight"'),
        ({"exclude": ["exp_avg_sq"]}, 'because the state "optimizer" refers'),
        ({"dtype": "bf16"}, "dtype=torch.bfloat16 would convert the tensors of the state"),
    ],
)
def test_a_selection_that_no_restore_would_accept_is_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    """Names and types that the state of an optimizer refers to stay; those of the model may change."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x.pt")
    with pytest.raises(InvalidArgumentError, match=message):
        tfckpt.convert(tmp_path / "x.pt", tmp_path / "ckpt", to="tf", **options)
    tfckpt.convert(tmp_path / "x.pt", tmp_path / "ckpt", to="tf", rename=[("^model/", "net/")])
    tfckpt.Saver({"net": model, "optimizer": optimizer}).restore(str(tmp_path / "ckpt"))
    only = tfckpt.convert(tmp_path / "x.pt", tmp_path / "ckpt", to="tf", include=["^model/"], dtype="bf16")
    assert [item.new_name for item in only.converted] == ["model/bias", "model/weight"]


def test_values_that_cannot_be_stored_are_reported(tmp_path: Path) -> None:
    """Sets and None are named as skipped; state of positions that do not exist refuses the optimizer."""
    model = nn.Linear(2, 2)
    state = torch.optim.SGD(model.parameters()).state_dict()
    strange = {**state, "state": {7: {"momentum_buffer": torch.ones(2, 2)}}}
    torch.save({"model": model.state_dict(), "opt": strange, "seen": {"a": {1, 2}}, "best": None}, tmp_path / "x.pt")
    report = tfckpt.convert(tmp_path / "x.pt", tmp_path / "ckpt", to="tf")
    assert report.skipped == {"seen": '"seen.a" is not a plain value: set', "best": "NoneType None"}
    assert "state for a position that is not in any of its groups" in report.refused["opt"]
    assert not report.complete


def test_an_optimizer_that_fits_several_models_is_refused(tmp_path: Path) -> None:
    """Models of the same shapes with other names. The same names, as in an average of the weights, are no problem."""
    model, other = nn.Linear(2, 2), nn.ModuleDict({"fc": nn.Linear(2, 2)})
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state: dict[str, Any] = {"A": model.state_dict(), "opt": optimizer.state_dict(), "ema": dict(model.state_dict())}
    torch.save(state, tmp_path / "x.pt")
    assert tfckpt.convert(tmp_path / "x.pt", tmp_path / "ckpt", to="tf").complete
    ema: dict[str, Any] = {}
    tfckpt.Saver({"A": model, "opt": optimizer, "ema": ema}).restore(str(tmp_path / "ckpt"))
    assert_equal(ema, state["ema"])
    tfckpt.Saver({"ema": other["fc"]}).restore(str(tmp_path / "ckpt"))
    assert_equal(dict(other["fc"].state_dict()), state["ema"])
    torch.save({**state, "B": other.state_dict()}, tmp_path / "x.pt")
    report = tfckpt.convert(tmp_path / "x.pt", tmp_path / "ckpt", to="tf")
    assert 'it fits the parameters of several models: "A", "ema", "B"' in report.refused["opt"]


def test_state_by_names(tmp_path: Path) -> None:
    """FSDP's optim_state_dict has names instead of positions."""
    model, optimizer, _ = parts(OPTIMIZERS["adamw"])
    train(model, optimizer, [], range(1))
    state = optimizer.state_dict()
    names = [name for name, _ in model.named_parameters()]
    by_name = {names[position]: of for position, of in state["state"].items()}
    groups = [{**state["param_groups"][0], "params": names}]
    torch.save({"m": model.state_dict(), "o": {"state": by_name, "param_groups": groups}}, tmp_path / "x.pt")
    assert tfckpt.convert(tmp_path / "x.pt", tmp_path / "ckpt", to="tf").complete
    fresh, new, _ = parts(OPTIMIZERS["adamw"])
    tfckpt.Saver({"m": fresh, "o": new}).restore(str(tmp_path / "ckpt"))
    assert_equal(new.state_dict(), state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"params": [1, 0]}, "its positions are not consecutive numbers"),
        ({"params": [0, 1, 2]}, "it has 3 parameters, but the model has 2"),
        ({"params": [0]}, "it has state for a position that is not in any of its groups"),
        ({"params": ["a", "a"]}, "two of its parameters have the same name"),
        (
            {"param_names": ["bias", "weight"]},
            'the state of "bias" has shape [2,2], but the parameter in "m" has shape [2]',
        ),
        ({"hook": {1, 2}}, "is not a plain value: set"),
    ],
)
def test_a_state_that_is_wrong_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """The model is converted; the report says what is wrong."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    state["param_groups"][0].update(change)
    torch.save({"m": model.state_dict(), "o": state}, tmp_path / "x.pt")
    report = tfckpt.convert(tmp_path / "x.pt", tmp_path / "ckpt", to="tf")
    assert message in report.refused["o"]
    assert [item.new_name for item in report.converted] == ["m/bias", "m/weight"]


def test_many_copies_of_one_optimizer_end_soon(tmp_path: Path) -> None:
    """Of a small file that contains one optimizer and a long state_dict, but the optimizer a thousand times."""
    model = nn.Module()
    for number in range(5000):
        model.register_buffer(f"b{number}", torch.empty(0))
    group = {"params": list(range(40))}
    copies = [{"state": {}, "param_groups": [group]}] * 1000
    torch.save({"model": model.state_dict(), "optimizers": copies}, tmp_path / "x.pt")
    report = tfckpt.convert(tmp_path / "x.pt", tmp_path / "ckpt", to="tf", dry_run=True)
    assert len(report.refused) == 1000
    assert "the file has 1,000 optimizers: too many" in report.refused["optimizers/999"]


def test_two_values_of_one_name(tmp_path: Path) -> None:
    """A key that is spelled like the name of a parameter is an error, and nothing is written."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters())
    state = {"m": model.state_dict(), "m/weight": torch.ones(1), "o": optimizer.state_dict()}
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(InvalidArgumentError, match='two values would be called "m/weight"'):
        tfckpt.convert(tmp_path / "x.pt", tmp_path / "ckpt", to="tf")
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


def test_skip_damaged_and_dry_run(tmp_path: Path) -> None:
    """Both work as for other sources."""
    model = nn.Linear(2, 2)
    torch.save({"m": model.state_dict(), "o": torch.optim.SGD(model.parameters()).state_dict()}, tmp_path / "x.pt")
    dry = tfckpt.convert(tmp_path / "x.pt", tmp_path / "ckpt", to="tf", dry_run=True)
    assert '  "o": an optimizer, 2 parameters, by the order of "m"' in str(dry).splitlines()
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]
    report = tfckpt.convert(tmp_path / "x.pt", tmp_path / "ckpt", to="tf", skip_damaged=True)
    assert report.complete
    assert report.converted == dry.converted


def test_files_without_an_optimizer_keep_their_names(tmp_path: Path) -> None:
    """As in other formats: dotted names, also of {"model": state_dict}."""
    model = nn.Linear(2, 2)
    torch.save({"model": model.state_dict(), "epoch": 1}, tmp_path / "x.pt")
    report = tfckpt.convert(tmp_path / "x.pt", tmp_path / "ckpt", to="tf")
    assert sorted(item.new_name for item in report.converted) == ["model.bias", "model.weight"]
    assert (report.training, report.skipped) == ({}, {"epoch": "int 1"})
    torch.save({"model": model.state_dict(), "o": torch.optim.SGD(model.parameters()).state_dict()}, tmp_path / "x.pt")
    other = tfckpt.convert(tmp_path / "x.pt", tmp_path / "x.safetensors")
    assert sorted(item.new_name for item in other.converted) == ["model.bias", "model.weight"]


def test_tensorflow_lists_it(tmp_path: Path) -> None:
    """TensorFlow's reader finds the names, shapes and values."""
    tensorflow = pytest.importorskip("tensorflow")
    model, optimizer, _ = parts(OPTIMIZERS["adamw"])
    train(model, optimizer, [], range(1))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}, tmp_path / "x.pt")
    tfckpt.convert(tmp_path / "x.pt", tmp_path / "ckpt", to="tf")
    listed = dict(tensorflow.train.list_variables(str(tmp_path / "ckpt")))
    assert listed["model/body.0.weight"] == listed["optimizer/state/body.0.weight/exp_avg"] == [6, 4]
    reader = tensorflow.train.load_checkpoint(str(tmp_path / "ckpt"))
    moment = optimizer.state[next(model.body.parameters())]["exp_avg"]
    assert (reader.get_tensor("optimizer/state/body.0.weight/exp_avg") == moment.numpy()).all()
    assert reader.get_tensor("epoch") == 3


def entries(**shapes: tuple[int, ...]) -> dict[str, ModelTensor]:
    return {name: ModelTensor(shape, torch.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("groups", "model", "expected"),
    [
        ([[(2,), (2,)]], entries(a=(2,), b=(2,)), [["a", "b"]]),
        ([[None, None]], entries(a=(2,), b=(2,)), [["a", "b"]]),
        ([[(3,), (2,)]], entries(a=(3,), b=(1,), c=(2,)), [["a", "c"]]),
        ([[(2,)], [(3,)]], entries(a=(3,), b=(2,)), [["b"], ["a"]]),
        ([[(2,), (2,)], []], entries(a=(2,), b=(2,)), [["a", "b"], []]),
    ],
)
def test_one_assignment(groups: Any, model: dict[str, ModelTensor], expected: list[list[str]]) -> None:
    """The only one that has the parameters of each group in the order of the model, with the right shapes."""
    assert match_positions(groups, model) == expected


@pytest.mark.parametrize(
    ("groups", "model"),
    [
        ([[(2,)], [(2,)]], entries(a=(2,), b=(2,))),
        ([[(2,)]], entries(a=(2,), b=(2,))),
        ([[None]], entries(a=(2,), b=(3,))),
        ([[None] * 2000], entries(**{f"p{number}": (1,) for number in range(4000)})),
    ],
)
def test_several_assignments(groups: Any, model: dict[str, ModelTensor]) -> None:
    """Also if they are too many to look at."""
    with pytest.raises(AmbiguousPositionsError, match="several assignments fit"):
        match_positions(groups, model)
