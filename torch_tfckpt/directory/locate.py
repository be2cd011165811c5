"""Find the files of the checkpoint that a path refers to.

A path may be a checkpoint's prefix, any of its files, its directory, or the SavedModel that contains it. It is taken
literally if it exists, and as a pattern only otherwise, so names may contain brackets.

Source: tensorflow/python/training/checkpoint_management.py, py_checkpoint_reader.py.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from torch_tfckpt._proto.checkpoint_state_pb2 import CheckpointState
from torch_tfckpt.bundle.files import lfs_error
from torch_tfckpt.directory.names import (
    STATE_FILE,
    V1_SHARD,
    matching,
    of_version_2,
    prefix_of_pattern,
    prefixes_of,
    with_other_count,
)
from torch_tfckpt.directory.state_file import from_stored, read_state, resolve_in
from torch_tfckpt.errors import NO_MATCHING_FILES, DataLossError, InvalidArgumentError, NotFoundError
from torch_tfckpt.format.block import shared_prefix_size
from torch_tfckpt.format.file_kind import KERAS_CONFIG_FILE, KERAS_WEIGHTS_FILES, FileKind, not_wanted, promised_kind
from torch_tfckpt.format.table import TABLE_MAGIC, Footer
from torch_tfckpt.format.tensor_bundle import index_filename, parse_data_filename
from torch_tfckpt.storage.journal import JOURNAL_SUFFIX, journal_of
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.storage.refusals import refusals_named
from torch_tfckpt.storage.small_files import kind_of_file
from torch_tfckpt.text import did_you_mean, listed, printable, quoted
from torch_tfckpt.v1.shard_names import shard_names, shard_pattern, unfinished_shards

_log = logging.getLogger(__name__)
_NEAR_MISSES: Final = 5
_MAGIC: Final = TABLE_MAGIC.to_bytes(8, "little")  # the last bytes of every table


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """One checkpoint on disk."""

    version: int  # 1 or 2; 0 for a file of Keras
    prefix: str  # version 2: the path without .index; otherwise the path or pattern
    paths: tuple[str, ...] = ()  # version 1: its files, in the order of their names; Keras: the file


def find_checkpoint(storage: Storage, path: str) -> CheckpointFiles:
    """Return the files that `path` refers to.

    Args:
        path: A prefix; one of its files (.index, .data-..., .meta); a version 1 file or pattern; a directory
            (its `checkpoint` file names the newest), a SavedModel directory or its saved_model.pb.

    Raises:
        NotFoundError: there is no checkpoint; the message lists the checkpoints that exist.
        InvalidArgumentError: a directory has several checkpoints and no state file.
        DataLossError: a state file, or a file that should belong to a checkpoint, has unexpected contents.
        FailedPreconditionError: a system error such as EACCES or EIO; it is unknown what is stored there.

    Cost: reads file names, and the beginning and the end of a version 1 file.
    """
    before: list[str] | None = None
    while True:
        try:
            with refusals_named(path):
                return _found(storage, path)
        except (NotFoundError, InvalidArgumentError):
            # The directory may have been listed while version 1 shards were being renamed: look again.
            shards = _shards_near(storage, path)
            if not shards or shards == before:
                raise
            before = shards


def _found(storage: Storage, path: str) -> CheckpointFiles:
    if storage.is_directory(path) and not storage.exists(index_filename(path)):
        return _in_directory(storage, path)
    found = _named_by_file(storage, path) or _as_written(storage, path) or _later_save(storage, path)
    if found is None:
        raise NotFoundError(_nothing_here(storage, path))
    return found


def _shards_near(storage: Storage, path: str) -> list[str]:
    """Return the names of all version 1 shards, and of their journals, in the directory of `path`."""
    directory = path if storage.is_directory(path) else os.path.dirname(path)
    return [name for name in storage.list(directory) if V1_SHARD.fullmatch(name) or name.endswith(JOURNAL_SUFFIX)]


def _later_save(storage: Storage, pattern: str) -> CheckpointFiles | None:
    """Return the shards that replaced those matching `pattern`, if their number is different."""
    other = with_other_count(storage, pattern)
    if other is None:
        return None
    _log.warning("%s no longer exists; %s is a later save and is used instead", printable(pattern), printable(other))
    return _as_written(storage, other)


def _as_written(storage: Storage, path: str) -> CheckpointFiles | None:
    """Return the checkpoint whose prefix, file or pattern is `path`."""
    if storage.exists(index_filename(path)):
        return CheckpointFiles(2, path)
    name = os.path.basename(path)
    if storage.exists(path) and not storage.is_directory(path) and (not of_version_2(name) or is_table(storage, path)):
        return CheckpointFiles(_version_of_file(storage, path), path, (path,))
    return _matching(storage, path)


def _in_directory(storage: Storage, directory: str) -> CheckpointFiles:
    state_path = os.path.join(directory, STATE_FILE)
    names = storage.list(directory)
    if STATE_FILE in names and not is_table(storage, state_path):
        stored = from_stored(_read_state(storage, state_path).model_checkpoint_path)
        named = resolve_in(storage, directory, stored)
        found = _as_written(storage, named) or _later_save(storage, named)
        if found is not None:
            return found
        raise NotFoundError(
            f"{printable(state_path)} names {quoted(printable(stored))}, which does not exist. "
            f"{_there_are(names)} Pass a checkpoint, or fix the file"
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
    of_keras = [os.path.join(directory, name) for name in KERAS_WEIGHTS_FILES if name in names]
    if of_keras and not prefixes and KERAS_CONFIG_FILE in names:
        return CheckpointFiles(0, of_keras[0], (of_keras[0],))
    if prefixes:
        raise InvalidArgumentError(
            f"{printable(directory)} has {len(prefixes)} checkpoints, and no `checkpoint` file that names the newest. "
            f"{_there_are(names)} Pass one of them"
        )
    raise NotFoundError(
        f"{printable(directory)}: Couldn't find 'checkpoint' file or checkpoints in given directory. "
        f"{_there_are(names)}{_other_files(names)}"
    )


def _read_state(storage: Storage, path: str) -> CheckpointState:
    """Call `read_state`; for a different kind of file, such as a PyTorch file, the error names that kind."""
    try:
        return read_state(storage, path)
    except DataLossError as error:
        kind = kind_of_file(storage, path)
        if not kind.is_foreign or kind in (FileKind.STATE, FileKind.TEXT, FileKind.LFS_POINTER):
            raise
        raise DataLossError(not_wanted(path, kind, "a `checkpoint` state file")) from error


def _named_by_file(storage: Storage, path: str) -> CheckpointFiles | None:
    """Return the checkpoint that the file `path` belongs to; None if it does not belong to a checkpoint."""
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
    """Return the checkpoint matching the pattern `path`, or the version 1 shards with the prefix `path`.

    A pattern may match version 1 files or exactly one index.
    """
    paths = matching(storage, path)
    prefix = prefix_of_pattern(path)
    if prefix is None:
        prefixes = {match["prefix"] for each in paths if (match := V1_SHARD.fullmatch(each)) is not None}
        prefix = prefixes.pop() if len(prefixes) == 1 else None
    if prefix is not None and storage.renames and storage.exists(journal_of(prefix)):
        unfinished = _unfinished(storage, prefix)
        if unfinished is not None:
            return unfinished
        paths = matching(storage, path)  # the save has just ended
    if paths:
        return _complete(CheckpointFiles(1, path, paths))
    indexes = matching(storage, index_filename(path), indexes=True)
    if len(indexes) == 1:
        return CheckpointFiles(2, indexes[0].removesuffix(".index"))
    return _sharded(storage, path)


def _unfinished(storage: Storage, prefix: str) -> CheckpointFiles | None:
    """Return the shards listed in the journal of an unfinished save; None if there is no unfinished save.

    The result contains final names; if shards still have temporary names, the reader finds them.
    """
    journal = unfinished_shards(storage, prefix)
    if journal is None:
        return None
    count = len(journal.files)
    return CheckpointFiles(1, shard_pattern(prefix, count), tuple(shard_names(prefix, count)))


def _sharded(storage: Storage, prefix: str) -> CheckpointFiles | None:
    """Return the version 1 checkpoint that consists of files such as prefix-00000-of-00002."""
    directory, base = os.path.split(prefix)
    if storage.renames and storage.exists(journal_of(prefix)):
        unfinished = _unfinished(storage, prefix)
        if unfinished is not None:
            return unfinished
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
            f"{printable(prefix)}: there are sets of {' and of '.join(sorted(counts))} shards, which belong to "
            f"different saves. Pass one set, e.g. {printable(prefix)}-?????-of-{max(counts)}"
        )
    pattern = shard_pattern(prefix, int(counts.pop()))
    return _complete(CheckpointFiles(1, pattern, tuple(os.path.join(directory, name) for name, _ in shards)))


def _complete(found: CheckpointFiles) -> CheckpointFiles:
    """Return `found`; raise NotFoundError if it is an incomplete set of version 1 shards."""
    match = V1_SHARD.fullmatch(os.path.basename(found.prefix))
    if match is not None and "?" in match["shard"] and len(found.paths) != int(match["count"]):
        raise NotFoundError(
            f"{printable(found.prefix)}: {len(found.paths)} of {int(match['count'])} shards exist. Copy the others "
            f"to the same directory, or pass one shard by its own name to read its tensors"
        )
    return found


def is_table(storage: Storage, path: str) -> bool:
    """Return whether a file ends like a table.

    This distinguishes a version 1 checkpoint that is named `checkpoint` from a state file.
    """
    if storage.is_directory(path):
        return False
    file = storage.open(path)
    try:
        return file.size >= Footer.SIZE and file.read(file.size - len(_MAGIC), len(_MAGIC)) == _MAGIC
    finally:
        file.close()


def _version_of_file(storage: Storage, path: str) -> int:
    """Return 1 for a version 1 checkpoint and 0 for a file of Keras.

    Any other file raises a DataLossError that names its kind.

    TensorFlow also raises DataLossError for such files, and this package raises it for damaged files, so one handler
    catches both.
    """
    kind = kind_of_file(storage, path)
    if kind is FileKind.LFS_POINTER:
        raise lfs_error(path)
    if kind.is_keras:
        return 0
    if kind.is_foreign:
        raise DataLossError(not_wanted(path, kind))
    return 1


def _nothing_here(storage: Storage, path: str) -> str:
    directory, name = os.path.split(path)
    fragment = f"{NO_MATCHING_FILES}{printable(path)}"
    if directory and not storage.is_directory(directory):
        return f"{fragment}: there is no directory {quoted(printable(directory))}"
    names = storage.list(directory)
    data = parse_data_filename(name)
    prefix = name.removesuffix(".index") if data is None else data[0]
    alone = _data_without_index(names, prefix)
    missing = f"there is no {printable(index_filename(prefix))}."
    if alone or name in names:
        hint = "A .meta file has only the graph, no values." if path.endswith(".meta") and name in names else alone
    else:
        nothing = "no such file or directory"
        missing = f"{nothing}." if name == index_filename(prefix) else f"{nothing}, and {missing}"
        hint = did_you_mean(name, (other for other in names if not of_version_2(other)))
    if not hint and f"{prefix}.meta" in names:
        hint = f"{printable(prefix)}.meta has only the graph, no values: copy the other files, too."
    others = _there_are(names, name) if prefixes_of(names) else ""
    return f"{fragment}: {' '.join(filter(None, (missing, hint, others)))}"


def _data_without_index(names: Sequence[str], prefix: str | None = None) -> str:
    """Return a sentence about a data file whose index is missing; "" if there is no such file.

    Only data files of `prefix` are considered; None considers those of all checkpoints.
    """
    for name in names:
        parsed = parse_data_filename(name)
        if parsed is not None and prefix in (None, parsed[0]) and index_filename(parsed[0]) not in names:
            return (
                f"{quoted(printable(name))} exists, but cannot be read without its index. Copy "
                f"{printable(index_filename(parsed[0]))} to the same directory."
            )
    return ""


def _other_files(names: list[str]) -> str:
    """Return a hint that lists files with extensions of other formats; "" if no such files exist."""
    others = [name for name in names if promised_kind(name) is not None]
    if not others:
        return ""
    shown = listed(others, _NEAR_MISSES, printable)
    return f" There are files of other formats: {shown}. `tfckpt show` shows how to read them"


def _there_are(names: list[str], wanted: str = "") -> str:
    """Return a sentence that lists the checkpoints among `names`, those most similar to `wanted` first."""
    prefixes = prefixes_of(names)
    if not prefixes:
        return _data_without_index(names) or "There is no checkpoint in this directory."

    def likeness(prefix: str) -> tuple[int, str]:
        return -shared_prefix_size(os.fsencode(prefix), os.fsencode(wanted)), prefix

    return f"There are {listed(sorted(prefixes, key=likeness), _NEAR_MISSES, printable)}."
