"""Settings of real Keras models compared with modules: differences are findings, correct modules have none.

The function after a layer is compared where it is certain which one follows; strides, dilation, and the functions of
recurrent layers always.
"""

import importlib.util
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from golden_files import KERAS_FILES
from tensorflow_process import TensorFlowProcess
from torch import nn
from torch.nn import functional

import torch_tfckpt as tfckpt

Layers = Sequence[tuple[str, dict[str, Any]]]
Function = Callable[[torch.Tensor], torch.Tensor]

with_keras_2 = pytest.mark.skipif(importlib.util.find_spec("tf_keras") is None, reason="tf_keras is not installed")


class Net(nn.Module):
    """Two Linear layers with a function in between."""

    def __init__(self, function: Function | nn.Module) -> None:
        super().__init__()
        self.fc1, self.fc2, self.function = nn.Linear(6, 5), nn.Linear(5, 3), function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.fc2(self.function(self.fc1(x)))
        return result


def _dense(**settings: Any) -> Layers:
    return [("Dense", {"units": 5, "name": "fc1", **settings}), ("Dense", {"units": 3, "name": "fc2"})]


def _with(kind: str, **settings: Any) -> Layers:
    first, last = _dense()
    return [first, (kind, settings), last]


def _findings(module: nn.Module, path: Path) -> list[tfckpt.SemanticFinding]:
    return tfckpt.load_model(module, path).semantics


TANH_GELU: Final = nn.GELU("tanh")
SAME: Final[dict[str, tuple[Layers, Function | nn.Module]]] = {
    "relu": (_dense(activation="relu"), functional.relu),
    "gelu": (_dense(activation="gelu"), nn.GELU()),
    "gelu layer": (_with("Activation", activation="gelu"), functional.gelu),
    "silu": (_dense(activation="swish"), nn.SiLU()),
    "silu by hand": (_dense(activation="silu"), lambda x: x * torch.sigmoid(x)),
    "leaky": (_with("LeakyReLU", negative_slope=0.2), nn.LeakyReLU(0.2)),
    "leaky function": (_dense(activation="leaky_relu"), lambda x: functional.leaky_relu(x, 0.2)),
    "elu": (_with("ELU", alpha=0.5), nn.ELU(0.5)),
    "relu6": (_with("ReLU", max_value=6.0), nn.ReLU6()),
    "hard_sigmoid": (_dense(activation="hard_sigmoid"), nn.Hardsigmoid()),
    "dropout between": (_dense(activation="tanh"), lambda x: functional.dropout(x, 0.5).tanh()),
    "function of the program": (_dense(activation="custom"), functional.relu),
    "softmax left out": (_dense(activation="softmax"), nn.Identity()),
    "after a reshape": (_with("Activation", activation="selu"), lambda x: functional.selu(x.reshape(4, 5))),
}
DIFFERENT: Final[dict[str, tuple[Layers, Function | nn.Module, str]]] = {
    "relu, gelu": (_dense(activation="relu"), nn.GELU(), "gelu (the exact form) after"),
    "gelu, tanh form": (_dense(activation="gelu"), TANH_GELU, "gelu (the tanh form) after"),
    "slope": (_with("LeakyReLU", negative_slope=0.3), functional.leaky_relu, "leaky_relu with slope 0.01 after"),
    "alpha": (_with("ELU", alpha=0.5), nn.ELU(), "elu with alpha 1 after"),
    "missing": (_dense(activation="relu"), nn.Dropout(0.1), "no activation after"),
    "missing layer": (_with("ReLU"), nn.Identity(), "no activation after"),
    "more": (_dense(), torch.tanh, "tanh after"),
    "relu6": (_with("ReLU", max_value=6.0), nn.ReLU(), "relu after"),
}


@pytest.mark.parametrize("case", SAME)
def test_the_same_function_is_no_finding(tensorflow: TensorFlowProcess, tmp_path: Path, case: str) -> None:
    """Also if one of both functions is not known."""
    layers, function = SAME[case]
    tensorflow.call("tensorflow_keras_settings.write", str(tmp_path / "m.keras"), (6,), layers)
    assert _findings(Net(function), tmp_path / "m.keras") == []


