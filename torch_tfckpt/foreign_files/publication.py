"""Several files that appear together: written under temporary names, made durable, then renamed.

    with Publication() as publication:
        temporary = publication.place("model.safetensors")     # write there, and close
        publication.drop("model.safetensors.index.json")       # left over from an earlier target
    # left normally: synced and renamed in the order of `place`, then the dropped ones go. By an exception: no trace.

A crash between two renames can leave the files of two targets mixed; what belongs together says so itself (an index
names its shards, a sidecar the size of its file).
"""

import contextlib
import os
import stat
from collections.abc import Callable
from types import TracebackType
from typing import Self

from torch_tfckpt.errors import FailedPreconditionError
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.names import temporary_name
from torch_tfckpt.text import printable


class Publication:
    """Files of this machine that are published in one go."""

    def __init__(self) -> None:
        self._placed: list[tuple[str, str]] = []  # temporary name, final name
        self._dropped: list[str] = []
        self._first: list[Callable[[], object]] = []
        self._made: list[str] = []  # directories, which go again if nothing is published

    def make_directory(self, path: str) -> None:
        """Creates `path`, and nothing above it; fine where it exists."""
        if path and not LOCAL.exists(path):
            self._made.append(path)  # before it is made: Ctrl-C may come between
            LOCAL.make_directory(path)

    def place(self, path: str) -> str:
        """The name under which `path` is to be written.

        Raises:
            FailedPreconditionError: something lies there that must not be replaced: a directory, a device, a pipe.
        """
        _check_replaceable(path)
        self.make_directory(os.path.dirname(path))
        temporary = temporary_name(path)
        self._placed.append((temporary, path))
        return temporary

    def drop(self, path: str) -> None:
        """Removes `path` once everything is in place; fine where nothing is there."""
        self._dropped.append(path)

    def first(self, action: Callable[[], object]) -> None:
        """Does `action` once all bytes are durable, before the first rename; if it fails, nothing is renamed."""
        self._first.append(action)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._publish()
                self._made.clear()
        finally:
            for temporary, _ in self._placed:
                LOCAL.remove(temporary)
            for directory in reversed(self._made):
                LOCAL.remove_directory(directory)

    def _publish(self) -> None:
        for temporary, path in self._placed:
            _check_replaceable(path)
            _sync(temporary, path)
        for action in self._first:
            action()
        for temporary, path in self._placed:
            LOCAL.replace(temporary, path)
        for path in self._dropped:
            LOCAL.remove(path)
        for directory in {os.path.dirname(path) for _, path in self._placed}:
            LOCAL.sync_directory(directory)


def _check_replaceable(path: str) -> None:
    """Renaming over /dev/stdout or a named pipe would put a file in its place, for every other program too."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # nothing there; what else may be wrong, writing will say
    if not stat.S_ISREG(mode):
        what = "a directory" if stat.S_ISDIR(mode) else "no regular file, and only such can be replaced"
        raise FailedPreconditionError(f"{printable(path)} is {what}. Name another file")


def _sync(temporary: str, path: str) -> None:
    """Makes the bytes durable; a file that replaces another gets its permissions."""
    descriptor = os.open(temporary, os.O_RDWR | os.O_CLOEXEC)
    try:
        with contextlib.suppress(FileNotFoundError, PermissionError):
            os.fchmod(descriptor, stat.S_IMODE(os.stat(path).st_mode))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
