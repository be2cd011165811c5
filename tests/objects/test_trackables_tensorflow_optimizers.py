"""State of TensorFlow's optimizers restored into torch's, from files of Keras 2 and TensorFlow 1."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from object_files import children, variable, write_graph
from torch import nn

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.object_graph import SlotVariable, TrackableObject
from torch_tfckpt.objects.checkpoint import Checkpoint
from torch_tfckpt.objects.status import LoadStatus
from torch_tfckpt.values import Value

Slots = Mapping[str, tuple[str, float]]  # slot name and variable -> value


def write_optimizer(prefix: Path, slots: Mapping[tuple[str, str], float], scalars: Mapping[str, Value]) -> str:
    """Write variables a and b of two elements, and an optimizer with these slots and scalars."""
    nodes = [TrackableObject(), variable("a", "a"), variable("b", "b"), TrackableObject()]
    tensors: dict[str, Value] = {"a": torch.ones(2), "b": torch.ones(2)}
    references: list[SlotVariable] = []
    for (owner, name), value in slots.items():
        references.append(SlotVariable({"a": 1, "b": 2}[owner], name, len(nodes)))
        nodes.append(variable(f"{owner}/{name}", f"{owner}/{name}"))
        tensors[f"{owner}/{name}"] = torch.full((2,), value)
    edges: list[tuple[str, int]] = []
    for name, scalar in scalars.items():
        edges.append((name, len(nodes)))
        nodes.append(variable(name, name))
        tensors[name] = scalar
    nodes[0] = TrackableObject(children(("a", 1), ("b", 2), ("optimizer", 3)))
    nodes[3] = TrackableObject(children(*edges), slot_variables=tuple(references))
    return write_graph(prefix, nodes, tensors)


KERAS_ADAM: Mapping[str, Value] = {
    "iter": torch.tensor(5),
    "learning_rate": torch.tensor(0.25),
    "beta_1": torch.tensor(0.5),
    "beta_2": torch.tensor(0.75),
    "decay": torch.tensor(0.0),
}
BOTH = {("a", "m"): 1.0, ("b", "m"): 2.0, ("a", "v"): 3.0, ("b", "v"): 4.0}


class Here:
    """Two parameters and their optimizer."""

    def __init__(self, kind: str, **options: Any) -> None:
        self.a, self.b = (nn.Parameter(torch.zeros(2)) for _ in range(2))
        self.optimizer: torch.optim.Optimizer = getattr(torch.optim, kind)([self.b, self.a], **options)

    def read(self, path: str) -> LoadStatus:
        return Checkpoint(a=self.a, b=self.b, optimizer=self.optimizer).read(path)

    def step(self) -> None:
        for parameter in (self.a, self.b):
            parameter.grad = torch.ones(2)
        self.optimizer.step()

    def of(self, name: str) -> list[float]:
        """Return the first element of a tensor of the state, for a and b."""
        return [float(self.optimizer.state[each][name].reshape(-1)[0]) for each in (self.a, self.b)]


@pytest.mark.parametrize("kind", ["Adam", "AdamW"])
def test_adam_of_keras(tmp_path: Path, kind: str) -> None:
    """Moments, steps, learning rate and betas are restored, and the whole file is consumed."""
    here = Here(kind)
    here.read(write_optimizer(tmp_path / "m", BOTH, KERAS_ADAM)).assert_consumed()
    assert (here.of("exp_avg"), here.of("exp_avg_sq"), here.of("step")) == ([1.0, 2.0], [3.0, 4.0], [5.0, 5.0])
    [group] = here.optimizer.param_groups
    assert (group["lr"], group["betas"]) == (0.25, (0.5, 0.75))
    here.step()
    assert here.of("step") == [6.0, 6.0]


@pytest.mark.parametrize(
    ("powers", "steps"),
    [
        ({"beta1_power": 0.9**4, "beta2_power": 0.999**4}, 3.0),
        ({"beta1_power": 0.0, "beta2_power": 0.999**1001}, 1000.0),
        ({"beta1_power": 0.9**3}, 2.0),
    ],
    ids=["both", "one is used up", "one alone"],
)
def test_adam_of_tensorflow_1(tmp_path: Path, powers: Mapping[str, float], steps: float) -> None:
    """The number of steps comes from beta2_power, or else from beta1_power."""
    here = Here("Adam")
    scalars = {name: torch.tensor(value) for name, value in powers.items()}
    here.read(write_optimizer(tmp_path / "m", BOTH, scalars)).assert_consumed()
    assert here.of("step") == [steps, steps]


def test_powers_that_are_zero(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If both are zero, the number of steps is unknown but large, and a warning is logged."""
    here = Here("Adam")
    with caplog.at_level(logging.WARNING, "torch_tfckpt"):
        here.read(write_optimizer(tmp_path / "m", BOTH, {"beta2_power": torch.tensor(0.0)})).assert_consumed()
    assert here.of("step")[0] > 87_293
    assert "beta2_power" in caplog.text


def test_a_maximum_that_is_not_stored(tmp_path: Path) -> None:
    """amsgrad here but not in the file: the maximum starts with zeros, and steps continue."""
    here = Here("Adam", amsgrad=True)
    here.step()
    here.read(write_optimizer(tmp_path / "m", BOTH, KERAS_ADAM)).assert_consumed()
    assert here.of("max_exp_avg_sq") == [0.0, 0.0]
    here.step()
    assert here.of("max_exp_avg_sq") == here.of("exp_avg_sq")


