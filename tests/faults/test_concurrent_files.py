"""Readers and writers at the same time: threads, processes, forks; files replaced and deleted under an open reader.

From the moment it is opened until it is closed, a reader shows one complete checkpoint.
"""

import gc
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from claims import assert_helps, assert_right, same
from forked_processes import forkserver
from samples import SAMPLES, Sample, strings
from storages import Counting

import torch_tfckpt as tfckpt
from torch_tfckpt.bundle.writer import BundleWriter
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.protocol import ReadableFile
from torch_tfckpt.v1.writer import SlicesWriter
from torch_tfckpt.values import Value

OPENS = 2000


def version(number: int) -> dict[str, Value]:
    """Values that identify their save, and whose sizes and places differ between saves."""
    return {
        "a": torch.full((number % 7 + 1,), float(number)),
        "b": torch.full((3, number % 5 + 1), number, dtype=torch.int32),
        "s": strings(*[str(number).encode()] * (number % 3 + 1)),
        "z": torch.tensor(number),
    }


def number_of(values: dict[str, Value]) -> int:
    """Return the version of `values`; fail if they are from several."""
    last = values["z"]
    assert isinstance(last, torch.Tensor)
    assert_right(values, version(int(last)))
    return int(last)


def save_v2(path: Path, number: int) -> None:
    tfckpt.save_file(version(number), path)


def save_shards(path: Path, number: int) -> None:
    """Save one shard, then two, then three, then one again."""
    count = number % 3 + 1
    with BundleWriter(LOCAL, str(path), num_shards=count) as writer:
        for position, (name, value) in enumerate(version(number).items()):
            writer.add(name, value, shard=position % count)


def save_v1(path: Path, number: int) -> None:
    with SlicesWriter(LOCAL, str(path)) as writer:
        for name, value in version(number).items():
            writer.add(name, value)


WRITERS: dict[str, Callable[[Path, int], None]] = {"v2": save_v2, "shards": save_shards, "v1": save_v1}


def keep_saving(kind: str, path: Path, stop: Event) -> None:
    """Save one version after another until stopped."""
    number = 0
    while not stop.is_set():
        number += 1
        WRITERS[kind](path, number)


@contextmanager
def another_process_saving(kind: str, path: Path) -> Iterator[None]:
    context = forkserver()
    stop = context.Event()
    process = context.Process(target=keep_saving, args=(kind, path, stop))
    process.start()
    try:
        yield
        assert process.is_alive(), "the writer gave up"
    finally:
        stop.set()
        process.join()
    assert process.exitcode == 0


