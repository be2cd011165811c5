"""The `checkpoint` file: which checkpoint of a directory is the newest, and which others are tracked.

    model_checkpoint_path: "model-7"
    all_model_checkpoint_paths: "model-6"
    all_model_checkpoint_paths: "model-7"
    all_model_checkpoint_timestamps: 1700000000.25
    all_model_checkpoint_timestamps: 1700000600.5
    last_preserved_timestamp: 1699999999.0

It is the text of a CheckpointState message, byte for byte as TensorFlow writes it. Relative paths are relative to the
directory of the file.

A directory may have been copied together with its state file, and an absolute path in the file may still lead to the
original. So a checkpoint next to the state file takes precedence over one of the same name at an absolute path.

The functions distinguish a file that does not exist, a damaged file, and a file that a system error prevents from being
read. `load_state` is for callers that overwrite or delete files: it raises an error in the last two cases.
`get_checkpoint_state` logs damage and returns None, as TensorFlow does. Neither returns None because of a system error
(`storage.refusals`).

The strings of a message are UTF-8, but file names need not be. A byte that is not valid UTF-8 is written as a null
character, which paths never contain, and two hexadecimal digits: "mod\\0ffel" in the message, mod\\000ffel in the file.
`to_stored` and `from_stored` convert; all other paths are not changed.

Source: tensorflow/python/checkpoint/checkpoint_management.py.
"""

import logging
import os
import re
from collections.abc import Sequence
from typing import Final

from google.protobuf import text_format

