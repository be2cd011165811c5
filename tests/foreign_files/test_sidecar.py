"""Reading sidecars: invalid content is refused, with the path of the sidecar and the fix."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt.conversion.convert import convert
from torch_tfckpt.foreign_files import sidecar
from torch_tfckpt.foreign_files.formats import open_source
from torch_tfckpt.foreign_files.values import ElementType
from torch_tfckpt.values import WritableValue

Content = dict[str, Any]


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    """A .safetensors file whose sidecar has one entry of each kind."""
    tensors: dict[str, WritableValue] = {
        "n": torch.tensor([1, 2], dtype=torch.int8),
        "words": np.array([b"x"], dtype=object),
        "z": torch.tensor([1j], dtype=torch.complex128),
    }
    tfckpt.save_file(tensors, tmp_path / "t")
    convert(tmp_path / "t", tmp_path / "m.safetensors")
    change(tmp_path, lambda content: content["types"].update(n="DT_QINT8"))
    return tmp_path / "m.safetensors"


def change(directory: Path, edit: Callable[[Content], object]) -> None:
    path = directory / "m.safetensors.tfckpt.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_what_it_holds_is_there_again(converted: Path) -> None:
    source = open_source(str(converted))
    assert sorted(source.names()) == ["n", "words", "z"] and source.info("n").type.name == "qint8"
    values = source.read(["z", "words"])
    assert list(values) == ["z", "words"] and np.asarray(values["words"]).tolist() == [b"x"]
    assert source.files() == [str(converted), f"{converted}.tfckpt.json"]
    source.close()


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda c: c.update(format="x"), "not a sidecar"),
        (lambda c: c.update(version=2), "version 2; this program reads version 1"),
        (lambda c: c.update(bytes=1), "belongs to files with 1 bytes in total; the files next to it have"),
        (lambda c: c.pop("types"), 'no object "types"'),
        (lambda c: c.update(tensors=[]), 'no object "tensors"'),
        (lambda c: c["types"].update(n="DT_NONSENSE"), 'unknown element type "DT_NONSENSE"'),
        (lambda c: c["types"].update(n="torch.load"), 'unknown element type "torch.load"'),
        (lambda c: c["types"].update(n=["x"]), "unknown element type"),
        (lambda c: c["types"].update(n="DT_FLOAT"), 'tensor "n" is int8, not float32'),
        (lambda c: c["types"].update(n="DT_STRING"), 'tensor "n" is int8, not string'),
        (lambda c: c["types"].update(absent="DT_QINT8"), 'no tensor "absent"'),
        (lambda c: c["tensors"].update(n=c["tensors"]["z"]), 'tensor "n" is also in'),
        (lambda c: c["tensors"].update(z=3), 'tensor "z": not an object'),
        (lambda c: c["tensors"]["z"].update(shape=[-1]), 'tensor "z": invalid shape'),
        (lambda c: c["tensors"]["z"].update(shape=[2**40]), 'tensor "z": complex128 of shape .* bytes, but has 16'),
        (lambda c: c["tensors"]["z"].update(shape="1"), 'tensor "z": invalid shape'),
        (lambda c: c["tensors"]["z"].update(base64="*"), 'tensor "z": invalid base64'),
        (lambda c: c["tensors"]["z"].update(base64=None), 'tensor "z": not a base64 string'),
        (lambda c: c["tensors"]["words"].update(shape=[2**50]), 'tensor "words": shape .* needs'),
        (lambda c: c["tensors"]["words"].update(base64="eA=="), 'tensor "words": shape .* needs a list of 1 element'),
        (lambda c: c["tensors"]["words"].update(base64=["é"]), 'tensor "words": invalid base64'),
    ],
)
def test_nonsense_is_refused(converted: Path, edit: Callable[[Content], object], text: str) -> None:
    change(converted.parent, edit)
    with pytest.raises(tfckpt.CheckpointError, match=text) as refused:
        open_source(str(converted))
    assert "m.safetensors.tfckpt.json" in str(refused.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b'{"a": ' + b"9" * 5000 + b"}", b"[]"])
def test_no_json_at_all(converted: Path, text: bytes) -> None:
    Path(f"{converted}.tfckpt.json").write_bytes(text)
    with pytest.raises(tfckpt.DataLossError, match="Delete it to read the file without it, or convert again"):
        open_source(str(converted))


def test_too_much_for_a_sidecar_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sidecar that would not be read back is not written."""
    monkeypatch.setattr("torch_tfckpt.foreign_files.sidecar.MAX_BYTES", 1000)
    tfckpt.save_file({"z": torch.zeros(100, dtype=torch.complex128), "ok": torch.zeros(1)}, tmp_path / "t")
    with pytest.raises(tfckpt.UnimplementedError, match=r'The largest is "z", complex128 \[100\]'):
        convert(tmp_path / "t", tmp_path / "m.safetensors")
    assert not (tmp_path / "m.safetensors").exists()
    convert(tmp_path / "t", tmp_path / "m.pt")


def test_too_large_a_file_is_not_read(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidecar, "MAX_BYTES", 10)
    with pytest.raises(tfckpt.DataLossError, match="bytes are too many for a sidecar, which has at most 10"):
        open_source(str(converted))


def test_codes_of_types() -> None:
    """Every dtype code can be read again, unknown numbers included."""
    for dtype in (*map(tfckpt.DataType, range(1, 34)), tfckpt.DataType(77), tfckpt.DataType(103)):
        kind = ElementType.of_tensorflow(dtype)
        assert ElementType.from_code(kind.code) == kind
    for plain in (torch.float32, torch.bfloat16, torch.bits8):
        assert ElementType.from_code(ElementType.of_torch(plain).code) == ElementType.of_torch(plain)
