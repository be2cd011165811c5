"""Tables: TensorFlow's own bytes, round trips of sorted dictionaries, and every possible byte of damage."""

import struct
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import cramjam
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_tfckpt.errors import DataLossError, InvalidArgumentError
from torch_tfckpt.format import crc32c, table
from torch_tfckpt.format.block import BlockBuilder, decode_block
from torch_tfckpt.format.table import (
    BLOCK_SIZE,
    BLOCK_TRAILER,
    BlockHandle,
    Footer,
    Table,
    TableBuilder,
    separator,
    successor,
)

# Dumped from TensorFlow 2.21: an index with one float scalar "x" = 1.0, 117 bytes.
ONE_SCALAR = bytes.fromhex(
    """
    00 00 06 08 01 1a 02 08 01
    00 01 0b 78 08 01 12 00 28 04 35 81 a5 da 2b
    00 00 00 00 01 00 00 00
    00 38 5a df 39
    00 00 00 00 01 00 00 00 00 c0 f2 a1 b0
    00 01 02 79 00 20 00 00 00 00 01 00 00 00 00 c2 4c 06 42
    25 08 32 0e
    """
    + "00" * 36
    + "57 fb 80 8b 24 75 47 db"
)
ONE_SCALAR_ENTRIES = {
    b"": bytes.fromhex("08 01 1a 02 08 01"),
    b"x": bytes.fromhex("08 01 12 00 28 04 35 81 a5 da 2b"),
}
# Dumped from TensorFlow 2.21: tf.train.Checkpoint(v=Variable(2.0)).write, 188 bytes.
ONE_VARIABLE = (
    bytes.fromhex("00 00 06 08 01 1a 02 08 01")
    + b"\x00\x1c\x0d_CHECKPOINTABLE_OBJECT_GRAPH" + bytes.fromhex("08 07 12 00 20 04 28 52 35 f3 ca f1 d2")
    + b"\x00\x1c\x0bv/.ATTRIBUTES/VARIABLE_VALUE" + bytes.fromhex("08 01 12 00 28 04 35 10 fd 78 4f")
    + bytes.fromhex("00 00 00 00 01 00 00 00 00 8b b1 91 16")
    + bytes.fromhex("00 00 00 00 01 00 00 00 00 c0 f2 a1 b0")
    + bytes.fromhex("00 01 02 77 00 67 00 00 00 00 01 00 00 00 00 66 aa ba 56")
    + bytes.fromhex("6c 08 79 0e" + "00" * 36 + "57 fb 80 8b 24 75 47 db")
)  # fmt: skip
ONE_VARIABLE_ENTRIES = {
    b"": bytes.fromhex("08 01 1a 02 08 01"),
    b"_CHECKPOINTABLE_OBJECT_GRAPH": bytes.fromhex("08 07 12 00 20 04 28 52 35 f3 ca f1 d2"),
    b"v/.ATTRIBUTES/VARIABLE_VALUE": bytes.fromhex("08 01 12 00 28 04 35 10 fd 78 4f"),
}
Entries = Mapping[bytes, bytes]
KEYS = st.lists(st.sampled_from([b"\x00", b"a", b"b", b"\xfe", b"\xff", b"k" * 20]), max_size=4).map(b"".join)
ENTRIES = st.dictionaries(KEYS, st.binary(max_size=30), max_size=25).map(lambda entries: dict(sorted(entries.items())))


class File:
    """Contents to read a table from, with a log of the reads."""

    def __init__(self, contents: bytes) -> None:
        self.contents = contents
        self.reads: list[tuple[int, int]] = []

    def read(self, offset: int, size: int) -> bytes:
        assert offset >= 0, "a table checks offsets against the file size before reading"
        assert offset + size <= len(self.contents), "a table checks sizes against the file size before reading"
        self.reads.append((offset, size))
        return self.contents[offset : offset + size]

    def open(self) -> Table:
        opened = Table(self.read, len(self.contents))
        self.reads.clear()
        return opened


def built(entries: Entries) -> bytes:
    parts: list[bytes] = []
    builder = TableBuilder(parts.append)
    for key, value in entries.items():
        builder.add(key, value)
    assert builder.finish() == sum(map(len, parts))
    return b"".join(parts)


def opened(contents: bytes) -> Table:
    return File(contents).open()


