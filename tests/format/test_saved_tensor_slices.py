"""Records of version 1 files, compared with TensorFlow's bytes and with protobuf's parser and serializer."""

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from torch_tfckpt._proto import types_pb2
from torch_tfckpt._proto.saved_tensor_slice_pb2 import SavedTensorSlices
from torch_tfckpt._proto.tensor_pb2 import TensorProto
from torch_tfckpt.errors import CheckpointError, DataLossError, InvalidArgumentError
from torch_tfckpt.format import saved_tensor_slices
from torch_tfckpt.format.coding import encode_varint
from torch_tfckpt.format.saved_tensor_slices import (
    VALUE_FIELDS,
    Kind,
    SavedSliceMeta,
    Values,
    decode_meta,
    decode_slice,
    encode_meta,
    encode_slice,
)
from torch_tfckpt.format.tensor_bundle import BundleHeader
from torch_tfckpt.format.tensor_slice import TensorSlice
from torch_tfckpt.format.wire import WireType, sized_tag, tag

WRITABLE = [number for number, field in VALUE_FIELDS.items() if field.estimate]
NUMERIC = [number for number, field in VALUE_FIELDS.items() if field.kind is not Kind.STRING]
SCALAR = TensorSlice(())


def dtype_name(number: int) -> str:
    return types_pb2.DataType.Name(number)


def values_of(number: int, max_size: int = 20) -> st.SearchStrategy[Values]:
    """Arrays, or lists of bytes, of a stored dtype; all bit patterns, including NaNs."""
    field = VALUE_FIELDS[number]
    if field.kind is Kind.STRING:
        return st.lists(st.binary(max_size=6), max_size=max_size)
    if field.array.kind == "b":
        return hnp.arrays(np.bool_, st.integers(0, max_size))
    size = field.array.itemsize
    raw = st.integers(0, max_size).flatmap(lambda count: st.binary(min_size=count * size, max_size=count * size))
    return raw.map(lambda data: np.frombuffer(data, dtype=field.array))


def same_bits(one: Values, other: Values) -> bool:
    if isinstance(one, list) or isinstance(other, list):
        return list(one) == list(other)
    return one.dtype == other.dtype and one.tobytes() == other.tobytes()


def values_message(record: bytes) -> TensorProto:
    """Parse the TensorProto of a record with protobuf."""
    return SavedTensorSlices.FromString(record).data.data


def record_of(values: bytes) -> bytes:
    """Return a record that contains the bytes of a TensorProto."""
    inner = sized_tag(1, 1) + b"x" + sized_tag(2, 0) + sized_tag(3, len(values)) + values
    return sized_tag(2, len(inner)) + inner


# Bytes written by TensorFlow 2.21.


def test_metadata_of_a_scalar() -> None:
    meta = SavedSliceMeta("x", (), types_pb2.DT_FLOAT, (SCALAR,))
    encoded = bytes.fromhex("0a 0f 0a 09 0a 01 78 12 00 18 01 22 00 12 02 08 01")
    assert encode_meta([meta]) == encoded
    assert decode_meta(encoded) == [meta]


@pytest.mark.parametrize(
    ("name", "dtype", "values", "encoded"),
    [
        ("x", types_pb2.DT_FLOAT, np.array(1, np.float32), "12 0d 0a 01 78 12 00 1a 06 2a 04 00 00 80 3f"),
        ("", types_pb2.DT_FLOAT, np.array(1, np.float32), "12 0a 12 00 1a 06 2a 04 00 00 80 3f"),
        ("x", types_pb2.DT_FLOAT, np.zeros((0, 3), np.float32), "12 07 0a 01 78 12 00 1a 00"),
    ],
)
def test_whole_records(name: str, dtype: int, values: npt.NDArray[Any], encoded: str) -> None:
    assert encode_slice(name, SCALAR, dtype, values) == bytes.fromhex(encoded)
    decoded = decode_slice(bytes.fromhex(encoded), dtype, values.size)
    assert decoded.name == name
    assert same_bits(decoded.values, values)


