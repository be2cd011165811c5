"""Compare bundles with TensorFlow's: both write the same bytes, and each reads the other's."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from generated import Named, dictionary
from tensorflow_process import Call, RawTensor, TensorFlowProcess

import torch_tfckpt as tfckpt
from torch_tfckpt.bundle.index import key_of
from torch_tfckpt.bundle.merge import merge_bundles
from torch_tfckpt.bundle.reader import BundleReader
from torch_tfckpt.bundle.writer import BundleWriter
from torch_tfckpt.format.tensor_slice import TensorSlice
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.values import Value

DICTIONARIES = 200
BATCH = 25


def same(value: Value, expected: Value) -> bool:
    """Return whether both are tensors with the same shape and elements."""
    return isinstance(value, torch.Tensor) and isinstance(expected, torch.Tensor) and torch.equal(value, expected)


def write_ours(prefix: Path, tensors: Mapping[str, Named], *, alignment: int = 1) -> str:
    with BundleWriter(LOCAL, str(prefix), alignment=alignment) as writer:
        for name in sorted(tensors, key=key_of):
            writer.add(name, tensors[name].value, dtype=tensors[name].dtype)
    return str(prefix)


def assert_same_bytes(ours: Path, theirs: Path) -> None:
    """Assert that the files are equal; show the first differing byte with its context."""
    a, b = ours.read_bytes(), theirs.read_bytes()
    if a != b:
        at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        around = slice(max(0, at - 16), at + 16)
        pytest.fail(
            f"{ours.name}: {len(a)} bytes, TensorFlow's has {len(b)}; the first difference is at {at}:\n"
            f"  ours   {a[around].hex(' ')}\n  theirs {b[around].hex(' ')}"
        )


def assert_same_value(name: str, ours: object, theirs: RawTensor) -> None:
    raw = RawTensor.of(ours)
    assert (raw.shape, raw.data) == (theirs.shape, theirs.data), name


@pytest.mark.thinned(2)
@pytest.mark.parametrize("first", range(0, DICTIONARIES, BATCH))
def test_index_and_data_are_byte_identical_to_tensorflow(
    tensorflow: TensorFlowProcess, tmp_path: Path, first: int
) -> None:
    """CASES 134, 199: for the same tensors, our .index and .data equal those of SaveV2, and each reads the other's.

    With every dtype that SaveV2 writes, scalars, empty tensors, strings, unicode names and indexes of several blocks.
    """
    dictionaries = [dictionary(seed) for seed in range(first, first + BATCH)]
    saves = [
        Call(
            "save_v2",
            (str(tmp_path / f"theirs-{i}"), [(name, tensors[name].raw) for name in sorted(tensors, key=key_of)]),
        )
        for i, tensors in enumerate(dictionaries)
    ]
    for result in tensorflow.batch(saves):
        assert result is None, result
    for i, tensors in enumerate(dictionaries):
        write_ours(tmp_path / f"ours-{i}", tensors)
        for suffix in ("index", "data-00000-of-00001"):
            assert_same_bytes(tmp_path / f"ours-{i}.{suffix}", tmp_path / f"theirs-{i}.{suffix}")
        with tfckpt.load_checkpoint(tmp_path / f"theirs-{i}") as reader:
            assert set(reader.keys()) == set(tensors)
            for name, value in reader.get_tensors(list(tensors)).items():
                assert_same_value(name, value, tensors[name].raw)
    for tensors, read in zip(
        dictionaries,
        tensorflow.batch([Call("restore_all", (str(tmp_path / f"ours-{i}"),)) for i in range(BATCH)]),
        strict=True,
    ):
        assert not isinstance(read, Exception), read
        for name, named in tensors.items():
            assert (read[name].dtype, read[name].shape, read[name].data) == (
                named.raw.dtype, named.raw.shape, named.raw.data,
            ), name  # fmt: skip


def test_save_file_writes_what_savev2_writes(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """The public function sorts the names: it writes the bytes of tf.train.Saver."""
    tensors = {
        "b": torch.arange(6.0).reshape(2, 3),
        "a/x": torch.tensor(3),
        "größe": torch.ones(2, dtype=torch.bfloat16),
    }
    tfckpt.save_file(tensors, tmp_path / "ours")
    tensorflow.call(
        "save_v2", str(tmp_path / "theirs"), [(name, RawTensor.of(tensors[name])) for name in sorted(tensors)]
    )
    for suffix in ("index", "data-00000-of-00001"):
        assert_same_bytes(tmp_path / f"ours.{suffix}", tmp_path / f"theirs.{suffix}")


@pytest.mark.parametrize("spelling", ["explicit", "whole"])
def test_partitioned_tensors_are_byte_identical(tensorflow: TensorFlowProcess, tmp_path: Path, spelling: str) -> None:
    """CASES 120: a matrix in two column slices and a vector in three, with either spelling of a whole dimension."""
    matrix, vector = torch.arange(50.0).reshape(5, 10), torch.arange(9)
    rows = "0,5" if spelling == "explicit" else "-"
    parts = [
        ("w", f"5 10 {rows}:0,1", matrix[:, :1]), ("w", f"5 10 {rows}:1,9", matrix[:, 1:]),
        ("v", "9 0,3", vector[:3]), ("v", "9 3,5", vector[3:8]), ("v", "9 8,1", vector[8:]),
    ]  # fmt: skip
    tensorflow.call(
        "save_v2", str(tmp_path / "theirs"), [(n, RawTensor.of(t)) for n, _, t in parts], [s for _, s, _ in parts]
    )
    with BundleWriter(LOCAL, str(tmp_path / "ours")) as writer:
        for name, spec, part in parts:  # SaveV2 writes data in the given order, not sorted by name
            *dims, text = spec.split(" ")
            writer.add_slice(name, tuple(map(int, dims)), TensorSlice.parse(text), part)
    for suffix in ("index", "data-00000-of-00001"):
        assert_same_bytes(tmp_path / f"ours.{suffix}", tmp_path / f"theirs.{suffix}")
    read = tensorflow.call("restore", str(tmp_path / "ours"), ["w", "v"])
    assert_same_value("w", matrix, read[0])
    assert_same_value("v", vector, read[1])
    with tfckpt.load_checkpoint(tmp_path / "theirs") as reader:
        assert reader.keys() == ["v", "w"]
        assert same(reader.get_tensor("w"), matrix)
        assert same(reader.get_tensor("v"), vector)


def test_merge_is_byte_identical(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """CASES 117, 126: sources with slices of one tensor: index and data equal those of MergeV2Checkpoints."""
    for side in ("ours", "theirs"):
        (tmp_path / side).mkdir()
        with BundleWriter(LOCAL, str(tmp_path / side / "part-0")) as writer:
            writer.add("b", torch.tensor(1.0))
            writer.add_slice("w", (4, 2), TensorSlice.parse("2,2:-"), torch.ones(2, 2))
        with BundleWriter(LOCAL, str(tmp_path / side / "part-1")) as writer:
            writer.add("a", torch.tensor(2.0))
            writer.add_slice("w", (4, 2), TensorSlice.parse("0,2:-"), torch.zeros(2, 2))
    merge_bundles(LOCAL, [str(tmp_path / "ours" / f"part-{i}") for i in range(2)], str(tmp_path / "ours" / "all"))
    tensorflow.call(
        "merge_v2", [str(tmp_path / "theirs" / f"part-{i}") for i in range(2)], str(tmp_path / "theirs" / "all")
    )
    names = sorted(path.name for path in (tmp_path / "theirs").iterdir())
    assert names == ["all.data-00000-of-00002", "all.data-00001-of-00002", "all.index"]
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == names
    for name in names:
        assert_same_bytes(tmp_path / "ours" / name, tmp_path / "theirs" / name)
    (read,) = tensorflow.call("restore", str(tmp_path / "ours" / "all"), ["w"])
    assert_same_value("w", torch.tensor([[0.0, 0], [0, 0], [1, 1], [1, 1]]), read)


def test_tensorflow_reads_shards_written_in_one_save(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """Three shards written together equal those that TensorFlow's sharded Saver merges from three files."""
    values = {f"v{i}": np.array([i, i + 0.5], dtype=np.float32) for i in range(6)}
    tensorflow.call("sharded_save_by_saver", str(tmp_path / "theirs"), values, [0, 0, 1, 1, 2, 2])
    with BundleWriter(LOCAL, str(tmp_path / "ours"), num_shards=3) as writer:
        for i, (name, value) in enumerate(values.items()):
            writer.add(name, torch.from_numpy(value), shard=i // 2)
    for suffix in ("index", *(f"data-{i:05d}-of-00003" for i in range(3))):
        assert_same_bytes(tmp_path / f"ours.{suffix}", tmp_path / f"theirs.{suffix}")


@pytest.mark.parametrize("alignment", [42, 64, 4096])
def test_tensorflow_reads_aligned_data(tensorflow: TensorFlowProcess, tmp_path: Path, alignment: int) -> None:
    """CASES 132: offsets and the file size are multiples of the alignment, and TensorFlow reads the values."""
    tensors = dictionary(3)
    prefix = write_ours(tmp_path / "aligned", tensors, alignment=alignment)
    with BundleReader(LOCAL, prefix) as reader:
        assert all(reader.index.entry(name).offset % alignment == 0 for name in tensors)
    assert (tmp_path / "aligned.data-00000-of-00001").stat().st_size % alignment == 0
    for name, value in tensorflow.call("restore_all", prefix).items():
        assert_same_value(name, tensors[name].value, value)


def test_a_variant_survives_a_copy_of_its_bytes(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """CASES 125: a TensorList is copied as it is stored: the copy equals TensorFlow's file, byte for byte."""
    variant = tensorflow.call("tensor_list", [np.float32(1), np.float32(2)])
    tensorflow.call("save_v2", str(tmp_path / "theirs"), {"list": variant, "x": np.float32(1)})
    theirs, ours = str(tmp_path / "theirs"), str(tmp_path / "ours")
    with BundleReader(LOCAL, theirs) as reader, BundleWriter(LOCAL, ours) as writer:
        entry = reader.index.entry("list")
        stored = reader.read_stored("list")
        writer.add_stored("list", reader.dtype("list"), entry.shape, stored, entry.checksum)
        writer.add("x", reader.read("x"))
        with pytest.raises(tfckpt.UnimplementedError, match="list"):
            reader.read("list")
    for suffix in ("index", "data-00000-of-00001"):
        assert_same_bytes(tmp_path / f"ours.{suffix}", tmp_path / f"theirs.{suffix}")
