"""CASES 7: TensorFlow's Saver restores our files, ours restores TensorFlow's, and each continues after the other."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from generated import Named
from saver_variables import (
    V1,
    V2,
    Described,
    Ours,
    expected,
    held,
    one_of_each_type,
    ours,
    parts_of,
    theirs,
    var_list,
)
from tensorflow_process import RawTensor, TensorFlowProcess

import torch_tfckpt as tfckpt
from torch_tfckpt._proto.checkpoint_state_pb2 import CheckpointState
from torch_tfckpt.storage.local import LocalStorage


class Way(NamedTuple):
    """One way to save."""

    version: int
    sharded: bool
    devices: Sequence[str]

    @property
    def options(self) -> dict[str, Any]:
        return {"write_version": self.version, "sharded": self.sharded}


THREE, FOUR = ("/cpu:0", "/cpu:1", "/cpu:2"), ("/cpu:0", "/cpu:1", "/cpu:2", "/cpu:3")
WAYS = {
    "unsharded": Way(V2, False, THREE),
    "3 devices": Way(V2, True, THREE),
    "4 devices": Way(V2, True, FOUR),
    "V1": Way(V1, False, THREE),
    "V1, 3 devices": Way(V1, True, THREE),
}
EVERY_WAY = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())


def save(path: Path, variables: Sequence[Described], **options: Any) -> str:
    """Save with our Saver."""
    saved = tfckpt.Saver(var_list(variables, ours(variables)), **options).save(path)
    assert saved is not None
    return saved


def restored(path: str, variables: Sequence[Described], **options: Any) -> list[Ours]:
    """Restore zero-initialized variables like these with our Saver."""
    blank = [each.blank for each in variables]
    made = ours(blank)
    assert held(made) != expected(variables)
    tfckpt.Saver(var_list(blank, made), **options).restore(path)
    return made


def restored_by_tensorflow(
    tensorflow: TensorFlowProcess, path: str, variables: Sequence[Described], **options: Any
) -> list[RawTensor]:
    """Restore zero-initialized variables like these with TensorFlow's Saver."""
    found: list[RawTensor] = tensorflow.call(
        "saver_restores", path, theirs([each.blank for each in variables]), options
    )
    return found


def assert_tensorflow_has(
    tensorflow: TensorFlowProcess, path: str, variables: Sequence[Described], **options: Any
) -> None:
    """Assert that TensorFlow's Saver restores, and tf.train.load_checkpoint reads, exactly the described variables."""
    assert restored_by_tensorflow(tensorflow, path, variables, **options) == [each.raw for each in variables]
    read = tensorflow.call("restore_all", path)
    assert set(read) == {each.name for each in variables}
    assert {each.name: read[each.name] for each in variables if not each.spec} == {
        each.name: each.raw for each in variables if not each.spec
    }


def numbers(first: float, device: str = "") -> list[Described]:
    """Two variables whose values are computed from a number."""
    one, other = torch.full((3,), first), torch.arange(4) + int(first)
    return [
        Described("a", Named(one, RawTensor.of(one)), device or "/cpu:0"),
        Described("b", Named(other, RawTensor.of(other)), device or "/cpu:1"),
    ]


# Values.


@EVERY_WAY
def test_tensorflow_restores_ours(tensorflow: TensorFlowProcess, tmp_path: Path, way: Way) -> None:
    """Variables of every TensorFlow type, strings, scalars, empty ones and parts: TensorFlow's Saver, sharded or not,
    restores them from our file bit for bit; load_checkpoint reads them.
    """
    variables = one_of_each_type(way.version, way.devices)
    path = save(tmp_path / "m", variables, **way.options)
    assert_tensorflow_has(tensorflow, path, variables, **way.options)
    assert_tensorflow_has(tensorflow, path, variables, sharded=not way.sharded)


@EVERY_WAY
def test_ours_restores_tensorflows(tensorflow: TensorFlowProcess, tmp_path: Path, way: Way) -> None:
    """The same from TensorFlow's file, by sharded and unsharded savers, in one read and sequentially."""
    variables = one_of_each_type(way.version, way.devices)
    [(path, _, _)] = tensorflow.call("saver_saves", str(tmp_path / "m"), theirs(variables), way.options)
    for options in ({}, {"sharded": True}, {"restore_sequentially": True}):
        assert held(restored(path, variables, **options)) == expected(variables)
    with tfckpt.load_checkpoint(path) as reader:
        assert set(reader.keys()) == {each.name for each in variables}


