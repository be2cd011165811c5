"""Find, wait for and remove checkpoints, with the names of the functions in tf.train.

    latest_checkpoint("train")                  # the one that the `checkpoint` file names, if it exists
    latest_checkpoint("train", valid=True)      # the newest one that is complete, even if the file names another

None, False and an older checkpoint are returned only if the newest one is known not to exist or to be damaged. If a
system error makes this unknown (too many open files, a failing disk, missing permissions, a network file system that
does not respond), every function here raises an error instead.

Source: tensorflow/python/checkpoint/checkpoint_management.py, checkpoints_iterator in
tensorflow/python/training/checkpoint_utils.py.
"""

import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Final

from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt.bundle.removal import remove_bundle
from torch_tfckpt.directory.names import directory_key, is_there, matching, prefix_of_pattern, with_other_count
from torch_tfckpt.directory.state_file import directory_path, from_stored, get_checkpoint_state
from torch_tfckpt.errors import NotFoundError
from torch_tfckpt.format.tensor_bundle import index_filename
from torch_tfckpt.storage.choice import storage_of
from torch_tfckpt.storage.journal import journal_of, read_journal
from torch_tfckpt.storage.names import AnyPath, fspath
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.storage.refusals import refusals_named
from torch_tfckpt.text import printable
from torch_tfckpt.v1.shard_names import shard_pattern

_SHARD_SUFFIX: Final = re.compile(r"-[\d?]+-of-\d+$")
_SHARDS: Final = re.compile(r"(?P<prefix>.*)(?P<shard>-[0-9?]+-of-[0-9?]+)", re.DOTALL)
_POLL_SECONDS: Final = 1.0

_log = logging.getLogger(__name__)


def latest_checkpoint(
    checkpoint_dir: AnyPath,
    latest_filename: str | None = None,
    *,
    valid: bool = False,
    storage: Storage | None = None,
) -> str | None:
    """Return the newest checkpoint of a directory.

    Args:
        checkpoint_dir: The directory. If it is relative, so is the result.
        latest_filename: Name of the state file; None: "checkpoint".
        valid: Return the newest checkpoint that is complete: its index can be parsed, and every data file exists and
            is long enough for the tensors in the index (version 1: every shard exists and can be opened). Tensors are
            not read and their checksums not compared; `tfckpt verify` does that. Checkpoints are checked in this order:
            the newest one according to the state file; the others that the state file lists, newest first; then all
            other checkpoints in the directory, grouped by series ("m-10", "m-20"): the series that was saved to last
            comes first, and within a series the highest number, since the modification times of copies may differ.
            A missing or damaged state file is ignored. Incomplete checkpoints are logged. If all ranks of a save have
            ended when their parts were complete, but the checkpoint was not published yet, it is published first,
            unless the directory is read-only.
        storage: Where files are stored; None chooses by the path.

    Returns:
        A prefix, or a version 1 file or pattern. None if there is no checkpoint; without `valid`, also if the
        checkpoint that the state file names does not exist, which is logged. If the state file names a checkpoint
        outside of the directory, and the directory does not contain one of the same name, the outside checkpoint is
        returned and a warning is logged.

    Raises:
        DataLossError (a ValueError): without `valid`, if the state file can be parsed but does not name a checkpoint.
        FailedPreconditionError (a RuntimeError): because of a system error, it is unknown which checkpoints exist.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> saver = tfckpt.Saver({"w": torch.ones(2)})
        >>> for step in (1, 2):
        ...     path = saver.save("run/m", step)
        >>> tfckpt.latest_checkpoint("run", valid=True)
        'run/m-2'

    The result is never None merely because another program saves and deletes checkpoints at the same time.

    Cost: reads the state file and file names; with `valid`, also the whole index of each checkpoint that it checks.
    Source: latest_checkpoint in tensorflow/python/checkpoint/checkpoint_management.py.
    """
    directory = directory_path(checkpoint_dir)
    storage = storage or storage_of(directory)
    if valid:
        path = _latest_complete(storage, directory, latest_filename)
    else:
        path = _latest_named(storage, directory, latest_filename)
    if path is not None and directory_key(os.path.dirname(path)) != directory_key(directory):
        _log.warning(
            "the newest checkpoint of %s is outside of it: %s. If the directory was copied, copy that checkpoint, too",
            printable(directory or os.curdir),
            printable(path),
        )
    return path


