"""torch optimizers as nodes: which tensors are slot variables, and that each optimizer is restored."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from stored_nodes import stored_node
from torch import nn

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.objects.checkpoint import Checkpoint
from torch_tfckpt.objects.trackables.optimizers import OptimizerTrackable, check_slots
from torch_tfckpt.optimizers.slots import slot_names
from torch_tfckpt.optimizers.tensorflow import steps_of_power, updated_state
from torch_tfckpt.saveables.identity import Identity, identity_of

# All optimizers of torch, and how to create them. A class added by a later torch fails the test below until it is here.
ALL: Mapping[str, Mapping[str, Any]] = {
    "ASGD": {"t0": 1.0},
    "Adadelta": {},
    "Adafactor": {},
    "Adagrad": {"lr_decay": 0.1},
    "Adam": {"amsgrad": True},
    "AdamW": {"maximize": True},
    "Adamax": {},
    "LBFGS": {"max_iter": 2},
    "Muon": {},
    "NAdam": {"decoupled_weight_decay": True},
    "RAdam": {},
    "RMSprop": {"centered": True, "momentum": 0.5},
    "Rprop": {},
    "SGD": {"momentum": 0.5, "dampening": 0.25},
    "SparseAdam": {},
}
SINGLE_GROUP = {"LBFGS"}
MATRICES_ONLY = {"Muon"}
# torch's own load_state_dict casts the other state of these to the dtype of the parameter.
OF_ONE_DTYPE = {"ASGD", "LBFGS", "NAdam"}


def classes() -> set[str]:
    found = vars(torch.optim).values()
    kinds = {kind for kind in found if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)}
    return {kind.__name__ for kind in kinds - {torch.optim.Optimizer}}


class Net(nn.Module):
    """Matrices, and a scalar and a vector of doubles if the optimizer accepts them; one is frozen."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.one, self.two, self.frozen = (nn.Parameter(torch.rand(2, 3)) for _ in range(3))
        self.frozen.requires_grad_(False)
        if kind not in MATRICES_ONLY:
            self.scalar = nn.Parameter(torch.rand(()))
            dtype = torch.float32 if kind in OF_ONE_DTYPE else torch.float64
            self.wide = nn.Parameter(torch.rand(3, dtype=dtype))

    def optimizer(self, kind: str) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer
        groups: list[dict[str, Any]] = [{"params": [self.one, self.frozen], "lr": 0.25}]
        groups.append(
            {"params": [each for each in self.parameters() if each is not self.one and each is not self.frozen]}
        )
        parameters = list(self.parameters()) if kind in SINGLE_GROUP else groups
        made = getattr(torch.optim, kind)(parameters, **ALL[kind])
        return made

    def run(self, optimizer: torch.optim.Optimizer, steps: int) -> None:
        def loss() -> float:
            for number, parameter in enumerate(each for each in self.parameters() if each.requires_grad):
                gradient = torch.full_like(parameter, 0.5 + number) * parameter.detach()
                parameter.grad = gradient.to_sparse() if isinstance(optimizer, torch.optim.SparseAdam) else gradient
            return 1.0

        for _ in range(steps):
            loss()
            optimizer.step(loss)


