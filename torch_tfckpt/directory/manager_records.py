"""Records of a CheckpointManager: checkpoints to delete, the state file, the numbers in use.

The state file may be missing, damaged, outdated, or from a different program, so the directory is listed as well:

- Only checkpoints with the manager's own name and a number belong to its series. Those of other managers in the
  directory are never deleted, and stay listed in the state file.
- Only checkpoints that the state file lists, or that have a mark (see `unlisted`), are tracked and deleted. Others may
  have been kept on purpose.
- The number of an existing checkpoint is not reused, unless this manager saved or restored that checkpoint.
- A damaged state file is not treated as missing: `damage` contains the error.

If a system error leaves it unknown which checkpoints exist, construction fails: otherwise an older checkpoint, or none,
might be restored.

Source: CheckpointManager in tensorflow/python/checkpoint/checkpoint_management.py.
"""

import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from typing import Final

from torch_tfckpt._proto.checkpoint_state_pb2 import CheckpointState
from torch_tfckpt.bundle.removal import remove_bundle
from torch_tfckpt.directory.names import directory_key, is_there
from torch_tfckpt.directory.records import CheckpointRecords
from torch_tfckpt.directory.retention import KeepBest, Saved, saved_again, sweep
from torch_tfckpt.directory.state_file import from_stored, load_state, update_relative_state
from torch_tfckpt.directory.unlisted import marked_in, unmark
from torch_tfckpt.errors import CheckpointError, DataLossError
from torch_tfckpt.format.tensor_bundle import index_filename
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.storage.refusals import is_refusal, refusals_named
from torch_tfckpt.text import printable

_NUMBER: Final = "-([0-9]{1,18})"  # fits into the save counter

_log = logging.getLogger(__name__)


