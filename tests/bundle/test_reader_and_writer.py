"""BundleReader and BundleWriter, case by case from TensorFlow's tensor_bundle_test.cc."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt.bundle.reader import BundleReader
from torch_tfckpt.bundle.writer import BundleWriter
from torch_tfckpt.dtypes import ELEMENTS
from torch_tfckpt.format import crc32c
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.table import BlockHandle, Table, TableBuilder
from torch_tfckpt.format.tensor_bundle import BundleEntry, BundleHeader
from torch_tfckpt.format.tensor_slice import TensorSlice
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.transfer.host_bytes import byte_view, swap_bytes
from torch_tfckpt.values import Value, WritableValue

# The types of TEST(TensorBundleTest, Basic).
BASIC_TYPES = [
    DataType.DT_FLOAT, DataType.DT_DOUBLE, DataType.DT_INT32, DataType.DT_UINT8, DataType.DT_INT16, DataType.DT_INT8,
    DataType.DT_COMPLEX64, DataType.DT_COMPLEX128, DataType.DT_INT64, DataType.DT_BOOL, DataType.DT_QINT32,
    DataType.DT_QUINT8, DataType.DT_QINT8, DataType.DT_BFLOAT16,
]  # fmt: skip


def same(value: Value, expected: Value) -> bool:
    """Return whether both tensors have the same shape and elements."""
    return isinstance(value, torch.Tensor) and isinstance(expected, torch.Tensor) and torch.equal(value, expected)


def constant(value: int, dtype: DataType, shape: tuple[int, ...] = (2, 3)) -> torch.Tensor:
    torch_dtype = ELEMENTS[dtype].torch
    assert torch_dtype is not None
    return torch.full(shape, value, dtype=torch_dtype)


def write(prefix: Path, tensors: dict[str, torch.Tensor], dtype: DataType | None = None) -> str:
    with BundleWriter(LOCAL, str(prefix)) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor, dtype=dtype)
    return str(prefix)


def rewrite_index(prefix: str, change: "dict[bytes, bytes]") -> None:
    """Replace values in the index, with correct checksums."""
    path = Path(f"{prefix}.index")
    data = path.read_bytes()
    entries = dict(Table(lambda at, size: data[at : at + size], len(data)).items())
    entries.update(change)
    out = bytearray()
    builder = TableBuilder(out.extend)
    for key in sorted(entries):
        builder.add(key, entries[key])
    builder.finish()
    path.write_bytes(out)


@pytest.fixture
def reader_of() -> Iterator["type[BundleReader]"]:
    """Readers that are closed at the end of the test."""
    opened: list[BundleReader] = []

    def open_reader(prefix: str, **options: bool) -> BundleReader:
        opened.append(BundleReader(LOCAL, prefix, **options))
        return opened[-1]

    yield open_reader  # type: ignore[misc]
    for reader in opened:
        reader.close()


@pytest.mark.parametrize("dtype", BASIC_TYPES, ids=lambda dtype: dtype.name)
def test_basic(tmp_path: Path, dtype: DataType) -> None:
    """CASES 116. Names are sorted, whatever the order they were added in; dtype, shape and values are kept."""
    tensors = {f"foo_{i:03d}": constant(i % 2, dtype) for i in (3, 0, 2, 1)}
    prefix = write(tmp_path / "foo", tensors, dtype)
    with BundleReader(LOCAL, prefix) as reader:
        assert reader.keys() == ["foo_000", "foo_001", "foo_002", "foo_003"]
        for name, tensor in tensors.items():
            assert (reader.dtype(name), reader.shape(name)) == (dtype, (2, 3))
            assert same(reader.read(name), tensor)
        assert "foo_004" not in reader


@pytest.mark.parametrize("dtype", [t for t in BASIC_TYPES if ELEMENTS[t].swap > 1], ids=lambda dtype: dtype.name)
def test_big_endian_files(tmp_path: Path, dtype: DataType) -> None:
    """CASES 119. Big-endian data with a big-endian header: the same values, whole, sliced and mapped."""
    torch_dtype = ELEMENTS[dtype].torch
    assert torch_dtype is not None
    tensor = torch.frombuffer(bytearray(os.urandom(24 * torch_dtype.itemsize)), dtype=torch_dtype).reshape(4, 6)
    swapped = tensor.clone()
    swap_bytes(swapped, ELEMENTS[dtype].swap)
    prefix = write(tmp_path / "big", {"x": swapped}, dtype)
    rewrite_index(prefix, {b"": BundleHeader(1, big_endian=True).encode()})
    with BundleReader(LOCAL, prefix) as reader:
        for value in (reader.read("x"), reader.map("x"), reader.read("x", torch.empty_like(tensor))):
            assert isinstance(value, torch.Tensor)
            assert bytes(byte_view(value)) == bytes(byte_view(tensor))
        part = reader.read_slice("x", TensorSlice.parse("1,2:2,3"))
        assert isinstance(part, torch.Tensor)
        assert bytes(byte_view(part.contiguous())) == bytes(byte_view(tensor[1:3, 2:5].contiguous()))


def test_big_endian_strings(tmp_path: Path) -> None:
    """CASES 119. Lengths are checksummed, and their checksum is stored, in big-endian order."""
    elements = [b"hello", b"", b"x01"]
    lengths = np.array([5, 0, 3], dtype=">u4")
    running = crc32c.value(lengths.tobytes())
    stored_sum = crc32c.mask(running).to_bytes(4, "big")
    data = bytes((5, 0, 3)) + stored_sum + b"".join(elements)
    checksum = crc32c.mask(crc32c.extend(crc32c.extend(running, stored_sum), b"hellox01"))
    (tmp_path / "big.data-00000-of-00001").write_bytes(data)
    (tmp_path / "big.index").write_bytes(b"")
    out = bytearray()
    builder = TableBuilder(out.extend)
    builder.add(b"", BundleHeader(1, big_endian=True).encode())
    builder.add(b"s", BundleEntry(DataType.DT_STRING, (3,), size=len(data), checksum=checksum).encode())
    builder.finish()
    (tmp_path / "big.index").write_bytes(out)
    with tfckpt.load_checkpoint(tmp_path / "big") as reader:
        assert list(reader.get_tensor("s")) == elements
        assert reader.check().good == ["s"]


def test_swapping_known_words() -> None:
    """CASES 118. Words of both widths, and both halves of a complex number separately."""
    for dtype, before, after in [
        (torch.int16, ["1de5", "d017", "f1ea", "c0a1"], ["e51d", "17d0", "eaf1", "a1c0"]),
        (torch.int32, ["0ddba115", "f01dab1e"], ["15a1db0d", "1eab1df0"]),
        (torch.int64, ["f005ba11caba1000", "5ca1ab1ecab005e5"], ["0010baca11ba05f0", "e505b0ca1eaba15c"]),
    ]:
        tensor = torch.frombuffer(bytearray(bytes.fromhex("".join(before))), dtype=dtype)
        swap_bytes(tensor, dtype.itemsize)
        assert bytes(byte_view(tensor)).hex() == "".join(after)
    pair = torch.frombuffer(bytearray(bytes.fromhex("0ddba115f01dab1e")), dtype=torch.complex64)
    swap_bytes(pair, ELEMENTS[DataType.DT_COMPLEX64].swap)
    assert bytes(byte_view(pair)).hex() == "15a1db0d1eab1df0"


class TestPartitioned:
    """CASES 120. A [5,10] float tensor stored as slice "-:0,1" with zeros and slice "-:1,9" with ones."""

    @pytest.fixture
    def prefix(self, tmp_path: Path) -> str:
        with BundleWriter(LOCAL, str(tmp_path / "foo")) as writer:
            writer.add_slice("foo", (5, 10), TensorSlice.parse("-:0,1"), torch.zeros(5, 1))
            writer.add_slice("foo", (5, 10), TensorSlice.parse("-:1,9"), torch.ones(5, 9))
        return str(tmp_path / "foo")

    def test_full_read(self, prefix: str) -> None:
        """Column 0 is zero, the others one; the name is listed once, the slices in the order added."""
        with tfckpt.load_checkpoint(prefix) as reader:
            assert reader.keys() == ["foo"]
            assert [str(part) for part in reader.slices("foo")] == ["-:0,1", "-:1,9"]
            expected = torch.ones(5, 10)
            expected[:, 0] = 0
            assert same(reader.get_tensor("foo"), expected)
            assert same(reader.get_tensors(["foo"])["foo"], expected)
            assert same(reader.map_tensor("foo"), expected)

    @pytest.mark.parametrize(
        ("spec", "expected"),
        [("-:0,2", torch.tensor([[0.0, 1.0]] * 5)), ("-:2,2", torch.ones(5, 2)), ("-:0,1", torch.zeros(5, 1)),
         ("1,2:0,2", torch.tensor([[0.0, 1.0]] * 2)), ("0,5:1,9", torch.ones(5, 9))],
    )  # fmt: skip
    def test_slices(self, prefix: str, spec: str, expected: torch.Tensor) -> None:
        """A slice across both stored ones, one inside a stored one, and the stored ones themselves."""
        with tfckpt.load_checkpoint(prefix) as reader:
            assert same(reader.read_slice("foo", TensorSlice.parse(spec)), expected)

    def test_out_with_any_strides(self, prefix: str) -> None:
        """Parts are assembled directly in `out`, contiguous or not."""
        with tfckpt.load_checkpoint(prefix) as reader:
            expected = reader.get_tensor("foo")
            for out in (torch.empty(5, 10), torch.empty(10, 5).t(), torch.empty(5, 20)[:, ::2]):
                assert reader.get_tensor("foo", out=out) is out
                assert same(out, expected)


@pytest.mark.parametrize("stored", ["-:-", "0,5:0,10"])
def test_equivalent_slices(tmp_path: Path, stored: str) -> None:
    """CASES 121. A slice that covers everything, in any spelling, is a whole tensor and readable in both spellings."""
    tensor = torch.arange(50.0).reshape(5, 10)
    with BundleWriter(LOCAL, str(tmp_path / "foo")) as writer:
        writer.add_slice("no_extents", (5, 10), TensorSlice.parse(stored), tensor)
        writer.add("both", tensor)
    with tfckpt.load_checkpoint(tmp_path / "foo") as reader:
        for name in ("no_extents", "both"):
            assert reader.slices(name) == ()
            for wanted in ("-:-", "0,5:0,10", "-:0,10"):
                assert same(reader.read_slice(name, TensorSlice.parse(wanted)), tensor)


@pytest.mark.parametrize("dtype", BASIC_TYPES, ids=lambda dtype: dtype.name)
def test_non_standard_shapes(tmp_path: Path, dtype: DataType) -> None:
    """CASES 122. Scalars and tensors without elements."""
    tensors = {str(shape): constant(1, dtype, shape) for shape in ((), (0, 1618), (16, 0, 18))}
    prefix = write(tmp_path / "foo", tensors, dtype)
    with BundleReader(LOCAL, prefix) as reader:
        for name, tensor in tensors.items():
            value = reader.read(name)
            assert isinstance(value, torch.Tensor)
            assert value.shape == tensor.shape
            assert same(value, tensor)


def test_strings_of_the_old_format(golden: Path) -> None:
    """CASES 123. Lengths as 32-bit varints, as in files of 2017; the values are those stored by scripts/golden."""
    values = tfckpt.load_file(golden / "strings-of-2017" / "foo")
    strings = {name: value.tolist() for name, value in values.items() if isinstance(value, np.ndarray)}
    assert strings == {"word": [b"tensor"], "empty": [b""], "words": [b"first", b"", b"\0\xff", b"m" * 700]}
    assert torch.equal(torch.as_tensor(values["floats"]), torch.arange(-1.5, 4).reshape(2, 3))


def test_strings(tmp_path: Path) -> None:
    """CASES 124. Empty, short, and one of 32 MiB; names are listed sorted."""
    big = b"c" * (1 << 25)
    tensors: dict[str, WritableValue] = {
        "string_tensor": np.array([b""], dtype=object),
        "scalar": b"hello",
        "strs": np.array([b"hello", b"", b"x01", big], dtype=object),
        "text": "größe",
    }
    tfckpt.save_file({**tensors, "floats": torch.full((2, 3), 16.18)}, tmp_path / "foo")
    with tfckpt.load_checkpoint(tmp_path / "foo") as reader:
        assert reader.keys() == ["floats", "scalar", "string_tensor", "strs", "text"]
        assert reader.get_tensor("strs").tolist() == [b"hello", b"", b"x01", big]
        scalar = reader.get_tensor("scalar")
        assert isinstance(scalar, np.ndarray)
        assert (scalar.shape, scalar.item()) == ((), b"hello")
        assert reader.get_tensor("text").item() == "größe".encode()
        assert reader.get_slice("strs")[1:3].tolist() == [b"", b"x01"]


@pytest.mark.heavy
def test_a_string_longer_than_32_bits(tmp_path: Path) -> None:
    """CASES 124. A string of 2**32 bytes: its length is checksummed as 64 bits."""
    tfckpt.save_file({"s": b"d" * (1 << 32)}, tmp_path / "foo")
    with tfckpt.load_checkpoint(tmp_path / "foo") as reader:
        assert reader.check().good == ["s"]
        (element,) = reader.get_tensor("s").reshape(1).tolist()
        assert len(element) == 1 << 32


def test_writer_errors(tmp_path: Path) -> None:
    """CASES 127. A duplicate name, finishing twice, adding after the end. A failed writer leaves no files."""
    with pytest.raises(tfckpt.InvalidArgumentError, match='duplicate key: "foo" was already added'):
        with BundleWriter(LOCAL, str(tmp_path / "dup")) as writer:
            writer.add("foo", torch.ones(2))
            writer.add("foo", torch.ones(3))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(tfckpt.FailedPreconditionError, match=r"BundleWriter is closed \(abandoned\)"):
        writer.finish()
    writer = BundleWriter(LOCAL, str(tmp_path / "twice"))
    writer.add("foo", torch.ones(2))
    writer.finish()
    with pytest.raises(tfckpt.FailedPreconditionError, match=r"BundleWriter is closed \(finished\)"):
        writer.finish()
    with pytest.raises(tfckpt.FailedPreconditionError, match="cannot add"):
        writer.add("bar", torch.ones(2))


def test_a_missing_prefix(tmp_path: Path) -> None:
    """CASES 127. NotFoundError that names the missing file."""
    with pytest.raises(tfckpt.NotFoundError, match=r"nothing\.index: no such file"):
        BundleReader(LOCAL, str(tmp_path / "nothing"))


class TestSlicesOfTheWriter:
    """What TensorFlow accepts, aborts on, or only detects on reading, is refused when it is added."""

    def test_shape_of_the_slice(self, tmp_path: Path) -> None:
        with pytest.raises(tfckpt.InvalidArgumentError, match=r"does not match the shape of the tensor to  save"):
            with BundleWriter(LOCAL, str(tmp_path / "foo")) as writer:
                writer.add_slice("t", (4, 5), TensorSlice.parse("0,2:-"), torch.ones(2, 4))

    @pytest.mark.parametrize("order", ["slice, whole", "whole, slice"])
    def test_whole_and_slice(self, tmp_path: Path, order: str) -> None:
        with pytest.raises(tfckpt.InvalidArgumentError, match="Adding duplicate key"):
            with BundleWriter(LOCAL, str(tmp_path / "foo")) as writer:
                for kind in order.split(", "):
                    if kind == "whole":
                        writer.add("t", torch.ones(4, 5))
                    else:
                        writer.add_slice("t", (4, 5), TensorSlice.parse("0,2:-"), torch.ones(2, 5))

    @pytest.mark.parametrize(
        ("second", "shape", "tensor", "text"),
        [
            ("0,2:-", (4, 5), torch.ones(2, 5), "Adding duplicate key: slice 0,2:-"),
            ("1,2:-", (4, 5), torch.ones(2, 5), "Overlapping slices"),
            ("2,2:-", (5, 5), torch.ones(2, 5), r"earlier slices are DT_FLOAT of \[4,5\]"),
            ("2,2:-", (4, 5), torch.ones(2, 5, dtype=torch.int32), "is DT_INT32"),
            ("3,2:-", (4, 5), torch.ones(2, 5), "out of bounds"),
        ],
    )
    def test_second_slice(
        self, tmp_path: Path, second: str, shape: tuple[int, int], tensor: torch.Tensor, text: str
    ) -> None:
        with pytest.raises(tfckpt.InvalidArgumentError, match=text):
            with BundleWriter(LOCAL, str(tmp_path / "foo")) as writer:
                writer.add_slice("t", (4, 5), TensorSlice.parse("0,2:-"), torch.ones(2, 5))
                writer.add_slice("t", shape, TensorSlice.parse(second), tensor)
        assert list(tmp_path.iterdir()) == []


class TestChecksum:
    """CASES 128. Every flipped byte of the data file is detected."""

    def flip(self, path: Path, at: int) -> None:
        data = bytearray(path.read_bytes())
        data[at] ^= 0xFF
        path.write_bytes(data)

    def test_floats(self, tmp_path: Path) -> None:
        data = tmp_path / "foo.data-00000-of-00001"
        for at in range(24):
            write(tmp_path / "foo", {"foo": constant(1, DataType.DT_FLOAT)})
            self.flip(data, at)
            with tfckpt.load_checkpoint(tmp_path / "foo") as reader:
                with pytest.raises(tfckpt.DataLossError, match=r"bytes 0:24: tensor .foo.: Checksum does not match"):
                    reader.get_tensor("foo")
                with pytest.raises(tfckpt.DataLossError, match="Checksum does not match"):
                    reader.get_slice("foo")[1]
                with pytest.raises(tfckpt.DataLossError, match="Checksum does not match"):
                    reader.map_tensor("foo")
                assert [damage.name for damage in reader.check().damage] == ["foo"]

    def test_strings(self, tmp_path: Path) -> None:
        """The two lengths first, then their checksum, then the strings."""
        data = tmp_path / "foo.data-00000-of-00001"
        for at in range(2 + 4 + 10):
            tfckpt.save_file({"foo": np.array([b"hello", b"world"], dtype=object)}, tmp_path / "foo")
            self.flip(data, at)
            with tfckpt.load_checkpoint(tmp_path / "foo") as reader:
                text = "hecksum does not match" if at >= 2 else "length|integers|add up"
                with pytest.raises(tfckpt.DataLossError, match=text):
                    reader.get_tensor("foo")

    def test_verify_false_skips_checksums(self, tmp_path: Path) -> None:
        """Without verification the damaged value is returned."""
        write(tmp_path / "foo", {"foo": constant(1, DataType.DT_FLOAT)})
        self.flip(tmp_path / "foo.data-00000-of-00001", 0)
        loaded = tfckpt.load_file(tmp_path / "foo", verify=False)["foo"]
        assert isinstance(loaded, torch.Tensor)
        assert loaded.reshape(-1)[1:].eq(1).all()


def test_truncated_data(tmp_path: Path) -> None:
    """CASES 129. One byte is missing: the error names file, byte range, tensor and actual size."""
    prefix = write(tmp_path / "foo", {"foo": constant(1, DataType.DT_FLOAT)})
    data = tmp_path / "foo.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-1])
    with BundleReader(LOCAL, prefix) as reader, pytest.raises(tfckpt.DataLossError) as error:
        reader.read("foo")
    assert "foo.data-00000-of-00001, bytes 0:24" in str(error.value)
    assert "the file has only 23 bytes" in str(error.value)
    assert "Copy it again" in str(error.value)


def test_header(tmp_path: Path) -> None:
    """CASES 130. One shard, this machine's byte order, producer 1, min_consumer 0."""
    prefix = write(tmp_path / "b", {"x": torch.ones(1)})
    with BundleReader(LOCAL, prefix) as reader:
        assert reader.files.header == BundleHeader(1, False, 1, 0, ())