def items(contents: bytes, start: bytes = b"") -> list[tuple[bytes, bytes]]:
    return list(opened(contents).items(start))


def data_blocks(contents: bytes) -> list[tuple[int, int]]:
    """Offset and size, including the trailer, of every data block."""
    file = File(contents)
    list(file.open().items())
    return file.reads


# Tables built by hand, block by block.


def block_of(entries: Entries, restart_interval: int = 16) -> bytes:
    builder = BlockBuilder(restart_interval)
    for key, value in entries.items():
        builder.add(key, value)
    return builder.finish()


def stored(contents: bytes, kind: int = 0) -> bytes:
    """Return a block with its trailer."""
    checksum = crc32c.mask(crc32c.value(contents + bytes((kind,))))
    return contents + bytes((kind,)) + struct.pack("<I", checksum)


def hand_made(
    blocks: Sequence[tuple[bytes, bytes]], *, gaps: Mapping[int, bytes] | None = None, padding: bytes = bytes(40)
) -> bytes:
    """Return a table of stored blocks with their separators. `gaps`: bytes before the block of that number."""
    gaps = gaps or {}
    out = b""
    index = {}
    for number, (key, block) in enumerate(blocks):
        out += gaps.get(number, b"")
        index[key] = BlockHandle(len(out), len(block) - BLOCK_TRAILER.size).encode()
        out += block
    out += gaps.get(len(blocks), b"")
    metaindex = BlockHandle(len(out), 8)
    out += stored(block_of({})) + gaps.get(len(blocks) + 1, b"")
    contents = block_of(index, restart_interval=1)
    handles = metaindex.encode() + BlockHandle(len(out), len(contents)).encode()
    out += stored(contents) + gaps.get(len(blocks) + 2, b"")
    return out + handles + padding[len(handles) :] + bytes.fromhex("57 fb 80 8b 24 75 47 db")


