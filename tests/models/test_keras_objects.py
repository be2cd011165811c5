"""save_model and Checkpoint with naming="keras": Keras models restore everything, and compute the same; and back."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tensorflow_process import RawTensor, TensorFlowProcess
from torch import nn

import torch_tfckpt as tfckpt


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, 5)
        self.relu = nn.ReLU()
        self.drop = nn.Dropout(0.5)
        self.fc2 = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.fc2(self.drop(self.relu(self.fc1(x))))
        return result


class Cnn(nn.Module):
    """Layers in the order of Keras's; pooling, which has no module, at the place of nn.Identity."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4, eps=1e-3)
        self.relu = nn.ReLU()
        self.depth = nn.Conv2d(4, 8, 3, groups=4, bias=False)
        self.up = nn.ConvTranspose2d(8, 3, 2, stride=2)
        self.pool = nn.Identity()
        self.head = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(self.depth(self.relu(self.norm(self.stem(x.movedim(3, 1))))))
        result: torch.Tensor = self.head(self.pool(x.mean((2, 3)))).softmax(1)
        return result


class Top(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(4, 5, bias=False)
        self.scale = nn.Parameter(torch.rand(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.hidden(x).tanh() * self.scale
        return result


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.LSTM(3, 4, batch_first=True)
        self.both = nn.GRU(4, 3, batch_first=True, bidirectional=True)
        self.plain = nn.RNN(6, 4, batch_first=True)
        self.top = Top()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.memory, self.both, self.plain):
            x = layer(x)[0]
        result: torch.Tensor = self.top(x)
        return result


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 8)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.rms = nn.RMSNorm(8, eps=1e-6)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.tokens(x.long())
        x = self.norm(x + self.attend(x, x, x, need_weights=False)[0])
        result: torch.Tensor = self.head(self.rms(x))
        return result


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (Mlp, (4, 6)),
    "cnn": (Cnn, (2, 8, 8, 3)),
    "recurrent": (Recurrent, (2, 7, 3)),
    "attention": (Attention, (2, 6)),
}


def _given(name: str) -> npt.NDArray[np.float32]:
    return np.random.default_rng(1).integers(0, 5, MODELS[name][1]).astype("float32")


def _model(name: str) -> nn.Module:
    torch.manual_seed(2)
    model = MODELS[name][0]().eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.1, 0.9)
    return model


def _array(raw: RawTensor) -> npt.NDArray[np.float32]:
    return np.frombuffer(raw.data, np.float32).reshape(raw.shape)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("read", [False, True])
def test_keras_restores_everything_and_computes_the_same(
    tensorflow: TensorFlowProcess, tmp_path: Path, name: str, read: bool
) -> None:
    model, given = _model(name), _given(name)
    prefix = tfckpt.save_model(model, tmp_path / "m", naming="keras")

    outputs = tensorflow.call("tensorflow_keras_objects.outputs", name, prefix, given, read=read)

    np.testing.assert_allclose(_array(outputs), model(torch.from_numpy(given)).detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_load_model_reads_the_file_back(tmp_path: Path, name: str) -> None:
    model, given = _model(name), torch.from_numpy(_given(name))
    prefix = tfckpt.save_model(model, tmp_path / "m", naming="keras")
    other = MODELS[name][0]().eval()

    report = tfckpt.load_model(other, prefix)

    assert (report.missing, report.unexpected) == ([], [])
    torch.testing.assert_close(other(given), model(given), atol=1e-5, rtol=1e-5)


def test_further_values_are_children_of_the_root(tmp_path: Path) -> None:
    prefix = tfckpt.save_model(nn.Linear(2, 1), tmp_path / "m", naming="keras", extra={"step": 7, "words": ["a"]})

    with tfckpt.load_checkpoint(prefix) as reader:
        assert int(reader.get_tensor("step")) == 7
        assert "model/kernel/.ATTRIBUTES/VARIABLE_VALUE" in reader


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.LSTM(2, 3, num_layers=2), "several recurrent layers"),
        (nn.LSTM(2, 3, proj_size=2), "projection"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), "parametrized"),
        (nn.MultiheadAttention(4, 2, add_bias_kv=True), "bias_k"),
    ],
    ids=["stacked", "projection", "weight_norm", "bias_k"],
)
def test_what_keras_cannot_have_is_refused(tmp_path: Path, module: nn.Module, message: str) -> None:
    with pytest.raises(tfckpt.UnimplementedError, match=message):
        tfckpt.save_model(nn.Sequential(module), tmp_path / "m", naming="keras")
    assert not list(tmp_path.iterdir())