from torch_tfckpt._proto.checkpoint_state_pb2 import CheckpointState
from torch_tfckpt.directory.names import STATE_FILE, directory_key, is_there
from torch_tfckpt.errors import (
    CheckpointError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from torch_tfckpt.storage.choice import storage_of
from torch_tfckpt.storage.names import AnyPath, decoded_path, fspath, is_url
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.storage.refusals import is_refusal, refusals_named
from torch_tfckpt.storage.small_files import read_small, write_file
from torch_tfckpt.text import escaped, printable, quoted

MAX_STATE_BYTES: Final = 4 * 1024 * 1024  # enough for forty thousand paths
_FIX: Final = "Fix or remove the file, or pass one of the checkpoints in its directory"
_NO_UTF8: Final = re.compile("[\udc80-\udcff]")  # what os.fsdecode returns for bytes that are not UTF-8
_SPELLED: Final = re.compile("\0([89a-f][0-9a-f])")
_SURROGATES: Final = 0xDC00

_log = logging.getLogger(__name__)


def to_stored(path: str) -> str:
    """Return `path` as it is written in a message."""
    return _NO_UTF8.sub(lambda match: f"\0{ord(match[0]) - _SURROGATES:02x}", path)


def from_stored(text: str) -> str:
    """Return the path that `to_stored` converted to `text`."""
    return _SPELLED.sub(lambda match: chr(_SURROGATES + int(match[1], 16)), text)


def directory_path(path: AnyPath) -> str:
    """Return a directory as a str; "" is the working directory, as in TensorFlow."""
    return "" if path in ("", b"") else fspath(path)


def state_path(directory: str, latest_filename: str | None = None) -> str:
    """Return the path of the state file of `directory`."""
    return os.path.join(directory, latest_filename or STATE_FILE)


def read_state(storage: Storage, path: str) -> CheckpointState:
    """Read the state file at `path`; paths are returned as they are stored.

    Raises:
        NotFoundError: it does not exist.
        DataLossError: it cannot be parsed, or does not name a checkpoint.
        FailedPreconditionError: a system error prevents reading it.
    """
    state = _parse(storage, path)
    _check(state, f"{printable(path)}: Invalid checkpoint state")
    return state


def _parse(storage: Storage, path: str) -> CheckpointState:
    with refusals_named(path):
        content = read_small(storage, path, MAX_STATE_BYTES, "a checkpoint state file", _FIX)
    # Raw bytes that are not UTF-8, which another program may have written, are converted as by `to_stored`.
    text = _NO_UTF8.sub(
        lambda match: f"\\000{ord(match[0]) - _SURROGATES:02x}", content.decode("utf-8", "surrogateescape")
    )
    state = CheckpointState()
    try:
        text_format.Parse(text, state)
    except (text_format.ParseError, UnicodeError, ValueError) as error:
        finding = escaped(str(error))
        raise DataLossError(f"{printable(path)}: not a checkpoint state file: {finding}. {_FIX}") from error
    return state


def _check(state: CheckpointState, what: str) -> None:
    """Raise DataLossError if the newest checkpoint has no name, or its name cannot be a path."""
    if not state.model_checkpoint_path:
        raise DataLossError(f"{what}: it does not name a checkpoint. {_FIX}")
    try:
        decoded_path(from_stored(state.model_checkpoint_path))
    except InvalidArgumentError as error:
        raise DataLossError(f"{what}: {error}. {_FIX}") from error


def resolve_in(storage: Storage, directory: str, stored: str) -> str:
    """Return the path that `stored` refers to in a state file of `directory`.

    Relative paths are relative to the directory. A checkpoint in the directory is used instead of one of the same name
    at an absolute path elsewhere, because the directory may have been copied or moved.

    Raises:
        FailedPreconditionError: because of a system error, it is unknown whether the directory has such a checkpoint.
    """
    if not (os.path.isabs(stored) or is_url(stored)):
        return os.path.join(directory, stored)
    parent, name = os.path.split(stored)
    if name and directory_key(parent) != directory_key(directory):
        beside = os.path.join(directory, name)
        with refusals_named(beside):
            if is_there(storage, beside):
                return beside
    return stored


def load_state(storage: Storage, directory: str, latest_filename: str | None = None) -> CheckpointState | None:
    """Return the contents of the state file of `directory`, paths resolved; None if there is no such file.

    Raises:
        DataLossError: the file is damaged, or does not name a checkpoint. (It exists, so this is not the first run in
            the directory.)
        FailedPreconditionError: a system error prevents reading the file.
    """
    path = state_path(directory, latest_filename)
    try:
        state = read_state(storage, path)
    except NotFoundError:
        return None
    except InvalidArgumentError as error:  # a directory or a pipe
        raise DataLossError(str(error)) from error
    return _all_resolved(storage, directory, state)


def get_checkpoint_state(
    checkpoint_dir: AnyPath, latest_filename: str | None = None, *, storage: Storage | None = None
) -> CheckpointState | None:
    """Read the state file of a directory.

    Args:
        checkpoint_dir: The directory.
        latest_filename: The file's name; None: "checkpoint".
        storage: Where files are stored; None chooses by the path.

    Returns:
        The message, with `checkpoint_dir` prepended to relative paths. An absolute path that leads to a different
        directory is replaced by the checkpoint of the same name in `checkpoint_dir`, if there is one, because the
        directory may have been copied. None if there is no state file, or if it cannot be parsed, which is logged.

    Raises:
        DataLossError (a ValueError): the file can be parsed, but does not name a checkpoint, for example because it is
            empty.
        FailedPreconditionError (a RuntimeError): a system error prevents reading the file, so it is unknown whether
            there is one.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> path = tfckpt.Saver({"w": torch.ones(2)}).save("run/m", global_step=7)
        >>> tfckpt.get_checkpoint_state("run").model_checkpoint_path
        'run/m-7'

    Cost: reads the file; for each absolute path that leads to a different directory, looks up its name in
    `checkpoint_dir`.
    Source: get_checkpoint_state in tensorflow/python/checkpoint/checkpoint_management.py.
    """
    directory = directory_path(checkpoint_dir)
    storage = storage or storage_of(directory)
    path = state_path(directory, latest_filename)
    try:
        state = _parse(storage, path)
    except NotFoundError:
        return None
    except CheckpointError as error:
        if is_refusal(error):
            raise
        _log.warning("%s. Checkpoint ignored", error)
        return None
    _check(state, f"Invalid checkpoint state loaded from {printable(directory)}")
    return _all_resolved(storage, directory, state)


def _all_resolved(storage: Storage, directory: str, state: CheckpointState) -> CheckpointState:
    state.model_checkpoint_path = _resolved(storage, directory, state.model_checkpoint_path)
    for number, stored in enumerate(state.all_model_checkpoint_paths):
        state.all_model_checkpoint_paths[number] = _resolved(storage, directory, stored)
    return state


def _resolved(storage: Storage, directory: str, stored: str) -> str:
    try:
        path = decoded_path(from_stored(stored))
    except InvalidArgumentError:
        return stored  # not a path, so there is no such checkpoint
    return to_stored(resolve_in(storage, directory, path))


def generate_checkpoint_state_proto(
    save_dir: AnyPath,
    model_checkpoint_path: AnyPath,
    all_model_checkpoint_paths: Sequence[AnyPath] | None = None,
    all_model_checkpoint_timestamps: Sequence[float] | None = None,
    last_preserved_timestamp: float | None = None,
) -> CheckpointState:
    """Create the message that names `model_checkpoint_path` as the newest checkpoint of `save_dir`.

    Args:
        save_dir: The directory that the message is for. If it is relative, relative paths are made relative to it;
            if it is absolute, paths are not changed.
        model_checkpoint_path: The newest checkpoint.
        all_model_checkpoint_paths: All tracked checkpoints, oldest first; the newest is appended if it is not the last.
            The list itself is not changed (in TensorFlow it is).
        all_model_checkpoint_timestamps: When each was saved, in seconds since the epoch: one for each path, or none.
        last_preserved_timestamp: When the newest checkpoint that is kept permanently was saved.

    Raises:
        InvalidArgumentError: the numbers of timestamps and paths differ, or an argument is not a path.

    Examples:
        >>> import torch_tfckpt as tfckpt
        >>> state = tfckpt.generate_checkpoint_state_proto("run", "run/m-7", ["run/m-6", "run/m-7"])
        >>> state.model_checkpoint_path, list(state.all_model_checkpoint_paths)
        ('m-7', ['m-6', 'm-7'])

    Source: generate_checkpoint_state_proto in tensorflow/python/checkpoint/checkpoint_management.py.
    """
    directory = directory_path(save_dir)
    paths = [fspath(path) for path in (*(all_model_checkpoint_paths or ()), model_checkpoint_path)]
    if paths[-1] in paths[-2:-1]:
        del paths[-1]
    if all_model_checkpoint_timestamps and len(all_model_checkpoint_timestamps) != len(paths):
        raise InvalidArgumentError(
            f"Checkpoint timestamps, if provided, must match checkpoint paths (got {len(paths)} paths and "
            f"{len(all_model_checkpoint_timestamps)} timestamps). Pass one for each path, the newest last"
        )
    if is_url(directory):
        paths = [_relative(path, directory) for path in paths]
    elif not os.path.isabs(directory):
        here = directory or os.curdir
        paths = [path if os.path.isabs(path) or is_url(path) else os.path.relpath(path, here) for path in paths]
    stored = list(map(to_stored, paths))
    return CheckpointState(
        model_checkpoint_path=stored[-1],
        all_model_checkpoint_paths=stored,
        all_model_checkpoint_timestamps=all_model_checkpoint_timestamps,
        last_preserved_timestamp=last_preserved_timestamp,
    )


def update_checkpoint_state(
    save_dir: AnyPath,
    model_checkpoint_path: AnyPath,
    all_model_checkpoint_paths: Sequence[AnyPath] | None = None,
    latest_filename: str | None = None,
    all_model_checkpoint_timestamps: Sequence[float] | None = None,
    last_preserved_timestamp: float | None = None,
    *,
    storage: Storage | None = None,
) -> None:
    """Write the state file of `save_dir`.

    The file is written durably and atomically: a reader finds the old file or the new one.

    Args:
        latest_filename: The file's name; None: "checkpoint".
        storage: Where files are stored; None chooses by the path.
        others: As for `generate_checkpoint_state_proto`.

    Raises:
        InvalidArgumentError: as for `generate_checkpoint_state_proto`.
        FailedPreconditionError (a RuntimeError): the newest checkpoint has the path of the state file.
        OSError: the file could not be written, for example because the directory does not exist.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> path = tfckpt.save_file({"w": torch.ones(2)}, "model.ckpt-1")
        >>> tfckpt.update_checkpoint_state(".", path)
        >>> tfckpt.latest_checkpoint(".")
        './model.ckpt-1'

    Source: update_checkpoint_state in tensorflow/python/checkpoint/checkpoint_management.py.
    """
    directory = directory_path(save_dir)
    state = generate_checkpoint_state_proto(
        save_dir,
        model_checkpoint_path,
        all_model_checkpoint_paths,
        all_model_checkpoint_timestamps,
        last_preserved_timestamp,
    )
    write_state(storage or storage_of(directory), state_path(directory, latest_filename), state)


def update_relative_state(
    save_dir: str,
    model_checkpoint_path: str,
    all_model_checkpoint_paths: Sequence[str],
    latest_filename: str | None = None,
    all_model_checkpoint_timestamps: Sequence[float] | None = None,
    last_preserved_timestamp: float | None = None,
    *,
    storage: Storage | None = None,
) -> None:
    """Write the state file with all paths relative to `save_dir`, so that the directory can be moved."""
    # If `save_dir` is absolute, relative paths are not changed.
    state = generate_checkpoint_state_proto(
        save_dir if is_url(save_dir) else os.path.abspath(save_dir),
        _relative(model_checkpoint_path, save_dir),
        [_relative(path, save_dir) for path in all_model_checkpoint_paths],
        all_model_checkpoint_timestamps,
        last_preserved_timestamp,
    )
    write_state(storage or storage_of(save_dir), state_path(save_dir, latest_filename), state)


def write_state(storage: Storage, path: str, state: CheckpointState) -> None:
    """Write `state` to the file at `path`. Raises like `update_checkpoint_state`."""
    if from_stored(state.model_checkpoint_path) == path:
        raise FailedPreconditionError(
            f"Save path {quoted(printable(path))} conflicts with path used for checkpoint state. Save under another "
            f"name, or pass another latest_filename"
        )
    write_file(storage, path, text_format.MessageToString(state, as_utf8=True).encode())


def _relative(path: str, directory: str) -> str:
    """Return `path` relative to `directory`. A relative path is not changed if the directory is absolute."""
    if is_url(path) or is_url(directory):
        return path.removeprefix(f"{directory.rstrip('/')}/")
    if os.path.isabs(directory) and not os.path.isabs(path):
        return path
    return os.path.relpath(path, directory or os.curdir)
