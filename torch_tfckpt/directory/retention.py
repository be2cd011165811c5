"""Decide which checkpoints to delete: TensorFlow's rules of age, and what pins and metrics protect.

Nothing here knows a file or a clock. Paths are names that are compared, times are handed in, and what comes back says
what the caller should do.

    history = SaverHistory(next_kept=start + keep_seconds)
    history = record(history, "m-7", now, max_to_keep=5)
    history, candidate = next_deletion(history, keep_seconds)      # at most one a save, as TensorFlow does

A checkpoint that expires by those rules is protected while it is pinned or among the best (`partition`), and deleted
when it is neither any more.

Source: Saver in tensorflow/python/training/saver.py, CheckpointManager in
tensorflow/python/checkpoint/checkpoint_management.py.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, get_args

from torch_tfckpt.errors import InvalidArgumentError

SECONDS_PER_HOUR: Final = 3600.0

Mode = Literal["min", "max"]
Metrics = Mapping[str, float]


class Saved(NamedTuple):
    """One checkpoint, and when it was saved."""

    path: str
    time: float  # seconds since the epoch; inf: of unknown age, which the rule of hours always keeps


@dataclass(frozen=True, slots=True)
class SaverHistory:
    """What a Saver remembers between saves."""

    next_kept: float  # the next checkpoint that leaves `last` and was saved after this time stays for good
    last: tuple[Saved, ...] = ()  # oldest first
    expired: tuple[Saved, ...] = ()  # left `last`, not judged yet; oldest first


def record(history: SaverHistory, path: str, now: float, max_to_keep: int | None) -> SaverHistory:
    """The history after `path` was saved at `now`.

    A path that is saved again becomes the newest, and does not wait for its deletion any longer. With `max_to_keep`
    None or 0 nothing is remembered; below 0 the new checkpoint itself leaves at once.
    """
    if not max_to_keep:
        return history
    last = (*_without(history.last, path), Saved(path, now))
    expired = _without(history.expired, path)
    if len(last) > max_to_keep:
        last, expired = last[1:], (*expired, last[0])
    return SaverHistory(history.next_kept, last, expired)


def next_deletion(history: SaverHistory, keep_seconds: float) -> tuple[SaverHistory, str | None]:
    """Judges the oldest expired checkpoint: the history without it, and its path where it may go.

    None where nothing waits, or where it stays for good: it was saved after `next_kept`, which moves on by
    `keep_seconds`, once, wherever the clock stands.
    """
    if not history.expired:
        return history, None
    candidate, *rest = history.expired
    if candidate.time > history.next_kept:
        return SaverHistory(history.next_kept + keep_seconds, history.last, tuple(rest)), None
    return SaverHistory(history.next_kept, history.last, tuple(rest)), candidate.path


class Swept(NamedTuple):
    """What a CheckpointManager remembers after a sweep, and what may go."""

    tracked: tuple[Saved, ...]  # oldest first
    last_preserved: float  # when the newest checkpoint that stays for good was saved
    expired: tuple[str, ...]  # oldest first


def sweep(
    tracked: Sequence[Saved], last_preserved: float, max_to_keep: int | None, keep_seconds: float | None
) -> Swept:
    """Expire the oldest of `tracked` until `max_to_keep` are left; None keeps all.

    One that was saved `keep_seconds` or more after the last one kept for good is kept for good, too, and forgotten.
    """
    excess = len(tracked) - max_to_keep if max_to_keep else 0
    expired: list[str] = []
    for path, time in tracked[: max(0, excess)]:
        # Written as TensorFlow writes it: the rounding of another form would decide equal times differently.
        if keep_seconds and time - keep_seconds >= last_preserved:
            last_preserved = time
        else:
            expired.append(path)
    return Swept(tuple(tracked[max(0, excess) :]), last_preserved, tuple(expired))


def saved_again(tracked: Sequence[Saved], path: str, now: float) -> tuple[Saved, ...]:
    """`tracked` with `path` as the newest."""
    return (*_without(tracked, path), Saved(path, now))


def _without(checkpoints: Sequence[Saved], path: str) -> tuple[Saved, ...]:
    return tuple(saved for saved in checkpoints if saved.path != path)


@dataclass(frozen=True, slots=True)
class KeepBest:
    """Keep the `k` best checkpoints by one metric, besides the newest ones.

    Args:
        metric: Its name among the metrics given to `save`.
        mode: Whether the lowest ("min") or the highest ("max") values are best.
        k: How many.

    Raises:
        InvalidArgumentError: one of them cannot be meant.
    """

    metric: str
    mode: Mode
    k: int

    def __post_init__(self) -> None:
        if not isinstance(self.metric, str) or not self.metric:
            raise InvalidArgumentError(f"KeepBest: metric {self.metric!r} is no name. Name one that `save` is given")
        if self.mode not in get_args(Mode):
            raise InvalidArgumentError(f'KeepBest: mode {self.mode!r}: say "min" or "max"')
        if not isinstance(self.k, int) or isinstance(self.k, bool) or self.k < 1:
            raise InvalidArgumentError(f"KeepBest: k {self.k!r}: keep a positive number, or leave keep_best out")


def best_first(known: Sequence[str], metrics: Mapping[str, Metrics], rule: KeepBest) -> list[str]:
    """The `known` checkpoints (oldest first) that have the metric, the best one first; the newer of two equal ones.

    A value that is no number (NaN) is as good as none.
    """
    ranked: list[tuple[float, int, str]] = []
    for age, path in enumerate(reversed(known)):
        value = metrics.get(path, {}).get(rule.metric, math.nan)
        if not math.isnan(value):
            ranked.append((value if rule.mode == "min" else -value, age, path))
    return [path for _, _, path in sorted(ranked)]


def protected(
    known: Sequence[str], pins: Collection[str], metrics: Mapping[str, Metrics], rule: KeepBest | None
) -> frozenset[str]:
    """Which of the `known` checkpoints (oldest first) are pinned, or among the best."""
    best = best_first(known, metrics, rule)[: rule.k] if rule is not None else []
    return frozenset(best).union(path for path in known if path in pins)


class ExpiredCheckpoints(NamedTuple):
    """What becomes of the checkpoints that are not kept for being new any more. Oldest first."""

    protected: tuple[str, ...]
    to_delete: tuple[str, ...]


def partition(
    newest: Sequence[str],
    expired: Sequence[str],
    protected_before: Sequence[str],
    pins: Collection[str],
    metrics: Mapping[str, Metrics],
    rule: KeepBest | None,
) -> ExpiredCheckpoints:
    """Split expired checkpoints into those still protected and those to delete.

    Args:
        newest: The checkpoints that are kept anyway, oldest first. They count when the best are chosen.
        expired: The checkpoints that have become too old.
        protected_before: The checkpoints that became too old earlier and were protected then.
    """
    kept = set(newest)
    outside = [path for path in dict.fromkeys((*protected_before, *expired)) if path not in kept]
    shielded = protected([*outside, *newest], pins, metrics, rule)
    return ExpiredCheckpoints(
        tuple(path for path in outside if path in shielded), tuple(path for path in outside if path not in shielded)
    )
