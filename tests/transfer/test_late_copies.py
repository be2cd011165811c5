"""Copies that complete late and out of order: the bytes are right, because every wait is there.

`LateDevice` runs nothing before somebody waits for it. Each test fails if one of the waits in the code is removed.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from late_device import LateDevice, LateTensor
from own_threads import own_thread_names

from torch_tfckpt.format import crc32c
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.protocol import Buffer
from torch_tfckpt.transfer.pipeline import Pipeline
from torch_tfckpt.transfer.staging import Staging, StagingOptions
from torch_tfckpt.transfer.transfer import Transfer
from torch_tfckpt.transfer.uploads import assign, read_to_device, takes_upload, upload
from torch_tfckpt.transfer.writes import Write

MIB = 1024 * 1024
# Two buffers of 1 MiB: larger tensors go through them several times.
SMALL = StagingOptions(buffer_bytes=MIB, async_bytes=2 * MIB, save_bytes=2 * MIB, threads=3)
SHAPES = [(), (3,), (5, 7), (70, 90), (300, 1000), (1100, 1000)]
EARLIER, VALUES, LATER = 1, 2, 3

devices = st.builds(LateDevice, st.integers(0, 1000), eager=st.sampled_from([0.0, 0.3, 0.9]), background=st.booleans())


class Memory:
    """A file in memory; `fail_at` is the number of the write that fails."""

    path = "memory"

    def __init__(self, fail_at: int | None = None, *, in_order: bool = False) -> None:
        self.contents, self.in_order = bytearray(), in_order
        self._fail_at, self._writes, self._lock = fail_at, 0, threading.Lock()

    def has_name(self, path: str) -> bool:
        return path == self.path

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        with self._lock:
            number, self._writes = self._writes, self._writes + 1
            if number == self._fail_at:
                raise OSError(28, "No space left on device")
            data = b"".join(buffers)
            self.contents.extend(bytes(max(0, offset + len(data) - len(self.contents))))
            self.contents[offset : offset + len(data)] = data

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


def plan(sources: Sequence[torch.Tensor], files: Sequence[Memory]) -> list[Write]:
    """Return writes of source i to file i modulo their number, one after another."""
    ends = [0] * len(files)
    writes = []
    for number, source in enumerate(sources):
        file = number % len(files)
        writes.append(Write(file, ends[file], source.nbytes, source))
        ends[file] += source.nbytes
    return writes


def host_values(shape: tuple[int, ...], number: int, step: int) -> torch.Tensor:
    """Return the values of tensor `number` at `step`; every second one is transposed."""
    values = torch.full(shape, number * 10 + step, dtype=torch.int16)
    return values.t() if number % 2 and len(shape) == 2 else values


def queue_values(tensors: Sequence[torch.Tensor], step: int) -> None:
    """Queue an update of all values on the current streams, as a training step does."""
    for number, tensor in enumerate(tensors):
        tensor.fill_(number * 10 + step)


def contents(shapes: Sequence[tuple[int, ...]], files: int) -> list[bytes]:
    parts = [b""] * files
    for number, shape in enumerate(shapes):
        parts[number % files] += host_values(shape, number, VALUES).contiguous().numpy().tobytes()
    return parts


@settings(max_examples=40)
@given(
    device=devices,
    shapes=st.lists(st.sampled_from(SHAPES), min_size=1, max_size=8),
    files=st.integers(1, 3),
    indices=st.integers(1, 2),
    snapshot=st.booleans(),
    side=st.booleans(),
)
def test_a_save_has_the_values_of_its_time(
    device: LateDevice, shapes: list[tuple[int, ...]], files: int, indices: int, snapshot: bool, side: bool
) -> None:
    """Not those before work that is still queued, nor those that training writes once `staged` is set.

    The caller's stream is the default one or another one. Two saves in a row use the same buffers.
    """
    staging = Staging(SMALL, accelerators=device)
    tensors = [
        device.tensor(host_values(shape, number, EARLIER), number % indices) for number, shape in enumerate(shapes)
    ]
    streams = [device.new_stream(index) if side else device.current(index) for index in range(indices)]
    with device.use(streams[0]), device.use(streams[-1]):
        for _ in range(2):
            queue_values(tensors, VALUES)
            outputs = [Memory() for _ in range(files)]
            transfer = Transfer(plan(tensors, outputs), outputs, staging, snapshot=snapshot)
            if not snapshot:
                transfer.result()
            assert transfer.staged.wait(60)
            queue_values(tensors, LATER)
            for index in range(indices):
                device.run_queued(index)
            sums = transfer.result()
            assert [bytes(output.contents) for output in outputs] == contents(shapes, files)
            assert sums == [
                crc32c.value(host_values(shape, number, VALUES).contiguous().numpy().tobytes())
                for number, shape in enumerate(shapes)
            ]
            assert device.unfinished_copies() == 0
    assert device.refused == []


@pytest.mark.parametrize("snapshot", [False, True])
@given(device=devices, fail_at=st.integers(0, 5))
@settings(max_examples=10)
def test_no_copy_into_a_buffer_is_left_after_an_error(device: LateDevice, fail_at: int, snapshot: bool) -> None:
    """A copy that arrived after its buffer was given back would overwrite the bytes of the next save."""
    staging = Staging(SMALL, accelerators=device)
    shapes = [(1100, 1000), (300, 1000), (1100, 1000)]
    tensors = [device.tensor(host_values(shape, number, EARLIER)) for number, shape in enumerate(shapes)]
    queue_values(tensors, VALUES)
    files = [Memory(fail_at), Memory(fail_at)]
    transfer = Transfer(plan(tensors, files), files, staging, snapshot=snapshot)
    with pytest.raises(OSError, match="No space left"):
        transfer.result()
    assert device.unfinished_copies() == 0
    assert own_thread_names() == []
    good = [Memory(), Memory()]
    Transfer(plan(tensors, good), good, staging, snapshot=snapshot).result()
    assert [bytes(file.contents) for file in good] == contents(shapes, 2)


def half_lost(device: LateDevice, lost: int) -> list[torch.Tensor]:
    """Return tensors that fill two buffers; those that come before the lost one are copied before the error.

    The first is on another device than the others, so its stream is another one.
    """
    shapes = [(700, 700), (600, 500), (5, 7), (5, 7)]
    tensors = [
        device.tensor(host_values(shape, number, EARLIER), int(number > 0)) for number, shape in enumerate(shapes)
    ]
    failing = tensors[lost]
    assert isinstance(failing, LateTensor)
    failing.lost = True
    return tensors


@pytest.mark.parametrize("snapshot", [False, True])
@pytest.mark.parametrize("eager", [0.0, 0.5])
@pytest.mark.parametrize("lost", range(4))
def test_no_copy_into_a_buffer_is_left_after_an_error_of_the_device(lost: int, eager: float, snapshot: bool) -> None:
    """Neither into the buffer that was being filled, nor into one that waits to be written."""
    device = LateDevice(lost, eager=eager)
    files = [Memory(in_order=True)]  # one thread copies from both devices
    writes = plan(half_lost(device, lost), files)
    transfer = Transfer(writes, files, Staging(SMALL, accelerators=device), snapshot=snapshot)
    with pytest.raises(RuntimeError, match="lost"):
        transfer.result()
    assert transfer.staged.is_set()
    assert device.unfinished_copies() == 0
    assert own_thread_names() == []


@pytest.mark.parametrize("lost", range(4))
def test_no_copy_is_left_if_not_all_threads_can_be_started(lost: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that copies had started and failed, those that write had not started."""
    device = LateDevice(eager=0)
    start = threading.Thread.start
    threads: list[threading.Thread] = []

    def refuse(self: threading.Thread) -> None:
        if threads:
            threads[0].join()
            raise RuntimeError("can't start new thread")
        threads.append(self)
        start(self)

    files = [Memory(in_order=True)]  # one thread copies from both devices
    writes = plan(half_lost(device, lost), files)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        Transfer(writes, files, Staging(SMALL, accelerators=device), snapshot=True)
    assert device.unfinished_copies() == 0


