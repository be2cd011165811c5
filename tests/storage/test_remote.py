"""Remote storage: the Storage protocol over two fsspec drivers, and the specifics of object stores."""

import os
import re
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_suite import StorageTests, read, write

from torch_tfckpt.errors import (
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnimplementedError,
)
from torch_tfckpt.storage import remote
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.storage.remote import FsspecStorage
from torch_tfckpt.storage.small_files import write_file


class TestedFileSystem(LocalFileSystem):  # type: ignore[misc]
    """tested:///folder/file: a driver with `autocommit=False` that creates directories implicitly, as a bucket does."""

    __test__ = False
    protocol = "tested"

    def __init__(self) -> None:
        super().__init__(auto_mkdir=True)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("tested://").strip("/")


@pytest.fixture
def bucket() -> Iterator[str]:
    """A bucket in memory, for this test only."""
    name = f"bucket-{uuid4().hex}"
    files = MemoryFileSystem()
    files.mkdir(f"/{name}")
    yield f"memory://{name}"
    files.rm(f"/{name}", recursive=True)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("remote")


def in_memory() -> FsspecStorage:
    return FsspecStorage(MemoryFileSystem(), "memory")


def streaming() -> FsspecStorage:
    return FsspecStorage(TestedFileSystem(), "tested", streams=True)


