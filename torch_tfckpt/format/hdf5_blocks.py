"""Blocks of an HDF5 file: object headers as lists of messages, and strings in heaps, read within limits.

    object header   1: u8 | 0 | messages: u16le | references: u32le | size: u32le | 4 zeros | messages, in blocks
    message         type: u16le | size: u16le | flags: u8 | 3 zeros | data
    header, new     "OHDR" | 2: u8 | flags: u8 | ... | size | messages; further blocks begin with "OCHK"
    message, new    type: u8 | size: u16le | flags: u8 | [order: u16le] | data

Example: the header of a group that h5py writes: 01 00 01 00 | 01 00 00 00 | 18 00 00 00 | 00 00 00 00, and one message,
11 00 10 00 | 00 00 00 00 | the addresses of its B-tree and its heap.

Source: HDF5 File Format Specification, version 3.0, sections III.E and IV.A.
"""

import struct
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from torch_tfckpt.errors import DataLossError, error_context
from torch_tfckpt.format.hdf5_messages import Hdf5Attribute
from torch_tfckpt.format.tensor_slice import element_count
from torch_tfckpt.text import quoted

Read = Callable[[int, int], bytes]
"""(offset, count) -> exactly `count` bytes. Callers check first that the file has these bytes."""

_CONTINUATION: Final = 16  # message with the address of a further block
_SLACK: Final = 64 * 1024  # bytes that may be read in addition to twice the size of the file


class Hdf5Message(NamedTuple):
    """One message of an object header."""

    kind: int
    flags: int
    data: bytes
    at: int  # address of the data


