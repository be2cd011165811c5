"""Builders: both write the same bytes, and methods overridden in a subclass are called."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from case_table import Table
from hypothesis import given, settings
from hypothesis import strategies as st
from saver_files import VERSIONS, names_in

import torch_tfckpt as tfckpt
from torch_tfckpt import BaseSaverBuilder, BulkSaverBuilder, CheckpointReader, Saver, SaverDef, SaveSliceInfo, Variable
from torch_tfckpt.saveables.save_spec import SaveableObject, SaveSpec, group_by_devices
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.values import Value

DEVICES = st.sampled_from(["", "/cpu:0", "/cpu:1", "/gpu:10", "/gpu:2"])
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.int64, torch.uint8, torch.bool, torch.complex64])
NAMES = st.text("ab/:_Z", min_size=1, max_size=6)


@st.composite
def var_lists(draw: st.DrawFn) -> list[object]:
    """Draw tensors, views, slices, empty tensors and tables of strings, on any of five devices."""
    found: list[object] = []
    for name in sorted(draw(st.sets(NAMES, min_size=1, max_size=8))):
        device = draw(DEVICES)
        shape = draw(st.lists(st.integers(0, 5), max_size=3))
        value = torch.randint(0, 2, shape).to(draw(DTYPES))
        kind = draw(st.sampled_from(["whole", "transposed", "parts", "table"]))
        if kind == "table":
            found.append(Table(name, {f"k{i}": float(i) for i in range(draw(st.integers(0, 3)))}, device).saveable)
        elif kind == "parts":
            rows = torch.rand(6, 2)
            at = draw(st.integers(1, 5))
            for begin, end in ((0, at), (at, 6)):
                info = SaveSliceInfo(name, [6, 2], [begin, 0], [end - begin, 2])
                found.append(Variable(rows[begin:end], f"{name}/{begin}", info, device=draw(DEVICES)))
        else:
            found.append(Variable(value.mT if kind == "transposed" and len(shape) > 1 else value, name, device=device))
    return found


def files_of(directory: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in directory.rglob("*") if path.is_file() and path.name != "checkpoint"
    }


@settings(max_examples=40)
@given(var_list=var_lists(), sharded=st.booleans(), version=st.sampled_from([SaverDef.V1, SaverDef.V2]))
def test_both_builders_write_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, var_list: list[object], sharded: bool, version: int
) -> None:
    """BaseSaverBuilder and BulkSaverBuilder write equal files, sync and async, and restore each other's."""
    written = []
    try:
        savers = [
            Saver(var_list, sharded=sharded, builder=kind(version)) for kind in (BaseSaverBuilder, BulkSaverBuilder)
        ]
    except ValueError:
        return  # colliding names, such as "a" with the key "a-keys" of a table
    for saver in savers:
        for asynchronously in (False, True):
            folder = tmp_path_factory.mktemp("builders")
            saver.save_async(folder / "m").result() if asynchronously else saver.save(folder / "m")
            written.append(files_of(folder))
            saver.restore(folder)
    assert all(files == written[0] for files in written[1:])
    assert len(written[0]) >= 2


class Recording(BulkSaverBuilder):
    """Builder that records its calls."""

    def __init__(self, version: int = SaverDef.V2) -> None:
        super().__init__(version)
        self.calls: list[tuple[str, Any]] = []


class SavesItself(Recording):
    def save_op(self, storage: Storage, filename: str, saveables: Sequence[SaveableObject]) -> None:
        self.calls.append(("save_op", [each.name for each in saveables]))
        super().save_op(storage, filename, saveables)


class NamesShards(Recording):
    def sharded_filename(self, filename: str, shard: int, num_shards: int) -> str:
        self.calls.append(("sharded_filename", (shard, num_shards)))
        return f"{filename}-part{shard}of{num_shards}"


class ReadsItself(Recording):
    def restore_op(self, reader: CheckpointReader, saveable: SaveableObject, preferred_shard: int) -> list[Value]:
        self.calls.append(("restore_op", (saveable.name, preferred_shard)))
        return [value + 1 for value in super().restore_op(reader, saveable, preferred_shard)]


