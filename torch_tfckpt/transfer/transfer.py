"""Execution of a plan of writes: copy from devices, checksum and write with several threads.

    lane: writes from one device to one file      -> batches -> any of a few threads
      fills one batch after the other                           waits for the copy, checksums the bytes, writes them
      `staged` is set after the last copy                       returns the buffer

Several threads copy a lane of tensors in host memory, each on one core and without torch: for every thread that copies,
torch starts threads of its own, which compete for the cores with each other and with those of training.

The bytes that are written are the same copy that was checksummed. A buffer is in use until its bytes are in the file.
If training waits, values in host memory are not copied at all; they are written directly.

The first error stops everything and is raised by `result`. This module does not know about checkpoint keys.
"""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from itertools import accumulate, chain
from queue import SimpleQueue
from typing import Final

import torch

from torch_tfckpt.format import crc32c
from torch_tfckpt.storage.protocol import WritableFile
from torch_tfckpt.transfer.accelerators import CopyStream, Ready
from torch_tfckpt.transfer.host_bytes import byte_view, copy_bytes
from torch_tfckpt.transfer.pipeline import CHUNK_BYTES, write_pieces
from torch_tfckpt.transfer.staging import Buffers, Staging
from torch_tfckpt.transfer.threads import InTurns, Latch, join
from torch_tfckpt.transfer.writes import Write, device_bytes, host_bytes, part_sizes, runs_of

# Limit on waiting batches in a lane without buffers: they hold host copies of tensors that are not stored contiguously.
_UNBUFFERED_AHEAD: Final = 4


@dataclass(slots=True, eq=False)
class _Lane:
    """The writes from one device to one file."""

    file: int
    device: torch.device | None  # None: the sources are `bytes`, which are immutable
    stream: CopyStream | None
    buffered: bool
    room: SimpleQueue[None] | None  # an item for each batch that may be in flight; None: any number
    numbers: list[int] = field(default_factory=list)  # indices into the plan

    @property
    def in_host_memory(self) -> bool:
        """Whether tensors in host memory are copied to buffers."""
        return self.buffered and self.device is not None and self.device.type == "cpu"


@dataclass(slots=True, eq=False)
class Batch:
    """Consecutive bytes of one file that one thread checksums and writes: whole writes, or a part of one."""

    lane: _Lane
    offset: int
    size: int
    numbers: list[int]  # indices into the plan
    begin: int = 0  # for a part: its offset in bytes from the start of its write
    # Set when it is filled:
    pieces: list[memoryview] = field(default_factory=list)
    parts: list[list[int]] = field(default_factory=list)  # for each piece, the sizes of its parts, each with a checksum
    buffer: torch.Tensor | None = None  # to return after writing
    ready: Ready | None = None  # None: the bytes are already in host memory


_Queue = SimpleQueue[Batch | None]


