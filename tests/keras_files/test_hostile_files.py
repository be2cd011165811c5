"""Damaged and hostile HDF5 files and archives: an error that names the file, in bounded time and memory."""

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_files import KERAS_FILES
from hdf5_files import KERNEL, Change, h5py, keras_weights

import torch_tfckpt as tfckpt
from torch_tfckpt.errors import CheckpointError
from torch_tfckpt.format.hdf5 import Hdf5File
from torch_tfckpt.text import printable


def refused(path: Path) -> str:
    """Read everything; return the error, which names the file."""
    with pytest.raises((tfckpt.DataLossError, tfckpt.UnimplementedError, tfckpt.NotFoundError)) as error:
        tfckpt.load_file(path)
    assert printable(str(path)) in str(error.value)
    return str(error.value)


def test_files_of_h5py_are_read(tmp_path: Path) -> None:
    """The file that the other tests change; also after a block of user data, and in the newer form of HDF5."""
    for options in ({}, {"userblock_size": 1024}, {"libver": "latest"}, {"track_order": True}):
        found = tfckpt.load_file(keras_weights(tmp_path / "m.h5", **options))
        assert found["m/fc/kernel"].tolist() == KERNEL.tolist()
        assert found["m/fc/bias"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "dtype",
    ["f2", "f4", "f8", ">f4", ">f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i2", ">u8", "?"],
)
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_element_types(tmp_path: Path, dtype: str, libver: str) -> None:
    """All types of numpy that tensors have, in both byte orders."""
    value = np.array([[0, 1, 2], [1, 0, 3]]).astype(dtype)

    def change(file: Any) -> None:
        file["layers/dense/vars"].create_dataset("2", data=value)

    path = keras_weights(tmp_path / "m.h5", change, libver=libver)
    with tfckpt.load_checkpoint(path) as reader:
        assert "layers/dense/vars/2" in reader
        found = reader.get_tensor("layers/dense/vars/2")
        part = reader.get_slice("layers/dense/vars/2")[1:, :2]
    assert found.numpy().tolist() == value.tolist()
    assert found.numpy().dtype == np.dtype(dtype).newbyteorder("=")
    assert part.tolist() == value[1:, :2].tolist()


def test_empty_and_odd_datasets(tmp_path: Path) -> None:
    """Empty tensors are read; strings, compounds and null dataspaces are named as omitted."""

    def change(file: Any) -> None:
        group = file.create_group("layers/dense_1/vars")
        group["0"] = np.zeros((0, 3), "f4")
        group["1"] = np.float32(2)
        file["extra/text"] = "abc"
        file["extra/pair"] = np.zeros(2, [("a", "f4"), ("b", "i2")])
        file["extra/null"] = h5py().Empty("f4")

    with tfckpt.load_checkpoint(keras_weights(tmp_path / "m.h5", change)) as reader:
        assert reader["layers/dense_1/vars/0"].shape == (0, 3) and reader["layers/dense_1/vars/1"] == 2
        assert reader.keras is not None
        assert reader.keras.skipped == {
            "extra/text": "a string",
            "extra/pair": "a compound",
            "extra/null": "an empty dataset",
        }


def _external_link(file: Any) -> None:
    file["layers/other"] = h5py().ExternalLink("/etc/passwd", "/x")


def _soft_link(file: Any) -> None:
    file["layers/other"] = h5py().SoftLink("/layers/dense")


def _hard_link(file: Any) -> None:
    file["layers/dense/vars/2"] = file["layers/dense/vars/0"]


def _cycle(file: Any) -> None:
    file["layers/dense/again"] = file["layers"]


def _external_data(file: Any) -> None:
    file.create_dataset("x", (4,), "u1", external=[("/etc/passwd", 0, 4)])


def _virtual(file: Any) -> None:
    layout = h5py().VirtualLayout((4,), "u1")
    layout[:] = h5py().VirtualSource("other.h5", "x", (4,))
    file.create_virtual_dataset("x", layout)


def _chunked(file: Any) -> None:
    file.create_dataset("x", (2**40,), "f4", chunks=(1024,), compression="gzip")


def _never_written(file: Any) -> None:
    file.create_dataset("x", (2**40,), "f4")


def _deep(file: Any) -> None:
    file.create_group("/".join("abcdefghij" * 10))


def _many(file: Any) -> None:
    group = file.create_group("layers/dense/more")
    for number in range(20):
        group[f"{number}"] = np.zeros(1)


def _typed(file: Any) -> None:
    file["kind"] = np.dtype("f4")
    file.create_dataset("x", (2,), dtype=file["kind"])


