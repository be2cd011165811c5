"""Interleaved rounds, and the ratio of two contenders within a round.

Machines are shared and clocks drift, so absolute seconds mean little. All contenders run in turn, A B C A B C, and two
of them are compared by the median, over the rounds, of the ratio within a round.
"""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class WrongResult(Exception):
    """A contender produced a wrong result; its time does not count."""


class Contender(NamedTuple):
    """One way to do the work."""

    name: str
    # Runs once and returns the seconds of the work alone; raises WrongResult if the result is wrong.
    measure: Callable[[], float]
    bytes_moved: int = 0  # for GB/s; 0 if not applicable


class Comparison(NamedTuple):
    """Two contenders by name, and the target for the ratio of their speeds."""

    ours: str
    peer: str
    at_least: float | None = None  # None: for information only
    floor: str | None = None  # contender that does the least that this work needs: no ratio can be above its own
    aim: float | None = None  # what we would like to reach, above the target


class Spread(NamedTuple):
    """Median and range of the ratios of all rounds."""

    median: float
    lowest: float
    highest: float


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Return the seconds that `work` took, and its result.

    The previous contender must not affect the time: its garbage is collected, and malloc's free memory is returned to
    the system, so that each contender allocates new memory, like a program that loads once.
    """
    gc.collect()
    give_back_memory()
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


def give_back_memory() -> None:
    """Return malloc's free pages to the system; do nothing without glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def run_interleaved(contenders: Sequence[Contender], rounds: int, warmups: int = 1) -> dict[str, list[float]]:
    """Return the seconds of every round by name. Each round runs every contender once, in order."""
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for number in range(warmups + rounds):
        for contender in contenders:
            taken = contender.measure()
            if number >= warmups:
                seconds[contender.name].append(taken)
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], ours: str, peer: str) -> Spread:
    """Return the ratio of times, peer to ours, within each round; above 1 ours is faster."""
    return spread([theirs / mine for theirs, mine in zip(seconds[peer], seconds[ours], strict=True)])


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the range of measured values."""
    return Spread(statistics.median(values), min(values), max(values))
