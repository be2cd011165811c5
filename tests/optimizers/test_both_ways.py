"""load_model(optimizer=) and Checkpoint.restore give the same state, and torch's next step is TensorFlow's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from layer_twins import tensor
from tensorflow_process import RawTensor, TensorFlowProcess
from torch import nn

from torch_tfckpt.errors import CheckpointError, InvalidArgumentError, NotFoundError, UnimplementedError
from torch_tfckpt.models.loading import load_model
from torch_tfckpt.objects.checkpoint import Checkpoint

# As in tests/support/tensorflow_optimizers.py.
RATE, MOMENTUM, BETAS, EPSILON, WEIGHT_DECAY = 0.125, 0.5, (0.75, 0.875), 1e-3, 0.25
STEPS = 4


class Trained(NamedTuple):
    """What TensorFlow trained, and the optimizer that continues in torch."""

    family: str
    kind: str
    options: dict[str, Any] = {}  # noqa: RUF012

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return an optimizer with TensorFlow's hyperparameters; learning rate and betas differ if they are stored."""
        parameters, keras = list(model.parameters()), self.family != "v1"
        rate = 9.0 if keras and not self.options.get("scheduled") else RATE
        if self.kind in ("sgd", "nesterov"):
            momentum = 0.25 if self.family == "keras2" else MOMENTUM
            return torch.optim.SGD(parameters, rate, momentum, nesterov=self.kind == "nesterov")
        if self.kind == "adagrad":
            return torch.optim.Adagrad(parameters, rate, eps=EPSILON if self.family == "keras2" else 0.0)
        if self.kind == "rmsprop":
            return torch.optim.RMSprop(parameters, rate, 0.9, 1e-12, momentum=MOMENTUM)
        if self.kind == "adadelta":
            return torch.optim.Adadelta(parameters, rate, 0.95, EPSILON)
        if self.kind == "adamax":
            return torch.optim.Adamax(parameters, rate, BETAS, 0.0)
        if self.kind == "nadam":
            return torch.optim.NAdam(parameters, rate, BETAS, EPSILON)
        betas = (0.5, 0.5) if self.family == "keras2" else BETAS
        # TensorFlow adds epsilon to the root of a variance without bias correction.
        eps = EPSILON / (1 - BETAS[1] ** (STEPS + 1)) ** 0.5
        if self.kind == "adamw":
            return torch.optim.AdamW(parameters, rate, betas, eps, WEIGHT_DECAY)
        return torch.optim.Adam(parameters, rate, betas, eps, amsgrad=self.kind == "amsgrad")

    def __str__(self) -> str:
        return " ".join((self.family, self.kind, *self.options))


V1_KINDS = ("sgd", "nesterov", "adagrad", "adam", "rmsprop", "adadelta")
OTHER_KINDS = ("rmsprop", "adadelta", "adamax", "nadam")
ALL = [
    *(Trained("v1", kind, more) for kind in V1_KINDS for more in ({}, {"counted": True})),
    *(Trained("keras2", kind) for kind in ("sgd", "nesterov", "adagrad", "adam", "amsgrad")),
    *(Trained("keras2", kind, {"decay": 0.5}) for kind in ("sgd", "nesterov", "adagrad", "adam", "amsgrad")),
    *(Trained("keras3", kind) for kind in ("sgd", "nesterov", "adagrad", "adam", "amsgrad", "adamw", *OTHER_KINDS)),
    *(Trained("keras3", kind, {"scheduled": True}) for kind in ("adagrad", "adam", "amsgrad", "adamw")),
]  # fmt: skip


class Net(nn.Module):
    """The torch counterpart of the trained model."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 5)


def by_load_model(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    load_model(model, path, optimizer=optimizer)


def by_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    Checkpoint(net=model, optimizer=optimizer).read(path).assert_existing_objects_matched().expect_partial()


WAYS = (by_load_model, by_checkpoint)


def call_train(tensorflow: TensorFlowProcess, path: Path, trained: Trained) -> dict[str, RawTensor]:
    """tensorflow_optimizers.train."""
    told: dict[str, RawTensor] = tensorflow.call(
        "tensorflow_optimizers.train", str(path), trained.family, trained.kind, STEPS, **trained.options
    )
    return told


def assert_next_step_agrees(model: Net, optimizer: torch.optim.Optimizer, told: dict[str, RawTensor]) -> None:
    """Make one step on 0.5 * w**2 - target * w and compare."""
    for name, parameter in model.fc.named_parameters():
        assert torch.equal(parameter, tensor(told[name]))
        parameter.grad = parameter.detach() - tensor(told[f"target/{name}"])
    optimizer.step()
    for name, parameter in model.fc.named_parameters():
        torch.testing.assert_close(parameter.detach(), tensor(told[f"next/{name}"]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("trained", ALL, ids=str)
def test_both_ways_agree_with_each_other_and_with_tensorflow(
    tensorflow: TensorFlowProcess, tmp_path: Path, trained: Trained
) -> None:
    """State, step and hyperparameters are equal to the bit with both readers, and the next step is TensorFlow's."""
    told = call_train(tensorflow, tmp_path / "m", trained)
    read: list[Any] = []
    for way in WAYS:
        model = Net()
        optimizer = trained.optimizer(model)
        way(tmp_path / "m", model, optimizer)
        read.append(optimizer.state_dict())
        assert all(float(state.get("step", STEPS)) in (STEPS, 0.0) for state in optimizer.state.values())
        assert_next_step_agrees(model, optimizer, told)
    one, other = read
    assert one["param_groups"] == other["param_groups"]
    assert one["state"].keys() == other["state"].keys() == {0, 1}
    for number, state in one["state"].items():
        assert state.keys() == other["state"][number].keys()
        assert all(torch.equal(value, other["state"][number][name]) for name, value in state.items())


