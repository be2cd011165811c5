"""Version 1 files compared with TensorFlow's: equal bytes, each reads the other's, and both reject the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from tensorflow_process import Call, RawTensor, TensorFlowError, TensorFlowProcess
from v1_dictionaries import DICTIONARIES, WRITABLE, Entry, assembled, raw_tensor

from torch_tfckpt.dtypes import ELEMENTS
from torch_tfckpt.errors import CheckpointError, DataLossError, InvalidArgumentError, UnimplementedError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_slice import TensorSlice
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.v1.reader import SlicesReader
from torch_tfckpt.v1.writer import SlicesWriter


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples of a test; each example writes its files again."""
    return tmp_path_factory.mktemp("v1")


def write(path: Path, entries: list[Entry]) -> None:
    """Write in the order of TensorFlow's Save op, which passes tensors sorted by name."""
    with SlicesWriter(LOCAL, str(path)) as writer:
        for entry in sorted(entries, key=lambda entry: entry.name.encode()):
            writer.add(entry.name, entry.value, shape=entry.shape, part=entry.part, dtype=entry.dtype)


def theirs(path: Path, entries: list[Entry]) -> Call:
    """Return the call that makes TensorFlow write the same file."""
    pairs = [(entry.name, entry.raw) for entry in entries]
    specs = [entry.spec for entry in entries]
    return Call("save_v1", (str(path), pairs, specs if any(specs) else None))


def assert_same_bytes(ours: Path, tensorflows: Path) -> None:
    """Assert that the files are equal; show the first differing byte with its context."""
    one, other = ours.read_bytes(), tensorflows.read_bytes()
    if one != other:
        at = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
        window = slice(max(0, at - 24), at + 24)
        pytest.fail(f"byte {at} of {len(one)} / {len(other)}:\n  {one[window].hex(' ')}\n  {other[window].hex(' ')}")


@settings(deadline=None, max_examples=150)
@given(entries=DICTIONARIES.filter(bool))
def test_bytes_and_values_in_both_directions(tensorflow: TensorFlowProcess, folder: Path, entries: list[Entry]) -> None:
    """For the same tensors, our file equals TensorFlow's byte for byte, and we read its file correctly."""
    ours, reference = folder / "ours", folder / "reference"
    write(ours, entries)
    [saved] = tensorflow.batch([theirs(reference, entries)])
    assert saved is None
    assert_same_bytes(ours, reference)
    expected = assembled(entries)
    with SlicesReader(LOCAL, [str(reference)]) as reader:
        assert {name: raw_tensor(reader.read(name), reader.dtype(name)) for name in reader.keys()} == expected


@settings(deadline=None, max_examples=60)
@given(entries=DICTIONARIES.filter(bool))
def test_tensorflow_reads_ours(tensorflow: TensorFlowProcess, folder: Path, entries: list[Entry]) -> None:
    """RestoreV2 reads every slice from our file as it was added; names and shapes are listed."""
    path = folder / "ours"
    write(path, entries)
    specs = [entry.spec for entry in entries]
    names, dtypes = [entry.name for entry in entries], [entry.raw.dtype for entry in entries]
    restored, listed = tensorflow.batch(
        [Call("restore", (str(path), names, dtypes, specs)), Call("list_variables", (str(path),))]
    )
    assert restored == [entry.raw for entry in entries]
    assert listed == sorted((name, list(value.shape)) for name, value in assembled(entries).items())


