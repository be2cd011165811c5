"""Files at URLs through an fsspec file system: s3://, gs://, az://, memory:// and others.

An object store has neither renames nor directories, but uploads are atomic: an object appears complete or not at all,
replacing the older one. So a file is uploaded under its final name and appears when it is synced.

    write(0, "abcd")   uploaded                    nothing visible
    write(4, "efgh")   uploaded                    nothing visible
    sync()             the upload is completed     "abcdefgh" is visible to every reader

Paths stay URLs. Callers split them with os.path. Its `dirname` turns "memory://run" into "memory:", which means the
same as "memory://": the root.

This module imports no driver: it is passed a file system (which `choice` finds), so any compatible object works.
Source: fsspec's "Implementing a file system" and AbstractFileSystem.
"""

import errno
import logging
import posixpath
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from typing import Any, Final, NoReturn, Protocol

from torch_tfckpt.errors import (
    CheckpointError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnimplementedError,
)
from torch_tfckpt.storage.protocol import Buffer
from torch_tfckpt.text import printable

_log = logging.getLogger(__name__)

# Maximum size of one read request for many buffers, so that no second copy of a large tensor is held in memory; also
# the maximum passed to an upload at once, because the upload copies the data.
_REQUEST: Final = 16 << 20
# Smaller objects are sent in one request; a multipart upload takes three or more.
_WHOLE: Final = 8 << 20
# Keys under which drivers report the version of an object (s3fs, gcsfs, adlfs, local, memory).
_MARKS: Final = (
    *("ETag", "etag", "VersionId", "version_id", "generation", "md5Hash", "content_md5", "ino"),
    *("LastModified", "last_modified", "mtime", "updated", "created"),
)


class Stream(Protocol):
    """A multipart upload: `close` sends the last part, but only `commit` makes the object visible."""

    def write(self, data: Buffer, /) -> object: ...
    def close(self) -> None: ...
    def commit(self) -> None: ...
    def discard(self) -> None: ...


class FileSystem(Protocol):
    """The part of fsspec's AbstractFileSystem that is used here. Paths are URLs."""

    def _open(self, path: str, *, mode: str, autocommit: bool) -> Stream: ...
    def pipe_file(self, path: str, value: bytes) -> None: ...
    def cat_file(self, path: str, start: int, end: int) -> bytes: ...
    def info(self, path: str) -> dict[str, Any]: ...
    def ls(self, path: str, detail: bool) -> list[dict[str, Any]]: ...
    def modified(self, path: str) -> datetime: ...
    def rm_file(self, path: str) -> None: ...
    def invalidate_cache(self) -> None: ...


