"""Read and atomically replace small files, create directories, and determine the kind of a file."""

import os

from torch_tfckpt.errors import CheckpointError, DataLossError
from torch_tfckpt.format.file_kind import FileKind
from torch_tfckpt.format.recognise import recognise
from torch_tfckpt.storage.protocol import Buffer, Storage
from torch_tfckpt.storage.publication import Publication
from torch_tfckpt.text import printable


def read_small(storage: Storage, path: str, limit: int, what: str, hint: str = "") -> bytes:
    """Return the contents of a file of at most `limit` bytes.

    The size is checked before memory is allocated.

    Args:
        what: Expected kind of file, for the error message: "a checkpoint state file".
        hint: How to fix a file that is too large.

    Raises:
        DataLossError: the file is larger, or becomes shorter while it is read. `storage.open` may raise other errors.
    """
    file = storage.open(path)
    try:
        if file.size > limit:
            error = f"{printable(path)}: {file.size} bytes are too many for {what}, which has at most {limit}"
            raise DataLossError(f"{error}. {hint}" if hint else error)
        return file.read(0, file.size)
    finally:
        file.close()


def kind_of_file(storage: Storage, path: str) -> FileKind:
    """Return the kind of the file at `path`; UNKNOWN if it cannot be opened, as with a directory or pipe.

    Raises:
        OSError: a system error while reading the file.

    Cost: a few reads, at most about 2 MiB.
    """
    try:
        file = storage.open(path)
    except CheckpointError:
        return FileKind.UNKNOWN
    try:
        return recognise(file.read, file.size)
    finally:
        file.close()


def write_file(storage: Storage, path: str, contents: Buffer) -> None:
    """Write `contents` to `path` durably and atomically: every reader finds the complete old or new file.

    Raises:
        OSError: a step failed. The old file is still there, unless only syncing the directory failed.
    """
    with Publication(storage) as publication:
        publication.create(path).write(0, [contents])


def make_directories(storage: Storage, path: str) -> None:
    """Create the directory `path` and its missing parents; raise the system's OSError on failure."""
    if path and not storage.is_directory(path):
        make_directories(storage, os.path.dirname(path))
        storage.make_directory(path)
