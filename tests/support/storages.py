"""Storages that fail: at operation k, from then on, like a killed process, or like a power failure.

They count all operations on names and files, so that a test can make each one fail in turn.
"""

import errno
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Final, NamedTuple

from torch_tfckpt.errors import InvalidArgumentError, NotFoundError
from torch_tfckpt.storage.local import LOCAL, LocalOutput, LocalStorage
from torch_tfckpt.storage.protocol import Buffer, ReadableFile, Storage, WritableFile

# At most 2**8 states of the disk are tested after each operation.
MAX_PENDING = 8


class Killed(BaseException):
    """The process was killed: what the code under test does after this has no effect."""


class Counting:
    """Wraps a storage, and calls `before` and `after` around each operation, with its number and description."""

    def __init__(self, inner: Storage) -> None:
        self._inner = inner
        self.log: list[str] = []
        self._created: list[WritableFile] = []
        self._lock = threading.Lock()

    def end_process(self) -> None:
        """Close all files, as the kernel does when a process ends: it no longer uses any of them."""
        for file in self._created:
            file.close()

    def before(self, number: int, what: str) -> None:
        """Raise if operation `number` (from 0) must not happen."""

    def after(self, number: int, what: str) -> None:
        """Raise if operation `number` must fail although it took effect."""

    def torn(self, number: int) -> bool:
        """Return whether operation `number`, a write for which `before` raises, is half done."""
        return False

    @contextmanager
    def operation(self, what: str) -> Iterator[None]:
        with self._lock:
            number = len(self.log)
            self.log.append(what)
        self.before(number, what)
        yield
        self.after(number, what)

    def open(self, path: str) -> ReadableFile:
        with self.operation(f"open {os.path.basename(path)}"):
            return _Reading(self, self._inner.open(path))

    def create(self, path: str) -> WritableFile:
        created = None
        try:
            with self.operation(f"create {os.path.basename(path)}"):
                created = self._inner.create(path)
                self._created.append(created)
                return _Writing(self, created)
        except BaseException:
            if created is not None:
                created.close()  # it was never returned to the caller
            raise

    @property
    def renames(self) -> bool:
        return self._inner.renames

    def in_use(self, path: str) -> bool:
        with self.operation(f"in_use {os.path.basename(path)}"):
            return self._inner.in_use(path)

    def detects_use(self, path: str) -> bool:
        with self.operation(f"detects_use {os.path.basename(path)}"):
            return self._inner.detects_use(path)

    def lock_domain(self, directory: str) -> int:
        return self._inner.lock_domain(directory)

    @contextmanager
    def exclusive(self, directory: str) -> Iterator[bool]:
        with self._inner.exclusive(directory) as locked:
            yield locked

    def modified(self, path: str) -> float:
        with self.operation(f"modified {os.path.basename(path)}"):
            return self._inner.modified(path)

    def exists(self, path: str) -> bool:
        with self.operation(f"exists {os.path.basename(path)}"):
            return self._inner.exists(path)

    def list(self, directory: str) -> list[str]:
        with self.operation("list"):
            return self._inner.list(directory)

    def is_directory(self, path: str) -> bool:
        with self.operation(f"is_directory {os.path.basename(path)}"):
            return self._inner.is_directory(path)

    def make_directory(self, path: str) -> None:
        with self.operation(f"make_directory {os.path.basename(path)}"):
            self._inner.make_directory(path)

    def replace(self, source: str, target: str) -> None:
        with self.operation(f"replace {os.path.basename(source)} -> {os.path.basename(target)}"):
            self._inner.replace(source, target)

    def link(self, source: str, target: str) -> None:
        with self.operation(f"link {os.path.basename(source)} -> {os.path.basename(target)}"):
            self._inner.link(source, target)

    def remove(self, path: str) -> None:
        with self.operation(f"remove {os.path.basename(path)}"):
            self._inner.remove(path)

    def remove_unused(self, path: str) -> bool:
        with self.operation(f"remove_unused {os.path.basename(path)}"):
            return self._inner.remove_unused(path)

    def remove_directory(self, path: str) -> None:
        with self.operation(f"remove_directory {os.path.basename(path)}"):
            self._inner.remove_directory(path)

    def sync_directory(self, path: str) -> None:
        with self.operation("sync_directory"):
            self._inner.sync_directory(path)


