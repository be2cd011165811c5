"""Tests for every storage: subclass StorageTests, or RenamingStorageTests, and override `storage`."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from torch_tfckpt.errors import DataLossError, InvalidArgumentError, NotFoundError
from torch_tfckpt.storage.local import LocalFile
from torch_tfckpt.storage.protocol import Buffer, Storage

NOT_UTF8 = os.fsdecode(b"w\xff\xfe")
MANY = 3 * LocalFile.MAX_BUFFERS + 5  # more buffers than one system call accepts


def write(storage: Storage, path: str, contents: bytes) -> str:
    file = storage.create(path)
    file.write(0, [contents])
    file.sync()
    file.close()
    return path


def read(storage: Storage, path: str) -> bytes:
    file = storage.open(path)
    try:
        return file.read(0, file.size)
    finally:
        file.close()


class StorageTests:
    """What checkpoints require of any storage.

    A subclass overrides `storage`, and also `folder` if its paths are not local ones.
    """

    @pytest.fixture
    def storage(self) -> Storage:
        raise NotImplementedError

    @pytest.fixture
    def folder(self, tmp_path: Path) -> str:
        """An existing, empty directory of the storage."""
        return str(tmp_path)

    # Bytes.

    def test_written_bytes_are_read(self, storage: Storage, folder: str) -> None:
        """Any offsets, in any order unless the file requires one; gaps that were never written read as zeros."""
        path = f"{folder}/a"
        file = storage.create(path)
        assert file.path == path
        writes: list[tuple[int, list[Buffer]]] = [(6, [b"def", bytearray(b"gh"), memoryview(b"i")]), (0, [b"abc"])]
        for offset, buffers in reversed(writes) if file.in_order else writes:
            file.write(offset, buffers)
        file.write(12, [])
        file.write(99, [b"", b""])
        file.sync()
        file.close()
        opened = storage.open(path)
        assert opened.path == path
        assert opened.size == 12
        assert opened.read(0, 12) == b"abc\0\0\0defghi"
        assert opened.read(7, 3) == b"efg"
        assert opened.read(12, 0) == b""
        opened.close()

    def test_bytes_are_read_into_place(self, storage: Storage, folder: str) -> None:
        """Several buffers are filled one after the other, including empty ones; nothing else is touched."""
        opened = storage.open(write(storage, f"{folder}/a", b"0123456789"))
        target = bytearray(b"." * 12)
        views = [memoryview(target)[begin:end] for begin, end in ((1, 4), (4, 4), (6, 10), (0, 0))]
        opened.read_into(2, views)
        assert target == b".234..5678.."
        opened.read_into(10, [])
        opened.read_into(10, [memoryview(bytearray())])
        opened.close()

    def test_more_buffers_than_a_system_call_accepts(self, storage: Storage, folder: str) -> None:
        """Three thousand small tensors in one request, in both directions."""
        pieces = [bytes((number % 251,)) * (number % 4) for number in range(MANY)]
        file = storage.create(f"{folder}/a")
        file.write(3, pieces)
        file.sync()
        file.close()
        assert read(storage, f"{folder}/a") == b"\0\0\0" + b"".join(pieces)
        targets = [memoryview(bytearray(len(piece))) for piece in pieces]
        opened = storage.open(f"{folder}/a")
        opened.read_into(3, targets)
        opened.close()
        assert [bytes(target) for target in targets] == pieces

    @pytest.mark.parametrize(("offset", "size"), [(0, 11), (10, 1), (11, 0), (5, 6), (0, 2**62), (2**62, 1)])
    def test_reading_past_the_end_raises(self, storage: Storage, folder: str, offset: int, size: int) -> None:
        """The error has the range and the end of the file; a size from a damaged file is never allocated."""
        path = write(storage, f"{folder}/a", b"0123456789")
        opened = storage.open(path)
        with pytest.raises(DataLossError) as raised:
            opened.read(offset, size)
        assert str(raised.value) == (
            f"{path}, bytes {offset}:{offset + size}: Read less bytes than requested: the file ends at 10. It is "
            "truncated or still being copied; copy it again"
        )
        opened.close()

    def test_reading_into_place_past_the_end_raises(self, storage: Storage, folder: str) -> None:
        """Also if the first buffers still fit."""
        opened = storage.open(write(storage, f"{folder}/a", b"0123456789"))
        for offset, sizes in ((4, (3, 4)), (10, (1,)), (500, (1,))):
            with pytest.raises(DataLossError, match="Read less bytes than requested: the file ends at 10"):
                opened.read_into(offset, [memoryview(bytearray(size)) for size in sizes])
        opened.close()

    def test_threads_share_a_file(self, storage: Storage, folder: str) -> None:
        """Eight threads read any ranges concurrently, and write separate ranges unless writes must be in order."""
        pieces = [bytes((number,)) * 1000 for number in range(64)]
        file = storage.create(f"{folder}/a")
        with ThreadPoolExecutor(1 if file.in_order else 8) as threads:
            list(threads.map(lambda number: file.write(1000 * number, [pieces[number]]), range(64)))
        file.sync()
        file.close()
        opened = storage.open(f"{folder}/a")
        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(lambda number: opened.read(1000 * number, 1000), range(64))) == pieces
        opened.close()

    def test_files_may_be_closed_twice(self, storage: Storage, folder: str) -> None:
        """So that an error during cleanup does not hide the original one."""
        file = storage.create(f"{folder}/a")
        file.sync()
        file.close()
        file.close()
        opened = storage.open(f"{folder}/a")
        assert opened.size == 0
        opened.close()
        opened.close()

    # Names.

    def test_a_missing_file_cannot_be_opened(self, storage: Storage, folder: str) -> None:
        """The file is missing, or its directory, or a file is in the directory's place."""
        write(storage, f"{folder}/file", b"")
        for path in (f"{folder}/none", f"{folder}/none/none", f"{folder}/file/none"):
            assert not storage.exists(path)
            with pytest.raises(NotFoundError, match="no such file") as raised:
                storage.open(path)
            assert str(raised.value).startswith(f"{path}: ")

    def test_a_directory_cannot_be_opened(self, storage: Storage, folder: str) -> None:
        """Users often name the directory of a checkpoint; the message says that it is one."""
        with pytest.raises(InvalidArgumentError) as raised:
            storage.open(folder)
        assert str(raised.value).startswith(f"{folder}: is a directory, expected a file")

    def test_removing_a_missing_file_succeeds(self, storage: Storage, folder: str) -> None:
        """Two processes may clean up at the same time."""
        path = write(storage, f"{folder}/a", b"")
        storage.remove(path)
        storage.remove(path)
        assert not storage.exists(path)

    def test_a_file_is_in_use_while_it_is_written(self, storage: Storage, folder: str) -> None:
        """Until it is closed: another program's cleanup must not remove it."""
        file = storage.create(f"{folder}/a")
        assert storage.in_use(f"{folder}/a")
        file.write(0, [b"x"])
        file.sync()
        assert storage.in_use(f"{folder}/a")
        file.close()

    def test_the_time_of_the_last_change(self, storage: Storage, folder: str) -> None:
        """In seconds since the epoch, by the storage's clock; OSError for a missing file."""
        before = time.time()
        path = write(storage, f"{folder}/a", b"x")
        assert before - 5 < storage.modified(path) < time.time() + 5
        with pytest.raises(OSError):
            storage.modified(f"{folder}/none")

    def test_two_handles_on_a_file_have_the_same_identity(self, storage: Storage, folder: str) -> None:
        """A file with equal bytes has another identity, and so has a file that replaced it."""
        path, copy = write(storage, f"{folder}/a", b"x"), write(storage, f"{folder}/b", b"x")
        first, second, apart = map(storage.open, (path, path, copy))
        storage.remove(path)
        later = storage.open(write(storage, path, b"other bytes"))
        assert first.identity == second.identity
        assert first.identity != apart.identity
        assert first.identity != later.identity
        for file in (first, second, apart, later):
            file.close()

    def test_names_are_listed_in_order(self, storage: Storage, folder: str) -> None:
        """Files and directories, sorted; empty for a missing directory."""
        for name in ("b", "a.index", "Z", "c-10", "c-9"):
            write(storage, f"{folder}/{name}", b"")
        storage.make_directory(f"{folder}/d")
        write(storage, f"{folder}/d/deeper", b"")
        assert storage.list(folder) == ["Z", "a.index", "b", "c-10", "c-9", "d"]
        assert storage.list(f"{folder}/d") == ["deeper"]
        assert storage.list(f"{folder}/none") == []
        assert storage.list(f"{folder}/b") == []

    def test_directories_and_files_are_distinguished(self, storage: Storage, folder: str) -> None:
        """A path with a file below it is a directory, whether directories must be created or not."""
        storage.make_directory(f"{folder}/d")
        storage.make_directory(f"{folder}/d")
        write(storage, f"{folder}/d/file", b"")
        assert storage.is_directory(f"{folder}/d")
        assert storage.exists(f"{folder}/d")
        assert storage.exists(f"{folder}/d/file")
        assert not storage.is_directory(f"{folder}/d/file")
        assert not storage.is_directory(f"{folder}/none")

    def test_directories_that_contain_files_are_not_removed(self, storage: Storage, folder: str) -> None:
        """Nothing changes, and there is no error; the same for files and missing paths."""
        storage.make_directory(f"{folder}/full")
        write(storage, f"{folder}/full/a", b"kept")
        for name in ("full", "none", "full/a"):
            storage.remove_directory(f"{folder}/{name}")
        assert storage.list(folder) == ["full"]
        assert read(storage, f"{folder}/full/a") == b"kept"

    def test_names_that_are_not_utf8(self, storage: Storage, folder: str) -> None:
        """Every call accepts any file name, and its errors can be printed."""
        storage.make_directory(f"{folder}/{NOT_UTF8}")
        inside = f"{folder}/{NOT_UTF8}/ä"
        for path in (inside, f"{inside}2", f"{inside}{NOT_UTF8}"):
            write(storage, path, b"x")
        assert storage.list(folder) == [NOT_UTF8]
        assert storage.list(f"{folder}/{NOT_UTF8}") == ["ä", "ä2", f"ä{NOT_UTF8}"]
        assert read(storage, f"{inside}{NOT_UTF8}") == b"x"
        storage.remove(inside)
        assert storage.exists(f"{inside}2")
        storage.sync_directory(f"{folder}/{NOT_UTF8}")
        with pytest.raises(NotFoundError) as raised:
            storage.open(inside)
        assert str(raised.value).startswith(f"{folder}/w\\xff\\xfe/ä: no such file")
        str(raised.value).encode()


