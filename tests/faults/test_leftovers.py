"""The next save removes what killed saves left; it never removes files in use or of other programs."""

import fcntl
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from numbered import State, latest_number, number_in
from storages import Counting, FailingStorage

from torch_tfckpt.bundle.leftovers import remove_leftovers
from torch_tfckpt.bundle.unfinished import DAY
from torch_tfckpt.storage.local import LOCAL, LocalStorage
from torch_tfckpt.storage.names import new_save_number, parse_temporary_name, temporary_name
from torch_tfckpt.storage.protocol import WritableFile

DEAD, ALIVE = 111, 222  # numbers of saves
DOMAIN = LOCAL.lock_domain(tempfile.gettempdir())
DEAD_PARTS, ALIVE_PARTS = (
    f"{temporary_name('m-2_temp', DOMAIN << 32 | save)}/part-00000-of-00002.index" for save in (DEAD, ALIVE)
)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"bytes")


def temporary(name: str, save: int) -> str:
    """The name that save number `save` of this host and boot gives to a temporary file."""
    return temporary_name(name, DOMAIN << 32 | save)


@contextmanager
def in_use(folder: Path, *names: str) -> Iterator[Sequence[WritableFile]]:
    """Files that a running save has open."""
    files = [LOCAL.create(str(folder / name)) for name in names]
    yield files
    for file in files:
        file.close()


