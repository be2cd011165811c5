"""The retention file keeps pins, metrics, and the checkpoints protected by them, across restarts.

    record = RetentionRecord(KeepBest("loss", "min", k=3))
    record.load(storage, "train")                          # before the first save; later calls cost nothing
    record.note("train/m-7", {"loss": 0.5})                # m-7 was saved
    to_delete = record.partition(newest, expired)          # m-7 is among the newest; m-2 expired; reads the file again
    record.save()                                          # before the state file
    ...                                                      # the state file is written, `to_delete` is deleted
    record.forget(to_delete)
    record.save()

The file is stored next to the state file, as `<state file>.retention.json`, while there is something to store:

    {"version": 1, "best": {"metric": "loss", "mode": "min", "k": 3}, "pins": ["m-3"], "protected": ["m-3"],
     "metrics": {"m-7": {"loss": 0.5}}}

Paths in the file are relative to its directory and never point outside it. Values that are not JSON numbers
are strings: "nan", "inf".

Checkpoints that no longer exist are forgotten. If the file is damaged, the checkpoints that might have been pinned in
it are pinned, so that none is deleted by mistake. If a system error prevents reading it, an error is raised and nothing
changes.

Several processes may change the file, for example a training program and a notebook that pins a checkpoint. So
`partition` reads it again before it returns anything to delete, and adopts what other processes have added or removed
in the meantime. (There is no lock: of two simultaneous changes, one may be lost.) If the file has vanished, its pins
are gone, but nothing that they protected is deleted. Several series of checkpoints, each with its own Saver, share the
file: a record keeps the entries of other series, and never returns their checkpoints for deletion.
"""

import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from torch_tfckpt.directory.names import directory_key, is_there, path_key
from torch_tfckpt.directory.retention import KeepBest, Metrics, best_first, partition
from torch_tfckpt.directory.state_file import state_path
from torch_tfckpt.errors import CheckpointError, DataLossError, InvalidArgumentError, NotFoundError
from torch_tfckpt.storage.names import is_url
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.storage.refusals import is_refusal, refusals_named
from torch_tfckpt.storage.small_files import read_small, write_file
from torch_tfckpt.text import printable, quoted

VERSION: Final = 1
MAX_BYTES: Final = 64 * 1024 * 1024  # enough for half a million checkpoints

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _RetentionFile:
    """Contents of one file. Names are paths relative to its directory."""

    best: KeepBest | None
    pins: list[str]
    protected: list[str]
    metrics: dict[str, dict[str, float]]


_NOTHING: Final = _RetentionFile(None, [], [], {})


@dataclass(slots=True)
class _RetentionPlace:
    """One directory whose retention file was read."""

    storage: Storage
    directory: str
    path: str  # path of the retention file
    text: bytes | None  # contents of the file when it was read or written last; None if it did not exist
    unreadable: bool = False  # the file is damaged; checkpoints that it may have pinned are not pinned yet
    is_something_else: bool = False  # there is a directory of that name, or a file that is too large
    known: _RetentionFile = _NOTHING  # `text`, decoded


