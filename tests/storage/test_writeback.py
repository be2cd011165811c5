"""Early writeback: large writes are handed to the disk at once; the bytes and the errors are those of the file."""

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import torch_tfckpt
from torch_tfckpt.storage import local, writeback
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.writeback import LEAST_BYTES, start_writeback


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Offset and size of each range whose writeback is started."""
    ranges: list[tuple[int, int]] = []

    def record(descriptor: int, offset: int, size: int) -> None:
        assert os.fstat(descriptor).st_size >= offset + size, "the bytes are not written yet"
        ranges.append((offset, size))
        start_writeback(descriptor, offset, size)

    monkeypatch.setattr(local, "start_writeback", record)
    return ranges


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([LEAST_BYTES], [(7, LEAST_BYTES)]),
        ([LEAST_BYTES - 1], []),
        ([100, LEAST_BYTES, 3], [(7, LEAST_BYTES + 103)]),
        ([], []),
    ],
)
def test_large_writes_are_handed_to_the_disk(
    tmp_path: Path, started: list[tuple[int, int]], sizes: Sequence[int], expected: list[tuple[int, int]]
) -> None:
    """Exactly the range that was written, after it was written; small writes are left to fsync."""
    pieces = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    file = LOCAL.create(str(tmp_path / "w"))
    file.write(7, pieces)
    file.sync()
    file.close()
    assert started == expected
    assert (tmp_path / "w").read_bytes() == (bytes(7) + b"".join(pieces) if pieces else b"")


def test_it_can_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Systems without sync_file_range write at fsync."""
    monkeypatch.setattr(writeback, "_start", None)
    contents = os.urandom(LEAST_BYTES)
    file = LOCAL.create(str(tmp_path / "w"))
    file.write(0, [contents])
    file.close()
    assert (tmp_path / "w").read_bytes() == contents


def test_its_errors_do_not_count() -> None:
    """It is a hint: fsync reports the errors of the disk, to the thread that waits for it."""
    reading, writing = os.pipe()  # a pipe has no pages to write: ESPIPE
    start_writeback(writing, 0, LEAST_BYTES)
    os.close(reading)
    os.close(writing)
    start_writeback(writing, 0, LEAST_BYTES)  # EBADF


def test_a_save_starts_it_for_all_tensors(tmp_path: Path, started: list[tuple[int, int]]) -> None:
    """Each byte of large tensors is handed over once."""
    state = {name: torch.rand(LEAST_BYTES) for name in "ab"}
    torch_tfckpt.save_file(state, tmp_path / "x")
    covered = sorted(started)
    assert sum(size for _, size in covered) == 8 * LEAST_BYTES
    assert all(offset + size <= other for (offset, size), (other, _) in pairwise(covered))
