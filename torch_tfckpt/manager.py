"""Numbered checkpoints in one directory, of which the newest and the best are kept.

    manager = CheckpointManager(model, "train", max_to_keep=5, keep_best=KeepBest("loss", "min", k=2))
    manager.restore_or_initialize()
    ...
    manager.save(metrics={"loss": 0.5})          # train/ckpt-1, and the oldest goes

What it remembers is in the directory: the `checkpoint` file, as TensorFlow's manager writes and reads it, and what
TensorFlow does not know in the retention file. A new manager continues where the last one ended.

Source: CheckpointManager in tensorflow/python/checkpoint/checkpoint_management.py.
"""

import logging
import operator
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol, SupportsIndex, cast

import torch

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
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.objects.checkpoint import Checkpoint
from torch_tfckpt.objects.options import CheckpointOptions
from torch_tfckpt.save_restore.handle import MaybeNone
from torch_tfckpt.saver.saver_checkpoint import SaverCheckpoint
from torch_tfckpt.storage.choice import storage_of
from torch_tfckpt.storage.names import AnyPath, fspath
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.storage.small_files import make_directories
from torch_tfckpt.text import printable, quoted

_log = logging.getLogger(__name__)

Step = SupportsIndex | Callable[[], SupportsIndex]


class ManagedCheckpoint(Protocol):
    """What a manager asks of the thing that it saves."""

    @property
    def save_counter(self) -> torch.Tensor:
        """Saves so far, an int64 scalar that is saved and restored with the rest. The manager counts it up in place."""

    def write(self, prefix: str) -> str:
        """Writes a version 2 checkpoint under this very prefix, and returns the prefix once it is durable.

        Creates the directory. Writes no state file and deletes nothing.
        """

    def restore(self, path: str) -> object: ...

    def sync(self) -> None:
        """Returns once nothing is being saved or restored any more."""