def test_a_stored_maximum(tmp_path: Path) -> None:
    """vhat is restored."""
    here = Here("Adam", amsgrad=True)
    slots = {**BOTH, ("a", "vhat"): 7.0, ("b", "vhat"): 8.0}
    here.read(write_optimizer(tmp_path / "m", slots, KERAS_ADAM)).assert_consumed()
    assert here.of("max_exp_avg_sq") == [7.0, 8.0]


def test_a_single_moment(tmp_path: Path) -> None:
    """Adam cannot continue from it: the parameter's state is not restored, which the status reports."""
    here = Here("Adam")
    slots = {key: value for key, value in BOTH.items() if key != ("b", "v")}
    status = here.read(write_optimizer(tmp_path / "m", slots, KERAS_ADAM))
    with pytest.raises(AssertionError, match=r"state 'm' for \(root\)\.b"):
        status.assert_consumed()
    status.expect_partial()
    assert here.b not in here.optimizer.state
    here.step()
    assert here.of("step") == [6.0, 1.0]


def test_moments_without_a_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Adam's correction needs the number of steps: nothing is restored, with a warning and in the status."""
    here = Here("Adam")
    with caplog.at_level(logging.WARNING, "torch_tfckpt"):
        status = here.read(write_optimizer(tmp_path / "m", BOTH, {}))
    assert "number of steps is unknown" in caplog.text
    with pytest.raises(AssertionError, match="state 'm'"):
        status.assert_consumed()
    status.expect_partial()
    assert not here.optimizer.state


def test_momentum_of_tensorflow_1(tmp_path: Path) -> None:
    """The momentum is restored unchanged."""
    here = Here("SGD", lr=0.5, momentum=0.5)
    here.read(write_optimizer(tmp_path / "m", {("a", "momentum"): 1.0, ("b", "momentum"): 2.0}, {})).assert_consumed()
    assert here.of("momentum_buffer") == [1.0, 2.0]
    assert here.optimizer.param_groups[0]["lr"] == 0.5


def test_sgd_of_keras(tmp_path: Path) -> None:
    """Keras adds -lr times the gradient to the momentum, torch the gradient (docs/conversion)."""
    here = Here("SGD", lr=0.5, momentum=0.25)
    scalars = {"iter": torch.tensor(5), "learning_rate": torch.tensor(0.125), "momentum": torch.tensor(0.75)}
    slots = {("a", "momentum"): 1.0, ("b", "momentum"): 2.0}
    here.read(write_optimizer(tmp_path / "m", slots, scalars)).assert_consumed()
    assert here.of("momentum_buffer") == [-8.0, -16.0]
    assert (here.optimizer.param_groups[0]["lr"], here.optimizer.param_groups[0]["momentum"]) == (0.125, 0.75)


def test_sgd_of_keras_without_a_rate(tmp_path: Path) -> None:
    """Without a rate the momentum cannot be converted: it is not restored, and the status reports it."""
    here = Here("SGD", lr=0.5, momentum=0.25)
    status = here.read(write_optimizer(tmp_path / "m", {("a", "momentum"): 1.0}, {"iter": torch.tensor(5)}))
    with pytest.raises(AssertionError, match="state 'momentum'"):
        status.assert_consumed()
    status.expect_partial()
    assert not any("momentum_buffer" in state for state in here.optimizer.state.values())


def test_adagrad(tmp_path: Path) -> None:
    """The accumulator is restored unchanged; torch's count of steps is kept."""
    here = Here("Adagrad")
    slots = {("a", "accumulator"): 1.0, ("b", "accumulator"): 2.0}
    here.read(write_optimizer(tmp_path / "m", slots, {})).assert_consumed()
    assert (here.of("sum"), here.of("step")) == ([1.0, 2.0], [0.0, 0.0])


def test_rmsprop(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The average of squares is restored unchanged; the log says that the formulas differ in epsilon."""
    here = Here("RMSprop")
    slots = {("a", "rms"): 1.0, ("b", "rms"): 2.0}
    here.read(write_optimizer(tmp_path / "m", slots, {})).assert_consumed()
    assert here.of("square_avg") == [1.0, 2.0]
    assert "rmsprop_epsilon" in caplog.text


@pytest.mark.parametrize("name", ["iter", "learning_rate"])
@pytest.mark.parametrize("value", [torch.tensor(1j), np.array(b"text", dtype=object)], ids=["complex", "string"])
def test_scalars_that_are_not_numbers(tmp_path: Path, name: str, value: Value) -> None:
    """The error has the path and the key; nothing is assigned."""
    here = Here("Adam")
    path = write_optimizer(tmp_path / "m", BOTH, {**KERAS_ADAM, name: value})
    with pytest.raises(InvalidArgumentError, match=rf"{path}: \"{name}\" should be a real number, but is "):
        here.read(path)
    assert here.a.tolist() == [0.0, 0.0]
    assert not here.optimizer.state


def test_a_decaying_rate(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """torch's optimizers have no decay of this kind, so a warning is logged."""
    here = Here("Adam")
    with caplog.at_level(logging.WARNING, "torch_tfckpt"):
        here.read(write_optimizer(tmp_path / "m", BOTH, {**KERAS_ADAM, "decay": torch.tensor(0.5)})).assert_consumed()
    assert "scheduler" in caplog.text
