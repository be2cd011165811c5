"""Slices: their three representations, their geometry, and the integers and strings of their keys."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from slice_keys import decode_num, decode_signed, decode_slice_key, decode_string

from torch_tfckpt._proto.tensor_slice_pb2 import TensorSliceProto
from torch_tfckpt.errors import CheckpointError, DataLossError, InvalidArgumentError
from torch_tfckpt.format.ordered_code import encode_num, encode_signed, encode_string
from torch_tfckpt.format.tensor_slice import (
    MAX_INT64,
    WHOLE,
    Extent,
    TensorSlice,
    element_count,
    encode_slice_key,
    find_overlap,
    parse_shape_and_slice,
)


def box(text: str) -> TensorSlice:
    return TensorSlice.parse(text)


def slices_of(shape: tuple[int, ...]) -> st.SearchStrategy[TensorSlice]:
    """Slices that fit `shape`, each dimension either whole or explicit."""
    extents = [
        st.just(Extent(0, WHOLE))
        | st.integers(0, size - 1).flatmap(
            lambda start, size=size: st.builds(Extent, st.just(start), st.integers(1, size - start))  # type: ignore[misc]
        )
        for size in shape
    ]
    return st.tuples(*extents).map(TensorSlice)


SHAPES = st.lists(st.integers(1, 6), max_size=4).map(tuple)
SLICES = SHAPES.flatmap(slices_of)
PAIRS = SHAPES.flatmap(lambda shape: st.tuples(st.just(shape), slices_of(shape), slices_of(shape)))


def elements(part: TensorSlice, shape: tuple[int, ...]) -> set[tuple[int, ...]]:
    """Return the positions that a slice covers, enumerated one by one."""
    return set(product(*(range(extent.start, extent.end) for extent in part.resolve(shape).extents)))


# Strings and protos.


def test_a_full_slice_is_all_dashes() -> None:
    # CASES 142, from tensor_slice_test.cc Basic
    assert str(TensorSlice.full(3)) == "-:-:-"
    assert box("-:-:-") == TensorSlice.full(3)


def test_the_proto_of_a_whole_dimension_is_empty() -> None:
    # CASES 142, from tensor_slice_test.cc Serialization: "-:0,10:14,1:-" both ways
    part = box("-:0,10:14,1:-")
    assert str(part) == "-:0,10:14,1:-"
    assert part.to_proto().SerializeToString().hex(" ", -1) == "0a 00 0a 02 10 0a 0a 04 08 0e 10 01 0a 00"
    assert TensorSlice.from_proto(part.to_proto()) == part
    assert [extent.HasField("length") for extent in part.to_proto().extent] == [False, True, True, False]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # CASES 143, from tensor_slice_test.cc Parse
        ("-:-:1,3:4:5", "Expected a pair of numbers or '-' but got '4': string = -:-:1,3:4:5"),
        (
            "-:-1,3",
            "Expected non-negative start and positive length but got start = -1, length = 3: string = -:-1,3",
        ),
        ("9223372036854775808,1", "Expected a pair of numbers or '-' but got '9223372036854775808,1'"),
        ("19223372036854775808,1", "Expected a pair of numbers or '-' but got '19223372036854775808,1'"),
        ("1,0", "Expected non-negative start and positive length but got start = 1, length = 0"),
        ("a,b", "Expected a pair of numbers or '-' but got 'a,b'"),
        ("1,2,3", "Expected a pair of numbers or '-' but got '1,2,3'"),
    ],
)
def test_malformed_strings_raise_tensorflows_message(text: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        box(text)
    assert message in str(raised.value)


def test_the_largest_length_parses() -> None:
    # CASES 143
    assert box(f"0,{MAX_INT64}").extents == (Extent(0, MAX_INT64),)


def test_empty_items_are_skipped() -> None:
    # A trailing ":" is accepted.
    assert box("1,2:-:") == box("1,2:-")


@pytest.mark.parametrize(
    ("start", "length"),
    [(-1, None), (14, -1), (14, None), (14, MAX_INT64), (0, -5)],
    ids=["negative start", "negative length", "start without length", "end beyond int64", "length below -1"],
)
def test_impossible_extents_are_refused(start: int, length: int | None) -> None:
    # CASES 144, from tensor_slice_test.cc BuildTensorSlice
    extent = TensorSliceProto.Extent(start=start)
    if length is not None:
        extent.length = length
    with pytest.raises(DataLossError, match="slice extent"):
        TensorSlice.from_proto(TensorSliceProto(extent=[extent]))


def test_proto2_and_proto3_encodings_are_one_slice() -> None:
    # CASES 148, from tensor_slice_test.cc Deserialization: "0,5:0,10:14,1:1,-1:-". A start without a length, which that
    # test only prints, is refused by CASES 144.
    proto2 = bytes.fromhex("0a02 1005 0a04 0800 100a 0a04 080e 1001 0a00")
    proto3 = bytes.fromhex("0a02 1005 0a02 100a 0a04 080e 1001 0a00")
    slices = [TensorSlice.from_proto(TensorSliceProto.FromString(encoded)) for encoded in (proto2, proto3)]
    assert slices[0] == slices[1]
    assert str(slices[0]) == "0,5:0,10:14,1:-"
    assert slices[0].extents[3].length == WHOLE == -1


@given(SLICES)
def test_all_three_representations_round_trip(part: TensorSlice) -> None:
    """String, proto and key return the slice with its original spelling."""
    assert box(str(part)) == part
    assert TensorSlice.from_proto(part.to_proto()) == part
    assert decode_slice_key(encode_slice_key(b"n", part)) == (b"n", part)


# Geometry.


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        # CASES 145, from tensor_slice_test.cc Intersection
        ("-:-", "1,2:3,4", "1,2:3,4"),
        ("1,5:2,6:3,7:5,10", "1,2:3,4:9,10:12,1", "1,2:3,4:9,1:12,1"),
        ("-:1,1", "-:0,2", "-:1,1"),
        ("1,2:3,1:5,6", "1,3:4,5:1,6", None),
        ("1,2:3,1:-", "1,2", None),
    ],
)
def test_intersection(one: str, other: str, common: str | None) -> None:
    expected = None if common is None else box(common)
    assert box(one).intersect(box(other)) == expected
    assert box(other).intersect(box(one)) == expected


def test_shape_of_a_slice() -> None:
    # CASES 146, from tensor_slice_test.cc SliceTensorShape
    assert box("1,1:-:4,1:2,6").shape_of((2, 4, 5, 8)) == (1, 4, 1, 6)
    with pytest.raises(InvalidArgumentError) as raised:
        box("1,1:1,4:-:-").shape_of((2, 4, 5, 8))
    assert str(raised.value) == "Extent in dimension 1 out of bounds: shape = [2,4,5,8], slice = 1,1:1,4:-:-"
    with pytest.raises(InvalidArgumentError, match=r"Mismatching ranks: shape = \[4,5\], slice = -"):
        box("-").shape_of((4, 5))


def test_a_slice_relative_to_another() -> None:
    # CASES 147, from tensor_slice_test.cc ComputeRelative
    base, sub = box("1,2:3,4:-:5,1"), box("1,1:4,2:3,3:5,1")
    assert sub.relative_to(base) == box("0,1:1,2:3,3:0,1")


def test_slices_are_equal_if_spelled_the_same() -> None:
    # CASES 149, from tensor_slice_test.cc Equality
    assert box("0,5") != box("-")
    assert box("-:0,5").covers((3, 5))
    assert not box("-:0,4").covers((3, 5))


@given(PAIRS)
def test_geometry_agrees_with_enumeration(case: tuple[tuple[int, ...], TensorSlice, TensorSlice]) -> None:
    """intersect, shape_of, relative_to and find_overlap against positions enumerated one by one."""
    shape, one, other = case
    shared = elements(one, shape) & elements(other, shape)
    common = one.intersect(other)
    assert (elements(common, shape) if common is not None else set()) == shared
    assert element_count(one.shape_of(shape)) == len(elements(one, shape))
    assert (find_overlap(shape, [one, other]) is not None) == bool(shared)
    if common is not None:
        held = one.resolve(shape)
        starts = tuple(extent.start for extent in held.extents)
        inside = {tuple(map(int.__sub__, position, starts)) for position in shared}
        assert elements(common.resolve(shape).relative_to(held), held.shape_of(shape)) == inside


def test_a_part_outside_the_shape_is_reported_before_overlaps() -> None:
    with pytest.raises(InvalidArgumentError, match="out of bounds"):
        find_overlap((4,), [box("0,2"), box("3,2")])


# Keys.


def test_slice_keys_are_byte_identical_to_tensorflows() -> None:
    # CASES 150; dumped from TensorFlow 2.21
    assert encode_slice_key(b"t", box("0,2:-")) == bytes.fromhex("00 74 00 01 01 02 80 82 80 7f")
    assert encode_slice_key(b"t", box("2,2:-")) == bytes.fromhex("00 74 00 01 01 02 82 82 80 7f")
    assert encode_slice_key(b"x", TensorSlice(())) == bytes.fromhex("00 78 00 01 00")
    assert decode_slice_key(bytes.fromhex("00 74 00 01 01 02 82 82 80 7f")) == (b"t", box("2,2:-"))


@given(name=st.binary(max_size=20), part=SLICES)
def test_slice_keys_round_trip(name: bytes, part: TensorSlice) -> None:
    # CASES 150
    assert decode_slice_key(encode_slice_key(name, part)) == (name, part)


@given(st.binary(max_size=60).map(lambda tail: b"\0" + tail) | st.binary(max_size=60))
def test_arbitrary_bytes_decode_as_a_slice_key_or_raise(key: bytes) -> None:
    """The decoder raises only CheckpointError, and re-encoding what it accepts yields the same bytes."""
    try:
        name, part = decode_slice_key(key)
    except CheckpointError:
        return
    assert decode_slice_key(encode_slice_key(name, part)) == (name, part)


def test_a_key_of_absurd_rank_is_refused_before_any_loop() -> None:
    with pytest.raises(DataLossError, match="rank"):
        decode_slice_key(encode_num(0) + encode_string(b"n") + encode_num(2**62))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        # CASES 150; messages seen from TensorFlow 2.21
        ("", "Need least two elements in shape_and_slice specification: "),
        ("-", "Need least two elements in shape_and_slice specification: -"),
        ("4 x 0,2:-", "Non numerical dimension in shape_and_slice: 4 x 0,2:-"),
        ("4  5 0,2:-", "Non numerical dimension in shape_and_slice: 4  5 0,2:-"),
        ("4 5 0,2:q", "Expected a pair of numbers or '-' but got 'q': string = 0,2:q"),
        ("4 5 0,0:-", "Expected non-negative start and positive length but got start = 0, length = 0"),
        ("4 5 0,2", "Mismatching ranks: shape = [4,5], slice = 0,2"),
        ("4 5 3,2:-", "Extent in dimension 0 out of bounds: shape = [4,5], slice = 3,2:-"),
    ],
)
def test_malformed_specifications_raise_tensorflows_message(spec: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        parse_shape_and_slice(spec)
    assert message in str(raised.value)


def test_a_specification_yields_shape_slice_and_shape_of_the_slice() -> None:
    assert parse_shape_and_slice("4 5 0,2:-") == ((4, 5), box("0,2:-"), (2, 5))


# Ordered code; rows of non-negative numbers dumped from TensorFlow 2.21.

SIGNED = {
    0: "80", -1: "7f", 1: "81", -2: "7e", 2: "82", -64: "40", 63: "bf", -65: "3f bf", 64: "c0 40",
    -8192: "20 00", 127: "c0 7f", -8193: "1f df ff", 8191: "df ff", 8192: "e0 20 00", 2**20: "f0 10 00 00",
    2**27: "f8 08 00 00 00", 2**34: "fc 04 00 00 00 00", 2**48: "ff 01 00 00 00 00 00 00",
    2**55: "ff 80 80 00 00 00 00 00 00", 2**60: "ff 90 00 00 00 00 00 00 00",
    2**62 - 1: "ff bf ff ff ff ff ff ff ff", 2**62: "ff c0 40 00 00 00 00 00 00 00",
}  # fmt: skip


@pytest.mark.parametrize(("value", "encoded"), SIGNED.items())
def test_signed_numbers(value: int, encoded: str) -> None:
    # CASES 150
    assert encode_signed(value) == bytes.fromhex(encoded)
    assert decode_signed(bytes.fromhex(encoded), 0) == (value, len(bytes.fromhex(encoded)))


@pytest.mark.parametrize(("value", "encoded"), [(0, "00"), (2, "01 02"), (255, "01 ff"), (300, "02 01 2c")])
def test_unsigned_numbers(value: int, encoded: str) -> None:
    # CASES 150
    assert encode_num(value) == bytes.fromhex(encoded)
    assert decode_num(bytes.fromhex(encoded), 0) == (value, len(bytes.fromhex(encoded)))


@pytest.mark.parametrize(
    ("value", "encoded"),
    [(b"", "00 01"), (b"t", "74 00 01"), (b"\x00\xff", "00 ff ff 00 00 01"), (b"a\x01", "61 01 00 01")],
)
def test_strings(value: bytes, encoded: str) -> None:
    # CASES 150
    assert encode_string(value) == bytes.fromhex(encoded)
    assert decode_string(bytes.fromhex(encoded), 0) == (value, len(bytes.fromhex(encoded)))


INT64 = st.integers(-(2**63), 2**63 - 1)


@given(one=INT64, other=INT64)
def test_signed_numbers_sort_like_themselves(one: int, other: int) -> None:
    assert (encode_signed(one) < encode_signed(other)) == (one < other)
    assert decode_signed(encode_signed(one), 0) == (one, len(encode_signed(one)))


@given(one=st.integers(0, 2**64 - 1), other=st.integers(0, 2**64 - 1))
def test_unsigned_numbers_sort_like_themselves(one: int, other: int) -> None:
    assert (encode_num(one) < encode_num(other)) == (one < other)


@given(one=st.binary(max_size=12), other=st.binary(max_size=12))
def test_strings_sort_like_themselves(one: bytes, other: bytes) -> None:
    assert (encode_string(one) < encode_string(other)) == (one < other)
    assert decode_string(encode_string(one) + b"rest", 0) == (one, len(encode_string(one)))
