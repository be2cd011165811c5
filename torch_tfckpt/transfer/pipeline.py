"""Carries out plans of bytes: files <-> host memory, on a few threads, checksummed on the way.

A plan is a list of requests. Requests that lie one behind the other in a file travel together, one system call for
many small tensors; large ones are cut into chunks that travel side by side. Checksums of chunks are combined, so the
result does not depend on how a plan was cut. Reading, writing and summing all release the GIL.
"""

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Final, NamedTuple, Protocol, Self, TypeVar

from torch_tfckpt.format import crc32c
from torch_tfckpt.storage.protocol import Buffer, ReadableFile, WritableFile

# 8 MiB: large enough that a system call and a future cost nothing beside it, small enough that the bytes are still in
# the cache of the core that sums them, and that a tensor of 64 MiB keeps eight threads busy.
CHUNK_BYTES: Final = 8 * 1024 * 1024
# 512 KiB: what one thread reads, or writes, and sums at a time. The second of the two finds it in its core's own cache.
STRIP_BYTES: Final = 512 * 1024
# Two threads more than cores: some wait for the disk while others sum. More than 16 only contend for the GIL.
THREADS: Final = min(16, (os.cpu_count() or 1) + 2)


class ReadRequest(NamedTuple):
    """Bytes on their way from a file into host memory."""

    file: ReadableFile
    offset: int
    target: memoryview  # of unsigned bytes; its length says how many

    @property
    def size(self) -> int:
        return len(self.target)


class SumRequest(NamedTuple):
    """Bytes of a file to be read and summed, and kept nowhere."""

    file: ReadableFile
    offset: int
    size: int


class WriteRequest(NamedTuple):
    """Bytes on their way from host memory into a file."""

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
    """A part of one request."""

    number: int  # position of the request in the plan
    begin: int  # bytes from the request's start
    size: int


class Job(NamedTuple):
    """Pieces that lie one behind the other in one file: the work of one thread at a time."""

    offset: int
    pieces: list[Piece]


R = TypeVar("R", bound=Request)


class Pipeline:
    """A few threads that move bytes. They start with the first plan that needs more than one, and end with `close`.

    Threads: several may share a pipeline. It survives a fork: the child starts threads of its own.
    """

    def __init__(self, threads: int = THREADS) -> None:
        self._threads = threads
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._owner = 0  # process id that the executor's threads live in
        self._scratch = threading.local()

    def read(self, requests: Sequence[ReadRequest]) -> list[int]:
        """Fills every target; returns the CRC-32C (not masked) of each, in the order of `requests`."""

        def job(request: ReadRequest, work: Job) -> list[int]:
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

    def fill(self, requests: Sequence[ReadRequest]) -> None:
        """Fills every target and sums nothing."""

        def job(request: ReadRequest, work: Job) -> list[int]:
            buffers = [requests[number].target[begin : begin + size] for number, begin, size in work.pieces]
            request.file.read_into(work.offset, buffers)
            return [0] * len(work.pieces)

        self._run(requests, job)

    def checksums(self, requests: Sequence[SumRequest]) -> list[int]:
        """The CRC-32C (not masked) of every range, in order. Memory: one chunk a thread."""

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
        """The CRC-32C (not masked) of host memory; large buffers in parallel."""
        chunks = [buffer[begin : begin + CHUNK_BYTES] for begin in range(0, len(buffer), CHUNK_BYTES)]
        if len(chunks) < 2:
            return crc32c.value(buffer)
        total = 0
        for chunk, crc in zip(chunks, self._pool().map(crc32c.value, chunks), strict=True):
            total = crc32c.combine(total, crc, len(chunk))
        return total

    def write(self, requests: Sequence[WriteRequest]) -> list[int]:
        """Writes every source; returns the CRC-32C (not masked) of each, in order."""

        def job(request: WriteRequest, work: Job) -> list[int]:
            views = [memoryview(requests[number].source)[begin : begin + size] for number, begin, size in work.pieces]
            return write_pieces(request.file, work.offset, views)

        return self._run(requests, job, in_order=any(request.file.in_order for request in requests))

    def close(self) -> None:
        """Ends the threads. A later plan starts new ones."""
        with self._lock:
            executor, self._executor = self._executor, None
            owner = self._owner
        if executor is not None and owner == os.getpid():
            executor.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, requests: Sequence[R], job: Callable[[R, Job], list[int]], *, in_order: bool = False) -> list[int]:
        """Cuts the plan into jobs, does them, and combines the sums of each request's pieces."""
        jobs = cut_plan(requests, CHUNK_BYTES)
        failed = threading.Event()

        def guarded(work: Job) -> list[int]:
            if failed.is_set():
                return []  # the first error is on its way to the caller; nobody reads this
            try:
                return job(requests[work.pieces[0].number], work)
            except BaseException:
                failed.set()
                raise

        results: Iterable[list[int]]
        if len(jobs) == 1 or self._threads == 1 or in_order:
            results = map(guarded, jobs)
        else:
            futures: list[Future[list[int]]] = []
            try:
                for work in jobs:
                    futures.append(self._submit(guarded, work))
                wait(futures)
            finally:
                # After Ctrl-C too: no thread may still hold the buffers when the caller gets them back.
                failed.set()
                wait(futures)
            results = [future.result() for future in futures]
        sums = [0] * len(requests)
        for work, pieces in zip(jobs, results, strict=True):
            for (number, begin, size), crc in zip(work.pieces, pieces, strict=True):
                sums[number] = crc32c.combine(sums[number], crc, size) if begin else crc
        return sums

    def _submit(self, guarded: Callable[[Job], list[int]], work: Job) -> Future[list[int]]:
        try:
            return self._pool().submit(guarded, work)
        except RuntimeError as refused:
            if "interpreter shutdown" not in str(refused):
                raise
            # No pool takes work any more; a save that began before must still come to its end, so it is done here.
            done: Future[list[int]] = Future()
            try:
                done.set_result(guarded(work))
            except BaseException as error:
                done.set_exception(error)
            return done

    def _pool(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._executor is None or self._owner != os.getpid():
                self._executor = ThreadPoolExecutor(self._threads, thread_name_prefix="tfckpt")
                self._owner = os.getpid()
            return self._executor

    def _scratch_buffer(self) -> memoryview:
        """This thread's buffer of one chunk."""
        if not hasattr(self._scratch, "buffer"):
            self._scratch.buffer = memoryview(bytearray(CHUNK_BYTES))
        buffer: memoryview = self._scratch.buffer
        return buffer


def write_pieces(
    file: WritableFile, offset: int, pieces: Sequence[memoryview], parts: Sequence[Sequence[int]] = ()
) -> list[int]:
    """Write `pieces` back to back.

    Args:
        parts: For each piece the sizes of the parts of it that are summed; by default each piece is one part.

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
    """Neighbours in a file joined up to `limit` bytes, larger requests cut. Empty requests need no job."""
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
