"""convert(): every value, string and type of the source is in the target or its sidecar, or nothing is written."""

import errno
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open

import torch_tfckpt as tfckpt
from torch_tfckpt.bundle.writer import BundleWriter
from torch_tfckpt.conversion.convert import convert
from torch_tfckpt.conversion.diff import diff
from torch_tfckpt.foreign_files.stored_zip import StoredZip
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_slice import TensorSlice
from torch_tfckpt.format.variant_tensor import encode_variants
from torch_tfckpt.storage.local import LOCAL, LocalOutput
from torch_tfckpt.storage.protocol import Buffer

TARGETS = ("model.safetensors", "model.pt", "model.npz")
# One of each kind: two shards and 250 tensors, version 1, SavedModel, object graph, every dtype, variants, partitions.
GOLDEN = (
    "digits-transformer",
    "digits-v1/checkpoint-288",
    "digits-module",
    "tensorflow/object/object",
    "tensorflow/every-dtype/every-dtype",
    "tensorflow/v1-every-dtype/v1-every-dtype",
    "tensorflow/variant/variant",
    "tensorflow/partitioned/partitioned",
    "tensorflow/strings/strings",
    "tensorflow/shapes/shapes",
    "tensorflow/many-blocks/many-blocks",
)


def listing(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def mixed(tmp_path: Path) -> str:
    """A checkpoint with strings, TensorFlow's own types, variants, slices and NaNs, which a conversion could lose."""
    prefix = str(tmp_path / "source" / "mixed")
    stored, checksum = encode_variants([b"\x0a\x05state"])
    with BundleWriter(LOCAL, prefix) as writer:
        writer.add("bias", torch.tensor([1.5, float("nan"), -0.0]))
        writer.add("codes", torch.tensor([[-1, 2]], dtype=torch.int8), dtype=DataType.DT_QINT8)
        writer.add("half", torch.tensor([0.1], dtype=torch.bfloat16))
        writer.add_stored("iterator", DataType.DT_VARIANT, (), stored, checksum)
        writer.add("small", torch.tensor([3], dtype=torch.int8), dtype=DataType.DT_INT4)
        writer.add("spectrum", torch.tensor([1 + 2j], dtype=torch.complex128))
        rows = torch.arange(20.0).view(4, 5)
        writer.add_slice("table", (4, 5), TensorSlice.parse("0,1:-"), rows[:1])
        writer.add_slice("table", (4, 5), TensorSlice.parse("1,3:-"), rows[1:])
        writer.add("words", np.array([[b"a\0"], [b"\xff"]], dtype=object))
    return prefix


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", GOLDEN)
def test_converted_is_identical(golden: Path, tmp_path: Path, name: str, target: str) -> None:
    """diff finds no difference between a real checkpoint and the converted one."""
    report = convert(golden / name, tmp_path / target)
    found = diff(golden / name, tmp_path / target)
    assert found.identical, str(found)
    assert set(found.equal) == {item.new_name for item in report.converted} | {
        item.new_name for item in report.sidecar if item.whole
    }


def test_transformer_reads_in_safetensors_itself(golden: Path, tmp_path: Path) -> None:
    """The safetensors library, not our own reader, loads all 250 tensors with the values of the checkpoint."""
    source = golden / "digits-transformer"
    convert(source, tmp_path / "m.safetensors")
    loaded = safetensors.torch.load_file(tmp_path / "m.safetensors")
    expected = tfckpt.load_file(source)
    assert len(loaded) == 250 and loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], torch.as_tensor(expected[name])) for name in loaded)
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}, "transformers refuses a file without it"