@pytest.mark.parametrize(
    ("change", "problem", "options"),
    [
        (_external_link, '"other" is a link to another file, which is not followed', {}),
        (_soft_link, '"other" is a soft link, which is not followed', {}),
        (_external_link, '"other" is a link to another file, which is not followed', {"libver": "latest"}),
        (_soft_link, '"other" is a soft link, which is not followed', {"libver": "latest"}),
        (_hard_link, "belongs to two structures", {}),
        (_cycle, "belongs to two structures", {}),
        (_cycle, "belongs to two structures", {"libver": "latest"}),
        (_external_data, "in another file, which is not opened", {}),
        (_virtual, "a virtual dataset, whose values are in other files", {}),
        (_chunked, "stored in chunks", {}),
        (_never_written, "takes 4398046511104 bytes, but the dataset has 0", {}),
        (_deep, "groups are nested more than", {}),
        (_many, "libver='latest'", {"libver": "latest"}),
        (_typed, "has a shared datatype", {}),
    ],
    ids=[
        *("external", "soft", "new external", "new soft", "hard", "cycle", "new cycle", "raw", "virtual", "chunked"),
        *("unwritten", "deep", "dense", "committed"),
    ],
)  # fmt: skip
def test_parts_that_keras_does_not_use(tmp_path: Path, change: Change, problem: str, options: dict[str, Any]) -> None:
    """Each is refused by name, and no other file is opened."""
    assert problem in refused(keras_weights(tmp_path / "m.h5", change, **options))


def test_hdf5_files_of_others(tmp_path: Path) -> None:
    """An HDF5 file that is not one of Keras is refused, not listed under its own names."""
    with h5py().File(tmp_path / "m.h5", "w") as file:
        file["images"] = np.zeros((4, 4))
    assert "but not from Keras" in refused(tmp_path / "m.h5")


@pytest.mark.parametrize("name", ["m.keras", "m.weights.h5", "weights.h5", "m.weights.json"])
def test_truncated_anywhere(tmp_path: Path, name: str) -> None:
    """At 200 places: an error."""
    for other in KERAS_FILES.iterdir():
        shutil.copy(other, tmp_path)
    whole = (KERAS_FILES / name).read_bytes()
    for size in np.linspace(1, len(whole) - 1, 200, dtype=int).tolist():
        (tmp_path / name).write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            tfckpt.load_file(tmp_path / name)


def test_truncated_shards(tmp_path: Path) -> None:
    """A shard that is missing or cut is named."""
    shutil.copy(KERAS_FILES / "m.weights.json", tmp_path)
    assert '"m_00000.weights.h5" is missing' in refused(tmp_path / "m.weights.json")
    (tmp_path / "m_00000.weights.h5").write_bytes((KERAS_FILES / "m_00000.weights.h5").read_bytes()[:5000])
    assert "m_00000.weights.h5: incomplete" in refused(tmp_path / "m.weights.json")


@pytest.mark.parametrize(
    ("weight_map", "problem"),
    [
        ({"/x": "../m_00000.weights.h5"}, "not a plain file name"),
        ({"/x": "/tmp/m_00000.weights.h5"}, "not a plain file name"),
        ({"/x": ["m_00000.weights.h5", 3]}, "not a plain file name"),
        ({"/x": "m_00000.weights.h5", "/y": "twice.weights.h5"}, "is in several files"),
        ({"/x": "m_00000.weights.h5", "/y": [f"{n}.weights.h5" for n in range(10_001)]}, "at most 10000 are opened"),
    ],
    ids=["parent", "absolute", "number", "twice", "many"],
)
def test_hostile_indexes(tmp_path: Path, weight_map: dict[str, Any], problem: str) -> None:
    for name in ("m_00000.weights.h5", "twice.weights.h5"):
        shutil.copy(KERAS_FILES / "m_00000.weights.h5", tmp_path / name)
    (tmp_path / "m.weights.json").write_text(json.dumps({"weight_map": weight_map}))
    assert problem in refused(tmp_path / "m.weights.json")


def archive(path: Path, members: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as target:
        for name, content in members:
            target.writestr(name, content)
    return path


WEIGHTS = (KERAS_FILES / "m.weights.h5").read_bytes()
CONFIG = b'{"class_name": "Sequential", "config": {"name": "m", "layers": []}}'
METADATA = b'{"keras_version": "3.15.1"}'


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("members", "method", "problem"),
    [
        ([("model.weights.h5", WEIGHTS)], zipfile.ZIP_DEFLATED, "is compressed"),
        ([("model.weights.h5", WEIGHTS), ("model.weights.h5", WEIGHTS)], zipfile.ZIP_STORED, "is stored twice"),
        ([("model.weights.h5", WEIGHTS), ("../x", b"")], zipfile.ZIP_STORED, 'it contains ".."'),
        ([("model.weights.h5", WEIGHTS), ("/x", b"")], zipfile.ZIP_STORED, "an absolute path"),
        ([("model.weights.npz", b"")], zipfile.ZIP_STORED, "has no model.weights.h5; it has"),
        ([("model.weights.h5", b"no HDF5" * 20)], zipfile.ZIP_STORED, "not an HDF5 file"),
        ([("model.weights.h5", WEIGHTS[:6000])], zipfile.ZIP_STORED, "incomplete"),
    ],
    ids=["compressed", "twice", "parent", "absolute", "npz", "not HDF5", "cut"],
)
def test_hostile_archives(tmp_path: Path, members: list[tuple[str, bytes]], method: int, problem: str) -> None:
    content = [("config.json", CONFIG), ("metadata.json", METADATA), *members]
    assert problem in refused(archive(tmp_path / "m.keras", content, method))


