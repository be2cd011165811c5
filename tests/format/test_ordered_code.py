"""Properties of keys that sort like the values in them. test_tensor_slice.py has TensorFlow's vectors."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from slice_keys import decode_num, decode_signed, decode_string

from torch_tfckpt.errors import DataLossError
from torch_tfckpt.format.ordered_code import encode_num, encode_signed, encode_string

# Numbers of every length, and the neighbours of the limits between lengths.
UNSIGNED = st.integers(0, 64).flatmap(lambda bits: st.integers(0, (1 << bits) - 1))
SIGNED = st.builds(lambda value, negative: ~value if negative else value, UNSIGNED.map(lambda n: n >> 1), st.booleans())
EDGES = sorted(
    {
        value
        for bits in range(64)
        for power in (1 << bits, -(1 << bits))
        for value in range(power - 2, power + 2)
        if -(2**63) <= value < 2**63
    }
)
STRINGS = st.lists(st.sampled_from([b"\x00", b"\x01", b"\xfe", b"\xff", b"a", b"b"]), max_size=6).map(b"".join)
Key = tuple[bytes, int, int]
KEYS = st.tuples(STRINGS, UNSIGNED, SIGNED)
# Encodings with something removed, changed or added.
NEARLY_ENCODED = st.one_of(
    st.binary(max_size=14),
    st.builds(
        lambda encoded, cut, tail: encoded[: max(0, len(encoded) - cut)] + tail,
        UNSIGNED.map(encode_num) | SIGNED.map(encode_signed) | STRINGS.map(encode_string),
        st.integers(0, 3),
        st.binary(max_size=3),
    ),
)


def encode(key: Key) -> bytes:
    return encode_string(key[0]) + encode_num(key[1]) + encode_signed(key[2])


@given(one=KEYS, other=KEYS)
def test_concatenated_encodings_sort_like_tuples(one: Key, other: Key) -> None:
    """A string, a number and a signed number: the bytes sort like Python tuples of the values."""
    assert (encode(one) < encode(other)) == (one < other)
    assert (encode(one) == encode(other)) == (one == other)


@given(KEYS, st.binary(max_size=4))
def test_each_decoder_stops_where_its_value_ends(key: Key, rest: bytes) -> None:
    """Concatenated encodings can be decoded without separators, whatever follows."""
    encoded = encode(key) + rest
    string, at = decode_string(encoded, 0)
    number, at = decode_num(encoded, at)
    signed, at = decode_signed(encoded, at)
    assert (string, number, signed) == key
    assert encoded[at:] == rest


def test_signed_numbers_sort_across_length_limits() -> None:
    """Every power of two with both signs and its neighbours: about 500 values in one ascending sequence."""
    encoded = [encode_signed(value) for value in EDGES]
    assert len(EDGES) > 400
    assert encoded == sorted(encoded)
    assert len(set(encoded)) == len(EDGES)
    assert [decode_signed(code, 0) for code in encoded] == [
        (value, len(code)) for value, code in zip(EDGES, encoded, strict=True)
    ]


def test_a_signed_number_is_as_short_as_its_range_allows() -> None:
    """From one byte to ten: the smallest L with -2**(7L-1) <= v < 2**(7L-1)."""
    for value in EDGES:
        size = next(size for size in range(1, 11) if -(2 ** (7 * size - 1)) <= value < 2 ** (7 * size - 1))
        assert len(encode_signed(value)) == size, value


@given(UNSIGNED)
def test_an_unsigned_number_has_no_leading_zeros(value: int) -> None:
    """A count, then that many bytes, most significant first."""
    encoded = encode_num(value)
    assert encoded[0] == len(encoded) - 1 <= 8
    assert encoded[1:2] != b"\0"
    assert int.from_bytes(encoded[1:], "big") == value


def _again(
    decode: Callable[[bytes, int], tuple[object, int]], encode_again: Callable[..., bytes], buffer: bytes, at: int
) -> None:
    try:
        value, end = decode(buffer, at)
    except DataLossError:
        return
    assert encode_again(value) == buffer[at:end]


@given(buffer=NEARLY_ENCODED, at=st.integers(0, 3))
def test_encodings_are_unique(buffer: bytes, at: int) -> None:
    """Any bytes raise DataLossError or are the encoding of the decoded value: no two keys mean the same slice."""
    _again(decode_num, encode_num, buffer, at)
    _again(decode_signed, encode_signed, buffer, at)
    _again(decode_string, encode_string, buffer, at)


@pytest.mark.parametrize(
    ("decode", "encoded", "text"),
    [
        (decode_num, "", "number at byte 0: the key ends there"),
        (decode_num, "09 ff ff ff ff ff ff ff ff ff", "number at byte 0: invalid size 9"),
        (decode_num, "02 01", "number at byte 0: invalid size 2"),
        (decode_num, "02 00 01", "number at byte 0: invalid size 2"),
        (decode_string, "", "string at byte 0 has no end mark"),
        (decode_string, "61 62", "string at byte 0 has no end mark"),
        (decode_string, "61 00", "string at byte 0 has no end mark"),
        (decode_string, "00 02 00 01", "string at byte 0: invalid escape 00 02"),
        (decode_string, "ff 01 00 01", "string at byte 0: invalid escape ff 01"),
        (decode_signed, "c0", "signed number at byte 0: invalid size 2"),
        (decode_signed, "ff e0", "signed number at byte 0: invalid size 11"),
        (decode_signed, "c0 00", "signed number at byte 0 is not in its shortest form"),
        (decode_signed, "ff c0 80" + "00" * 7, "signed number at byte 0 is not in its shortest form"),
    ],
)
def test_an_invalid_encoding_is_refused(
    decode: Callable[[bytes, int], tuple[object, int]], encoded: str, text: str
) -> None:
    """DataLossError with the offset in the key and the problem."""
    with pytest.raises(DataLossError) as raised:
        decode(bytes.fromhex(encoded), 0)
    assert str(raised.value) == text