def test_quint16_in_a_reference_variable(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """The one type that only reference variables accept, in both directions."""
    value = torch.tensor([0, 1, 65535], dtype=torch.uint16)
    named = Named(value, RawTensor("quint16", (3,), RawTensor.of(value).data), tfckpt.DataType.DT_QUINT16)
    variables = [Described("q", named)]
    path = save(tmp_path / "ours", variables)
    assert_tensorflow_has(tensorflow, path, variables, use_resource=False)
    [(path, _, _)] = tensorflow.call(
        "saver_saves", str(tmp_path / "theirs"), theirs(variables), {"use_resource": False}
    )
    assert held(restored(path, variables)) == expected(variables)


@pytest.mark.parametrize("saved_in", [0, 1, 2, 3])
@pytest.mark.parametrize("version", [V1, V2], ids=["V1", "V2"])
def test_partitioned(tensorflow: TensorFlowProcess, tmp_path: Path, version: int, saved_in: int) -> None:
    """CASES 42-44: saved whole (0) or in some parts by either side; restored by the other whole and in 1, 2 and 3
    parts, including parts on different devices.
    """
    whole = torch.arange(30, dtype=torch.float64).reshape(10, 3)
    raw = RawTensor.of(whole)
    as_whole = Described("w", Named(whole, raw))
    # The partition of fixed_size_partitioner; test_saver_bytes.py compares it with TensorFlow.
    cuts = {0: [""], 1: ["10 3 0,10:0,3"], 2: ["10 3 0,5:0,3", "10 3 5,5:0,3"]}
    cuts[3] = ["10 3 0,4:0,3", "10 3 4,3:0,3", "10 3 7,3:0,3"]
    sets = {n: parts_of("w", whole, specs, THREE) if n else [as_whole] for n, specs in cuts.items()}

    mine = save(tmp_path / "ours", sets[saved_in], write_version=version, sharded=saved_in > 1)
    assert restored_by_tensorflow(tensorflow, mine, [as_whole]) == [raw]
    for parts in (1, 2, 3):
        assert tensorflow.call("restore_partitioned", mine, "w", as_whole.blank.raw, parts) == raw

    options = {"write_version": version, "sharded": saved_in > 1}
    [(path, _, _)] = tensorflow.call("saver_saves", str(tmp_path / "theirs"), theirs(sets[saved_in]), options)
    for variables in sets.values():
        assert held(restored(path, variables)) == expected(variables)
        assert held(restored(path, variables, sharded=True)) == expected(variables)


# Saves under special conditions.


@EVERY_WAY
def test_after_overwriting(tensorflow: TensorFlowProcess, tmp_path: Path, way: Way) -> None:
    """Saved three times with one name: TensorFlow restores the last values, and so do we if it overwrote ours."""
    last = numbers(3)
    for first in (1, 2, 3):
        path = save(tmp_path / "m", numbers(first), **way.options)
    assert_tensorflow_has(tensorflow, path, last, **way.options)
    [(path, _, _)] = tensorflow.call("saver_saves", str(tmp_path / "m"), theirs(numbers(4)), way.options)
    assert held(restored(path, last)) == expected(numbers(4))
    path = save(tmp_path / "m", last, **way.options)
    assert_tensorflow_has(tensorflow, path, last, **way.options)


class _NoLinks(LocalStorage):
    """Like FAT, without hard links: a checkpoint that replaces another keeps the names it was published under."""

    def link(self, source: str, target: str) -> None:
        raise PermissionError(1, "Operation not permitted", source)


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "sharded"])
def test_a_crash_while_replacing_a_checkpoint(tensorflow: TensorFlowProcess, tmp_path: Path, sharded: bool) -> None:
    """The state after a crash in the middle of replacing, with index and data under names of more shards, is a valid
    checkpoint for TensorFlow.
    """
    for first in (1, 2):
        path = save(tmp_path / "m", numbers(first), sharded=sharded, storage=_NoLinks())
    ordinary = {"m.data-00000-of-00002", "m.data-00001-of-00002"} if sharded else {"m.data-00000-of-00001"}
    names = {file.name for file in tmp_path.glob("m.data-*")}
    assert len(names) == len(ordinary) and not names & ordinary
    assert_tensorflow_has(tensorflow, path, numbers(2))
    assert tensorflow.call("checkpoint_management", "latest_checkpoint", str(tmp_path)) == path


@EVERY_WAY
def test_after_save_async(tensorflow: TensorFlowProcess, tmp_path: Path, way: Way) -> None:
    """Values change as soon as save_async returns: TensorFlow restores the previous ones, and finds the path."""
    variables = one_of_each_type(way.version, way.devices)
    now = [each._replace(named=Named(_copy(each.named.value), each.raw, each.named.dtype)) for each in variables]
    with tfckpt.Saver(var_list(now, ours(now)), **way.options) as saver:
        handle = saver.save_async(tmp_path / "m", global_step=9)
        for each in now:
            value = each.named.value
            if isinstance(value, torch.Tensor):
                value.copy_(torch.zeros_like(value))
        path = handle.result()
    assert path is not None
    assert_tensorflow_has(tensorflow, path, variables, **way.options)
    assert tensorflow.call("checkpoint_management", "latest_checkpoint", str(tmp_path)) == path


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else np.array(value)


