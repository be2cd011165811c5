"""Find the files of the checkpoint that a path means.

People name a checkpoint by its prefix, by any of its files, by its directory, or by the SavedModel around it. What
exists as written is taken as written; a path is a pattern only where nothing of that very name exists, so brackets in
names do no harm.

Source: tensorflow/python/training/checkpoint_management.py, py_checkpoint_reader.py.
"""

import os
from dataclasses import dataclass
from typing import Final

from torch_tfckpt.bundle.files import is_lfs_pointer, lfs_error
from torch_tfckpt.directory.names import STATE_FILE, V1_SHARD, matching, of_version_2, prefixes_of
from torch_tfckpt.directory.state_file import from_stored, read_state, resolve_in
from torch_tfckpt.errors import NO_MATCHING_FILES, DataLossError, InvalidArgumentError, NotFoundError
from torch_tfckpt.format.block import shared_prefix_size
from torch_tfckpt.format.table import TABLE_MAGIC, Footer
from torch_tfckpt.format.tensor_bundle import index_filename, parse_data_filename
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.text import listed, printable, quoted

_OTHER_FORMATS: Final = {
    b"\x89HDF": "an HDF5 file, as Keras writes for .h5. Open it with h5py",
    b"PK\x03\x04": "a zip archive, such as a .pt, .npz or .keras file. It is no TensorFlow checkpoint",
    b"\x93NUM": "a .npy file, one array. Save it by numpy.savez, and name the .npz",
    b"\x80\x02": "a pickle file. It is no TensorFlow checkpoint",
}
_NEAR_MISSES: Final = 5
_MAGIC: Final = TABLE_MAGIC.to_bytes(8, "little")  # how every table ends


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """One checkpoint on disk."""

    version: int  # 1 or 2
    prefix: str  # version 2: what comes before .index; version 1: the path or pattern
    paths: tuple[str, ...] = ()  # version 1: its files, in the order of their names


def find_checkpoint(storage: Storage, path: str) -> CheckpointFiles:
    """The files that `path` means.

    Args:
        path: A prefix; one of its files (.index, .data-..., .meta); a version 1 file, or a pattern of such; a directory
            (its `checkpoint` file names the newest), a SavedModel directory or its saved_model.pb.

    Raises:
        NotFoundError: nothing is there; the text names what is there instead.
        InvalidArgumentError: a directory holds several checkpoints and nothing says which.
        DataLossError: a state file, or what should be one of the checkpoint's files, is something else.

    Cost: looks at names, and at the first bytes of a version 1 file.
    """
    if storage.is_directory(path) and not storage.exists(index_filename(path)):
        return _in_directory(storage, path)
    found = _named_by_file(storage, path) or _as_written(storage, path)
    if found is None:
        raise NotFoundError(_nothing_here(storage, path))
    return found


def _as_written(storage: Storage, path: str) -> CheckpointFiles | None:
    """The checkpoint whose prefix, file or pattern `path` is."""
    if storage.exists(index_filename(path)):
        return CheckpointFiles(2, path)
    name = os.path.basename(path)
    if storage.exists(path) and not storage.is_directory(path) and (not of_version_2(name) or is_table(storage, path)):
        _check_version_1(storage, path)
        return CheckpointFiles(1, path, (path,))
    return _matching(storage, path)


def _in_directory(storage: Storage, directory: str) -> CheckpointFiles:
    state_path = os.path.join(directory, STATE_FILE)
    names = storage.list(directory)
    if STATE_FILE in names and not is_table(storage, state_path):
        stored = from_stored(read_state(storage, state_path).model_checkpoint_path)
        named = resolve_in(storage, directory, stored)
        found = _as_written(storage, named)
        if found is not None:
            return found
        raise NotFoundError(
            f"{printable(state_path)} names {quoted(printable(stored))}, which is not there. "
            f"{_there_are(names)} Name one of them, or mend the file"
        )
    for prefix in (os.path.join(directory, "variables", "variables"), os.path.join(directory, "variables")):
        found = _as_written(storage, prefix)
        if found is not None:
            return found
    prefixes = prefixes_of(names)
    if len(prefixes) == 1:
        found = _as_written(storage, os.path.join(directory, *prefixes))
        if found is not None:
            return found
    if prefixes:
        raise InvalidArgumentError(
            f"{printable(directory)} holds {len(prefixes)} checkpoints and no `checkpoint` file that says which is the "
            f"newest. {_there_are(names)} Name one of them"
        )
    raise NotFoundError(
        f"{printable(directory)}: Couldn't find 'checkpoint' file or checkpoints in given directory. "
        f"{_there_are(names)}"
    )


