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
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple, SupportsFloat, get_args

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


def taken_over(history: SaverHistory, earlier: Sequence[Saved], max_to_keep: int) -> SaverHistory:
    """The history with the checkpoints of an earlier run, oldest first, before its own.

    The oldest expire at once until `max_to_keep` are left: the earlier run may have kept more.
    """
    own = {saved.path for saved in (*history.last, *history.expired)}
    last = (*(saved for saved in earlier if saved.path not in own), *history.last)
    excess = max(0, len(last) - max_to_keep)
    return SaverHistory(history.next_kept, last[excess:], (*history.expired, *last[:excess]))


def continue_schedule(
    history: SaverHistory, earlier: Sequence[Saved], last_preserved: float, keep_seconds: float
) -> tuple[SaverHistory, list[Saved]]:
    """Continue the schedule of an earlier run, which kept a checkpoint for good at `last_preserved` or began then.

    Args:
        history: That of a run that has just begun.
        earlier: The checkpoints taken over from the earlier run, oldest first.

    Returns:
        The history, and `earlier` with other times: infinite if a checkpoint is to stay for good, 0 if not.

    If the time for a checkpoint came while nothing ran, the first one of the new run stays, and no more than that.
    """
    start = history.next_kept - keep_seconds
    due = last_preserved + keep_seconds
    decided: list[Saved] = []
    for path, time in earlier:
        stays = time > due
        decided.append(Saved(path, math.inf if stays else 0.0))
        due += keep_seconds if stays else 0.0
    due = min(max(due, start), start + keep_seconds)
    # `next_deletion` moves the time on when each of those that stay leaves the list.
    staying = sum(math.isinf(saved.time) for saved in decided)
    return replace(history, next_kept=due - staying * keep_seconds), decided


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


def check_keep_best(keep_best: object) -> None:
    """InvalidArgumentError if `keep_best` is neither a KeepBest nor None."""
    if keep_best is not None and not isinstance(keep_best, KeepBest):
        raise InvalidArgumentError(
            f'keep_best is a {type(keep_best).__name__}, not a KeepBest. Pass keep_best=KeepBest("loss", "min", k=2)'
        )


def check_max_to_keep(max_to_keep: object, *, zero_keeps_all: bool) -> None:
    """InvalidArgumentError if `max_to_keep` is not None and not a number of checkpoints.

    Args:
        zero_keeps_all: Whether 0 is allowed.
    """
    if max_to_keep is None:
        return
    is_number = hasattr(max_to_keep, "__index__") and not isinstance(max_to_keep, bool)
    if not is_number or max_to_keep < (0 if zero_keeps_all else 1):  # type: ignore[operator]
        wanted, keeps_all = ("non-negative", "None and 0 keep") if zero_keeps_all else ("positive", "None keeps")
        raise InvalidArgumentError(
            f"Expected a {wanted} integer or `None` for `max_to_keep`, got {max_to_keep!r}. {keeps_all} all checkpoints"
        )


def check_keep_hours(hours: object) -> None:
    """InvalidArgumentError if `keep_checkpoint_every_n_hours` is not a number of hours."""
    if not isinstance(hours, SupportsFloat) or isinstance(hours, bool) or not float(hours) >= 0:  # NaN is not
        raise InvalidArgumentError(f"keep_checkpoint_every_n_hours={hours!r}: pass a number of hours, 0 or more")


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
