"""load_model(optimizer=) finds the state of an optimizer under any name and scope, and refuses what is ambiguous."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from model_files import numbered
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.errors import CheckpointError, InvalidArgumentError, NotFoundError
from torch_tfckpt.models.loading import load_model

VARIABLES = {"fc/kernel": numbered(3, 2), "fc/bias": numbered(2)}


def net() -> nn.ModuleDict:
    return nn.ModuleDict({"fc": nn.Linear(3, 2)})


def slots(*endings: str, start: str = "") -> dict[str, torch.Tensor]:
    """Slots of both variables, one for each ending, all with different values."""
    return {
        f"{start}{name}{ending}": value + 10.0 * number
        for name, value in VARIABLES.items()
        for number, ending in enumerate(endings, 1)
    }


def powers(start: str = "", steps: int = 4, ending: str = "") -> dict[str, torch.Tensor]:
    betas = {"beta1_power": 0.9, "beta2_power": 0.999}
    return {f"{start}{name}{ending}": torch.tensor(beta ** (steps + 1)) for name, beta in betas.items()}


def loaded(path: Path, more: Mapping[str, torch.Tensor], kind: type[torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    """The state of fc.bias in an optimizer of this kind, after it was loaded."""
    model = net()
    defaults: dict[str, Any] = {"momentum": 0.5} if kind is torch.optim.SGD else {}
    make: Callable[..., torch.optim.Optimizer] = kind
    optimizer = make(model.parameters(), lr=0.1, **defaults)
    report = load_model(model, tfckpt.save_file({**VARIABLES, **more}, path), optimizer=optimizer)
    assert report.unexpected == []
    return dict(optimizer.state[model.get_parameter("fc.bias")])


STEP = {"global_step": torch.tensor(4)}


@pytest.mark.parametrize(
    "more",
    [
        slots("/Adam", "/Adam_1") | STEP,
        slots("/d_opt", "/d_opt_1") | powers("d_opt/"),
        slots("/d_opt", "/d_opt_1") | powers("train/"),
        slots("/d_opt", "/d_opt_1") | powers() | STEP,
        slots("/Adam", "/Adam_1", start="train/") | powers("train/"),
        slots("/Adam", "/Adam_1") | {"train/global_step": torch.tensor(4)},
        slots("/m", "/v") | STEP,
        slots("/m", "/v", start="training/Adam/") | {"training/Adam/iter": torch.tensor(4)},
        slots("/m", "/v", start="Adam/") | {"Adam/iterations": torch.tensor(4), "Adam/lr": torch.tensor(0.5)},
        {f"Adam/{'mv'[n]}/{name}": value + 10 + 10 * n for name, value in VARIABLES.items() for n in (0, 1)}
        | {"iteration": torch.tensor(4)},
    ],
)  # fmt: skip
def test_adam_under_many_names(tmp_path: Path, more: Mapping[str, torch.Tensor]) -> None:
    """The moments are told apart by their numbers or letters, the steps by the counters of the same optimizer."""
    state = loaded(tmp_path / "m", more, torch.optim.Adam)
    assert torch.equal(state["exp_avg"], VARIABLES["fc/bias"] + 10)
    assert torch.equal(state["exp_avg_sq"], VARIABLES["fc/bias"] + 20) and state["step"] == 4


@pytest.mark.parametrize("name", ["adam", "lamb"])
def test_adam_that_does_not_correct_the_bias(tmp_path: Path, name: str) -> None:
    """BERT's moments are loaded with a step at which torch's correction is 1 in float32; a finding reports it."""
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5, eps=0.25, weight_decay=0.0)
    stored = {**VARIABLES, **slots(f"/{name}_m", f"/{name}_v"), **STEP}
    report = load_model(model, tfckpt.save_file(stored, tmp_path / "m"), optimizer=optimizer)
    assert "adam_bias_correction" in [finding.name for finding in report.semantics]
    parameter = model.get_parameter("fc.bias")
    before, m, v = parameter.detach().clone(), VARIABLES["fc/bias"] + 10, VARIABLES["fc/bias"] + 20
    parameter.grad = torch.ones(2)
    optimizer.step()
    expected = before - 0.5 * (0.9 * m + 0.1) / ((0.999 * v + 0.001).sqrt() + 0.25)
    torch.testing.assert_close(parameter.detach(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("more", "error", "told"),
    [
        (slots("/d_opt", "/d_opt_1") | STEP, NotFoundError, 'a kind that is not stored: "fc/kernel/d_opt", '),
        (slots("/d_opt", "/d_opt_1") | powers() | powers("x/", 9), InvalidArgumentError, '"x/beta1_power" differ'),
        (slots("/RMSProp", "/RMSProp_1", "/Ftrl") | powers() | STEP, NotFoundError, "RMSProp_1"),
        (slots("/AdaMax", "/AdaMax_1") | {"beta1_power": torch.tensor(0.9)} | STEP, NotFoundError, "AdaMax_1"),
        (slots("/Adam", "/Adam_1", "/Adam_2", "/Adam_3") | STEP, InvalidArgumentError, '"Adam" and "Adam_2"'),
        (slots("/Adam", "/Adam_1") | slots("/adam_m", "/adam_v") | STEP, InvalidArgumentError, '"Adam" and "adam"'),
        (slots("/Adam", "/Adam_1") | slots("/Adam", "/Adam_1", start="t/") | STEP, InvalidArgumentError, '"t/Adam"'),
        (slots("/Adam", "/Adam_1") | powers() | powers(ending="_1", steps=8), InvalidArgumentError, "beta1_power_1"),
        (slots("/Adam", "/Adam_1"), NotFoundError, "number of steps is unknown"),
        ({"fc/kernel/Adam": numbered(3, 2), "fc/kernel/Adam_1": numbered(3, 2), "fc/bias/adam_m": numbered(2),
          "fc/bias/adam_v": numbered(2)} | STEP, InvalidArgumentError, "slots belong to several optimizers"),
    ],
)  # fmt: skip
def test_what_is_refused(
    tmp_path: Path, more: Mapping[str, torch.Tensor], error: type[CheckpointError], told: str
) -> None:
    """Two optimizers, an optimizer whose kind is not known, and an unknown number of steps; each with its names."""
    with pytest.raises(error, match=re.escape(told)):
        loaded(tmp_path / "m", more, torch.optim.Adam)


@pytest.mark.parametrize(
    ("kind", "name"), [(torch.optim.SGD, "Momentum"), (torch.optim.Adagrad, "Adagrad")], ids=["SGD", "Adagrad"]
)
def test_a_single_slot_needs_the_default_name(tmp_path: Path, kind: type[torch.optim.Optimizer], name: str) -> None:
    """Nothing else tells Momentum from Adagrad or LARS; the error has the command that renames the slots."""
    assert any(torch.equal(value, VARIABLES["fc/bias"] + 10) for value in loaded(
        tmp_path / "m", slots(f"/{name}") | STEP, kind
    ).values())  # fmt: skip
    for other in ("sgd", "LARSOptimizer"):
        with pytest.raises(NotFoundError, match=r"rename the slots .*`tfckpt convert SRC DST --rename"):
            loaded(tmp_path / "m", slots(f"/{other}") | STEP, kind)


def test_renamed_slots_are_loaded(tmp_path: Path) -> None:
    """The command in the error works."""
    tfckpt.save_file(VARIABLES | slots("/sgd"), tmp_path / "m")
    tfckpt.convert(tmp_path / "m", tmp_path / "n", to="tf", rename=[("/sgd$", "/Momentum")])
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    load_model(model, tmp_path / "n", optimizer=optimizer)
    assert torch.equal(optimizer.state[model.get_parameter("fc.bias")]["momentum_buffer"], VARIABLES["fc/bias"] + 10)


def test_momentum_of_keras_needs_its_rate(tmp_path: Path) -> None:
    """In the scope of a Keras optimizer, momentum contains the learning rate."""
    numbers = {"SGD/iter": torch.tensor(4), "SGD/learning_rate": torch.tensor(0.5)}
    state = loaded(tmp_path / "m", slots("/momentum", start="SGD/") | numbers, torch.optim.SGD)
    assert torch.equal(state["momentum_buffer"], (VARIABLES["fc/bias"] + 10) / -0.5)
    with pytest.raises(InvalidArgumentError, match="no learning rate is stored"):
        del numbers["SGD/learning_rate"]
        loaded(tmp_path / "m", slots("/momentum", start="SGD/") | numbers, torch.optim.SGD)


def test_momentum_with_a_schedule(tmp_path: Path) -> None:
    """If the caller accepts it, the momentum is divided by the optimizer's rate, and a finding has the rate."""
    model = net()
    stored = {
        **VARIABLES,
        **slots("/momentum", start="SGD/"),
        "SGD/iter": torch.tensor(4),
        "SGD/decay": torch.tensor(0.0),
    }
    path = tfckpt.save_file(stored, tmp_path / "m")
    weight, bias = (model.get_parameter(name) for name in ("fc.weight", "fc.bias"))
    groups: list[dict[str, Any]] = [{"params": [weight]}, {"params": [bias], "lr": 0.25}]
    optimizer = torch.optim.SGD(groups, lr=0.5, momentum=0.5)
    report = load_model(model, path, optimizer=optimizer, accept=("momentum_learning_rate",))
    assert torch.equal(optimizer.state[bias]["momentum_buffer"], slots("/x")["fc/bias/x"] * -4)
    assert torch.equal(optimizer.state[weight]["momentum_buffer"], slots("/x")["fc/kernel/x"].t() * -2)
    [finding] = report.semantics
    assert finding.accepted and "the rate of this optimizer, 0.25, 0.5, which must be" in finding.message


