"""Which checkpoints a Saver keeps, the contents of its state file, and the files after each save."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from saver_files import HOUR, VERSIONS, Clock, Directory, names_in

import torch_tfckpt as tfckpt
from torch_tfckpt import Saver, SaverDef, Variable

# The newest checkpoints.


@VERSIONS
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("asynchronously", [False, True])
def test_max_to_keep(tmp_path: Path, version: int, sharded: bool, asynchronously: bool) -> None:
    """CASES 47, 48, 49, 51: the third save deletes the first with all files; saving again makes it newest."""
    here = Directory(tmp_path / "d", sharded=sharded, version=version)
    saver = here.saver(max_to_keep=2)
    whole: dict[tuple[int, bool], int] = {
        (SaverDef.V2, False): 3,
        (SaverDef.V2, True): 4,
        (SaverDef.V1, False): 2,
        (SaverDef.V1, True): 3,
    }

    def save(name: str) -> str:
        path = saver.save_async(here.path / name).result() if asynchronously else saver.save(here.path / name)
        assert path is not None
        return path

    def assert_on_disk(*names: str) -> None:
        count = whole[version, sharded]
        assert {name: here.files(name) for name in ("s1", "s2", "s3")} == {
            name: count if name in names else 0 for name in ("s1", "s2", "s3")
        }

    assert saver.last_checkpoints == []
    s1 = save("s1")
    here.assert_last(saver, s1)
    assert_on_disk("s1")
    s2 = save("s2")
    here.assert_last(saver, s1, s2)
    assert_on_disk("s1", "s2")
    s3 = save("s3")
    here.assert_last(saver, s2, s3)
    assert_on_disk("s2", "s3")
    save("s2")
    here.assert_last(saver, s3, s2)
    assert_on_disk("s2", "s3")
    save("s1")
    here.assert_last(saver, s2, s1)
    assert_on_disk("s1", "s2")


def test_a_sharded_checkpoint_is_deleted_with_all_its_files(tmp_path: Path) -> None:
    """CASES 54: each has an index, two data files and a meta graph; the third save deletes the first's."""
    here = Directory(tmp_path / "d", sharded=True)
    saver = here.saver(max_to_keep=2)
    for name in ("s1", "s2", "s3"):
        here.save(saver, name)
        assert here.files(name) == 4
    assert names_in(here.path) == [
        "checkpoint",
        *(f"{name}.{suffix}" for name in ("s2", "s3")
          for suffix in ("data-00000-of-00002", "data-00001-of-00002", "index", "meta")),
    ]  # fmt: skip


def test_checkpoints_of_another_saver(tmp_path: Path) -> None:
    """CASES 50, 52, 53: a saver that is given the list, a copy by saver_def, a saver without history."""
    here = Directory(tmp_path / "d")
    first = here.saver(max_to_keep=2)
    s1, s2, s3 = (here.save(first, name) for name in ("s1", "s2", "s3"))
    here.save(first, "s2")
    here.save(first, "s1")  # which deletes s3
    here.assert_last(first, s2, s1)
    here.save(first, "s3")
    here.save(first, "s2")
    here.assert_last(first, s3, s2)
    for second in (here.saver(max_to_keep=2), here.saver(saver_def=first.as_saver_def())):
        Directory(here.path).save(here.saver(max_to_keep=0), "s1")
        second.set_last_checkpoints([s2, s3])
        here.save(second, "s2")
        here.assert_last(second, s3, s2)
        assert tfckpt.checkpoint_exists(s1)  # saved by another saver, unknown here
        here.save(second, "s1")
        here.assert_last(second, s2, s1)
        assert here.files("s3") == 3  # of unknown age, so the schedule keeps it
    third = here.saver(max_to_keep=2)
    here.save(third, "s2")
    here.assert_last(third, s2)
    assert tfckpt.checkpoint_exists(s1)
    here.save(third, "s1")
    here.assert_last(third, s2, s1)


def test_paths_of_unknown_age_are_kept(tmp_path: Path) -> None:
    """max_to_keep=1, set_last_checkpoints([a]), save b, save c: a is kept, b is deleted."""
    here = Directory(tmp_path / "d")
    a = here.save(here.saver(), "a")
    saver = here.saver(max_to_keep=1)
    saver.set_last_checkpoints([a])
    here.save(saver, "b")
    c = here.save(saver, "c")
    assert [here.files(name) for name in "abc"] == [3, 0, 3]
    here.assert_last(saver, c)


def test_paths_of_known_age(tmp_path: Path) -> None:
    """set_last_checkpoints_with_time: paths older than the schedule are deleted, younger ones kept."""
    here = Directory(tmp_path / "d")
    for name, when, files in (("old", 3600.0, 0), ("young", 3600.5, 3)):
        path = here.save(here.saver(), name)
        saver = here.saver(max_to_keep=1, keep_checkpoint_every_n_hours=1.0, clock=Clock())
        saver.set_last_checkpoints_with_time([(path, when)])
        assert saver.last_checkpoints == [path]
        here.save(saver, "next")
        assert here.files(name) == files


@pytest.mark.parametrize("bad", [("a",), {"a"}, "a", None])
def test_last_checkpoints_are_a_list(bad: Any) -> None:
    """Another type raises AssertionError, as in TensorFlow; `last_checkpoints` returns a copy."""
    saver = Saver({"v": torch.zeros(1)})
    with pytest.raises(AssertionError):
        saver.set_last_checkpoints(bad)
    with pytest.raises(AssertionError):
        saver.set_last_checkpoints_with_time(bad)
    saver.set_last_checkpoints(["a"])
    saver.last_checkpoints.append("b")
    assert saver.last_checkpoints == ["a"]