def _named_by_file(storage: Storage, path: str) -> CheckpointFiles | None:
    """Where `path` names one of a checkpoint's files: that checkpoint."""
    if storage.exists(index_filename(path)):
        return CheckpointFiles(2, path)
    directory, name = os.path.split(path)
    if name == STATE_FILE and storage.exists(path) and not is_table(storage, path):
        return _in_directory(storage, directory or os.curdir)
    if name in ("saved_model.pb", "saved_model.pbtxt"):
        return _in_directory(storage, directory or os.curdir)
    data = parse_data_filename(path)
    if path.endswith(".index"):
        base = path.removesuffix(".index")
    elif data is not None:
        base = data[0]
    elif path.endswith(".meta"):
        base = path.removesuffix(".meta")
    else:
        return None
    if storage.exists(index_filename(base)):
        return CheckpointFiles(2, base)
    if path.endswith(".meta"):
        if storage.exists(base) and not storage.is_directory(base):
            return CheckpointFiles(1, base, (base,))
        return _sharded(storage, base)
    return None


def _matching(storage: Storage, path: str) -> CheckpointFiles | None:
    """Version 1 files that `path` is a pattern of, or whose shards bear it; or the one index that it matches."""
    paths = matching(storage, path)
    if paths:
        return CheckpointFiles(1, path, paths)
    indexes = matching(storage, index_filename(path), indexes=True)
    if len(indexes) == 1:
        return CheckpointFiles(2, indexes[0].removesuffix(".index"))
    return _sharded(storage, path)


def _sharded(storage: Storage, prefix: str) -> CheckpointFiles | None:
    """prefix-00000-of-00002 and its like."""
    directory, base = os.path.split(prefix)
    shards = [
        (name, match["count"])
        for name in storage.list(directory)
        if (match := V1_SHARD.fullmatch(name)) is not None and match["prefix"] == base
    ]
    counts = {count for _, count in shards}
    if not shards:
        return None
    if len(counts) > 1:
        raise InvalidArgumentError(
            f"{printable(prefix)}: shards of {' and of '.join(sorted(counts))} files lie here together. Name one set, "
            f"as {printable(prefix)}-?????-of-{max(counts)}"
        )
    pattern = f"{prefix}-?????-of-{counts.pop()}"
    return CheckpointFiles(1, pattern, tuple(os.path.join(directory, name) for name, _ in shards))


def is_table(storage: Storage, path: str) -> bool:
    """Whether the file ends like a table: a version 1 checkpoint may be called `checkpoint`."""
    if storage.is_directory(path):
        return False
    file = storage.open(path)
    try:
        return file.size >= Footer.SIZE and file.read(file.size - len(_MAGIC), len(_MAGIC)) == _MAGIC
    finally:
        file.close()


def _check_version_1(storage: Storage, path: str) -> None:
    """DataLossError, with what it is instead, where `path` can be no version 1 file."""
    file = storage.open(path)
    try:
        if is_lfs_pointer(file):
            raise lfs_error(path)
        head = file.read(0, min(4, file.size))
        for mark, what in _OTHER_FORMATS.items():
            if head.startswith(mark):
                raise DataLossError(f"{printable(path)} is {what}")
    finally:
        file.close()


def _nothing_here(storage: Storage, path: str) -> str:
    directory, name = os.path.split(path)
    fragment = f"{NO_MATCHING_FILES}{printable(path)}"
    if directory and not storage.is_directory(directory):
        return f"{fragment}: there is no directory {quoted(printable(directory))}"
    names = storage.list(directory)
    missing = name if name.endswith(".index") else f"{name}.index"
    hint = "A .meta file holds the graph only, no values. " if path.endswith(".meta") and name in names else ""
    data = [other for other in names if (parsed := parse_data_filename(other)) is not None and parsed[0] == name]
    if data:
        hint = f"{quoted(printable(data[0]))} is, but cannot be read without its index. "
    return f"{fragment}: no {printable(missing)} here. {hint}{_there_are(names, name)}"


def _there_are(names: list[str], wanted: str = "") -> str:
    """The checkpoints among `names`, those most like `wanted` first."""
    prefixes = prefixes_of(names)
    if not prefixes:
        return "There is no checkpoint in this directory."

    def likeness(prefix: str) -> tuple[int, str]:
        return -shared_prefix_size(os.fsencode(prefix), os.fsencode(wanted)), prefix

    return f"There are {listed(sorted(prefixes, key=likeness), _NEAR_MISSES, printable)}."
