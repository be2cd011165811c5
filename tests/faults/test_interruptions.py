"""A signal handler, or Ctrl-C, at any line of the package and of the threads it uses: no hang, nothing lost.

The handler is a function that a trace calls in the main thread, where Python would run the handler of a signal. A
watchdog ends the process with the stacks of all threads if something waits for longer than a test takes.
"""

import faulthandler
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from own_threads import own_thread_names
from storages import GatedStorage

import torch_tfckpt as tfckpt
from torch_tfckpt import Checkpoint, CheckpointManager, Saver
from torch_tfckpt.errors import FailedPreconditionError

# What is interrupted: the package, and the modules of Python whose locks it could hold.
INTERRUPTED = ("torch_tfckpt", "threading.py", "concurrent/futures", "queue.py", "logging")
STEPS = 8  # interruptions per test, spread evenly over all lines


@pytest.fixture(autouse=True)
def watchdog() -> Iterator[None]:
    faulthandler.dump_traceback_later(300, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def interrupt(action: Callable[[], object], at: int, handler: Callable[[], object]) -> int:
    """Run `action` and call `handler` at its line number `at`, counting executed lines; return their number."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        if not any(part in frame.f_code.co_filename for part in INTERRUPTED):
            return None
        # Python looks for signals after calls and at jumps; there are none where `threading` holds this lock.
        if event == "line" and not threading._active_limbo_lock._is_owned():  # type: ignore[attr-defined]
            count += 1
            if count == at:
                sys.settrace(None)
                handler()
                sys.settrace(trace)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
    return count


class Run:
    """A training run with a Saver, a Checkpoint and a manager of the same values."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.w = torch.arange(300_000.0)
        self.saver = Saver({"w": self.w, "model": torch.nn.Linear(3, 2)}, max_to_keep=2)
        self.checkpoint = Checkpoint(w=self.w)
        self.manager = CheckpointManager(Checkpoint(w=self.w), directory / "managed", max_to_keep=2)
        self.path = self.saver.save(directory / "first", 0)
        self.written = self.checkpoint.write(directory / "written")

    def actions(self) -> dict[str, Callable[[], object]]:
        where = self.directory
        return {
            "save": lambda: self.saver.save(where / "m", 1),
            "save_async": lambda: self.saver.save_async(where / "m", 1),
            "result": lambda: self.saver.save_async(where / "m", 1).result(),
            "close": self.saver.close,
            "restore": lambda: self.saver.restore(self.path),
            "write": lambda: self.checkpoint.write(where / "c"),
            "read": lambda: self.checkpoint.read(self.written).assert_consumed(),
            "save_file": lambda: tfckpt.save_file({"w": self.w}, where / "f"),
            "manager": lambda: self.manager.save(options=tfckpt.CheckpointOptions(enable_async=True)),
        }


INTERRUPTED_ACTIONS = ["save", "save_async", "result", "restore", "write", "read", "save_file", "manager"]


def stops(action: Callable[[], object]) -> list[int]:
    lines = interrupt(action, -1, lambda: None)
    return sorted({1 + lines * step // STEPS for step in range(STEPS)})


@pytest.mark.thinned(2)
@pytest.mark.parametrize("handlers", ["save save_async", "write manager", "save_file restore close"])
@pytest.mark.parametrize("name", INTERRUPTED_ACTIONS)
def test_a_handler_that_saves_finishes_or_is_refused(tmp_path: Path, name: str, handlers: str) -> None:
    """At any line: the handler's call completes or raises at once, and the interrupted call completes."""
    run = Run(tmp_path)
    action = run.actions()[name]
    for at in stops(action):
        refused: list[str] = []

        def handler(refused: list[str] = refused) -> None:
            for other in handlers.split():
                try:
                    run.actions()[other]()
                except FailedPreconditionError as error:
                    refused.append(str(error))

        interrupt(action, at, handler)
        assert all("signal" in text for text in refused)
        for object_ in (run.saver, run.checkpoint, run.manager):
            object_.sync()
    for path in (*run.saver.last_checkpoints, *run.manager.checkpoints):
        assert torch.equal(tfckpt.load_file(path).get("w", run.w), run.w)
    assert tfckpt.latest_checkpoint(tmp_path, valid=True) == run.saver.last_checkpoints[-1]
    assert "tfckpt-save" not in own_thread_names()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Ctrl-C during a `__del__`
@pytest.mark.parametrize("name", INTERRUPTED_ACTIONS)
def test_after_ctrl_c_the_next_save_works(tmp_path: Path, name: str) -> None:
    """At any line KeyboardInterrupt arrives; what was published before is intact, and the next save is complete."""
    run = Run(tmp_path)
    action = run.actions()[name]

    def ctrl_c() -> None:
        raise KeyboardInterrupt

    interrupted = 0
    for step, at in enumerate(stops(action)):
        try:
            interrupt(action, at, ctrl_c)
        except KeyboardInterrupt:
            interrupted += 1
        except RuntimeError as error:
            # In threading.Condition.wait, between releasing its lock and its `try`, Python itself turns the interrupt
            # into "release unlocked lock". Thread.start waits there only if the new thread is slow to start.
            assert isinstance(error.__context__, KeyboardInterrupt)
            interrupted += 1
        assert torch.equal(run.w, torch.arange(300_000.0))
        for object_ in (run.saver, run.checkpoint, run.manager):
            object_.sync()
        assert tfckpt.checkpoint_exists(run.path) or run.path not in run.saver.last_checkpoints
        path = run.saver.save(tmp_path / "next", step)
        assert tfckpt.latest_checkpoint(tmp_path, valid=True) == path
        run.path = path
    assert interrupted > STEPS // 2


@pytest.mark.parametrize("name", ["save", "save_async", "write", "manager"])
def test_ctrl_c_where_nobody_has_the_save_yet_leaves_nothing(tmp_path: Path, name: str) -> None:
    """After the files were created and before the save is known to anybody who would remove them, at any line."""
    run = Run(tmp_path)
    tracing: list[bool] = []
    lines = at = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal lines
        code = frame.f_code
        if "torch_tfckpt" not in code.co_filename:
            return None
        if code.co_qualname == "BundleSave.__init__" and event == "return":
            tracing.append(True)
        elif code.co_qualname in ("InFlight.start", "BundleSave.finish"):
            tracing.clear()
        elif tracing and event in ("line", "return"):
            lines += 1
            if lines == at:
                raise KeyboardInterrupt
        return trace

    while True:
        at, lines = at + 1, 0
        tracing.clear()
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            run.actions()[name]()
        except KeyboardInterrupt:
            sys.settrace(before)
        else:
            sys.settrace(before)
            break
        left = [path.name for path in tmp_path.rglob("*tempstate*")]
        assert not left, f"interrupted at {at}"
        run.saver.sync()
        run.checkpoint.sync()
        run.manager.sync()
    assert at > 3


def test_threads_that_share_a_saver_take_turns(tmp_path: Path) -> None:
    """Every save of every thread is complete, and the records name the last ones."""
    saver = Saver({"w": torch.zeros(1000)}, max_to_keep=3)
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(10):
                if step % 2:
                    saver.save_async(tmp_path / "m", 100 * number + step).result()
                else:
                    saver.save(tmp_path / "m", 100 * number + step)
                saver.sync()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert errors == [] and not any(thread.is_alive() for thread in threads)
    assert len(saver.last_checkpoints) == 3
    assert all(tfckpt.checkpoint_exists(path) for path in saver.last_checkpoints)
    assert tfckpt.latest_checkpoint(tmp_path, valid=True) == saver.last_checkpoints[-1]
    assert len(list(tmp_path.glob("m-*.index"))) == 3


@pytest.mark.parametrize("wait", ["result", "sync", "save_async"])
def test_a_handler_may_save_while_the_program_waits_for_a_save(tmp_path: Path, wait: str) -> None:
    """A real signal while the main thread waits for a save in flight: the handler's save completes."""
    gate = GatedStorage()
    saver = Saver({"w": torch.zeros(10)}, storage=gate)
    paths: list[str] = []

    def handler(*_: object) -> None:
        gate.opened.set()
        paths.append(saver.save(tmp_path / "handler"))

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        handle = saver.save_async(tmp_path / "m", 1)
        assert gate.reached.wait(60)
        timer = threading.Timer(0.1, signal.pthread_kill, (threading.main_thread().ident, signal.SIGUSR1))
        timer.start()
        waits: dict[str, Callable[[], object]] = {
            "result": handle.result,
            "sync": saver.sync,
            "save_async": lambda: saver.save_async(tmp_path / "m", 2).result(),
        }
        waits[wait]()
        timer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert paths == [str(tmp_path / "handler")] and tfckpt.checkpoint_exists(paths[0])


def test_a_callback_that_waits_for_its_own_save_is_refused(tmp_path: Path) -> None:
    """`sync` in a write callback of a save in the background would wait for itself."""
    checkpoint = Checkpoint(w=torch.zeros(3))
    options = tfckpt.CheckpointOptions(enable_async=True, experimental_write_callbacks=[checkpoint.sync])
    checkpoint.write(tmp_path / "c", options)
    with pytest.raises(FailedPreconditionError, match="waits for the save, which cannot end"):
        checkpoint.sync()
    assert tfckpt.checkpoint_exists(tmp_path / "c")
