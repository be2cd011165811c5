"""Choose the format of a path: by content for reading, by name for writing."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from typing import Final

from torch_tfckpt.errors import CheckpointError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from torch_tfckpt.foreign_files.format_names import FORMATS, format_named, format_of_kind
from torch_tfckpt.foreign_files.keras_weights import is_weights_name
from torch_tfckpt.foreign_files.npz import NpzSink, NpzSource
from torch_tfckpt.foreign_files.protocols import TensorSink, TensorSource
from torch_tfckpt.foreign_files.pt import PtSink, PtSource
from torch_tfckpt.foreign_files.safetensors import INDEX_SUFFIX, SafetensorsSource, find_in_directory
from torch_tfckpt.foreign_files.safetensors_sink import SafetensorsSink
from torch_tfckpt.foreign_files.sidecar import read_sidecar, sidecar_of
from torch_tfckpt.foreign_files.sidecar_source import SidecarSource
from torch_tfckpt.foreign_files.tensorflow import CheckpointSink, CheckpointSource
from torch_tfckpt.format.file_kind import FOR_KERAS, promised_kind
from torch_tfckpt.storage.journal import journal_of, read_journal
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.names import is_url, refuse_url
from torch_tfckpt.storage.small_files import kind_of_file
from torch_tfckpt.text import printable, quoted

# During the second half of the attempts, a lock keeps other programs on this host from writing.
_ATTEMPTS: Final = 100


def format_of(path: str) -> str:
    """Return the format of the file or directory at `path`, one of FORMATS.

    Contents take precedence over names, which can be misleading: Lightning's .ckpt is a .pt. Everything else is
    "tf"; opening it as a checkpoint raises an error that names its actual kind.
    """
    if LOCAL.is_directory(path):
        return "tf" if _is_tensorflow_directory(path) or find_in_directory(path) is None else "safetensors"
    if path.endswith(INDEX_SUFFIX):
        return "safetensors"
    named = format_named(path) or "tf"
    if not LOCAL.exists(path):
        return named
    return format_of_kind(kind_of_file(LOCAL, path), named)


def open_source(path: str) -> TensorSource:
    """Open a checkpoint or file of any supported format, together with its sidecar if it has one.

    Args:
        path: Any path of a TensorFlow checkpoint that CheckpointReader accepts; a .safetensors file, the index of
            several such files, or the directory that contains it; a .pt or .npz file.

    Guaranteed: all files and the sidecar are from one conversion, even if another program is replacing them at the same
    time, or was killed while replacing them.

    Raises:
        NotFoundError: there is no such file.
        DataLossError: it is damaged, or of a kind that is not supported; the message names the kind.
        InvalidArgumentError, UnimplementedError: as raised by the readers of these formats.
    """
    if is_url(path) and format_of(path) != "tf":
        instead = "Copy the file here, and pass its local path"
        refuse_url(path, "only TensorFlow checkpoints are read from URLs", instead)
    for attempt in range(_ATTEMPTS):
        target = _target_of(path)
        patient = attempt >= _ATTEMPTS // 2
        with LOCAL.exclusive(os.path.dirname(target)) if patient else nullcontext():
            before = _state_of(target)
            try:
                source = _open_once(path, target)
            except CheckpointError:
                if _state_of(target) == before:
                    raise
                continue
            if _state_of(target) == before:
                return source
            source.close()
    raise FailedPreconditionError(
        f"{printable(path)}: it was replaced {_ATTEMPTS} times while it was being opened. Try again"
    )


def _target_of(path: str) -> str:
    """Return the path that the names of a file's sidecar and journal are derived from."""
    found = find_in_directory(path) if LOCAL.is_directory(path) and not _is_tensorflow_directory(path) else None
    return (found or path).removesuffix(".index.json") if (found or path).endswith(INDEX_SUFFIX) else (found or path)


def _state_of(target: str) -> list[object]:
    """Return a value that changes whenever a file of the target is replaced."""
    states: list[object] = []
    for path in (journal_of(target), target, f"{target}.index.json", sidecar_of(target)):
        try:
            status = os.stat(path)
        except OSError:
            states.append(None)
        else:
            states.append((status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size))
    return states