@pytest.mark.thinned(5)
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("kind", WRITERS)
def test_opening_while_another_process_overwrites_never_returns_a_mix(kind: str, verify: bool, tmp_path: Path) -> None:
    """Opened and read 2000 times: each time one complete version, never an error or an older version than before.

    Also without verification, where only the order of operations keeps index and data consistent.
    """
    path = tmp_path / "model"
    WRITERS[kind](path, 0)
    seen = [0]
    with another_process_saving(kind, path):
        # Under load the writer may be slow: continue until it has saved some versions.
        while len(seen) < (OPENS if kind == "v2" else OPENS // 2) or len(set(seen)) < 20:
            with tfckpt.CheckpointReader(path, verify=verify) as reader:
                values = {name: reader.get_tensor(name) for name in reversed(reader.keys())}
            seen.append(number_of(values))
    assert seen == sorted(seen)


def test_load_file_while_another_process_overwrites_never_returns_a_mix(tmp_path: Path) -> None:
    """The same with load_file, mapped, and with list_variables."""
    path = tmp_path / "model"
    save_v2(path, 0)
    with another_process_saving("shards", path):
        for turn in range(300):
            number_of(tfckpt.load_file(path, mmap=turn % 2 == 0, verify=turn % 3 == 0))
            shapes = dict(tfckpt.list_variables(path))
            assert (shapes["a"][0] - 1) in range(7) and set(shapes) == {"a", "b", "s", "z"}


@pytest.mark.parametrize("kind", WRITERS)
def test_an_open_reader_keeps_its_values_while_the_files_are_replaced(kind: str, tmp_path: Path) -> None:
    """50 saves over the same name, then the directory is deleted; a reader opened before returns the same values."""
    path = tmp_path / "folder" / "model"
    path.parent.mkdir()
    WRITERS[kind](path, 1)
    with tfckpt.load_checkpoint(path) as reader, tfckpt.load_checkpoint(path) as untouched:
        mapped = {name: reader.map_tensor(name) for name in reader.keys()}
        for number in range(2, 52):
            WRITERS[kind](path, number)
            assert number_of({name: reader.get_tensor(name) for name in reader.keys()}) == 1
            assert number_of(mapped) == 1
        shutil.rmtree(path.parent)
        assert number_of(reader.get_tensors(reader.keys())) == 1
        assert number_of(mapped) == 1
        assert reader.check().damage == []
        # Opened before the first of these saves, but not used until now.
        assert number_of(untouched.get_tensors(untouched.keys())) == 1
        assert untouched.check().damage == []


@pytest.mark.parametrize("kind", SAMPLES)
def test_an_open_reader_survives_replacement_by_rename_of_each_file(kind: str, tmp_path: Path) -> None:
    """Another program replaces the files one by one with shorter or longer ones, as rsync does."""
    sample = SAMPLES[kind](tmp_path)
    with tfckpt.load_checkpoint(sample.path) as reader:
        for file in sample.files:
            for content in (b"", b"x", file.read_bytes() * 3):
                beside = file.with_name("beside")
                beside.write_bytes(content)
                beside.rename(file)
                assert_right({name: reader.get_tensor(name) for name in reader.keys()}, sample.values)
        assert reader.check().damage == []


class Meddling(Counting):
    """LOCAL with a hook that runs before the n-th opening of a file whose name contains `mark`."""

    def __init__(self, mark: str, times: int, meddle: Callable[[], None]) -> None:
        super().__init__(LOCAL)
        self._mark, self._times, self._meddle = mark, times, meddle

    def open(self, path: str) -> ReadableFile:
        if self._mark in os.path.basename(path):
            self._times -= 1
            if self._times == 0:
                self._meddle()
        return super().open(path)


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("mark", [".index", ".data-"])
def test_a_save_at_any_moment_of_opening_returns_the_new_values(mark: str, times: int, tmp_path: Path) -> None:
    """Between index and data, between two shards, before the final check of the index."""
    path = tmp_path / "model"
    save_shards(path, 1)
    storage = Meddling(mark, times, lambda: save_shards(path, 5))
    with tfckpt.CheckpointReader(path, verify=False, storage=storage) as reader:
        assert number_of(reader.get_tensors(reader.keys())) in (1, 5)


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("mark", [".index", ".data-"])
@pytest.mark.parametrize("verify", [True, False])
def test_a_deletion_and_a_new_save_while_opening_never_return_a_mix(
    mark: str, times: int, verify: bool, tmp_path: Path
) -> None:
    """The checkpoint is deleted and saved again while it is being opened: either version, or NotFoundError."""
    path = tmp_path / "model"
    save_shards(path, 1)

    def replace() -> None:
        for file in tmp_path.iterdir():
            file.unlink()
        save_shards(path, 4)  # as many shards, of other sizes

    try:
        with tfckpt.CheckpointReader(path, verify=verify, storage=Meddling(mark, times, replace)) as reader:
            assert number_of(reader.get_tensors(reader.keys())) in (1, 4)
    except tfckpt.NotFoundError as error:
        assert_helps(error, path.name)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("verify", [True, False])
def test_new_data_is_not_read_with_the_old_index(times: int, verify: bool, tmp_path: Path) -> None:
    """Index deleted and new data in place, but no new index yet: the old index must not be used with the new data."""
    path = tmp_path / "model"
    new = tmp_path / "new"
    new.mkdir()
    save_v2(path, 8)
    save_v2(new / "model", 43)  # tensors of the same sizes, so that only the values differ

    def half_done() -> None:
        (tmp_path / "model.index").unlink()
        (new / "model.data-00000-of-00001").rename(tmp_path / "model.data-00000-of-00001")

    try:
        with tfckpt.CheckpointReader(path, verify=verify, storage=Meddling(".data-", times, half_done)) as reader:
            assert number_of(reader.get_tensors(reader.keys())) == 8
    except (tfckpt.NotFoundError, tfckpt.DataLossError) as error:
        assert_helps(error, path.name)


@pytest.mark.parametrize("kind", SAMPLES)
def test_a_reader_serves_eight_threads_at_once(kind: str, tmp_path: Path) -> None:
    """Every way of reading, in every thread, from the start."""
    sample = SAMPLES[kind](tmp_path)
    start = threading.Barrier(8)

    def work(number: int) -> None:
        start.wait()
        for turn in range(30):
            names = list(sample.values)
            names = names[(number + turn) % len(names) :] + names[: (number + turn) % len(names)]
            for name in names:
                assert name in reader
                assert same(sample.values[name], reader.get_tensor(name))
                assert same(sample.values[name], reader.map_tensor(name))
                assert same(sample.values[name], reader.get_slice(name)[...])
            assert_right(reader.get_tensors(names), sample.values)
            assert reader.keys() == sorted(sample.values)
            assert reader.check().damage == []

    for _ in range(3):
        with tfckpt.load_checkpoint(sample.path) as reader, ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))