@pytest.mark.parametrize(
    ("header", "text"),
    [
        (BundleHeader(1, min_consumer=2), "Checkpoint min consumer version 2 above current version 1 for TensorFlow"),
        (BundleHeader(1, producer=-1), "Checkpoint producer version -1 below min producer 0 supported by TensorFlow"),
        (BundleHeader(1, bad_consumers=(1,)), "Checkpoint disallows consumer version 1.  Please upgrade TensorFlow: "
         "this version is likely buggy."),
    ],
)  # fmt: skip
def test_versions(tmp_path: Path, header: BundleHeader, text: str) -> None:
    """CASES 131. A reader that the writer excludes raises TensorFlow's message."""
    prefix = write(tmp_path / "b", {"x": torch.ones(1)})
    rewrite_index(prefix, {b"": header.encode()})
    with pytest.raises(tfckpt.InvalidArgumentError) as error:
        BundleReader(LOCAL, prefix)
    assert text in str(error.value)


def test_a_newer_producer_is_read(tmp_path: Path) -> None:
    """A larger producer with min_consumer 0 or 1 is accepted, and so is no version at all."""
    for header in (BundleHeader(1, producer=7, min_consumer=1).encode(), b"\x08\x01"):
        prefix = write(tmp_path / "b", {"x": torch.ones(1)})
        rewrite_index(prefix, {b"": header})
        with BundleReader(LOCAL, prefix) as reader:
            assert same(reader.read("x"), torch.ones(1))