@pytest.mark.parametrize("target", TARGETS)
def test_there_and_back(mixed: str, tmp_path: Path, target: str) -> None:
    """TF -> other -> TF gives the same tensors, strings, variants and TensorFlow types."""
    convert(mixed, tmp_path / target)
    convert(tmp_path / target, tmp_path / "back", to="tf")
    found = diff(mixed, tmp_path / "back")
    assert found.identical, str(found)
    with tfckpt.load_checkpoint(tmp_path / "back") as back, tfckpt.load_checkpoint(mixed) as source:
        assert {name: back.dtype(name) for name in back} == {name: source.dtype(name) for name in source}
        assert back.dtype("codes") == DataType.DT_QINT8 and back.dtype("small") == DataType.DT_INT4
        assert np.asarray(back.get_tensor("words")).tolist() == [[b"a\0"], [b"\xff"]]
        assert back.get_stored_bytes("iterator") == source.get_stored_bytes("iterator")
        assert back.slices("table") == (), "partitioned tensors become whole"
        assert not back.check().damage


@pytest.mark.parametrize("name", ["variant", "shapes", "strings"])  # those that TensorFlow was given in sorted order
def test_there_and_back_gives_the_bytes_of_tensorflow(golden: Path, tmp_path: Path, name: str) -> None:
    """Index and data of the checkpoint made from the .safetensors equal those that TensorFlow wrote."""
    source = str(golden / "tensorflow" / name / name)
    convert(source, tmp_path / "m.safetensors")
    convert(tmp_path / "m.safetensors", tmp_path / "back", to="tf")
    for ending in (".index", ".data-00000-of-00001"):
        assert (tmp_path / f"back{ending}").read_bytes() == Path(source + ending).read_bytes()


def test_report_names_what_the_sidecar_keeps(mixed: str, tmp_path: Path) -> None:
    """Nothing is dropped silently: every tensor is converted, or listed with a reason."""
    report = convert(mixed, tmp_path / "m.safetensors")
    assert {item.name for item in report.converted} == {"bias", "codes", "half", "small", "table"}
    assert {item.name: item.whole for item in report.sidecar} == {
        "iterator": True,
        "spectrum": True,
        "words": True,
        "codes": False,
        "small": False,
    }
    text = str(report)
    assert '"words" string [2,1]: safetensors has no type string' in text
    assert '"iterator" variant []: safetensors has no type variant' in text
    assert '"codes" qint8 [1,2]: only its type; the values are in the target' in text
    assert "converted 5 tensors, 97 B, to safetensors:" in text
    assert listing(tmp_path) == ["m.safetensors", "m.safetensors.tfckpt.json", "source"]


def test_pt_and_npz_are_read_by_torch_and_numpy(mixed: str, tmp_path: Path) -> None:
    """torch.load with weights_only and mmap, and numpy.load without pickle, read what we write."""
    convert(mixed, tmp_path / "m.pt")
    loaded = torch.load(tmp_path / "m.pt", weights_only=True, mmap=True)
    assert loaded["half"].dtype == torch.bfloat16 and loaded["spectrum"].tolist() == [1 + 2j]
    assert loaded["table"].tolist() == torch.arange(20.0).view(4, 5).tolist()
    convert(mixed, tmp_path / "m.npz")
    with np.load(tmp_path / "m.npz", allow_pickle=False) as arrays:
        assert arrays["table"].tolist() == torch.arange(20.0).view(4, 5).tolist()
        assert arrays["half"].dtype == np.uint16, "numpy does not know bfloat16, and gets its bits"


def test_sharded_output_reads_like_hugging_face(golden: Path, tmp_path: Path) -> None:
    """Shards of at most the given size, an index that lists them, and all tensors in one of them."""
    source = golden / "digits-transformer"
    report = convert(source, tmp_path / "out", to="safetensors", max_shard_size="130KB")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    names = sorted(set(index["weight_map"].values()))
    assert names == [f"model-{n:05d}-of-{len(names):05d}.safetensors" for n in range(1, len(names) + 1)]
    assert len(names) == 3 and [Path(path).name for path in report.files] == [*names, "model.safetensors.index.json"]
    merged: dict[str, torch.Tensor] = {}
    for name in names:
        shard = safetensors.torch.load_file(tmp_path / "out" / name)
        assert sum(tensor.nbytes for tensor in shard.values()) <= 130_000
        assert {index["weight_map"][tensor] for tensor in shard} == {name}
        merged |= shard
    assert index["metadata"] == {"total_size": sum(tensor.nbytes for tensor in merged.values())}
    assert diff(source, tmp_path / "out").identical
    assert diff(source, tmp_path / "out" / "model.safetensors.index.json").identical


