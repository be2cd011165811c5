"""What a saver remembers of the checkpoints it wrote: the state file that names them, and which of them go.

Order, for every checkpoint: it is published, then the state file names it, then older ones are deleted.

Source: Saver._RecordLastCheckpoint, _MaybeDeleteOldCheckpoints in tensorflow/python/training/saver.py; spec: SAVER 4.
"""

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt.directory.management import get_checkpoint_mtimes, remove_checkpoint
from torch_tfckpt.directory.names import is_there
from torch_tfckpt.directory.retention import (
    SECONDS_PER_HOUR,
    KeepBest,
    Metrics,
    Saved,
    SaverHistory,
    next_deletion,
    record,
)
from torch_tfckpt.directory.retention_file import Retained
from torch_tfckpt.directory.state_file import (
    from_stored,
    get_checkpoint_state,
    state_path,
    update_checkpoint_state,
    update_relative_state,
)
from torch_tfckpt.errors import CheckpointError, DataLossError, FailedPreconditionError, NotFoundError
from torch_tfckpt.storage.choice import storage_of
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.text import printable, quoted

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Bookkeeping:
    """How one save is entered."""

    storage: Storage
    directory: str  # of the checkpoint; "" is the current one
    latest_filename: str
    meta_graph_suffix: str


class SaverRecords:
    """The checkpoints of one saver.

    Args:
        saver_def: Says how many to keep, for how long, and of which version they are.
        start: When the saver was built, in seconds since the epoch: the schedule of those kept for good begins then.
        relative: Whether the state file names checkpoints relative to its directory.
        keep_best: Which to keep for their metrics.
        recover: Whether to take over what the state file lists, before the first save into a directory.
        storage: Where files are stored; None chooses by the path.

    Threads: one at a time.
    """

    def __init__(
        self,
        saver_def: SaverDef,
        start: float,
        *,
        relative: bool,
        keep_best: KeepBest | None,
        recover: bool,
        storage: Storage | None = None,
    ) -> None:
        self._max_to_keep = saver_def.max_to_keep
        self._version, self._sharded = saver_def.version, saver_def.sharded
        # As stored: a float of 32 bits, so that 0.1 hours are 0.10000000149.
        self._keep_seconds = saver_def.keep_checkpoint_every_n_hours * SECONDS_PER_HOUR
        self._history = SaverHistory(start + self._keep_seconds)
        self._relative, self._recover, self._storage = relative, recover, storage
        self._doomed: list[str] = []  # to be deleted; what could not be is tried again after the next save
        self.retained = Retained(keep_best)
        self._latest_filename: str | None = None  # of the last save

    @property
    def last_checkpoints(self) -> list[str]:
        """Paths, oldest first."""
        return [saved.path for saved in self._history.last]

    def set_last_checkpoints(self, checkpoints: Sequence[Saved]) -> None:
        """Replaces what is remembered, oldest first."""
        self._history = replace(self._history, last=tuple(checkpoints))

    def recover(self, paths: Sequence[str]) -> None:
        """Remembers those of `paths` that are there, each from when its files were written."""
        times = [(path, get_checkpoint_mtimes([path], storage=self._storage)) for path in paths]
        self.set_last_checkpoints([Saved(path, time[0]) for path, time in times if time])

    def pin(self, path: str) -> None:
        """Pins a checkpoint that is there; NotFoundError otherwise. Written down beside its state file."""
        storage = self._storage or storage_of(path)
        if not is_there(storage, path):
            raise NotFoundError(f"{printable(path)}: there is no such checkpoint to pin. Pin it after it was saved")
        self.retained.load(storage, os.path.dirname(path), self._latest_filename)
        self.retained.pin(path)
        self.retained.save()

    def unpin(self, path: str) -> None:
        """Ends `pin`, whether or not the checkpoint is there."""
        self.retained.load(self._storage or storage_of(path), os.path.dirname(path), self._latest_filename)
        self.retained.unpin(path)
        self.retained.save()

    def refuse_conflict(self, books: Bookkeeping, path: str) -> None:
        """FailedPreconditionError where a checkpoint of that path would be the state file. Nothing is written yet.

        All files of version 2 have suffixes, and all shards of version 1 have numbers behind their name. So, as in
        TensorFlow, those of version 2 may share the name where the state file spells their path otherwise than its own.
        """
        if path != state_path(books.directory, books.latest_filename):
            return
        spelled_alike = not books.directory or (os.path.isabs(books.directory) and not self._relative)
        if spelled_alike if self._version == SaverDef.V2 else not self._sharded:
            raise FailedPreconditionError(
                f"Save path {quoted(printable(path))} conflicts with path used for checkpoint state. Save under "
                f"another name, or name the state file by latest_filename"
            )

    def enter(self, books: Bookkeeping, path: str, now: float, metrics: Metrics) -> None:
        """`path` was published at `now`: the state file names it, and what is too old is deleted.

        Raises:
            OSError: the state file cannot be written; the checkpoint itself is complete. That an old checkpoint cannot
                be deleted is only logged.
        """
        self._latest_filename = books.latest_filename
        self.retained.load(books.storage, books.directory, books.latest_filename)
        if self._recover:
            self._recover = False
            self._take_over(books)
        # Remembered first: the checkpoint is there, whatever the system refuses from now on.
        self._history = record(self._history, path, now, self._max_to_keep)
        self._doomed = [other for other in self._doomed if other != path]
        self.retained.note(path, metrics)
        doomed = self.retained.settle(self.last_checkpoints, self._evicted())
        # Where all stay, those that lost their pin stay as well.
        self._doomed += doomed if self._max_to_keep else []
        # Before the state file names one less: after a crash, what was set aside must be known.
        self.retained.save()
        self._write_state(books, path, self.last_checkpoints)
        self._delete(books)

    def _evicted(self) -> list[str]:
        """What may go: one checkpoint, unless an earlier save got no further than its state file."""
        evicted = []
        while self._history.evicted:
            self._history, candidate = next_deletion(self._history, self._keep_seconds)
            if candidate is not None:
                evicted.append(candidate)
        return evicted

    def _take_over(self, books: Bookkeeping) -> None:
        try:
            state = get_checkpoint_state(books.directory, books.latest_filename, storage=books.storage)
        except DataLossError as error:
            _log.warning("%s: no checkpoints are taken over", error)
            return
        if state is not None and not self._history.last:
            self.recover([from_stored(path) for path in state.all_model_checkpoint_paths])

    def _write_state(self, books: Bookkeeping, path: str, last: Sequence[str]) -> None:
        update = update_relative_state if self._relative else update_checkpoint_state
        update(books.directory, path, last, books.latest_filename, storage=books.storage)

    def _delete(self, books: Bookkeeping) -> None:
        gone = []
        for path in self._doomed:
            try:
                remove_checkpoint(path, self._version, books.meta_graph_suffix, storage=books.storage)
                gone.append(path)
            except (OSError, CheckpointError) as error:
                _log.warning("Ignoring: %s stays: %s", printable(path), error)
        if gone:
            self._doomed = [path for path in self._doomed if path not in gone]
            self.retained.forget(gone)
            self.retained.save()


def of_unknown_age(paths: Sequence[str]) -> list[Saved]:
    """Checkpoints that the rule of hours always keeps, as tf.train's set_last_checkpoints has them."""
    return [Saved(path, math.inf) for path in paths]
