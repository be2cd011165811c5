"""Version 1 checkpoints: a single table that contains the tensors, one protobuf message per key.

    key ""          SavedTensorSlices { 1: SavedTensorSliceMeta }     names, shapes, types, slices of all tensors
    slice key       SavedTensorSlices { 2: SavedSlice }               the values of one slice (see tensor_slice.py)

    SavedTensorSliceMeta { 1: repeated SavedSliceMeta   2: VersionDef }
    SavedSliceMeta       { 1: name   2: TensorShapeProto, full   3: DataType   4: repeated TensorSliceProto }
    SavedSlice           { 1: name   2: TensorSliceProto         3: TensorProto }

A tensor that is not partitioned has one slice, all of whose dimensions are whole. The TensorProto has one repeated
field with exactly as many values as the slice has elements, and nothing else: no dtype, no shape. The dtype determines
the field, see VALUE_FIELDS. There are no checksums other than those of the table's blocks.

The scalar float "x" = 1.0:

    key ""                  0a 0f | 0a 09 | 0a 01 78 | 12 00 | 18 01 | 22 00    | 12 02 08 01
                            meta    tensor  name "x"   shape   type    slice      versions: producer 1
    key 00 78 00 01 00      12 0d | 0a 01 78 | 12 00 | 1a 06 | 2a 04 00 00 80 3f
                            data    name "x"   slice   values  float_val [1.0]

int8 [[-1, 2]] has the values 3a 0b | ff ff ff ff ff ff ff ff ff 01 | 02: negative integers take ten bytes.

Source: tensorflow/core/util/saved_tensor_slice.proto, saved_tensor_slice_util.{h,cc}, tensor_slice_writer.{h,cc}.
Explained in docs/formats/v1.md.
"""

import enum
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from torch_tfckpt._proto import saved_tensor_slice_pb2, types_pb2
from torch_tfckpt._proto.versions_pb2 import VersionDef
from torch_tfckpt.errors import DataLossError, InvalidArgumentError
from torch_tfckpt.format.tensor_bundle import VERSION, check_versions, shape_from_proto, shape_to_proto
from torch_tfckpt.format.tensor_slice import Shape, TensorSlice
from torch_tfckpt.format.varint_arrays import decode_varints, encode_varints
from torch_tfckpt.format.wire import WireType, fields, sized_tag

META_KEY: Final = b""
# TensorSliceWriter::kMaxMessageBytes: protobuf accepts no larger message.
MAX_MESSAGE_BYTES: Final = 1 << 31
_HEADER_BYTES: Final = 1 << 10  # TensorSliceWriter::kTensorProtoHeaderBytes
_STRING_BYTES: Final = 10  # added to the length of each string in the estimate
# Varints are converted in chunks of this many values: the conversion needs about 50 bytes of memory per value.
_PIECE: Final = 1 << 18

_META, _DATA = 1, 2  # fields of SavedTensorSlices
_NAME, _SLICE, _VALUES = 1, 2, 3  # fields of SavedSlice

Array = npt.NDArray[Any]
Values = Array | list[bytes]


class Kind(enum.Enum):
    """Encoding of the values of a field."""

    FIXED = "little-endian numbers"
    VARINT = "varints"
    STRING = "one length-delimited field each"


@dataclass(frozen=True, slots=True)
class ValueField:
    """The TensorProto field that contains the values of one dtype."""

    number: int
    kind: Kind
    array: np.dtype[Any]  # of the decoded values; object for strings
    estimate: int  # TensorFlow's maximum bytes per element (MaxBytesPerElement); 0: TensorFlow only reads this type

    @property
    def wire_size(self) -> int:
        """Minimum bytes of one number on the wire; a complex value is two numbers."""
        if self.kind is not Kind.FIXED:
            return 1
        return self.array.itemsize // 2 if self.array.kind == "c" else self.array.itemsize

    @property
    def min_element_size(self) -> int:
        """Minimum bytes of one element on the wire; bounds the memory that a file can make us allocate."""
        return {Kind.FIXED: self.array.itemsize, Kind.VARINT: 1, Kind.STRING: 2}[self.kind]


def _fixed(number: int, array: str, estimate: int) -> ValueField:
    return ValueField(number, Kind.FIXED, np.dtype(array), estimate)


def _varint(number: int, array: str, estimate: int) -> ValueField:
    return ValueField(number, Kind.VARINT, np.dtype(array), estimate)


