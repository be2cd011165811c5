"""Data files that are open only while they are used, so that a checkpoint may have more files than a process may open.

A file that is opened again must still be the same one, and is refused otherwise.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from torch_tfckpt.errors import FailedPreconditionError
from torch_tfckpt.storage.protocol import ReadableFile
from torch_tfckpt.text import printable

OPEN_AT_ONCE: Final = 64
"""Files that stay open after their last use. More are open only while more threads read."""


class OpenFiles:
    """The files of one checkpoint that are open at the moment.

    Args:
        limit: Number of files to keep open.

    Thread safety: safe.
    """

    def __init__(self, limit: int = OPEN_AT_ONCE) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _Opened] = OrderedDict()  # the one used last is at the end

    def add(self, file: ReadableFile, reopen: Callable[[], ReadableFile]) -> ReadableFile:
        """Return a file that is read through `file`, which may be closed and opened again with `reopen`."""
        lazy = _LazyFile(self, file, reopen)
        with self._lock:
            self._open[file.path] = _Opened(file)
            self._close_unused()
        return lazy

    @contextmanager
    def using(self, lazy: "_LazyFile") -> Iterator[ReadableFile]:
        """Keep a file open during the `with` block."""
        with self._lock:
            opened = self._open.get(lazy.path)
            if opened is None:
                opened = self._open[lazy.path] = _Opened(lazy.open_again())
            opened.users += 1
            self._open.move_to_end(lazy.path)
            self._close_unused()
        try:
            yield opened.file
        finally:
            with self._lock:
                opened.users -= 1
                self._close_unused()

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            opened = list(self._open.values())
            self._open.clear()
        for each in opened:
            each.file.close()

    def _close_unused(self) -> None:
        if len(self._open) > self._limit:
            for path in [path for path, opened in self._open.items() if not opened.users]:
                self._open.pop(path).file.close()
                if len(self._open) <= self._limit:
                    return


class _Opened:
    """An open file, and how many reads of it are in progress."""

    __slots__ = ("file", "users")

    def __init__(self, file: ReadableFile) -> None:
        self.file, self.users = file, 0


class _LazyFile:
    """A ReadableFile that is opened when it is read."""

    def __init__(self, files: OpenFiles, file: ReadableFile, reopen: Callable[[], ReadableFile]) -> None:
        self.path, self.size, self.identity = file.path, file.size, file.identity
        self._files, self._reopen = files, reopen
        self._pinned: ReadableFile | None = None  # by `fileno`

    def open_again(self) -> ReadableFile:
        """Open the file; raise FailedPreconditionError if it is a different one by now."""
        file = self._reopen()
        if (file.identity, file.size) != (self.identity, self.size):
            file.close()
            raise FailedPreconditionError(
                f"{printable(self.path)}: the file was replaced after it was opened. Open the checkpoint again"
            )
        return file

    def read(self, offset: int, size: int) -> bytes:
        with self._files.using(self) as file:
            return file.read(offset, size)

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        with self._files.using(self) as file:
            file.read_into(offset, buffers)

    def fileno(self) -> int:
        if self._pinned is None:
            self._pinned = self.open_again()
        return self._pinned.fileno()

    def close(self) -> None:
        pinned, self._pinned = self._pinned, None
        if pinned is not None:
            pinned.close()
