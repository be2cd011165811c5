"""convert(like=): weights in any form become a .weights.h5 file that real Keras loads; nothing is matched by guessing.

Keras runs in its own process. TensorFlow's formats of weights, which Keras 3 no longer loads, are among the sources.
"""

import functools
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from golden_files import GOLDEN, KERAS_FILES
from hdf5_files import h5py, keras_weights
from tensorflow_process import TensorFlowProcess

import torch_tfckpt as tfckpt
from torch_tfckpt.cli.main import main

CNN: Final = KERAS_FILES / "cnn.keras"
MODELS: Final = (
    *("mlp", "cnn", "separable", "conv_1d_3d", "recurrent", "attention", "nested", "subclassed", "custom_layer"),
    *("distributed", "normalized", "mixed", "quantized", "nested_like", "reordered_like"),
)
SOURCES: Final = ("ckpt", "m.keras", "m.h5", "m.npz")
# Keras 3 omits layers in lists from checkpoints; variables of custom layers have names in no other file. The path of a
# Sequential in a wrapper depends on when Keras built it, and files of the older form have no places.
MISSING: Final = {
    "recurrent": ("ckpt",),
    "distributed": ("m.h5",),
    **dict.fromkeys(("subclassed", "custom_layer", "normalized"), ("ckpt", "m.h5")),
}

Written = Callable[[str], Path]
"""Name of a model -> the directory with its files."""


@pytest.fixture(scope="module")
def written(tensorflow: TensorFlowProcess, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Writes each model once."""

    @functools.cache
    def write(model: str) -> Path:
        directory = tmp_path_factory.mktemp(model)
        tensorflow.call("tensorflow_keras_like.write", model, str(directory))
        return directory

    return write


# Every model from its checkpoint, three of them from every form; the others are among the heavy tests.
CASES: Final = [
    pytest.param(
        model, source, marks=() if source == "ckpt" or model in ("cnn", "recurrent", "nested") else pytest.mark.heavy
    )
    for model in MODELS
    for source in SOURCES
]


@pytest.mark.thinned(2)
@pytest.mark.parametrize(("model", "source"), CASES)
def test_every_form_becomes_weights_that_keras_loads(
    written: Written, tensorflow: TensorFlowProcess, tmp_path: Path, model: str, source: str
) -> None:
    """Checkpoints by objects, Keras's files by places, files of the older form and of other formats by names."""
    directory, target = written(model), tmp_path / "out.weights.h5"
    given = directory / source
    if source == "m.npz":
        given = tmp_path / source
        tfckpt.convert(directory / "m.keras", given)
    if source in MISSING.get(model, ()):
        with pytest.raises(tfckpt.InvalidArgumentError, match="is not found"):
            tfckpt.convert(given, target, like=directory / "m.keras")
        assert not target.exists()
        return

    report = tfckpt.convert(given, target, like=directory / "m.keras")

    assert report.format == "Keras weights" and report.files == [str(target)]
    values = tensorflow.call("tensorflow_keras_like.loaded_values", model, str(target))
    assert values == tensorflow.call("tensorflow_keras_like.written_values", model, str(directory / "m.weights.h5"))


def test_checkpoints_of_training_programs(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """With an optimizer and a step, under any name of the model; and an exported SavedModel, which has copies."""
    given = np.random.default_rng(3).random((2, 7, 3), np.float32)
    expected = tensorflow.call("tensorflow_keras_like.write_trained", "recurrent_like", str(tmp_path), given)
    for source in ("model-1", "net", "trainer", "exported", "m.keras"):
        target = tmp_path / "out.weights.h5"
        tfckpt.convert(tmp_path / source, target, like=tmp_path / "m.keras")
        assert tensorflow.call("tensorflow_keras_like.outputs", "recurrent_like", str(target), given) == expected


def test_weights_of_keras_2_in_the_format_of_tensorflow(
    written: Written, tensorflow: TensorFlowProcess, tmp_path: Path
) -> None:
    """The layers have other names in the Keras 3 model; the outputs are those of the trained model of Keras 2."""
    source, target = GOLDEN / "digits-keras2-weights" / "weights", str(tmp_path / "digits.weights.h5")
    assert main(["convert", str(source), target, "--like", str(written("digits_like") / "m.keras")]) == 0
    with np.load(source.parent / "samples.npz", allow_pickle=False) as stored:
        images, expected = stored["images"].astype(np.float32) / 16, stored["outputs"]
    outputs = tensorflow.call("tensorflow_keras_like.outputs", "digits_like", target, images)
    np.testing.assert_allclose(np.frombuffer(outputs.data, np.float32).reshape(outputs.shape), expected, atol=1e-4)


def _values(prefix: str = "") -> dict[str, torch.Tensor]:
    """The variables of the CNN, each with other values."""
    with tfckpt.load_checkpoint(CNN) as reader:
        names = list(reader.keras.places) if reader.keras is not None else []
        return {prefix + name: torch.rand(reader.shape(name)) for name in names}


def _equal(path: Path, values: Mapping[str, torch.Tensor]) -> bool:
    loaded = tfckpt.load_file(path)
    return loaded.keys() == values.keys() and all(torch.equal(loaded[name], values[name]) for name in values)


@pytest.mark.parametrize("prefix", ["", "net/"])
def test_names_below_a_common_prefix(tmp_path: Path, prefix: str) -> None:
    """A name-based checkpoint with the slots of an optimizer, which are not weights."""
    values = _values(prefix)
    slots = {f"{name}/Adam": torch.zeros_like(value) for name, value in values.items() if "moving" not in name}
    source = tfckpt.save_file({**values, **slots, "global_step": torch.tensor(3)}, tmp_path / "m.ckpt")
    target = tmp_path / "m.weights.h5"
    tfckpt.convert(source, target, like=CNN)
    assert _equal(target, {name.removeprefix(prefix): value for name, value in values.items()})


def test_renamed_tensors(tmp_path: Path) -> None:
    values = _values()
    odd = {name.replace("stem/kernel", "trunk/w"): value for name, value in values.items()}
    source, target = tfckpt.save_file(odd, tmp_path / "m.ckpt"), tmp_path / "m.weights.h5"
    with pytest.raises(tfckpt.InvalidArgumentError, match=r'"stem/kernel" is not found'):
        tfckpt.convert(source, target, like=CNN)
    tfckpt.convert(source, target, like=CNN, rename=[("trunk/w", "stem/kernel")])
    assert _equal(target, values)


def test_floats_get_the_dtypes_of_the_model(tmp_path: Path) -> None:
    values = _values()
    source = tfckpt.save_file({name: value.double() for name, value in values.items()}, tmp_path / "m.ckpt")
    report = tfckpt.convert(source, tmp_path / "m.weights.h5", like=CNN)
    assert _equal(tmp_path / "m.weights.h5", values)
    assert {each.dtype for each in report.converted} == {"float32"}


def _without(name: str) -> Callable[[], dict[str, torch.Tensor]]:
    return lambda: {key: value for key, value in _values().items() if key != name}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (_without("norm/beta"), r'"norm/beta" is not found'),
        (lambda: {**_values(), "extra/kernel": torch.ones(2, 2)}, r'no variables for these weights: "extra/kernel"'),
        (
            lambda: {**_values(), "stem/kernel": torch.ones(3, 3, 4, 1)},
            r'"stem/kernel" is \[3,3,1,4\] in the Keras model, but "stem/kernel" is \[3,3,4,1\]',
        ),
        (lambda: {**_values(), "head/bias": torch.ones(3, dtype=torch.int32)}, r'"head/bias" is int32'),
        (lambda: {**_values(), "head/bias": ["a", "b", "c"]}, r'"head/bias" is not found'),
    ],
    ids=["missing", "unused", "shape", "dtype", "strings"],
)
def test_what_does_not_match_is_refused(tmp_path: Path, values: Callable[[], dict[str, Any]], message: str) -> None:
    source, target = tfckpt.save_file(values(), tmp_path / "m.ckpt"), tmp_path / "m.weights.h5"
    target.write_bytes(b"earlier")
    with pytest.raises(tfckpt.InvalidArgumentError, match=message):
        tfckpt.convert(source, target, like=CNN)
    assert target.read_bytes() == b"earlier"


