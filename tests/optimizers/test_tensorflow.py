"""What the converter rejects, warns about, or skips, with hand-made files; both of its callers behave the same."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from model_files import save_objects
from object_files import children, variable, write_graph
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.errors import CheckpointError, InvalidArgumentError, NotFoundError, UnimplementedError
from torch_tfckpt.format.object_graph import TrackableObject
from torch_tfckpt.models.loading import load_model
from torch_tfckpt.objects.checkpoint import Checkpoint
from torch_tfckpt.optimizers.slots import number_nodes, slot_variables
from torch_tfckpt.values import Value

Make = Callable[[nn.Module], torch.optim.Optimizer]
SGD: Make = lambda model: torch.optim.SGD(model.parameters(), 0.5, 0.5)  # noqa: E731
ADAM: Make = lambda model: torch.optim.Adam(model.parameters())  # noqa: E731
DECAYING: Make = lambda model: torch.optim.Adagrad(model.parameters(), lr_decay=0.5)  # noqa: E731


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))


def write(path: Path, slots: tuple[str, ...], numbers: Mapping[str, float]) -> Path:
    """Write variable net/w and its optimizer, with the hyperparameters and counters in `numbers`, by their paths."""
    variables = {"net/w": torch.ones(2), **{name: torch.tensor(value) for name, value in numbers.items()}}
    if not any(name.startswith("optimizer/") for name in numbers):
        variables["optimizer/epsilon"] = torch.tensor(1e-7)
    return save_objects(path, variables, slots={("optimizer", "net/w", slot): torch.ones(2) for slot in slots})


@pytest.mark.parametrize(
    ("make", "slots", "numbers", "error", "told"),
    [
        (SGD, ("momentum",), {"optimizer/iter": 3.0}, InvalidArgumentError, "no learning rate is stored"),
        (SGD, ("momentum",), {"optimizer/iter": 3.0, "optimizer/learning_rate": 0.0}, InvalidArgumentError, "is 0"),
        (SGD, ("momentum",), {"optimizer/iter": 3.0, "optimizer/learning_rate": np.nan}, InvalidArgumentError, "s nan"),
        (ADAM, ("m", "v"), {"a/global_step": 3.0, "b/global_step": 4.0}, NotFoundError, "number of steps is unknown"),
        (ADAM, ("m", "v"), {"optimizer/beta1_power": 0.0}, NotFoundError, "number of steps is unknown"),
        (ADAM, ("m", "v"), {"optimizer/beta2_power": np.nan}, NotFoundError, "number of steps is unknown"),
        (DECAYING, ("accumulator",), {}, NotFoundError, "number of steps is unknown"),
        (ADAM, ("m", "v", "rms"), {"optimizer/iter": 3.0}, UnimplementedError, 'has "rms", which Adam does not have'),
    ],
)  # fmt: skip
def test_rejected_state(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    make: Make,
    slots: tuple[str, ...],
    numbers: Mapping[str, float],
    error: type[CheckpointError],
    told: str,
) -> None:
    """load_model raises; Checkpoint logs it and leaves the optimizer untouched."""
    path = write(tmp_path / "m", slots, numbers)
    model = Net()
    optimizer = make(model)
    before = repr(optimizer.state_dict())
    with pytest.raises(error, match=told):
        load_model(model, path, optimizer=optimizer)
    assert model.w.tolist() == [0.0, 0.0]
    Checkpoint(net=model, optimizer=optimizer).read(path).expect_partial()
    assert told in caplog.text
    assert (model.w.tolist(), repr(optimizer.state_dict())) == ([1.0, 1.0], before)


def by_load_model(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    load_model(model, path, optimizer=optimizer, prefix="net/")


def by_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    Checkpoint(net=model, optimizer=optimizer).read(path).expect_partial()


@pytest.mark.parametrize("way", [by_load_model, by_checkpoint])
@pytest.mark.parametrize(
    ("numbers", "step", "told"),
    [
        ({"global_step": 7.0, "optimizer/beta2_power": 0.999**8}, 7.0, ""),
        ({"global_step": 7.0, "optimizer/beta2_power": 0.999**4}, 7.0, "imply different numbers of steps"),
        ({"optimizer/beta1_power": 0.9**4, "optimizer/beta2_power": 0.999**4}, 3.0, ""),
        ({"optimizer/beta1_power": 0.9**4, "optimizer/beta2_power": 0.999**6}, 5.0, "imply different numbers of steps"),
        ({"optimizer/beta2_power": 0.999**4}, 3.0, "step 3 is computed from beta2_power"),
        ({"optimizer/beta2_power": 0.0}, 100_000.0, "step 100000 is computed from beta2_power"),
    ],
)
def test_counting_of_steps(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    way: Callable[[Path, nn.Module, torch.optim.Optimizer], None],
    numbers: Mapping[str, float],
    step: float,
    told: str,
) -> None:
    """The program's counter, then beta2's power, then beta1's; a warning if they disagree or only a power is stored."""
    path = write(tmp_path / "m", ("m", "v"), numbers)
    model = Net()
    optimizer = ADAM(model)
    with caplog.at_level(logging.WARNING):
        way(path, model, optimizer)
    assert optimizer.state[model.w]["step"] == step
    assert told in caplog.text if told else not caplog.text


