"""What was saved and must not go yet: pins, metrics, and the checkpoints set aside for their sake, across restarts.

    retained = Retained(KeepBest("loss", "min", k=3))
    retained.load(storage, "train")                          # before the first save; later calls cost nothing
    retained.note("train/m-7", {"loss": 0.5})                # m-7 was saved
    doomed = retained.settle(window, evicted)                # m-7 is in the window; m-2 left it
    retained.save()                                          # before the state file
    ...                                                      # the state file is written, `doomed` is deleted
    retained.forget(doomed)
    retained.save()

It is kept beside the state file, as `<its name>.retention.json`, while there is something to remember:

    {"version": 1, "best": {"metric": "loss", "mode": "min", "k": 3}, "pins": ["m-3"], "set_aside": ["m-3"],
     "metrics": {"m-7": {"loss": 0.5}}}

Paths in it are relative to its directory and lie in it. Values that are no JSON numbers are texts: "nan", "inf".

What the file cannot say leads to no deletion: checkpoints that no longer exist are forgotten, and where the file cannot
be read, the checkpoints that might have been pinned in it are pinned.
"""

import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from torch_tfckpt.directory.names import is_there
from torch_tfckpt.directory.retention import KeepBest, Metrics, best_first, settle
from torch_tfckpt.directory.state_file import state_path
from torch_tfckpt.errors import CheckpointError, DataLossError, InvalidArgumentError, NotFoundError
from torch_tfckpt.storage.names import is_url
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.storage.small_files import read_small, write_file
from torch_tfckpt.text import printable, quoted

VERSION: Final = 1
MAX_BYTES: Final = 64 * 1024 * 1024  # half a million checkpoints; more is no file of ours

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Place:
    """One directory whose file was read."""

    storage: Storage
    directory: str
    path: str  # of the file
    text: bytes | None  # of the file as it is; None where there is none
    unreadable: bool = False


