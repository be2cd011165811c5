"""The fuzz targets, run briefly by hypothesis with mutated real inputs. fuzz_decoders.py runs them for longer."""

import functools
import zlib
from itertools import pairwise
from typing import Any

import fuzz_targets as targets
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from memory_storage import MemoryStorage

import torch_tfckpt as tfckpt
from torch_tfckpt.errors import CheckpointError, DataLossError
from torch_tfckpt.format import crc32c
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.table import TableBuilder
from torch_tfckpt.format.tensor_bundle import BundleEntry, BundleHeader
from torch_tfckpt.format.tensor_slice import WHOLE, Extent, TensorSlice, element_count, encode_slice_key

INTERESTING = (
    b"\x00", b"\xff", b"\x80", b"\x7f", b"\xff" * 4, b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", b"\xff" * 9 + b"\x01",
    b"\x80" * 9 + b"\x01", b"\xff" * 8, b"\xff" * 7 + b"\x7f", b"\x0b", b"\x3a\x00", b"\x12\x02\x12\x00", b"\x08",
)  # fmt: skip


@functools.cache
def seeds(name: str) -> list[bytes]:
    return targets.seeds(name)


@st.composite
def mutated(draw: st.DrawFn, name: str) -> bytes:
    """A real input with up to eight changes: bytes flipped, inserted, removed, repeated, or swapped between inputs."""
    data = bytearray(draw(st.sampled_from(seeds(name))))
    for _ in range(draw(st.integers(0, 8))):
        at = draw(st.integers(0, len(data)))
        size = draw(st.integers(0, 12))
        match draw(st.integers(0, 6)):
            case 0 if at < len(data):
                data[at] ^= draw(st.integers(1, 255))
            case 1:
                data[at : at + size] = draw(st.binary(max_size=12))
            case 2:
                piece = draw(st.sampled_from(INTERESTING))
                data[at : at + len(piece)] = piece
            case 3:
                data[at:at] = draw(st.sampled_from(INTERESTING))
            case 4:
                del data[at : at + size]
            case 5:
                data[at:at] = data[at : at + size]
            case 6:
                other = draw(st.sampled_from(seeds(name)))
                data[at:] = other[at:]
    return bytes(data)


@pytest.mark.parametrize("name", targets.TARGETS)
def test_seeds_exist_and_are_valid(name: str) -> None:
    """Every target has real inputs to start from; none is a finding, and most are accepted."""
    assert seeds(name)
    for data in seeds(name):
        targets.run(targets.TARGETS[name], data)


@pytest.mark.parametrize("name", targets.TARGETS)
def test_mutated_input_raises_only_checkpoint_errors(name: str) -> None:
    """For any input: a result that satisfies the target's checks, or a CheckpointError."""

    @seed(zlib.crc32(name.encode()))
    @settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(data=mutated(name) | st.binary(max_size=200))
    def attempt(data: bytes) -> None:
        targets.run(targets.TARGETS[name], data)

    attempt()


# Valid tables of arbitrary entries, compared with a reader that does everything slowly and simply.

NUMPY = {
    DataType.DT_FLOAT: "<f4",
    DataType.DT_INT32: "<i4",
    DataType.DT_INT8: "i1",
    DataType.DT_INT64: "<i8",
    DataType.DT_HALF: "<f2",
}
DATA = bytes(range(7, 103))
Entries = dict[bytes, BundleEntry]


@st.composite
def extents(draw: st.DrawFn, size: int) -> Extent:
    """A range of a dimension, mostly a valid one."""
    if draw(st.integers(0, 3)) == 0:
        return Extent(0, WHOLE)
    start = draw(st.integers(0, size))
    return Extent(start, draw(st.integers(0, max(0, size - start) + (draw(st.integers(0, 15)) == 0))))


@st.composite
def plain_entries(draw: st.DrawFn, dtype: int, shape: tuple[int, ...]) -> BundleEntry:
    """An entry with bytes; one in eight has an error."""
    itemsize = np.dtype(NUMPY.get(DataType(dtype), "i1")).itemsize
    size = element_count(shape) * itemsize
    offset = draw(st.integers(0, max(0, len(DATA) - size)))
    entry = BundleEntry(dtype, shape, 0, offset, size, crc32c.mask(crc32c.value(DATA[offset : offset + size])))
    match draw(st.integers(0, 63)):
        case 0:
            return entry._replace(size=draw(st.integers(0, 100)))
        case 1:
            return entry._replace(offset=draw(st.sampled_from((1, 90, 97, 2**40, 2**62))))
        case 2:
            return entry._replace(checksum=draw(st.integers(0, 2**32 - 1)))
        case 3:
            return entry._replace(shard=draw(st.sampled_from((1, 2, 2**31 - 1))))
        case 4:
            return entry._replace(shape=(*shape, draw(st.sampled_from((0, 1, 2, 2**40)))))
        case 5:
            return entry._replace(dtype=draw(st.sampled_from((0, 1, 3, 9, 21, 99, 101))))
        case 6:
            return entry._replace(slices=(TensorSlice.full(len(shape)),))
    return entry


