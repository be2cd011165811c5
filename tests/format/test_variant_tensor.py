"""Variant tensors: TensorFlow's bytes, round trips, and detection of damage."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_tfckpt.errors import DataLossError
from torch_tfckpt.format import crc32c
from torch_tfckpt.format.variant_tensor import decode_variants, encode_variants

# Dumped from TensorFlow 2.21: a scalar that contains a TensorList of the floats 1 and 2.
TENSOR_LIST = (
    b"\x0a\x16tensorflow::TensorList"
    + bytes.fromhex("12 0c 00 01 ff ff ff ff ff ff ff ff ff 01")
    + bytes.fromhex("1a 0a 08 01 12 00 2a 04 00 00 80 3f")
    + bytes.fromhex("1a 0a 08 01 12 00 2a 04 00 00 00 40")
)
STORED_SUM = bytes.fromhex("e7 f6 e3 e6")
MESSAGES = st.lists(st.binary(max_size=6) | st.sampled_from([b"", b"m" * 127, b"n" * 128]), max_size=5)


def flipped(stored: bytes, at: int) -> bytes:
    return stored[:at] + bytes((stored[at] ^ 0xFF,)) + stored[at + 1 :]


def test_a_variant_is_stored_as_in_tensorflow() -> None:
    """In both directions: size, message, running checksum."""
    assert len(TENSOR_LIST) == 62
    stored, checksum = encode_variants([TENSOR_LIST])
    assert stored == b"\x3e" + TENSOR_LIST + STORED_SUM
    assert len(stored) == 67
    assert decode_variants(stored, 1, checksum) == [TENSOR_LIST]


def test_the_checksum_covers_all_elements() -> None:
    """The size as 64 bits, the message, the stored checksum itself; the tensor's checksum is the last value."""
    running, expected = 0, b""
    for message in (b"one", b""):
        running = crc32c.extend(running, struct.pack("<Q", len(message)) + message)
        stored_sum = struct.pack("<I", crc32c.mask(running))
        running = crc32c.extend(running, stored_sum)
        expected += bytes((len(message),)) + message + stored_sum
    assert encode_variants([b"one", b""]) == (expected, crc32c.mask(running))


@given(MESSAGES)
def test_every_list_of_messages_round_trips(messages: list[bytes]) -> None:
    """They are opaque: they are not parsed, so nothing in them can be lost."""
    stored, checksum = encode_variants(messages)
    assert decode_variants(stored, len(messages), checksum) == messages


def test_an_empty_tensor_has_the_checksum_of_no_bytes() -> None:
    """An empty tensor takes no bytes."""
    assert encode_variants([]) == (b"", 0xA282EAD8)
    assert decode_variants(b"", 0, 0xA282EAD8) == []


@given(messages=MESSAGES.filter(bool), data=st.data())
def test_damage_never_changes_messages(messages: list[bytes], data: st.DataObject) -> None:
    """A changed byte, truncation, added bytes, or a wrong checksum in the index."""
    stored, checksum = encode_variants(messages)
    at = data.draw(st.integers(0, len(stored) - 1))
    for damaged in (flipped(stored, at), stored[:at], stored + b"\0", stored[:at] + stored[at + 1 :]):
        with pytest.raises(DataLossError):
            decode_variants(damaged, len(messages), checksum)
    with pytest.raises(DataLossError):
        decode_variants(stored, len(messages), checksum ^ 1)


@pytest.mark.parametrize(
    ("stored", "count", "text"),
    [
        (b"\x01", 2, "too few bytes for 2 variants: 1"),
        (b"\x01", 2**60, "too few bytes for 1152921504606846976 variants: 1"),
        (
            b"\x3e" + TENSOR_LIST + STORED_SUM[:3],
            1,
            "variant 0 of 1: its checksum ends at byte 67, but the stored tensor ends at byte 66",
        ),
        (
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            1,
            "variant 0 of 1: its checksum ends at byte 18446744073709551629, but the stored tensor ends at byte 10",
        ),
        (b"\x80", 1, "integer at byte 0 is truncated or too long; bytes examined: 1"),
        (
            b"\x3e" + TENSOR_LIST + b"\x4d\x3c\x2b\x1a",
            1,
            "variant 0 of 1: Checksum does not match: stored 0x1a2b3c4d, computed 0xe6e3f6e7",
        ),
    ],
)
def test_an_invalid_variant_is_refused(stored: bytes, count: int, text: str) -> None:
    """The error names the element and the problem; sizes are checked before anything is copied."""
    with pytest.raises(DataLossError) as raised:
        decode_variants(stored, count, 0)
    assert text in str(raised.value)


def test_trailing_bytes_are_refused() -> None:
    """Nothing may follow the last element."""
    stored, checksum = encode_variants([b"m"])
    with pytest.raises(DataLossError) as raised:
        decode_variants(stored + b"xyz", 1, checksum)
    assert "3 bytes left over" in str(raised.value)
