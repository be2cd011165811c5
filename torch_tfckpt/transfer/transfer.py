"""A whole plan of tensors on its way to files: copied from their devices, summed and written side by side.

    lane: tensors of one device for one file      -> buffers -> any of a few threads
      copies into a buffer, and the next, and the next          waits for the copy, sums the bytes, writes them
      `staged` is set when the last was copied                  gives the buffer back

What is summed are the copied bytes, those that are written. A buffer is lent until its bytes are in the file. Where
training waits, values in host memory are not copied at all; they are written from where they lie.

The first error stops everything and is raised by `result`. Nothing here knows a checkpoint key.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from queue import SimpleQueue
from typing import Final, NamedTuple

import torch

from torch_tfckpt.format import crc32c
from torch_tfckpt.storage.protocol import WritableFile
from torch_tfckpt.transfer.cuda import CopyStream, Ready
from torch_tfckpt.transfer.host_bytes import byte_view
from torch_tfckpt.transfer.pipeline import CHUNK_BYTES, Piece, cut_plan, write_pieces
from torch_tfckpt.transfer.staging import Buffers, Staging
from torch_tfckpt.transfer.tensor_writes import TensorWrite, WriteRun, device_bytes, host_bytes, runs_of

# Loads of a lane without buffers that may wait for a thread: host copies of what does not lie as it is stored.
_UNBUFFERED_AHEAD: Final = 4


class _Load(NamedTuple):
    """Bytes that lie one behind the other in a file, filled and ready to be written."""

    lane: "_Lane"
    offset: int
    pieces: list[Piece]  # parts of the lane's runs
    views: list[memoryview]  # the bytes of each piece
    buffer: torch.Tensor | None  # to be given back
    ready: Ready | None  # None: the bytes are there already


class _Lane:
    """What one device has for one file."""

    def __init__(self, runs: list[WriteRun], *, buffered: bool, ahead: int) -> None:
        self.runs, self.buffered = runs, buffered
        self.room = threading.Semaphore(ahead)  # loads that may be on their way at a time

    @property
    def file(self) -> WritableFile:
        return self.runs[0].file

    @property
    def device(self) -> torch.device | None:
        return self.runs[0].device


_Queue = SimpleQueue[_Load | None]


class Transfer:
    """Carries out one plan.

    Args:
        writes: What goes where; of each file in the order of its bytes.
        staging: Where the buffers come from.
        snapshot: Whether values may change once `staged` is set; else not before `result` returned.

    Values are those at the time of the call, in the order of the current streams of their devices. Cost: host memory of
    the buffers, and a contiguous copy of one tensor a lane where it does not lie as it is stored.
    Threads: one calls; `staged` may be waited for by any.
    """

    def __init__(self, writes: Sequence[TensorWrite], staging: Staging, *, snapshot: bool) -> None:
        self.staged = threading.Event()
        self._sums = [0] * len(writes)
        self._pieces: dict[int, dict[int, tuple[int, int]]] = {}  # write -> begin of a piece of it -> sum and size
        self._lanes = self._make_lanes(runs_of(writes), staging, snapshot)
        self._buffers = self._make_buffers(staging, snapshot)
        self._lock = threading.Lock()
        self._left: dict[int, int] = {}  # id of a file -> bytes not written yet
        for lane in self._lanes:
            self._left[id(lane.file)] = self._left.get(id(lane.file), 0) + sum(run.size for run in lane.runs)
        self._cancelled = threading.Event()
        self._failure: BaseException | None = None
        self._may_write = threading.Event()
        # A file that is written in order has one thread that stages all its lanes, and one that writes.
        groups: dict[int, list[_Lane]] = {}
        for lane in self._lanes:
            groups.setdefault(id(lane.file if lane.file.in_order else lane), []).append(lane)
        shared = _Queue()
        stages = [(lanes, _Queue() if lanes[0].file.in_order else shared) for lanes in groups.values()]
        self._queues = [queue for _, queue in stages if queue is not shared]  # of each thread that writes
        if len(self._queues) < len(stages):
            writers = min(staging.options.threads, max(1, sum(self._left.values()) // CHUNK_BYTES + len(self._left)))
            self._queues += [shared] * writers
        self._unstaged = len(stages)
        # All threads start now: none can when the interpreter is on its way out.
        self._threads = [threading.Thread(target=self._stage, args=stage, name="tfckpt-stage") for stage in stages]
        self._threads += [
            threading.Thread(target=self._write, args=(queue,), name="tfckpt-write") for queue in self._queues
        ]
        self._streams = {id(lane): CopyStream(lane.device) for lane in self._lanes if _is_cuda(lane)}
        if not self._lanes:
            self.staged.set()
        if not snapshot:
            self._may_write.set()
        self._start()

    def result(self) -> list[int]:
        """Waits until all is written and synced; the CRC-32C (not masked) of each write, in order.

        Raises:
            OSError, and what else went wrong first. Ctrl-C stops the transfer.
        """
        try:
            for thread in self._threads:
                thread.join()
        except BaseException:
            self.cancel()
            raise
        if self._failure is not None:
            raise self._failure
        assert not any(self._left.values()), f"bytes not written: {self._left}"
        for number, pieces in self._pieces.items():
            crc = 0
            for _, (piece, size) in sorted(pieces.items()):
                crc = crc32c.combine(crc, piece, size)
            self._sums[number] = crc
        return self._sums

    def cancel(self) -> None:
        """Stops, and returns when no thread touches files and tensors any more. Fine at any time."""
        self._stop(None)
        for thread in self._threads:
            thread.join()
        self._give_back_loads()

    @property
    def failed(self) -> bool:
        """Whether `result` will raise."""
        return self._failure is not None

    def _start(self) -> None:
        try:
            for thread in self._threads:
                thread.start()
        except BaseException as error:  # no more threads to be had, or Ctrl-C
            self._stop(error)
            self._end_queues()
            self._threads = [thread for thread in self._threads if _runs(thread)]
            self.cancel()
            raise

    def _give_back_loads(self) -> None:
        """What no thread came to write, since not all could be started."""
        for queue in self._queues:
            while not queue.empty():
                load = queue.get()
                if load is not None and load.buffer is not None and self._buffers is not None:
                    self._buffers.give_back(load.buffer)
        self._end_queues()

    def _end_queues(self) -> None:
        for queue in self._queues:
            queue.put(None)

    def _make_lanes(self, runs: list[WriteRun], staging: Staging, snapshot: bool) -> list[_Lane]:
        groups: dict[tuple[int, torch.device | None], list[WriteRun]] = {}
        for run in runs:
            if run.size:
                groups.setdefault((id(run.file), run.device), []).append(run)
        lanes = []
        for (_, device), of_lane in groups.items():
            # Bytes lie in memory that nobody changes.
            buffered = device is not None and (snapshot or device.type != "cpu")
            # A snapshot takes as many buffers as there are; a device that training waits for, its ring. Bytes of a
            # snapshot need no copies, and nothing is written until all lanes are staged, so they must not wait.
            ring = staging.options.async_bytes if snapshot else staging.options.buffers_per_device
            ahead = ring if snapshot or buffered else _UNBUFFERED_AHEAD
            lanes.append(_Lane(of_lane, buffered=buffered, ahead=ahead))
        return lanes

    def _make_buffers(self, staging: Staging, snapshot: bool) -> Buffers | None:
        buffered = [lane for lane in self._lanes if lane.buffered]
        if not buffered:
            return None
        return staging.buffers(len(buffered), pinned=any(map(_is_cuda, buffered)), snapshot=snapshot)

    # One thread a lane, or for all lanes of a file that is written in order.

    def _stage(self, lanes: list[_Lane], queue: _Queue) -> None:
        try:
            ready: dict[int, Ready] = {}  # the last of each lane: copies of one stream end in order
            for load in self._loads(lanes):
                if load.ready is not None:
                    ready[id(load.lane)] = load.ready
                queue.put(load)
            for last in ready.values():
                last.wait()
        except BaseException as error:
            self._stop(error)
        with self._lock:
            self._unstaged -= 1
            all_staged = not self._unstaged
        if all_staged:
            self.staged.set()
            self._may_write.set()
            self._end_queues()

    def _loads(self, lanes: list[_Lane]) -> Iterator[_Load]:
        """The loads of all lanes in the order of their offsets. None is filled, or takes a buffer, before its turn."""
        filled: list[Iterator[_Load]] = []
        turns: list[tuple[int, int]] = []
        for number, lane in enumerate(lanes):
            filled.append(self._buffered_loads(lane) if lane.buffered else self._unbuffered_loads(lane))
            limit = self._buffers.buffer_bytes if lane.buffered and self._buffers is not None else CHUNK_BYTES
            turns += [(offset, number) for offset, _ in cut_plan(lane.runs, limit)]
        for _, number in sorted(turns):
            load = next(filled[number], None)
            if load is None:  # cancelled
                return
            yield load

    def _unbuffered_loads(self, lane: _Lane) -> Iterator[_Load]:
        at_hand, data = -1, memoryview(b"")
        for offset, pieces in cut_plan(lane.runs, CHUNK_BYTES):
            lane.room.acquire()
            if self._cancelled.is_set():
                return
            views = []
            for number, begin, size in pieces:
                if number != at_hand:
                    at_hand, data = number, memoryview(host_bytes(lane.runs[number]))
                views.append(data[begin : begin + size])
            yield _Load(lane, offset, pieces, views, None, None)

    def _buffered_loads(self, lane: _Lane) -> Iterator[_Load]:
        assert self._buffers is not None, "a lane with buffers, and no buffers"
        stream = self._streams.get(id(lane))
        at_hand, data = -1, torch.empty(0, dtype=torch.uint8)
        for offset, pieces in cut_plan(lane.runs, self._buffers.buffer_bytes):
            lane.room.acquire()
            if self._buffers.exhausted:
                self._may_write.set()  # only written bytes make room
            buffer = self._buffers.lend(self._cancelled)
            if buffer is None:
                return
            at, views = 0, []
            try:
                with stream or nullcontext():
                    for number, begin, size in pieces:
                        if number != at_hand:
                            at_hand, data = number, device_bytes(lane.runs[number])
                        target = buffer[at : at + size]
                        target.copy_(data[begin : begin + size], non_blocking=stream is not None)
                        views.append(byte_view(target))
                        at += size
                ready = stream.ready() if stream is not None else None
            except BaseException:
                if stream is not None:
                    with suppress(RuntimeError):  # of a device that fails: what led here tells more
                        stream.ready().wait()
                self._buffers.give_back(buffer)
                raise
            yield _Load(lane, offset, pieces, views, buffer, ready)

    # A few threads for all.

    def _write(self, queue: _Queue) -> None:
        self._may_write.wait()
        while (load := queue.get()) is not None:
            try:
                # Also of a transfer that was stopped: into a buffer that is lent again no copy may be on its way.
                if load.ready is not None:
                    load.ready.wait()
                if not self._cancelled.is_set():
                    self._enter(load, write_pieces(load.lane.file, load.offset, load.views))
            except BaseException as error:
                self._stop(error)
            finally:
                if load.buffer is not None and self._buffers is not None:
                    self._buffers.give_back(load.buffer)
                load.lane.room.release()

    def _enter(self, load: _Load, sums: list[int]) -> None:
        """Books what was written; whoever writes the last bytes of a file makes it durable, while others write on."""
        file = load.lane.file
        with self._lock:
            for (number, begin, size), view, crc in zip(load.pieces, load.views, sums, strict=True):
                run = load.lane.runs[number]
                if len(run.writes) > 1:
                    self._sums[run.first : run.first + len(run.writes)] = run.sums(view, crc)
                else:
                    self._pieces.setdefault(run.first, {})[begin] = crc, size
            self._left[id(file)] -= sum(map(len, load.views))
            last = not self._left[id(file)]
        if last:
            file.sync()

    def _stop(self, error: BaseException | None) -> None:
        with self._lock:
            if self._failure is None:
                self._failure = error
        self._cancelled.set()
        self._may_write.set()
        if self._buffers is not None:
            self._buffers.wake()
        for lane in self._lanes:
            lane.room.release()


def _runs(thread: threading.Thread) -> bool:
    """Whether a thread was started. After Ctrl-C in the middle of that it takes a moment to tell."""
    until = time.monotonic() + 1
    while not thread.is_alive() and thread in threading.enumerate() and time.monotonic() < until:
        time.sleep(0.001)
    return thread.ident is not None


def _is_cuda(lane: _Lane) -> bool:
    return lane.device is not None and lane.device.type == "cuda"