@pytest.mark.parametrize(
    ("at", "value", "problem"),
    [
        (8, (1).to_bytes(2, "little"), "is encrypted"),
        (20, (2**31).to_bytes(4, "little"), "damaged zip archive"),
        (20, (0).to_bytes(4, "little"), "model.weights.h5"),
        (42, (2**31).to_bytes(4, "little"), "model.weights.h5"),
        (42, (0).to_bytes(4, "little"), "model.weights.h5"),
    ],
    ids=["encrypted", "too large", "empty", "outside", "another member"],
)
def test_hostile_directories_of_archives(tmp_path: Path, at: int, value: bytes, problem: str) -> None:
    """An entry of the archive's directory that is not true is refused by the name of the member."""
    members = [("config.json", CONFIG), ("metadata.json", METADATA), ("model.weights.h5", WEIGHTS)]
    path = archive(tmp_path / "m.keras", members)
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02")
    content[entry + at : entry + at + len(value)] = value
    path.write_bytes(content)
    assert problem in refused(path)


def test_configuration_bombs(tmp_path: Path) -> None:
    """A configuration of 100 MB of zeros, compressed to 100 kB, is not unpacked."""
    for config, problem in ((b"0" * 100_000_000, "at most 16777216 are read"), (b"[" * 100_000, "nested|valid JSON")):
        path = archive(tmp_path / "m.keras", [("metadata.json", METADATA)])
        with zipfile.ZipFile(path, "a") as target:
            target.writestr("config.json", config, zipfile.ZIP_DEFLATED)
            target.writestr("model.weights.h5", WEIGHTS)
        with pytest.raises(tfckpt.DataLossError, match=problem):
            tfckpt.load_file(path)


def test_many_references_to_one_string(tmp_path: Path) -> None:
    """An attribute of 4,000 strings that are all the same 1 MB takes no more memory than the file."""
    path = tmp_path / "m.h5"
    with h5py().File(path, "w") as file:
        file.attrs["layer_names"] = np.array(["a"] * 4000, dtype=h5py().string_dtype())
        file.attrs["long"] = "x" * 1_000_000
    content = bytearray(path.read_bytes())
    long = content.index((1_000_000).to_bytes(4, "little"))
    reference = bytes(content[long : long + 16])  # size: u32le | address of the heap: u64le | number in it: u32le
    one = (1).to_bytes(4, "little")
    short = next(at for at in range(len(content)) if content[at : at + 4] == content[at + 16 : at + 20] == one)
    content[short : short + 16 * 4000] = reference * 4000
    path.write_bytes(content)
    assert "larger than the file" in refused(path)


def test_datasets_that_share_bytes(tmp_path: Path) -> None:
    """Many datasets with the same bytes would take more memory than the file."""
    path = keras_weights(tmp_path / "m.h5")
    content = path.read_bytes()
    opened = Hdf5File(lambda offset, size: content[offset : offset + size], len(content))
    variables = opened.root.groups["layers"].groups["dense"].groups["vars"].arrays
    kernel, bias = (variables[name].offset.to_bytes(8, "little") for name in ("0", "1"))
    assert content.count(bias) == 1
    path.write_bytes(content.replace(bias, kernel))
    assert "overlap at byte" in refused(path)


def test_damage_in_an_archive_is_found(tmp_path: Path) -> None:
    """verify compares the checksums of the archive; an HDF5 file has none, and the report says so."""
    whole = bytearray((KERAS_FILES / "m.keras").read_bytes())
    with tfckpt.load_checkpoint(KERAS_FILES / "m.keras") as reader:
        value = reader["m/fc/kernel"].numpy().tobytes()
    whole[whole.index(value)] ^= 1
    (tmp_path / "m.keras").write_bytes(whole)
    found = tfckpt.verify(tmp_path / "m.keras")
    assert not found.ok and "Bad CRC-32" in str(found) and found.has_checksums
    found = tfckpt.verify(KERAS_FILES / "m.weights.h5")
    assert found.ok and not found.has_checksums and "HDF5 has no checksums" in str(found)


def test_files_stay_open(tmp_path: Path) -> None:
    """Values do not change while another program replaces the file; a closed reader says so."""
    path = Path(shutil.copy(KERAS_FILES / "m.weights.h5", tmp_path))
    with tfckpt.load_checkpoint(path) as reader:
        os.replace(shutil.copy(KERAS_FILES / "weights.h5", tmp_path), path)
        assert reader["m/fc/kernel"].shape == (2, 1)
    with pytest.raises(tfckpt.FailedPreconditionError, match="is closed"):
        reader.get_tensor("m/fc/kernel")


def test_names_of_tensors_that_do_not_exist() -> None:
    with tfckpt.load_checkpoint(KERAS_FILES / "m.keras") as reader:
        with pytest.raises(tfckpt.NotFoundError, match='Closest: "m/fc/kernel"'):
            reader.get_tensor("m/fc/kernle")
