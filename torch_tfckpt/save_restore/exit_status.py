"""The exit status of a program whose last save failed and that has not asked for the result.

Schedulers (SLURM, Kubernetes, Airflow) rely on the exit status, so it must not be 0. An exception of an atexit function
is only printed. What Python offers is its own status for an error while it shuts down: 120, if the standard streams
cannot be flushed after all atexit functions have run. `fail_at_exit` makes this happen, so that every other atexit
function runs and all output is written.

A child of `multiprocessing` runs no atexit functions, but finalizers; one that raises SystemExit sets the status.

Not covered: `os._exit` and signals, after which no Python code runs.
"""

import os
import sys
from collections.abc import Callable
from multiprocessing import parent_process, util
from typing import Final, NoReturn

STATUS: Final = 120
_AFTER_ALL_OTHERS: Final = -1_000_000  # priority of the finalizer

_watched: list[int] = []  # id of the process that has a finalizer


def fail_at_exit() -> None:
    """Let the program end with status 120. Call it in an atexit function.

    After an uncaught exception the status stays 1. The status of `sys.exit(n)` is not known here: it becomes 120.
    """
    if getattr(sys, "last_type", None) is None:  # set if the interpreter has printed an uncaught exception
        sys.stderr = _FailsAtTheEnd(sys.stderr)


class _FailsAtTheEnd:
    """A stream whose last flush, by the interpreter itself, fails. Everything else is passed on."""

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


def at_end_of_child(report: Callable[[], bool]) -> None:
    """In a child of `multiprocessing`, call `report` at its end; if it returns True, the child ends with status 120.

    A child that fails already keeps its status. Does nothing in other processes.
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
    # `multiprocessing` prints and drops an Exception of a finalizer, but not a SystemExit.
    raise SystemExit(STATUS)
