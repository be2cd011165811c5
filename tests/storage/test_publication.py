"""Publication: whichever step fails, each file is completely old or completely new, and nothing else is left."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from storages import CrashingStorage, DropUnsyncedStorage, FailingStorage, Killed

import torch_tfckpt as tfckpt
from torch_tfckpt.storage.local import LOCAL, LocalStorage
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.storage.publication import Publication
from torch_tfckpt.storage.small_files import write_file

NAMES: Final = ("a", "b")
Publish = Callable[[Storage, Path], None]


def by_handle(storage: Storage, folder: Path) -> None:
    with Publication(storage) as publication:
        for name in NAMES:
            publication.create(str(folder / name)).write(0, [f"new {name}".encode()])
        publication.drop(str(folder / "dropped"))


def one_file(storage: Storage, folder: Path) -> None:
    write_file(storage, str(folder / "a"), b"new a")


def fill(folder: Path) -> None:
    folder.mkdir()
    for name in (*NAMES, "dropped"):
        (folder / name).write_text(f"old {name}")


def files_in(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def ages(files: dict[str, str]) -> list[str]:
    """Return which of the two files are "old" and which "new"; fail for any other contents."""
    found = [files[name].removesuffix(f" {name}") for name in NAMES]
    assert set(found) <= {"old", "new"}
    return found


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("publish", [by_handle, one_file])
def test_a_failure_anywhere(publish: Publish, error: type[BaseException], late: bool, tmp_path: Path) -> None:
    """No temporary file is left; files are renamed in order, so the second is never newer than the first."""
    raised = set()
    for number in itertools.count():
        folder = tmp_path / str(number)
        fill(folder)
        storage = FailingStorage(LOCAL, number, late=late, error=error)
        try:
            publish(storage, folder)
        except (OSError, KeyboardInterrupt):
            raised.add(storage.failed.partition(" ")[0])
        else:
            assert ages(files_in(folder))[0] == "new", f"{storage.failed} failed without an error"
        files = files_in(folder)
        assert files.keys() - {"dropped"} == {*NAMES}, f"after {storage.failed}"
        assert ages(files) != ["old", "new"]
        if not storage.failed:
            break
    renamed_late = late and error is OSError  # the rename succeeded, so this is not a failure
    assert raised >= {"create", "write", "sync", "sync_directory"} | (set() if renamed_late else {"replace"})
    assert "replace" not in raised or not renamed_late


@pytest.mark.parametrize("publish", [by_handle, one_file])
def test_a_kill_anywhere(publish: Publish, tmp_path: Path) -> None:
    """Each file is old or new, renamed in order; only temporary files may be left."""
    seen = set()
    for number in itertools.count():
        folder = tmp_path / str(number)
        fill(folder)
        storage = CrashingStorage(LOCAL, number)
        try:
            publish(storage, folder)
        except Killed:
            storage.end_process()
        files = files_in(folder)
        seen.add(tuple(ages(files)))
        assert all(".tempstate" in name for name in files.keys() - {*NAMES, "dropped"})
        if not storage.crashed:
            break
    assert seen == {("old", "old"), ("new", "old")} | ({("new", "new")} if publish is by_handle else set())


def test_a_power_cut_anywhere(tmp_path: Path) -> None:
    """After every step each file on disk is old or new; all are new once the publication ends."""
    seen: set[str] = set()
    for number in itertools.count():
        folder = tmp_path / str(number)
        fill(folder)
        disk = DropUnsyncedStorage(folder)
        storage = CrashingStorage(disk, number)
        try:
            by_handle(storage, folder)
        except Killed:
            storage.end_process()
        after = set()
        for state in disk.states():
            after |= set(ages({os.path.basename(path): content.decode() for path, content in state.items()}))
        seen |= after
        if not storage.crashed:
            break
    assert seen == {"old", "new"} and after == {"new"}


class Vanishing(LocalStorage):
    """Another program removes the temporary file before it is renamed."""

    def replace(self, source: str, target: str) -> None:
        os.unlink(source)
        super().replace(source, target)


def test_a_missing_temporary_file_is_an_error(tmp_path: Path) -> None:
    """It is not mistaken for a rename that succeeded but reported an error."""
    (tmp_path / "a").write_text("old")
    with pytest.raises(FileNotFoundError):
        write_file(Vanishing(), str(tmp_path / "a"), b"new")
    assert files_in(tmp_path) == {"a": "old"}


def test_files_written_by_name(tmp_path: Path) -> None:
    """Contents first, then the action, then the renames; dropped files are removed last."""
    seen: list[list[str]] = []
    (tmp_path / "old").touch()
    with Publication() as publication:
        Path(publication.place(str(tmp_path / "a"))).write_text("A")
        publication.drop(str(tmp_path / "old"))
        publication.first(lambda: seen.append(sorted(path.name for path in tmp_path.iterdir())))
    assert [name.partition(".tempstate")[0] for name in seen[0]] == ["a", "old", "publication"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_a_directory_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with (
        pytest.raises(tfckpt.FailedPreconditionError, match="b is a directory"),
        Publication() as publication,
    ):
        for name in ("a", "b"):
            Path(publication.place(str(tmp_path / name))).write_text("new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b"]


def test_directories_are_removed_again_after_an_error(tmp_path: Path) -> None:
    """Those created for the files, and no others."""
    with pytest.raises(KeyboardInterrupt), Publication() as publication:
        for name in ("made/a", "b"):
            Path(publication.place(str(tmp_path / name))).write_text("new")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_files_replaced_by_name_keep_their_permissions(tmp_path: Path) -> None:
    (tmp_path / "a").touch(0o640)
    with Publication() as publication:
        Path(publication.place(str(tmp_path / "a"))).write_text("new")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    assert files_in(tmp_path) == {"a": "new"}
