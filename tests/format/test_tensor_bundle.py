"""The index of version 2: file names, header and entries, compared with TensorFlow's bytes and protobuf."""

from typing import cast

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from torch_tfckpt._proto.tensor_bundle_pb2 import BundleEntryProto, BundleHeaderProto
from torch_tfckpt._proto.tensor_shape_pb2 import TensorShapeProto
from torch_tfckpt._proto.types_pb2 import DataType as DataTypeProto
from torch_tfckpt._proto.versions_pb2 import VersionDef
from torch_tfckpt.errors import DataLossError, InvalidArgumentError
from torch_tfckpt.format.tensor_bundle import (
    MAX_RANK,
    BundleEntry,
    BundleHeader,
    check_versions,
    data_filename,
    index_filename,
    parse_data_filename,
    shape_from_proto,
    shape_to_proto,
)
from torch_tfckpt.format.tensor_slice import MAX_INT64, TensorSlice

SIZES = st.sampled_from([0, 1, 2, 127, 128, 2**31, 2**40])
SHAPES = st.lists(SIZES, max_size=3).map(tuple).filter(lambda shape: _count(shape) <= MAX_INT64)
EXTENTS = st.sampled_from(["-", "0,2", "2,3", "5,300"])
ARABIC_ZERO = "\u0660"  # a digit to `str.isdigit` and `\d`, but never used in checkpoint names
INT64 = st.integers(0, 2**62) | st.sampled_from([0, 1, 127, 128, 2**32])


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size or 1
    return count


def slices_of(rank: int) -> st.SearchStrategy[tuple[TensorSlice, ...]]:
    """Lists of slices of so many dimensions; an entry does not check whether they fit or overlap."""
    text = st.lists(EXTENTS, min_size=rank, max_size=rank).map(":".join)
    return st.lists(text.map(TensorSlice.parse), max_size=3).map(tuple)


def entries_of(shape: tuple[int, ...]) -> st.SearchStrategy[BundleEntry]:
    return st.builds(
        BundleEntry,
        dtype=st.integers(0, 200) | st.integers(-(2**31), 2**31 - 1),
        shape=st.just(shape),
        shard=st.integers(0, 2**31 - 1) | st.sampled_from([0, 1]),
        offset=INT64,
        size=INT64,
        checksum=st.integers(0, 2**32 - 1) | st.just(0),
        slices=st.just(()) | slices_of(len(shape)) if shape else st.just(()),
    )


# An end beyond the largest possible file is refused.
ENTRIES = SHAPES.flatmap(entries_of).filter(lambda entry: entry.offset + entry.size <= MAX_INT64)


def text_of(error: pytest.ExceptionInfo[BaseException]) -> str:
    return str(error.value)


# Names of files.


def test_files_are_named_as_tensorflow_names_them() -> None:
    """Five digits; larger numbers are not truncated."""
    assert index_filename("dir/model.ckpt-1") == "dir/model.ckpt-1.index"
    assert data_filename("dir/model.ckpt-1", 0, 1) == "dir/model.ckpt-1.data-00000-of-00001"
    assert data_filename("p", 123456, 1234567) == "p.data-123456-of-1234567"


@given(prefix=st.text(max_size=8), shard=st.integers(0, 10**7), count=st.integers(0, 10**7))
@example(prefix="a.data-00000-of-00001\n", shard=3, count=4)
def test_data_file_names_can_be_parsed(prefix: str, shard: int, count: int) -> None:
    """With any prefix, including one that looks like a data file itself."""
    assert parse_data_filename(data_filename(prefix, shard, count)) == (prefix, shard, count)


@pytest.mark.parametrize(
    "name",
    [
        "p.index",
        "p.data-00000-of-0001",
        "p.data-0000-of-00001",
        "p.data-00000-of-00001.tempstate123",
        "p.data-00000-of-00001\n",
        "p-00000-of-00001",
        "p.data--0001-of-00001",
        f"p.data-{ARABIC_ZERO * 5}-of-{ARABIC_ZERO * 5}",
        "",
    ],
)  # fmt: skip
def test_other_names_are_not_data_files(name: str) -> None:
    """In particular not temporary ones: a file that is named like a data file may be opened, counted or deleted."""
    assert parse_data_filename(name) is None


# The header.


@pytest.mark.parametrize(
    ("header", "encoded"),
    [
        (BundleHeader(1), "08 01 1a 02 08 01"),
        (BundleHeader(2), "08 02 1a 02 08 01"),
        (BundleHeader(1, big_endian=True), "08 01 10 01 1a 02 08 01"),
    ],
)
def test_headers_are_byte_identical_to_tensorflows(header: BundleHeader, encoded: str) -> None:
    """In both directions: num_shards, endianness, producer 1; zeros are not written."""
    # CASES 130
    assert header.encode() == bytes.fromhex(encoded)
    assert BundleHeader.decode(bytes.fromhex(encoded)) == header
    assert (header.producer, header.min_consumer, header.bad_consumers) == (1, 0, ())


