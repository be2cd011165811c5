"""The checkpoints in tests/golden, and those of public projects outside the repository: we read the same as TensorFlow.

Each folder has an expected.json with dtype, shape and hash of every value as TensorFlow read it. A hash of null marks a
value that TensorFlow could not read: a damaged or incomplete checkpoint, or a dtype without plain values.
"""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from golden.composed import COMPOSED
from golden.fixed import FIXED
from golden.trained import TRAINED
from golden_files import FOLDERS, GOLDEN, content_of, expected_of
from tensorflow_process import RawTensor, TensorFlowProcess

import torch_tfckpt as tfckpt

# TensorFlow's numbers of its dtypes, from tensorflow/core/framework/types.proto. Repeated here, because the package's
# table is under test.
DTYPES = (
    "invalid", "float32", "float64", "int32", "uint8", "int16", "int8", "string", "complex64", "int64", "bool",
    "qint8", "quint8", "qint32", "bfloat16", "qint16", "quint16", "uint16", "complex128", "float16", "resource",
    "variant", "uint32", "uint64", "float8_e5m2", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e4m3b11fnuz",
    "float8_e5m2fnuz", "int4", "uint4", "int2", "uint2", "float4_e2m1fn",
)  # fmt: skip
NUMBERS = {name: number for number, name in enumerate(DTYPES)}

# torch has no dtype with one element per byte for these; only such a tensor is rejected.
WITHOUT_VALUE = {"float8_e4m3b11fnuz", "float4_e2m1fn", "resource", "variant"}


def path_of(folder: str) -> str:
    return str(GOLDEN / folder / expected_of(folder)["prefix"])


def test_the_list_of_folders_is_not_empty() -> None:
    """A parametrized test without cases would pass."""
    assert len(FOLDERS) > 30
    assert {expected_of(folder)["kind"] for folder in FOLDERS} == {"v1", "v2", "object", "savedmodel", "negative"}


def test_the_folders_are_those_of_the_script() -> None:
    """No folder without a recipe in scripts/golden, no recipe without a folder, no file that is not listed."""
    assert sorted(recipe.name for recipe in (*FIXED, *COMPOSED, *TRAINED)) == FOLDERS
    listed = {f"{folder}/{name}" for folder in FOLDERS for name in (*expected_of(folder)["files"], "expected.json")}
    files = {path.relative_to(GOLDEN).as_posix() for path in GOLDEN.rglob("*") if path.is_file()}
    assert files == listed | {"SOURCES.md"}


def test_every_folder_is_described() -> None:
    """SOURCES.md lists the folders with their purpose, as in expected.json."""
    sources = (GOLDEN / "SOURCES.md").read_text(encoding="utf-8")
    rows = [line for line in sources.splitlines() if line.startswith("| `")]
    assert rows == [f"| `{folder}` | {expected_of(folder)['special']} |" for folder in FOLDERS]


def check_against(path: Path, expected: Mapping[str, Any]) -> None:
    """Compare names, dtypes, shapes and values of a checkpoint with what TensorFlow read."""
    tensors = expected["tensors"]
    with tfckpt.load_checkpoint(path) as reader:
        assert set(reader.keys()) == set(tensors)
        assert {name: int(reader.dtype(name)) for name in tensors} == {
            name: NUMBERS[tensor["dtype"]] for name, tensor in tensors.items()
        }
        assert {name: list(reader.shape(name)) for name in tensors} == {
            name: tensor["shape"] for name, tensor in tensors.items()
        }
        for name, tensor in tensors.items():
            if tensor["dtype"] in WITHOUT_VALUE:
                with pytest.raises(tfckpt.UnimplementedError) as refused:
                    reader.get_tensor(name)
                assert name in str(refused.value)
            elif tensor["sha256"] is None:
                with pytest.raises(tfckpt.CheckpointError) as damaged:
                    reader.get_tensor(name)
                assert expected["prefix"] in str(damaged.value), "the error does not name the file"
            else:
                assert RawTensor.of(reader.get_tensor(name)).sha256 == tensor["sha256"], name


@pytest.mark.parametrize("folder", FOLDERS)
def test_names_dtypes_shapes_and_values(folder: str) -> None:
    """Every name, dtype, shape and value is TensorFlow's; a value that cannot be read raises an error that names it."""
    check_against(GOLDEN / folder / expected_of(folder)["prefix"], expected_of(folder))


def test_checkpoints_of_public_projects(corpus: Path) -> None:
    """The same for files of TensorFlow 0.x to 2.x from other programs, and their object graphs."""
    folders = sorted(path.parent for path in corpus.glob("*/expected.json"))
    assert len(folders) >= 60
    for folder in folders:
        expected = content_of(folder)
        path = folder / expected["prefix"]
        if not expected["tensors"]:
            with pytest.raises(tfckpt.CheckpointError, match=expected["prefix"]):
                tfckpt.load_checkpoint(path)
            continue
        check_against(path, expected)
        if expected["kind"] == "negative":
            with pytest.raises(tfckpt.CheckpointError):
                tfckpt.load_file(path)
        elif expected.get("object_graph"):
            found = tfckpt.object_graph_key_mapping(path)
            mapping = {name: key for name, key in expected["object_graph"].items() if name}
            assert {name: key for name, key in found.items() if name} == mapping, folder.name


@pytest.mark.parametrize("folder", [folder for folder in FOLDERS if expected_of(folder)["kind"] == "negative"])
def test_an_incomplete_checkpoint_is_not_loaded(folder: str) -> None:
    """load_file of a checkpoint with missing data raises an error with its name, and returns nothing."""
    with pytest.raises(tfckpt.CheckpointError) as refused:
        tfckpt.load_file(path_of(folder))
    assert expected_of(folder)["prefix"] in str(refused.value)


def test_git_lfs_pointer_in_place_of_an_index(golden: Path, tmp_path: Path) -> None:
    """An index that git-lfs never fetched is recognised and named in the error."""
    pointer = (golden / "git-lfs-pointer" / "weights.data-00000-of-00001").read_bytes()
    assert pointer.startswith(b"version https://git-lfs.github.com/spec/v1")
    (tmp_path / "weights.index").write_bytes(pointer)
    with pytest.raises(tfckpt.CheckpointError, match=r"weights\.index"):
        tfckpt.load_checkpoint(str(tmp_path / "weights"))


def test_tensorflow_still_writes_these_bytes(tensorflow: TensorFlowProcess) -> None:
    """scripts/make_golden.py writes the folders with fixed values again, byte for byte."""
    written_by = expected_of("tensorflow/scalar")["source"]
    version = tensorflow.call("version")
    if f"TensorFlow {version}," not in written_by:
        pytest.skip(f"written by {written_by}; this is TensorFlow {version}")
    script = GOLDEN.parent.parent / "scripts" / "make_golden.py"
    command = [sys.executable, str(script), "--check", "--fixed"]
    check = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert check.returncode == 0, check.stdout + check.stderr
