"""Save numbered checkpoints in one directory; keep the newest and the best ones.

    manager = CheckpointManager(model, "train", max_to_keep=5, keep_best=KeepBest("loss", "min", k=2))
    manager.restore_or_initialize()
    ...
    manager.save(metrics={"loss": 0.5})          # writes train/ckpt-1, and deletes the oldest

All records are in the directory: the `checkpoint` file, as TensorFlow's manager writes and reads it, and the retention
file for pins and metrics, which TensorFlow does not have. A new manager continues where the last one ended.

Source: CheckpointManager in tensorflow/python/checkpoint/checkpoint_management.py.
"""

import logging
import operator
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Protocol, SupportsIndex, cast

import torch

from torch_tfckpt.directory.completeness import first_complete
from torch_tfckpt.directory.manager_records import ManagerRecords
from torch_tfckpt.directory.retention import (
    SECONDS_PER_HOUR,
    KeepBest,
    Metrics,
    check_keep_best,
    check_keep_hours,
    check_max_to_keep,
)
from torch_tfckpt.directory.retention_file import check_metrics
from torch_tfckpt.directory.state_file import directory_path
from torch_tfckpt.distributed.calls import RankCalls, taking_part
from torch_tfckpt.errors import FailedPreconditionError, InvalidArgumentError
from torch_tfckpt.manager_restore import nothing_to_restore, restore_named, restore_newest
from torch_tfckpt.objects.checkpoint import Checkpoint
from torch_tfckpt.objects.options import CheckpointOptions
from torch_tfckpt.save_restore.handle import MaybeNone
from torch_tfckpt.save_restore.on_signal import SaveOnSignal
from torch_tfckpt.save_restore.one_call import Call, takes_turns
from torch_tfckpt.save_restore.rank_save import agreed_restore
from torch_tfckpt.saver.saver import Saver
from torch_tfckpt.saver.saver_checkpoint import SaverCheckpoint
from torch_tfckpt.storage.choice import storage_of
from torch_tfckpt.storage.names import AnyPath, fspath
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.storage.small_files import make_directories
from torch_tfckpt.text import printable, quoted

_log = logging.getLogger(__name__)

Step = SupportsIndex | Callable[[], SupportsIndex]


class ManagedCheckpoint(Protocol):
    """Interface of the objects that a manager can save.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> class Single:
        ...     def __init__(self):
        ...         self.value, self.save_counter = torch.zeros(2), torch.tensor(0)
        ...     def write(self, prefix):
        ...         return tfckpt.save_file({"value": self.value, "saves": self.save_counter}, prefix)
        ...     def restore(self, path):
        ...         self.value = tfckpt.load_variable(path, "value")
        ...     def sync(self):
        ...         pass
        >>> tfckpt.CheckpointManager(Single(), "run", max_to_keep=2).save()
        'run/ckpt-1'
    """

    @property
    def save_counter(self) -> torch.Tensor:
        """Number of saves: an int64 scalar, itself saved and restored. The manager increments it in place."""

    def write(self, prefix: str) -> str:
        """Write a version 2 checkpoint under exactly this prefix, and return the prefix once it is durable.

        Creates the directory. Writes no state file and deletes nothing.
        """

    def restore(self, path: str) -> object:
        """Restore the values from a checkpoint; the manager ignores the result."""

    def sync(self) -> None:
        """Wait until no save or restore is in progress."""


