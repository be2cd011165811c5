"""Publish a group of files: every reader finds each file's old or new contents, never a mix.

    with Publication(storage) as publication:
        file = publication.create("model.ckpt-1000")         # any storage: write to it; the publication closes it
        temporary = publication.place("model.safetensors")   # local files: write under this name, and close
        publication.drop("model.safetensors.index.json")     # left over from an earlier output
    # without an exception: contents synced, files renamed in this order, dropped files removed, directories synced
    # after an exception: everything written is removed

A crash between two renames can leave a mix of old and new files. For files that belong together, pass `rename_with` a
function that switches them in one step.

Temporary files are marked as in use while they are written, so that other programs do not take them for leftovers of a
killed program. A file that `create` returned is marked by its own lock; files written by name are marked by the lock
of an empty file next to them. All files of one publication have the same number in their names, and count as in use as
long as one of them is locked.
"""

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from torch_tfckpt.errors import FailedPreconditionError
from torch_tfckpt.storage.local import LOCAL, LocalStorage
from torch_tfckpt.storage.names import new_save_number, temporary_name
from torch_tfckpt.storage.protocol import Storage, WritableFile
from torch_tfckpt.text import printable

# Name of the empty file that shows that files written by name are in use. It is never published.
_IN_USE: Final = "publication"


Rename = Callable[[Mapping[str, str], Sequence[str], Callable[[], object]], object]
"""Called with final path -> temporary path, the dropped files, and a function to call once new files may be in place.

If it raises an error before it calls that function, the temporary files are removed.
"""


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
        self._save: int | None = None
        self._markers: list[str] = []  # paths of the empty files that mark each directory as in use
        self._in_use: dict[str, WritableFile] = {}  # directory -> the open marker file
        self._dropped: list[str] = []
        self._first: list[Callable[[], object]] = []
        self._rename: Rename | None = None
        self._made: list[str] = []  # directories to remove again if nothing is published
        self._published = False

    def create(self, path: str) -> WritableFile:
        """Return a new file that is published as `path`.

        The file stays open until it is published, because a temporary file that is not open counts as left over from a
        killed save.
        """
        if self._save is None:
            self._save = new_save_number(self._storage.lock_domain(os.path.dirname(path)))
        output = _Output(temporary_name(path, self._save) if self._storage.renames else path, path)
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
        if self._save is None:
            self._save = new_save_number(LOCAL.lock_domain(directory))
        if directory not in self._in_use:
            marker = temporary_name(os.path.join(directory, _IN_USE), self._save)
            self._markers.append(marker)  # before creating the file: Ctrl-C may arrive in between
            self._in_use[directory] = LOCAL.create(marker)
        self._outputs.append(_Output(temporary_name(path, self._save), path))
        return self._outputs[-1].written

    @property
    def files(self) -> dict[str, str]:
        """Final path -> temporary path of each file."""
        return {output.path: output.written for output in self._outputs}

    def drop(self, path: str) -> None:
        """Remove `path`, if it exists, after all files are in place."""
        self._dropped.append(path)

    def first(self, action: Callable[[], object]) -> None:
        """Call `action` once all contents are durable, before the first rename; if it fails, rename nothing."""
        self._first.append(action)

    def rename_with(self, rename: "Rename") -> None:
        """Publish by calling `rename` instead of renaming files one by one and removing dropped files."""
        self._rename = rename

    def publish(self) -> None:
        """Sync and rename all files, without syncing the directory.

        For callers that must distinguish errors of these steps from errors of syncing the directory, and that sync it
        themselves. Other callers just leave the `with` block, which does both.
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
        if self._rename is not None:
            self._rename(self.files, self._dropped, self._commit)
            self._commit()
            return
        for output in self._outputs if storage.renames else ():
            try:
                storage.replace(output.written, output.path)
            except OSError:
                # On a network file system a rename may report an error although it succeeded.
                if output.file is None or not output.file.has_name(output.path):
                    raise
        for path in self._dropped:
            storage.remove(path)
        self._published = True

    def _commit(self) -> None:
        """From now on, keep the files even if an error occurs."""
        self._published = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and not self._published:
                self.publish()
                synced = set()
                for output in self._outputs:
                    directory = os.path.dirname(output.path)
                    if directory not in synced:
                        synced.add(directory)
                        self._storage.sync_directory(directory)
        finally:
            # The callbacks run in reverse order. If Ctrl-C interrupts one of them, the others still run.
            with ExitStack() as cleanup:
                if not self._published:
                    for directory in self._made:
                        cleanup.callback(self._storage.remove_directory, directory)
                for marker in self._in_use.values():
                    cleanup.enter_context(suppress(OSError))
                    cleanup.callback(marker.close)
                for path in self._markers:
                    cleanup.callback(self._remove, path)
                for output in self._outputs:
                    if self._storage.renames and not self._published:
                        cleanup.callback(self._remove, output.written)
                    if output.file is not None:
                        cleanup.enter_context(suppress(OSError))  # the file is synced already, or not needed
                        cleanup.callback(output.file.close)

    def _remove(self, path: str) -> None:
        with suppress(OSError):  # the caller must get the first error
            self._storage.remove(path)


def _check_replaceable(path: str) -> None:
    """Refuse to rename over /dev/stdout or a named pipe: that would replace it for every other program."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # does not exist; writing reports any other problem
    if not stat.S_ISREG(mode):
        what = "a directory" if stat.S_ISDIR(mode) else "not a regular file, and only regular files can be replaced"
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