def flipped(contents: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield `contents` with each of its bits flipped in turn."""
    for bit in range(8 * len(contents)):
        damaged = bytearray(contents)
        damaged[bit // 8] ^= 1 << bit % 8
        yield bit // 8, bytes(damaged)


# TensorFlow's bytes.


@pytest.mark.parametrize(
    ("entries", "contents"),
    [(ONE_SCALAR_ENTRIES, ONE_SCALAR), (ONE_VARIABLE_ENTRIES, ONE_VARIABLE)],
    ids=["worked example 1", "worked example 8"],
)
def test_tables_are_byte_identical_to_tensorflows(entries: Entries, contents: bytes) -> None:
    """The same entries yield TensorFlow's file, and its file yields the entries."""
    assert len(contents) in (117, 188)
    assert built(entries) == contents
    assert items(contents) == list(entries.items())
    assert {key: opened(contents).get(key) for key in entries} == entries
    opened(contents).check_structure()


def test_the_footer_equals_tensorflows() -> None:
    """Metaindex at 37, index at 50, in both directions; the sizes derive from those of the parts."""
    footer = Footer(BlockHandle(37, 8), BlockHandle(50, 14))
    assert Footer.SIZE == 48
    assert footer.encode() == ONE_SCALAR[-48:]
    assert Footer.decode(ONE_SCALAR[-48:]) == footer
    assert footer.index.end == 69 == len(ONE_SCALAR) - 48
    with pytest.raises(DataLossError) as raised:
        Footer.decode(ONE_SCALAR[-47:])
    assert str(raised.value) == "footer: expected 48 bytes, got 47"


def test_the_widest_footer_fits() -> None:
    """Four 64-bit numbers leave no padding."""
    footer = Footer(BlockHandle(2**64 - 1, 2**64 - 1), BlockHandle(2**64 - 1, 2**64 - 1))
    assert len(footer.encode()) == 48
    assert Footer.decode(footer.encode()) == footer


@pytest.mark.parametrize(
    ("last", "following", "key"),
    [
        # Seen in files that TensorFlow 2.21 wrote.
        (b"t", b"zz", b"u"),
        (b"layer_03450/x/bias", b"layer_03451/x/kernel", b"layer_03450/x/bias"),
        # By the algorithm: only the first differing byte is ever compared.
        (b"abc", b"abcd", b"abc"),
        (b"a\xfe", b"b", b"a\xfe"),
        (b"a1", b"c", b"b"),
        (b"a\xffz", b"a\xffzz", b"a\xffz"),
        (b"a\xfdz", b"a\xff", b"a\xfe"),
        (b"", b"a", b""),
    ],
)
def test_known_separators(last: bytes, following: bytes, key: bytes) -> None:
    """The index key between two blocks."""
    assert separator(last, following) == key


@pytest.mark.parametrize(
    ("last", "key"),
    [
        # Seen in files that TensorFlow 2.21 wrote.
        (b"x", b"y"),
        (b"\xff\xff\x01", b"\xff\xff\x02"),
        (b"\xff\xff", b"\xff\xff"),
        (b"\x00x\x00\x01\x00", b"\x01"),
        (b"", b""),
    ],
)
def test_known_successors(last: bytes, key: bytes) -> None:
    """The index key after the last block."""
    assert successor(last) == key


@given(keys=st.lists(KEYS | st.binary(max_size=5), min_size=2, max_size=2, unique=True).map(sorted))
def test_a_separator_separates(keys: list[bytes]) -> None:
    """last <= separator < following, last <= successor, and neither is longer than the key it replaces."""
    last, following = keys
    assert last <= separator(last, following) < following
    assert last <= successor(last)
    assert len(separator(last, following)) <= len(last)
    assert len(successor(last)) <= len(last)


# Block boundaries.


def test_a_block_is_closed_once_it_is_full() -> None:
    """The entry that reaches 262144 bytes, including restarts, is the last of its block."""
    # An entry here has 4 bytes of sizes, 1 of key, 2000 of value; 16 share a restart.
    contents = built({bytes((n,)): bytes(2000) for n in range(256)})
    full = 2005 * 131 + 4 * 9 + 4
    assert full >= BLOCK_SIZE > full - 2005
    assert data_blocks(contents) == [(0, full + 5), (full + 5, 2005 * 125 + 4 * 8 + 4 + 5)]


def test_a_block_of_exactly_the_block_size_is_full() -> None:
    """262144 bytes close a block, 262143 do not."""
    # 5 bytes of sizes, 1 of key, the value, 4 for its restart, 4 for the number of restarts.
    for size, blocks in ((BLOCK_SIZE - 14, 2), (BLOCK_SIZE - 15, 1)):
        assert len(data_blocks(built({b"a": bytes(size), b"b": b""}))) == blocks


def test_a_huge_entry_starts_its_own_block() -> None:
    """From 524288 bytes of key and value on; one byte less joins the previous block."""
    # TensorFlow did this with an entry of 70,000 slices.
    huge = built({b"a": b"1", b"b": bytes(2 * BLOCK_SIZE - 1), b"c": b"2"})
    sizes = 1 + 1 + 3  # of shared and unshared key and of the value, as varints
    assert [size for _, size in data_blocks(huge)] == [18, sizes + 2 * BLOCK_SIZE + 8 + 5, 18]
    large = built({b"a": b"1", b"b": bytes(2 * BLOCK_SIZE - 2), b"c": b"2"})
    assert len(data_blocks(large)) == 2
    first = built({b"b": bytes(2 * BLOCK_SIZE), b"c": b"2"})
    assert len(data_blocks(first)) == 2  # there is no block to close before the first entry


def test_an_empty_table_reads_back_empty() -> None:
    """It has no data block; the index block is as empty as the metaindex block."""
    contents = built({})
    assert len(contents) == 13 + 13 + 48
    assert items(contents) == []
    assert opened(contents).get(b"") is None
    opened(contents).check_structure()


def test_keys_out_of_order_are_refused() -> None:
    """A repeated key too; the entries already written stay valid."""
    parts: list[bytes] = []
    builder = TableBuilder(parts.append)
    builder.add(b"b", b"1")
    for key in (b"a", b"b", b""):
        with pytest.raises(InvalidArgumentError) as raised:
            builder.add(key, b"2")
        assert str(raised.value) == f"keys out of order: {key!r} after b'b'"
    builder.finish()
    assert items(b"".join(parts)) == [(b"b", b"1")]


# Round trips, in blocks of any size, plain or compressed.


@given(entries=ENTRIES, block_size=st.integers(1, 120), start=KEYS, compressed=st.booleans())
def test_a_table_is_a_sorted_dictionary(
    entries: dict[bytes, bytes], block_size: int, start: bytes, compressed: bool
) -> None:
    """get, items from any key, and check_structure against a dict, with one to all entries per block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "BLOCK_SIZE", block_size)
        contents = recompressed(built(entries)) if compressed else built(entries)
    reader = opened(contents)
    reader.check_structure()
    assert list(reader.items()) == list(entries.items())
    assert list(reader.items(start)) == [(key, value) for key, value in entries.items() if key >= start]
    absent = {start, *(key + b"\0" for key in entries), *(key[:-1] for key in entries)}
    assert {key: reader.get(key) for key in (*entries, *absent)} == {
        key: entries.get(key) for key in (*entries, *absent)
    }


def recompressed(contents: bytes) -> bytes:
    """Return the same table with every data block compressed."""
    blocks = []
    index = Footer.decode(contents[-48:]).index
    for key, value in zip(*decode_block(contents[index.offset : index.offset + index.size], index.size), strict=True):
        handle, _ = BlockHandle.decode(value, 0)
        plain = contents[handle.offset : handle.offset + handle.size]
        blocks.append((key, stored(bytes(cramjam.snappy.compress_raw(plain)), kind=1)))
    return hand_made(blocks)


# Snappy.


def test_a_compressed_block_with_back_references_is_read() -> None:
    """Blocks as in Google's own checkpoints: cramjam's snappy, far smaller than their contents."""
    entries = {f"layer_{n:03}/kernel".encode(): b"\x08\x01\x12\x08\x12\x02\x08\x40" * 4 for n in range(200)}
    plain = built(entries)
    contents = recompressed(plain)
    assert len(contents) < len(plain) / 3
    assert items(contents) == list(entries.items())


# https://github.com/google/snappy/blob/main/format_description.txt, worked out by hand: a block with "k" -> "xababab".
LITERAL_ONLY = bytes.fromhex("13 48 00 01 07 6b 78 61 62 61 62 61 62 00 00 00 00 01 00 00 00")
LONG_LITERAL = bytes.fromhex("13 f0 12 00 01 07 6b 78 61 62 61 62 61 62 00 00 00 00 01 00 00 00")
BACK_REFERENCE = bytes.fromhex("13 18 00 01 07 6b 78 61 62 01 02 1c 00 00 00 00 01 00 00 00")


@pytest.mark.parametrize("compressed", [LITERAL_ONLY, LONG_LITERAL, BACK_REFERENCE])
def test_hand_made_compressed_blocks_are_read(compressed: bytes) -> None:
    """One literal, a literal with a separate length byte, and "xab" continued by a 4-byte copy from 2 bytes back."""
    assert items(hand_made([(b"l", stored(compressed, kind=1))])) == [(b"k", b"xababab")]


@pytest.mark.parametrize(
    "compressed",
    [
        b"",
        bytes.fromhex("ff ff ff ff ff"),
        LITERAL_ONLY[:-1],
        LITERAL_ONLY + b"\0",
        bytes.fromhex("14") + LITERAL_ONLY[1:],
        bytes.fromhex("13 18 00 01 07 6b 78 61 62 01 09 1c 00 00 00 00 01 00 00 00"),  # copies from before the start
        bytes.fromhex("ff ff ff ff 0f 00 00"),  # declares 4 GiB
        bytes.fromhex("80 80 80 80 10 00 00"),  # declares more than a 32-bit size
    ],
    ids=["empty", "no size", "cut", "longer", "wrong size", "bad reference", "4 GiB", "33 bits"],
)
def test_a_broken_compressed_block_is_reported(compressed: bytes) -> None:
    """The checksum is right, so the writer was wrong; seven bytes cannot make us allocate gigabytes."""
    with pytest.raises(DataLossError, match=r"^data block 0, bytes 0:\d+: corrupted compressed block contents"):
        items(hand_made([(b"l", stored(compressed, kind=1))]))


def test_an_impossible_decompressed_size_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven bytes that declare 4 GiB are refused before the decompressor can allocate them."""

    def decompress(_: bytes) -> bytes:
        pytest.fail("the decompressor was called")

    monkeypatch.setattr(cramjam.snappy, "decompress_raw", decompress)
    with pytest.raises(DataLossError) as raised:
        items(hand_made([(b"l", stored(bytes.fromhex("ff ff ff ff 0f 00 00"), kind=1))]))
    assert str(raised.value) == (
        "data block 0, bytes 0:12: corrupted compressed block contents: 7 bytes cannot expand to 4294967295"
    )


@given(st.binary(max_size=40))
def test_any_bytes_as_a_compressed_block_are_entries_or_an_error(compressed: bytes) -> None:
    """The decompressor raises only DataLossError."""
    contents = hand_made([(b"\xff" * 40, stored(compressed, kind=1))])
    try:
        items(contents)
    except DataLossError as error:
        assert str(error).startswith("data block 0, bytes 0:")


# Invalid tables.


@pytest.mark.parametrize("size", [0, 1, 47])
def test_a_short_file_is_refused(size: int) -> None:
    """Before anything is read."""
    file = File(ONE_SCALAR[:size])
    with pytest.raises(DataLossError) as raised:
        file.open()
    assert str(raised.value) == (f"file is too short to be an sstable: {size} bytes, but a footer alone has 48")
    assert not file.reads


def test_a_bad_magic_number_is_refused() -> None:
    """TensorFlow's words, with the expected and the actual value."""
    with pytest.raises(DataLossError) as raised:
        opened(ONE_SCALAR[:-8] + bytes(range(8)))
    assert str(raised.value) == (
        "not an sstable (bad magic number): footer: expected magic 0xdb4775248b80fb57, got 0x0706050403020100"
    )


def test_a_bad_block_type_is_refused() -> None:
    """Its checksum is right, but this package does not know the type."""
    contents = hand_made([(b"l", stored(block_of({b"k": b"v"}), kind=2))])
    with pytest.raises(DataLossError) as raised:
        items(contents)
    assert str(raised.value) == "data block 0, bytes 0:18: bad block type 2: expected 0 (plain) or 1 (snappy)"


def test_a_wrong_checksum_is_reported() -> None:
    """The error names the block, its bytes and both checksums in their masked form."""
    damaged = ONE_SCALAR[:12] + b"y" + ONE_SCALAR[13:]
    computed = crc32c.mask(crc32c.value(damaged[:33]))
    with pytest.raises(DataLossError) as raised:
        items(damaged)
    assert str(raised.value) == (
        f"data block 0, bytes 0:37: block checksum mismatch, stored 0x39df5a38, computed {computed:#010x}"
    )


@pytest.mark.parametrize("handle", [BlockHandle(0, 100), BlockHandle(2**62, 8), BlockHandle(0, 2**63)])
def test_a_block_outside_the_file_is_refused(handle: BlockHandle) -> None:
    """Even the index block must end before the footer; a handle is checked before anything is read with it."""
    contents = ONE_SCALAR[:-48] + Footer(BlockHandle(37, 8), handle).encode()
    with pytest.raises(DataLossError) as raised:
        opened(contents)
    assert str(raised.value) == (
        f"index block, bytes {handle.offset}:{handle.end}: truncated block read: the file has only 117 bytes, "
        "including its footer"
    )


def test_blocks_that_overlap_are_refused_at_once() -> None:
    """Two handles on one block would let a small file expand without bound."""
    block = stored(block_of({b"k": b"v"}))
    out = block + stored(block_of({}))
    index = stored(block_of({b"l": BlockHandle(0, 13).encode(), b"m": BlockHandle(0, 13).encode()}, restart_interval=1))
    footer = Footer(BlockHandle(18, 8), BlockHandle(31, len(index) - 5))
    with pytest.raises(DataLossError) as raised:
        opened(out + index + footer.encode())
    assert str(raised.value) == "data block at byte 0 overlaps the previous one, which ends at 18"


def test_a_data_block_after_the_index_is_refused() -> None:
    """The order of a table is data, metaindex, index, footer."""
    index = stored(block_of({b"l": BlockHandle(33, 13).encode()}, restart_interval=1))
    assert len(index) == 19
    out = index + stored(block_of({})) + b"\0" + stored(block_of({b"k": b"v"}))
    footer = Footer(BlockHandle(19, 8), BlockHandle(0, 14))
    with pytest.raises(DataLossError) as raised:
        opened(out + footer.encode())
    assert str(raised.value) == "data blocks end at byte 51, after the start of the index block at 0"


@pytest.mark.parametrize(
    ("first", "second"), [(b"a", b"b"), (b"a", b"c"), (b"cc", b"d")], ids=["below", "at the separator", "above"]
)
def test_keys_outside_their_separators_are_refused(first: bytes, second: bytes) -> None:
    """A lookup would not find such a key, so iteration must not yield it."""
    blocks = [(b"c", stored(block_of({first: b""}))), (b"d", stored(block_of({second: b""})))]
    with pytest.raises(DataLossError, match=r"^data block [01] at byte \d+ contains keys outside its separators$"):
        items(hand_made(blocks))


def test_an_invalid_handle_is_reported_with_its_place() -> None:
    """An index entry without a handle: the message names the index block as damaged."""
    index = stored(block_of({b"l": b""}, restart_interval=1))
    out = stored(block_of({})) + index
    with pytest.raises(DataLossError, match="index block") as raised:
        opened(out + Footer(BlockHandle(0, 8), BlockHandle(13, len(index) - 5)).encode())
    assert "integer at byte 0 is truncated or too long; bytes examined: 0" in str(raised.value)


# Damage.


@pytest.mark.parametrize("contents", [ONE_SCALAR, ONE_VARIABLE], ids=["worked example 1", "worked example 8"])
def test_check_structure_finds_every_flipped_bit(contents: bytes) -> None:
    """Including the padding of the footer and the metaindex block."""
    for at, damaged in flipped(contents):
        try:
            opened(damaged).check_structure()
        except DataLossError:
            continue
        pytest.fail(f"a flipped bit of byte {at} was not found")


def test_no_flipped_bit_changes_an_entry() -> None:
    """Reading fails, or the bit is in a part that reading does not need: metaindex block, padding of the footer."""
    unnoticed = set()
    for at, damaged in flipped(ONE_SCALAR):
        try:
            assert items(damaged) == list(ONE_SCALAR_ENTRIES.items())
        except DataLossError:
            continue
        unnoticed.add(at)
    # 72: the last byte of the index handle, where 8e 00 means the same as 0e, as long as zeros follow.
    assert unnoticed == {*range(37, 50), 69, 70, 72, *range(73, 109)}


def test_a_truncated_file_is_refused() -> None:
    """A file that lost its end or its beginning is not a table."""
    for cut in range(1, len(ONE_SCALAR) + 1):
        for rest in (ONE_SCALAR[:-cut], ONE_SCALAR[cut:]):
            with pytest.raises(DataLossError):
                items(rest)


GOOD = [(b"b", stored(block_of({b"a": b"1"}))), (b"d", stored(block_of({b"c": b"2"})))]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "bytes 0:3 belong to no block"),
        (1, "bytes 18:21 belong to no block"),
        (2, "bytes 36:39 belong to no block"),
        (3, "bytes 49:52 belong to no block"),
        (4, "bytes 78:81 belong to no block"),
    ],
)
def test_a_gap_is_ignored_by_reading_but_reported_by_check_structure(number: int, text: str) -> None:
    """Before, between and after the blocks: every byte is accounted for."""
    opened(hand_made(GOOD)).check_structure()
    contents = hand_made(GOOD, gaps={number: b"gap"})
    assert items(contents) == [(b"a", b"1"), (b"c", b"2")]
    with pytest.raises(DataLossError) as raised:
        opened(contents).check_structure()
    assert str(raised.value) == text


