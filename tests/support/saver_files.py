"""Helpers for the tests of Saver, and the versions that they run for."""

from pathlib import Path
from typing import Any

import pytest
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt import Saver, SaverDef, Variable

VERSIONS = pytest.mark.parametrize("version", [SaverDef.V1, SaverDef.V2], ids=["V1", "V2"])


HOUR = 3600.0


def names_in(directory: Path) -> list[str]:
    """All files and directories in it, recursively, as relative paths."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors are equal in dtype, shape and every bit, including NaNs and float8."""
    bits = [tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return (one.dtype, one.shape) == (other.dtype, other.shape) and torch.equal(*bits)


def damage_last_tensor(directory: Path, version: int) -> None:
    """Flip one bit of the last value in the last data file; in version 1, of a value near the end."""
    if version == SaverDef.V2:
        path = max(directory.glob("*.data-*"))
    else:
        path = max(path for path in directory.glob("m*") if path.suffix != ".meta")
    content = bytearray(path.read_bytes())
    # In a version 1 table, the values are followed by an index and a footer.
    at = len(content) - 1 if version == SaverDef.V2 else max(len(content) - 4096, len(content) // 2)
    content[at] ^= 1
    path.write_bytes(content)


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Directory:
    """A directory of checkpoints whose names are single words.

    Args:
        path: Path of the directory.
        sharded: Whether each checkpoint is of two devices.
    """

    def __init__(self, path: Path, *, sharded: bool = False, version: int = SaverDef.V2) -> None:
        self.path, self.sharded, self.version = path, sharded, version
        path.mkdir(exist_ok=True)

    def saver(self, **arguments: Any) -> Saver:
        """A saver of two scalars on two devices."""
        var_list = [Variable(torch.tensor(float(i)), f"v{i}", device=f"/cpu:{i}") for i in range(2)]
        return Saver(var_list, sharded=self.sharded, write_version=self.version, **arguments)

    def save(self, saver: Saver, name: str, **arguments: Any) -> str:
        """Save, and return the path."""
        saved = saver.save(self.path / name, **arguments)
        assert saved is not None
        return saved

    def files(self, name: str) -> int:
        """The number of files of a checkpoint."""
        return sum(file == name or file.startswith((f"{name}.", f"{name}-")) for file in names_in(self.path))

    def state(self) -> tuple[str, list[str]]:
        """The newest checkpoint and all checkpoints in the state file."""
        state = tfckpt.get_checkpoint_state(self.path)
        assert state is not None
        return state.model_checkpoint_path, list(state.all_model_checkpoint_paths)

    def assert_last(self, saver: Saver, *paths: str) -> None:
        """Assert that saver and state file agree on `paths`, the last one is the newest, and all exist."""
        assert saver.last_checkpoints == list(paths)
        assert self.state() == (paths[-1], list(paths))
        assert all(tfckpt.checkpoint_exists(path) for path in paths)
