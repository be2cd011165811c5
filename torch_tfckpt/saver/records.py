"""Records of a Saver's checkpoints: TensorFlow's rule of age, and the state file.

Source: Saver._RecordLastCheckpoint, _MaybeDeleteOldCheckpoints in tensorflow/python/training/saver.py.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt.directory.management import get_checkpoint_mtimes, remove_checkpoint
from torch_tfckpt.directory.names import directory_key, same_series, spelled_in
from torch_tfckpt.directory.records import CheckpointRecords
from torch_tfckpt.directory.retention import (
    SECONDS_PER_HOUR,
    KeepBest,
    Saved,
    SaverHistory,
    continue_schedule,
    next_deletion,
    record,
    taken_over,
)
from torch_tfckpt.directory.retention_file import RetentionRecord
from torch_tfckpt.directory.state_file import (
    from_stored,
    get_checkpoint_state,
    state_path,
    update_checkpoint_state,
    update_relative_state,
)
from torch_tfckpt.errors import CheckpointError, FailedPreconditionError
from torch_tfckpt.saver.request import SaveRequest
from torch_tfckpt.storage.choice import storage_of
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.text import printable, quoted

# TensorFlow's default for keep_checkpoint_every_n_hours, 14 months: in practice no schedule, so it is not recorded.
_NEVER: Final = 10_000 * SECONDS_PER_HOUR

_log = logging.getLogger(__name__)


class SaverRecords(CheckpointRecords):
    """The checkpoints of one saver.

    Args:
        saver_def: How many checkpoints to keep, for how long, and their version.
        start: When the saver was built, in seconds since the epoch: the schedule of permanently kept ones begins then.
        relative: Whether the state file names checkpoints relative to its directory.
        keep_best: Which checkpoints to keep because of their metrics.
        recover: Whether the first save takes over the checkpoints that the state file lists. None: the first save into
            a directory that was restored from takes over those whose names differ only in their numbers.
        storage: Where files are stored; None chooses by the path.

    Thread safety: one thread at a time.
    """

    names_expired = False
    _request: SaveRequest  # of the last save; set by `enter`, before it is used

    def __init__(
        self,
        saver_def: SaverDef,
        start: float,
        *,
        relative: bool,
        keep_best: KeepBest | None,
        recover: bool | None,
        storage: Storage | None = None,
    ) -> None:
        super().__init__(keep_best, storage, saver_def.max_to_keep)
        self._version, self._sharded = saver_def.version, saver_def.sharded
        # As stored: a float of 32 bits, so that 0.1 hours are 0.10000000149.
        self._keep_seconds = saver_def.keep_checkpoint_every_n_hours * SECONDS_PER_HOUR
        self._history = SaverHistory(start + self._keep_seconds)
        self._relative, self._recover = relative, recover
        self._has_saved = False
        self._restored_from: set[str] = set()  # keys of directories whose checkpoints are to be taken over
        self._last_restored: str | None = None

    @property
    def newest(self) -> list[str]:
        """Paths, oldest first."""
        return [saved.path for saved in self._history.last]

    @property
    def expected_newest(self) -> list[str]:
        """`newest`; after a restore, until the first save, with the checkpoints that a save there would take over.

        Cost: until the first save, reads the state file of the directory that was restored from.
        """
        restored = self._last_restored
        if restored is None or self._has_saved or self._recover is False or not self.max_to_keep:
            return self.newest
        home = directory_key(os.path.dirname(restored))
        if any(directory_key(os.path.dirname(path)) == home for path in self.newest):
            return self.newest
        storage = self._storage or storage_of(restored)
        return [saved.path for saved in self._with_earlier(storage, restored, self._latest_filename).last]

    @property
    def expected_best(self) -> str | None:
        """`best`; after a restore, until the first save, by the records of the directory that was restored from.

        Cost: until the first save, reads the records of that directory.
        """
        if self._last_restored is None or self._has_saved:
            return self.best
        # Not into `self.retention`, which would then write the file of a directory that is only read.
        recorded = RetentionRecord(self.retention.best)
        storage = self._storage or storage_of(self._last_restored)
        recorded.load(storage, os.path.dirname(self._last_restored), self._latest_filename)
        kept = self.expected_newest if self.max_to_keep else list(recorded.metrics)
        return next(iter(recorded.best_first(kept)), None)

    def set_last_checkpoints(self, checkpoints: Sequence[Saved]) -> None:
        """Replace the checkpoints that are remembered, oldest first."""
        self._history = replace(self._history, last=tuple(checkpoints))

    def recover(self, paths: Sequence[str]) -> None:
        """Remember those of `paths` that exist, with the times when their files were written."""
        self.set_last_checkpoints(self._dated(paths))

    def refuse_conflict(self, request: SaveRequest) -> None:
        """Raise FailedPreconditionError if the checkpoint's path is that of the state file. Writes nothing.

        All files of version 2 have suffixes, and all shards of version 1 have numbers after their name. So, as in
        TensorFlow, a version 2 checkpoint may have this name if the state file spells its path differently.
        """
        if request.target != state_path(request.directory, request.latest_filename):
            return
        spelled_alike = not request.directory or (os.path.isabs(request.directory) and not self._relative)
        if spelled_alike if self._version == SaverDef.V2 else not self._sharded:
            raise FailedPreconditionError(
                f"Save path {quoted(printable(request.target))} conflicts with path used for checkpoint state. Save "
                f"under another name, or pass another latest_filename"
            )

    def enter(self, request: SaveRequest, path: str, now: float) -> None:
        """Record `path`, which was published at `now`. Raises like `published`."""
        self._request, self._latest_filename = request, request.latest_filename
        self.retention.load(request.storage, request.directory, request.latest_filename)
        self._take_over(request)
        self.published(path, now, request.metrics)

    def _add(self, path: str, now: float) -> None:
        self._history = record(self._history, path, now, self.max_to_keep)

    def _expire(self) -> list[str]:
        # One checkpoint, unless an earlier save got no further than its state file.
        expired = []
        while self._history.expired:
            self._history, candidate = next_deletion(self._history, self._keep_seconds)
            if candidate is not None:
                expired.append(candidate)
        return expired

    def restored(self, prefix: str) -> None:
        """Record that `prefix`, which a Saver wrote, was restored. Nothing is read or taken over yet."""
        self._last_restored = prefix
        if self._recover is None:
            self._restored_from.add(directory_key(os.path.dirname(prefix)))

    def _take_over(self, request: SaveRequest) -> None:
        """Put the checkpoints of an earlier run before those of this one, if `recover` applies to this save."""
        asked_to = self._recover is True and not self._has_saved
        self._has_saved = True
        if not asked_to and not self._restored_from:
            return  # as for most saves, before the directory is resolved
        home = directory_key(request.directory)
        wanted = asked_to or home in self._restored_from
        self._restored_from.discard(home)
        if not wanted or not self.max_to_keep:
            return
        if any(directory_key(os.path.dirname(path)) == home for path in self.newest):
            return  # the program has set the list, or has saved here before
        self._history = self._with_earlier(request.storage, request.target, request.latest_filename)

    def _with_earlier(self, storage: Storage, target: str, latest_filename: str | None) -> SaverHistory:
        """Return the history with the checkpoints that a save of `target` takes over."""
        directory = os.path.dirname(target)
        try:
            state = get_checkpoint_state(directory, latest_filename, storage=storage)
        except CheckpointError as error:
            _log.warning("%s: checkpoints of earlier runs are not tracked", error)
            return self._history
        if state is None:
            return self._history
        # In the spelling of this run, so that a path that is saved again is recognized.
        paths = [spelled_in(directory, from_stored(path)) for path in state.all_model_checkpoint_paths]
        if self._recover is None:
            paths = [path for path in paths if same_series(path, target)]
        history, earlier = self._history, self._dated(paths)
        if state.last_preserved_timestamp > 0:
            history, earlier = continue_schedule(history, earlier, state.last_preserved_timestamp, self._keep_seconds)
        return taken_over(history, earlier, self.max_to_keep)

    def _dated(self, paths: Sequence[str]) -> list[Saved]:
        """Return those of `paths` that exist, with the times when their files were written."""
        found = []
        for path in paths:
            try:
                times = get_checkpoint_mtimes([path], storage=self._storage)
            except FailedPreconditionError as error:  # access is denied, so it could not be deleted either
                _log.warning("%s is not tracked: %s", printable(path), error)
                continue
            found += [Saved(path, time) for time in times]
        return found

    def _write_state(self, path: str) -> None:
        update = update_relative_state if self._relative else update_checkpoint_state
        request = self._request
        update(
            request.directory,
            path,
            self.newest,
            request.latest_filename,
            last_preserved_timestamp=self._last_preserved,
            storage=request.storage,
        )

    @property
    def _last_preserved(self) -> float | None:
        """Time from which the next run continues the schedule; None: the state file gets none, like TensorFlow's."""
        if self._recover is False or not self._keep_seconds < _NEVER:
            return None
        return self._history.next_kept - self._keep_seconds

    def _remove(self, path: str) -> None:
        remove_checkpoint(path, self._version, self._request.meta_graph_suffix, storage=self._request.storage)
