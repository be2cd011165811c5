"""CRC-32C (Castagnoli), the checksum of every block and every tensor, and its masked form in files.

    polynomial 0x82f63b78 (reflected), initial value and final xor 0xffffffff
    masked     = rotate_right_32(crc, 15) + 0xa282ead8 (mod 2**32)

A checksum stored next to its data is always masked: a CRC of bytes that contain their own CRC is a weak check.
Checksums of adjacent ranges can be combined, so a large tensor is checksummed in parallel and out of order.

Source: RFC 3720 B.4; LevelDB util/crc32c.h (mask); Mark Adler's crc32_combine (multiplication modulo the polynomial).
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import crc32c as _hardware

MASK_DELTA: Final = 0xA282EAD8
_POLYNOMIAL: Final = 0x82F63B78
_WORD: Final = 0xFFFFFFFF


# value(data, crc=0): CRC-32C of bytes whose checksum is `crc`, followed by `data`. Releases the GIL for buffers of at
# least 32 KiB. This is the C function itself: it is called once per small tensor, and a wrapper would double the time.
value: Final = _hardware.crc32c


def extend(crc: int, data: bytes | bytearray | memoryview) -> int:
    """Return the CRC-32C of bytes whose checksum is `crc`, followed by `data`."""
    return value(data, crc)


def of_parts(data: memoryview, sizes: Sequence[int]) -> list[int]:
    """Split `data` into consecutive parts of the given sizes, and return the CRC-32C of each."""
    sums, at = [], 0
    for size in sizes:
        sums.append(value(data[at : at + size]))
        at += size
    return sums


def mask(crc: int) -> int:
    """Return the masked form in which `crc` is stored."""
    return ((crc >> 15 | crc << 17) + MASK_DELTA) & _WORD


def combine(first: int, second: int, second_size: int) -> int:
    """Return the CRC-32C of A followed by B, from the checksums of A and B and the size of B."""
    return _multiply(_shift_by(second_size), first) ^ second


def _multiply(a: int, b: int) -> int:
    """Return the product of two polynomials over GF(2), modulo the CRC polynomial; bit 31 is x**0."""
    product = 0
    bit = 1 << 31
    while bit:
        if a & bit:
            product ^= b
        b = b >> 1 ^ _POLYNOMIAL if b & 1 else b >> 1
        bit >>= 1
    return product


@lru_cache(maxsize=256)
def _shift_by(size: int) -> int:
    """Return x ** (8 * size) modulo the polynomial: the effect of `size` more bytes on a checksum."""
    result, power, exponent = 1 << 31, 1 << 30, 8 * size
    while exponent:
        if exponent & 1:
            result = _multiply(power, result)
        power = _multiply(power, power)
        exponent >>= 1
    return result
