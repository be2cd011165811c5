"""Reading and writing .pt files: torch reads ours, we read torch's, and nothing in a file is ever executed."""

import contextlib
import os
import zipfile
from pathlib import Path

import pytest
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt.conversion.convert import convert
from torch_tfckpt.conversion.diff import diff
from torch_tfckpt.dtypes import STORED_AS
from torch_tfckpt.foreign_files.formats import open_source
from torch_tfckpt.foreign_files.pt import PtSink, PtSource
from torch_tfckpt.foreign_files.values import ElementType, TensorInfo
from torch_tfckpt.storage.publication import Publication

# All that a state dict can have; complex32, quantized types and those of less than a byte are not among them.
DTYPES = (*STORED_AS, *([torch.float8_e8m0fnu] if hasattr(torch, "float8_e8m0fnu") else []))  # torch 2.7


def tensor_of(dtype: torch.dtype) -> torch.Tensor:
    raw = torch.arange(6 * dtype.itemsize, dtype=torch.uint8)
    return (raw % 2).view(torch.bool).view(2, 3) if dtype == torch.bool else raw.view(dtype).view(2, 3)


def write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    sink = PtSink(str(path))
    sink.plan(
        {name: TensorInfo(ElementType.of_torch(t.dtype), tuple(t.shape), t.nbytes) for name, t in tensors.items()}
    )
    with Publication() as publication:
        sink.open(publication)
        sink.write(tensors)
        sink.finish()


@pytest.mark.parametrize("mapped", [False, True])
def test_torch_reads_every_dtype_we_write(tmp_path: Path, mapped: bool) -> None:
    """Dtypes without a storage class of their own, too."""
    tensors = {str(dtype): tensor_of(dtype) for dtype in DTYPES}
    write(tmp_path / "m.pt", tensors)
    loaded = torch.load(tmp_path / "m.pt", weights_only=True, mmap=mapped)
    assert list(loaded) == list(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and loaded[name].stride() == tensor.stride()
        assert torch.equal(loaded[name].view(torch.uint8), tensor.view(torch.uint8))


def test_shapes_and_names(tmp_path: Path) -> None:
    tensors = {"": torch.tensor(1.0), "e": torch.zeros(3, 0), "ü\0\udcff": torch.zeros(1, 2, 1), "a.b": torch.ones(1)}
    write(tmp_path / "m.pt", tensors)
    loaded = torch.load(tmp_path / "m.pt", weights_only=True)
    assert {name: tuple(tensor.shape) for name, tensor in loaded.items()} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }


