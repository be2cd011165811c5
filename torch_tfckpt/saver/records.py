"""Records of a Saver's checkpoints: which of them are old enough to delete, and the state file.

The first save of a run into a directory looks for what earlier runs of the same series have left: pins and metrics,
checkpoints marked for deletion, and, if `recover` applies, the checkpoints listed in the state file. If any of this
cannot be read, the state file is left unchanged, so that nothing in it is lost, and the next save tries again.

Source: Saver._RecordLastCheckpoint, _MaybeDeleteOldCheckpoints in tensorflow/python/training/saver.py.
"""

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt.directory.management import get_checkpoint_mtimes, remove_checkpoint
from torch_tfckpt.directory.names import directory_key, is_there, series_of, spelled_in
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
    load_state,
    state_path,
    update_checkpoint_state,
    update_relative_state,
)
from torch_tfckpt.directory.unlisted import marked_in
from torch_tfckpt.errors import DataLossError, FailedPreconditionError, IncompleteSaveError
from torch_tfckpt.saver.request import SaveRequest
from torch_tfckpt.storage.choice import storage_of
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.storage.refusals import refusals_named
from torch_tfckpt.text import printable, quoted

# TensorFlow's default for keep_checkpoint_every_n_hours, 14 months: in practice no schedule, so it is not recorded.
_NEVER: Final = 10_000 * SECONDS_PER_HOUR

_log = logging.getLogger(__name__)


class _Listed(NamedTuple):
    """Contents of the state file of an earlier run."""

    paths: list[str]  # of the run's series, in the directory of the state file, oldest first
    last_preserved: float  # seconds since the epoch; 0 without a schedule


class _Told(NamedTuple):
    """What rank 0 has told."""

    best: str | None


