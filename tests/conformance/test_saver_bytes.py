"""The files of our Savers equal TensorFlow's, byte for byte, and so does the state file."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from saver_variables import V1, V2, Described, generated, one_of_each_type, ours, parts_of, theirs, var_list
from tensorflow_process import Call, RawTensor, TensorFlowProcess

import torch_tfckpt as tfckpt

SETS = 30
BARE: dict[str, Any] = {"write_meta_graph": False, "write_state": False}


def save_ours(path: Path, variables: list[Described], **options: Any) -> str:
    """Save with our Saver; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    saved = tfckpt.Saver(var_list(variables, ours(variables)), **options).save(path, **BARE)
    assert saved is not None
    return saved


def call_theirs(path: Path, variables: list[Described], **options: Any) -> Call:
    """Return the call that does the same in TensorFlow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return Call("saver_saves", (str(path), theirs(variables), options, [BARE]))


def assert_same_files(directory: Path, expected: dict[str, bytes]) -> None:
    """Assert that names and bytes are equal; show the first differing byte with its context."""
    found = {path.name: path.read_bytes() for path in directory.iterdir()}
    assert sorted(found) == sorted(expected)
    for name, data in found.items():
        other = expected[name]
        if data != other:
            at = next((i for i, (x, y) in enumerate(zip(data, other, strict=False)) if x != y), -1)
            around = slice(max(0, at - 24), at + 24)
            pytest.fail(
                f"{name}: {len(data)} bytes, TensorFlow's has {len(other)}; the first difference is at {at}:\n"
                f"  ours   {data[around].hex(' ')}\n  theirs {other[around].hex(' ')}"
            )


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "sharded"])
@pytest.mark.parametrize("version", [V1, V2], ids=["V1", "V2"])
def test_generated_variables_give_the_same_files(
    tensorflow: TensorFlowProcess, tmp_path: Path, version: int, sharded: bool
) -> None:
    """Any variables, on one to four devices or none, some in parts on several devices: our files equal those of
    tf.train.Saver byte for byte, and so does the returned path.
    """
    options = {"write_version": version, "sharded": sharded}
    sets = [generated(seed, version) for seed in range(SETS)]
    results = tensorflow.batch(
        [call_theirs(tmp_path / f"theirs-{n}" / "m", variables, **options) for n, variables in enumerate(sets)]
    )
    for number, (variables, result) in enumerate(zip(sets, results, strict=True)):
        assert not isinstance(result, Exception), (number, result)
        [(returned, _, files)] = result
        saved = save_ours(tmp_path / f"ours-{number}" / "m", variables, **options)
        assert os.path.basename(saved) == os.path.basename(returned)
        assert_same_files(tmp_path / f"ours-{number}", files)


def test_the_generated_variables_cover_the_claim() -> None:
    """The sets have all numbers of devices, parts, strings and unusual types."""
    sets = [generated(seed, V2) for seed in range(SETS)]
    assert {len({each.device for each in variables}) for variables in sets} >= {1, 2, 3, 4}
    assert any({"", "/cpu:0"} < {each.device for each in variables} for variables in sets)
    every = [each for variables in sets for each in variables]
    assert len({each.raw.dtype for each in every}) > 20
    across = [v for v in sets if len({each.device for each in v if each.spec and each.name == v[-1].name}) > 1]
    assert across, "no tensor has parts on several devices"


@pytest.mark.parametrize(
    "devices", [("/cpu:0", "/cpu:1"), ("/cpu:0", "/cpu:1", "/cpu:2"), ("/cpu:3", "/cpu:1", "", "/cpu:0")]
)
@pytest.mark.parametrize("use_resource", [True, False], ids=["resource variables", "reference variables"])
def test_every_type_on_several_devices(
    tensorflow: TensorFlowProcess, tmp_path: Path, devices: tuple[str, ...], use_resource: bool
) -> None:
    """Shards are sorted by device name, with no device first; for both kinds of variables. Both builders write these
    files: the one that plans all shards together, and the one that merges them as TensorFlow does.
    """
    variables = one_of_each_type(V2, devices)
    if not use_resource:  # fewer types can be assigned to
        variables = [each for each in variables if "int4" not in each.name and "int2" not in each.name]
        variables = [each for each in variables if "float8" not in each.name]
    call = call_theirs(tmp_path / "theirs" / "m", variables, sharded=True, use_resource=use_resource)
    [result] = tensorflow.batch([call])
    assert not isinstance(result, Exception), result
    [(_, _, files)] = result
    assert len(files) == 1 + len(devices)
    for builder in (tfckpt.BulkSaverBuilder(), tfckpt.BaseSaverBuilder()):
        directory = tmp_path / type(builder).__name__
        save_ours(directory / "m", variables, sharded=True, builder=builder)
        assert_same_files(directory, files)


def test_partitioned_by_tensorflow(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """CASES 42: a variable that get_variable split into 1, 2 and 3 parts, and our Variables with the same slices."""
    whole = torch.arange(30.0).reshape(10, 3)
    for parts in (1, 2, 3):
        there, here = tmp_path / f"theirs-{parts}", tmp_path / f"ours-{parts}"
        there.mkdir()
        specs = tensorflow.call("save_partitioned", str(there / "m"), "w", RawTensor.of(whole), parts)
        save_ours(here / "m", parts_of("w", whole, specs))
        files = {path.name: path.read_bytes() for path in there.iterdir() if path.suffix not in (".meta", "")}
        assert len(files) == 2
        assert_same_files(here, files)


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "sharded"])
@pytest.mark.parametrize("version", [V1, V2], ids=["V1", "V2"])
@pytest.mark.parametrize("relative", [False, True], ids=["as given", "relative paths"])
@pytest.mark.parametrize("where", ["absolute", "train/m", "m"])
def test_a_sequence_of_saves_leaves_the_same_files(
    tensorflow: TensorFlowProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: int,
    sharded: bool,
    relative: bool,
    where: str,
) -> None:
    """Compare after each of eight saves with max_to_keep=2, two of them with existing names.

    The returned path, the remembered checkpoints and the file names are equal, and so are the bytes of all files except
    meta graphs, including the state file.
    """
    work = tmp_path / "work"
    path = str(work / "train" / "m") if where == "absolute" else where
    variables = one_of_each_type(version, ("/cpu:0", "/cpu:1"))[:12]
    options: dict[str, Any] = {
        "write_version": version, "sharded": sharded, "max_to_keep": 2, "save_relative_paths": relative,
        "pad_step_number": relative,
    }  # fmt: skip
    saves: list[dict[str, Any]] = [{"global_step": step} for step in (1, 2, 3, 2, 4, 5, 5)]
    saves.append({"global_step": 6, "write_state": False})
    directory = (work / path).parent
    directory.mkdir(parents=True)
    expected = tensorflow.call(
        "saver_saves", path, theirs(variables), {**options, "working_directory": str(work)}, saves
    )
    shutil.rmtree(work)
    directory.mkdir(parents=True)
    monkeypatch.chdir(work)
    saver = tfckpt.Saver(var_list(variables, ours(variables)), **options)
    for number, (arguments, (returned, last, files)) in enumerate(zip(saves, expected, strict=True)):
        assert saver.save(path, **arguments) == returned, number
        assert saver.last_checkpoints == last, number
        assert sorted(p.name for p in directory.iterdir()) == sorted(files), number
        for name, data in files.items():
            if not name.endswith(".meta"):
                assert (directory / name).read_bytes() == data, (number, name)
