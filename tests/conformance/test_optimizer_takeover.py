"""TensorFlow trains and torch takes over, or the other way around: both continue with the same losses.

The model has a convolution, an LSTM, an attention layer and a Dense layer, all of odd sizes, so that every slot has
to be transposed, split or joined like its variable.
"""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from takeover_data import INPUTS, OUTPUTS, SIZE, UNITS, batch
from tensorflow_process import TensorFlowProcess
from torch import nn
from torch_families import family

from torch_tfckpt.models.loading import load_model
from torch_tfckpt.models.saving import save_model

STEPS, MORE = 50, 20
Options = Mapping[str, Any]
Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class Net(nn.Module):
    """The torch counterpart of the model in tensorflow_takeover.py."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(INPUTS, SIZE, (3, 2))
        self.lstm = nn.LSTM(SIZE, UNITS, batch_first=True)
        self.attn = nn.MultiheadAttention(UNITS, 1, batch_first=True)
        self.fc = nn.Linear(UNITS, OUTPUTS)
        # TensorFlow has one bias; torch would train two, and their sum twice as fast.
        second = self.lstm.get_parameter("bias_hh_l0")
        nn.init.zeros_(second)
        second.requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = torch.relu(self.conv(images.permute(0, 3, 1, 2)))
        states, _ = self.lstm(maps.mean(2).transpose(1, 2))
        mixed, _ = self.attn(states, states, states)
        outputs: torch.Tensor = self.fc(mixed.mean(1))
        return outputs


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, count: int) -> list[float]:
    """Train on the batches from `first` on; return the losses."""
    losses = []
    for number in range(first, first + count):
        images, wanted = map(torch.from_numpy, batch(number))
        optimizer.zero_grad()
        loss = ((model(images) - wanted) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def assert_same_curve(losses: list[float], expected: list[float]) -> None:
    assert len(losses) == len(expected) == MORE
    np.testing.assert_allclose(losses, expected, rtol=1e-4, atol=1e-4)
    assert np.ptp(expected) > 1e-3  # the curve is neither flat nor nan


# TensorFlow's optimizer and its options, and the same optimizer in torch.
V1: Mapping[str, tuple[str, Options, Make]] = {
    "Adam": (
        "Adam",
        {"learning_rate": 0.01, "epsilon": 1e-7},
        lambda parameters: torch.optim.Adam(parameters, 0.01, eps=1e-7),
    ),
    "Momentum": (
        "Momentum",
        {"learning_rate": 0.05, "momentum": 0.9},
        lambda parameters: torch.optim.SGD(parameters, 0.05, 0.9),
    ),
    "Nesterov": (
        "Momentum",
        {"learning_rate": 0.01, "momentum": 0.9, "use_nesterov": True},
        lambda parameters: torch.optim.SGD(parameters, 0.01, 0.9, nesterov=True),
    ),
    "RMSProp": (
        "RMSProp",
        {"learning_rate": 0.003, "decay": 0.9, "momentum": 0.5, "epsilon": 1e-10},
        lambda parameters: torch.optim.RMSprop(parameters, 0.003, alpha=0.9, momentum=0.5, eps=1e-10),
    ),
    "centered RMSProp": (
        "RMSProp",
        {"learning_rate": 0.003, "decay": 0.9, "momentum": 0.5, "epsilon": 1e-10, "centered": True},
        lambda parameters: torch.optim.RMSprop(parameters, 0.003, 0.9, 1e-10, momentum=0.5, centered=True),
    ),
    "RMSProp without momentum": (
        "RMSProp",
        {"learning_rate": 0.003, "decay": 0.9, "epsilon": 1e-10},
        lambda parameters: torch.optim.RMSprop(parameters, 0.003, alpha=0.9, eps=1e-10),
    ),
    "Adagrad": ("Adagrad", {"learning_rate": 0.05}, lambda parameters: torch.optim.Adagrad(parameters, 0.05)),
    "Adadelta": (
        "Adadelta",
        {"learning_rate": 1.0, "rho": 0.95, "epsilon": 1e-5},
        lambda parameters: torch.optim.Adadelta(parameters, 1.0, 0.95, 1e-5),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "cell"), [*((name, "tf1") for name in V1), ("Adam", "keras"), ("RMSProp", "keras")])
def test_torch_continues_a_saver(tensorflow: TensorFlowProcess, tmp_path: Path, name: str, cell: str) -> None:
    """tf.compat.v1.train: the losses of the next 20 steps are TensorFlow's."""
    kind, options, make = V1[name]
    prefix = str(tmp_path / "m")
    expected = tensorflow.call("tensorflow_takeover.train_v1", prefix, kind, options, STEPS, MORE, cell=cell)
    model = Net()
    optimizer = make(trained(model))
    report = load_model(model, prefix, optimizer=optimizer, accept=("forget_bias",))
    assert len(report.slots) == len(trained(model)) and report.missing_slots == []
    differences = {finding.name for finding in report.semantics if not finding.accepted}
    momentum = {"momentum_learning_rate"} if "RMSProp" in name and "momentum" in options else set()
    assert differences == ({"rmsprop_epsilon"} | momentum if "RMSProp" in name else set())
    assert_same_curve(train(model, optimizer, STEPS, MORE), expected)