# dtype -> field of TensorProto (saved_tensor_slice_util.h). No writer ever stored the types that are missing here.
VALUE_FIELDS: Final[dict[int, ValueField]] = {
    types_pb2.DT_FLOAT: _fixed(5, "f4", 4),
    types_pb2.DT_DOUBLE: _fixed(6, "f8", 8),
    types_pb2.DT_INT32: _varint(7, "i4", 10),
    types_pb2.DT_UINT8: _varint(7, "u1", 2),
    types_pb2.DT_INT16: _varint(7, "i2", 10),
    types_pb2.DT_INT8: _varint(7, "i1", 10),
    types_pb2.DT_STRING: ValueField(8, Kind.STRING, np.dtype(object), _STRING_BYTES),
    types_pb2.DT_COMPLEX64: _fixed(9, "c8", 8),
    types_pb2.DT_INT64: _varint(10, "i8", 10),
    types_pb2.DT_BOOL: _varint(11, "?", 1),
    types_pb2.DT_QINT8: _varint(7, "i1", 10),
    types_pb2.DT_QUINT8: _varint(7, "u1", 2),
    types_pb2.DT_QINT32: _varint(7, "i4", 10),
    types_pb2.DT_UINT16: _varint(7, "u2", 3),
    types_pb2.DT_COMPLEX128: _fixed(12, "c16", 16),
    types_pb2.DT_HALF: _varint(13, "f2", 3),
    types_pb2.DT_UINT32: _varint(16, "u4", 0),
    types_pb2.DT_UINT64: _varint(17, "u8", 0),
}


# The metadata.


class SavedSliceMeta(NamedTuple):
    """Metadata of one tensor."""

    name: str
    shape: Shape  # of the full tensor
    dtype: int  # TensorFlow's number, even if unknown to us; 0 if missing
    slices: tuple[TensorSlice, ...]  # the slices stored in this file, in the order they were added


def encode_meta(tensors: Iterable[SavedSliceMeta]) -> bytes:
    """Return the record stored under META_KEY."""
    record = saved_tensor_slice_pb2.SavedTensorSlices()
    for name, shape, dtype, slices in tensors:
        record.meta.tensor.add(
            name=name,
            shape=shape_to_proto(shape),
            type=cast(types_pb2.DataType, dtype),
            slice=[part.to_proto() for part in slices],
        )
    record.meta.versions.CopyFrom(VersionDef(producer=VERSION))
    return record.SerializeToString(deterministic=True)


def decode_meta(record: bytes) -> list[SavedSliceMeta]:
    """Return the metadata of a file's tensors.

    As in TensorFlow, an invalid dtype is only reported when its tensor is read.

    Raises:
        DataLossError: the record does not parse, is not metadata, or has an impossible shape or slice.
        InvalidArgumentError: it requires a different reader version.
    """
    try:
        message = saved_tensor_slice_pb2.SavedTensorSlices.FromString(record)
    except DecodeError as error:
        raise DataLossError(f"the metadata does not parse: {error}") from error
    if not message.HasField("meta"):
        # The header of a version 2 index also parses, as a message with only unknown fields.
        raise DataLossError(
            "the first record has no SavedTensorSliceMeta, so this is not a version 1 file. It may be the index of a "
            "version 2 checkpoint; open the checkpoint by its prefix, which is the path without .index"
        )
    check_versions(message.meta.versions, "Checkpoint")
    return [_meta_from_proto(tensor) for tensor in message.meta.tensor]


def _meta_from_proto(tensor: saved_tensor_slice_pb2.SavedSliceMeta) -> SavedSliceMeta:
    slices = tuple(TensorSlice.from_proto(part) for part in tensor.slice)
    return SavedSliceMeta(tensor.name, shape_from_proto(tensor.shape), int(tensor.type), slices)


# The values.


class SavedSlice(NamedTuple):
    """Record of one slice."""

    name: str  # of the tensor; "" if the record has none
    values: Values  # in row-major order: a one-dimensional, writable array, or a list of strings


def encode_slice(name: str, part: TensorSlice, dtype: int, values: Array | Sequence[bytes]) -> bytes:
    """Return the record of one slice, as TensorFlow's TensorSliceWriter writes it.

    Args:
        dtype: A key of VALUE_FIELDS whose estimate is not 0: a type that TensorFlow writes too.
        values: An array of that field's dtype and any shape, in row-major order; for strings, a sequence of bytes.

    Raises:
        InvalidArgumentError: the record might exceed MAX_MESSAGE_BYTES.
    """
    field = VALUE_FIELDS[dtype]
    encoded_name, encoded_part = name.encode(), part.to_proto().SerializeToString(deterministic=True)
    head = (sized_tag(_NAME, len(encoded_name)) + encoded_name) if encoded_name else b""
    head += sized_tag(_SLICE, len(encoded_part)) + encoded_part
    _check_size(field, len(head), values)
    payloads = list(_encode_values(field, values))
    size = sum(map(len, payloads))
    head += sized_tag(_VALUES, size)
    return b"".join((sized_tag(_DATA, len(head) + size), head, *payloads))


def _check_size(field: ValueField, head: int, values: Array | Sequence[bytes]) -> None:
    count = values.size if isinstance(values, np.ndarray) else len(values)
    bound = head + _HEADER_BYTES + field.estimate * count
    if field.kind is Kind.STRING:
        bound += sum(map(len, values))
    if bound > MAX_MESSAGE_BYTES:
        raise InvalidArgumentError(f"Tensor slice is too large to serialize (conservative estimate: {bound} bytes)")


