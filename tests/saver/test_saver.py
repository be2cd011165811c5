"""Saver: saving and restoring, building, and the arguments that the constructor rejects."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from case_table import Table
from saver_files import VERSIONS, names_in
from tensorflow_process import TensorFlowProcess

import torch_tfckpt as tfckpt
from torch_tfckpt import GraphKeys, PartitionedVariable, Saver, SaverDef, SaveSliceInfo, Variable
from torch_tfckpt._proto.meta_graph_pb2 import MetaGraphDef


def a_slice(full_name: str, name: str, offset: int = 0) -> Variable:
    """Return a slice [1] of a [2]."""
    return Variable(torch.zeros(1), name, SaveSliceInfo(full_name, [2], [offset], [1]))


# Saving and restoring.


@VERSIONS
@pytest.mark.parametrize("form", ["dict", "list"])
@pytest.mark.parametrize("fresh", [True, False])
def test_basic(tmp_path: Path, version: int, form: str, fresh: bool) -> None:
    """CASES 1, 2, 3, 18: two scalars and a table are restored into new and into changed variables."""

    def state(v0: float, v1: float, entries: dict[str, float]) -> tuple[torch.Tensor, torch.Tensor, Table, object]:
        one, two, table = torch.tensor(v0), torch.tensor(v1), Table("v2", entries)
        as_list = [Variable(one, "v0"), Variable(two, "v1"), table.saveable]
        return one, two, table, {"v0": one, "v1": two, "v2": table.saveable} if form == "dict" else as_list

    path = str(tmp_path / "basic")
    *_, var_list = state(10.0, 20.0, {"k1": 30.0})
    assert Saver(var_list, restore_sequentially=True, write_version=version).save(path) == path
    v0, v1, table, var_list = state(-1.0, -1.0, {}) if fresh else state(1000.0, 2000.0, {"k1000": 3000.0})
    Saver(var_list).restore(path)
    assert (v0.item(), v1.item(), table.values) == (10.0, 20.0, {"k1": 30.0})


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    """CASES 5: two savers whose dictionaries differ only in order write equal bytes."""
    tensors = {f"v{i}": torch.randn(3, i) for i in range(12)}
    table = Table("table", {"b": 1.0, "a": 2.0})
    for name, keys in (("one", list(tensors)), ("two", list(reversed(tensors)))):
        Saver({**{key: tensors[key] for key in keys}, "table": table.saveable}).save(tmp_path / name)
    for suffix in (".index", ".data-00000-of-00001", ".meta"):
        assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()


def test_a_list_of_tensors_with_names(tmp_path: Path) -> None:
    """CASES 6: pairs of name and Parameter, as from named_parameters, are saved, zeroed and restored."""
    v1, v2 = torch.tensor(3.14), torch.tensor([1, 2])
    saver = Saver([Variable(v1, "v1"), Variable(v2, "v2")])
    path = saver.save(tmp_path / "eager")
    v1.zero_()
    v2.zero_()
    saver.restore(path)
    assert v1.item() == torch.tensor(3.14).item() and v2.tolist() == [1, 2]
    model = torch.nn.Linear(2, 2)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    pairs = Saver(model.named_parameters())
    path = pairs.save(tmp_path / "pairs")
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
    pairs.restore(path)
    assert all(torch.equal(before[name], value) for name, value in model.named_parameters())


@VERSIONS
def test_tensorflow_reads_our_files_and_we_read_its_files(
    tmp_path: Path, tensorflow: TensorFlowProcess, version: int
) -> None:
    """CASES 7: we read w1 = 1 and w2 = 2 from TensorFlow's file; TensorFlow reads 3 and 4 from ours."""
    w1, w2, table = torch.tensor(1.0), torch.tensor(2.0), Table("t", {"k": 5.0, "a": 6.0})
    path = str(tmp_path / "ours")
    Saver({"w1": w1, "w2": w2, "t": table.saveable}, write_version=version).save(path)
    restored = tensorflow.call("restore_all", path)
    numbers = {name: np.frombuffer(restored[name].data, "<f4").tolist() for name in ("w1", "w2", "t-values")}
    assert numbers == {"w1": [1.0], "w2": [2.0], "t-values": [6.0, 5.0]}
    assert restored["t-keys"].strings() == [b"a", b"k"]
    theirs = str(tmp_path / "theirs")
    save = "save_v1" if version == SaverDef.V1 else "save_v2"
    tensorflow.call(save, theirs, {"w1": np.float32(3), "w2": np.float32(4)})
    Saver({"w1": w1, "w2": w2}).restore(theirs)
    assert (w1.item(), w2.item()) == (3.0, 4.0)


