"""convert(skip_damaged=True): every good tensor of a damaged source is converted, every other one is reported."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from object_files import children, variable, write_graph

import torch_tfckpt as tfckpt
from torch_tfckpt.bundle.writer import BundleWriter
from torch_tfckpt.conversion.convert import convert
from torch_tfckpt.conversion.convert_report import ConvertReport
from torch_tfckpt.conversion.diff import diff
from torch_tfckpt.errors import DataLossError, NotFoundError
from torch_tfckpt.format.object_graph import OBJECT_GRAPH_KEY, SerializedTensor, TrackableObject
from torch_tfckpt.format.tensor_slice import TensorSlice
from torch_tfckpt.storage.local import LOCAL

TARGETS = ("m.safetensors", "m.pt", "m.npz", "m.ckpt")


def flip(path: str | Path, at: int) -> None:
    content = bytearray(Path(path).read_bytes())
    content[at] ^= 4
    Path(path).write_bytes(content)


def skipping(source: str | Path, target: Path) -> ConvertReport:
    """Convert what is undamaged, after checking that the error without the option mentions it."""
    to = "tf" if target.suffix == ".ckpt" else None
    with pytest.raises((DataLossError, NotFoundError), match="skip_damaged=True converts the tensors"):
        convert(source, target, to=to)
    assert not list(target.parent.glob(f"{target.name}*"))
    report = convert(source, target, to=to, skip_damaged=True)
    assert not report.complete
    return report


def names_in(path: Path) -> list[str]:
    report = convert(path, path.with_name("listing.pt"), dry_run=True)
    return sorted([item.name for item in report.converted] + [item.name for item in report.sidecar])


@pytest.mark.parametrize("target", TARGETS)
def test_a_flipped_byte(tmp_path: Path, target: str) -> None:
    """The report has the tensor and the reason; the others have their values."""
    tensors = {name: torch.arange(20.0) + n for n, name in enumerate("abc")}
    prefix = tfckpt.save_file(tensors, tmp_path / "source" / "t")
    flip(f"{prefix}.data-00000-of-00001", 100)
    report = skipping(prefix, tmp_path / target)
    assert list(report.damaged) == ["b"] and "Checksum does not match" in report.damaged["b"]
    assert 'damaged and omitted: 1 tensor\n  "b": ' in str(report)
    assert names_in(tmp_path / target) == ["a", "c"]
    assert diff(prefix, tmp_path / target, exclude=["b"]).identical


@pytest.mark.parametrize("target", TARGETS)
def test_strings_and_slices(tmp_path: Path, target: str) -> None:
    """A partitioned tensor is left out whole; strings have a checksum of their own."""
    prefix = str(tmp_path / "source" / "t")
    with BundleWriter(LOCAL, prefix) as writer:
        writer.add("good", torch.ones(2))
        writer.add_slice("table", (2, 4), TensorSlice.parse("0,1:-"), torch.zeros(1, 4))
        writer.add_slice("table", (2, 4), TensorSlice.parse("1,1:-"), torch.zeros(1, 4))
        writer.add("words", np.array([b"one", b"two"], dtype=object))
    data = Path(f"{prefix}.data-00000-of-00001")
    flip(data, 8 + 16)
    flip(data, data.stat().st_size - 1)
    assert set(skipping(prefix, tmp_path / target).damaged) == {"table", "words"}
    assert names_in(tmp_path / target) == ["good"]


@pytest.mark.parametrize("target", TARGETS)
def test_a_missing_shard(tmp_path: Path, target: str) -> None:
    prefix = str(tmp_path / "source" / "t")
    with BundleWriter(LOCAL, prefix, num_shards=2) as writer:
        writer.add("a", torch.ones(3), shard=0)
        writer.add("b", torch.ones(3), shard=1)
    Path(f"{prefix}.data-00001-of-00002").unlink()
    report = skipping(prefix, tmp_path / target)
    assert list(report.damaged) == ["b"] and "No such file" in report.damaged["b"]
    assert names_in(tmp_path / target) == ["a"]


@pytest.mark.parametrize("target", TARGETS)
def test_a_damaged_block_of_the_index(tmp_path: Path, target: str) -> None:
    """Tensors that the other blocks list are converted; the report has the damage. `check` agrees."""
    names = [f"{n:05d}{'x' * 200}" for n in range(3000)]
    prefix = tfckpt.save_file({name: torch.tensor([float(n)]) for n, name in enumerate(names)}, tmp_path / "s" / "t")
    index = Path(f"{prefix}.index")
    assert index.stat().st_size > 3 * 262_144 // 4
    flip(index, index.stat().st_size * 2 // 3)
    with pytest.raises(DataLossError, match="skip_damaged=True"):
        convert(prefix, tmp_path / target, to="tf" if target == "m.ckpt" else None)
    report = convert(prefix, tmp_path / target, to="tf" if target == "m.ckpt" else None, skip_damaged=True)
    assert not report.complete and not report.damaged and "block checksum mismatch" in report.damaged_index[0]
    assert "damaged parts of the index; their tensors are lost:" in str(report)
    converted = [item.name for item in report.converted]
    assert 1000 < len(converted) < 3000 and set(converted) < set(names)
    assert names_in(tmp_path / target) == converted
    with tfckpt.load_checkpoint(prefix) as reader:
        found = reader.check()
        assert found.good == converted and not found.ok


@pytest.mark.parametrize("target", TARGETS)
def test_version_1(tmp_path: Path, target: str) -> None:
    """Each block of such a file has a checksum; the tensors in the others are good."""
    tensors = {f"t{n}": torch.full((100_000,), float(n + 1)) for n in range(4)}
    (tmp_path / "source").mkdir()
    saver = tfckpt.Saver(tensors, write_version=tfckpt.SaverDef.V1)
    source = saver.save(tmp_path / "source" / "v1", write_meta_graph=False)
    assert source is not None
    flip(source, Path(source).stat().st_size // 2)
    report = skipping(source, tmp_path / target)
    assert list(report.damaged) == ["t2"] and names_in(tmp_path / target) == ["t0", "t1", "t3"]


@pytest.mark.parametrize("part", ["values", "header"])
def test_npz(tmp_path: Path, part: str) -> None:
    np.savez(tmp_path / "s.npz", a=np.arange(4.0), b=np.arange(100, 104.0))
    with zipfile.ZipFile(tmp_path / "s.npz") as archive:
        start = archive.getinfo("b.npy").header_offset
    content = (tmp_path / "s.npz").read_bytes()
    flip(tmp_path / "s.npz", content.index(np.arange(100, 104.0).tobytes()) if part == "values" else start + 60)
    report = skipping(tmp_path / "s.npz", tmp_path / "m.ckpt")
    assert list(report.damaged) == ["b"] and names_in(tmp_path / "m.ckpt") == ["a"]


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_shards_of_safetensors(tmp_path: Path, damage: str) -> None:
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "m-00001-of-00002.safetensors")
    if damage == "damaged":
        (tmp_path / "m-00002-of-00002.safetensors").write_bytes(b"\xff" * 20)
    index = {"weight_map": {"a": "m-00001-of-00002.safetensors", "b": "m-00002-of-00002.safetensors"}}
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps(index))
    report = skipping(tmp_path, tmp_path / "out" / "m.pt")
    assert list(report.damaged) == ["b"] and [item.name for item in report.converted] == ["a"]


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    prefix = tfckpt.save_file({"a": torch.ones(3)}, tmp_path / "t")
    flip(f"{prefix}.data-00000-of-00001", 0)
    with pytest.raises(DataLossError, match=r'none of 1 tensor can be read\. The first, "a": .*Checksum'):
        convert(prefix, tmp_path / "m.pt", skip_damaged=True)
    assert not (tmp_path / "m.pt").exists()


def test_undamaged_sources_are_complete(tmp_path: Path) -> None:
    """And the progress of both passes adds up."""
    prefix = tfckpt.save_file({"a": torch.ones(3), "b": torch.ones(1)}, tmp_path / "t")
    told: list[tuple[int, int]] = []
    report = convert(prefix, tmp_path / "m.pt", skip_damaged=True, progress=lambda d, t: told.append((d, t)))
    assert report.complete and report.damaged == {} and told[-1] == (32, 32) and told == sorted(told)


def test_a_dry_run_finds_the_damage(tmp_path: Path) -> None:
    prefix = tfckpt.save_file({"a": torch.ones(3), "b": torch.ones(1)}, tmp_path / "t")
    flip(f"{prefix}.data-00000-of-00001", 0)
    assert list(convert(prefix, tmp_path / "m.pt", skip_damaged=True, dry_run=True).damaged) == ["a"]
    assert not (tmp_path / "m.pt").exists()


def test_renamed_patterns_may_match_damaged_tensors_only(tmp_path: Path) -> None:
    prefix = tfckpt.save_file({"a": torch.ones(3), "b": torch.ones(1)}, tmp_path / "t")
    flip(f"{prefix}.data-00000-of-00001", 0)
    report = convert(prefix, tmp_path / "m.pt", skip_damaged=True, rename=[("a", "c")])
    assert list(report.damaged) == ["a"] and [item.new_name for item in report.converted] == ["b"]


def test_the_object_graph_loses_what_is_damaged(tmp_path: Path) -> None:
    """So does the other half of a table; the rest is restored by object, and a program notices what is missing."""
    root = TrackableObject(children(("a", 1), ("b", 2), ("t", 3)))
    table = TrackableObject(attributes=(SerializedTensor("table", "", "t/.ATTRIBUTES/table"),))
    values = {f"{name}/.ATTRIBUTES/VARIABLE_VALUE": torch.full((2,), float(n)) for n, name in enumerate("ab")}
    halves = {f"t/.ATTRIBUTES/table-{half}": torch.full((2,), 7.0) for half in ("keys", "values")}
    nodes = [root, *(variable(name, key) for name, key in zip("ab", values, strict=True)), table]
    prefix = write_graph(tmp_path / "s" / "t", nodes, {**values, **halves})
    with tfckpt.load_checkpoint(prefix) as reader:
        order = sorted(reader.keys())
    assert order[0] == OBJECT_GRAPH_KEY
    data = Path(f"{prefix}.data-00000-of-00001")
    end = data.stat().st_size
    flip(data, end - 32)  # the last four tensors have 8 bytes each: a, b, keys, values
    flip(data, end - 16)
    report = skipping(prefix, tmp_path / "m.ckpt")
    assert set(report.damaged) == {"a/.ATTRIBUTES/VARIABLE_VALUE", *halves}
    assert "another part of the same value" in report.damaged["t/.ATTRIBUTES/table-values"]
    assert report.graph_edited
    restored = torch.zeros(2)
    tfckpt.Checkpoint(b=restored).read(tmp_path / "m.ckpt").assert_consumed()
    assert restored.tolist() == [1.0, 1.0]
    status = tfckpt.Checkpoint(a=torch.zeros(2), b=restored).read(tmp_path / "m.ckpt")
    with pytest.raises(AssertionError):
        status.assert_existing_objects_matched()


def test_the_object_graph_names_what_the_index_has_lost(tmp_path: Path) -> None:
    names = [f"{n:05d}{'x' * 200}" for n in range(3000)]
    keys = {name: f"{name}/.ATTRIBUTES/VARIABLE_VALUE" for name in names}
    nodes = [
        TrackableObject(children(*((name, n + 1) for n, name in enumerate(names)))),
        *(variable(name, keys[name]) for name in names),
    ]
    prefix = write_graph(tmp_path / "s" / "t", nodes, {key: torch.zeros(1) for key in keys.values()})
    index = Path(f"{prefix}.index")
    flip(index, index.stat().st_size // 2)
    report = convert(prefix, tmp_path / "m", to="tf", skip_damaged=True)
    converted = {item.name for item in report.converted} - {OBJECT_GRAPH_KEY}
    assert report.damaged_index and converted and set(report.damaged) == set(keys.values()) - converted
    some = convert(prefix, tmp_path / "n", to="tf", skip_damaged=True, include=["^.....x*/"], exclude=["^00"])
    assert set(some.damaged) == {key for key in report.damaged if not key.startswith("00")}
    with tfckpt.load_checkpoint(tmp_path / "m") as reader:
        assert reader.object_graph is not None
        assert {value.checkpoint_key for value in reader.object_graph.variables()} == converted
