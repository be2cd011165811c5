"""The index of a version 2 checkpoint: one header, then one entry for each tensor and each slice.

    prefix.index                    a table: "" -> BundleHeaderProto, name or slice key -> BundleEntryProto
    prefix.data-00003-of-00004      shard 3 of 4: the bytes of tensors, back to back

    header of one shard   08 01 | 1a 02 08 01                      num_shards 1, producer 1
    scalar float 1.0      08 01 | 12 00 | 28 04 | 35 81 a5 da 2b   DT_FLOAT, shape [], 4 bytes at 0, masked checksum

A partitioned tensor has an entry under its name, with the full shape and the list of its slices but no bytes, and one
more entry for each slice, under the slice's key.

Source: tensorflow/core/protobuf/tensor_bundle.proto, core/util/tensor_bundle/tensor_bundle.{h,cc}, naming.cc. Explained
in docs/formats/bundle.md.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, NamedTuple, cast

from google.protobuf.message import DecodeError

from torch_tfckpt._proto.tensor_bundle_pb2 import BundleEntryProto, BundleHeaderProto
from torch_tfckpt._proto.tensor_shape_pb2 import TensorShapeProto
from torch_tfckpt._proto.types_pb2 import DataType as DataTypeProto
from torch_tfckpt._proto.versions_pb2 import VersionDef
from torch_tfckpt.errors import DataLossError, InvalidArgumentError
from torch_tfckpt.format.coding import decode_varint, encode_varint
from torch_tfckpt.format.tensor_slice import MAX_INT64, Shape, TensorSlice

HEADER_KEY: Final = b""
_SHARD_TAG, _OFFSET_TAG, _SIZE_TAG, _CHECKSUM_TAG = 0x18, 0x20, 0x28, 0x35  # field number << 3 | wire type
_AFTER_SHARD: Final = bytes((_OFFSET_TAG, _SIZE_TAG, _CHECKSUM_TAG, 0x3A))  # the last one: a slice
VERSION: Final = 1  # kTensorBundleVersion: the version we write, and the newest we can read
MIN_PRODUCER: Final = 0  # kTensorBundleMinProducer
MAX_RANK: Final = 254  # TensorShape::MaxDimensions
_DATA_FILE: Final = re.compile(r"(?P<prefix>.*)\.data-(?P<shard>[0-9]{5,})-of-(?P<count>[0-9]{5,})", re.DOTALL)


def index_filename(prefix: str) -> str:
    """Return the path of the index file of checkpoint `prefix`."""
    return f"{prefix}.index"


def data_filename(prefix: str, shard: int, num_shards: int) -> str:
    """Return the path of data file `shard` (0-based); numbers of more than five digits are not truncated."""
    return f"{prefix}.data-{shard:05d}-of-{num_shards:05d}"


def parse_data_filename(path: str) -> tuple[str, int, int] | None:
    """Return (prefix, shard, num_shards) if `path` is the name of a data file, else None."""
    match = _DATA_FILE.fullmatch(path)
    return (match["prefix"], int(match["shard"]), int(match["count"])) if match else None


class BundleHeader(NamedTuple):
    """The record stored under the empty key."""

    num_shards: int
    big_endian: bool = False
    producer: int = VERSION
    min_consumer: int = 0
    bad_consumers: tuple[int, ...] = ()

    def encode(self) -> bytes:
        version = VersionDef(
            producer=self.producer, min_consumer=self.min_consumer, bad_consumers=list(self.bad_consumers)
        )
        endianness = BundleHeaderProto.BIG if self.big_endian else BundleHeaderProto.LITTLE
        header = BundleHeaderProto(num_shards=self.num_shards, endianness=endianness, version=version)
        return header.SerializeToString(deterministic=True)

    @classmethod
    def decode(cls, value: bytes) -> "BundleHeader":
        """Decode the header and check its version.

        Raises:
            DataLossError: it does not parse, or has an impossible number of shards.
            InvalidArgumentError: it requires a different reader version.
        """
        try:
            proto = BundleHeaderProto.FromString(value)
        except DecodeError as error:
            raise DataLossError(f"the header does not parse: {error}") from error
        if proto.num_shards < 0 or proto.endianness not in (BundleHeaderProto.LITTLE, BundleHeaderProto.BIG):
            raise DataLossError(f"the header is invalid: num_shards {proto.num_shards}, endianness {proto.endianness}")
        check_versions(proto.version, "Checkpoint")
        return cls(
            proto.num_shards,
            proto.endianness == BundleHeaderProto.BIG,
            proto.version.producer,
            proto.version.min_consumer,
            tuple(proto.version.bad_consumers),
        )


def check_versions(versions: VersionDef, what: str) -> None:
    """Raise InvalidArgumentError, with TensorFlow's message, if `versions` excludes this reader."""
    if versions.min_consumer > VERSION:
        raise InvalidArgumentError(
            f"{what} min consumer version {versions.min_consumer} above current version {VERSION} for TensorFlow "
            f"checkpoints. A newer program wrote it; read it with that program, or with a newer torch_tfckpt"
        )
    if versions.producer < MIN_PRODUCER:
        raise InvalidArgumentError(
            f"{what} producer version {versions.producer} below min producer {MIN_PRODUCER} supported by TensorFlow "
            f"checkpoints. No known program writes this version; the file is damaged"
        )
    if VERSION in versions.bad_consumers:
        raise InvalidArgumentError(
            f"{what} disallows consumer version {VERSION}.  Please upgrade TensorFlow: this version is likely buggy. "
            f"The program that wrote it declares that readers of this version misread it"
        )


