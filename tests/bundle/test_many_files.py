"""Checkpoints of more data files than a process may open."""

import os
import resource
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt.bundle import index
from torch_tfckpt.bundle.files import EAGER_SHARDS
from torch_tfckpt.bundle.merge import merge_bundles
from torch_tfckpt.bundle.open_files import OPEN_AT_ONCE, OpenFiles
from torch_tfckpt.bundle.reader import BundleReader
from torch_tfckpt.bundle.writer import BundleWriter
from torch_tfckpt.errors import FailedPreconditionError, NotFoundError
from torch_tfckpt.format.bulk_decoding import decode_entries
from torch_tfckpt.format.tensor_bundle import BundleEntry
from torch_tfckpt.format.tensor_slice import TensorSlice
from torch_tfckpt.storage.local import LOCAL

FILES = 300
LIMIT = 256


def open_count() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tensor of one row per data file, and one whole tensor in each; made by merging one part per file."""
    folder = tmp_path_factory.mktemp("many")
    sources = []
    for number in range(FILES):
        with BundleWriter(LOCAL, str(folder / f"part{number}")) as writer:
            part = TensorSlice.parse(f"{number},1:-")
            writer.add_slice("w", (FILES, 4), part, torch.full((1, 4), float(number)))
            writer.add(f"b{number:03d}", torch.tensor([number]))
        sources.append(str(folder / f"part{number}"))
    with few_descriptors():
        merge_bundles(LOCAL, sources, str(folder / "m"))
    return str(folder / "m")


@contextmanager
def few_descriptors() -> Iterator[None]:
    """Allow no more than LIMIT further open files during the `with` block."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir("/proc/self/fd")}
    free = [number for number in range(len(used) + LIMIT) if number not in used]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[LIMIT - 1] + 1, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_opening_opens_no_data_file(prefix: str) -> None:
    """Names, shapes and the number of slices are in the index; a tensor needs its own file only."""
    before = open_count()
    with tfckpt.load_checkpoint(prefix) as reader:
        assert len(reader.keys()) == FILES + 1 and reader.shape("w") == (FILES, 4)
        assert open_count() - before == 1
        assert reader.get_tensor("b007").tolist() == [7]
        assert open_count() - before == 2
    assert open_count() == before


def test_everything_is_read_with_few_descriptors(prefix: str) -> None:
    """All tensors, by several threads at once; and a check of the whole checkpoint."""
    with few_descriptors(), tfckpt.load_checkpoint(prefix) as reader:
        expected = torch.arange(float(FILES))[:, None].expand(FILES, 4)
        wrong: list[str] = []

        def read() -> None:
            values = reader.get_tensors(reader.keys())
            if not torch.equal(values["w"], expected) or int(values["b299"]) != 299:
                wrong.append("different values")

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert reader.check().ok
        assert open_count() < LIMIT


def test_few_files_stay_open(tmp_path: Path) -> None:
    """A reader of a checkpoint with few data files is not disturbed by a save that replaces it."""
    path = str(tmp_path / "m")
    for value in (1.0, 2.0):
        with BundleWriter(LOCAL, path, num_shards=EAGER_SHARDS) as writer:
            for shard in range(EAGER_SHARDS):
                writer.add(f"w{shard}", torch.tensor([value]), shard=shard)
        if value == 1.0:
            reader = BundleReader(LOCAL, path)
            lazy = BundleReader(LOCAL, path, lazy=True)
    assert [float(reader.read(f"w{shard}")) for shard in range(EAGER_SHARDS)] == [1.0] * EAGER_SHARDS
    with pytest.raises(FailedPreconditionError, match="was replaced after it was opened"):
        lazy.read("w3")
    reader.close()
    lazy.close()


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[OpenFiles, list[Path]]]:
    paths = [tmp_path / str(number) for number in range(4)]
    for path in paths:
        path.write_bytes(path.name.encode())
    opened = OpenFiles(limit=2)
    yield opened, paths
    opened.close()


def test_files_are_closed_and_opened_again(files: tuple[OpenFiles, list[Path]]) -> None:
    """At most `limit` stay open; a file that was replaced meanwhile is refused, and so is a missing one."""
    opened, paths = files
    before = open_count()
    lazy = []
    for path in paths:
        name = str(path)
        lazy.append(opened.add(LOCAL.open(name), partial(LOCAL.open, name)))
    assert open_count() - before == 2
    for _ in range(2):
        assert [file.read(0, 1) for file in lazy] == [b"0", b"1", b"2", b"3"]
        assert open_count() - before == 2
    number = lazy[0].fileno()
    assert os.pread(number, 1, 0) == b"0"
    lazy[0].close()
    paths[0].rename(paths[0].with_name("old"))
    with pytest.raises(NotFoundError):
        lazy[0].read(0, 1)
    paths[0].write_bytes(b"0")
    with pytest.raises(FailedPreconditionError, match="replaced"):
        lazy[0].read(0, 1)
    assert OPEN_AT_ONCE < LIMIT


def test_entries_of_slices_are_tried_together_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No entry of a partitioned tensor can be decoded in bulk; looking up each does not try all again."""
    calls = []

    def counted(values: Sequence[bytes]) -> list[BundleEntry | None]:
        calls.append(len(values))
        return decode_entries(values)

    monkeypatch.setattr(index, "decode_entries", counted)
    count = 200
    with BundleWriter(LOCAL, str(tmp_path / "x")) as writer:
        for number in range(count):
            for row in range(2):
                writer.add_slice(
                    f"w{number}", (2, 3), TensorSlice.parse(f"{row},1:-"), torch.full((1, 3), number + row)
                )
    reader = BundleReader(LOCAL, str(tmp_path / "x"))
    names = reader.keys()
    assert [reader.shape(name) for name in names] == [(2, 3)] * count
    assert calls == [count]
    assert float(reader.read("w7")[1, 2]) == 8
    reader.close()


@pytest.mark.parametrize("count", [3, 200])
def test_all_are_described_as_one_by_one(tmp_path: Path, count: int) -> None:
    """Whole tensors, slices, names that are not there; before and after all entries were decoded together."""
    with BundleWriter(LOCAL, str(tmp_path / "x")) as writer:
        for number in range(count):
            writer.add(f"w{number}", torch.zeros(number, 2, dtype=torch.int32 if number % 2 else torch.float32))
        writer.add_slice("part", (2, 3), TensorSlice.parse("0,1:-"), torch.ones(1, 3))
        writer.add_slice("part", (2, 3), TensorSlice.parse("1,1:-"), torch.ones(1, 3))
    names = ["", "part", "absent", *(f"w{number}" for number in range(count))]
    reader = BundleReader(LOCAL, str(tmp_path / "x"))
    expected = [reader.describe(name) if name in reader else None for name in names]
    fresh = BundleReader(LOCAL, str(tmp_path / "x"))
    assert fresh.describe_all(names) == reader.describe_all(names) == fresh.describe_all(names) == expected
    assert expected[1] == ((2, 3), 1)
    assert expected[2] is None
    reader.close()
    fresh.close()
