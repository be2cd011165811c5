"""save_model(like=): real Keras loads what was written, as weights and as checkpoint, whatever the order in the module.

Keras runs in its own process. `Mirror` has the variables of any Keras model as they are; the other modules compute the
same as a Keras model.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
import torch
from tensorflow_process import TensorFlowProcess
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


@pytest.mark.parametrize("model", MODELS)
def test_load_weights_takes_every_variable(
    written: Written, tensorflow: TensorFlowProcess, tmp_path: Path, model: str
) -> None:
    """All kinds of layers, wrappers, nested and subclassed models, bfloat16, float16 and int8."""
    like, file = written(model) / "m.keras", tmp_path / "out.weights.h5"
    mirror = Mirror(like)

    assert tfckpt.save_model(mirror, file, like=like, mapper=mirror.rules) == str(file)

    values = tensorflow.call("tensorflow_keras_like.loaded_values", model, str(file))
    assert values == tensorflow.call("tensorflow_keras_like.loaded_values", model, str(like.parent / "m.weights.h5"))


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
    assert values == tensorflow.call("tensorflow_keras_like.loaded_values", model, str(like.parent / "m.weights.h5"))