def test_an_optimizer_with_epsilon_in_the_root(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """timm's RMSpropTF continues RMSProp with a large epsilon, and there is nothing to report."""
    options = {"learning_rate": 0.01, "decay": 0.9, "momentum": 0.5, "epsilon": 0.01}
    prefix = str(tmp_path / "m")
    expected = tensorflow.call("tensorflow_takeover.train_v1", prefix, "RMSProp", options, STEPS, MORE)
    model = Net()
    family("timm")
    rmsprop_tf = importlib.import_module("timm.optim").RMSpropTF
    optimizer = rmsprop_tf(trained(model), 0.01, 0.9, 0.01, momentum=0.5)
    report = load_model(model, prefix, optimizer=optimizer, accept=("forget_bias",))
    assert [finding.name for finding in report.semantics] == ["forget_bias"]
    assert_same_curve(train(model, optimizer, STEPS, MORE), expected)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("name", V1)
def test_tensorflow_continues_save_model(tensorflow: TensorFlowProcess, tmp_path: Path, name: str) -> None:
    """torch trains, and save_model stores its state; tf.train.Saver restores all of it and continues."""
    kind, options, make = V1[name]
    torch.manual_seed(1)
    model = Net()
    optimizer = make(trained(model))
    train(model, optimizer, 0, STEPS)
    path = save_model(model, tmp_path / "m", naming="tf", optimizer=optimizer, extra={"global_step": STEPS})
    expected = train(model, optimizer, STEPS, MORE)
    found = tensorflow.call("tensorflow_takeover.train_v1", "", kind, options, STEPS, MORE, cell="keras", restore=path)
    assert_same_curve(found, expected)


@pytest.mark.parametrize("name", V1)
def test_a_round_trip_restores_the_bits(tmp_path: Path, name: str) -> None:
    """load_model reads the state that save_model wrote, also if only some layers were trained."""
    _, _, make = V1[name]
    model = Net()
    model.conv.requires_grad_(False)
    optimizer = make(trained(model))
    train(model, optimizer, 0, 3)
    path = save_model(model, tmp_path / "m", naming="tf", optimizer=optimizer)
    again = Net()
    again.conv.requires_grad_(False)
    other = make(trained(again)[::-1])
    report = load_model(again, path, optimizer=other)
    assert not any(name.startswith("conv") for name in report.slots)
    for own, loaded in zip(trained(model), trained(again), strict=True):
        for state, value in optimizer.state[own].items():
            torch.testing.assert_close(other.state[loaded][state], value, rtol=1e-6, atol=0.0)


KERAS: Mapping[str, tuple[str, Options, Make]] = {
    "Adam": ("Adam", {"learning_rate": 0.01}, lambda parameters: torch.optim.Adam(parameters, 9.0, eps=1e-7)),
    "amsgrad": (
        "Adam",
        {"learning_rate": 0.01, "amsgrad": True},
        lambda parameters: torch.optim.Adam(parameters, 9.0, eps=1e-7, amsgrad=True),
    ),
    "AdamW": (
        "AdamW",
        {"learning_rate": 0.01, "weight_decay": 0.1},
        lambda parameters: torch.optim.AdamW(parameters, 9.0, eps=1e-7, weight_decay=0.1),
    ),
    "SGD": (
        "SGD",
        {"learning_rate": 0.05, "momentum": 0.9},
        lambda parameters: torch.optim.SGD(parameters, 9.0, 0.9),
    ),
    "Nesterov": (
        "SGD",
        {"learning_rate": 0.05, "momentum": 0.9, "nesterov": True},
        lambda parameters: torch.optim.SGD(parameters, 9.0, 0.9, nesterov=True),
    ),
    "RMSprop": (
        "RMSprop",
        {"learning_rate": 0.003, "momentum": 0.5, "epsilon": 1e-10},
        lambda parameters: torch.optim.RMSprop(parameters, 9.0, alpha=0.9, momentum=0.5, eps=1e-10),
    ),
    "centered RMSprop": (
        "RMSprop",
        {"learning_rate": 0.003, "epsilon": 1e-10, "centered": True},
        lambda parameters: torch.optim.RMSprop(parameters, 9.0, alpha=0.9, eps=1e-10, centered=True),
    ),
    "Adagrad": ("Adagrad", {"learning_rate": 0.05}, lambda parameters: torch.optim.Adagrad(parameters, 9.0)),
    "Adadelta": (
        "Adadelta",
        {"learning_rate": 1.0, "epsilon": 1e-5},
        lambda parameters: torch.optim.Adadelta(parameters, 9.0, 0.95, 1e-5),
    ),
    "Adamax": ("Adamax", {"learning_rate": 0.01}, lambda parameters: torch.optim.Adamax(parameters, 9.0, eps=1e-7)),
    "Nadam": ("Nadam", {"learning_rate": 0.01}, lambda parameters: torch.optim.NAdam(parameters, 9.0, eps=1e-7)),
}


@pytest.mark.thinned(2)
@pytest.mark.parametrize(("name", "scaled"), [*((name, False) for name in KERAS), ("Adam", True), ("SGD", True)])
def test_torch_continues_keras_3(tensorflow: TensorFlowProcess, tmp_path: Path, name: str, scaled: bool) -> None:
    """tf.train.Checkpoint of Keras's layers and optimizer, also below a LossScaleOptimizer."""
    kind, options, make = KERAS[name]
    prefix = str(tmp_path / "m")
    expected = tensorflow.call("tensorflow_takeover.train_keras", prefix, kind, options, STEPS, MORE, scaled=scaled)
    model = Net()
    optimizer = make(trained(model))
    report = load_model(model, prefix, optimizer=optimizer)
    assert len(report.slots) == len(trained(model)) and report.hyperparameters["lr"] == pytest.approx(
        options["learning_rate"]
    )
    assert ("rmsprop_epsilon" in {finding.name for finding in report.semantics}) == (kind == "RMSprop")
    assert_same_curve(train(model, optimizer, STEPS, MORE), expected)
