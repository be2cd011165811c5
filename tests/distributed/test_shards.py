"""Shards: the box that a rank has of a DTensor, compared with the values that torch put there."""

from collections.abc import Iterator
from math import prod
from typing import Any

import pytest
from rank_processes import RankProcesses, RanksFailed
from sharded import KINDS, LAYOUTS

from torch_tfckpt.errors import InvalidArgumentError


@pytest.fixture(scope="module")
def processes() -> Iterator[RankProcesses]:
    with RankProcesses(4) as four:
        yield four


def _first_replicas(found: list[dict[str, Any]], key: str) -> list[tuple[str, int]]:
    """The boxes that are stored: (part, number of elements) of each rank that has the first replica."""
    return [(part, count) for part, first, count in filter(None, (each[key] for each in found)) if first]


def test_each_element_of_every_layout_has_one_first_replica(processes: RankProcesses) -> None:
    """The values in the box are those that the rank has (asserted there); the boxes are different and complete."""
    found = processes.call("sharded:shards_of_layouts")
    for name, shape, _, _ in LAYOUTS:
        stored = _first_replicas(found, name)
        assert sum(count for _, count in stored) == prod(shape), name
        assert len({part for part, _ in stored}) == len(stored) >= 1, name


def test_a_tensor_without_elements_is_stored_once(processes: RankProcesses) -> None:
    found = processes.call("sharded:shards_of_layouts")
    assert _first_replicas(found, "no elements") == [("-:-", 0)]


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_of_sharded_modules(processes: RankProcesses, kind: str) -> None:
    """FSDP2, HSDP, tensor parallelism and both: the elements are where torch put them, also for uneven sizes."""
    sizes = [(8, 16), (5, 13), (3, 7)] if "tp" not in kind else [(8, 16), (4, 12)]
    found = processes.call("sharded:shards_of_modules", [kind], sizes)
    for width, inner in sizes:
        weights = {"up.weight": width * inner, "down.weight": width * inner, "up.bias": inner}
        for name, count in weights.items():
            stored = _first_replicas(found, f"{kind} {width} x {inner}: {name}")
            assert sum(each for _, each in stored) == count, name


def test_tensor_parallel_and_then_fsdp_with_uneven_rows(processes: RankProcesses) -> None:
    """The order of the splits is from the inside to the outside; each rank checks its values."""
    sizes = range(1, 20)
    found = processes.call("sharded:shards_of_a_column", (2, 2), sizes)
    for size in sizes:
        assert sum(count for _, count in _first_replicas(found, str(size))) == 2 * size, size


def test_what_is_refused(processes: RankProcesses) -> None:
    """Sums, sizes that torch.chunk does not give, rows that are not consecutive, placements of other libraries."""
    for rank, messages in enumerate(processes.call("sharded:refusals")):
        assert 'tensor "sum": Partial' in messages["sum"]
        assert "redistribute(placements=[Replicate()" in messages["sum"]
        if rank != 2:  # 3 rows of 10 are what torch.chunk gives to rank 2 too
            assert f"this rank has [{rank + 1}] of a DTensor [10]" in messages["own sizes"]
        assert "not consecutive in dimension 0" in messages["interleaved"]
        assert "sharded.Interleaved" in messages["of another library"]


def test_a_collective_that_still_runs_is_waited_for(processes: RankProcesses) -> None:
    assert processes.call("sharded:unfinished") == [True] * 4


def test_local_tensors_of_other_classes_are_refused(processes: RankProcesses) -> None:
    for message in processes.call("sharded:wrapped", world_size=2):
        assert 'tensor "w": this rank\'s part of the DTensor is a sharded.Wrapped' in message


def test_a_rank_outside_of_the_mesh_has_nothing(processes: RankProcesses) -> None:
    assert processes.call("sharded:outside_of_the_mesh") == ["0,2:-", "2,2:-", None, None]


def test_runs_of_other_sizes_and_without_process_group(processes: RankProcesses) -> None:
    """The same processes serve world sizes 1 to 4, with a process group or only a store, at the test or at rank 0."""
    assert processes.call("sharded:ready", world_size=2) == [(0, 2, True), (1, 2, True)]
    assert processes.call("sharded:ready", world_size=1, process_group=False) == [(0, 1, False)]
    assert processes.call("sharded:counted_by_all", store_at="rank 0", world_size=3) == [0, 1, 2]


def test_errors_deaths_and_hangs_of_ranks_are_results(processes: RankProcesses) -> None:
    """Afterwards the next run starts anew what is missing."""
    raised = processes.run("sharded:raise_on", 1, world_size=2, process_group=False)
    assert isinstance(raised[1].error, InvalidArgumentError)
    assert raised[0].value == 0
    with pytest.raises(RanksFailed, match="rank 1 of 2: InvalidArgumentError: this rank"):
        processes.call("sharded:raise_on", 1, world_size=2, process_group=False)
    died = processes.run("sharded:die_on", 0, world_size=2, process_group=False)
    assert (died[0].exit_status, died[1].value) == (3, 1)
    processes.call(
        "sharded:ready", world_size=2
    )  # starts the process anew, which may take longer than the next timeout
    hung = processes.run("sharded:never_answer_on", 1, world_size=2, process_group=False, timeout=10)
    assert (hung[0].value, hung[1].late) == (0, True)
    assert processes.call("sharded:ready", world_size=2) == [(0, 2, True), (1, 2, True)]
