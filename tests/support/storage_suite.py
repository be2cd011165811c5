"""What every storage promises: subclass StorageTests, or RenamingStorageTests, and override `storage`."""

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
MANY = 3 * LocalFile.MAX_BUFFERS + 5  # more buffers than one system call takes


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
    """What a checkpoint asks of any storage.

    A subclass overrides `storage`, and `folder` where its paths are not those of this machine.
    """

    @pytest.fixture
    def storage(self) -> Storage:
        raise NotImplementedError

    @pytest.fixture
    def folder(self, tmp_path: Path) -> str:
        """An existing, empty directory of the storage."""
        return str(tmp_path)

    # Bytes.

    def test_what_is_written_is_read(self, storage: Storage, folder: str) -> None:
        """Any offsets, in any order unless the file says otherwise; what was never written between reads as zeros."""
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
        """Several buffers are filled one behind the other, empty ones among them; nothing else is touched."""
        opened = storage.open(write(storage, f"{folder}/a", b"0123456789"))
        target = bytearray(b"." * 12)
        views = [memoryview(target)[begin:end] for begin, end in ((1, 4), (4, 4), (6, 10), (0, 0))]
        opened.read_into(2, views)
        assert target == b".234..5678.."
        opened.read_into(10, [])
        opened.read_into(10, [memoryview(bytearray())])
        opened.close()

    def test_more_buffers_than_a_system_call_takes(self, storage: Storage, folder: str) -> None:
        """Three thousand small tensors in one request, both ways."""
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
    def test_reading_past_the_end_is_told(self, storage: Storage, folder: str, offset: int, size: int) -> None:
        """Where, how much was wanted, where the file ends; a size out of a damaged file is never allocated."""
        path = write(storage, f"{folder}/a", b"0123456789")
        opened = storage.open(path)
        with pytest.raises(DataLossError) as raised:
            opened.read(offset, size)
        assert str(raised.value) == (
            f"{path}, bytes {offset}:{offset + size}: Read less bytes than requested: the file ends at 10. It is cut "
            "off or still being copied; copy it again"
        )
        opened.close()

    def test_reading_into_place_past_the_end_is_told(self, storage: Storage, folder: str) -> None:
        """Also where the first buffers still fit."""
        opened = storage.open(write(storage, f"{folder}/a", b"0123456789"))
        for offset, sizes in ((4, (3, 4)), (10, (1,)), (500, (1,))):
            with pytest.raises(DataLossError, match="Read less bytes than requested: the file ends at 10"):
                opened.read_into(offset, [memoryview(bytearray(size)) for size in sizes])
        opened.close()

    def test_threads_share_a_file(self, storage: Storage, folder: str) -> None:
        """Reads of any ranges from eight threads at once; writes on ranges apart too, unless they must be in order."""
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
        """So that an error on the way out does not hide the one that caused it."""
        file = storage.create(f"{folder}/a")
        file.sync()
        file.close()
        file.close()
        opened = storage.open(f"{folder}/a")
        assert opened.size == 0
        opened.close()
        opened.close()

    # Names.

    def test_what_is_not_there_cannot_be_opened(self, storage: Storage, folder: str) -> None:
        """No file, no directory above it, or a file in its place."""
        write(storage, f"{folder}/file", b"")
        for path in (f"{folder}/none", f"{folder}/none/none", f"{folder}/file/none"):
            assert not storage.exists(path)
            with pytest.raises(NotFoundError, match="no such file") as raised:
                storage.open(path)
            assert str(raised.value).startswith(f"{path}: ")

    def test_a_directory_cannot_be_opened(self, storage: Storage, folder: str) -> None:
        """A user names the folder of a checkpoint easily; the text says so."""
        with pytest.raises(InvalidArgumentError) as raised:
            storage.open(folder)
        assert str(raised.value).startswith(f"{folder}: is a directory, expected a file")

    def test_removing_what_is_not_there_is_fine(self, storage: Storage, folder: str) -> None:
        """Two that clean up may meet."""
        path = write(storage, f"{folder}/a", b"")
        storage.remove(path)
        storage.remove(path)
        assert not storage.exists(path)

    def test_what_is_being_written_is_in_use(self, storage: Storage, folder: str) -> None:
        """Until it is closed: a clean-up by another program leaves it alone."""
        file = storage.create(f"{folder}/a")
        assert storage.in_use(f"{folder}/a")
        file.write(0, [b"x"])
        file.sync()
        assert storage.in_use(f"{folder}/a")
        file.close()

    def test_the_time_of_the_last_change_is_told(self, storage: Storage, folder: str) -> None:
        """In seconds since the epoch, by the clock of the storage; OSError where nothing is there."""
        before = time.time()
        path = write(storage, f"{folder}/a", b"x")
        assert before - 5 < storage.modified(path) < time.time() + 5
        with pytest.raises(OSError):
            storage.modified(f"{folder}/none")

    def test_two_handles_on_a_file_know_each_other(self, storage: Storage, folder: str) -> None:
        """Equal identity of one file; equal bytes alone are another file, and so is what was put in its place."""
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
        """Files and directories alike, sorted; nothing where there is no directory."""
        for name in ("b", "a.index", "Z", "c-10", "c-9"):
            write(storage, f"{folder}/{name}", b"")
        storage.make_directory(f"{folder}/d")
        write(storage, f"{folder}/d/deeper", b"")
        assert storage.list(folder) == ["Z", "a.index", "b", "c-10", "c-9", "d"]
        assert storage.list(f"{folder}/d") == ["deeper"]
        assert storage.list(f"{folder}/none") == []
        assert storage.list(f"{folder}/b") == []

    def test_directories_and_files_are_told_apart(self, storage: Storage, folder: str) -> None:
        """Where a file is below it is a directory, to be made or not."""
        storage.make_directory(f"{folder}/d")
        storage.make_directory(f"{folder}/d")
        write(storage, f"{folder}/d/file", b"")
        assert storage.is_directory(f"{folder}/d")
        assert storage.exists(f"{folder}/d")
        assert storage.exists(f"{folder}/d/file")
        assert not storage.is_directory(f"{folder}/d/file")
        assert not storage.is_directory(f"{folder}/none")

    def test_directories_that_hold_files_are_not_removed(self, storage: Storage, folder: str) -> None:
        """Everything stays as it is, without an error; so do files, and what is not there."""
        storage.make_directory(f"{folder}/full")
        write(storage, f"{folder}/full/a", b"kept")
        for name in ("full", "none", "full/a"):
            storage.remove_directory(f"{folder}/{name}")
        assert storage.list(folder) == ["full"]
        assert read(storage, f"{folder}/full/a") == b"kept"

    def test_names_that_are_no_utf8(self, storage: Storage, folder: str) -> None:
        """Any file can be named, in every call, and its errors can be printed."""
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
    """What is promised besides where `renames` is True."""

    def test_a_file_is_created_once(self, storage: Storage, folder: str) -> None:
        """Two writers never share a temporary file; the first one's bytes stay."""
        path = write(storage, f"{folder}/a", b"first")
        with pytest.raises(FileExistsError):
            storage.create(path)
        assert read(storage, path) == b"first"

    def test_an_open_file_outlives_its_name(self, storage: Storage, folder: str) -> None:
        """Replaced or removed: whoever has it open reads the old bytes, and can tell that the name means others now."""
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

    def test_both_names_of_a_file_are_known(self, storage: Storage, folder: str) -> None:
        """Equal identity under each."""
        path = write(storage, f"{folder}/a", b"x")
        storage.link(path, f"{folder}/c")
        first, linked = map(storage.open, (path, f"{folder}/c"))
        assert first.identity == linked.identity
        first.close()
        linked.close()

    def test_directories_are_made_one_level_at_a_time(self, storage: Storage, folder: str) -> None:
        """Empty ones are there too; a file of that name, or nothing above, is an error of the system."""
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
        """Of the same bytes, which outlive the first; a name that is taken stays what it is."""
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

    def test_of_several_links_at_once_one_gets_the_name(self, storage: Storage, folder: str) -> None:
        """Threads that publish under one name: the first one wins, the others are told, and no other name is left."""
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
        """Everything else stays as it is, without an error."""
        for name in ("empty", "full"):
            storage.make_directory(f"{folder}/{name}")
        write(storage, f"{folder}/full/a", b"kept")
        for name in ("empty", "full", "none", "full/a"):
            storage.remove_directory(f"{folder}/{name}")
        assert storage.list(folder) == ["full"]
        assert read(storage, f"{folder}/full/a") == b"kept"

    def test_names_can_be_made_durable(self, storage: Storage, folder: str) -> None:
        """A directory that is there; another is an error, since a checkpoint in it would be lost."""
        write(storage, f"{folder}/a", b"")
        storage.sync_directory(folder)
        with pytest.raises(OSError):
            storage.sync_directory(f"{folder}/none")

    def test_names_that_are_no_utf8_are_given_and_taken(self, storage: Storage, folder: str) -> None:
        """By links and renames."""
        inside = write(storage, f"{folder}/ä", b"x")
        storage.link(inside, f"{inside}{NOT_UTF8}")
        storage.replace(inside, f"{inside}2")
        assert storage.list(folder) == ["ä2", f"ä{NOT_UTF8}"]
        assert read(storage, f"{inside}{NOT_UTF8}") == b"x"
