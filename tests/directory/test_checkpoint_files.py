"""checkpoint_files: exactly the files that a copy of the checkpoint needs."""

import shutil
from pathlib import Path

import pytest
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt.bundle.writer import BundleWriter
from torch_tfckpt.storage.local import LOCAL

VALUES = {"w": torch.arange(6.0), "b": torch.ones(2)}


def names(paths: list[str]) -> list[str]:
    return [Path(path).name for path in paths]


def is_a_copy(paths: list[str], target: Path, name: str) -> bool:
    """Copy only these files, and return whether the copy is the checkpoint."""
    target.mkdir()
    for path in paths:
        shutil.copy(path, target)
    loaded = tfckpt.load_file(target / name)
    return all(torch.equal(loaded[key], value) for key, value in VALUES.items())


@pytest.mark.parametrize("form", ["prefix", "index", "data", "directory"])
def test_version_2(form: str, tmp_path: Path) -> None:
    """With other checkpoints, older data files and the state file next to it; by any spelling of its path."""
    run = tmp_path / "run"
    saver = tfckpt.Saver(VALUES)
    for step in (1, 10, 11):
        path = saver.save(str(run / "m"), step)
    for stray in ("m-11.data-00000-of-00002", "m-11.data-00001-of-00002", "m-11.notes", "m-111.index"):
        (run / stray).write_bytes(b"")
    spelled = {"prefix": path, "index": f"{path}.index", "data": f"{path}.data-00000-of-00001", "directory": str(run)}
    found = tfckpt.checkpoint_files(spelled[form])
    assert names(found) == ["m-11.index", "m-11.data-00000-of-00001", "m-11.meta"]
    assert is_a_copy(found, tmp_path / "copy", "m-11")


def test_many_data_files(tmp_path: Path) -> None:
    """All of them, in order; a missing one is an error."""
    with BundleWriter(LOCAL, str(tmp_path / "m"), num_shards=12) as writer:
        for number in range(12):
            writer.add(f"w{number}", torch.ones(1), shard=number)
    found = tfckpt.checkpoint_files(tmp_path / "m")
    assert names(found) == ["m.index", *(f"m.data-{number:05d}-of-00012" for number in range(12))]
    Path(found[5]).unlink()
    with pytest.raises(tfckpt.NotFoundError, match="data-00004"):
        tfckpt.checkpoint_files(tmp_path / "m")


@pytest.mark.parametrize("sharded", [False, True])
def test_version_1(sharded: bool, tmp_path: Path) -> None:
    """One file, or all shards of one save."""
    saver = tfckpt.Saver(VALUES, write_version=tfckpt.SaverDef.V1, sharded=sharded)
    path = saver.save(str(tmp_path / "one" / "m"), 3)
    found = tfckpt.checkpoint_files(path)
    assert names(found) == ["m-3-00000-of-00001" if sharded else "m-3", "m-3.meta"]
    assert is_a_copy(found, tmp_path / "copy", Path(path).name)


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(tfckpt.NotFoundError):
        tfckpt.checkpoint_files(tmp_path / "m")
