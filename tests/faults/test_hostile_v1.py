"""Version 1 files with valid checksums but absurd contents."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cramjam
import numpy as np
import pytest
import torch
from claims import ALLOWANCE, BASE, MEBIBYTE, assert_helps, assert_right, confined, within
from hostile import (
    FLOAT,
    GOOD,
    HUGE,
    STRING,
    BadTensor,
    block,
    box,
    key_bomb,
    meta_record,
    raw_block,
    table,
    table_of_blocks,
    v1_record,
    write_v1,
)
from hostile_slices import knots, pinwheels, staircase
from hostile_tables import BAD_TABLES

import torch_tfckpt as tfckpt
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.saved_tensor_slices import encode_slice
from torch_tfckpt.format.tensor_slice import TensorSlice, encode_slice_key
from torch_tfckpt.format.wire import sized_tag

WHOLE = (0, -1)
ALL = TensorSlice.full(1)
FOUR = v1_record("bad", ALL, 4)


class Bad(NamedTuple):
    """Tensors of the metadata, and records."""

    tensors: list[BadTensor]
    records: dict[bytes, bytes]
    raises: type[tfckpt.CheckpointError] = tfckpt.DataLossError
    is_damage: bool = True


def one(
    shape: tuple[int, ...] = (4,),
    dtype: int = FLOAT,
    slices: list[TensorSlice] | None = None,
    records: dict[bytes, bytes] | None = None,
    raises: type[tfckpt.CheckpointError] = tfckpt.DataLossError,
    is_damage: bool = True,
) -> Bad:
    """A tensor "bad" of one slice and four floats, except for the given arguments."""
    slices = [TensorSlice.full(len(shape))] if slices is None else slices
    return Bad([("bad", shape, dtype, slices)], dict([FOUR]) if records is None else records, raises, is_damage)


def record(values: bytes) -> dict[bytes, bytes]:
    """The record of all of "bad", with `values` as its TensorProto."""
    data = sized_tag(3, len(values)) + values
    return {FOUR[0]: sized_tag(2, len(data)) + data}


def of_rank(rank: int) -> dict[bytes, bytes]:
    return dict([v1_record("bad", TensorSlice.full(rank), 4)])


BAD: dict[str, Bad] = {
    "no record": one(records={}),
    "more elements than values": one((5,)),
    "fewer elements than values": one((3,)),
    "a huge shape": one((HUGE,)),
    "a huge shape of strings": one((HUGE,), STRING),
    "a shape of 2**40": one((2**40,)),
    "a shape of a billion booleans": one((2**30,), DataType.DT_BOOL),
    "no elements, but values": one((0,)),
    "no slices": one(slices=[], raises=tfckpt.InvalidArgumentError, is_damage=False),
    "a slice of another rank": one(slices=[box(WHOLE, WHOLE)]),
    "a slice outside the shape": one(slices=[box((2, 4))], records=dict([v1_record("bad", box((2, 4)), 4)])),
    "overlapping slices": one(
        (6,), slices=[box((0, 4)), box((2, 4))],
        records=dict([v1_record("bad", box((0, 4)), 4), v1_record("bad", box((2, 4)), 4)]),
    ),
    "the same slice twice": one(slices=[ALL, ALL]),
    "holes": one(
        (6,), slices=[box((0, 4))], records=dict([v1_record("bad", box((0, 4)), 4)]),
        raises=tfckpt.InvalidArgumentError, is_damage=False,
    ),
    "a tile of a huge tensor": one(
        (2**30, 2**30), slices=[box((0, 2), (0, 2))], records=dict([v1_record("bad", box((0, 2), (0, 2)), 4)]),
        raises=tfckpt.CheckpointError, is_damage=False,
    ),
    "dtype 0": one(dtype=0),
    "dtype -1": one(dtype=-1, raises=tfckpt.UnimplementedError, is_damage=False),
    "dtype 99": one(dtype=99, raises=tfckpt.UnimplementedError, is_damage=False),
    "a reference to float": one(dtype=101, raises=tfckpt.CheckpointError, is_damage=False),
    "bfloat16": one(dtype=DataType.DT_BFLOAT16, raises=tfckpt.UnimplementedError, is_damage=False),
    "floats declared as integers": one(dtype=DataType.DT_INT32),
    "floats declared as strings": one(dtype=STRING),
    "floats declared as doubles": one(dtype=DataType.DT_DOUBLE),
    "floats declared as complex": one(dtype=DataType.DT_COMPLEX64),
    "a record of garbage": one(records={FOUR[0]: b"\xff" * 30}),
    "half a record": one(records={FOUR[0]: FOUR[1][:-3]}),
    "an empty record": one(records={FOUR[0]: b""}),
    "metadata instead of a record": one(records={FOUR[0]: meta_record([])}),
    "a list that ends within a float": one(records=record(b"\x2a\x0f" + bytes(15))),
    "a list that is longer than its message": one(records=record(b"\x2a\x90\x80\x80\x80\x08" + bytes(16))),
    "a list of 2**64-1 bytes": one(records=record(b"\x2a" + b"\xff" * 9 + b"\x01" + bytes(16))),
    "a varint that never ends": one(dtype=DataType.DT_INT64, records=record(b"\x52\x0b" + b"\xff" * 11)),
    "varints of 11 bytes": one((1,), DataType.DT_INT64, records=record(b"\x52\x0b" + b"\xff" * 10 + b"\x01")),
    "nested groups": one(records=record(b"\x0b" * 10_000)),
    "a conflicting shape": Bad([("bad", (4,), FLOAT, [ALL]), ("bad", (5,), FLOAT, [])], dict([FOUR])),
    "a conflicting dtype": Bad([("bad", (4,), FLOAT, [ALL]), ("bad", (4,), 3, [])], dict([FOUR])),
    "a tensor listed twice": Bad([("bad", (4,), FLOAT, [ALL]), ("bad", (4,), FLOAT, [ALL])], dict([FOUR])),
    "strings of rank 100": one(
        (1,) * 100, STRING, raises=tfckpt.UnimplementedError, is_damage=False,
        records={
            encode_slice_key(b"bad", TensorSlice.full(100)): encode_slice("bad", TensorSlice.full(100), STRING, [b"x"])
        },
    ),
}  # fmt: skip


def write(folder: Path, what: str) -> Path:
    return write_v1(folder, BAD[what].tensors, BAD[what].records)


@pytest.mark.parametrize("what", BAD)
def test_a_bad_tensor_raises(what: str, tmp_path: Path) -> None:
    """By every way of reading it, within seconds, with place, finding and hint."""
    bad = BAD[what]
    path = write(tmp_path, what)
    with within(), tfckpt.load_checkpoint(path) as reader:
        for read in (reader.get_tensor, reader.map_tensor, lambda name: reader.get_tensors([name])):
            with pytest.raises(bad.raises):
                read("bad")


@pytest.mark.parametrize("what", BAD)
def test_a_bad_tensor_is_named_in_the_error(what: str, tmp_path: Path) -> None:
    """The message has place (file and tensor), finding and hint."""
    path = write(tmp_path, what)
    with tfckpt.load_checkpoint(path) as reader, pytest.raises(tfckpt.CheckpointError) as raised:
        reader.get_tensor("bad")
    assert '"bad"' in str(raised.value)
    assert_helps(raised.value, path.name)


@pytest.mark.parametrize("what", BAD)
def test_a_bad_tensor_does_not_hide_the_others(what: str, tmp_path: Path) -> None:
    """Every other tensor is listed, described, read, and reported as good."""
    path = write(tmp_path, what)
    with within(), tfckpt.load_checkpoint(path) as reader:
        assert set(reader.keys()) == {*GOOD, "bad"}
        assert_right({name: reader.get_tensor(name) for name in GOOD}, GOOD)
        assert_right(reader.get_tensors(list(GOOD)), GOOD)
        for name, value in GOOD.items():
            assert reader.get_variable_to_shape_map()[name] == list(value.shape)
            assert name in reader.debug_string()
        assert set(GOOD) <= set(reader.check().good)
    assert_right(tfckpt.load_file(path, names=GOOD), GOOD)


@pytest.mark.parametrize("what", [what for what, bad in BAD.items() if bad.is_damage])
def test_check_agrees_with_reading(what: str, tmp_path: Path) -> None:
    """What cannot be read because of damage is reported, with its name."""
    path = write(tmp_path, what)
    with within(), tfckpt.load_checkpoint(path) as reader:
        assert reader.check().damaged == ["bad"]


@pytest.mark.parametrize("what", BAD)
def test_only_checkpoint_errors_are_raised(what: str, tmp_path: Path) -> None:
    """Every method, on every bad tensor: a result or a CheckpointError."""
    path = write(tmp_path, what)
    with within(), tfckpt.load_checkpoint(path) as reader:
        calls: list[Callable[[], object]] = [
            lambda: reader.shape("bad"),
            lambda: reader.dtype("bad"),
            lambda: reader.slices("bad"),
            lambda: reader.nbytes("bad"),
            lambda: reader.locate("bad"),
            lambda: reader.get_stored_bytes("bad"),
            lambda: reader.get_slice("bad")[:1],
            lambda: reader.get_slice("bad")[0],
            lambda: reader.get_tensor("bad", out=torch.empty(4)),
            lambda: tfckpt.load_file(path),
            lambda: tfckpt.load_file(path, mmap=True, verify=False),
            lambda: tfckpt.list_variables(path),
        ]
        for call in calls:
            try:
                call()
            except tfckpt.CheckpointError as error:
                assert len(str(error)) > 30


@pytest.mark.parametrize("shape", [(0, HUGE), (HUGE, 0), (2**31, 0, 2**31), (1,) * 254], ids=str)
def test_an_odd_but_valid_shape_is_read(shape: tuple[int, ...], tmp_path: Path) -> None:
    """Absurd shapes without elements, and the highest possible rank."""
    count = 0 if 0 in shape else 1
    key, value = v1_record("bad", TensorSlice.full(len(shape)), count)
    path = write_v1(tmp_path, [("bad", shape, FLOAT, [TensorSlice.full(len(shape))])], {key: value})
    with within(), tfckpt.load_checkpoint(path) as reader:
        got = reader.get_tensor("bad")
        assert isinstance(got, torch.Tensor) and got.shape == shape
        assert got.reshape(-1).tolist() == [0.0] * count
        assert reader.check().damage == []


BAD_METADATA: dict[str, bytes] = {
    "garbage": b"\xff" * 20,
    "nothing": b"",
    "an index's header": b"\x08\x01\x1a\x02\x08\x01",
    "a negative dimension": meta_record([("bad", (-1,), FLOAT, [ALL])]),
    "a product that overflows": meta_record([("bad", (2**32, 2**32), FLOAT, [ALL])]),
    "rank 255": meta_record([("bad", (1,) * 255, FLOAT, [TensorSlice.full(255)])]),
    "a negative start": meta_record([("bad", (4,), FLOAT, [box((-2, 2))])]),
    "a producer before the first": meta_record([]).replace(b"\x08\x01", b"\x08" + b"\xff" * 9 + b"\x01"),
    "deep groups": b"\x0b" * 100_000,
}


@pytest.mark.parametrize("what", BAD_METADATA)
def test_bad_metadata_is_refused_or_affects_one_tensor(what: str, tmp_path: Path) -> None:
    """One record describes all tensors; if it is unusable, the error has the location and a fix."""
    path = write_v1(tmp_path, [], {})
    path.write_bytes(table({b"": BAD_METADATA[what], FOUR[0]: FOUR[1]}))
    with within(), pytest.raises(tfckpt.CheckpointError) as raised, tfckpt.load_checkpoint(path) as reader:
        reader.get_tensor("bad")
    assert_helps(raised.value, path.name)


@pytest.mark.parametrize("what", ["a negative dimension", "a product that overflows", "rank 255", "a negative start"])
def test_an_impossible_shape_in_the_metadata_is_refused(what: str, tmp_path: Path) -> None:
    """CASES 139. Metadata with an impossible shape or slice is an error of the file, as in TensorFlow.

    The record is one message without checksums of its parts, so it is unknown which of them are right.
    """
    shapes: dict[str, BadTensor] = {
        "a negative dimension": ("bad", (-1,), FLOAT, [ALL]),
        "a product that overflows": ("bad", (2**32, 2**32), FLOAT, [box(WHOLE, WHOLE)]),
        "rank 255": ("bad", (1,) * 255, FLOAT, [TensorSlice.full(255)]),
        "a negative start": ("bad", (4,), FLOAT, [box((-2, 2))]),
    }
    path = write_v1(tmp_path, [shapes[what]], {})
    with within(), pytest.raises(tfckpt.DataLossError) as raised:
        tfckpt.load_checkpoint(path)
    assert_helps(raised.value, path.name)


@pytest.mark.parametrize("what", BAD_TABLES)
def test_a_bad_table_is_refused(what: str, tmp_path: Path) -> None:
    """The invalid tables are not valid version 1 files either."""
    path = tmp_path / "table"
    path.write_bytes(BAD_TABLES[what])
    with within(), pytest.raises(tfckpt.CheckpointError) as raised:
        tfckpt.load_checkpoint(path)
    assert_helps(raised.value, path.name)


# Time and memory.


def read(path: str) -> float:
    with tfckpt.load_checkpoint(path) as reader:
        value = reader.get_tensor("bad")
    assert isinstance(value, torch.Tensor)
    return float(value.double().sum())


def check(path: str) -> list[str]:
    with tfckpt.load_checkpoint(path) as reader:
        return reader.check().damaged


def keys(path: str) -> int:
    with tfckpt.load_checkpoint(path) as reader:
        return len(reader.keys()) + len(reader.check().damage)


@pytest.mark.thinned(3)
@pytest.mark.parametrize(
    ("listed", "shape"),
    [
        pytest.param(staircase(10_000), (10_004, 10_004), marks=pytest.mark.heavy),
        (pinwheels(10_000, 2), (10_000, 3)),
        (knots(6, 2000), (6 * 8000 + 9, 4100)),
        pytest.param([box((0, 0), WHOLE)] * 20_000, (10, 10), marks=pytest.mark.heavy),
        ([box((0, 10), WHOLE)] * 20_000, (10, 10)),
    ],
    ids=["staircase", "pinwheels", "knots", "empty, often", "the same, often"],
)
def test_interlocking_slices_are_checked_in_bounded_time(
    listed: list[TensorSlice], shape: tuple[int, ...], tmp_path: Path
) -> None:
    """Overlaps are detected in bounded time, however the slices are arranged, or the tensor is refused."""
    path = write_v1(tmp_path, [("bad", shape, FLOAT, listed)], {})
    for call in (read, check):
        outcome = confined(call, str(path), limit=ALLOWANCE, seconds=10)
        assert outcome.is_checkpoint_error, outcome.error
        assert outcome.grown < BASE + 128 * path.stat().st_size


def test_many_slices_are_read(tmp_path: Path) -> None:
    """A tensor in 20,000 rows."""
    count = 20_000
    parts = [box((number, 1), WHOLE) for number in range(count)]
    values = {
        encode_slice_key(b"bad", part): encode_slice("bad", part, FLOAT, np.full(2, number, "<f4"))
        for number, part in enumerate(parts)
    }
    path = write_v1(tmp_path, [("bad", (count, 2), FLOAT, parts)], values)
    outcome = confined(read, str(path), limit=ALLOWANCE, seconds=10)
    assert outcome.error == ""
    assert outcome.result == sum(2.0 * number for number in range(count))


@pytest.mark.parametrize(
    "dtype",
    [DataType.DT_INT64, DataType.DT_BOOL, DataType.DT_DOUBLE, pytest.param(STRING, marks=pytest.mark.heavy)],
    ids=str,
)
def test_values_that_compress_well_take_bounded_memory(dtype: int, tmp_path: Path) -> None:
    """Snappy expands 22 times, varints 8 times: 200 bytes per byte of the file and no more."""
    count = 4 * MEBIBYTE
    values = [b""] * count if dtype == STRING else np.zeros(count, dtype={9: "i8", 10: "?", 2: "f8"}[int(dtype)])
    record = encode_slice("bad", ALL, int(dtype), values)
    pairs = [(b"", meta_record([("bad", (count,), int(dtype), [ALL])])), (FOUR[0], record)]
    stored = bytes(cramjam.snappy.compress_raw(block(pairs)))
    path = tmp_path / "bomb"
    path.write_bytes(table_of_blocks([(b"zzz", stored)], 1))
    size = path.stat().st_size
    outcome = confined(check, str(path), limit=ALLOWANCE + 512 * size, seconds=20)
    assert not outcome.error or outcome.is_checkpoint_error, outcome.error
    assert outcome.grown < BASE + 512 * size, f"{outcome.grown / size:.0f} bytes per byte of the file"


@pytest.mark.thinned(2)
@pytest.mark.parametrize("compression", [0, 1])
def test_keys_do_not_expand_without_bound(compression: int, tmp_path: Path) -> None:
    """The limit is that of an index."""
    contents = key_bomb((16 if compression else 4) * MEBIBYTE)
    pairs = raw_block([(0, b"", meta_record([]))])
    if compression:
        contents, pairs = (bytes(cramjam.snappy.compress_raw(plain)) for plain in (contents, pairs))
    path = tmp_path / "bomb"
    path.write_bytes(table_of_blocks([(b"", pairs), (b"zzz", contents)], compression))
    size = path.stat().st_size
    outcome = confined(keys, str(path), limit=ALLOWANCE + 128 * size)
    assert not outcome.error or outcome.is_checkpoint_error, outcome.error
    assert outcome.grown < BASE + 128 * size, f"{outcome.grown / size:.0f} bytes per byte of the file"