class RetentionRecord:
    """Pins, metrics and protected checkpoints of one Saver or CheckpointManager.

    Args:
        best: Which checkpoints to keep because of their metrics; None: the rule in the file, if there is one.
        owns: Whether a checkpoint belongs to the series that may be deleted here.

    Different spellings of a path are treated as the same path. One object may serve several directories, each of which
    has its own file.
    Thread safety: not thread-safe.
    """

    def __init__(self, best: KeepBest | None = None, owns: Callable[[str], bool] = lambda path: True) -> None:
        self.best, self._owns = best, owns
        self._places: dict[str, _RetentionPlace] = {}
        # All keys are results of `path_key`; `_paths` maps them to the paths as spelled when saving.
        self._paths: dict[str, str] = {}
        self._pins: set[str] = set()
        self._metrics: dict[str, dict[str, float]] = {}
        self._protected: list[str] = []
        self._certain: set[str] = set()  # saved or unpinned here, so a pin in a file does not apply
        self._last_noted = ""
        self._damaged = False  # some file is `unreadable`

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Path -> the metrics it was saved with."""
        return {self._paths[key]: dict(values) for key, values in self._metrics.items()}

    @property
    def pins(self) -> list[str]:
        """Pinned paths, sorted."""
        return sorted(self._paths[key] for key in self._pins)

    @property
    def protected(self) -> list[str]:
        """Checkpoints that expired and are kept because of a pin or a metric, oldest first."""
        return [self._paths[key] for key in self._protected]

    def load(self, storage: Storage, directory: str, latest_filename: str | None = None) -> bool:
        """Read the file of `directory`, unless it was read before; return whether it was read now.

        A damaged file is logged.

        Raises:
            FailedPreconditionError: a system error prevents reading it. The next call tries again.
        """
        path = f"{state_path(directory, latest_filename)}.retention.json"
        place = self._places.get(directory_key(directory))
        if place is not None and place.path == path:
            return False
        place = _RetentionPlace(storage, directory, path, None)
        self._read(place, first=True)
        # Last, so that the file is read again if Ctrl-C comes before this line: pins must not be lost.
        self._places[directory_key(directory)] = place
        return True

    def read_again(self) -> None:
        """Adopt changes that other processes have made to the files since they were read or written here.

        Raises:
            FailedPreconditionError: a system error prevents reading a file.
        """
        for place in self._places.values():
            self._read(place, first=False)

    def _read(self, place: _RetentionPlace, *, first: bool) -> None:
        """Read the file of `place`, if its contents have changed, and adopt the changes."""
        try:
            with refusals_named(place.path):
                text: bytes | None = read_small(place.storage, place.path, MAX_BYTES, "a retention file")
        except NotFoundError:
            text = None
        except CheckpointError as error:
            if is_refusal(error):
                raise
            if not place.is_something_else:
                place.is_something_else = True
                self._note_damage(place, error, first=first)
            return
        place.is_something_else = False
        if text == place.text:
            return
        try:
            now = _NOTHING if text is None else _decode(text)
        except DataLossError as error:
            self._note_damage(place, error, first=first)
        else:
            with refusals_named(place.path):
                self._take_over(place, now, first=first)
            place.known = now
        place.text = text

    def _note_damage(self, place: _RetentionPlace, error: CheckpointError, *, first: bool) -> None:
        place.unreadable = self._damaged = True
        if not first:  # another process may have pinned any checkpoint except the one just saved
            self._certain &= {self._last_noted}
        _log.warning(
            "%s: cannot be read: %s. The pinned checkpoints are unknown, so all existing ones will be pinned",
            printable(place.path),
            str(error).removeprefix(f"{printable(place.path)}: "),
        )

    def note(self, path: str, metrics: Metrics | None = None) -> None:
        """Record that `path` was saved with these metrics, which replace any older metrics for this path."""
        key = self._last_noted = self._remember(path)
        self._paths[key] = path
        self._certain.add(key)
        self._metrics.pop(key, None)
        if metrics:
            self._metrics[key] = dict(metrics)

    def pin(self, path: str) -> None:
        """Protect `path` from deletion when it expires."""
        self._pins.add(self._remember(path))

    def unpin(self, path: str) -> None:
        """Remove a pin. If only the pin protected `path`, it is deleted when the next checkpoint is saved."""
        self._pins.discard(path_key(path))
        self._certain.add(path_key(path))

    def partition(self, newest: Sequence[str], expired: Sequence[str]) -> list[str]:
        """Return the checkpoints to delete after a save, oldest first. Reads the files again.

        Args:
            newest: The newest checkpoints, which are kept for that reason, oldest first.
            expired: The checkpoints that have become too old.

        A checkpoint that loses its protection is still recorded as protected until `forget`, in case it cannot be
        deleted.

        Raises:
            FailedPreconditionError: a system error prevents reading a file, so nothing may be deleted.
        """
        if not (expired or self.best or self._protected or self._damaged):
            return []
        self.read_again()
        if self.best is None and not (self._pins or self._protected or self._damaged):
            return list(expired)  # the usual case: no checkpoint is protected
        inside = [self._remember(path) for path in newest]
        outside = [self._remember(path) for path in expired]
        self._pin_what_may_have_been([*outside, *inside])
        own = self._own_protected()
        split = partition(inside, outside, own, self._pins, self._metrics, self.best)
        others = set(self._protected).difference(own)
        staying = {*split.protected, *(key for key in own if key in split.to_delete), *others}
        self._protected = [key for key in dict.fromkeys((*self._protected, *outside)) if key in staying]
        return [self._paths[key] for key in split.to_delete]

    def forget(self, paths: Iterable[str]) -> None:
        """Forget checkpoints that were deleted."""
        for key in map(path_key, paths):
            self._paths.pop(key, None)
            self._metrics.pop(key, None)
            self._certain.discard(key)
            self._pins.discard(key)
            self._protected = [other for other in self._protected if other != key]

    def best_first(self, newest: Sequence[str]) -> list[str]:
        """Return the known checkpoints that have the metric, best first; empty if there is no rule."""
        if self.best is None:
            return []
        inside = [self._remember(path) for path in newest]
        known = [*(key for key in self._own_protected() if key not in inside), *inside]
        return [self._paths[key] for key in best_first(known, self._metrics, self.best)]

    def _own_protected(self) -> list[str]:
        return [key for key in self._protected if self._owns(self._paths[key])]

    def save(self) -> None:
        """Write the files whose contents changed, durably; remove those that would be empty.

        A file is read again before it is written, so that what other processes have added is not lost.

        Raises:
            FailedPreconditionError: a system error prevents reading a file.
            OSError: a file could not be written or removed.
        """
        for home, place in self._places.items():
            text = self._encode(home)
            if text == place.text or (text is None and place.unreadable):
                continue
            self._read(place, first=False)
            text = self._encode(home)
            if text == place.text or place.unreadable:
                continue  # the next `partition` pins what a damaged file may have pinned
            if text is None:
                place.storage.remove(place.path)
            else:
                write_file(place.storage, place.path, text)
            place.text, place.known = text, _NOTHING if text is None else _decode(text)

    def _remember(self, path: str) -> str:
        key = path_key(path)
        self._paths.setdefault(key, path)
        return key

    def _pin_what_may_have_been(self, keys: Sequence[str]) -> None:
        """Pin all checkpoints that may have been pinned in a file that could not be read."""
        for home, place in self._places.items():
            if place.unreadable:
                old = [key for key in keys if self._home_of(key) == home and key not in self._certain]
                self._pins.update(old)
                if old:
                    shown = ", ".join(printable(self._paths[key]) for key in old)
                    _log.warning("%s: pinned %s. Unpin those that may be deleted", printable(place.path), shown)
                place.unreadable = False
        self._damaged = False

    def _home_of(self, key: str) -> str | None:
        """Return the directory whose file lists `key`: the innermost directory that contains `key`."""
        around = [home for home in self._places if key.startswith(f"{home.rstrip('/')}/")]
        return max(around, key=len, default=None)

    def _take_over(self, place: _RetentionPlace, now: _RetentionFile, *, first: bool) -> None:
        """Adopt what has changed in a file since it was last read or written, for existing checkpoints."""
        before = place.known
        if first:
            self.best = self.best or now.best
        for name in {*before.protected, *before.pins, *before.metrics}:
            key = path_key(os.path.join(place.directory, name))
            if name in before.pins and name not in now.pins:
                self._pins.discard(key)
            if name in before.protected and name not in now.protected and key in self._protected:
                self._protected.remove(key)
            if name in before.metrics and name not in now.metrics and key not in self._certain:
                self._metrics.pop(key, None)
        home = directory_key(place.directory)
        for name in dict.fromkeys((*now.protected, *now.pins, *now.metrics)):
            path = os.path.join(place.directory, name)
            key = path_key(path)
            if not key.startswith(f"{home.rstrip('/')}/"):  # through a symbolic link
                _log.warning("%s names %s, which is outside of its directory. Ignored", printable(place.path), name)
                continue
            # What was saved or unpinned here is newer than the contents of a file that is read for the first time.
            if (first and key in self._certain) or not is_there(place.storage, path):
                continue
            self._paths.setdefault(key, path)
            if name in now.pins and name not in before.pins:
                self._pins.add(key)
            if name in now.metrics and name not in before.metrics:
                self._metrics.setdefault(key, now.metrics[name])
            if name in now.protected and name not in before.protected and key not in self._protected:
                self._protected.append(key)

    def _encode(self, home: str) -> bytes | None:
        """Return the contents of the file of one directory; None if there is nothing to store."""
        if not (self._pins or self._protected or self._metrics):
            return None

        def name(key: str) -> str:
            return key[len(home.rstrip("/")) + 1 :]

        mine = {key for key in self._paths if self._home_of(key) == home}
        pins = sorted(name(key) for key in self._pins & mine)
        protected = [name(key) for key in self._protected if key in mine]
        metrics = {
            name(key): {metric: value if math.isfinite(value) else repr(value) for metric, value in values.items()}
            for key, values in self._metrics.items()
            if key in mine
        }
        if not (pins or protected or metrics):
            return None
        rule = self.best or self._places[home].known.best  # if this program has no rule, keep the stored one
        best = asdict(rule) if rule is not None else None
        content = {"version": VERSION, "best": best, "pins": pins, "protected": protected, "metrics": metrics}
        return f"{json.dumps(content, indent=1)}\n".encode()


def check_metrics(metrics: object) -> dict[str, float]:
    """Return `metrics` as names and floats; raise InvalidArgumentError if that is impossible."""
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise InvalidArgumentError(f"metrics must be a mapping of names to numbers, not a {type(metrics).__name__}")
    checked: dict[str, float] = {}
    for name, value in metrics.items():
        if not isinstance(name, str):
            raise InvalidArgumentError(f"metrics: the name {name!r} is a {type(name).__name__}. Pass a str")
        try:
            # Without `detach`, torch prints a warning if the tensor requires a gradient.
            checked[name] = float(value.detach() if hasattr(value, "detach") else value)
        except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor of several elements
            raise InvalidArgumentError(f"metrics: {quoted(name)} is not a number: {error}. Pass a float") from error
    return checked


def _decode(text: bytes) -> _RetentionFile:
    """Decode a file; raise DataLossError if `save` cannot have written it."""
    try:
        content = json.loads(text)
        version = content["version"]
        if version != VERSION:
            raise DataLossError(f"its version is {version!r}, but this program reads {VERSION}")
        best = content["best"]
        return _RetentionFile(
            None if best is None else KeepBest(**best),
            _names(content["pins"]),
            _names(content["protected"]),
            {_name(name): check_metrics(values) for name, values in content["metrics"].items()},
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, DataLossError):
            raise
        raise DataLossError(f"not a retention file: {type(error).__name__}: {error}") from error


def _names(names: Any) -> list[str]:
    if not isinstance(names, list):
        raise DataLossError(f"found a {type(names).__name__} instead of a list of names")
    return [_name(name) for name in names]


def _name(name: Any) -> str:
    """Return `name`; raise DataLossError if it is outside the directory, where nothing may be deleted."""
    if (
        not isinstance(name, str)
        or not name
        or "\0" in name
        or is_url(name)
        or os.path.isabs(name)
        or os.path.normpath(name) != name
        or name.split("/")[0] == ".."
    ):
        raise DataLossError(f"{name!r} is not the name of a checkpoint in this directory")
    return name
