"""Delay the log lines of a save in the background until the save has ended.

A signal handler may wait for a save after interrupting the main thread inside a `logging` call. The main thread then
still holds locks of `logging`, so the save must not wait for these locks.
"""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

_PACKAGE: Final = __name__.partition(".")[0]

_delayed: dict[int, list[logging.LogRecord]] = {}  # thread -> its records


class _Delay(logging.Filter):
    """Filter that holds back the log records of threads inside `delayed_logs`."""

    def filter(self, record: logging.LogRecord) -> bool:
        kept = _delayed.get(threading.get_ident())
        if kept is None:
            return True
        kept.append(record)
        return False


_DELAY: Final = _Delay()


def prepare_delay() -> None:
    """Let `delayed_logs` affect all loggers of this package.

    The filter is added to every one of them, because a logger's filter does not apply to its descendants.
    """
    for logger in list(logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger) and logger.name.startswith(f"{_PACKAGE}."):
            logger.addFilter(_DELAY)  # does nothing if called again


@contextmanager
def delayed_logs() -> Iterator[list[logging.LogRecord]]:
    """Collect what this package logs in this thread, for `write_logs`."""
    thread = threading.get_ident()
    records: list[logging.LogRecord] = []
    _delayed[thread] = records
    try:
        yield records
    finally:
        del _delayed[thread]


def write_logs(records: Sequence[logging.LogRecord]) -> None:
    """Write the collected messages."""
    for record in records:
        logging.getLogger(record.name).handle(record)
