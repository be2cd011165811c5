"""Finding, waiting for and removing checkpoints, under tf.train's names.

    latest_checkpoint("train")                  # what the `checkpoint` file names, if it is there
    latest_checkpoint("train", valid=True)      # the newest one that is complete, whatever the file says

Source: tensorflow/python/checkpoint/checkpoint_management.py, checkpoints_iterator in
tensorflow/python/training/checkpoint_utils.py; spec: SAVER 5 and 8.
"""

import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt.bundle.publish import remove_bundle
from torch_tfckpt.directory.names import is_there, matching
from torch_tfckpt.directory.state_file import directory_path, from_stored, get_checkpoint_state
from torch_tfckpt.errors import CheckpointError
from torch_tfckpt.format.tensor_bundle import index_filename
from torch_tfckpt.storage.choice import storage_of
from torch_tfckpt.storage.names import AnyPath, fspath
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.text import printable

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
    """The newest checkpoint of a directory.

    Args:
        checkpoint_dir: The directory. A relative one gives a relative path.
        latest_filename: Name of the state file; None takes "checkpoint".
        valid: Walk back to the newest checkpoint that is complete: its index parses, and every data file is there and
            long enough for what the index places in it (version 1: every shard is there and opens). The bytes of
            tensors are not read and their checksums not compared; `tfckpt verify` does that. Asked in turn: what the
            state file names, its list from the newest on, and what else lies in the directory, by age. A missing or
            damaged state file is no obstacle. What is passed over is logged.
        storage: Where the directory lies; None tells by the path.

    Returns:
        A prefix, or a version 1 file or pattern; None where there is no checkpoint. Without `valid`, also where the one
        that the state file names is not there, which is logged.

    Raises:
        DataLossError (a ValueError): without `valid`, where the state file parses but names no checkpoint.

    Cost: looks at names; with `valid`, also reads the whole index of each checkpoint that it asks.
    Source: latest_checkpoint in tensorflow/python/checkpoint/checkpoint_management.py; spec: SAVER 5.
    """
    directory = directory_path(checkpoint_dir)
    storage = storage or storage_of(directory)
    if valid:
        return _latest_complete(storage, directory, latest_filename)
    state = get_checkpoint_state(directory, latest_filename, storage=storage)
    if state is None:
        return None
    path = from_stored(state.model_checkpoint_path)
    if is_there(storage, path):
        return path
    _log.error("Couldn't match files for checkpoint %s", printable(path))
    return None


def _latest_complete(storage: Storage, directory: str, latest_filename: str | None) -> str | None:
    # Imported here: checking a checkpoint needs torch, looking names up does not, and `tfckpt latest` must be quick.
    from torch_tfckpt.directory import completeness

    for path in completeness.candidates(storage, directory, latest_filename):
        try:
            completeness.check_complete(storage, path)
        except (CheckpointError, OSError) as error:
            _log.warning("passed over: %s", error)
        else:
            return path
    return None


def checkpoint_exists(checkpoint_prefix: AnyPath, *, storage: Storage | None = None) -> bool:
    """Whether there is a checkpoint of either version with this prefix, or one that it is a pattern of.

    Looks at names only: the index of version 2, or any file of that very name, is enough. A name that exists as it is
    written is no pattern, so "[" in a path does no harm (TensorFlow cannot find such checkpoints).
    """
    prefix = fspath(checkpoint_prefix)
    return is_there(storage or storage_of(prefix), prefix)


def get_checkpoint_mtimes(checkpoint_prefixes: Iterable[AnyPath], *, storage: Storage | None = None) -> list[float]:
    """When each of the checkpoints was last written: seconds since the epoch, of its index, else of its first file.

    Those that are not there are left out, so the result may be shorter than what was asked for.
    """
    times: list[float] = []
    for prefix in map(fspath, checkpoint_prefixes):
        place = storage or storage_of(prefix)
        first = next(_files_of(place, prefix), None)
        if first is not None:
            times.append(place.modified(first))
    return times


def _files_of(storage: Storage, prefix: str) -> Iterator[str]:
    """Files that stand for the checkpoint, the most telling one first."""
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
    """Deletes a checkpoint with its meta graph; fine where there is none.

    Args:
        checkpoint_prefix: The prefix; for version 1 a file, or P-?????-of-00002, which means all shards of P. No other
            pattern is taken as one: a name with brackets whose files are gone must not delete those that it matches.
        checkpoint_format_version: SaverDef.V2, or SaverDef.V1 (or LEGACY) for version 1.
        meta_graph_suffix: That of the meta graph file.
        storage: Where it lies; None tells by the path.

    Raises:
        OSError: the system refused. For version 2 the index goes first, so what is left is no broken checkpoint.

    Source: remove_checkpoint in tensorflow/python/checkpoint/checkpoint_management.py; spec: SAVER 5.
    """
    prefix = fspath(checkpoint_prefix)
    storage = storage or storage_of(prefix)
    storage.remove(meta_graph_filename(prefix, meta_graph_suffix))
    if checkpoint_format_version == SaverDef.V2:
        remove_bundle(storage, prefix)
    elif storage.exists(prefix):
        storage.remove(prefix)
    else:
        for path in _shards_of(storage, prefix):
            storage.remove(path)


def _shards_of(storage: Storage, pattern: str) -> Iterator[str]:
    directory, name = os.path.split(pattern)
    match = _SHARDS.fullmatch(name)
    if match is not None:
        wanted = re.compile(re.escape(match["prefix"]) + match["shard"].replace("?", "[0-9]"))
        yield from (os.path.join(directory, other) for other in storage.list(directory) if wanted.fullmatch(other))


def meta_graph_filename(checkpoint_filename: str, meta_graph_suffix: str = "meta") -> str:
    """The meta graph file of a checkpoint: m-5 -> m-5.meta, m-5-?????-of-00002 -> m-5.meta."""
    return f"{_SHARD_SUFFIX.sub('', checkpoint_filename)}.{meta_graph_suffix}"


def checkpoints_iterator(
    checkpoint_dir: AnyPath,
    min_interval_secs: float = 0,
    timeout: float | None = None,
    timeout_fn: Callable[[], bool] | None = None,
    *,
    storage: Storage | None = None,
) -> Iterator[str]:
    """Yields the latest checkpoint of a directory, and each newer one as it appears.

    It looks once a second, and only while it is asked for the next one: those in between are skipped.

    Args:
        checkpoint_dir: The directory. It need not exist yet.
        min_interval_secs: Seconds from one checkpoint to the next, at least.
        timeout: Seconds to wait for one; None waits for ever.
        timeout_fn: Asked when the time is up, and after each checkpoint: true ends the iteration, false goes on
            waiting. None ends it when the time is up.
        storage: Where the directory lies; None tells by the path.

    Source: checkpoints_iterator in tensorflow/python/training/checkpoint_utils.py; spec: SAVER 8.
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
    """The latest checkpoint once it is another than `last`; None where the time would be up before the next look."""
    stop = None if timeout is None else _now() + timeout
    while True:
        path = latest_checkpoint(directory, storage=storage)
        if path is not None and path != last:
            return path
        if stop is not None and _now() + _POLL_SECONDS > stop:
            return None
        _sleep(_POLL_SECONDS)


# Tests put a clock of their own in their place.
def _now() -> float:
    return time.time()


def _sleep(seconds: float) -> None:
    time.sleep(seconds)