class ManagerRecords(CheckpointRecords):
    """The checkpoints of one series in a directory, beginning with those that its state file lists.

    Args:
        directory: Directory of the state file.
        prefix: Path of the checkpoints, without "-" and the number.
        max_to_keep: How many of the newest checkpoints to keep; None keeps all.
        keep_seconds: Of the expired checkpoints, one per this many seconds is kept permanently. None: none is kept.
        keep_best: Which checkpoints to keep because of their metrics.
        now: Seconds since the epoch.

    Attributes:
        storage: Where files are stored.
        named: The newest checkpoint according to the state file, or the last one saved here; None if there is neither.
        damage: Why the state file cannot be used; None if it can, or if there is none.

    Raises:
        FailedPreconditionError: a system error prevents reading the state file, the directory or the retention file.

    Cost: reads the state file and the retention file, and lists the directory, once each.
    """

    # This way the next manager can delete expired checkpoints that a killed manager had not deleted yet.
    names_expired = True

    def __init__(
        self,
        storage: Storage,
        directory: str,
        prefix: str,
        max_to_keep: int | None,
        keep_seconds: float | None,
        keep_best: KeepBest | None,
        now: float,
    ) -> None:
        super().__init__(keep_best, storage, max_to_keep)
        self.storage = storage
        self._directory, self._prefix = directory, prefix
        self._home = os.path.dirname(prefix)
        self._saved_into.add(self._home)
        self._pattern = re.compile(re.escape(os.path.basename(prefix)) + _NUMBER)
        self._keep_seconds = keep_seconds
        self.named: str | None = None
        self.damage: DataLossError | None = None
        self._tracked: tuple[Saved, ...] = ()
        self._others: tuple[Saved, ...] = ()  # listed in the state file by other managers
        self._own_numbers: set[int] = set()  # saved or restored here, so they may be saved again
        self._adoptable: set[str] = set()  # marked, and in no state file: tracked once they are restored
        # Earlier than any checkpoint of this manager, so that the first one may be kept permanently.
        self._last_preserved = now - 1.0
        with refusals_named(self._home or os.curdir):
            names = storage.list(self._home)
        existing = self._numbered(names)
        self._highest_of_others = max(existing, default=-1)
        self._has_own = bool(existing)
        state = self._load_state()
        if state is not None:
            self._take_over(state, now, set(existing.values()))
        self._find_marked(state, names, set(existing.values()))
        self.retention.load(storage, directory)

    @property
    def newest(self) -> list[str]:
        """Paths of the tracked checkpoints, oldest first."""
        return [saved.path for saved in self._tracked]

    @property
    def latest(self) -> str | None:
        """`named`; None if it belongs to a different series and this series has checkpoints of its own."""
        return self.named if self.named is not None and (self._owns(self.named) or not self._has_own) else None

    @property
    def is_first_run(self) -> bool:
        """Whether nothing was saved before: there is no state file, and no checkpoint of the series."""
        return self.named is None and self.damage is None and not self._has_own

    def candidates(self) -> Iterator[str]:
        """Yield the checkpoints to restore, the newest first, each once.

        `latest` comes first, then the tracked checkpoints, newest first, then all others of the series, the highest
        number first. If the series has no checkpoints, `latest` is the one that the state file names as the newest,
        even if it belongs to a different series.

        Raises:
            FailedPreconditionError: a system error prevents listing the directory.
        """
        if self.named is not None and not self._owns(self.named):
            _log.warning(
                "the state file of %s names %s, which is not a checkpoint of this manager (%s-N). %s",
                printable(self._directory or os.curdir),
                printable(self.named),
                printable(self._prefix),
                "The manager has no checkpoints, so the checkpoint in the state file is restored"
                if self.latest
                else "The manager's newest checkpoint is restored instead",
            )
        first = [path for path in (self.latest, *reversed(self.newest)) if path is not None]
        yield from dict.fromkeys(first)
        with refusals_named(self._home or os.curdir):
            existing = self._numbered(self.storage.list(self._home))
        yield from (existing[number] for number in sorted(existing, reverse=True) if existing[number] not in first)

    def number_after(self, counter: int) -> int:
        """Return the next checkpoint's number: `counter` + 1, or a higher number if necessary.

        It is higher if a known checkpoint that this manager neither saved nor restored has that number or a higher one.

        Raises:
            FailedPreconditionError: because of a system error, it is unknown whether the number is in use.
        """
        wanted = number = counter + 1
        if number <= self._highest_of_others:
            number = self._highest_of_others + 1
        with refusals_named(self._home or os.curdir):
            while number not in self._own_numbers and self.storage.exists(index_filename(f"{self._prefix}-{number}")):
                self._highest_of_others = max(number, *self._numbered(self.storage.list(self._home)))
                number = self._highest_of_others + 1
        if number != wanted:
            _log.warning(
                "%s-%d would not be the newest checkpoint in its directory, or would overwrite one that this manager "
                "neither saved nor restored. Saving %d instead",
                printable(self._prefix),
                wanted,
                number,
            )
        return number

    def beginning(self, path: str, number: int) -> None:
        """Record that `path` is about to be saved.

        If the process is killed before the state file names the checkpoint, the next run deletes it.
        """
        self._own_numbers.add(number)
        self._mark([path])

    def failed(self, path: str) -> None:
        """Record that `path` was not saved."""
        if self.follows:
            return
        try:
            stays = is_there(self.storage, path)
        except (OSError, CheckpointError):
            return  # the mark stays, too
        if not stays and unmark(self.storage, path):
            self._marked.pop(path, None)

    def restored(self, path: str, now: float) -> None:
        """Record that `path` was restored: it may be overwritten, and an unfinished deletion of it is cancelled."""
        number = self._number_of(path)
        if number is None:
            return
        self._own_numbers.add(number)
        if path == self.named and number < self._highest_of_others:
            _log.warning(
                "%s was restored because the state file names it, although checkpoint %d also exists",
                printable(path),
                self._highest_of_others,
            )
        if path in self._adoptable or path in self._to_delete:
            self._to_delete = [other for other in self._to_delete if other != path]
            self._adoptable.discard(path)
            self._marked[path] = None
            self._tracked = saved_again(self._tracked, path, now)

    def passed_over(self, paths: Sequence[str]) -> None:
        """Record that the checkpoints `paths` are damaged.

        Tracked checkpoints that are damaged expire first, and are never kept permanently.
        """
        damaged = [saved for saved in self._tracked if saved.path in paths]
        if damaged:
            early = math.nextafter(self._last_preserved, math.inf)  # only later times are tracked after a restart
            rest = [saved for saved in self._tracked if saved not in damaged]
            self._tracked = (*(Saved(saved.path, early) for saved in damaged), *rest)

    def _numbered(self, names: Sequence[str]) -> dict[int, str]:
        """Return the checkpoints of the series among the names in its directory: number -> path."""
        found: dict[int, str] = {}
        for name in names:
            match = self._pattern.fullmatch(name.removesuffix(".index")) if name.endswith(".index") else None
            if match is not None:
                found[int(match[1])] = f"{self._prefix}-{match[1]}"
        return found

    def _number_of(self, path: str) -> int | None:
        """Return the number of a checkpoint of this series; None for any other path."""
        match = self._pattern.fullmatch(os.path.basename(path))
        if match is None:
            return None
        directory = os.path.dirname(path)
        here = directory == self._home or directory_key(directory) == directory_key(self._home)
        return int(match[1]) if here else None

    def _owns(self, path: str) -> bool:
        return self._number_of(path) is not None

    def _load_state(self) -> CheckpointState | None:
        try:
            return load_state(self.storage, self._directory)
        except DataLossError as error:
            self.damage = error
            _log.warning("%s. Earlier checkpoints are not tracked, and will not be deleted", error)
            return None

    def _spelled(self, stored: str) -> str:
        """Return a path from the state file, spelled as by `save` if it belongs to this series."""
        path = from_stored(stored)
        return f"{self._prefix}{path[path.rindex('-') :]}" if self._owns(path) else path

    def _dated(self, state: CheckpointState) -> list[Saved]:
        """Return the checkpoints in a state file with their times; an empty list if the file has no times."""
        paths = map(self._spelled, state.all_model_checkpoint_paths)
        return [Saved(path, time) for path, time in zip(paths, state.all_model_checkpoint_timestamps, strict=False)]

    def _take_over(self, state: CheckpointState, now: float, existing: set[str]) -> None:
        self.named = self._spelled(state.model_checkpoint_path)
        self._last_preserved = state.last_preserved_timestamp
        if now < self._last_preserved:
            _log.warning(
                "the clock is %f seconds behind the last preserved checkpoint timestamp. Checkpoints saved before now "
                "will not be deleted",
                self._last_preserved - now,
            )
            self._last_preserved = now
        # If the state file has no times (written by a Saver or by hand), it is unknown which checkpoints were to be
        # kept permanently, so none is tracked.
        dated = [Saved(path, min(time, now)) for path, time in self._dated(state)]
        self._tracked = tuple(saved for saved in dated if saved.time > self._last_preserved and saved.path in existing)

    def _find_marked(self, state: CheckpointState | None, names: Sequence[str], existing: set[str]) -> None:
        """Find what an earlier manager was about to delete, or had saved but not recorded, when it was killed."""
        marked = [path for path in marked_in(self._home, names) if self._owns(path)]
        unlisted = [path for path in map(self._spelled, marked) if path in existing]
        if state is None:
            self._adoptable.update(unlisted)
        elif self.max_to_keep:
            listed = {self.named, *map(self._spelled, state.all_model_checkpoint_paths)}
            self._marked.update(dict.fromkeys(map(self._spelled, marked)))
            self._to_delete += [path for path in unlisted if path not in listed]

    def _add(self, path: str, now: float) -> None:
        self._tracked = saved_again(self._tracked, path, now)
        self.named, self.damage, self._has_own = path, None, True
        # Keep in the state file what other managers have saved in this directory in the meantime.
        try:
            state = load_state(self.storage, self._directory)
            others = [] if state is None else [saved for saved in self._dated(state) if not self._owns(saved.path)]
            self._others = tuple(saved for saved in others if is_there(self.storage, saved.path))
        except (OSError, CheckpointError) as error:
            if is_refusal(error):
                _log.warning("checkpoints of other managers may be missing from the state file: %s", error)

    def _expire(self) -> Sequence[str]:
        swept = sweep(self._tracked, self._last_preserved, self.max_to_keep, self._keep_seconds)
        self._tracked, self._last_preserved = swept.tracked, swept.last_preserved
        return swept.expired

    def _write_state(self, path: str) -> None:
        listed = (*self._others, *self._tracked)
        update_relative_state(
            self._directory,
            path,
            [saved.path for saved in listed],
            all_model_checkpoint_timestamps=[saved.time for saved in listed],
            last_preserved_timestamp=self._last_preserved,
            storage=self.storage,
        )

    def _remove(self, path: str) -> None:
        remove_bundle(self.storage, path)
