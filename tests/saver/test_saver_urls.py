"""Savers with URLs of storage that cannot rename files: fsspec's memory:// from end to end."""

import uuid
from collections.abc import Iterator
from pathlib import PurePosixPath

import pytest
import torch
from case_table import Table
from saver_files import VERSIONS

import torch_tfckpt as tfckpt
from torch_tfckpt import BaseSaverBuilder, BulkSaverBuilder, KeepBest, Saver, SaverDef, Variable

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed; `pip install -e .[remote]` brings it")


@pytest.fixture
def run() -> Iterator[str]:
    """Return a directory that no other test uses."""
    name = uuid.uuid4().hex
    yield f"memory://{name}/run"
    fsspec.filesystem("memory").rm(f"/{name}", recursive=True)


def names_at(url: str) -> list[str]:
    """Return the names of all files below the directory."""
    found = fsspec.filesystem("memory").find(url)
    return sorted(PurePosixPath(path).name for path in found)


class State:
    """Tensors of two devices, a tensor in two slices, and a table."""

    def __init__(self, value: float) -> None:
        self.v = torch.full((3,), value)
        self.w = torch.full((4, 2), value)
        self.table = Table("t", {f"k{value}": value})
        info = [tfckpt.SaveSliceInfo("w", [4, 2], [begin, 0], [2, 2]) for begin in (0, 2)]
        parts = [Variable(self.w[2 * i : 2 * i + 2], f"w/{i}", info[i], device=f"/cpu:{i}") for i in range(2)]
        self.var_list = [Variable(self.v, "v", device="/cpu:1"), *parts, self.table.saveable]

    def set(self, value: float) -> None:
        self.v.fill_(value)
        self.w.fill_(value)
        self.table.entries = {f"k{value}".encode(): value}

    @property
    def value(self) -> float:
        """Return the one value that all elements have."""
        [value] = {*self.v.tolist(), *self.w.flatten().tolist(), *self.table.values.values()}
        return float(value)


@VERSIONS
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("asynchronously", [False, True])
@pytest.mark.parametrize("builder", [BaseSaverBuilder, BulkSaverBuilder])
def test_end_to_end(
    run: str, version: int, sharded: bool, asynchronously: bool, builder: type[BaseSaverBuilder]
) -> None:
    """Save, find, retain two, restore into new objects; only checkpoint files are left."""
    there = State(0.0)
    saver = Saver(there.var_list, sharded=sharded, max_to_keep=2, builder=builder(version))
    suffix = "-?????-of-00002" if sharded and version == SaverDef.V1 else ""
    for step in range(4):
        there.set(float(step))
        handle = saver.save_async(f"{run}/m", step) if asynchronously else None
        if handle is not None:
            there.set(-1.0)
        path = handle.result() if handle is not None else saver.save(f"{run}/m", step)
        assert path == f"{run}/m-{step}{suffix}" == tfckpt.latest_checkpoint(run)
        assert tfckpt.checkpoint_exists(path)
    assert saver.last_checkpoints == [f"{run}/m-{step}{suffix}" for step in (2, 3)]
    count = 2 if sharded else 1
    shards = [f"-{i:05d}-of-{count:05d}" for i in range(count)] if sharded else [""]
    ends = [*shards, ".meta"]
    if version == SaverDef.V2:
        ends = [*(f".data-{i:05d}-of-{count:05d}" for i in range(count)), ".index", ".meta"]
    assert names_at(run) == ["checkpoint", *(f"m-{step}{end}" for step in (2, 3) for end in ends)]
    for step in (2, 3):
        here = State(-5.0)
        Saver(here.var_list, sharded=sharded).restore(f"{run}/m-{step}{suffix}")
        assert here.value == float(step)
    assert tfckpt.latest_checkpoint(run, valid=True) == f"{run}/m-3{suffix}"


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("builder", [BaseSaverBuilder, BulkSaverBuilder])
def test_the_same_path_again(run: str, sharded: bool, builder: type[BaseSaverBuilder]) -> None:
    """It is replaced completely, even if the number of shards differs; no old data file is left."""
    there = State(1.0)
    for number, several in enumerate((sharded, not sharded, sharded)):
        there.set(float(number))
        Saver(there.var_list, sharded=several, builder=builder()).save(f"{run}/m")
        here = State(-5.0)
        Saver(here.var_list).restore(f"{run}/m")
        assert here.value == float(number)
        assert len([name for name in names_at(run) if ".data-" in name]) == (2 if several else 1)