def _open_once(path: str, target: str) -> TensorSource:
    kind = format_of(path)
    journal = None if kind == "tf" else read_journal(LOCAL, journal_of(target))

    def written(path: str) -> str:
        return path if journal is None else journal.path_of(LOCAL, path)

    source = _open_bare(path, kind, written)
    try:
        sidecar_path = sidecar_of(source.path)
        try:
            sidecar = read_sidecar(written(sidecar_path), source.data_bytes(), source.identity)
        except NotFoundError:
            return source
        return source if sidecar is None else SidecarSource(source, sidecar, sidecar_path)
    except BaseException:
        source.close()
        raise


def _open_bare(path: str, kind: str, written: Callable[[str], str]) -> TensorSource:
    """Open the source without its sidecar.

    Args:
        written: Takes the final path of a file and returns the path at which its contents are stored at this moment.
    """
    if kind == "tf":
        return CheckpointSource(path)
    found = find_in_directory(path) if LOCAL.is_directory(path) else path
    if found is None:
        raise NotFoundError(f"{printable(path)}: the .safetensors file has just been removed")
    if found.endswith(INDEX_SUFFIX):
        return SafetensorsSource.of_index(found, written(found))
    source: PtSource | NpzSource | SafetensorsSource
    if kind == "pt":
        source = PtSource(written(found))
    elif kind == "npz":
        source = NpzSource(written(found))
    else:
        source = SafetensorsSource.of_file(written(found))
    source.path = found
    return source


def make_sink(path: str, to: str | None, max_shard_size: int | None) -> TensorSink:
    """Create the writer for `path`. No file is read or written.

    Args:
        to: One of FORMATS; None chooses by the extension of `path`.
        max_shard_size: Maximum bytes of tensors per file, for safetensors.

    Raises:
        InvalidArgumentError: the format is unknown or not specified, or `path` has the extension of a different format.
    """
    refuse_url(
        path,
        "convert writes local files only",
        "Write to a local path and copy the result; `save_file`, `save_model`, `Saver` and `Checkpoint` write to URLs",
    )
    ending = format_named(path)
    directory = path.endswith(os.sep) or LOCAL.is_directory(path)
    kind = to or ending
    promised = promised_kind(path)
    if promised is not None and ending is None:
        for_keras = f". {FOR_KERAS}" if promised.is_keras else ""
        only = " without like=" if is_weights_name(path) else ""
        raise InvalidArgumentError(
            f"{printable(path)} has the extension of {promised.what}, which cannot be written{only}. Choose a name "
            f"that ends in .safetensors, .pt or .npz, or for a TensorFlow checkpoint a prefix without such an "
            f"ending{for_keras}"
        )
    if kind is None:
        raise InvalidArgumentError(
            f"{printable(path)}: the name does not determine the format. End it with .safetensors, .pt or "
            f".npz, or pass to={'|'.join(FORMATS)}"
        )
    if kind not in FORMATS:
        raise InvalidArgumentError(f"format {quoted(kind)} is unknown. Formats: {', '.join(FORMATS)}")
    if ending is not None and ending != kind:
        raise InvalidArgumentError(
            f"{printable(path)} has the extension of {ending}, but {kind} was requested. Choose another name "
            "or another format"
        )
    if max_shard_size is not None and kind != "safetensors":
        raise InvalidArgumentError(f"max_shard_size is for safetensors only; {kind} has one data file. Omit it")
    if max_shard_size is not None and max_shard_size < 1:
        raise InvalidArgumentError(f"max_shard_size={max_shard_size}: pass a positive number of bytes")
    if kind == "safetensors":
        return SafetensorsSink(path if ending else os.path.join(path, "model.safetensors"), max_shard_size)
    if directory:
        example = {"tf": "model.ckpt", "pt": "model.pt", "npz": "model.npz"}[kind]
        raise InvalidArgumentError(f"{printable(path)} is a directory; name a file in it, such as {example}")
    if kind == "pt":
        return PtSink(path)
    return NpzSink(path) if kind == "npz" else CheckpointSink(path)


def _is_tensorflow_directory(path: str) -> bool:
    names = LOCAL.list(path)
    return any(name in ("checkpoint", "saved_model.pb", "variables") or name.endswith(".index") for name in names)