class CheckpointManager:
    """Saves numbered checkpoints in one directory and deletes old ones.

    Args:
        checkpoint: A Checkpoint, or another object with the methods of ManagedCheckpoint; or a Saver, or anything that
            Saver accepts as var_list (a module, a dict of tensors, ...), which is saved through a SaverCheckpoint.
        directory: Created at construction, with missing parents. (An object store has no directories.)
        max_to_keep: How many of the newest checkpoints to keep; None keeps all.
        keep_checkpoint_every_n_hours: Of the checkpoints that would otherwise be deleted, keep one per this many hours
            permanently. None: keep none.
        checkpoint_name: Name of the checkpoints, before the number.
        step_counter: The current step, for `checkpoint_interval`: an integer tensor that is incremented in place, or a
            function that returns a number.
        checkpoint_interval: Minimum number of steps between two checkpoints; until then, `save` does nothing. None:
            no minimum.
        init_fn: Called by `restore_or_initialize` if there is nothing to restore.
        last_checkpoint_step: Step of the last checkpoint, at which the first interval begins.
        keep_best: Which checkpoints to keep because of their metrics, in addition to the newest. None: the rule last
            used in this directory, if any.
        storage: Where files are stored; None chooses by the path.
        clock: Returns seconds since the epoch.

    The checkpoints of an earlier manager with the same `checkpoint_name` are tracked if the state file lists them.
    Checkpoints that were kept permanently, or saved without a manager, are never deleted, and nothing is deleted before
    the first save. If the `checkpoint` file is missing or damaged, earlier checkpoints are not tracked, but
    `restore_or_initialize` finds them, and `save` does not overwrite them.

    Raises:
        InvalidArgumentError: an argument is invalid; there is an interval without a `step_counter`; or the directory
            cannot be created.
        FailedPreconditionError (a RuntimeError): a system error prevents reading the directory or one of its files, so
            it is unknown whether there is an earlier checkpoint.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> checkpoint = tfckpt.Checkpoint(model=torch.nn.Linear(2, 1), epoch=0)
        >>> manager = tfckpt.CheckpointManager(checkpoint, "run", max_to_keep=2)
        >>> restored = manager.restore_or_initialize()
        >>> for checkpoint.epoch in range(3):
        ...     path = manager.save()
        >>> manager.checkpoints
        ['run/ckpt-2', 'run/ckpt-3']

    Managers with different names may be active in the same directory, but only one manager per name: two with the same
    name do not overwrite each other's checkpoints, but each tracks only its own. Thread safety: saves and restores from
    several threads run one at a time; a FailedPreconditionError is raised if a signal handler calls `save` or a restore
    while the thread that it interrupted is itself saving or restoring.
    """

    def __init__(
        self,
        checkpoint: Any,
        directory: AnyPath,
        max_to_keep: int | None,
        keep_checkpoint_every_n_hours: float | None = None,
        checkpoint_name: str = "ckpt",
        step_counter: Step | None = None,
        checkpoint_interval: int | None = None,
        init_fn: Callable[[], object] | None = None,
        last_checkpoint_step: int | None = None,
        *,
        keep_best: KeepBest | None = None,
        storage: Storage | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        check_max_to_keep(max_to_keep, zero_keeps_all=False)
        if keep_checkpoint_every_n_hours is not None:
            check_keep_hours(keep_checkpoint_every_n_hours)
        check_keep_best(keep_best)
        if checkpoint_interval is not None and step_counter is None:
            raise InvalidArgumentError("`step_counter` should be passed if `checkpoint_interval` is not None.")
        self._calls: list[Call] = []
        self._checkpoint = _as_managed(checkpoint, storage)
        self._directory = directory_path(directory)
        self._prefix = os.path.join(self._directory, checkpoint_name)
        self._clock = clock
        self._init_fn = init_fn
        self._step_counter = step_counter
        self._checkpoint_interval = checkpoint_interval
        self._last_checkpoint_step = last_checkpoint_step
        hours = keep_checkpoint_every_n_hours
        storage = storage or storage_of(self._directory)
        _make_directory(storage, self._directory)
        self._records = ManagerRecords(
            storage,
            self._directory,
            self._prefix,
            max_to_keep,
            None if hours is None else hours * SECONDS_PER_HOUR,
            keep_best,
            clock(),
        )

        # With ranks, rank 0 writes the files of the directory; the others keep the same records in memory.
        calls = _calls_of(self._checkpoint)
        self._records.follows = calls is not None and calls.rank > 0

    def __repr__(self) -> str:
        latest = self._records.latest
        shown = [repr(printable(self._directory)), f"max_to_keep={self._records.max_to_keep or None}"]
        shown += [f"latest_checkpoint={printable(latest)!r}"] if latest is not None else []
        return f"CheckpointManager({', '.join(shown)})"

    @property
    def checkpoint(self) -> ManagedCheckpoint:
        """The object that is saved: the `checkpoint` argument, or the SaverCheckpoint created from it."""
        return self._checkpoint

    @property
    def directory(self) -> str:
        """The directory of the checkpoints, as it was passed."""
        return self._directory

    @property
    def checkpoint_interval(self) -> int | None:
        """Minimum number of steps between two checkpoints."""
        return self._checkpoint_interval

    @property
    def latest_checkpoint(self) -> str | None:
        """The newest checkpoint in the directory, if any: the one that the state file names.

        Without a valid state file, this is the newest complete checkpoint with this manager's name.

        Raises:
            DataLossError (a ValueError): there are checkpoints, but none is complete.
            FailedPreconditionError (a RuntimeError): a system error prevents reading them.
        """
        records = self._records
        if records.latest is None and not records.is_first_run:
            found = first_complete(records.storage, records.candidates())
            if found is None:
                raise nothing_to_restore(records, self._directory, [])
            records.named = found
        return records.latest

    @property
    def checkpoints(self) -> list[str]:
        """The newest checkpoints, oldest first, without older ones that are kept by a schedule, pin or metric."""
        return self._records.newest

    @property
    def best_checkpoint(self) -> str | None:
        """The best checkpoint by `keep_best`; None if no checkpoint has the metric.

        Checkpoints that only `keep_checkpoint_every_n_hours` keeps are not considered.
        """
        return self._records.best

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Path -> metrics of the checkpoint, for all known checkpoints that have metrics."""
        return self._records.retention.metrics

    @takes_turns
    def save(
        self,
        checkpoint_number: SupportsIndex | None = None,
        check_interval: bool = True,
        options: CheckpointOptions | None = None,
        *,
        metrics: Metrics | None = None,
    ) -> str | MaybeNone:
        """Write a checkpoint, then the `checkpoint` file, then delete old checkpoints.

        Args:
            checkpoint_number: Number of the checkpoint; an existing one with this number is overwritten. None: the
                save counter, which is incremented in either case. If the incremented counter is not above the numbers
                of all existing checkpoints that this manager neither saved nor restored, it is raised above them, with
                a warning.
            check_interval: Whether `checkpoint_interval` applies. If there is an interval, the step that was saved or
                restored last is not saved again in either case.
            options: For `Checkpoint.write`. With `enable_async` this returns as soon as training may continue; the
                `checkpoint` file and deletions follow when the checkpoint is published, after the options' callbacks.
            metrics: Name -> number, for `keep_best` and for `metrics`.

        Returns:
            The path of the checkpoint; None only if nothing was saved, because the interval is not over yet, or because
            the current step was saved or restored last.

        Raises:
            InvalidArgumentError: the number is not an integer, or a metric is not a number.
            FailedPreconditionError: because of a system error, it is unknown whether the number is in use; nothing was
                saved.
            OSError: the state file could not be written. The checkpoint itself is complete.
            Any error of `checkpoint.write`; then only the save counter has changed.

        If a checkpoint cannot be deleted, this is only logged.
        """
        with taking_part(_calls_of(self._checkpoint), "save"):
            return self._save(checkpoint_number, check_interval, options, metrics)

    def _save(
        self,
        checkpoint_number: SupportsIndex | None,
        check_interval: bool,
        options: CheckpointOptions | None,
        metrics: Metrics | None,
    ) -> str | MaybeNone:
        if options is not None and not isinstance(self._checkpoint, Checkpoint):
            raise InvalidArgumentError(
                "options apply to a Checkpoint only, and this manager saves something else. Omit them"
            )
        checked = check_metrics(metrics)
        number = None if checkpoint_number is None else _integer(checkpoint_number, "checkpoint_number")
        step = self._current_step()
        if step is not None and self._last_checkpoint_step is not None:
            if step == self._last_checkpoint_step:
                return None
            if check_interval and step < self._last_checkpoint_step + cast(int, self._checkpoint_interval):
                return None
        counter = self._checkpoint.save_counter
        records = self._records
        if number is None:
            number = records.number_after(int(counter))
            counter += number - int(counter)
        else:
            counter += 1
        prefix = f"{self._prefix}-{number}"
        records.beginning(prefix, number)
        if options is None:
            try:
                path = self._checkpoint.write(prefix)
            except BaseException:
                records.failed(prefix)
                raise
            self._last_checkpoint_step = step
            records.published(path, self._clock(), checked)
            return path
        self._last_checkpoint_step = step

        def published(path: str) -> None:
            records.published(path, self._clock(), checked)

        callbacks = (*(options.experimental_write_callbacks or ()), published)
        assert isinstance(self._checkpoint, Checkpoint), "checked above"
        return self._checkpoint.write(prefix, replace(options, experimental_write_callbacks=callbacks))

    @takes_turns
    def restore_or_initialize(self, *, valid: bool = True) -> str | None:
        """Restore the newest checkpoint and return its path. In the first run, call `init_fn` and return None.

        Args:
            valid: Skip checkpoints that are missing, incomplete or damaged, and log why. Checkpoints are tried in this
                order: the newest one according to the state file; the others that the file lists, newest first; then
                all others with this manager's name, the highest number first. So if the state file is missing, empty,
                damaged or outdated, or a checkpoint is damaged, training neither starts from scratch nor fails at every
                restart. False: restore the checkpoint that the state file names, or none without a state file, as
                TensorFlow does.

        Raises:
            DataLossError (a ValueError): no checkpoint can be restored, although this is not the first run. Without
                `valid`: the state file, or the checkpoint that it names, is damaged.
            FailedPreconditionError (a RuntimeError): a system error prevents reading a file, so it is unknown which
                checkpoint is the newest.
            Any error of `checkpoint.restore`; an older checkpoint is tried only if the newer one is damaged.

        Objects whose values are not in the checkpoint are named in a warning; their values are unchanged.
        """
        records, calls = self._records, _calls_of(self._checkpoint)
        with taking_part(calls, "restore"):
            if valid:
                latest = restore_newest(self._checkpoint, records, self._directory)
            else:
                latest = restore_named(self._checkpoint, records)
        if latest is None:
            with agreed_restore(calls, "None"):  # no rank has found a checkpoint
                pass
        if latest is not None:
            records.restored(latest, self._clock())
            self._last_checkpoint_step = self._current_step()
            return latest
        if self._init_fn is not None:
            self._init_fn()
            _log.info("Customized initialization is done through the passed `init_fn`.")
        return None

    def sync(self) -> None:
        """Wait until no save or restore is in progress."""
        self._checkpoint.sync()

    def save_on_signal(self, signals: int | Iterable[int], *, exit: bool = False) -> SaveOnSignal:
        """Save at the next safe point after a signal, whatever `checkpoint_interval` is.

        Args:
            signals: `signal.SIGTERM`, or several signals.
            exit: End the program after the save, with status 128 plus the signal's number.

        Returns:
            An object with `should_stop()`, to be called once per training step, and `close()`, which restores the
            previous signal handlers; also a context manager. Safe points are `should_stop()` and leaving the `with`
            block; see Saver.save_on_signal.

        Raises:
            FailedPreconditionError: called from a thread other than the main thread.
            InvalidArgumentError: a signal that cannot be handled, such as SIGKILL.
        """
        return SaveOnSignal(signals, lambda: self.save(check_interval=False), self.sync, exit=exit)

    def pin(self, path_or_number: AnyPath | SupportsIndex) -> None:
        """Keep a checkpoint, given by its path or number, until `unpin` is called, including in later runs.

        Raises:
            NotFoundError: there is no such checkpoint.
        """
        self._records.pin(self._path_of(path_or_number))

    def unpin(self, path_or_number: AnyPath | SupportsIndex) -> None:
        """Remove a pin. A checkpoint that was kept only because of it is deleted by the next save."""
        self._records.unpin(self._path_of(path_or_number))

    def _path_of(self, path_or_number: AnyPath | SupportsIndex) -> str:
        if isinstance(path_or_number, str | bytes | os.PathLike):
            return fspath(path_or_number)
        return f"{self._prefix}-{_integer(path_or_number, 'the number of a checkpoint')}"

    def _current_step(self) -> int | None:
        """Return the current step; None without an interval."""
        if self._checkpoint_interval is None or self._step_counter is None:
            return None
        counter = self._step_counter
        return _integer(counter() if callable(counter) else counter, "step_counter")


def _calls_of(checkpoint: object) -> RankCalls | None:
    """Return the calls of the ranks that save `checkpoint` together; None if this process saves alone."""
    saver = checkpoint._saver if isinstance(checkpoint, SaverCheckpoint) else checkpoint
    return saver._ranks if isinstance(saver, Checkpoint | Saver) else None


def _as_managed(checkpoint: Any, storage: Storage | None) -> ManagedCheckpoint:
    if all(callable(getattr(checkpoint, name, None)) for name in ("write", "restore")):
        return cast(ManagedCheckpoint, checkpoint)
    return SaverCheckpoint(checkpoint, storage=storage)


def _integer(value: SupportsIndex, what: str) -> int:
    try:
        return operator.index(value)
    except TypeError as error:
        raise InvalidArgumentError(f"{what}: {value!r} is not an integer: {error}") from error


def _make_directory(storage: Storage, directory: str) -> None:
    """Create the directory now, so that an error is not delayed until the first save."""
    if not storage.renames:  # an object store
        return
    try:
        make_directories(storage, directory)
    except OSError as error:
        denied, taken = isinstance(error, PermissionError), isinstance(error, FileExistsError | NotADirectoryError)
        fix = "Give this user permission to enter and write to its parent" if denied else "Fix the system error"
        fix = "Remove the file at this path or a parent" if taken else fix
        raise (FailedPreconditionError if denied else InvalidArgumentError)(
            f"CheckpointManager: the directory {quoted(printable(directory))} cannot be created: {error}. "
            f"{fix}, or pass another directory"
        ) from error
