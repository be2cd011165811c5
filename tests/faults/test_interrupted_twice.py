"""Ctrl-C during a save, and again during its cleanup: no file stays locked, and the next save cleans up."""

import gc
import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from numbered import State
from storages import Counting

from torch_tfckpt import BaseSaverBuilder
from torch_tfckpt.bundle.writer import BundleWriter
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.v1.writer import SlicesWriter


class Interrupted(Counting):
    """Raises KeyboardInterrupt at two operations."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(LOCAL)
        self._numbers = first, second
        self.count = 0

    def before(self, number: int, what: str) -> None:
        if number in self._numbers:
            self.count += 1
            raise KeyboardInterrupt


def write_bundle(storage: Storage, folder: Path) -> None:
    with BundleWriter(storage, str(folder / "m"), num_shards=2) as writer:
        writer.add("a", torch.ones(3))
        writer.add("b", torch.ones(3), shard=1)


def write_v1(storage: Storage, folder: Path) -> None:
    with SlicesWriter(storage, str(folder / "m")) as writer:
        writer.add("a", torch.ones(3))


def save(storage: Storage, folder: Path) -> None:
    State().saver(sharded=True, storage=storage).save(folder / "m", write_meta_graph=False)


def save_in_parts(storage: Storage, folder: Path) -> None:
    State().saver(sharded=True, builder=BaseSaverBuilder(), storage=storage).save(folder / "m", write_meta_graph=False)


def interrupted_twice(write: Callable[[Storage, Path], None], folder: Path, first: int, gap: int) -> int:
    """Return how often Ctrl-C was pressed."""
    storage = Interrupted(first, first + gap)
    try:
        write(storage, folder)
    except KeyboardInterrupt:
        assert storage.count
    return storage.count


@pytest.mark.parametrize("old", [False, True], ids=["new", "replacing"])
@pytest.mark.parametrize(("write", "step"), [(write_bundle, 5), (write_v1, 2), (save, 13), (save_in_parts, 13)])
@pytest.mark.parametrize("tried", [1, pytest.param(4, marks=pytest.mark.heavy)])
def test_no_file_stays_in_use(
    write: Callable[[Storage, Path], None], step: int, tried: int, old: bool, tmp_path: Path
) -> None:
    """At every `step`th operation, and soon after it; at `tried` times as many in the heavy test."""
    twice, step = 0, -(-step // tried)
    for gap in (1, 3):
        for first in itertools.count(gap % step, step):
            folder = tmp_path / f"{gap}-{first}"
            folder.mkdir()
            if old:
                write(LOCAL, folder)
            count = interrupted_twice(write, folder, first, gap)
            gc.collect()
            twice += count == 2
            used = [path.name for path in folder.rglob("*") if path.is_file() and LOCAL.in_use(str(path))]
            assert not used, f"interrupted at operations {first} and {first + gap}"
            save(LOCAL, folder)
            left = [os.path.relpath(path, folder) for path in folder.rglob("*") if "tempstate" in path.name]
            assert not left, f"interrupted at operations {first} and {first + gap}"
            if not count:
                break
    assert twice > 3
