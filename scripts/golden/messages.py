"""Encoding and decoding of the few protocol buffer messages composed here, field by field."""

import struct
from collections.abc import Iterable, Sequence

from golden.tables import read_varint, varint

Fields = Sequence[tuple[int, bytes]]


def fields_of(message: bytes) -> list[tuple[int, bytes]]:
    """Return (tag, content) of each field; the tag is the number shifted by three, plus 2 for bytes."""
    at, found = 0, []
    while at < len(message):
        tag, at = read_varint(message, at)
        start = at
        size, at = read_varint(message, at)
        if tag & 7 == 2:
            found.append((tag, message[at : at + size]))
            at += size
        elif tag & 7 == 0:
            found.append((tag, message[start:at]))
        else:
            raise ValueError(f"wire type {tag & 7} is not handled")
    return found


def encoded(fields: Iterable[tuple[int, bytes]]) -> bytes:
    """Encode fields; the inverse of `fields_of`."""
    return b"".join(varint(tag) + (varint(len(body)) if tag & 7 == 2 else b"") + body for tag, body in fields)


def bundle_entry(dtype: int, shape: Sequence[int], offset: int, size: int, crc: int) -> bytes:
    """Encode the BundleEntryProto of a tensor in shard 0, without fields that are zero."""
    dims = [(0x12, encoded([(0x08, varint(length))])) for length in shape]
    fields = [(0x08, varint(dtype)), (0x12, encoded(dims))]
    fields += [(0x20, varint(offset))] if offset else []
    fields += [(0x28, varint(size))]
    return encoded(fields) + b"\x35" + struct.pack("<I", crc)
