"""Blocks: bytes worked out by hand, round trips of sorted dictionaries, and errors for damaged blocks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_tfckpt.errors import DataLossError
from torch_tfckpt.format.block import MAX_KEY_EXPANSION, BlockBuilder, decode_block, shared_prefix_size
from torch_tfckpt.format.coding import encode_varint

NO_RESTARTS = bytes.fromhex("00000000 01000000")  # one restart at 0: comes after hand-made entries
# A small alphabet, so that keys share prefixes, and long keys, so that sizes take more than one byte.
KEYS = st.lists(st.sampled_from([b"a", b"b", b"\x00", b"\xff", b"k" * 130]), max_size=4).map(b"".join)
ENTRIES = st.dictionaries(KEYS, st.binary(max_size=4) | st.sampled_from([b"v" * 127, b"v" * 128, b"v" * 300])).map(
    lambda entries: dict(sorted(entries.items()))
)


def built(entries: dict[bytes, bytes], restart_interval: int = 16) -> bytes:
    builder = BlockBuilder(restart_interval)
    for key, value in entries.items():
        builder.add(key, value)
    return builder.finish()


def decoded(contents: bytes) -> list[tuple[bytes, bytes]]:
    return list(zip(*decode_block(contents, len(contents)), strict=True))


# Bytes worked out by hand.


def test_an_empty_block_has_one_restart() -> None:
    """Eight bytes; the metaindex block of every table."""
    assert built({}) == bytes.fromhex("00000000 01000000")
    assert decode_block(bytes.fromhex("00000000 01000000"), 8) == ([], [])


def test_keys_share_prefixes() -> None:
    """The second key repeats nothing of the first."""
    # Worked from LevelDB doc/table_format.md: shared, unshared, value size, rest of the key, value.
    contents = b"\x00\x0a\x01dense/biasA" + b"\x06\x06\x01kernelB" + NO_RESTARTS
    assert built({b"dense/bias": b"A", b"dense/kernel": b"B"}) == contents
    assert decoded(contents) == [(b"dense/bias", b"A"), (b"dense/kernel", b"B")]


def test_every_sixteenth_key_is_stored_in_full() -> None:
    """Entries 0, 16 and 32 are restarts, and their offsets follow the entries."""
    keys = [f"key{number:02}".encode() for number in range(33)]
    entries, restarts = b"", []
    for number, key in enumerate(keys):
        shared = 0 if number % 16 == 0 else 4 if number % 10 else 3  # "key0" or the like, or "key"
        if shared == 0:
            restarts.append(len(entries))
        entries += bytes((shared, len(key) - shared, 1)) + key[shared:] + b"v"
    words = [*restarts, 3]
    # "key00" in full, "key01" to "key09" by their last digit, "key10" by two digits, "key11" to "key15" by one again.
    assert restarts[1] == 9 + 9 * 5 + 6 + 5 * 5
    assert built(dict.fromkeys(keys, b"v")) == entries + b"".join(word.to_bytes(4, "little") for word in words)


def test_an_index_block_shares_no_prefixes() -> None:
    """With a restart at every entry all keys are stored in full, and there are as many restarts as entries."""
    contents = b"\x00\x02\x01abA" + b"\x00\x03\x01abcB" + bytes.fromhex("00000000 06000000 02000000")
    assert built({b"ab": b"A", b"abc": b"B"}, restart_interval=1) == contents
    assert decoded(contents) == [(b"ab", b"A"), (b"abc", b"B")]


def test_sizes_of_128_and_more_take_two_bytes() -> None:
    """Key, shared prefix and value at the limit of a one-byte varint."""
    key, longer = b"k" * 128, b"k" * 128 + b"x" * 127
    contents = b"\x00\x80\x01\x80\x01" + key + b"v" * 128 + b"\x80\x01\x7f\x7f" + b"x" * 127 + b"v" * 127 + NO_RESTARTS
    assert built({key: b"v" * 128, longer: b"v" * 127}) == contents
    assert decoded(contents) == [(key, b"v" * 128), (longer, b"v" * 127)]


# Round trips.


@given(entries=ENTRIES, restart_interval=st.integers(1, 17))
def test_every_sorted_dictionary_round_trips(entries: dict[bytes, bytes], restart_interval: int) -> None:
    """Keys and values in order, for every restart interval."""
    assert decoded(built(entries, restart_interval)) == list(entries.items())


@given(entries=ENTRIES)
def test_the_builder_reports_its_size_and_can_be_reused(entries: dict[bytes, bytes]) -> None:
    """`size` is what `finish` would return at that moment; a second block is independent of the first."""
    builder = BlockBuilder(16)
    assert builder.empty
    for _ in range(2):
        for at, (key, value) in enumerate(entries.items()):
            builder.add(key, value)
            assert builder.size == len(built(dict(list(entries.items())[: at + 1])))
            assert not builder.empty
        assert builder.finish() == built(entries)
        assert builder.empty
        assert builder.size == 8


@given(one=st.binary(max_size=6), other=st.binary(max_size=6), common=st.binary(max_size=300))
def test_shared_prefix_size(one: bytes, other: bytes, common: bytes) -> None:
    """Compared with a byte-by-byte comparison."""
    one, other = common + one, common + other
    expected = next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
    assert shared_prefix_size(one, other) == shared_prefix_size(other, one) == expected


# Invalid blocks.


@pytest.mark.parametrize(
    ("contents", "text"),
    [
        ("", "a block has at least 8 bytes, but this one has 0"),
        ("00 00 00 00 01 00 00", "a block has at least 8 bytes, but this one has 7"),
        ("00 00 00 00 00 00 00 00", "invalid number of restarts in a block of 8 bytes: 0"),
        ("00 00 00 00 02 00 00 00", "invalid number of restarts in a block of 8 bytes: 2"),
        ("00 00 00 00 ff ff ff ff", "invalid number of restarts in a block of 8 bytes: 4294967295"),
    ],
)
def test_a_restart_array_that_does_not_fit_is_refused(contents: str, text: str) -> None:
    """The count is checked against the block's size before any loop."""
    with pytest.raises(DataLossError) as raised:
        decode_block(bytes.fromhex(contents), 8)
    assert str(raised.value) == text


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ("00 05 01 61", "entry at byte 0 of the block: ends at byte 9, but the entries end at byte 4"),
        (
            "00 01 00 61 01",
            "entry at byte 4 of the block: ends at byte 7, but the entries end at byte 5",
        ),
        (
            "01 00 00",
            "entry at byte 0 of the block: its shared key size is 1, but the size of the previous key is 0",
        ),
        ("00 01 00 62 00 01 00 61", "entry at byte 4 of the block: key b'a' does not sort after the previous key"),
        ("00 01 00 61 00 01 00 61", "entry at byte 4 of the block: key b'a' does not sort after the previous key"),
        ("00 01 00 61 01 00 00", "entry at byte 4 of the block: key b'a' does not sort after the previous key"),
        ("00 00 00 00 00 00", "entry at byte 3 of the block: key b'' does not sort after the previous key"),
        ("00 ff ff ff ff 10 00", "integer at byte 1 is wider than 32 bits"),
        (
            "00 ff ff ff ff 0f 00",
            "entry at byte 0 of the block: ends at byte 4294967302, but the entries end at byte 7",
        ),
    ],
)
def test_an_impossible_entry_is_refused(entries: str, text: str) -> None:
    """The error names the offset in the block, what was found, and the limit."""
    contents = bytes.fromhex(entries) + NO_RESTARTS
    with pytest.raises(DataLossError) as raised:
        decode_block(contents, len(contents))
    assert text in str(raised.value)


