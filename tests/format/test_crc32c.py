"""CRC-32C: published vectors, the polynomial worked by hand, and sums of pieces against the sum of the whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_tfckpt.format import crc32c

WORDS = st.integers(0, 2**32 - 1)


def by_hand(data: bytes) -> int:
    """One bit after the other, from the definition: reflected polynomial 0x82f63b78, initial value and xor of ones."""
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
        (b"123456789", 0xE3069283),  # FORMATS 0
        (b"", 0),
    ],
    ids=["zeros", "ones", "ascending", "descending", "read command", "digits", "empty"],
)
def test_known_checksums(data: bytes, crc: int) -> None:
    """Vectors of the RFC, and the checksum of nothing."""
    assert crc32c.value(data) == crc


@given(st.binary(max_size=100))
def test_the_checksum_is_that_of_the_polynomial(data: bytes) -> None:
    """Whichever instructions the machine has, the definition decides."""
    assert crc32c.value(data) == by_hand(data)
    assert crc32c.value(bytearray(data)) == crc32c.value(memoryview(data)) == by_hand(data)


# The mask.


def unmask(masked: int) -> int:
    """The checksum that `masked` stands for, as LevelDB's Unmask (util/crc32c.h)."""
    rotated = (masked - 0xA282EAD8) % 2**32
    return (rotated >> 17 | rotated << 15) % 2**32


@pytest.mark.parametrize(("crc", "masked"), [(0, 0xA282EAD8), (0xE3069283, 0xC78AB0E5)])
def test_known_masks(crc: int, masked: int) -> None:
    # FORMATS 0, seen from TensorFlow 2.21
    """The stored form, both ways."""
    assert crc32c.mask(crc) == masked
    assert unmask(masked) == crc


def test_masks_are_those_of_leveldb() -> None:
    """Masking once or twice never gives the checksum back; unmasking as often does."""
    # LevelDB util/crc32c_test.cc, TEST(CRC, Mask)
    crc = crc32c.value(b"foo")
    assert crc32c.mask(crc) != crc
    assert crc32c.mask(crc32c.mask(crc)) != crc
    assert unmask(crc32c.mask(crc)) == crc
    assert unmask(unmask(crc32c.mask(crc32c.mask(crc)))) == crc


@given(WORDS)
def test_a_mask_comes_off_again(word: int) -> None:
    """Both directions are inverse to each other on all 32-bit words and stay within them."""
    assert unmask(crc32c.mask(word)) == crc32c.mask(unmask(word)) == word
    assert 0 <= crc32c.mask(word) < 2**32
    assert 0 <= unmask(word) < 2**32


# Pieces.


@given(first=st.binary(max_size=200), second=st.binary(max_size=200))
def test_pieces_give_the_checksum_of_the_whole(first: bytes, second: bytes) -> None:
    """extend and combine against the direct checksum; both may be told of nothing."""
    whole = crc32c.value(first + second)
    assert crc32c.extend(crc32c.value(first), second) == whole
    assert crc32c.combine(crc32c.value(first), crc32c.value(second), len(second)) == whole


@given(st.lists(st.binary(max_size=40), max_size=8), st.data())
def test_any_cut_gives_the_checksum_of_the_whole(pieces: list[bytes], data: st.DataObject) -> None:
    """Neighbours may be combined in any order, so threads may finish in any order."""
    sums = [(crc32c.value(piece), len(piece)) for piece in pieces] or [(0, 0)]
    while len(sums) > 1:
        at = data.draw(st.integers(0, len(sums) - 2))
        (first, size), (second, second_size) = sums[at : at + 2]
        sums[at : at + 2] = [(crc32c.combine(first, second, second_size), size + second_size)]
    assert sums == [(crc32c.value(b"".join(pieces)), sum(map(len, pieces)))]


@pytest.mark.parametrize("size", [1, 255, 8 * 1024 * 1024, 8 * 1024 * 1024 + 3])
def test_long_pieces_combine(size: int) -> None:
    """The size of a chunk of the pipeline, and one byte counts around it that are no round numbers."""
    tail = bytes(size)
    assert crc32c.combine(0xDEADBEEF, crc32c.value(tail), size) == crc32c.extend(0xDEADBEEF, tail)


@given(crc=WORDS, sizes=st.tuples(st.integers(0, 2**62), st.integers(0, 2**62)))
def test_sizes_beyond_memory_combine(crc: int, sizes: tuple[int, int]) -> None:
    """So many zeros in one step, or in two: no size is too large to be summed apart."""
    one, other = sizes
    assert crc32c.combine(crc32c.combine(crc, 0, one), 0, other) == crc32c.combine(crc, 0, one + other)
    assert crc32c.combine(crc, 0, 0) == crc