@pytest.mark.parametrize(
    ("dtype", "values", "encoded"),
    [
        (types_pb2.DT_INT8, np.array([[-1, 2]], np.int8), "3a 0b ff ff ff ff ff ff ff ff ff 01 02"),
        (types_pb2.DT_HALF, np.array([-1, 2.5, 3], np.float16), "6a 09 80 f8 02 80 82 01 80 84 01"),
        (types_pb2.DT_STRING, [b"hi", b""], "42 02 68 69 42 00"),
        (types_pb2.DT_BOOL, np.array([True, False]), "5a 02 01 00"),
        (types_pb2.DT_UINT16, np.array([65535], np.uint16), "3a 03 ff ff 03"),
        (types_pb2.DT_INT64, np.array([-(2**63)], np.int64), "52 0a 80 80 80 80 80 80 80 80 80 01"),
        (types_pb2.DT_COMPLEX64, np.array([1 + 2j], np.complex64), "4a 08 00 00 80 3f 00 00 00 40"),
    ],
)
def test_values(dtype: int, values: Values, encoded: str) -> None:
    stored = bytes.fromhex(encoded)
    assert encode_slice("x", SCALAR, dtype, values) == record_of(stored)
    assert same_bits(decode_slice(record_of(stored), dtype, len(np.ravel(values))).values, values)


# Protobuf as the oracle.


@given(dtype=st.sampled_from(WRITABLE), name=st.text(max_size=5), data=st.data())
def test_protobuf_writes_the_same_bytes(dtype: int, name: str, data: st.DataObject) -> None:
    """A record parsed and serialized again by protobuf is unchanged, and its fields are the values."""
    values, part = data.draw(values_of(dtype)), TensorSlice.parse("0,5:-")
    record = encode_slice(name, part, dtype, values)
    message = SavedTensorSlices.FromString(record)
    assert message.SerializeToString(deterministic=True) == record
    assert (message.data.name, message.data.slice) == (name, part.to_proto())
    assert {field.number for field, _ in message.data.data.ListFields()} <= {VALUE_FIELDS[dtype].number}


@given(dtype=st.sampled_from(WRITABLE), data=st.data())
def test_values_round_trip(dtype: int, data: st.DataObject) -> None:
    """Every bit of every writable dtype, including NaNs and infinities."""
    values = data.draw(values_of(dtype))
    decoded = decode_slice(encode_slice("x", SCALAR, dtype, values), dtype, len(values))
    assert decoded.name == "x"
    assert same_bits(decoded.values, values)


def test_long_lists_are_converted_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists around the size of a chunk, with varints of all widths."""
    monkeypatch.setattr(saved_tensor_slices, "_PIECE", 8)
    for count in (7, 8, 9, 16, 17, 100):
        values = np.array([(-1) ** n * 3**n % 2**62 for n in range(count)], np.int64)
        record = encode_slice("x", SCALAR, types_pb2.DT_INT64, values)
        assert list(values_message(record).int64_val) == values.tolist()
        assert same_bits(decode_slice(record, types_pb2.DT_INT64, count).values, values)


@pytest.mark.parametrize("dtype", [types_pb2.DT_UINT32, types_pb2.DT_UINT64])
def test_types_that_are_read_but_never_written(dtype: int) -> None:
    # TensorFlow's reader supports uint32_val and uint64_val, but no TensorFlow writes them.
    field = VALUE_FIELDS[dtype]
    assert not field.estimate
    highest = 2 ** (8 * field.array.itemsize) - 1
    message = TensorProto(uint32_val=[1, highest]) if field.number == 16 else TensorProto(uint64_val=[1, highest])
    values = decode_slice(record_of(message.SerializeToString()), dtype, 2).values
    assert same_bits(values, np.array([1, highest], field.array))


def unpacked(dtype: int, values: npt.NDArray[Any]) -> list[bytes]:
    """Every number in its own field, the older of protobuf's two encodings."""
    field = VALUE_FIELDS[dtype]
    parts: list[bytes] = []
    for value in values:
        if field.kind is Kind.VARINT:
            bits = int(value.view(np.uint16)) if field.array.kind == "f" else int(value) % 2**64
            parts.append(tag(field.number, WireType.VARINT) + encode_varint(bits))
            continue
        halves = [value.real, value.imag] if field.array.kind == "c" else [value]
        kind, code = (WireType.FIXED32, "<f") if field.wire_size == 4 else (WireType.FIXED64, "<d")
        parts += [tag(field.number, kind) + struct.pack(code, half) for half in halves]
    return parts


