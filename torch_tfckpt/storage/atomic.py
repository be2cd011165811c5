"""Small files that are replaced whole."""

import os
from contextlib import suppress

from torch_tfckpt.storage.names import temporary_name
from torch_tfckpt.storage.protocol import Buffer, Storage


def write_file(storage: Storage, path: str, contents: Buffer) -> None:
    """Puts `contents` under `path`, durably and in one step: every reader finds the old file or the new one, whole.

    Raises:
        OSError: the system refused a step. The old file is in place, unless only the directory could not be synced.
    """
    written = temporary_name(path) if storage.renames else path
    try:
        file = storage.create(written)
        try:
            file.write(0, [contents])
            file.sync()
            # Closed only afterwards: a file that nobody has open would be taken for a leftover.
            if storage.renames:
                storage.replace(written, path)
        finally:
            with suppress(OSError):  # what it holds was synced, or is of no interest
                file.close()
    except BaseException:
        if storage.renames:
            with suppress(OSError):
                storage.remove(written)
        raise
    storage.sync_directory(os.path.dirname(path))