def test_several_blocks(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """Tensors below, at and above the sizes at which a block ends or a record gets its own block."""
    block = 262144
    sizes = [10, block // 4, block // 2, 100, 2 * block // 4 - 10, 2 * block // 4 + 10, 7, 3 * block // 4, 1]
    entries = [
        Entry(f"layer_{number:02d}/kernel", DataType.DT_FLOAT, torch.arange(size, dtype=torch.float32))
        for number, size in enumerate(sizes)
    ]
    entries += [Entry(f"tiny_{n}", DataType.DT_INT32, torch.tensor(-n, dtype=torch.int32)) for n in range(9000)]
    write(tmp_path / "ours", entries)
    tensorflow.batch([theirs(tmp_path / "reference", entries)])
    assert_same_bytes(tmp_path / "ours", tmp_path / "reference")
    with SlicesReader(LOCAL, [str(tmp_path / "reference")]) as reader:
        values = reader.read_all([entry.name for entry in entries])
        assert all(torch.equal(values[entry.name], entry.value) for entry in entries)  # type: ignore[arg-type]
        assert len(reader.check().good) == len(entries)


@pytest.mark.parametrize("dtype", WRITABLE, ids=lambda dtype: str(dtype.short_name))
def test_pieces_across_shards(tensorflow: TensorFlowProcess, tmp_path: Path, dtype: DataType) -> None:
    """Two shards of TensorFlow's: slices across both, and the full tensor that its CheckpointReader rejects."""
    if dtype == DataType.DT_STRING:
        whole: Any = np.array([b"%d" % n for n in range(20)], dtype=object).reshape(4, 5)
    else:
        whole = torch.arange(20).reshape(4, 5).to(ELEMENTS[dtype].torch)
    paths = [tmp_path / f"v1-0000{number}-of-00002" for number in range(2)]
    halves = [
        Entry("t", dtype, whole[:1], (4, 5), TensorSlice.parse("0,1:-")),
        Entry("t", dtype, whole[1:], (4, 5), TensorSlice.parse("1,3:0,5")),
    ]
    tensorflow.batch([theirs(path, [half]) for path, half in zip(paths, halves, strict=True)])
    pattern, raw = str(tmp_path / "v1-?????-of-00002"), raw_tensor(whole, dtype)
    piece = tensorflow.call("restore", pattern, ["t"], [raw.dtype], ["4 5 0,3:2,2"])
    with SlicesReader(LOCAL, [str(path) for path in paths]) as reader:
        assert reader.path == pattern
        assert [raw_tensor(reader.read_slice("t", TensorSlice.parse("0,3:2,2")), dtype)] == piece
        assert raw_tensor(reader.read("t"), dtype) == raw
        assert [str(part) for part in reader.slices("t")] == ["0,1:-", "1,3:0,5"]


@pytest.mark.parametrize(
    ("raw", "dtype", "value", "error"),
    [
        (RawTensor("bfloat16", (1,), b"\0\0"), None, torch.zeros(1, dtype=torch.bfloat16), UnimplementedError),
        (RawTensor("qint16", (1,), b"\0\0"), DataType.DT_QINT16, torch.zeros(1, dtype=torch.int16), UnimplementedError),
        (RawTensor("uint32", (1,), b"\0" * 4), None, torch.zeros(1, dtype=torch.uint32), InvalidArgumentError),
        (RawTensor("uint64", (1,), b"\0" * 8), None, torch.zeros(1, dtype=torch.uint64), InvalidArgumentError),
    ],
    ids=["bfloat16", "qint16", "uint32", "uint64"],
)
def test_the_same_types_are_rejected(
    tensorflow: TensorFlowProcess,
    tmp_path: Path,
    raw: RawTensor,
    dtype: DataType | None,
    value: torch.Tensor,
    error: type[CheckpointError],
) -> None:
    """The same kind of error, and TensorFlow's message is part of ours."""
    with pytest.raises(TensorFlowError) as their:
        tensorflow.call("save_v1", str(tmp_path / "reference"), {"x": raw})
    with pytest.raises(error) as our, SlicesWriter(LOCAL, str(tmp_path / "ours")) as writer:
        writer.add("x", value, dtype=dtype)
    assert their.value.kind == error.__name__
    text = their.value.message.partition("}} ")[2].partition(" [Op:")[0]
    assert text in str(our.value)


def test_a_file_that_tensorflow_writes_but_cannot_read(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """The same name twice: its writer accepts it; its reader and ours reject that tensor, ours not the others."""
    path, value = str(tmp_path / "twice"), np.ones(2, np.float32)
    tensorflow.call("save_v1", path, [("x", value), ("y", value), ("x", value)])
    with pytest.raises(TensorFlowError, match="Overlapping slices"):
        tensorflow.call("restore", path, ["x"], ["float32"])
    with SlicesReader(LOCAL, [path]) as reader:
        with pytest.raises(DataLossError, match='tensor "x": Overlapping slices: existing slice = -, new slice = -'):
            reader.read("x")
        assert torch.equal(reader.read("y"), torch.ones(2))  # type: ignore[arg-type]
