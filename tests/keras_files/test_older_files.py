"""Files that Keras 3 does not write: of Keras 2, of TensorFlow 2.12, and tf_model.h5 of transformers.

Keras 2 stores no names of layers in .keras files, and in older .h5 files names end in ":0". These files are made from
those of Keras 3, or written by h5py as Keras 2 wrote them.
"""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_files import KERAS_FILES
from hdf5_files import h5py

import torch_tfckpt as tfckpt

CNN = {"stem/kernel", "norm/gamma", "norm/beta", "norm/moving_mean", "norm/moving_variance", "head/kernel", "head/bias"}


def as_keras_2(path: Path, *, layers: str = "layers", config: bool = True) -> Path:
    """Write cnn.keras as Keras 2 would: without names of layers."""
    with zipfile.ZipFile(KERAS_FILES / "cnn.keras") as source:
        members = {name: source.read(name) for name in source.namelist()}
    weights = path.with_suffix(".weights.h5")
    weights.write_bytes(members["model.weights.h5"])
    with h5py().File(weights, "r+") as file:

        def strip(name: str, item: Any) -> None:
            item.attrs.pop("name", None)

        file.visititems(strip)
        file.move("layers", "moved")
        file.move("moved", layers)
    if not config:
        return weights
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("metadata.json", '{"keras_version": "2.21.0"}')
        target.writestr("config.json", members["config.json"])
        target.writestr("model.weights.h5", weights.read_bytes())
    return path


@pytest.mark.parametrize("layers", ["layers", "_layer_checkpoint_dependencies"])
def test_names_from_the_configuration(tmp_path: Path, layers: str) -> None:
    """The names of the layers come from the configuration, by counting the layers of a class."""
    found = tfckpt.load_file(as_keras_2(tmp_path / "m.keras", layers=layers))
    expected = tfckpt.load_file(KERAS_FILES / "cnn.keras")
    assert set(found) == set(expected) == CNN
    assert all(found[name].tolist() == expected[name].tolist() for name in CNN)


def test_weights_without_names(tmp_path: Path) -> None:
    """Without configuration, nothing tells the names of the layers: all tensors keep their places in the file."""
    with tfckpt.load_checkpoint(as_keras_2(tmp_path / "m.keras", config=False)) as reader:
        assert reader.keras is not None
        assert set(reader.keys()) == reader.keras.unnamed
        assert "layers/conv2d/vars/0" in reader


def legacy(path: Path, weights: dict[str, dict[str, np.ndarray]], *, split: bool = False, whole: bool = False) -> Path:
    """Write weights in the older form: layer -> name -> value."""

    def strings(group: Any, name: str, values: list[str]) -> None:
        encoded = [value.encode() for value in values]
        if not split:
            group.attrs[name] = encoded
        for number, value in enumerate(encoded if split else ()):
            group.attrs[f"{name}{number}"] = [value]

    with h5py().File(path, "w") as file:
        root = file.create_group("model_weights") if whole else file
        root.attrs["keras_version"] = b"2.4.0"
        strings(root, "layer_names", list(weights))
        for layer, values in weights.items():
            group = root.create_group(layer)
            strings(group, "weight_names", list(values))
            for name, value in values.items():
                group[name] = value
        if whole:
            optimizer = file.create_group("optimizer_weights")
            strings(optimizer, "weight_names", ["Adam/iter:0", "Adam/dense/kernel/m:0"])
            optimizer["Adam/iter:0"] = np.int64(3)
            optimizer["Adam/dense/kernel/m:0"] = np.zeros((2, 3), "f4")
    return path


ONE, TWO = np.ones((2, 3), "f4"), np.full((2, 3), 2, "f4")


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_older_form(tmp_path: Path, split: bool, whole: bool) -> None:
    """Names are those of the attributes, which may be split, without ":0"; those of the optimizer are apart."""
    weights = {"dense": {"dense/kernel:0": ONE, "dense/bias:0": np.ones(3, "f4")}, "flatten": {}}
    with tfckpt.load_checkpoint(legacy(tmp_path / "m.h5", weights, split=split, whole=whole)) as reader:
        names = {"dense/kernel", "dense/bias"}
        slots = {"Adam/iter", "Adam/dense/kernel/m"} if whole else set()
        assert set(reader.keys()) == names | slots
        assert reader.keras is not None and reader.keras.of_optimizer == slots and not reader.keras.unnamed
        assert reader["dense/kernel"].tolist() == ONE.tolist()


def test_models_inside_of_models(tmp_path: Path) -> None:
    """Keras 2 may give one name to the layers of two models: then the names of the models come first."""
    weights = {"left": {"dense/kernel:0": ONE}, "right": {"dense/kernel:0": TWO}, "top": {"top/kernel:0": ONE}}
    found = tfckpt.load_file(legacy(tmp_path / "m.h5", weights))
    assert {name: float(value[0, 0]) for name, value in found.items()} == {
        "left/dense/kernel": 1, "right/dense/kernel": 2, "top/kernel": 1
    }  # fmt: skip


def test_models_of_transformers(tmp_path: Path) -> None:
    name = "tf_bert_model/bert/encoder/layer_._0/attention/self/query/kernel:0"
    found = tfckpt.load_file(legacy(tmp_path / "tf_model.h5", {"bert": {name: ONE}}))
    assert list(found) == [name.removesuffix(":0")]


def test_parts_of_models_of_transformers(tmp_path: Path) -> None:
    """A large tf_model.h5 is stored in parts, in which layer_names lists datasets; they have an index."""
    weights = {"bert/layer_0/query/kernel:0": ONE, "bert/layer_1/query/kernel:0": TWO}
    parts = [f"tf_model-0000{number}-of-00002.h5" for number in (1, 2)]
    for part, (name, value) in zip(parts, weights.items(), strict=True):
        with h5py().File(tmp_path / part, "w") as file:
            file[name] = value
            file.attrs["layer_names"] = [name.encode()]
    index = tmp_path / "tf_model.h5.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 48}, "weight_map": dict(zip(weights, parts, strict=True))}))
    expected = {name.removesuffix(":0"): value.tolist() for name, value in weights.items()}
    assert {name: value.tolist() for name, value in tfckpt.load_file(index).items()} == expected
    assert list(tfckpt.load_file(tmp_path / parts[1])) == ["bert/layer_1/query/kernel"]
    query = torch.nn.Linear(2, 3, bias=False)
    layer = torch.nn.ModuleDict({"query": query})
    module = torch.nn.ModuleDict({"bert": torch.nn.ModuleDict({"layer_0": layer})})
    report = tfckpt.load_model(module, index, strict=False)
    assert query.weight.T.tolist() == ONE.tolist()
    assert report.unexpected == ["bert/layer_1/query/kernel"]


@pytest.mark.parametrize(
    ("layers", "names", "problem"),
    [
        (["other"], ["kernel"], "there is no such group"),
        (["dense"], ["other/kernel"], "there is no such dataset"),
        (["dense"], ["/kernel"], "there is no such dataset"),
        (["dense"], ["../dense/kernel"], "there is no such dataset"),
    ],
)
def test_names_that_do_not_exist(tmp_path: Path, layers: list[str], names: list[str], problem: str) -> None:
    """A name in an attribute that leads nowhere is an error, and never leads out of its group."""
    with h5py().File(tmp_path / "m.h5", "w") as file:
        file.attrs["layer_names"] = layers
        group = file.create_group("dense")
        group.attrs["weight_names"] = names
        group["kernel"] = ONE
    with pytest.raises(tfckpt.DataLossError, match=problem):
        tfckpt.load_file(tmp_path / "m.h5")
