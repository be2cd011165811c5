"""Pipeline: equal to plain file access however plans are split, and no error in any thread is lost."""

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from own_threads import own_threads

from torch_tfckpt.errors import DataLossError
from torch_tfckpt.format import crc32c
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.protocol import Buffer
from torch_tfckpt.transfer import pipeline as module
from torch_tfckpt.transfer.pipeline import CHUNK_BYTES, Pipeline, ReadRequest, SumRequest, WriteRequest
from torch_tfckpt.transfer.threads import Latch

WAIT = 30  # seconds after which a hanging test fails; no test normally takes a tenth of this


class Memory:
    """A file in memory, readable and writable, with a log of the calls and a hook that runs before each."""

    path = "memory"
    identity = 0
    in_order = False

    def has_name(self, path: str) -> bool:
        return path == self.path

    def __init__(self, contents: bytes = b"", before: Callable[[int], None] = lambda offset: None) -> None:
        self.contents = bytearray(contents)
        self.calls: list[tuple[int, list[int]]] = []
        self._before = before
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        return len(self.contents)

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self.contents[offset : offset + size])

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self._log(offset, buffers)
        for buffer in buffers:
            buffer[:] = self.contents[offset : offset + len(buffer)]
            offset += len(buffer)

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        self._log(offset, buffers)
        with self._lock:
            self.contents.extend(bytes(max(0, offset + sum(map(len, buffers)) - len(self.contents))))
            for buffer in buffers:
                self.contents[offset : offset + len(buffer)] = buffer
                offset += len(buffer)

    def _log(self, offset: int, buffers: Sequence[Buffer]) -> None:
        self._before(offset)
        self.calls.append((offset, [len(buffer) for buffer in buffers]))

    def fileno(self) -> int:
        raise NotImplementedError

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def threads() -> Iterator[Pipeline]:
    with Pipeline(4) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipeline")


