"""Saver.restore: which paths it accepts, which errors it raises, and that it is all or nothing."""

import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from case_table import Table
from saver_files import VERSIONS, damage_last_tensor

import torch_tfckpt as tfckpt
from torch_tfckpt import CheckpointReader, SaveableObject, Saver, SaverDef, SaveSpec, Variable
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.values import Value

SEQUENTIALLY = pytest.mark.parametrize("sequentially", [False, True], ids=["at once", "sequentially"])


# Paths.


@VERSIONS
def test_a_moved_directory(tmp_path: Path, version: int) -> None:
    """CASES 10: checkpoints with relative paths are found before and after the directory is renamed."""
    (tmp_path / "dir1").mkdir()
    v0, v1, table = torch.tensor(10.0), torch.tensor(20.0), Table("v2", {"k1": 30.0})
    saver = Saver({"v0": v0, "v1": v1, "v2": table.saveable}, save_relative_paths=True, write_version=version)
    path = str(tmp_path / "dir1" / "save_copy_restore")
    assert saver.save(path) == path == tfckpt.latest_checkpoint(tmp_path / "dir1")
    (tmp_path / "dir1").rename(tmp_path / "dir2")
    moved = tfckpt.latest_checkpoint(tmp_path / "dir2")
    assert moved == str(tmp_path / "dir2" / "save_copy_restore")
    v0.zero_()
    v1.zero_()
    table.entries.clear()
    saver.restore(moved)
    assert (v0.item(), v1.item(), table.values) == (10.0, 20.0, {"k1": 30.0})


@VERSIONS
def test_a_path_without_a_checkpoint(tmp_path: Path, version: int) -> None:
    """CASES 12: a missing checkpoint and None raise ValueError in TensorFlow's words."""
    saver = Saver({"v": torch.zeros(1)}, write_version=version)
    for path in ("invalid path", tmp_path / "nothing", tmp_path):
        with pytest.raises(ValueError, match=r"The passed save_path is not a valid checkpoint: "):
            saver.restore(path)
    with pytest.raises(ValueError, match=r"Can't load save_path when it is None\."):
        saver.restore(None)


def test_any_spelling_of_a_checkpoint(tmp_path: Path) -> None:
    """Prefix, index, meta graph, directory, and patterns and shards of version 1 are accepted."""
    tensors = {"a": torch.tensor(1.0), "b": torch.tensor(2.0)}
    Saver(tensors).save(tmp_path / "two" / "m", 7)
    tagged = [Variable(tensors["a"], "a", device="/cpu:0"), Variable(tensors["b"], "b", device="/cpu:1")]
    (tmp_path / "one").mkdir()
    Saver(tagged, sharded=True, write_version=SaverDef.V1).save(tmp_path / "one" / "m", 7)
    for path in ("two/m-7", "two/m-7.index", "two/m-7.meta", "two", "one/m-7-?????-of-00002", "one/m-7-*", "one"):
        a, b = torch.zeros(()), torch.zeros(())
        Saver({"a": a, "b": b}).restore(tmp_path / path)
        assert (a.item(), b.item()) == (1.0, 2.0), path
    b = torch.zeros(())
    Saver({"b": b}).restore(tmp_path / "one" / "m-7-00001-of-00002")
    assert b.item() == 2.0


# Mismatches.


@SEQUENTIALLY
def test_another_shape(tmp_path: Path, sequentially: bool) -> None:
    """CASES 27, 84: ValueError in TensorFlow's words, for either API; the target is unchanged."""
    path = str(Saver({"v": torch.arange(6.0).reshape(2, 3)}).save(tmp_path / "reshape"))
    scalar = str(Saver({"v": torch.tensor(1.0)}).save(tmp_path / "scalar"))
    for file, target in ((path, torch.full((3, 2), 7.0)), (scalar, torch.full((1,), 7.0))):
        with pytest.raises(tfckpt.InvalidArgumentError) as raised:
            Saver({"v": target}, restore_sequentially=sequentially).restore(file)
        text = str(raised.value)
        assert isinstance(raised.value, ValueError)
        assert "a mismatch between the current graph and the graph from the checkpoint" in text
        shape = tuple(tfckpt.load_variable(file, "v").shape)
        assert (
            f"Received incompatible tensor with shape {shape} when attempting to restore variable with shape "
            f"{tuple(target.shape)} and name v." in text
        )
        first = text.splitlines()[0]
        assert "Received incompatible tensor" in first and first.endswith(". Restore into matching tensors")
        assert torch.equal(target, torch.full_like(target, 7.0))


