"""Varints: compared one by one with protobuf's encoder, and vectorised with one by one."""

import tracemalloc

import numpy as np
import pytest
from google.protobuf.wrappers_pb2 import UInt64Value
from hypothesis import example, given
from hypothesis import strategies as st

from torch_tfckpt.errors import DataLossError
from torch_tfckpt.format.coding import MAX_VARINT_SIZE, decode_varint, encode_varint
from torch_tfckpt.format.varint_arrays import decode_varints, encode_varints, varint_sizes

# Every length is equally likely; st.integers alone yields mostly long ones.
UINT64 = st.integers(0, 64).flatmap(lambda bits: st.integers(0, (1 << bits) - 1))
BOUNDARIES = [edge for bits in range(7, 64, 7) for edge in ((1 << bits) - 1, 1 << bits)] + [0, (1 << 64) - 1]
# Bytes that resemble varints, valid and invalid, including long runs of continuation bytes.
NEARLY_VARINTS = st.lists(
    UINT64.map(encode_varint) | st.binary(max_size=4) | st.integers(0, 12).map(lambda size: b"\xff" * size), max_size=6
).map(b"".join)


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        # https://protobuf.dev/programming-guides/encoding#varints; the last two from files that TensorFlow 2.21 wrote
        (1, "01"),
        (150, "96 01"),
        (127, "7f"),
        (128, "80 01"),
        (300, "ac 02"),
        (2**64 - 1, "ff ff ff ff ff ff ff ff ff 01"),
    ],
)
def test_known_varints(value: int, encoded: str) -> None:
    """Published vectors, in both directions."""
    assert encode_varint(value) == bytes.fromhex(encoded)
    assert decode_varint(bytes.fromhex(encoded), 0) == (value, len(bytes.fromhex(encoded)))


@given(UINT64)
def test_varints_equal_protobufs(value: int) -> None:
    """Protobuf encodes a uint64 to the same bytes, and ours decodes them at any offset in a buffer."""
    theirs = UInt64Value(value=value).SerializeToString().removeprefix(b"\x08")
    encoded = encode_varint(value)
    assert encoded == (theirs or b"\0")  # protobuf omits a zero
    assert 1 <= len(encoded) <= MAX_VARINT_SIZE
    assert decode_varint(b"\xff\xff" + encoded + b"\xff", 2) == (value, 2 + len(encoded))
    assert decode_varint(memoryview(encoded), 0) == (value, len(encoded))


@pytest.mark.parametrize(
    ("encoded", "at", "bits", "text"),
    [
        ("", 0, 64, "integer at byte 0 is truncated or too long; bytes examined: 0"),
        ("01", 1, 64, "integer at byte 1 is truncated or too long; bytes examined: 0"),
        ("01", 5, 64, "integer at byte 5 is truncated or too long; bytes examined: 0"),
        ("00 80 80", 1, 64, "integer at byte 1 is truncated or too long; bytes examined: 2"),
        ("80" * 10 + "01", 0, 64, "integer at byte 0 is truncated or too long; bytes examined: 10"),
        ("ff" * 9 + "02", 0, 64, "integer at byte 0 is wider than 64 bits"),
        ("80 80 80 80 10", 0, 32, "integer at byte 0 is wider than 32 bits"),
    ],
)
def test_an_invalid_varint_is_refused(encoded: str, at: int, bits: int, text: str) -> None:
    """Truncated, too long or too wide: DataLossError with the offset in the buffer."""
    with pytest.raises(DataLossError) as raised:
        decode_varint(bytes.fromhex(encoded), at, bits)
    assert str(raised.value) == text


def test_the_largest_value_of_each_width_is_accepted() -> None:
    """The limit is the first value that does not fit, not the last one that does."""
    assert decode_varint(bytes.fromhex("ff ff ff ff 0f"), 0, bits=32) == (2**32 - 1, 5)
    assert decode_varint(bytes.fromhex("ff" * 9 + "01"), 0) == (2**64 - 1, 10)
    assert decode_varint(bytes.fromhex("80 80 00"), 0, bits=32) == (0, 3)  # padded, as some writers produce


# Vectorised.


@given(st.lists(UINT64, max_size=50))
@example(BOUNDARIES)
@example([])
def test_vectorised_encoding_equals_one_by_one(values: list[int]) -> None:
    """Fast path == general path, including the computed sizes."""
    array = np.array(values, dtype=np.uint64)
    assert encode_varints(array) == b"".join(map(encode_varint, values))
    assert varint_sizes(array).tolist() == [len(encode_varint(value)) for value in values]


@given(values=st.lists(UINT64, max_size=50), rest=st.binary(max_size=20))
@example(values=BOUNDARIES, rest=b"\xff")
def test_vectorised_round_trip(values: list[int], rest: bytes) -> None:
    """Bytes after the last value are ignored, and the offset after it is returned."""
    encoded = b"".join(map(encode_varint, values))
    decoded, end = decode_varints(encoded + rest, len(values))
    assert decoded.tolist() == values
    assert decoded.dtype == np.uint64
    assert end == len(encoded)


@given(buffer=NEARLY_VARINTS, count=st.integers(0, 8))
@example(buffer=b"\xff" * 9 + b"\x02", count=1)  # 65 bits
def test_vectorised_decoding_refuses_what_one_by_one_refuses(buffer: bytes, count: int) -> None:
    """For any bytes, both return the same values or both raise DataLossError."""
    expected, at, refused = [], 0, False
    try:
        for _ in range(count):
            value, at = decode_varint(buffer, at)
            expected.append(value)
    except DataLossError:
        refused = True
    if refused:
        with pytest.raises(DataLossError):
            decode_varints(buffer, count)
    else:
        values, end = decode_varints(memoryview(buffer), count)
        assert (values.tolist(), end) == (expected, at)


@pytest.mark.parametrize(
    ("encoded", "count", "text"),
    [
        ("01 02", 3, "expected 3 integers, but there are only 2 bytes"),
        ("01 02 80", 3, "expected 3 integers, found 2"),
        ("01" + "80" * 10 + "01", 2, "integer at byte 1 is longer than 10 bytes"),
    ],
)
def test_incomplete_lists_are_refused(encoded: str, count: int, text: str) -> None:
    """DataLossError states what was expected and what was found."""
    with pytest.raises(DataLossError) as raised:
        decode_varints(bytes.fromhex(encoded), count)
    assert str(raised.value) == text


def test_an_absurd_count_is_refused_before_allocation() -> None:
    """The count comes from a file: 2**60 integers cannot fit into three bytes."""
    with pytest.raises(DataLossError, match=r"expected 1152921504606846976 integers, but there are only 3 bytes"):
        decode_varints(b"\0\0\0", 2**60)


def test_decoding_a_short_list_does_not_scan_the_buffer() -> None:
    """Two integers at the start of 16 MiB do not cost a pass over the 16 MiB."""
    buffer = memoryview(b"\x05\x80\x01" + bytes(1 << 24))
    tracemalloc.start()
    values, end = decode_varints(buffer, 2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (values.tolist(), end) == ([5, 128], 3)
    assert peak < 100_000  # numpy reports its allocations to tracemalloc