@given(
    st.builds(
        BundleHeader,
        num_shards=st.integers(0, 2**31 - 1),
        big_endian=st.booleans(),
        producer=st.integers(0, 2**31 - 1),
        min_consumer=st.integers(-(2**31), 1),
        bad_consumers=st.lists(st.integers(2, 9), max_size=3).map(tuple),
    )
)
def test_a_header_keeps_its_versions(header: BundleHeader) -> None:
    """A newer producer is accepted if it does not require a newer consumer; the version survives rewriting."""
    assert BundleHeader.decode(header.encode()) == header


def test_a_header_without_a_version_is_accepted() -> None:
    """All zeros, as written before versions existed."""
    assert BundleHeader.decode(bytes.fromhex("08 03")) == BundleHeader(3, producer=0)
    assert BundleHeader.decode(b"") == BundleHeader(0, producer=0)


@pytest.mark.parametrize(
    ("version", "text"),
    [
        (
            VersionDef(producer=1, min_consumer=2),
            "Checkpoint min consumer version 2 above current version 1 for TensorFlow checkpoints. A newer program "
            "wrote it; read it with that program, or with a newer torch_tfckpt",
        ),
        (
            VersionDef(producer=-1),
            "Checkpoint producer version -1 below min producer 0 supported by TensorFlow checkpoints. No known "
            "program writes this version; the file is damaged",
        ),
        (
            VersionDef(producer=1, bad_consumers=[1]),
            "Checkpoint disallows consumer version 1.  Please upgrade TensorFlow: this version is likely buggy. The "
            "program that wrote it declares that readers of this version misread it",
        ),
    ],
)
def test_versions_that_exclude_this_reader_raise_tensorflows_message(version: VersionDef, text: str) -> None:
    """INVALID_ARGUMENT becomes InvalidArgumentError; the fix follows TensorFlow's sentence."""
    # CASES 131, from tensor_bundle_test.cc VersionTest
    header = BundleHeaderProto(num_shards=1, version=version)
    with pytest.raises(InvalidArgumentError) as raised:
        BundleHeader.decode(header.SerializeToString())
    assert text_of(raised) == text
    with pytest.raises(InvalidArgumentError) as raised:
        check_versions(version, "SavedTensorSlices")
    assert text_of(raised) == text.replace("Checkpoint", "SavedTensorSlices", 1)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (BundleHeaderProto(num_shards=-1).SerializeToString(), "the header is invalid: num_shards -1, endianness 0"),
        (b"\x08\x01\x10\x02", "the header is invalid: num_shards 1, endianness 2"),
        (b"\x08", "the header does not parse: "),
        (b"\x1a\x05\x08", "the header does not parse: "),
    ],
)
def test_an_impossible_header_is_refused(value: bytes, text: str) -> None:
    """DataLossError: no program writes such a header."""
    with pytest.raises(DataLossError) as raised:
        BundleHeader.decode(value)
    assert text_of(raised).startswith(text)


# Entries.


ROWS = (TensorSlice.parse("0,2:-"), TensorSlice.parse("2,2:-"))


@pytest.mark.parametrize(
    ("entry", "encoded"),
    [
        # Dumped from TensorFlow 2.21.
        (BundleEntry(1, (), size=4, checksum=0x2BDAA581), "08 01 12 00 28 04 35 81 a5 da 2b"),
        (BundleEntry(7, (3,), size=15, checksum=0xA3D1E109), "08 07 12 04 12 02 08 03 28 0f 35 09 e1 d1 a3"),
        (BundleEntry(7, (), offset=4, size=82, checksum=0xD2F1CAF3), "08 07 12 00 20 04 28 52 35 f3 ca f1 d2"),
        (
            BundleEntry(1, (2, 5), offset=40, size=40, checksum=0xAF788289),
            "08 01 12 08 12 02 08 02 12 02 08 05 20 28 28 28 35 89 82 78 af",
        ),
        (
            BundleEntry(1, (4, 5), slices=ROWS),
            "08 01 12 08 12 02 08 04 12 02 08 05 3a 06 0a 02 10 02 0a 00 3a 08 0a 04 08 02 10 02 0a 00",
        ),
        # A dimension of size 0 is an empty message; an empty tensor has the checksum of no bytes.
        (BundleEntry(1, (0, 3), checksum=0xA282EAD8), "08 01 12 06 12 00 12 02 08 03 35 d8 ea 82 a2"),
        (BundleEntry(9, (), shard=1, size=8), "08 09 12 00 18 01 28 08"),
    ],
)
def test_entries_are_byte_identical_to_tensorflows(entry: BundleEntry, encoded: str) -> None:
    """In both directions; the shape is always written, zeros never."""
    assert entry.encode() == bytes.fromhex(encoded)
    assert BundleEntry.decode(bytes.fromhex(encoded)) == entry
    assert entry.end == entry.offset + entry.size


