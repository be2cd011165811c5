"""Deletes a version 2 checkpoint so that no moment leaves half of one behind."""

import os

from torch_tfckpt.bundle.publish import data_files_of
from torch_tfckpt.format.tensor_bundle import index_filename
from torch_tfckpt.storage.names import temporary_name
from torch_tfckpt.storage.protocol import Storage


def remove_bundle(storage: Storage, prefix: str) -> None:
    """Removes the index and all data files of `prefix`; fine where there are none.

    The index goes first: what is left is no checkpoint, rather than a broken one. It goes by becoming a leftover, so
    that the next save clears up the data if this process is killed before it has (`bundle.leftovers`). Readers that
    have the checkpoint open are not disturbed.

    Raises:
        OSError: the system refused. Whatever is left is cleared up by the next save in that directory.
    """
    index = index_filename(prefix)
    leftover = index
    if storage.renames and storage.exists(index):
        leftover = temporary_name(index)
        storage.replace(index, leftover)
        storage.sync_directory(os.path.dirname(prefix))
    elif not storage.renames:
        storage.remove(index)
    for path in data_files_of(storage, prefix):
        storage.remove(path)
    storage.remove(leftover)
