"""Transfers with one failing step: everything stops, the error is raised, buffers are returned, all threads end."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import pytest
import torch
from claims import within
from own_threads import own_thread_names, own_threads

from torch_tfckpt.format import crc32c
from torch_tfckpt.storage.protocol import Buffer
from torch_tfckpt.transfer import transfer as transfer_module
from torch_tfckpt.transfer.staging import Staging, StagingOptions
from torch_tfckpt.transfer.transfer import Transfer
from torch_tfckpt.transfer.writes import Write, device_bytes, host_bytes

MIB: Final = 1 << 20
# Fewer buffers than bytes, so that some lanes are waiting for a buffer when the error occurs.
OPTIONS: Final = StagingOptions(buffer_bytes=MIB, async_bytes=2 * MIB, save_bytes=2 * MIB, threads=3)
LANES: Final = 3


class Failing(Exception):
    """The injected error."""


class Memory:
    """A file in memory. `step` is called before each write and sync."""

    path = "memory"
    in_order = False

    def has_name(self, path: str) -> bool:
        return path == self.path

    def __init__(self, step: Callable[[str], None]) -> None:
        self.contents = bytearray()
        self._step, self._lock = step, threading.Lock()

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        self._step("write")
        with self._lock:
            data = b"".join(buffers)
            self.contents.extend(bytes(max(0, offset + len(data) - len(self.contents))))
            self.contents[offset : offset + len(data)] = data

    def sync(self) -> None:
        self._step("sync")

    def close(self) -> None:
        pass


class Steps:
    """Counts steps, of one kind or all, and fails at the given one."""

    def __init__(self, fail_at: int | None = None, kind: str = "") -> None:
        self._fail_at, self._kind = fail_at, kind
        self._lock = threading.Lock()
        self.count = 0

    def __call__(self, what: str) -> None:
        if not what.startswith(self._kind):
            return
        with self._lock:
            number, self.count = self.count, self.count + 1
        if number == self._fail_at:
            raise Failing(f"{what} {number}")


def tensors() -> list[torch.Tensor]:
    """For each lane: a tensor of several buffers, small ones that are batched, and one that is not contiguous."""
    large = [torch.arange(5 * MIB // 8, dtype=torch.float32) + lane for lane in range(LANES)]
    small = [torch.full((10,), float(number)) for number in range(4 * LANES)]
    turned = [torch.arange(600.0).reshape(20, 30).T + lane for lane in range(LANES)]
    return [*large, *small, *turned]


def plan() -> list[Write]:
    """Return a plan for LANES files."""
    ends = [0] * LANES
    writes = []
    for number, tensor in enumerate(tensors()):
        lane = number % LANES
        writes.append(Write(lane, ends[lane], tensor.nbytes, tensor))
        ends[lane] += tensor.nbytes
    return sorted(writes, key=lambda write: write.file)


def expected() -> list[bytes]:
    parts = [b""] * LANES
    for number, tensor in enumerate(tensors()):
        parts[number % LANES] += tensor.contiguous().numpy().tobytes()
    return parts


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int | None, str], Steps]]:
    """Include copies as steps: of whole tensors from their device, and into host memory."""

    def make(fail_at: int | None, kind: str) -> Steps:
        made = Steps(fail_at, kind)

        def copying_device(run: Sequence[Write]) -> torch.Tensor:
            made("copy")
            return device_bytes(run)

        def copying_host(run: Sequence[Write]) -> Buffer:
            made("copy")
            return host_bytes(run)

        monkeypatch.setattr(transfer_module, "device_bytes", copying_device)
        monkeypatch.setattr(transfer_module, "host_bytes", copying_host)
        return made

    yield make
    assert own_thread_names() == []


def assert_all_memory_is_back(staging: Staging) -> None:
    kept = staging._kept
    if kept is not None:
        assert len(kept._free) == kept._made, f"{kept._made - len(kept._free)} buffers were not returned"


@pytest.mark.parametrize("kind", ["write", "sync", "copy"])
@pytest.mark.parametrize("snapshot", [False, True])
def test_each_step_may_fail(snapshot: bool, kind: str, steps: Callable[[int | None, str], Steps]) -> None:
    """For every write, sync and copy of every lane, its error is raised, and all threads and buffers are released.

    The same staging serves the next save.
    """
    staging = Staging(OPTIONS)
    counted = steps(None, kind)
    Transfer(plan(), [Memory(counted) for _ in range(LANES)], staging, snapshot=snapshot).result()
    assert counted.count >= LANES
    with within(60):
        for number in range(counted.count):
            failing = steps(number, kind)
            files = [Memory(failing) for _ in range(LANES)]
            transfer = Transfer(plan(), files, staging, snapshot=snapshot)
            with pytest.raises(Failing, match=f"{kind} {number}"):
                transfer.result()
            assert transfer.failed
            assert transfer.staged.is_set(), "a waiting caller would hang"
            assert own_thread_names() == []
            assert_all_memory_is_back(staging)
    files = [Memory(steps(None, kind)) for _ in range(LANES)]
    Transfer(plan(), files, staging, snapshot=snapshot).result()
    assert [bytes(file.contents) for file in files] == expected()
    assert_all_memory_is_back(staging)


@pytest.mark.parametrize("snapshot", [False, True])
def test_an_empty_tensor_after_a_large_one_changes_no_checksum(snapshot: bool) -> None:
    """They must not be batched: a large tensor is split, but checksums of batched tensors need the whole run."""
    file = Memory(Steps())
    large = torch.arange(3 * MIB // 4, dtype=torch.float32)
    sources = [large, torch.empty(0), torch.ones(3), torch.empty(0)]
    offsets = [0, large.nbytes, large.nbytes, large.nbytes + 12]
    writes = [Write(0, offset, source.nbytes, source) for offset, source in zip(offsets, sources, strict=True)]
    sums = Transfer(writes, [file], Staging(OPTIONS), snapshot=snapshot).result()
    assert sums == [crc32c.value(source.numpy().tobytes()) for source in sources]


def test_a_failed_allocation_does_not_reduce_the_limit(steps: Callable[[int | None, str], Steps]) -> None:
    """The system has no memory for a buffer: the error is raised, and the next save may use the full limit."""
    staging = Staging(OPTIONS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.empty", _no_memory)
        transfer = Transfer(plan(), [Memory(steps(None, "")) for _ in range(LANES)], staging, snapshot=True)
        with pytest.raises(MemoryError):
            transfer.result()
    assert_all_memory_is_back(staging)
    files = [Memory(steps(None, "")) for _ in range(LANES)]
    Transfer(plan(), files, staging, snapshot=True).result()
    assert [bytes(file.contents) for file in files] == expected()


def _no_memory(*_: object, **__: object) -> torch.Tensor:
    raise MemoryError("no memory")


@pytest.mark.parametrize("snapshot", [False, True])
def test_ctrl_c_while_waiting_stops_everything(
    snapshot: bool, steps: Callable[[int | None, str], Steps], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is raised in the thread that waits for the result, after which no other thread uses a file or tensor."""
    staging = Staging(OPTIONS)
    begun, go = threading.Event(), threading.Event()
    made = steps(None, "")

    def blocked(what: str) -> None:
        begun.set()
        assert go.wait(60)
        made(what)

    files = [Memory(blocked) for _ in range(LANES)]
    transfer = Transfer(plan(), files, staging, snapshot=snapshot)
    assert begun.wait(60)
    join = threading.Thread.join
    calls = 0

    def interrupted(thread: threading.Thread, timeout: float | None = None) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            go.set()
            raise KeyboardInterrupt
        join(thread, timeout)

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        transfer.result()
    monkeypatch.undo()
    assert own_thread_names() == []
    assert transfer.staged.is_set()
    assert_all_memory_is_back(staging)


def test_ctrl_c_while_threads_start_leaves_no_thread(
    steps: Callable[[int | None, str], Steps], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Including the one being started, which may or may not be running."""
    staging = Staging(OPTIONS)
    made = steps(None, "")
    start = threading.Thread.start
    for number in range(LANES + OPTIONS.threads):
        calls = 0

        def interrupted(thread: threading.Thread, number: int = number) -> None:
            nonlocal calls
            calls += 1
            start(thread)
            if calls == number + 1:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", interrupted)
            with pytest.raises(KeyboardInterrupt):
                Transfer(plan(), [Memory(made) for _ in range(LANES)], staging, snapshot=True)
        for thread in own_threads():
            thread.join(60)
        assert own_thread_names() == [], f"after the start of thread {number}"
        assert_all_memory_is_back(staging)