def packed(dtype: int, values: npt.NDArray[Any]) -> bytes:
    """A packed list, as encode_slice writes it."""
    return values_message(encode_slice("", SCALAR, dtype, values)).SerializeToString(deterministic=True)


@given(dtype=st.sampled_from([n for n in NUMERIC if VALUE_FIELDS[n].estimate]), data=st.data())
def test_every_encoding_of_a_list_is_read(dtype: int, data: st.DataObject) -> None:
    """Packed, unpacked, in several runs, with unknown fields and groups in between: the same as protobuf reads."""
    field = VALUE_FIELDS[dtype]
    finite = hnp.arrays(
        field.array, st.integers(0, 12), elements={"allow_nan": False} if field.array.kind in "fc" else {}
    )
    values = data.draw(finite)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=3)))
    strangers = [
        b"",
        sized_tag(99, 2) + b"ab",
        tag(99, WireType.VARINT) + b"\x05",
        tag(98, WireType.GROUP_START) + tag(98, WireType.GROUP_END),
    ]
    encoded = b""
    for start, stop in zip([0, *cuts], [*cuts, len(values)], strict=True):
        run = values[start:stop]
        encoded += data.draw(st.sampled_from([packed(dtype, run), b"".join(unpacked(dtype, run))]))
        encoded += data.draw(st.sampled_from(strangers))
    known = TensorProto.FromString(encoded)
    known.DiscardUnknownFields()  # type: ignore[attr-defined, unused-ignore]
    assert known.SerializeToString(deterministic=True) == packed(dtype, values)
    assert same_bits(decode_slice(record_of(encoded), dtype, len(values)).values, values)


def test_messages_in_several_parts_are_merged() -> None:
    """Protobuf merges a nested message that occurs twice: lists are concatenated; of strings the last counts."""
    float_one, float_two = bytes.fromhex("2a 04 00 00 80 3f"), bytes.fromhex("2d 00 00 00 40")
    slices = [b"\x0a\x01a\x1a" + bytes((len(part),)) + part for part in (float_one, float_two)]
    record = b"".join(sized_tag(2, len(part)) + part for part in slices).replace(b"\x0a\x01a", b"\x0a\x01b", 1)
    assert list(values_message(record).float_val) == [1, 2]
    assert decode_slice(record, types_pb2.DT_FLOAT, 2).values.tolist() == [1, 2]  # type: ignore[union-attr]
    assert decode_slice(record, types_pb2.DT_FLOAT, 2).name == SavedTensorSlices.FromString(record).data.name == "a"


def test_integers_keep_their_low_bits() -> None:
    """Some writers encode an int32 of -1 in five bytes; protobuf uses the low 32 bits of any varint."""
    assert list(TensorProto.FromString(bytes.fromhex("3a 05 ff ff ff ff 0f")).int_val) == [-1]
    for dtype in (types_pb2.DT_INT32, types_pb2.DT_INT16, types_pb2.DT_INT8, types_pb2.DT_QINT8):
        assert decode_slice(record_of(bytes.fromhex("3a 05 ff ff ff ff 0f")), dtype, 1).values[0] == -1
    assert decode_slice(record_of(bytes.fromhex("5a 02 80 01")), types_pb2.DT_BOOL, 1).values[0]


# Invalid records.