# State files.


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
@EVERY_WAY
def test_state_files(tensorflow: TensorFlowProcess, tmp_path: Path, way: Way, relative: bool) -> None:
    """latest_checkpoint and get_checkpoint_state return the same on both sides, for our file and for theirs; with
    relative paths even after the directory was moved.
    """
    variables, options = numbers(1), {**way.options, "save_relative_paths": relative, "max_to_keep": 2}
    by_ours, by_theirs = tmp_path / "ours", tmp_path / "theirs"
    by_theirs.mkdir()
    by_ours.mkdir()
    saver = tfckpt.Saver(var_list(variables, ours(variables)), **options)
    for step in (1, 2, 3):
        saver.save(by_ours / "m", global_step=step)
    steps = [{"global_step": step} for step in (1, 2, 3)]
    tensorflow.call("saver_saves", str(by_theirs / "m"), theirs(variables), options, steps)
    for directory in (by_ours, by_theirs):
        assert_same_state(tensorflow, directory)
        if relative:
            moved = directory.rename(directory.with_name(f"{directory.name} moved"))
            assert_same_state(tensorflow, moved)
            latest = tfckpt.latest_checkpoint(moved)
            assert latest is not None
            assert held(restored(latest, variables)) == expected(variables)
            assert_tensorflow_has(tensorflow, latest, variables)


def assert_same_state(tensorflow: TensorFlowProcess, directory: Path) -> None:
    """Assert that both sides read the directory's state file as steps 2 and 3, the latter the latest."""
    latest = tfckpt.latest_checkpoint(directory)
    assert latest is not None and os.path.basename(latest).startswith("m-3")
    assert tensorflow.call("checkpoint_management", "latest_checkpoint", str(directory)) == latest
    state = tfckpt.get_checkpoint_state(directory)
    assert state is not None and len(state.all_model_checkpoint_paths) == 2
    theirs_read = tensorflow.call("checkpoint_management", "get_checkpoint_state", str(directory))
    assert CheckpointState.FromString(theirs_read) == state


# Retention.


def checkpoints(directory: Path) -> set[str]:
    """Names of files without the parts that differ between checkpoints."""
    names = {path.name for path in directory.iterdir() if path.name != "checkpoint"}
    return {name.partition(".")[0].removesuffix("-00000-of-00002").removesuffix("-00001-of-00002") for name in names}


@EVERY_WAY
def test_tensorflow_continues(tensorflow: TensorFlowProcess, tmp_path: Path, way: Way) -> None:
    """Ours saved steps 1 to 3, keeping three; TensorFlow recovers them, saves 4 and 5, and deletes 1 and 2 with all
    their files. Then ours continues.
    """
    options = {**way.options, "max_to_keep": 3}
    variables = numbers(1)
    saver = tfckpt.Saver(var_list(variables, ours(variables)), **options)
    for step in (1, 2, 3):
        saver.save(tmp_path / "m", global_step=step)
    kept = saver.last_checkpoints
    four, five = tensorflow.call(
        "saver_saves", str(tmp_path / "m"), theirs(variables), options, [{"global_step": 4}, {"global_step": 5}], True
    )
    assert four[1] == [*kept[1:], four[0]] and five[1] == [kept[2], four[0], five[0]]
    assert checkpoints(tmp_path) == {"m-3", "m-4", "m-5"}
    assert tfckpt.latest_checkpoint(tmp_path) == five[0]
    assert held(restored(five[0], variables)) == expected(variables)

    again = tfckpt.Saver(var_list(variables, ours(variables)), **options, recover=True)
    assert again.save(tmp_path / "m", global_step=6) == again.last_checkpoints[-1]
    assert again.last_checkpoints[:2] == [four[0], five[0]]
    assert checkpoints(tmp_path) == {"m-4", "m-5", "m-6"}
    assert_same_latest(tensorflow, tmp_path)


@EVERY_WAY
def test_ours_continues(tensorflow: TensorFlowProcess, tmp_path: Path, way: Way) -> None:
    """The other direction, with recover_last_checkpoints: TensorFlow's checkpoints are deleted with all their files,
    including `.meta`, when they expire.
    """
    options = {**way.options, "max_to_keep": 3}
    variables = numbers(1)
    steps = [{"global_step": step} for step in (1, 2, 3)]
    *_, (_, kept, _) = tensorflow.call("saver_saves", str(tmp_path / "m"), theirs(variables), options, steps)
    assert checkpoints(tmp_path) == {"m-1", "m-2", "m-3"}
    state = tfckpt.get_checkpoint_state(tmp_path)
    assert state is not None and list(state.all_model_checkpoint_paths) == kept
    saver = tfckpt.Saver(var_list(variables, ours(variables)), **options)
    saver.recover_last_checkpoints(list(state.all_model_checkpoint_paths))
    assert saver.last_checkpoints == kept
    for step in (4, 5):
        saver.save(tmp_path / "m", global_step=step)
    assert checkpoints(tmp_path) == {"m-3", "m-4", "m-5"}
    assert saver.last_checkpoints[0] == kept[2]
    assert_same_latest(tensorflow, tmp_path)
    assert_tensorflow_has(tensorflow, saver.last_checkpoints[-1], variables)


def assert_same_latest(tensorflow: TensorFlowProcess, directory: Path) -> None:
    latest = tfckpt.latest_checkpoint(directory)
    assert latest is not None
    assert tensorflow.call("checkpoint_management", "latest_checkpoint", str(directory)) == latest
