"""Real disk problems, if this machine permits them: full, read-only or otherwise unusable.

The error says what failed and where, nothing is changed, and once the problem is fixed saving works again.
"""

import errno
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from claims import assert_helps
from numbered import State, assert_nothing_stray, assert_sound, latest_number, number_in

import torch_tfckpt as tfckpt
from torch_tfckpt import BaseSaverBuilder, Saver, SaverDef

SIZES: Final = {
    "a/kernel": ("cpu:0", 60_000),
    "a/kernel/Momentum": ("cpu:0", 60_000),
    "b/kernel": ("cpu:1", 30_000),
    "c/bias": ("cpu:2", 100),
}
BYTES: Final = 4 * 150_100  # size of one checkpoint

Save = Callable[[Saver, Path, int], object]


def wait(saver: Saver, path: Path, number: int) -> object:
    return saver.save(path, number)


def beside(saver: Saver, path: Path, number: int) -> object:
    return saver.save_async(path, number).result()


WAYS: Final[dict[str, tuple[dict[str, Any], Save]]] = {
    "sharded": ({"sharded": True}, wait),
    "plain": ({}, wait),
    "async": ({"sharded": True}, beside),
    "parts": ({"sharded": True, "builder": BaseSaverBuilder()}, wait),
    "version 1": ({"write_version": SaverDef.V1}, wait),
}


class Run:
    """A saver with one good checkpoint, number 1, in `folder`."""

    def __init__(self, what: str, folder: Path) -> None:
        self.folder = folder
        options, self._save = WAYS[what]
        self.state = State(SIZES)
        self.saver = self.state.saver(max_to_keep=2, save_relative_paths=True, **options)
        self.save(1)

    def save(self, number: int) -> None:
        self.state.fill(number)
        self._save(self.saver, self.folder / "m", number)

    def files(self) -> dict[str, bytes]:
        paths = [path for path in self.folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in paths}

    def assert_refused(self, number: int, finding: str) -> tfckpt.CheckpointError:
        """Assert that a save fails with a helpful message, and that no file is added, removed or changed."""
        before = self.files()
        with pytest.raises(tfckpt.CheckpointError) as caught:
            self.save(number)
        assert isinstance(caught.value, tfckpt.IncompleteSaveError | tfckpt.InvalidArgumentError)
        assert_helps(caught.value, str(self.folder))
        assert finding in str(caught.value)
        assert self.files() == before
        assert latest_number(self.folder, SIZES) == number_in(self.saver.last_checkpoints[-1], SIZES)
        return caught.value

    def assert_goes_on(self, number: int) -> None:
        self.save(number)
        assert assert_sound(self.folder, SIZES) == number
        assert_nothing_stray(self.folder, SIZES)


