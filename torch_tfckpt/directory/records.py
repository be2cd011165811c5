"""Record each published checkpoint and delete old ones, in an order that is safe after a crash.

    the checkpoint is published
    -> the retention file is read again, to find pins that other processes have set
    -> its metrics and the checkpoints protected by pins and metrics are written to the retention file
    -> checkpoints that are to be deleted are marked (`unlisted`), unless the state file still names them
    -> the state file names the new checkpoint
    -> older checkpoints are deleted, then removed from the retention file; their marks are removed

If the process is killed in between, no file ever names a deleted checkpoint, no pinned checkpoint is deleted, and
the next run of the series deletes what this run did not. If a checkpoint cannot be deleted, the next save tries again,
and so does the next run. The subclasses (`saver.records`, `manager_records`) decide which
checkpoints are too old, with the rules of `retention`.

What is deleted: checkpoints that this object has saved, that the program has passed to it, or that an earlier run of
the same series (`names.series_of`) has listed or marked. Nothing is deleted outside of the directories that this object
saves into, even if files in these directories list it: the files may have been copied from a different run. If a
system error prevents reading the retention file, nothing is deleted until it can be read.
"""

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Final

from torch_tfckpt.directory.names import directory_key, is_there
from torch_tfckpt.directory.retention import KeepBest, Metrics
from torch_tfckpt.directory.retention_file import RetentionRecord
from torch_tfckpt.directory.unlisted import mark, unmark
from torch_tfckpt.errors import CheckpointError, FailedPreconditionError, NotFoundError
from torch_tfckpt.storage.choice import storage_of
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.storage.refusals import refusals_named
from torch_tfckpt.text import did_you_mean, listed, printable, quoted

_LISTED: Final = 8  # maximum number of metrics listed in a warning

_log = logging.getLogger(__name__)


class MetricWatch:
    """Warns once if the metric of `keep_best` is not passed to `save`.

    Thread safety: one thread at a time.
    """

    def __init__(self) -> None:
        self.saves = 0
        self._given = self._warned = False

    def saved(self, rule: KeepBest | None, path: str, metrics: Metrics) -> None:
        """Check the metrics of a checkpoint; warn if some were given, but not the one that `rule` uses."""
        self.saves += 1
        if rule is None or not metrics:
            return
        if rule.metric in metrics:
            self._given = True
        elif not self._warned:
            self._warned = True
            hint = did_you_mean(rule.metric, metrics)
            _log.warning(
                "%s: keep_best chooses by the metric %s, which is not among those given to save: %s.%s Without it, "
                "this checkpoint cannot be one of the best",
                printable(path),
                quoted(rule.metric),
                listed(list(metrics), _LISTED),
                f" {hint}" if hint else "",
            )

    def warn_if_never_given(self, rule: KeepBest) -> None:
        """Log a warning, unless the metric was given or a warning was logged before."""
        if self.saves and not (self._given or self._warned):
            self._warned = True
            _log.warning(
                "keep_best chooses by the metric %s, which has not been passed to save, so no checkpoint is protected "
                "as one of the best. Pass it: save(..., metrics={%s: value})",
                quoted(rule.metric),
                quoted(rule.metric),
            )