class WholeObjectTests(StorageTests):
    """Additional guarantees of storages whose `renames` is False."""

    def test_a_file_appears_whole_when_it_is_synced(self, storage: Storage, folder: str) -> None:
        """Not earlier and not in part, and it replaces the older file."""
        for contents in (b"first", b"the second"):
            before = read(storage, f"{folder}/a") if storage.exists(f"{folder}/a") else None
            file = storage.create(f"{folder}/a")
            file.write(0, [contents[:3]])
            file.write(3, [contents[3:]])
            assert storage.list(folder) == ([] if before is None else ["a"])
            assert before is None or read(storage, f"{folder}/a") == before
            file.sync()
            assert read(storage, f"{folder}/a") == contents
            file.sync()
            file.close()
            assert read(storage, f"{folder}/a") == contents
            assert storage.list(folder) == ["a"]

    def test_a_file_closed_without_sync_never_appears(self, storage: Storage, folder: str) -> None:
        """This does not depend on what was written; an older file is kept."""
        for contents in ([], [b"x"], [bytes(100)]):
            file = storage.create(f"{folder}/new")
            file.write(0, contents)
            file.write(200, [b"early"])
            file.close()
            assert not storage.exists(f"{folder}/new")
        write(storage, f"{folder}/a", b"old")
        file = storage.create(f"{folder}/a")
        file.write(0, [b"new"])
        file.close()
        assert read(storage, f"{folder}/a") == b"old"
        assert storage.list(folder) == ["a"]

    def test_identity_changes_when_a_file_is_replaced(self, storage: Storage, folder: str) -> None:
        """A reader that opens a checkpoint while it is being replaced can start over."""
        before = storage.open(write(storage, f"{folder}/a", b"old")).identity
        after = storage.open(write(storage, f"{folder}/a", b"new")).identity
        assert before != after
        assert storage.open(f"{folder}/a").identity == after

    def test_an_object_replaced_while_open_is_reported(self, storage: Storage, folder: str) -> None:
        """The error names the file and bytes; reads never return fewer bytes or raise a driver's exception."""
        opened = storage.open(write(storage, f"{folder}/a", b"0123456789"))
        write(storage, f"{folder}/a", b"0123")
        with pytest.raises(DataLossError, match=r"bytes 2:8: Read less bytes than requested: the file ends at 4\."):
            opened.read(2, 6)
        storage.remove(f"{folder}/a")
        with pytest.raises(DataLossError) as raised:
            opened.read_into(2, [memoryview(bytearray(6))])
        assert str(raised.value).startswith(f"{folder}/a, bytes 2:")
        assert isinstance(raised.value.__cause__, FileNotFoundError)

    def test_there_are_no_renames(self, storage: Storage, folder: str) -> None:
        """The error says what to do instead, and nothing is changed."""
        path = write(storage, f"{folder}/a", b"x")
        assert not storage.renames
        for call, what in ((storage.replace, "renames"), (storage.link, "links")):
            with pytest.raises(
                OSError, match=f"does not support {what}. Create the file under its final name"
            ) as raised:
                call(path, f"{folder}/b")
            assert raised.value.filename == path
        assert storage.list(folder) == ["a"]

    def test_every_file_may_be_in_use(self, storage: Storage, folder: str) -> None:
        """So no file ever counts as a leftover."""
        assert storage.in_use(write(storage, f"{folder}/a", b"x"))
        assert storage.in_use(f"{folder}/none")

    def test_an_empty_directory_does_not_exist(self, storage: Storage, folder: str) -> None:
        """It can be created, removed and synced, but does not exist."""
        storage.make_directory(f"{folder}/d/e")
        assert storage.list(folder) == []
        assert not storage.is_directory(f"{folder}/d")
        storage.sync_directory(f"{folder}/d")
        storage.remove_directory(f"{folder}/d")
        write(storage, f"{folder}/d/e/a", b"x")
        assert storage.is_directory(f"{folder}/d")
        storage.remove(f"{folder}/d/e/a")
        assert storage.list(folder) in ([], ["d"])  # a driver for a disk keeps the directory it created

    def test_an_object_cannot_be_mapped(self, storage: Storage, folder: str) -> None:
        """Mapping it raises an error."""
        opened = storage.open(write(storage, f"{folder}/a", b"x"))
        with pytest.raises(UnimplementedError, match="cannot be mapped because it is remote"):
            opened.fileno()

    def test_using_a_closed_file_raises(self, storage: Storage, folder: str) -> None:
        """FailedPreconditionError, as for local files; a synced file cannot be written to."""
        opened = storage.open(write(storage, f"{folder}/a", b"x"))
        opened.close()
        with pytest.raises(FailedPreconditionError, match="the file was closed"):
            opened.read(0, 1)
        file = storage.create(f"{folder}/b")
        file.sync()
        with pytest.raises(FailedPreconditionError, match="is finished"):
            file.write(0, [b"x"])
        file.close()
        for call in (file.sync, lambda: file.write(0, [b"x"])):
            with pytest.raises(FailedPreconditionError, match="the file was closed"):
                call()

    def test_write_file_replaces_an_object(self, storage: Storage, folder: str) -> None:
        """`write_file` needs no temporary name here and leaves none."""
        for contents in (b"one", b"two"):
            write_file(storage, f"{folder}/state", contents)
            assert read(storage, f"{folder}/state") == contents
        assert storage.list(folder) == ["state"]


class TestMemory(WholeObjectTests):
    """memory://, whose objects are sent in one request."""

    @pytest.fixture
    def storage(self) -> Storage:
        return in_memory()

    @pytest.fixture
    def folder(self, bucket: str) -> str:
        return bucket