def test_sharding_again_leaves_no_earlier_file(golden: Path, tmp_path: Path) -> None:
    """A loader would load a single file or index that was left over."""
    source = golden / "digits-transformer"
    (tmp_path / "model-notes.safetensors").write_bytes(b"not ours")
    convert(source, tmp_path, to="safetensors")
    convert(source, tmp_path, to="safetensors", max_shard_size="130KB")
    assert "model.safetensors" not in listing(tmp_path)
    convert(source, tmp_path, to="safetensors", max_shard_size="200KB")
    assert [name for name in listing(tmp_path) if "of-00003" in name] == []
    convert(source, tmp_path, to="safetensors")
    assert listing(tmp_path) == ["model-notes.safetensors", "model.safetensors"]


def test_a_sidecar_that_is_no_longer_needed_is_removed(mixed: str, tmp_path: Path) -> None:
    """Otherwise the next reader would add the tensors of another checkpoint."""
    convert(mixed, tmp_path / "m.safetensors")
    convert(mixed, tmp_path / "m.safetensors", include=["^bias$"])
    assert listing(tmp_path) == ["m.safetensors", "source"]


def test_selection_and_names(mixed: str, tmp_path: Path) -> None:
    """Regular expressions are searched for; renames are applied one after the other."""
    report = convert(
        mixed,
        tmp_path / "m.safetensors",
        include=["a"],
        exclude=["^spec", "^iter"],
        rename=[("^ta", "TA"), ("(?i)(ta)b", r"\1_b")],
    )
    assert sorted((item.name, item.new_name) for item in report.converted) == [
        ("bias", "bias"),
        ("half", "half"),
        ("small", "small"),
        ("table", "TA_ble"),
    ]
    assert report.filtered == ["codes", "iterator", "spectrum", "words"]
    assert "omitted by include and exclude: 4 tensors" in str(report)


def test_names_that_collide_are_refused(mixed: str, tmp_path: Path) -> None:
    with pytest.raises(tfckpt.InvalidArgumentError, match='"bias" and "codes" would both be called "x"'):
        convert(mixed, tmp_path / "m.safetensors", rename=[("^(bias|codes)$", "x")])
    assert listing(tmp_path) == ["source"]


@pytest.mark.parametrize("target", [*TARGETS, "model.ckpt"])
def test_dtype_converts_floating_point_only(mixed: str, tmp_path: Path, target: str) -> None:
    convert(mixed, tmp_path / target, to="tf" if target == "model.ckpt" else None, dtype="bf16")
    found = diff(mixed, tmp_path / target, atol=0.01, ignore_dtype=True)
    assert found.identical, str(found)
    assert diff(mixed, tmp_path / target).dtypes == {
        "bias": ("float32", "bfloat16"),
        "table": ("float32", "bfloat16"),
    }


@pytest.mark.parametrize("target", [*TARGETS, "deep/model.safetensors"])
def test_dry_run_writes_nothing(mixed: str, tmp_path: Path, target: str) -> None:
    """The report is that of the real run."""
    planned = convert(mixed, tmp_path / target, dry_run=True)
    assert listing(tmp_path) == ["source"]
    done = convert(mixed, tmp_path / target)
    assert (planned.converted, planned.sidecar, planned.files) == (done.converted, done.sidecar, done.files)
    assert '"bias" float32 [3]' in str(planned) and "would convert" in str(planned)


def test_converting_onto_itself(mixed: str, tmp_path: Path) -> None:
    """The source stays readable while the target takes its name."""
    convert(mixed, tmp_path / "m.safetensors")
    convert(tmp_path / "m.safetensors", tmp_path / "m.safetensors", exclude=["^half"])
    assert diff(mixed, tmp_path / "m.safetensors").only_in_a == ["half"]
    convert(mixed, mixed, to="tf", exclude=["^half"])
    assert diff(mixed, tmp_path / "m.safetensors").identical


