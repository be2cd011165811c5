"""Marker file of a running save, which becomes the checkpoint's index.

`bundle.unfinished` explains how other programs use it.
"""

import os
from contextlib import suppress

from torch_tfckpt.errors import CheckpointError, NotFoundError
from torch_tfckpt.format.tensor_bundle import index_filename
from torch_tfckpt.storage.names import new_save_number, temporary_name
from torch_tfckpt.storage.protocol import Storage, WritableFile


class Marker:
    """Marks a running save of checkpoint `prefix` by an empty temporary index file that stays in use.

    The file is in use until `publish` or `end`. It must be created before the other files of a save: a marker that is
    not in use shows that leftovers of its save may exist. On object stores there are no temporary files, so no marker
    file is created.

    Args:
        save: The number in the names of the save's temporary files, if several processes create them (`storage.names`
            has functions for such numbers). While the marker is in use, all files with its number belong to a running
            save. None: a new number.

    Raises:
        OSError: the marker file cannot be created.
    """

    def __init__(self, storage: Storage, prefix: str, save: int | None = None) -> None:
        self.index = index_filename(prefix)
        if save is None:
            save = new_save_number(storage.lock_domain(os.path.dirname(prefix)) if storage.renames else 0)
        self.save = save
        self._storage = storage
        self._file: WritableFile | None = None  # the marker file, open until `end`
        self._contents = b""  # contents of the published index
        if storage.renames:
            self._file = storage.create(temporary_name(self.index, self.save))

    def publish(self, index: bytes) -> None:
        """Turn the marker file into the checkpoint's index, with the contents `index`.

        From then on, the file no longer marks a running save.

        Raises:
            OSError: a file operation failed; call `is_published` to find out whether the index is in place anyway.
        """
        storage, self._contents = self._storage, index
        file = self._file or storage.create(self.index)
        try:
            file.write(0, [index])
            file.sync()
            if self._file is not None:
                try:
                    storage.replace(file.path, self.index)
                except OSError:
                    # On a network file system a rename may report an error although it succeeded.
                    if not file.has_name(self.index):
                        raise
        finally:
            if self._file is None:
                with suppress(OSError):  # already synced, or no longer needed
                    file.close()

    def is_published(self) -> bool | None:
        """Return whether the current index is the one that `publish` wrote; None if that is unknown."""
        try:
            if self._file is not None:
                return self._file.has_name(self.index)
            return _has_contents(self._storage, self.index, self._contents)
        except (CheckpointError, OSError):
            return None

    def end(self, *, clean: bool) -> None:
        """End the save. Unless everything is `clean`, keep the marker file, so that the next save cleans up."""
        file, self._file = self._file, None
        if file is None:
            return
        try:
            # Remove the file before closing it: otherwise another process might treat this save's files as leftovers.
            if clean:
                with suppress(OSError):
                    self._storage.remove(file.path)  # does nothing after `publish`
        finally:
            with suppress(OSError):
                file.close()


def _has_contents(storage: Storage, path: str, contents: bytes) -> bool:
    try:
        file = storage.open(path)
    except NotFoundError:
        return False
    try:
        return file.size == len(contents) and file.read(0, file.size) == contents
    finally:
        file.close()
