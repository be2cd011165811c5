"""A block of a table: sorted keys and values with shared key prefixes. `table` adds its checksum.

    entry    = shared: varint32 | unshared: varint32 | value size: varint32 | key[shared:] | value
    contents = entry... | restart offset: u32le ... | number of restarts: u32le

A restart is an entry with shared = 0: the first entry and every 16th entry after it, so that a reader could start in
the middle. An empty block has one restart at 0:  00 00 00 00 01 00 00 00.

Entries of one block, b"dense/bias" -> b"A" and b"dense/kernel" -> b"B":

    00 0a 01  dense/bias A       shared 0, unshared 10, value 1
    06 06 01  kernel     B       shared 6 ("dense/"), unshared 6, value 1

Source: LevelDB doc/table_format.md, table/block_builder.cc, table/block.cc.
"""

import struct
from collections.abc import Iterator
from typing import Final

from torch_tfckpt.errors import DataLossError
from torch_tfckpt.format.coding import decode_varint, encode_varint

_U32: Final = struct.Struct("<I")
# Shared prefixes could make a small block expand without bound: 30,000 entries that each repeat a 200 KB key. All known
# writers restart the keys every 16 entries, so a valid block expands to at most 16 times its size.
MAX_KEY_EXPANSION: Final = 32
_SMALL_BLOCK: Final = 1024  # valid blocks of this size can compress to almost nothing, so they may expand further


class BlockBuilder:
    """Collects entries in ascending key order and builds the contents of one block.

    Attributes:
        size: Bytes that `finish` would return now.
    """

    def __init__(self, restart_interval: int) -> None:
        self._restart_interval = restart_interval
        self._reset()

    def _reset(self) -> None:
        self._parts: list[bytes] = []
        self._restarts = [0]
        self._since_restart = 0
        self._last_key = b""
        self.size = 2 * _U32.size  # one restart and the number of restarts

    @property
    def empty(self) -> bool:
        return not self._parts

    def add(self, key: bytes, value: bytes) -> None:
        """Append an entry. REQUIRES: `key` sorts after every key added since the last `finish`."""
        if self._since_restart < self._restart_interval:
            shared = shared_prefix_size(self._last_key, key)
        else:
            shared = 0
            self._restarts.append(self.size - _U32.size * (len(self._restarts) + 1))
            self._since_restart = 0
            self.size += _U32.size
        entry = block_entry(key, value, shared)
        self._parts.append(entry)
        self.size += len(entry)
        self._since_restart += 1
        self._last_key = key

    def finish(self) -> bytes:
        """Return the contents of the block, and start a new one."""
        restarts = struct.pack(f"<{len(self._restarts) + 1}I", *self._restarts, len(self._restarts))
        contents = b"".join((*self._parts, restarts))
        self._reset()
        return contents


def block_entry(key: bytes, value: bytes, shared: int) -> bytes:
    """Return an entry of a block, without the first `shared` bytes of its key."""
    unshared = len(key) - shared
    if unshared < 0x80 and len(value) < 0x80 and shared < 0x80:
        sizes = bytes((shared, unshared, len(value)))
    else:
        sizes = encode_varint(shared) + encode_varint(unshared) + encode_varint(len(value))
    return sizes + key[shared:] + value


def shared_prefix_size(a: bytes, b: bytes) -> int:
    """Return the length in bytes of the common prefix of `a` and `b`."""
    size = min(len(a), len(b))
    # The highest differing bit of two big-endian numbers is in the first differing byte: no loop over bytes.
    difference = int.from_bytes(a[:size], "big") ^ int.from_bytes(b[:size], "big")
    return size - (difference.bit_length() + 7) // 8


def decode_block(contents: bytes | memoryview, stored_size: int) -> tuple[list[bytes], list[bytes]]:
    """Return all keys and values of a block, in order. Arguments and errors as for `block_entries`."""
    keys: list[bytes] = []
    values: list[bytes] = []
    for key, value in block_entries(contents, stored_size):
        keys.append(key)
        values.append(value)
    return keys, values


def block_entries(contents: bytes | memoryview, stored_size: int, first: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
    """Yield the entries of a block from key `first` on, decoded as they are asked for.

    Args:
        stored_size: Size of the contents in the file, smaller than `contents` if they are compressed.

    Raises:
        DataLossError: an entry or the restart array is out of bounds, or keys are not strictly ascending.

    Cost: about half a microsecond per entry; all keys together have at most MAX_KEY_EXPANSION times (stored size + 1
    KiB) bytes.
    """
    end = _entries_end(contents)
    budget = MAX_KEY_EXPANSION * (stored_size + _SMALL_BLOCK)
    start = at = _seek(contents, end, first) if first else 0
    key = b""
    while at < end:
        begin = at
        shared, unshared, size = contents[at], contents[at + 1], contents[at + 2]  # 4 bytes of restart count follow
        if (shared | unshared | size) < 0x80:
            at += 3
        else:
            shared, at = decode_varint(contents, at, bits=32)
            unshared, at = decode_varint(contents, at, bits=32)
            size, at = decode_varint(contents, at, bits=32)
        value_at = at + unshared
        at = value_at + size
        if shared > len(key):
            raise DataLossError(
                f"entry at byte {begin} of the block: its shared key size is {shared}, but the size of the previous "
                f"key is {len(key)}"
            )
        if at > end:
            raise DataLossError(
                f"entry at byte {begin} of the block: ends at byte {at}, but the entries end at byte {end}"
            )
        previous, key = key, key[:shared] + contents[value_at - unshared : value_at]
        if key <= previous and begin != start:
            raise DataLossError(
                f"entry at byte {begin} of the block: key {key[:64]!r} does not sort after the previous key"
            )
        budget -= len(key)
        if budget < 0:
            raise DataLossError(f"the block's keys expand to more than {MAX_KEY_EXPANSION} times its size")
        if key >= first:
            yield key, bytes(contents[value_at:at])  # copies only from a view


def _seek(contents: bytes | memoryview, end: int, first: bytes) -> int:
    """Return the offset of the last restart at or before key `first`; 0 if the restarts are not as expected."""
    low, high = 0, (len(contents) - end) // _U32.size - 2
    while low < high:
        middle = (low + high + 1) // 2
        at: int = _U32.unpack_from(contents, end + middle * _U32.size)[0]
        if at >= end or contents[at] or contents[at + 1] >= 0x80 or contents[at + 2] >= 0x80:
            return 0
        if bytes(contents[at + 3 : at + 3 + contents[at + 1]]) <= first:
            low = middle
        else:
            high = middle - 1
    found: int = _U32.unpack_from(contents, end + low * _U32.size)[0]
    return found if found < end and not contents[found] else 0


def _entries_end(contents: bytes | memoryview) -> int:
    """Return the offset of the restart array."""
    if len(contents) < 2 * _U32.size:
        raise DataLossError(f"a block has at least {2 * _U32.size} bytes, but this one has {len(contents)}")
    count: int = _U32.unpack_from(contents, len(contents) - _U32.size)[0]
    end = len(contents) - _U32.size * (count + 1)
    if not count or end < 0:
        raise DataLossError(f"invalid number of restarts in a block of {len(contents)} bytes: {count}")
    return end