def _latest_named(storage: Storage, directory: str, latest_filename: str | None) -> str | None:
    """Return the newest checkpoint that the state file names, if it exists."""
    path: str | None = None
    while True:
        state = get_checkpoint_state(directory, latest_filename, storage=storage)
        if state is None:
            return None
        earlier, path = path, from_stored(state.model_checkpoint_path)
        if checkpoint_exists(path, storage=storage):
            return path
        other = with_other_count(storage, path)
        if other is not None:
            return other
        # A running save may just have written a newer one to the file and deleted this one: read the file again.
        if path == earlier:
            _log.error("Couldn't match files for checkpoint %s", printable(path))
            return None


def _latest_complete(storage: Storage, directory: str, latest_filename: str | None) -> str | None:
    # Imported here: checking a checkpoint needs torch, looking names up does not, and `tfckpt latest` must be quick.
    from torch_tfckpt.directory import completeness, recovered_parts

    recovered_parts.publish_newer_parts(storage, directory)
    while True:
        tried: list[str] = []
        for path in completeness.candidates(storage, directory, latest_filename):
            tried.append(path)
            if completeness.first_complete(storage, [path]) is not None:
                return path
        # A running save may just have published newer ones, and deleted these.
        if not tried or tried == list(completeness.candidates(storage, directory, latest_filename)):
            return None


def checkpoint_exists(checkpoint_prefix: AnyPath, *, storage: Storage | None = None) -> bool:
    """Return whether there is a checkpoint of either version with this prefix or pattern.

    Checks file names only: a version 2 index, or any file with exactly this name, is enough. A path that exists is not
    treated as a pattern, so it may contain "[" (TensorFlow cannot find such checkpoints).

    Raises:
        FailedPreconditionError (a RuntimeError): a system error, such as EACCES or EIO.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> tfckpt.checkpoint_exists("model.ckpt-1")
        False
        >>> tfckpt.checkpoint_exists(tfckpt.save_file({"w": torch.ones(2)}, "model.ckpt-1"))
        True
    """
    prefix = fspath(checkpoint_prefix)
    with refusals_named(prefix):
        return is_there(storage or storage_of(prefix), prefix)


def get_checkpoint_mtimes(checkpoint_prefixes: Iterable[AnyPath], *, storage: Storage | None = None) -> list[float]:
    """Return when each checkpoint was last written, in seconds since the epoch.

    This is the modification time of the index, or of the first file if there is no index. Checkpoints that do not exist
    are left out, so the result may be shorter than the argument.

    Raises:
        FailedPreconditionError (a RuntimeError): a system error, such as EACCES or EIO.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> path = tfckpt.save_file({"w": torch.ones(2)}, "model.ckpt-1")
        >>> len(tfckpt.get_checkpoint_mtimes([path, "model.ckpt-2"]))
        1
    """
    times: list[float] = []
    for prefix in map(fspath, checkpoint_prefixes):
        place = storage or storage_of(prefix)
        with suppress(NotFoundError), refusals_named(prefix):  # the checkpoint may be deleted between the two steps
            first = next(_files_of(place, prefix), None)
            if first is not None:
                times.append(place.modified(first))
    return times


def _files_of(storage: Storage, prefix: str) -> Iterator[str]:
    """Yield files of the checkpoint: its index first, then others."""
    index = index_filename(prefix)
    if storage.exists(index):
        yield index
    yield from matching(storage, index, indexes=True)
    if storage.exists(prefix):
        yield prefix
    yield from matching(storage, prefix)


def remove_checkpoint(
    checkpoint_prefix: AnyPath,
    checkpoint_format_version: int = SaverDef.V2,
    meta_graph_suffix: str = "meta",
    *,
    storage: Storage | None = None,
) -> None:
    """Delete a checkpoint with its meta graph. Does nothing if it does not exist.

    Args:
        checkpoint_prefix: The prefix; for version 1 a file, or P-?????-of-00002, which means all shards of P. Other
            patterns are taken literally, so that a name with brackets does not delete other files that it matches.
        checkpoint_format_version: SaverDef.V2, or SaverDef.V1 (or LEGACY) for version 1.
        meta_graph_suffix: Suffix of the meta graph file.
        storage: Where files are stored; None chooses by the path.

    Raises:
        OSError: a file could not be deleted. For version 2, the index is deleted first, so that the rest is not
            mistaken for a checkpoint.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> path = tfckpt.save_file({"w": torch.ones(2)}, "model.ckpt-1")
        >>> tfckpt.remove_checkpoint(path)
        >>> tfckpt.checkpoint_exists(path)
        False

    Source: remove_checkpoint in tensorflow/python/checkpoint/checkpoint_management.py.
    """
    prefix = fspath(checkpoint_prefix)
    storage = storage or storage_of(prefix)
    storage.remove(meta_graph_filename(prefix, meta_graph_suffix))
    if checkpoint_format_version == SaverDef.V2:
        remove_bundle(storage, prefix)
    elif storage.exists(prefix):
        storage.remove(prefix)
    else:
        # Remove the files of an unfinished save last, and its journal at the very end: as long as the journal lists
        # files that are missing, the checkpoint does not exist.
        for path in [*_shards_of(storage, prefix), *_unfinished_files(storage, prefix)]:
            storage.remove(path)


