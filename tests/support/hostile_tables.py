"""Index files whose blocks have valid checksums, but contents that are not allowed in a table."""

import struct

import cramjam
from hostile import (
    HEADER,
    HUGE,
    block,
    good_entries,
    raw_block,
    table,
    table_of_blocks,
)

from torch_tfckpt.format.coding import encode_varint
from torch_tfckpt.format.table import BlockHandle


def good_pairs() -> list[tuple[bytes, bytes]]:
    return sorted(good_entries().items())


def split() -> list[tuple[bytes, bytes]]:
    """The good entries in three blocks of one entry each, with their separators."""
    return [(key, block([(key, value)])) for key, value in good_pairs()]


def self_index() -> bytes:
    """An index block whose only handle points to itself."""
    before = len(table_of_blocks([], index=b"")) - 48 - 5  # where the index block begins if there are no data blocks
    contents = b""
    for _ in range(3):  # the handle's size depends on the handle
        contents = raw_block([(0, b"zzz", BlockHandle(before, len(contents)).encode())])
    return table_of_blocks([], index=contents)


BAD_TABLES: dict[str, bytes] = {
    "an index block that points at itself": self_index(),
    "an index block without entries": table_of_blocks([], index=block([])),
    "an index block of nothing": table_of_blocks(split(), index=b""),
    "a handle beyond the file": table_of_blocks(split(), handles={1: BlockHandle(HUGE, 10)}),
    "a handle of a huge size": table_of_blocks(split(), handles={2: BlockHandle(0, HUGE)}),
    "a handle of 2**64-1": table_of_blocks(split(), handles={2: BlockHandle(2**64 - 1, 2**64 - 1)}),
    "the same block twice": table_of_blocks(split(), handles={1: BlockHandle(0, len(split()[0][1]))}),
    "overlapping blocks": table_of_blocks(split(), handles={1: BlockHandle(3, 20)}),
    "a handle cut off": table_of_blocks([], index=raw_block([(0, b"zzz", b"\x80")])),
    "separators out of order": table_of_blocks([split()[1], split()[0], split()[2]]),
    "equal separators": table_of_blocks([split()[0], (b"", split()[1][1])]),
    "a restart count of 2**32-1": table_of_blocks([(b"zzz", block(good_pairs())[:-4] + b"\xff" * 4)]),
    "no restarts": table_of_blocks([(b"zzz", block(good_pairs())[:-4] + bytes(4))]),
    "a block of three bytes": table_of_blocks([(b"zzz", b"abc")]),
    "a key that shares more than there is": table_of_blocks([(b"zzz", raw_block([(7, b"", HEADER)]))]),
    "a value beyond the block": table_of_blocks([(b"zzz", b"\0\0\xff\xff\xff\xff\x0f" + HEADER + b"\0\0\0\0\1\0\0\0")]),
    "a length of six bytes": table_of_blocks([(b"zzz", b"\0\0\xff\xff\xff\xff\xff\x01" + b"\0\0\0\0\1\0\0\0")]),
    "block type 2": table_of_blocks(split(), 2),
    "block type 255": table_of_blocks(split(), 255),
    "no header": table({key: value for key, value in good_entries().items() if key}),
    "no entry at all": table({}),
    "a header that is not first": table_of_blocks([(b"zzz", raw_block([(0, b"a", b""), (0, b"", HEADER)]))]),
    "snappy of nothing": table_of_blocks([(b"zzz", b"")], 1),
    "snappy of garbage": table_of_blocks([(b"zzz", b"\xff" * 50)], 1),
    "snappy that announces 4 GiB": table_of_blocks([(b"zzz", encode_varint(2**32 - 1) + b"\0" * 20)], 1),
    "snappy that announces 2**64": table_of_blocks([(b"zzz", encode_varint(2**64 - 1) + b"\0" * 20)], 1),
    "snappy that announces too little": table_of_blocks(
        [(b"zzz", encode_varint(3) + bytes(cramjam.snappy.compress_raw(block(good_pairs())))[1:])], 1
    ),
    "a footer of zeros but the magic": bytes(40) + struct.pack("<Q", 0xDB4775248B80FB57),
    "a footer of ones but the magic": b"\xff" * 40 + struct.pack("<Q", 0xDB4775248B80FB57),
}  # fmt: skip