def test_archive_is_sound_and_aligned(tmp_path: Path) -> None:
    """Any zip tool accepts it, checksums included, and the bytes of a tensor begin at a multiple of 64."""
    write(tmp_path / "m.pt", {"x": torch.ones(5), "y": torch.arange(7)})
    content = (tmp_path / "m.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "m.pt") as archive:
        assert archive.testzip() is None
        assert archive.read("archive/data/1") == bytes(torch.arange(7).view(torch.uint8).tolist())
    assert content.index(torch.ones(5).numpy().tobytes()) % 64 == 0


def test_same_tensors_give_the_same_file(tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt"):
        write(tmp_path / name, {"x": torch.ones(5)})
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_nested_state_is_flattened(tmp_path: Path) -> None:
    """Keys of dictionaries and lists are joined with dots; values that are not tensors are listed as skipped."""
    weight = torch.randn(3, 4)
    torch.save(
        {
            "model": {"fc.weight": weight, "fc.weight_t": weight.t()},
            "optimizer": {"state": {0: {"step": torch.tensor(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
            "epoch": 7,
            "sparse": torch.eye(2).to_sparse(),
            "empty": {},
        },
        tmp_path / "m.pt",
    )
    report = convert(tmp_path / "m.pt", tmp_path / "m.safetensors")
    assert [item.name for item in report.converted] == [
        "optimizer.state.0.step",
        "model.fc.weight",
        "model.fc.weight_t",
    ]
    assert report.skipped == {
        "optimizer.param_groups.0.lr": "float 0.1",
        "optimizer.param_groups.0.params.0": "int 0",
        "epoch": "int 7",
        "sparse": "sparse_coo tensor",
        "empty": "dict {}",
    }
    assert '"epoch": int 7' in str(report)
    source = open_source(str(tmp_path / "m.safetensors"))
    value = source.read(["model.fc.weight_t"])["model.fc.weight_t"]
    source.close()
    assert isinstance(value, torch.Tensor) and torch.equal(value, weight.t())
    assert diff(tmp_path / "m.pt", tmp_path / "m.safetensors").identical


def test_values_that_are_read_may_be_changed(tmp_path: Path) -> None:
    """They are copies: neither the file nor a second reading sees the change."""
    torch.save({"x": torch.zeros(3)}, tmp_path / "m.pt")
    source = PtSource(str(tmp_path / "m.pt"))
    for _ in range(2):
        value = source.read(["x"])["x"]
        assert isinstance(value, torch.Tensor) and value.tolist() == [0, 0, 0]
        value += 1
    source.close()


class Hostile:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("hostile-was-here",)


def test_nothing_in_a_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"x": torch.zeros(1), "y": Hostile()}, "m.pt")
    with pytest.raises(tfckpt.UnimplementedError, match=r"m\.pt: contains Python objects other than tensors.*mkdir"):
        convert("m.pt", "m.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.pt"]


def test_old_and_foreign_files(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1)}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(tfckpt.UnimplementedError, match=r"written by torch before 1\.6"):
        open_source(str(tmp_path / "old.bin"))
    (tmp_path / "not.pt").write_bytes(b"hello, world")
    with pytest.raises(tfckpt.CheckpointError, match=r"not\.pt"):
        open_source(str(tmp_path / "not.pt"))
    torch.save({"x": torch.zeros(1).expand(10**9)}, tmp_path / "expanded.pt")
    with pytest.raises(tfckpt.UnimplementedError, match='tensor "x" has 4000000000 bytes, but the file has only'):
        convert(tmp_path / "expanded.pt", tmp_path / "m.npz")
    torch.save({"a": {"b": torch.zeros(1)}, "a.b": torch.zeros(1)}, tmp_path / "twice.pt")
    with pytest.raises(tfckpt.InvalidArgumentError, match=r'both called "a\.b"'):
        open_source(str(tmp_path / "twice.pt"))


def test_lightning_checkpoint_is_found_by_content(tmp_path: Path) -> None:
    """Lightning calls its .pt files .ckpt, like TensorFlow's checkpoints."""
    torch.save({"state_dict": {"w": torch.ones(2)}, "epoch": 3}, tmp_path / "last.ckpt")
    assert [item.name for item in convert(tmp_path / "last.ckpt", tmp_path / "m.npz").converted] == ["state_dict.w"]


def test_every_flipped_byte_is_an_error_of_ours_or_harmless(tmp_path: Path) -> None:
    """torch looks at no checksum of a .pt file, so a value may change; nothing else goes wrong."""
    torch.save({"x": torch.arange(4), "m": {"b": torch.ones(2, 2, dtype=torch.bfloat16)}}, tmp_path / "m.pt")
    whole = (tmp_path / "m.pt").read_bytes()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        (tmp_path / "d.pt").write_bytes(damaged)
        with (
            contextlib.suppress(tfckpt.CheckpointError),
            contextlib.closing(open_source(str(tmp_path / "d.pt"))) as source,
        ):
            source.read(source.names())


def test_a_file_replaced_while_it_is_read(tmp_path: Path) -> None:
    """The file that was opened is read to its end."""
    torch.save({"x": torch.zeros(3), "y": torch.zeros(3)}, tmp_path / "m.pt")
    source = PtSource(str(tmp_path / "m.pt"))
    torch.save({"x": torch.ones(3)}, tmp_path / "new.pt")
    (tmp_path / "new.pt").replace(tmp_path / "m.pt")
    values = source.read(["x", "y"])
    assert all(torch.equal(torch.as_tensor(value), torch.zeros(3)) for value in values.values())
    source.close()


def test_truncated_at_every_place(tmp_path: Path) -> None:
    """Each truncation raises a CheckpointError; no value is returned."""
    torch.save({"x": torch.arange(4)}, tmp_path / "m.pt")
    whole = (tmp_path / "m.pt").read_bytes()
    for size in range(0, len(whole), 13):
        (tmp_path / "cut.pt").write_bytes(whole[:size])
        with pytest.raises(tfckpt.CheckpointError):
            open_source(str(tmp_path / "cut.pt"))
