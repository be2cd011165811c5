"""Messages of HDF5 object headers: shape, element type, data address, and attributes.

    dataspace   version: u8 | rank: u8 | ... | rank sizes: u64le        version 1: 8 bytes before the sizes, 2: 4 bytes
    datatype    class (low 4 bits), version: u8 | 3 bytes of flags | size: u32le | properties
    layout      3: u8 | class: u8 | compact: size u16le, bytes; contiguous: address u64le, size u64le
    attribute   version: u8 | flags: u8 | sizes of name, datatype, dataspace: 3 u16le | name, datatype, dataspace, value

Example: the datatype of float32 is 11 20 1f 00 | 04 00 00 00 | 00 00 20 00 17 08 00 17 7f 00 00 00: class 1 (floating
point), version 1, 4 bytes; bit offset 0, 32 bits, exponent of 8 bits at bit 23, mantissa of 23 bits at bit 0.

Only what Keras and h5py write is decoded. No size in a message makes this module allocate memory.

Source: HDF5 File Format Specification, version 3.0, section IV.A.
"""

import struct
from collections.abc import Mapping
from typing import Final, NamedTuple

from torch_tfckpt.errors import DataLossError, UnimplementedError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_slice import Shape

MAX_RANK: Final = 32  # H5S_MAX_RANK
UNDEFINED: Final = 0xFFFF_FFFF_FFFF_FFFF  # the address of data that does not exist
_INTEGER, _FLOAT, _STRING, _OPAQUE, _COMPOUND, _ENUM, _VLEN = 0, 1, 3, 5, 6, 8, 9
_CLASS_NAMES: Final = (
    *("an integer", "a float", "a time", "a string", "a bit field", "opaque bytes", "a compound", "a reference"),
    *("an enumeration", "a sequence of variable length", "an array"),
)
_INTEGERS: Final[Mapping[tuple[int, bool], DataType]] = {
    (1, True): DataType.DT_INT8,
    (2, True): DataType.DT_INT16,
    (4, True): DataType.DT_INT32,
    (8, True): DataType.DT_INT64,
    (1, False): DataType.DT_UINT8,
    (2, False): DataType.DT_UINT16,
    (4, False): DataType.DT_UINT32,
    (8, False): DataType.DT_UINT64,
}
# By size, bits of the exponent, and bits of the mantissa.
_FLOATS: Final[Mapping[tuple[int, int, int], DataType]] = {
    (2, 5, 10): DataType.DT_HALF,
    (2, 8, 7): DataType.DT_BFLOAT16,
    (4, 8, 23): DataType.DT_FLOAT,
    (8, 11, 52): DataType.DT_DOUBLE,
}
# Members of the enumeration that h5py writes for numpy.bool; since version 3 names are not padded.
_BOOL_NAMES: Final = (b"FALSE\0\0\0TRUE\0\0\0\0", b"FALSE\0TRUE\0")


class Hdf5Type(NamedTuple):
    """Element type of a dataset or attribute."""

    kind: int  # class of the datatype
    size: int  # bytes of an element
    big_endian: bool = False
    dtype: DataType | None = None  # None: strings, opaque bytes, and types that tensors do not have
    variable: bool = False  # strings of variable length, stored in the global heap
    padding: int = 0  # for strings of fixed size: 0 zero-terminated, 1 padded with zeros, 2 padded with spaces

    @property
    def is_string(self) -> bool:
        return self.kind == _STRING or (self.kind == _VLEN and self.variable)

    @property
    def is_opaque(self) -> bool:
        return self.kind == _OPAQUE

    @property
    def what(self) -> str:
        """The type in words."""
        if self.is_string:
            return "a string"
        return _CLASS_NAMES[self.kind] if self.kind < len(_CLASS_NAMES) else f"type class {self.kind}"


class Hdf5Attribute(NamedTuple):
    """One attribute, whose value is not decoded."""

    name: str
    type: Hdf5Type
    shape: Shape | None  # None: a null dataspace, which has no value
    data: bytes


class Hdf5Layout(NamedTuple):
    """Where the bytes of a dataset are."""

    address: int  # UNDEFINED: no bytes are stored
    nbytes: int


