"""Integers and strings as bytes that sort like the values themselves.

    num(v)   unsigned   n, then v big-endian in n bytes without leading zeros        0 -> 00      300 -> 02 01 2c
    str(s)              00 -> 00 ff, ff -> ff 00, then the end mark 00 01            "t" -> 74 00 01
    snum(v)  signed     L one-bits, a zero bit, then v, in L bytes altogether, for the smallest L with
                        -2**(7L-1) <= v < 2**(7L-1); a negative v has every bit of that flipped
                        0 -> 80   63 -> bf   64 -> c0 40   -1 -> 7f   -65 -> 3f bf

Source: tensorflow/core/lib/strings/ordered_code.{h,cc}; spec: FORMATS 2.5.
"""

import re
from typing import Final

from torch_tfckpt.errors import DataLossError

_STRING_END: Final = b"\x00\x01"
_ESCAPES: Final = {b"\x00": b"\x00\xff", b"\xff": b"\xff\x00"}
_MAX_SIGNED_SIZE: Final = 10  # bytes of the longest snum


def encode_num(value: int) -> bytes:
    """num: `value` >= 0, below 2**64."""
    size = (value.bit_length() + 7) // 8
    return bytes((size,)) + value.to_bytes(size, "big")


def decode_num(buf: bytes, at: int) -> tuple[int, int]:
    """The num at `at`, and the position behind it."""
    if at >= len(buf):
        raise DataLossError(f"number at byte {at}: the key ends there")
    size = buf[at]
    end = at + 1 + size
    if size > 8 or end > len(buf) or (size and not buf[at + 1]):
        raise DataLossError(f"number at byte {at}: no number of {size} bytes stands there")
    return int.from_bytes(buf[at + 1 : end], "big"), end


def encode_string(value: bytes) -> bytes:
    """str: any bytes."""
    return re.sub(rb"[\x00\xff]", lambda match: _ESCAPES[match[0]], value) + _STRING_END


def decode_string(buf: bytes, at: int) -> tuple[bytes, int]:
    """The str at `at`, and the position behind its end mark."""
    out = bytearray()
    position = at
    while position + 1 < len(buf):
        byte, following = buf[position], buf[position + 1]
        if byte == 0x00:
            if following == 0x01:
                return bytes(out), position + 2
            if following != 0xFF:
                raise DataLossError(f"string at byte {at}: escape 00 {following:02x} means nothing")
            position += 1
        elif byte == 0xFF:
            if following != 0x00:
                raise DataLossError(f"string at byte {at}: escape ff {following:02x} means nothing")
            position += 1
        out.append(byte)
        position += 1
    raise DataLossError(f"string at byte {at} has no end mark")


def encode_signed(value: int) -> bytes:
    """snum: -2**63 <= `value` < 2**63, in 1 to 10 bytes."""
    magnitude = ~value if value < 0 else value
    size = magnitude.bit_length() // 7 + 1
    # `size` one-bits and a zero bit at the top of size * 8 bits, and the value below them.
    word = ((1 << size) - 1) << (7 * size) | magnitude
    return (word if value >= 0 else ~word & ((1 << 8 * size) - 1)).to_bytes(size, "big")


def decode_signed(buf: bytes, at: int) -> tuple[int, int]:
    """The snum at `at`, and the position behind it."""
    head = int.from_bytes(buf[at : at + 2].ljust(2, b"\0"), "big")
    negative = not head & 0x8000
    ones = head ^ 0xFFFF if negative else head
    size = 16 - (ones ^ 0xFFFF).bit_length()
    if not 1 <= size <= _MAX_SIGNED_SIZE or at + size > len(buf):
        raise DataLossError(f"signed number at byte {at}: no number of {size} bytes stands there")
    word = int.from_bytes(buf[at : at + size], "big")
    if negative:
        word ^= (1 << 8 * size) - 1
    magnitude = word & ((1 << (7 * size)) - 1)
    value = ~magnitude if negative else magnitude
    if encode_signed(value) != buf[at : at + size] or magnitude >> 63:
        raise DataLossError(f"signed number at byte {at} is not in its shortest form")
    return value, at + size