def test_an_unused_weight_may_be_excluded(tmp_path: Path) -> None:
    values = _values()
    source = tfckpt.save_file({**values, "extra/kernel": torch.ones(2, 2)}, tmp_path / "m.ckpt")
    tfckpt.convert(source, tmp_path / "m.weights.h5", like=CNN, exclude=["^extra/"])
    assert _equal(tmp_path / "m.weights.h5", values)


def _two_layers(path: Path, names: tuple[str, str]) -> Path:
    """Weights of a Sequential model `m` with two Dense layers of one shape."""

    def change(file: Any) -> None:
        del file["layers/dense"]
        for number, name in enumerate(names):
            weights = file.create_group(f"layers/dense{'_1' * number}/vars")
            weights.attrs["name"] = name
            weights["0"], weights["1"] = np.full((2, 2), number, "f4"), np.full(2, number, "f4")

    return keras_weights(path, change)


def test_names_and_places_that_disagree_are_refused(tmp_path: Path) -> None:
    """The same layers in another order: by its place it is one, by its name the other."""
    source = _two_layers(tmp_path / "a.weights.h5", ("first", "second"))
    like = _two_layers(tmp_path / "b.weights.h5", ("second", "first"))
    target = tmp_path / "m.weights.h5"
    with pytest.raises(tfckpt.InvalidArgumentError, match=r'"m/second/kernel" may be stored as "m/first/kernel"'):
        tfckpt.convert(source, target, like=like)
    assert not target.exists()