def test_alignment(tmp_path: Path) -> None:
    """CASES 132. Every offset is a multiple of 42, and the values are right."""
    with BundleWriter(LOCAL, str(tmp_path / "foo"), alignment=42) as writer:
        for i in range(4):
            writer.add(f"foo_{i:03d}", constant(i, DataType.DT_FLOAT))
    with BundleReader(LOCAL, str(tmp_path / "foo")) as reader:
        assert [reader.index.entry(name).offset for name in reader.keys()] == [0, 42, 84, 126]
        assert all(same(reader.read(f"foo_{i:03d}"), constant(i, DataType.DT_FLOAT)) for i in range(4))
    assert (tmp_path / "foo.data-00000-of-00001").stat().st_size == 168


def test_opening_reads_a_bounded_part_of_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening reads footer, index block and the block with the header; a lookup reads one more block."""
    prefix = write(tmp_path / "many", {f"{i:060d}": torch.tensor(i) for i in range(20_000)})
    reads: list[int] = []
    plain = Table._contents

    def counted(table: Table, handle: BlockHandle) -> bytes | memoryview:
        reads.append(handle.size)
        return plain(table, handle)

    monkeypatch.setattr(Table, "_contents", counted)
    with BundleReader(LOCAL, prefix) as reader:
        assert len(reads) == 2
        assert same(reader.read(f"{15_000:060d}"), torch.tensor(15_000))
        assert len(reads) == 3
        assert "absent" not in reader
        assert len(reads) <= 4
        assert len(reader.keys()) == 20_000


def test_a_bundle_of_several_hundred_shards(tmp_path: Path) -> None:
    """Shards that are not opened at once are opened on demand."""
    with BundleWriter(LOCAL, str(tmp_path / "wide"), num_shards=300) as writer:
        for shard in range(300):
            writer.add(f"v{shard:03d}", torch.tensor(shard), shard=shard)
    with BundleReader(LOCAL, str(tmp_path / "wide")) as reader:
        values = reader.read_all(reader.keys())
        assert [int(value) for value in values.values()] == list(range(300))
        assert reader.locate("v299") == [f"{tmp_path}/wide.data-00299-of-00300"]


def test_many_threads_read_at_once(tmp_path: Path) -> None:
    """Eight threads with one reader get the right values."""
    tensors = {f"v{i}": torch.randn(200, 300) for i in range(20)}
    prefix = write(tmp_path / "b", tensors)
    wrong: list[str] = []
    with BundleReader(LOCAL, prefix) as reader:

        def work() -> None:
            wrong.extend(name for name, tensor in tensors.items() if not same(reader.read(name), tensor))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