@pytest.mark.parametrize("case", DIFFERENT)
def test_another_function_is_a_finding(tensorflow: TensorFlowProcess, tmp_path: Path, case: str) -> None:
    """With both functions in the message."""
    layers, function, message = DIFFERENT[case]
    tensorflow.call("tensorflow_keras_settings.write", str(tmp_path / "m.keras"), (6,), layers)
    [finding] = _findings(Net(function), tmp_path / "m.keras")
    assert (finding.name, finding.modules) == ("activation", ("fc1",))
    assert finding.message.startswith(message)
    with pytest.raises(tfckpt.InvalidArgumentError, match="activation"):
        tfckpt.load_model(Net(function), tmp_path / "m.keras", strict="semantics")
    tfckpt.load_model(Net(function), tmp_path / "m.keras", strict="semantics", accept=["activation"])


class Branches(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc1(x)
        result: torch.Tensor = self.fc2(x + x.relu())
        return result


class Fails(Net):
    """A forward method that cannot be traced: it uses a value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.fc1(x)
        gate = torch.sigmoid(hidden)
        if float(gate.sum()) < 0:
            raise ValueError
        result: torch.Tensor = self.fc2(hidden * gate)
        return result


def test_several_uses_are_not_compared(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """It is not certain then which function follows."""
    path = tmp_path / "m.keras"
    tensorflow.call("tensorflow_keras_settings.write_branches", str(path))
    assert _findings(Branches(nn.Identity()), path) == []
    tensorflow.call("tensorflow_keras_settings.write", str(path), (6,), _dense(activation="silu"))
    assert _findings(Fails(nn.Identity()), path) == []


def _conv(**settings: Any) -> Layers:
    return [
        ("Conv2D", {"filters": 4, "kernel_size": 3, "name": "conv", **settings}),
        ("BatchNormalization", {"name": "norm"}),
        ("Activation", {"activation": "relu"}),
    ]


def _convolution(function: nn.Module, **settings: Any) -> nn.Module:
    parts = {"conv": nn.Conv2d(2, 4, 3, **settings), "norm": nn.BatchNorm2d(4, eps=1e-3), "act": function}
    return nn.Sequential(OrderedDict(parts))


def test_strides_and_functions_of_convolutions(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """A norm between the convolution and the activation is part of both models."""
    path = tmp_path / "m.keras"
    tensorflow.call("tensorflow_keras_settings.write", str(path), (9, 9, 2), _conv(strides=[2, 1]))
    assert _findings(_convolution(nn.ReLU(), stride=(2, 1)), path) == []
    [stride, function] = _findings(_convolution(nn.ReLU6(), stride=2), path)
    assert (stride.name, stride.modules, function.name, function.modules) == (
        "strides",
        ("conv",),
        "activation",
        ("norm",),
    )
    assert "Set stride=(2, 1)" in stride.message
    tensorflow.call("tensorflow_keras_settings.write", str(path), (9, 9, 2), _conv(dilation_rate=2))
    assert _findings(_convolution(nn.ReLU(), dilation=2), path) == []
    [dilation] = _findings(_convolution(nn.ReLU()), path)
    assert "dilation=(1, 1)" in dilation.message


class Flat(nn.Module):
    """A Linear after a flattened map of 2 x 2 positions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 4, 3), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.fc(self.conv(x).flatten(1))
        return result


@pytest.mark.parametrize(
    ("conv", "between", "layout"),
    [
        ({}, [("Flatten", {})], "dense_after_flatten"),
        ({}, [("Dropout", {"rate": 0.1}), ("Flatten", {}), ("Dropout", {"rate": 0.1})], "dense_after_flatten"),
        ({"data_format": "channels_first"}, [("Flatten", {})], "dense"),
        ({"data_format": "channels_first"}, [("Flatten", {"data_format": "channels_first"})], "dense_after_flatten"),
    ],
    ids=["flatten", "dropout", "channels first", "moved"],
)
def test_orders_of_flattened_maps(
    tensorflow: TensorFlowProcess, tmp_path: Path, conv: dict[str, Any], between: Layers, layout: str
) -> None:
    """The configuration has the axis of the channels. Flatten moves them to the end if it knows that they are first."""
    path = tmp_path / "m.keras"
    first = ("Conv2D", {"filters": 4, "kernel_size": 3, "name": "conv", **conv})
    shape = (2, 4, 4) if conv else (4, 4, 2)
    layers = [first, *between, ("Dense", {"units": 3, "name": "fc"})]
    tensorflow.call("tensorflow_keras_settings.write", str(path), shape, layers)
    found = [finding.name for finding in _findings(Flat(), path)]
    assert found == (["dense_after_flatten"] if layout == "dense_after_flatten" else [])
    report = tfckpt.load_model(Flat(), path, mapper=tfckpt.KeyMapper.infer(path, Flat()), strict="semantics")
    assert {each.name: each.layout for each in report.converted}["fc.weight"] == layout


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.memory = layer