@given(ENTRIES)
def test_an_entry_is_encoded_as_protobuf_would(entry: BundleEntry) -> None:
    """The fast encoder produces the bytes of the protobuf message, for every dtype, known or not."""
    message = BundleEntryProto(
        dtype=cast(DataTypeProto, entry.dtype),
        shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in entry.shape]),
        shard_id=entry.shard,
        offset=entry.offset,
        size=entry.size,
        crc32c=entry.checksum,
        slices=[part.to_proto() for part in entry.slices],
    )
    assert entry.encode() == message.SerializeToString(deterministic=True)
    assert BundleEntry.decode(entry.encode()) == entry


def placed(**fields: int) -> bytes:
    return BundleEntryProto(dtype=DataTypeProto.DT_FLOAT, **fields).SerializeToString()  # type: ignore[arg-type]


def shaped(*sizes: int) -> bytes:
    return BundleEntryProto(shape=shape_to_proto(sizes)).SerializeToString()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (placed(shard_id=-1), "the entry has an invalid position: size 0 at offset 0 of shard -1"),
        (placed(offset=-1, size=4), "the entry has an invalid position: size 4 at offset -1 of shard 0"),
        (placed(size=-1), "the entry has an invalid position: size -1 at offset 0 of shard 0"),
        (
            placed(offset=MAX_INT64, size=1),
            f"the entry has an invalid position: size 1 at offset {MAX_INT64} of shard 0",
        ),
        (shaped(2, -1), "Invalid tensor shape: (2, -1)"),
        (shaped(*[1] * (MAX_RANK + 1)), "Invalid tensor shape: 255 dimensions, but at most 254 are possible"),
        (shaped(2**32, 2**31), "Invalid tensor shape: (4294967296, 2147483648) has too many elements"),
        (shaped(0, 2**40, 2**40), "Invalid tensor shape: (0, 1099511627776, 1099511627776) has too many"),
        (b"\x12\x02\x18\x01", "Invalid tensor shape: unknown rank"),
        (b"\x12\x04\x12\x02\x08\x09\x3a\x04\x0a\x02\x08\x05", "slice extent starts at 5 but has no length"),
        (b"\x12\x04\x12\x02\x08\x09\x3a\x00", "the entry lists slices that do not fit its shape (9,)"),
        (b"\x3a\x00\x3a\x00", "the entry lists slices that do not fit its shape ()"),
        (b"\x08", "the entry does not parse: "),
        (b"\x12\x05\x12", "the entry does not parse: "),
    ],
)
def test_an_impossible_entry_is_refused(value: bytes, text: str) -> None:
    """DataLossError with the numbers found; nothing is allocated or summed up with them."""
    with pytest.raises(DataLossError) as raised:
        BundleEntry.decode(value)
    assert text_of(raised).startswith(text)


def test_the_largest_shapes_are_accepted() -> None:
    """The limits are exact: 254 dimensions and 2**63 - 1 elements are accepted."""
    assert BundleEntry.decode(shaped(*[1] * MAX_RANK)).shape == (1,) * 254
    assert BundleEntry.decode(shaped(MAX_INT64)).shape == (MAX_INT64,)
    assert shape_from_proto(shape_to_proto((3, 0, 2))) == (3, 0, 2)
    assert shape_from_proto(TensorShapeProto()) == ()


@given(entry=ENTRIES, data=st.data())
def test_any_bytes_are_an_entry_or_an_error(entry: BundleEntry, data: st.DataObject) -> None:
    """If protobuf and we accept it, it is encoded to an equal entry; otherwise DataLossError."""
    encoded = bytearray(entry.encode())
    if encoded:
        at = data.draw(st.integers(0, len(encoded) - 1))
        encoded[at] = data.draw(st.integers(0, 255))
        del encoded[data.draw(st.integers(0, len(encoded)) | st.just(len(encoded))) :]
    try:
        decoded = BundleEntry.decode(bytes(encoded))
    except DataLossError:
        return
    try:
        BundleEntryProto.FromString(bytes(encoded))
    except DecodeError:
        pytest.fail("bytes that are not a message were accepted as an entry")
    assert BundleEntry.decode(decoded.encode()) == decoded


@given(st.data())
def test_the_fast_decoder_equals_protobuf(data: st.DataObject) -> None:
    """Fast path == general path: if the fast decoder returns an entry, protobuf yields the same one."""
    entry = BundleEntry(
        data.draw(st.integers(0, 300)),
        tuple(data.draw(st.lists(st.integers(0, 1 << 20), max_size=3))),
        data.draw(st.integers(0, 1 << 20)),
        data.draw(st.integers(0, 1 << 62)),
        data.draw(st.integers(0, 1 << 61)),
        data.draw(st.integers(0, 0xFFFFFFFF)),
    )
    stored = bytearray(entry.encode())
    for _ in range(data.draw(st.integers(0, 3))):
        stored[data.draw(st.integers(0, len(stored) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(stored[: data.draw(st.integers(0, len(stored)))] if data.draw(st.booleans()) else stored)
    usual = BundleEntry._decode_usual(cut)
    if usual is not None:
        assert usual == BundleEntry._decode_any(cut)