def test_replaced_file_keeps_its_mode(mixed: str, tmp_path: Path) -> None:
    target = tmp_path / "m.safetensors"
    target.touch()
    target.chmod(0o640)
    convert(mixed, target)
    assert target.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("target", [*TARGETS, "model.ckpt"])
def test_paths_that_are_not_utf8(mixed: str, tmp_path: Path, target: str) -> None:
    """Also paths with characters that other programs treat as patterns."""
    directory = os.fsdecode(os.fsencode(tmp_path) + b"/d\xff[0]*")
    to = "tf" if target == "model.ckpt" else None
    report = convert(mixed, f"{directory}/{target}", to=to)
    assert diff(mixed, f"{directory}/{target}").identical
    assert "d\\xff[0]*" in str(report)


def test_names_that_targets_cannot_store(tmp_path: Path) -> None:
    """Names that are not UTF-8, contain a null character or are reserved by the format go to the sidecar."""
    names = ("a\udcff", "b\0c", "__metadata__", "é/ü", "x.npy", "x")
    tfckpt.save_file({name: torch.tensor([n]) for n, name in enumerate(names)}, tmp_path / "t")
    for target in TARGETS:
        convert(tmp_path / "t", tmp_path / target)
        assert diff(tmp_path / "t", tmp_path / target).identical
    kept = convert(tmp_path / "t", tmp_path / "model.safetensors").sidecar
    assert {item.name for item in kept} == {"a\udcff", "__metadata__"}


# Failures: nothing is left of the new target, and an existing one is unchanged.


