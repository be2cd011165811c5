"""Locks between programs (flock): on files being written, and on a directory while names in it change.

A lock is released when its process ends for any reason. Not every file system has locks, and some (FUSE, BeeGFS, GPFS,
Lustre, depending on how they are mounted) have locks that only programs on the same host see. So a program that gets a
lock cannot conclude that no other program is using the directory; `lock_domain` identifies the programs that see each
other's locks.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

# Longest wait for another program that is changing names in a directory, which takes milliseconds. A program that was
# stopped while doing so must not block all others: they continue as if the file system had no locks.
PATIENCE: Final = 10.0
_LONGEST_PAUSE: Final = 0.02
_HELD_ELSEWHERE: Final = (errno.EWOULDBLOCK, errno.EACCES)  # the latter if flock is implemented with fcntl's locks
# Directories locked by a thread of this process: (thread, device, inode).
_HELD: Final[set[tuple[int, int, int]]] = set()


def lock_file(descriptor: int, patience: float = 0.0) -> bool | None:
    """Lock an open file; return whether this succeeded within `patience` seconds.

    Returns None if the file system has no locks. Polls instead of waiting in a system call: signal handlers can run
    meanwhile, and a stopped program that holds the lock cannot block this one.
    """
    until, pause = time.monotonic() + patience, 0.0005
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in _HELD_ELSEWHERE:
                return None
        if time.monotonic() >= until:
            return False
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def open_to_lock(path: str) -> int:
    """Open `path` so that it can be locked, and return the descriptor. Changes nothing."""
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(path, os.O_RDWR | flags)  # NFS locks only files that are open for writing
    except (PermissionError, IsADirectoryError):
        return os.open(path, os.O_RDONLY | flags)


@contextlib.contextmanager
def locked_directory(directory: str, patience: float = PATIENCE) -> Iterator[bool]:
    """Lock `directory` during the `with` block; yield whether it is locked.

    It is not locked if the file system has no locks for directories, if another program or thread keeps it locked for
    `patience` seconds, or if this thread has locked it already: a signal handler that saves while its own thread is
    publishing a save must not wait for that thread.
    """
    try:
        descriptor = os.open(directory or os.curdir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        descriptor = -1
    try:
        holder = None
        if descriptor >= 0:
            status = os.fstat(descriptor)
            holder = (threading.get_ident(), status.st_dev, status.st_ino)
        if holder is None or holder in _HELD:
            yield False
            return
        if not lock_file(descriptor, patience):
            yield False
            return
        _HELD.add(holder)
        try:
            yield True
        finally:
            _HELD.discard(holder)
            # A child process forked in the meantime shares the open directory and would keep the lock.
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def lock_domain(directory: str) -> int:
    """Return a 32-bit number that identifies the host, its current boot, and the mount of `directory`.

    Programs that get the same number see each other's locks in `directory`. Two mounts of one network file system on
    the same host have different numbers: locks on a FUSE file system are often not visible outside the mount.
    """
    try:
        device = os.stat(directory or os.curdir).st_dev
    except OSError:
        device = 0
    return _hash_of(device)


@functools.lru_cache(maxsize=64)
def _hash_of(device: int) -> int:
    return int.from_bytes(hashlib.blake2s(f"{_boot()} {device}".encode(), digest_size=4).digest())


@functools.cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        # Not Linux. After a reboot the number stays the same, which is safe: no earlier program is still running.
        return f"{socket.gethostname()} {uuid.getnode()}"
