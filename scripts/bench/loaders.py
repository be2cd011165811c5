"""Loaders of whole files: ours, those of peers, bare reads. In a process of its own each one is the first work.

`Files` has the same tensors in the format of each loader.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import safetensors.torch
import torch
from floors import read_floor
from timing import timed
from workload import checksum

# Imported here, not as attributes of the package, which would import them in the first call that is timed.
from torch_tfckpt import load_file, save_file
from torch_tfckpt.transfer.host_bytes import byte_view

OURS, UNVERIFIED = "load_file", "load_file(verify=False)"
TORCH, SAFETENSORS = "torch.load", "safetensors load_file, all pages touched"
FLOOR: Final = "bare preadv into new memory"


class Files(NamedTuple):
    """The same tensors in three formats."""

    bundle: Path
    safetensors: Path
    pt: Path

    @classmethod
    def write(cls, folder: Path, tensors: dict[str, torch.Tensor]) -> Self:
        files = cls(folder / "x.ckpt", folder / "x.safetensors", folder / "x.pt")
        save_file(tensors, files.bundle)
        safetensors.torch.save_file(tensors, files.safetensors)
        torch.save(tensors, files.pt)
        return files

    @classmethod
    def at(cls, paths: list[str]) -> Self:
        return cls(*map(Path, paths))

    @property
    def data(self) -> Path:
        """The data file of the bundle: the bytes of all tensors in the order of their names, and nothing else."""
        return self.bundle.with_name(f"{self.bundle.name}.data-00000-of-00001")


def touched(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Read one element of every page: the cost of a mapped tensor before its first use."""
    for tensor in tensors.values():
        tensor.reshape(-1)[::1024].sum()
    return tensors


def read_all(files: Files) -> dict[str, torch.Tensor]:
    """Return all bytes of the data file in one new tensor, as a loader would need at least."""
    target = torch.empty(files.data.stat().st_size, dtype=torch.uint8)
    read_floor(files.data, byte_view(target))
    return {"": target}


LOADERS: Final[dict[str, Callable[[Files], Mapping[str, Any]]]] = {
    OURS: lambda files: load_file(files.bundle),
    UNVERIFIED: lambda files: load_file(files.bundle, verify=False),
    TORCH: lambda files: torch.load(files.pt, weights_only=True),
    SAFETENSORS: lambda files: touched(safetensors.torch.load_file(files.safetensors)),
    FLOOR: read_all,
}


def fresh_load(loader: str, paths: list[str]) -> tuple[float, int]:
    """Time a loader as the first work of a process; return the seconds and the checksum of the values."""
    files = Files.at(paths)
    seconds, values = timed(lambda: LOADERS[loader](files))
    return seconds, checksum({name: value.numpy() for name, value in values.items()})
