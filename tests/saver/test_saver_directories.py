"""Checkpoints over restarts, pins and metrics, relative and moved directories, and colliding names."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from saver_files import VERSIONS, Clock, Directory, names_in

import torch_tfckpt as tfckpt
from torch_tfckpt import KeepBest, Saver, SaverDef

# Checkpoints of an earlier run.


def test_recover_last_checkpoints(tmp_path: Path) -> None:
    """CASES 57, 58: existing checkpoints are recovered, and the next save continues the list."""
    here = Directory(tmp_path / "d")
    first = here.saver(max_to_keep=3)
    paths = [first.save(here.path / "ckpt", step) for step in (1, 2, 3)]
    second = here.saver(max_to_keep=3)
    second.recover_last_checkpoints(paths)
    assert second.last_checkpoints == paths
    tfckpt.remove_checkpoint(str(paths[0]))
    third = here.saver(max_to_keep=3)
    third.recover_last_checkpoints(paths)
    assert third.last_checkpoints == paths[1:]
    fourth = third.save(here.path / "ckpt", 4)
    here.assert_last(third, *map(str, [*paths[1:], fourth]))


def test_the_age_of_recovered_checkpoints(tmp_path: Path) -> None:
    """The age of a recovered checkpoint is the modification time of its index file."""
    here = Directory(tmp_path / "d")
    for name, mtime, files in (("old", 3600, 0), ("young", 3601, 3)):
        path = here.save(here.saver(), name)
        os.utime(f"{path}.index", (mtime, mtime))
        saver = here.saver(max_to_keep=1, keep_checkpoint_every_n_hours=1.0, clock=Clock())
        saver.recover_last_checkpoints([path])
        here.save(saver, "next")
        assert here.files(name) == files


@VERSIONS
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("relative", [False, True])
def test_recover_counts_those_of_an_earlier_run(tmp_path: Path, version: int, sharded: bool, relative: bool) -> None:
    """With recover=True a restarted job keeps max_to_keep checkpoints in total, otherwise per run."""
    here = Directory(tmp_path / "d", sharded=sharded, version=version)
    for step in range(6):
        saver = here.saver(max_to_keep=2, recover=True, save_relative_paths=relative)
        path = saver.save(here.path / "m", step)
        assert saver.last_checkpoints[-1] == path
        assert {int(name[2]) for name in names_in(here.path) if name.startswith("m-")} == {max(0, step - 1), step}
    for step in range(6, 9):
        here.saver(max_to_keep=2).save(here.path / "m", step)
    assert {int(name[2]) for name in names_in(here.path) if name.startswith("m-")} == {4, 5, 6, 7, 8}


def test_recover_after_set_last_checkpoints(tmp_path: Path) -> None:
    """set_last_checkpoints disables recover=True; recovering skips deleted checkpoints."""
    here = Directory(tmp_path / "d")
    first = here.saver()
    s1, s2, _ = (here.save(first, name) for name in ("s1", "s2", "s3"))
    given = here.saver(max_to_keep=2, recover=True)
    given.set_last_checkpoints([s2])
    s4 = here.save(given, "s4")
    here.assert_last(given, s2, s4)
    tfckpt.remove_checkpoint(s2)
    left = here.saver(recover=True)
    s5 = here.save(left, "s5")
    here.assert_last(left, s4, s5)
    assert tfckpt.checkpoint_exists(s1)


# Pins and metrics.


def test_a_pinned_checkpoint_is_kept(tmp_path: Path) -> None:
    """It is kept across restarts until it is unpinned; the next save then deletes it."""
    here = Directory(tmp_path / "d")
    saver = here.saver(max_to_keep=1)
    first = saver.save(here.path / "m", 0)
    assert first is not None
    saver.pin(first)
    for step in (1, 2):
        saver.save(here.path / "m", step)
    assert [here.files(f"m-{step}") for step in range(3)] == [3, 0, 3]
    again = here.saver(max_to_keep=1, recover=True)
    again.save(here.path / "m", 3)
    assert [here.files(f"m-{step}") for step in range(4)] == [3, 0, 0, 3]
    again.unpin(os.path.relpath(first))  # another spelling of the same path
    again.save(here.path / "m", 4)
    assert [here.files(f"m-{step}") for step in range(5)] == [0, 0, 0, 0, 3]


@pytest.mark.parametrize("asynchronously", [False, True])
def test_the_best_are_kept(tmp_path: Path, asynchronously: bool) -> None:
    """keep_best keeps the k lowest (or highest) by metric in addition to the newest, even across restarts."""
    here = Directory(tmp_path / "d")
    losses = [0.5, 0.1, 0.9, math.nan, 0.3, 0.7, 0.05]
    on_disk = []
    for step, loss in enumerate(losses):
        saver = here.saver(max_to_keep=1, keep_best=KeepBest("loss", "min", 2), recover=True)
        save = saver.save_async if asynchronously else saver.save
        save(here.path / "m", step, metrics={"loss": loss, "other": 1})
        saver.sync()
        on_disk.append([i for i in range(step + 1) if here.files(f"m-{i}")])
    assert on_disk == [[0], [0, 1], [0, 1, 2], [0, 1, 3], [1, 4], [1, 4, 5], [1, 6]]
    assert tfckpt.latest_checkpoint(here.path) == str(here.path / "m-6")


@pytest.mark.parametrize("metrics", [5, {"loss": "low"}, {1: 0.5}, {"loss": torch.zeros(2)}])
def test_invalid_metrics(tmp_path: Path, metrics: Any) -> None:
    """Invalid metrics are rejected before anything is written."""
    with pytest.raises(ValueError, match="metrics"):
        Saver({"v": torch.zeros(1)}).save(tmp_path / "m", metrics=metrics)
    assert names_in(tmp_path) == []


# Names and directories.


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Change to an empty working directory and return its new directory "train"."""
    (tmp_path / "train").mkdir()
    monkeypatch.chdir(tmp_path)
    yield Path("train")


