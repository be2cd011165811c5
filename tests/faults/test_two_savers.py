"""Several programs that save into, and clean up, the same directory at the same time."""

import os
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

import pytest
from forked_processes import forkserver
from numbered import State, assert_nothing_stray, latest_number, number_in
from training_script import alternate

import torch_tfckpt as tfckpt
from torch_tfckpt.bundle.leftovers import remove_leftovers
from torch_tfckpt.bundle.marker import Marker
from torch_tfckpt.directory.state_file import read_state, update_checkpoint_state
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.names import new_save_number, parse_temporary_name, temporary_name

SAVES: Final = 40
FILES: Final = 1500


def new_number(folder: Path) -> int:
    """Return a number for a save of this host."""
    return new_save_number(LOCAL.lock_domain(str(folder)))


def begin(target: Callable[..., None], *arguments: object) -> tuple[BaseProcess, "Connection[object, object]"]:
    context = forkserver()
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(*arguments, there))
    process.start()
    there.close()
    return process, here


@pytest.mark.parametrize("bases", [("a", "b"), ("m", "m")], ids=["two names", "one name, other steps"])
def test_two_programs_save_into_one_directory(bases: tuple[str, str], tmp_path: Path) -> None:
    """After each save, each program finds all its checkpoints complete; the state file is always complete.

    Leftovers of a killed program are removed, and no other files remain.
    """
    (tmp_path / "x-1.data-00000-of-00002").write_bytes(b"of a dead save")
    (tmp_path / temporary_name("x-1.index", new_number(tmp_path))).write_bytes(b"")
    foreign = tmp_path / "x-2.index.tempstate123"
    foreign.write_bytes(b"of TensorFlow")
    numbers = range(0, 2 * SAVES, 2), range(1, 2 * SAVES, 2)
    savers = [begin(alternate, str(tmp_path), base, part) for base, part in zip(bases, numbers, strict=True)]
    states = 0
    while any(process.is_alive() for process, _ in savers):
        if (tmp_path / "checkpoint").exists():
            assert len(read_state(LOCAL, str(tmp_path / "checkpoint")).all_model_checkpoint_paths) <= 2
            states += 1
    kept: list[str] = []
    for process, pipe in savers:
        assert process.exitcode == 0, "a saver lost a checkpoint, or could not save"
        paths = pipe.recv()
        assert isinstance(paths, list)
        kept += paths
    assert states > SAVES
    assert [number_in(path) for path in kept] == [2 * SAVES - 4, 2 * SAVES - 2, 2 * SAVES - 3, 2 * SAVES - 1]
    assert latest_number(tmp_path) in (2 * SAVES - 2, 2 * SAVES - 1)
    foreign.unlink()
    assert_nothing_stray(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4 * 4 + 1  # index, meta graph and two data files each, one state file


def clear_up(folder: str, reports: Connection) -> None:
    """Clean up continuously until a file "stop" exists."""
    reports.send("begun")
    while not os.path.exists(f"{folder}/stop"):
        remove_leftovers(LOCAL, folder)


def test_a_new_file_is_never_taken_for_a_leftover(tmp_path: Path) -> None:
    """While another program cleans up continuously, no file that this one has just created is removed.

    Neither before it is locked, nor while the other program checks the lock.
    """
    process, pipe = begin(clear_up, str(tmp_path))
    assert pipe.recv() == "begun"
    try:
        for number in range(FILES):
            file = LOCAL.create(temporary_name(str(tmp_path / f"m-{number}.meta"), new_number(tmp_path)))
            assert os.path.exists(file.path), f"file {number} was removed although it is open"
            assert LOCAL.in_use(file.path)
            LOCAL.remove(file.path)
            file.close()
    finally:
        (tmp_path / "stop").touch()
        process.join()
    assert process.exitcode == 0


def test_data_of_a_running_save_is_protected_by_its_marker(tmp_path: Path) -> None:
    """From their renaming until an index refers to them, the marker protects data files from others' cleanup."""
    process, pipe = begin(clear_up, str(tmp_path))
    assert pipe.recv() == "begun"
    try:
        for number in range(FILES // 5):
            marker = Marker(LOCAL, str(tmp_path / f"m-{number}"))
            data = tmp_path / f"m-{number}.data-00000-of-00001"
            data.write_bytes(b"data")
            for _ in range(20):
                assert data.exists(), f"data of save {number} was removed while its marker is in use"
            data.unlink()
            marker.end(clean=True)
    finally:
        (tmp_path / "stop").touch()
        process.join()
    assert process.exitcode == 0


def test_cleanup_distinguishes_running_and_ended_saves(tmp_path: Path) -> None:
    """With a save in flight and files of a save that ended, another saver removes only the latter."""
    state = State()
    release = threading.Event()

    class Slow:
        """LOCAL, but the index is only renamed when the test says so."""

        def __getattr__(self, name: str) -> object:
            return getattr(LOCAL, name)

        def replace(self, source: str, target: str) -> None:
            if target.endswith(".index"):
                assert release.wait(60)
            LOCAL.replace(source, target)

    with state.saver(sharded=True, save_relative_paths=True, storage=Slow()) as saver:
        state.fill(1)
        handle = saver.save_async(tmp_path / "a", 1)
        dead = temporary_name(str(tmp_path / "b-9.index"), new_number(tmp_path))
        Path(dead).touch()
        other = State()
        other.fill(2)
        other.saver(sharded=True, save_relative_paths=True).save(tmp_path / "b", 2)
        assert not os.path.exists(dead)
        temporary = [path.name for path in tmp_path.iterdir() if parse_temporary_name(path.name) is not None]
        assert temporary, "files of the save in flight were removed"
        release.set()
        assert handle.result() == str(tmp_path / "a-1")
    assert [number_in(tmp_path / name) for name in ("a-1", "b-2")] == [1, 2]
    assert_nothing_stray(tmp_path)


def update(folder: str, base: str, reports: Connection) -> None:
    for number in range(150):
        update_checkpoint_state(folder, f"{folder}/{base}-{number}", [f"{folder}/{base}-{number}"])
    reports.send("done")


def test_a_state_file_is_always_complete(tmp_path: Path) -> None:
    """Two programs write it at the same time: readers find one complete version, and no other file is left."""
    long = "long" * 40
    writers = [begin(update, str(tmp_path), base) for base in ("short", long)]
    seen = set()
    while any(process.is_alive() for process, _ in writers):
        if (tmp_path / "checkpoint").exists():
            state = tfckpt.get_checkpoint_state(tmp_path)
            assert state is not None, "a state file that does not parse"
            assert list(state.all_model_checkpoint_paths) == [state.model_checkpoint_path]
            seen.add(os.path.basename(state.model_checkpoint_path).rpartition("-")[0])
    assert all(process.exitcode == 0 for process, _ in writers)
    assert seen == {"short", long}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