class Layers(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = torch.nn.Linear(2, 2)
        self.fc2 = torch.nn.Linear(2, 2)


def _sequential(path: Path) -> Path:
    """A .keras file of a Sequential model with two Dense layers."""
    weights = _two_layers(path.with_suffix(".weights.h5"), ("one", "two"))
    described = [{"class_name": "InputLayer", "config": {"name": "input"}}]
    described += [{"class_name": "Dense", "config": {"name": name, "use_bias": True}} for name in ("one", "two")]
    config = {"class_name": "Sequential", "config": {"name": "m", "layers": described}}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("metadata.json", '{"keras_version": "3.15.1"}')
        archive.write(weights, "model.weights.h5")
    weights.unlink()
    return path


def test_two_models_in_one_checkpoint_are_told_apart_by_include(tmp_path: Path) -> None:
    """Both have the layers of the Keras model."""
    like, target = _sequential(tmp_path / "m.keras"), tmp_path / "m.weights.h5"
    actor, critic = Layers(), Layers()
    checkpoint = tfckpt.Checkpoint(actor=actor, critic=critic, naming="keras")
    source = checkpoint.write(tmp_path / "ckpt")

    with pytest.raises(tfckpt.InvalidArgumentError, match=r"may be stored as .*include="):
        tfckpt.convert(source, target, like=like)
    tfckpt.convert(source, target, like=like, include=["^critic/"])

    assert torch.equal(tfckpt.load_variable(target, "m/two/kernel").T, critic.fc2.weight)


def test_a_name_that_a_program_chose_is_not_given_to_another_layer(tmp_path: Path) -> None:
    """By its place the first layer of the checkpoint is `one`, but the second one has this name; not so `dense`."""
    like, target = _sequential(tmp_path / "m.keras"), tmp_path / "m.weights.h5"
    model = Layers()
    source = tfckpt.Checkpoint(model=model, naming="keras").write(tmp_path / "ckpt")
    values = tfckpt.load_file(source)
    for names, is_refused in ((("other", "m/one"), True), (("dense_1", "dense_2"), False)):
        graph = tfckpt.load_checkpoint(source).object_graph
        assert graph is not None
        layer_of = dict(zip(("model/fc1", "model/fc2"), names, strict=True))
        nodes = tuple(
            replace(
                node,
                attributes=tuple(
                    each._replace(full_name=f"{layer_of[layer]}/{leaf.removeprefix('_')}")
                    for each in node.attributes
                    for layer, _, leaf in [each.checkpoint_key.partition("/.")[0].rpartition("/")]
                ),
            )
            for node in graph.nodes
        )
        values["_CHECKPOINTABLE_OBJECT_GRAPH"] = np.array(tfckpt.ObjectGraph(nodes).encode(), object)
        named = tfckpt.save_file(values, tmp_path / "named")
        if is_refused:
            with pytest.raises(tfckpt.InvalidArgumentError, match=r'"m/one/kernel" may be stored as .*by its name'):
                tfckpt.convert(named, target, like=like)
        else:
            tfckpt.convert(named, target, like=like)
            assert torch.equal(tfckpt.load_variable(target, "m/one/kernel").T, model.fc1.weight)


@pytest.mark.parametrize(
    ("target", "arguments", "message"),
    [
        ("m.weights.h5", {"dtype": "float16"}, "`dtype` cannot be combined with `like`"),
        ("m.weights.h5", {"to_tf": True, "map": {}}, "`to_tf` cannot be combined with `like`"),
        ("m.weights.h5", {"skip_damaged": True}, "`skip_damaged` cannot be combined with `like`"),
        ("m.safetensors", {}, r"`like` is for files that end in \.weights\.h5"),
        ("m.keras", {}, r"`like` is for files that end in \.weights\.h5"),
        ("m.keras", {"like": None}, r"cannot be written.*end the name with \.weights\.h5.*like="),
        ("m.weights.h5", {"like": None}, r"cannot be written without like="),
    ],
)
def test_arguments(tmp_path: Path, target: str, arguments: dict[str, Any], message: str) -> None:
    given = {"like": CNN, **arguments}
    with pytest.raises(tfckpt.InvalidArgumentError, match=message):
        tfckpt.convert(CNN, tmp_path / target, **given)
    assert not list(tmp_path.iterdir())


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    report = tfckpt.convert(CNN, tmp_path / "m.weights.h5", like=CNN, dry_run=True)
    assert next(each.new_name for each in report.converted) == "stem/kernel"
    assert not list(tmp_path.iterdir())


def test_the_command_reports_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "m.weights.h5"
    assert main(["convert", str(CNN), str(target), "--like", str(CNN)]) == 0
    assert capsys.readouterr().out == f"converted 7 tensors, 268 B, to Keras weights:\n  {target}\n"
    assert main(["diff", str(CNN), str(target)]) == 0
    with h5py().File(target) as file:
        assert file["layers/conv2d/vars"].attrs["name"] == "stem"
