"""Log lines and reprs of savers, checkpoints and managers."""

import logging
import re
from pathlib import Path
from typing import assert_type

import pytest
import torch
from saver_files import Clock

import torch_tfckpt as tfckpt
from torch_tfckpt import Checkpoint, CheckpointManager, Saver, SaverCheckpoint, SaverDef
from torch_tfckpt.save_restore.handle import MaybeNone, SaveHandle, skipped_save


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Capture log records from INFO on."""
    caplog.set_level(logging.INFO, "torch_tfckpt")
    return caplog


def taken(lines: pytest.LogCaptureFixture) -> list[str]:
    """Return the messages logged since the last call."""
    messages = [record.getMessage() for record in lines.records if record.levelno == logging.INFO]
    lines.clear()
    return messages


class Ticking(Clock):
    """Clock that advances by a fixed number of seconds each time it is read."""

    def __init__(self, seconds: float) -> None:
        super().__init__(1000.0)
        self._seconds = seconds

    def __call__(self) -> float:
        self.now += self._seconds
        return self.now


@pytest.mark.parametrize(("seconds", "shown"), [(3.4, "3.4 s"), (0.012, "12 ms")])
@pytest.mark.parametrize("asynchronously", [False, True])
def test_a_saver(
    tmp_path: Path, lines: pytest.LogCaptureFixture, asynchronously: bool, seconds: float, shown: str
) -> None:
    """Each saved, deleted or restored checkpoint is logged in one line with path, size and reason."""
    saver = Saver({"a": torch.zeros(1000), "b": torch.zeros(500)}, max_to_keep=1, clock=Ticking(seconds))
    for step in (10, 20):
        if asynchronously:
            saver.save_async(tmp_path / "model.ckpt", step).result()
        else:
            saver.save(tmp_path / "model.ckpt", step)
    saver.restore(tmp_path / "model.ckpt-20")
    prefix = tmp_path / "model.ckpt"
    assert taken(lines) == [
        f"Saved {prefix}-10 (6 kB in {shown})",
        f"Saved {prefix}-20 (6 kB in {shown})",
        f"Deleted {prefix}-10 (max_to_keep=1)",
        f"Restored {prefix}-20 (2 tensors)",
    ]


def test_version_1(tmp_path: Path, lines: pytest.LogCaptureFixture) -> None:
    """A `save_op` of version 1 does not report a size, so none is logged."""
    Saver({"v": torch.zeros(1)}, write_version=SaverDef.V1, clock=Clock()).save(tmp_path / "m")
    assert taken(lines) == [f"Saved {tmp_path / 'm'} (in 0 ms)"]


def test_a_checkpoint(tmp_path: Path, lines: pytest.LogCaptureFixture) -> None:
    """Background saves are logged when published; the line of a restore by name mentions it."""
    checkpoint = Checkpoint(w=torch.zeros(1000))
    checkpoint.save_async(tmp_path / "ckpt").result()
    (line,) = taken(lines)
    assert re.fullmatch(rf"Saved {re.escape(str(tmp_path))}/ckpt-1 \(4.\d+ kB in [\d.]+ m?s\)", line)
    checkpoint.restore(tmp_path / "ckpt-1").assert_consumed()
    assert taken(lines) == [f"Restored {tmp_path / 'ckpt-1'} (2 tensors)"]
    Saver({"w": torch.zeros(1000)}, clock=Clock()).save(tmp_path / "named")
    checkpoint.restore(tmp_path / "named")
    assert taken(lines)[1:] == [f"Restored {tmp_path / 'named'} (1 tensor, by name)"]


def test_a_manager(tmp_path: Path, lines: pytest.LogCaptureFixture) -> None:
    """A manager that saves through a Saver or Checkpoint logs each event once."""
    for thing in (Checkpoint(w=torch.zeros(1)), {"w": torch.zeros(1)}):
        directory = tmp_path / type(thing).__name__
        manager = CheckpointManager(thing, directory, max_to_keep=1)
        manager.save()
        manager.save()
        manager.restore_or_initialize()
        assert [line.partition(" (")[0] for line in taken(lines)] == [
            f"Saved {directory}/ckpt-1",
            f"Saved {directory}/ckpt-2",
            f"Deleted {directory}/ckpt-1",
            f"Restored {directory}/ckpt-2",
        ]


def test_names_that_are_not_utf_8(tmp_path: Path, lines: pytest.LogCaptureFixture) -> None:
    """Such names are escaped, in log lines and in reprs, so that every stream accepts them."""
    saver = Saver({"v": torch.zeros(1)})
    saver.save(bytes(tmp_path) + b"/m\xff")
    assert taken(lines)[0].startswith(f"Saved {tmp_path}/m\\xff (")
    repr(saver).encode()


def test_reprs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each repr is one line with the most important settings and state."""
    monkeypatch.chdir(tmp_path)
    saver = Saver({"model": torch.nn.Linear(2, 2), "step": torch.tensor(0)}, max_to_keep=3, sharded=True)
    assert repr(saver) == "Saver(2 entries, max_to_keep=3, sharded=True)"
    handle = saver.save_async("run/model.ckpt", 30)
    assert repr(handle).startswith("SaveHandle('run/model.ckpt-30', ")
    handle.result()
    assert repr(handle) == "SaveHandle('run/model.ckpt-30', published)"
    assert repr(skipped_save()) == "SaveHandle(skipped)"
    assert repr(saver) == "Saver(2 entries, max_to_keep=3, sharded=True, last_checkpoint='run/model.ckpt-30')"
    with tfckpt.Collections().as_default():
        assert repr(Saver(defer_build=True)) == "Saver(not built)"
        assert repr(Saver(allow_empty=True)) == "Saver(0 entries, max_to_keep=5)"
    assert repr(SaverCheckpoint({"v": torch.zeros(1)})) == "SaverCheckpoint(Saver(2 entries, max_to_keep=0))"
    checkpoint = Checkpoint(model=torch.nn.Linear(2, 2), epoch=3)
    manager = CheckpointManager(checkpoint, "managed", max_to_keep=3)
    assert repr(checkpoint) == "Checkpoint(epoch, model)"
    assert repr(manager) == "CheckpointManager('managed', max_to_keep=3)"
    path = manager.save()
    assert repr(manager) == "CheckpointManager('managed', max_to_keep=3, latest_checkpoint='managed/ckpt-1')"
    assert repr(checkpoint) == "Checkpoint(epoch, model)"
    status = checkpoint.restore(path)
    assert repr(status) == f"CheckpointLoadStatus('{tmp_path}/managed/ckpt-1', 6 of 6 objects restored)"
    assert repr(checkpoint.restore(None)) == "InitializationOnlyStatus(nothing restored)"
    by_name = Checkpoint(step=torch.tensor(0)).restore("run/model.ckpt-30")
    assert repr(by_name) == "NameBasedSaverStatus('run/model.ckpt-30', 1 object restored by name)"
    assert repr(tfckpt.BulkSaverBuilder()) == "BulkSaverBuilder(write_version=2)"


def test_a_save_that_failed(tmp_path: Path) -> None:
    """The handle's repr contains the error class."""
    saver = Saver({"v": torch.zeros(1)})
    saver.save(tmp_path / "m", 1)
    (tmp_path / "checkpoint").unlink()
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "in the way").touch()
    handle = saver.save_async(tmp_path / "m", 2)
    with pytest.raises(tfckpt.IncompleteSaveError):
        handle.result()
    assert repr(handle) == f"SaveHandle('{tmp_path / 'm-2'}', failed: IncompleteSaveError)"


def test_types_that_need_no_cast(tmp_path: Path) -> None:
    """A program that uses the returned paths type-checks; None is returned only on request."""
    saver = Saver({"v": torch.zeros(1)})
    path = saver.save(tmp_path / "m", 1)
    assert_type(path, str | MaybeNone)
    assert path.endswith("m-1")
    handle = saver.save_async(tmp_path / "m", 2)
    assert_type(handle, SaveHandle)
    newest: str = handle.result()
    saver.restore(newest)
    manager = CheckpointManager({"v": torch.zeros(1)}, tmp_path / "managed", 1)
    managed: str = manager.save()
    assert tfckpt.checkpoint_exists(managed)