def test_retention_over_restarts(run: str) -> None:
    """recover, keep_best and pin find their files again at a URL."""
    there = State(0.0)
    for step, loss in enumerate([0.5, 0.1, 0.9, 0.8, 0.7]):
        saver = Saver(there.var_list, max_to_keep=1, recover=True, keep_best=KeepBest("loss", "min", 1))
        saver.save(f"{run}/m", step, metrics={"loss": loss})
        if step == 2:
            saver.pin(f"{run}/m-2")
    assert [name for name in names_at(run) if name.endswith(".index")] == ["m-1.index", "m-2.index", "m-4.index"]
    assert saver.last_checkpoints == [f"{run}/m-4"]


def test_the_schedule(run: str) -> None:
    """Modification times at a URL are used like those of local files."""
    there = State(0.0)
    first = Saver(there.var_list).save(f"{run}/m", 0)
    saver = Saver(there.var_list, max_to_keep=1, keep_checkpoint_every_n_hours=1.0, clock=lambda: 0.0)
    saver.recover_last_checkpoints([str(first)])  # written today, long after the schedule started at time 0
    assert saver.last_checkpoints == [first]
    saver.save(f"{run}/m", 1)
    assert tfckpt.checkpoint_exists(str(first))


@pytest.mark.parametrize("relative", [False, True])
def test_a_moved_directory(run: str, relative: bool) -> None:
    """The state file has relative names, so a copy of the directory continues elsewhere."""
    there = State(1.0)
    saver = Saver(there.var_list, save_relative_paths=relative)
    saver.save(f"{run}/m", 1)
    files = fsspec.filesystem("memory")
    moved = run.removesuffix("run") + "moved"
    for name in names_at(run):
        files.mv(f"{run}/{name}", f"{moved}/{name}")
    assert tfckpt.latest_checkpoint(run) is None
    assert tfckpt.latest_checkpoint(moved) == f"{moved}/m-1"
    there.set(5.0)
    saver.restore(moved)
    assert there.value == 1.0


def test_a_missing_checkpoint(run: str) -> None:
    """Errors equal those of local paths; directories need not exist."""
    saver = Saver({"v": torch.zeros(1)})
    with pytest.raises(ValueError, match="The passed save_path is not a valid checkpoint: memory://"):
        saver.restore(f"{run}/none")
    with pytest.raises(ValueError, match="'latest_filename' collides with 'save_path'"):
        saver.save(f"{run}/checkpoint")
    assert saver.save(f"{run}/deep/er/m") == f"{run}/deep/er/m"
    assert saver.export_meta_graph(f"{run}/a/b/graph.pb").HasField("saver_def")
    assert names_at(f"{run}/a") == ["graph.pb"]


def test_the_number_of_shards_in_names_does_not_grow(run: str) -> None:
    """A save over an existing checkpoint takes the smallest number that no file has: two of them alternate."""
    seen = set()
    for number in range(12):
        tfckpt.save_file({"w": torch.full((3,), float(number))}, f"{run}/m")
        assert tfckpt.load_file(f"{run}/m")["w"].tolist() == [number] * 3
        names = names_at(run)
        assert len(names) == 2
        seen.add(names[0])
    assert seen == {"m.data-00000-of-00001", "m.data-00000-of-00002"}
