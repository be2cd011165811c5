"""Publish checkpoints whose parts are complete, but whose ranks have all ended before rank 0 had merged them.

The parts of a save (`bundle.parts`) are published only if no rank of this save can still be running, and only if
nothing newer was saved. Of several programs that find them, such as the ranks of the next run, one publishes and the
others wait, so that all of them see the same checkpoints afterwards.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from torch_tfckpt.bundle.merge import merge_bundles
from torch_tfckpt.bundle.parts import Parts, find_parts, may_be_running, merge_lock_name, remove_parts
from torch_tfckpt.directory.retention_file import RetentionRecord, check_metrics
from torch_tfckpt.directory.state_file import (
    from_stored,
    load_state,
    update_checkpoint_state,
    update_relative_state,
)
from torch_tfckpt.errors import CheckpointError, FailedPreconditionError, NotFoundError
from torch_tfckpt.format.tensor_bundle import index_filename
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.text import counted, listed, printable

_POLL: Final = 0.05  # seconds between two looks at another program that publishes
_LONGEST_MERGE: Final = 60.0  # seconds; another host that takes longer is taken to have died
_TIMEOUT: Final = 600.0  # default of Ranks
_LISTED: Final = 8

_log = logging.getLogger(__name__)


def publish_newer_parts(storage: Storage, directory: str, clock: Callable[[], float] = time.time) -> None:
    """Publish the newest complete parts in `directory` if they are newer than its checkpoints. Never raises.

    Cost: one listing of the directory if it has no parts.
    """
    try:
        for parts in find_parts(storage, directory):
            if not parts.is_complete or _is_old(storage, parts) or not _is_over(storage, parts, clock):
                # Perhaps because another program is publishing them now: what it does last may not be done yet.
                _wait_for(storage, merge_lock_name(parts))
                continue
            with _only_one(storage, parts) as locked:
                if locked:
                    _publish(storage, parts, remove=True)
            return
    except (OSError, CheckpointError) as error:
        _log.info("%s: complete parts of a save were not published: %s", printable(directory or os.curdir), error)


def publish_parts(storage: Storage, prefix: str) -> list[str]:
    """Publish the complete parts of the checkpoint `prefix`; return the prefixes that they had, in order.

    Raises:
        NotFoundError: there are no parts, or some are missing.
        FailedPreconditionError: the ranks are still saving.
        Any error of `merge_bundles`.
    """
    found = [
        parts
        for parts in find_parts(storage, os.path.dirname(prefix))
        if os.path.normpath(parts.prefix) == os.path.normpath(prefix)
    ]
    complete = next((parts for parts in found if parts.is_complete), None)
    if complete is None:
        raise NotFoundError(_missing(prefix, found))
    if may_be_running(storage, complete, sure=True):
        raise FailedPreconditionError(f"{printable(prefix)}: its ranks are still saving it. Wait until they have ended")
    over = not may_be_running(storage, complete)
    with _only_one(storage, complete) as locked:
        if not locked:
            return complete.in_order  # another program has just published them
        _publish(storage, complete, remove=over)
    return complete.in_order


def _missing(prefix: str, found: list[Parts]) -> str:
    if not found:
        return (
            f"{printable(prefix)}: there are no parts of it to merge. Parts exist only while the ranks of a program "
            f"save together, or after all of them have ended in a save. To merge several checkpoints, give all of "
            f"them and the result"
        )
    best = max(found, key=lambda parts: len(parts.sources))
    missing = [str(rank) for rank in range(best.count) if rank not in best.sources]
    return (
        f"{printable(prefix)}: the parts of {counted(len(missing), 'rank')} of {best.count} are missing: "
        f"{listed(missing, _LISTED, str)}. Restore an earlier checkpoint; the next save removes these parts"
    )


def _is_old(storage: Storage, parts: Parts) -> bool:
    """Return whether the checkpoint was published and recorded, or a newer one was saved."""
    directory, own = os.path.dirname(parts.prefix), os.path.normpath(parts.prefix)
    state = load_state(storage, directory, _state_file(parts))
    newest = None if state is None else from_stored(state.model_checkpoint_path)
    recorded = not parts.is_recorded or (newest is not None and os.path.normpath(newest) == own)
    path = parts.prefix if recorded else newest
    if path is None:
        return False
    with suppress(FileNotFoundError):
        return storage.exists(index_filename(path)) and storage.modified(index_filename(path)) >= parts.modified
    return False


def _is_over(storage: Storage, parts: Parts, clock: Callable[[], float]) -> bool:
    """Return whether no rank of the save can be running: by its locks, or because the others have given up."""
    if not may_be_running(storage, parts):
        return True
    if may_be_running(storage, parts, sure=True):
        return False
    timeout = parts.note.get("timeout")
    return clock() - parts.modified > (timeout if isinstance(timeout, int | float) else _TIMEOUT)


@contextmanager
def _only_one(storage: Storage, parts: Parts) -> Iterator[bool]:
    """Lock the parts; yield False after another program has published them.

    Raises:
        OSError: the directory cannot be written to.
    """
    path = merge_lock_name(parts)
    while True:
        try:
            lock = storage.create(path)
            break
        except FileExistsError:
            if not _wait_for(storage, path):
                storage.remove(path)
    try:
        directory = os.path.dirname(parts.prefix)
        yield any(other.sources == parts.sources and other.is_complete for other in find_parts(storage, directory))
    finally:
        storage.remove(path)
        lock.close()


def _wait_for(storage: Storage, path: str) -> bool:
    """Wait until a lock is gone; return False if the program that had it has died."""
    while storage.exists(path):
        with suppress(FileNotFoundError):
            if not storage.in_use(path):
                storage.remove_unused(path)
                return True
            if not storage.detects_use(path) and time.time() - storage.modified(path) > _LONGEST_MERGE:
                return False
        time.sleep(_POLL)
    return True


def _publish(storage: Storage, parts: Parts, *, remove: bool) -> None:
    merge_bundles(storage, parts.in_order, parts.prefix, delete_sources=False, equal_duplicates=True, of_ranks=())
    _log.warning(
        "published %s from the parts of %s, which had ended before the checkpoint was complete",
        printable(parts.prefix),
        counted(parts.count, "rank"),
    )
    _record(storage, parts)
    if remove:
        remove_parts(storage, parts)


def _record(storage: Storage, parts: Parts) -> None:
    """Name the checkpoint in the state file, as rank 0 would have done. Nothing is deleted: the next save does it."""
    if not parts.is_recorded:
        return
    path, name = parts.prefix, _state_file(parts)
    directory = os.path.dirname(path)
    metrics = parts.note.get("metrics")
    if metrics:
        record = RetentionRecord(None)
        with suppress(CheckpointError, TypeError):
            record.load(storage, directory, name)
            record.note(path, check_metrics(metrics))
            record.save()
    state = load_state(storage, directory, name)
    earlier = [] if state is None else [from_stored(other) for other in state.all_model_checkpoint_paths]
    kept = [other for other in earlier if os.path.normpath(other) != os.path.normpath(path)]
    update = update_relative_state if parts.note.get("relative") is True else update_checkpoint_state
    preserved = state.last_preserved_timestamp if state is not None else 0.0
    update(directory, path, [*kept, path], name, last_preserved_timestamp=preserved or None, storage=storage)


def _state_file(parts: Parts) -> str | None:
    name = parts.note.get("state_file")
    return name if isinstance(name, str) and name and os.path.basename(name) == name else None
