"""Files behind URLs, through a file system of fsspec: s3://, gs://, az://, memory:// and others.

An object store has neither renames nor directories. What it has is better for a checkpoint: an object appears whole,
or not at all, in place of the older one. So a file is sent under its final name, and appears when it is synced.

    write(0, "abcd")   sent                        nothing visible
    write(4, "efgh")   sent                        nothing visible
    sync()             the upload is completed     "abcdefgh", for every reader

Paths stay URLs. Callers take them apart with os.path, which makes "memory:" of "memory://run"; both mean the root.

This module imports no driver: it is given a file system (`choice` finds it), so anything of that shape will do.
Source: fsspec's "Implementing a file system" and AbstractFileSystem.
"""

import errno
import logging
import posixpath
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
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

# A read of many buffers is one request, up to this size, so that no second copy of a large tensor is held; and no more
# is handed to an upload at once, which copies it.
_REQUEST: Final = 16 << 20
# Objects below this are sent in one request; an upload in parts takes three or more.
_WHOLE: Final = 8 << 20
# What drivers call the marks of one version of an object (s3fs, gcsfs, adlfs, local, memory).
_MARKS: Final = (
    *("ETag", "etag", "VersionId", "version_id", "generation", "md5Hash", "content_md5", "ino"),
    *("LastModified", "last_modified", "mtime", "updated", "created"),
)


class Stream(Protocol):
    """An upload in parts: `close` sends the last part, only `commit` makes the object visible."""

    def write(self, data: Buffer, /) -> object: ...
    def close(self) -> None: ...
    def commit(self) -> None: ...
    def discard(self) -> None: ...


class FileSystem(Protocol):
    """What is used of fsspec's AbstractFileSystem. Paths are URLs."""

    def _open(self, path: str, *, mode: str, autocommit: bool) -> Stream: ...
    def pipe_file(self, path: str, value: bytes) -> None: ...
    def cat_file(self, path: str, start: int, end: int) -> bytes: ...
    def info(self, path: str) -> dict[str, Any]: ...
    def ls(self, path: str, detail: bool) -> list[dict[str, Any]]: ...
    def modified(self, path: str) -> datetime: ...
    def rm_file(self, path: str) -> None: ...
    def invalidate_cache(self) -> None: ...


