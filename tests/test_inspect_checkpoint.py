"""The output of inspect_checkpoint, compared with TensorFlow's own."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorflow_process import RawTensor, TensorFlowProcess

from torch_tfckpt import Saver, SaverDef, SaveSpec
from torch_tfckpt.inspect_checkpoint import main, print_tensors_in_checkpoint_file
from torch_tfckpt.saveables.save_spec import SaveableObject

STRINGS = np.array([b"a", b"hello"], dtype=object)
TENSORS: dict[str, Any] = {
    "scalar": np.float32(3.0),
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3) / 3,
    "scope/w": np.array([[1e-10, 1.0]]),
    "half": np.array([0.1], np.float16),
    "strings": STRINGS,
    "text": np.array(b"x\xff", dtype=object),
    "long": np.arange(2000),
    "wide": np.arange(60, dtype=np.int16),
    "bool": np.array([True, False]),
    "complex": np.array([1 + 2j], np.complex64),
    "empty": np.zeros((0, 3), np.float32),
    "bfloat": torch.tensor([1, 2.5, 0.1, 1e30, float("nan"), -float("inf"), -0.0, 12345.0]).to(torch.bfloat16),
    "bfloat scalar": torch.tensor(1.5).to(torch.bfloat16),
    "bfloat long": torch.arange(2000).to(torch.bfloat16).reshape(2, 1000),
    "float8": torch.tensor([[1, 2.5], [0.1, 448]]).to(torch.float8_e4m3fn),
    "e5m2": torch.tensor([3e-5, 57344.0]).to(torch.float8_e5m2),
    "int4": RawTensor("int4", (3,), bytes([1, 2, 255])),
    "uint4": RawTensor("uint4", (3,), bytes([1, 12, 15])),
    "qint8": RawTensor("qint8", (3,), bytes([1, 2, 255])),
}
ARGUMENTS = [
    {},
    {"all_tensors": True},
    {"all_tensor_names": True},
    {"all_tensors": True, "all_tensor_names": True, "tensor_name": "matrix"},
    {"tensor_name": "matrix"},
    {"tensor_name": "text"},
    {"tensor_name": "none such"},
    {"count_exclude_pattern": "^s|o.g$"},
    {"all_tensor_names": True, "count_exclude_pattern": "nothing like it"},
    {"count_exclude_pattern": "("},
]


def theirs_of(tensorflow: TensorFlowProcess, path: str, arguments: dict[str, Any]) -> str:
    """Return TensorFlow's output."""
    text: str = tensorflow.call("inspect_checkpoint", path, **{"tensor_name": None, "all_tensors": False, **arguments})
    return text


def printed(capsys: pytest.CaptureFixture[str], path: str, **arguments: Any) -> str:
    capsys.readouterr()
    print_tensors_in_checkpoint_file(path, **arguments)
    out, err = capsys.readouterr()
    assert err == ""
    return out


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory, tensorflow: TensorFlowProcess) -> str:
    """Return a checkpoint by TensorFlow that also has a variant, which numpy cannot represent."""
    path = str(tmp_path_factory.mktemp("inspect") / "m")
    variant = tensorflow.call("tensor_list", [np.float32(1)])
    # Pass raw bytes: passing a torch tensor would make TensorFlow's process import torch.
    raw = {name: RawTensor.of(value) for name, value in TENSORS.items()}
    tensorflow.call("save_v2", path, {**raw, "variant": variant})
    return path


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_the_output_equals_tensorflows(
    everything: str, tensorflow: TensorFlowProcess, capsys: pytest.CaptureFixture[str], arguments: dict[str, Any]
) -> None:
    """CASES 197: all dtypes; a scalar counts as one element, and so does each string."""
    assert printed(capsys, everything, **arguments) == theirs_of(tensorflow, everything, arguments)