def decode_dataspace(data: bytes) -> Shape | None:
    """Return the shape; None for a null dataspace."""
    if len(data) < 4:
        raise DataLossError("dataspace: too short")
    version, rank = data[0], data[1]
    if version not in (1, 2):
        raise DataLossError(f"dataspace: unknown version {version}")
    if version == 2 and data[3] == 2:
        return None
    start = 8 if version == 1 else 4
    if rank > MAX_RANK or start + 8 * rank > len(data):
        raise DataLossError(f"dataspace: invalid rank {rank} for a message of {len(data)} bytes")
    return struct.unpack_from(f"<{rank}Q", data, start)


def decode_datatype(data: bytes) -> Hdf5Type:
    """Return the element type."""
    if len(data) < 8:
        raise DataLossError("datatype: too short")
    kind, flags = data[0] & 15, data[1]
    (size,) = struct.unpack_from("<I", data, 4)
    properties = data[8:]
    big_endian = bool(flags & 1)
    if kind == _INTEGER:
        first, bits = struct.unpack("<HH", properties[:4].ljust(4, b"\0"))
        whole = (first, bits) == (0, 8 * size)
        return Hdf5Type(kind, size, big_endian, _INTEGERS.get((size, bool(flags & 8))) if whole else None)
    if kind == _FLOAT and len(properties) >= 12:
        first, bits, exponent_at, exponent, mantissa_at, mantissa, bias = struct.unpack_from("<HHBBBBI", properties)
        plain = (first, bits, mantissa_at, exponent_at, bias) == (0, 8 * size, 0, mantissa, (1 << exponent >> 1) - 1)
        # Bit 6 set: byte order of VAX.
        return Hdf5Type(
            kind, size, big_endian, _FLOATS.get((size, exponent, mantissa)) if plain and not flags & 64 else None
        )
    if kind == _STRING:
        return Hdf5Type(kind, size, padding=flags & 15)
    if kind == _VLEN:
        return Hdf5Type(kind, size, variable=flags & 15 == 1)
    if kind == _ENUM and size == 1 and data[1:3] == b"\2\0":
        is_bool = any(names + b"\0\1" in properties for names in _BOOL_NAMES)
        return Hdf5Type(kind, size, dtype=DataType.DT_BOOL if is_bool else None)
    return Hdf5Type(kind, size)


def decode_layout(data: bytes, at: int) -> Hdf5Layout:
    """Return where the bytes of a dataset are.

    Args:
        at: Address of the message, because a small dataset may be inside of it.

    Raises:
        UnimplementedError: the bytes are in chunks, or in other files.
    """
    if len(data) < 4 or data[0] not in (3, 4):
        version = data[0] if data else 0
        raise UnimplementedError(f"stored with layout version {version}, which no current program writes")
    kind = data[1]
    if kind == 0:
        (size,) = struct.unpack_from("<H", data, 2)
        if 4 + size > len(data):
            raise DataLossError(f"compact layout: {size} bytes do not fit in a message of {len(data)} bytes")
        return Hdf5Layout(at + 4, size)
    if kind == 1:
        if len(data) < 18:
            raise DataLossError("contiguous layout: too short")
        return Hdf5Layout(*struct.unpack_from("<QQ", data, 2))
    what = {2: "stored in chunks", 3: "a virtual dataset, whose values are in other files"}.get(kind)
    raise UnimplementedError(what or f"stored with unknown layout {kind}")


def decode_attribute(data: bytes) -> Hdf5Attribute:
    """Return one attribute, with the bytes of its value."""
    if len(data) < 8:
        raise DataLossError("attribute: too short")
    version, flags = data[0], data[1]
    sizes = struct.unpack_from("<HHH", data, 2)
    if version not in (1, 2, 3):
        raise DataLossError(f"attribute: unknown version {version}")
    if version > 1 and flags & 3:
        raise UnimplementedError("attributes with a shared datatype are not supported")
    at = 9 if version == 3 else 8
    parts = []
    for size in sizes:
        parts.append(data[at : at + size])
        at += (size + 7) // 8 * 8 if version == 1 else size
    if at > len(data):
        raise DataLossError("attribute: longer than its message")
    name = parts[0].split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
    return Hdf5Attribute(name, decode_datatype(parts[1]), decode_dataspace(parts[2]), data[at:])
