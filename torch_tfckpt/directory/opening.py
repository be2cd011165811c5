"""Open a version 1 checkpoint that may be saved again, with another number of shards, at the same time."""

from dataclasses import replace
from typing import Final

from torch_tfckpt.directory.locate import CheckpointFiles, find_checkpoint
from torch_tfckpt.errors import NotFoundError
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.v1.reader import SlicesReader

_ATTEMPTS: Final = 20


def open_version_1(
    storage: Storage, found: CheckpointFiles, *, verify: bool = True
) -> tuple[CheckpointFiles, SlicesReader]:
    """Open the files `found`, or those that have replaced them since they were found.

    Returns:
        The files as they were opened, and their reader. Raises like SlicesReader.
    """
    for attempt in range(_ATTEMPTS):
        try:
            reader = SlicesReader(storage, found.paths, verify=verify)
        except NotFoundError:
            again = find_checkpoint(storage, found.prefix)
            # The same files may exist again: two more saves may have replaced them.
            if attempt == _ATTEMPTS - 1 or (again == found and not all(map(storage.exists, found.paths))):
                raise
            found = again
        else:
            return replace(found, paths=reader.files), reader
    raise AssertionError("the last attempt returns or raises")