# uploads


@given(device=st.builds(LateDevice, st.integers(0, 1000), eager=st.sampled_from([0.0, 0.3, 0.9])), data=st.data())
@settings(max_examples=15)
def test_an_upload_fills_the_tensor_in_the_order_of_its_stream(device: LateDevice, data: st.DataObject) -> None:
    """Work queued before has the earlier values, work queued afterwards the new ones; no copy is left.

    The host memory that the buffers were filled from may change at once, and the pinned memory is free for others.
    """
    size = data.draw(st.sampled_from([MIB // 2, MIB, 3 * MIB + 8, 5 * MIB]))
    target = device.tensor(torch.zeros(size, dtype=torch.uint8))
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))
    host = source.clone()

    def fill(buffer: torch.Tensor, begin: int) -> None:
        buffer.copy_(host[begin : begin + len(buffer)])
        host[begin : begin + len(buffer)].zero_()

    with device.use(device.new_stream()):
        target.fill_(EARLIER)
        earlier = target.clone()
        upload(target, fill, buffer_bytes=MIB, accelerators=device)
        assert device.unfinished_copies() == 0
        device.pinned_memory(MIB).fill_(7)
        later = target.clone()
        assert earlier.cpu().eq(EARLIER).all()
        assert torch.equal(later.cpu(), source)
    assert device.refused == []


@given(device=st.builds(LateDevice, st.integers(0, 1000)), number=st.integers(0, 4))
@settings(max_examples=10)
def test_an_upload_that_fails_leaves_no_copy(device: LateDevice, number: int) -> None:
    """The memory of its buffers is freed with the error."""
    target = device.tensor(torch.zeros(5 * MIB, dtype=torch.uint8))

    def fill(buffer: torch.Tensor, begin: int) -> None:
        if begin == number * MIB:
            raise OSError("cannot be read")
        buffer.fill_(VALUES)

    with pytest.raises(OSError, match="cannot be read"):
        upload(target, fill, buffer_bytes=MIB, accelerators=device)
    assert device.unfinished_copies() == 0
    assert target.cpu()[: number * MIB].eq(VALUES).all()


@pytest.mark.parametrize("swap", [0, 2])
@pytest.mark.parametrize("verify", [False, True])
def test_a_file_is_read_to_the_device(verify: bool, swap: int, tmp_path: Path) -> None:
    """The tensor has the bytes of the file, and the checksum is that of the file."""
    values = torch.arange(5 * MIB // 2, dtype=torch.int32).to(torch.int16)
    stored = values.numpy().byteswap().tobytes() if swap else values.numpy().tobytes()
    (tmp_path / "x").write_bytes(bytes(100) + stored)
    device = LateDevice(seed=5)
    target = device.tensor(torch.zeros_like(values))
    with Pipeline() as pipeline, closing(LOCAL.open(str(tmp_path / "x"))) as file:
        crc = read_to_device(
            pipeline, file, 100, target, verify=verify, swap=swap, buffer_bytes=MIB, accelerators=device
        )
    assert torch.equal(target.cpu(), values)
    assert crc == (crc32c.value(stored) if verify else 0)


TARGETS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda target: target,
    "transposed": lambda target: target.t(),
    "small": lambda target: target[:10, :10],
}


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("kind", TARGETS)
def test_assign_equals_copy(kind: str, background: bool) -> None:
    """Whatever the strides and the size of the target, and whether or not its device copies in the background."""
    device = LateDevice(background=background)
    target = TARGETS[kind](device.tensor(torch.zeros(2200, 2200, dtype=torch.int16)))
    assert takes_upload(target, device) == (kind == "contiguous" and background)
    source = torch.arange(target.numel(), dtype=torch.int32).to(torch.int16).view(target.shape)
    values = source.clone()
    assign(target, source, device)
    source.zero_()
    assert torch.equal(target.cpu(), values)
    assert device.unfinished_copies() == 0 or not background


@pytest.mark.parametrize("kind", ["conjugated", "negated", "transposed"])
def test_assign_resolves_the_source(kind: str) -> None:
    """The memory of the source differs from its values: they are copied as values."""
    base = torch.randn(1100, 1100, dtype=torch.complex64)
    source = {"conjugated": base.conj(), "negated": base.conj().imag, "transposed": base.t()}[kind]
    device = LateDevice()
    target = device.tensor(torch.zeros(1100, 1100, dtype=source.dtype))
    assign(target, source, device)
    assert torch.equal(target.cpu(), source.resolve_conj().resolve_neg())
