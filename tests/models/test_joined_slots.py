"""Optimizer state of parameters that are joined, split, added to, transformed by functions, or filled."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model_files import numbered
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.errors import InvalidArgumentError, NotFoundError, UnimplementedError
from torch_tfckpt.models.loading import load_model
from torch_tfckpt.models.saving import save_model

Tensors = dict[str, torch.Tensor]


class One(nn.Module):
    """A module "x"."""

    def __init__(self, x: nn.Module) -> None:
        super().__init__()
        self.x = x


def adam(model: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=0.1)


def with_adam(variables: Tensors) -> Tensors:
    """The variables, different slots of each, and the step."""
    moments = {f"{name}/Adam": value + 100 for name, value in variables.items()}
    squares = {f"{name}/Adam_1": value + 200 for name, value in variables.items()}
    return variables | moments | squares | {"global_step": torch.tensor(9)}


def moment(optimizer: torch.optim.Optimizer, model: nn.Module, name: str, state: str = "exp_avg") -> torch.Tensor:
    found: torch.Tensor = optimizer.state[model.get_parameter(name)][state]
    return found


JOINED: dict[str, torch.Tensor] = {f"{name}/kernel": numbered(3, 4) + 50 * at for at, name in enumerate("qkv")}
RULE = tfckpt.KeyRule(("q/kernel", "k/kernel", "v/kernel"), "x.weight", "dense")


def test_slots_of_variables_that_a_rule_joins(tmp_path: Path) -> None:
    """Each part is transposed; the report names the slots of all parts; and save_model writes them back."""
    path = tfckpt.save_file(with_adam(JOINED), tmp_path / "m")
    model = One(nn.Linear(3, 12, bias=False))
    optimizer = adam(model)
    report = load_model(model, path, mapper=[RULE], optimizer=optimizer)
    expected = torch.cat([value.t() for value in JOINED.values()])
    assert torch.equal(moment(optimizer, model, "x.weight"), expected + 100)
    assert torch.equal(moment(optimizer, model, "x.weight", "exp_avg_sq"), expected + 200)
    assert report.slots["x.weight"]["exp_avg"] == "q/kernel/Adam + k/kernel/Adam + v/kernel/Adam"
    back = save_model(model, tmp_path / "back", mapper=[RULE], optimizer=optimizer)
    stored = tfckpt.load_file(back)
    assert all(torch.equal(stored[name], value) for name, value in with_adam(JOINED).items())
    assert stored.keys() - with_adam(JOINED).keys() == {"beta1_power", "beta2_power"}


def test_a_part_without_slots(tmp_path: Path) -> None:
    """The state of the joined parameter is missing as a whole."""
    stored = with_adam(JOINED)
    del stored["k/kernel/Adam"], stored["k/kernel/Adam_1"]
    path = tfckpt.save_file(stored, tmp_path / "m")
    model = One(nn.Linear(3, 12, bias=False))
    with pytest.raises(NotFoundError, match=r'Missing optimizer state of: "x\.weight"'):
        load_model(model, path, mapper=[RULE], optimizer=adam(model))
    optimizer = adam(model)
    assert load_model(model, path, mapper=[RULE], optimizer=optimizer, strict=False).missing_slots == ["x.weight"]
    assert not optimizer.state


def test_slots_of_a_variable_that_a_rule_splits(tmp_path: Path) -> None:
    """Each parameter gets its range, in memory of its own."""
    path = tfckpt.save_file(with_adam({"qkv/kernel": numbered(3, 6)}), tmp_path / "m")
    model = nn.ModuleDict({name: nn.Linear(3, 2, bias=False) for name in "abc"})
    rule = tfckpt.KeyRule("qkv/kernel", ("a.weight", "b.weight", "c.weight"), "dense")
    optimizer = adam(model)
    load_model(model, path, mapper=[rule], optimizer=optimizer)
    parts = (numbered(3, 6).t() + 100).chunk(3)
    for name, part in zip("abc", parts, strict=True):
        found = moment(optimizer, model, f"{name}.weight")
        assert torch.equal(found, part) and found.untyped_storage().nbytes() == found.nbytes
    stored = tfckpt.load_file(save_model(model, tmp_path / "back", mapper=[rule], optimizer=optimizer))
    assert torch.equal(stored["qkv/kernel/Adam"], numbered(3, 6) + 100)


def test_partitions_stored_as_variables(tmp_path: Path) -> None:
    """An embedding in three parts of different lengths, in the order of their numbers."""
    parts = {f"emb/part_{number}": numbered(size, 3) + 30 * number for number, size in enumerate((4, 3, 3))}
    path = tfckpt.save_file(with_adam(parts), tmp_path / "m")
    model = One(nn.Embedding(10, 3))
    optimizer = adam(model)
    load_model(model, path, mapper=[tfckpt.KeyRule((r"emb/part_\d+",), "x.weight", "same")], optimizer=optimizer)
    assert torch.equal(moment(optimizer, model, "x.weight"), torch.cat(list(parts.values())) + 100)


@pytest.mark.parametrize("frozen", [True, False])
def test_slots_of_an_lstm_cell(tmp_path: Path, frozen: bool) -> None:
    """Gates are reordered; forget_bias is not added to slots; the second bias, if it is trained, is a finding."""
    size = 5
    variables = {"x/kernel": numbered(3 + size, 4 * size), "x/bias": numbered(4 * size)}
    model = One(nn.LSTM(3, size))
    model.get_parameter("x.bias_hh_l0").requires_grad_(not frozen)
    optimizer = adam(model)
    report = load_model(model, tfckpt.save_file(with_adam(variables), tmp_path / "m"), optimizer=optimizer)
    enter, new, forget, leave = (numbered(4 * size) + 100).chunk(4)
    assert torch.equal(moment(optimizer, model, "x.bias_ih_l0"), torch.cat([enter, forget, new, leave]))
    enter, new, forget, leave = (numbered(3 + size, 4 * size) + 200)[3:].t().chunk(4)
    expected = torch.cat([enter, forget, new, leave])
    assert torch.equal(moment(optimizer, model, "x.weight_hh_l0", "exp_avg_sq"), expected)
    findings = [finding for finding in report.semantics if finding.name == "trained_constants"]
    assert len(findings) == (0 if frozen else 1)
    assert frozen or "would change twice as fast" in findings[0].message


def test_a_constant_added_by_a_rule(tmp_path: Path) -> None:
    """It is not added to slots, nor subtracted from them."""
    path = tfckpt.save_file(with_adam({"gate/bias": numbered(4)}), tmp_path / "m")
    model = One(nn.Linear(1, 4))
    mapper = [tfckpt.KeyRule("gate/bias", "x.bias", add=1.0)]
    optimizer = torch.optim.Adam([model.get_parameter("x.bias")])
    load_model(model, path, mapper=mapper, strict=False, optimizer=optimizer)
    assert torch.equal(moment(optimizer, model, "x.bias"), numbered(4) + 100)
    back = save_model(model, tmp_path / "back", naming="tf", mapper=mapper, optimizer=optimizer)
    stored = tfckpt.load_file(back)
    assert torch.equal(stored["gate/bias/Adam"], numbered(4) + 100) and "x/kernel/Adam" not in stored


@pytest.mark.parametrize(
    ("functions", "moves"),
    [
        ((torch.t, torch.t), True),
        ((lambda value: value.t().flip(0), lambda value: value.flip(0).t()), True),
        ((lambda value: -value.t(), lambda value: -value.t()), False),
        ((lambda value: value.t() / value.numel(), lambda value: value.t() * value.numel()), False),
    ],
    ids=["transposed", "flipped", "negated", "scaled"],
)
def test_functions_as_layouts(
    tmp_path: Path, functions: tuple[Callable[[torch.Tensor], torch.Tensor], ...], moves: bool
) -> None:
    """State is converted by functions that only move elements; others are refused, because slots may be squares."""
    path = tfckpt.save_file(with_adam({"k": numbered(3, 4)}), tmp_path / "m")
    model = One(nn.Linear(3, 4, bias=False))
    mapper = [tfckpt.KeyRule("k", "x.weight", (functions[0], functions[1]))]
    optimizer = adam(model)
    if moves:
        load_model(model, path, mapper=mapper, optimizer=optimizer)
        assert torch.equal(moment(optimizer, model, "x.weight"), functions[0](numbered(3, 4) + 100))
        return
    with pytest.raises(InvalidArgumentError, match=r'"k/Adam" cannot be converted: .* changes values'):
        load_model(model, path, mapper=mapper, optimizer=optimizer)


def test_a_normalization_without_gamma(tmp_path: Path) -> None:
    """It is filled with 1, and torch would train it: a finding says so, unless it is accepted or not trained."""
    variables = {"x/beta": numbered(3)}
    more = {"x/moving_mean": numbered(3), "x/moving_variance": numbered(3)}
    path = tfckpt.save_file(with_adam(variables) | more, tmp_path / "m")
    model = One(nn.BatchNorm1d(3, eps=1e-3, momentum=0.01))
    with pytest.raises(InvalidArgumentError, match=r'trained_constants: the optimizer trains "x\.weight"'):
        load_model(model, path, optimizer=adam(model), strict="semantics", accept=("running_var",))
    optimizer = adam(model)
    report = load_model(model, path, optimizer=optimizer, accept=("trained_constants",))
    assert report.missing_slots == [] and model.get_parameter("x.weight") not in optimizer.state
    model.get_parameter("x.weight").requires_grad_(False)
    assert "trained_constants" not in str(load_model(model, path, optimizer=adam(model)))


def test_what_save_model_cannot_store(tmp_path: Path) -> None:
    """Optimizers that TensorFlow 1 lacks, steps that differ, and torch's names."""
    model = One(nn.Linear(3, 2))
    both = list(model.parameters())
    for unknown in (torch.optim.NAdam(both), torch.optim.Rprop(both), torch.optim.Adam(both, amsgrad=True)):
        with pytest.raises(UnimplementedError, match=r"TensorFlow 1 has no .*Omit optimizer"):
            save_model(model, tmp_path / "m", naming="tf", optimizer=unknown)
    with pytest.raises(InvalidArgumentError, match='Pass naming="tf" or a mapper'):
        save_model(model, tmp_path / "m", optimizer=adam(model))
    with pytest.raises(InvalidArgumentError, match="none of the parameters of optimizer Adam"):
        save_model(model, tmp_path / "m", naming="tf", optimizer=adam(One(nn.Linear(3, 2))))
    uneven = adam(model)
    for used in (both, both[:1]):
        for parameter in used:
            parameter.grad = torch.ones_like(parameter)
        uneven.step()
        both[1].grad = None
    with pytest.raises(InvalidArgumentError, match=r"different numbers of steps \(1, 2\)"):
        save_model(model, tmp_path / "m", naming="tf", optimizer=uneven)
    assert list(tmp_path.iterdir()) == []
