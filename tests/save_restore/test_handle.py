"""Saver.save_async: values that may change after it returns, the handle, and reporting of errors."""

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from saver_files import VERSIONS, names_in
from storages import GatedStorage

import torch_tfckpt as tfckpt
from torch_tfckpt import BaseSaverBuilder, SaveHandle, Saver, SaverDef, StagingOptions, Variable
from torch_tfckpt.saveables.save_spec import SaveableObject
from torch_tfckpt.storage.protocol import Storage

PATIENCE = 60.0  # seconds after which a wait counts as failed
SMALL = StagingOptions(buffer_bytes=1 << 20, async_bytes=1 << 20, save_bytes=1 << 20)


@pytest.fixture
def gate() -> Iterator[GatedStorage]:
    """Storage that blocks writes until it is opened; opened at the end for remaining waiters."""
    gate = GatedStorage()
    yield gate
    gate.opened.set()


class Gated(BaseSaverBuilder):
    """Builder that waits before it writes."""

    def __init__(self, gate: GatedStorage, version: int = SaverDef.V2) -> None:
        super().__init__(version)
        self._gate = gate

    def save_op(self, storage: Storage, filename: str, saveables: Sequence[SaveableObject]) -> None:
        self._gate.wait()
        super().save_op(storage, filename, saveables)


def on_a_thread(call: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=call)
    thread.start()
    return thread


def disk_full() -> OSError:
    return OSError(28, "No space left on device")


