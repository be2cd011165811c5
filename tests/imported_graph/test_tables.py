"""Lookup tables of imported graphs have the contents that TensorFlow gives them, and are filled before their use."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from op_rows import torch_of
from tensorflow_process import RawTensor, TensorFlowProcess

import torch_tfckpt as tfckpt

WORDS = [b"a", b"zz", b"c", b"", b"b"]
OUTPUTS = ("constant", "file", "names", "size")


def equals(found: Any, expected: RawTensor) -> bool:
    if expected.dtype == "string":
        return isinstance(found, np.ndarray) and list(found.flat) == expected.strings()
    theirs = torch_of(expected)
    return isinstance(found, torch.Tensor) and found.dtype == theirs.dtype and torch.equal(found, theirs)


@pytest.fixture(scope="module")
def version_1(tensorflow: TensorFlowProcess, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[RawTensor]]:
    """A .meta file whose tables are filled from constants and from a file in its directory."""
    directory = tmp_path_factory.mktemp("version_1")
    (directory / "words.txt").write_bytes(b"b\r\na\nlonger line\nc")
    words = str(directory / "words.txt")
    expected = tensorflow.call("tensorflow_tables.write_tables_of_version_1", str(directory), words, WORDS)
    return directory / "model.meta", expected


@pytest.fixture(scope="module")
def version_2(
    tensorflow: TensorFlowProcess, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, RawTensor]]:
    """A SavedModel with a table in an asset, and two in its checkpoint."""
    directory = tmp_path_factory.mktemp("version_2")
    (directory / "values.csv").write_bytes(b"a,1.5\nb,-2e3,unused\n")
    expected = tensorflow.call(
        "tensorflow_tables.write_tables_of_version_2", str(directory / "saved"), str(directory / "values.csv"), WORDS
    )
    return directory / "saved", expected


def test_meta(version_1: tuple[Path, list[RawTensor]]) -> None:
    """Each table is filled when a request needs it, whether a checkpoint was restored or not."""
    path, expected = version_1
    imported = tfckpt.import_meta_graph(path)
    found = imported.run(list(OUTPUTS), {"x": WORDS})
    assert [equals(*each) for each in zip(found, expected, strict=True)] == [True] * 4
    again = imported.run("constant", {"x": WORDS[:1]})
    assert again.tolist() == [1.5]


def test_meta_module(version_1: tuple[Path, list[RawTensor]]) -> None:
    """A module has filled tables."""
    path, expected = version_1
    module = tfckpt.import_meta_graph(path).module(inputs=["x:0"], outputs=["file:0"])
    assert equals(module(np.array(WORDS, dtype=object))[0], expected[1])


def test_missing_file(version_1: tuple[Path, list[RawTensor]], tmp_path: Path) -> None:
    """Only a request that needs the table fails, and says which file is missing and where it must be."""
    moved = shutil.copy(version_1[0], tmp_path)
    imported = tfckpt.import_meta_graph(moved)
    assert imported.run("constant", {"x": WORDS[:1]}).tolist() == [1.5]
    with pytest.raises(tfckpt.NotFoundError, match=r"words\.txt"):
        imported.run("file", {"x": WORDS})
    (tmp_path / "words.txt").write_bytes(b"a\n")
    assert imported.run("file", {"x": WORDS[:1]}).tolist() == [0]


def test_other_directories_are_not_read(version_1: tuple[Path, list[RawTensor]], tmp_path: Path) -> None:
    """The graph names a file of another directory, which exists; it is not read."""
    inner = tmp_path / "inner"
    inner.mkdir()
    moved = shutil.copy(version_1[0], inner)
    with pytest.raises(tfckpt.NotFoundError, match="is no"):
        tfckpt.import_meta_graph(moved).run("names", {"x": WORDS})


def test_saved_model(version_2: tuple[Path, dict[str, RawTensor]]) -> None:
    """Tables come from assets and from the SavedModel's checkpoint."""
    path, expected = version_2
    imported = tfckpt.import_meta_graph(path)
    outputs = {name: info.name for name, info in imported.signatures["serving_default"].outputs.items()}
    (given,) = imported.signatures["serving_default"].inputs.values()
    found = imported.run(outputs, {given.name: WORDS})
    assert {name: equals(value, expected[name]) for name, value in found.items()} == dict.fromkeys(expected, True)
    module = imported.module(signature="serving_default")
    (name,) = imported.signatures["serving_default"].inputs
    assert equals(module(**{name: np.array(WORDS, dtype=object)})["rows"], expected["rows"])
