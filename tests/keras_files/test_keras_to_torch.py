"""load_model from Keras's own files: settings are compared, training goes on, and Keras's torch backend takes them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from golden_files import KERAS_FILES
from tensorflow_process import RawTensor, TensorFlowProcess
from torch import nn

import torch_tfckpt as tfckpt

CNN = KERAS_FILES / "cnn.keras"


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


class Net(nn.Module):
    """The model that `tensorflow_keras_objects.train` trains."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, 5)
        self.fc2 = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.fc2(self.fc1(x).tanh())
        return result


def _array(raw: RawTensor) -> npt.NDArray[np.float32]:
    return np.frombuffer(raw.data, np.float32).reshape(raw.shape)


def test_the_optimizer_of_a_keras_file_goes_on(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """With the learning rate in the file, and the betas in its configuration."""
    inputs, wanted, weights = tensorflow.call("tensorflow_keras_objects.train", str(tmp_path), 20)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters())

    tfckpt.load_model(model, tmp_path / "m.keras", optimizer=optimizer)

    assert optimizer.param_groups[0]["betas"] == (0.8, 0.99)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(torch.tensor(_array(inputs))), torch.tensor(_array(wanted))).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for name in ("fc1", "fc2"):
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        np.testing.assert_allclose(layer.weight.detach().T, _array(weights[f"{name}/kernel"]), atol=1e-4)
        np.testing.assert_allclose(layer.bias.detach(), _array(weights[f"{name}/bias"]), atol=1e-4)


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
