"""Partitioned tensors whose index is a valid table but not a valid tensor."""

import random
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from claims import ALLOWANCE, BASE, MEBIBYTE, Outcome, assert_helps, check_neighbours, confined, within
from hostile import FLOAT, HUGE, STRING, box, entry, floats, sliced, write_bundle
from hostile_slices import WHOLE, knots, pinwheels, staircase

import torch_tfckpt as tfckpt
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.string_tensor import encode_strings
from torch_tfckpt.format.tensor_slice import TensorSlice, encode_slice_key

TOP, BOTTOM = box((0, 2), WHOLE), box((2, 2), WHOLE)  # of [4, 5]
SHAPE = (4, 5)
HALVES = {TOP: floats(10), BOTTOM: floats(10, 10)}


class Bad(NamedTuple):
    """A tensor "bad" in pieces."""

    entries: dict[bytes, bytes]
    data: bytes
    raises: type[tfckpt.CheckpointError] = tfckpt.DataLossError
    is_damage: bool = True  # whether check() must report it


def bad(
    parts: dict[TensorSlice, bytes] | None = None,
    shape: tuple[int, ...] = SHAPE,
    *,
    listed: list[TensorSlice] | None = None,
    replaced: dict[TensorSlice, bytes | None] | None = None,
    raises: type[tfckpt.CheckpointError] = tfckpt.DataLossError,
    is_damage: bool = True,
    dtype: int = FLOAT,
) -> Bad:
    """The two halves of a [4, 5], or `parts` of `shape`; some slice entries replaced, or removed (None)."""
    entries, data = sliced(b"bad", shape, HALVES if parts is None else parts, listed=listed, dtype=dtype)
    for part, value in (replaced or {}).items():
        key = encode_slice_key(b"bad", part)
        del entries[key]
        if value is not None:
            entries[key] = value
    return Bad(entries, data, raises, is_damage)


