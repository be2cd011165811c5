"""Entries and tables that are encoded in bulk have the same bytes as those encoded one by one."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.bulk_encoding import encode_entries, encode_table
from torch_tfckpt.format.coding import encode_varint
from torch_tfckpt.format.table import Table, TableBuilder
from torch_tfckpt.format.tensor_bundle import BundleEntry, dtype_and_shape

_SHAPES = st.lists(st.integers(0, 300), max_size=3).map(tuple)
_NUMBERS = st.one_of(st.integers(0, 300), st.integers(0, 2**40), st.sampled_from([0, 127, 128, 2**62]))


@given(
    rows=st.lists(
        st.tuples(st.sampled_from([1, 3, 14]), _SHAPES, _NUMBERS, _NUMBERS, st.integers(0, 2**32 - 1)),
        min_size=1,
        max_size=30,
    ),
    shard=st.sampled_from([0, 1, 127, 128, 40000]),
)
def test_entries_equal_those_encoded_one_by_one(
    rows: list[tuple[int, tuple[int, ...], int, int, int]], shard: int
) -> None:
    """Every entry has the bytes that BundleEntry.encode returns; fields that are 0 are left out."""
    dtypes, shapes, offsets, sizes, checksums = zip(*rows, strict=True)
    encoded = encode_entries(
        [dtype_and_shape(dtype, shape) for dtype, shape in zip(dtypes, shapes, strict=True)],
        b"\x18" + encode_varint(shard) if shard else b"",
        np.array(offsets, dtype=np.int64),
        np.array(sizes, dtype=np.int64),
        np.array(checksums, dtype=np.uint32),
    )
    assert encoded == [
        BundleEntry(dtype, shape, shard, offset, size, checksum).encode()
        for dtype, shape, offset, size, checksum in rows
    ]


def _one_by_one(entries: dict[bytes, bytes]) -> bytes:
    blocks: list[bytes] = []
    table = TableBuilder(blocks.append)
    for key, value in entries.items():
        table.add(key, value)
    table.finish()
    return b"".join(blocks)


def _key(number: int, width: int) -> bytes:
    return b"layer_%06d/" % number + b"k" * (number % width)


@given(
    keys=st.sets(st.binary(max_size=12) | st.binary(min_size=120, max_size=140), min_size=1, max_size=40),
    value_size=st.integers(0, 160),
    count=st.integers(0, 300),
)
def test_table_equals_one_built_one_by_one(keys: set[bytes], value_size: int, count: int) -> None:
    """Any keys and values, few or many: also null characters, long keys and long values."""
    every = sorted({*keys, *(_key(number, 20) for number in range(count))})
    entries = {key: key[:3] + b"v" * (at % (value_size + 1)) for at, key in enumerate(every)}
    assert encode_table(list(entries), list(entries.values())) == _one_by_one(entries)


@pytest.mark.parametrize(
    "value_of",
    [
        lambda number: b"",
        lambda number: b"v" * (number % 90),
        lambda number: b"v" * (7000 if number % 997 == 0 else 30),
    ],
    ids=["empty values", "values of unequal size", "some long values"],
)
def test_tables_of_several_blocks(value_of: Callable[[int], bytes]) -> None:
    """Blocks end at the same entries, restart at the same entries, and have the same separators."""
    entries = {_key(number, 60): value_of(number) for number in range(40_000)}
    encoded = encode_table(list(entries), list(entries.values()))
    assert encoded == _one_by_one(entries)
    assert dict(Table.of(encoded).items()) == entries


def test_huge_value_has_its_own_block() -> None:
    """A value of several blocks' size is written as TableBuilder writes it."""
    entries = {_key(number, 60): b"v" * (600_000 if number == 500 else 30) for number in range(1000)}
    assert encode_table(list(entries), list(entries.values())) == _one_by_one(entries)


@pytest.mark.parametrize("order", [[1, 0], [0, 0], [*range(500), 3]], ids=["descending", "equal", "one of many"])
def test_keys_out_of_order_are_refused(order: list[int]) -> None:
    """The error is that of TableBuilder."""
    keys = [_key(number, 5) for number in order]
    with pytest.raises(InvalidArgumentError, match="keys out of order"):
        encode_table(keys, [b""] * len(keys))