def assert_nothing_happened(mixed: str, tmp_path: Path, target: str, attempt: Callable[[], object]) -> None:
    to = "tf" if target == "model.ckpt" else None
    convert(mixed, tmp_path / target, to=to, include=["bias"])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises((OSError, tfckpt.CheckpointError, KeyboardInterrupt)):
        attempt()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("target", "fail_at"),
    [
        *[("model.safetensors", number) for number in range(1, 6)],  # header, tensors, three writes of the sidecar
        *[("model.ckpt", number) for number in range(1, 3)],  # tensors, index
        *[("model.pt", number) for number in range(1, 10)],  # members of the archive, then writes of the sidecar
        *[("model.npz", number) for number in range(1, 9)],
    ],
)
def test_failed_write_leaves_nothing(
    mixed: str, tmp_path: Path, target: str, fail_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk at any write, the sidecar's included."""
    calls = 0
    write, add = LocalOutput.write, StoredZip.add

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls == fail_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def failing_write(self: LocalOutput, offset: int, buffers: Sequence[Buffer]) -> None:
        count()
        write(self, offset, buffers)

    def failing_add(self: StoredZip, name: str, pieces: Iterable[Buffer]) -> None:
        count()
        add(self, name, pieces)

    def attempt() -> None:
        with monkeypatch.context() as patched:
            patched.setattr(LocalOutput, "write", failing_write)
            patched.setattr(StoredZip, "add", failing_add)
            convert(mixed, tmp_path / target, to="tf" if target == "model.ckpt" else None)

    assert_nothing_happened(mixed, tmp_path, target, attempt)
    assert calls >= fail_at


@pytest.mark.parametrize("target", ["model.safetensors", "model.ckpt", "model.pt", "model.npz"])
def test_interrupted_leaves_nothing(mixed: str, tmp_path: Path, target: str) -> None:
    def interrupted(done: int, total: int) -> None:
        raise KeyboardInterrupt

    def attempt() -> None:
        convert(mixed, tmp_path / target, to="tf" if target == "model.ckpt" else None, progress=interrupted)

    assert_nothing_happened(mixed, tmp_path, target, attempt)


@pytest.mark.parametrize("target", ["model.safetensors", "model.ckpt", "model.pt", "model.npz"])
def test_damage_in_the_source_leaves_nothing(mixed: str, tmp_path: Path, target: str) -> None:
    """The error names the tensor."""
    data = Path(f"{mixed}.data-00000-of-00001")

    def attempt() -> None:
        content = bytearray(data.read_bytes())
        content[0] ^= 1
        data.write_bytes(content)
        convert(mixed, tmp_path / target, to="tf" if target == "model.ckpt" else None)

    assert_nothing_happened(mixed, tmp_path, target, attempt)
    with pytest.raises(tfckpt.DataLossError, match='tensor "bias": Checksum does not match'):
        convert(mixed, tmp_path / "other.safetensors")
    convert(mixed, tmp_path / "other.safetensors", exclude=["^bias$"])


def test_directories_created_for_a_failed_target_are_removed(mixed: str, tmp_path: Path) -> None:
    def interrupted(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(mixed, tmp_path / "new", to="safetensors", progress=interrupted)
    assert listing(tmp_path) == ["source"]


def test_progress_ends_at_the_total(mixed: str, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    convert(mixed, tmp_path / "m.safetensors", progress=lambda done, total: told.append((done, total)))
    assert told == sorted(told) and told[-1][0] == told[-1][1] > 100


@pytest.mark.parametrize(
    ("target", "options", "text"),
    [
        ("model", {}, "the name does not determine the format"),
        ("m.pt", {"to": "npz"}, "has the extension of pt, but npz was requested"),
        ("m.pt", {"max_shard_size": "5GB"}, "max_shard_size is for safetensors"),
        ("m.safetensors", {"max_shard_size": "5 apples"}, 'size "5 apples": expected a number of KB, MB, GB or TB'),
        ("m.safetensors", {"dtype": "int8"}, 'dtype "int8": not a floating-point type'),
        ("m.safetensors", {"dtype": torch.int8}, "only floating-point dtypes are supported"),
        ("m.safetensors", {"include": ["("]}, r'pattern "\("'),
        ("m.safetensors", {"rename": [("bias", r"\9")]}, "replacement"),
        ("source/", {"to": "tf"}, "is a directory; name a file in it, such as model.ckpt"),
        ("m.xyz", {"to": "zip"}, 'format "zip" is unknown'),
    ],
)
def test_wrong_arguments_are_refused_before_anything(
    mixed: str, tmp_path: Path, target: str, options: dict[str, object], text: str
) -> None:
    with pytest.raises(tfckpt.InvalidArgumentError, match=text):
        convert(mixed, f"{tmp_path}/{target}", **options)  # type: ignore[arg-type]
    assert listing(tmp_path) == ["source"]


@pytest.mark.parametrize(
    "selection",
    [
        {"include": "bias"},
        {"exclude": "bias"},
        {"rename": ("ab", "cd")},
        {"exclude": ["."]},
        {"include": ["^bias$"], "exclude": ["^bi"]},
    ],
)
def test_a_selection_that_cannot_be_intended_is_refused(mixed: str, tmp_path: Path, selection: dict[str, Any]) -> None:
    """A string instead of a list would be a pattern for each of its letters; a selection of nothing is a typo."""
    with pytest.raises(tfckpt.InvalidArgumentError, match="include and exclude"):
        convert(mixed, tmp_path / "m.pt", **selection)
    assert listing(tmp_path) == ["source"]


@pytest.mark.parametrize("name", ["m.safetensors", "m.pt", "m.npz"])
def test_only_files_are_replaced(mixed: str, tmp_path: Path, name: str) -> None:
    """A named pipe or device is not replaced by a file, and that is reported before any work is done."""
    os.mkfifo(tmp_path / name)
    reached: list[int] = []
    with pytest.raises(tfckpt.FailedPreconditionError, match="not a regular file"):
        convert(mixed, tmp_path / name, progress=lambda done, total: reached.append(done))
    assert (tmp_path / name).is_fifo() and listing(tmp_path) == [name, "source"] and not reached


def test_a_shard_size_of_zero_is_refused(mixed: str, tmp_path: Path) -> None:
    with pytest.raises(tfckpt.InvalidArgumentError, match="max_shard_size=0"):
        convert(mixed, tmp_path / "m.safetensors", max_shard_size=0)
