"""Reads and writes between files and host memory on a few threads, with checksums.

Requests that are adjacent in a file are combined, so that many small tensors take one system call; large requests are
split into chunks that run in parallel. The checksums of chunks are combined, so the result does not depend on how the
requests were split. Reading, writing and checksumming all release the GIL.
"""

import os
import threading
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol, Self, TypeVar

from torch_tfckpt.format import crc32c
from torch_tfckpt.storage.protocol import Buffer, ReadableFile, WritableFile
from torch_tfckpt.transfer.threads import Workers

# 8 MiB: large enough that the cost of a system call and a future is negligible, small enough that the bytes are still
# in the core's cache when they are checksummed, and that a tensor of 64 MiB keeps eight threads busy.
CHUNK_BYTES: Final = 8 * 1024 * 1024
# 512 KiB: what one thread reads or writes, and checksums, at a time, so that the bytes stay in the core's own cache.
STRIP_BYTES: Final = 512 * 1024
# Two threads more than cores: some wait for the disk while others compute. More than 16 only contend for the GIL.
THREADS: Final = min(16, (os.cpu_count() or 1) + 2)


class ReadRequest(NamedTuple):
    """Request to read a range of a file into host memory."""

    file: ReadableFile
    offset: int
    target: memoryview  # unsigned bytes; its length is the number of bytes to read

    @property
    def size(self) -> int:
        return len(self.target)


class SumRequest(NamedTuple):
    """Request to checksum a range of a file without keeping the bytes."""

    file: ReadableFile
    offset: int
    size: int


class WriteRequest(NamedTuple):
    """Request to write host memory to a file."""

    file: WritableFile
    offset: int
    source: Buffer  # must not change before the call returns

    @property
    def size(self) -> int:
        return len(self.source)


class Request(Protocol):
    @property
    def file(self) -> ReadableFile | WritableFile: ...
    @property
    def offset(self) -> int: ...
    @property
    def size(self) -> int: ...


class Piece(NamedTuple):
    """Part of one request."""

    number: int  # index of the request
    begin: int  # offset in bytes from the request's start
    size: int


class Job(NamedTuple):
    """Consecutive pieces of one file, processed by one thread at a time."""

    offset: int
    pieces: list[Piece]


R = TypeVar("R", bound=Request)