class CheckpointManager:
    """Saves numbered checkpoints in `directory` and deletes old ones.

    Args:
        checkpoint: A ManagedCheckpoint, such as Checkpoint; or a Saver, or what a Saver takes as its var_list (a
            module, a dictionary of tensors, ...), of which a SaverCheckpoint is made.
        directory: Made now, with those above it, if it does not exist. In an object store there is nothing to make.
        max_to_keep: How many of the newest to keep; None keeps all.
        keep_checkpoint_every_n_hours: Of those that would go, one in so many hours stays for good. None: none does.
        checkpoint_name: What comes before the number.
        step_counter: The current step, for `checkpoint_interval`: an integer tensor that is counted up in place, or a
            function that returns a number.
        checkpoint_interval: Steps between two checkpoints, at least; `save` does nothing before. None: no limit.
        init_fn: Called by `restore_or_initialize` where there is nothing to restore.
        last_checkpoint_step: Step of the last checkpoint, where the first interval begins.
        keep_best: Which checkpoints to keep for their metrics, besides the newest. None goes by the rule that was given
            last in this directory, if any.
        storage: Where `directory` lies; None tells by the path.
        clock: Seconds since the epoch.

    What an earlier manager left is tracked from where it ended. A checkpoint that stayed for good is never deleted, nor
    one that was saved without a manager; and nothing is deleted before the first save.

    Raises:
        InvalidArgumentError: `max_to_keep` is not positive, or there is an interval without a `step_counter`.
            Or the directory cannot be made.
        DataLossError (a ValueError): the `checkpoint` file of the directory names no checkpoint.

    One manager at a time should be active in a directory. Threads: not safe.
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
            max_to_keep,
            None if hours is None else hours * SECONDS_PER_HOUR,
            keep_best,
            clock(),
        )

    def __repr__(self) -> str:
        latest = self.latest_checkpoint
        shown = [repr(printable(self._directory)), f"max_to_keep={self._records.max_to_keep or None}"]
        shown += [f"latest_checkpoint={printable(latest)!r}"] if latest is not None else []
        return f"CheckpointManager({', '.join(shown)})"

    @property
    def checkpoint(self) -> ManagedCheckpoint:
        """What is saved: the object that was passed, or the SaverCheckpoint made of it."""
        return self._checkpoint

    @property
    def directory(self) -> str:
        """Where the checkpoints are, as it was given."""
        return self._directory

    @property
    def checkpoint_interval(self) -> int | None:
        """Steps between two checkpoints, at least."""
        return self._checkpoint_interval

    @property
    def latest_checkpoint(self) -> str | None:
        """The newest checkpoint in the directory; None where there is none."""
        return self._records.latest

    @property
    def checkpoints(self) -> list[str]:
        """The newest checkpoints, oldest first. Those that stay for good, or for a pin or a metric, are not listed."""
        return self._records.newest

    @property
    def best_checkpoint(self) -> str | None:
        """The best checkpoint, by `keep_best`, of those that may still be deleted; None if none has the metric."""
        return self._records.best

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Path -> the metrics it was saved with, of all checkpoints that are known and have some."""
        return self._records.retention.metrics

    def save(
        self,
        checkpoint_number: SupportsIndex | None = None,
        check_interval: bool = True,
        options: CheckpointOptions | None = None,
        *,
        metrics: Metrics | None = None,
    ) -> str | MaybeNone:
        """Writes a checkpoint, then the `checkpoint` file, then deletes what is one too many.

        Args:
            checkpoint_number: Its number; None takes the save counter, which is counted up in either case.
            check_interval: Whether `checkpoint_interval` holds. A step that was saved is not saved again in any case.
            options: For the `write` of a Checkpoint. With `enable_async` the path is returned, and the rest done, when
                training may go on and the checkpoint is there, respectively; its own callbacks come first.
            metrics: Name -> number, for `keep_best` and for `metrics`.

        Returns:
            The path of the checkpoint; None where the interval is not over yet.

        Raises:
            InvalidArgumentError: the number is no integer, or the metrics are no numbers.
            OSError: the state could not be written. The checkpoint is there.
            Whatever `checkpoint.write` raises; nothing else was changed then but the save counter.

        A checkpoint that cannot be deleted is logged.
        """
        if options is not None and not isinstance(self._checkpoint, Checkpoint):
            raise InvalidArgumentError("options are those of a Checkpoint; this manager saves something else")
        checked = check_metrics(metrics)
        number = None if checkpoint_number is None else _integer(checkpoint_number, "checkpoint_number")
        step = self._current_step()
        if step is not None and self._last_checkpoint_step is not None:
            if step == self._last_checkpoint_step:
                return None
            if check_interval and step < self._last_checkpoint_step + cast(int, self._checkpoint_interval):
                return None
        counter = self._checkpoint.save_counter
        counter += 1
        prefix = f"{self._prefix}-{int(counter) if number is None else number}"
        if options is None:
            path = self._checkpoint.write(prefix)
            self._last_checkpoint_step = step
            self._records.published(path, self._clock(), checked)
            return path
        self._last_checkpoint_step = step

        def published(path: str) -> None:
            self._records.published(path, self._clock(), checked)

        callbacks = (*(options.experimental_write_callbacks or ()), published)
        assert isinstance(self._checkpoint, Checkpoint), "looked at above"
        return self._checkpoint.write(prefix, replace(options, experimental_write_callbacks=callbacks))

    def restore_or_initialize(self) -> str | None:
        """Restores the latest checkpoint and returns its path. Where there is none: calls `init_fn`, returns None."""
        latest = self._records.latest
        if latest is not None:
            self._checkpoint.restore(latest)
            self._last_checkpoint_step = self._current_step()
            return latest
        if self._init_fn is not None:
            self._init_fn()
            _log.info("Customized initialization is done through the passed `init_fn`.")
        return None

    def sync(self) -> None:
        """Returns once no save or restore is under way any more."""
        self._checkpoint.sync()

    def pin(self, path_or_number: AnyPath | SupportsIndex) -> None:
        """Keeps a checkpoint, given by its path or number, until `unpin`; also over restarts, for it is written down.

        Raises:
            NotFoundError: there is no such checkpoint.
        """
        self._records.pin(self._path_of(path_or_number))

    def unpin(self, path_or_number: AnyPath | SupportsIndex) -> None:
        """Ends `pin`. What was kept by that alone is deleted when the next checkpoint is saved."""
        self._records.unpin(self._path_of(path_or_number))

    def _path_of(self, path_or_number: AnyPath | SupportsIndex) -> str:
        if isinstance(path_or_number, str | bytes | os.PathLike):
            return fspath(path_or_number)
        return f"{self._prefix}-{_integer(path_or_number, 'the number of a checkpoint')}"

    def _current_step(self) -> int | None:
        """None where no interval asks for it."""
        if self._checkpoint_interval is None or self._step_counter is None:
            return None
        counter = self._step_counter
        return _integer(counter() if callable(counter) else counter, "step_counter")


def _as_managed(checkpoint: Any, storage: Storage | None) -> ManagedCheckpoint:
    if all(callable(getattr(checkpoint, name, None)) for name in ("write", "restore")):
        return cast(ManagedCheckpoint, checkpoint)
    return SaverCheckpoint(checkpoint, storage=storage)


def _integer(value: SupportsIndex, what: str) -> int:
    try:
        return operator.index(value)
    except TypeError as error:
        raise InvalidArgumentError(f"{what}: {value!r} is no integer: {error}") from error


def _make_directory(storage: Storage, directory: str) -> None:
    """Fail now, not after hours of training, if there will be no directory to save into."""
    if not storage.renames:  # an object store
        return
    try:
        make_directories(storage, directory)
    except OSError as error:
        raise InvalidArgumentError(
            f"CheckpointManager: the directory {quoted(printable(directory))} cannot be made: {error}. Remove what is "
            f"in the way, or pass another directory"
        ) from error
