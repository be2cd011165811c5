"""remove_bundle: deletes a checkpoint without ever leaving a broken one."""

import itertools
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from claims import assert_right
from storages import Counting, CrashingStorage, DropUnsyncedStorage, FailingStorage, Killed

import torch_tfckpt as tfckpt
from torch_tfckpt.bundle.leftovers import remove_leftovers
from torch_tfckpt.bundle.removal import remove_bundle
from torch_tfckpt.bundle.writer import BundleWriter
from torch_tfckpt.storage.local import LOCAL, LocalStorage

VALUES = {"a": torch.arange(4.0), "b": torch.ones(3)}


def save(path: Path, shards: int = 2) -> Path:
    with BundleWriter(LOCAL, str(path), num_shards=shards) as writer:
        for shard, (name, value) in enumerate(VALUES.items()):
            writer.add(name, value, shard=shard % shards)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def state_of(path: Path) -> str:
    """Return "whole" or "none"; fail for an index without its data."""
    try:
        values = tfckpt.load_file(path)
    except tfckpt.NotFoundError as error:
        assert not path.with_name(f"{path.name}.index").exists(), error
        return "none"
    assert_right(values, VALUES)
    return "whole"


def test_all_files_of_a_checkpoint_are_removed(tmp_path: Path) -> None:
    """Including data files of this name with other shard counts."""
    path = save(tmp_path / "m-1")
    (tmp_path / "m-1.data-00004-of-00009").touch()
    remove_bundle(LOCAL, str(path))
    assert names(tmp_path) == []


def test_removing_a_missing_checkpoint_does_nothing(tmp_path: Path) -> None:
    """It can be removed twice, and if only data files are left."""
    path = save(tmp_path / "m-1")
    (tmp_path / "m-1.index").unlink()
    for _ in range(2):
        remove_bundle(LOCAL, str(path))
        assert names(tmp_path) == []
    remove_bundle(LOCAL, str(tmp_path / "no folder" / "m-1"))


def test_other_checkpoints_stay(tmp_path: Path) -> None:
    """Those whose names start with its name or are a prefix of it, and files with similar names."""
    path = save(tmp_path / "m-1")
    others = [save(tmp_path / name, 1) for name in ("m", "m-10", "m-1.x", "n-1")]
    for name in ("m-1.meta", "m-1", "m-1.data-00000-of-000001", "m-1.data-0-of-1", "m-1.index.bak"):
        (tmp_path / name).touch()
    before = names(tmp_path)
    remove_bundle(LOCAL, str(path))
    gone = {"m-1.index", "m-1.data-00000-of-00002", "m-1.data-00001-of-00002"}
    assert set(before) - set(names(tmp_path)) == gone
    assert all(state_of(other) == "whole" for other in others)


def test_the_index_is_removed_first() -> None:
    """Also if files are removed one by one."""
    log: list[str] = []

    class Objects(Counting):
        renames = False

        def list(self, directory: str) -> list[str]:
            return ["m.index", "m.data-00000-of-00001"]

        def remove(self, path: str) -> None:
            log.append(path)

    remove_bundle(Objects(LOCAL), "memory://m")
    assert log[0] == "memory://m.index"


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_anywhere_leaves_all_or_no_checkpoint(error: type[BaseException], late: bool, tmp_path: Path) -> None:
    """Never a broken one; the rest is removed by the next call or by cleanup."""
    for number in itertools.count():
        path = save(tmp_path / f"m-{number}")
        storage = FailingStorage(LOCAL, number, late=late, error=error)
        try:
            remove_bundle(storage, str(path))
        except (OSError, KeyboardInterrupt):
            state_of(path)
        if not storage.failed:
            assert names(tmp_path) == []
            break
        if state_of(path) == "whole":
            remove_bundle(LOCAL, str(path))
        remove_leftovers(LOCAL, str(tmp_path))
        assert names(tmp_path) == [], f"after {storage.failed}"
    assert number > 5


def test_a_kill_anywhere_leaves_all_or_no_checkpoint(tmp_path: Path) -> None:
    """And the next save finds the rest."""
    states = set()
    for number in itertools.count():
        path = save(tmp_path / f"m-{number}")
        storage = CrashingStorage(LOCAL, number)
        try:
            remove_bundle(storage, str(path))
        except Killed:
            states.add(state_of(path))
        else:
            break
        if state_of(path) == "none":
            remove_leftovers(LOCAL, str(tmp_path))
            assert names(tmp_path) == [], f"killed at {storage.crashed}"
        else:
            remove_bundle(LOCAL, str(path))
    assert states == {"whole", "none"}


def test_a_power_cut_anywhere_leaves_all_or_no_checkpoint(tmp_path: Path) -> None:
    """Whichever renames survive: there is no index without its data."""
    (tmp_path / "disk").mkdir()
    path = save(tmp_path / "disk" / "m")
    seen: dict[tuple[tuple[str, bytes], ...], str] = {}
    for number in itertools.count():
        disk = DropUnsyncedStorage(tmp_path / "disk")
        storage = CrashingStorage(disk, number)
        with suppress(Killed):
            remove_bundle(storage, str(path))
        for survived in disk.states():
            files = {Path(name).name: data for name, data in survived.items() if "tempstate" not in name}
            key = tuple(sorted(files.items()))
            if key not in seen:
                folder = tmp_path / f"state-{len(seen)}"
                folder.mkdir()
                for name, data in files.items():
                    (folder / name).write_bytes(data)
                seen[key] = state_of(folder / "m")
        if not storage.crashed:
            break
    assert set(seen.values()) == {"whole", "none"}


def test_an_open_reader_is_not_disturbed(tmp_path: Path) -> None:
    """It still reads exactly the same values."""
    path = save(tmp_path / "m")
    with tfckpt.load_checkpoint(path) as reader:
        remove_bundle(LOCAL, str(path))
        assert names(tmp_path) == []
        assert_right({name: reader.get_tensor(name) for name in reader.keys()}, VALUES)


def test_counting_forwards_every_public_method() -> None:
    """The storage that counts and injects failures covers every public method of LocalStorage."""
    public = {name for name in vars(LocalStorage) if not name.startswith("_")}
    assert public <= {name for name in dir(Counting) if not name.startswith("_")}
