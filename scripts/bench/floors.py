"""Floors: the bytes of a checkpoint moved without tensors, names and index, in our chunks and with as many threads."""

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from timing import WrongResult

from torch_tfckpt.format import crc32c
from torch_tfckpt.transfer.host_bytes import byte_view
from torch_tfckpt.transfer.pipeline import CHUNK_BYTES, STRIP_BYTES, THREADS


def write_floor_in_files(paths: Sequence[Path], size: int, *, sync: bool) -> None:
    """Run `write_floor` with an equal share of `size` bytes for each path, concurrently."""
    with ThreadPoolExecutor(len(paths)) as pool:
        for _ in pool.map(lambda path: write_floor(path, size // len(paths), sync=sync), paths):
            pass


def write_floor(path: Path, size: int, *, sync: bool) -> None:
    """Write `size` bytes from one prefilled buffer, in our chunks and with as many threads."""
    buffer = bytes(CHUNK_BYTES)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        _in_chunks(size, lambda begin, end: os.pwrite(descriptor, memoryview(buffer)[: end - begin], begin))
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_floor(path: Path, target: memoryview) -> None:
    """Fill `target` from the file, in our chunks and with as many threads."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _in_chunks(len(target), lambda begin, end: os.preadv(descriptor, [target[begin:end]], begin))
    finally:
        os.close(descriptor)


def checked_read_floor(path: Path, target: memoryview | None = None) -> list[int]:
    """Read the file into `target`, or into a strip per thread, and return the checksum of every chunk."""
    size = path.stat().st_size
    descriptor, scratch = os.open(path, os.O_RDONLY), threading.local()

    def checksum(begin: int) -> int:
        if not hasattr(scratch, "strip"):
            scratch.strip = memoryview(bytearray(STRIP_BYTES))
        end, crc = min(begin + CHUNK_BYTES, size), 0
        for at in range(begin, end, STRIP_BYTES):
            until = min(at + STRIP_BYTES, end)
            strip = scratch.strip[: until - at] if target is None else target[at:until]
            if os.preadv(descriptor, [strip], at) != len(strip):
                raise WrongResult(f"short read at byte {at}")
            crc = crc32c.value(strip, crc)
        return crc

    try:
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(checksum, range(0, size, CHUNK_BYTES)))
    finally:
        os.close(descriptor)


def checksum_floor(tensors: Iterable[torch.Tensor]) -> None:
    """Compute checksums of `tensors` in our chunks, with one thread per core."""
    views = [byte_view(tensor) for tensor in tensors]
    chunks = [view[begin : begin + CHUNK_BYTES] for view in views for begin in range(0, len(view), CHUNK_BYTES)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(crc32c.value, chunks):
            pass


def _in_chunks(size: int, move: Callable[[int, int], int]) -> None:
    """Call `move(begin, end)` for all chunks of `size` bytes, THREADS at a time."""

    def checked(begin: int) -> None:
        end = min(begin + CHUNK_BYTES, size)
        if move(begin, end) != end - begin:
            raise WrongResult(f"short read or write in bytes {begin}:{end}")

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(checked, range(0, size, CHUNK_BYTES)):
            pass
