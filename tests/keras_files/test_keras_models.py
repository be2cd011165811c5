"""Models of real Keras 3 in every form of file: names are the paths that Keras gives, or places in the file; values are
equal.

Keras runs in its own process. With a configuration, the variables of all of Keras's own layers, and of the optimizer,
have names; without, those that the file leaves open do not.
"""

import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from golden_files import KERAS_FILES
from memory_storage import MemoryStorage
from tensorflow_process import RawTensor, TensorFlowProcess

import torch_tfckpt as tfckpt
from torch_tfckpt.cli.main import main

FORMS: Final = ("m.keras", "directory", "m.weights.h5", "m.weights.json", "m.h5", "weights.h5")
CONFIGURED: Final = ("m.keras", "directory")  # with the configuration, but without names of variables
MODELS: Final = (
    *("mlp", "cnn", "separable", "conv_1d_3d", "recurrent", "attention", "nested", "subclassed", "custom_layer"),
    *("distributed", "normalized", "mixed", "frozen", "quantized"),
)
# Variables of these layers are not known with a configuration either: of classes that are not Keras's own, and of
# SpectralNormalization, which stores the kernel of another layer.
UNKNOWN: Final = {
    "custom_layer": {"block/scale", "block/shift"},
    "normalized": {"spectral/vector_u"},
}
# A model that is complete before a wrapper contains it: its variables have no name of the wrapper, and after the file
# was loaded and saved again, no name of the model. The file does not tell; all names are used.
LONGER: Final = {"distributed": {"tower/deep": "towers/tower/deep", "tower_deep": "towers_tower_deep"}}


Written = Callable[[str], tuple[Path, dict[str, RawTensor]]]
"""Name of a model -> the directory with all its forms, and the values of its variables."""