def age(folder: Path, seconds: float) -> None:
    """Make all files look as if they had been modified that long ago."""
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - seconds,) * 2)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def clear(folder: Path) -> list[str]:
    """Return the names of the removed files."""
    return sorted(os.path.relpath(path, folder) for path in remove_leftovers(LOCAL, str(folder)))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A directory with checkpoint m-1 of number 1."""
    state = State()
    state.fill(1)
    state.saver(sharded=True).save(tmp_path / "m", 1)
    return tmp_path


def test_files_of_a_killed_save_are_removed(saved: Path) -> None:
    """Its temporary files, data already renamed, and shards to be merged; their paths are returned."""
    before = names(saved)
    touch(saved, temporary("m-2.index", DEAD), temporary("m-2.data-00001-of-00002", DEAD))
    touch(saved, "m-2.data-00000-of-00002", DEAD_PARTS, f"{temporary('m-2_temp', DEAD)}/part.tempstate1-tfckpt")
    touch(saved, temporary("checkpoint", 333), temporary("m-1.meta", 444))
    gone = sorted(set(names(saved)) - set(before) - {temporary("m-2_temp", DEAD)})
    assert clear(saved) == gone
    assert names(saved) == before
    assert latest_number(saved) == 1


def test_files_of_a_killed_save_with_a_long_name_are_removed(saved: Path) -> None:
    """Its temporary names are shortened, and the marker still leads to its data; another long name is left alone."""
    before = names(saved)
    long, other = "x" * 235, "x" * 100 + "y" + "x" * 134
    touch(saved, temporary(f"{long}.index", DEAD), temporary(f"{long}.data-00001-of-00002", DEAD))
    touch(saved, f"{long}.data-00000-of-00002", temporary(f"{long}_temp", DEAD) + "/part-00000-of-00002.index")
    touch(saved, f"{other}.data-00000-of-00002")
    assert len(clear(saved)) == 4
    assert set(names(saved)) == {*before, f"{other}.data-00000-of-00002"}


def test_data_of_a_running_save_with_a_long_name_stays(saved: Path) -> None:
    """Another save of the same long name was killed."""
    long = "x" * 235
    touch(saved, temporary(f"{long}.index", DEAD))
    with in_use(saved, temporary(f"{long}.index", ALIVE)):
        touch(saved, f"{long}.data-00000-of-00003")
        assert clear(saved) == []
    assert f"{long}.data-00000-of-00003" in clear(saved)


def test_files_of_a_running_save_stay(saved: Path) -> None:
    """All files with its number while its marker is in use, renamed data, and its shards to be merged."""
    with in_use(saved, temporary("m-2.index", ALIVE)):
        touch(saved, temporary("m-2.data-00001-of-00002", ALIVE), "m-2.data-00000-of-00002")
        touch(saved, ALIVE_PARTS, f"{temporary('m-2_temp', ALIVE)}/part.tempstate1-tfckpt")
        before = names(saved)
        assert clear(saved) == []
        assert names(saved) == before
    assert len(clear(saved)) == 5


def test_data_stays_while_another_save_of_the_path_is_running(saved: Path) -> None:
    """It is unknown which save owns the data. It is removed once the running save has ended, so the marker stays."""
    touch(saved, temporary("m-2.index", DEAD))
    with in_use(saved, temporary("m-2.index", ALIVE)):
        touch(saved, "m-2.data-00000-of-00003", ALIVE_PARTS)
        assert clear(saved) == []
        assert (saved / "m-2.data-00000-of-00003").exists() and (saved / ALIVE_PARTS).exists()
    assert {"m-2.data-00000-of-00003", temporary("m-2.index", DEAD), ALIVE_PARTS} < set(clear(saved))
    assert not any("m-2" in name for name in names(saved))


def test_files_of_tensorflow_stay(saved: Path) -> None:
    """Their names lack our mark: whether they are in use cannot be determined. They stay for ever."""
    touch(saved, "m-9.index.tempstate123", "m-9.data-00000-of-00001.tempstate123", "checkpoint.tmp0123456789abcdef")
    touch(saved, "m-9.data-00000-of-00001", "m-9_temp/part-00000-of-00001.index")
    before = names(saved)
    assert clear(saved) == []
    age(saved, 10 * DAY)
    assert clear(saved) == []
    assert names(saved) == before


def test_data_of_other_checkpoints_stays(saved: Path) -> None:
    """m-1 was killed while it was saved again: files that its index refers to stay, as do all of m-10 and of m."""
    touch(saved, temporary("m-1.index", DEAD), "m-1.data-00000-of-00004", "m-1.data-00001-of-00001")
    touch(saved, "m-10.data-00000-of-00001", "m.data-00000-of-00001", "m-10_temp/part.index", "m-1.data-extra")
    assert clear(saved) == [
        "m-1.data-00000-of-00004",
        "m-1.data-00001-of-00001",
        temporary("m-1.index", DEAD),
    ]
    assert number_in(saved / "m-1") == 1
    assert {"m-10.data-00000-of-00001", "m.data-00000-of-00001", "m-10_temp", "m-1.data-extra"} < set(names(saved))


def test_data_of_a_damaged_index_stays(saved: Path) -> None:
    """It is unknown which files it refers to, and they may still be useful."""
    (saved / "m-1.index").write_bytes(b"damaged")
    touch(saved, temporary("m-1.index", DEAD), "m-1.data-00000-of-00009")
    assert clear(saved) == [temporary("m-1.index", DEAD)]
    assert (saved / "m-1.data-00000-of-00009").exists() and (saved / "m-1.data-00001-of-00002").exists()


def test_a_directory_without_temporary_files_costs_one_listing(saved: Path) -> None:
    """Every save does this."""
    storage = Counting(LOCAL)
    assert remove_leftovers(storage, str(saved)) == []
    assert storage.log == ["list"]


def test_without_locks_nothing_is_removed_for_a_day(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On file systems without locks every file may be in use; after a day without modification it is not."""
    touch(saved, temporary("m-2.index", DEAD), "m-2.data-00000-of-00002")

    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    before = names(saved)
    assert clear(saved) == []
    assert names(saved) == before
    age(saved, DAY + 60)
    assert clear(saved) == ["m-2.data-00000-of-00002", temporary("m-2.index", DEAD)]
    assert latest_number(saved) == 1


class OtherHost(LocalStorage):
    """The same directory as another host sees it, to which locks of this one are not visible, nor the other way."""

    lock_domain = staticmethod(lambda directory: 77)

    def in_use(self, path: str) -> bool:
        parsed = parse_temporary_name(path)
        return parsed is not None and parsed.domain == 77 and super().in_use(path)

    def remove_unused(self, path: str) -> bool:
        if self.in_use(path):
            return False
        os.unlink(path)  # no lock of another host is in the way
        return True


def test_hosts_do_not_remove_each_others_running_saves(saved: Path) -> None:
    """Though neither sees the other's locks. Files of a host that is gone are removed after a day."""
    other = OtherHost()
    state = State()
    state.fill(2)
    with in_use(saved, temporary("m-2.index", ALIVE), temporary("m-2.data-00000-of-00001", ALIVE)):
        theirs = other.create(temporary_name(str(saved / "m-3.index"), new_save_number(77)))
        touch(saved, "m-3.data-00000-of-00001")
        before = names(saved)
        assert remove_leftovers(other, str(saved)) == [] and clear(saved) == []
        state.saver(storage=other, recover=True).save(saved / "m", 4)
        state.saver(recover=True).save(saved / "m", 5)
        assert set(before) <= set(names(saved))
        theirs.close()
    assert remove_leftovers(other, str(saved)) == [theirs.path, str(saved / "m-3.data-00000-of-00001")][::-1]
    age(saved, DAY - 60)
    assert remove_leftovers(other, str(saved)) == []
    age(saved, DAY + 60)
    assert [os.path.relpath(path, saved) for path in remove_leftovers(other, str(saved))] == [
        temporary("m-2.data-00000-of-00001", ALIVE),
        temporary("m-2.index", ALIVE),
    ]


