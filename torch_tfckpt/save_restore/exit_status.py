"""The exit status of a program whose last save failed and that has not asked for the result.

Schedulers (SLURM, Kubernetes, Airflow) rely on the exit status, so it must not be 0. An exception in an atexit function
is only printed, and does not change the status. But Python exits with status 120 if it cannot flush the standard
streams after all atexit functions have run. `fail_at_exit` makes this flush fail, so that every other atexit function
still runs and all output is written.

A `multiprocessing` child that was forked runs finalizers instead of its parent's atexit functions. Up to Python 3.12, a
finalizer that raises SystemExit sets the child's status. Since then finalizers run in an atexit function, after which
the child ends with the status that it had before; so the last finalizer ends the child itself.

Not covered: `os._exit` and signals, after which no Python code runs.
"""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import parent_process, util
from typing import Final, NoReturn

STATUS: Final = 120
_AFTER_ALL_OTHERS: Final = -1_000_000  # priority of the finalizer

_watched: list[int] = []  # id of the process that has a finalizer


def fail_at_exit() -> None:
    """Make the program end with status 120. To be called in an atexit function.

    After an uncaught exception the status stays 1. After `sys.exit(n)` it also becomes 120, since n is not known here.
    """
    if getattr(sys, "last_type", None) is None:  # set if the interpreter has printed an uncaught exception
        sys.stderr = _FailsAtTheEnd(sys.stderr)


class _FailsAtTheEnd:
    """Stream wrapper: the interpreter's own final flush fails; everything else goes to the stream."""

    closed = False  # otherwise the interpreter would not flush it

    def __init__(self, stream: object) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def flush(self) -> None:
        if self._stream is not None and not getattr(self._stream, "closed", False):
            self._stream.flush()  # type: ignore[attr-defined]
        try:
            sys._getframe(1)
        except ValueError:  # no Python function has called this
            raise OSError("a save failed, and its result was never requested") from None


def finalizers_follow() -> bool:
    """Return whether the atexit function that calls this runs in a forked child, before the child's finalizers.

    The interpreter calls atexit functions from no Python function; a forked child calls them from `multiprocessing`.
    """
    try:
        sys._getframe(2)
    except ValueError:
        return False
    return parent_process() is not None


def at_end_of_child(report: Callable[[], bool]) -> None:
    """In a `multiprocessing` child, call `report` at exit; if it returns True, exit with status 120.

    A child that is already failing keeps its status; not since Python 3.13, where its status is not known here. Does
    nothing in other processes.
    """
    if parent_process() is None or _watched == [os.getpid()]:
        return
    _watched[:] = [os.getpid()]

    def finalize() -> None:
        failing = sys.exc_info()[1]
        if report() and (failing is None or (isinstance(failing, SystemExit) and not failing.code)):
            _exit()

    util.Finalize(None, finalize, exitpriority=_AFTER_ALL_OTHERS)


def _exit() -> NoReturn:
    if sys.version_info >= (3, 13):
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(STATUS)
    # `multiprocessing` prints and drops an Exception raised by a finalizer, but not a SystemExit.
    raise SystemExit(STATUS)