@pytest.mark.parametrize(
    ("kind", "settings", "layer", "message"),
    [
        ("LSTM", {}, nn.LSTM(3, 4), ""),
        ("LSTM", {"activation": "relu"}, nn.LSTM(3, 4), "activation=relu in the layer of Keras"),
        ("LSTM", {"recurrent_activation": "hard_sigmoid"}, nn.LSTM(3, 4), "recurrent_activation=hard_sigmoid"),
        ("LSTM", {"activation": "custom"}, nn.LSTM(3, 4), "activation=custom"),
        ("GRU", {}, nn.GRU(3, 4), ""),
        ("GRU", {"use_bias": False}, nn.GRU(3, 4, bias=False), ""),
        ("GRU", {"activation": "softsign"}, nn.GRU(3, 4), "activation=softsign"),
        ("SimpleRNN", {}, nn.RNN(3, 4), ""),
        ("SimpleRNN", {"activation": "relu"}, nn.RNN(3, 4), 'Set nonlinearity="relu"'),
        ("SimpleRNN", {"activation": "relu"}, nn.RNN(3, 4, nonlinearity="relu"), ""),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_functions_of_recurrent_layers(
    tensorflow: TensorFlowProcess, tmp_path: Path, kind: str, settings: dict[str, Any], layer: nn.Module, message: str
) -> None:
    """torch's LSTM and GRU have tanh and sigmoid only."""
    path = tmp_path / "m.keras"
    tensorflow.call(
        "tensorflow_keras_settings.write", str(path), (5, 3), [(kind, {"units": 4, "name": "memory", **settings})]
    )
    found = _findings(Recurrent(layer), path)
    assert [finding.name for finding in found] == (["activation"] if message else [])
    assert all(message in finding.message for finding in found)


@with_keras_2
def test_keras_2(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """Its hard_sigmoid is another function, and "gelu" may be one of the program."""
    path = tmp_path / "m.h5"

    def written(layers: Layers, *shape: int) -> Path:
        tensorflow.call("tensorflow_keras_settings.write", str(path), shape, layers, old=True)
        return path

    assert _findings(Net(nn.ReLU()), written(_dense(activation="relu"), 6)) == []
    [finding] = _findings(Net(nn.Tanh()), path)
    assert finding.name == "activation"
    [finding] = _findings(Net(nn.Hardsigmoid()), written(_dense(activation="hard_sigmoid"), 6))
    assert finding.name == "activation" and "clip(0.2 * x + 0.5, 0, 1)" in finding.message
    assert _findings(Net(TANH_GELU), written(_dense(activation="gelu"), 6)) == []
    memory = [("LSTM", {"units": 4, "name": "memory", "recurrent_activation": "hard_sigmoid"})]
    [finding] = _findings(Recurrent(nn.LSTM(3, 4)), written(memory, 5, 3))
    assert "recurrent_activation=hard_sigmoid" in finding.message


def test_forward_runs_once() -> None:
    """All findings are from one symbolic run of the forward method."""
    runs: list[object] = []

    class Digits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm = nn.Conv2d(1, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4, eps=1e-5)
            self.head = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            runs.append(x)
            x = functional.relu(self.norm(self.stem(functional.pad(x, (0, 1, 0, 1)))))
            result: torch.Tensor = self.head(x.mean((2, 3)))
            return result

    assert _findings(Digits(), KERAS_FILES / "cnn.keras") == []
    assert len(runs) == 1