class Pipeline:
    """Threads that move bytes, started by the first plan that needs more than one, stopped by `close`.

    Thread safety: several threads may share a pipeline. After a fork the child starts its own threads.
    """

    def __init__(self, threads: int = THREADS) -> None:
        self._threads = threads
        self._workers: tuple[Workers, int] | None = None  # the threads, and the id of the process that started them
        self._scratch = threading.local()

    def read(self, requests: Sequence[ReadRequest], begun: set[int] | None = None) -> list[int]:
        """Fill every target; return the CRC-32C (not masked) of each, in the order of `requests`.

        Args:
            begun: Receives the indexes of the requests whose targets may have changed, even if an error is raised.
        """

        def job(request: ReadRequest, work: Job) -> list[int]:
            if begun is not None:
                begun.update(piece.number for piece in work.pieces)
            buffers = [requests[number].target[begin : begin + size] for number, begin, size in work.pieces]
            if len(buffers) > 1:
                request.file.read_into(work.offset, buffers)
                return [crc32c.value(buffer) for buffer in buffers]
            target, crc = buffers[0], 0
            for at in range(0, len(target), STRIP_BYTES):
                strip = target[at : at + STRIP_BYTES]
                request.file.read_into(work.offset + at, [strip])
                crc = crc32c.value(strip, crc)
            return [crc]

        return self._run(requests, job)

    def fill(self, requests: Sequence[ReadRequest], begun: set[int] | None = None) -> None:
        """Fill every target without computing checksums. `begun` as for `read`."""

        def job(request: ReadRequest, work: Job) -> list[int]:
            if begun is not None:
                begun.update(piece.number for piece in work.pieces)
            buffers = [requests[number].target[begin : begin + size] for number, begin, size in work.pieces]
            request.file.read_into(work.offset, buffers)
            return [0] * len(work.pieces)

        self._run(requests, job)

    def checksums(self, requests: Sequence[SumRequest]) -> list[int]:
        """Return the CRC-32C (not masked) of every range, in order. Memory: one chunk per thread."""

        def job(request: SumRequest, work: Job) -> list[int]:
            scratch = self._scratch_buffer()
            if len(work.pieces) > 1:
                request.file.read_into(work.offset, [scratch[: sum(size for _, _, size in work.pieces)]])
                return crc32c.of_parts(scratch, [size for _, _, size in work.pieces])
            crc, size = 0, work.pieces[0].size
            for at in range(0, size, STRIP_BYTES):
                strip = scratch[: min(STRIP_BYTES, size - at)]
                request.file.read_into(work.offset + at, [strip])
                crc = crc32c.value(strip, crc)
            return [crc]

        return self._run(requests, job)

    def checksum(self, buffer: memoryview) -> int:
        """Return the CRC-32C (not masked) of host memory, computed in parallel for large buffers."""
        chunks = [buffer[begin : begin + CHUNK_BYTES] for begin in range(0, len(buffer), CHUNK_BYTES)]
        if len(chunks) < 2:
            return crc32c.value(buffer)
        total = 0
        for chunk, crc in zip(chunks, self._running().map(crc32c.value, chunks), strict=True):
            total = crc32c.combine(total, crc, len(chunk))
        return total

    def write(self, requests: Sequence[WriteRequest]) -> list[int]:
        """Write every source; return the CRC-32C (not masked) of each, in order."""

        def job(request: WriteRequest, work: Job) -> list[int]:
            views = [memoryview(requests[number].source)[begin : begin + size] for number, begin, size in work.pieces]
            return write_pieces(request.file, work.offset, views)

        return self._run(requests, job, in_order=any(request.file.in_order for request in requests))

    def close(self) -> None:
        """Stop the threads. A later plan starts new ones."""
        workers, self._workers = self._workers, None
        if workers is not None and workers[1] == os.getpid():
            workers[0].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, requests: Sequence[R], job: Callable[[R, Job], list[int]], *, in_order: bool = False) -> list[int]:
        """Split the plan into jobs, run them, and combine the checksums of each request's pieces."""
        jobs = cut_plan(requests, CHUNK_BYTES)

        def run(work: Job) -> list[int]:
            return job(requests[work.pieces[0].number], work)

        if len(jobs) < 2 or self._threads == 1 or in_order:
            results = list(map(run, jobs))
        else:
            results = self._running().map(run, jobs)
        sums = [0] * len(requests)
        for work, pieces in zip(jobs, results, strict=True):
            for (number, begin, size), crc in zip(work.pieces, pieces, strict=True):
                sums[number] = crc32c.combine(sums[number], crc, size) if begin else crc
        return sums

    def _running(self) -> Workers:
        """Return this process's threads.

        If two threads make the first call at the same time, one of them gets separate workers for its plan.
        """
        known, process = self._workers, os.getpid()
        if known is None or known[1] != process:
            self._workers = known = (Workers(self._threads, "tfckpt"), process)
        return known[0]

    def _scratch_buffer(self) -> memoryview:
        """Return this thread's buffer of one chunk."""
        if not hasattr(self._scratch, "buffer"):
            self._scratch.buffer = memoryview(bytearray(CHUNK_BYTES))
        buffer: memoryview = self._scratch.buffer
        return buffer


def write_pieces(
    file: WritableFile, offset: int, pieces: Sequence[memoryview], parts: Sequence[Sequence[int]] = ()
) -> list[int]:
    """Write `pieces` back to back.

    Args:
        parts: For each piece, the sizes of its parts, each of which gets a checksum; by default one part per piece.

    Returns:
        The CRC-32C (not masked) of each part of each piece, in order.
    """
    if len(pieces) == 1 and (not parts or len(parts[0]) == 1):
        piece, crc = pieces[0], 0
        for at in range(0, len(piece), STRIP_BYTES):
            strip = piece[at : at + STRIP_BYTES]
            crc = crc32c.value(strip, crc)
            file.write(offset + at, [strip])
        return [crc]
    if parts:
        sums = [crc for piece, sizes in zip(pieces, parts, strict=True) for crc in crc32c.of_parts(piece, sizes)]
    else:
        sums = [crc32c.value(piece) for piece in pieces]
    file.write(offset, pieces)
    return sums


def cut_plan(requests: Sequence[Request], limit: int) -> list[Job]:
    """Return jobs: adjacent requests merged up to `limit` bytes, larger ones split, empty ones dropped."""
    jobs: list[Job] = []
    file: ReadableFile | WritableFile | None = None
    end = room = 0
    for number, request in enumerate(requests):
        size = request.size
        if size > limit:
            for begin in range(0, size, limit):
                piece = Piece(number, begin, min(limit, size - begin))
                jobs.append(Job(request.offset + begin, [piece]))
            file = None
        elif size:
            if request.file is file and request.offset == end and size <= room:
                jobs[-1].pieces.append(Piece(number, 0, size))
            else:
                jobs.append(Job(request.offset, [Piece(number, 0, size)]))
                file, room = request.file, limit
            end, room = request.offset + size, room - size
    return jobs
