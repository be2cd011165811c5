"""A training program of several ranks that is killed again and again, and resumed by other numbers of ranks."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from rank_processes import RankProcesses
from rank_training import KEEP, SAVE_EVERY, STEPS, kept

import torch_tfckpt as tfckpt


@pytest.fixture(scope="module")
def processes() -> Iterator[RankProcesses]:
    with RankProcesses(4, timeout=100) as four:
        yield four


@pytest.fixture(scope="module")
def losses(processes: RankProcesses, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Of a run of four ranks that is not killed."""
    ranks = processes.call("rank_training:train", str(tmp_path_factory.mktemp("whole")))
    assert ranks == [ranks[0]] * 4
    return list(ranks[0][1])


def killed_and_resumed(processes: RankProcesses, folder: Path, losses: list[float], seed: int) -> None:
    """Kill one rank or all at a random call of the file system; resume with one to four ranks, and compare."""
    chance = random.Random(seed)
    victims = tuple(range(4)) if chance.random() < 0.5 else (chance.randrange(4),)
    processes.run("rank_training:train", str(folder), seed, victims, timeout=25)
    before = {name for name in kept(folder) if tfckpt.verify(folder / name).ok}
    count = chance.choice([4, 4, 3, 2, 1])
    ranks = processes.call("rank_training:train", str(folder), world_size=count)
    assert all(each == ranks[0] for each in ranks)
    first, resumed = ranks[0]
    assert first >= max((int(name[2:]) for name in before), default=0), "a whole checkpoint was not used"
    if count == 4:
        assert resumed == losses[first:]
    else:
        assert resumed == pytest.approx(losses[first:], rel=1e-6)
    assert kept(folder) == sorted(f"m-{step}" for step in range(STEPS, 0, -SAVE_EVERY)[:KEEP])
    if first < STEPS:  # otherwise there was no save that removes what is left of the last one
        assert [name for name in os.listdir(folder) if "tempstate" in name or "unlisted" in name] == []
    assert all(tfckpt.verify(folder / name).ok for name in kept(folder))


@pytest.mark.parametrize("seed", range(10))
def test_nothing_is_lost_by_a_kill(processes: RankProcesses, tmp_path: Path, losses: list[float], seed: int) -> None:
    """Losses are equal, bit for bit with as many ranks; the newest checkpoints are kept, and nothing else is left."""
    killed_and_resumed(processes, tmp_path, losses, seed)


@pytest.mark.heavy
@pytest.mark.parametrize("seed", range(10, 200))
def test_nothing_is_lost_by_many_kills(
    processes: RankProcesses, tmp_path: Path, losses: list[float], seed: int
) -> None:
    killed_and_resumed(processes, tmp_path, losses, seed)
