"""load_model from Keras's own files: settings are compared, training goes on, and Keras's torch backend takes them."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pytest
import torch
from golden_files import KERAS_FILES
from hdf5_files import h5py
from tensorflow_process import RawTensor, TensorFlowProcess
from torch import nn

import torch_tfckpt as tfckpt

CNN = KERAS_FILES / "cnn.keras"
with_keras_2 = pytest.mark.skipif(importlib.util.find_spec("tf_keras") is None, reason="tf_keras is not installed")


class Digits(nn.Module):
    """The CNN of docs/keras.md."""

    def __init__(self, epsilon: float = 1e-5, padding: int = 0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, stride=2, bias=False, padding=padding)
        self.norm = nn.BatchNorm2d(4, eps=epsilon)
        self.head = nn.Linear(4, 3)


def test_settings_that_agree_are_no_finding() -> None:
    assert tfckpt.load_model(Digits(), CNN, strict="semantics").semantics == []


def test_another_epsilon_is_a_finding_with_both_values() -> None:
    """Also one that is not torch's default."""
    [finding] = tfckpt.load_model(Digits(epsilon=1e-3), CNN).semantics
    assert (finding.name, finding.modules) == ("batch_norm_epsilon", ("norm",))
    assert "eps=0.001" in finding.message and "epsilon=1e-05" in finding.message


def test_padding_with_a_stride_is_still_a_finding() -> None:
    """The layer has padding="same", which pads the end only."""
    [finding] = tfckpt.load_model(Digits(padding=1), CNN).semantics
    assert finding.name == "same_padding_stride"


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.dense(x).tanh()
        return result


class Net(nn.Module):
    """The model that `tensorflow_keras_training.train` trains."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.tower, self.fc2 = nn.Linear(6, 5), Tower(), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.fc2(self.tower(self.fc1(x).tanh()))
        return result


def _array(raw: RawTensor) -> npt.NDArray[np.float32]:
    return np.frombuffer(raw.data, np.float32).reshape(raw.shape)


OPTIMIZERS: Final[dict[str, Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]]] = {
    "adam": lambda parameters: torch.optim.Adam(parameters, eps=1e-7),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, eps=1e-7, weight_decay=0.02),
    "momentum": lambda parameters: torch.optim.SGD(parameters, momentum=0.5),
    "nesterov": lambda parameters: torch.optim.SGD(parameters, momentum=0.5, nesterov=True),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, eps=1e-7),
}
OF_KERAS_2: Final = (*OPTIMIZERS, "legacy_adam", "legacy_momentum")


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        *((form, kind) for kind in OPTIMIZERS for form in ("m.keras", "m.h5")),
        *(pytest.param("old.h5", kind, marks=with_keras_2) for kind in OF_KERAS_2),
        *(pytest.param("old.keras", kind, marks=with_keras_2) for kind in OPTIMIZERS),
    ],
)
def test_the_optimizer_of_a_keras_file_goes_on(
    tensorflow: TensorFlowProcess, tmp_path: Path, form: str, kind: str
) -> None:
    """With the learning rate and betas that the file or its configuration has; old.* is from tf_keras.

    Parameters are found by the names of the layers of the model, and of the model inside it.
    """
    path = tmp_path / form
    inputs, wanted, weights = tensorflow.call("tensorflow_keras_training.train", str(path), kind, 20)
    model = Net()
    optimizer = OPTIMIZERS[kind.removeprefix("legacy_")](model.parameters())

    report = tfckpt.load_model(model, path, optimizer=optimizer)

    assert (report.missing_slots, report.semantics) == ([], [])
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(torch.tensor(_array(inputs))), torch.tensor(_array(wanted))).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    layers = (model.fc1, model.tower.dense, model.fc2)
    held = [tensor for layer in layers for tensor in (layer.weight.detach().T, layer.bias.detach())]
    for tensor, raw in zip(held, weights, strict=True):
        np.testing.assert_allclose(tensor, _array(raw), atol=1e-4)


@with_keras_2
def test_state_that_is_not_restored_is_reported(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """tf_keras stores no state of a legacy optimizer in a .keras file. Metrics are not expected in the module."""
    path = tmp_path / "old.keras"
    tensorflow.call("tensorflow_keras_training.train", str(path), "legacy_adam", 0)
    model = Net()
    with pytest.raises(tfckpt.NotFoundError, match=r'Missing optimizer state of: "fc1\.weight"'):
        tfckpt.load_model(model, path, optimizer=torch.optim.Adam(model.parameters()))
    report = tfckpt.load_model(model, path, strict="semantics")
    assert (report.missing, report.unexpected, report.remarks) == ([], [], [])


class Encoder(nn.Module):
    """A list of layers, as in transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])


def test_lists_of_transformers(tmp_path: Path) -> None:
    """In tf_model.h5, the number of a layer in a list comes after "_._": it is that in the nn.ModuleList."""
    kernels = [torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0], [7.0, 8.0]])]
    with h5py().File(tmp_path / "tf_model.h5", "w") as file:
        file.attrs["layer_names"] = [b"bert"]
        group = file.create_group("bert")
        names = []
        for number, kernel in enumerate(kernels):
            for leaf, value in (("kernel", kernel.numpy()), ("bias", np.full(2, number, np.float32))):
                names.append(f"tf_bert_model/bert/encoder/layer_._{number}/{leaf}:0")
                group[names[-1]] = value
        group.attrs["weight_names"] = [name.encode() for name in names]
    model = nn.ModuleDict({"encoder": Encoder()})
    tfckpt.load_model(model, tmp_path / "tf_model.h5")
    for number, kernel in enumerate(kernels):
        layer = model.get_submodule(f"encoder.layer.{number}")
        assert isinstance(layer, nn.Linear)
        assert torch.equal(layer.weight, kernel.T) and layer.bias.tolist() == [number, number]


_ON_TORCH = """
import sys
import keras
import numpy as np
import torch_tfckpt as tfckpt
from keras import layers
given = keras.Input((6,))
x = layers.Dropout(0.1)(layers.Dense(5, activation="tanh", name="fc1")(given))
model = keras.Model(given, layers.Dense(3, name="fc2")(x))
assert any(name.startswith("_torch_params.") for name in model.state_dict())
inputs = np.random.default_rng(1).standard_normal((4, 6)).astype("float32")
report = tfckpt.load_model(model, f"{sys.argv[1]}/m.keras")
assert (report.missing, report.unexpected) == ([], []), report
wanted = keras.models.load_model(f"{sys.argv[1]}/m.keras")
outputs = [keras.ops.convert_to_numpy(each(inputs)) for each in (model, wanted)]
np.testing.assert_allclose(*outputs, atol=1e-5)
tfckpt.load_model(model, f"{sys.argv[1]}/start")
with tfckpt.load_checkpoint(f"{sys.argv[1]}/start") as reader:
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(model.get_layer("fc1").kernel), reader["fc1/kernel"])
"""


def test_keras_on_its_torch_backend_loads_both_kinds(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """In a process of its own. Kernels stay [in, out]; states of random numbers are not stored."""
    tensorflow.call("tensorflow_keras_objects.train", str(tmp_path), 0)
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    done = subprocess.run(
        [sys.executable, "-c", _ON_TORCH, str(tmp_path)], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