def _encode_values(field: ValueField, values: Array | Sequence[bytes]) -> Iterator[bytes]:
    """Yield the chunks of the TensorProto, in order."""
    if field.kind is Kind.STRING:
        for value in values:
            yield sized_tag(field.number, len(value))
            yield value
        return
    flat = np.asarray(values, dtype=field.array).reshape(-1)
    if not flat.size:
        return
    if field.kind is Kind.FIXED:
        packed = [flat.astype(field.array.newbyteorder("<"), copy=False).tobytes()]
    else:
        packed = [encode_varints(_to_unsigned(flat[at : at + _PIECE])) for at in range(0, flat.size, _PIECE)]
    yield sized_tag(field.number, sum(map(len, packed)))
    yield from packed


def decode_slice(record: bytes, dtype: int, count: int) -> SavedSlice:
    """Decode the record of a slice of `count` elements. REQUIRES: `dtype` is in VALUE_FIELDS.

    Accepts every encoding that protobuf parsers accept: packed, unpacked and mixed lists, split messages, unknown
    fields.

    Raises:
        DataLossError: the record does not parse, or does not contain exactly `count` values.

    Cost: no Python object per number; one copy of the values, allocated after their number is checked.
    """
    field = VALUE_FIELDS[dtype]
    accepted = (WireType.BYTES, _UNPACKED[field.kind, field.wire_size])
    # Copy strings immediately: a view of an empty string would take ten times as many bytes as the string in the file.
    take = bytes if field.kind is Kind.STRING else memoryview
    name, chunks = b"", []
    for data in _messages(memoryview(record), _DATA):
        for part in fields(data):
            if part.wire_type == WireType.BYTES and part.number == _NAME:
                name = bytes(part.payload)
            elif part.wire_type == WireType.BYTES and part.number == _VALUES:
                values = fields(part.payload)
                chunks += [take(value.payload) for value in values if value[0] == field.number and value[1] in accepted]
    return SavedSlice(name.decode(errors="replace"), _decode_values(field, chunks, count))


# The wire type of a number outside a packed list; strings are never packed.
_UNPACKED: Final = {
    (Kind.FIXED, 4): WireType.FIXED32,
    (Kind.FIXED, 8): WireType.FIXED64,
    (Kind.VARINT, 1): WireType.VARINT,
    (Kind.STRING, 1): WireType.BYTES,
}


def _messages(message: memoryview, number: int) -> Iterator[memoryview]:
    """Return every occurrence of nested message `number`; parsers merge them, concatenating lists."""
    return (field.payload for field in fields(message) if (field.number, field.wire_type) == (number, WireType.BYTES))


def _decode_values(field: ValueField, chunks: Sequence[bytes | memoryview], count: int) -> Values:
    if field.kind is Kind.STRING:
        _check_count(len(chunks), count)
        return list(map(bytes, chunks))  # the same objects, not copies
    for chunk in chunks:
        if _is_cut(field, chunk):
            raise DataLossError(f"list of {field.kind.value} ends in the middle of a number, at byte {len(chunk)}")
    packed = memoryview(chunks[0] if len(chunks) == 1 else b"".join(chunks))
    if field.kind is Kind.VARINT:
        return _decode_varints(field, packed, count)
    if len(packed) % field.array.itemsize:
        raise DataLossError(f"the number of real and imaginary parts is odd: {len(packed) // field.wire_size}")
    _check_count(len(packed) // field.array.itemsize, count)
    return np.frombuffer(packed, dtype=field.array.newbyteorder("<")).astype(field.array)


def _is_cut(field: ValueField, chunk: bytes | memoryview) -> bool:
    if field.kind is Kind.VARINT:
        return len(chunk) > 0 and chunk[-1] >= 0x80
    return len(chunk) % field.wire_size > 0


def _check_count(found: int, count: int) -> None:
    if found != count:
        raise DataLossError(f"number of stored values: expected {count}, found {found}")


def _decode_varints(field: ValueField, packed: memoryview, count: int) -> Array:
    # A byte without the high bit ends a varint.
    _check_count(int(np.count_nonzero(np.frombuffer(packed, dtype=np.uint8) < 0x80)), count)
    result = np.empty(count, dtype=field.array)
    at = 0
    for start in range(0, count, _PIECE):
        piece = result[start : start + _PIECE]
        values, used = decode_varints(packed[at:], len(piece))
        piece[:] = _from_unsigned(values, field.array)
        at += used
    return result


def _from_unsigned(values: npt.NDArray[np.uint64], array: np.dtype[Any]) -> Array:
    """Return the low bits of each varint as dtype `array`: integers in two's complement, halves as bits."""
    if array.kind == "b":
        return np.not_equal(values, 0)
    return values.astype(f"u{array.itemsize}").view(array)


def _to_unsigned(values: Array) -> npt.NDArray[np.uint64]:
    """Return `values` for varint encoding: integers sign-extended to 64 bits, halves as bit patterns."""
    if values.dtype.kind == "i":
        return values.astype(np.int64).view(np.uint64)
    return (values.view(np.uint16) if values.dtype.kind == "f" else values).astype(np.uint64)
