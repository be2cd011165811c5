"""SIGKILL at random moments of every writer: nothing is lost, mixed, or older than before, and nothing stays behind.

The heavy test kills TFCKPT_KILLS processes of each writer (default 700, more than 10,000 in total):

    TFCKPT_KILLS=700 python -m pytest -n 0 -s tests/faults/test_killed_writers.py -m heavy
"""

import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import torch
from forked_processes import forkserver
from killed_writers import READY, WRITERS, orphans_in, state_of, write_until_killed
from killing import folder_in_memory, let_run

import torch_tfckpt as tfckpt

KILLS: Final = 3
MANY_KILLS: Final = int(os.environ.get("TFCKPT_KILLS", "700"))
LONGEST: Final = 0.05  # processor seconds until a process is killed, at most
CLEANING: Final = 10  # kills after which another writer must remove everything
# An overwrite of these can be killed between two renames.
NOT_ATOMIC: Final = {"Saver version 1 sharded"}


@pytest.fixture
def fast_folder(tmp_path: Path) -> Iterator[Path]:
    with folder_in_memory(tmp_path) as folder:
        yield folder


def killed(name: str, folder: Path, seed: int, first: int) -> list[tuple[int, str]]:
    """Start a writer, kill it, and return what it reported as safe."""
    context = forkserver()
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=write_until_killed, args=(name, str(folder), seed, first, there))
    process.start()
    there.close()
    assert here.poll(120) and here.recv() == READY
    let_run(process, random.Random(seed).uniform(0, LONGEST))
    process.kill()
    process.join()
    reports = []
    while True:
        try:
            reports.append(here.recv())
        except EOFError:
            here.close()
            return reports


def temporary_files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if "tempstate" in path.name)


def kill_often(name: str, folder: Path, kills: int) -> "Counter[str]":
    """Kill a writer again and again; return how often something was wrong, and what was seen."""
    (folder / "sources").mkdir()
    safe: dict[str, int] = {}
    counts: Counter[str] = Counter()
    number = 1
    for life in range(kills):
        for done, output in killed(name, folder, 1000 * kills + life, number):
            safe[output] = number = done
            counts["saves"] += 1
        number += 2
        state = state_of(name, folder)
        counts["mixed"] += len(state.mixed)
        counts["lost"] += len(state.unreadable)
        for text in (*state.mixed, *state.unreadable):
            print(f"{name}, kill {life}: {text}")
        if name != "CheckpointManager":
            counts["back"] += sum(state.numbers.get(output, 0) < least for output, least in safe.items())
        elif safe:
            counts["back"] += max(state.numbers.values(), default=0) < max(safe.values())
        safe.update(state.numbers)
        left = temporary_files(folder)
        counts["with leftovers"] += bool(left)
        if life % CLEANING == CLEANING - 1 or life == kills - 1:
            if name == "CheckpointManager":  # only a manager deletes the checkpoints that a killed one was to delete
                number += 1
                WRITERS[name].write(f"{folder}/managed", number)
            for here in (folder, folder / "sources"):
                tfckpt.save_file({"x": torch.ones(1)}, here / "another")
                for path in here.glob("another.*"):
                    path.unlink()
            left = [*temporary_files(folder), *orphans_in(name, folder), *orphans_in("save_file", folder / "sources")]
            counts["leftovers"] += len(left)
            if left:
                print(f"{name}, kill {life}: left over: {left}")
        if name in NOT_ATOMIC and state.mixed:
            for path in folder.glob("out-*"):
                path.unlink()
            safe.clear()
    return counts


def test_orphans_are_found(tmp_path: Path) -> None:
    """Files that no complete checkpoint has are leftovers, although their names are not temporary ones."""
    tfckpt.save_file({"x": torch.ones(1)}, tmp_path / "out-0")
    assert orphans_in("save_file", tmp_path) == []
    strays = ["out-0.data-00000-of-00002", "out-1.data-00000-of-00001", "out-1.meta", "out-1.tfckpt.json", "other"]
    for name in strays:
        (tmp_path / name).touch()
    assert orphans_in("save_file", tmp_path) == sorted(strays)


def check(name: str, counts: "Counter[str]") -> None:
    print(f"{name}: {dict(counts)}")
    assert not counts["lost"] and not counts["back"] and not counts["leftovers"], counts
    assert name in NOT_ATOMIC or not counts["mixed"], counts


@pytest.mark.parametrize("name", ["Saver sharded", "merge", "convert to npz"])
def test_a_killed_writer_leaves_old_or_new(name: str, fast_folder: Path) -> None:
    check(name, kill_often(name, fast_folder, KILLS))


@pytest.mark.heavy
@pytest.mark.parametrize("name", WRITERS)
def test_many_kills(name: str, fast_folder: Path) -> None:
    counts = kill_often(name, fast_folder, MANY_KILLS)
    check(name, counts)
    assert counts["with leftovers"] or MANY_KILLS < 50, "no kill came in the middle of a save"
