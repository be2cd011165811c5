"""String tensors: TensorFlow's bytes, round trips, and errors for damaged bytes."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_tfckpt.errors import DataLossError
from torch_tfckpt.format import crc32c, string_tensor
from torch_tfckpt.format.coding import encode_varint
from torch_tfckpt.format.string_tensor import decode_strings, encode_strings

STRINGS = st.lists(st.binary(max_size=5) | st.sampled_from([b"", b"x" * 127, b"y" * 128, b"z" * 300]), max_size=8)


def big_endian(elements: list[bytes]) -> tuple[bytes, int]:
    """Encode as a big-endian writer does: lengths are summed, and their checksum is stored, in its byte order."""
    # TensorFlow 2.21 reads such a file.
    lengths = crc32c.value(b"".join(struct.pack(">I", len(element)) for element in elements))
    stored_sum = struct.pack(">I", crc32c.mask(lengths))
    total = crc32c.extend(crc32c.extend(lengths, stored_sum), b"".join(elements))
    varints = b"".join(encode_varint(len(element)) for element in elements)
    return varints + stored_sum + b"".join(elements), crc32c.mask(total)


# TensorFlow's bytes.


@pytest.mark.parametrize(
    ("elements", "stored", "checksum"),
    [
        # Dumped from TensorFlow 2.21.
        ([b"hello", b"", b"x01"], "05 00 03 c1 66 ac 13 68 65 6c 6c 6f 78 30 31", 0xA3D1E109),
        # An empty tensor still stores the checksum of no lengths.
        ([], "d8 ea 82 a2", None),
    ],
)
def test_strings_are_stored_as_in_tensorflow(elements: list[bytes], stored: str, checksum: int | None) -> None:
    """In both directions: lengths, their checksum, bytes; and the checksum for the entry."""
    if checksum is None:
        checksum = crc32c.mask(crc32c.value(bytes.fromhex(stored)))
    assert encode_strings(elements) == (bytes.fromhex(stored), checksum)
    assert decode_strings(bytes.fromhex(stored), len(elements), checksum) == elements


def test_lengths_of_128_and_more_take_two_bytes() -> None:
    """300, 127 and 128, and the checksum over them as 32-bit words; dumped from TensorFlow 2.21."""
    elements = [b"a" * 300, b"b" * 127, b"c" * 128]
    stored, checksum = encode_strings(elements)
    assert stored[:9] == bytes.fromhex("ac 02 7f 80 01 7e 63 6e d8")
    assert stored[9:] == b"".join(elements)
    assert decode_strings(stored, 3, checksum) == elements


# Round trips.


@given(STRINGS)
def test_every_list_of_strings_round_trips(elements: list[bytes]) -> None:
    """Including empty strings and an empty list."""
    stored, checksum = encode_strings(elements)
    assert decode_strings(stored, len(elements), checksum) == elements
    assert decode_strings(stored, len(elements), 0, verify=False) == elements


@given(STRINGS)
def test_strings_of_a_big_endian_writer_are_read(elements: list[bytes]) -> None:
    """Compared with bytes encoded by hand; read as little-endian they raise DataLossError, never wrong strings."""
    stored, checksum = big_endian(elements)
    assert decode_strings(stored, len(elements), checksum, big_endian=True) == elements
    with pytest.raises(DataLossError, match="The length checksum does not match"):
        decode_strings(stored, len(elements), checksum)


@pytest.mark.parametrize("order", ["<", ">"])
def test_lengths_beyond_32_bits_are_summed_as_64_bits(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each length individually: four bytes if it fits, otherwise eight."""
    # The limit is lowered, because the real one would need a string of 4 GiB.
    monkeypatch.setattr(string_tensor, "_MAX_U32", 5)
    elements = [b"hello", b"longer", b""]
    lengths = crc32c.value(struct.pack(f"{order}IQI", 5, 6, 0))
    stored_sum = struct.pack(f"{order}I", crc32c.mask(lengths))
    stored = b"\x05\x06\x00" + stored_sum + b"hellolonger"
    checksum = crc32c.mask(crc32c.extend(crc32c.extend(lengths, stored_sum), b"hellolonger"))
    if order == "<":
        assert encode_strings(elements) == (stored, checksum)
    assert decode_strings(stored, 3, checksum, big_endian=order == ">") == elements


# Damage.


