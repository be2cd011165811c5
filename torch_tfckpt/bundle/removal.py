"""Delete a checkpoint so that, even after a crash, no remaining part of it looks like a checkpoint."""

import os

from torch_tfckpt.bundle.unfinished import count_in_names, current_count, data_files_of, running_markers
from torch_tfckpt.format.tensor_bundle import index_filename
from torch_tfckpt.storage.names import new_save_number, temporary_name
from torch_tfckpt.storage.protocol import Storage


def remove_bundle(storage: Storage, prefix: str) -> None:
    """Remove the index and all data files of `prefix`; do nothing if there are no such files.

    The index is removed before the data, so that the rest is not mistaken for a checkpoint. It is first renamed to a
    marker, so that the next save removes the data if this process is killed in between (`bundle.leftovers`). Neither
    readers that have the checkpoint open nor running saves of the same prefix are disturbed.

    Raises:
        OSError: a file operation failed. The next save in that directory removes the rest.
    """
    index, directory = index_filename(prefix), os.path.dirname(prefix)
    with storage.exclusive(directory) as locked:
        # List the files before the index is removed, so that data files that a save creates later are not deleted.
        listed = storage.list(directory)
        data = data_files_of(storage, prefix, listed)
        domain = storage.lock_domain(directory)
        others = running_markers(storage, prefix, listed) if storage.renames else []
        if not all(locked and other.domain == domain for other in others):
            named = current_count(storage, prefix)
            data = [path for path in data if count_in_names(path) == named]
        leftover = index
        if storage.renames and storage.exists(index):
            leftover = temporary_name(index, new_save_number(domain))
            storage.replace(index, leftover)
            storage.sync_directory(directory)
        elif not storage.renames:
            storage.remove(index)
        for path in data:
            storage.remove(path)
        storage.remove(leftover)
