"""Models of real Keras 2 (tf_keras) in every form of file: names are those that Keras gives, or places in the file;
values are equal.

Keras 2 stores no names of layers outside of .h5 files. With a configuration, the variables of all of Keras's own
layers, and of the optimizer, have names; without, none has.
"""

import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from tensorflow_process import RawTensor, TensorFlowProcess

import torch_tfckpt as tfckpt
from torch_tfckpt.cli.main import main

MODELS: Final = (
    *("mlp", "cnn", "separable", "conv_1d_3d", "recurrent", "attention", "nested", "twice", "subclassed"),
    *("custom_layer", "distributed", "normalized", "mixed", "frozen", "long_names"),
)
FORMS: Final = ("m.keras", "m.weights.h5", "m.h5", "weights.h5")
NOT_WRITTEN: Final = {("subclassed", "m.h5"), ("twice", "m.h5")}  # Keras 2 raises an error
# Keras 2 gives these variables no name of a layer, or one name to several of them: then the name of the layer, or of
# the model, comes first.
LONGER: Final = {
    "twice": {"left/dense/kernel", "left/dense/bias", "right/dense/kernel", "right/dense/bias"},
    "normalized": {"data/mean", "data/variance", "data/count"},
}
OWN_CLASSES: Final = ("subclassed", "custom_layer")  # not known with a configuration either
Named = list[tuple[str, RawTensor]]
Written = Callable[[str], tuple[Path, Named, Named]]
"""Name of a model -> the directory with all its forms, and the variables of the model and the optimizer."""


