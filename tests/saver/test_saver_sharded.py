"""Savers that write one file per device, and tensors that are saved in slices."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from case_table import Table
from saver_files import VERSIONS, names_in

import torch_tfckpt as tfckpt
from torch_tfckpt import PartitionedVariable, SaveableObject, Saver, SaverDef, SaveSliceInfo, SaveSpec, Variable
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.values import Value


class TwoDevices:
    """v0 and t0 on cpu:0, v1 and t1 on cpu:1."""

    def __init__(self, v0: float, t0: dict[str, float], v1: float, t1: dict[str, float]) -> None:
        self.v0 = Variable(torch.tensor(v0), "v0", device="/cpu:0")
        self.t0 = Table("t0", t0, "/cpu:0")
        self.v1 = Variable(torch.tensor(v1), "v1", device="/cpu:1")
        self.t1 = Table("t1", t1, "/cpu:1")
        self.first = {"v0": self.v0, "t0": self.t0.saveable}
        self.second = {"v1": self.v1, "t1": self.t1.saveable}

    @property
    def values(self) -> tuple[float, dict[str, float], float, dict[str, float]]:
        return self.v0.tensor.item(), self.t0.values, self.v1.tensor.item(), self.t1.values


SAVED = (10.0, {"k1": 30.0}, 20.0, {"k2": 40.0})
OTHER = (111.0, {"k111": 1.0}, 222.0, {"k222": 2.0})


@VERSIONS
@pytest.mark.parametrize("asynchronously", [False, True])
def test_basics(tmp_path: Path, version: int, asynchronously: bool) -> None:
    """CASES 36, 37, 38, 39: one file per device; shards of version 1 singly, all by pattern or prefix."""
    there = TwoDevices(*SAVED)
    saver = Saver({**there.first, **there.second}, sharded=True, write_version=version)
    path = str(tmp_path / "basics")
    saved = saver.save_async(path).result() if asynchronously else saver.save(path)
    if version == SaverDef.V1:
        assert saved == f"{path}-?????-of-00002"
        files = ["basics-00000-of-00002", "basics-00001-of-00002", "basics.meta"]
        for number, wanted in enumerate(("first", "second")):
            here = TwoDevices(*OTHER)
            Saver(getattr(here, wanted)).restore(f"{path}-{number:05d}-of-00002")
            assert here.values == ((*SAVED[:2], *OTHER[2:]) if number == 0 else (*OTHER[:2], *SAVED[2:]))
        pattern = f"{path}-?????-of-?????"
    else:
        assert saved == path
        files = [f"basics.{end}" for end in ("data-00000-of-00002", "data-00001-of-00002", "index", "meta")]
        pattern = path
    assert names_in(tmp_path) == sorted(["checkpoint", *files])
    assert tfckpt.meta_graph_filename(str(saved)) == f"{path}.meta"
    for source in (saved, pattern):
        for sharded in (True, False):
            here = TwoDevices(*OTHER)
            Saver({**here.first, **here.second}, sharded=sharded).restore(source)
            assert here.values == SAVED


@VERSIONS
def test_an_unsharded_checkpoint_into_a_sharded_saver(tmp_path: Path, version: int) -> None:
    """An unsharded checkpoint is restored by a sharded saver, and vice versa."""
    there, here = TwoDevices(*SAVED), TwoDevices(*OTHER)
    path = Saver({**there.first, **there.second}, write_version=version).save(tmp_path / "m")
    Saver({**here.first, **here.second}, sharded=True).restore(path)
    assert here.values == SAVED


def test_shards_are_in_the_order_of_the_device_strings(tmp_path: Path) -> None:
    """Shard i is the i-th device string in order: "" first, GPU:10 before GPU:2."""
    devices = ["/gpu:2", "/gpu:10", "", "/cpu:1", "/job:ps/replica:0/task:1/cpu:0", "/device:GPU:2"]
    var_list = [Variable(torch.full((2,), float(i)), f"v{i}", device=device) for i, device in enumerate(devices)]
    path = Saver(var_list, sharded=True).save(tmp_path / "m")
    with tfckpt.load_checkpoint(str(path)) as reader:
        shards = [int(reader.locate(f"v{i}")[0][-14:-9]) for i in range(6)]
    assert shards == [3, 2, 0, 1, 4, 3]
    assert len(list(tmp_path.glob("m.data-*-of-00005"))) == 5


def test_a_saveable_on_two_devices() -> None:
    """Rejected at construction, sharded or not."""
    specs = [SaveSpec(torch.zeros(1), "", f"a{i}", device=f"/cpu:{i}") for i in range(2)]
    for sharded in (False, True):
        with pytest.raises(ValueError, match="All tensors of a saveable object must be on the same device: NAME"):
            Saver([SaveableObject(None, specs, "NAME")], sharded=sharded)


# Slices of tensors.


def parts_of(whole: torch.Tensor, count: int, name: str, *, per_device: bool = False) -> PartitionedVariable:
    """Return the rows of a tensor in the given number of slices of about equal size."""
    variables, begin = [], 0
    for number, rows in enumerate(torch.tensor_split(whole, count)):
        info = SaveSliceInfo(name, whole.shape, [begin, 0], rows.shape)
        device = f"/cpu:{number}" if per_device else None
        variables.append(Variable(rows, f"{name}/part_{number}", info, device=device))
        begin += len(rows)
    return PartitionedVariable(name, variables)


@VERSIONS
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("form", ["dict", "dict of lists", "list", "list of parts"])
@pytest.mark.parametrize(("saved_in", "restored_in"), [(2, 1), (2, 2), (2, 3), (1, 3), (3, 2)])
def test_partitioned_variables(
    tmp_path: Path, version: int, sharded: bool, form: str, saved_in: int, restored_in: int
) -> None:
    """CASES 42, 43, 44: [10, 3] saved in 2 slices or whole; restored whole, in 2 and in 3 slices."""

    def var_list(whole: torch.Tensor, count: int) -> object:
        if count == 1:
            return {"full": whole} if form.startswith("dict") else [Variable(whole, "full")]
        parts = parts_of(whole, count, "full", per_device=True)
        if form.startswith("dict"):
            return {"full": list(parts) if form == "dict of lists" else parts}
        return [parts] if form == "list" else list(parts)

    whole, target = torch.rand(10, 3), torch.zeros(10, 3)
    saver = Saver(var_list(whole, saved_in), sharded=sharded, write_version=version)
    path = saver.save(tmp_path / "m")
    count = f"-?????-of-{saved_in:05d}" if sharded and version == SaverDef.V1 else ""
    assert path == str(tmp_path / "m") + count
    Saver(var_list(target, restored_in), sharded=sharded).restore(path)
    assert torch.equal(whole, target)
    assert torch.equal(torch.as_tensor(tfckpt.load_variable(path, "full")), whole)


@pytest.mark.parametrize("sharded", [False, True])
def test_overlapping_slices(tmp_path: Path, sharded: bool) -> None:
    """Two slices that overlap are rejected, and nothing is written."""
    whole = torch.rand(4, 2)
    parts = [
        Variable(whole[begin : begin + 2], f"p{begin}", SaveSliceInfo("w", [4, 2], [begin, 0], [2, 2]), device=device)
        for begin, device in ((0, "/cpu:0"), (1, "/cpu:1"))
    ]
    with pytest.raises(ValueError, match="Overlapping slices"):
        Saver(parts, sharded=sharded).save(tmp_path / "m")
    assert names_in(tmp_path) == []


# Other stateful objects.


class Counter(SaveableObject):
    """Iterator over 0, 1, 2, ... whose position is one int64."""

    def __init__(self, name: str, device: str) -> None:
        self.position = 0
        position: Callable[[], torch.Tensor] = lambda: torch.tensor(self.position)  # noqa: E731
        super().__init__(self, [SaveSpec(position, "", name, torch.int64, device)], name)

    def __next__(self) -> int:
        self.position += 1
        return self.position - 1

    def restore(self, restored_tensors: Sequence[Value], restored_shapes: Sequence[Shape] | None) -> None:
        [value] = restored_tensors
        self.position = int(value)


@pytest.mark.parametrize("sharded", [True, False])
def test_iterators(tmp_path: Path, sharded: bool) -> None:
    """CASES 45, 46: iterators on two devices continue from positions 2 and 1, sharded or not."""
    one, two = Counter("one", "/cpu:0"), Counter("two", "/cpu:1")
    assert [next(one), next(one), next(two)] == [0, 1, 0]
    path = Saver([one, two], sharded=True).save(tmp_path / "iterators")
    assert len(list(tmp_path.glob("iterators.data*"))) == 2
    fresh = [Counter("one", "/cpu:0"), Counter("two", "/cpu:1")]
    Saver(fresh, sharded=sharded).restore(path)
    assert [next(each) for each in fresh] == [2, 1]