class _Reading:
    def __init__(self, storage: Counting, inner: ReadableFile) -> None:
        self._storage, self._inner = storage, inner
        self.path, self.size, self.identity = inner.path, inner.size, inner.identity

    def read(self, offset: int, size: int) -> bytes:
        with self._storage.operation(f"read {os.path.basename(self.path)}"):
            return self._inner.read(offset, size)

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        with self._storage.operation(f"read {os.path.basename(self.path)}"):
            self._inner.read_into(offset, buffers)

    def fileno(self) -> int:
        return self._inner.fileno()

    def close(self) -> None:
        self._inner.close()


class _Writing:
    def __init__(self, storage: Counting, inner: WritableFile) -> None:
        self._storage, self._inner = storage, inner
        self.path, self.in_order = inner.path, inner.in_order

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        if self._storage.torn(len(self._storage.log)):
            data = b"".join(buffers)
            self._inner.write(offset, [data[: len(data) // 2]])
        with self._storage.operation(f"write {os.path.basename(self.path)}"):
            self._inner.write(offset, buffers)

    def sync(self) -> None:
        with self._storage.operation(f"sync {os.path.basename(self.path)}"):
            self._inner.sync()

    def has_name(self, path: str) -> bool:
        with self._storage.operation(f"has_name {os.path.basename(path)}"):
            return self._inner.has_name(path)

    def close(self) -> None:
        # close(2) releases the descriptor even if it reports an error.
        self._inner.close()
        with self._storage.operation(f"close {os.path.basename(self.path)}"):
            pass


class FailingStorage(Counting):
    """Operation `fail_at` raises `error`.

    Args:
        forever: Every later operation also raises, as on a failed disk.
        late: The operation takes effect before it raises, like a rename on a network file system, or before a Ctrl-C.
    """

    def __init__(
        self,
        inner: Storage,
        fail_at: int,
        *,
        forever: bool = False,
        late: bool = False,
        error: type[BaseException] = OSError,
    ) -> None:
        super().__init__(inner)
        self._fail_at, self._forever, self._late, self._error = fail_at, forever, late, error
        self.failed = ""

    def before(self, number: int, what: str) -> None:
        if not self._late:
            self._fail(number, what)

    def after(self, number: int, what: str) -> None:
        if self._late:
            self._fail(number, what)

    def torn(self, number: int) -> bool:
        return number == self._fail_at and not self._late

    def heal(self) -> None:
        """Let all further operations succeed."""
        self._fail_at = sys.maxsize

    def _fail(self, number: int, what: str) -> None:
        if number == self._fail_at or (self._forever and number > self._fail_at):
            self.failed = self.failed or what
            raise self._error(errno.ENOSPC, os.strerror(errno.ENOSPC), what)


class CrashingStorage(Counting):
    """From operation `crash_at` on, no operation has any effect, including cleanup."""

    def __init__(self, inner: Storage, crash_at: int) -> None:
        super().__init__(inner)
        self._crash_at = crash_at
        self.crashed = ""

    def before(self, number: int, what: str) -> None:
        if number >= self._crash_at:
            self.crashed = self.crashed or what
            raise Killed(what)

    def torn(self, number: int) -> bool:
        return number == self._crash_at


# A power failure.


@dataclass(eq=False)
class _Inode:
    """The bytes of one file, as programs see them and as they are on disk."""

    content: bytearray = field(default_factory=bytearray)
    durable: bytes = b""


Names = dict[str, _Inode]


class _Change(NamedTuple):
    """A change of names in one directory: path -> file, or None if the name is removed."""

    directory: str
    names: dict[str, _Inode | None]


class DropUnsyncedStorage:
    """A disk in memory that loses everything that was not synced.

    Names and bytes are visible at once. Bytes survive after the file was synced, names after their directory was. Any
    of the later changes may also survive: the first ones, as on a file system with a journal, or others without them.

    Args:
        folder: The initial, durable files.
    """

    renames = True

    def __init__(self, folder: Path) -> None:
        self._names: Names = {}
        self._writing: list[_Inode] = []
        self._directories = {str(folder)}
        for path in sorted(folder.rglob("*")):
            if path.is_dir():
                self._directories.add(str(path))
            else:
                content = path.read_bytes()
                self._names[str(path)] = _Inode(bytearray(content), content)
        self._durable = dict(self._names)
        self._pending: list[_Change] = []
        self._at_first, self._journal, self._committed = dict(self._names), list[_Change](), 0

    def states(self) -> Iterator[dict[str, bytes]]:
        """Every path -> content that a power failure now might leave."""
        for survived in _subsets(self._pending):
            names = dict(self._durable)
            for change in survived:
                _apply(names, change)
            yield {path: inode.durable for path, inode in names.items()}
            yield {path: bytes(inode.content) for path, inode in names.items()}

    def states_in_order(self) -> Iterator[dict[str, bytes]]:
        """Every path -> content that a power failure now might leave on a file system with a journal.

        Changes of names survive in their order across directories: if one survives, so do all before it.
        """
        for count in range(self._committed, len(self._journal) + 1):
            names = dict(self._at_first)
            for change in self._journal[:count]:
                _apply(names, change)
            yield {path: inode.durable for path, inode in names.items()}

    def _change(self, directory: str, names: dict[str, _Inode | None]) -> None:
        change = _Change(directory, names)
        _apply(self._names, change)
        self._pending.append(change)
        self._journal.append(change)

    def open(self, path: str) -> ReadableFile:
        if path not in self._names:
            raise NotFoundError(f"{path}: no such file")
        if path in self._directories:
            raise InvalidArgumentError(f"{path}: is a directory")
        return _MemoryFile(path, self._names[path])

    def create(self, path: str) -> WritableFile:
        if path in self._names:
            raise FileExistsError(path)
        if os.path.dirname(path) not in self._directories:
            raise FileNotFoundError(path)
        inode = _Inode()
        self._change(os.path.dirname(path), {path: inode})
        self._writing.append(inode)
        return _MemoryOutput(path, inode, self)

    def in_use(self, path: str) -> bool:
        return self._names.get(path) in self._writing

    def detects_use(self, path: str) -> bool:
        return True

    def lock_domain(self, directory: str) -> int:
        return 0

    def exclusive(self, directory: str) -> AbstractContextManager[bool]:
        return nullcontext(True)  # there is only one program

    def modified(self, path: str) -> float:
        if path not in self._names:
            raise FileNotFoundError(path)
        return 0.0  # it has no clock

    def exists(self, path: str) -> bool:
        return path in self._names or path in self._directories

    def list(self, directory: str) -> list[str]:
        paths = [*self._names, *self._directories]
        return sorted({os.path.basename(path) for path in paths if os.path.dirname(path) == directory})

    def is_directory(self, path: str) -> bool:
        return path in self._directories

    def make_directory(self, path: str) -> None:
        self._directories.add(path)

    def replace(self, source: str, target: str) -> None:
        if source not in self._names:
            raise FileNotFoundError(source)
        self._change(os.path.dirname(target), {source: None, target: self._names[source]})

    def link(self, source: str, target: str) -> None:
        if source not in self._names:
            raise FileNotFoundError(source)
        if self.exists(target):
            raise FileExistsError(target)
        self._change(os.path.dirname(target), {target: self._names[source]})

    def remove(self, path: str) -> None:
        if path in self._names:
            self._change(os.path.dirname(path), {path: None})

    def remove_unused(self, path: str) -> bool:
        if path not in self._names or self.in_use(path):
            return False
        self.remove(path)
        return True

    def remove_directory(self, path: str) -> None:
        if not self.list(path):
            self._directories.discard(path)

    def sync_directory(self, path: str) -> None:
        for change in self._pending:
            if change.directory == path:
                _apply(self._durable, change)
        self._pending = [change for change in self._pending if change.directory != path]
        self._committed = len(self._journal)


def _subsets(changes: list[_Change]) -> Iterator[tuple[_Change, ...]]:
    """Return the sets of changes that may survive: all subsets; for many changes, the prefixes, and all but one."""
    if len(changes) <= MAX_PENDING:
        for size in range(len(changes) + 1):
            yield from combinations(changes, size)
    else:
        for number in range(len(changes) + 1):
            yield tuple(changes[:number])
            yield tuple(changes[:number] + changes[number + 1 :])


def _apply(names: Names, change: _Change) -> None:
    for path, inode in change.names.items():
        if inode is None:
            names.pop(path, None)
        else:
            names[path] = inode


class _MemoryFile:
    def __init__(self, path: str, inode: _Inode) -> None:
        self.path, self.identity, self.size = path, id(inode), len(inode.content)
        self._inode = inode

    def read(self, offset: int, size: int) -> bytes:
        data = bytes(self._inode.content[offset : offset + size])
        assert len(data) == size, "read beyond the end"
        return data

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        for buffer in buffers:
            buffer[:] = self.read(offset, len(buffer))
            offset += len(buffer)

    def fileno(self) -> int:
        raise NotImplementedError("a file in memory has no descriptor")

    def close(self) -> None:
        pass


class _MemoryOutput:
    in_order = False

    def __init__(self, path: str, inode: _Inode, storage: DropUnsyncedStorage) -> None:
        self.path, self._inode, self._storage = path, inode, storage

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        content = self._inode.content
        for buffer in buffers:
            content.extend(bytes(max(0, offset + len(buffer) - len(content))))
            content[offset : offset + len(buffer)] = buffer
            offset += len(buffer)

    def sync(self) -> None:
        self._inode.durable = bytes(self._inode.content)

    def has_name(self, path: str) -> bool:
        return self._storage._names.get(path) is self._inode

    def close(self) -> None:
        if self._inode in self._storage._writing:
            self._storage._writing.remove(self._inode)


class SwitchedStorage:
    """Passes every call to `current`, so that a saver can use another storage for some of its saves."""

    def __init__(self) -> None:
        self.current: Storage = LOCAL

    @contextmanager
    def using(self, storage: Storage) -> Iterator[None]:
        """Pass calls to `storage` inside a `with` block."""
        self.current = storage
        try:
            yield
        finally:
            self.current = LOCAL

    def __getattr__(self, name: str) -> Any:
        return getattr(self.current, name)


class GatedStorage(LocalStorage):
    """LOCAL, except that writes into data files wait until `opened` is set, and then fail with `error`, if set."""

    PATIENCE: Final = 60.0  # seconds after which a wait fails

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        self.error: Exception | None = None

    def create(self, path: str) -> LocalOutput:
        return _GatedOutput(path, self) if ".data-" in path else super().create(path)

    def wait(self) -> None:
        """Called by writers."""
        self.reached.set()
        assert self.opened.wait(self.PATIENCE), "the gate was not opened"
        if self.error is not None:
            raise self.error


class _GatedOutput(LocalOutput):
    """A file whose writes wait for the gate."""

    def __init__(self, path: str, gate: GatedStorage) -> None:
        super().__init__(path)
        self._gate = gate

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        self._gate.wait()
        super().write(offset, buffers)
