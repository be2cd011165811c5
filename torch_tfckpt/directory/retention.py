"""Decide which checkpoints to delete, by age as in TensorFlow, and by pins and metrics.

Nothing here accesses a file or a clock. Paths are only compared, times are arguments, and the caller acts on the
results.

    history = SaverHistory(next_kept=start + keep_seconds)
    history = record(history, "m-7", now, max_to_keep=5)
    history, candidate = next_deletion(history, keep_seconds)      # at most one per save, as in TensorFlow

A checkpoint that expires by those rules is protected while it is pinned or among the best (`partition`), and deleted
once it is neither.

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
    time: float  # seconds since the epoch; inf: unknown, and kept permanently when it expires


@dataclass(frozen=True, slots=True)
class SaverHistory:
    """State of a Saver's retention between saves."""

    next_kept: float  # the next checkpoint that leaves `last` and was saved after this time is kept permanently
    last: tuple[Saved, ...] = ()  # oldest first
    expired: tuple[Saved, ...] = ()  # have left `last`; whether to delete them is not decided yet; oldest first


def record(history: SaverHistory, path: str, now: float, max_to_keep: int | None) -> SaverHistory:
    """Return the history after `path` was saved at `now`.

    A path that is saved again becomes the newest, and is not deleted if it had expired. If `max_to_keep` is None or 0,
    nothing is remembered; if it is negative, the new checkpoint expires at once.
    """
    if not max_to_keep:
        return history
    last = (*_without(history.last, path), Saved(path, now))
    expired = _without(history.expired, path)
    if len(last) > max_to_keep:
        last, expired = last[1:], (*expired, last[0])
    return SaverHistory(history.next_kept, last, expired)


def next_deletion(history: SaverHistory, keep_seconds: float) -> tuple[SaverHistory, str | None]:
    """Decide whether the oldest expired checkpoint may be deleted.

    Returns:
        The history without this checkpoint, and its path if it may be deleted. Instead of the path, None if no
        checkpoint has expired, or if this one is kept permanently because it was saved after `next_kept`, which is then
        increased once by `keep_seconds`.
    """
    if not history.expired:
        return history, None
    candidate, *rest = history.expired
    if candidate.time > history.next_kept:
        return SaverHistory(history.next_kept + keep_seconds, history.last, tuple(rest)), None
    return SaverHistory(history.next_kept, history.last, tuple(rest)), candidate.path


def taken_over(history: SaverHistory, earlier: Sequence[Saved], max_to_keep: int) -> SaverHistory:
    """Return the history with the checkpoints of an earlier run (oldest first) inserted before its own.

    The oldest expire at once until `max_to_keep` are left: the earlier run may have kept more.
    """
    own = {saved.path for saved in (*history.last, *history.expired)}
    last = (*(saved for saved in earlier if saved.path not in own), *history.last)
    excess = max(0, len(last) - max_to_keep)
    return SaverHistory(history.next_kept, last[excess:], (*history.expired, *last[:excess]))


def continue_schedule(
    history: SaverHistory, earlier: Sequence[Saved], last_preserved: float, keep_seconds: float
) -> tuple[SaverHistory, list[Saved]]:
    """Continue the schedule by which an earlier run kept checkpoints permanently.

    Args:
        history: The history of a run that has just begun.
        earlier: The checkpoints adopted from the earlier run, oldest first.
        last_preserved: When the earlier run began, or when it saved the last checkpoint that it kept permanently.

    Returns:
        The history, and `earlier` with new times: infinity if a checkpoint is to be kept permanently, 0 if not.

    If one or more checkpoints became due while no run was active, only the first checkpoint of the new run is kept for
    them.
    """
    start = history.next_kept - keep_seconds
    due = last_preserved + keep_seconds
    decided: list[Saved] = []
    for path, time in earlier:
        stays = time > due
        decided.append(Saved(path, math.inf if stays else 0.0))
        due += keep_seconds if stays else 0.0
    due = min(max(due, start), start + keep_seconds)
    # `next_deletion` increases `next_kept` again for each checkpoint to be kept, when it leaves the list.
    staying = sum(math.isinf(saved.time) for saved in decided)
    return replace(history, next_kept=due - staying * keep_seconds), decided


class Swept(NamedTuple):
    """State of a CheckpointManager's retention after a sweep, and what may be deleted."""

    tracked: tuple[Saved, ...]  # oldest first
    last_preserved: float  # when the newest checkpoint that is kept permanently was saved
    expired: tuple[str, ...]  # oldest first