def test_nonzero_footer_padding_is_reported_by_check_structure() -> None:
    """The footer contains zeros after the two handles, up to its magic number; reading ignores them."""
    contents = hand_made(GOOD, padding=b"\0" * 39 + b"\x01")
    assert items(contents) == [(b"a", b"1"), (b"c", b"2")]
    with pytest.raises(DataLossError) as raised:
        opened(contents).check_structure()
    assert str(raised.value) == f"bytes 78:{len(contents)}: padding of the footer is not zero"


def test_a_damaged_metaindex_block_is_reported_by_check_structure() -> None:
    """Reading does not need it."""
    contents = ONE_SCALAR[:37] + b"\x01" + ONE_SCALAR[38:]
    assert items(contents) == list(ONE_SCALAR_ENTRIES.items())
    with pytest.raises(DataLossError, match=r"^metaindex block, bytes 37:50: block checksum mismatch"):
        opened(contents).check_structure()


def test_a_metaindex_block_inside_the_data_is_reported_by_check_structure() -> None:
    """Two blocks share bytes: the range in the message must not end before it starts."""
    contents = stored(block_of({b"a": b"1"})) + stored(block_of({}))
    index = stored(block_of({b"b": BlockHandle(0, 13).encode(), b"c": BlockHandle(18, 8).encode()}, 1))
    damaged = contents + index + Footer(BlockHandle(18, 8), BlockHandle(31, len(index) - 5)).encode()
    with pytest.raises(DataLossError) as raised:
        opened(damaged).check_structure()
    assert "31:18" not in str(raised.value)
    assert "overlaps" in str(raised.value)


