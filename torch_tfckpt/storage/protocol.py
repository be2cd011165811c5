"""The few things a checkpoint asks of a place for files.

A reader opens files and reads at offsets. A writer creates files under temporary names, writes at offsets, syncs, and
publishes by rename; a link gives published bytes a second name. Nothing here knows what the bytes mean.

Paths are `str`; names that are no UTF-8 travel as surrogate escapes (`os.fsdecode`), so any file can be named.
"""

from collections.abc import Sequence
from typing import Protocol

Buffer = bytes | bytearray | memoryview


class ReadableFile(Protocol):
    """An open file. It stays readable, with the same bytes, when its name is replaced or deleted.

    Threads: all methods but `close` may be called from several threads at once.
    """

    @property
    def path(self) -> str: ...

    @property
    def size(self) -> int:
        """Bytes, as of opening."""

    @property
    def identity(self) -> object:
        """Equal for two handles on the same file; another file under the same name compares unequal."""

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes; DataLossError where the file ends before."""

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fills `buffers`, one behind the other, from `offset` on; DataLossError where the file ends before."""

    def fileno(self) -> int:
        """Of a local file, for mapping it into memory; UnimplementedError elsewhere."""

    def close(self) -> None: ...


class WritableFile(Protocol):
    """A file being written.

    Threads: unless it is `in_order`, `write` may be called from several threads at once, on ranges apart.

    Until it is closed, or its process ends, `Storage.in_use` says so to others.
    """

    @property
    def path(self) -> str: ...

    @property
    def in_order(self) -> bool:
        """Whether every write must begin at or after the end of the one before, as an upload needs it.

        Then one thread writes. Bytes that are skipped are zeros.
        """

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Writes `buffers`, one behind the other, from `offset` on."""

    def sync(self) -> None:
        """Returns once the bytes are durable. Nothing is written after that."""

    def close(self) -> None: ...


class Storage(Protocol):
    """A place for files. Every method raises OSError as the system gives it, unless it says otherwise."""

    @property
    def renames(self) -> bool:
        """Whether `replace` is one step for every reader.

        Object stores have no such step. There a file appears whole, under the name it was created with and in place of
        an older one, when it is synced; so it needs no temporary name, and must not have one.
        """

    def open(self, path: str) -> ReadableFile:
        """NotFoundError where nothing is there; InvalidArgumentError for a directory or device; FailedPreconditionError
        where the system refuses."""

    def create(self, path: str) -> WritableFile:
        """A new, empty file; FileExistsError where the name is taken, unless files of that name are replaced whole."""

    def in_use(self, path: str) -> bool:
        """Whether the file is being written by a program that is alive. True where that cannot be told."""

    def exists(self, path: str) -> bool: ...

    def modified(self, path: str) -> float:
        """When the file last changed: seconds since the epoch."""

    def list(self, directory: str) -> list[str]:
        """Names in `directory`, sorted; empty where there is no such directory."""

    def is_directory(self, path: str) -> bool: ...

    def make_directory(self, path: str) -> None:
        """Creates `path`, and nothing above it; fine where it exists."""

    def replace(self, source: str, target: str) -> None:
        """Renames in one step; a file of that name is replaced."""

    def link(self, source: str, target: str) -> None:
        """Gives the file a second name; FileExistsError where it is taken, OSError where links are unknown."""

    def remove(self, path: str) -> None:
        """Fine where nothing is there."""

    def remove_unused(self, path: str) -> bool:
        """Removes the file unless it is in use, as `in_use` has it, and says whether it did.

        In one step: between looking and removing nobody can begin to write it.
        """

    def remove_directory(self, path: str) -> None:
        """Removes `path` if it is an empty directory; else leaves everything as it is."""

    def sync_directory(self, path: str) -> None:
        """Returns once the names in `path` are durable."""