@pytest.mark.parametrize("max_to_keep", [None, 0])
def test_no_limit(tmp_path: Path, max_to_keep: int | None) -> None:
    """CASES 55: nothing is deleted, and the state file lists only the newest."""
    here = Directory(tmp_path / "d")
    saver = here.saver(max_to_keep=max_to_keep)
    for name in ("s1", "s2", "s3"):
        path = here.save(saver, name)
        assert saver.last_checkpoints == []
        assert here.state() == (path, [path])
    assert [here.files(name) for name in ("s1", "s2", "s3")] == [3, 3, 3]


@pytest.mark.parametrize("max_to_keep", [-1, True, 2.0, "3", math.nan])
def test_a_limit_that_is_not_a_number_of_checkpoints(max_to_keep: Any) -> None:
    """Rejected at construction; the message contains the values that keep all."""
    with pytest.raises(ValueError, match=r"max_to_keep`, got .*None and 0 keep all"):
        Saver({"v": torch.zeros(1)}, max_to_keep=max_to_keep)


@pytest.mark.parametrize("hours", [-1, math.nan, True, "1", None])
def test_a_schedule_that_is_not_a_number_of_hours(hours: Any) -> None:
    """Rejected at construction."""
    with pytest.raises(ValueError, match=r"keep_checkpoint_every_n_hours=.*number of hours"):
        Saver({"v": torch.zeros(1)}, keep_checkpoint_every_n_hours=hours)


def test_a_negative_limit_in_a_saver_def(tmp_path: Path) -> None:
    """As in TensorFlow, each checkpoint is deleted right after its save; its meta graph is kept."""
    here = Directory(tmp_path / "d")
    settings = here.saver().as_saver_def()
    assert settings is not None
    settings.max_to_keep = -1
    here.save(here.saver(saver_def=settings), "s1")
    assert names_in(here.path) == ["checkpoint", "s1.meta"]


def test_no_meta_graph(tmp_path: Path) -> None:
    """CASES 56: write_meta_graph=False writes all files but the meta graph."""
    path = Directory(tmp_path / "d").saver().save(tmp_path / "d" / "s", write_meta_graph=False)
    assert tfckpt.checkpoint_exists(str(path)) and names_in(tmp_path / "d") == [
        "checkpoint",
        "s.data-00000-of-00001",
        "s.index",
    ]


# One checkpoint every n hours.


def test_timeline(tmp_path: Path) -> None:
    """CASES 198: a timeline with max_to_keep 2 and one checkpoint per hour, built at time 0."""
    here, clock = Directory(tmp_path / "d"), Clock()
    saver = here.saver(max_to_keep=2, keep_checkpoint_every_n_hours=1.0, clock=clock)
    for number, (now, last, on_disk) in enumerate(
        [
            (600, [0], [0]),
            (1200, [0, 1], [0, 1]),
            (1800, [1, 2], [1, 2]),
            (3700, [2, 3], [2, 3]),
            (5000, [3, 4], [3, 4]),
            (7000, [4, 5], [3, 4, 5]),
            (7300, [5, 6], [3, 5, 6]),
            (9000, [6, 7], [3, 6, 7]),
            (11000, [7, 8], [3, 6, 7, 8]),
            (20000, [8, 9], [3, 6, 8, 9]),
            (20100, [9, 10], [3, 6, 8, 9, 10]),
            (20200, [10, 11], [3, 6, 8, 9, 10, 11]),
            (20300, [11, 12], [3, 6, 8, 9, 10, 11, 12]),
        ]
    ):
        clock.now = float(now)
        saver.save(here.path / "m", number)
        here.assert_last(saver, *(str(here.path / f"m-{i}") for i in last))
        for i in range(number + 1):
            files = [name for name in names_in(here.path) if name.startswith(f"m-{i}.")]
            assert len(files) == (3 if i in on_disk else 0), (number, files)


def test_the_schedule_begins_when_the_saver_is_built(tmp_path: Path) -> None:
    """CASES 59: interval 0.7 s, all saved a second after the start: the first is kept, the second deleted."""
    here, clock = Directory(tmp_path / "d"), Clock(100.0)
    saver = here.saver(max_to_keep=2, keep_checkpoint_every_n_hours=0.7 / HOUR, clock=clock)
    clock.now = 101.0
    s1, s2 = here.save(saver, "s1"), here.save(saver, "s2")
    here.assert_last(saver, s1, s2)
    s3 = here.save(saver, "s3")
    here.assert_last(saver, s2, s3)
    assert here.files("s1") == 3
    s4 = here.save(saver, "s4")
    here.assert_last(saver, s3, s4)
    assert [here.files(name) for name in ("s1", "s2", "s3", "s4")] == [3, 0, 3, 3]
    with tfckpt.Collections().as_default():
        tfckpt.add_to_collection("variables", Variable(torch.zeros(1), "v"))
        clock.now = 0.0
        deferred = Saver(defer_build=True, max_to_keep=1, keep_checkpoint_every_n_hours=1.0, clock=clock)
        clock.now = HOUR
        deferred.build()
    clock.now = 1.5 * HOUR
    deferred.save(here.path / "late", 1)
    deferred.save(here.path / "late", 2)
    assert here.files("late-1") == 0