class BundleEntry(NamedTuple):
    """Index entry of one tensor, or of one slice of it."""

    dtype: int  # TensorFlow's number, even if unknown to us
    shape: Shape
    shard: int = 0
    offset: int = 0  # bytes from the start of the shard
    size: int = 0  # bytes in the shard, including a string tensor's lengths
    checksum: int = 0  # masked CRC-32C of those bytes
    slices: tuple[TensorSlice, ...] = ()  # if not empty, the bytes are stored under the keys of these slices

    @property
    def end(self) -> int:
        """Offset after the last byte in the shard."""
        return self.offset + self.size

    def encode(self) -> bytes:
        if not self.slices:
            described = dtype_and_shape(self.dtype, self.shape)
            return whole_entry(described, self.shard, self.offset, self.size, self.checksum)
        return self._to_proto().SerializeToString(deterministic=True)

    def _to_proto(self) -> BundleEntryProto:
        return BundleEntryProto(
            dtype=cast(DataTypeProto, self.dtype),
            shape=shape_to_proto(self.shape),
            shard_id=self.shard,
            offset=self.offset,
            size=self.size,
            crc32c=self.checksum,
            slices=[part.to_proto() for part in self.slices],
        )

    @classmethod
    def decode(cls, value: bytes) -> "BundleEntry":
        """Decode an entry; raise DataLossError if it does not parse or is impossible."""
        return cls._decode_usual(value) or cls._decode_any(value)

    @classmethod
    def _decode_usual(cls, value: bytes) -> "BundleEntry | None":
        """Decode an entry in the usual form (no slices, fields in order, each once); return None otherwise.

        Three times as fast as a protobuf message, which matters when listing 100,000 tensors.
        """
        try:
            if value[0] != 0x08 or value[1] >= 0x80 or value[2] != 0x12 or value[3] >= 0x80:
                return None
            at = 4 + value[3]
            shape = shape_of(value[4:at])
            shard = offset = size = checksum = 0
            if at < len(value) and value[at] == _SHARD_TAG:
                shard, at = decode_varint(value, at + 1, bits=31)
            if at < len(value) and value[at] == _OFFSET_TAG:
                offset, at = decode_varint(value, at + 1, bits=63)
            if at < len(value) and value[at] == _SIZE_TAG:
                size, at = decode_varint(value, at + 1, bits=63)
            if at < len(value) and value[at] == _CHECKSUM_TAG:
                checksum, at = int.from_bytes(value[at + 1 : at + 5], "little"), at + 5
        except (IndexError, DataLossError):
            return None
        if at != len(value) or offset + size > MAX_INT64:
            return None
        return cls(value[1], shape, shard, offset, size, checksum)

    @classmethod
    def _decode_any(cls, value: bytes) -> "BundleEntry":
        """Decode any valid encoding with protobuf."""
        try:
            proto = BundleEntryProto.FromString(value)
        except DecodeError as error:
            raise DataLossError(f"the entry does not parse: {error}") from error
        shard, offset, size = proto.shard_id, proto.offset, proto.size
        if shard < 0 or offset < 0 or size < 0 or offset + size > MAX_INT64:
            raise DataLossError(f"the entry has an invalid position: size {size} at offset {offset} of shard {shard}")
        shape = shape_from_proto(proto.shape)
        slices: tuple[TensorSlice, ...] = ()
        if proto.slices:
            # Check ranks first: an empty slice takes two bytes in the file, but about 200 as a Python object.
            scalars = len(proto.slices) if not shape else 0  # a scalar has at most one slice
            if scalars > 1 or any(len(part.extent) != len(shape) for part in proto.slices):
                raise DataLossError(f"the entry lists slices that do not fit its shape {shape[:16]}")
            slices = tuple(map(TensorSlice.from_proto, proto.slices))
        return cls(proto.dtype, shape, shard, offset, size, proto.crc32c, slices)


