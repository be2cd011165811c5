"""Fuzz targets for the files that `convert` reads besides checkpoints, and for the JSON files next to checkpoints.

As in fuzz_targets.py: a function of bytes that returns or raises a CheckpointError. Values that are read must match the
shapes that were announced, and take no more memory than the limits of the readers allow.
"""

import contextlib
import io
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import torch
from golden_files import KERAS_FILES
from memory_storage import MemoryStorage

from torch_tfckpt.directory.retention_file import RetentionRecord
from torch_tfckpt.errors import CheckpointError
from torch_tfckpt.foreign_files.formats import open_source
from torch_tfckpt.foreign_files.npy_header import MAX_DIMENSIONS, decode_header
from torch_tfckpt.foreign_files.pickled_leaves import MAX_SHARED_VALUES, describe, named_leaves
from torch_tfckpt.foreign_files.pickled_values import decode_pickle
from torch_tfckpt.foreign_files.protocols import TensorSource
from torch_tfckpt.foreign_files.safetensors_format import parse_header
from torch_tfckpt.foreign_files.sidecar import read_sidecar
from torch_tfckpt.format.hdf5 import Hdf5File
from torch_tfckpt.format.recognise_text import SIDECAR_FORMAT
from torch_tfckpt.keras_files.layers import parse_config

Target = Callable[[bytes], None]
RETENTION_FILE: Final = "d/checkpoint.retention.json"
_MAX_VALUES: Final = 1000  # of a source, so that one input does not take seconds
_DIRECTORY: Final = tempfile.TemporaryDirectory(prefix="fuzz-")


def _file(name: str, data: bytes) -> Path:
    path = Path(_DIRECTORY.name, name)
    path.write_bytes(data)
    return path


def _use(path: Path) -> None:
    source: TensorSource = open_source(str(path))
    try:
        names = source.names()
        assert len(set(names)) == len(names)
        for name in names[:_MAX_VALUES]:
            try:
                info = source.info(name)
                value = source.read([name])[name]
            except CheckpointError as error:
                assert path.name in str(error) or len(source.files()) > 1
            else:
                assert isinstance(value, torch.Tensor | np.ndarray)
                assert tuple(value.shape) == info.shape
        for text in source.skipped.values():
            assert len(text) < 400
    finally:
        source.close()


def pickled_values(data: bytes) -> None:
    """The pickle of a .pt file."""
    count = 0
    for _, leaf in named_leaves(decode_pickle(data), len(data)):
        count += 1
        assert len(describe(leaf)) < 400
    assert count <= max(MAX_SHARED_VALUES, len(data))