class Hdf5Blocks:
    """Reads the blocks of a file of `size` bytes, each for one structure only.

    Attributes:
        base: Offset of address 0 in the file: the end of the block of user data, if there is one.

    Raises:
        DataLossError: a block is outside of the file or belongs to two structures, or all blocks together are larger
            than the file.
    """

    def __init__(self, read: Read, size: int) -> None:
        self._read, self.size, self.base = read, size, 0
        self._left = 2 * size + _SLACK  # bytes that may still be read
        self._blocks: set[int] = set()  # addresses of blocks that belong to a structure
        self._heaps: dict[int, dict[int, bytes]] = {}

    @property
    def end(self) -> int:
        """The address after the last byte of the file."""
        return self.size - self.base

    def block(self, address: int, size: int) -> bytes:
        """Return a block that belongs to one structure only, so that no structure contains itself."""
        if address in self._blocks and size:
            raise DataLossError(f"byte {address} belongs to two structures, or to one that contains itself")
        self._blocks.add(address)
        return self.take(address, size)

    def take(self, address: int, size: int) -> bytes:
        """Return bytes of the file."""
        if address > self.end - size:
            raise DataLossError(f"bytes {address} to {address + size} are needed, but the file ends at byte {self.end}")
        self._spend(size)
        return self._read(self.base + address, size)

    def _spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise DataLossError("the structures of the file are larger than the file")

    def messages(self, address: int) -> Iterator[Hdf5Message]:
        """Yield the messages of an object header."""
        if self.take(address, 4) == b"OHDR":
            yield from self._header_2(address)
            return
        prefix = self.block(address, 16)
        if prefix[0] != 1:
            raise DataLossError(f"byte {address}: not an object header")
        count, _, size = struct.unpack_from("<HII", prefix, 2)
        blocks = [(address + 16, size)]
        for start, length in blocks:
            data = self.block(start, length)
            at = 0
            while at + 8 <= length and count:
                kind, room, flags = struct.unpack_from("<HHB", data, at)
                message = Hdf5Message(kind, flags, data[at + 8 : at + 8 + room], start + at + 8)
                if at + 8 + room > length:
                    raise DataLossError(f"byte {start + at}: a message of {room} bytes ends outside of its block")
                count -= 1
                at += 8 + room
                if kind == _CONTINUATION:
                    blocks.append(pair(message.data))
                yield message

    def _header_2(self, address: int) -> Iterator[Hdf5Message]:
        """Yield the messages of an object header of version 2, `header, new` in the table above."""
        flags = self.take(address + 5, 1)[0]
        at = 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        width = 1 << (flags & 3)
        size = int.from_bytes(self.take(address + at, width), "little")
        at += width
        self.block(address, at)
        blocks = [(address + at, size)]
        of_message = 6 if flags & 4 else 4
        for number, (start, length) in enumerate(blocks):
            if number:  # signature in front, checksum at the end
                if self.take(start, 4) != b"OCHK":
                    raise DataLossError(f"byte {start}: not a part of an object header")
                start, length = start + 4, length - 8
            data = self.block(start, max(0, length))
            place = 0
            while place + of_message <= len(data):
                kind, room, message_flags = struct.unpack_from("<BHB", data, place)
                place += of_message
                message = Hdf5Message(kind, message_flags, data[place : place + room], start + place)
                if place + room > len(data):
                    raise DataLossError(f"byte {start + place}: a message of {room} bytes ends outside of its block")
                place += room
                if kind == _CONTINUATION:
                    blocks.append(pair(message.data))
                yield message

    def strings(self, attribute: Hdf5Attribute) -> list[str]:
        """Return the strings of an attribute; a scalar is a list of one string.

        Raises:
            DataLossError: the values of the attribute are not strings, or are damaged.
        """
        kind, shape = attribute.type, attribute.shape
        with error_context(f"attribute {quoted(attribute.name)}"):
            if shape is None or 0 in shape:
                return []
            if not kind.is_string:
                raise DataLossError(f"expected strings, found {kind.what}")
            count = element_count(shape)
            if count * kind.size > len(attribute.data) or not kind.size:
                raise DataLossError(f"expected {count} strings of {kind.size} bytes, found {len(attribute.data)} bytes")
            stored = [attribute.data[at : at + kind.size] for at in range(0, count * kind.size, kind.size)]
            return [
                (self._from_heap(each) if kind.variable else _unpadded(each, kind.padding)).decode(
                    "utf-8", "surrogateescape"
                )
                for each in stored
            ]

    def _from_heap(self, reference: bytes) -> bytes:
        """Return the string of variable length that `reference` points to.

        length: u32le | address of a heap: u64le | number in the heap: u32le
        """
        if len(reference) != 16:
            raise DataLossError(f"a reference to a string has {len(reference)} bytes, not 16")
        length, address, number = struct.unpack("<IQI", reference)
        if not length or not number:
            return b""
        if address not in self._heaps:
            self._heaps[address] = self._global_heap(address)
        stored = self._heaps[address].get(number, b"")
        if length > len(stored):
            raise DataLossError(f"a string should have {length} bytes, but the heap contains {len(stored)}")
        # Counted like bytes that are read: many references to one long string must not take memory without limit.
        self._spend(length)
        return stored[:length]

    def _global_heap(self, address: int) -> dict[int, bytes]:
        """Return the strings of a heap: number -> bytes.

        "GCOL" | 1: u8 | 3 zeros | size: u64le | per string: number, references: u16le | 4 zeros | size: u64le | bytes
        """
        header = self.take(address, 16)
        (size,) = struct.unpack_from("<Q", header, 8)
        if header[:4] != b"GCOL":
            raise DataLossError(f"byte {address}: not a heap of strings")
        content = self.block(address, size)
        found: dict[int, bytes] = {}
        at = 16
        while at + 16 <= size:
            number, length = struct.unpack_from("<H6xQ", content, at)
            if not number:
                break
            if at + 16 + length > size:
                raise DataLossError(f"byte {address + at}: a string of {length} bytes ends outside of its heap")
            found[number] = content[at + 16 : at + 16 + length]
            at += 16 + (length + 7) // 8 * 8
        return found


def pair(data: bytes) -> tuple[int, int]:
    """Return the two numbers at the beginning of a message."""
    if len(data) < 16:
        raise DataLossError("two addresses are stored in fewer than 16 bytes")
    first, second = struct.unpack_from("<QQ", data)
    return first, second


def _unpadded(stored: bytes, padding: int) -> bytes:
    if padding == 0:
        return stored.split(b"\0", 1)[0]
    return stored.rstrip(b" ") if padding == 2 else stored.rstrip(b"\0")