class FsspecStorage:
    """Storage of files at URLs of one scheme.

    Args:
        files: The file system that serves the URLs.
        scheme: "s3" for s3://bucket/key.
        streams: Whether the file system supports `autocommit=False`, as s3fs and gcsfs do. If so, large files are
            uploaded while they are written; otherwise they are kept in memory until `sync`.

    Directories exist only through the names of the files in them; they are neither created nor removed.
    Exceptions of drivers that are not OSErrors are converted to OSErrors with the path.

    Thread safety: as safe as the driver; the drivers for s3, gs, az and memory are safe.
    """

    renames = False

    def __init__(self, files: FileSystem, scheme: str, *, streams: bool = False) -> None:
        self._files, self._scheme, self._streams = files, scheme, streams

    def open(self, path: str) -> "RemoteFile":
        try:
            info = self._info(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFoundError(f"{printable(path)}: no such file. Copy the file there, or use another path") from error
        except OSError as error:
            raise _refused(path, error) from error
        return RemoteFile(self._files, path, self._url(path), info)

    def create(self, path: str) -> "RemoteOutput":
        """Return a new file. Nothing is sent yet: `write` and `sync` raise the errors of the object store."""
        return RemoteOutput(path, _Upload(self._files, self._url(path), self._streams))

    def in_use(self, path: str) -> bool:
        return True  # object stores do not report writers

    def detects_use(self, path: str) -> bool:
        return False

    def lock_domain(self, directory: str) -> int:
        return 0  # no locks

    def exclusive(self, directory: str) -> AbstractContextManager[bool]:
        return nullcontext(False)

    def exists(self, path: str) -> bool:
        # Not the driver's `exists`, which returns False on network failures: the caller might then overwrite or delete.
        try:
            self._info(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def modified(self, path: str) -> float:
        url = self._url(path)
        with _driver_errors(path):
            self._files.invalidate_cache()
            changed = self._files.modified(url)
            return (changed if changed.tzinfo else changed.replace(tzinfo=UTC)).timestamp()

    def list(self, directory: str) -> list[str]:
        url = self._url(directory)
        try:
            with _driver_errors(directory):
                # Drivers' caches do not notice changes by other processes.
                self._files.invalidate_cache()
                names = [str(entry["name"]).strip("/") for entry in self._files.ls(url, detail=True)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise _refused(directory, error) from error
        # Listing a file yields the file itself. Listing "run/" yields "run/" too if a web console created an empty
        # object of that name. In the names that some drivers return, the host is missing.
        itself = url.partition(":/")[2].rstrip("/")
        return sorted({posixpath.basename(name) for name in names if not itself.endswith(f"/{name}")})

    def is_directory(self, path: str) -> bool:
        try:
            return bool(self._info(path)["type"] == "directory")
        except (FileNotFoundError, NotADirectoryError):
            return False

    def make_directory(self, path: str) -> None:
        """Do nothing: a directory exists as soon as it contains a file."""

    def replace(self, source: str, target: str) -> None:
        self._unknown("renames", source)

    def link(self, source: str, target: str) -> None:
        self._unknown("links", source)

    def _unknown(self, what: str, path: str) -> NoReturn:
        raise OSError(
            errno.ENOTSUP,
            f"{self._scheme}:// does not support {what}. Create the file under its final name",
            printable(path),
        )

    def remove(self, path: str) -> None:
        with _driver_errors(path), suppress(FileNotFoundError):
            self._files.rm_file(self._url(path))

    def remove_unused(self, path: str) -> bool:
        return False  # `in_use` is always True

    def remove_directory(self, path: str) -> None:
        """Do nothing: empty directories do not exist."""

    def sync_directory(self, path: str) -> None:
        """Do nothing: a name is durable together with its file."""

    def _info(self, path: str) -> dict[str, Any]:
        url = self._url(path)
        with _driver_errors(path):
            self._files.invalidate_cache()
            return self._files.info(url)

    def _url(self, path: str) -> str:
        """Return `path` as a full URL, with the slashes that os.path.dirname may have removed."""
        scheme, colon, rest = path.partition(":")
        if scheme != self._scheme or not colon:
            raise InvalidArgumentError(
                f"{printable(path)}: this storage handles only URLs that begin with {self._scheme}://"
            )
        return f"{scheme}://{rest.lstrip('/')}"


@contextmanager
def _driver_errors(path: str) -> Iterator[None]:
    """Convert any exception of a driver to OSError, which callers are prepared for."""
    try:
        yield
    except (OSError, CheckpointError):
        raise
    except Exception as error:
        raise OSError(f"{printable(path)}: {type(error).__name__}: {error}") from error


def _refused(path: str, error: OSError) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"{printable(path)}: {error.strerror or error}. Make it readable with these credentials, or fix the connection"
    )


class RemoteFile:
    """A ReadableFile at a URL; every read is a range request.

    If the object is replaced, later reads return the new object's bytes, unlike reads of a local file. `identity` and
    the checksums in a checkpoint detect this.
    """

    def __init__(self, files: FileSystem, path: str, url: str, info: dict[str, Any]) -> None:
        self.path = path
        if info["type"] != "file":
            kind = "a directory" if info["type"] == "directory" else "not a regular file"
            raise InvalidArgumentError(f"{printable(path)}: is {kind}, expected a file. Pass the checkpoint's prefix")
        if not isinstance(info["size"], int):
            raise FailedPreconditionError(
                f"{printable(path)}: the server does not report the size of this file. Copy it to a local disk"
            )
        self.size: int = info["size"]
        self.identity = (url, self.size, *((mark, info[mark]) for mark in _MARKS if info.get(mark) is not None))
        self._files, self._url = files, url
        self._closed = False

    def read(self, offset: int, size: int) -> bytes:
        if self._closed:
            raise FailedPreconditionError(f"{printable(self.path)}: the file was closed. Open the checkpoint again")
        # Check against the real size first: `size` may be any number found in a file.
        if offset + size > self.size:
            raise self._short(offset, size, self.size)
        if not size:
            return b""  # a request cannot express an empty range
        try:
            with _driver_errors(self.path):
                data = self._files.cat_file(self._url, start=offset, end=offset + size)
        except OSError as error:
            raise DataLossError(
                f"{printable(self.path)}, bytes {offset}:{offset + size}: {error.strerror or error}. The object was "
                f"removed or the connection failed; try again, or read another copy"
            ) from error
        if len(data) < size:
            raise self._short(offset, size, offset + len(data))
        if len(data) > size:
            raise DataLossError(
                f"{printable(self.path)}, bytes {offset}:{offset + size}: the server sent {len(data)} bytes, so it "
                f"does not support range requests. Copy the file to a local disk"
            )
        return data

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        end = offset + sum(map(len, buffers))
        if end > self.size:
            raise self._short(offset, end - offset, self.size)
        fetched = memoryview(b"")
        for buffer in buffers:
            while len(buffer):
                if not fetched:
                    fetched = memoryview(self.read(offset, min(_REQUEST, end - offset)))
                    offset += len(fetched)
                count = min(len(buffer), len(fetched))
                buffer[:count] = fetched[:count]
                buffer, fetched = buffer[count:], fetched[count:]

    def _short(self, offset: int, size: int, end: int) -> DataLossError:
        return DataLossError(
            f"{printable(self.path)}, bytes {offset}:{offset + size}: Read less bytes than requested: the file ends at "
            f"{end}. It is truncated or still being copied; copy it again"
        )

    def fileno(self) -> int:
        raise UnimplementedError(
            f"{printable(self.path)}: cannot be mapped because it is remote. Read it without mmap, or "
            "copy it to a local disk"
        )

    def close(self) -> None:
        self._closed = True


class _Upload:
    """Upload of one object, in order. Thread safety: one call at a time."""

    def __init__(self, files: FileSystem, url: str, streams: bool) -> None:
        self._files, self._url, self._streams = files, url, streams
        self._held = bytearray()
        self._stream: Stream | None = None

    def write(self, data: memoryview) -> None:
        if self._streams and self._stream is None and len(self._held) + len(data) > _WHOLE:
            # Not `open`, which also adds the stream to the file system's transaction. The transaction never drops the
            # stream, and commits it a second time if the program is inside a transaction. Every driver implements
            # `_open`, and fsspec requires its streams to have `commit` and `discard`.
            self._stream = self._files._open(self._url, mode="wb", autocommit=False)
            self._stream.write(self._held)
            self._held = bytearray()
        if self._stream is None:
            self._held += data
        else:
            for first in range(0, len(data), _REQUEST):
                self._stream.write(data[first : first + _REQUEST])

    def commit(self) -> None:
        """Make the complete object visible."""
        if self._stream is None:
            self._files.pipe_file(self._url, bytes(self._held))
            self._held = bytearray()
        else:
            self._stream.close()
            self._stream.commit()

    def discard(self) -> None:
        """Remove the unfinished upload from the store, if it can be reached."""
        self._held = bytearray()
        if self._stream is not None:
            try:
                # Close first, as drivers expect; an unclosed stream would be sent when it is garbage collected.
                with suppress(Exception):
                    self._stream.close()
                self._stream.discard()
            except Exception as error:
                _log.info("could not discard the unfinished upload of %s: %s", printable(self._url), error)


class RemoteOutput:
    """A WritableFile at a URL. The object appears at `sync`, or never if the file is closed earlier.

    Writes must be in order, and are passed to the upload immediately. After an error, every later call except `close`
    raises.
    """

    in_order = True

    def __init__(self, path: str, upload: _Upload) -> None:
        self.path = path
        self._upload = upload
        self._lock = threading.Lock()  # a caller that gives up closes the file while another thread may be sending
        self._end = 0  # bytes passed to the upload
        self._failed = ""
        self._synced = self._closed = False

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        with self._working():
            if self._synced:
                raise FailedPreconditionError(
                    f"{printable(self.path)}: is finished and cannot be changed. Create a new file"
                )
            if not any(map(len, buffers)):
                return
            if offset < self._end:
                raise OSError(
                    errno.EINVAL,
                    f"bytes {offset}:{min(offset + sum(map(len, buffers)), self._end)} were already written and cannot "
                    f"be changed",
                    printable(self.path),
                )
            for first in range(self._end, offset, _REQUEST):
                self._send(bytes(min(_REQUEST, offset - first)))
            for buffer in buffers:
                self._send(buffer)

    def sync(self) -> None:
        with self._working():
            if not self._synced:
                self._upload.commit()
                self._synced = True

    def has_name(self, path: str) -> bool:
        raise UnimplementedError(
            f"{printable(path)}: object stores cannot tell whether this is the open file. Compare the contents"
        )

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                if not self._synced:
                    self._upload.discard()

    @contextmanager
    def _working(self) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise FailedPreconditionError(f"{printable(self.path)}: the file was closed. Create a new one")
            if self._failed:
                raise OSError(errno.EIO, f"the upload failed earlier: {self._failed}", printable(self.path))
            try:
                with _driver_errors(self.path):
                    yield
            except FailedPreconditionError:
                raise  # the file is finished; nothing failed
            except BaseException as error:
                # It is unknown how many bytes were sent, including after Ctrl-C. Keep only the message: an exception
                # would keep the buffers in its frames alive.
                self._failed = f"{type(error).__name__}: {error}"
                raise

    def _send(self, data: Buffer) -> None:
        self._upload.write(memoryview(data))
        self._end += len(data)
