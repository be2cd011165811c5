"""Version 1 shards saved again under the same name: old or new, whole, after every step, kill and error."""

import itertools
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from storages import CrashingStorage, DropUnsyncedStorage, FailingStorage, Killed

import torch_tfckpt as tfckpt
from torch_tfckpt.bundle.leftovers import remove_leftovers
from torch_tfckpt.storage.journal import journal_of
from torch_tfckpt.storage.local import LOCAL, LocalFile, LocalStorage
from torch_tfckpt.storage.names import new_save_number, temporary_name
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.v1.shard_names import publish_shards, shard_names
from torch_tfckpt.v1.writer import SlicesWriter

pytestmark = pytest.mark.filterwarnings("error")


def write(storage: Storage, folder: Path, count: int, value: int) -> None:
    """Save `count` shards of m, each with one tensor of this value, and all with slices of another one."""
    targets = shard_names(str(folder / "m"), count)
    save = new_save_number(LOCAL.lock_domain(str(folder)))
    temporaries = [temporary_name(target, save) for target in targets]
    for number, temporary in enumerate(temporaries):
        with SlicesWriter(storage, temporary) as writer:
            writer.add(f"t{number}", torch.full((3,), float(value)))
    publish_shards(storage, str(folder / "m"), temporaries, [])


def value_in(folder: Path, path: str = "m") -> int:
    """Return the value of all tensors; fail if they are of two saves."""
    tensors = map(torch.as_tensor, tfckpt.load_file(folder / path).values())
    values = {element for tensor in tensors for element in tensor.tolist()}
    assert len(values) == 1, f"a mix: {values}"
    return int(values.pop())


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def shards(count: int) -> set[str]:
    return {os.path.basename(path) for path in shard_names("m", count)}


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 2), (2, 3), (3, 1)])
def test_a_kill_anywhere(before: int, after: int, tmp_path: Path) -> None:
    """By prefix and by both patterns: old or new whole; the next clean-up completes or removes the rest."""
    seen = []
    for step in itertools.count():
        folder = tmp_path / str(step)
        folder.mkdir()
        if before:
            write(LOCAL, folder, before, 1)
        storage = CrashingStorage(LOCAL, step)
        try:
            write(storage, folder, after, 2)
        except Killed:
            storage.end_process()
        try:
            seen.append(value_in(folder))
            assert value_in(folder, f"m-?????-of-{after if seen[-1] == 2 else before:05d}") == seen[-1]
        except tfckpt.NotFoundError:
            assert not before
            seen.append(0)
        remove_leftovers(LOCAL, str(folder))
        assert names(folder) == shards(after if seen[-1] == 2 else before), f"after {storage.log[-1]}"
        assert not seen[-1] or value_in(folder) == seen[-1]
        if not storage.crashed:
            break
    assert seen == sorted(seen) and set(seen) == {1 if before else 0, 2}


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_anywhere(error: type[BaseException], late: bool, tmp_path: Path) -> None:
    """A save that fails before the switch leaves the old shards; later ones complete it."""
    for step in itertools.count():
        folder = tmp_path / str(step)
        folder.mkdir()
        write(LOCAL, folder, 2, 1)
        storage = FailingStorage(LOCAL, step, late=late, error=error)
        raised: BaseException | None = None
        try:
            write(storage, folder, 2, 2)
        except (OSError, KeyboardInterrupt) as problem:
            raised = problem
        found = value_in(folder)
        assert raised is not None or found == 2, f"{storage.failed} failed without an error"
        if "are in place" in str(raised):
            assert found == 2
        write(LOCAL, folder, 2, 3)
        remove_leftovers(LOCAL, str(folder))
        assert value_in(folder) == 3 and names(folder) == shards(2), f"after {storage.failed}"
        if not storage.failed:
            break