def flipped(stored: bytes, at: int) -> bytes:
    """Flip all bits of one byte, as tensor_bundle_test.cc does."""
    return stored[:at] + bytes((stored[at] ^ 0xFF,)) + stored[at + 1 :]


@pytest.mark.parametrize("at", range(2))
def test_a_flipped_length_raises_tensorflows_message(at: int) -> None:
    """The lengths have their own checksum, so a wrong length is never reported as a wrong string."""
    # CASES 128, from tensor_bundle_test.cc Checksum
    stored, checksum = encode_strings([b"hello", b"world"])
    with pytest.raises(DataLossError) as raised:
        decode_strings(flipped(stored, at), 2, checksum)
    assert "length checksum does not match" in str(raised.value)


@pytest.mark.parametrize("at", range(2, 16))
def test_any_other_flipped_byte_raises_tensorflows_message(at: int) -> None:
    """The stored checksum of the lengths, and every byte of the strings."""
    # CASES 128
    stored, checksum = encode_strings([b"hello", b"world"])
    assert len(stored) == 16
    with pytest.raises(DataLossError) as raised:
        decode_strings(flipped(stored, at), 2, checksum)
    assert "hecksum does not match" in str(raised.value)


@given(elements=STRINGS, data=st.data())
def test_damage_never_changes_strings(elements: list[bytes], data: st.DataObject) -> None:
    """A changed byte, truncation, or added bytes raise DataLossError.

    The strings may be unchanged if a length is merely encoded in more bytes than necessary.
    """
    stored, checksum = encode_strings(elements)
    at = data.draw(st.integers(0, len(stored) - 1))
    damaged = data.draw(
        st.sampled_from(
            [flipped(stored, at), stored[:at], stored[at + 1 :], stored + b"\0", stored[:at] + b"\x80" + stored[at:]]
        )
    )
    try:
        found = decode_strings(damaged, len(elements), checksum)
    except DataLossError:
        return
    assert found == elements and len(damaged) == len(stored) + 1


@pytest.mark.parametrize(
    ("stored", "count", "text"),
    [
        ("05", 0, "too few bytes for the string lengths and their checksum: expected at least 4, got 1"),
        ("01 00 00 00 00", 2, "too few bytes for the string lengths and their checksum: expected at least 6, got 5"),
        ("80 80 80 80 80 80 80", 2, "expected 2 integers, found 0"),
        ("01 00 00 00 00 61 62", 1, "the string lengths add up to 1, but the stored strings have size 2"),
        ("02 00 00 00 00 61", 1, "the string lengths add up to 2, but the stored strings have size 1"),
    ],
)
def test_impossible_lengths_are_refused(stored: str, count: int, text: str) -> None:
    """Sizes are checked even if checksums are not verified."""
    with pytest.raises(DataLossError) as raised:
        decode_strings(bytes.fromhex(stored), count, 0, verify=False)
    assert str(raised.value) == text


def test_overflowing_lengths_are_refused() -> None:
    """Eight lengths that add up to 2**64 + 1 are not treated as one byte."""
    lengths = b"".join(map(encode_varint, [2**63, 2**63, 1, 0, 0, 0, 0, 0]))
    with pytest.raises(DataLossError, match=r"the string lengths add up to 18446744073709551617, but .* size 1$"):
        decode_strings(lengths + bytes(4) + b"x", 8, 0, verify=False)


def test_an_absurd_count_is_refused_before_allocation() -> None:
    """The count is a product of dimensions from a file."""
    with pytest.raises(DataLossError, match=r"^too few bytes .*: expected at least 1152921504606846980, got 10$"):
        decode_strings(bytes(10), 2**60, 0)


def test_checksum_errors_show_stored_and_computed_values() -> None:
    """Both in their masked form, as in the file."""
    stored, checksum = encode_strings([b"hello"])
    with pytest.raises(DataLossError) as raised:
        decode_strings(stored, 1, 0x1A2B3C4D)
    assert str(raised.value) == f"Checksum does not match: stored 0x1a2b3c4d, computed {checksum:#010x}"
    right = int.from_bytes(stored[1:5], "little")
    with pytest.raises(DataLossError) as raised:
        decode_strings(stored[:1] + b"\x4d\x3c\x2b\x1a" + stored[5:], 1, checksum)
    assert str(raised.value) == f"The length checksum does not match: stored 0x1a2b3c4d, computed {right:#010x}"