@pytest.mark.parametrize("place", ["train", "", "absolute"])
@VERSIONS
def test_checkpoints_named_like_the_state_file(train: Path, place: str, version: int) -> None:
    """CASES 87, 88: save paths that collide with the state file are rejected.

    With a step, or sharded in a relative directory, there is no collision. Sharded version 2 in a directory whose
    checkpoints have the path of the state file raises RuntimeError.
    """
    directory = str(train.absolute()) if place == "absolute" else place
    path = os.path.join(directory, "checkpoint")
    here = Directory(Path(directory or "."), version=version)
    with pytest.raises(ValueError, match="'latest_filename' collides with 'save_path'"):
        here.saver().save(path)
    assert names_in(train) == []
    sharded = Directory(Path(directory or "."), sharded=True, version=version)
    if version == SaverDef.V2 and place != "train":
        with pytest.raises(RuntimeError, match="conflicts with path used for checkpoint state"):
            sharded.saver().save(path)
        assert names_in(train) == []
    else:
        saved = sharded.saver().save(path)
        assert (
            tfckpt.latest_checkpoint(directory) == saved == path + ("-?????-of-00002" if version == SaverDef.V1 else "")
        )
        sharded.saver().restore(saved)
    for each in (here, sharded):
        saved = each.saver().save(path, global_step=1)
        assert tfckpt.latest_checkpoint(directory) == saved


def test_a_relative_path(train: Path) -> None:
    """CASES 89: steps 0, 1, 2 contain 0, 1, 2, and latest_checkpoint finds step 2."""
    v = torch.tensor(0.0)
    saver = Saver({"v": v})
    for step in range(3):
        v.fill_(float(step))
        saver.save("train/snapshot", global_step=step)
    v.fill_(-1.0)
    assert tfckpt.latest_checkpoint("train") == "train/snapshot-2"
    saver.restore(tfckpt.latest_checkpoint("train"))
    assert v.item() == 2.0


@VERSIONS
@pytest.mark.parametrize("sharded", [False, True])
def test_saved_checkpoints_exist(tmp_path: Path, version: int, sharded: bool) -> None:
    """CASES 37, 40, 98: checkpoint_exists, latest_checkpoint and meta_graph_filename after a save."""
    here = Directory(tmp_path / "d", sharded=sharded, version=version)
    assert not tfckpt.checkpoint_exists(here.path / "basics")
    path = here.save(here.saver(), "basics")
    assert path == str(here.path / "basics") + ("-?????-of-00002" if sharded and version == SaverDef.V1 else "")
    assert tfckpt.checkpoint_exists(path)
    assert tfckpt.latest_checkpoint(here.path) == path == tfckpt.latest_checkpoint(here.path, valid=True)
    assert tfckpt.meta_graph_filename(path) == str(here.path / "basics.meta")
    assert (here.path / "basics.meta").is_file()


@VERSIONS
@pytest.mark.parametrize("sharded", [False, True])
def test_latest_complete(tmp_path: Path, version: int, sharded: bool) -> None:
    """latest_checkpoint(valid=True) skips missing and short data files and needs no state file."""
    here = Directory(tmp_path / "d", sharded=sharded, version=version)
    saver = here.saver()
    older, newer = saver.save(here.path / "m", 1), saver.save(here.path / "m", 2)
    assert tfckpt.latest_checkpoint(here.path, valid=True) == newer
    victim = max(path for path in here.path.glob("m-2*") if path.suffix not in (".meta", ".index"))
    content = victim.read_bytes()
    for spoil in (content[:-1], b"", None):
        if spoil is None:
            victim.unlink()
        else:
            victim.write_bytes(spoil)
        assert tfckpt.latest_checkpoint(here.path, valid=True) == older
    victim.write_bytes(content)
    (here.path / "checkpoint").unlink()
    assert tfckpt.latest_checkpoint(here.path) is None
    if version == SaverDef.V2:
        assert tfckpt.latest_checkpoint(here.path, valid=True) == newer


@pytest.mark.parametrize("relative", [False, True])
def test_a_moved_directory_continues(tmp_path: Path, relative: bool) -> None:
    """A moved directory is found and retention continues, even if the state file has absolute paths."""
    here = Directory(tmp_path / "old")
    saver = here.saver(max_to_keep=2, save_relative_paths=relative)
    for step in (1, 2):
        saver.save(here.path / "m", step)
    assert ("/" in (here.path / "checkpoint").read_text()) != relative
    here.path.rename(tmp_path / "new")
    moved = Directory(tmp_path / "new")
    assert tfckpt.latest_checkpoint(moved.path) == str(moved.path / "m-2")
    again = moved.saver(max_to_keep=2, save_relative_paths=relative, recover=True)
    again.restore(tfckpt.latest_checkpoint(moved.path))
    again.save(moved.path / "m", 3)
    assert {name.partition(".")[0] for name in names_in(moved.path)} == {"checkpoint", "m-2", "m-3"}
