"""Local files."""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Self

from torch_tfckpt.errors import DataLossError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from torch_tfckpt.storage.locks import PATIENCE, lock_domain, lock_file, locked_directory, open_to_lock
from torch_tfckpt.storage.protocol import Buffer
from torch_tfckpt.storage.refusals import NOTHING_THERE
from torch_tfckpt.storage.writeback import LEAST_BYTES, start_writeback
from torch_tfckpt.text import printable


class LocalStorage:
    """Storage of local files."""

    renames = True

    def open(self, path: str) -> "LocalFile":
        return LocalFile(path)

    def create(self, path: str) -> "LocalOutput":
        return LocalOutput(path)

    def in_use(self, path: str) -> bool:
        try:
            descriptor = open_to_lock(path)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        try:
            return not lock_file(descriptor)
        finally:
            os.close(descriptor)

    def detects_use(self, path: str) -> bool:
        try:
            descriptor = open_to_lock(path)
        except OSError:
            return False
        try:
            return lock_file(descriptor) is not None
        finally:
            os.close(descriptor)

    lock_domain = staticmethod(lock_domain)
    exclusive = staticmethod(locked_directory)

    def exists(self, path: str) -> bool:
        # Not os.path.lexists, which returns False after a system error: the caller might then overwrite the file.
        try:
            os.lstat(path)
        except ValueError:  # a file name cannot contain a null character
            return False
        except OSError as error:
            if error.errno in NOTHING_THERE:
                return False
            raise
        return True

    def modified(self, path: str) -> float:
        return os.stat(path).st_mtime

    def list(self, directory: str) -> list[str]:
        try:
            return sorted(os.listdir(directory or os.curdir))
        except OSError as error:
            if error.errno in NOTHING_THERE:
                return []
            raise _refused(directory, error) from error

    def is_directory(self, path: str) -> bool:
        try:
            return stat.S_ISDIR(os.stat(path).st_mode)
        except ValueError:
            return False
        except OSError as error:
            if error.errno in NOTHING_THERE:
                return False
            raise

    def make_directory(self, path: str) -> None:
        if path:
            try:
                os.mkdir(path)
            except FileExistsError:
                if not os.path.isdir(path):
                    raise

    def replace(self, source: str, target: str) -> None:
        os.replace(source, target)

    def link(self, source: str, target: str) -> None:
        # Resolve first: link(2) on a symbolic link would link the symbolic link itself.
        os.link(os.path.realpath(source), target)

    def remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def remove_unused(self, path: str) -> bool:
        try:
            descriptor = open_to_lock(path)
        except OSError:
            return False
        try:
            if not lock_file(descriptor):
                return False
            # Remove it while locked: a program that has just created it waits for the lock, then creates a new file.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
                return True
            return False
        finally:
            os.close(descriptor)

    def remove_directory(self, path: str) -> None:
        with contextlib.suppress(OSError):
            os.rmdir(path)

    def sync_directory(self, path: str) -> None:
        descriptor = os.open(path or os.curdir, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            # Some network file systems cannot sync a directory; nothing more can be done for the renames there.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(descriptor)


class LocalFile:
    """A local ReadableFile."""

    # Linux accepts at most 1024 buffers (IOV_MAX) per call.
    MAX_BUFFERS = 1024

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            # O_NONBLOCK: opening a named pipe would otherwise wait for a writer.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            if error.errno in NOTHING_THERE:
                raise NotFoundError(
                    f"{printable(path)}: no such file ({error.strerror}). Copy the file there, or use another path"
                ) from error
            raise _refused(path, error) from error
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(self._descriptor)
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise InvalidArgumentError(f"{printable(path)}: is {kind}, expected a file. Pass the checkpoint's prefix")
        self.size = status.st_size
        self.identity = (status.st_dev, status.st_ino)

    def read(self, offset: int, size: int) -> bytes:
        # Check against the real size first: `size` may be any number found in a file.
        if offset + size > self.size:
            raise self._short(offset, size)
        with self._reading(offset, size):
            data = os.pread(self._descriptor, size, offset)
        if len(data) == size:
            return data
        # One call reads at most 2 GiB - 4 KiB.
        buffer = bytearray(size)
        buffer[: len(data)] = data
        self.read_into(offset + len(data), [memoryview(buffer)[len(data) :]])
        return bytes(buffer)

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        for first in range(0, len(buffers), self.MAX_BUFFERS):
            offset = self._read_some(offset, list(buffers[first : first + self.MAX_BUFFERS]))

    def _read_some(self, offset: int, buffers: list[memoryview]) -> int:
        while buffers:
            wanted = sum(map(len, buffers))
            with self._reading(offset, wanted):
                got = os.preadv(self._descriptor, buffers, offset)
            offset += got
            if got == wanted:
                break
            if not got:
                raise self._short(offset, wanted)
            while buffers and got >= len(buffers[0]):
                got -= len(buffers.pop(0))
            if got:
                buffers[0] = buffers[0][got:]
        return offset

    @contextlib.contextmanager
    def _reading(self, offset: int, size: int) -> Iterator[None]:
        if self._descriptor < 0:
            raise FailedPreconditionError(f"{printable(self.path)}: the file was closed. Open the checkpoint again")
        try:
            yield
        except OSError as error:
            raise DataLossError(
                f"{printable(self.path)}, bytes {offset}:{offset + size}: {error.strerror}. The disk or file system "
                f"failed; try again, or read another copy"
            ) from error

    def _short(self, offset: int, size: int) -> DataLossError:
        return DataLossError(
            f"{printable(self.path)}, bytes {offset}:{offset + size}: Read less bytes than requested: the file ends at "
            f"{os.fstat(self._descriptor).st_size}. It is truncated or still being copied; copy it again"
        )

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _refused(path: str, error: OSError) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"{printable(path)}: {error.strerror}. Make it readable by this user, or free the exhausted resource"
    )