@contextmanager
def mounted(folder: Path, *arguments: str) -> Iterator[None]:
    """Mount a file system with mount(8); skip the test if that is not allowed."""
    folder.mkdir(exist_ok=True)
    command = ["mount", *arguments, str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("mount(8) is not installed")
    if done.returncode:
        pytest.skip(f"file systems cannot be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("what", WAYS)
def test_a_full_disk(what: str, tmp_path: Path) -> None:
    """The third checkpoint does not fit; with more space it is saved, and the oldest one is deleted."""
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", f"size={2 * BYTES + BYTES // 2}", "tfckpt"):
        run = Run(what, tmp_path / "disk")
        run.save(2)
        error = run.assert_refused(3, os.strerror(errno.ENOSPC))
        assert "Nothing was published" in str(error)
        subprocess.run(["mount", "-o", f"remount,size={5 * BYTES}", str(run.folder)], check=True)
        run.assert_goes_on(4)


@pytest.mark.parametrize("spare", [0, 1, 2, 3, 4])
def test_a_disk_that_fills_up_after_the_tensors(spare: int, tmp_path: Path) -> None:
    """A few pages are left after the tensors for index, state file and meta graph.

    Whichever does not fit, the message is true, and the newest checkpoint restores.
    """
    page = 4096
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=16m", "tfckpt"):
        run = Run("sharded", tmp_path / "disk")
        stat = os.statvfs(run.folder)
        free = stat.f_bavail * stat.f_frsize
        data = sum(-(-path.stat().st_size // page) * page for path in run.folder.glob("m-1.data-*"))
        with (run.folder / "filler").open("wb") as filler:
            filler.write(bytes(free - data - spare * page))
        try:
            run.save(2)
            newest = 2
        except tfckpt.IncompleteSaveError as error:
            assert_helps(error, str(run.folder))
            assert os.strerror(errno.ENOSPC) in str(error)
            newest = latest_number(run.folder, SIZES)
            if "Nothing was published" in str(error):
                assert newest == 1 and not (run.folder / "m-2.index").exists()
            else:
                assert "is in place" in str(error)
                assert number_in(run.folder / "m-2", SIZES) == 2
        assert assert_sound(run.folder, SIZES) == newest
        (run.folder / "filler").unlink()
        run.assert_goes_on(3)


@pytest.mark.parametrize("what", WAYS)
def test_a_file_size_limit(what: str, tmp_path: Path) -> None:
    """As with a quota (here RLIMIT_FSIZE, which also applies to root)."""
    run = Run(what, tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        run.assert_refused(2, os.strerror(errno.EFBIG))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    run.assert_goes_on(3)


@pytest.mark.parametrize("what", WAYS)
def test_a_read_only_disk(what: str, tmp_path: Path) -> None:
    """Mounted read-only, so that even root cannot write."""
    (tmp_path / "disk").mkdir()
    run = Run(what, tmp_path / "disk")
    with mounted(tmp_path / "disk", "--bind", str(tmp_path / "disk")):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(tmp_path / "disk")], check=True)
        run.assert_refused(2, os.strerror(errno.EROFS))
    run.assert_goes_on(3)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("what", WAYS)
def test_permission_that_is_lost_midway(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file can be created from the n-th on, for every n of a save."""
    run = Run(what, tmp_path)
    system = os.open
    for number in range(1, 30):
        made = 0

        def refusing(path: Any, flags: int, *rest: Any, number: int = number, **named: Any) -> int:
            nonlocal made
            if flags & os.O_CREAT:
                made += 1
                if made >= number:
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            return system(path, flags, *rest, **named)

        published = latest_number(tmp_path, SIZES)
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", refusing)
            try:
                run.save(100 + number)
                done = True
            except tfckpt.IncompleteSaveError as error:
                done = False
                assert_helps(error, str(tmp_path))
                assert "Permission denied" in str(error)
                if "Nothing was published" in str(error):
                    assert latest_number(tmp_path, SIZES) == published
                else:
                    assert "is in place" in str(error)
                    assert number_in(tmp_path / f"m-{100 + number}", SIZES) == 100 + number
        assert assert_sound(tmp_path, SIZES) in (published, 100 + number)
        if done:
            break
    assert 3 < number < 29
    run.assert_goes_on(200)


@pytest.mark.parametrize("what", WAYS)
def test_a_file_instead_of_the_directory_to_save_into(what: str, tmp_path: Path) -> None:
    """A file has the name of the directory or of its parent. Missing directories are created."""
    (tmp_path / "good").mkdir()
    run = Run(what, tmp_path / "good")
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        run.state.fill(2)
        with pytest.raises(tfckpt.InvalidArgumentError, match=r"Parent directory of .* doesn't exist, can't") as e:
            run._save(run.saver, folder / "m", 2)
        # Exactly TensorFlow's words; the hint is a note on the exception.
        assert str(e.value) == f"Parent directory of {folder / 'm'} doesn't exist, can't save."
        (note,) = e.value.__notes__
        assert (
            str(tmp_path / "file") in note
            and "Remove the file at this path or a parent, or save to another directory" in note
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "good"]
    run.assert_goes_on(3)


@pytest.mark.parametrize("what", WAYS)
def test_a_directory_that_vanishes_midway(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is removed before the first file is renamed: this is reported, and nothing hangs."""
    (tmp_path / "run").mkdir()
    run = Run(what, tmp_path / "run")
    moved = tmp_path / "moved"
    system = os.replace

    def moving(source: str, target: str) -> None:
        if not moved.exists():
            run.folder.rename(moved)
        system(source, target)

    monkeypatch.setattr(os, "replace", moving)
    with pytest.raises(tfckpt.CheckpointError) as caught:
        run.save(2)
    monkeypatch.undo()
    assert str(caught.value) == f"Parent directory of {run.folder / 'm'} doesn't exist, can't save."
    assert caught.value.__notes__
    assert not run.folder.exists() and latest_number(moved, SIZES) == 1
    moved.rename(run.folder)
    run.assert_goes_on(3)


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("sharded", "m-2.index"),
        ("sharded", "m-2.data-00001-of-00003"),
        ("sharded", "m-2.meta"),
        ("plain", "m-2.index"),
        ("parts", "m-2.index"),
        ("parts", "m-2.data-00002-of-00003"),
        ("version 1", "m-2"),
    ],
)
def test_a_directory_where_a_file_should_be(what: str, name: str, tmp_path: Path) -> None:
    """The error reports it, and whether the checkpoint exists; others can be saved."""
    run = Run(what, tmp_path)
    (tmp_path / name).mkdir()
    run.state.fill(2)
    with pytest.raises(tfckpt.IncompleteSaveError, match="Is a directory") as caught:
        run.save(2)
    assert_helps(caught.value, str(tmp_path))
    (tmp_path / name).rmdir()
    if name.endswith(".meta"):
        assert "is in place" in str(caught.value) and "meta graph" in str(caught.value)
        assert assert_sound(tmp_path, SIZES) == 2
    else:
        assert "Nothing was published" in str(caught.value)
        assert assert_sound(tmp_path, SIZES) == 1
    run.assert_goes_on(3)


@pytest.mark.parametrize("what", ["async", "sharded", "parts"])
def test_a_directory_where_the_first_data_file_should_be(what: str, tmp_path: Path) -> None:
    """The data files get other names, as if another program had taken the first one."""
    run = Run(what, tmp_path)
    taken = tmp_path / "m-2.data-00000-of-00003"
    taken.mkdir()
    run.state.fill(2)
    run.save(2)
    assert assert_sound(tmp_path, SIZES) == 2 and taken.is_dir()
    taken.rmdir()
    run.assert_goes_on(3)


def test_a_directory_where_the_state_file_should_be(tmp_path: Path) -> None:
    """The checkpoint is in place, and the message explains that no state file names it."""
    (tmp_path / "checkpoint").mkdir()
    state = State(SIZES)
    state.fill(1)
    saver: Saver = state.saver(sharded=True)
    with pytest.raises(tfckpt.IncompleteSaveError, match=r"is in place .* state file") as caught:
        saver.save(tmp_path / "m", 1)
    assert_helps(caught.value, str(tmp_path))
    assert number_in(tmp_path / "m-1", SIZES) == 1
    (tmp_path / "checkpoint").rmdir()
    state.fill(2)
    saver.save(tmp_path / "m", 2)
    assert assert_sound(tmp_path, SIZES) == 2
    assert [os.path.basename(path) for path in saver.last_checkpoints] == ["m-1", "m-2"]


def test_a_file_where_shards_to_be_merged_should_go(tmp_path: Path) -> None:
    """A save in parts creates a directory of its own, so a file named P_temp is not in its way, and stays."""
    run = Run("parts", tmp_path)
    (tmp_path / "m-2_temp").write_bytes(b"somebody's")
    run.assert_goes_on(2)
    assert (tmp_path / "m-2_temp").read_bytes() == b"somebody's"
