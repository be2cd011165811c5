"""Mark checkpoints that the state file does not name, so that the next run can delete them.

The mark is an empty file `PREFIX.tfckpt-unlisted`.

    m-1 has expired                 m-1.tfckpt-unlisted is created
    -> the state file is written, which no longer names m-1
    -> m-1 is deleted, then its mark

A process that is killed in between, or that cannot delete a file, leaves the mark behind. The next run of the same
series deletes the marked checkpoint, unless the state file names it, or it is pinned or one of the best. Without the
mark, nothing would distinguish it from a checkpoint that was kept on purpose: by a schedule, by a run without a limit,
or by hand.

A mark need not be durable: if it is lost, a checkpoint is merely not deleted, and no mark ever appears by mistake. For
the same reason errors are only logged.
"""

import logging
import os
from collections.abc import Iterable
from typing import Final

from torch_tfckpt.errors import CheckpointError
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.text import printable

SUFFIX: Final = ".tfckpt-unlisted"

_log = logging.getLogger(__name__)


def marked_in(directory: str, names: Iterable[str]) -> list[str]:
    """Return the checkpoints with a mark among the `names` in a directory. They need not exist."""
    return [os.path.join(directory, name.removesuffix(SUFFIX)) for name in names if name.endswith(SUFFIX)]


def mark(storage: Storage, path: str) -> None:
    """Create the mark of the checkpoint `path`."""
    try:
        file = storage.create(path + SUFFIX)
        try:
            if not storage.renames:  # in an object store, the file exists only after `sync`
                file.sync()
        finally:
            file.close()
    except FileExistsError:
        pass
    except (OSError, CheckpointError) as error:
        _log.info("could not create the marker file %s: %s", printable(path + SUFFIX), error)


def unmark(storage: Storage, path: str) -> bool:
    """Remove the mark of the checkpoint `path`, if it has one; return whether that succeeded."""
    try:
        storage.remove(path + SUFFIX)
    except (OSError, CheckpointError) as error:
        _log.info("could not remove the marker file %s: %s", printable(path + SUFFIX), error)
        return False
    return True