_view: Callable[[Buffer], memoryview] = memoryview  # mypy cannot pass the class itself to `map`


class LocalOutput:
    """A local WritableFile, locked (flock) until it is closed; `in_use` checks for the lock.

    A signal handler that saves never waits for a check or cleanup that it has interrupted: these only lock files that
    they have found, and a new file has its own lock.

    Args:
        patience: Seconds to wait for a program that checks whether the new file is in use.
    """

    in_order = False
    _descriptor = -1

    def __init__(self, path: str, *, patience: float = PATIENCE) -> None:
        self.path = path
        while True:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            # The lock is released when the process ends for any reason. Without lock support the file always counts as
            # in use.
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                # Another program that checks or cleans up may hold the lock for a moment. If that program was stopped,
                # create a new file, on which it has no lock.
                if lock_file(self._descriptor, patience) is False:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(path)
            # A program that cleans up may have opened, and then removed, the file before it was locked.
            if os.fstat(self._descriptor).st_nlink:
                return
            self.close()

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        begin = offset
        for first in range(0, len(buffers), LocalFile.MAX_BUFFERS):
            pending: list[memoryview] = list(map(_view, buffers[first : first + LocalFile.MAX_BUFFERS]))
            while pending:
                written = os.pwritev(self._descriptor, pending, offset)
                offset += written
                while pending and written >= len(pending[0]):
                    written -= len(pending.pop(0))
                if written:
                    pending[0] = pending[0][written:]
        if offset - begin >= LEAST_BYTES:
            start_writeback(self._descriptor, begin, offset - begin)

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def has_name(self, path: str) -> bool:
        try:
            return os.path.samestat(os.stat(path), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            # A child process forked in the meantime shares the open file and would keep the lock.
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    # Ctrl-C may interrupt the cleanup that would close the file. The file must not stay locked until the process ends.
    __del__ = close


LOCAL = LocalStorage()