# Reads and caching.


def many() -> tuple[dict[bytes, bytes], File]:
    """Return four blocks of about 64 entries each."""
    entries = {bytes((n,)): bytes(4096) for n in range(256)}
    return entries, File(built(entries))


def test_opening_reads_the_footer_and_the_index_block() -> None:
    """Two reads, whatever the number of entries."""
    _, file = many()
    reads = file.reads
    Table(file.read, len(file.contents))
    footer = Footer.decode(file.contents[-48:])
    assert reads == [(len(file.contents) - 48, 48), (footer.index.offset, footer.index.size + 5)]


def test_a_lookup_reads_one_data_block() -> None:
    """The only block that can contain the key; a second lookup there reads nothing."""
    entries, file = many()
    blocks = data_blocks(file.contents)
    assert len(blocks) == 4
    reader = file.open()
    assert reader.get(b"\x80") == entries[b"\x80"]
    assert len(file.reads) == 1
    assert file.reads[0] in blocks
    assert reader.get(b"\x80\x00") is None
    assert reader.get(b"\x81") == entries[b"\x81"]
    assert len(file.reads) == 1
    assert reader.get(b"\xff" * 9) is None  # after the last separator: nothing to read
    assert len(file.reads) == 1


def test_iteration_reads_blocks_on_demand() -> None:
    """The first entry costs one block; the whole file is never in memory."""
    entries, file = many()
    blocks = data_blocks(file.contents)
    reader = file.open()
    stream = reader.items()
    assert not file.reads
    assert next(stream) == (b"\0", bytes(4096))
    assert file.reads == blocks[:1]
    reached = [len(file.reads) for _ in stream]
    assert reached == sorted(reached)
    assert set(reached) == {1, 2, 3, 4}
    assert len(reached) == len(entries) - 1