def test_a_second_saver_restores(tmp_path: Path) -> None:
    """CASES 8: a second saver restores [1] into another tensor, seen through a view of it."""
    path = Saver({"v": torch.ones(1)}).save(tmp_path / "caching")
    target = torch.zeros(1)
    view = target.view(1, 1)
    Saver({"v": target}).restore(path)
    assert view.tolist() == [[1.0]]


def test_int64(tmp_path: Path) -> None:
    """CASES 13: an int64 scalar is restored."""
    path = Saver({"var": torch.tensor(15, dtype=torch.int64)}).save(tmp_path / "int64")
    target = torch.tensor(-1, dtype=torch.int64)
    Saver({"var": target}).restore(path)
    assert target.item() == 15


def test_the_same_path_again_is_read_again(tmp_path: Path) -> None:
    """CASES 19: after an overwrite the new values are read, not cached ones."""
    path = str(tmp_path / "cache")
    var0, var1 = torch.tensor(0.0), torch.tensor(1.1)
    first, second = Saver({"var0": var0}), Saver({"var1": var1})
    first.save(path)
    first.restore(path)
    second.save(path)
    var1.zero_()
    second.restore(path)
    assert var1.item() == torch.tensor(1.1).item()


def test_nothing_to_save(tmp_path: Path) -> None:
    """CASES 20: saving nothing writes only a meta graph; restoring nothing accepts any path."""
    saver = Saver({}, allow_empty=True)
    assert saver.save(tmp_path / "empty") is None
    assert names_in(tmp_path) == ["empty.meta"]
    saver.restore(tmp_path / "empty")
    saver.restore(tmp_path / "not there")
    saver.restore(None)
    assert saver.as_saver_def() is None and saver.to_proto() is None and saver.last_checkpoints == []
    assert saver.save_async(tmp_path / "empty", write_meta_graph=False).result() is None
    with pytest.raises(ValueError, match="No variables to save"):
        Saver({})
    with pytest.raises(ValueError, match="No variables to save"):
        Saver(torch.nn.ReLU())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_tensor(tmp_path: Path) -> None:
    """CASES 4, 21, 22: 123.45 from one CUDA tensor into another, through host memory, one file per device."""
    path = Saver({"v": torch.tensor(123.45, device="cuda")}, sharded=True).save(tmp_path / "gpu")
    target = torch.tensor(0.0, device="cuda")
    Saver({"v": target}).restore(path)
    assert target.item() == torch.tensor(123.45).item() and target.device.type == "cuda"


def test_without_a_var_list_registered_variables_are_saved(tmp_path: Path) -> None:
    """CASES 23: without a var_list, the registered tensors and a table are saved."""
    one, twos, table = torch.tensor(1.0), torch.full((3,), 2.0), Table("table", {"k1": 3.0})
    with tfckpt.Collections().as_default():
        tfckpt.add_to_collection(GraphKeys.GLOBAL_VARIABLES, Variable(one, "one"))
        tfckpt.add_to_collection(GraphKeys.GLOBAL_VARIABLES, Variable(twos, "twos"))
        tfckpt.add_to_collection(GraphKeys.SAVEABLE_OBJECTS, table.saveable)
        path = Saver().save(tmp_path / "all")
        one.zero_()
        twos.zero_()
        table.entries.clear()
        Saver().restore(path)
    assert (one.item(), twos.tolist(), table.values) == (1.0, [2.0] * 3, {"k1": 3.0})
    assert sorted(tfckpt.load_file(tmp_path / "all")) == ["one", "table-keys", "table-values", "twos"]


# Building.


def test_a_deferred_build_takes_no_var_list() -> None:
    """CASES 24: defer_build with a var_list raises ValueError."""
    for var_list in ([Variable(torch.zeros(1), "v")], {"v": torch.zeros(1)}, torch.nn.Linear(1, 1)):
        with pytest.raises(ValueError, match="defer_build"):
            Saver(var_list, defer_build=True)
    empty: tuple[object, ...] = (None, [], {}, ())
    for nothing in empty:
        Saver(nothing, defer_build=True)


def test_methods_before_a_deferred_build_raise(tmp_path: Path) -> None:
    """CASES 25: each method raises a RuntimeError that names `build()`."""
    saver = Saver(defer_build=True)
    calls: list[Callable[[], object]] = [
        lambda: saver.save(tmp_path / "x"),
        lambda: saver.save_async(tmp_path / "x"),
        lambda: saver.restore(tmp_path / "x"),
        lambda: saver.set_last_checkpoints([]),
        lambda: saver.pin(tmp_path / "x"),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match=r"`build\(\)` should be called"):
            call()
    assert saver.last_checkpoints == [] and saver.as_saver_def() is None
    assert names_in(tmp_path) == []


