"""Ways to measure that several benchmarks share: a save that is read back, a load that is compared."""

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from timing import Contender, WrongResult, timed

from torch_tfckpt.storage.local import LocalOutput, LocalStorage


class UnsyncedStorage(LocalStorage):
    """Local files that are never synced, since TensorFlow, safetensors and torch do not sync either."""

    def create(self, path: str) -> LocalOutput:
        return _UnsyncedOutput(path)

    def sync_directory(self, path: str) -> None:
        pass


class _UnsyncedOutput(LocalOutput):
    def sync(self) -> None:
        pass


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
        claim_file_memory(folder, size)
        seconds, _ = timed(lambda: save(folder / "x"))
        check(folder / "x")
        empty(folder)
        return seconds

    return Contender(name, measure, size)


def claim_file_memory(folder: Path, size: int) -> None:
    """Write a file of `size` bytes and remove it, so that the kernel has memory for the next file.

    A virtual machine gives large blocks of free memory back to its host. The first file written after a pause gets them
    again page by page, which takes longer than the write, whoever writes it.
    """
    path, block = folder / "claim", bytes(8 * 1024 * 1024)
    with path.open("wb", buffering=0) as file:
        for _ in range(0, size, len(block)):
            file.write(block)
    path.unlink()


def load_contender(
    name: str, size: int, load: Callable[[], Mapping[str, object]], expected: Mapping[str, torch.Tensor]
) -> Contender:
    """Load, and compare the values."""

    def measure() -> float:
        seconds, values = timed(load)
        check_equal(values, expected)
        return seconds

    return Contender(name, measure, size)


def restore_contender(
    name: str,
    size: int,
    restore: Callable[[], object],
    targets: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
) -> Contender:
    """Restore into existing tensors, which hold other values before, and compare them."""

    def measure() -> float:
        with torch.no_grad():
            for target in targets.values():
                target.fill_(-1)
        synchronize()

        def work() -> None:
            restore()
            synchronize()

        seconds, _ = timed(work)
        check_equal({name: target.detach().cpu() for name, target in targets.items()}, expected)
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
