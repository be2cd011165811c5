"""save_model(like=): real Keras loads what was written, as weights and as checkpoint, whatever the order in the module.

Keras runs in its own process. `Mirror` has the variables of any Keras model as they are; the other modules compute the
same as a Keras model.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tensorflow_process import RawTensor, TensorFlowProcess
from torch import nn

import torch_tfckpt as tfckpt

Written = Callable[[str], Path]
"""Name of a model -> the directory with its files."""

MODELS: Final = (
    *("mlp", "cnn", "separable", "conv_1d_3d", "recurrent", "attention", "nested", "subclassed", "custom_layer"),
    *("distributed", "normalized", "mixed", "quantized", "nested_like"),
)
# Their checkpoints omit variables in lists, or name them by attributes that Keras's files do not record.
WITHOUT_CHECKPOINT: Final = {"recurrent", "subclassed", "custom_layer", "normalized"}


@pytest.fixture(scope="module")
def written(tensorflow: TensorFlowProcess, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Writes each model once."""

    @functools.cache
    def write(model: str) -> Path:
        directory = tmp_path_factory.mktemp(model)
        tensorflow.call("tensorflow_keras_like.write", model, str(directory))
        return directory

    return write


class Mirror(nn.Module):
    """The variables of a Keras file, in the opposite order, and the rules that name them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.rules: dict[str, tuple[str, str]] = {}
        with tfckpt.load_checkpoint(path) as reader:
            assert reader.keras is not None
            for number, name in enumerate(reversed(list(reader.keras.places))):
                value = reader.get_tensor(name)
                assert isinstance(value, torch.Tensor)
                self.register_buffer(f"b{number}", value)
                self.rules[name] = (f"b{number}", "same")


@pytest.mark.thinned(2)
@pytest.mark.parametrize("model", MODELS)
def test_load_weights_takes_every_variable(
    written: Written, tensorflow: TensorFlowProcess, tmp_path: Path, model: str
) -> None:
    """All kinds of layers, wrappers, nested and subclassed models, bfloat16, float16 and int8."""
    like, file = written(model) / "m.keras", tmp_path / "out.weights.h5"
    mirror = Mirror(like)

    assert tfckpt.save_model(mirror, file, like=like, mapper=mirror.rules) == str(file)

    values = tensorflow.call("tensorflow_keras_like.loaded_values", model, str(file))
    assert values == tensorflow.call("tensorflow_keras_like.written_values", model, str(like.parent / "m.weights.h5"))


@pytest.mark.parametrize("model", ["cnn", "nested", "subclassed"])
def test_weights_without_a_configuration_give_the_same_structure(
    written: Written, tensorflow: TensorFlowProcess, tmp_path: Path, model: str
) -> None:
    """Variables that such a file does not name are mapped by their places; a checkpoint needs the configuration."""
    like, file = written(model) / "m.weights.h5", tmp_path / "out.weights.h5"
    mirror = Mirror(like)

    tfckpt.save_model(mirror, file, like=like, mapper=mirror.rules)

    values = tensorflow.call("tensorflow_keras_like.loaded_values", model, str(file))
    assert values == tensorflow.call("tensorflow_keras_like.written_values", model, str(like))
    with pytest.raises(tfckpt.UnimplementedError, match=r"Write a \.weights\.h5 file instead"):
        tfckpt.save_model(mirror, tmp_path / "out", naming="keras", like=like, mapper=mirror.rules)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("model", MODELS)
def test_a_checkpoint_restores_every_variable(
    written: Written, tensorflow: TensorFlowProcess, tmp_path: Path, model: str
) -> None:
    """With assert_consumed; or the error says why a checkpoint cannot, and what can."""
    like = written(model) / "m.keras"
    mirror = Mirror(like)
    if model in WITHOUT_CHECKPOINT:
        with pytest.raises(tfckpt.UnimplementedError, match=r"Write a \.weights\.h5 file instead"):
            tfckpt.save_model(mirror, tmp_path / "out", naming="keras", like=like, mapper=mirror.rules)
        assert not list(tmp_path.iterdir())
        return

    tfckpt.save_model(mirror, tmp_path / "out", naming="keras", like=like, mapper=mirror.rules)

    values = tensorflow.call("tensorflow_keras_like.loaded_values", model, str(tmp_path / "out"))
    assert values == tensorflow.call("tensorflow_keras_like.written_values", model, str(like.parent / "m.weights.h5"))


class Reordered(nn.Module):
    """Registered in another order than Keras's, with equal shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.third = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.first = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.third(self.second(self.first(x)).relu())
        return result


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(5, 5)
        self.first = nn.Linear(5, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.second(self.first(x).relu())
        return result


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(5, 5)
        self.tower = Pair()
        self.body = Pair()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.shared(self.body(self.shared(self.tower(x))))
        return result


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.GRU(4, 4, batch_first=True)
        self.times = nn.ModuleDict({"inner": nn.Linear(6, 4)})
        self.both = nn.GRU(4, 3, batch_first=True, bidirectional=True)
        self.memory = nn.LSTM(3, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.times["inner"](self.both(self.memory(x)[0])[0])
        result: torch.Tensor = self.last(x)[0][:, -1]
        return result


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)
        self.norm = nn.LayerNorm(8)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.tokens = nn.Embedding(11, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.tokens(x.long())
        result: torch.Tensor = self.head(self.norm(x + self.attend(x, x, x, need_weights=False)[0]))
        return result


class Norms(nn.Module):
    """Norms whose weight or bias is a constant, which Keras omits."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4 * 6 * 6, 2)
        self.groups = nn.GroupNorm(2, 4)
        self.scaled = nn.BatchNorm2d(4, eps=1e-3)
        self.shifted = nn.BatchNorm2d(4, eps=1e-3)
        self.stem = nn.Conv2d(3, 4, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.scaled(self.shifted(self.stem(x.movedim(3, 1))).relu())
        result: torch.Tensor = self.head(self.groups(x).movedim(1, 3).flatten(1))
        return result


Twin = tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, Any]]
_BODY: Final = {
    f"{name}/{leaf}": f"body.{name}.{'weight' if leaf == 'kernel' else 'bias'}"
    for name in ("first", "second")
    for leaf in ("kernel", "bias")
}
TWINS: Final[dict[str, Twin]] = {
    "reordered_like": (Reordered, (3, 4), {}),
    "nested_like": (Nested, (3, 5), _BODY),  # Keras omits the name of a functional model
    "recurrent_like": (Recurrent, (2, 7, 3), {}),
    "attention_like": (Attention, (2, 6), {}),
    "norms_like": (Norms, (2, 8, 8, 3), {}),
}


def _given(name: str) -> npt.NDArray[np.float32]:
    return np.random.default_rng(1).integers(0, 5, TWINS[name][1]).astype("float32")


def _twin(name: str) -> nn.Module:
    """A module with values that Keras can have: constants that it omits stay as they are."""
    torch.manual_seed(2)
    model = TWINS[name][0]().eval()
    with torch.no_grad():
        for own, value in model.state_dict().items():
            if value.is_floating_point() and own not in ("shifted.weight", "scaled.bias"):
                value.uniform_(0.1, 0.5)
    return model


def _array(raw: RawTensor) -> npt.NDArray[np.float32]:
    return np.frombuffer(raw.data, np.float32).reshape(raw.shape)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("again", ["again.weights.h5", "again.keras"])
@pytest.mark.parametrize("name", TWINS)
def test_outputs_are_equal_and_what_keras_saves_loads_back(
    written: Written, tensorflow: TensorFlowProcess, tmp_path: Path, name: str, again: str
) -> None:
    """Modules whose order differs from Keras's, as weights and as checkpoint; BatchNormalization is in .keras files."""
    like, rules = written(name) / "m.keras", TWINS[name][2] or None
    model, given = _twin(name), _given(name)
    expected = model(torch.from_numpy(given)).detach()
    file = str(tmp_path / "m.weights.h5")
    prefix = str(tmp_path / "m")

    tfckpt.save_model(model, file, like=like, mapper=rules)
    tfckpt.save_model(model, prefix, naming="keras", like=like, mapper=rules)

    for path in (file, prefix):
        outputs = tensorflow.call("tensorflow_keras_like.outputs", name, path, given, str(tmp_path / again))
        np.testing.assert_allclose(_array(outputs), expected, atol=1e-5, rtol=1e-5)
    back = TWINS[name][0]().eval()
    if name != "norms_like" or again == "again.keras":
        tfckpt.load_model(back, tmp_path / again, mapper=rules)
        torch.testing.assert_close(back(torch.from_numpy(given)), expected, atol=1e-5, rtol=1e-5)


class AttentionWithoutNames(nn.Module):
    """Its Keras model is subclassed: Keras names the layers after their classes."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)
        self.rms = nn.RMSNorm(8, eps=1e-6)
        self.norm = nn.LayerNorm(8)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.tokens = nn.Embedding(11, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.tokens(x.long())
        result: torch.Tensor = self.head(self.rms(self.norm(x + self.attend(x, x, x, need_weights=False)[0])))
        return result


def test_inferred_rules_name_the_layers_of_a_subclassed_model(
    written: Written, tensorflow: TensorFlowProcess, tmp_path: Path
) -> None:
    """Without rules, the error lists what has no counterpart, and what to pass."""
    like, file = written("attention_attributes") / "m.keras", tmp_path / "out.weights.h5"
    model, given = AttentionWithoutNames().eval(), _given("attention_like")
    with pytest.raises(tfckpt.InvalidArgumentError, match=r"do not agree[\s\S]*KeyMapper\.infer"):
        tfckpt.save_model(model, file, like=like)
    assert not list(tmp_path.iterdir())

    tfckpt.save_model(model, file, like=like, mapper=tfckpt.KeyMapper.infer(like, model))

    outputs = tensorflow.call("tensorflow_keras_like.outputs", "attention_attributes", str(file), given)
    np.testing.assert_allclose(_array(outputs), model(torch.from_numpy(given)).detach(), atol=1e-5, rtol=1e-5)
