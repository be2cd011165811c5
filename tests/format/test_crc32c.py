"""CRC-32C: published vectors, the polynomial computed by hand, and combined checksums against direct ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_tfckpt.format import crc32c

WORDS = st.integers(0, 2**32 - 1)


def by_hand(data: bytes) -> int:
    """Compute bit by bit from the definition: reflected polynomial 0x82f63b78, initial value and xor of all ones."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (bytes(32), 0x8A9136AA),  # RFC 3720 B.4
        (b"\xff" * 32, 0x62A8AB43),  # RFC 3720 B.4
        (bytes(range(32)), 0x46DD794E),  # RFC 3720 B.4
        (bytes(reversed(range(32))), 0x113FDB5C),  # RFC 3720 B.4
        (  # RFC 3720 B.4, "An iSCSI - SCSI Read (10) Command PDU"
            bytes.fromhex(
                "01c00000 00000000 00000000 00000000 14000000 00000400"
                "00000014 00000018 28000000 00000000 02000000 00000000"
            ),
            0xD9963A56,
        ),
        (b"123456789", 0xE3069283),  # the usual check value of CRC-32C
        (b"", 0),
    ],
    ids=["zeros", "ones", "ascending", "descending", "read command", "digits", "empty"],
)
def test_known_checksums(data: bytes, crc: int) -> None:
    """Vectors of the RFC, and the checksum of empty input."""
    assert crc32c.value(data) == crc


@given(st.binary(max_size=100))
def test_the_checksum_follows_the_definition(data: bytes) -> None:
    """The result equals the definition, whichever instructions the machine has."""
    assert crc32c.value(data) == by_hand(data)
    assert crc32c.value(bytearray(data)) == crc32c.value(memoryview(data)) == by_hand(data)


# The mask.


def unmask(masked: int) -> int:
    """Return the unmasked checksum, as LevelDB's Unmask does (util/crc32c.h)."""
    rotated = (masked - 0xA282EAD8) % 2**32
    return (rotated >> 17 | rotated << 15) % 2**32


@pytest.mark.parametrize(("crc", "masked"), [(0, 0xA282EAD8), (0xE3069283, 0xC78AB0E5)])
def test_known_masks(crc: int, masked: int) -> None:
    """The stored form, in both directions; seen in files that TensorFlow 2.21 wrote."""
    assert crc32c.mask(crc) == masked
    assert unmask(masked) == crc


def test_masks_behave_like_leveldbs() -> None:
    """Masking once or twice never returns the original checksum; unmasking as often does."""
    # LevelDB util/crc32c_test.cc, TEST(CRC, Mask)
    crc = crc32c.value(b"foo")
    assert crc32c.mask(crc) != crc
    assert crc32c.mask(crc32c.mask(crc)) != crc
    assert unmask(crc32c.mask(crc)) == crc
    assert unmask(unmask(crc32c.mask(crc32c.mask(crc)))) == crc


@given(WORDS)
def test_masking_is_invertible(word: int) -> None:
    """Both directions are inverse to each other on all 32-bit words, and their results are 32-bit words."""
    assert unmask(crc32c.mask(word)) == crc32c.mask(unmask(word)) == word
    assert 0 <= crc32c.mask(word) < 2**32
    assert 0 <= unmask(word) < 2**32


# Combining checksums.


@given(first=st.binary(max_size=200), second=st.binary(max_size=200))
def test_extend_and_combine_equal_the_direct_checksum(first: bytes, second: bytes) -> None:
    """Also if one or both parts are empty."""
    whole = crc32c.value(first + second)
    assert crc32c.extend(crc32c.value(first), second) == whole
    assert crc32c.combine(crc32c.value(first), crc32c.value(second), len(second)) == whole


@given(st.lists(st.binary(max_size=40), max_size=8), st.data())
def test_parts_combine_in_any_order(pieces: list[bytes], data: st.DataObject) -> None:
    """Adjacent parts may be combined in any order, so threads may finish in any order."""
    sums = [(crc32c.value(piece), len(piece)) for piece in pieces] or [(0, 0)]
    while len(sums) > 1:
        at = data.draw(st.integers(0, len(sums) - 2))
        (first, size), (second, second_size) = sums[at : at + 2]
        sums[at : at + 2] = [(crc32c.combine(first, second, second_size), size + second_size)]
    assert sums == [(crc32c.value(b"".join(pieces)), sum(map(len, pieces)))]


@pytest.mark.parametrize("size", [1, 255, 8 * 1024 * 1024, 8 * 1024 * 1024 + 3])
def test_long_parts_combine(size: int) -> None:
    """The pipeline's chunk size, and nearby sizes that are not round numbers."""
    tail = bytes(size)
    assert crc32c.combine(0xDEADBEEF, crc32c.value(tail), size) == crc32c.extend(0xDEADBEEF, tail)


@given(crc=WORDS, sizes=st.tuples(st.integers(0, 2**62), st.integers(0, 2**62)))
def test_sizes_beyond_memory_combine(crc: int, sizes: tuple[int, int]) -> None:
    """Zeros appended in one step or in two: no size is too large to combine."""
    one, other = sizes
    assert crc32c.combine(crc32c.combine(crc, 0, one), 0, other) == crc32c.combine(crc, 0, one + other)
    assert crc32c.combine(crc, 0, 0) == crc
