"""save_on_signal: one durable checkpoint at the next safe point after a signal, and the handlers restored."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from storages import GatedStorage

import torch_tfckpt as tfckpt
from torch_tfckpt import Checkpoint, CheckpointManager, Saver
from torch_tfckpt.errors import FailedPreconditionError, InvalidArgumentError

USR1 = signal.SIGUSR1


def test_the_save_happens_at_the_next_safe_point(tmp_path: Path) -> None:
    """Nothing is saved in the handler; `should_stop` saves once, with the step of that moment."""
    step = torch.tensor(0)
    saver = Saver({"step": step})
    with saver.save_on_signal(USR1, tmp_path / "m", global_step=lambda: int(step)) as preemption:
        assert not preemption.should_stop()
        step += 1
        os.kill(os.getpid(), USR1)
        assert preemption.signal == USR1 and not list(tmp_path.iterdir())
        step += 1
        assert preemption.should_stop() and preemption.should_stop()
    assert preemption.path == str(tmp_path / "m-2") and saver.last_checkpoints == [preemption.path]
    assert signal.getsignal(USR1) is signal.SIG_DFL


@pytest.mark.parametrize("fails", [False, True])
def test_a_save_in_flight_is_waited_for(tmp_path: Path, fails: bool) -> None:
    """If it fails, the state is saved all the same."""
    gate = GatedStorage()
    saver = Saver({"w": torch.ones(2)}, storage=gate)
    with saver.save_on_signal(USR1, tmp_path / "m", global_step=9) as preemption:
        saver.save_async(tmp_path / "m", 1)
        assert gate.reached.wait(60)
        os.kill(os.getpid(), USR1)
        gate.opened.set()
        if fails:
            saver._in_flight._handle._error = OSError("no space")  # type: ignore[union-attr]
        assert preemption.should_stop()
    assert tfckpt.checkpoint_exists(tmp_path / "m-9") and tfckpt.checkpoint_exists(tmp_path / "m-1")


@pytest.mark.parametrize("asynchronously", [False, True])
@pytest.mark.parametrize("step", [3, 4])
def test_a_save_is_a_safe_point(tmp_path: Path, asynchronously: bool, step: int) -> None:
    """Without a call of `should_stop`: a save of the same name counts, after another one the wanted one follows."""
    saver = Saver({"w": torch.ones(2)})
    preemption = saver.save_on_signal(USR1, tmp_path / "m", global_step=4)
    try:
        os.kill(os.getpid(), USR1)
        (saver.save_async if asynchronously else saver.save)(tmp_path / "m", step)
        assert preemption.path == str(tmp_path / "m-4")
        assert saver.last_checkpoints == [str(tmp_path / f"m-{number}") for number in sorted({step, 4})]
    finally:
        preemption.close()


def test_a_second_signal_has_its_usual_effect(tmp_path: Path) -> None:
    """The first Ctrl-C is noted, the second one interrupts; after an exception nothing is saved."""
    saver = Saver({"w": torch.ones(2)})
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore SIGINT
    try:
        with pytest.raises(KeyboardInterrupt), saver.save_on_signal(signal.SIGINT, tmp_path / "m"):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        assert not list(tmp_path.iterdir()) and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_several_objects(tmp_path: Path) -> None:
    """Each open object notes the signal and saves; none of those that are closed, in whatever order, swallows one."""
    received = []
    earlier = signal.signal(USR1, lambda number, frame: received.append(number))
    try:
        first, closed, last = (
            Saver({"w": torch.ones(1)}).save_on_signal(USR1, tmp_path / name) for name in ("first", "closed", "last")
        )
        closed.close()
        os.kill(os.getpid(), USR1)
        assert first.should_stop() and last.should_stop() and not closed.should_stop() and not received
        assert {path.stem for path in tmp_path.glob("*.index")} == {"first", "last"}
        os.kill(os.getpid(), USR1)
        assert received == [USR1]
        first, last = (Saver({"w": torch.ones(1)}).save_on_signal(USR1, tmp_path / "m") for _ in range(2))
        first.close()
        last.close()
        os.kill(os.getpid(), USR1)
        assert received == [USR1, USR1] and first.signal is None
    finally:
        signal.signal(USR1, earlier)


def test_exit_ends_the_program(tmp_path: Path) -> None:
    """With status 128 + n, once the checkpoint is durable."""
    saver = Saver({"w": torch.ones(2)})
    with pytest.raises(SystemExit) as raised, saver.save_on_signal(USR1, tmp_path / "m", exit=True) as preemption:
        os.kill(os.getpid(), USR1)
        preemption.should_stop()
    assert raised.value.code == 128 + USR1 and tfckpt.checkpoint_exists(tmp_path / "m")


def test_a_manager(tmp_path: Path) -> None:
    """It saves at any step, whatever the interval."""
    manager = CheckpointManager(Checkpoint(w=torch.ones(2)), tmp_path, 3, step_counter=lambda: 5, checkpoint_interval=9)
    manager.save()
    manager._last_checkpoint_step = 4
    with manager.save_on_signal([USR1, signal.SIGUSR2]) as preemption:
        os.kill(os.getpid(), signal.SIGUSR2)
    assert preemption.path == manager.latest_checkpoint == str(tmp_path / "ckpt-2")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, 12345])
def test_signals_that_cannot_be_handled(tmp_path: Path, number: int) -> None:
    """An error at once; no handler is changed."""
    with pytest.raises(InvalidArgumentError, match=r"Pass signal\.SIGTERM"):
        Saver({"w": torch.ones(2)}).save_on_signal([USR1, number], tmp_path / "m")
    assert signal.getsignal(USR1) is signal.SIG_DFL


def test_another_thread_is_refused(tmp_path: Path) -> None:
    """Python handles signals in the main thread only."""
    errors: list[BaseException] = []

    def install() -> None:
        try:
            Saver({"w": torch.ones(2)}).save_on_signal(USR1, tmp_path / "m")
        except FailedPreconditionError as error:
            errors.append(error)

    thread = threading.Thread(target=install)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])


CHILD = """
import os, signal, sys, time, torch, torch_tfckpt as tfckpt
reading, writing = os.pipe()
with tfckpt.Saver({"w": torch.ones(2)}).save_on_signal(signal.SIGTERM, sys.argv[1]):
    child = os.fork()
    if child == 0:
        os.write(writing, b"x")  # Python has forgotten the signals that came during the fork
        time.sleep(60)
    os.read(reading, 1)
    os.kill(child, signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_forked_children_end(tmp_path: Path) -> None:
    """SIGTERM ends a data loader's worker as before; the parent saves nothing."""
    program = [sys.executable, "-W", "ignore", "-c", CHILD, str(tmp_path / "m")]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == (f"{-signal.SIGTERM}\n", 0) and not list(tmp_path.iterdir())