def test_rules_and_optimizers_are_refused(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    with pytest.raises(tfckpt.InvalidArgumentError, match="mapper"):
        tfckpt.save_model(model, tmp_path / "m", naming="keras", mapper={"kernel": "weight"})
    with pytest.raises(tfckpt.UnimplementedError, match="optimizer"):
        tfckpt.save_model(model, tmp_path / "m", naming="keras", optimizer=torch.optim.SGD(model.parameters()))


@pytest.mark.parametrize("name", MODELS)
def test_checkpoint_restores_what_keras_wrote_and_keras_what_it_wrote(
    tensorflow: TensorFlowProcess, tmp_path: Path, name: str
) -> None:
    given = _given(name)
    expected = _array(tensorflow.call("tensorflow_keras_objects.write", name, str(tmp_path / "k"), given))
    model = MODELS[name][0]().eval()
    checkpoint = tfckpt.Checkpoint(model=model, naming="keras")

    checkpoint.read(tmp_path / "k")
    np.testing.assert_allclose(expected, model(torch.from_numpy(given)).detach(), atol=1e-5, rtol=1e-5)

    path = checkpoint.save(tmp_path / "t")
    outputs = tensorflow.call("tensorflow_keras_objects.outputs", name, path, given)
    np.testing.assert_allclose(_array(outputs), expected, atol=1e-5, rtol=1e-5)
    other = MODELS[name][0]().eval()
    tfckpt.Checkpoint(model=other, naming="keras").restore(path).assert_consumed()
    torch.testing.assert_close(other(torch.from_numpy(given)), model(torch.from_numpy(given)), atol=1e-5, rtol=1e-5)


def test_checkpoint_refuses_what_its_naming_does_not_cover() -> None:
    model = nn.Linear(2, 1)
    with pytest.raises(tfckpt.InvalidArgumentError, match="unknown naming 'Keras'"):
        tfckpt.Checkpoint(model=model, naming="Keras")
    for value in (torch.optim.SGD(model.parameters()), [model], {"a": (model,)}):
        with pytest.raises(tfckpt.UnimplementedError, match="each under a name"):
            tfckpt.Checkpoint(thing=value, naming="keras")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("form", ["m.keras", "m.weights.h5"])
def test_load_model_reads_keras_own_files(tensorflow: TensorFlowProcess, tmp_path: Path, name: str, form: str) -> None:
    """Without rules if layers have the names of attributes; else by `infer`, which never takes an unnamed variable."""
    given, file = _given(name), tmp_path / form
    expected = _array(tensorflow.call("tensorflow_keras_objects.write", name, str(tmp_path / "k"), given, str(file)))
    model = MODELS[name][0]().eval()

    with tfckpt.load_checkpoint(file) as reader:
        assert reader.keras is not None
        unnamed = sorted(reader.keras.unnamed)
    assert len(unnamed) == (name == "recurrent"), "the variable of its custom layer"
    if unnamed:
        with pytest.raises(tfckpt.NotFoundError, match=r"top\.scale"):
            tfckpt.KeyMapper.infer(file, model)
    rules = {place: "top.scale" for place in unnamed}
    mapper = tfckpt.KeyMapper.infer(file, model, rules=rules) if name in ("recurrent", "attention") else None
    tfckpt.load_model(model, file, mapper=mapper)

    np.testing.assert_allclose(model(torch.from_numpy(given)).detach(), expected, atol=1e-5, rtol=1e-5)