def test_iteration_from_a_key_reads_no_block_before_it() -> None:
    """A key at the start of a block, inside one, between two, the last of all, and after all."""
    _, file = many()
    blocks = data_blocks(file.contents)
    for start, key, block in (
        (b"\x00", b"\x00", 0),
        (b"\x50", b"\x50", 1),
        (b"\x7f\x00", b"\x80", 2),
        (b"\xff", b"\xff", 3),
    ):
        reader = file.open()
        assert next(reader.items(start))[0] == key
        assert file.reads == [blocks[block]]
    reader = file.open()
    assert list(reader.items(b"\xff\x00")) == []


def test_the_block_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for one block, alternating reads miss; with room for two they hit."""
    entries, file = many()
    blocks = data_blocks(file.contents)
    for room, reads in ((1, 6), (sum(size for _, size in blocks[:2]), 2)):
        monkeypatch.setattr(table, "CACHED_BYTES", room)
        reader = file.open()
        for _ in range(3):
            assert reader.get(b"\x00") == entries[b"\x00"]
            assert reader.get(b"\x50") == entries[b"\x50"]
        assert len(file.reads) == reads
        file.reads.clear()
        assert reader.get(b"\x50") == reader.get(b"\x51") == entries[b"\x50"]
        assert not file.reads  # the last block is cached, however large


def test_the_least_recently_used_block_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for two blocks: first, second, first again, third; then the first is cached, the second is not."""
    _, file = many()
    monkeypatch.setattr(table, "CACHED_BYTES", 2 * data_blocks(file.contents)[0][1])
    reader = file.open()
    for key in (b"\x00", b"\x50", b"\x00", b"\x90"):
        reader.get(key)
    file.reads.clear()
    reader.get(b"\x00")
    assert not file.reads
    reader.get(b"\x50")
    assert len(file.reads) == 1


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 255), min_size=20, max_size=60))
def test_threads_can_share_a_table(wanted: list[int]) -> None:
    """Concurrent lookups from several threads, with a cache that is always too small."""
    entries, file = many()
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(4) as threads:
        patch.setattr(table, "CACHED_BYTES", 1)
        keys = [bytes((number,)) for number in wanted]
        assert list(threads.map(file.open().get, keys)) == [entries[key] for key in keys]