@pytest.mark.parametrize("way", [by_load_model, by_checkpoint])
def test_adagrad_without_a_stored_counter(
    tmp_path: Path, way: Callable[[Path, nn.Module, torch.optim.Optimizer], None]
) -> None:
    """torch's count is kept: without lr_decay it has no effect."""
    path = write(tmp_path / "m", ("accumulator",), {})
    model = Net()
    optimizer = torch.optim.Adagrad(model.parameters())
    for _ in range(2):
        model.w.grad = torch.ones(2)
        optimizer.step()
    way(path, model, optimizer)
    state = optimizer.state[model.w]
    assert (state["sum"].tolist(), float(state["step"])) == ([1.0, 1.0], 2.0)


@pytest.mark.parametrize("way", [by_load_model, by_checkpoint])
def test_stored_momentum_for_an_optimizer_without_momentum(
    tmp_path: Path, way: Callable[[Path, nn.Module, torch.optim.Optimizer], None]
) -> None:
    """SGD without momentum gets none, unless Keras stored the factor."""
    model = Net()
    plain = torch.optim.SGD(model.parameters(), 0.5)
    way(write(tmp_path / "v1", ("momentum",), {}), model, plain)
    assert not plain.state
    numbers = {"optimizer/iter": 3.0, "optimizer/learning_rate": 0.25, "optimizer/momentum": 0.5}
    way(write(tmp_path / "keras", ("momentum",), numbers), model, plain)
    assert plain.state[model.w]["momentum_buffer"].tolist() == [-4.0, -4.0]
    assert (plain.param_groups[0]["momentum"], plain.param_groups[0]["lr"]) == (0.5, 0.25)


def test_a_slot_that_is_not_a_float_tensor(tmp_path: Path) -> None:
    """A string or an integer instead of a moment is rejected with its key; nothing is changed."""
    named: dict[str, Value] = {"w": torch.ones(2), "global_step": torch.tensor(3), "w/Adam_1": torch.ones(2)}
    model = Net()
    texts = np.array([b"a", b"b"], dtype=object)
    for slot, error in ((torch.ones(2, dtype=torch.int32), InvalidArgumentError), (texts, UnimplementedError)):
        path = tfckpt.save_file({**named, "w/Adam": slot}, tmp_path / "m")
        with pytest.raises(error, match='"w/Adam"'):
            load_model(model, path, optimizer=ADAM(model))
    assert model.w.tolist() == [0.0, 0.0]


def keras_3(path: Path, *lists: str) -> str:
    """A node whose lists have one item for variable 0, and one for a second variable that is not trained."""
    names = {name: 3 + number for number, name in enumerate(lists)}
    items = [("0", 1), ("1", 1)]
    nodes = [
        TrackableObject(children(("w", 1), ("optimizer", 2))),
        variable("w", "w"),
        TrackableObject(children(*names.items())),
        *(TrackableObject(children(*(items[:1] if name == "_trainable_variables" else items))) for name in lists),
    ]
    return write_graph(path, nodes, {"w": torch.ones(2)})


@pytest.mark.parametrize(
    ("lists", "slots"),
    [
        (("_trainable_variables", "_momentums", "_velocities"), ["m", "v"]),
        (("_trainable_variables", "_momentums", "_velocities", "_average_gradients"), ["rms", "momentum", "mg"]),
        (("_trainable_variables", "_accumulators", "_linears"), ["accumulator", "linear"]),
        (("_momentums", "_velocities"), []),  # Keras 2.11 to 2.15: the order of the variables is not stored
    ],
)
def test_lists_of_keras_3(tmp_path: Path, lists: tuple[str, ...], slots: list[str]) -> None:
    """They are read as slot variables of trained variables, under the names that Keras 2 has for them."""
    with tfckpt.load_checkpoint(keras_3(tmp_path / "m", *lists)) as reader:
        graph = reader.object_graph
        assert graph is not None
        found = slot_variables(graph, 2)
        assert [(slot.slot_name, slot.original_variable_node_id) for slot in found] == [(name, 1) for name in slots]
        assert set(number_nodes(graph, 2)) == (set(lists) if "_trainable_variables" not in lists else set())
