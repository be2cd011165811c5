"""Optimizers in Checkpoints: slot variables by the path of their parameter, all else bit for bit."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.format.object_graph import (
    OBJECT_GRAPH_KEY,
    VARIABLE_VALUE,
    ObjectGraph,
    ObjectReference,
    SerializedTensor,
    SlotVariable,
    TrackableObject,
)
from torch_tfckpt.objects.checkpoint import Checkpoint
from torch_tfckpt.objects.options import CheckpointOptions

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
Parameters = Iterable[nn.Parameter]
OPTIMIZERS: dict[str, Callable[[Parameters], torch.optim.Optimizer]] = {
    "adam": lambda p: torch.optim.Adam(p, 0.1),
    "adam amsgrad": lambda p: torch.optim.Adam(p, 0.1, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, torch.tensor(0.1)),
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "sgd momentum": lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.1, initial_accumulator_value=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.1, momentum=0.5, centered=True),
    "adadelta": lambda p: torch.optim.Adadelta(p, 0.1),
    "nadam": lambda p: torch.optim.NAdam(p, 0.1),
    "radam": lambda p: torch.optim.RAdam(p, 0.1),
    "rprop": lambda p: torch.optim.Rprop(p, 0.1),
    "adafactor": lambda p: torch.optim.Adafactor(p, 0.1),
    "lbfgs": lambda p: torch.optim.LBFGS(p, 0.1, max_iter=3),
}


@pytest.fixture(autouse=True)
def same_numbers_each_time() -> None:
    """Fix the seed, since some initial values make momentum diverge, and NaN is not comparable."""
    torch.manual_seed(0)


class Net(nn.Module):
    """Network with a scalar, which has the shape of a step, and a parameter without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.scale = nn.Parameter(torch.rand(()))
        self.unused = nn.Parameter(torch.rand(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.fc(x) * self.scale
        return y


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value: torch.Tensor = (model(torch.tensor([[1.0, 2.0, 3.0]])) ** 2).sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    for _ in range(steps):
        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(loss)  # type: ignore[no-untyped-call]
        else:
            loss()
            optimizer.step()


def flat(value: object) -> object:
    """Return a state_dict in a comparable form."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), value.tolist())
    if isinstance(value, dict):
        return {key: flat(item) for key, item in value.items()}
    return [flat(item) for item in value] if isinstance(value, list | tuple) else value


def graph_of(path: str) -> ObjectGraph:
    with tfckpt.load_checkpoint(path) as reader:
        assert reader.object_graph is not None
        return reader.object_graph


def slots_of(path: str) -> list[tuple[str, str]]:
    """Return (slot name, path of the variable) of all slot variables."""
    graph = graph_of(path)
    return [
        (slot.slot_name, ".".join(graph.route(slot.original_variable_node_id) or ()))
        for node in graph.nodes
        for slot in node.slot_variables
    ]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_continues_bit_for_bit(tmp_path: Path, kind: str) -> None:
    """The state of any torch optimizer is restored into a new model and optimizer bit for bit.

    Further steps give the same results.
    """
    model = Net()
    optimizer = OPTIMIZERS[kind](model.parameters())
    train(model, optimizer, 3)
    path = Checkpoint(model=model, optimizer=optimizer).save(tmp_path / "m")
    other = Net()
    restored = OPTIMIZERS[kind](other.parameters())
    restored.param_groups[0]["lr"] = 0.7
    status = Checkpoint(model=other, optimizer=restored).restore(path)
    status.assert_consumed().assert_existing_objects_matched()
    assert flat(restored.state_dict()) == flat(optimizer.state_dict())
    for each in (optimizer, restored):
        assert each.param_groups[0]["lr"] == pytest.approx(0.1)
    train(model, optimizer, 3)
    train(other, restored, 3)
    assert flat(other.state_dict()) == flat(model.state_dict())
    assert flat(restored.state_dict()) == flat(optimizer.state_dict())


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_trained_optimizer_is_reset(tmp_path: Path, kind: str) -> None:
    """Restoring the state from before the first step removes all later state."""
    model = Net()
    optimizer = OPTIMIZERS[kind](model.parameters())
    fresh = flat(optimizer.state_dict())
    checkpoint = Checkpoint(model=model, optimizer=optimizer)
    path = checkpoint.write(tmp_path / "m")
    train(model, optimizer, 2)
    assert flat(optimizer.state_dict()) != fresh or kind == "sgd"
    checkpoint.read(path).assert_consumed()
    assert flat(optimizer.state_dict()) == fresh


@pytest.mark.parametrize(
    ("kind", "slots"),
    [
        ("adam", {"m": "exp_avg", "v": "exp_avg_sq"}),
        ("adamw", {"m": "exp_avg", "v": "exp_avg_sq"}),
        ("adam amsgrad", {"m": "exp_avg", "v": "exp_avg_sq", "vhat": "max_exp_avg_sq"}),
        ("sgd momentum", {"momentum": "momentum_buffer"}),
        ("adagrad", {"accumulator": "sum"}),
        ("rmsprop", {n: n for n in ("grad_avg", "momentum_buffer", "square_avg")}),
    ],
)
def test_slot_variables(tmp_path: Path, kind: str, slots: dict[str, str]) -> None:
    """Slots have TensorFlow's names if TensorFlow has them, else torch's, and the key of their variable.

    They are sorted by slot name, then in the order of the variables.
    """
    model = Net()
    optimizer = OPTIMIZERS[kind](model.parameters())
    train(model, optimizer, 1)
    path = Checkpoint(model=model, optimizer=optimizer).write(tmp_path / "m")
    named = dict(model.named_parameters())
    # A module's own parameters come before those of its modules.
    variables = ["scale", "unused", "fc.weight", "fc.bias"]
    having = [
        name
        for name in variables
        if slots["m" if "m" in slots else next(iter(slots))] in optimizer.state.get(named[name], {})
    ]
    assert slots_of(path) == [(slot, f"model.{name}") for slot in sorted(slots) for name in having]
    stored = tfckpt.load_file(path)
    for slot, own in slots.items():
        for name in having:
            key = f"model/{name.replace('.', '/')}/.OPTIMIZER_SLOT/optimizer/{slot}{VALUE}"
            assert torch.equal(torch.as_tensor(stored[key]), optimizer.state[named[name]][own])


def test_other_state_is_not_in_the_graph(tmp_path: Path) -> None:
    """The graph has no attribute for state that TensorFlow lacks, which is stored separately."""
    model = Net()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    train(model, optimizer, 1)
    path = Checkpoint(model=model, optimizer=optimizer).write(tmp_path / "m")
    graph = graph_of(path)
    node = graph.nodes[graph.nodes[0].child("optimizer") or -1]
    assert node.attributes == ()
    assert [child.local_name for child in node.children] == ["beta1_power", "beta2_power"]
    assert "optimizer/.ATTRIBUTES/py_state" in tfckpt.load_file(path)
    stored = tfckpt.load_file(path)
    assert torch.as_tensor(stored["optimizer/beta1_power" + VALUE]).item() == pytest.approx(0.9**2)
    assert torch.as_tensor(stored["optimizer/beta2_power" + VALUE]).item() == pytest.approx(0.999**2)


def test_moments_follow_their_parameters(tmp_path: Path) -> None:
    """State is matched by the parameter's path in the model, not by its number in the optimizer."""
    model, other = Net(), Net()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    train(model, optimizer, 2)
    path = Checkpoint(model=model, optimizer=optimizer).write(tmp_path / "m")
    restored = OPTIMIZERS["adam"](reversed(list(other.parameters())))
    Checkpoint(model=other, optimizer=restored).read(path).assert_consumed()
    for name, parameter in other.named_parameters():
        assert flat(dict(restored.state.get(parameter, {}))) == flat(
            dict(optimizer.state.get(model.get_parameter(name), {}))
        )


def test_groups(tmp_path: Path) -> None:
    """Groups keep their own settings, in whatever order they are."""

    def grouped(model: Net, *, swapped: bool) -> torch.optim.Optimizer:
        groups: list[dict[str, Any]] = [
            {"params": list(model.fc.parameters()), "lr": 0.5, "weight_decay": 0.25},
            {"params": [model.scale, model.unused], "betas": (0.5, 0.75)},
        ]
        return torch.optim.Adam(groups[::-1] if swapped else groups, 0.125)

    model, other = Net(), Net()
    optimizer, restored = grouped(model, swapped=False), grouped(other, swapped=True)
    train(model, optimizer, 2)
    for group in restored.param_groups:
        group.update(lr=9.0, betas=(0.1, 0.1), weight_decay=9.0)
    path = Checkpoint(model=model, optimizer=optimizer).write(tmp_path / "m")
    Checkpoint(model=other, optimizer=restored).read(path).assert_consumed()
    first, second = restored.param_groups
    assert (first["lr"], first["betas"], first["weight_decay"]) == (0.125, (0.5, 0.75), 0)
    assert (second["lr"], second["betas"], second["weight_decay"]) == (0.5, (0.9, 0.999), 0.25)
    train(model, optimizer, 2)
    train(other, restored, 2)
    assert flat(other.state_dict()) == flat(model.state_dict())


def test_a_parameter_without_a_path(tmp_path: Path) -> None:
    """An optimizer with a parameter that no object has is rejected, and nothing is written."""
    model = Net()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    train(model, optimizer, 1)
    with pytest.raises(tfckpt.InvalidArgumentError, match=r"parameter 0 of param_groups\[0\]"):
        Checkpoint(optimizer=optimizer).write(tmp_path / "m")
    with pytest.raises(tfckpt.InvalidArgumentError, match=r"parameter 2 of param_groups\[0\]"):
        Checkpoint(
            fc=model.fc,
            scale=model.scale,
            optimizer=OPTIMIZERS["adam"]([*model.fc.parameters(), model.unused, model.scale]),
        ).write(tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_skipping_slot_variables(tmp_path: Path) -> None:
    """With experimental_skip_slot_variables they are neither written nor read."""
    skip = CheckpointOptions(experimental_skip_slot_variables=True)
    model = Net()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    train(model, optimizer, 2)
    checkpoint = Checkpoint(model=model, optimizer=optimizer)
    without = checkpoint.write(tmp_path / "without", skip)
    assert not [key for key in tfckpt.load_file(without) if "SLOT" in key or "py_state" in key]
    whole = checkpoint.write(tmp_path / "whole")
    train(model, optimizer, 1)
    before, weight = flat(optimizer.state_dict()), model.fc.weight.tolist()
    for path in (without, whole):
        checkpoint.read(path, skip).assert_consumed()
        assert flat(optimizer.state_dict()) == before
        assert model.fc.weight.tolist() != weight
    checkpoint.read(whole).assert_consumed()
    assert flat(optimizer.state_dict()) != before


def test_many_steps(tmp_path: Path) -> None:
    """The number of steps is exact, even when TensorFlow's powers of beta have become zero."""
    model = Net()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    train(model, optimizer, 1)
    for state in optimizer.state.values():
        state["step"].fill_(200_001)
    checkpoint = Checkpoint(model=model, optimizer=optimizer)
    path = checkpoint.write(tmp_path / "m")
    for state in optimizer.state.values():
        state["step"].fill_(1)
    checkpoint.read(path).assert_consumed()
    assert {float(state["step"]) for state in optimizer.state.values()} == {200_001.0}


def test_parameters_with_different_steps(tmp_path: Path) -> None:
    """TensorFlow's Adam has one count for all parameters: with several, no powers are stored."""
    model = Net()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    train(model, optimizer, 2)
    optimizer.state[model.scale]["step"].fill_(9)
    expected = flat(optimizer.state_dict())
    checkpoint = Checkpoint(model=model, optimizer=optimizer)
    path = checkpoint.write(tmp_path / "m")
    assert not [key for key in tfckpt.load_file(path) if "_power" in key]
    train(model, optimizer, 2)
    checkpoint.read(path).assert_consumed()
    assert flat(optimizer.state_dict()) == expected


@pytest.mark.parametrize("kind", ["sgd momentum", "adagrad", "rmsprop"])
def test_another_optimizer(tmp_path: Path, kind: str) -> None:
    """Adam's state is not restored into another algorithm; nothing is assigned, not even the model."""
    model = Net()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    train(model, optimizer, 1)
    path = Checkpoint(model=model, optimizer=optimizer).write(tmp_path / "m")
    other = Net()
    wrong = OPTIMIZERS[kind](other.parameters())
    train(other, wrong, 1)
    before = flat(other.state_dict()), flat(wrong.state_dict())
    with pytest.raises(tfckpt.InvalidArgumentError, match="Adam"):
        Checkpoint(model=other, optimizer=wrong).read(path)
    assert (flat(other.state_dict()), flat(wrong.state_dict())) == before


def test_two_optimizers_over_one_model(tmp_path: Path) -> None:
    """Each optimizer has its own slot variables for the same parameters."""
    model = Net()
    optimizers = [OPTIMIZERS[kind](model.parameters()) for kind in ("adam", "adamw", "sgd momentum")]
    for optimizer in optimizers:
        train(model, optimizer, 2)
    expected = [flat(optimizer.state_dict()) for optimizer in optimizers]
    checkpoint = Checkpoint(model, first=optimizers[0], rest=optimizers[1:])
    path = checkpoint.write(tmp_path / "m")
    for optimizer in optimizers:
        train(model, optimizer, 1)
    checkpoint.read(path).assert_consumed()
    assert [flat(optimizer.state_dict()) for optimizer in optimizers] == expected


def test_tied_parameters(tmp_path: Path) -> None:
    """A parameter with two paths is one variable with one moment."""
    model = Net()
    model.again = model.fc
    model.scale_again = model.scale
    optimizer = OPTIMIZERS["adam"](model.parameters())
    train(model, optimizer, 1)
    expected = flat(optimizer.state_dict())
    checkpoint = Checkpoint(model=model, optimizer=optimizer)
    path = checkpoint.write(tmp_path / "m")
    assert len(slots_of(path)) == 6
    train(model, optimizer, 1)
    checkpoint.read(path).assert_consumed()
    assert flat(optimizer.state_dict()) == expected


@pytest.mark.parametrize("first", ["model", "optimizer"])
def test_an_optimizer_that_is_added_later(tmp_path: Path, first: str) -> None:
    """Assigned after the restore, in any order, it is restored once all of its parameters exist."""
    model = Net()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    train(model, optimizer, 3)
    path = Checkpoint(model=model, optimizer=optimizer).write(tmp_path / "m")
    other = Net()
    restored = OPTIMIZERS["adam"](other.parameters())
    checkpoint = Checkpoint()
    status = checkpoint.read(path)
    late = {"model": other, "optimizer": restored}
    setattr(checkpoint, first, late.pop(first))
    with pytest.raises(AssertionError):
        status.assert_consumed()
    for name, value in late.items():
        setattr(checkpoint, name, value)
    status.assert_consumed()
    assert flat(other.state_dict()) == flat(model.state_dict())
    assert flat(restored.state_dict()) == flat(optimizer.state_dict())


def test_without_the_optimizer(tmp_path: Path) -> None:
    """A model is restored from a checkpoint of both; assert_consumed lists the unused paths."""
    model = Net()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    train(model, optimizer, 1)
    path = Checkpoint(model=model, optimizer=optimizer).write(tmp_path / "m")
    other = Net()
    status = Checkpoint(model=other).read(path)
    status.assert_existing_objects_matched()
    with pytest.raises(AssertionError, match=r"\(root\)\.optimizer"):
        status.assert_consumed()
    status.expect_partial()
    assert flat(other.state_dict()) == flat(model.state_dict())


def test_an_optimizer_that_is_not_stored(tmp_path: Path) -> None:
    """assert_existing_objects_matched names an optimizer that is not stored; it is unchanged."""
    model = Net()
    path = Checkpoint(model=model).write(tmp_path / "m")
    optimizer = OPTIMIZERS["adam"](model.parameters())
    train(model, optimizer, 1)
    before = flat(optimizer.state_dict())
    status = Checkpoint(model=model, optimizer=optimizer).read(path)
    with pytest.raises(AssertionError, match=r"\(root\)\.optimizer"):
        status.assert_existing_objects_matched()
    status.expect_partial()
    assert flat(optimizer.state_dict()) == before


def test_parameters_of_another_shape(tmp_path: Path) -> None:
    """A model whose shapes have changed is rejected before anything is assigned."""
    model, other = nn.Linear(3, 2), nn.Linear(3, 4)
    optimizer, restored = (torch.optim.Adam(each.parameters(), 0.1) for each in (model, other))
    train(model, optimizer, 1)
    train(other, restored, 1)
    path = Checkpoint(model=model, optimizer=optimizer).write(tmp_path / "m")
    before = flat(restored.state_dict())
    with pytest.raises(tfckpt.InvalidArgumentError):
        Checkpoint(model=other, optimizer=restored).read(path)
    assert flat(restored.state_dict()) == before


def test_slots_of_some_parameters_only(tmp_path: Path) -> None:
    """A file of TensorFlow with slots for one of two parameters restores only the state of that one.

    Earlier state of torch's Adam for the other does not count as restored.
    """
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    model.weight.grad = torch.ones(2, 2)
    optimizer.step()
    checkpoint = Checkpoint(model=model, optimizer=optimizer)
    stored = tfckpt.load_file(checkpoint.write(tmp_path / "m"))
    path = tfckpt.save_file({key: value for key, value in stored.items() if "py_state" not in key}, tmp_path / "theirs")
    model.bias.grad = torch.ones(2)
    for _ in range(2):
        optimizer.step()
    status = checkpoint.read(path)
    assert float(optimizer.state[model.weight]["step"]) == 1.0
    if optimizer.state.get(model.bias):
        with pytest.raises(AssertionError, match=r"\(root\)\.optimizer"):
            status.assert_existing_objects_matched()
    status.expect_partial()


def write_keras_2(prefix: Path, weight: torch.Tensor, slots: dict[str, torch.Tensor], **scalars: float) -> str:
    """Write a checkpoint of a variable "w" and an optimizer of Keras 2."""
    values = {"w": weight, **{f"optimizer/{name}": torch.tensor(value) for name, value in scalars.items()}}
    values.update({f"w/.OPTIMIZER_SLOT/optimizer/{name}": value for name, value in slots.items()})
    if "optimizer/iter" in values:
        values["optimizer/iter"] = values["optimizer/iter"].to(torch.int64)
    variables = [
        TrackableObject(attributes=(SerializedTensor(VARIABLE_VALUE, path, path + VALUE),), has_checkpoint_values=True)
        for path in values
    ]
    places = {path: place for place, path in enumerate(values, 2)}
    optimizer = TrackableObject(
        children=tuple(ObjectReference(places[f"optimizer/{name}"], name) for name in scalars),
        slot_variables=tuple(
            SlotVariable(places["w"], name, places[f"w/.OPTIMIZER_SLOT/optimizer/{name}"]) for name in slots
        ),
        has_checkpoint_values=True,
    )
    root = TrackableObject(
        (ObjectReference(places["w"], "w"), ObjectReference(1, "optimizer")), has_checkpoint_values=True
    )
    graph = np.array(ObjectGraph((root, optimizer, *variables)).encode(), dtype=object)
    return tfckpt.save_file(
        {**{path + VALUE: value for path, value in values.items()}, OBJECT_GRAPH_KEY: graph}, prefix
    )


def test_adam_of_keras_2(tmp_path: Path) -> None:
    """Moments, steps, learning rate and betas are restored, and everything is consumed."""
    path = write_keras_2(
        tmp_path / "m", torch.tensor([1.0, 2.0]), {"m": torch.tensor([0.5, 0.25]), "v": torch.tensor([4.0, 9.0])},
        iter=7, learning_rate=0.25, beta_1=0.5, beta_2=0.75, decay=0.0,
    )  # fmt: skip
    w = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([w], 9.0)
    Checkpoint(w=w, optimizer=optimizer).read(path).assert_consumed()
    state = optimizer.state[w]
    assert (state["exp_avg"].tolist(), state["exp_avg_sq"].tolist(), float(state["step"])) == (
        [0.5, 0.25],
        [4.0, 9.0],
        7,
    )
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.25)
    assert optimizer.param_groups[0]["betas"] == pytest.approx((0.5, 0.75))


def test_momentum_of_keras_2(tmp_path: Path) -> None:
    """Keras stores -lr times torch's value; the next step has the same result as in Keras."""
    rate, momentum = 0.25, 0.5
    # After one step from 1 with a gradient of 3.
    path = write_keras_2(
        tmp_path / "m", torch.tensor([1.0 - rate * 3]), {"momentum": torch.tensor([-rate * 3])},
        iter=1, learning_rate=rate, momentum=momentum, decay=0.0,
    )  # fmt: skip
    w = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([w], 9.0, 0.9)
    Checkpoint(w=w, optimizer=optimizer).read(path).assert_consumed()
    w.grad = torch.tensor([2.0])
    optimizer.step()
    expected = 1.0 - rate * 3 + (momentum * -rate * 3 - rate * 2)
    assert w.item() == pytest.approx(expected)


def test_other_betas_than_in_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """TensorFlow stores only powers of its betas; if they contradict the betas here, a warning is logged."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    train_linear(model, optimizer, 3)
    stored = tfckpt.load_file(Checkpoint(model=model, optimizer=optimizer).write(tmp_path / "m"))
    path = tfckpt.save_file({key: value for key, value in stored.items() if "py_state" not in key}, tmp_path / "theirs")
    for betas, told in (((0.9, 0.999), False), ((0.5, 0.999), True)):
        caplog.clear()
        restored = torch.optim.Adam(model.parameters(), 0.1, betas=betas)
        Checkpoint(model=model, optimizer=restored).read(path).assert_consumed()
        assert float(restored.state[model.weight]["step"]) == 3.0
        assert ("different numbers of steps" in caplog.text) == told


def train_linear(model: nn.Linear, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()


class TestOtherParameters:
    """A changed model: the state of parameters that are in both is restored, as in TensorFlow."""

    @staticmethod
    def trained(**layers: nn.Linear) -> tuple[nn.ModuleDict, torch.optim.Optimizer]:
        model = nn.ModuleDict(layers)
        optimizer = torch.optim.Adam(model.parameters(), 0.1)
        for layer in layers.values():
            layer(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        return model, optimizer

    def restored(
        self, path: str, caplog: pytest.LogCaptureFixture, lr: float, **layers: nn.Linear
    ) -> tuple[nn.ModuleDict, torch.optim.Optimizer, Any]:
        model = nn.ModuleDict(layers)
        optimizer = torch.optim.Adam(model.parameters(), 0.7)
        status = Checkpoint(model=model, optimizer=optimizer).read(path)
        assert "state of the 2 common parameters" in caplog.text
        assert optimizer.param_groups[0]["lr"] == lr
        return model, optimizer, status.expect_partial()

    def test_an_additional_layer(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Its state starts anew, the group keeps its rate, and the status reports that the optimizer differs."""
        model, optimizer = self.trained(a=nn.Linear(2, 1))
        path = Checkpoint(model=model, optimizer=optimizer).write(tmp_path / "m")
        grown, restored, status = self.restored(path, caplog, 0.7, a=nn.Linear(2, 1), b=nn.Linear(2, 1))
        for here, there in zip(grown["a"].parameters(), model["a"].parameters(), strict=True):
            assert flat(restored.state[here]) == flat(optimizer.state[there])
        assert not restored.state.get(next(grown["b"].parameters()))
        with pytest.raises(AssertionError, match=r"\(root\)\.optimizer"):
            status.assert_existing_objects_matched()

    def test_a_missing_layer(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Its state is unused, the others get their rate, and the status reports it."""
        model, optimizer = self.trained(a=nn.Linear(2, 1), b=nn.Linear(2, 1))
        path = Checkpoint(model=model, optimizer=optimizer).write(tmp_path / "m")
        less, restored, status = self.restored(path, caplog, 0.1, a=nn.Linear(2, 1))
        for here, there in zip(less["a"].parameters(), model["a"].parameters(), strict=True):
            assert flat(restored.state[here]) == flat(optimizer.state[there])
        with pytest.raises(AssertionError, match=r"model\.b"):
            status.assert_existing_objects_matched().assert_consumed()

    def test_another_kind(self, tmp_path: Path) -> None:
        """Nothing can be restored from another kind of optimizer."""
        model, optimizer = self.trained(a=nn.Linear(2, 1), b=nn.Linear(2, 1))
        path = Checkpoint(model=model, optimizer=optimizer).write(tmp_path / "m")
        less = nn.ModuleDict({"a": nn.Linear(2, 1)})
        with pytest.raises(tfckpt.InvalidArgumentError, match="has the state of Adam, but this optimizer is SGD"):
            Checkpoint(model=less, optimizer=torch.optim.SGD(less.parameters(), 0.1)).read(path)
