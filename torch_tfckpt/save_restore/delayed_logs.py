"""Log lines of saves in the background, which are written after the save has ended.

A signal handler may interrupt a call of `logging` in the main thread, which then holds locks of `logging`, and wait for
a save. The save must not wait for these locks.
"""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

_PACKAGE: Final = __name__.partition(".")[0]

_delayed: dict[int, list[logging.LogRecord]] = {}  # thread -> its records


class _Delay(logging.Filter):
    """Keeps the records of threads that delay theirs."""

    def filter(self, record: logging.LogRecord) -> bool:
        kept = _delayed.get(threading.get_ident())
        if kept is None:
            return True
        kept.append(record)
        return False


_DELAY: Final = _Delay()


def prepare_delay() -> None:
    """Let `delayed_logs` affect this package's loggers. A filter of a logger does not apply to those below it."""
    for logger in list(logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger) and logger.name.startswith(f"{_PACKAGE}."):
            logger.addFilter(_DELAY)  # once


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
    """Write the messages that were collected."""
    for record in records:
        logging.getLogger(record.name).handle(record)