class CheckpointRecords(ABC):
    """The checkpoints of one Saver or CheckpointManager.

    Args:
        keep_best: Which checkpoints to keep because of their metrics.
        storage: Where files are stored; None chooses by the path.
        max_to_keep: How many of the newest to keep; None and 0 keep all.

    Thread safety: one thread at a time.
    """

    # Whether the state file names expired checkpoints until they are deleted. If so, the next process can delete those
    # that a killed process had not deleted yet.
    names_expired: ClassVar[bool]

    # Whether another rank, which saves the same checkpoints, writes the files and deletes checkpoints.
    follows = False
    _latest_filename: str | None = None  # name of the state file; None: the default

    def __init__(self, keep_best: KeepBest | None, storage: Storage | None, max_to_keep: int | None) -> None:
        self.retention = RetentionRecord(keep_best, self._owns)
        self._storage = storage
        self.max_to_keep = max_to_keep or 0
        self._metric_watch = MetricWatch()
        self._to_delete: list[str] = []  # not deleted yet; tried again after the next save
        self._marked: dict[str, None] = {}  # checkpoints that may have a mark, in order
        self._saved_into: set[str] = set()  # directories, as the caller spells them; nothing is deleted elsewhere

    @property
    @abstractmethod
    def newest(self) -> list[str]:
        """Paths of the checkpoints that are kept because they are among the newest, oldest first."""

    @property
    def best(self) -> str | None:
        """The best checkpoint by `keep_best` among the newest and the protected ones, if any."""
        # Without a limit nothing is ever deleted, so all checkpoints count, even if `newest` does not list them.
        kept = self.newest if self.max_to_keep else list(filter(self._owns, self.retention.metrics))
        return next(iter(self.retention.best_first(kept)), None)

    @abstractmethod
    def _owns(self, path: str) -> bool:
        """Return whether `path` belongs to the series that is saved here and may be deleted when it expires."""

    @abstractmethod
    def _add(self, path: str, now: float) -> None:
        """Add `path` as the newest checkpoint."""

    @abstractmethod
    def _expire(self) -> Sequence[str]:
        """Forget the checkpoints that are too old; return those that may be deleted, oldest first."""

    @abstractmethod
    def _write_state(self, path: str) -> None:
        """Write the state file, which names `path` and the newest checkpoints."""

    @abstractmethod
    def _remove(self, path: str) -> None:
        """Delete the files of a checkpoint."""

    def published(self, path: str, now: float, metrics: Metrics) -> None:
        """Record a checkpoint that was published at `now`, and delete those that are too old.

        Raises:
            OSError: the state file cannot be written; the checkpoint itself is complete. A checkpoint that cannot be
                deleted is only logged.
        """
        self._metric_watch.saved(self.retention.best, path, metrics)
        # Recorded first: the checkpoint exists, even if the next steps fail.
        self._to_delete = [other for other in self._to_delete if other != path]
        self._add(path, now)
        self.retention.note(path, metrics)
        if self.follows:
            self._to_delete = []
            self._expire()
            return
        if self.retention.best is not None and self._metric_watch.saves > 1 and not metrics:
            self.warn_if_metric_is_missing()  # before anything is deleted
        if self.names_expired:
            self._write_state(path)
        before = self.newest
        # Stored before anything is deleted, in case of Ctrl-C. Checkpoints that an earlier save failed to delete may
        # have been pinned in the meantime.
        self._to_delete = expired = [*self._to_delete, *self._expire()]
        try:
            to_delete = self.retention.partition(self.newest, expired)
            # Saved before the state file lists fewer checkpoints: after a crash, the protected ones must be known.
            self.retention.save()
        except FailedPreconditionError as refusal:
            _log.warning("Nothing is deleted, because it is unknown which checkpoints are pinned: %s", refusal)
            to_delete = []
        else:
            self._to_delete = to_delete = to_delete if self.max_to_keep else []
        if not self.names_expired:
            if self._to_delete:
                self._mark(self._to_delete)
            self._write_state(path)
        if to_delete:
            self._delete()
        if self.names_expired and self.newest != before:
            self._mark(self._to_delete)  # those that could not be deleted
            self._write_state(path)
        if self._marked:
            self._unmark()

    def pin(self, path: str) -> None:
        """Protect a checkpoint from deletion, and record the pin in the retention file.

        Raises:
            NotFoundError: there is no such checkpoint.
            FailedPreconditionError: the file cannot be read, or it is unknown whether the checkpoint exists.
            OSError: the file cannot be written.
        """
        storage = self._storage or storage_of(path)
        with refusals_named(path):
            if not is_there(storage, path):
                raise NotFoundError(f"{printable(path)}: there is no such checkpoint to pin. Save it, then pin it")
        self._read_retention(path)
        self.retention.pin(path)
        self.retention.save()

    def unpin(self, path: str) -> None:
        """Remove a pin, whether or not the checkpoint still exists. Raises like `pin`."""
        self._read_retention(path)
        self.retention.unpin(path)
        self.retention.save()

    def _read_retention(self, path: str) -> None:
        """Read the retention files that other processes may have changed, including the file for `path`."""
        storage = self._storage or storage_of(path)
        if not self.retention.load(storage, os.path.dirname(path), self._latest_filename):
            self.retention.read_again()

    def warn_if_metric_is_missing(self) -> None:
        """Log a warning, once, if checkpoints were saved and none of them has the metric of `keep_best`."""
        known = self.retention.metrics.values()
        if self.retention.best is not None and not any(self.retention.best.metric in each for each in known):
            self._metric_watch.warn_if_never_given(self.retention.best)

    def _delete(self) -> None:
        deleted = []
        for path in self._to_delete:
            if not self._is_here(path):
                _log.warning("%s is not deleted: this program has not saved anything in its directory", printable(path))
                deleted.append(path)
                continue
            try:
                self._remove(path)
                deleted.append(path)
                _log.info("Deleted %s (max_to_keep=%d)", printable(path), self.max_to_keep)
            except (OSError, CheckpointError) as error:
                _log.warning("%s could not be deleted; will retry. Ignoring: %s", printable(path), error)
        if deleted:
            self.warn_if_metric_is_missing()
            self._to_delete = [path for path in self._to_delete if path not in deleted]
            self.retention.forget(deleted)
            try:
                self.retention.save()
            except FailedPreconditionError as refusal:
                _log.warning("pins and metrics of deleted checkpoints are still recorded: %s", refusal)

    def _is_here(self, path: str) -> bool:
        """Return whether the directory of `path` is one that checkpoints were saved into."""
        directory = os.path.dirname(path)
        return directory in self._saved_into or directory_key(directory) in map(directory_key, self._saved_into)

    def _mark(self, paths: Sequence[str]) -> None:
        """Mark checkpoints that the state file will not name."""
        for path in paths:
            if path not in self._marked and self._is_here(path) and not self.follows:
                self._marked[path] = None
                mark(self._storage or storage_of(path), path)

    def _unmark(self) -> None:
        """Remove the marks of checkpoints that are deleted, protected, or named by the state file."""
        for path in list(self._marked):
            if path not in self._to_delete and unmark(self._storage or storage_of(path), path):
                del self._marked[path]
