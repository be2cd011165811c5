"""The state of TensorFlow's optimizers in torch's, transposed like their variables."""

import logging
from pathlib import Path

import pytest
import torch
from model_files import Small, bits, numbered, save_objects, small_in_tensorflow
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.errors import InvalidArgumentError, NotFoundError, UnimplementedError
from torch_tfckpt.models.loading import load_model

TRAINED = ["conv/kernel", "conv/bias", "bn/gamma", "bn/beta", "emb/embeddings", "fc/kernel", "fc/bias"]


def slots(*suffixes: str) -> dict[str, torch.Tensor]:
    """Slots of each trained variable, one for each suffix, all with different values."""
    stored = small_in_tensorflow()
    return {f"{name}{suffix}": stored[name] + 100 * (n + 1) for name in TRAINED for n, suffix in enumerate(suffixes)}


def state_of(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = optimizer.state[parameter]
    return state


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_adam_by_names(tmp_path: Path, kind: type[torch.optim.Adam]) -> None:
    """Slots are <v>/Adam and <v>/Adam_1, the step is global_step, and training continues from there."""
    stored = small_in_tensorflow() | slots("/Adam", "/Adam_1") | {"global_step": torch.tensor(1234)}
    tfckpt.save_file(stored | {"beta2_power": torch.tensor(0.5)}, tmp_path / "m")
    model = Small()
    optimizer = kind(model.parameters(), lr=0.25)
    report = load_model(model, tmp_path / "m", optimizer=optimizer)
    state = state_of(optimizer, model.conv.weight)
    assert torch.equal(state["exp_avg"], stored["conv/kernel/Adam"].permute(3, 2, 0, 1))
    assert torch.equal(state["exp_avg_sq"], stored["conv/kernel/Adam_1"].permute(3, 2, 0, 1))
    assert torch.equal(state_of(optimizer, model.fc.weight)["exp_avg"], stored["fc/kernel/Adam"].t())
    assert all(each["step"] == 1234 for each in optimizer.state.values()) and len(optimizer.state) == 7
    assert len({id(each["step"]) for each in optimizer.state.values()}) == 7
    assert report.slots["fc.bias"] == {"exp_avg": "fc/bias/Adam", "exp_avg_sq": "fc/bias/Adam_1"}
    assert optimizer.param_groups[0]["lr"] == 0.25 and "optimizer state of 7 parameters" in str(report)
    model.fc(torch.ones(3)).sum().backward()
    optimizer.step()
    assert state_of(optimizer, model.fc.weight)["step"] == 1235


@pytest.mark.parametrize("steps", [0, 1, 10, 828, 20_000])
def test_the_step_from_beta2_power(tmp_path: Path, steps: int, caplog: pytest.LogCaptureFixture) -> None:
    """The power starts at beta2 and is multiplied at each step, in float32; its use is logged as a warning."""
    power, beta2 = torch.tensor(0.999), torch.tensor(0.999)
    for _ in range(steps):
        power *= beta2
    tfckpt.save_file(small_in_tensorflow() | slots("/Adam", "/Adam_1") | {"beta2_power": power}, tmp_path / "m")
    model = Small()
    optimizer = torch.optim.Adam(model.parameters())
    with caplog.at_level(logging.WARNING):
        load_model(model, tmp_path / "m", optimizer=optimizer)
    assert state_of(optimizer, model.fc.weight)["step"] == steps
    assert "computed from beta2_power" in caplog.text


@pytest.mark.parametrize("power", [None, *map(torch.tensor, (-1.0, 1.0, torch.nan))], ids=str)
def test_no_step_to_be_known(tmp_path: Path, power: torch.Tensor | None) -> None:
    """No power is stored, or none of a beta. Then nothing is loaded."""
    more = {} if power is None else {"beta2_power": power}
    tfckpt.save_file(small_in_tensorflow() | slots("/Adam", "/Adam_1") | more, tmp_path / "m")
    model = Small()
    before = bits(model)
    with pytest.raises(NotFoundError, match="so the optimizer's number of steps is unknown"):
        load_model(model, tmp_path / "m", optimizer=torch.optim.Adam(model.parameters()))
    assert bits(model) == before


def test_many_steps_from_beta2_power(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It has become zero: Adam's corrections no longer have an effect, as after 100,000 steps. A warning is logged."""
    stored = small_in_tensorflow() | slots("/Adam", "/Adam_1") | {"beta2_power": torch.tensor(0.0)}
    tfckpt.save_file(stored, tmp_path / "m")
    model = Small()
    optimizer = torch.optim.Adam(model.parameters())
    with caplog.at_level(logging.WARNING):
        load_model(model, tmp_path / "m", optimizer=optimizer)
    assert state_of(optimizer, model.fc.weight)["step"] == 100_000
    assert "step 100000 is computed from beta2_power" in caplog.text


def test_momentum_and_adagrad_by_names(tmp_path: Path) -> None:
    """They are copied, and transposed like their variables."""
    more = slots("/Momentum", "/Adagrad") | {"global_step": torch.tensor(9)}
    tfckpt.save_file(small_in_tensorflow() | more, tmp_path / "m")
    model = Small()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    load_model(model, tmp_path / "m", optimizer=sgd)
    state = state_of(sgd, model.fc.weight)
    assert list(state) == ["momentum_buffer"] and torch.equal(state["momentum_buffer"], more["fc/kernel/Momentum"].t())
    adagrad = torch.optim.Adagrad(model.parameters())
    load_model(model, tmp_path / "m", optimizer=adagrad)
    state = state_of(adagrad, model.fc.weight)
    assert torch.equal(state["sum"], more["fc/kernel/Adagrad"].t()) and state["step"] == 9
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    assert load_model(model, tmp_path / "m", optimizer=plain).slots == {} and not plain.state


def test_slot_variables_of_an_object_graph(tmp_path: Path) -> None:
    """By the graph and not by names; the step is the optimizer's iter."""
    variables = {f"model/{name}": value for name, value in small_in_tensorflow().items()}
    counters = {"optimizer/iter": torch.tensor(77), "optimizer/learning_rate": torch.tensor(0.1)}
    moments = {
        ("optimizer", f"model/{name}", slot): small_in_tensorflow()[name] + number
        for name in TRAINED for number, slot in enumerate("mv", 1)
    }  # fmt: skip
    save_objects(tmp_path / "m", variables | counters, slots=moments)
    model = Small()
    optimizer = torch.optim.Adam(model.parameters())
    report = load_model(model, tmp_path / "m", optimizer=optimizer)
    state = state_of(optimizer, model.fc.weight)
    assert state["step"] == 77 and torch.equal(state["exp_avg"], moments["optimizer", "model/fc/kernel", "m"].t())
    slot = "model/fc/bias/.OPTIMIZER_SLOT/optimizer/v/.ATTRIBUTES/VARIABLE_VALUE"
    assert report.slots["fc.bias"]["exp_avg_sq"] == slot and slot in report.ignored
    assert load_model(Small(), tmp_path / "m").unexpected == []


def test_what_an_object_graph_cannot_give(tmp_path: Path) -> None:
    """Slots of two optimizers are ambiguous; one that has other slots, too, is of another kind."""
    fc = {"fc/kernel": numbered(3, 2), "fc/bias": numbered(2)}
    model = nn.ModuleDict({"fc": nn.Linear(3, 2)})
    counters = {f"{name}/iter": torch.tensor(1) for name in ("a", "b")}
    both = {(name, "fc/kernel", slot): numbered(3, 2) for name in ("a", "b") for slot in ("m", "v", "momentum")}
    save_objects(tmp_path / "two", fc | counters, slots=both)
    with pytest.raises(InvalidArgumentError, match=r'a slot "m" in each of \(root\)\.a and \(root\)\.b'):
        load_model(model, tmp_path / "two", optimizer=torch.optim.Adam(model.parameters()))
    save_objects(tmp_path / "one", fc | counters, slots={k: v for k, v in both.items() if k[0] == "a"})
    with pytest.raises(
        UnimplementedError,
        match=r'\(root\)\.a has "m", "v", which SGD '
        r"does "
        r"not "
        r"have: "
        r"it "
        r"is "
        r"a "
        r"different "
        r"kind "
        r"of "
        r"opt",
    ):
        load_model(model, tmp_path / "one", optimizer=torch.optim.SGD(model.parameters(), momentum=0.5))
    split = {("a", "fc/kernel", slot): numbered(3, 2) for slot in "mv"}
    split |= {("b", "fc/bias", slot): numbered(2) for slot in "mv"}
    save_objects(tmp_path / "split", fc | counters, slots=split)
    with pytest.raises(
        InvalidArgumentError, match=r"the slots belong to several optimizers: \(root\)\.a and \(root\)\.b"
    ):
        load_model(model, tmp_path / "split", optimizer=torch.optim.Adam(model.parameters()))


def test_missing_slots_are_reported(tmp_path: Path) -> None:
    """Strictly they are an error, and else in the report; state that the optimizer had stays."""
    more = slots("/Adam", "/Adam_1") | {"global_step": torch.tensor(3)}
    del more["fc/bias/Adam_1"]
    tfckpt.save_file(small_in_tensorflow() | more, tmp_path / "m")
    model = Small()
    optimizer = torch.optim.Adam(model.parameters())
    model.fc(torch.ones(3)).sum().backward()
    optimizer.step()
    had = {name: value.clone() for name, value in state_of(optimizer, model.fc.bias).items()}
    with pytest.raises(NotFoundError, match=r'Missing optimizer state of: "fc\.bias"'):
        load_model(model, tmp_path / "m", optimizer=optimizer)
    report = load_model(model, tmp_path / "m", optimizer=optimizer, strict=False)
    assert report.missing_slots == ["fc.bias"]
    assert all(torch.equal(value, had[name]) for name, value in state_of(optimizer, model.fc.bias).items())
    assert state_of(optimizer, model.fc.weight)["step"] == 3


def test_a_slot_of_another_shape(tmp_path: Path) -> None:
    """Nothing is loaded."""
    more = slots("/Momentum") | {"fc/bias/Momentum": torch.zeros(3)}
    tfckpt.save_file(small_in_tensorflow() | more, tmp_path / "m")
    model = Small()
    with pytest.raises(
        InvalidArgumentError, match=r'slot "fc/bias/Momentum" of shape \[3\] does not fit its variable of shape \[8\]'
    ):
        load_model(model, tmp_path / "m", optimizer=torch.optim.SGD(model.parameters(), momentum=0.5))


def test_other_optimizers_are_refused(tmp_path: Path) -> None:
    """By their names; and before anything is changed."""
    tfckpt.save_file(small_in_tensorflow() | {"global_step": torch.tensor(3)}, tmp_path / "m")
    model = Small()
    before = bits(model)
    with pytest.raises(UnimplementedError, match="optimizer Rprop: only the state of Adam, AdamW, SGD, RMSprop, "):
        load_model(model, tmp_path / "m", optimizer=torch.optim.Rprop(model.parameters()))
    assert bits(model) == before


def test_slots_of_averaged_variables(tmp_path: Path) -> None:
    """A variable's slots are loaded even if its average replaces it; parameters of other modules get no state."""
    averages = {f"{name}/ExponentialMovingAverage": value + 1 for name, value in small_in_tensorflow().items()}
    more = slots("/Momentum")
    tfckpt.save_file(small_in_tensorflow() | averages | more, tmp_path / "m")
    model, other = Small(), nn.Linear(2, 2)
    groups = [{"params": list(other.parameters())}, {"params": list(model.parameters())}]
    sgd = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    load_model(model, tmp_path / "m", ema="only", optimizer=sgd)
    assert torch.equal(state_of(sgd, model.bn.bias)["momentum_buffer"], more["bn/beta/Momentum"])
    assert len(sgd.state) == 7


def test_slots_of_variables_stored_by_their_outputs(tmp_path: Path) -> None:
    """ "v:0" has "v/Adam:0", and the counter may have such a name."""
    stored = small_in_tensorflow() | slots("/Adam", "/Adam_1") | {"global_step": torch.tensor(5)}
    tfckpt.save_file({f"{name}:0": value for name, value in stored.items()}, tmp_path / "m")
    model = Small()
    optimizer = torch.optim.Adam(model.parameters())
    report = load_model(model, tmp_path / "m", optimizer=optimizer)
    assert report.slots["fc.bias"] == {"exp_avg": "fc/bias/Adam:0", "exp_avg_sq": "fc/bias/Adam_1:0"}
    assert state_of(optimizer, model.fc.weight)["step"] == 5 and "fc/bias/Adam:0" in report.ignored


def test_averages_alone_have_slots(tmp_path: Path) -> None:
    """Those of the variables that they are averages of."""
    stored = {f"{name}/ExponentialMovingAverage": value for name, value in small_in_tensorflow().items()}
    tfckpt.save_file(stored | slots("/Adam", "/Adam_1") | {"global_step": torch.tensor(5)}, tmp_path / "m")
    model = Small()
    report = load_model(model, tmp_path / "m", ema="prefer", optimizer=torch.optim.Adam(model.parameters()))
    assert report.unexpected == [] and report.slots["fc.bias"]["exp_avg"] == "fc/bias/Adam"


def test_the_optimizer_of_another_model(tmp_path: Path) -> None:
    """It is told, rather than left as it is."""
    with pytest.raises(
        InvalidArgumentError, match=r"none of the parameters of optimizer Adam .* from model.parameters"
    ):
        load_model(Small(), tmp_path / "m", optimizer=torch.optim.Adam(Small().parameters()))


def test_an_optimizer_that_refuses_changes_nothing(tmp_path: Path) -> None:
    """Neither the optimizer nor the model is changed."""
    stored = small_in_tensorflow() | slots("/Adam", "/Adam_1") | {"global_step": torch.tensor(5)}
    tfckpt.save_file(stored, tmp_path / "m")
    model = Small()
    optimizer = torch.optim.Adam(model.parameters())

    def refuse(*_: object) -> None:
        raise RuntimeError("not now")

    optimizer.register_load_state_dict_pre_hook(refuse)
    before = bits(model)
    with pytest.raises(RuntimeError, match="not now"):
        load_model(model, tmp_path / "m", optimizer=optimizer)
    assert bits(model) == before and not optimizer.state