@pytest.fixture(scope="module")
def written(keras_2: TensorFlowProcess, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Writes each model once."""

    @functools.cache
    def write(model: str) -> tuple[Path, Named, Named]:
        directory = tmp_path_factory.mktemp(model)
        forms = [form for form in FORMS if (model, form) not in NOT_WRITTEN]
        weights, slots = keras_2.call("tensorflow_tf_keras_files.write", model, str(directory), forms)
        return directory, weights, slots

    return write


def read(path: Path) -> tuple[dict[str, RawTensor], set[str], set[str]]:
    """Return all tensors, the names that are only places in the file, and those of the optimizer; without metrics."""
    with tfckpt.load_checkpoint(path) as reader:
        keras = reader.keras
        assert keras is not None
        assert all(name.startswith("metrics/") for name in keras.of_metrics)
        names = [name for name in reader.keys() if name not in keras.of_metrics]
        values = {name: RawTensor.of(value) for name, value in reader.get_tensors(names).items()}
        return values, set(keras.unnamed - keras.of_metrics), set(keras.of_optimizer)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("model", MODELS)
def test_names_and_values(written: Written, model: str, form: str) -> None:
    """Every named tensor has the name and the value of a variable of Keras; the others are as many, and equal too."""
    if (model, form) in NOT_WRITTEN:
        pytest.skip("Keras 2 does not write this")
    directory, weights, slots = written(model)
    expected = weights + (slots if form != "weights.h5" else [])
    values, unnamed, of_optimizer = read(directory / form)
    assert Counter(values.values()) == Counter(value for _, value in expected)
    longer = LONGER.get(model, set()) if form == "m.keras" or model == "twice" else set()
    for name in values.keys() - unnamed - longer:
        assert (name, values[name]) in expected
    assert {name for name, _ in slots if name in values} <= of_optimizer
    if form in ("m.h5", "weights.h5"):
        assert not unnamed
    elif form == "m.weights.h5":
        assert unnamed == values.keys()
    elif model in OWN_CLASSES:
        assert all("/vars/" in name for name in unnamed)
    else:
        assert all(name.startswith("optimizer/") for name in unnamed)
        assert longer <= values.keys()
        assert not unnamed or model == "twice"


@pytest.mark.thinned(3)
@pytest.mark.parametrize("form", ["m.keras", "m.h5"])
@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [
        ("Adam", {"amsgrad": True, "name": "mine"}),
        ("Adam", {"use_ema": True}),
        ("AdamW", {}),
        ("Adamax", {}),
        ("Nadam", {}),
        ("SGD", {}),
        ("RMSprop", {"momentum": 0.9, "centered": True}),
        ("Adagrad", {}),
        ("Adadelta", {}),
        ("Lion", {}),
        ("Ftrl", {}),
        ("Adafactor", {}),
        ("scaled.Adam", {}),
        ("legacy.Adam", {}),
        ("legacy.SGD", {"momentum": 0.9}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
def test_optimizers(
    keras_2: TensorFlowProcess, tmp_path: Path, form: str, optimizer: str, settings: dict[str, Any]
) -> None:
    """The variables of Keras's optimizers have Keras's names, for the layers that are trained."""
    weights, slots = keras_2.call(
        "tensorflow_tf_keras_files.write", "frozen", str(tmp_path), [form], optimizer=optimizer, **settings
    )
    values, unnamed, of_optimizer = read(tmp_path / form)
    for name in values.keys() - unnamed:
        assert (name, values[name]) in weights + slots
    if optimizer == "scaled.Adam" and form == "m.keras":
        assert all(name.startswith("optimizer/inner_optimizer/") for name in unnamed)  # the same once more
    elif optimizer == "Adafactor" and form == "m.keras":
        assert len(unnamed) == len(slots) - 1
    elif optimizer.startswith("legacy.") and form == "m.keras":
        assert not of_optimizer  # Keras does not store them
    else:
        assert not unnamed and of_optimizer == {name for name, _ in slots}


def test_metrics_are_not_weights(written: Written, capsys: pytest.CaptureFixture[str]) -> None:
    """States of metrics are listed and readable, but are not among the weights, and are not unexpected."""
    path = written("mlp")[0] / "m.keras"
    assert tfckpt.load_variable(path, "metrics/mean/vars/1").shape == ()
    assert main(["ls", str(path)]) == 0
    assert "weights: 3 tensors" in capsys.readouterr().out
    hidden, dense = torch.nn.Linear(6, 5), torch.nn.Linear(5, 3, bias=False)
    report = tfckpt.load_model(torch.nn.ModuleDict({"hidden": hidden, "dense": dense}), path)
    assert report.unexpected == []
    assert "does not record" not in str(report)
    assert torch.equal(hidden.weight.T, tfckpt.load_variable(path, "hidden/kernel"))


def test_trained_models_load_weights(keras_2: TensorFlowProcess, written: Written, tmp_path: Path) -> None:
    """A model that was trained, and so has metrics, takes files that were written with the order of its file."""
    directory, weights, _ = written("mlp")
    like, target = directory / "m.keras", tmp_path / "new.weights.h5"
    tfckpt.convert(directory / "m.weights.h5", target, like=like)
    assert keras_2.call("tensorflow_tf_keras_files.load_weights", "mlp", str(target)) == weights
    module = torch.nn.ModuleDict({"hidden": torch.nn.Linear(6, 5), "dense": torch.nn.Linear(5, 3, bias=False)})
    tfckpt.load_model(module, like)
    tfckpt.save_model(module, target, like=like)
    assert keras_2.call("tensorflow_tf_keras_files.load_weights", "mlp", str(target)) == weights


@pytest.mark.parametrize("model", ["mlp", "cnn", "recurrent"])
def test_unnamed_variables_are_not_mapped(written: Written, model: str, tmp_path: Path) -> None:
    """load_model and infer never use the variables of a .weights.h5 file of Keras 2, and say why."""
    path = written(model)[0] / "m.weights.h5"
    module = torch.nn.ModuleDict({"hidden": torch.nn.Linear(6, 5), "stem": torch.nn.Conv2d(3, 4, 3)})
    with pytest.raises(tfckpt.NotFoundError, match=r"does not record which variables these are.*layers/"):
        tfckpt.load_model(module, path)
    with pytest.raises(tfckpt.NotFoundError, match=r"does not record which variables these are.*layers/"):
        tfckpt.KeyMapper.infer(path, module)