@SEQUENTIALLY
@pytest.mark.parametrize("sharded", [False, True])
def test_reshape(tmp_path: Path, sequentially: bool, sharded: bool) -> None:
    """CASES 28: with reshape the value is reshaped to the target; the number of elements must match."""
    path = Saver({"v": torch.arange(1.0, 7.0).reshape(2, 3)}).save(tmp_path / "reshape")
    target = torch.zeros(3, 2)
    Saver({"v": target}, reshape=True, restore_sequentially=sequentially, sharded=sharded).restore(path)
    assert target.tolist() == [[1, 2], [3, 4], [5, 6]]
    with pytest.raises(tfckpt.InvalidArgumentError, match="Input to reshape is a tensor with 6 values"):
        Saver({"v": torch.zeros(7)}, reshape=True, restore_sequentially=sequentially, sharded=sharded).restore(path)


@SEQUENTIALLY
def test_another_dtype(tmp_path: Path, sequentially: bool) -> None:
    """CASES 33: restoring float32 into int32 is an error."""
    path = Saver({"v": torch.tensor([1.0])}).save(tmp_path / "dtype")
    target = torch.tensor([7], dtype=torch.int32)
    with pytest.raises(tfckpt.InvalidArgumentError, match="expected dtype int32 does not equal original dtype float"):
        Saver({"v": target}, restore_sequentially=sequentially).restore(path)
    assert target.item() == 7


def test_other_names(tmp_path: Path) -> None:
    """CASES 60, 61: the dictionary's keys are looked up, not the names of variables."""
    v0, v1 = Variable(torch.tensor(10.0), "v0"), Variable(torch.tensor(20.0), "v1")
    path = Saver({"save_prefix/v0": v0, "save_prefix/v1": v1}).save(tmp_path / "names")
    with pytest.raises(tfckpt.NotFoundError, match="not found in checkpoint"):
        Saver({"v0": v0, "v1": v1}).restore(path)
    r0, r1 = Variable(torch.tensor(-1.0), "restore_prefix/v0"), Variable(torch.tensor(-1.0), "restore_prefix/v1")
    with pytest.raises(tfckpt.NotFoundError, match="Key restore_prefix/v0 not found in checkpoint"):
        Saver([r0, r1]).restore(path)
    Saver({"save_prefix/v0": r0, "save_prefix/v1": r1}).restore(path)
    assert (r0.tensor.item(), r1.tensor.item()) == (10.0, 20.0)


def test_an_error_names_the_missing_name(tmp_path: Path) -> None:
    """CASES 83: the missing names come first, then TensorFlow's words; no reader's message, no chained exception."""
    path = Saver({"a": torch.zeros(1)}).save(tmp_path / "missing")
    with pytest.raises(tfckpt.NotFoundError) as raised:
        Saver([Variable(torch.zeros(1), "b")]).restore(path)
    text = str(raised.value)
    assert text.startswith(f"Key b not found in checkpoint: {path}. Save and restore the same names\n\n")
    assert "\n\nRestoring from checkpoint failed. This is most likely due to a Variable" in text
    assert "a Variable name or other graph key that is missing from the checkpoint" in text
    assert "Original error:\n\nKey b not found in checkpoint" in text
    assert "NewCheckpointReader" not in text
    assert raised.value.__cause__ is None and raised.value.__suppress_context__


def test_a_missing_data_file(tmp_path: Path) -> None:
    """A missing data file raises the same kind of error."""
    path = Saver({"a": torch.zeros(1)}).save(tmp_path / "missing")
    (tmp_path / "missing.data-00000-of-00001").unlink()
    with pytest.raises(tfckpt.NotFoundError, match=r"missing\.data-00000-of-00001"):
        Saver({"a": torch.zeros(1)}).restore(path)


def test_a_slice_of_another_full_shape(tmp_path: Path) -> None:
    """A spec whose full shape differs from the stored one is an error."""
    path = Saver({"w": torch.zeros(4, 2)}).save(tmp_path / "slice")
    part = Variable(torch.zeros(2, 2), "w", tfckpt.SaveSliceInfo("w", [6, 2], [0, 0], [2, 2]))
    with pytest.raises(tfckpt.InvalidArgumentError, match=r"shape in shape_and_slice spec \[6,2\] does not match"):
        Saver({"w": [part]}).restore(path)


