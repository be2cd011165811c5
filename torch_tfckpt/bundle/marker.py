"""Tells whoever clears up which checkpoint is being written, or was when its process was killed."""

import logging
from contextlib import suppress

from torch_tfckpt.errors import printable
from torch_tfckpt.format.tensor_bundle import index_filename
from torch_tfckpt.storage.names import new_save_number, temporary_name
from torch_tfckpt.storage.protocol import Storage, WritableFile

_log = logging.getLogger(__name__)


class Marker:
    """An empty file, named like an unfinished index of `prefix`, that is in use until `end` (`bundle.leftovers`).

    It must be the first file of a save and the last to go: found not in use, it tells that there may be others.

    Raises:
        OSError: it cannot be created.
    """

    def __init__(self, storage: Storage, prefix: str) -> None:
        self.save = new_save_number()
        self._storage = storage
        self._file: WritableFile | None = None
        if storage.renames:
            self._file = storage.create(temporary_name(index_filename(prefix), self.save))

    def end(self, *, clean: bool) -> None:
        """The save is over. Unless it left everything clean, the file stays, so that the next save clears up."""
        file, self._file = self._file, None
        if file is None:
            return
        try:
            # Not closed first: somebody else might then take the files of this save for leftovers.
            if clean:
                remove(self._storage, file.path)
        finally:
            with suppress(OSError):  # it is empty
                file.close()


def remove(storage: Storage, path: str) -> bool:
    """Clears up behind something that matters more. Returns whether it could."""
    try:
        storage.remove(path)
    except OSError as error:
        _log.info("left behind: %s: %s", printable(path), error)
        return False
    return True