@pytest.mark.parametrize("trained", [each for each in ALL if each.family != "v1"], ids=str)
def test_all_values_of_the_optimizer_are_consumed(
    tensorflow: TensorFlowProcess, tmp_path: Path, trained: Trained
) -> None:
    """Checkpoint restores or consumes each of Keras's numbers."""
    call_train(tensorflow, tmp_path / "m", trained)
    model = Net()
    Checkpoint(net=model, optimizer=trained.optimizer(model)).read(tmp_path / "m").assert_consumed()


@pytest.mark.parametrize("family", ["v1", "keras2", "keras3"])
@pytest.mark.parametrize("kind", ["sgd", "adagrad", "adam"])
def test_slots_are_transposed_like_their_kernel(
    tensorflow: TensorFlowProcess, tmp_path: Path, family: str, kind: str
) -> None:
    """load_model, from a kernel [in, out]."""
    told = call_train(tensorflow, tmp_path / "m", Trained(family, kind, {"weight": "kernel"}))
    told = {
        name.replace("kernel", "weight"): RawTensor.of(tensor(raw).t()) if "kernel" in name else raw
        for name, raw in told.items()
    }
    model = Net()
    optimizer = Trained(family, kind).optimizer(model)
    load_model(model, tmp_path / "m", optimizer=optimizer)
    assert_next_step_agrees(model, optimizer, told)


MADE: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "SGD": lambda model: torch.optim.SGD(model.parameters(), 0.5, 0.25),
    "Adam": lambda model: torch.optim.Adam(model.parameters()),
    "Adagrad": lambda model: torch.optim.Adagrad(model.parameters()),
}
MISSING = r'Missing optimizer state of: "fc\.weight", "fc\.bias"'


@pytest.mark.parametrize(
    ("trained", "kind", "error", "told"),
    [
        (
            Trained("keras3", "sgd", {"scheduled": True}),
            "SGD",
            InvalidArgumentError,
            "the learning rate, but no learning rate is stored",
        ),
        (Trained("keras3", "ftrl"), "Adagrad", UnimplementedError, 'has "linear", which Adagrad does not have'),
        (Trained("v1", "rmsprop"), "SGD", UnimplementedError, 'has "rms", which SGD does not have'),
        (Trained("keras3", "rmsprop"), "SGD", UnimplementedError, 'has "rms", which SGD does not have'),
        (Trained("keras3", "rmsprop"), "Adam", NotFoundError, 'has "momentum", "rms", which Adam does not have'),
        (Trained("keras2", "sgd"), "Adam", NotFoundError, 'has "momentum", which Adam does not have'),
    ],
    ids=str,
)
def test_state_that_neither_can_convert(
    tensorflow: TensorFlowProcess,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    trained: Trained,
    kind: str,
    error: type[CheckpointError],
    told: str,
) -> None:
    """load_model raises and changes nothing; Checkpoint skips state and hyperparameters, as log and status report."""
    call_train(tensorflow, tmp_path / "m", trained)
    model = Net()
    optimizer = MADE[kind](model)
    weights, state = repr(model.state_dict()), repr(optimizer.state_dict())
    with pytest.raises(error, match=MISSING if error is NotFoundError else told):
        load_model(model, tmp_path / "m", optimizer=optimizer)
    assert (repr(model.state_dict()), repr(optimizer.state_dict())) == (weights, state)
    status = Checkpoint(net=model, optimizer=optimizer).read(tmp_path / "m")
    assert told in caplog.text
    assert repr(optimizer.state_dict()) == state
    with pytest.raises(AssertionError, match="Unresolved object"):
        status.assert_consumed()
    status.expect_partial()


@pytest.mark.parametrize("way", WAYS)
def test_sgd_without_momentum(
    tensorflow: TensorFlowProcess, tmp_path: Path, way: Callable[[Path, nn.Module, torch.optim.Optimizer], None]
) -> None:
    """It has no slots: only the learning rate is restored."""
    told = call_train(tensorflow, tmp_path / "m", Trained("keras3", "plain sgd"))
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 9.0)
    way(tmp_path / "m", model, optimizer)
    assert (optimizer.param_groups[0]["lr"], len(optimizer.state)) == (RATE, 0)
    assert_next_step_agrees(model, optimizer, told)


def test_load_model_reports_what_it_restored(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """Hyperparameters are in the report, and a group of parameters that are not stored keeps its own."""
    call_train(tensorflow, tmp_path / "m", Trained("keras2", "adam", {"decay": 0.5}))
    model, head = Net(), nn.Linear(2, 2)
    groups: list[dict[str, Any]] = [{"params": list(each.parameters())} for each in (head, model)]
    optimizer = torch.optim.Adam(groups, 3.0)
    report = load_model(model, tmp_path / "m", optimizer=optimizer)
    rate = RATE / (1 + 0.5 * STEPS)
    assert report.hyperparameters == {"lr": pytest.approx(rate), "betas": BETAS}
    assert f"optimizer state of 2 parameters; lr={report.hyperparameters['lr']}, betas=(0.75, 0.875)" in str(report)
    assert [group["lr"] for group in optimizer.param_groups] == [3.0, pytest.approx(rate)]


def test_stored_amsgrad_that_the_optimizer_does_not_use(
    tensorflow: TensorFlowProcess, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The maxima are kept, and a warning says that they are not used."""
    call_train(tensorflow, tmp_path / "m", Trained("keras3", "amsgrad"))
    model = Net()
    optimizer = torch.optim.Adam(model.parameters())
    load_model(model, tmp_path / "m", optimizer=optimizer)
    assert "used amsgrad, but this optimizer does not" in caplog.text
    assert all("max_exp_avg_sq" in state for state in optimizer.state.values())
