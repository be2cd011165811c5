"""The wire format of Protocol Buffers, parsed without building messages.

    message = field ...      field = tag: varint | payload      tag = field number << 3 | wire type

    wire type   payload
    0           varint
    1           8 bytes
    2           size: varint | bytes       (strings, nested messages, packed numbers)
    3, 4        start and end of a group   (deprecated; everything in between is skipped)
    5           4 bytes

    field 5, packed floats [1.0]:    2a 04 00 00 80 3f     2a = 5 << 3 | 2
    field 7, the integer -1:         38 ff ff ff ff ff ff ff ff ff 01

The payload of a field is a view of the input, so a packed list of a million floats takes one step without a copy or a
Python object per element. The concatenated payloads of wire types 0, 1 and 5 are the packed form of the same numbers.

Source: https://protobuf.dev/programming-guides/encoding.
"""

import enum
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from torch_tfckpt.errors import DataLossError
from torch_tfckpt.format.coding import decode_varint, encode_varint

MAX_GROUP_DEPTH: Final = 100  # the limit of protobuf's own parsers


class WireType(enum.IntEnum):
    """How the payload of a field is delimited. Part of the format: never renumber."""

    VARINT = 0
    FIXED64 = 1
    BYTES = 2
    GROUP_START = 3
    GROUP_END = 4
    FIXED32 = 5


# A lookup by value, because calling the class for each field would cost four times as much.
_WIRE_TYPES: Final = tuple(WireType)


class Field(NamedTuple):
    """One undecoded field of a message."""

    number: int
    wire_type: WireType
    payload: memoryview  # without tag and size
    start: int  # offset of the tag in the message
    stop: int


def fields(message: memoryview) -> Iterator[Field]:
    """Yield all fields of `message` in order, except those inside groups.

    Raises:
        DataLossError: a field exceeds the message, or has an unknown wire type.
    """
    at, end = 0, len(message)
    groups: list[int] = []
    while at < end:
        tag, start = decode_varint(message, at, bits=32)
        number, kind = tag >> 3, tag & 7
        if not number or kind > WireType.FIXED32:
            raise DataLossError(f"message, byte {at}: invalid field number {number} or wire type {kind}")
        wire_type = _WIRE_TYPES[kind]
        if wire_type in (WireType.GROUP_START, WireType.GROUP_END):
            _enter_or_leave(groups, number, wire_type, at)
            at = start
            continue
        start, stop = _payload_range(message, wire_type, start)
        if stop > end:
            raise DataLossError(
                f"message, byte {at}: field {number} ends at byte {stop}, but the message ends at {end}"
            )
        if not groups:
            yield Field(number, wire_type, message[start:stop], at, stop)
        at = stop
    if groups:
        raise DataLossError(f"message: group {groups[-1]} has no end")


def _payload_range(message: memoryview, wire_type: WireType, at: int) -> tuple[int, int]:
    """Return the start and end of the payload after the tag that ends at `at`."""
    if wire_type == WireType.BYTES:
        size, at = decode_varint(message, at)
        return at, at + size
    if wire_type == WireType.VARINT:
        return at, decode_varint(message, at)[1]
    return at, at + (8 if wire_type == WireType.FIXED64 else 4)


def _enter_or_leave(groups: list[int], number: int, wire_type: WireType, at: int) -> None:
    if wire_type == WireType.GROUP_START:
        groups.append(number)
        if len(groups) > MAX_GROUP_DEPTH:
            raise DataLossError(f"message, byte {at}: groups are nested deeper than {MAX_GROUP_DEPTH}")
    elif not groups or groups.pop() != number:
        raise DataLossError(f"message, byte {at}: end of group {number}, which was not started")


def tag(number: int, wire_type: WireType) -> bytes:
    """Return the tag of field `number`."""
    return encode_varint(number << 3 | wire_type)


def sized_tag(number: int, size: int) -> bytes:
    """Return the tag and size of a payload of `size` bytes of field `number`."""
    return tag(number, WireType.BYTES) + encode_varint(size)


def replaced(message: memoryview, edits: Iterable[tuple[Field, bytes | None]]) -> bytes:
    """Return `message` with some payloads replaced and everything else, including groups, unchanged.

    Args:
        edits: Fields of `message` of wire type BYTES, in order, each with its new payload, or None to remove it.
    """
    chunks: list[memoryview | bytes] = []
    at = 0
    for field, payload in edits:
        chunks.append(message[at : field.start])
        if payload is not None:
            chunks += (sized_tag(field.number, len(payload)), payload)
        at = field.stop
    chunks.append(message[at:])
    return b"".join(chunks)