class SaverRecords(CheckpointRecords):
    """The checkpoints of one saver.

    Args:
        saver_def: How many checkpoints to keep, how often to keep one permanently, and their version.
        start: When the saver was built, in seconds since the epoch. The schedule of permanently kept checkpoints begins
            at this time.
        relative: Whether the state file names checkpoints relative to its directory.
        keep_best: Which checkpoints to keep because of their metrics.
        recover: Whether the first save adopts the checkpoints of its series that the state file lists. None: the
            first save into a directory adopts them if a checkpoint in that directory was restored before.
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
        # As stored in the SaverDef: a 32-bit float, so 0.1 hours becomes 0.10000000149.
        self._keep_seconds = saver_def.keep_checkpoint_every_n_hours * SECONDS_PER_HOUR
        self._history = SaverHistory(start + self._keep_seconds)
        self._relative, self._recover = relative, recover
        self._has_saved = False
        self._told: _Told | None = None
        self._restored_from: set[str] = set()  # keys of directories whose checkpoints are to be adopted
        self._last_restored: str | None = None
        self._searched: set[tuple[str, str]] = set()  # directories and state files already searched for marks
        self._targets: dict[str, str] = {}  # save path -> the last checkpoint saved there, which determines the series
        # Checkpoints that no state file names, because those of earlier runs could not be determined.
        self._not_recorded: set[str] = set()

    @property
    def newest(self) -> list[str]:
        """Paths of the newest checkpoints, oldest first."""
        return [saved.path for saved in self._history.last]

    @property
    def expected_newest(self) -> list[str]:
        """`newest`; between a restore and the first save, also the checkpoints that the first save would adopt.

        Assumes that the first save writes to the directory of the restored checkpoint.

        Cost: between a restore and the first save, reads the state file in that directory.
        """
        restored = self._last_restored
        if restored is None or self._has_saved or self._recover is False or not self.max_to_keep:
            return self.newest
        home = directory_key(os.path.dirname(restored))
        if any(directory_key(os.path.dirname(path)) == home for path in self.newest):
            return self.newest
        storage = self._storage or storage_of(restored)
        listed = self._listed_before(storage, restored, self._latest_filename)
        return [saved.path for saved in self._with_earlier(listed).last]

    @property
    def expected_best(self) -> str | None:
        """`best`; between a restore and the first save, the best checkpoint of earlier runs.

        Cost: between a restore and the first save, reads the records in the directory of the restored checkpoint.
        """
        if self._last_restored is None or self._has_saved:
            return self.best
        # Not loaded into `self.retention`: that would later write to the file, but this directory is only read.
        recorded = RetentionRecord(self.retention.best)
        storage = self._storage or storage_of(self._last_restored)
        recorded.load(storage, os.path.dirname(self._last_restored), self._latest_filename)
        kept = self.expected_newest if self.max_to_keep else list(recorded.metrics)
        return next(iter(recorded.best_first(kept)), None)

    @property
    def best(self) -> str | None:
        """The best checkpoint by `keep_best`; on all ranks but 0, what rank 0 has told."""
        return super().best if self._told is None else self._told.best

    @property
    def newest_and_best(self) -> dict[str, object]:
        """What rank 0 tells the other ranks, for `follow`."""
        return {"newest": self.newest, "best": self.best}

    def follow(self, told: Mapping[str, object]) -> None:
        """On all ranks but 0: remember what rank 0 has recorded; rank 0 writes and deletes the files.

        Args:
            told: The `newest_and_best` of rank 0.
        """
        newest, best = told.get("newest"), told.get("best")
        if not isinstance(newest, list) or not all(isinstance(path, str) for path in newest):
            raise IncompleteSaveError("rank 0 has not told which checkpoints it keeps: its message is not valid")
        self._told = _Told(best if isinstance(best, str) else None)
        self._has_saved = True
        self.set_last_checkpoints([Saved(path, math.inf) for path in newest])

    def set_last_checkpoints(self, checkpoints: Sequence[Saved]) -> None:
        """Replace the remembered checkpoints with `checkpoints`, oldest first."""
        self._history = replace(self._history, last=tuple(checkpoints))

    def recover(self, paths: Sequence[str]) -> None:
        """Remember the checkpoints in `paths` that exist, with the times when their files were written."""
        self.set_last_checkpoints(self._dated(paths))

    def refuse_conflict(self, request: SaveRequest) -> None:
        """Raise FailedPreconditionError if the checkpoint has the same path as the state file. Writes nothing.

        Version 2 files have a suffix after this path, and version 1 shards have a number, so none of them would
        overwrite the state file. Sharded version 1 checkpoints may therefore use the path. As in TensorFlow, version 2
        checkpoints may use it only if the path of the state file is spelled differently.
        """
        if request.target != state_path(request.directory, request.latest_filename):
            return
        spelled_alike = not request.directory or (os.path.isabs(request.directory) and not self._relative)
        if spelled_alike if self._version == SaverDef.V2 else not self._sharded:
            raise FailedPreconditionError(
                f"Save path {quoted(printable(request.target))} conflicts with path used for checkpoint state. Save "
                f"under another name, or pass a different latest_filename"
            )

    def enter(self, request: SaveRequest, path: str, now: float) -> None:
        """Record `path`, which was published at `now`.

        Raises:
            IncompleteSaveError: the files of an earlier run cannot be read; the state file is unchanged.
            OSError: as `published`.
        """
        self._request, self._latest_filename = request, request.latest_filename
        self._saved_into.add(request.directory)
        self._targets[request.save_path] = request.target
        try:
            self.retention.load(request.storage, request.directory, request.latest_filename)
            place = request.directory, request.latest_filename
            if place not in self._searched:
                self._find_marked(request)
                self._searched.add(place)
            self._take_over(request)
        except (FailedPreconditionError, OSError) as refusal:
            self._not_recorded.add(path)
            self._add(path, now)
            self.retention.note(path, request.metrics)
            raise IncompleteSaveError(
                f"{printable(path)} is in place and can be restored, but the state file does not name it, because the "
                f"checkpoints of earlier runs could not be determined: {refusal}. Fix the cause, then save again",
                {0: refusal},
            ) from refusal
        self.published(path, now, request.metrics)

    def _owns(self, path: str) -> bool:
        return series_of(path) in map(series_of, self._targets.values())

    def _add(self, path: str, now: float) -> None:
        self._history = record(self._history, path, now, self.max_to_keep)

    def _expire(self) -> list[str]:
        # More than one only if an earlier save failed before this step, or an adopted run had kept more checkpoints.
        expired = []
        while self._history.expired:
            self._history, candidate = next_deletion(self._history, self._keep_seconds)
            if candidate is not None:
                expired.append(candidate)
        return expired

    def restored(self, prefix: str) -> None:
        """Record that `prefix`, which a Saver wrote, was restored. Nothing is read or adopted yet."""
        self._last_restored = prefix
        if self._recover is None:
            self._restored_from.add(directory_key(os.path.dirname(prefix)))

    def _find_marked(self, request: SaveRequest) -> None:
        """Find checkpoints that an earlier run of the series marked for deletion; this save will delete them."""
        if not self.max_to_keep:
            return
        storage, directory = request.storage, request.directory
        marked = [path for path in marked_in(directory, storage.list(directory)) if self._owns(path)]
        if not marked:
            return
        listed = self._listed_before(storage, request.target, request.latest_filename)
        if listed is None:
            return
        self._marked.update(dict.fromkeys(marked))
        with refusals_named(directory):
            self._to_delete += [path for path in marked if path not in listed.paths and is_there(storage, path)]

    def _take_over(self, request: SaveRequest) -> None:
        """Insert the checkpoints of an earlier run before this run's own, if `recover` applies to this save."""
        asked_to = self._recover is True and not self._has_saved
        if not asked_to and not self._restored_from:
            self._has_saved = True
            return  # most saves return here, before the directory is resolved
        home = directory_key(request.directory)
        wanted = asked_to or home in self._restored_from
        known = [path for path in self.newest if path not in self._not_recorded]
        # Adopt nothing if the program has set the list, or has saved here before.
        if wanted and self.max_to_keep and not any(directory_key(os.path.dirname(path)) == home for path in known):
            listed = self._listed_before(request.storage, request.target, request.latest_filename)
            self._history = self._with_earlier(listed)
        self._has_saved = True
        self._restored_from.discard(home)
        self._not_recorded.clear()

    def _with_earlier(self, listed: _Listed | None) -> SaverHistory:
        """Return the history, with the checkpoints of an earlier run inserted before those of this run."""
        if listed is None:
            return self._history
        history, earlier = self._history, self._dated(listed.paths)
        if listed.last_preserved > 0:
            history, earlier = continue_schedule(history, earlier, listed.last_preserved, self._keep_seconds)
        return taken_over(history, earlier, self.max_to_keep)

    def _listed_before(self, storage: Storage, target: str, latest_filename: str | None) -> _Listed | None:
        """Return the checkpoints in the state file that belong to the series of `target` or of earlier saves.

        None if there is no state file, or if it is damaged; damage is logged.

        The state file may have been copied, or written by another program: checkpoints of other series, or outside of
        its directory, are left out, so that they are never deleted.
        """
        directory = os.path.dirname(target)
        series = {series_of(path) for path in (target, *self._targets.values())}
        try:
            state = load_state(storage, directory, latest_filename)
        except DataLossError as error:
            _log.warning("%s: checkpoints of earlier runs are not tracked", error)
            return None
        if state is None:
            return None
        # Spell the paths as this run does, so that a path that is saved again is recognized.
        paths = [spelled_in(directory, from_stored(path)) for path in state.all_model_checkpoint_paths]
        own = [path for path in paths if os.path.dirname(path) == directory and series_of(path) in series]
        for path in set(paths).difference(own):
            _log.info(
                "%s: %s is not tracked: it belongs to a different series or directory",
                printable(target),
                printable(path),
            )
        return _Listed(own, state.last_preserved_timestamp)

    def _dated(self, paths: Sequence[str]) -> list[Saved]:
        """Return the checkpoints in `paths` that exist, with the times when their files were written."""
        times = [(path, get_checkpoint_mtimes([path], storage=self._storage)) for path in paths]
        return [Saved(path, time[0]) for path, time in times if time]

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
        """Time from which the next run continues the schedule; None: not stored, as in TensorFlow."""
        if self._recover is False or not self._keep_seconds < _NEVER:
            return None
        return self._history.next_kept - self._keep_seconds

    def _remove(self, path: str) -> None:
        remove_checkpoint(path, self._version, self._request.meta_graph_suffix, storage=self._request.storage)
