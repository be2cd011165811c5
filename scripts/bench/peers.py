"""Peers: TensorFlow in its own process, torch's distributed checkpoints (DCP), plain reads and writes."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import torch
from timing import Contender, WrongResult, timed
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.staging import AsyncStager, DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import async_save as dcp_async_save
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from torch_tfckpt.format import crc32c
from torch_tfckpt.storage.local import LocalOutput, LocalStorage
from torch_tfckpt.transfer.host_bytes import byte_view
from torch_tfckpt.transfer.pipeline import CHUNK_BYTES, THREADS

_PEER = Path(__file__).with_name("tensorflow_peer.py")
# TensorFlow's C++ code reads it when loaded. oneDNN prints a notice to stderr unless it is off.
_ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "TF_ENABLE_ONEDNN_OPTS": "0"}


def has_tensorflow() -> bool:
    """Return whether TensorFlow is installed, without importing it."""
    return importlib.util.find_spec("tensorflow") is not None


class TensorFlow:
    """Process that runs tensorflow_peer.py, with one workload prepared.

    It is started from that file rather than by multiprocessing, which would import the benchmark, and so torch,
    in the TensorFlow process.
    """

    def __init__(self, kind: str, *arguments: Any, environment: Mapping[str, str] = _ENVIRONMENT) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(_PEER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self.call("prepare", kind, list(arguments))

    def call(self, function: str, *arguments: Any) -> float:
        """Return its answer in seconds. Raises WrongResult if it ended instead; its stderr has the reason."""
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
    """Local files that are never synced, since TensorFlow, safetensors and torch do not sync either."""

    def create(self, path: str) -> LocalOutput:
        return _UnsyncedOutput(path)

    def sync_directory(self, path: str) -> None:
        pass


class _UnsyncedOutput(LocalOutput):
    def sync(self) -> None:
        pass


# DCP warns each time, even with `no_dist`.
warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")


def dcp_writer(path: Path, *, sync: bool) -> FileSystemWriter:
    """Return a writer of one file by each of four threads; the default is one thread."""
    return FileSystemWriter(path, sync_files=sync, thread_count=4)


def save_by_dcp(state: Mapping[str, torch.Tensor], path: Path, *, sync: bool) -> None:
    """torch.distributed.checkpoint.save in a single process."""
    dcp_save(dict(state), storage_writer=dcp_writer(path, sync=sync), no_dist=True)


def dcp_stager(*, cuda: bool) -> DefaultStager:
    """Return a stager that reuses its host memory, pinned if useful; DCP's default allocates each time."""
    return DefaultStager(
        StagingOptions(
            use_pinned_memory=cuda, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=cuda
        )
    )


def async_save_by_dcp(
    state: Mapping[str, torch.Tensor], path: Path, *, stager: AsyncStager | None
) -> Callable[[], object]:
    """Run DCP's async_save; return when the state may change, with a function that waits for the end."""
    future = dcp_async_save(dict(state), storage_writer=dcp_writer(path, sync=True), async_stager=stager, no_dist=True)
    assert isinstance(future, Future), "staging is asynchronous"
    return future.result


def load_by_dcp(path: Path, like: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the values of torch.distributed.checkpoint.load in host memory."""
    state: dict[str, Any] = {name: torch.empty_like(tensor, device="cpu") for name, tensor in like.items()}
    dcp_load(state, storage_reader=FileSystemReader(path), no_dist=True)
    return state


def synchronize() -> None:
    """Wait until CUDA devices have finished all work; without CUDA do nothing."""
    if torch.cuda.is_available():
        for device in range(torch.cuda.device_count()):
            torch.cuda.synchronize(device)


def copy_into(tensors: Iterable[torch.Tensor], targets: Iterable[torch.Tensor]) -> None:
    """Copy all tensors into existing host memory, pinned for a GPU."""
    for tensor, target in zip(tensors, targets, strict=True):
        target.copy_(tensor, non_blocking=tensor.is_cuda)
    synchronize()


def host_like(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Return memory for `copy_into`; every page of it was written to."""
    return [torch.zeros_like(tensor, device="cpu", pin_memory=tensor.is_cuda) for tensor in tensors]


def save_contender(
    name: str, folder: Path, size: int, save: Callable[[Path], object], check: Callable[[Path], object]
) -> Contender:
    """Save under a path in `folder`, check what was written, and remove it."""

    def measure() -> float:
        synchronize()
        seconds, _ = timed(lambda: save(folder / "x"))
        check(folder / "x")
        empty(folder)
        return seconds

    return Contender(name, measure, size)


def empty(folder: Path) -> None:
    """Remove the contents of a folder."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def check_equal(found: Mapping[str, object], expected: Mapping[str, torch.Tensor]) -> None:
    """Raise WrongResult unless names and values are equal."""
    if found.keys() != expected.keys():
        raise WrongResult(f"names differ: {sorted(found.keys() ^ expected.keys())[:3]}")
    for name, tensor in expected.items():
        value = found[name]
        if not isinstance(value, torch.Tensor) or not torch.equal(value, tensor):
            raise WrongResult(f"{name} differs")


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