class FsspecStorage:
    """A Storage of whole files behind URLs of one scheme.

    Args:
        files: The file system that reaches them.
        scheme: "s3" of s3://bucket/key.
        streams: Whether its files keep `autocommit=False`, as those of s3fs and gcsfs do. Then large files are sent
            while they are written; else they are held in memory until `sync`.

    Directories are what the names of the files say: none is made or removed, and one without files is not there.
    Errors that are no OSError, as drivers raise them, come out as OSError with the path.

    Threads: as safe as the driver; those of s3, gs, az and memory are.
    """

    renames = False

    def __init__(self, files: FileSystem, scheme: str, *, streams: bool = False) -> None:
        self._files, self._scheme, self._streams = files, scheme, streams

    def open(self, path: str) -> "RemoteFile":
        try:
            info = self._info(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFoundError(f"{printable(path)}: no such file. Copy it there, or name another") from error
        except OSError as error:
            raise _refused(path, error) from error
        return RemoteFile(self._files, path, self._url(path), info)

    def create(self, path: str) -> "RemoteOutput":
        """Nothing is sent yet: what the store refuses is told by `write` or `sync`."""
        return RemoteOutput(path, _Upload(self._files, self._url(path), self._streams))

    def in_use(self, path: str) -> bool:
        return True  # nothing tells who is writing where

    def exists(self, path: str) -> bool:
        # Not the driver's `exists`, which says no where the network fails: whoever hears that may overwrite or delete.
        try:
            self._info(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def modified(self, path: str) -> float:
        url = self._url(path)
        with _told(path):
            self._files.invalidate_cache()
            changed = self._files.modified(url)
            return (changed if changed.tzinfo else changed.replace(tzinfo=UTC)).timestamp()

    def list(self, directory: str) -> list[str]:
        url = self._url(directory)
        try:
            with _told(directory):
                # The caches of drivers know nothing of what other processes do.
                self._files.invalidate_cache()
                names = [str(entry["name"]).strip("/") for entry in self._files.ls(url, detail=True)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise _refused(directory, error) from error
        # A file lists itself, and so does "run/" where a console made an empty object of that name. Some drivers leave
        # out the host.
        itself = url.partition(":/")[2].rstrip("/")
        return sorted({posixpath.basename(name) for name in names if not itself.endswith(f"/{name}")})

    def is_directory(self, path: str) -> bool:
        try:
            return bool(self._info(path)["type"] == "directory")
        except (FileNotFoundError, NotADirectoryError):
            return False

    def make_directory(self, path: str) -> None:
        """Nothing: a directory is there once a file in it is."""

    def replace(self, source: str, target: str) -> None:
        self._unknown("renames", source)

    def link(self, source: str, target: str) -> None:
        self._unknown("links", source)

    def _unknown(self, what: str, path: str) -> NoReturn:
        raise OSError(
            errno.ENOTSUP, f"{self._scheme}:// knows no {what}. Create the file under its final name", printable(path)
        )

    def remove(self, path: str) -> None:
        with _told(path), suppress(FileNotFoundError):
            self._files.rm_file(self._url(path))

    def remove_unused(self, path: str) -> bool:
        return False  # as `in_use`

    def remove_directory(self, path: str) -> None:
        """Nothing: an empty directory is none."""

    def sync_directory(self, path: str) -> None:
        """Nothing: a name is as durable as its file."""

    def _info(self, path: str) -> dict[str, Any]:
        url = self._url(path)
        with _told(path):
            self._files.invalidate_cache()
            return self._files.info(url)

    def _url(self, path: str) -> str:
        """`path` as it was before os.path.dirname took the slashes off."""
        scheme, colon, rest = path.partition(":")
        if scheme != self._scheme or not colon:
            raise InvalidArgumentError(
                f"{printable(path)}: is no {self._scheme}:// URL, and this storage holds no other"
            )
        return f"{scheme}://{rest.lstrip('/')}"


@contextmanager
def _told(path: str) -> Iterator[None]:
    """Drivers raise what their libraries raise; whoever saves is prepared for OSError."""
    try:
        yield
    except (OSError, CheckpointError):
        raise
    except Exception as error:
        raise OSError(f"{printable(path)}: {type(error).__name__}: {error}") from error


def _refused(path: str, error: OSError) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"{printable(path)}: {error.strerror or error}. Make it readable with these credentials, or mend the connection"
    )


class RemoteFile:
    """A ReadableFile behind a URL; every read is a request for a range of bytes.

    It differs from a local file in one way: where the object is replaced, reads give the new one's bytes. `identity`
    and the checksums in a checkpoint tell.
    """

    def __init__(self, files: FileSystem, path: str, url: str, info: dict[str, Any]) -> None:
        self.path = path
        if info["type"] != "file":
            kind = "a directory" if info["type"] == "directory" else "no regular file"
            raise InvalidArgumentError(
                f"{printable(path)}: is {kind}, expected a file. Name a checkpoint by its prefix"
            )
        if not isinstance(info["size"], int):
            raise FailedPreconditionError(f"{printable(path)}: the server does not tell the size. Copy the file here")
        self.size: int = info["size"]
        self.identity = (url, self.size, *((mark, info[mark]) for mark in _MARKS if info.get(mark) is not None))
        self._files, self._url = files, url
        self._closed = False

    def read(self, offset: int, size: int) -> bytes:
        if self._closed:
            raise FailedPreconditionError(f"{printable(self.path)}: the file was closed. Open the checkpoint again")
        # Bounded by the real size first: `size` may be any number found in a file.
        if offset + size > self.size:
            raise self._short(offset, size, self.size)
        if not size:
            return b""  # a range of no bytes cannot be said in a request
        try:
            with _told(self.path):
                data = self._files.cat_file(self._url, start=offset, end=offset + size)
        except OSError as error:
            raise DataLossError(
                f"{printable(self.path)}, bytes {offset}:{offset + size}: {error.strerror or error}. The object is "
                f"gone or the connection failed; try again, or read another copy"
            ) from error
        if len(data) < size:
            raise self._short(offset, size, offset + len(data))
        if len(data) > size:
            raise DataLossError(
                f"{printable(self.path)}, bytes {offset}:{offset + size}: the server sent {len(data)} bytes, so it "
                f"knows no ranges. Copy the file here"
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
            f"{end}. It is cut off or still being copied; copy it again"
        )

    def fileno(self) -> int:
        raise UnimplementedError(
            f"{printable(self.path)}: lies behind a URL and cannot be mapped. Read it without mmap, or copy it here"
        )

    def close(self) -> None:
        self._closed = True


class _Upload:
    """The bytes of one object on their way, in order. Threads: one call at a time."""

    def __init__(self, files: FileSystem, url: str, streams: bool) -> None:
        self._files, self._url, self._streams = files, url, streams
        self._held = bytearray()
        self._stream: Stream | None = None

    def write(self, data: memoryview) -> None:
        if self._streams and self._stream is None and len(self._held) + len(data) > _WHOLE:
            # Not `open`, which also adds the stream to the file system's transaction. That keeps it for ever, and
            # commits it a second time if the program is in the middle of one. `_open` is what every driver implements,
            # and `commit` and `discard` are what fsspec asks of its streams.
            self._stream = self._files._open(self._url, mode="wb", autocommit=False)
            self._stream.write(self._held)
            self._held = bytearray()
        if self._stream is None:
            self._held += data
        else:
            for first in range(0, len(data), _REQUEST):
                self._stream.write(data[first : first + _REQUEST])

    def commit(self) -> None:
        """Makes the object visible, whole."""
        if self._stream is None:
            self._files.pipe_file(self._url, bytes(self._held))
            self._held = bytearray()
        else:
            self._stream.close()
            self._stream.commit()

    def discard(self) -> None:
        """Leaves nothing behind, if the store can be reached."""
        self._held = bytearray()
        if self._stream is not None:
            try:
                # Closed first, as drivers expect; a stream that is collected unclosed would be sent after all.
                with suppress(Exception):
                    self._stream.close()
                self._stream.discard()
            except Exception as error:
                _log.info("left behind: the unfinished upload of %s: %s", printable(self._url), error)


class RemoteOutput:
    """A WritableFile behind a URL. It appears at `sync`; closed without, it never was.

    Writes come in the order of their bytes, which are sent at once. After an error every later call but `close` raises.
    """

    in_order = True

    def __init__(self, path: str, upload: _Upload) -> None:
        self.path = path
        self._upload = upload
        self._lock = threading.Lock()  # whoever gives up closes the file while another thread may be sending
        self._end = 0  # bytes handed to the upload
        self._failed = ""
        self._synced = self._closed = False

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        with self._working():
            if self._synced:
                raise FailedPreconditionError(
                    f"{printable(self.path)}: is finished, and cannot be changed. Create it anew"
                )
            if not any(map(len, buffers)):
                return
            if offset < self._end:
                raise OSError(
                    errno.EINVAL,
                    f"bytes {offset}:{min(offset + sum(map(len, buffers)), self._end)} were written before, and cannot "
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
                raise FailedPreconditionError(f"{printable(self.path)}: the file was closed. Create it anew")
            if self._failed:
                raise OSError(errno.EIO, f"given up after {self._failed}", printable(self.path))
            try:
                with _told(self.path):
                    yield
            except FailedPreconditionError:
                raise  # the file is finished; nothing failed
            except BaseException as error:
                # How much of the bytes was sent is unknown, after Ctrl-C too. The text only: an exception would keep
                # the buffers of its frames.
                self._failed = f"{type(error).__name__}: {error}"
                raise

    def _send(self, data: Buffer) -> None:
        self._upload.write(memoryview(data))
        self._end += len(data)
