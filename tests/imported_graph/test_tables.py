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


@pytest.fixture(scope="module")
def changing(
    tensorflow: TensorFlowProcess, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[list[RawTensor]]]:
    """A .meta file whose saver stores two tables, with two checkpoints."""
    directory = tmp_path_factory.mktemp("changing")
    expected = tensorflow.call("tensorflow_tables.write_changing_tables", str(directory), WORDS)
    return directory / "model", expected


CHANGING = ["number:0", "row:0", "size:0"]


def test_each_restore_fills_the_tables(changing: tuple[Path, list[list[RawTensor]]]) -> None:
    """`run`, and modules that were made before, give what TensorFlow gives after a restore, whichever comes first."""
    prefix, expected = changing
    imported = tfckpt.import_meta_graph(f"{prefix}-1.meta")
    assert imported.saver is not None
    words = np.array(WORDS, dtype=object)
    unfilled = imported.module(inputs=["x:0"], outputs=["number:0"])
    assert unfilled(words)[0].tolist() == [-1] * 5
    modules = [unfilled]
    for step in (1, 0, 0, 1):
        imported.saver.restore(f"{prefix}-{step}")
        for module in modules:
            assert equals(module(words)[0], expected[step][0])
        found = imported.run(CHANGING, {"x": WORDS})
        assert [equals(*each) for each in zip(found, expected[step], strict=True)] == [True] * 3
        modules.append(imported.module(inputs=["x:0"], outputs=["number:0", "row:0"]))


def test_a_changed_table_is_saved(
    changing: tuple[Path, list[list[RawTensor]]], tensorflow: TensorFlowProcess, tmp_path: Path
) -> None:
    """A save stores what `run` has put into a table, and TensorFlow restores it; the other table is as it was."""
    prefix, _ = changing
    imported = tfckpt.import_meta_graph(f"{prefix}-1.meta")
    assert imported.saver is not None
    imported.saver.restore(f"{prefix}-0")
    imported.run("learn", {"x": [b"b", b"a"], "y": [1, 7]})
    first = imported.run(CHANGING, {"x": WORDS})
    assert first[0].tolist() == [7, 1, -1, -1, 1]
    saved = imported.saver.save(tmp_path / "changed")
    read = tensorflow.call("tensorflow_tables.read_changing_tables", str(saved), WORDS)
    assert [equals(*each) for each in zip(first, read, strict=True)] == [True] * 3
    imported.saver.restore(f"{prefix}-0")  # again as in the checkpoint
    assert imported.run("number", {"x": WORDS}).tolist() == [0, 1, -1, -1, -1]
    imported.saver.restore(str(saved))
    assert imported.run("number", {"x": WORDS}).tolist() == [7, 1, -1, -1, 1]


def test_a_table_that_was_never_restored_is_saved(
    changing: tuple[Path, list[list[RawTensor]]], tensorflow: TensorFlowProcess, tmp_path: Path
) -> None:
    """Nothing is restored: the tables are saved as the graph has filled them."""
    imported = tfckpt.import_meta_graph(f"{changing[0]}-1.meta")
    assert imported.saver is not None
    imported.variables["w"] = torch.tensor(2.0)
    imported.run(["learn", "row"], {"x": [b"b"], "y": [5]})
    saved = imported.saver.save(tmp_path / "new")
    read = tensorflow.call("tensorflow_tables.read_changing_tables", str(saved), WORDS)
    assert torch_of(read[0]).tolist() == [-1, -1, -1, -1, 5]