@pytest.mark.parametrize("dtype", WRITABLE, ids=dtype_name)
@pytest.mark.parametrize("count", [0, 1, 3, 2**62])
def test_a_wrong_number_of_values_is_damage(dtype: int, count: int) -> None:
    """The slice has exactly as many values as elements, and a made-up number allocates no memory."""
    field = VALUE_FIELDS[dtype]
    values: Values = [b"a", b"b"] if field.kind is Kind.STRING else np.ones(2, field.array)
    with pytest.raises(DataLossError, match=f"expected {count}, found"):
        decode_slice(encode_slice("x", SCALAR, dtype, values), dtype, count)


@pytest.mark.parametrize(
    ("dtype", "values", "message"),
    [
        (types_pb2.DT_FLOAT, "2a 05 00 00 80 3f 00", "ends in the middle of a number, at byte 5"),
        (types_pb2.DT_INT32, "3a 02 01 80", "ends in the middle of a number, at byte 2"),
        (types_pb2.DT_INT32, "3a 01 80 3a 01 01", "ends in the middle of a number, at byte 1"),
        (types_pb2.DT_INT32, "3a 0c ff ff ff ff ff ff ff ff ff ff ff 01", "expected 1 integers, found 0"),
        (types_pb2.DT_COMPLEX64, "4a 04 00 00 80 3f", "the number of real and imaginary parts is odd: 1"),
        (types_pb2.DT_FLOAT, "30 01", "number of stored values: expected 1, found 0"),
        (types_pb2.DT_FLOAT, "2a 08 00 00 80 3f", "field 5 ends at byte 10, but the message ends at 6"),
    ],
)
def test_malformed_lists_are_refused(dtype: int, values: str, message: str) -> None:
    with pytest.raises(DataLossError) as raised:
        decode_slice(record_of(bytes.fromhex(values)), dtype, 1)
    assert message in str(raised.value)


@given(dtype=st.sampled_from(sorted(VALUE_FIELDS)), data=st.data())
def test_mutated_records_are_values_or_an_error(dtype: int, data: st.DataObject) -> None:
    """For arbitrary bytes: `count` values, or a CheckpointError."""
    writable = dtype if VALUE_FIELDS[dtype].estimate else types_pb2.DT_INT32
    record = bytearray(encode_slice("name", TensorSlice.parse("0,5:-"), writable, data.draw(values_of(writable, 5))))
    for _ in range(data.draw(st.integers(0, 4))):
        record[data.draw(st.integers(0, len(record) - 1))] = data.draw(st.integers(0, 255))
    count = data.draw(st.integers(0, 6))
    try:
        decoded = decode_slice(bytes(record[: data.draw(st.integers(0, len(record)))]), dtype, count)
    except CheckpointError:
        return
    assert len(decoded.values) == count


