"""Which checkpoints may go: what tf.train.Saver and tf.train.CheckpointManager delete, and what pins and metrics keep.

Nothing here knows a file or a clock. Paths are names that are compared, times are handed in, and what comes back says
what the caller should do.

    history = SaverHistory(next_kept=start + keep_seconds)
    history = record(history, "m-7", now, max_to_keep=5)
    history, candidate = next_deletion(history, keep_seconds)      # at most one a save, as TensorFlow does

What may go by those rules is set aside instead while it is pinned or among the best (`settle`), and goes when it is
neither any more.

Source: Saver in tensorflow/python/training/saver.py, CheckpointManager in
tensorflow/python/checkpoint/checkpoint_management.py; spec: SAVER 4 "Retention algorithm" and 5.
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
    evicted: tuple[Saved, ...] = ()  # left `last`, not judged yet; oldest first


def record(history: SaverHistory, path: str, now: float, max_to_keep: int | None) -> SaverHistory:
    """The history after `path` was saved at `now`.

    A path that is saved again becomes the newest, and does not wait for its deletion any longer. With `max_to_keep`
    None or 0 nothing is remembered; below 0 the new checkpoint itself leaves at once.
    """
    if not max_to_keep:
        return history
    last = (*_without(history.last, path), Saved(path, now))
    evicted = _without(history.evicted, path)
    if len(last) > max_to_keep:
        last, evicted = last[1:], (*evicted, last[0])
    return SaverHistory(history.next_kept, last, evicted)


def next_deletion(history: SaverHistory, keep_seconds: float) -> tuple[SaverHistory, str | None]:
    """Judges the oldest evicted checkpoint: the history without it, and its path where it may go.

    None where nothing waits, or where it stays for good: it was saved after `next_kept`, which moves on by
    `keep_seconds`, once, wherever the clock stands.
    """
    if not history.evicted:
        return history, None
    candidate, *rest = history.evicted
    if candidate.time > history.next_kept:
        return SaverHistory(history.next_kept + keep_seconds, history.last, tuple(rest)), None
    return SaverHistory(history.next_kept, history.last, tuple(rest)), candidate.path


class Swept(NamedTuple):
    """What a CheckpointManager remembers after a sweep, and what may go."""

    tracked: tuple[Saved, ...]  # oldest first
    last_preserved: float  # when the newest checkpoint that stays for good was saved
    evicted: tuple[str, ...]  # oldest first


def sweep(
    tracked: Sequence[Saved], last_preserved: float, max_to_keep: int | None, keep_seconds: float | None
) -> Swept:
    """Lets the oldest of `tracked` go until `max_to_keep` are left; None keeps all.

    One that was saved `keep_seconds` or more after the last one that stayed for good stays so, too, and is forgotten.
    """
    excess = len(tracked) - max_to_keep if max_to_keep else 0
    evicted: list[str] = []
    for path, time in tracked[: max(0, excess)]:
        # Written as TensorFlow writes it: the rounding of another form would decide equal times differently.
        if keep_seconds and time - keep_seconds >= last_preserved:
            last_preserved = time
        else:
            evicted.append(path)
    return Swept(tuple(tracked[max(0, excess) :]), last_preserved, tuple(evicted))


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


class Settled(NamedTuple):
    """What becomes of the checkpoints that no newest-so-many rule holds any more."""

    set_aside: tuple[str, ...]  # protected; oldest first
    doomed: tuple[str, ...]  # to be deleted; oldest first


def settle(
    window: Sequence[str],
    evicted: Sequence[str],
    set_aside: Sequence[str],
    pins: Collection[str],
    metrics: Mapping[str, Metrics],
    rule: KeepBest | None,
) -> Settled:
    """Parts what left the window, now or before, into what stays set aside and what goes.

    Args:
        window: The checkpoints that stay anyhow, oldest first. They count when the best are chosen.
        evicted: What may go, now that something was saved.
        set_aside: What was protected when it could have gone.
    """
    kept = set(window)
    outside = [path for path in dict.fromkeys((*set_aside, *evicted)) if path not in kept]
    shielded = protected([*outside, *window], pins, metrics, rule)
    return Settled(
        tuple(path for path in outside if path in shielded), tuple(path for path in outside if path not in shielded)
    )