def test_a_power_cut_anywhere(tmp_path: Path) -> None:
    """What a disk may have kept is old or new whole, whichever names and bytes survive."""
    seen = set()
    for step in itertools.count():
        folder = tmp_path / str(step)
        folder.mkdir()
        write(LOCAL, folder, 2, 1)
        disk = DropUnsyncedStorage(folder)
        storage = CrashingStorage(disk, step)
        try:
            write(storage, folder, 2, 2)
        except Killed:
            storage.end_process()
        for number, state in enumerate(disk.states_in_order()):
            copy = tmp_path / f"{step}-{number}"
            copy.mkdir()
            for path, content in state.items():
                (copy / os.path.basename(path)).write_bytes(content)
                os.utime(copy / os.path.basename(path), (0, 0))  # the times of this disk
            seen.add(value_in(copy))
        if not storage.crashed:
            break
    assert seen == {1, 2}


class Stopped(LocalStorage):
    """Ends, as if killed, after some renames to final names of shards."""

    def __init__(self, renames: int) -> None:
        self.left = renames

    def replace(self, source: str, target: str) -> None:
        if target.endswith("-of-00002"):
            if not self.left:
                raise Killed
            self.left -= 1
        super().replace(source, target)


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """A directory whose m has two old shards, of which one was replaced by a save that was killed then."""
    write(LOCAL, tmp_path, 2, 1)
    with pytest.raises(Killed):
        write(Stopped(1), tmp_path, 2, 2)
    assert journal_of("m") in names(tmp_path)
    return tmp_path


def test_an_interrupted_save_is_read_whole_by_everything(interrupted: Path) -> None:
    """Reader, Saver, listing, verification and the search for the newest one."""
    pattern = str(interrupted / "m-?????-of-00002")
    assert value_in(interrupted) == value_in(interrupted, "m-*") == 2
    assert tfckpt.latest_checkpoint(interrupted, valid=True) == pattern
    assert tfckpt.checkpoint_exists(pattern) and tfckpt.verify(pattern).ok
    target = torch.zeros(3)
    tfckpt.Saver({"t1": target}).restore(pattern)
    assert target.tolist() == [2, 2, 2]
    report = tfckpt.convert(interrupted / "m", interrupted / "out.npz")
    assert len(report.converted) == 2


def test_a_checkpoint_file_may_name_the_count_of_an_earlier_save(tmp_path: Path) -> None:
    """A program that was killed after the switch has not updated it."""
    write(LOCAL, tmp_path, 2, 1)
    tfckpt.update_checkpoint_state(tmp_path, str(tmp_path / "m-?????-of-00002"))
    write(LOCAL, tmp_path, 3, 2)
    assert tfckpt.latest_checkpoint(tmp_path) == str(tmp_path / "m-?????-of-00003")
    assert value_in(tmp_path, ".") == 2


def test_a_shard_changed_since_is_never_guessed(interrupted: Path) -> None:
    """Another program, such as TensorFlow, has saved after the kill: nobody can tell which shards are wanted."""
    for number in range(2):
        shard = interrupted / f"m-{number:05d}-of-00002"
        shard.write_bytes(shard.read_bytes())
        os.utime(shard, (1, number + 5))
    before = names(interrupted)
    with pytest.raises(
        tfckpt.DataLossError, match=r"another program changed it.*m\.journal-tfckpt.*delete the journal"
    ):
        value_in(interrupted)
    remove_leftovers(LOCAL, str(interrupted))
    assert before <= names(interrupted), "nothing may be removed that somebody may want"
    write(LOCAL, interrupted, 2, 3)
    assert value_in(interrupted) == 3
    remove_leftovers(LOCAL, str(interrupted))
    assert names(interrupted) == shards(2)


