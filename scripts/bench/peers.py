"""What this package is compared with: TensorFlow in a process of its own, floors of bare bytes, files without fsync."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import torch
from timing import WrongResult

from torch_tfckpt.device.host_bytes import byte_view
from torch_tfckpt.device.pipeline import CHUNK_BYTES, THREADS
from torch_tfckpt.format import crc32c
from torch_tfckpt.storage.local import LocalOutput, LocalStorage

_PEER = Path(__file__).with_name("tensorflow_peer.py")
# Read by TensorFlow's C++ when it is loaded. oneDNN announces itself on stderr unless it is off.
_ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "TF_ENABLE_ONEDNN_OPTS": "0"}


def has_tensorflow() -> bool:
    """Whether TensorFlow is installed; it is not imported here."""
    return importlib.util.find_spec("tensorflow") is not None


class TensorFlow:
    """The process that tensorflow_peer.py runs in, with one workload prepared.

    A process started from that very file, not one that multiprocessing spawns: that would import the benchmark, and so
    torch, beside TensorFlow.
    """

    def __init__(self, kind: str, *arguments: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(_PEER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **_ENVIRONMENT},
        )
        self.call("prepare", kind, list(arguments))

    def call(self, function: str, *arguments: Any) -> float:
        """The seconds that it answers; WrongResult where it ended instead, its reasons being on stderr."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([function, *arguments]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise WrongResult(f"TensorFlow: {function} failed, see above (exit status {self._process.wait()})")
        return float(json.loads(answer))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class UnsyncedStorage(LocalStorage):
    """Local files that are never synced: TensorFlow, safetensors and torch do not sync either."""

    def create(self, path: str) -> LocalOutput:
        return _UnsyncedOutput(path)

    def sync_directory(self, path: str) -> None:
        pass


class _UnsyncedOutput(LocalOutput):
    def sync(self) -> None:
        pass


def check_equal(found: Mapping[str, object], expected: Mapping[str, torch.Tensor]) -> None:
    """WrongResult unless names and values are the same."""
    if found.keys() != expected.keys():
        raise WrongResult(f"names differ: {sorted(found.keys() ^ expected.keys())[:3]}")
    for name, tensor in expected.items():
        value = found[name]
        if not isinstance(value, torch.Tensor) or not torch.equal(value, tensor):
            raise WrongResult(f"{name} differs")


def write_floor(path: Path, size: int, *, sync: bool) -> None:
    """Writes `size` bytes from one prefilled buffer, in our chunks and with as many threads."""
    buffer = bytes(CHUNK_BYTES)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        _in_chunks(size, lambda begin, end: os.pwrite(descriptor, memoryview(buffer)[: end - begin], begin))
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_floor(path: Path, target: memoryview) -> None:
    """Fills `target` from the file, in our chunks and with as many threads."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _in_chunks(len(target), lambda begin, end: os.preadv(descriptor, [target[begin:end]], begin))
    finally:
        os.close(descriptor)


def checksum_floor(tensors: Iterable[torch.Tensor]) -> None:
    """Sums the bytes of `tensors`, in our chunks, with as many threads as there are cores."""
    views = [byte_view(tensor) for tensor in tensors]
    chunks = [view[begin : begin + CHUNK_BYTES] for view in views for begin in range(0, len(view), CHUNK_BYTES)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(crc32c.value, chunks):
            pass


def _in_chunks(size: int, move: Callable[[int, int], int]) -> None:
    """Calls `move(begin, end)` for all chunks of `size` bytes, THREADS at a time."""

    def checked(begin: int) -> None:
        end = min(begin + CHUNK_BYTES, size)
        if move(begin, end) != end - begin:
            raise WrongResult(f"the system moved less than bytes {begin}:{end}")

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(checked, range(0, size, CHUNK_BYTES)):
            pass