BAD: dict[str, Bad] = {
    "a slice without an entry": bad(replaced={BOTTOM: None}),
    "no slice has an entry": bad(replaced={TOP: None, BOTTOM: None}),
    "a slice listed twice": bad(listed=[TOP, BOTTOM, BOTTOM]),
    "one slice listed twice, the other not": bad(listed=[TOP, TOP]),
    "overlapping slices": bad({box((0, 3), WHOLE): floats(15), BOTTOM: floats(10)}),
    "a slice outside the shape": bad({TOP: floats(10), box((2, 3), WHOLE): floats(15)}),
    "a slice far outside the shape": bad({TOP: floats(10), BOTTOM: floats(10), box((HUGE, 1), WHOLE): b""}),
    "a slice of another rank": bad({TOP: floats(10), box((2, 2)): floats(2)}),
    "a slice of rank 0": bad(listed=[TensorSlice(())]),
    "a slice of rank 300": bad(listed=[box(*[WHOLE] * 300)]),
    "a negative start": bad(listed=[TOP, box((-2, 2), WHOLE)]),
    "a negative length": bad(listed=[TOP, box((2, -2), WHOLE)]),
    "an end beyond 64 bits": bad(listed=[TOP, box((2**63 - 1, 2**63 - 1), WHOLE)]),
    "a start without a length": bad(listed=[TOP, box((2, -1), WHOLE)]),
    "a slice entry of another dtype": bad(
        replaced={BOTTOM: entry(DataType.DT_INT32, (2, 5), floats(10, 10), offset=20 + 40)}
    ),
    "a slice entry of an unknown dtype": bad(replaced={BOTTOM: entry(99, (2, 5), floats(10, 10), offset=20 + 40)}),
    "a slice entry of another shape": bad(replaced={BOTTOM: entry(FLOAT, (5, 2), floats(10, 10), offset=20 + 40)}),
    "a slice entry of the full shape": bad(replaced={BOTTOM: entry(FLOAT, SHAPE, floats(20), offset=20)}),
    "a slice entry with slices": bad(replaced={BOTTOM: entry(FLOAT, (2, 5), slices=[TOP, BOTTOM])}),
    "a slice entry in another shard": bad(replaced={BOTTOM: entry(FLOAT, (2, 5), floats(10, 10), shard=7)}),
    "a slice entry beyond the file": bad(replaced={BOTTOM: entry(FLOAT, (2, 5), floats(10, 10), offset=HUGE)}),
    "a slice entry of garbage": bad(replaced={BOTTOM: b"\xff\xff"}),
    "a slice with a wrong checksum": bad(
        replaced={BOTTOM: entry(FLOAT, (2, 5), floats(10, 10), offset=20 + 40, checksum=1)}
    ),
    "holes": bad(listed=[TOP], replaced={BOTTOM: None}, raises=tfckpt.InvalidArgumentError, is_damage=False),
    "a tile of a huge tensor": bad(
        {box((0, 2), (0, 5)): floats(10)}, (2**30, 2**30), raises=tfckpt.InvalidArgumentError, is_damage=False
    ),
    "a tile of the largest possible tensor": bad(
        {box((0, 2), (0, 5)): floats(10)}, (2**31 - 1, 2**32), raises=tfckpt.InvalidArgumentError, is_damage=False
    ),
    "the whole of a huge tensor": bad({box((0, 2**30), (0, 2**30)): floats(10)}, (2**30, 2**30)),
    "the halves of a huge tensor": bad({box((0, HUGE // 8),): b"", box((HUGE // 8, HUGE // 8),): b""}, (HUGE // 4,)),
    "only empty slices": bad(
        {box((0, 0), WHOLE): b"", box((4, 0), WHOLE): b""}, raises=tfckpt.InvalidArgumentError, is_damage=False
    ),
    "an unknown dtype": bad(dtype=99, raises=tfckpt.UnimplementedError, is_damage=False),
    "strings that are floats": bad(dtype=STRING),
    "slices of a huge string tensor": bad(
        {box((0, HUGE // 8),): b"\0" * 8, box((HUGE // 8, HUGE // 8),): b"\0" * 8}, (HUGE // 4,), dtype=STRING
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_bad_partitioned_tensor_raises(what: str, tmp_path: Path) -> None:
    """Never a value made of the wrong pieces, and no memory for a shape without stored bytes."""
    case = BAD[what]
    path = write_bundle(tmp_path, case.entries, case.data)
    with within(), tfckpt.load_checkpoint(path) as reader:
        for read in (
            reader.get_tensor,
            reader.map_tensor,
            lambda name: reader.get_tensors([name]),
            lambda name: reader.get_slice(name)[...],
        ):
            with pytest.raises(case.raises):
                read("bad")


@pytest.mark.parametrize("what", BAD)
def test_a_bad_partitioned_tensor_is_named_in_the_error(what: str, tmp_path: Path) -> None:
    """The message has place (file and tensor), finding and hint."""
    case = BAD[what]
    path = write_bundle(tmp_path, case.entries, case.data)
    with tfckpt.load_checkpoint(path) as reader, pytest.raises(tfckpt.CheckpointError) as raised:
        reader.get_tensor("bad")
    assert '"bad"' in str(raised.value)
    assert_helps(raised.value, path.name)


@pytest.mark.parametrize("what", BAD)
def test_a_bad_partitioned_tensor_does_not_hide_the_others(what: str, tmp_path: Path) -> None:
    """The other tensors are listed and read; slice keys that no tensor lists do not appear as names."""
    case = BAD[what]
    path = write_bundle(tmp_path, case.entries, case.data)
    if not case.is_damage or set(case.entries) == {b"bad"} or "listed" not in what:
        with within(), tfckpt.load_checkpoint(path) as reader:
            assert "bad" in reader.keys()
    if all(encode_slice_key(b"bad", part) in case.entries for part in (TOP, BOTTOM)) and what.startswith("a slice en"):
        check_neighbours(path)


@pytest.mark.parametrize("what", [what for what, case in BAD.items() if case.is_damage])
def test_check_agrees_with_reading(what: str, tmp_path: Path) -> None:
    """A tensor whose pieces do not fit is damaged, although the checksum of every piece is right."""
    case = BAD[what]
    path = write_bundle(tmp_path, case.entries, case.data)
    with within(), tfckpt.load_checkpoint(path) as reader:
        assert "bad" not in reader.check().good
        assert "bad" in reader.check().damaged


@pytest.mark.parametrize("what", ["holes", "a tile of a huge tensor", "a tile of the largest possible tensor"])
def test_the_stored_part_of_a_tensor_with_holes_is_read(what: str, tmp_path: Path) -> None:
    """A partial save: the stored part has the right values, and only slices with a hole are refused."""
    case = BAD[what]
    path = write_bundle(tmp_path, case.entries, case.data)
    with within(), tfckpt.load_checkpoint(path) as reader:
        value = reader.get_slice("bad")[:2, :5]
        assert isinstance(value, torch.Tensor)
        assert torch.equal(value, torch.arange(10.0).reshape(2, 5))
        with pytest.raises(tfckpt.InvalidArgumentError):
            reader.get_slice("bad")[1:3, :5]


# Time and memory.


def read(path: str, verify: bool = True) -> int:
    with tfckpt.load_checkpoint(path) as reader:
        value = reader.get_tensor("bad")
    assert isinstance(value, torch.Tensor)
    return int(value.double().sum())


def read_rows(path: str, count: int) -> int:
    with tfckpt.load_checkpoint(path) as reader:
        rows = [reader.get_slice("bad")[number] for number in range(count)]
    return int(sum(row.double().sum() for row in rows if isinstance(row, torch.Tensor)))


def check(path: str) -> list[str]:
    with tfckpt.load_checkpoint(path) as reader:
        return reader.check().damaged


def rows(count: int) -> dict[TensorSlice, bytes]:
    return {box((number, 1), WHOLE): floats(2, number) for number in range(count)}


def assert_bounded(outcome: Outcome, path: Path) -> None:
    size = sum(file.stat().st_size for file in path.parent.iterdir())
    assert not outcome.error or outcome.is_checkpoint_error, outcome.error
    assert outcome.grown < BASE + 128 * size, f"{outcome.grown >> 20} MiB for {size >> 20}"


@pytest.mark.parametrize("count", [20_000, pytest.param(100_000, marks=pytest.mark.heavy)])
def test_many_slices_are_read(count: int, tmp_path: Path) -> None:
    """A tensor in many rows, in any order: its value is right, and reading is fast."""
    listed = [box((number, 1), WHOLE) for number in range(count)]
    random.Random(1).shuffle(listed)
    path = write_bundle(tmp_path, *sliced(b"bad", (count, 2), rows(count), listed=listed))
    outcome = confined(read, str(path), limit=ALLOWANCE, seconds=20)
    assert outcome.error == ""
    assert outcome.result == sum(2 * number + 1 for number in range(count))


def test_rows_of_a_tensor_in_many_slices_are_read_one_by_one(tmp_path: Path) -> None:
    """The slices are compared with each other once, not for every row that is read."""
    count = 20_000
    path = write_bundle(tmp_path, *sliced(b"bad", (count, 2), rows(count)))
    outcome = confined(read_rows, str(path), 200, limit=ALLOWANCE, seconds=10)
    assert outcome.error == ""
    assert outcome.result == sum(2 * number + 1 for number in range(200))


@pytest.mark.heavy
def test_a_hundred_thousand_slices_without_entries_are_refused(tmp_path: Path) -> None:
    """They are listed, but their entries are missing."""
    count = 100_000
    listed = [box((number, 1), WHOLE) for number in range(count)]
    entries, data = sliced(b"bad", (count, 2), {}, listed=listed)
    path = write_bundle(tmp_path, entries, data)
    for call in (read, check):
        assert_bounded(confined(call, str(path), limit=ALLOWANCE), path)


@pytest.mark.thinned(2)
@pytest.mark.parametrize(
    ("listed", "shape"),
    [
        pytest.param(staircase(10_000), (10_004, 10_004), marks=pytest.mark.heavy),
        (pinwheels(10_000, 2), (10_000, 3)),
        pytest.param(pinwheels(4_000, 250), (4_000, 3, *[1] * 248), marks=pytest.mark.heavy),
        (knots(6, 2000), (6 * 8000 + 9, 4100)),
        pytest.param([box((0, 0), WHOLE)] * 20_000, (10, 10), marks=pytest.mark.heavy),
        ([box((0, 10), WHOLE)] * 20_000, (10, 10)),
    ],
    ids=["staircase", "pinwheels", "pinwheels of rank 250", "knots", "empty, often", "the same, often"],
)
def test_interlocking_slices_are_checked_in_bounded_time(
    listed: list[TensorSlice], shape: tuple[int, ...], tmp_path: Path
) -> None:
    """Overlaps are detected in bounded time, however the slices are arranged, or the tensor is refused."""
    path = write_bundle(tmp_path, *sliced(b"bad", shape, {}, listed=listed))
    for call in (read, check):
        outcome = confined(call, str(path), limit=ALLOWANCE)
        assert outcome.error == "" if call is check else outcome.is_checkpoint_error, outcome.error
        assert_bounded(outcome, path)


def test_slices_that_share_bytes_are_refused_before_allocation(tmp_path: Path) -> None:
    """1000 slices of the same MiB: the tensor claims 1 GB of a file of 1 MB."""
    count = 1000
    data = bytes(MEBIBYTE)
    entries, _ = sliced(b"bad", (count, MEBIBYTE // 4), {box((number, 1), WHOLE): b"" for number in range(count)})
    for number in range(count):
        part = box((number, 1), WHOLE)
        entries[encode_slice_key(b"bad", part)] = entry(FLOAT, (1, MEBIBYTE // 4), data)
    path = write_bundle(tmp_path, entries, data)
    outcome = confined(read, str(path), limit=ALLOWANCE)
    assert outcome.is_checkpoint_error, outcome.error
    assert outcome.grown < BASE


def load(path: str) -> int:
    return len(tfckpt.load_file(path))


@pytest.mark.parametrize("kind", [FLOAT, STRING], ids=["float", "string"])
def test_partitioned_tensors_that_share_bytes_are_refused_before_allocation(kind: int, tmp_path: Path) -> None:
    """1000 tensors of two slices each, all with the same MiB, in one load_file."""
    count, half = 1000, MEBIBYTE // 2
    entries: dict[bytes, bytes] = {}
    if kind == STRING:
        data, checksum = encode_strings([bytes(half // 1024 - 2)] * 1024)
        length = 1024
    else:
        data, checksum, length = bytes(half), None, half // 4
    for number in range(count):
        name = f"bad/{number:04d}".encode()
        parts = [box((0, length)), box((length, length))]
        entries[name] = entry(kind, (2 * length,), slices=parts, offset=0, size=0, checksum=0)
        for step, part in enumerate(parts):
            offset = 20 + step * len(data)
            entries[encode_slice_key(name, part)] = entry(kind, (length,), data, checksum=checksum, offset=offset)
    path = write_bundle(tmp_path, entries, data * 2)
    outcome = confined(load, str(path), limit=ALLOWANCE)
    assert outcome.is_checkpoint_error, outcome.error
    assert outcome.grown < BASE + 8 * MEBIBYTE, f"{outcome.grown >> 20} MiB"