def test_large_tensors(tmp_path: Path) -> None:
    """CASES 34: five tensors of [10, 2] and three of [32000, 1000] float32, 128 MB each."""
    made = torch.Generator().manual_seed(5)
    shapes = [(10, 2)] * 5 + [(32_000, 1_000)] * 3
    tensors = {f"var{i}": torch.rand(shape, generator=made) for i, shape in enumerate(shapes)}
    path = Saver(tensors, max_to_keep=1).save(tmp_path / "large")
    restored = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
    Saver(restored).restore(path)
    assert all(torch.equal(tensors[name], restored[name]) for name in tensors)


# Objects that name their saveables.


class Holder:
    """Trackable object with the given saveables by attribute."""

    def __init__(self, saveables: Callable[[], dict[str, Any]], name: str = "holder") -> None:
        self.name = name
        self._saveables = saveables

    def _gather_saveables_for_checkpoint(self) -> dict[str, Any]:
        return self._saveables()


@pytest.mark.parametrize("form", ["list", "dict"])
def test_an_object_whose_only_attribute_is_its_value(tmp_path: Path, form: str) -> None:
    """CASES 80: 42 is saved, 43 set, 42 restored."""
    v = Variable(torch.tensor(42.0), "holder")
    holder = Holder(lambda: {"VARIABLE_VALUE": v})
    saver = Saver([holder] if form == "list" else {"holder": holder})
    path = saver.save(tmp_path / "trackable")
    v.tensor.fill_(43.0)
    saver.restore(path)
    assert v.tensor.item() == 42.0
    assert list(tfckpt.load_file(str(path))) == ["holder"]


class Mirrored(SaveableObject):
    """One stored value for two variables."""

    def __init__(self, primary: torch.Tensor, mirror: torch.Tensor, name: str) -> None:
        super().__init__(primary, [SaveSpec(primary, "", name)], name)
        self._variables = primary, mirror

    def restore(self, restored_tensors: Sequence[Value], restored_shapes: Sequence[Shape] | None) -> None:
        [value] = restored_tensors
        assert isinstance(value, torch.Tensor)
        for variable in self._variables:
            variable.copy_(value)


def test_a_saveable_that_restores_two_variables(tmp_path: Path) -> None:
    """CASES 81: both variables are 42, with a factory and with a custom saveable."""
    primary, mirror = torch.tensor(42.0), torch.tensor(0.0)
    for value in (
        Holder(lambda: {"VARIABLE_VALUE": lambda name="holder": Mirrored(primary, mirror, name)}),
        Mirrored(primary, mirror, "holder"),
    ):
        saver = Saver([value])
        path = saver.save(tmp_path / "mirrored")
        primary.fill_(43.0)
        mirror.fill_(44.0)
        saver.restore(path)
        assert (primary.item(), mirror.item()) == (42.0, 42.0)


@VERSIONS
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("asynchronously", [False, True])
def test_a_function_is_called_once(tmp_path: Path, version: int, sharded: bool, asynchronously: bool) -> None:
    """CASES 82: a function is called once per save and never by a restore."""
    table = Table("t", {"a": 1.0})
    saver = Saver([table.saveable], write_version=version, sharded=sharded)
    path = saver.save_async(tmp_path / "once").result() if asynchronously else saver.save(tmp_path / "once")
    assert table.reads == 1
    saver.restore(path)
    assert table.reads == 1


# All or nothing.


class Everything:
    """A model, its optimizer, a plain dict, a table and tensors of two devices, with values from `seed`."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1 + seed)
        self.model(torch.randn(5, 3)).square().sum().backward()
        self.optimizer.step()
        self.plain = {"epoch": seed, "best": [seed, 0.5]}
        self.table = Table("table", {f"key {seed}": float(seed)})
        self.other, self.last = Variable(torch.randn(2), "other", device="/cpu:1"), torch.randn(5000)
        self.var_list = {
            "model": self.model,
            "optimizer": self.optimizer,
            "plain": self.plain,
            "table": self.table.saveable,
            "other": self.other,
            "zz": self.last,
        }

    def saver(self, **arguments: Any) -> Saver:
        return Saver(self.var_list, **arguments)

    def snapshot(self, directory: Path) -> dict[str, bytes]:
        """Return all values as bytes."""
        (directory / "snapshots").mkdir(exist_ok=True)
        self.saver().save(directory / "snapshots" / "s", write_state=False, write_meta_graph=False)
        return {path.name: path.read_bytes() for path in (directory / "snapshots").iterdir()}


@VERSIONS
@pytest.mark.parametrize("sharded", [False, True])
def test_a_damaged_last_tensor_changes_nothing(tmp_path: Path, version: int, sharded: bool) -> None:
    """All values are verified before the first is assigned; the reader's error is not wrapped."""
    path = Everything(1).saver(write_version=version, sharded=sharded).save(tmp_path / "m")
    damage_last_tensor(tmp_path, version)
    here = Everything(2)
    before = here.snapshot(tmp_path)
    with pytest.raises(tfckpt.DataLossError) as raised:
        here.saver(sharded=sharded).restore(path)
    assert "Restoring from checkpoint failed" not in str(raised.value)
    assert here.snapshot(tmp_path) == before


