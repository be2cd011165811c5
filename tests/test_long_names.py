"""Checkpoints and converted files with names as long as a file system accepts, and longer ones."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt import Checkpoint, Saver

LIMIT = 255  # bytes of a file name
DATA, SHARD = len(".data-00000-of-00001"), len("-00000-of-00001")
W = torch.arange(3.0)


def merged(path: str) -> object:
    return tfckpt.merge([tfckpt.save_file({"w": W}, "source")], path)


def converted(path: str) -> object:
    return tfckpt.convert(tfckpt.save_file({"w": W}, "source"), f"{path[:-4]}.npz", to="npz")


# Function -> bytes that it appends to the name of the checkpoint.
WRITERS: dict[str, tuple[Callable[[str], object], int]] = {
    "save_file": (lambda path: tfckpt.save_file({"w": W}, path), DATA),
    "save_model": (lambda path: tfckpt.save_model(torch.nn.Linear(1, 1), path), DATA),
    "Saver": (lambda path: Saver({"w": W}).save(path), DATA),
    "Saver, sharded": (lambda path: Saver({"w": W}, sharded=True).save(path), DATA),
    "Saver, in the background": (lambda path: Saver({"w": W}).save_async(path).result(), DATA),
    "Saver, version 1": (lambda path: Saver({"w": W}, write_version=1).save(path, write_meta_graph=False), 0),
    "Saver, version 1, sharded": (
        lambda path: Saver({"w": W}, write_version=1, sharded=True).save(path, write_meta_graph=False),
        SHARD,
    ),
    "Checkpoint": (lambda path: Checkpoint(w=W).write(path), DATA),
    "merge": (merged, DATA),
    "convert": (converted, 0),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def others(folder: Path) -> list[str]:
    """All files and directories, except the source of conversions."""
    return [path.name for path in folder.rglob("*") if not path.name.startswith("source.")]


@pytest.mark.parametrize("character", ["a", "é"])
@pytest.mark.parametrize("writer", WRITERS)
def test_the_longest_name_is_saved_and_replaced(writer: str, character: str, folder: Path) -> None:
    """Only the final names have to fit; no temporary file is left."""
    write, appended = WRITERS[writer]
    name = (character * LIMIT).encode()[: LIMIT - appended - 4].decode(errors="ignore")
    name += "b" * (LIMIT - appended - len(name.encode()))
    for _ in range(2):
        write(name)
        longest = max(others(folder), key=lambda name: len(os.fsencode(name)))
        assert len(os.fsencode(longest)) == LIMIT
        assert not [name for name in others(folder) if "tempstate" in name]
    if writer != "convert":
        assert "w" in str(tfckpt.list_variables(name if "sharded" not in writer or "1" not in writer else longest))


@pytest.mark.parametrize("more", [1, 30, 1000])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_longer_name_is_refused(writer: str, more: int, folder: Path) -> None:
    """The error has the limit, and by how much to shorten the name; not even the directory is created."""
    write, appended = WRITERS[writer]
    if writer == "convert":
        (folder / "new").mkdir()
    with pytest.raises(tfckpt.InvalidArgumentError, match=rf"at most 255\. Pass a name that is shorter by {more}$"):
        write("new/" + "a" * (LIMIT - appended + more))
    assert others(folder) in ([], ["new"] if writer == "convert" else [])
