"""The meta graphs in tests/golden, of TensorFlow 0.x to 2.21: values are those that TensorFlow read, and exports are
equal to the files."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from golden_files import GOLDEN, content_of
from tensorflow_process import RawTensor

import torch_tfckpt as tfckpt
from torch_tfckpt import ImportedMetaGraph, export_meta_graph, import_meta_graph
from torch_tfckpt.meta_graph.files import open_meta_graph
from torch_tfckpt.meta_graph.variables import saver_values

FILES = sorted(
    path.relative_to(GOLDEN).as_posix() for pattern in ("*/*.meta", "*/saved_model.pb") for path in GOLDEN.glob(pattern)
)
# Graphs whose saver does not restore all variables.
NOT_SAVED = {
    "graph-of-tensorflow-0.12/export.meta": {"global_step"},
    "digits-v1-sharded/export.meta": {"global_step"},
}


def expected_of(file: str) -> Mapping[str, Any]:
    return content_of((GOLDEN / file).parent)


def hashes_of(file: str) -> dict[str, str]:
    """Key -> hash of the value, as TensorFlow read it."""
    return {key: tensor["sha256"] for key, tensor in expected_of(file)["tensors"].items()}


def restored(file: str, source: Path, **options: Any) -> ImportedMetaGraph:
    """Import `source`, and restore the checkpoint of `file`."""
    imported = import_meta_graph(source, **options)
    assert imported.saver is not None
    imported.saver.restore((GOLDEN / file).parent / expected_of(file)["prefix"])
    return imported


def names_of(file: str) -> dict[str, str]:
    """Key -> name of its variable (the whole of a partitioned one); strings about the checkpoint itself have none."""
    stored = saver_values(open_meta_graph(GOLDEN / file))
    assert stored is not None and {value.key for value in stored} == hashes_of(file).keys()
    nobodys = {value.key for value in stored if not value.variables}
    assert nobodys <= {"_CHECKPOINTABLE_OBJECT_GRAPH"}
    graph = tfckpt.load_checkpoint((GOLDEN / file).parent / expected_of(file)["prefix"]).object_graph
    if graph is None:
        return {value.key: value.key if value.slice_spec else name for value in stored for name in value.variables}
    # Keras 3 stores each variable that a function reads twice: it is one variable.
    names = {variable.checkpoint_key: variable.full_name for variable in graph.variables()}
    times = Counter(name for key, name in names.items() if not key.startswith("_all_variables/"))
    return {key: name if times[name] == 1 else key.partition("/.ATTR")[0] for key, name in names.items()}


def test_vintages() -> None:
    """There are files of all times: before version 1, 1.x, 2.x; with and without versions in them."""
    versions = {open_meta_graph(GOLDEN / file).info.tensorflow_version for file in FILES}
    assert len(FILES) == 14
    assert {version[:2] for version in versions} == {"", "0.", "1.", "2."}


@pytest.mark.parametrize(
    "options", [{}, {"import_scope": "imp"}, {"clear_devices": True}], ids=["", "scope", "devices"]
)
@pytest.mark.parametrize("file", FILES)
def test_values(file: str, options: dict[str, Any]) -> None:
    """Each variable has the value that TensorFlow read under its key; there are no others except unsaved ones."""
    imported, hashes, names = restored(file, GOLDEN / file, **options), hashes_of(file), names_of(file)
    prefix = f"{imported.import_scope}/" if imported.import_scope else ""
    assert {key: RawTensor.of(imported.variables[f"{prefix}{name}"]).sha256 for key, name in names.items()} == {
        key: hashes[key] for key in names
    }
    others = {name.removeprefix(prefix) for name in imported.variables} - set(names.values())
    assert others == NOT_SAVED.get(file, set())


@pytest.mark.parametrize("file", FILES)
def test_saving_again(tmp_path: Path, file: str) -> None:
    """The whole checkpoint is saved, including strings without a variable; and the meta graph is unchanged."""
    imported = restored(file, GOLDEN / file)
    assert imported.saver is not None
    path = imported.saver.save(tmp_path / "m")
    assert path is not None
    with tfckpt.load_checkpoint(path) as reader:
        assert {key: RawTensor.of(reader.get_tensor(key)).sha256 for key in reader.keys()} == hashes_of(file)
    assert import_meta_graph(tmp_path / "m.meta").export_meta_graph() == imported.meta_graph_def


@pytest.mark.parametrize("file", FILES)
def test_exports_are_byte_identical(tmp_path: Path, file: str) -> None:
    """With the file's name: a saved_model.pb is a SavedModel again."""
    path = tmp_path / "new" / Path(file).name
    imported = import_meta_graph(GOLDEN / file)
    imported.export_meta_graph(path)
    assert path.read_bytes() == (GOLDEN / file).read_bytes()
    export_meta_graph(path, graph=restored(file, path))
    assert path.read_bytes() == (GOLDEN / file).read_bytes()


@pytest.mark.parametrize("file", FILES)
def test_text(tmp_path: Path, file: str) -> None:
    """The text form gives the same variables and values, and the same text."""
    name = {".pb": "saved_model.pbtxt"}.get(Path(file).suffix, "text.meta")
    import_meta_graph(GOLDEN / file).export_meta_graph(tmp_path / name, as_text=True)
    again = restored(file, tmp_path / name)
    assert {key: RawTensor.of(again.variables[name]).sha256 for key, name in names_of(file).items()} == {
        key: hash_ for key, hash_ in hashes_of(file).items() if key in names_of(file)
    }
    (tmp_path / "again").mkdir()
    again.export_meta_graph(tmp_path / "again" / name, as_text=True)
    assert (tmp_path / "again" / name).read_text() == (tmp_path / name).read_text()