def test_a_truncated_shard_of_an_interrupted_save_is_refused(interrupted: Path) -> None:
    waiting = next(path for path in interrupted.iterdir() if "tempstate" in path.name)
    waiting.write_bytes(waiting.read_bytes()[:-1])
    with pytest.raises(tfckpt.DataLossError, match="Save the checkpoint again"):
        value_in(interrupted)
    remove_leftovers(LOCAL, str(interrupted))
    assert journal_of("m") in names(interrupted)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(format="x"), "format is not version 1"),
        (lambda c: c.update(version=2), "format is not version 1"),
        (lambda c: c.update(files=[]), 'no object "files"'),
        (lambda c: c["files"].update({"../m": ["../m", 1, 1.0, None]}), "is not a plain file name"),
        (lambda c: c["files"].update({"other": ["other", 1, 1.0, None]}), 'does not belong to "m"'),
        (lambda c: c["files"].update({"m-1": ["m-2.tempstate1-tfckpt", 1, 1.0, None]}), "is not a temporary name of"),
        (lambda c: c["files"].update({"m-1": ["m-1.tempstate1-tfckpt", "1", 1.0, None]}), "invalid entry"),
        (lambda c: c["files"].update({"m-1": ["m-1.tempstate1-tfckpt", 1, 1.0, None]}), "lists files that are not"),
        (lambda c: c["removed"].update({"..": 1.0}), "is not a plain file name"),
        (lambda c: c["removed"].update({"m-3": "now"}), "invalid time"),
    ],
)
def test_a_journal_that_cannot_be_is_refused(
    interrupted: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    """It leads to no file outside of the checkpoint, and is an error that tells how to get rid of it."""
    path = interrupted / journal_of("m")
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    with pytest.raises(tfckpt.DataLossError, match=message) as refused:
        value_in(interrupted)
    assert journal_of("m") in str(refused.value)
    remove_leftovers(LOCAL, str(interrupted))
    write(LOCAL, interrupted, 2, 3)
    assert value_in(interrupted) == 3


def test_deleting_an_interrupted_save_leaves_nothing(interrupted: Path) -> None:
    tfckpt.remove_checkpoint(str(interrupted / "m-?????-of-00002"), tfckpt.SaverDef.V1)
    assert names(interrupted) == set()


def test_readers_and_two_writers_at_once(tmp_path: Path) -> None:
    """Every read finds one save whole; the last one stays."""
    write(LOCAL, tmp_path, 2, 0)
    done: list[int] = []

    def save(first: int) -> None:
        for number in range(first, first + 15):
            write(LOCAL, tmp_path, number % 3 + 1, number)
        done.append(first)

    threads = [threading.Thread(target=save, args=(first,)) for first in (100, 200)]
    for thread in threads:
        thread.start()
    reads = 0
    while any(thread.is_alive() for thread in threads) or not reads:
        value_in(tmp_path)
        reads += 1
    for thread in threads:
        thread.join()
    assert sorted(done) == [100, 200] and value_in(tmp_path) in (114, 214)
    assert len(names(tmp_path)) <= 3


def test_two_saves_while_the_files_are_opened(tmp_path: Path) -> None:
    """The first removes a shard that was found, the second writes it again: the second is read, not refused."""
    write(LOCAL, tmp_path, 3, 0)

    class Busy(LocalStorage):
        """Runs both saves around the first attempt to open the last shard."""

        saved = False

        def open(self, path: str) -> LocalFile:
            if self.saved or not path.endswith("m-00002-of-00003"):
                return super().open(path)
            self.saved = True
            write(LOCAL, tmp_path, 1, 1)
            try:
                return super().open(path)
            finally:
                write(LOCAL, tmp_path, 3, 2)

    storage = Busy()
    assert {float(value[0]) for value in tfckpt.load_file(tmp_path / "m", storage=storage).values()} == {2.0}
    assert storage.saved


def test_a_pattern_of_an_earlier_count_finds_the_later_save(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A program that has just asked for the newest checkpoint may open it after another save; this is logged."""
    write(LOCAL, tmp_path, 2, 1)
    newest = "m-?????-of-00002"
    write(LOCAL, tmp_path, 3, 2)
    assert value_in(tmp_path, newest) == 2 and "is a later save" in caplog.text