class TestStreams(WholeObjectTests):
    """Multipart uploads, with parts and requests so small that every file needs several."""

    @pytest.fixture
    def storage(self, monkeypatch: pytest.MonkeyPatch) -> Storage:
        monkeypatch.setattr(remote, "_WHOLE", 0)
        monkeypatch.setattr(remote, "_REQUEST", 4)
        return streaming()

    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        (tmp_path / "bucket").mkdir()
        (tmp_path / "temporary").mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))  # where the driver stores the parts
        return f"tested://{tmp_path}/bucket"

    def test_a_stream_leaves_nothing_open(self, storage: Storage, folder: str, tmp_path: Path) -> None:
        """No temporary file, no open descriptor, no stream in the driver's queue."""
        before = len(os.listdir("/proc/self/fd"))
        for synced in (True, False, True):
            file = storage.create(f"{folder}/a")
            file.write(0, [bytes(100)])
            assert os.listdir(tmp_path / "temporary") != []
            if synced:
                file.sync()
            file.close()
            assert os.listdir(tmp_path / "temporary") == []
        assert len(os.listdir("/proc/self/fd")) == before
        assert len(TestedFileSystem().transaction.files) == 0

    def test_a_surrounding_transaction_is_not_affected(self, storage: Storage, folder: str) -> None:
        """The file appears when it is synced, as without a transaction, which does not commit it again."""
        with TestedFileSystem().transaction as transaction:
            write(storage, f"{folder}/a", b"x" * 100)
            assert read(storage, f"{folder}/a") == b"x" * 100
            storage.remove(f"{folder}/a")
            assert len(transaction.files) == 0
        assert storage.list(folder) == []

    def test_small_objects_take_one_request(
        self, storage: Storage, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An index or a state file is not a multipart upload; one more byte makes it one."""
        monkeypatch.setattr(remote, "_WHOLE", 10)
        file = storage.create(f"{folder}/a")
        file.write(0, [b"01234", b"56789"])
        assert os.listdir(tmp_path / "temporary") == []
        file.write(10, [b"x"])
        assert len(os.listdir(tmp_path / "temporary")) == 1
        file.sync()
        file.close()
        assert read(storage, f"{folder}/a") == b"0123456789x"


# Writes in order.


@pytest.mark.parametrize("make", [in_memory, streaming])
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_pieces_in_order(scratch: Path, make: Callable[[], Storage], data: st.DataObject) -> None:
    """Every byte is written once, in its place; gaps are zeros; buffers may be reused once `write` returns."""
    sizes = data.draw(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), max_size=20), label="gap, size")
    cut = data.draw(st.integers(1, 9), label="buffer")
    storage, name = make(), f"in-order-{uuid4().hex}"
    expected = bytearray()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "_WHOLE", data.draw(st.integers(0, 30), label="whole"))
        patch.setattr(remote, "_REQUEST", data.draw(st.integers(1, 30), label="request"))
        path = f"memory://{name}" if make is in_memory else f"tested://{scratch}/{name}"
        file = storage.create(path)
        for number, (gap, size) in enumerate(sizes):
            expected += bytes(gap if size else 0)
            piece = bytes((number + at) % 255 + 1 for at in range(size))
            buffers = [bytearray(piece[first : first + cut]) for first in range(0, len(piece), cut)]
            file.write(len(expected), buffers)
            for buffer in buffers:
                buffer[:] = bytes(len(buffer))
            expected += piece
        file.sync()
        file.close()
        try:
            assert read(storage, path) == expected
        finally:
            storage.remove(path)


def test_large_gaps_take_little_memory(tmp_path: Path) -> None:
    """Zeros are sent one request at a time."""
    path = f"tested://{tmp_path}/a"
    file = streaming().create(path)
    tracemalloc.start()
    try:
        file.write(8 * remote._REQUEST, [b"x"])
        assert tracemalloc.get_traced_memory()[1] < 2 * remote._REQUEST
    finally:
        tracemalloc.stop()
        file.close()


@pytest.mark.parametrize("synced", [True, False])
def test_a_stream_is_closed_before_commit_or_discard(scratch: Path, synced: bool) -> None:
    """This is the order that fsspec's transactions use and that drivers are tested with."""
    calls: list[str] = []
    target = "fsspec.implementations.local.LocalFileOpener"
    with pytest.MonkeyPatch.context() as patch:
        for call in ("close", "commit", "discard"):
            patch.setattr(f"{target}.{call}", lambda _, call=call: calls.append(call))
        patch.setattr(remote, "_WHOLE", 0)
        file = streaming().create(f"tested://{scratch}/order")
        file.write(0, [b"x"])
        if synced:
            file.sync()
        file.close()
    assert calls[:2] == ["close", "commit" if synced else "discard"]
    assert "discard" not in calls or not synced


def test_closing_waits_for_a_running_write(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams are not thread-safe: a save that gives up must not discard what another thread is sending."""
    writes, closing, closed = threading.Event(), threading.Event(), threading.Event()

    class Stream:
        def write(self, data: bytes) -> None:
            if data:
                writes.set()
                assert closing.wait(60)
                assert not closed.wait(0.2)

        def close(self) -> None:
            closed.set()

        def discard(self) -> None: ...

    def close() -> None:
        closing.set()
        file.close()

    stream, files = Stream(), TestedFileSystem()
    monkeypatch.setattr(remote, "_WHOLE", 0)
    monkeypatch.setattr(files, "_open", lambda *_, **__: stream)
    file = FsspecStorage(files, "tested", streams=True).create(f"tested://{scratch}/a")
    with ThreadPoolExecutor(2) as threads:
        writing = threads.submit(file.write, 0, [b"a"])
        assert writes.wait(60)
        threads.submit(close).result()
        writing.result()
    assert closed.is_set()


def test_a_server_without_range_requests_is_reported(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sends the whole file, whose first bytes are not the requested ones."""
    opened = in_memory().open(write(in_memory(), f"{bucket}/a", b"0123456789"))
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda *_, **__: b"0123456789")
    with pytest.raises(
        DataLossError, match=f"{bucket}/a, bytes 2:4: the server sent 10 bytes, so it does not support range"
    ):
        opened.read(2, 2)


@pytest.mark.parametrize("offset", [0, 2, 4])
def test_sent_bytes_cannot_be_written_again(bucket: str, offset: int) -> None:
    """Writing a range twice is a bug of ours and must not produce a file that looks complete."""
    file = in_memory().create(f"{bucket}/a")
    file.write(0, [b"01234"])
    with pytest.raises(OSError, match=f"bytes {offset}:{min(5, offset + 3)} were already written"):
        file.write(offset, [b"xyz"])
    with pytest.raises(OSError, match="the upload failed earlier: OSError"):
        file.sync()
    file.close()
    assert in_memory().list(bucket) == []


def test_large_reads_use_requests_of_bounded_size(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small buffers share a request, large ones need several: no second copy of a large tensor is in memory."""
    requests = []
    system = MemoryFileSystem.cat_file

    def watched(self: object, path: str, start: int, end: int) -> bytes:
        requests.append((start, end))
        return bytes(system(self, path, start, end))

    opened = in_memory().open(write(in_memory(), f"{bucket}/a", bytes(range(100))))
    monkeypatch.setattr(MemoryFileSystem, "cat_file", watched)
    monkeypatch.setattr(remote, "_REQUEST", 40)
    target = bytearray(90)
    opened.read_into(10, [memoryview(target)[first:end] for first, end in ((0, 5), (5, 7), (7, 80), (80, 90))])
    assert target == bytes(range(10, 100))
    assert requests == [(10, 50), (50, 90), (90, 100)]
    opened.read_into(0, [])
    assert opened.read(50, 0) == b""
    assert len(requests) == 3


# Errors.


class Refusing(MemoryFileSystem):  # type: ignore[misc]
    """A driver whose named methods fail."""

    cachable = False

    def __init__(self, error: BaseException, *calls: str) -> None:
        super().__init__()

        def fail(*_: object, **__: object) -> None:
            raise error

        for call in calls:
            setattr(self, call, fail)


class DriverError(Exception):
    """An exception that is not an OSError, as botocore raises."""


CALLS: dict[str, Callable[[Storage, str], object]] = {
    "exists": lambda storage, path: storage.exists(path),
    "is_directory": lambda storage, path: storage.is_directory(path),
    "modified": lambda storage, path: storage.modified(path),
    "remove": lambda storage, path: storage.remove(path),
    "sync": lambda storage, path: storage.create(path).sync(),
    "write": lambda storage, path: storage.create(path).write(0, [b"x"]),
}


@pytest.mark.parametrize("call", CALLS)
def test_driver_exceptions_become_oserrors(bucket: str, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the path, and the driver's exception as the cause; an OSError is passed on. None is taken to mean "no"."""
    monkeypatch.setattr(remote, "_WHOLE", 0)
    for error in (DriverError("no credentials"), PermissionError(13, "Forbidden"), TimeoutError("slow")):
        files = Refusing(error, "info", "modified", "rm_file", "pipe_file", "_open")
        with pytest.raises(OSError) as raised:
            CALLS[call](FsspecStorage(files, "memory", streams=True), f"{bucket}/a")
        if isinstance(error, OSError):
            assert raised.value is error
        else:
            assert str(raised.value) == f"{bucket}/a: DriverError: no credentials"
            assert raised.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [DriverError("no credentials"), PermissionError(13, "Forbidden"), TimeoutError("slow")]
)
def test_read_errors_are_those_of_local_files(bucket: str, error: Exception) -> None:
    """FailedPreconditionError if opening or listing fails, DataLossError if a read fails midway."""
    write(in_memory(), f"{bucket}/a", b"x")
    refusing = FsspecStorage(Refusing(error, "info", "ls"), "memory")
    for call in (refusing.open, refusing.list):
        with pytest.raises(FailedPreconditionError, match="Make it readable with these credentials"):
            call(f"{bucket}/a")
    opened = FsspecStorage(Refusing(error, "cat_file"), "memory").open(f"{bucket}/a")
    with pytest.raises(DataLossError, match=r"bytes 0:1: .*(no credentials|Forbidden|slow)"):
        opened.read(0, 1)


@pytest.mark.parametrize("error", [OSError(28, "No space left"), DriverError("reset"), KeyboardInterrupt()])
@pytest.mark.parametrize("at", ["open", "write", "sync"])
def test_a_failed_upload_is_abandoned(tmp_path: Path, at: str, error: BaseException) -> None:
    """Every later call reports the cause, closing is silent, and nothing is visible: parts may be missing."""
    files = TestedFileSystem()
    storage = FsspecStorage(files, "tested", streams=True)
    path = f"tested://{tmp_path}/a"
    write(storage, path, b"old")

    def fail(*_: object, **__: object) -> None:
        raise error

    file = storage.create(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(tmp_path))
        patch.setattr(remote, "_WHOLE", 0)
        if at == "open":
            patch.setattr(files, "_open", fail)
        else:
            target = "fsspec.implementations.local.LocalFileOpener"
            patch.setattr(f"{target}.write" if at == "write" else f"{target}.commit", fail)
        with pytest.raises((OSError, KeyboardInterrupt)):
            file.write(0, [b"x"])
            file.sync()
    calls: list[Callable[[], None]] = [lambda: file.write(8, [b"x"]), file.sync]
    for call in calls:
        with pytest.raises(OSError, match=f"the upload failed earlier: .*{re.escape(str(error))}") as raised:
            call()
        assert raised.value.filename == path
    file.close()
    file.close()
    assert read(storage, path) == b"old"
    assert storage.list(f"tested://{tmp_path}") == ["a"]


def test_an_upload_that_cannot_be_discarded_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Closing cleans up after a more important error: it must not raise."""

    def fail(*_: object) -> None:
        raise DriverError("gone")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(remote, "_WHOLE", 0)
    file = streaming().create(f"tested://{tmp_path}/a")
    file.write(0, [b"x"])
    monkeypatch.setattr("fsspec.implementations.local.LocalFileOpener.discard", fail)
    with caplog.at_level("INFO"):
        file.close()
    url = f"tested://{str(tmp_path).lstrip('/')}/a"
    assert caplog.messages == [f"could not discard the unfinished upload of {url}: gone"]


# Names.


def test_paths_can_be_split(bucket: str) -> None:
    """os.path.dirname("memory://x") is "memory:", which means the root; os.path.join appends names to it."""
    storage, name = in_memory(), bucket.removeprefix("memory://")
    write(storage, f"{bucket}/run/a", b"x")
    assert os.path.dirname(bucket) == "memory:"
    for root in ("memory:", "memory:/", "memory://"):
        assert name in storage.list(root)
        assert storage.is_directory(root)
        assert read(storage, os.path.join(root, name, "run", "a")) == b"x"
    assert storage.list(os.path.dirname(f"{bucket}/run/a")) == ["a"]
    assert storage.list(f"{bucket}/run/") == ["a"]


@pytest.mark.parametrize("path", ["", "run/a", "s3://bucket/a", "memory", "/memory://a"])
def test_paths_of_other_storages_are_refused(path: str) -> None:
    """Before a driver interprets the path as its root."""
    storage = in_memory()
    calls: list[Callable[[str], object]] = [
        storage.open, storage.create, storage.exists, storage.modified, storage.list, storage.is_directory,
        storage.remove,
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(InvalidArgumentError, match="only URLs that begin with memory://"):
            call(path)


class Listing(MemoryFileSystem):  # type: ignore[misc]
    """A driver that caches listings, as those of object stores do, and lists a bucket as a web console leaves it."""

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[tuple[str, str], Any] = {}

    def invalidate_cache(self, path: str | None = None) -> None:
        self._kept.clear()

    def ls(self, path: str, detail: bool = True, **options: object) -> Any:
        if ("ls", path) not in self._kept:
            marker = {"name": f"{self._strip_protocol(path)}/", "size": 0, "type": "file"}
            self._kept["ls", path] = [marker, *super().ls(path, detail=True)]
        return self._kept["ls", path]

    def info(self, path: str, **options: object) -> Any:
        if ("info", path) not in self._kept:
            self._kept["info", path] = super().info(path)
        return self._kept["info", path]


def test_changes_by_other_processes_are_seen(bucket: str) -> None:
    """Another process adds, replaces and removes files: no result comes from the driver's cache."""
    storage, other = FsspecStorage(Listing(), "memory"), in_memory()
    write(other, f"{bucket}/a", b"x")
    assert storage.list(bucket) == ["a"]
    write(other, f"{bucket}/b", b"x")
    assert storage.list(bucket) == ["a", "b"]
    assert storage.open(f"{bucket}/a").size == 1
    write(other, f"{bucket}/a", b"longer")
    assert storage.open(f"{bucket}/a").size == 6
    other.remove(f"{bucket}/a")
    assert not storage.exists(f"{bucket}/a")
    with pytest.raises(NotFoundError):
        storage.open(f"{bucket}/a")
    assert storage.list(bucket) == ["b"]


def test_times_without_a_zone_are_utc(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some drivers omit the time zone; the local zone must not be assumed."""
    path = write(in_memory(), f"{bucket}/a", b"x")
    monkeypatch.setattr(MemoryFileSystem, "modified", lambda *_: datetime(1970, 1, 2))
    assert in_memory().modified(path) == 86400.0


@pytest.mark.parametrize(
    ("info", "error", "text"),
    [
        ({"type": "other", "size": 0}, InvalidArgumentError, "is not a regular file, expected a file"),
        ({"type": "file", "size": None}, FailedPreconditionError, "the server does not report the size of this file"),
    ],
)
def test_objects_without_random_access_are_refused(
    bucket: str, monkeypatch: pytest.MonkeyPatch, info: dict[str, object], error: type[Exception], text: str
) -> None:
    """A device exposed by a disk driver; a web server that reports no sizes."""
    monkeypatch.setattr(MemoryFileSystem, "info", lambda *_: info)
    with pytest.raises(error, match=text):
        in_memory().open(f"{bucket}/a")