def test_the_form_of_the_lines(everything: str, capsys: pytest.CaptureFixture[str]) -> None:
    """CASES 197: the form of the lines, without TensorFlow."""
    names = printed(capsys, everything, all_tensor_names=True).splitlines()
    assert "tensor: matrix (float32) [2, 3]" in names and names[:-1] == sorted(names[:-1])
    assert re.fullmatch(r"# Total number of params: \d+", names[-1])
    plain = printed(capsys, everything).splitlines()
    assert "matrix (DT_FLOAT) [2,3]" in plain and plain[-2] == ""
    assert printed(capsys, everything, tensor_name="x") == "Tensor x not found in checkpoint\n"
    assert "<not convertible to a numpy dtype>" in printed(capsys, everything, all_tensors=True)


def test_our_own_checkpoints(tmp_path: Path, tensorflow: TensorFlowProcess, capsys: pytest.CaptureFixture[str]) -> None:
    """CASES 197: output for both versions equals TensorFlow's, which lists version 1 in any order."""
    for version in (SaverDef.V2, SaverDef.V1):
        specs = [SaveSpec(STRINGS, "", "s"), SaveSpec(torch.rand(3, 4), "", "w"), SaveSpec(torch.tensor(5), "", "n")]
        path = str(Saver([SaveableObject(None, specs, "x")], write_version=version).save(tmp_path / str(version)))
        chosen: list[dict[str, Any]] = [{}, {"all_tensors": True}, {"tensor_name": "w"}]
        for arguments in chosen:
            theirs = theirs_of(tensorflow, path, arguments)
            ours = printed(capsys, path, **arguments)
            assert sorted(ours.splitlines()) == sorted(theirs.splitlines())
            assert version == SaverDef.V1 or ours == theirs


def test_partitioned_tensors(tmp_path: Path, tensorflow: TensorFlowProcess, capsys: pytest.CaptureFixture[str]) -> None:
    """Names, values and totals equal TensorFlow's; the plain listing has one line per whole tensor."""
    path = str(tmp_path / "m")
    parts = [("w", np.zeros((2, 3), np.float32)), ("w", np.ones((2, 3), np.float32)), ("z", np.float32(1))]
    tensorflow.call("save_v2", path, parts, ["4 3 0,2:-", "4 3 2,2:-", ""])
    theirs = tensorflow.call("inspect_checkpoint", path, None, True)
    assert printed(capsys, path, all_tensors=True) == theirs
    assert printed(capsys, path) == "w (DT_FLOAT) [4,3], 2 slices\nz (DT_FLOAT) []\n\n# Total number of params: 13\n"


def test_errors_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Errors of a missing and of a damaged checkpoint are printed, not raised."""
    text = printed(capsys, str(tmp_path / "none"))
    assert text.startswith(
        f"Unsuccessful TensorSliceReader constructor: Failed to find any matching files for {tmp_path}/none"
    )
    path = str(Saver({"v": torch.ones(2)}).save(tmp_path / "m"))
    data = tmp_path / "m.data-00000-of-00001"
    data.write_bytes(bytes(8))
    text = printed(capsys, path, all_tensors=True)
    assert text.startswith("tensor: v (float32) [2]\n") and "Checksum does not match" in text


def test_control_characters_are_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Control characters in names are escaped."""
    path = str(Saver({"\x1b[2Jname": torch.ones(2)}).save(tmp_path / "m"))
    chosen: list[dict[str, Any]] = [{}, {"all_tensors": True}, {"tensor_name": "\x1b[2J"}]
    for arguments in chosen:
        assert "\x1b" not in printed(capsys, path, **arguments)


def test_the_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m` accepts flags with and without a value; without a file it prints its usage, status 1."""
    path = str(Saver({"v": torch.ones(2)}).save(tmp_path / "m"))
    done = subprocess.run(
        [sys.executable, "-m", "torch_tfckpt.inspect_checkpoint", "--file_name", path, "--all_tensors"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "tensor: v (float32) [2]\n[1. 1.]\n# Total number of params: 2\n"
    assert main([f"--file_name={path}", "--all_tensor_names=true", "--all_tensors=false"]) == 0
    assert capsys.readouterr().out == "tensor: v (float32) [2]\n# Total number of params: 2\n"
    assert main([]) == 1
    assert capsys.readouterr().out.startswith("Usage: inspect_checkpoint --file_name=checkpoint_file_name ")
