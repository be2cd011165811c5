"""A real training script that is killed, interrupted and restarted at random moments."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

import pytest
import training_script
from claims import assert_right
from forked_processes import forkserver
from killing import folder_in_memory, let_run
from numbered import State, assert_nothing_stray, assert_sound, latest_number
from training_script import KEPT, READY, SIZES, WAYS, make_saver, train, train_until_interrupted

import torch_tfckpt as tfckpt
from torch_tfckpt import Saver
from torch_tfckpt.bundle.unfinished import PARTS_SUFFIX

KILLS: Final = 10  # each takes a third of a second on a quiet machine, and a second on a busy one
MANY_KILLS: Final = 250
INTERRUPTS: Final = 10
LONGEST: Final = 0.06  # processor seconds a run continues, at most, after 0 to 3 saves: about one more save
SEED: Final = 20261125


@pytest.fixture
def fast_folder(tmp_path: Path) -> Iterator[Path]:
    with folder_in_memory(tmp_path) as folder:
        yield folder


def start(
    target: Callable[[str, int, Connection], None], folder: Path, seed: int
) -> tuple[BaseProcess, "Connection[object, object]"]:
    """Start a process forked from one that has already imported torch; return when it is ready."""
    context = forkserver()
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(str(folder), seed, there))
    process.start()
    there.close()
    assert here.poll(60), "the script did not start"
    assert here.recv() == READY
    return process, here


def received(pipe: "Connection[object, object]") -> list[object]:
    """Return everything that was sent until the process ended."""
    reports = []
    while True:
        try:
            reports.append(pipe.recv())
        except EOFError:
            return reports


def unfinished(folder: Path) -> set[str]:
    """Return the names of files that a save has created but not published."""
    return {path.name for path in folder.iterdir() if "tempstate" in path.name}


def what_is_left(folder: Path) -> str:
    """Summarise what a killed run left incomplete."""
    names = unfinished(folder)
    if any(f"{PARTS_SUFFIX}.tempstate" in name for name in names):
        return "parts"
    temporary = {name.split(".tempstate")[0].split(".")[-1].split("-")[0] for name in names}
    return "+".join(sorted(temporary)) or "nothing"


@pytest.mark.parametrize("kills", [KILLS, pytest.param(MANY_KILLS, marks=pytest.mark.heavy)])
def test_a_killed_run_never_loses_a_checkpoint(fast_folder: Path, kills: int) -> None:
    """After each of many kills the state file names a checkpoint that restores bit for bit.

    It is not older than the last one whose save returned; and one more save removes all leftovers.
    """
    chance = random.Random(SEED)
    safe = saves = 0
    found: Counter[str] = Counter()
    begun = time.monotonic()
    for life in range(kills):
        before = unfinished(fast_folder)
        process, pipe = start(train, fast_folder, SEED + life)
        reports = [pipe.recv() for _ in range(chance.randrange(4))]
        if life % 2:  # killed soon after a save has started, however busy the machine is
            while process.is_alive() and not unfinished(fast_folder) - before:
                process.join(0.001)
        let_run(process, chance.uniform(0, LONGEST / 6 if life % 2 else LONGEST))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"life {life} ended by itself: {process.exitcode}"
        reports += received(pipe)
        saves += len(reports)
        safe = max([safe, *(number for number in reports if isinstance(number, int))])
        found[what_is_left(fast_folder)] += 1
        if safe:
            latest = assert_sound(fast_folder, SIZES)
            assert safe <= latest <= safe + 1, f"life {life}: {safe} was safe, the newest is {latest}"
            safe = latest
    print(f"{kills} kills, {saves} saves in {time.monotonic() - begun:.0f} s; left by a kill: {dict(found)}")
    assert sum(count for what, count in found.items() if what != "nothing") >= kills // 20, found
    _assert_one_save_clears_up(fast_folder, safe + 1)


def _assert_one_save_clears_up(folder: Path, number: int) -> None:
    state = State(SIZES)
    state.fill(number)
    saver: Saver = make_saver(state)
    saver.save(folder / "m", number)
    assert assert_sound(folder, SIZES) == number
    assert_nothing_stray(folder, SIZES)
    assert len(saver.last_checkpoints) == KEPT


def interrupted(process: BaseProcess) -> bool:
    """Send SIGINT; return whether the process ends soon."""
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join(10)
    return process.exitcode is not None


def test_ctrl_c_ends_a_run_at_once(fast_folder: Path) -> None:
    """SIGINT at any moment of a save, including an asynchronous one, ends the process soon by KeyboardInterrupt.

    No thread continues, and the newest checkpoint restores bit for bit; the next run cleans up.
    """
    chance = random.Random(SEED)
    safe = dropped = 0
    for life in range(INTERRUPTS):
        process, pipe = start(train_until_interrupted, fast_folder, SEED + life)
        # Every second run gets as far as one save, however busy the machine is.
        reports = [pipe.recv()] if life % 2 else []
        let_run(process, chance.uniform(0.02, 3 * LONGEST))
        if not interrupted(process):
            dropped += 1
            assert interrupted(process), f"life {life} continues after Ctrl-C"
        assert process.exitcode == 0
        *more, last = received(pipe)
        assert last == "interrupted, left: []"
        reports += more
        safe = max([safe, *(number for number in reports if isinstance(number, int))])
        if safe:
            latest = assert_sound(fast_folder, SIZES)
            assert safe <= latest <= safe + 1
            safe = latest
    assert safe >= INTERRUPTS // 2
    # Python drops an interrupt that arrives in a finalizer ("Exception ignored in").
    assert dropped <= INTERRUPTS // 5
    _assert_one_save_clears_up(fast_folder, safe + 1)


@pytest.mark.parametrize("way", WAYS)
def test_the_interpreter_waits_for_an_async_save(way: str, tmp_path: Path) -> None:
    """Although the program does not wait for the handle, the checkpoint has the values at the time of the call."""
    script = training_script.__file__
    ended = subprocess.run(
        [sys.executable, script, str(tmp_path), way], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert latest_number(tmp_path, SIZES) == 7
    assert not [path.name for path in tmp_path.iterdir() if "tempstate" in path.name or "_temp" in path.name]


def test_a_reader_survives_deletion_by_retention(tmp_path: Path) -> None:
    """A checkpoint opened before its deletion reads the same values, and new ones can be opened."""
    state = State(SIZES)
    saver: Saver = make_saver(state, max_to_keep=1)
    state.fill(1)
    with tfckpt.load_checkpoint(str(saver.save(tmp_path / "m", 1))) as reader:
        first = reader.get_tensor("layer/bias")
        for number in range(2, 5):
            state.fill(number)
            saver.save(tmp_path / "m", number)
            assert latest_number(tmp_path, SIZES) == number
        assert not (tmp_path / "m-1.index").exists()
        state.fill(1)
        assert_right({"layer/bias": first}, {"layer/bias": state.tensors["layer/bias"]})
        assert_right({name: reader.get_tensor(name) for name in reader.keys()}, state.tensors)