def sweep(
    tracked: Sequence[Saved], last_preserved: float, max_to_keep: int | None, keep_seconds: float | None
) -> Swept:
    """Expire the oldest of `tracked` until `max_to_keep` are left; None keeps all.

    An expired checkpoint that was saved at least `keep_seconds` after the last one that is kept permanently is also
    kept permanently, and no longer tracked.
    """
    excess = len(tracked) - max_to_keep if max_to_keep else 0
    expired: list[str] = []
    for path, time in tracked[: max(0, excess)]:
        # The same expression as in TensorFlow: a different one would round differently, and might decide differently
        # when the times are equal.
        if keep_seconds and time - keep_seconds >= last_preserved:
            last_preserved = time
        else:
            expired.append(path)
    return Swept(tuple(tracked[max(0, excess) :]), last_preserved, tuple(expired))


def saved_again(tracked: Sequence[Saved], path: str, now: float) -> tuple[Saved, ...]:
    """Return `tracked` with `path` as the newest."""
    return (*_without(tracked, path), Saved(path, now))


def _without(checkpoints: Sequence[Saved], path: str) -> tuple[Saved, ...]:
    return tuple(saved for saved in checkpoints if saved.path != path)


@dataclass(frozen=True, slots=True)
class KeepBest:
    """Keep the `k` best checkpoints by one metric, in addition to the newest ones.

    Args:
        metric: Name of the metric, as passed to `save`.
        mode: Whether the lowest ("min") or the highest ("max") values are best.
        k: How many checkpoints to keep.

    Raises:
        InvalidArgumentError: an argument is invalid.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> best = tfckpt.KeepBest("loss", "min", k=1)
        >>> saver = tfckpt.Saver({"w": torch.ones(2)}, max_to_keep=1, keep_best=best)
        >>> for step, loss in enumerate([0.5, 0.1, 0.9, 0.3]):
        ...     path = saver.save("run/m", step, metrics={"loss": loss})
        >>> saver.best_checkpoint, saver.last_checkpoints
        ('run/m-1', ['run/m-3'])
    """

    metric: str
    mode: Mode
    k: int

    def __post_init__(self) -> None:
        if not isinstance(self.metric, str) or not self.metric:
            raise InvalidArgumentError(
                f"KeepBest: metric={self.metric!r}: pass the name of a metric that you pass to `save`"
            )
        if self.mode not in get_args(Mode):
            raise InvalidArgumentError(f'KeepBest: mode={self.mode!r}: pass "min" or "max"')
        if not isinstance(self.k, int) or isinstance(self.k, bool) or self.k < 1:
            raise InvalidArgumentError(
                f"KeepBest: k={self.k!r}: pass a positive number of checkpoints, or omit keep_best"
            )


def check_keep_best(keep_best: object) -> None:
    """Raise InvalidArgumentError if `keep_best` is neither a KeepBest nor None."""
    if keep_best is not None and not isinstance(keep_best, KeepBest):
        raise InvalidArgumentError(
            f'keep_best is a {type(keep_best).__name__}, not a KeepBest. Pass keep_best=KeepBest("loss", "min", k=2)'
        )


def check_max_to_keep(max_to_keep: object, *, zero_keeps_all: bool) -> None:
    """Raise InvalidArgumentError if `max_to_keep` is neither None nor a valid number of checkpoints.

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
    """Raise InvalidArgumentError if `keep_checkpoint_every_n_hours` is not a number of hours."""
    if not isinstance(hours, SupportsFloat) or isinstance(hours, bool) or not float(hours) >= 0:  # NaN: False
        raise InvalidArgumentError(f"keep_checkpoint_every_n_hours={hours!r}: pass a number of hours, 0 or more")


def best_first(known: Sequence[str], metrics: Mapping[str, Metrics], rule: KeepBest) -> list[str]:
    """Return the `known` checkpoints (oldest first) that have the metric, best first.

    Among equal values, the newest comes first. Checkpoints whose value is NaN are ignored.
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
    """Return which of the `known` checkpoints (oldest first) are pinned or among the best."""
    best = best_first(known, metrics, rule)[: rule.k] if rule is not None else []
    return frozenset(best).union(path for path in known if path in pins)


class ExpiredCheckpoints(NamedTuple):
    """Checkpoints that are no longer among the newest ones to keep, oldest first."""

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
        newest: The newest checkpoints, which are kept for that reason, oldest first. They may be among the best.
        expired: The checkpoints that have become too old.
        protected_before: The checkpoints that expired before and have been protected so far.
    """
    kept = set(newest)
    outside = [path for path in dict.fromkeys((*protected_before, *expired)) if path not in kept]
    shielded = protected([*outside, *newest], pins, metrics, rule)
    return ExpiredCheckpoints(
        tuple(path for path in outside if path in shielded), tuple(path for path in outside if path not in shielded)
    )