def pt_pickle(data: bytes) -> None:
    """A .pt file with this pickle and one storage of 64 bytes."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", bytes(range(64)))
    _use(_file("m.pt", content.getvalue()))


def pt_file(data: bytes) -> None:
    """A whole .pt file."""
    _use(_file("m.pt", data))


def npy_header(data: bytes) -> None:
    """The dictionary at the start of a .npy file."""
    header = decode_header(data)
    assert len(header.shape) <= MAX_DIMENSIONS and header.type_name


def npz_member(data: bytes) -> None:
    """A .npz file with one array, stored or deflated."""
    content = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if data[:1] == b"\x01" else zipfile.ZIP_STORED
    with zipfile.ZipFile(content, "w", method) as archive:
        archive.writestr("x.npy", data[1:])
    _use(_file("m.npz", content.getvalue()))


def npz_file(data: bytes) -> None:
    """A whole .npz file."""
    _use(_file("m.npz", data))


def safetensors_header(data: bytes) -> None:
    """The header of a .safetensors file whose tensors have 16 bytes."""
    placed = parse_header(data, 8 + len(data) + 16)
    assert sum(entry.nbytes for entry in placed.values()) == 16


def safetensors_file(data: bytes) -> None:
    """A whole .safetensors file."""
    _use(_file("m.safetensors", data))


def shard_index(data: bytes) -> None:
    """The index of several .safetensors files, of which one exists."""
    _file("m-00001-of-00002.safetensors", _safetensors({"w": torch.ones(2)}))
    _use(_file("m.safetensors.index.json", data))


def sidecar(data: bytes) -> None:
    """A sidecar of files of 8 bytes."""
    found = read_sidecar(str(_file("x.tfckpt.json", data)), 8)
    assert found is not None
    for name, (info, value) in found.tensors.items():
        assert isinstance(name, str)
        assert not hasattr(value, "reshape") or tuple(value.shape) == info.shape


def retention_file(data: bytes) -> None:
    """The file with pins, protected checkpoints and metrics; none of them is outside its directory."""
    record = RetentionRecord()
    record.load(MemoryStorage({RETENTION_FILE: data, "d/m-1.index": b"", "d/m-2.index": b""}), "d")
    assert all(path.startswith("d/") for path in (*record.pins, *record.protected))


def hdf5_file(data: bytes) -> None:
    """An HDF5 file: its datasets are inside of it and share no bytes, so that they are not larger than the file."""
    opened = Hdf5File(lambda offset, size: data[offset : offset + size], len(data))
    waiting, nbytes = [opened.root], 0
    while waiting:
        group = waiting.pop()
        waiting += group.groups.values()
        for attribute in group.attributes.values():
            with contextlib.suppress(CheckpointError):
                opened.strings(attribute)
        for array in group.arrays.values():
            assert 0 <= array.offset <= len(data) - array.nbytes
            nbytes += array.nbytes
    assert nbytes <= len(data)


def keras_file(data: bytes) -> None:
    """A whole .keras, .weights.h5 or .h5 file, recognised by its contents."""
    _use(_file("m.h5", data))


def keras_index(data: bytes) -> None:
    """The index of several HDF5 files, of which one exists."""
    _file("m_00000.weights.h5", (KERAS_FILES / "m_00000.weights.h5").read_bytes())
    _use(_file("m.weights.json", data))


def keras_config(data: bytes) -> None:
    """The configuration of a Keras model."""
    for layer in parse_config(data).model.walk():
        assert len(layer.path) <= 1000


FOREIGN_TARGETS: Final[tuple[Target, ...]] = (
    *(pickled_values, pt_pickle, pt_file, npy_header, npz_member, npz_file),
    *(safetensors_header, safetensors_file, shard_index, sidecar, retention_file),
    *(hdf5_file, keras_file, keras_index, keras_config),
)


def _safetensors(tensors: dict[str, torch.Tensor]) -> bytes:
    import safetensors.torch

    return safetensors.torch.save(tensors)


def _pt_files() -> Iterator[bytes]:
    layer = torch.nn.Linear(2, 3)
    states: tuple[object, ...] = (
        {"w": torch.ones(2)},
        layer.state_dict(),
        {
            "t": torch.arange(6).view(2, 3).t(),
            "b": torch.ones(2, dtype=torch.bfloat16),
            "n": [1, (2.5, None, "x", True)],
        },
        {
            "p": layer.weight,
            "sparse": torch.eye(2).to_sparse(),
            "dtype": torch.float16,
            "u": torch.ones(1).to(torch.uint16),
        },
    )
    for state in states:
        content = io.BytesIO()
        torch.save(state, content)
        yield content.getvalue()


def _pickles() -> Iterator[bytes]:
    for data in _pt_files():
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            yield next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))


def _arrays() -> Iterator[np.ndarray]:
    yield np.ones(2, "f4")
    yield np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3))
    yield np.array(["ab", ""])
    yield np.array([b"a", b"bcd"])
    yield np.zeros(1, [("a", "<f4"), ("b", "<i2", (2,))])
    yield np.zeros(1, "M8[s]")
    yield np.array(1.5)


def _npy() -> Iterator[bytes]:
    for array in _arrays():
        content = io.BytesIO()
        np.save(content, array)
        yield content.getvalue()


def _npz() -> Iterator[bytes]:
    for save in (np.savez, np.savez_compressed):
        content = io.BytesIO()
        save(content, *_arrays())
        yield content.getvalue()


def _safetensors_files() -> Iterator[bytes]:
    yield _safetensors({"w": torch.ones(2), "x": torch.ones(1, 1, dtype=torch.float64)})
    yield _safetensors({"a": torch.arange(8, dtype=torch.bfloat16)})
    yield _safetensors({"e": torch.zeros(0, 3)})


def _headers() -> Iterator[bytes]:
    for data in _safetensors_files():
        yield data[8 : 8 + int.from_bytes(data[:8], "little")]


def _json(*contents: object) -> Callable[[], Iterator[bytes]]:
    return lambda: (json.dumps(content).encode() for content in contents)


def _configurations() -> Iterator[bytes]:
    for name in ("m.keras", "cnn.keras"):
        with zipfile.ZipFile(KERAS_FILES / name) as archive:
            yield archive.read("config.json")
    wrapper = {"class_name": "Bidirectional", "config": {"name": "b", "layer": {"class_name": "RNN", "config": {}}}}
    model = {"class_name": "Functional", "config": {"name": "m", "layers": [wrapper, {"class_name": 3, "config": {}}]}}
    scaled = {"class_name": "LossScaleOptimizer", "config": {"inner_optimizer": {"class_name": "Adam", "config": {}}}}
    yield json.dumps({**model, "compile_config": {"optimizer": scaled}}).encode()


FOREIGN_SEEDS: Final[dict[str, Callable[[], Iterator[bytes]]]] = {
    "pickled_values": _pickles,
    "pt_pickle": _pickles,
    "pt_file": _pt_files,
    "npy_header": lambda: (data[10 : 10 + int.from_bytes(data[8:10], "little")].rstrip() for data in _npy()),
    "npz_member": lambda: (bytes((number % 2,)) + data for number, data in enumerate(_npy())),
    "npz_file": _npz,
    "safetensors_header": _headers,
    "safetensors_file": _safetensors_files,
    "hdf5_file": lambda: (path.read_bytes() for path in sorted(KERAS_FILES.glob("*.h5"))),
    "keras_file": lambda: (path.read_bytes() for path in sorted(KERAS_FILES.iterdir()) if path.suffix != ".json"),
    "keras_index": _json(
        {"weight_map": {"/layers/dense/vars": "m_00000.weights.h5"}},
        {"weight_map": {"/vars": ["m_00000.weights.h5"], "/layers/dense/vars": "m_00000.weights.h5"}},
    ),
    "keras_config": _configurations,
    "shard_index": _json({"metadata": {"total_size": 8}, "weight_map": {"w": "m-00001-of-00002.safetensors"}}),
    "sidecar": _json(
        {
            "format": SIDECAR_FORMAT,
            "version": 1,
            "tensors": {
                "s": {"dtype": "DT_STRING", "shape": [2], "base64": ["aGVsbG8=", ""]},
                "v": {"dtype": "DT_VARIANT", "shape": [], "base64": "CgQI"},
                "f": {"dtype": "DT_FLOAT", "shape": [1], "base64": "AACAPw=="},
            },
            "types": {"k": "DT_QINT8", "e": "torch.float8_e8m0fnu"},
            "bytes": 8,
        }
    ),
    "retention_file": _json(
        {"version": 1, "best": None, "pins": ["m-1"], "protected": ["m-2"], "metrics": {"m-1": {"loss": 0.5}}},
        {
            "version": 1,
            "best": {"metric": "loss", "mode": "min", "k": 2},
            "pins": [],
            "protected": [],
            "metrics": {},
        },
    ),
}