class Retained:
    """Pins, metrics and checkpoints set aside, of one Saver or CheckpointManager.

    Args:
        best: Which checkpoints to keep for their metrics; None goes by the rule that the file names, if any.

    Paths may be spelled in any way: two that lead to the same place are the same. One object may serve several
    directories; each has its own file.
    Threads: not safe.
    """

    def __init__(self, best: KeepBest | None = None) -> None:
        self.best = best
        self._places: dict[str, _Place] = {}
        # By absolute path. `_paths` has the spelling in which its owner saved it.
        self._paths: dict[str, str] = {}
        self._pins: set[str] = set()
        self._metrics: dict[str, dict[str, float]] = {}
        self._set_aside: list[str] = []
        self._certain: set[str] = set()  # whose pin or want of one does not depend on what a file says

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Path -> the metrics it was saved with."""
        return {self._paths[key]: dict(values) for key, values in self._metrics.items()}

    @property
    def pins(self) -> list[str]:
        """Pinned paths, sorted."""
        return sorted(self._paths[key] for key in self._pins)

    @property
    def set_aside(self) -> list[str]:
        """Checkpoints that left the window and are kept for a pin or a metric, oldest first."""
        return [self._paths[key] for key in self._set_aside]

    def load(self, storage: Storage, directory: str, latest_filename: str | None = None) -> None:
        """Reads the file of `directory`, the first time; a damaged one is logged."""
        path = f"{state_path(directory, latest_filename)}.retention.json"
        place = self._places.get(_key(directory or os.curdir))
        if place is not None and place.path == path:
            return
        place = _Place(storage, directory, path, None)
        try:
            place.text = read_small(storage, path, MAX_BYTES, "a retention file")
            self._take_over(place, _decode(place.text))
        except NotFoundError:
            pass
        except (CheckpointError, OSError) as error:
            place.unreadable = True
            _log.warning(
                "%s: not read: %s. Which checkpoints were pinned is unknown, so those that are there will be pinned",
                printable(path),
                str(error).removeprefix(f"{printable(path)}: "),
            )
        # Last: after Ctrl-C in the middle it is read anew, or what was pinned would be taken for unpinned.
        self._places[_key(directory or os.curdir)] = place

    def note(self, path: str, metrics: Metrics | None = None) -> None:
        """`path` was saved, with these metrics; what was known of an older checkpoint of that path is forgotten."""
        key = self._remember(path)
        self._paths[key] = path
        self._certain.add(key)
        self._metrics.pop(key, None)
        if metrics:
            self._metrics[key] = dict(metrics)

    def pin(self, path: str) -> None:
        """From now on `path` is not deleted, whatever leaves the window."""
        self._pins.add(self._remember(path))

    def unpin(self, path: str) -> None:
        """`path` is as every other checkpoint again. If it was only set aside, it goes when the next one is saved."""
        self._pins.discard(_key(path))
        self._certain.add(_key(path))

    def settle(self, window: Sequence[str], evicted: Sequence[str]) -> list[str]:
        """Which checkpoints are to be deleted now that something was saved, oldest first.

        Args:
            window: Those that stay for being new, oldest first.
            evicted: Those that may go.

        What was set aside and is to go stays so until `forget`: it is not lost sight of if it cannot be deleted.
        """
        inside = [self._remember(path) for path in window]
        outside = [self._remember(path) for path in evicted]
        self._pin_what_may_have_been([*outside, *inside])
        settled = settle(inside, outside, self._set_aside, self._pins, self._metrics, self.best)
        staying = {*settled.set_aside, *(key for key in self._set_aside if key in settled.doomed)}
        self._set_aside = [key for key in dict.fromkeys((*self._set_aside, *outside)) if key in staying]
        return [self._paths[key] for key in settled.doomed]

    def forget(self, paths: Iterable[str]) -> None:
        """They were deleted."""
        for key in map(_key, paths):
            self._paths.pop(key, None)
            self._metrics.pop(key, None)
            self._certain.discard(key)
            self._pins.discard(key)
            self._set_aside = [other for other in self._set_aside if other != key]

    def best_first(self, window: Sequence[str]) -> list[str]:
        """The checkpoints that are known and have the metric, the best one first; empty where there is no rule."""
        if self.best is None:
            return []
        inside = [self._remember(path) for path in window]
        known = [*(key for key in self._set_aside if key not in inside), *inside]
        return [self._paths[key] for key in best_first(known, self._metrics, self.best)]

    def save(self) -> None:
        """Writes the files whose contents changed, durably; removes those in which nothing is left to remember.

        Raises:
            OSError: the system refused.
        """
        for home, place in self._places.items():
            text = self._encode(home)
            if text == place.text or (text is None and place.unreadable):
                continue
            if text is None:
                place.storage.remove(place.path)
            else:
                write_file(place.storage, place.path, text)
            place.text = text

    def _remember(self, path: str) -> str:
        key = _key(path)
        self._paths.setdefault(key, path)
        return key

    def _pin_what_may_have_been(self, keys: Sequence[str]) -> None:
        """Checkpoints from before a file that could not be read."""
        for home, place in self._places.items():
            if place.unreadable:
                old = [key for key in keys if self._home_of(key) == home and key not in self._certain]
                self._pins.update(old)
                if old:
                    shown = ", ".join(printable(self._paths[key]) for key in old)
                    _log.warning("%s: pinned %s. Unpin what may go", printable(place.path), shown)
                place.unreadable = False

    def _home_of(self, key: str) -> str | None:
        """The directory whose file speaks of `key`: the innermost one around it."""
        around = [home for home in self._places if key.startswith(f"{home.rstrip('/')}/")]
        return max(around, key=len, default=None)

    def _take_over(self, place: _Place, stored: "_Stored") -> None:
        """What the file says of checkpoints that are there."""
        self.best = self.best or stored.best
        for name in dict.fromkeys((*stored.set_aside, *stored.pins, *stored.metrics)):
            path = os.path.join(place.directory, name)
            key = _key(path)
            if key in self._certain or not is_there(place.storage, path):
                continue
            self._paths.setdefault(key, path)
            if name in stored.pins:
                self._pins.add(key)
            if name in stored.metrics:
                self._metrics.setdefault(key, stored.metrics[name])
            if name in stored.set_aside and key not in self._set_aside:
                self._set_aside.append(key)

    def _encode(self, home: str) -> bytes | None:
        """The file of one directory; None where nothing is to be remembered."""

        def name(key: str) -> str:
            return key[len(home.rstrip("/")) + 1 :]

        mine = {key for key in self._paths if self._home_of(key) == home}
        pins = sorted(name(key) for key in self._pins & mine)
        set_aside = [name(key) for key in self._set_aside if key in mine]
        metrics = {
            name(key): {metric: _jsonable(value) for metric, value in values.items()}
            for key, values in self._metrics.items()
            if key in mine
        }
        if not (pins or set_aside or metrics):
            return None
        best = asdict(self.best) if self.best is not None else None
        record = {"version": VERSION, "best": best, "pins": pins, "set_aside": set_aside, "metrics": metrics}
        return f"{json.dumps(record, indent=1)}\n".encode()


def check_metrics(metrics: object) -> dict[str, float]:
    """`metrics` as names and floats; InvalidArgumentError where they are anything else."""
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise InvalidArgumentError(f"metrics are a mapping of names to numbers, not a {type(metrics).__name__}")
    checked: dict[str, float] = {}
    for name, value in metrics.items():
        if not isinstance(name, str):
            raise InvalidArgumentError(f"metrics: the name {name!r} is a {type(name).__name__}. Names are texts")
        try:
            checked[name] = float(value)
        except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor of several elements
            raise InvalidArgumentError(f"metrics: {quoted(name)} is no number: {error}. Give a float") from error
    return checked


@dataclass(frozen=True, slots=True)
class _Stored:
    """What one file says. Names are paths relative to its directory."""

    best: KeepBest | None
    pins: list[str]
    set_aside: list[str]
    metrics: dict[str, dict[str, float]]


def _key(path: str) -> str:
    return path.rstrip("/") if is_url(path) else os.path.abspath(path)


def _jsonable(value: float) -> float | str:
    return value if math.isfinite(value) else repr(value)


def _decode(text: bytes) -> _Stored:
    """DataLossError where it is not what `save` writes."""
    try:
        record = json.loads(text)
        version = record["version"]
        if version != VERSION:
            raise DataLossError(f"its version is {version!r}, this program knows {VERSION}")
        best = record["best"]
        return _Stored(
            None if best is None else KeepBest(**best),
            _names(record["pins"]),
            _names(record["set_aside"]),
            {_name(name): check_metrics(values) for name, values in record["metrics"].items()},
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, DataLossError):
            raise
        raise DataLossError(f"it is no retention file: {type(error).__name__}: {error}") from error


def _names(names: Any) -> list[str]:
    if not isinstance(names, list):
        raise DataLossError(f"a {type(names).__name__} stands where a list of names should")
    return [_name(name) for name in names]


def _name(name: Any) -> str:
    """`name`, which leads to nothing outside of the directory; a file must not have others deleted."""
    if (
        not isinstance(name, str)
        or not name
        or "\0" in name
        or is_url(name)
        or os.path.isabs(name)
        or os.path.normpath(name) != name
        or name.split("/")[0] == ".."
    ):
        raise DataLossError(f"{name!r} is no name of a checkpoint in its directory")
    return name
