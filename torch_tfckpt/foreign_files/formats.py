"""Which format a path means, for reading and for writing."""

import os
import zipfile
from typing import Final

from torch_tfckpt.errors import DataLossError, InvalidArgumentError
from torch_tfckpt.foreign_files.format_names import FORMATS, SUFFIXES
from torch_tfckpt.foreign_files.npz import NpzSink, NpzSource, zip_errors
from torch_tfckpt.foreign_files.protocols import TensorSink, TensorSource
from torch_tfckpt.foreign_files.pt import PtSink, PtSource
from torch_tfckpt.foreign_files.safetensors import INDEX_SUFFIX, SafetensorsSink, SafetensorsSource, find_in_directory
from torch_tfckpt.foreign_files.sidecar import read_sidecar, sidecar_of
from torch_tfckpt.foreign_files.sidecar_source import SidecarSource
from torch_tfckpt.foreign_files.tensorflow import CheckpointSink, CheckpointSource
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.text import printable, quoted

_SAFETENSORS_HEAD: Final = 9  # size of the header, and the brace with which it begins


def format_of(path: str) -> str:
    """The format that lies at `path`, one of FORMATS. What nothing else claims is a TensorFlow checkpoint.

    Contents decide over names, since people call files as they like: Lightning's .ckpt is a .pt.
    """
    if LOCAL.is_directory(path):
        return "tf" if _is_tensorflow_directory(path) or find_in_directory(path) is None else "safetensors"
    if path.endswith(INDEX_SUFFIX):
        return "safetensors"
    named = SUFFIXES.get(os.path.splitext(path)[1].lower(), "tf")
    if not LOCAL.exists(path):
        return named
    file = LOCAL.open(path)
    try:
        head = file.read(0, min(_SAFETENSORS_HEAD, file.size))
    finally:
        file.close()
    if head.startswith(b"PK\x03\x04"):
        return "npz" if named != "pt" and _holds_arrays(path) else "pt"
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") <= file.size:
        return "safetensors"
    return named


def open_source(path: str) -> TensorSource:
    """Whatever lies at `path`, with its sidecar.

    Args:
        path: Any spelling of a TensorFlow checkpoint that CheckpointReader takes; a .safetensors file, the index of
            several or the directory with it; a .pt or .npz file.

    Raises:
        NotFoundError, DataLossError, InvalidArgumentError, UnimplementedError: as the readers of these formats.
    """
    source = _open_bare(path)
    try:
        sidecar_path = sidecar_of(source.path)
        sidecar = read_sidecar(sidecar_path, source.data_bytes()) if LOCAL.exists(sidecar_path) else None
        return source if sidecar is None else SidecarSource(source, sidecar, sidecar_path)
    except BaseException:
        source.close()
        raise


def _open_bare(path: str) -> TensorSource:
    kind = format_of(path)
    if kind == "pt":
        return PtSource(path)
    if kind == "npz":
        return NpzSource(path)
    if kind == "tf":
        return CheckpointSource(path)
    found = find_in_directory(path) if LOCAL.is_directory(path) else path
    assert found is not None, "format_of looked"
    return SafetensorsSource.of_index(found) if found.endswith(INDEX_SUFFIX) else SafetensorsSource.of_file(found)


def make_sink(path: str, to: str | None, max_shard_size: int | None) -> TensorSink:
    """The target that `path` means. Touches no file.

    Args:
        to: One of FORMATS; None: by the ending of `path`.
        max_shard_size: Bytes a file of safetensors.

    Raises:
        InvalidArgumentError: nothing says which format, or two things say different ones.
    """
    ending = SUFFIXES.get(os.path.splitext(path)[1].lower())
    directory = path.endswith(os.sep) or LOCAL.is_directory(path)
    kind = to or ending
    if kind is None:
        raise InvalidArgumentError(
            f"{printable(path)}: the name does not tell the format. End it with .safetensors, .pt or .npz, or say "
            f"--to {'|'.join(FORMATS)}"
        )
    if kind not in FORMATS:
        raise InvalidArgumentError(f"format {quoted(kind)} is unknown; there are {', '.join(FORMATS)}")
    if ending is not None and ending != kind:
        raise InvalidArgumentError(f"{printable(path)} is named like {ending}, and {kind} was asked for")
    if max_shard_size is not None and kind != "safetensors":
        raise InvalidArgumentError(f"a maximum size of shards is for safetensors; {kind} has one data file")
    if max_shard_size is not None and max_shard_size < 1:
        raise InvalidArgumentError(f"max_shard_size={max_shard_size}: shards have a byte at least")
    if kind == "safetensors":
        return SafetensorsSink(path if ending else os.path.join(path, "model.safetensors"), max_shard_size)
    if directory:
        example = {"tf": "model.ckpt", "pt": "model.pt", "npz": "model.npz"}[kind]
        raise InvalidArgumentError(f"{printable(path)} is a directory; name a file in it, as {example}")
    if kind == "pt":
        return PtSink(path)
    return NpzSink(path) if kind == "npz" else CheckpointSink(path)


def _is_tensorflow_directory(path: str) -> bool:
    names = LOCAL.list(path)
    return any(name in ("checkpoint", "saved_model.pb", "variables") or name.endswith(".index") for name in names)


def _holds_arrays(path: str) -> bool:
    """Whether a zip archive has .npy files in it and not the pickle of a .pt."""
    try:
        with zip_errors(), zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except DataLossError:
        return path.lower().endswith(".npz")
    return any(name.endswith(".npy") for name in names) and not any(name.endswith("/data.pkl") for name in names)
