"""Name the kind of a file or directory that is not a checkpoint, for `tfckpt show`."""

import os
from collections.abc import Sequence
from typing import Final, NamedTuple

from torch_tfckpt.cli.console import show, show_json
from torch_tfckpt.cli.subdirectories import checkpoints_below
from torch_tfckpt.directory.names import STATE_FILE, prefixes_of
from torch_tfckpt.errors import CheckpointError, InvalidArgumentError, NotFoundError
from torch_tfckpt.foreign_files.formats import format_of
from torch_tfckpt.format.file_kind import FileKind, Reading, promised_kind
from torch_tfckpt.format.tensor_bundle import parse_data_filename
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.small_files import kind_of_file
from torch_tfckpt.text import counted, encodable, first_lines, printable

_LISTED: Final = 30  # files of a directory that are printed; JSON lists all
_TFJS_MODEL: Final = "model.json"


class _Finding(NamedTuple):
    """What is at a path."""

    kind: str  # in words
    hint: str
    supported: bool  # whether this package can show or list it
    files: Sequence[str] = ()  # of a directory: a line for each file, checkpoint, or subdirectory with checkpoints


def show_kind(path: str, error: CheckpointError, *, as_json: bool) -> int | None:
    """Print the kind of the file or directory at `path`, and how to read it.

    Args:
        error: Why `path` cannot be opened as a checkpoint or file of tensors.
        as_json: Print one JSON document: path, kind, hint, supported, files.

    Returns:
        The exit status: 0 if this package can show or list the file or directory, otherwise 1. None if nothing was
        printed, because `path` does not exist, or may be a damaged checkpoint, for which `error` is more specific.
    """
    if LOCAL.is_directory(path):
        nothing_chosen = isinstance(error, NotFoundError | InvalidArgumentError) and format_of(path) == "tf"
        found = _directory_kind(path, LOCAL.list(path)) if nothing_chosen else None
    else:
        found = _file_kind(path)
    if found is None:
        return None
    if as_json:
        show_json({"path": encodable(path), **found._asdict()})
    elif found.files:
        show(f"{printable(path)}: {found.kind}:")
        for line in first_lines(found.files, _LISTED):
            show(f"  {line}")
        show(f"{found.hint}.")
    else:
        show(f"{printable(path)}: {found.kind}. {found.hint}.")
    return 0 if found.supported else 1


def _file_kind(path: str) -> _Finding | None:
    kind = kind_of_file(LOCAL, path) if LOCAL.exists(path) else FileKind.UNKNOWN
    if kind is FileKind.UNKNOWN and _is_tfjs_shard(path):
        return _Finding(f"weights of the TensorFlow.js model in {_TFJS_MODEL}", FileKind.TFJS.hint, False)
    promised = promised_kind(path)
    is_readable_by_name = path.endswith(".index") or (promised is not None and promised.reading is Reading.TENSORS)
    if kind is FileKind.UNKNOWN and (is_readable_by_name or not LOCAL.exists(path)):
        return None  # the file is missing or damaged, and the error describes what is wrong
    if kind.reading is Reading.TENSORS or kind is FileKind.CUT_TABLE:
        return None
    if not kind.is_foreign and parse_data_filename(path) is not None:
        return None  # a data file of a checkpoint, which may contain any bytes: the error describes what is missing
    return _Finding(kind.what, kind.hint, kind.reading is Reading.GRAPH)


def _directory_kind(path: str, names: Sequence[str]) -> _Finding | None:
    """Return the kind of a directory that does not have exactly one checkpoint, and of its files."""
    prefixes = sorted(prefixes_of(names))
    without_index = not prefixes and any(parse_data_filename(name) is not None for name in names)
    if STATE_FILE in names or len(prefixes) == 1 or without_index:
        return None  # it has a checkpoint, and the error describes what is wrong with it
    if prefixes:
        kind = f"a directory with {len(prefixes)} checkpoints and no `checkpoint` file that names the newest"
        paths = [printable(os.path.join(path, prefix)) for prefix in prefixes]
        return _Finding(kind, "`tfckpt show` and `tfckpt ls` accept any of these names", True, paths)
    files = [name for name in names if not LOCAL.is_directory(os.path.join(path, name))]
    below = checkpoints_below(path)
    if not files and not below.counts:
        return None
    kinds = [(name, _kind_in_directory(path, name)) for name in files]
    if any(kind is FileKind.TFJS for _, kind in kinds):
        return _Finding("the directory of a TensorFlow.js model", FileKind.TFJS.hint, False)
    if any(kind in (FileKind.SAVED_MODEL, FileKind.SAVED_MODEL_TEXT) for _, kind in kinds):
        return _Finding("a SavedModel directory without variables", "`tfckpt meta` shows it", True)
    if below.counts:
        inside = counted(len(below.counts), "subdirectory")
        readable_files = [
            f"{printable(os.path.join(path, name))}: {kind.what}"
            for name, kind in kinds
            if kind.reading is not Reading.NOTHING
        ]
        kind = f"a directory without a checkpoint of its own, but with checkpoints in {inside}"
        hint = f"Pass one of them, as in `tfckpt show {below.example}`{below.limits}"
        return _Finding(kind, hint, True, [*below.lines, *readable_files])
    lines = [f"{printable(name)}: {kind.what}" for name, kind in kinds]
    readable = any(kind.reading is not Reading.NOTHING for _, kind in kinds)
    kind = f"a directory with {counted(len(files), 'file')} and no `checkpoint` file"
    return _Finding(kind, "`tfckpt show FILE` shows how to read one of them", readable, lines)


def _kind_in_directory(directory: str, name: str) -> FileKind:
    return kind_of_file(LOCAL, os.path.join(directory, name))


def _is_tfjs_shard(path: str) -> bool:
    """Return whether `path` is a .bin file next to a model.json of TensorFlow.js: only numbers, no header."""
    beside = os.path.join(os.path.dirname(path), _TFJS_MODEL)
    return path.endswith(".bin") and LOCAL.exists(beside) and kind_of_file(LOCAL, beside) is FileKind.TFJS
