"""What TensorFlow itself stores next to the weights is recognised, and its values arrive in torch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tensorflow_process import RawTensor, TensorFlowProcess
from torch import nn
from torch.optim.swa_utils import AveragedModel

import torch_tfckpt as tfckpt
from torch_tfckpt.models.auxiliary.averages import stored_averages
from torch_tfckpt.models.auxiliary.named_kinds import VariableKind
from torch_tfckpt.models.auxiliary.recognition import kinds
from torch_tfckpt.models.loading import load_model

NAMES = {"fc.weight": "fc/kernel", "fc.bias": "fc/bias", "bn.weight": "bn/gamma", "bn.bias": "bn/beta"}
STATISTICS = {"bn.running_mean": "bn/moving_mean", "bn.running_var": "bn/moving_variance"}


class Net(nn.Module):
    """The torch counterpart of tensorflow_slots._net."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.bn = nn.BatchNorm1d(3, eps=1e-3)


def tensor(raw: RawTensor, name: str = "") -> torch.Tensor:
    value = torch.from_numpy(np.frombuffer(raw.data, raw.dtype).reshape(raw.shape).copy())
    return value.t() if name == "fc.weight" else value


@pytest.mark.thinned(2)
@pytest.mark.parametrize("scope", ["", "train", "a/b"])
@pytest.mark.parametrize("name", ["Adam", "d_opt", "x", "LARSOptimizer", "my_optimizer_2"])
@pytest.mark.parametrize("kind", ["adam", "momentum", "rmsprop", "adagrad", "adadelta", "ftrl"])
def test_slots_of_any_optimizer(
    tensorflow: TensorFlowProcess, tmp_path: Path, kind: str, name: str, scope: str
) -> None:
    """All of them, and only they, are recognised with certainty, so that the module loads strictly."""
    _, added = tensorflow.call("tensorflow_slots.train", str(tmp_path / "m"), kind, name, scope)
    with tfckpt.load_checkpoint(tmp_path / "m") as reader:
        found = kinds(reader)
    assert {key for key, each in found.of.items() if each is VariableKind.OPTIMIZER} == set(added) and added
    assert found.uncertain == []
    report = load_model(Net(), tmp_path / "m")
    assert (report.missing, report.unexpected, report.remarks) == ([], [], [])


@pytest.mark.parametrize("scope", ["", "train"])
@pytest.mark.parametrize("name", ["Adam", "d_opt"])
def test_adam_under_another_name_is_loaded(
    tensorflow: TensorFlowProcess, tmp_path: Path, name: str, scope: str
) -> None:
    """Its powers tell that it is Adam; moments are transposed with their variables, and the steps are counted."""
    slots, _ = tensorflow.call("tensorflow_slots.train", str(tmp_path / "m"), "adam", name, scope, 7)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters())
    load_model(model, tmp_path / "m", optimizer=optimizer)
    for own, variable in NAMES.items():
        state = optimizer.state[model.get_parameter(own)]
        assert torch.equal(state["exp_avg"], tensor(slots[f"{variable}/m"], own)), own
        assert torch.equal(state["exp_avg_sq"], tensor(slots[f"{variable}/v"], own)), own
        assert state["step"] == 7


@pytest.mark.parametrize(("name", "scope"), [(None, ""), (None, "train"), ("ema", ""), ("my_average", "")])
def test_averages_of_all_variables(tensorflow: TensorFlowProcess, tmp_path: Path, name: str | None, scope: str) -> None:
    """Also of the statistics of a batch normalization, under any name and in a scope."""
    averages = tensorflow.call("tensorflow_slots.average", str(tmp_path / "m"), name, scope)
    model = Net()
    assert len(load_model(model, tmp_path / "m", ema="only").averaged) == 6
    for own, variable in (NAMES | STATISTICS).items():
        assert torch.equal(model.state_dict()[own], tensor(averages[variable], own)), own


def test_averages_without_bias(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """The variables "biased" and "local_step" of an average are not unexpected."""
    tensorflow.call("tensorflow_slots.average", str(tmp_path / "m"), None, "", True)
    assert load_model(Net(), tmp_path / "m", ema="prefer").unexpected == []
    added = tensorflow.call("tensorflow_slots.debias", str(tmp_path / "n"))
    assert len(added) == 2 and load_model(Net(), tmp_path / "n").ignored == added


@pytest.mark.parametrize("scaled", [False, True])
def test_averages_of_keras(tensorflow: TensorFlowProcess, tmp_path: Path, scaled: bool) -> None:
    """They belong to the variables at the same positions in the optimizer's list."""
    averages = tensorflow.call("tensorflow_slots.keras_averages", str(tmp_path / "m"), scaled=scaled)
    model = Net()
    report = load_model(model, tmp_path / "m", ema="prefer", prefix="net")
    assert len(report.averaged) == 4 and report.unexpected == []
    for own, variable in NAMES.items():
        assert torch.equal(model.state_dict()[own], tensor(averages[variable], own)), own
    with tfckpt.load_checkpoint(tmp_path / "m") as reader:
        found = kinds(reader).of
        assert {key for key, each in found.items() if each is VariableKind.AVERAGE} == stored_averages(reader).keys
        assert sum(each is VariableKind.WEIGHT for each in found.values()) == 6


def test_averages_of_keras_in_an_averaged_model(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """n_averaged becomes the number of steps, and the next update averages instead of replacing the values."""
    averages = tensorflow.call("tensorflow_slots.keras_averages", str(tmp_path / "m"))
    net = Net()
    model = AveragedModel(net, avg_fn=lambda averaged, own, _: 0.5 * averaged + 0.5 * own)
    report = load_model(model, tmp_path / "m", ema="prefer", prefix="net")
    assert model.n_averaged == 3 and any("n_averaged" in remark for remark in report.remarks)
    model.update_parameters(net)
    expected = 0.5 * tensor(averages["fc/kernel"], "fc.weight") + 0.5 * net.fc.weight
    torch.testing.assert_close(model.module.get_parameter("fc.weight"), expected)