def bits(value: Any) -> object:
    """Return a value with tensors in a form that compares bit for bit."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.detach().contiguous().reshape(-1).view(torch.uint8).tolist()
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    return [bits(item) for item in value] if isinstance(value, list | tuple) else value


def test_all_classes_are_listed() -> None:
    """The table above has every optimizer of torch."""
    assert classes() <= ALL.keys()


@pytest.mark.parametrize("kind", sorted(ALL.keys() & classes()))
@pytest.mark.parametrize("optimizer_first", [True, False], ids=["optimizer first", "model first"])
def test_every_optimizer_is_restored_bit_for_bit(tmp_path: Path, kind: str, optimizer_first: bool) -> None:
    """State and settings of all groups are restored, with scalar, double and frozen parameters.

    It does not matter whether optimizer or model is visited first; training continues equally.
    """
    names = ("a", "z") if optimizer_first else ("z", "a")

    def checkpoint(net: Net, optimizer: torch.optim.Optimizer) -> Checkpoint:
        return Checkpoint(**dict(zip(names, (optimizer, net), strict=True)))

    net, other = Net(kind), Net(kind)
    optimizer, restored = net.optimizer(kind), other.optimizer(kind)
    net.run(optimizer, 3)
    path = checkpoint(net, optimizer).write(tmp_path / "m")
    other.run(restored, 1)
    for group in restored.param_groups:
        group["lr"] = 9.0
    checkpoint(other, restored).read(path).assert_consumed()
    assert bits(restored.state_dict()) == bits(optimizer.state_dict())
    net.run(optimizer, 2)
    other.run(restored, 2)
    assert bits(dict(other.state_dict())) == bits(dict(net.state_dict()))


@pytest.mark.parametrize(
    ("kind", "slots"),
    [
        ("Adam", {"m", "v", "vhat"}),
        ("AdamW", {"m", "v"}),
        ("SGD", {"momentum"}),
        ("Adagrad", {"accumulator"}),
        ("RMSprop", {"square_avg", "momentum_buffer", "grad_avg"}),
    ],
)
def test_names_of_slots(kind: str, slots: set[str]) -> None:
    """TensorFlow's names for the same values, else torch's. The step of a scalar is not a slot."""
    net = Net(kind)
    optimizer = net.optimizer(kind)
    net.run(optimizer, 1)
    found = OptimizerTrackable(optimizer).slots()
    assert {slot.name for slot in found} == slots
    assert all(slot.tensor.shape == slot.parameter.shape for slot in found)
    assert all(any(slot.parameter is each for each in net.parameters()) for slot in found)


def test_a_subclass_has_the_names_of_its_base() -> None:
    """A subclass of Adam stores Adam's moments under Adam's names."""

    class Mine(torch.optim.AdamW):
        pass

    assert slot_names(Mine([torch.zeros(1)]))["exp_avg"].slot == "m"
    assert slot_names(torch.optim.RMSprop([torch.zeros(1)])) == {}


def powers(optimizer: torch.optim.Optimizer) -> list[str]:
    return [name for name, _ in OptimizerTrackable(optimizer).children()]


def test_powers_only_if_equal_for_all_parameters() -> None:
    """Only Adam has them, and only if all parameters have the same steps and betas."""
    one, other = (nn.Parameter(torch.rand(2)) for _ in range(2))
    optimizer = torch.optim.Adam([{"params": [one]}, {"params": [other]}])
    assert powers(optimizer) == ["beta1_power", "beta2_power"]
    one.grad = torch.ones(2)
    optimizer.step()
    assert powers(optimizer) == ["beta1_power", "beta2_power"]
    other.grad = torch.ones(2)
    optimizer.step()
    assert powers(optimizer) == []
    groups: list[dict[str, Any]] = [{"params": [one]}, {"params": [other], "betas": (0.5, 0.5)}]
    assert powers(torch.optim.Adam(groups)) == []
    assert powers(torch.optim.SGD([one], 0.1)) == []


@pytest.mark.parametrize("beta", [0.9, 0.999])
@pytest.mark.parametrize("steps", [0, 1, 2, 100, 800])
def test_steps_of_powers(beta: float, steps: int) -> None:
    """The number of steps is computed from a float32 power."""
    assert steps_of_power(torch.tensor(beta ** (steps + 1), dtype=torch.float32).item(), beta) == steps


@pytest.mark.parametrize(
    ("power", "beta"), [(0.0, 0.9), (1.0, 0.9), (0.5, 0.0), (0.5, 1.0), (-1.0, 0.9), (float("nan"), 0.9)]
)
def test_powers_without_a_number_of_steps(power: float, beta: float) -> None:
    """Powers that have become zero, and numbers that are not powers."""
    assert steps_of_power(power, beta) is None


def paths(named: Iterable[tuple[str, torch.Tensor]]) -> dict[Identity, str]:
    return {identity_of(tensor): name for name, tensor in named}


def test_a_parameter_without_a_path() -> None:
    """The error has its group, position and shape, since it has no name."""
    one, other = torch.zeros(1), torch.zeros(2, 3)
    optimizer = torch.optim.SGD([{"params": [one]}, {"params": [other]}], 0.1)
    trackable = OptimizerTrackable(optimizer)
    assert [saveable.name for saveable in trackable.state_to_save("o", paths([("a", one), ("b", other)]), {})]
    with pytest.raises(
        InvalidArgumentError, match=r"parameter 0 of param_groups\[1\], of shape \[2,3\].*Add its module"
    ):
        trackable.state_to_save("o", paths([("a", one)]), {})


def test_slots_are_named_by_their_keys_and_not_stored_twice() -> None:
    """The string refers to the slots that the graph stores."""
    parameter = nn.Parameter(torch.rand(2))
    optimizer = torch.optim.SGD([parameter], 0.1, momentum=0.5)
    parameter.grad = torch.ones(2)
    optimizer.step()
    trackable = OptimizerTrackable(optimizer)
    [slot] = trackable.slots()
    [text] = trackable.state_to_save("o", paths([("p", parameter)]), {id(slot.tensor): "elsewhere"})
    assert '{"$tensor": "elsewhere"}' in str(text.specs[0].tensor)


@pytest.mark.parametrize(
    ("here", "text"),
    [(torch.zeros(3), r"shape \(2,\)"), (torch.zeros(2, dtype=torch.complex64), "complex64")],
    ids=["shape", "dtype"],
)
def test_invalid_slots(tmp_path: Path, here: torch.Tensor, text: str) -> None:
    """A slot of another shape or kind than the parameter is reported by key; unknown ones are ignored."""
    parameter = nn.Parameter(torch.rand(2))
    optimizer = torch.optim.SGD([parameter], 0.1, momentum=0.5)
    parameter.grad = torch.ones(2)
    optimizer.step()
    path = Checkpoint(p=parameter, o=optimizer).write(tmp_path / "m")
    with stored_node(path, "o") as stored:
        [slot] = stored.node.slot_variables
        check_slots(stored, {slot.original_variable_node_id: parameter})
        check_slots(stored, {})
        with pytest.raises(InvalidArgumentError, match=text) as caught:
            check_slots(stored, {slot.original_variable_node_id: here})
    assert "p/.OPTIMIZER_SLOT/o/momentum" in str(caught.value)
    assert path in str(caught.value)


def test_updated_state() -> None:
    """New values replace old ones; other values and the optimizer object are kept."""
    one, other = torch.zeros(1), torch.zeros(1)
    optimizer = torch.optim.Adagrad([one, other], 0.1)
    before = bits(optimizer.state_dict())
    updated = updated_state(optimizer, {identity_of(other): {"sum": torch.ones(1)}})
    assert updated["state"][1]["sum"].item() == 1.0
    assert updated["state"][1]["step"] is optimizer.state_dict()["state"][1]["step"]
    assert updated["state"][0] == optimizer.state_dict()["state"][0]
    assert bits(optimizer.state_dict()) == before


def test_another_optimizer_is_rejected(tmp_path: Path) -> None:
    """Without a change, even if it has the same groups."""
    net, other = Net("Adam"), Net("Adam")
    optimizer = net.optimizer("Adam")
    net.run(optimizer, 1)
    path = Checkpoint(net=net, optimizer=optimizer).write(tmp_path / "m")
    wrong = torch.optim.Rprop(other.optimizer("Adam").param_groups)
    other.run(wrong, 1)
    before = bits([wrong.state_dict(), dict(other.state_dict())])
    with pytest.raises(InvalidArgumentError, match="optimizer/"):
        Checkpoint(net=other, optimizer=wrong).read(path)
    assert bits([wrong.state_dict(), dict(other.state_dict())]) == before
