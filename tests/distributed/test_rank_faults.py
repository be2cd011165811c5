"""A save of all ranks in which one raises, is killed or hangs: who is told what, and what is left in the directory."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from rank_faults import OF_ALL, OF_RANK_0, TIMEOUT, Told
from rank_processes import RankProcesses

import torch_tfckpt as tfckpt

COUNT = 3
FILE = re.compile(r"checkpoint|m-[0-9]+\.(index|meta|data-[0-9]{5}-of-[0-9]{5})")


@pytest.fixture(scope="module")
def processes() -> Iterator[RankProcesses]:
    with RankProcesses(COUNT, timeout=100) as ranks:
        yield ranks


def check_directory(folder: Path, *expected: str) -> None:
    """Exactly these checkpoints, whole, and nothing else."""
    assert [name for name in os.listdir(folder) if FILE.fullmatch(name) is None] == []
    assert sorted(path.stem for path in folder.glob("*.index")) == sorted(expected)
    for name in expected:
        assert tfckpt.verify(folder / name).ok, name


@pytest.mark.parametrize("failing", range(COUNT))
@pytest.mark.parametrize("step", OF_ALL)
def test_every_rank_names_a_rank_that_raises(processes: RankProcesses, tmp_path: Path, step: str, failing: int) -> None:
    """The earlier checkpoint is whole, the next save clean, and nothing is left."""
    told: list[Told] = processes.call(
        "rank_faults:fail", str(tmp_path), step, failing, "out_of_space", process_group=False
    )
    for each in told:
        assert f"save of {tmp_path}/m-2: rank {failing} of {COUNT} failed: [Errno 28] No space left" in each.text
        assert "Nothing was published; earlier checkpoints are unchanged" in each.text
        assert (each.failures, each.newest) == ([failing], ["m-1", "m-3"])
    check_directory(tmp_path, "m-1", "m-3")


@pytest.mark.parametrize("step", OF_RANK_0[1:])  # without links, files are copied
def test_every_rank_is_told_that_rank_0_could_not_publish(processes: RankProcesses, tmp_path: Path, step: str) -> None:
    """Or that it has, but could not write the state file."""
    told: list[Told] = processes.call("rank_faults:fail", str(tmp_path), step, 0, "out_of_space", process_group=False)
    for each in told:
        assert "rank 0 of 3 failed: " in each.text
        assert ("in place" in each.text) == (step == "state")
        assert each.failures == [0]
        assert each.newest == told[0].newest
    check_directory(tmp_path, *(["m-2", "m-3"] if step == "state" else ["m-1", "m-3"]))


@pytest.mark.thinned(5)
@pytest.mark.parametrize("failing", range(COUNT))
@pytest.mark.parametrize("step", ["write", "finish"])
def test_survivors_name_a_killed_rank(processes: RankProcesses, tmp_path: Path, step: str, failing: int) -> None:
    """Within the timeout and a second; the next run is clean. (The store is hosted elsewhere.)"""
    outcomes = processes.run("rank_faults:fail", str(tmp_path), step, failing, "killed", process_group=False)
    assert outcomes[failing].exit_status == -9
    for each in (outcome.value for rank, outcome in enumerate(outcomes) if rank != failing):
        assert f"rank {failing} of {COUNT}: not heard of for {TIMEOUT:g} s" in each.text
        assert each.failures == [failing]
    again = processes.call("rank_faults:save_once_more", str(tmp_path), 3, process_group=False)
    assert again == [("m-1", ["m-1", "m-3"])] * COUNT
    check_directory(tmp_path, "m-1", "m-3")


@pytest.mark.parametrize("step", ["link", "publish", "state"])
def test_nothing_is_lost_if_rank_0_dies_when_all_parts_are_complete(
    processes: RankProcesses, tmp_path: Path, step: str
) -> None:
    """The next run's latest_checkpoint(valid=True) publishes the parts, and all ranks get the same answer."""
    outcomes = processes.run("rank_faults:fail", str(tmp_path), step, 0, "killed", process_group=False)
    for each in (outcome.value for outcome in outcomes[1:]):
        assert f"rank 0 of {COUNT}: not heard of" in each.text
        assert f"The parts of all ranks are complete: `tfckpt merge {tmp_path}/m-2`" in each.text
    again = processes.call("rank_faults:save_once_more", str(tmp_path), 3, process_group=False)
    assert again == [("m-2", ["m-2", "m-3"])] * COUNT
    check_directory(tmp_path, "m-2", "m-3")


def test_parts_are_merged_by_hand(processes: RankProcesses, tmp_path: Path) -> None:
    """`merge_parts`; the state file then names the checkpoint."""
    processes.run("rank_faults:fail", str(tmp_path), "link", 0, "killed", process_group=False)
    report = tfckpt.merge_parts(tmp_path / "m-2")
    assert (report.tensors, len(report.sources)) == (13, COUNT)
    assert tfckpt.latest_checkpoint(tmp_path) == str(tmp_path / "m-2")
    check_directory(tmp_path, "m-1", "m-2")
    with pytest.raises(tfckpt.NotFoundError, match="there are no parts of it to merge"):
        tfckpt.merge_parts(tmp_path / "m-2")


def test_a_read_only_directory_is_left_alone(processes: RankProcesses, tmp_path: Path) -> None:
    """Its newest published checkpoint is the answer."""
    folder = tmp_path / "run"
    processes.run("rank_faults:fail", str(folder), "link", 0, "killed", process_group=False)
    before = sorted(os.listdir(folder))
    folder.chmod(0o555)
    try:
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write to every directory")
        assert tfckpt.latest_checkpoint(folder, valid=True) == str(folder / "m-1")
    finally:
        folder.chmod(0o755)
    assert sorted(os.listdir(folder)) == before


@pytest.mark.thinned(2)
@pytest.mark.parametrize("failing", [0, 2])
def test_a_hanging_rank_is_named_and_learns_it(processes: RankProcesses, tmp_path: Path, failing: int) -> None:
    """When it wakes, its own save fails, too."""
    told: list[Told] = processes.call("rank_faults:fail", str(tmp_path), "write", failing, "hangs", process_group=False)
    for each in told:
        assert f"rank {failing} of {COUNT}: not heard of for {TIMEOUT:g} s" in each.text
        assert failing in each.failures
    again = processes.call("rank_faults:save_once_more", str(tmp_path), 3, process_group=False)
    assert [each[1] for each in again] == [["m-1", "m-3"]] * COUNT
    check_directory(tmp_path, "m-1", "m-3")


def test_the_death_of_the_process_that_hosts_the_store_is_told(processes: RankProcesses, tmp_path: Path) -> None:
    """With the store at rank 0, as init_process_group makes it: what the others knew is in the error."""
    outcomes = processes.run(
        "rank_faults:fail", str(tmp_path), "write", 0, "killed", process_group=False, store_at="rank 0"
    )
    for outcome in outcomes[1:]:
        assert outcome.returned, outcome
        text = outcome.value.text
        assert "the store through which the ranks agree is gone" in text
        assert re.search("What rank [12] of 3 knew: its own part was ", text)
    again = processes.call("rank_faults:save_once_more", str(tmp_path), 3, process_group=False)
    assert again == [("m-1", ["m-1", "m-3"])] * COUNT
    check_directory(tmp_path, "m-1", "m-3")