def test_keys_that_expand_without_bound_are_refused() -> None:
    """30,000 entries that repeat a long key: 3 GB of keys from 200 KB. Refused while decoding, not afterwards."""
    key = b"k" * 100_000
    repeated = b"".join(encode_varint(len(key) + n // 256) + b"\x01\x00" + bytes((n % 256,)) for n in range(30_000))
    contents = b"\x00" + encode_varint(len(key)) + b"\x00" + key + repeated + NO_RESTARTS
    with pytest.raises(DataLossError) as raised:
        decode_block(contents, len(contents))
    assert str(raised.value) == f"the block's keys expand to more than {MAX_KEY_EXPANSION} times its size"


def test_the_bound_on_keys_counts_stored_bytes() -> None:
    """Keys that expand 16 times, in a block compressed to a hundredth of its size, are refused."""
    entries = {b"k" * 10_000 + bytes((n,)): b"" for n in range(256)}
    contents = built(entries)
    with pytest.raises(DataLossError, match="keys expand"):
        decode_block(contents, len(contents) // 100)


def test_the_bound_on_keys_accepts_honest_blocks() -> None:
    """Keys of 10,000 bytes that differ only in their last byte, written as all known writers do."""
    entries = {b"k" * 10_000 + bytes((n,)): b"" for n in range(256)}
    assert decoded(built(entries)) == list(entries.items())


@given(entries=ENTRIES, data=st.data())
def test_arbitrary_bytes_decode_or_raise(entries: dict[bytes, bytes], data: st.DataObject) -> None:
    """After a changed byte or truncation: DataLossError, or sorted keys with as many values."""
    contents = bytearray(built(entries))
    at = data.draw(st.integers(0, len(contents) - 1))
    contents[at] = data.draw(st.integers(0, 255))
    del contents[data.draw(st.integers(0, len(contents)) | st.just(len(contents))) :]
    try:
        keys, values = decode_block(bytes(contents), len(contents))
    except DataLossError:
        return
    assert len(keys) == len(values)
    assert keys == sorted(set(keys))
