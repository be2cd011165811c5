"""What killed saves left is removed by the next save; what is in use, or of others, never is."""

import fcntl
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from numbered import State, latest_number, number_in
from storages import Counting, FailingStorage

from torch_tfckpt.bundle.leftovers import remove_leftovers
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.names import temporary_name
from torch_tfckpt.storage.protocol import WritableFile

DEAD, ALIVE = 111, 222  # numbers of saves


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"bytes")


def temporary(name: str, save: int) -> str:
    return temporary_name(name, save)


@contextmanager
def in_use(folder: Path, *names: str) -> Iterator[Sequence[WritableFile]]:
    """Files that a living save has open."""
    files = [LOCAL.create(str(folder / name)) for name in names]
    yield files
    for file in files:
        file.close()


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def clear(folder: Path) -> list[str]:
    """What was removed, by name."""
    return sorted(os.path.relpath(path, folder) for path in remove_leftovers(LOCAL, str(folder)))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with checkpoint m-1, of number 1."""
    state = State()
    state.fill(1)
    state.saver(sharded=True).save(tmp_path / "m", 1)
    return tmp_path


def test_all_that_a_dead_save_wrote_goes(saved: Path) -> None:
    """Its temporary files, data that it had named already, and shards that were to be merged; what went is returned."""
    before = names(saved)
    touch(saved, temporary("m-2.index", DEAD), temporary("m-2.data-00001-of-00002", DEAD))
    touch(saved, "m-2.data-00000-of-00002", "m-2_temp/part-00000-of-00002.index", temporary("m-2_temp/part", DEAD))
    touch(saved, temporary("checkpoint", 333), temporary("m-1.meta", 444))
    gone = sorted(set(names(saved)) - set(before) - {"m-2_temp"})
    assert clear(saved) == gone
    assert names(saved) == before
    assert latest_number(saved) == 1


def test_what_a_living_save_wrote_stays(saved: Path) -> None:
    """All that bears its number while its marker is in use, data that it has named, and its shards to be merged."""
    with in_use(saved, temporary("m-2.index", ALIVE)):
        touch(saved, temporary("m-2.data-00001-of-00002", ALIVE), "m-2.data-00000-of-00002")
        touch(saved, "m-2_temp/part-00000-of-00002.index", temporary("m-2_temp/part", ALIVE))
        before = names(saved)
        assert clear(saved) == []
        assert names(saved) == before
    assert len(clear(saved)) == 5


def test_of_a_dead_and_a_living_save_of_one_path_all_data_stay(saved: Path) -> None:
    """Nobody can tell whose they are. They go when the living one has ended, or with its save."""
    touch(saved, temporary("m-2.index", DEAD))
    with in_use(saved, temporary("m-2.index", ALIVE)):
        touch(saved, "m-2.data-00000-of-00003", "m-2_temp/part-00000-of-00002.index")
        assert clear(saved) == [temporary("m-2.index", DEAD)]
        assert (saved / "m-2.data-00000-of-00003").exists() and (saved / "m-2_temp").exists()
    assert "m-2.data-00000-of-00003" in clear(saved)


def test_files_of_tensorflow_stay(saved: Path) -> None:
    """Their names lack our mark: whether they are in use cannot be told."""
    touch(saved, "m-9.index.tempstate123", "m-9.data-00000-of-00001.tempstate123", "checkpoint.tmp0123456789abcdef")
    touch(saved, "m-9.data-00000-of-00001", "m-9_temp/part-00000-of-00001.index")
    before = names(saved)
    assert clear(saved) == []
    assert names(saved) == before


def test_data_of_other_checkpoints_stay(saved: Path) -> None:
    """m-1 was killed while it was saved anew: what its index names stays, and so does all of m-10 and of m."""
    touch(saved, temporary("m-1.index", DEAD), "m-1.data-00000-of-00004", "m-1.data-00001-of-00001")
    touch(saved, "m-10.data-00000-of-00001", "m.data-00000-of-00001", "m-10_temp/part.index", "m-1.data-extra")
    assert clear(saved) == [
        "m-1.data-00000-of-00004",
        "m-1.data-00001-of-00001",
        temporary("m-1.index", DEAD),
    ]
    assert number_in(saved / "m-1") == 1
    assert {"m-10.data-00000-of-00001", "m.data-00000-of-00001", "m-10_temp", "m-1.data-extra"} < set(names(saved))


def test_data_beside_a_damaged_index_stay(saved: Path) -> None:
    """Which of them it names cannot be told, and somebody may still make use of them."""
    (saved / "m-1.index").write_bytes(b"damaged")
    touch(saved, temporary("m-1.index", DEAD), "m-1.data-00000-of-00009")
    assert clear(saved) == [temporary("m-1.index", DEAD)]
    assert (saved / "m-1.data-00000-of-00009").exists() and (saved / "m-1.data-00001-of-00002").exists()


def test_a_directory_without_temporary_files_costs_one_listing(saved: Path) -> None:
    """Saves do this each time."""
    storage = Counting(LOCAL)
    assert remove_leftovers(storage, str(saved)) == []
    assert storage.log == ["list"]


def test_where_nobody_can_tell_nothing_is_removed(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On file systems without locks every file may be in use."""
    touch(saved, temporary("m-2.index", DEAD), "m-2.data-00000-of-00002")

    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    before = names(saved)
    assert clear(saved) == []
    assert names(saved) == before


def test_an_interrupted_clearing_is_gone_on_with(saved: Path) -> None:
    """Whichever operation fails, with an error or Ctrl-C: the checkpoint stays whole, and the next time all goes."""
    before = names(saved)
    for error in (OSError, KeyboardInterrupt):
        number = 0
        while True:
            touch(saved, temporary("m-2.index", DEAD), temporary("m-2.data-00001-of-00002", DEAD))
            touch(saved, "m-2.data-00000-of-00002", "m-2_temp/part-00000-of-00002.index")
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


def test_a_directory_that_is_not_there_has_no_leftovers(tmp_path: Path) -> None:
    """The first save of a run makes it."""
    assert remove_leftovers(LOCAL, str(tmp_path / "none")) == []


def test_a_missing_temporary_file_is_no_dead_save(saved: Path) -> None:
    """Between listing and looking a living save renamed it: its data are not taken for those of a dead one."""
    touch(saved, "m-2.data-00000-of-00001")
    listed = [*LOCAL.list(str(saved)), temporary("m-2.index", ALIVE)]

    class Stale(Counting):
        def list(self, directory: str) -> list[str]:
            return listed if directory == str(saved) else super().list(directory)

    assert remove_leftovers(Stale(LOCAL), str(saved)) == []
    assert (saved / "m-2.data-00000-of-00001").exists()


def test_only_unused_files_are_removed_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage.remove_unused: the lock is held while the file goes, so that its maker, who waits for it, sees that."""
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


def test_a_file_is_locked_even_if_somebody_looks_at_that_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks has the lock for a moment; the maker of the file waits for that, or all would take it for unused."""
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