@pytest.fixture(scope="module")
def written(tensorflow: TensorFlowProcess, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Writes each model once."""

    @functools.cache
    def write(model: str) -> tuple[Path, dict[str, RawTensor]]:
        directory = tmp_path_factory.mktemp(model)
        train = model != "quantized"
        return directory, tensorflow.call("tensorflow_keras_files.write", model, str(directory), FORMS, train=train)

    return write


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("model", MODELS)
def test_names_and_values(written: Written, model: str, form: str) -> None:
    """Every named tensor has the path and the value of a variable of Keras; the others are as many, and equal too."""
    directory, expected = written(model)
    if form == "weights.h5":
        expected = {name: value for name, value in expected.items() if not name.startswith("adam/")}
    if form not in ("m.h5", "weights.h5"):
        for theirs, ours in LONGER.get(model, {}).items():
            expected = {name.replace(theirs, ours): value for name, value in expected.items()}
    with tfckpt.load_checkpoint(directory / form) as reader:
        keras = reader.keras
        assert keras is not None
        values = {name: RawTensor.of(value) for name, value in reader.get_tensors(reader.keys()).items()}
        unnamed, of_optimizer = keras.unnamed, keras.of_optimizer
    assert {name: values[name] for name in values.keys() - unnamed} == {
        name: expected[name] for name in values.keys() - unnamed
    }
    assert all("/vars/" in name for name in unnamed)
    rest = {name: value for name, value in expected.items() if name not in values}
    for value in rest.values():
        assert value in [values[name] for name in unnamed]
    assert {name for name in values if name.startswith("adam/")} <= of_optimizer
    if form in ("m.h5", "weights.h5"):
        assert not unnamed
    if form in CONFIGURED and model != "subclassed":
        assert {name for name in rest if not name.startswith("adam/")} == UNKNOWN.get(model, set())
        assert any(name.startswith("adam/") for name in rest) == (model in UNKNOWN)


OPTIMIZERS: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("Adam", {"amsgrad": True, "name": "mine"}),
    ("Adam", {"use_ema": True, "gradient_accumulation_steps": 2}),
    ("Adam", {"schedule": True}),
    ("AdamW", {}),
    ("Adamax", {}),
    ("Nadam", {}),
    ("SGD", {}),
    ("SGD", {"momentum": 0.9, "schedule": True}),
    ("RMSprop", {"momentum": 0.9, "centered": True}),
    ("Adagrad", {}),
    ("Adadelta", {}),
    ("Lion", {}),
    ("Ftrl", {}),
    ("Lamb", {}),
    ("Muon", {}),
    ("Adafactor", {}),
    ("LossScaleOptimizer", {}),
)
# These keep their places in the file: Keras gives them no lasting name, one name to several, or stores them twice.
WITHOUT_NAMES: Final = {"Nadam": 1, "Muon": 3, "Adafactor": 6, "LossScaleOptimizer": 6}


@pytest.mark.thinned(3)
@pytest.mark.parametrize(("optimizer", "settings"), OPTIMIZERS, ids=[f"{o}-{'-'.join(s)}" for o, s in OPTIMIZERS])
@pytest.mark.parametrize("form", ["m.keras", "m.weights.h5"])
def test_optimizers(
    tensorflow: TensorFlowProcess, tmp_path: Path, form: str, optimizer: str, settings: dict[str, Any]
) -> None:
    """The variables of the optimizer have Keras's names if the file contains the configuration."""
    expected = tensorflow.call(
        "tensorflow_keras_files.write", "frozen", str(tmp_path), [form], optimizer=optimizer, settings=settings
    )
    with tfckpt.load_checkpoint(tmp_path / form) as reader:
        assert reader.keras is not None
        values = {name: RawTensor.of(value) for name, value in reader.get_tensors(reader.keys()).items()}
        unnamed = reader.keras.unnamed
        assert unnamed <= reader.keras.of_optimizer
        assert {name for name in values if name.split("/")[0] not in ("fixed", "alone", "top")} == (
            reader.keras.of_optimizer
        )
    for name in values.keys() - unnamed:
        assert values[name] == expected[name]
    if form == "m.keras":
        assert len(unnamed) == WITHOUT_NAMES.get(optimizer, 0)


@pytest.mark.parametrize("form", FORMS)
def test_ambiguous_variables_have_no_names(written: Written, form: str) -> None:
    """BatchNormalization without center, or without scale, has three variables: only the configuration shows which."""
    names = {name for name, _ in tfckpt.list_variables(written("cnn")[0] / form)}
    named = {"bn0/gamma", "bn0/beta", "bn0/moving_mean", "bn3/moving_mean", "bn3/moving_variance", "stem/kernel"}
    ambiguous = {"bn1/gamma", "bn1/moving_mean", "bn2/beta", "bn2/moving_variance"}
    assert names >= named
    assert names & ambiguous == (ambiguous if form in (*CONFIGURED, "m.h5", "weights.h5") else set())


def test_commands(written: Written, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ls, show, verify, convert and diff take these files like checkpoints."""
    path = written("mlp")[0] / "m.keras"
    assert main(["ls", str(path)]) == 0
    assert "sequential/hidden/kernel" in capsys.readouterr().out
    assert main(["show", str(path)]) == 0
    assert f"{path}: Keras model" in capsys.readouterr().out
    assert main(["show", str(path), "sequential/hidden/bias"]) == 0
    assert "float32 [5]" in capsys.readouterr().out
    assert main(["verify", str(path)]) == 0
    assert capsys.readouterr().out == "no damage found: 11 tensors\n"
    for target in ("out.safetensors", "out.npz", "out.ckpt"):
        to = ["--to", "tf"] if target == "out.ckpt" else []
        assert main(["convert", str(path), str(tmp_path / target), *to]) == 0
        assert main(["diff", str(path), str(tmp_path / target)]) == 0
    assert main(["convert", str(path), str(tmp_path / "out.keras")]) == 2


def test_directories(written: Written, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A directory is the same as the weights in it, which are read with the configuration if it is Keras's."""
    for path in (written("cnn")[0] / "directory", written("cnn")[0] / "directory" / "model.weights.h5"):
        assert "bn1/gamma" in tfckpt.load_file(path)
        assert main(["show", str(path), "--config"]) == 0
        assert "bn1 " in capsys.readouterr().out
    assert main(["ls", str(written("cnn")[0] / "directory")]) == 0
    for config in (None, {"model_type": "bert"}, [1]):
        target = Path(shutil.copytree(written("cnn")[0] / "directory", tmp_path / str(config)))
        (target / "config.json").unlink()
        if config is not None:
            (target / "config.json").write_text(json.dumps(config))
        assert "bn1/gamma" not in tfckpt.load_file(target / "model.weights.h5")
    (target / "config.json").write_text('{"class_name": "Functional", "config": 3}')
    with pytest.raises(tfckpt.DataLossError, match=r"config\.json: .*where a layer was expected"):
        tfckpt.load_file(target)


def test_kinds_of_variables(written: Written, capsys: pytest.CaptureFixture[str]) -> None:
    """The variables of the optimizer are not counted as weights, and load_model does not report them as unexpected."""
    path = written("mlp")[0] / "m.keras"
    assert main(["ls", str(path)]) == 0
    assert "weights: 3 tensors" in capsys.readouterr().out
    hidden, dense = torch.nn.Linear(6, 5), torch.nn.Linear(5, 3, bias=False)
    report = tfckpt.load_model(torch.nn.ModuleDict({"hidden": hidden, "dense": dense}), path)
    assert report.unexpected == []
    assert torch.equal(hidden.weight.T, tfckpt.load_variable(path, "sequential/hidden/kernel"))


def test_unnamed_variables_are_not_mapped(written: Written) -> None:
    """load_model says that the file does not record which variables they are."""
    module = torch.nn.ModuleDict({"bn1": torch.nn.BatchNorm2d(4)})
    with pytest.raises(tfckpt.NotFoundError, match=r"does not record which variables these are.*Load the \.keras file"):
        tfckpt.load_model(module, written("cnn")[0] / "m.weights.h5")


@pytest.mark.parametrize("name", ["m.keras", "m.weights.h5", "m.weights.json", "weights.h5"])
def test_neither_keras_nor_h5py_is_imported(name: str) -> None:
    """Files are read in a process that cannot import them."""
    program = (
        "import sys\n"
        "for name in ('keras', 'tf_keras', 'tensorflow', 'h5py'): sys.modules[name] = None\n"
        "import torch_tfckpt\n"
        "print(sorted(torch_tfckpt.load_file(sys.argv[1])))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(KERAS_FILES / name)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.stdout, done.stderr) == ("['m/fc/bias', 'm/fc/kernel']\n", "")


@pytest.mark.parametrize("name", ["m.keras", "m.weights.h5"])
def test_files_of_another_storage(name: str) -> None:
    """A file is read through the storage that is passed in, an archive needs a local file."""
    storage = MemoryStorage({f"d/{name}": (KERAS_FILES / name).read_bytes()})
    if name == "m.keras":
        with pytest.raises(tfckpt.UnimplementedError):
            tfckpt.load_file(f"d/{name}", storage=storage)
    else:
        assert set(tfckpt.load_file(f"d/{name}", storage=storage)) == {"m/fc/kernel", "m/fc/bias"}
