"""Table.stream and Table.outside: the entries of Table.items, of which most need not be decoded."""

from collections.abc import Iterable
from typing import Any

import cramjam
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_tfckpt.errors import DataLossError
from torch_tfckpt.format import crc32c, table
from torch_tfckpt.format.block import BlockBuilder
from torch_tfckpt.format.table import BLOCK_TRAILER, BlockHandle, Footer, Table, TableBuilder

PREFIXES = [b"\x00a\x00\x01", b"\x00b\x00\x01", b"\x00bb\x00\x01", b"m\x00\x01"]
STOP = b"\x01"
KEYS = st.builds(
    lambda prefix, number: prefix + b"%04d" % number,
    st.sampled_from([b"", b"\x00", b"\x00a", b"\x00c", b"\x01", b"z", *PREFIXES]),
    st.integers(0, 200),
)


def build(entries: dict[bytes, bytes], block_size: int, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Return a table with blocks of about `block_size` bytes."""
    parts: list[bytes] = []
    with monkeypatch.context() as patch:
        patch.setattr(table, "BLOCK_SIZE", block_size)
        builder = TableBuilder(parts.append)
        for key in sorted(entries):
            builder.add(key, entries[key])
        builder.finish()
    return b"".join(parts)


@given(st.data(), st.dictionaries(KEYS, st.binary(max_size=8), max_size=300), st.sampled_from([64, 1000, 10**6]))
@settings(max_examples=150, deadline=None)
def test_streams_yield_the_entries_of_items(data: st.DataObject, entries: dict[bytes, bytes], block_size: int) -> None:
    """From any key on; and outside of any prefixes, however many entries have one."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        encoded = build(entries, block_size, monkeypatch)
    opened = Table.of(encoded)
    assert list(opened.stream()) == list(opened.items()) == sorted(entries.items())
    start = data.draw(st.one_of(KEYS, st.sampled_from([b"", STOP, b"\xff"])))
    assert list(opened.stream(start)) == [(key, value) for key, value in sorted(entries.items()) if key >= start]
    prefixes = sorted(data.draw(st.sets(st.sampled_from(PREFIXES))))
    expected = [
        (key, value)
        for key, value in sorted(entries.items())
        if key < STOP and not any(key.startswith(prefix) for prefix in prefixes)
    ]
    assert list(opened.outside(prefixes, STOP)) == expected


def test_blocks_with_one_prefix_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of thousands of entries with one prefix, only the blocks at both ends are read."""
    prefix = b"\x00a\x00\x01"
    entries = {prefix + b"%06d" % number: b"v" * 20 for number in range(20_000)} | {b"": b"h", b"\x00z": b"", b"a": b""}
    encoded = build(entries, 4096, monkeypatch)
    reads: list[int] = []

    def read(offset: int, size: int) -> bytes:
        reads.append(offset)
        return encoded[offset : offset + size]

    opened = Table(read, len(encoded))
    reads.clear()
    assert list(opened.outside([prefix], STOP)) == [(b"", b"h"), (b"\x00z", b"")]
    assert 1 <= len(reads) <= 3


def test_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged block is an error that contains its place, or is skipped on request."""
    entries = {b"\x00%04d" % number: b"v" * 20 for number in range(1000)}
    encoded = bytearray(build(entries, 4096, monkeypatch))
    encoded[5000] ^= 1
    opened = Table.of(bytes(encoded))
    for entries_of in (opened.stream(), opened.outside([], STOP)):
        with pytest.raises(DataLossError, match=r"data block .*byte.*checksum mismatch"):
            list(entries_of)
    problems: list[Any] = []
    left = list(opened.outside([], STOP, problems.append))
    assert len(problems) == 1 and 0 < len(left) < 1000 and set(left) < set(entries.items())


def compressed(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return a table of one snappy block."""
    builder, index = BlockBuilder(16), BlockBuilder(1)
    for key, value in entries:
        builder.add(key, value)
    file = b""
    handles: list[BlockHandle] = []
    for contents in (builder.finish(), BlockBuilder(1).finish(), None):
        if contents is None:
            index.add(b"\xff", handles[0].encode())
            contents = index.finish()
        kind = int(not handles)
        contents = bytes(cramjam.snappy.compress_raw(contents)) if kind else contents
        handles.append(BlockHandle(len(file), len(contents)))
        checksum = crc32c.mask(crc32c.value(bytes((kind,)), crc32c.value(contents)))
        file += contents + BLOCK_TRAILER.pack(kind, checksum)
    return file + Footer(handles[1], handles[2]).encode()


def test_a_compressed_table_in_memory() -> None:
    entries = [(b"k%04d" % number, b"value" * 9) for number in range(500)]
    opened = Table.of(compressed(entries))
    assert list(opened.stream(b"k0100")) == entries[100:] and opened.get(b"k0007") == b"value" * 9
    assert opened.get(b"k") is None and list(opened.outside([b"k0"], b"l")) == []