class ReadsItselfPlainly(BaseSaverBuilder):
    """Counterpart of ReadsItself that derives from BaseSaverBuilder."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, Any]] = []

    def restore_op(self, reader: CheckpointReader, saveable: SaveableObject, preferred_shard: int) -> list[Value]:
        self.calls.append(("restore_op", (saveable.name, preferred_shard)))
        return [value + 1 for value in super().restore_op(reader, saveable, preferred_shard)]


class ReadsAll(Recording):
    def bulk_restore(
        self,
        reader: CheckpointReader,
        saveables: Sequence[SaveableObject],
        preferred_shard: int,
        restore_sequentially: bool,
    ) -> list[Value]:
        self.calls.append(("bulk_restore", ([each.name for each in saveables], preferred_shard, restore_sequentially)))
        values = super().bulk_restore(reader, saveables, preferred_shard, restore_sequentially)
        return [value + 1 for value in values]


def three() -> list[Variable]:
    return [Variable(torch.tensor(float(i)), f"v{i}", device=f"/cpu:{i % 2}") for i in range(3)]


@VERSIONS
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("asynchronously", [False, True])
def test_an_overridden_save_op(tmp_path: Path, version: int, sharded: bool, asynchronously: bool) -> None:
    """It is called for each file with its saveables; the checkpoint is the same, and no file is left over."""
    builder = SavesItself(version)
    for number, each in enumerate((builder, BulkSaverBuilder(version))):
        folder = tmp_path / str(number)
        folder.mkdir()
        saver = Saver(three(), builder=each, sharded=sharded)
        saver.save_async(folder / "m").result() if asynchronously else saver.save(folder / "m")
    assert builder.calls == [
        ("save_op", names) for names in ([["v0", "v2"], ["v1"]] if sharded else [["v0", "v1", "v2"]])
    ]
    assert names_in(tmp_path / "0") == names_in(tmp_path / "1")
    assert files_of(tmp_path / "0") == files_of(tmp_path / "1")


@pytest.mark.parametrize("asynchronously", [False, True])
def test_overridden_names_of_shards(tmp_path: Path, asynchronously: bool) -> None:
    """They are names of temporary files in version 2 and of the final files in version 1."""
    for version in (SaverDef.V2, SaverDef.V1):
        builder = NamesShards(version)
        folder = tmp_path / str(version)
        folder.mkdir()
        saver = Saver(three(), builder=builder, sharded=True)
        saver.save_async(folder / "m").result() if asynchronously else saver.save(folder / "m")
        assert [call for call in builder.calls if call[0] == "sharded_filename"] == [
            ("sharded_filename", (shard, 2)) for shard in range(2)
        ]
        files = ["m.data-00000-of-00002", "m.data-00001-of-00002", "m.index"]
        assert names_in(folder) == sorted(
            ["checkpoint", "m.meta", *(files if version == SaverDef.V2 else ["m-part0of2", "m-part1of2"])]
        )
    assert BaseSaverBuilder().sharded_filename("f", 1, 12) == "f-00001-of-00012"


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("sequentially", [False, True])
@pytest.mark.parametrize("kind", [ReadsItself, ReadsItselfPlainly])
def test_an_overridden_restore_op(
    tmp_path: Path, sharded: bool, sequentially: bool, kind: type[ReadsItself | ReadsItselfPlainly]
) -> None:
    """It is called for each saveable with its group number; its return values are assigned."""
    builder = kind()
    var_list = three()
    saver = Saver(var_list, builder=builder, sharded=sharded, restore_sequentially=sequentially)
    saver.restore(saver.save(tmp_path / "m"))
    assert [variable.tensor.item() for variable in var_list] == [1.0, 2.0, 3.0]
    order = [("v0", 0), ("v2", 0), ("v1", 1)] if sharded else [("v0", 0), ("v1", 0), ("v2", 0)]
    assert builder.calls == [("restore_op", each) for each in order]


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("sequentially", [False, True])
def test_an_overridden_bulk_restore(tmp_path: Path, sharded: bool, sequentially: bool) -> None:
    """It is called for each group, or for each saveable with the flag set if sequential."""
    builder, var_list = ReadsAll(), three()
    saver = Saver(var_list, builder=builder, sharded=sharded, restore_sequentially=sequentially)
    saver.restore(saver.save(tmp_path / "m"))
    assert [variable.tensor.item() for variable in var_list] == [1.0, 2.0, 3.0]
    groups = [["v0", "v2"], ["v1"]] if sharded else [["v0", "v1", "v2"]]
    expected = [(group, shard, False) for shard, group in enumerate(groups)]
    if sequentially:
        expected = [([name], shard, True) for shard, group in enumerate(groups) for name in group]
    assert builder.calls == [("bulk_restore", each) for each in expected]


class Fails(BulkSaverBuilder):
    """Builder whose save_op fails for v1."""

    def save_op(self, storage: Storage, filename: str, saveables: Sequence[SaveableObject]) -> None:
        if any(each.name == "v1" for each in saveables):
            raise OSError(28, "No space left on device", filename)
        super().save_op(storage, filename, saveables)


@VERSIONS
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("asynchronously", [False, True])
def test_a_save_op_that_fails(tmp_path: Path, version: int, sharded: bool, asynchronously: bool) -> None:
    """Its error is raised, no file is left, the state file is unchanged, and the next save succeeds."""
    path = str(Saver(three()).save(tmp_path / "before"))
    files, state = names_in(tmp_path), (tmp_path / "checkpoint").read_text()
    saver = Saver(three(), builder=Fails(version), sharded=sharded)
    with pytest.raises(OSError, match="No space left on device"):
        saver.save_async(tmp_path / "m").result() if asynchronously else saver.save(tmp_path / "m")
    assert names_in(tmp_path) == files and (tmp_path / "checkpoint").read_text() == state
    assert saver.last_checkpoints == [] and tfckpt.latest_checkpoint(tmp_path) == path
    saved = Saver(three(), builder=BaseSaverBuilder(version), sharded=sharded).save(tmp_path / "m")
    Saver(three()).restore(saved)


def test_versions() -> None:
    """An unknown version raises the RuntimeError that TensorFlow intends to raise."""
    for builder in (BaseSaverBuilder, BulkSaverBuilder):
        for version in (0, 3, "2"):
            with pytest.raises(RuntimeError, match="Unexpected write_version"):
                builder(version)  # type: ignore[arg-type]


def test_the_version_of_the_builder_is_used(tmp_path: Path) -> None:
    """With a version 1 builder, the SaverDef, the files and their deletion use version 1."""
    saver = Saver(three(), builder=BaseSaverBuilder(SaverDef.V1), max_to_keep=1)
    saver_def = saver.as_saver_def()
    assert saver_def is not None and saver_def.version == SaverDef.V1
    for step in (1, 2):
        saver.save(tmp_path / "m", step)
    assert names_in(tmp_path) == ["checkpoint", "m-2", "m-2.meta"]


def test_a_callers_save_op_without_a_saver(tmp_path: Path) -> None:
    """It writes the specs in the order of the saveables, as one bundle with its bytes in that order."""
    specs = [SaveSpec(torch.full((2,), value), "", name) for name, value in (("b", 1.0), ("a", 2.0))]
    BulkSaverBuilder().save_op(LOCAL, str(tmp_path / "m"), [SaveableObject(None, specs, "x")])
    data = np.frombuffer((tmp_path / "m.data-00000-of-00001").read_bytes(), "<f4")
    assert data.tolist() == [1.0, 1.0, 2.0, 2.0]


def test_groups() -> None:
    """Groups are sorted by canonical device string; the order within a group is kept."""
    devices = ["/gpu:2", "cuda:10", "/cpu:0", "cpu", "", "/job:ps/replica:0/task:1/cpu:0"]
    saveables = [
        SaveableObject(None, [SaveSpec(torch.zeros(1), "", f"v{i}", device=device)], f"v{i}")
        for i, device in enumerate(devices)
    ]
    assert [(device, [each.name for each in group]) for device, group in group_by_devices(saveables)] == [
        ("", ["v4"]),
        ("/device:CPU:0", ["v2", "v3"]),
        ("/device:GPU:10", ["v1"]),
        ("/device:GPU:2", ["v0"]),
        ("/job:ps/replica:0/task:1/device:CPU:0", ["v5"]),
    ]