@st.composite
def bundles(draw: st.DrawFn) -> Entries:
    """A few tensors, whole or in slices."""
    entries: Entries = {}
    for name in (b"a", b"b", b"c"):
        dtype = int(draw(st.sampled_from(list(NUMPY))))
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
        if draw(st.booleans()):
            entries[name] = draw(plain_entries(dtype, shape))
            continue
        parts = draw(st.lists(st.tuples(*map(extents, shape)).map(TensorSlice), min_size=1, max_size=5))
        if draw(st.booleans()) and shape:  # cut straight, so that some slices fit
            cuts = sorted(draw(st.sets(st.integers(1, 3), max_size=2)) | {0, shape[0]})
            rest = TensorSlice.full(len(shape)).extents[1:]
            cut = [TensorSlice((Extent(a, b - a), *rest)) for a, b in pairwise(cuts) if b <= shape[0]]
            parts = cut or parts
        entries[name] = BundleEntry(dtype, shape, slices=tuple(parts))
        for part in parts:
            if draw(st.integers(0, 31)):
                lengths = zip(part.extents, shape, strict=True)
                held = tuple(size if length == WHOLE else length for (_, length), size in lengths)
                entries[encode_slice_key(name, part)] = draw(plain_entries(dtype, held))
    return entries


def read_plainly(entries: Entries, name: bytes) -> npt.NDArray[Any] | None:
    """Return the value of a tensor, assembled element by element; None if it has no right value."""
    entry = entries[name]
    if not entry.slices:
        return read_piece(entry)
    if DataType(entry.dtype) not in NUMPY:
        return None
    result = np.zeros(entry.shape, NUMPY[DataType(entry.dtype)])
    times = np.zeros(entry.shape, int)
    for part in entry.slices:
        explicit = [
            (0, s) if length == WHOLE else (b, length) for (b, length), s in zip(part.extents, entry.shape, strict=True)
        ]
        if any(begin + length > size for (begin, length), size in zip(explicit, entry.shape, strict=True)):
            return None
        if not all(length for _, length in explicit):
            continue  # an empty slice has no bytes to read
        piece = entries.get(encode_slice_key(name, part))
        if piece is None or piece.slices or piece.dtype != entry.dtype:
            return None
        values = read_piece(piece)
        where = tuple(slice(begin, begin + length) for begin, length in explicit)
        if values is None or values.shape != result[where].shape:
            return None
        result[where] = values
        times[where] += 1
    return result if bool((times == 1).all()) else None


def read_piece(entry: BundleEntry) -> npt.NDArray[Any] | None:
    if entry.slices or entry.shard or DataType(entry.dtype) not in NUMPY:
        return None
    stored = DATA[entry.offset : entry.end]
    dtype = np.dtype(NUMPY[DataType(entry.dtype)])
    right = len(stored) == entry.size == element_count(entry.shape) * dtype.itemsize
    if not right or crc32c.mask(crc32c.value(stored)) != entry.checksum:
        return None
    return np.frombuffer(stored, dtype).reshape(entry.shape)


@seed(1)
@settings(max_examples=400, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(entries=bundles())
def test_arbitrary_entries_read_like_a_simple_reader(entries: Entries) -> None:
    """Every value read is the one the format defines; refused tensors have none, or have pieces that share bytes.

    check() reports readable tensors as good, and tensors that cannot be read because of damage as damaged.
    """
    parts: list[bytes] = []
    builder = TableBuilder(parts.append)
    builder.add(b"", BundleHeader(1).encode())
    for key in sorted(entries):
        builder.add(key, entries[key].encode())
    builder.finish()
    storage = MemoryStorage({"d/m.index": b"".join(parts), "d/m.data-00000-of-00001": DATA})
    with tfckpt.CheckpointReader("d/m", storage=storage) as reader:
        assert [name for name in reader.keys() if not name.startswith("\0")] == ["a", "b", "c"]
        good = reader.check().good
        for name in ("a", "b", "c"):
            expected = read_plainly(entries, name.encode())
            try:
                value = reader.get_tensor(name)
            except CheckpointError as error:
                # An empty piece after the end of the file: no writer puts it there, so the file was truncated.
                shares_bytes = "slices declare" in str(error) or "overlaps tensor" in str(error)
                is_empty = expected is not None and not expected.size
                assert expected is None or shares_bytes or is_empty, f"{name} is {expected}, but: {error}"
                # Gaps, and types that torch lacks, are not damage.
                assert name not in good or not isinstance(error, DataLossError), f"check() reports it as good: {error}"
            else:
                assert isinstance(value, torch.Tensor)
                assert expected is not None, f"{name} has no right value, but was read as {value}"
                assert value.shape == expected.shape
                assert value.numpy().tobytes() == expected.tobytes()