@contextlib.contextmanager
def chunks_of(size: int) -> Iterator[None]:
    """Make chunks a few bytes long instead of megabytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_BYTES", size)
        yield


def apart(file: Memory, count: int, size: int = 1) -> list[ReadRequest]:
    """Return requests that are not adjacent, so that each is its own job: number n at offset 2 * n * size."""
    return [ReadRequest(file, 2 * number * size, memoryview(bytearray(size))) for number in range(count)]


# Arbitrary plans, split in arbitrary ways.

# Ranges of a file: bytes skipped before it, and its size. Most are adjacent, some are empty, some are large.
RANGES = st.lists(st.tuples(st.sampled_from([0, 0, 0, 1, 5]), st.sampled_from([0, 1, 2, 3, 8, 40])), max_size=12)


def ranges_of(gaps: list[tuple[int, int]]) -> list[tuple[int, int]]:
    ranges, at = [], 0
    for gap, size in gaps:
        ranges.append((at + gap, size))
        at += gap + size
    return ranges


@settings(deadline=None)
@given(
    gaps=st.lists(RANGES, min_size=1, max_size=2),
    chunk=st.integers(1, 30),
    count=st.sampled_from([1, 2, 4]),
    data=st.data(),
)
def test_reads_equal_plain_file_access(
    scratch: Path, gaps: list[list[tuple[int, int]]], chunk: int, count: int, data: st.DataObject
) -> None:
    """Targets and checksums equal those of plain file access, in request order, however the plan is split."""
    contents = [bytes((7 * at + 11 * number) % 251 for at in range(600)) for number in range(len(gaps))]
    for number, content in enumerate(contents):
        (scratch / f"r{number}").write_bytes(content)
    files = [LOCAL.open(str(scratch / f"r{number}")) for number in range(len(gaps))]
    plan = data.draw(
        st.permutations([(n, *where) for n, each in enumerate(gaps) for where in ranges_of(each)])
        | st.just([(n, *where) for n, each in enumerate(gaps) for where in ranges_of(each)])
    )
    expected = [contents[number][offset : offset + size] for number, offset, size in plan]
    with chunks_of(chunk), Pipeline(count) as pipeline:
        reads = [ReadRequest(files[number], offset, memoryview(bytearray(size))) for number, offset, size in plan]
        assert pipeline.read(reads) == [crc32c.value(content) for content in expected]
        assert [bytes(request.target) for request in reads] == expected
        fills = [ReadRequest(files[number], offset, memoryview(bytearray(size))) for number, offset, size in plan]
        pipeline.fill(fills)
        assert [bytes(request.target) for request in fills] == expected
        sums = [SumRequest(files[number], offset, size) for number, offset, size in plan]
        assert pipeline.checksums(sums) == [crc32c.value(content) for content in expected]
    for file in files:
        file.close()


@settings(deadline=None)
@given(gaps=RANGES, chunk=st.integers(1, 30), count=st.sampled_from([1, 2, 4]), data=st.data())
def test_writes_equal_plain_file_access(
    scratch: Path, gaps: list[tuple[int, int]], chunk: int, count: int, data: st.DataObject
) -> None:
    """File and checksums equal those of sequential writes, whatever the order of the requests."""
    plan = data.draw(st.permutations(ranges_of(gaps)) | st.just(ranges_of(gaps)))
    sources = [data.draw(st.binary(min_size=size, max_size=size)) for _, size in plan]
    expected = bytearray()
    for (offset, size), source in zip(plan, sources, strict=True):
        if size:
            expected.extend(bytes(max(0, offset + size - len(expected))))
            expected[offset : offset + size] = source
    (scratch / "w").unlink(missing_ok=True)
    file = LOCAL.create(str(scratch / "w"))
    kinds: list[Callable[[bytes], Buffer]] = [bytes, bytearray, memoryview]
    requests = [
        WriteRequest(file, offset, kinds[number % 3](source))
        for number, ((offset, _), source) in enumerate(zip(plan, sources, strict=True))
    ]
    with chunks_of(chunk), Pipeline(count) as pipeline:
        assert pipeline.write(requests) == [crc32c.value(source) for source in sources]
    file.close()
    assert (scratch / "w").read_bytes() == expected


def test_a_file_that_requires_order_is_written_in_order(threads: Pipeline) -> None:
    """A single thread writes, however many there are: each write starts where the previous one ended."""
    writers = set()
    file = Memory(before=lambda offset: writers.add(threading.current_thread()))
    file.in_order = True
    contents = os.urandom(1000)
    with chunks_of(7):
        requests = [WriteRequest(file, begin, contents[begin : begin + 30]) for begin in range(0, 1000, 30)]
        assert threads.write(requests) == [crc32c.value(request.source) for request in requests]
    assert file.contents == contents
    ends = [offset + sum(sizes) for offset, sizes in file.calls]
    assert [offset for offset, _ in file.calls] == [0, *ends[:-1]]
    assert writers == {threading.current_thread()}


@settings(deadline=None)
@given(contents=st.binary(max_size=100), chunk=st.integers(1, 30))
def test_memory_is_checksummed_in_parallel(contents: bytes, chunk: int) -> None:
    """The checksum of a buffer does not depend on how it was split into chunks."""
    with chunks_of(chunk), Pipeline(2) as pipeline:
        assert pipeline.checksum(memoryview(contents)) == crc32c.value(contents)


def test_chunks_of_the_default_size(threads: Pipeline) -> None:
    """One byte more than two chunks of the default size, through a local file."""
    contents = os.urandom(1024) * (2 * CHUNK_BYTES // 1024) + b"x"
    file = Memory()
    expected = [crc32c.value(contents)]
    assert threads.write([WriteRequest(file, 0, contents)]) == expected
    assert file.contents == contents
    assert threads.checksums([SumRequest(file, 0, len(contents))]) == expected
    target = bytearray(len(contents))
    assert threads.read([ReadRequest(file, 0, memoryview(target))]) == expected
    assert target == contents
    assert [threads.checksum(memoryview(contents))] == expected


# How plans are split.


def test_adjacent_requests_are_combined() -> None:
    """Many small tensors take one system call per chunk, and empty ones among them cost nothing."""
    file = Memory(bytes(100))
    requests = [
        ReadRequest(file, at, memoryview(bytearray(size))) for at, size in ((0, 4), (4, 3), (7, 0), (7, 3), (10, 1))
    ]
    with chunks_of(10):
        Pipeline(1).read(requests)
    assert file.calls == [(0, [4, 3, 3]), (10, [1])]


def test_separate_requests_stay_separate() -> None:
    """With a gap, a lower offset or another file in between, no byte is read that was not requested."""
    file, other = Memory(bytes(100)), Memory(bytes(100))
    ranges = [(file, 0, 2), (file, 3, 2), (file, 5, 2), (other, 7, 2), (file, 7, 2), (file, 0, 2)]
    with chunks_of(50):
        Pipeline(1).read([ReadRequest(where, at, memoryview(bytearray(size))) for where, at, size in ranges])
    assert file.calls == [(0, [2]), (3, [2, 2]), (7, [2]), (0, [2])]
    assert other.calls == [(7, [2])]


def test_large_requests_are_cut_into_chunks() -> None:
    """Each chunk is its own job, so that several threads share one tensor; adjacent requests do not join it."""
    file = Memory(bytes(100))
    requests = [ReadRequest(file, at, memoryview(bytearray(size))) for at, size in ((0, 2), (2, 25), (27, 2), (29, 3))]
    with chunks_of(10):
        Pipeline(1).read(requests)
    assert file.calls == [(0, [2]), (2, [10]), (12, [10]), (22, [5]), (27, [2, 3])]


def test_checksums_take_one_chunk_of_memory(threads: Pipeline) -> None:
    """A file of any size is verified with one buffer per thread."""
    file = Memory(bytes(1000))
    with chunks_of(16):
        threads.checksums([SumRequest(file, 0, 700), SumRequest(file, 700, 10), SumRequest(file, 710, 290)])
    assert max(sum(sizes) for _, sizes in file.calls) <= 16
    assert all(len(sizes) == 1 for _, sizes in file.calls)


# Empty plans.


@pytest.mark.parametrize("count", [1, 4])
def test_an_empty_plan_starts_no_thread(count: int) -> None:
    """Its results are empty."""
    before = threading.active_count()
    with Pipeline(count) as pipeline:
        assert pipeline.read([]) == pipeline.write([]) == pipeline.checksums([]) == []
        pipeline.fill([])
        assert pipeline.checksum(memoryview(b"")) == 0
        assert threading.active_count() == before


@pytest.mark.parametrize("count", [1, 4])
def test_requests_of_no_bytes_touch_no_file(count: int) -> None:
    """The checksum of no bytes is 0; the offset may be after the end of the file."""
    file = Memory()
    with Pipeline(count) as pipeline:
        assert pipeline.read([ReadRequest(file, 99, memoryview(b""))] * 3) == [0, 0, 0]
        assert pipeline.write([WriteRequest(file, 99, b"")] * 3) == [0, 0, 0]
        assert pipeline.checksums([SumRequest(file, 99, 0)] * 3) == [0, 0, 0]
    assert file.calls == []
    assert file.contents == b""


# Errors.


@settings(deadline=None, max_examples=60)
@given(failing=st.sets(st.integers(0, 11), min_size=1), count=st.sampled_from([1, 2, 4]))
def test_an_error_in_any_thread_reaches_the_caller(failing: set[int], count: int) -> None:
    """Whichever jobs fail, the plan fails with the error of one of them."""

    def fail(offset: int) -> None:
        if offset // 2 in failing:
            raise DataLossError(f"job {offset // 2}")

    file = Memory(bytes(100), fail)
    with Pipeline(count) as pipeline:
        for attempt in (
            lambda: pipeline.read(apart(file, 12)),
            lambda: pipeline.fill(apart(file, 12)),
            lambda: pipeline.checksums([SumRequest(file, 2 * number, 1) for number in range(12)]),
            lambda: pipeline.write([WriteRequest(file, 2 * number, b"x") for number in range(12)]),
        ):
            with pytest.raises(DataLossError) as raised:
                attempt()
            assert str(raised.value) in {f"job {number}" for number in failing}


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), MemoryError(), KeyboardInterrupt(), SystemExit(3)]
)
@pytest.mark.parametrize("count", [1, 2])
def test_any_kind_of_error_reaches_the_caller(error: BaseException, count: int) -> None:
    """Including exceptions that are not an Exception: the same object, with its traceback."""

    def fail(offset: int) -> None:
        if offset:
            raise error

    with Pipeline(count) as pipeline, pytest.raises(type(error)) as raised:
        pipeline.write([WriteRequest(Memory(bytes(9), fail), 2 * number, b"x") for number in range(3)])
    assert raised.value is error


def test_a_pipeline_works_on_after_an_error(threads: Pipeline) -> None:
    """A damaged tensor fails only its own plan."""

    def fail(offset: int) -> None:
        raise DataLossError("damaged")

    for _ in range(3):
        with pytest.raises(DataLossError):
            threads.read(apart(Memory(bytes(9), fail), 4))
        assert threads.read(apart(Memory(bytes(9)), 4)) == [crc32c.value(b"\0")] * 4


@pytest.mark.parametrize("count", [1, 2])
def test_the_first_error_cancels_the_rest(count: int) -> None:
    """After the disk is full in the second of a thousand jobs, no new one is begun."""
    failed = threading.Event()

    def fail(offset: int) -> None:
        if offset == 2:
            failed.set()
            raise OSError(28, "No space left on device")
        if offset and count > 1:
            assert failed.wait(WAIT)

    file = Memory(bytes(2000), fail)
    with Pipeline(count) as pipeline, pytest.raises(OSError, match="No space left"):
        pipeline.read(apart(file, 1000))
    # One job more per thread: the one that it had begun.
    assert len(file.calls) <= count and file.calls[0] == (0, [1])


class Slow:
    """A file whose first job fails while its second one is running, and that takes time to finish."""

    def __init__(self, fails: bool = True) -> None:
        self.second_runs, self.first_is_over, self.second_is_over = (threading.Event() for _ in range(3))
        self._fails = fails

    def before(self, offset: int) -> None:
        if offset == 0 and self._fails:
            assert self.second_runs.wait(WAIT)
            self.first_is_over.set()
            raise OSError(5, "Input/output error")
        if offset == 2:
            self.second_runs.set()
            assert self.first_is_over.wait(WAIT)
            crc32c.value(
                bytes(1 << 26)
            )  # tens of milliseconds without the GIL, so that a caller who did not wait is detected
            self.second_is_over.set()


def test_no_job_runs_after_an_error_is_raised(threads: Pipeline) -> None:
    """The caller gets its buffers back: no thread may write to them afterwards."""
    slow = Slow()
    with pytest.raises(OSError, match="Input/output error"):
        threads.read(apart(Memory(bytes(9), slow.before), 2))
    assert slow.second_is_over.is_set()


@pytest.mark.parametrize("interrupts", [1, 3])
def test_no_job_runs_after_an_interrupt(monkeypatch: pytest.MonkeyPatch, threads: Pipeline, interrupts: int) -> None:
    """Ctrl-C while waiting, also several times, raises KeyboardInterrupt after the running jobs ended."""
    slow = Slow(fails=False)
    left = [KeyboardInterrupt() for _ in range(interrupts)]
    wait = Latch.wait

    def interrupted(latch: Latch, timeout: float | None = None) -> bool:
        if left and threading.current_thread() is threading.main_thread():
            assert slow.second_runs.wait(WAIT)
            slow.first_is_over.set()
            raise left.pop()
        return wait(latch, timeout)

    monkeypatch.setattr(Latch, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        threads.read(apart(Memory(bytes(9), slow.before), 2))
    assert not left and slow.second_is_over.is_set()


@pytest.mark.parametrize("started", [0, 1, 3])
def test_fewer_threads_can_be_started(monkeypatch: pytest.MonkeyPatch, started: int) -> None:
    """Those that run do all the work; without any, the error is raised, and the next plan works."""
    start, left = threading.Thread.start, [None] * started

    def refuse(thread: threading.Thread) -> None:
        if not left:
            raise RuntimeError("can't start new thread")
        left.pop()
        start(thread)

    with Pipeline(4) as pipeline:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            if started:
                assert pipeline.read(apart(Memory(bytes(100)), 9)) == [crc32c.value(b"\0")] * 9
            else:
                with pytest.raises(RuntimeError, match="can't start new thread"):
                    pipeline.read(apart(Memory(bytes(100)), 9))
        assert pipeline.read(apart(Memory(bytes(100)), 9)) == [crc32c.value(b"\0")] * 9


def test_another_thread_closes_the_pipeline() -> None:
    """A plan that has begun is completed, whether it began before or after the threads ended."""
    for _ in range(200):
        pipeline = Pipeline(2)
        closing = threading.Thread(target=pipeline.close)
        pipeline.read(apart(Memory(bytes(9)), 2))
        closing.start()
        assert pipeline.read(apart(Memory(bytes(100)), 9)) == [crc32c.value(b"\0")] * 9
        closing.join(WAIT)
        pipeline.close()


def test_threads_end_when_a_pipeline_is_forgotten() -> None:
    """Nobody has to call `close`."""
    before = set(own_threads())
    pipeline = Pipeline(2)
    pipeline.read(apart(Memory(bytes(100)), 9))
    mine = set(own_threads()) - before
    assert mine
    del pipeline
    for thread in mine:
        thread.join(WAIT)
        assert not thread.is_alive()


# Threads.


def test_threads_end_with_the_pipeline() -> None:
    """They start with the first plan of several jobs, and `close` waits for them; a later plan starts new ones."""
    before = len(own_threads())
    pipeline = Pipeline(2)
    file = Memory(bytes(100))
    pipeline.read(apart(file, 1))
    assert len(own_threads()) == before
    for _ in range(2):
        pipeline.read(apart(file, 8))
        assert before < len(own_threads()) <= before + 2
        pipeline.close()
        pipeline.close()
        assert len(own_threads()) == before


def test_jobs_run_in_parallel() -> None:
    """Four threads run four jobs at the same time."""
    barrier = threading.Barrier(4)

    def meet(offset: int) -> None:
        barrier.wait(WAIT)

    with Pipeline(4) as pipeline:
        pipeline.read(apart(Memory(bytes(100), meet), 4))


def test_threads_can_share_a_pipeline(threads: Pipeline) -> None:
    """Concurrent plans of several callers do not interfere, even if one fails."""

    def fail(offset: int) -> None:
        raise DataLossError("damaged")

    def plan(number: int) -> bool:
        if number % 5 == 4:
            with pytest.raises(DataLossError):
                threads.read(apart(Memory(bytes(100), fail), 20))
            return True
        requests = apart(Memory(bytes((number,)) * 100), 20)
        sums = threads.read(requests)
        return sums == [crc32c.value(bytes((number,)))] * 20 and all(r.target == bytes((number,)) for r in requests)

    with ThreadPoolExecutor(6) as callers:
        assert all(callers.map(plan, range(60)))


# Python 3.12 warns about every fork of a process with threads; the test checks that such a fork works.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_starts_its_own_threads(tmp_path: Path) -> None:
    """A data loader's worker may use its parent's pipeline; the parent is not affected."""
    (tmp_path / "a").write_bytes(bytes(range(100)))
    expected = [crc32c.value(bytes((number,))) for number in range(0, 100, 2)]
    with LOCAL.open(str(tmp_path / "a")) as file, Pipeline(2) as pipeline:
        requests = [SumRequest(file, number, 1) for number in range(0, 100, 2)]

        def child() -> None:
            right = pipeline.checksums(requests) == expected
            pipeline.close()
            os._exit(0 if right else 1)

        assert pipeline.checksums(requests) == expected
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join(WAIT)
        if process.is_alive():
            process.kill()
        assert process.exitcode == 0
        assert pipeline.checksums(requests) == expected