def test_a_save_whose_thread_has_not_run_yet_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a loaded machine a new thread may run late, long after `save_async` has returned."""
    run = SaveHandle._run

    def run_late(self: SaveHandle) -> None:
        time.sleep(1)
        run(self)

    monkeypatch.setattr(SaveHandle, "_run", run_late)
    saver = Saver({"w": torch.ones(1)})
    for step in (1, 2):
        saver.save_async(tmp_path / "m", step)
    saver.sync()
    assert saver.last_checkpoints == [str(tmp_path / "m-1"), str(tmp_path / "m-2")]


# Changing values.


@pytest.mark.parametrize("sharded", [False, True])
def test_values_may_change_after_save_async_returned(tmp_path: Path, gate: GatedStorage, sharded: bool) -> None:
    """CASES 4: values are copied to host memory before any byte is written.

    Later changes by training are not in the file.
    """
    var_list = [Variable(torch.full((1000,), float(i)), f"v{i}", device=f"/cpu:{i}") for i in range(3)]
    saver = Saver(var_list, sharded=sharded, storage=gate)
    handle = saver.save_async(tmp_path / "m", 1)
    assert handle.staged.is_set() and not handle.done()
    assert not (tmp_path / "m-1.index").exists() and not (tmp_path / "checkpoint").exists()
    with pytest.raises(TimeoutError, match="has not ended"):
        handle.result(timeout=0.01)
    for variable in var_list:
        variable.tensor.fill_(-1.0)
    gate.opened.set()
    assert handle.result(PATIENCE) == str(tmp_path / "m-1") == handle.result()
    assert handle.done() and saver.last_checkpoints == [str(tmp_path / "m-1")]
    saver.restore(handle.result())
    assert [variable.tensor.tolist() for variable in var_list] == [[float(i)] * 1000 for i in range(3)]


@VERSIONS
@pytest.mark.parametrize("sharded", [False, True])
def test_values_may_change_with_a_custom_save_op(tmp_path: Path, version: int, sharded: bool) -> None:
    """All values are copied: whole tensors, slices and results of functions."""
    gate = GatedStorage()
    whole = torch.arange(8.0).reshape(4, 2)
    info = [tfckpt.SaveSliceInfo("w", [4, 2], [begin, 0], [2, 2]) for begin in (0, 2)]
    parts = [Variable(whole[2 * i : 2 * i + 2], f"w/{i}", info[i], device=f"/cpu:{i}") for i in range(2)]
    text = ["before"]
    computed = tfckpt.SaveSpec(lambda: text[0], "", "text", tfckpt.DataType.DT_STRING, "cpu")
    saver = Saver([*parts, SaveableObject(None, [computed], "text")], builder=Gated(gate, version), sharded=sharded)
    handle = saver.save_async(tmp_path / "m")
    assert handle.staged.is_set()
    whole.zero_()
    text[0] = "after"
    gate.opened.set()
    path = handle.result(PATIENCE)
    assert path is not None
    stored = tfckpt.load_file(path)
    assert torch.equal(stored["w"], torch.arange(8.0).reshape(4, 2))
    assert stored["text"].item() == b"before"


def test_a_large_save_waits_for_the_disk(tmp_path: Path, gate: GatedStorage) -> None:
    """Values beyond `async_bytes` are staged only when earlier bytes are written."""
    big = torch.arange(1 << 20, dtype=torch.float32)  # 4 MiB through 1 MiB
    saver = Saver({"v": big}, staging=SMALL, storage=gate)
    handle = saver.save_async(tmp_path / "m", block_until_staged=False)
    assert gate.reached.wait(PATIENCE)
    assert not handle.staged.is_set() and not handle.done()
    gate.opened.set()
    assert handle.staged.wait(PATIENCE)
    big.zero_()
    saver.restore(handle.result(PATIENCE))
    assert torch.equal(big, torch.arange(1 << 20, dtype=torch.float32))


def test_save_async_blocks_until_staged(tmp_path: Path, gate: GatedStorage) -> None:
    """By default the caller may change values after the call, however long copying takes."""
    saver = Saver({"v": torch.zeros(1 << 20)}, staging=SMALL, storage=gate)
    handles: list[SaveHandle] = []
    thread = on_a_thread(lambda: handles.append(saver.save_async(tmp_path / "m")))
    assert gate.reached.wait(PATIENCE)
    assert not handles
    gate.opened.set()
    thread.join(PATIENCE)
    assert handles[0].staged.is_set() and handles[0].result(PATIENCE) == str(tmp_path / "m")


def test_a_small_save_is_staged_without_blocking(tmp_path: Path, gate: GatedStorage) -> None:
    """With block_until_staged=False, values that fit are staged before anything is written."""
    saver = Saver({"v": torch.zeros(5)}, storage=gate)
    handle = saver.save_async(tmp_path / "m", block_until_staged=False)
    assert handle.staged.wait(PATIENCE) and not handle.done()
    gate.opened.set()
    assert handle.result(PATIENCE) == str(tmp_path / "m")


def test_a_handle_keeps_no_reference_to_values(tmp_path: Path) -> None:
    """A finished handle keeps no tensor alive."""
    value = torch.zeros(10)
    saver = Saver({"v": value})
    handle = saver.save_async(tmp_path / "m")
    handle.result(PATIENCE)
    known = weakref.ref(value)
    del saver, value
    gc.collect()
    assert known() is None and handle.result() == str(tmp_path / "m")


# One save at a time.


def test_a_busy_saver_skips(tmp_path: Path, gate: GatedStorage) -> None:
    """if_busy="skip" returns a finished handle with result None and writes nothing; later saves work."""
    saver = Saver({"v": torch.zeros(1)}, storage=gate)
    first = saver.save_async(tmp_path / "m", 1)
    assert gate.reached.wait(PATIENCE)
    skipped = saver.save_async(tmp_path / "m", 2, if_busy="skip")
    assert skipped.done() and skipped.staged.is_set() and skipped.result() is None
    gate.opened.set()
    first.result(PATIENCE)
    assert saver.save_async(tmp_path / "m", 3, if_busy="skip").result(PATIENCE) == str(tmp_path / "m-3")
    assert saver.last_checkpoints == [str(tmp_path / f"m-{step}") for step in (1, 3)]
    assert not list(tmp_path.glob("m-2*"))


@pytest.mark.parametrize("call", ["save", "save_async", "restore", "sync", "close", "pin", "set_last_checkpoints"])
def test_a_busy_saver_waits(tmp_path: Path, gate: GatedStorage, call: str) -> None:
    """Other calls wait for the running save, so that they are not undone by it."""
    saver = Saver({"v": torch.zeros(1)}, max_to_keep=2, storage=gate)
    other = Saver({"v": torch.zeros(1)}, storage=gate)
    gate.opened.set()
    old = other.save(tmp_path / "old")
    gate.opened.clear()
    gate.reached.clear()
    handle = saver.save_async(tmp_path / "m", 1)
    assert gate.reached.wait(PATIENCE)
    calls: dict[str, Callable[[], object]] = {
        "save": lambda: saver.save(tmp_path / "m", 2),
        "save_async": lambda: saver.save_async(tmp_path / "m", 2),
        "restore": lambda: saver.restore(tmp_path / "m-1"),
        "sync": saver.sync,
        "close": saver.close,
        "pin": lambda: saver.pin(tmp_path / "m-1"),
        "set_last_checkpoints": lambda: saver.set_last_checkpoints([str(old)]),
    }
    was_done: list[bool] = []
    begun = threading.Event()

    def run() -> None:
        begun.set()
        calls[call]()
        was_done.append(handle.done())

    thread = on_a_thread(run)
    assert begun.wait(PATIENCE)
    gate.opened.set()
    thread.join(PATIENCE)
    assert was_done == [True]
    saver.sync()
    if call == "set_last_checkpoints":
        assert saver.last_checkpoints == [old]


def test_consecutive_saves(tmp_path: Path) -> None:
    """Each save waits for the previous one; the state file has them in order, old ones are deleted."""
    v = torch.zeros(())
    saver = Saver({"v": v}, max_to_keep=3)
    handles = []
    for step in range(10):
        v.fill_(float(step))
        handles.append(saver.save_async(tmp_path / "m", step))
    assert [handle.result(PATIENCE) for handle in handles] == [str(tmp_path / f"m-{step}") for step in range(10)]
    assert saver.last_checkpoints == [str(tmp_path / f"m-{step}") for step in (7, 8, 9)]
    assert [tfckpt.load_variable(path, "v").item() for path in saver.last_checkpoints] == [7.0, 8.0, 9.0]


def test_an_invalid_if_busy(tmp_path: Path) -> None:
    """Another value of if_busy is rejected."""
    with pytest.raises(ValueError, match='pass "wait" or "skip"'):
        Saver({"v": torch.zeros(1)}).save_async(tmp_path / "m", if_busy="sometimes")  # type: ignore[arg-type]


def test_invalid_arguments_are_raised_at_once(tmp_path: Path) -> None:
    """The call itself raises, not the result or a later call."""
    saver = Saver({"v": torch.zeros(1)})
    wrong: list[dict[str, Any]] = [
        {"global_step": 0.5}, {"latest_filename": "a/b"}, {"metrics": 5}, {"save_path": tmp_path / "checkpoint"}
    ]  # fmt: skip
    for arguments in wrong:
        with pytest.raises(ValueError, match=r"."):
            saver.save_async(**{"save_path": tmp_path / "m", **arguments})
    saver.close()
    assert names_in(tmp_path) == []


# Errors.


@pytest.mark.parametrize("call", ["save", "save_async", "restore", "sync", "close", "with"])
def test_an_error_is_raised_by_the_next_call_once(tmp_path: Path, gate: GatedStorage, call: str) -> None:
    """The next call of any kind raises the error in full; the call after that succeeds."""
    before = Saver({"v": torch.ones(1)}).save(tmp_path / "before")
    state = (tmp_path / "checkpoint").read_text()

    gate.opened.set()
    gate.error = disk_full()
    saver = Saver({"v": torch.zeros(1)}, storage=gate)
    handle = saver.save_async(tmp_path / "m", 1)
    assert handle.staged.wait(PATIENCE)
    handle._done.wait(PATIENCE)
    gate.error = None

    def leave_a_with_block() -> None:
        with saver:
            pass

    calls: dict[str, Callable[[], object]] = {
        "save": lambda: saver.save(tmp_path / "m", 2),
        "save_async": lambda: saver.save_async(tmp_path / "m", 2).result(PATIENCE),
        "restore": lambda: saver.restore(before),
        "sync": saver.sync,
        "close": saver.close,
        "with": leave_a_with_block,
    }
    with pytest.raises(tfckpt.IncompleteSaveError, match="No space left on device") as raised:
        calls[call]()
    assert "m-1" in str(raised.value)
    assert (tmp_path / "checkpoint").read_text() == state and not list(tmp_path.glob("m*"))
    calls[call]()
    saver.close()
    listed = {"restore": [before], "save": [str(tmp_path / "m-2")], "save_async": [str(tmp_path / "m-2")]}
    assert saver.last_checkpoints == listed.get(call, [])  # after a restore: those of the directory


def test_an_error_raised_by_result_is_not_raised_by_the_saver(tmp_path: Path, gate: GatedStorage) -> None:
    """result() raises the error each time; the saver does not raise it any more."""
    saver = Saver({"v": torch.zeros(1)}, storage=gate)
    handle = saver.save_async(tmp_path / "m")
    gate.error = disk_full()
    gate.opened.set()
    for _ in range(2):
        with pytest.raises(tfckpt.IncompleteSaveError, match="No space left on device"):
            handle.result(PATIENCE)
    assert handle.done() and handle.staged.is_set()
    gate.error = None
    saver.sync()
    assert saver.save(tmp_path / "m") == str(tmp_path / "m")


def test_two_errors_are_both_raised(tmp_path: Path, gate: GatedStorage) -> None:
    """The second save does not start before the first error was raised; no error is lost."""
    saver = Saver({"v": torch.zeros(1)}, storage=gate)
    gate.error = disk_full()
    gate.opened.set()
    saver.save_async(tmp_path / "m", 1)
    with pytest.raises(OSError, match="m-1"):
        saver.save_async(tmp_path / "m", 2)
    saver.save_async(tmp_path / "m", 3)
    with pytest.raises(OSError, match="m-3"):
        saver.sync()
    saver.sync()


def test_no_thread_can_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call raises, no file is left, and the next call works."""
    saver = Saver({"v": torch.zeros(1)}, write_version=SaverDef.V1)
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    for kind in (saver, Saver({"v": torch.zeros(1)})):
        monkeypatch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            kind.save_async(tmp_path / "m")
        monkeypatch.setattr(threading.Thread, "start", start)
        assert names_in(tmp_path) == []
    for kind in (saver, Saver({"v": torch.zeros(1)})):
        assert kind.save_async(tmp_path / "m").result(PATIENCE) == str(tmp_path / "m")
