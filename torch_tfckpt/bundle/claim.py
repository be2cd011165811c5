"""Claim data file names that no other save uses.

A data file's name contains the number of shards. Readers take that number from the index, and it may be larger than the
number of data files, so a save can choose a number that is not in use. It claims the number for its prefix by
exclusively creating the first data file with that number in its name, which is safe without locks and across hosts.
Object stores do not support exclusive creation; there, a number is chosen that does not appear in the name of any
existing file.
"""

import errno
import itertools
import os
import secrets
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

from torch_tfckpt.bundle.unfinished import count_in_names, data_files_of
from torch_tfckpt.errors import CheckpointError
from torch_tfckpt.format.tensor_bundle import data_filename
from torch_tfckpt.storage.protocol import Storage

# Claimed numbers have at most five digits: tools that delete checkpoints look for names of that length.
_HIGHEST: Final = 99_999
_ATTEMPTS: Final = 100  # the probability that a random number is already in use is far below 1 %


def claim_names(storage: Storage, prefix: str, paths: Sequence[str], names: list[str], *, replacing: bool) -> int:
    """Rename the data files `paths`, in order of their shards, to names that nobody else uses.

    Args:
        names: Each name is appended as soon as it is claimed, so that the caller can remove the files after an error.
        replacing: Whether a checkpoint with this prefix exists. If not, TensorFlow's names are tried first.

    Returns:
        The number of shards in the names.

    Raises:
        OSError: a file operation failed. Some files may already have been renamed.
    """
    count = len(paths)
    shown = _random_number(count) if replacing else count
    attempts = 1
    while True:
        name = data_filename(prefix, 0, shown)
        try:
            storage.link(paths[0], name)
        except OSError as error:
            if not _is_same_file(storage, paths[0], name):
                if not isinstance(error, FileExistsError) and _name_without_link(storage, paths[0], name, names):
                    break
                if attempts == _ATTEMPTS:
                    raise FileExistsError(errno.EEXIST, "all names are taken", name) from error
                attempts += 1
                shown = _random_number(count)
                continue
            # Over a network, link(2) may report an error although it succeeded.
        names.append(name)
        storage.remove(paths[0])
        break
    for shard in range(1, count):
        names.append(data_filename(prefix, shard, shown))
        storage.replace(paths[shard], names[shard])
    storage.sync_directory(os.path.dirname(prefix))
    return shown


def _name_without_link(storage: Storage, path: str, name: str, names: list[str]) -> bool:
    """Rename the first data file on a file system without links; return False if the name is taken."""
    try:
        storage.create(name).close()
    except FileExistsError:
        return False
    names.append(name)
    storage.replace(path, name)
    return True


def _random_number(count: int) -> int:
    return count + 1 + secrets.randbelow(max(1000, _HIGHEST - count))


def _is_same_file(storage: Storage, path: str, other: str) -> bool:
    identities = []
    try:
        with ExitStack() as files:
            for name in (path, other):
                file = storage.open(name)
                files.callback(file.close)
                identities.append(file.identity)
    except (CheckpointError, OSError):
        return False
    return identities[0] == identities[1]


def unused_number(storage: Storage, prefix: str, count: int) -> int:
    """Return the smallest shard count >= `count` that does not appear in any data file name of `prefix`."""
    used = {count_in_names(path) for path in data_files_of(storage, prefix)}
    return next(number for number in itertools.count(count) if number not in used)