@given(st.data())
def test_mutated_metadata_is_metadata_or_an_error(data: st.DataObject) -> None:
    """For arbitrary bytes: tensors with valid shapes and slices, or a CheckpointError."""
    metas = [
        SavedSliceMeta("a/b", (4, 5), types_pb2.DT_FLOAT, (TensorSlice.parse("0,2:-"), TensorSlice.parse("2,2:-"))),
        SavedSliceMeta("c", (), types_pb2.DT_STRING, (SCALAR,)),
    ]
    record = bytearray(encode_meta(metas))
    for _ in range(data.draw(st.integers(0, 4))):
        record[data.draw(st.integers(0, len(record) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = decode_meta(bytes(record))
    except CheckpointError:
        return
    assert all(size >= 0 for meta in decoded for size in meta.shape)


# Metadata.


def edited_meta(edit: Callable[[SavedTensorSlices], object]) -> bytes:
    """Return the metadata of tensors "good" and "bad", changed."""
    metas = [SavedSliceMeta(name, (2, 3), types_pb2.DT_FLOAT, (TensorSlice.full(2),)) for name in ("good", "bad")]
    message = SavedTensorSlices.FromString(encode_meta(metas))
    edit(message)
    return message.SerializeToString()


@pytest.mark.parametrize("number", [0, 77, types_pb2.DT_INT32 + 100], ids=["missing", "unknown", "reference"])
def test_an_invalid_dtype_does_not_affect_other_tensors(number: int) -> None:
    # CASES 138, from tensor_slice_reader_test.cc MissingTensorType, UnsupportedTensorType
    record = edited_meta(lambda message: setattr(message.meta.tensor[1], "type", number))
    assert [(meta.name, meta.dtype) for meta in decode_meta(record)] == [("good", 1), ("bad", number)]


def test_a_negative_dimension_makes_the_file_unreadable() -> None:
    # CASES 139, from tensor_slice_reader_test.cc NegativeTensorShapeDimension
    record = edited_meta(lambda message: setattr(message.meta.tensor[1].shape.dim[0], "size", -1))
    with pytest.raises(DataLossError, match=r"Invalid tensor shape: \(-1, 3\)"):
        decode_meta(record)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        # The same checks as for the bundle.
        ("min_consumer", 2, "Checkpoint min consumer version 2 above current version 1 for TensorFlow"),
        ("producer", -1, "Checkpoint producer version -1 below min producer 0 supported by TensorFlow"),
    ],
)
def test_versions_that_exclude_this_reader_are_refused(field: str, value: int, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        decode_meta(edited_meta(lambda record: setattr(record.meta.versions, field, value)))


def test_metadata_without_versions_is_accepted() -> None:
    assert len(decode_meta(edited_meta(lambda record: record.meta.ClearField("versions")))) == 2


@pytest.mark.parametrize("header", [BundleHeader(1), BundleHeader(2, big_endian=True)])
def test_the_header_of_a_version_2_index_is_refused(header: BundleHeader) -> None:
    """TensorFlow mistakes it for an empty checkpoint."""
    with pytest.raises(DataLossError, match=r"no SavedTensorSliceMeta.*index of a version 2 checkpoint"):
        decode_meta(header.encode())


def test_an_empty_checkpoint_has_metadata() -> None:
    assert decode_meta(encode_meta([])) == []


# The limit of 2 GiB.


@pytest.mark.parametrize("dtype", WRITABLE, ids=dtype_name)
def test_the_estimate_is_tensorflows(dtype: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes per element, plus 1 KiB, plus the header (here 3 bytes of name and 2 of slice)."""
    per_element = {
        "FLOAT": 4, "DOUBLE": 8, "INT32": 10, "UINT8": 2, "INT16": 10, "INT8": 10, "COMPLEX64": 8, "INT64": 10,
        "BOOL": 1, "COMPLEX128": 16, "HALF": 3, "UINT16": 3, "QINT8": 10, "QUINT8": 2, "QINT32": 10,
    }  # fmt: skip
    field = VALUE_FIELDS[dtype]
    values: Values
    if field.kind is Kind.STRING:
        values, estimate = [b"abc", b""], 2 * 10 + 3
    else:
        values, estimate = np.zeros(7, field.array), 7 * per_element[dtype_name(dtype).removeprefix("DT_")]
    bound = estimate + 1024 + 5
    monkeypatch.setattr(saved_tensor_slices, "MAX_MESSAGE_BYTES", bound)
    encode_slice("x", SCALAR, dtype, values)
    monkeypatch.setattr(saved_tensor_slices, "MAX_MESSAGE_BYTES", bound - 1)
    with pytest.raises(InvalidArgumentError) as raised:
        encode_slice("x", SCALAR, dtype, values)
    assert str(raised.value) == f"Tensor slice is too large to serialize (conservative estimate: {bound} bytes)"


def test_two_gibibytes_of_bool_are_too_large() -> None:
    # CASES 86, from saver_large_variable_test.py; a broadcast array takes no memory
    values = np.broadcast_to(np.False_, (2, 1024, 1024, 1024))
    with pytest.raises(InvalidArgumentError, match="Tensor slice is too large to serialize"):
        encode_slice("x", TensorSlice.full(4), types_pb2.DT_BOOL, values)