class Transfer:
    """Execution of one plan of writes.

    Args:
        writes: The writes; those to the same file are in order of their offsets.
        files: The files of the plan, by index.
        staging: Source of the buffers.
        snapshot: Whether values may change once `staged` is set; otherwise only after `result` has returned.

    The values written are those that the tensors have at the time of the call, after all work that is queued on the
    current streams of their devices. Cost: host memory for the buffers, and per thread that copies a contiguous copy of
    one non-contiguous tensor, or a host copy of one tensor whose device cannot copy in the background.
    Thread safety: one thread calls the methods; any thread may wait for `staged`.
    """

    def __init__(
        self, writes: Sequence[Write], files: Sequence[WritableFile], staging: Staging, *, snapshot: bool
    ) -> None:
        # Other threads wait for this event only if this is a snapshot.
        self.staged = Latch() if snapshot else threading.Event()
        self._writes, self._files = writes, files
        self._firsts = list(accumulate((len(write.parts()) for write in writes), initial=0))  # indices into `_sums`
        self._sums = [0] * self._firsts[-1]
        self._cut: dict[int, list[tuple[int, int, int]]] = {}  # index -> offset, size and checksum of each written part
        self._left = [0] * len(files)  # bytes not written yet
        self._lanes = self._make_lanes(staging, snapshot)
        buffered = [lane for lane in self._lanes if lane.buffered]
        pinned = any(lane.stream is not None for lane in buffered)
        self._buffers: Buffers | None = None
        if buffered:
            self._buffers = staging.buffers(len(buffered), pinned=pinned, snapshot=snapshot)
        self._lock = threading.Lock()
        self._cancelled: list[bool] = []  # not empty once everything is to stop
        self._failure: BaseException | None = None
        self._may_write = Latch() if snapshot else None  # None: immediately
        self._started = Latch()  # set when all threads were started, or will not be
        self._awaited = False  # whether `result` was called
        # For a file that is written in order, one thread stages all lanes, and one thread writes.
        groups: dict[object, list[_Lane]] = {}
        for lane in self._lanes:
            groups.setdefault(lane.file if files[lane.file].in_order else lane, []).append(lane)
        shared = _Queue()
        stages: list[tuple[Iterator[Batch], _Queue]] = []  # one per copying thread
        for lanes in groups.values():
            if files[lanes[0].file].in_order:
                stages.append((self._filled_batches(lanes), _Queue()))
            else:
                count = self._copying_threads(lanes[0], staging.options.threads)
                stages += [(batches, shared) for batches in self._shares(lanes[0], count)]
        self._queues = [queue for _, queue in stages if queue is not shared]  # one per writing thread
        if len(self._queues) < len(stages):
            total, used = sum(self._left), sum(map(bool, self._left))
            self._queues += [shared] * min(staging.options.threads, total // CHUNK_BYTES + used)
        self._unstaged = len(stages)
        # Start all threads now: during interpreter shutdown no thread can be started.
        self._threads = [
            threading.Thread(target=self._stage, args=stage, name="tfckpt-stage", daemon=True) for stage in stages
        ]
        self._threads += [
            threading.Thread(target=self._write, args=(queue,), name="tfckpt-write", daemon=True)
            for queue in self._queues
        ]
        if not self._lanes:
            self.staged.set()
        try:
            for thread in self._threads:
                thread.start()
            self._started.set()
        except BaseException as error:  # no more threads can be started, or Ctrl-C
            self._stop(error)
            self._end_queues()
            self._threads = [thread for thread in self._threads if _runs(thread)]
            self.cancel()
            raise

    def result(self) -> list[int]:
        """Wait until everything is written and synced; return the CRC-32C (not masked) of each part of each write.

        Raises:
            OSError or any other exception: the first error. Ctrl-C stops the transfer.
        """
        try:
            self._awaited = True
            self._write_staged()
            for thread in self._threads:
                thread.join()
        except BaseException:
            self.cancel()
            raise
        if self._failure is not None:
            raise self._failure
        assert not any(self._left), f"bytes not written: {self._left}"
        for number, parts in self._cut.items():
            crc = 0
            for _, size, part in sorted(parts):
                crc = crc32c.combine(crc, part, size)
            self._sums[self._firsts[number]] = crc
        return self._sums

    def cancel(self) -> None:
        """Stop, and return once no thread uses files or tensors. Can be called at any time."""
        self._stop(None)
        join(self._threads)
        self._give_back_batches()

    @property
    def failed(self) -> bool:
        """Whether `result` will raise."""
        return self._failure is not None

    def _give_back_batches(self) -> None:
        """Return the buffers of batches that will not be written, because not all threads could be started."""
        for queue in self._queues:
            while not queue.empty():
                batch = queue.get()
                if batch is not None and batch.buffer is not None and self._buffers is not None:
                    if batch.ready is not None:
                        batch.ready.wait()
                    self._buffers.give_back(batch.buffer)
        self._end_queues()

    def _end_queues(self) -> None:
        """Make the writing threads stop after the batches that are queued."""
        for queue in self._queues:
            queue.put(None)

    def _make_lanes(self, staging: Staging, snapshot: bool) -> list[_Lane]:
        """Group the writes by file and device, and count the bytes of each file."""
        lanes: dict[tuple[int, torch.device | None], _Lane] = {}
        for number, write in enumerate(self._writes):
            if not write.size:
                continue
            self._left[write.file] += write.size
            device = write.device
            lane = lanes.get((write.file, device))
            if lane is None:
                stream = self._stream_of(device, staging)
                buffered = device is not None and (snapshot or device.type != "cpu")
                # A snapshot may use all buffers; a synchronous save limits their number per device. `bytes` sources in
                # a snapshot need no copies, and nothing is written until all lanes are staged, so their lane must not
                # wait for writes.
                room = None
                if not snapshot:
                    room = SimpleQueue[None]()
                    for _ in range(staging.options.buffers_per_device if buffered else _UNBUFFERED_AHEAD):
                        room.put(None)
                lane = lanes[write.file, device] = _Lane(write.file, device, stream, buffered, room)
            lane.numbers.append(number)
        return list(lanes.values())

    @staticmethod
    def _stream_of(device: torch.device | None, staging: Staging) -> CopyStream | None:
        """Return a stream to copy from a device; None if the threads that copy wait for each copy."""
        if device is None or device.type == "cpu":
            return None
        streams = staging.accelerators.streams(device)
        if streams is not None:
            return CopyStream(streams, device)
        staging.accelerators.finish_queued(device)
        return None

    def _copying_threads(self, lane: _Lane, most: int) -> int:
        """Return the number of threads that copy a lane: not more than there are cores or buffers to fill."""
        if not lane.in_host_memory or self._buffers is None:
            return 1
        size = sum(self._writes[number].size for number in lane.numbers)
        return max(1, min(most, os.cpu_count() or 1, -(-size // self._buffers.buffer_bytes)))

    # One thread per lane, or several if it is in host memory; one for all lanes of a file that is written in order.

    def _stage(self, batches: Iterator[Batch], queue: _Queue) -> None:
        try:
            ready: dict[_Lane, Ready] = {}  # the last one of each lane: copies on one stream complete in order
            for batch in batches:
                if batch.ready is not None:
                    ready[batch.lane] = batch.ready
                queue.put(batch)
            for last in ready.values():
                last.wait()
        except BaseException as error:
            self._stop(error)
        with self._lock:
            self._unstaged -= 1
            all_staged = not self._unstaged
        if all_staged:
            self.staged.set()
            self._write_staged()
            self._end_queues()

    def _shares(self, lane: _Lane, count: int = 1) -> list[Iterator[Batch]]:
        """Return, for each of `count` threads, the batches of a lane that it fills: those whose turn it takes."""
        if lane.in_host_memory:
            sources = InTurns(self._unbuffered_batches(lane))
            return [self._copied_batches(sources) for _ in range(count)]
        assert count == 1, "several threads for a device"
        return [self._buffered_batches(lane) if lane.buffered else self._unbuffered_batches(lane)]

    def _filled_batches(self, lanes: Sequence[_Lane]) -> Iterator[Batch]:
        """Yield the batches of all lanes by offset; each takes a buffer and is filled when its turn comes."""
        filled, turns = [], []
        for number, lane in enumerate(lanes):
            filled += self._shares(lane)
            if len(lanes) > 1:
                turns += [(batch.offset, number) for batch in self._batches(lane)]
        if len(lanes) == 1:
            yield from filled[0]
        for _, number in sorted(turns):
            batch = next(filled[number], None)
            if batch is None:  # cancelled
                return
            yield batch

    def _batches(self, lane: _Lane) -> Iterator[Batch]:
        """Yield the writes of a lane in order: adjacent ones merged up to a size limit, larger ones split."""
        limit = self._buffers.buffer_bytes if lane.buffered and self._buffers is not None else CHUNK_BYTES
        batch: Batch | None = None
        for number in lane.numbers:
            write = self._writes[number]
            if batch is not None and batch.offset + batch.size == write.offset and batch.size + write.size <= limit:
                batch.numbers.append(number)
                batch.size += write.size
                continue
            if batch is not None:
                yield batch
            batch = None
            if write.size <= limit:
                batch = Batch(lane, write.offset, write.size, [number])
                continue
            for begin in range(0, write.size, limit):
                yield Batch(lane, write.offset + begin, min(limit, write.size - begin), [number], begin)
        if batch is not None:
            yield batch

    def _unbuffered_batches(self, lane: _Lane) -> Iterator[Batch]:
        held, data = None, memoryview(b"")  # a split write and its bytes, kept for its remaining parts
        for batch in self._batches(lane):
            if lane.room is not None:
                lane.room.get()
            if self._cancelled:
                return
            for run in runs_of([self._writes[number] for number in batch.numbers]):
                if run[0] is not held:
                    held, data = run[0], memoryview(host_bytes(run))
                batch.pieces.append(data[batch.begin : batch.begin + batch.size])
                batch.parts.append(part_sizes(run))
            yield batch

    def _copied_batches(self, sources: Iterator[Batch]) -> Iterator[Batch]:
        """Yield unbuffered batches after copying their bytes to a buffer."""
        assert self._buffers is not None, "a buffered lane without buffers"
        self._started.wait()  # copies on all cores would delay the other threads' start
        for batch in sources:
            # Allow writing before waiting for a buffer: only writing frees buffers.
            buffer = self._buffers.lend(self._cancelled, before_waiting=self._allow_writing)
            if buffer is None:
                return
            try:
                copy_bytes(batch.pieces, buffer)
                batch.pieces = [byte_view(buffer[: batch.size])]
                batch.parts = [list(chain.from_iterable(batch.parts))]
            except BaseException:
                self._buffers.give_back(buffer)
                raise
            batch.buffer = buffer
            yield batch

    def _buffered_batches(self, lane: _Lane) -> Iterator[Batch]:
        assert self._buffers is not None, "a buffered lane without buffers"
        stream = lane.stream
        # A split write and its bytes, kept for its remaining parts.
        held, data = None, torch.empty(0, dtype=torch.uint8, device="cpu")
        for batch in self._batches(lane):
            if lane.room is not None:
                lane.room.get()
            # Allow writing before waiting for a buffer: only writing frees buffers.
            buffer = self._buffers.lend(self._cancelled, before_waiting=self._allow_writing)
            if buffer is None:
                return
            try:
                writes, at = [self._writes[number] for number in batch.numbers], 0
                with stream or nullcontext():
                    for run in runs_of(writes):
                        if run[0] is not held:
                            held = run[0]
                            # `host_bytes` uses `.cpu()`, which every device has.
                            data = device_bytes(run) if stream else torch.frombuffer(host_bytes(run), dtype=torch.uint8)
                        part = data[batch.begin : batch.begin + batch.size]
                        buffer[at : at + len(part)].copy_(part, non_blocking=stream is not None)
                        at += len(part)
                batch.pieces.append(byte_view(buffer[: batch.size]))
                batch.parts.append(part_sizes(writes))
                batch.ready = stream.ready() if stream is not None else None
            except BaseException:
                if stream is not None:
                    with suppress(RuntimeError):  # the device failed: the first error is more informative
                        stream.ready().wait()
                self._buffers.give_back(buffer)
                raise
            batch.buffer = buffer
            yield batch

    # A few threads shared by all lanes.

    def _write(self, queue: _Queue) -> None:
        if self._may_write is not None:
            self._may_write.wait()
        while (batch := queue.get()) is not None:
            try:
                # Wait even if the transfer was stopped: no buffer may be reused while a copy into it is in flight.
                if batch.ready is not None:
                    batch.ready.wait()
                if not self._cancelled:
                    file = self._files[batch.lane.file]
                    self._enter(batch, write_pieces(file, batch.offset, batch.pieces, batch.parts))
            except BaseException as error:
                self._stop(error)
            finally:
                if batch.buffer is not None and self._buffers is not None:
                    self._buffers.give_back(batch.buffer)
                if batch.lane.room is not None:
                    batch.lane.room.put(None)

    def _enter(self, batch: Batch, sums: list[int]) -> None:
        """Record completed writes; sync a file after its last bytes, while other threads continue writing."""
        file, first = batch.lane.file, batch.numbers[0]
        with self._lock:
            if batch.size < self._writes[first].size:
                self._cut.setdefault(first, []).append((batch.begin, batch.size, sums[0]))
            else:
                at = 0
                for number in batch.numbers:
                    begin, end = self._firsts[number : number + 2]
                    self._sums[begin:end] = sums[at : at + end - begin]
                    at += end - begin
                assert at == len(sums), "a checksum for each part"
            self._left[file] -= batch.size
            last = not self._left[file]
        if last:
            self._files[file].sync()

    def _write_staged(self) -> None:
        """Allow writing once everything is staged and the result is awaited.

        Until then the caller may not have returned to training, which the writing threads would delay.
        """
        if self.staged.is_set() and self._awaited:
            self._allow_writing()

    def _allow_writing(self) -> None:
        if self._may_write is not None:
            self._may_write.set()

    def _stop(self, error: BaseException | None) -> None:
        with self._lock:
            if self._failure is None:
                self._failure = error
        self._cancelled.append(True)
        self._started.set()
        self._allow_writing()
        if self._buffers is not None:
            self._buffers.wake()
        for lane in self._lanes:
            if lane.room is not None:
                lane.room.put(None)


def _runs(thread: threading.Thread) -> bool:
    """Return whether a thread was started. If Ctrl-C interrupted `start`, wait up to a second to find out."""
    until = time.monotonic() + 1
    while not thread.is_alive() and thread in threading.enumerate() and time.monotonic() < until:
        time.sleep(0.001)
    return thread.ident is not None
