"""Records of a CheckpointManager's directory: TensorFlow's rule of age, and the state file.

Source: CheckpointManager in tensorflow/python/checkpoint/checkpoint_management.py.
"""

import logging
from collections.abc import Sequence

from torch_tfckpt.bundle.removal import remove_bundle
from torch_tfckpt.directory.names import spelled_in
from torch_tfckpt.directory.records import CheckpointRecords
from torch_tfckpt.directory.retention import KeepBest, Saved, saved_again, sweep
from torch_tfckpt.directory.state_file import from_stored, get_checkpoint_state, update_relative_state
from torch_tfckpt.storage.protocol import Storage

_log = logging.getLogger(__name__)


class ManagerRecords(CheckpointRecords):
    """The checkpoints of one directory, beginning with those that its state file lists.

    Args:
        max_to_keep: How many of the newest to keep; None keeps all.
        keep_seconds: Of the expired ones, one is kept permanently per this many seconds. None: never.
        keep_best: Which checkpoints to keep because of their metrics.
        now: Seconds since the epoch.

    Attributes:
        latest: The newest checkpoint; None if there is none.

    Raises:
        DataLossError (a ValueError): the state file does not name a checkpoint.
    """

    # From the state file, the next manager can delete those that a killed one had not deleted yet.
    names_expired = True
    _storage: Storage

    def __init__(
        self,
        storage: Storage,
        directory: str,
        max_to_keep: int | None,
        keep_seconds: float | None,
        keep_best: KeepBest | None,
        now: float,
    ) -> None:
        super().__init__(keep_best, storage, max_to_keep)
        self._directory = directory
        self._keep_seconds = keep_seconds
        self.latest: str | None = None
        self._tracked: tuple[Saved, ...] = ()
        # Earlier than any checkpoint of this manager, so that the first one may be kept permanently.
        self._last_preserved = now - 1.0
        self._take_over(now)
        self.retention.load(storage, directory)

    @property
    def newest(self) -> list[str]:
        """Paths, oldest first."""
        return [saved.path for saved in self._tracked]

    def _take_over(self, now: float) -> None:
        state = get_checkpoint_state(self._directory, storage=self._storage)
        if state is None:
            return
        self.latest = from_stored(state.model_checkpoint_path)
        self._last_preserved = state.last_preserved_timestamp
        if now < self._last_preserved:
            _log.warning(
                "the clock is %f seconds behind the last preserved checkpoint timestamp. Checkpoints saved before now "
                "will not be deleted",
                self._last_preserved - now,
            )
            self._last_preserved = now
        paths = state.all_model_checkpoint_paths
        # Without times, as written by a Saver or by hand, it is unknown which of them were to be kept permanently.
        times = state.all_model_checkpoint_timestamps or [self._last_preserved] * len(paths)
        dated = [
            Saved(spelled_in(self._directory, from_stored(path)), min(time, now))
            for path, time in zip(paths, times, strict=False)
        ]
        self._tracked = tuple(saved for saved in dated if saved.time > self._last_preserved)

    def _add(self, path: str, now: float) -> None:
        self._tracked = saved_again(self._tracked, path, now)
        self.latest = path

    def _expire(self) -> Sequence[str]:
        swept = sweep(self._tracked, self._last_preserved, self.max_to_keep, self._keep_seconds)
        self._tracked, self._last_preserved = swept.tracked, swept.last_preserved
        return swept.expired

    def _write_state(self, path: str) -> None:
        update_relative_state(
            self._directory,
            path,
            self.newest,
            all_model_checkpoint_timestamps=[saved.time for saved in self._tracked],
            last_preserved_timestamp=self._last_preserved,
            storage=self._storage,
        )

    def _remove(self, path: str) -> None:
        remove_bundle(self._storage, path)