class SplitEntry(NamedTuple):
    """An encoded entry in the usual form, split around its shard number.

    `described + (b"" if shard == 0 else b"\x18" + varint) + rest` is the entry.
    """

    described: bytes  # dtype and shape
    shard: int
    rest: bytes  # offset, size and checksum; or the slices

    @classmethod
    def decode(cls, value: bytes) -> "SplitEntry":
        """Split an entry without decoding the rest of it; raise DataLossError if it does not parse."""
        return cls._split(value) or cls._split_usual(BundleEntry.decode(value).encode())

    @classmethod
    def _split_usual(cls, value: bytes) -> "SplitEntry":
        split = cls._split(value)
        assert split is not None, "an entry that this module encoded"
        return split

    @classmethod
    def _split(cls, value: bytes) -> "SplitEntry | None":
        """Split an entry whose fields are in order; return None if they are not, or if its start is damaged."""
        shard = 0
        try:
            if value[0] == 0x08 and value[1] < 0x80 and value[2] == 0x12 and value[3] < 0x80:
                at = 4 + value[3]
            else:
                at = decode_varint(value, 1, bits=31)[1] if value[0] == 0x08 else 0
                if value[at] != 0x12:
                    return None
                size, at = decode_varint(value, at + 1)
                at += size
            described = value[:at]
            if at < len(value) and value[at] == _SHARD_TAG:
                shard, at = decode_varint(value, at + 1, bits=31)
        except (IndexError, DataLossError):
            return None
        if at > len(value) or (at < len(value) and value[at] not in _AFTER_SHARD):
            return None
        return cls(described, shard, value[at:])

    def encode(self) -> bytes:
        """Return the entry."""
        return self.described + (b"\x18" + encode_varint(self.shard) if self.shard else b"") + self.rest


def encode_index(header: BundleHeader, entries: Mapping[bytes, bytes]) -> bytes:
    """Return the whole index file, from encoded entries in any order."""
    # numpy, which `tfckpt latest` does without.
    from torch_tfckpt.format.bulk_encoding import encode_table

    keys = sorted(entries)
    return encode_table([HEADER_KEY, *keys], [header.encode(), *map(entries.__getitem__, keys)])


def whole_entry(described: bytes, shard: int, offset: int, size: int, checksum: int) -> bytes:
    """Return the entry of a tensor or slice with bytes, from its first fields as `dtype_and_shape` returns them."""
    return b"".join(
        (
            described,
            b"\x18" + encode_varint(shard) if shard else b"",
            b"\x20" + encode_varint(offset) if offset else b"",
            b"\x28" + encode_varint(size) if size else b"",
            b"\x35" + checksum.to_bytes(4, "little") if checksum else b"",
        )
    )


@lru_cache(maxsize=4096)
def dtype_and_shape(dtype: int, shape: Shape) -> bytes:
    """Return the first two fields of an entry, cached: few pairs occur, and the protobuf message is slow."""
    return BundleEntry(dtype, shape)._to_proto().SerializeToString(deterministic=True)


@lru_cache(maxsize=4096)
def shape_of(message: bytes) -> Shape:
    """Return the shape in a serialized TensorShapeProto; raise DataLossError if invalid."""
    try:
        return shape_from_proto(TensorShapeProto.FromString(message))
    except DecodeError as error:
        raise DataLossError(f"the shape does not parse: {error}") from error


def shape_to_proto(shape: Shape | None) -> TensorShapeProto:
    """Return the protobuf message for a shape. None: unknown rank; -1: unknown length of a dimension."""
    if shape is None:
        return TensorShapeProto(unknown_rank=True)
    return TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in shape])


def shape_from_proto(proto: TensorShapeProto) -> Shape:
    """Return the shape in `proto`.

    Raises:
        DataLossError: a negative dimension, an unknown rank, or more elements than an int64 can count.
    """
    if len(proto.dim) > MAX_RANK:
        raise DataLossError(f"Invalid tensor shape: {len(proto.dim)} dimensions, but at most {MAX_RANK} are possible")
    shape = tuple([dim.size for dim in proto.dim])
    if shape and min(shape) < 0:
        raise DataLossError(f"Invalid tensor shape: {shape[:16]}")
    if proto.unknown_rank:
        raise DataLossError("Invalid tensor shape: unknown rank")
    count = 1
    for size in shape:
        # The product without zeros, as in TensorShape: [0, 2**40, 2**40] is refused like [1, 2**40, 2**40].
        count *= size or 1
    if count > MAX_INT64:
        raise DataLossError(f"Invalid tensor shape: {shape[:16]} has too many elements")
    return shape
