"""Staging memory: bounded, reused, and never larger than configured."""

import threading

import pytest
import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.transfer.staging import Buffers, Staging, StagingOptions

MIB = 1024 * 1024
NEVER: list[bool] = []


@pytest.mark.parametrize("name", ["buffer_bytes", "buffers_per_device", "save_bytes", "async_bytes", "threads"])
@pytest.mark.parametrize("value", [0, -1, 1.5, None])
def test_invalid_options_are_refused(name: str, value: object) -> None:
    """The message contains the option and its minimum."""
    with pytest.raises(InvalidArgumentError, match=f"StagingOptions: {name}=.*at least [0-9]+"):
        StagingOptions(**{name: value})  # type: ignore[arg-type]


def test_returned_buffers_are_reused() -> None:
    """With three requests and two buffers, the third request gets the first one's memory."""
    buffers = Buffers(MIB, 2, pinned=False)
    first, second = buffers.lend(NEVER), buffers.lend(NEVER)
    assert first is not None and second is not None
    assert first.data_ptr() != second.data_ptr() and first.nbytes == MIB
    buffers.give_back(first)
    waited: list[str] = []
    assert buffers.lend(NEVER, before_waiting=lambda: waited.append("before the first")) is first
    assert waited == []
    assert buffers.lend(NEVER, before_waiting=lambda: buffers.give_back(second)) is second


def test_lend_waits_until_a_buffer_is_returned() -> None:
    """`lend` blocks, and then returns the buffer that was given back."""
    buffers = Buffers(MIB, 1, pinned=False)
    held = buffers.lend(NEVER)
    assert held is not None
    got: list[torch.Tensor | None] = []
    waiting = threading.Thread(target=lambda: got.append(buffers.lend(NEVER)))
    waiting.start()
    assert not got
    buffers.give_back(held)
    waiting.join(30)
    assert got == [held]


def test_lend_returns_none_after_cancellation() -> None:
    """No thread hangs after an error elsewhere."""
    buffers = Buffers(MIB, 1, pinned=False)
    buffers.lend(NEVER)
    cancelled: list[bool] = []
    got: list[torch.Tensor | None] = []
    waiting = threading.Thread(target=lambda: got.append(buffers.lend(cancelled)))
    waiting.start()
    cancelled.append(True)
    buffers.wake()
    waiting.join(30)
    assert got == [None]


def test_a_failed_allocation_does_not_change_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exception is raised, and the next call may succeed."""
    buffers = Buffers(MIB, 1, pinned=False)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", lambda *_, **__: (_ for _ in ()).throw(MemoryError("no")))
        with pytest.raises(MemoryError):
            buffers.lend(NEVER)
    assert buffers.lend(NEVER) is not None


@pytest.mark.parametrize("lanes", [1, 2, 8, 100])
def test_a_synchronous_save_respects_save_bytes(lanes: int) -> None:
    """With many devices buffers get smaller: their total stays below `save_bytes`, and every lane can have one."""
    staging = Staging(StagingOptions(save_bytes=64 * MIB))
    buffers = staging.buffers(lanes, pinned=False, snapshot=False)
    assert buffers.count >= 1
    assert buffers.count * buffers.buffer_bytes <= 64 * MIB
    assert buffers.buffer_bytes <= StagingOptions().buffer_bytes


def test_a_snapshot_respects_async_bytes() -> None:
    """It uses all of `async_bytes`, in buffers of the usual size."""
    buffers = Staging(StagingOptions(async_bytes=100 * MIB)).buffers(5, pinned=False, snapshot=True)
    assert (buffers.buffer_bytes, buffers.count) == (32 * MIB, 3)


def test_buffers_are_kept_from_save_to_save_until_they_are_released() -> None:
    """Allocating memory takes as long as the copy itself; `release` frees it."""
    staging = Staging()
    first = staging.buffers(1, pinned=False, snapshot=True)
    assert staging.buffers(1, pinned=False, snapshot=True) is first
    staging.release()
    assert staging.buffers(1, pinned=False, snapshot=True) is not first


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_buffers_for_cuda_devices_are_pinned() -> None:
    """Copies into other memory are neither fast nor asynchronous."""
    buffer = Staging().buffers(1, pinned=True, snapshot=False).lend(NEVER)
    assert buffer is not None and buffer.is_pinned()