class RenamingStorageTests(StorageTests):
    """Further requirements for storages with `renames`."""

    def test_a_file_is_created_once(self, storage: Storage, folder: str) -> None:
        """Two writers never share a temporary file; the first one's bytes are kept."""
        path = write(storage, f"{folder}/a", b"first")
        with pytest.raises(FileExistsError):
            storage.create(path)
        assert read(storage, path) == b"first"

    def test_an_open_file_outlives_its_name(self, storage: Storage, folder: str) -> None:
        """After it is replaced or removed, an open handle reads the old bytes; the name has another identity."""
        path = write(storage, f"{folder}/a", b"old bytes")
        opened = storage.open(path)
        storage.replace(write(storage, f"{folder}/b", b"new"), path)
        assert (opened.size, opened.read(0, 9)) == (9, b"old bytes")
        other = storage.open(path)
        assert other.identity != opened.identity
        storage.remove(path)
        assert opened.read(0, 9) == b"old bytes"
        assert other.read(0, 3) == b"new"
        other.close()
        opened.close()

    def test_both_names_of_a_file_have_one_identity(self, storage: Storage, folder: str) -> None:
        """Also after the file was linked."""
        path = write(storage, f"{folder}/a", b"x")
        storage.link(path, f"{folder}/c")
        first, linked = map(storage.open, (path, f"{folder}/c"))
        assert first.identity == linked.identity
        first.close()
        linked.close()

    def test_directories_are_created_one_level_at_a_time(self, storage: Storage, folder: str) -> None:
        """Empty ones exist; a file with that name, or a missing parent, is an OSError."""
        storage.make_directory(f"{folder}/d")
        assert storage.is_directory(f"{folder}/d")
        assert storage.exists(f"{folder}/d")
        assert storage.list(folder) == ["d"]
        assert storage.list(f"{folder}/d") == []
        with pytest.raises(OSError):
            storage.make_directory(f"{folder}/none/d")
        write(storage, f"{folder}/file", b"")
        with pytest.raises(FileExistsError):
            storage.make_directory(f"{folder}/file")
        with pytest.raises(OSError):
            storage.create(f"{folder}/none/a")

    def test_a_rename_replaces(self, storage: Storage, folder: str) -> None:
        """The old name is gone, the new one has the new bytes; without a source nothing changes."""
        write(storage, f"{folder}/a", b"new")
        write(storage, f"{folder}/b", b"old")
        storage.replace(f"{folder}/a", f"{folder}/b")
        assert storage.list(folder) == ["b"]
        assert read(storage, f"{folder}/b") == b"new"
        with pytest.raises(OSError):
            storage.replace(f"{folder}/a", f"{folder}/b")
        assert read(storage, f"{folder}/b") == b"new"

    def test_a_link_is_a_second_name(self, storage: Storage, folder: str) -> None:
        """For the same bytes, which outlive the first name; an existing name is not replaced."""
        write(storage, f"{folder}/a", b"bytes")
        write(storage, f"{folder}/b", b"old")
        storage.link(f"{folder}/a", f"{folder}/c")
        for target in ("a", "b", "c"):
            with pytest.raises(FileExistsError):
                storage.link(f"{folder}/a", f"{folder}/{target}")
        assert storage.list(folder) == ["a", "b", "c"]
        storage.remove(f"{folder}/a")
        assert [read(storage, f"{folder}/{name}") for name in "bc"] == [b"old", b"bytes"]
        with pytest.raises(OSError):
            storage.link(f"{folder}/a", f"{folder}/d")
        assert storage.list(folder) == ["b", "c"]

    def test_one_of_several_concurrent_links_succeeds(self, storage: Storage, folder: str) -> None:
        """Threads publish under one name: the first one wins, the others get an error, and no other name is left."""
        sources = [write(storage, f"{folder}/s{number}", bytes((number,))) for number in range(8)]
        ready = threading.Barrier(8)

        def took(source: str) -> bool:
            ready.wait()
            try:
                storage.link(source, f"{folder}/target")
            except FileExistsError:
                return False
            return True

        with ThreadPoolExecutor(8) as threads:
            winners = [number for number, won in enumerate(threads.map(took, sources)) if won]
        assert storage.list(folder) == [*(f"s{number}" for number in range(8)), "target"]
        assert [read(storage, f"{folder}/target")] == [bytes((number,)) for number in winners]

    def test_only_empty_directories_are_removed(self, storage: Storage, folder: str) -> None:
        """Nothing else changes, and there is no error."""
        for name in ("empty", "full"):
            storage.make_directory(f"{folder}/{name}")
        write(storage, f"{folder}/full/a", b"kept")
        for name in ("empty", "full", "none", "full/a"):
            storage.remove_directory(f"{folder}/{name}")
        assert storage.list(folder) == ["full"]
        assert read(storage, f"{folder}/full/a") == b"kept"

    def test_names_can_be_made_durable(self, storage: Storage, folder: str) -> None:
        """For an existing directory; a missing one is an error, since a checkpoint in it would be lost."""
        write(storage, f"{folder}/a", b"")
        storage.sync_directory(folder)
        with pytest.raises(OSError):
            storage.sync_directory(f"{folder}/none")

    def test_names_that_are_not_utf8_can_be_linked_and_renamed(self, storage: Storage, folder: str) -> None:
        """With bytes that are not UTF-8 in both names."""
        inside = write(storage, f"{folder}/ä", b"x")
        storage.link(inside, f"{inside}{NOT_UTF8}")
        storage.replace(inside, f"{inside}2")
        assert storage.list(folder) == ["ä2", f"ä{NOT_UTF8}"]
        assert read(storage, f"{inside}{NOT_UTF8}") == b"x"
