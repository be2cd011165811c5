"""Open a checkpoint or a file of Keras; a version 1 checkpoint even if its shards are replaced meanwhile."""

from dataclasses import replace
from typing import Final

from torch_tfckpt.bundle.reader import BundleReader
from torch_tfckpt.bundle.tensor_reader import TensorReader
from torch_tfckpt.directory.locate import CheckpointFiles, find_checkpoint
from torch_tfckpt.errors import NotFoundError
from torch_tfckpt.keras_files.reader import KerasReader
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.v1.reader import SlicesReader

_ATTEMPTS: Final = 20


def open_files(
    storage: Storage, found: CheckpointFiles, *, verify: bool = True
) -> tuple[CheckpointFiles, TensorReader]:
    """Open a checkpoint or a file of Keras.

    Returns:
        The files that were opened, and their reader. Raises like the readers.
    """
    if found.version == 2:
        return found, BundleReader(storage, found.prefix, verify=verify)
    if found.version == 1:
        return open_version_1(storage, found, verify=verify)
    reader = KerasReader(storage, found.prefix)
    return replace(found, paths=reader.files), reader


def open_version_1(
    storage: Storage, found: CheckpointFiles, *, verify: bool = True
) -> tuple[CheckpointFiles, SlicesReader]:
    """Open the files `found`, or the files that have replaced them in the meantime.

    Returns:
        The files that were opened, and their reader. Raises like SlicesReader.
    """
    for attempt in range(_ATTEMPTS):
        try:
            reader = SlicesReader(storage, found.paths, verify=verify)
        except NotFoundError:
            again = find_checkpoint(storage, found.prefix)
            # If the search finds the same names, retry as long as the files exist: two more saves may have replaced
            # them one after the other.
            if attempt == _ATTEMPTS - 1 or (again == found and not all(map(storage.exists, found.paths))):
                raise
            found = again
        else:
            return replace(found, paths=reader.files), reader
    raise AssertionError("the last attempt returns or raises")
