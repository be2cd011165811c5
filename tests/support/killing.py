"""Processes that are killed at random moments."""

import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path


@contextmanager
def folder_in_memory(otherwise: Path) -> Iterator[Path]:
    """Yield a directory in memory, if available: many saves per second. For a killed process every disk is durable."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield otherwise
        return
    folder = Path(tempfile.mkdtemp(prefix="tfckpt-", dir=memory))
    yield folder
    shutil.rmtree(folder)


def let_run(process: BaseProcess, seconds: float) -> None:
    """Wait until `process` has used this much processor time; on a busy machine wall time is meaningless."""
    if sys.platform != "linux":
        process.join(seconds)
        return
    assert process.pid is not None
    until = processor_time(process.pid) + seconds
    while processor_time(process.pid) < until:
        process.join(0.001)


def processor_time(pid: int) -> float:
    """Return the processor seconds another process has used, over all threads; infinite once it has ended."""
    try:
        return time.clock_gettime((~pid << 3) | 2)  # the clock id that Linux's clock_getcpuclockid returns
    except OSError:
        return math.inf
