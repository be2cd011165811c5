"""Choosing the format of a path: by content to read a file, by name to write one."""

from pathlib import Path

import pytest
import torch
from other_files import OTHER_FILES

import torch_tfckpt as tfckpt
from torch_tfckpt.conversion.convert import convert
from torch_tfckpt.foreign_files.formats import format_of

FORMATS = {
    "model.safetensors": "safetensors",
    "model.pt": "pt",
    "arrays.npz": "npz",
    "login.ckpt": "tf",
    "files.zip": "tf",
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("called", ["model.pt", "model.npz", "model.safetensors", "model.ckpt", "model"])
def test_contents_decide(name: str, called: str, tmp_path: Path) -> None:
    """Whatever the file is called; a zip archive may be a damaged .pt or .npz."""
    OTHER_FILES[name][1](tmp_path / called)
    ending = called.rpartition(".")[2]
    expected = FORMATS[name]
    if name == "files.zip" and ending in ("pt", "npz"):
        expected = ending
    if name == "arrays.npz" and ending == "pt":
        expected = "pt"  # as it always was: torch then says what is wrong
    assert format_of(str(tmp_path / called)) == expected


def test_a_damaged_file_is_what_its_name_says(tmp_path: Path) -> None:
    """So that the reader of that format says what is damaged."""
    for name, expected in (
        ("a.pt", "pt"),
        ("a.bin", "pt"),
        ("a.npz", "npz"),
        ("a.safetensors", "safetensors"),
        ("a", "tf"),
    ):
        (tmp_path / name).write_bytes(bytes(range(1, 200)) * 3)
        assert format_of(str(tmp_path / name)) == expected


@pytest.mark.parametrize(
    ("target", "options", "text"),
    [
        ("m.h5", {}, "has the extension of an HDF5 file.* which cannot be written"),
        ("m.keras", {"to": "tf"}, "has the extension of a Keras model"),
        ("m.onnx", {"to": "safetensors"}, "has the extension of an ONNX model"),
        ("m.safetensors", {"to": "tf"}, "has the extension of safetensors, but tf was requested. Choose another name"),
    ],
)
def test_targets_of_other_kinds(tmp_path: Path, target: str, options: dict[str, str], text: str) -> None:
    """A conversion writes no file under a name that promises another kind."""
    tfckpt.save_file({"a": torch.ones(1)}, tmp_path / "m")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(tfckpt.InvalidArgumentError, match=text):
        convert(tmp_path / "m", tmp_path / target, **options)  # type: ignore[arg-type]
    assert sorted(tmp_path.iterdir()) == before
