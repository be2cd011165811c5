"""Changing tensors during an asynchronous save does not change the checkpoint, on CPU and GPU."""

import threading
from pathlib import Path

import pytest
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt import Saver, StagingOptions, Variable

MIB = 1024 * 1024
NEEDS_CUDA = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
# The state takes 3 MiB: it fits into the larger limit at once, and passes through buffers of 2 MiB in waves.
BUDGETS = pytest.mark.parametrize("async_mib", [2, pytest.param(64, marks=pytest.mark.heavy)])


class Training:
    """Parameters tagged with three devices; each element is the current step."""

    def __init__(self, device: str) -> None:
        self.values = [torch.zeros(MIB // 4, device=device) for _ in range(3)]
        self.variables = [Variable(v, f"w{i}", device=f"/cpu:{i}") for i, v in enumerate(self.values)]

    def fill(self, step: int) -> None:
        for value in self.values:
            value.fill_(step)


def assert_step(path: str | None, step: int) -> None:
    assert path is not None
    loaded = tfckpt.load_file(path)
    assert len(loaded) == 3
    for name, value in loaded.items():
        assert (torch.as_tensor(value) == step).all(), f"{name} of step {step}"


@DEVICES
@BUDGETS
def test_training_continues_when_save_async_returns(tmp_path: Path, device: str, async_mib: int) -> None:
    """The parameters change right after each of 100 calls; the checkpoints have the earlier values."""
    training = Training(device)
    options = StagingOptions(buffer_bytes=MIB, async_bytes=async_mib * MIB)
    with Saver(training.variables, sharded=True, max_to_keep=1, staging=options) as saver:
        for step in range(100):
            training.fill(step)
            handle = saver.save_async(tmp_path / "m", step)
            training.fill(-1)
            assert handle.staged.is_set()
            assert_step(handle.result(), step)
    assert len(list(tmp_path.glob("m-99.data-*"))) == 3


@DEVICES
@BUDGETS
def test_training_continues_when_staged_is_set(tmp_path: Path, device: str, async_mib: int) -> None:
    """Over 100 saves, a thread waits for `staged` and then changes all parameters."""
    training = Training(device)
    options = StagingOptions(buffer_bytes=MIB, async_bytes=async_mib * MIB)
    with Saver(training.variables, sharded=True, max_to_keep=1, staging=options) as saver:
        for step in range(100):
            training.fill(step)
            handle = saver.save_async(tmp_path / "m", step, block_until_staged=False)

            def train(handle: tfckpt.SaveHandle = handle) -> None:
                assert handle.staged.wait(60)
                training.fill(-1)

            thread = threading.Thread(target=train)
            thread.start()
            assert_step(handle.result(), step)
            thread.join()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_each_device_gets_its_own_file(tmp_path: Path) -> None:
    """CASES 22: one file for the host, then one per GPU in order; restored onto the original devices."""
    there = {"host": torch.arange(5.0)} | {
        f"gpu{number}": torch.full((3,), float(number), device=f"cuda:{number}")
        for number in range(torch.cuda.device_count())
    }
    path = Saver(there, sharded=True).save(tmp_path / "m")
    assert len(list(tmp_path.glob("m.data-*"))) == len(there)
    with tfckpt.load_checkpoint(str(path)) as reader:
        assert reader.locate("host") == [f"{tmp_path}/m.data-00000-of-{len(there):05d}"]
    here = {name: torch.zeros_like(value) for name, value in there.items()}
    Saver(here, sharded=True).restore(path)
    for name, value in there.items():
        assert torch.equal(here[name], value) and here[name].device == value.device
