"""Methods of a Saver for tracked checkpoints: the newest, the best, those of earlier runs, and pins."""

import math
from collections.abc import Sequence
from typing import Self

from torch_tfckpt.directory.retention import Saved
from torch_tfckpt.errors import FailedPreconditionError
from torch_tfckpt.save_restore.handle import InFlight
from torch_tfckpt.saver.records import SaverRecords
from torch_tfckpt.storage.names import AnyPath, fspath
from torch_tfckpt.transfer.staging import Staging


class TracksCheckpoints:
    """Base of Saver: access to the checkpoints it has saved or adopted, and its end.

    Thread safety: one thread at a time.
    """

    _in_flight: InFlight
    _built: bool
    _staging: Staging
    _records: SaverRecords | None = None  # None: not built yet

    def sync(self) -> None:
        """Wait until no save is in flight. Raises the save's error unless `result()` has raised it."""
        self._in_flight.sync()

    def close(self) -> None:
        """`sync`, and free host memory. The saver can still be used."""
        try:
            self.sync()
            if self._records is not None:
                self._records.warn_if_metric_is_missing()
        finally:
            self._staging.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def last_checkpoints(self) -> list[str]:
        """Paths of the checkpoints that are kept because they are the newest, oldest first.

        Between `restore` and the first save, these include the checkpoints that the next save into the same directory
        will adopt (see `recover`).
        Cost: until the first save, reads the state file; later nothing.
        """
        return self._records.expected_newest if self._records is not None else []

    @property
    def best_checkpoint(self) -> str | None:
        """Path of the best of the kept checkpoints, by the metric of `keep_best`.

        None if no kept checkpoint has the metric, or there is no `keep_best`. Checkpoints of an earlier run are
        included after a `restore` from their directory, or else from the first save on.
        Cost: until the first save, reads the directory's records; later nothing.
        """
        return self._records.expected_best if self._records is not None else None

    def set_last_checkpoints(self, last_checkpoints: list[str]) -> None:
        """Replace the list of `last_checkpoints`; give the oldest first.

        The age of these checkpoints is unknown, so `keep_checkpoint_every_n_hours` keeps them.
        """
        assert isinstance(last_checkpoints, list), "last_checkpoints is a list of paths"
        self.set_last_checkpoints_with_time([(path, math.inf) for path in last_checkpoints])

    def set_last_checkpoints_with_time(self, last_checkpoints_with_time: list[tuple[str, float]]) -> None:
        """Replace the list of `last_checkpoints`; give (path, seconds since the epoch) pairs, oldest first."""
        assert isinstance(last_checkpoints_with_time, list), "last_checkpoints_with_time is a list of pairs"
        self._require_records().set_last_checkpoints([Saved(path, when) for path, when in last_checkpoints_with_time])

    def recover_last_checkpoints(self, checkpoint_paths: Sequence[AnyPath]) -> None:
        """Replace the list of `last_checkpoints` with an earlier run's checkpoints; give the oldest first.

        Checkpoints that no longer exist are left out, and the others get the modification times of their files.
        """
        self._require_records().recover([fspath(path) for path in checkpoint_paths])

    def pin(self, path: AnyPath) -> None:
        """Protect a checkpoint from deletion until `unpin`, even in later runs: the pin is written to a file.

        Raises:
            NotFoundError: there is no such checkpoint.
            OSError: this file cannot be written.
        """
        self._require_records().pin(fspath(path))

    def unpin(self, path: AnyPath) -> None:
        """Remove a pin. If the checkpoint is too old to be kept without it, the next save deletes it."""
        self._require_records().unpin(fspath(path))

    def _require_built(self, what: str) -> None:
        """Wait for a save in flight, and raise its error; raise an error if the saver is not built."""
        self._in_flight.sync()
        if not self._built:
            raise FailedPreconditionError(f"`build()` should be called before {what} if defer_build==True")

    def _require_records(self) -> SaverRecords:
        """Wait until no save is in flight, and return the records."""
        self.sync()
        if self._records is None:
            raise FailedPreconditionError("`build()` should be called first if defer_build==True")
        return self._records
