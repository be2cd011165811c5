"""Early writeback: the kernel starts to write a file to its disk before the whole file has been produced.

Otherwise it would start at fsync, and the save would take the time for producing the bytes plus the time of the disk.
"""

import ctypes
from collections.abc import Callable
from typing import Final

LEAST_BYTES: Final = 256 * 1024  # writes below this size are left to fsync

_SYNC_FILE_RANGE_WRITE: Final = 2  # start to write dirty pages; do not wait for them


def _sync_file_range() -> Callable[..., int] | None:
    """Return the function of Linux' C libraries; None on other systems."""
    try:
        found = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):
        return None
    found.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    found.restype = ctypes.c_int
    return found


_start: Final = _sync_file_range()


def start_writeback(descriptor: int, offset: int, size: int) -> None:
    """Make the kernel start to write a range of a file to its disk.

    This is a hint, and not a promise that anything is on the disk: fsync has to follow, and reports all errors of the
    disk. File systems without a disk ignore it, and so do systems without the function.
    """
    if _start is not None:
        _start(descriptor, offset, size, _SYNC_FILE_RANGE_WRITE)