def test_a_deferred_build_sees_variables_registered_meanwhile(tmp_path: Path) -> None:
    """CASES 26: variables registered before `build()` are saved; a second `build()` changes nothing."""
    twos = torch.full((3,), 2.0)
    with tfckpt.Collections().as_default():
        saver = Saver(defer_build=True)
        tfckpt.add_to_collection(GraphKeys.GLOBAL_VARIABLES, Variable(twos, "twos"))
        saver.build()
        tfckpt.add_to_collection(GraphKeys.GLOBAL_VARIABLES, Variable(torch.zeros(1), "late"))
        saver.build()
        path = saver.save(tmp_path / "deferred")
    twos.zero_()
    saver.restore(path)
    assert twos.tolist() == [2.0] * 3
    assert list(tfckpt.load_file(tmp_path / "deferred")) == ["twos"]
    given = Saver(defer_build=True)
    given.build({"x": torch.ones(1)})
    assert list(tfckpt.load_file(str(given.save(tmp_path / "given")))) == ["x"]


# Arguments that the constructor rejects.


def test_one_name_for_a_variable_and_a_slice() -> None:
    """CASES 14: v2 is a slice of a tensor called v1, and v0 or v1 has the same name."""
    v0, v1 = Variable(torch.zeros(1), "v0"), Variable(torch.zeros(1), "v1")
    for order in itertools.permutations([v0, v1, a_slice("v1", "v2")]):
        with pytest.raises(ValueError, match="same name: v1"):
            Saver(list(order))


def test_keys_of_the_dictionary_replace_names_of_slices(tmp_path: Path) -> None:
    """CASES 15: a slice under another key is stored as a slice under that key."""
    v1, v2 = Variable(torch.ones(1), "v1"), a_slice("v1", "v2")
    path = Saver({"vee1": v1, "other": [v2]}).save(tmp_path / "errors")
    with tfckpt.load_checkpoint(str(path)) as reader:
        assert (reader.shape("other"), reader.keys()) == ((2,), ["other", "vee1"])


def test_two_partitioned_variables_of_one_name() -> None:
    """CASES 16: two partitioned variables of one name are rejected."""
    parts = [PartitionedVariable("p_v1", [a_slice("p_v1", f"p_v1/part_{i}", i) for i in range(2)]) for _ in range(2)]
    with pytest.raises(ValueError, match="same name: p_v1"):
        Saver(parts)


def test_one_object_under_two_names(tmp_path: Path) -> None:
    """CASES 17: the error begins with the later key; distinct objects under distinct names are accepted."""
    v0, v1, saveable = torch.tensor(10.0), torch.tensor(20.0), Table("v2", {"k": 1.0}).saveable
    with pytest.raises(ValueError, match=r"^The same saveable will be restored with two names: v0too"):
        Saver({"v0": v0, "v0too": v0})
    with pytest.raises(ValueError, match=r"^The same saveable will be restored with two names: v2"):
        Saver({"v2": saveable, "v2too": saveable})
    assert Saver({"v0": v0, "v1": v1, "v2": saveable}).save(tmp_path / "same") == str(tmp_path / "same")


@pytest.mark.parametrize("saver_def", ["text", MetaGraphDef(), 5], ids=["str", "MetaGraphDef", "int"])
def test_a_saver_def_of_another_type(saver_def: Any) -> None:
    """An object that is not a SaverDef raises ValueError."""
    with pytest.raises(ValueError, match=r"saver_def must be a saver_pb2\.SaverDef"):
        Saver({"v": torch.zeros(1)}, saver_def=saver_def)


@pytest.mark.parametrize("missing", ["save_tensor_name", "restore_op_name"])
def test_a_saver_def_that_lacks_a_name(missing: str) -> None:
    """A SaverDef without a required name raises ValueError with its name."""
    saver_def = Saver({"v": torch.zeros(1)}).as_saver_def()
    assert saver_def is not None
    saver_def.ClearField(missing)
    with pytest.raises(ValueError, match=f"saver_def must specify the {missing}"):
        Saver({"v": torch.zeros(1)}, saver_def=saver_def)


def test_an_unknown_version() -> None:
    """An unknown version raises the RuntimeError that TensorFlow intends to raise."""
    with pytest.raises(RuntimeError, match="Unexpected write_version: 3"):
        Saver({"v": torch.zeros(1)}, write_version=3)
