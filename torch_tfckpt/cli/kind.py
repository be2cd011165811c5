"""Name the kind of a file or directory that is not a checkpoint, for `tfckpt show`."""

import os
from collections.abc import Sequence
from typing import Final

from torch_tfckpt.cli.console import show
from torch_tfckpt.directory.names import STATE_FILE, prefixes_of
from torch_tfckpt.errors import CheckpointError, InvalidArgumentError, NotFoundError
from torch_tfckpt.foreign_files.formats import format_of
from torch_tfckpt.format.file_kind import FileKind, Reading
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.small_files import kind_of_file
from torch_tfckpt.text import and_more, counted, printable

_LISTED: Final = 30  # files of a directory that are looked at
_TFJS_MODEL: Final = "model.json"


def show_kind(path: str, error: CheckpointError) -> int | None:
    """Print the kind of the file or directory at `path`, and how to read it.

    Args:
        error: Why `path` cannot be opened as a checkpoint or file of tensors.

    Returns:
        The exit status: 0 if this package shows or lists it, 1 if it does not support it. None if nothing was printed,
        because `path` does not exist or may be a damaged checkpoint, whose error is more specific.
    """
    if LOCAL.is_directory(path):
        nothing_chosen = isinstance(error, NotFoundError | InvalidArgumentError) and format_of(path) == "tf"
        return _show_directory(path, LOCAL.list(path)) if nothing_chosen else None
    kind = kind_of_file(LOCAL, path) if LOCAL.exists(path) else FileKind.UNKNOWN
    if kind is FileKind.UNKNOWN and _is_tfjs_shard(path):
        _say(path, f"weights of the TensorFlow.js model in {_TFJS_MODEL}. {FileKind.TFJS.hint}")
        return 1
    if kind.reading is Reading.TENSORS or not (kind.is_foreign or kind in (FileKind.EMPTY, FileKind.ZEROS)):
        return None
    _say(path, f"{kind.what}. {kind.hint}")
    return 0 if kind.reading is Reading.GRAPH else 1


def _show_directory(path: str, names: Sequence[str]) -> int | None:
    """Print the kinds of the files in a directory that does not have exactly one checkpoint."""
    prefixes = sorted(prefixes_of(names))
    if STATE_FILE in names or len(prefixes) == 1:
        return None  # it has a checkpoint, and the error describes the damage
    if prefixes:
        _say(path, f"a directory with {len(prefixes)} checkpoints and no `checkpoint` file that names the newest:")
        for prefix in prefixes[:_LISTED]:
            show(f"  {printable(os.path.join(path, prefix))}")
        _say_more(len(prefixes))
        show("`tfckpt show` and `tfckpt ls` take any of these names.")
        return 0
    files = [name for name in names if not LOCAL.is_directory(os.path.join(path, name))]
    if not files:
        return None
    kinds = [(name, _kind_in_directory(path, name)) for name in files[:_LISTED]]
    if any(kind is FileKind.TFJS for _, kind in kinds):
        _say(path, f"the directory of a TensorFlow.js model. {FileKind.TFJS.hint}")
        return 1
    if any(kind in (FileKind.SAVED_MODEL, FileKind.SAVED_MODEL_TEXT) for _, kind in kinds):
        _say(path, "a SavedModel directory without variables. `tfckpt meta` shows it")
        return 0
    _say(path, f"a directory with {counted(len(files), 'file')} and no checkpoint:")
    for name, kind in kinds:
        show(f"  {printable(name)}: {kind.what}")
    _say_more(len(files))
    readable = [name for name, kind in kinds if kind.reading is not Reading.NOTHING]
    show("`tfckpt show FILE` shows how to read one of them.")
    return 0 if readable else 1


def _kind_in_directory(directory: str, name: str) -> FileKind:
    return kind_of_file(LOCAL, os.path.join(directory, name))


def _is_tfjs_shard(path: str) -> bool:
    """Return whether `path` is a .bin file next to the model.json of TensorFlow.js: its bytes are plain numbers."""
    beside = os.path.join(os.path.dirname(path), _TFJS_MODEL)
    return path.endswith(".bin") and LOCAL.exists(beside) and kind_of_file(LOCAL, beside) is FileKind.TFJS


def _say(path: str, finding: str) -> None:
    show(f"{printable(path)}: {finding}{'' if finding.endswith(':') else '.'}")


def _say_more(count: int) -> None:
    more = and_more(count, _LISTED).strip()
    if more:
        show(f"  {more}")