def test_slots_with_the_names_of_keras_3(tmp_path: Path) -> None:
    """The slot of "fc/kernel" is "adam/fc_kernel_momentum"; of two variables with one such name, neither has slots."""
    scope = {"adam/iteration": torch.tensor(4), "adam/learning_rate": torch.tensor(0.5)}
    named = {
        f"adam/{name.replace('/', '_')}_{slot}": value + 10 * at
        for at, slot in enumerate(("momentum", "velocity"), 1) for name, value in VARIABLES.items()
    }  # fmt: skip
    state = loaded(tmp_path / "m", scope | named, torch.optim.Adam)
    assert torch.equal(state["exp_avg_sq"], VARIABLES["fc/bias"] + 20) and state["step"] == 4
    with pytest.raises(NotFoundError, match=r'Missing optimizer state of: "fc\.bias"'):
        loaded(tmp_path / "n", scope | named | {"fc_bias": numbered(2)}, torch.optim.Adam)


@pytest.mark.parametrize(
    ("more", "make", "told"),
    [
        (slots("/RMSProp", "/RMSProp_1"), torch.optim.Adam, "state is that of RMSProp, and Adam is a different kind"),
        (slots("/Adam", "/Adam_1"), torch.optim.Adagrad, "state is that of Adam, and Adagrad is a different kind"),
        (slots("/Ftrl", "/Ftrl_1"), torch.optim.Adagrad, "state is that of ftrl, and Adagrad is a different kind"),
        (slots("/RMSProp"), torch.optim.RMSprop, r"\"fc/kernel/RMSProp\", but not momentum_buffer of RMSprop"),
        ({f"RMSprop/velocity/{name}": value for name, value in VARIABLES.items()} | {"iteration": torch.tensor(4)},
         torch.optim.Adam, r"is the state of RMSProp, and Adam is a different kind"),
    ],
    ids=["RMSProp", "Adam", "Ftrl", "part", "Keras"],
)  # fmt: skip
def test_the_error_names_the_stored_kind(
    tmp_path: Path, more: Mapping[str, torch.Tensor], make: Callable[..., torch.optim.Optimizer], told: str
) -> None:
    """Rather than only what is missing."""
    model = net()
    options = {"momentum": 0.5} if make is torch.optim.RMSprop else {}
    path = tfckpt.save_file({**VARIABLES, **more, **STEP}, tmp_path / "m")
    with pytest.raises(CheckpointError, match=told):
        load_model(model, path, optimizer=make(model.parameters(), lr=0.1, **options))


def test_state_in_a_shorter_type(tmp_path: Path) -> None:
    """bfloat16 parameters have bfloat16 state, as torch's optimizers create it; a remark mentions the conversion."""
    model = net().to(torch.bfloat16)
    path = tfckpt.save_file({**VARIABLES, **slots("/Adam", "/Adam_1"), **STEP}, tmp_path / "m")
    optimizer = torch.optim.Adam(model.parameters())
    report = load_model(model, path, optimizer=optimizer)
    state = optimizer.state[model.get_parameter("fc.bias")]
    assert state["exp_avg"].dtype == torch.bfloat16 and state["step"].dtype == torch.float32
    assert any("stored as torch.float32, and was converted to torch.bfloat16" in remark for remark in report.remarks)


def test_no_momentum_needs_no_slots(tmp_path: Path) -> None:
    """Slots of an unknown kind are then ignored without a remark."""
    model = net()
    path = tfckpt.save_file(VARIABLES | slots("/sgd"), tmp_path / "m")
    assert load_model(model, path, optimizer=torch.optim.SGD(model.parameters(), lr=0.1)).remarks == []