@SEQUENTIALLY
@pytest.mark.parametrize(
    "misfit",
    [
        {"zzz": torch.zeros(3)},
        {"zz": torch.zeros(5000, dtype=torch.int32)},
        {"zz": torch.zeros(4)},
        {"zz": torch.zeros(5000, device="meta")},
        {"zz": torch.zeros(1).expand(5000)},
        {"optimizer": torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])},
        {"plain": ["a list"]},
    ],
    ids=["name", "dtype", "shape", "meta", "expanded", "optimizer", "container"],
)  # fmt: skip
def test_a_mismatch_changes_nothing(tmp_path: Path, sequentially: bool, misfit: dict[str, Any]) -> None:
    """All names, dtypes and shapes are checked before the first assignment, even in a sequential restore."""
    path = Everything(1).saver().save(tmp_path / "m")
    here = Everything(2)
    before = here.snapshot(tmp_path)
    var_list = {**here.var_list, **misfit}
    if isinstance(misfit.get("optimizer"), torch.optim.Optimizer):
        var_list["parameter"] = misfit["optimizer"].param_groups[0]["params"][0]
    with pytest.raises((tfckpt.NotFoundError, tfckpt.InvalidArgumentError)):
        Saver(var_list, restore_sequentially=sequentially).restore(path)
    assert here.snapshot(tmp_path) == before


def test_a_sequential_error_lists_the_changed_variables(tmp_path: Path) -> None:
    """Damage found halfway by restore_sequentially: a note lists the variables with new values."""
    saved = {f"v{i}": torch.full((4,), float(i)) for i in range(1, 6)}
    path = Saver(saved).save(tmp_path / "m")
    damage_last_tensor(tmp_path, SaverDef.V2)
    here = {name: torch.zeros(4) for name in saved}
    with pytest.raises(tfckpt.DataLossError) as raised:
        Saver(here, restore_sequentially=True).restore(path)
    assert [here[name].tolist() for name in saved] == [[float(i)] * 4 for i in range(1, 5)] + [[0.0] * 4]
    [note] = raised.value.__notes__
    assert "4 saveables" in note and all(f'"v{i}"' in note for i in range(1, 5)) and '"v5"' not in note
    with pytest.raises(tfckpt.DataLossError) as raised:
        Saver({"v5": torch.zeros(4)}, restore_sequentially=True).restore(path)
    assert not hasattr(raised.value, "__notes__")


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(("sequentially", "at_most"), [(False, 6), (True, 1)])
def test_values_alive_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharded: bool, sequentially: bool, at_most: int
) -> None:
    """restore_sequentially holds one value at a time; otherwise all are held."""
    alive: list[weakref.ref[Value]] = []
    most = 0

    def note(values: Sequence[Value]) -> None:
        nonlocal most
        alive.extend(map(weakref.ref, values))
        most = max(most, sum(each() is not None for each in alive))

    one, several = CheckpointReader.get_tensor, CheckpointReader.get_tensors

    def get_tensor(self: CheckpointReader, *arguments: Any) -> Value:
        value: Value = one(self, *arguments)
        note([value])
        return value

    def get_tensors(self: CheckpointReader, *arguments: Any) -> dict[str, Value]:
        values = several(self, *arguments)
        note(list(values.values()))
        return values

    var_list = [Variable(torch.full((100,), float(i)), f"v{i}", device=f"/cpu:{i % 2}") for i in range(6)]
    saver = Saver(var_list, sharded=sharded, restore_sequentially=sequentially)
    path = saver.save(tmp_path / "m")
    for variable in var_list:
        variable.tensor.zero_()
    monkeypatch.setattr(CheckpointReader, "get_tensor", get_tensor)
    monkeypatch.setattr(CheckpointReader, "get_tensors", get_tensors)
    saver.restore(path)
    assert [variable.tensor[0].item() for variable in var_list] == [0, 1, 2, 3, 4, 5]
    assert most == at_most