def test_a_large_reader_serves_eight_threads_at_once(tmp_path: Path) -> None:
    """Tensors of several chunks, which the pipeline's own threads read, and an index of several blocks."""
    values: dict[str, Value] = {f"big/{n}": torch.arange(3_000_000 + n, dtype=torch.float32) for n in range(3)}
    values |= {f"{'long/' * 30}{n:06d}": torch.tensor(n) for n in range(4000)}
    path = tfckpt.save_file(values, tmp_path / "large")
    start = threading.Barrier(8)

    def work(number: int) -> None:
        start.wait()
        names = sorted(values)[number::97]
        assert_right(reader.get_tensors(names), {name: values[name] for name in names})
        assert same(values["big/0"], reader.get_tensor("big/0"))
        assert same(cast(torch.Tensor, values["big/1"])[5:-5], reader.get_slice("big/1")[5:-5])

    with tfckpt.load_checkpoint(path) as reader, ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_concurrent_saves_of_one_name_leave_one_of_them(tmp_path: Path) -> None:
    """Unsupported, but not fatal: the last save remains, or an error reports that the save failed."""
    path = tmp_path / "model"
    save_v2(path, 0)

    def work(number: int) -> None:
        for turn in range(10):
            with suppress(tfckpt.CheckpointError):
                save_v2(path, 8 * turn + number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    save_v2(path, 1000)
    assert number_of(tfckpt.load_file(path)) == 1000


def in_child(work: Callable[[], None]) -> None:
    """Run `work` in a fork of this process; fail if it fails or hangs."""
    child = os.fork()
    if not child:
        status = 1
        try:
            # A hanging child is killed by its own alarm, without the parent's signal handlers.
            import signal

            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(20)
            work()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.parametrize("kind", SAMPLES)
def test_a_reader_works_on_both_sides_of_a_fork(kind: str, tmp_path: Path) -> None:
    """As in DataLoader workers: the child uses the parent's reader, and closing it there affects only the child."""
    sample = SAMPLES[kind](tmp_path)
    with tfckpt.load_checkpoint(sample.path) as reader:
        reader.get_tensor(next(iter(sample.values)))

        def work() -> None:
            assert_right({name: reader.get_tensor(name) for name in reader.keys()}, sample.values)
            assert reader.check().damage == []
            reader.close()

        for _ in range(3):
            in_child(work)
            assert_right({name: reader.get_tensor(name) for name in reader.keys()}, sample.values)
        assert reader.check().damage == []


def test_a_reader_whose_threads_are_running_works_after_a_fork(tmp_path: Path) -> None:
    """The pipeline's threads do not exist in the child, which starts its own."""
    values: dict[str, Value] = {f"t{n}": torch.arange(5_000_000, dtype=torch.float32) + n for n in range(2)}
    path = tfckpt.save_file(values, tmp_path / "model")
    with tfckpt.load_checkpoint(path) as reader:
        assert_right(reader.get_tensors(list(values)), values)

        def work() -> None:
            # Compared with numpy: torch's own threads do not survive a fork either.
            for name, value in reader.get_tensors(list(values)).items():
                assert np.array_equal(np.asarray(value), np.asarray(values[name]))

        in_child(work)
        assert_right(reader.get_tensors(list(values)), values)


def uses(sample: Sample) -> dict[str, Callable[[tfckpt.CheckpointReader], object]]:
    name = next(iter(sample.values))
    return {
        "get_tensor": lambda reader: reader.get_tensor(name),
        "get_tensors": lambda reader: reader.get_tensors(list(sample.values)),
        "map_tensor": lambda reader: reader.map_tensor(name),
        "get_slice": lambda reader: reader.get_slice(name)[...],
        "check": lambda reader: reader.check(),
    }


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("kind", SAMPLES)
def test_using_a_closed_reader_raises(kind: str, warm: bool, tmp_path: Path) -> None:
    """FailedPreconditionError, and no file is reopened; tensors read or mapped before stay valid."""
    sample = SAMPLES[kind](tmp_path)
    for what, use in uses(sample).items():
        reader = tfckpt.load_checkpoint(sample.path)
        before = {name: reader.map_tensor(name) for name in sample.values} if warm else {}
        reader.close()
        reader.close()
        open_files = len(os.listdir("/proc/self/fd"))
        with pytest.raises(tfckpt.FailedPreconditionError) as raised:
            use(reader)
        assert_helps(raised.value, sample.path.name)
        assert "closed" in str(raised.value), what
        assert len(os.listdir("/proc/self/fd")) == open_files
        if warm:
            assert_right(before, sample.values)


def test_readers_leak_no_descriptors(tmp_path: Path) -> None:
    """Closed, failed, or never used: after a thousand readers as many files are open as before."""
    sample = SAMPLES["v2_sharded"](tmp_path)
    tfckpt.load_file(sample.path)
    gc.collect()  # closes what earlier tests left open in reference cycles, which only `before` would count
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(200):
        tfckpt.load_checkpoint(sample.path).close()
        tfckpt.load_file(sample.path, mmap=True)
        with tfckpt.load_checkpoint(sample.path) as reader, pytest.raises(tfckpt.NotFoundError):
            reader.get_tensor("nothing")
        with pytest.raises(tfckpt.NotFoundError):
            tfckpt.load_checkpoint(f"{sample.path}x")
    sample.files[0].write_bytes(b"damaged" * 20)
    for _ in range(200):
        with pytest.raises(tfckpt.DataLossError):
            tfckpt.load_checkpoint(sample.path)
    assert len(os.listdir("/proc/self/fd")) == before