def _shards_of(storage: Storage, pattern: str) -> Iterator[str]:
    directory, name = os.path.split(pattern)
    match = _SHARDS.fullmatch(name)
    if match is not None:
        wanted = re.compile(re.escape(match["prefix"]) + match["shard"].replace("?", "[0-9]"))
        yield from (os.path.join(directory, other) for other in storage.list(directory) if wanted.fullmatch(other))


def _unfinished_files(storage: Storage, pattern: str) -> list[str]:
    """Return the temporary shards of an interrupted save of the version 1 checkpoint `pattern`, and its journal."""
    prefix = prefix_of_pattern(pattern)
    if prefix is None or not storage.renames:
        return []
    path = journal_of(prefix)
    journal = read_journal(storage, path)
    if journal is None or shard_pattern(prefix, len(journal.files)) != pattern:
        return []
    names = [entry.temporary for entry in journal.files.values()]
    return [*(os.path.join(os.path.dirname(prefix), name) for name in names), path]


def meta_graph_filename(checkpoint_filename: str, meta_graph_suffix: str = "meta") -> str:
    """Return the path of a checkpoint's meta graph: m-5 -> m-5.meta, m-5-?????-of-00002 -> m-5.meta.

    Examples:
        >>> import torch_tfckpt as tfckpt
        >>> tfckpt.meta_graph_filename("run/m-5")
        'run/m-5.meta'
    """
    return f"{_SHARD_SUFFIX.sub('', checkpoint_filename)}.{meta_graph_suffix}"


def checkpoints_iterator(
    checkpoint_dir: AnyPath,
    min_interval_secs: float = 0,
    timeout: float | None = None,
    timeout_fn: Callable[[], bool] | None = None,
    *,
    storage: Storage | None = None,
) -> Iterator[str]:
    """Yield the latest checkpoint of a directory, and each newer one as it appears.

    While the caller waits for the next checkpoint, the directory is checked once a second. If several checkpoints have
    appeared since the last one, only the newest is yielded.

    Args:
        checkpoint_dir: The directory. It need not exist yet.
        min_interval_secs: Minimum number of seconds between two checkpoints.
        timeout: Seconds to wait for a checkpoint; None: forever.
        timeout_fn: Called after a timeout and after each checkpoint: True ends the iteration, False continues. None: a
            timeout ends it.
        storage: Where files are stored; None chooses by the path.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> path = tfckpt.Saver({"w": torch.ones(2)}).save("run/m", global_step=1)
        >>> for path in tfckpt.checkpoints_iterator("run", timeout=0):
        ...     print("evaluating", path)
        evaluating run/m-1

    Source: checkpoints_iterator in tensorflow/python/training/checkpoint_utils.py.
    """
    directory = directory_path(checkpoint_dir)
    last: str | None = None
    while True:
        new = _wait_for_another(directory, last, timeout, storage)
        if new is not None:
            start = _now()
            last = new
            yield new
            rest = start + min_interval_secs - _now()
            if rest > 0:
                _sleep(rest)
        elif timeout_fn is None:
            return
        if timeout_fn is not None and timeout_fn():
            return


def _wait_for_another(directory: str, last: str | None, timeout: float | None, storage: Storage | None) -> str | None:
    """Return the latest checkpoint once it differs from `last`; None if the timeout expires before the next check."""
    stop = None if timeout is None else _now() + timeout
    while True:
        path = _latest_named(storage or storage_of(directory), directory, None)
        if path is not None and path != last:
            return path
        if stop is not None and _now() + _POLL_SECONDS > stop:
            return None
        _sleep(_POLL_SECONDS)


# Tests replace these with their own clock.
def _now() -> float:
    return time.time()


def _sleep(seconds: float) -> None:
    time.sleep(seconds)
