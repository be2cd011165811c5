"""Publish a group of files: every reader finds each file's old or new contents, never a mix.

    with Publication(storage) as publication:
        file = publication.create("model.ckpt-1000")         # any storage: write to it; the publication closes it
        temporary = publication.place("model.safetensors")   # local files: write under this name, and close
        publication.drop("model.safetensors.index.json")     # left over from an earlier output
    # without an exception: contents synced, files renamed in this order, dropped files removed, directories synced
    # after an exception: everything written is removed

A crash between two renames can leave a mix of old and new files. Files that belong together must make this
detectable: an index names its shards, a sidecar contains the size of its file.
"""

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from torch_tfckpt.errors import FailedPreconditionError
from torch_tfckpt.storage.local import LOCAL, LocalStorage
from torch_tfckpt.storage.names import temporary_name
from torch_tfckpt.storage.protocol import Storage, WritableFile
from torch_tfckpt.text import printable


@dataclass(slots=True)
class _Output:
    """One file of a group."""

    written: str  # temporary name
    path: str  # final name
    file: WritableFile | None = None  # None: the caller opens it by name


class Publication:
    """A group of files on one storage that are published together.

    On a storage without renames, a file is written under its final name and appears when it is synced.
    """

    def __init__(self, storage: Storage = LOCAL) -> None:
        self._storage = storage
        self._outputs: list[_Output] = []
        self._dropped: list[str] = []
        self._first: list[Callable[[], object]] = []
        self._made: list[str] = []  # directories to remove again if nothing is published
        self._published = False

    def create(self, path: str) -> WritableFile:
        """Return a new file that is published as `path`.

        It stays open until then, because a temporary file that is not open counts as left over from a killed save.
        """
        output = _Output(temporary_name(path) if self._storage.renames else path, path)
        self._outputs.append(output)  # before creating the file: Ctrl-C may arrive in between
        output.file = self._storage.create(output.written)
        return output.file

    def place(self, path: str) -> str:
        """Create the directory of the local file `path`, and return the temporary name to write it under.

        Raises:
            FailedPreconditionError: `path` must not be replaced: it is a directory, a device or a pipe.
        """
        assert isinstance(self._storage, LocalStorage), "only local files can be opened by name"
        _check_replaceable(path)
        directory = os.path.dirname(path)
        if directory and not LOCAL.exists(directory):
            self._made.append(directory)
            LOCAL.make_directory(directory)
        self._outputs.append(_Output(temporary_name(path), path))
        return self._outputs[-1].written

    def drop(self, path: str) -> None:
        """Remove `path`, if it exists, after all files are in place."""
        self._dropped.append(path)

    def first(self, action: Callable[[], object]) -> None:
        """Call `action` once all contents are durable, before the first rename; if it fails, rename nothing."""
        self._first.append(action)

    def publish(self) -> None:
        """Sync and rename all files, without syncing the directory.

        For callers that must distinguish these errors from those of syncing the directory; they sync it themselves.
        Otherwise, leaving the `with` block does both.
        """
        for output in self._outputs:
            if output.file is None:
                _check_replaceable(output.path)
                _sync(output.written, output.path)
            else:
                output.file.sync()
        for action in self._first:
            action()
        storage = self._storage
        for output in self._outputs if storage.renames else ():
            try:
                storage.replace(output.written, output.path)
            except OSError:
                # On a network file system a rename may report an error although it succeeded. In that case the file,
                # which is still open, is in use under its final name.
                if output.file is None or storage.exists(output.written) or not storage.in_use(output.path):
                    raise
        for path in self._dropped:
            storage.remove(path)
        self._published = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and not self._published:
                self.publish()
                for directory in {os.path.dirname(output.path) for output in self._outputs}:
                    self._storage.sync_directory(directory)
        finally:
            for output in self._outputs:
                if output.file is not None:
                    with suppress(OSError):  # the contents are already synced, or not needed
                        output.file.close()
                if self._storage.renames and not self._published:
                    with suppress(OSError):
                        self._storage.remove(output.written)
            if not self._published:
                for directory in reversed(self._made):
                    self._storage.remove_directory(directory)


def _check_replaceable(path: str) -> None:
    """Refuse to rename over /dev/stdout or a named pipe: that would replace it for every other program."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # does not exist; writing reports any other problem
    if not stat.S_ISREG(mode):
        what = "a directory" if stat.S_ISDIR(mode) else "not a regular file, and only those can be replaced"
        raise FailedPreconditionError(f"{printable(path)} is {what}. Pass another path")


def _sync(temporary: str, path: str) -> None:
    """Make the bytes durable; copy the permissions of the file that is being replaced."""
    descriptor = os.open(temporary, os.O_RDWR | os.O_CLOEXEC)
    try:
        with suppress(FileNotFoundError, PermissionError):
            os.fchmod(descriptor, stat.S_IMODE(os.stat(path).st_mode))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
