"""Protocols for storages: the operations a checkpoint needs.

A reader opens files and reads at offsets. A writer creates files under temporary names, writes at offsets, syncs, and
publishes by renaming; a hard link gives a published file a second name. Nothing here interprets the bytes.

Paths are `str`; bytes that are not UTF-8 are represented by surrogate escapes (`os.fsdecode`), so any file can be
named.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

Buffer = bytes | bytearray | memoryview


class ReadableFile(Protocol):
    """An open file; its bytes do not change when its name is replaced or deleted.

    Thread safety: all methods except `close` may be called from several threads at once.

    Examples:
        >>> from torch_tfckpt.storage.local import LocalStorage
        >>> with open("notes", "wb") as notes:
        ...     _ = notes.write(b"abcdef")
        >>> file = LocalStorage().open("notes")
        >>> file.size, file.read(2, 3)
        (6, b'cde')
        >>> file.close()
    """

    @property
    def path(self) -> str:
        """The path that the file was opened with."""

    @property
    def size(self) -> int:
        """Size in bytes when the file was opened."""

    @property
    def identity(self) -> object:
        """Equal for two handles to the same file; different if a different file has taken the name."""

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes; raise DataLossError if the file ends earlier."""

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill `buffers` one after another, starting at `offset`; raise DataLossError if the file ends early."""

    def fileno(self) -> int:
        """Return the descriptor of a local file, for memory mapping; raise UnimplementedError for other files."""

    def close(self) -> None:
        """Close the file. Do nothing if it is closed already."""


class WritableFile(Protocol):
    """A file being written.

    `Storage.in_use` reports it as in use until it is closed or its process ends.

    Thread safety: unless the file is `in_order`, several threads may call `write` at once with disjoint ranges.

    Examples:
        >>> from torch_tfckpt.storage.local import LocalStorage
        >>> file = LocalStorage().create("notes")
        >>> file.write(3, [b"de", b"f"])
        >>> file.write(0, [b"abc"])
        >>> file.sync()
        >>> file.close()
        >>> with open("notes") as notes:
        ...     notes.read()
        'abcdef'
    """

    @property
    def path(self) -> str:
        """The path that the file was created with."""

    @property
    def in_order(self) -> bool:
        """Whether every write must start at or after the end of the previous one, as in an upload.

        If so, only one thread may write. Skipped bytes are zeros.
        """

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Write `buffers` one after another, starting at `offset`."""

    def sync(self) -> None:
        """Return once the bytes are durable. Nothing may be written afterwards."""

    def has_name(self, path: str) -> bool:
        """Return whether `path` currently names this open file. Only for storages that support renames."""

    def close(self) -> None:
        """Close the file. Do nothing if it is closed already."""


class Storage(Protocol):
    """Storage of files: open, create, rename, list, remove.

    Methods raise the system's OSError unless documented otherwise. By default paths are local files, and URLs are
    opened through fsspec; arguments named `storage` accept a different storage.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> from torch_tfckpt.storage.local import LocalStorage
        >>> class LoggingStorage(LocalStorage):
        ...     def create(self, path):
        ...         print("create", path.rpartition(".")[2].startswith("tempstate"))
        ...         return super().create(path)
        >>> tfckpt.save_file({"w": torch.ones(2)}, "model.ckpt", storage=LoggingStorage())
        create True
        create True
        'model.ckpt'
    """

    @property
    def renames(self) -> bool:
        """Whether `replace` is atomic for every reader.

        Object stores have no atomic rename. Instead, a file becomes visible when it is synced: complete, under the name
        it was created with, and replacing any older file. So it needs no temporary name and must not use one.
        """

    def open(self, path: str) -> ReadableFile:
        """Open a file for reading.

        Raises:
            NotFoundError: there is no such file.
            InvalidArgumentError: it is a directory or device.
            FailedPreconditionError: access is denied, or another system error occurs.
        """

    def create(self, path: str) -> WritableFile:
        """Create an empty file; raise FileExistsError if the name exists and `renames` is true."""

    def in_use(self, path: str) -> bool:
        """Return whether a running program is writing the file; True if this cannot be determined."""

    def detects_use(self, path: str) -> bool:
        """Return whether `in_use` can be determined for this file, by programs of the same `lock_domain`."""

    def lock_domain(self, directory: str) -> int:
        """Return a 32-bit number; programs with the same number see which files in `directory` the others use."""

    def exclusive(self, directory: str) -> AbstractContextManager[bool]:
        """Keep other programs from changing names in `directory`; wait a limited time for changes in progress.

        Yields:
            Whether programs of the same `lock_domain` are kept out. If False, they may change names at the same time.
        """

    def exists(self, path: str) -> bool:
        """Return whether there is a file or directory at `path`.

        Raises:
            OSError: a system error, such as EACCES or EIO. Returning False instead could make callers overwrite files.
        """

    def modified(self, path: str) -> float:
        """Return the modification time in seconds since the epoch."""

    def list(self, directory: str) -> list[str]:
        """Return the sorted names in `directory`; an empty list if there is no such directory.

        Raises:
            FailedPreconditionError, OSError: a system error, such as EACCES or EIO.
        """

    def is_directory(self, path: str) -> bool:
        """Return whether `path` is a directory. Raises OSError as `exists` does."""

    def make_directory(self, path: str) -> None:
        """Create the directory `path`, but not its parents; do nothing if it exists."""

    def replace(self, source: str, target: str) -> None:
        """Rename atomically, replacing an existing `target`."""

    def link(self, source: str, target: str) -> None:
        """Give the file a second name; raise FileExistsError if it is taken, OSError if links are unsupported."""

    def remove(self, path: str) -> None:
        """Remove the file; do nothing if it does not exist."""

    def remove_unused(self, path: str) -> bool:
        """Remove the file unless it is `in_use`; return whether it was removed.

        The check and the removal are atomic: no program can start writing the file in between.
        """

    def remove_directory(self, path: str) -> None:
        """Remove the directory `path` if it is empty; otherwise change nothing."""

    def sync_directory(self, path: str) -> None:
        """Return once the names in the directory `path` are durable."""
