"""Transfer: writes the same as the general path, in bounded memory, and loses no error of any thread."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from own_threads import own_thread_names

from torch_tfckpt.format import crc32c
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.protocol import Buffer
from torch_tfckpt.transfer import transfer as transfer_module
from torch_tfckpt.transfer.host_bytes import copy_bytes
from torch_tfckpt.transfer.pipeline import Pipeline
from torch_tfckpt.transfer.staging import Staging, StagingOptions
from torch_tfckpt.transfer.transfer import Transfer
from torch_tfckpt.transfer.writes import Write, runs_of, write_tensors

MIB = 1024 * 1024
SMALL = StagingOptions(buffer_bytes=MIB, async_bytes=2 * MIB, save_bytes=2 * MIB)
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
    ),
]


class Memory:
    """A file in memory; `before` is called before every write and sync."""

    path = "memory"

    def has_name(self, path: str) -> bool:
        return path == self.path

    def __init__(self, before: Callable[[str], None] = lambda what: None, *, in_order: bool = False) -> None:
        self.in_order = in_order
        self.contents = bytearray()
        self.synced = 0
        self.written = 0
        self._before = before
        self._lock = threading.Lock()

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        self._before("write")
        with self._lock:
            assert not self.in_order or offset >= len(self.contents), "not in order"
            data = b"".join(buffers)
            self.contents.extend(bytes(max(0, offset + len(data) - len(self.contents))))
            self.contents[offset : offset + len(data)] = data
            self.written += len(data)

    def sync(self) -> None:
        self._before("sync")
        self.synced += 1

    def close(self) -> None:
        pass


def plan(sources: Sequence[torch.Tensor | bytes], files: Sequence[Memory]) -> list[Write]:
    """Return writes of source i to file i modulo their number, one after another."""
    ends = [0] * len(files)
    writes = []
    for number, source in enumerate(sources):
        file = number % len(files)
        size = len(source) if isinstance(source, bytes) else source.nbytes
        writes.append(Write(file, ends[file], size, source))
        ends[file] += size
    return writes


def begin(
    sources: Sequence[torch.Tensor | bytes], files: Sequence[Memory], staging: Staging, *, snapshot: bool
) -> Transfer:
    return Transfer(plan(sources, files), files, staging, snapshot=snapshot)


def until(go: threading.Event) -> Callable[[str], None]:
    """Return a hook that blocks everything until `go` is set."""

    def wait(what: str) -> None:
        go.wait(60)

    return wait


def meeting(others: threading.Barrier) -> Callable[[str], None]:
    """Return a hook that blocks every write until the other files are written to as well."""

    def wait(what: str) -> None:
        if what == "write":
            others.wait()

    return wait


DTYPES = [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.uint8]


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor | bytes:
    """Bytes, or a tensor of any dtype, contiguous or not, as large as a few buffers."""
    if draw(st.integers(0, 5)) == 0:
        return draw(st.binary(max_size=50))
    shape = draw(st.sampled_from([(), (0,), (3,), (5, 7), (100, 33), (1500, 1000), (0, 4)]))
    dtype = draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    tensor = torch.randint(0, 2, shape, generator=generator).to(dtype)
    kind = draw(st.sampled_from(["plain", "transposed", "conjugated"]))
    if kind == "transposed" and len(shape) == 2:
        return tensor.t()
    return tensor.conj() if kind == "conjugated" else tensor


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("snapshot", [False, True])
@pytest.mark.parametrize("in_order", [False, True])
@given(sources=st.lists(tensors(), max_size=12), shards=st.integers(1, 3))
def test_a_transfer_equals_write_tensors(
    device: str, snapshot: bool, in_order: bool, sources: list[torch.Tensor | bytes], shards: int
) -> None:
    """The same bytes and the same checksums for any plan: fast path == general path."""
    plain = [Memory(in_order=in_order) for _ in range(shards)]
    with Pipeline() as pipeline:
        expected = write_tensors(pipeline, plan(sources, plain), plain)
    moved = [source.to(device) if isinstance(source, torch.Tensor) else source for source in sources]
    files = [Memory(in_order=in_order) for _ in range(shards)]
    assert begin(moved, files, Staging(SMALL), snapshot=snapshot).result() == expected
    for file, other in zip(files, plain, strict=True):
        assert file.contents == other.contents
        assert file.written == len(file.contents), "a byte was written twice"


@pytest.mark.parametrize("device", DEVICES)
def test_every_file_is_synced_once_after_its_last_byte(device: str) -> None:
    """The thread that writes a file's last bytes syncs it; files without bytes are left to the caller."""
    files = [Memory(), Memory(), Memory()]
    sources = [torch.ones(3 * MIB, dtype=torch.uint8, device=device), torch.ones(5, device=device)]
    begin(sources, files, Staging(SMALL), snapshot=False).result()
    assert [file.synced for file in files] == [1, 1, 0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mib", [1, 7])
def test_values_can_change_once_they_are_staged(device: str, mib: int) -> None:
    """A thread overwrites everything as soon as `staged` is set, 100 times: the files contain the earlier values.

    With 1 MiB everything is copied before a byte is written; 7 MiB go through 2 MiB of buffers repeatedly.
    """
    staging = Staging(SMALL)
    values = [torch.zeros(mib * MIB // 8, dtype=torch.int16, device=device) for _ in range(4)]
    for step in range(100):
        for value in values:
            value.fill_(step)
        files = [Memory(), Memory()]
        transfer = begin(values, files, staging, snapshot=True)

        def train(transfer: Transfer = transfer) -> None:
            assert transfer.staged.wait(60)
            for value in values:
                value.fill_(-1)

        training = threading.Thread(target=train)
        training.start()
        transfer.result()
        training.join()
        expected = torch.full((mib * MIB // 8,), step, dtype=torch.int16).numpy().tobytes() * 2
        assert [bytes(file.contents) for file in files] == [expected, expected], f"step {step}"


def test_a_snapshot_that_fits_is_staged_before_anything_is_written() -> None:
    """Training waits only for the copy; writing may block indefinitely."""
    go = threading.Event()
    file = Memory(until(go))
    transfer = begin([torch.ones(MIB // 4), b"text"], [file], Staging(SMALL), snapshot=True)
    assert transfer.staged.wait(60)
    assert not file.contents
    go.set()
    transfer.result()
    assert len(file.contents) == MIB + 4


def test_several_threads_copy_host_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads have a copy in progress at the same time; the file has all bytes, and the checksums are right."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    both = threading.Barrier(2)

    def copy(pieces: Sequence[Buffer], target: torch.Tensor) -> None:
        both.wait(60)
        copy_bytes(pieces, target)

    monkeypatch.setattr(transfer_module, "copy_bytes", copy)
    sources = [torch.arange(MIB // 4, dtype=torch.float32) + number for number in range(4)]
    file = Memory()
    options = StagingOptions(buffer_bytes=MIB, async_bytes=4 * MIB)
    sums = Transfer(plan(sources, [file]), [file], Staging(options), snapshot=True).result()
    assert bytes(file.contents) == b"".join(source.numpy().tobytes() for source in sources)
    assert sums == [crc32c.value(source.numpy().tobytes()) for source in sources]


def test_a_snapshot_is_not_written_before_its_result_is_awaited() -> None:
    """Writing would compete with the caller, who is returning to training."""
    file = Memory()
    transfer = Transfer(plan([torch.ones(MIB // 4)], [file]), [file], Staging(SMALL), snapshot=True)
    assert transfer.staged.wait(60)
    assert not file.written
    transfer.result()
    assert file.written == MIB


def test_a_snapshot_of_many_bytes_is_staged() -> None:
    """Bytes need no buffers: strings between the tensors do not wait for writes, however many there are."""
    go = threading.Event()
    file = Memory(until(go))
    sources: list[torch.Tensor | bytes] = [source for _ in range(20) for source in (b"text", torch.ones(3))]
    transfer = begin(sources, [file], Staging(), snapshot=True)
    staged = transfer.staged.wait(60)
    go.set()
    if not staged:
        transfer.cancel()
    assert staged
    transfer.result()
    assert len(file.contents) == 20 * (4 + 12)


def test_a_snapshot_that_does_not_fit_is_staged_while_writing() -> None:
    """While writing is blocked the rest is not copied, `staged` is not set, and memory stays within the limit."""
    go = threading.Event()
    file = Memory(until(go))
    staging = Staging(SMALL)
    transfer = begin([torch.ones(MIB) for _ in range(2)], [file], staging, snapshot=True)
    assert not transfer.staged.wait(0.2)
    assert staging.buffers(1, pinned=False, snapshot=True)._made == 2
    go.set()
    transfer.result()
    assert transfer.staged.is_set()
    assert staging.buffers(1, pinned=False, snapshot=True)._made == 2


@pytest.mark.parametrize("snapshot", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_a_file_written_in_order_needs_one_buffer_for_all_devices(device: str, snapshot: bool) -> None:
    """No device keeps the only buffer while bytes of another device come first."""
    go = threading.Event()
    file = Memory(until(go), in_order=True)
    options = StagingOptions(buffer_bytes=MIB, async_bytes=MIB, save_bytes=MIB)
    tensors = [torch.full((MIB // 2,), number, device=device if number % 2 else "cpu") for number in range(8)]
    sources: list[torch.Tensor | bytes] = [source for tensor in tensors for source in (b"text", tensor)]
    staging = Staging(options)
    transfer = begin(sources, [file], staging, snapshot=snapshot)
    assert not transfer.staged.wait(0.2)
    go.set()
    transfer.result()
    assert bytes(file.contents) == b"".join(b"text" + tensor.cpu().numpy().tobytes() for tensor in tensors)
    assert staging._kept is None or staging._kept._made == 1


def test_a_synchronous_save_does_not_copy_host_values() -> None:
    """They are written directly: no buffer is ever allocated."""
    staging = Staging(SMALL)
    file = Memory()
    begin([torch.ones(MIB)], [file], staging, snapshot=False).result()
    assert staging._kept is None
    assert len(file.contents) == 4 * MIB


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("snapshot", [False, True])
@pytest.mark.parametrize("what", ["write", "sync"])
@pytest.mark.parametrize("number", [0, 1, 5])
def test_the_first_error_stops_everything_and_is_raised(in_order: bool, snapshot: bool, what: str, number: int) -> None:
    """`result` raises it, all threads end, buffers are returned, and the staging works for the next save."""
    seen = 0

    def fail(operation: str) -> None:
        nonlocal seen
        if operation == what:
            seen += 1
            if seen > number or what == "sync":
                raise OSError(28, "No space left on device")

    staging = Staging(SMALL)
    files = [Memory(fail, in_order=in_order), Memory(fail, in_order=in_order)]
    transfer = begin([torch.ones(MIB) for _ in range(6)], files, staging, snapshot=snapshot)
    with pytest.raises(OSError, match="No space left"):
        transfer.result()
    assert transfer.failed and transfer.staged.is_set()
    assert own_thread_names() == []
    if snapshot:
        buffers = staging.buffers(2, pinned=False, snapshot=True)
        assert len(buffers._free) == buffers._made
    good = [Memory(), Memory()]
    begin([torch.ones(MIB) for _ in range(6)], good, staging, snapshot=snapshot).result()
    assert all(len(file.contents) == 12 * MIB for file in good)


def test_an_error_while_copying_is_raised() -> None:
    """A tensor that cannot be read (here, because its storage was freed) fails the save, not only the thread."""
    tensor = torch.ones(1000)
    files = [Memory()]
    transfer_plan = plan([tensor], files)
    tensor.untyped_storage().resize_(0)
    transfer = Transfer(transfer_plan, files, Staging(SMALL), snapshot=True)
    with pytest.raises(RuntimeError):
        transfer.result()
    assert transfer.staged.is_set() and own_thread_names() == []


def test_a_cancelled_transfer_has_no_running_threads() -> None:
    """`cancel` returns when all threads have ended, including those that waited for a buffer."""
    go = threading.Event()
    file = Memory(until(go))
    transfer = begin([torch.ones(MIB) for _ in range(6)], [file], Staging(SMALL), snapshot=True)
    threading.Timer(0.05, go.set).start()
    transfer.cancel()
    assert own_thread_names() == []
    assert len(file.contents) < 24 * MIB


def test_a_thread_that_cannot_be_started_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that has run out of threads; no started thread is left running."""
    start = threading.Thread.start
    started: list[threading.Thread] = []

    def refuse(self: threading.Thread) -> None:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(self)
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        begin([torch.ones(MIB) for _ in range(6)], [Memory()], Staging(SMALL), snapshot=True)
    assert own_thread_names() == []


def test_an_empty_plan_is_done_at_once() -> None:
    """Without tensors, or with empty ones, it is staged immediately and has the checksums of no bytes."""
    assert begin([], [], Staging(SMALL), snapshot=True).result() == []
    transfer = begin([torch.ones(0), torch.ones(3, 0)], [Memory()], Staging(SMALL), snapshot=True)
    assert transfer.staged.is_set()
    assert transfer.result() == [0, 0]


def test_small_adjacent_tensors_are_batched() -> None:
    """A thousand scalars are one run; a different dtype, or bytes, ends it."""
    file = Memory()
    scalars = [torch.tensor(float(number)) for number in range(1000)]
    runs = runs_of(plan([*scalars, torch.tensor(1), b"x", *scalars], [file]))
    assert [len(run) for run in runs] == [1000, 1, 1, 1000]
    sums = begin(scalars, [file], Staging(SMALL), snapshot=True).result()
    assert sums == [crc32c.value(memoryview(scalar.numpy().tobytes())) for scalar in scalars]


@pytest.mark.parametrize("in_order", [False, True])
def test_shards_are_written_in_parallel(in_order: bool, tmp_path: Path) -> None:
    """Each shard's write waits for the other's to start, so neither may wait for the other to finish."""
    met = threading.Barrier(2, timeout=60)
    files = [Memory(meeting(met), in_order=in_order) for _ in range(2)]
    begin([torch.ones(10), torch.ones(10)], files, Staging(SMALL), snapshot=False).result()
    file = LOCAL.create(str(tmp_path / "x"))
    Transfer([Write(0, 0, 24, torch.arange(3))], [file], Staging(SMALL), snapshot=False).result()
    file.close()
    assert (tmp_path / "x").read_bytes() == torch.arange(3).numpy().tobytes()
