"""merge_indexes: the bytes of encode_index, the same result as decoding everything, and an answer to any input."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from torch_tfckpt.bundle.general_merge import merge_entries
from torch_tfckpt.bundle.index_merge import merge_indexes
from torch_tfckpt.bundle.part_index import PartIndex
from torch_tfckpt.errors import CheckpointError, DataLossError, InvalidArgumentError
from torch_tfckpt.format.table import Table
from torch_tfckpt.format.tensor_bundle import HEADER_KEY, BundleEntry, BundleHeader, encode_index
from torch_tfckpt.format.tensor_slice import Extent, TensorSlice, encode_slice_key

FLOAT, STRING = 1, 7
PLACE = "merge into all"
Entries = dict[bytes, BundleEntry]


def part(name: str, entries: Mapping[bytes, BundleEntry], shards: Mapping[int, int], count: int = 1) -> PartIndex:
    return PartIndex(name, encode_index(BundleHeader(count), {k: v.encode() for k, v in entries.items()}), shards)


def rows(start: int, stop: int) -> TensorSlice:
    return TensorSlice((Extent(start, stop - start), Extent(0, -1)))


def sliced(name: bytes, shape: tuple[int, ...], pieces: Sequence[TensorSlice], shard: int, at: int = 0) -> Entries:
    """The entries of a partitioned float tensor."""
    entries = {name: BundleEntry(FLOAT, shape, shard, slices=tuple(pieces))}
    for piece in pieces:
        held = piece.shape_of(shape)
        size = 4 * held[0] * held[1]
        entries[encode_slice_key(name, piece)] = BundleEntry(FLOAT, held, shard, at, size, 77 + at + shard)
        at += size
    return entries


def both(parts: Sequence[PartIndex], *, equal_duplicates: bool = False) -> bytes:
    """Merge in both ways, which must agree; return the index or raise the error."""

    def generally() -> bytes:
        header, entries = merge_entries(parts, PLACE, equal_duplicates=equal_duplicates)
        return encode_index(header, entries)

    def usually() -> bytes:
        merged = merge_indexes(parts, PLACE, equal_duplicates=equal_duplicates)
        return merged.encode(1 + max(new for part in parts for new in part.shards.values()))

    results: list[bytes | CheckpointError] = []
    ways: tuple[Callable[[], bytes], ...] = (usually, generally)
    for way in ways:
        try:
            results.append(way())
        except CheckpointError as error:
            results.append(error)
    first, second = results
    if isinstance(first, CheckpointError):
        # An index may be damaged in several ways at once.
        assert isinstance(second, DataLossError | InvalidArgumentError), second
        raise first
    assert first == second
    return first


NAMES = [b"a", b"a/b", b"w", b"w\x00", b"\xff\x01", b"\xc3\xa9", b"\x00odd", b"\x00\xff", b"z" * 200]


@st.composite
def checkpoints(draw: Any) -> tuple[list[PartIndex], dict[bytes, bytes], int]:
    """Parts of a checkpoint, the entries of the whole, and the number of its data files."""
    count = draw(st.integers(1, 5))
    parts: list[Entries] = [{} for _ in range(count)]
    whole: Entries = {}
    for name in draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=len(NAMES))):
        if draw(st.booleans()):
            number = draw(st.integers(0, count - 1))
            shape = draw(st.sampled_from([(), (0,), (3, 4), (300, 2**40)]))
            size = 4
            for length in shape:
                size *= length
            dtype = draw(st.sampled_from([FLOAT, STRING]))
            entry = BundleEntry(
                dtype, shape, number, draw(st.integers(0, 2**40)), size, draw(st.integers(0, 2**32 - 1))
            )
            parts[number][name] = whole[name] = entry
            continue
        cuts = sorted(draw(st.sets(st.integers(1, 7), max_size=4)))
        pieces = [rows(a, b) for a, b in zip([0, *cuts], [*cuts, 8], strict=True)]
        if draw(st.booleans()):
            pieces = [piece.resolve((8, 3)) for piece in pieces]
        owners = [draw(st.integers(0, count - 1)) for _ in pieces]
        listed: list[TensorSlice] = []
        for number in range(count):
            own = [piece for piece, owner in zip(pieces, owners, strict=True) if owner == number]
            if own:
                entries = sliced(name, (8, 3), draw(st.permutations(own)), number, draw(st.integers(0, 300)))
                parts[number] |= entries
                whole |= entries
                listed += entries[name].slices
        whole[name] = BundleEntry(FLOAT, (8, 3), min(owners), slices=tuple(listed))
    named = [part(f"rank {number}", entries, {number: number}) for number, entries in enumerate(parts)]
    return named, {key: entry.encode() for key, entry in whole.items()}, count


@given(checkpoints())
@settings(max_examples=200, deadline=None)
def test_merged_bytes_are_those_of_the_whole_checkpoint(drawn: tuple[list[PartIndex], dict[bytes, bytes], int]) -> None:
    """For any names, slices and owners, fast path == general path == the index written at once."""
    parts, whole, count = drawn
    merged = both(parts)
    assert merged == encode_index(BundleHeader(count), whole)


@given(checkpoints(), st.data())
@settings(max_examples=200, deadline=None)
def test_damaged_parts(drawn: tuple[list[PartIndex], dict[bytes, bytes], int], data: st.DataObject) -> None:
    """A changed entry, or a missing or additional one, gives the same result in both ways, or the same error."""
    parts, _, _ = drawn
    number = data.draw(st.integers(0, len(parts) - 1))
    stored = list(Table.of(parts[number].contents).items())
    header, entries = stored[0][1], dict(stored[1:])
    if entries:
        key = data.draw(st.sampled_from(sorted(entries)))
        value = entries[key]
        at = data.draw(st.integers(0, len(value)))
        change = data.draw(st.sampled_from(["flip", "cut", "insert", "remove", "copy"]))
        if change == "remove":
            del entries[key]
        elif change == "copy":
            entries[data.draw(st.sampled_from(sorted(entries)))] = value
        elif change == "cut":
            entries[key] = value[:at]
        elif change == "insert":
            entries[key] = value[:at] + data.draw(st.binary(min_size=1, max_size=3)) + value[at:]
        elif at < len(value):
            entries[key] = value[:at] + bytes((value[at] ^ data.draw(st.integers(1, 255)),)) + value[at + 1 :]
    damaged = encode_index(BundleHeader.decode(header), entries)
    changed = [*parts[:number], parts[number]._replace(contents=damaged), *parts[number + 1 :]]
    try:
        both(changed)
    except (DataLossError, InvalidArgumentError) as error:
        assert "rank " in str(error)


@given(checkpoints(), st.data())
@settings(max_examples=100, deadline=None)
def test_a_flipped_byte_of_a_part_is_found(
    drawn: tuple[list[PartIndex], dict[bytes, bytes], int], data: st.DataObject
) -> None:
    """Every byte of an index is checked, except those that no reader uses; the error names the part."""
    parts, whole, count = drawn
    number = data.draw(st.integers(0, len(parts) - 1))
    contents = bytearray(parts[number].contents)
    contents[data.draw(st.integers(0, len(contents) - 1))] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.sampled_from([len(contents), len(contents) // 2, 0]))
    changed = [*parts[:number], parts[number]._replace(contents=bytes(contents[:cut])), *parts[number + 1 :]]
    try:
        assert both(changed) == encode_index(BundleHeader(count), whole)
    except DataLossError as error:
        assert f"rank {number}: " in str(error)


def grid(rank: int) -> Entries:
    """Two of the four quarters of one tensor."""
    quarters = [TensorSlice((Extent(2 * i, 2), Extent(3 * j, 3))) for i, j in product(range(2), range(2))]
    return sliced(b"w", (4, 6), quarters[2 * rank : 2 * rank + 2], rank)


def become(entries: Entries, others: Entries) -> None:
    entries.clear()
    entries.update(others)


HOSTILE: dict[str, tuple[type[CheckpointError], str, Callable[[Entries], object]]] = {
    "shard": (DataLossError, "refers to shard 7", lambda e: e.update({b"b": BundleEntry(FLOAT, (), 7, 0, 4)})),
    "largest shard": (
        DataLossError, "refers to shard 2147483647",
        lambda e: e.update({b"b": BundleEntry(FLOAT, (), 2**31 - 1, 0, 4)}),
    ),
    "shard of the tensor": (DataLossError, "refers to shard 9", lambda e: e.update({b"w": e[b"w"]._replace(shard=9)})),
    "size": (DataLossError, "Invalid size", lambda e: e.update({b"b": BundleEntry(FLOAT, (2,), 1, 0, 4, 5)})),
    "huge size": (DataLossError, "Invalid size", lambda e: e.update({b"b": BundleEntry(FLOAT, (2,), 1, 0, 2**62, 5)})),
    "no entry of a slice": (DataLossError, "has no entry for it", lambda e: e.pop(min(e))),
    "no such tensor": (DataLossError, "has no entry for it", lambda e: e.update({min(e): e[b"w"]})),
    "unlisted": (
        DataLossError, "does not list",
        lambda e: e.update({b"w": e[b"w"]._replace(slices=e[b"w"].slices[:1])}),
    ),
    "outside": (
        DataLossError, "out of bounds",
        lambda e: e.update({b"w": e[b"w"]._replace(slices=(TensorSlice((Extent(3, 2), Extent(0, 1))),))}),
    ),
    "rank": (
        DataLossError, "do not fit its shape",
        lambda e: e.update({b"w": e[b"w"]._replace(slices=(rows(0, 1), TensorSlice(())))}),
    ),
    "dtype": (DataLossError, "differs", lambda e: e.update({min(e): e[min(e)]._replace(dtype=3)})),
    "overlap": (
        InvalidArgumentError,
        r'tensor "w": Overlapping slices: existing slice = .* in rank 0, new slice = .* in rank 1',
        lambda e: become(e, sliced(b"w", (4, 6), [rows(1, 2)], 1)),
    ),
    "whole": (
        InvalidArgumentError, "non-slice bundle entry from rank 1",
        lambda e: become(e, {b"w": BundleEntry(FLOAT, (4, 6), 1, 0, 96)}),
    ),
    "other shape": (
        InvalidArgumentError, "rank 1 have a different",
        lambda e: become(e, sliced(b"w", (5, 6), [rows(4, 5)], 1)),
    ),
    "duplicate": (
        InvalidArgumentError, "Duplicate tensor keyed by .* rank 1",
        lambda e: become(e, {key: entry._replace(shard=1) for key, entry in grid(0).items()}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_parts(kind: str) -> None:
    """Whatever an entry says that the part does not have: an error that names the part, in both ways."""
    error, text, damage = HOSTILE[kind]
    entries = grid(1)
    damage(entries)
    with pytest.raises(error, match=text) as raised:
        both([part("rank 0", grid(0), {0: 0}), part("rank 1", entries, {1: 1}, 2)])
    assert "rank 1" in str(raised.value)


def test_parts_without_a_header() -> None:
    """They are no checkpoint indexes; and neither is anything else."""
    good = part("rank 0", grid(0), {0: 0})
    for contents in (b"", b"x" * 100, good.contents[:-1], b"\0" * 1000):
        with pytest.raises(DataLossError, match="rank 1: "):
            merge_indexes([good, PartIndex("rank 1", contents, {1: 1})], PLACE)
    with pytest.raises(InvalidArgumentError, match="nothing to merge"):
        merge_indexes([], PLACE)


def test_other_versions_are_not_merged() -> None:
    """The endianness and the version are the same for all parts."""
    first = part("rank 0", grid(0), {0: 0})
    for header, text in (
        (BundleHeader(2, big_endian=True), "endianness"),
        (BundleHeader(2, min_consumer=1), "version"),
    ):
        other = PartIndex("rank 1", encode_index(header, {}), {1: 1})
        with pytest.raises(InvalidArgumentError, match=f"{text}.*rank 1"):
            both([first, other])


def replica(shard: int, checksum: int = 9) -> Entries:
    """A whole tensor and a slice, as each of several replicas stores them."""
    return {
        b"step": BundleEntry(9, (), shard, 40 * shard, 8, checksum),
        **{key: entry._replace(shard=shard) for key, entry in sliced(b"w", (4, 6), [rows(0, 2)], 0).items()},
    }


def test_equal_duplicates_are_kept_once() -> None:
    """On request; the first one stays, with its data file. Different ones are refused all the same."""
    parts = [part(f"rank {n}", replica(n), {n: n}, n + 1) for n in range(3)]
    entries = {key: entry.encode() for key, entry in replica(0).items()}
    assert both(parts, equal_duplicates=True) == encode_index(BundleHeader(3), entries)
    with pytest.raises(InvalidArgumentError, match=r"Duplicate tensor keyed by .*rank 1"):
        both(parts)
    parts[2] = part("rank 2", replica(2, checksum=8), {2: 2}, 3)
    with pytest.raises(InvalidArgumentError, match=r'Duplicate tensor keyed by "step" .*rank 2'):
        both(parts, equal_duplicates=True)


@pytest.mark.parametrize("number", [1, 2, 127, 128, 99_999])
def test_shards_are_renumbered(number: int) -> None:
    """Only the shard changes, also if its number takes another number of bytes; the header can change later."""
    entries = {**grid(0), b"b": BundleEntry(FLOAT, (2,), 300, 0, 8, 1)}
    merged = merge_indexes([part("p", entries, {0: number, 300: 0}, 301)], PLACE)
    expected = {key: entry._replace(shard=0 if entry.shard else number).encode() for key, entry in entries.items()}
    for count in (number + 1, 200_000, 7):
        assert merged.encode(count) == encode_index(BundleHeader(count), expected)


def test_indexes_of_many_blocks() -> None:
    """A thousand slices of each of ten tensors of different shapes: the bytes of encode_index."""
    count, names = 500, [f"layer{n}/kernel".encode() for n in range(20)]
    parts, whole = [], {}
    for rank in range(count):
        entries: Entries = {}
        for n, name in enumerate(names):
            entries |= sliced(name, (2 * count, 3 + n // 2), [rows(2 * rank, 2 * rank + 2)], rank, 1000 * n)
        parts.append(part(f"rank {rank}", entries, {rank: rank}, rank + 1))
        whole.update({key: entry.encode() for key, entry in entries.items()})
    every = tuple(rows(2 * rank, 2 * rank + 2) for rank in range(count))
    for n, name in enumerate(names):
        whole[name] = BundleEntry(FLOAT, (2 * count, 3 + n // 2), 0, slices=every).encode()
    merged = merge_indexes(parts, PLACE).encode(count)
    assert merged == encode_index(BundleHeader(count), whole)
    assert dict(Table.of(merged).stream(b"\x01")) == {name: whole[name] for name in names}
    assert next(Table.of(merged).stream())[0] == HEADER_KEY


@pytest.mark.parametrize("name", [b"w", b"\x00odd"], ids=["usual", "general"])
def test_elements_that_no_part_has(name: bytes) -> None:
    """With `complete`, the tensor and the parts that have some of it are named."""
    entries = [sliced(name, (8, 3), [rows(2 * rank, 2 * rank + 2)], rank) for rank in range(4)]
    parts = [part(f"rank {rank}", of_rank, {rank: rank}, 4) for rank, of_rank in enumerate(entries)]
    merge_indexes(parts, PLACE, complete=True)
    merge_indexes(parts[1:], PLACE)
    with pytest.raises(InvalidArgumentError, match="only 18 of its 24 elements were saved, by rank 1, rank 2, rank 3"):
        merge_indexes(parts[1:], PLACE, complete=True)
