"""Index files in bytes, in forms that TensorFlow 2.21 reads but does not write.

    table  = data blocks | metaindex block | index block | footer
    block  = contents | compression (0 none, 1 snappy): u8 | masked CRC-32C of contents and compression: u32le
    entry  = shared: varint | unshared: varint | value size: varint | unshared part of the key | value
    footer = handle of the metaindex | handle of the index | zeros up to byte 40 | magic: u64le
    handle = offset: varint | size without the trailing five bytes: varint

Written from the format's description (LevelDB, doc/table_format.md) and without torch_tfckpt, so that its tests read
files that its own code did not write.
"""

import struct
from collections.abc import Callable, Sequence

import cramjam
import crc32c

MAGIC = 0xDB4775248B80FB57
FOOTER_SIZE = 48


def masked(checksum: int) -> int:
    """Mask a CRC-32C as table files and checkpoints do."""
    return (((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def masked_crc(content: bytes) -> bytes:
    """Return the stored checksum of some bytes."""
    return struct.pack("<I", masked(crc32c.crc32c(content)))


def varint(number: int) -> bytes:
    """Encode a number with seven bits per byte, the lowest first."""
    parts = []
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def read_varint(content: bytes, at: int) -> tuple[int, int]:
    """Return the number at a position, and the position after it."""
    number = shift = 0
    while True:
        byte = content[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at


def table(pairs: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Return an uncompressed table of one data block. Keys must be sorted."""
    data = _block(_contents(pairs), compression=0)
    metaindex = _block(_contents([]), compression=0)
    successor = pairs[-1][0] + b"\0"  # any key that is not less than the last one
    index = _block(_contents([(successor, _handle(0, data))]), compression=0)
    handles = _handle(len(data), metaindex) + _handle(len(data) + len(metaindex), index)
    return data + metaindex + index + handles.ljust(FOOTER_SIZE - 8, b"\0") + struct.pack("<Q", MAGIC)


def with_snappy(content: bytes) -> bytes:
    """Return the table with compressed data blocks, as written by TensorFlow 1 and inside Google."""
    (data,) = [value for _, value in _entries(_block_at(content, _handles(content)[1]))]
    return _rebuilt(content, _block_at(content, _read_handle(data, 0)[0]), compression=1)


def with_values(content: bytes, change: Callable[[bytes, bytes], bytes]) -> bytes:
    """Return the table with changed values: `change` gets a key and its value."""
    (data,) = [value for _, value in _entries(_block_at(content, _handles(content)[1]))]
    pairs = _entries(_block_at(content, _read_handle(data, 0)[0]))
    return table([(key, change(key, value)) for key, value in pairs])


def _rebuilt(content: bytes, block: bytes, compression: int) -> bytes:
    metaindex_at, index_at = _handles(content)
    ((last, _),) = _entries(_block_at(content, index_at))
    data = _block(block, compression)
    metaindex = _block(_block_at(content, metaindex_at), compression=0)
    index = _block(_contents([(last, _handle(0, data))]), compression=0)
    handles = _handle(len(data), metaindex) + _handle(len(data) + len(metaindex), index)
    return data + metaindex + index + handles.ljust(FOOTER_SIZE - 8, b"\0") + struct.pack("<Q", MAGIC)


def _contents(pairs: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Return the contents of a block: its entries, each with its whole key, and one restart point."""
    parts = [varint(0) + varint(len(key)) + varint(len(value)) + key + value for key, value in pairs]
    # Every entry could be a restart point; only the first must be one.
    return b"".join(parts) + struct.pack("<II", 0, 1)


def _block(contents: bytes, compression: int) -> bytes:
    stored = bytes(cramjam.snappy.compress_raw(contents)) if compression else contents
    body = stored + bytes([compression])
    return body + masked_crc(body)


def _handle(offset: int, block: bytes) -> bytes:
    return varint(offset) + varint(len(block) - 5)


def _read_handle(content: bytes, at: int) -> tuple[tuple[int, int], int]:
    offset, at = read_varint(content, at)
    size, at = read_varint(content, at)
    return (offset, size), at


def _handles(content: bytes) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the handles of the metaindex and index blocks."""
    footer = content[-FOOTER_SIZE:]
    metaindex, at = _read_handle(footer, 0)
    return metaindex, _read_handle(footer, at)[0]


def _block_at(content: bytes, handle: tuple[int, int]) -> bytes:
    offset, size = handle
    if content[offset + size] != 0:
        raise ValueError("the table to change is compressed")
    return content[offset : offset + size]


def _entries(block: bytes) -> list[tuple[bytes, bytes]]:
    (restarts,) = struct.unpack("<I", block[-4:])
    end, at, key = len(block) - 4 * (restarts + 1), 0, b""
    found = []
    while at < end:
        shared, at = read_varint(block, at)
        unshared, at = read_varint(block, at)
        size, at = read_varint(block, at)
        key = key[:shared] + block[at : at + unshared]
        found.append((key, block[at + unshared : at + unshared + size]))
        at += unshared + size
    return found
