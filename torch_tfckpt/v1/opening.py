"""Open the files of a version 1 checkpoint, all from the same save.

If all shards of a checkpoint are opened, they are guaranteed to be from the same save, even if another program saves
the checkpoint with this package at the same time, or was killed while doing so (`v1.shard_names`). There is no such
guarantee for saves by TensorFlow: the shards do not show which save they are from.
"""

import os
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Final

from torch_tfckpt.errors import CheckpointError, DataLossError, NotFoundError
from torch_tfckpt.storage.journal import Journal
from torch_tfckpt.storage.protocol import ReadableFile, Storage
from torch_tfckpt.text import printable
from torch_tfckpt.v1.shard_names import V1_SHARD, shard_names, unfinished_shards

# In the second half of the attempts, writers on this host are kept out.
_ATTEMPTS: Final = 100


def open_together(storage: Storage, paths: Sequence[str]) -> list[ReadableFile]:
    """Open the files `paths`, or the new shards that replace them.

    Raises:
        NotFoundError: a file is missing. A save with a different number of shards may just have replaced it.
        DataLossError: a save was interrupted, and its shards have been changed since then.
    """
    prefix = _prefix_of(paths)
    if prefix is None or not storage.renames:
        return _open_all(storage, paths)
    problem: CheckpointError | None = None
    for attempt in range(_ATTEMPTS):
        patient = attempt >= _ATTEMPTS // 2
        with storage.exclusive(os.path.dirname(prefix)) if patient else nullcontext():
            journal = unfinished_shards(storage, prefix)
            files: list[ReadableFile] = []
            try:
                files = _open_all(storage, paths) if journal is None else _open_new(storage, prefix, journal)
                if _are_of_one_save(storage, prefix, journal, files):
                    return files
                problem = None
            except (NotFoundError, DataLossError) as error:
                problem = error
            except BaseException:
                close_all(files)
                raise
            close_all(files)
            if journal is None and problem is not None and unfinished_shards(storage, prefix) is None:
                raise problem
            # Otherwise a shard was renamed, or another save has begun, in the meantime.
    raise problem or NotFoundError(
        f"{printable(prefix)}: the checkpoint was replaced {_ATTEMPTS} times while it was being opened. Try again"
    )


def _prefix_of(paths: Sequence[str]) -> str | None:
    """Return the prefix of a sharded checkpoint if `paths` are all its shards; None if they are anything else."""
    match = V1_SHARD.fullmatch(paths[0])
    if match is None or match["count"].lstrip("0") != str(len(paths)):
        return None
    return match["prefix"] if sorted(paths) == shard_names(match["prefix"], len(paths)) else None


def _open_all(storage: Storage, paths: Iterable[str]) -> list[ReadableFile]:
    files: list[ReadableFile] = []
    try:
        for path in paths:
            files.append(storage.open(path))
    except BaseException:
        close_all(files)
        raise
    return files


def _open_new(storage: Storage, prefix: str, journal: Journal) -> list[ReadableFile]:
    """Open the new shards under their current names, temporary or final."""
    targets = shard_names(prefix, len(journal.files))
    files = _open_all(storage, (journal.path_of(storage, target) for target in targets))
    for file, entry in zip(files, journal.files.values(), strict=True):
        if file.size != entry.size:
            close_all(files)
            raise DataLossError(
                f"{printable(file.path)}: has {file.size} bytes, but {printable(journal.path)} lists {entry.size}. "
                f"Save the checkpoint again"
            )
    return files


def _are_of_one_save(storage: Storage, prefix: str, journal: Journal | None, files: Sequence[ReadableFile]) -> bool:
    """Return whether no shard was replaced while `files` were opened.

    If there was a journal, another save renames its shards only after replacing that journal. If there was no journal,
    check first that there still is none, then that the names still refer to `files`: as there is no journal now, any
    save that began in the meantime has done all its renames.
    """
    if unfinished_shards(storage, prefix) != journal:
        return False
    if journal is not None:
        return True
    for file in files:
        try:
            again = storage.open(file.path)
        except NotFoundError:
            return False
        again.close()
        if again.identity != file.identity:
            return False
    return True


def close_all(files: Iterable[ReadableFile]) -> None:
    for file in files:
        file.close()