def test_a_save_of_another_host_may_take_longer_than_a_day(saved: Path) -> None:
    """Its marker is older, but one of its data files or parts was modified."""
    number = new_save_number(77)
    marker, data = temporary_name("m-2.index", number), temporary_name("m-2.data-00000-of-00001", number)
    parts = f"{temporary_name('m-2_temp', number)}/part-00000-of-00002.data"
    for fresh in (data, parts):
        touch(saved, marker, data, parts)
        age(saved, 3 * DAY)
        os.utime(saved / fresh)
        assert clear(saved) == []
        assert {marker, data, parts} <= set(names(saved))
    age(saved, 3 * DAY)
    assert set(clear(saved)) == {marker, data, parts}


def test_a_locked_file_is_never_a_leftover(saved: Path) -> None:
    """However old it is: its program is running, or its host is another one whose locks are visible."""
    foreign = temporary_name("m-3.index", new_save_number(77))
    with in_use(saved, temporary("m-2.index", ALIVE), foreign):
        age(saved, 9 * DAY)
        assert clear(saved) == []
    assert clear(saved) == sorted([temporary("m-2.index", ALIVE), foreign])


def test_an_interrupted_cleanup_is_completed_later(saved: Path) -> None:
    """Whichever operation fails, by error or Ctrl-C, the checkpoint stays complete; the next cleanup removes all."""
    before = names(saved)
    for error in (OSError, KeyboardInterrupt):
        number = 0
        while True:
            touch(saved, temporary("m-2.index", DEAD), temporary("m-2.data-00001-of-00002", DEAD))
            touch(saved, "m-2.data-00000-of-00002", DEAD_PARTS)
            storage = FailingStorage(LOCAL, number, error=error)
            try:
                remove_leftovers(storage, str(saved))
            except KeyboardInterrupt:
                assert error is KeyboardInterrupt
            assert number_in(saved / "m-1") == 1
            clear(saved)
            assert names(saved) == before, f"after {storage.failed}"
            if not storage.failed:
                break
            number += 1
        assert number > 8


def test_a_missing_directory_has_no_leftovers(tmp_path: Path) -> None:
    """The first save of a run creates it."""
    assert remove_leftovers(LOCAL, str(tmp_path / "none")) == []


def test_a_missing_temporary_file_is_not_a_killed_save(saved: Path) -> None:
    """A running save renamed it between listing and checking: its data is not taken for that of a killed save."""
    touch(saved, "m-2.data-00000-of-00001")
    listed = [*LOCAL.list(str(saved)), temporary("m-2.index", ALIVE)]

    class Stale(Counting):
        def list(self, directory: str) -> list[str]:
            return listed if directory == str(saved) else super().list(directory)

    assert remove_leftovers(Stale(LOCAL), str(saved)) == []
    assert (saved / "m-2.data-00000-of-00001").exists()


def test_remove_unused_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage.remove_unused holds the lock while it removes the file, so the creator, who waits for it, notices."""
    path = str(tmp_path / "a")
    assert not LOCAL.remove_unused(path)
    file = LOCAL.create(path)
    assert not LOCAL.remove_unused(path)
    file.close()
    unlink, locked = os.unlink, []

    def watched(target: str) -> None:
        locked.append(LOCAL.in_use(target))
        unlink(target)

    monkeypatch.setattr(os, "unlink", watched)
    assert LOCAL.remove_unused(path)
    assert locked == [True]
    assert not os.path.exists(path)


def test_a_new_file_is_locked_even_if_another_process_checks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check holds the lock for a moment; the creator waits for that, or the file would appear unused."""
    path = str(tmp_path / "a")
    system = fcntl.flock
    others: list[int] = []

    def with_a_look(descriptor: int, operation: int) -> None:
        if not others:
            others.append(os.open(path, os.O_RDONLY))
            system(others[0], fcntl.LOCK_EX)
            threading.Timer(0.05, os.close, others).start()
        system(descriptor, operation)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", with_a_look)
        file = LOCAL.create(path)
    assert LOCAL.in_use(path)
    file.close()
    assert not LOCAL.in_use(path)
