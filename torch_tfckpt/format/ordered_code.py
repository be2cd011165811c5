"""Integers and strings as bytes that sort like the values themselves.

    num(v)   unsigned   n, then v big-endian in n bytes without leading zeros        0 -> 00      300 -> 02 01 2c
    str(s)              00 -> 00 ff, ff -> ff 00, then the end mark 00 01            "t" -> 74 00 01
    snum(v)  signed     L one-bits, a zero bit, then v, in L bytes altogether, for the smallest L with
                        -2**(7L-1) <= v < 2**(7L-1); a negative v has every bit of that flipped
                        0 -> 80   63 -> bf   64 -> c0 40   -1 -> 7f   -65 -> 3f bf

They are written and never read: what a key contains is also in the record that is stored under it.

Source: tensorflow/core/lib/strings/ordered_code.{h,cc}; spec: FORMATS 2.5.
"""

import re
from typing import Final

_STRING_END: Final = b"\x00\x01"
_ESCAPES: Final = {b"\x00": b"\x00\xff", b"\xff": b"\xff\x00"}


def encode_num(value: int) -> bytes:
    """num: `value` >= 0, below 2**64."""
    size = (value.bit_length() + 7) // 8
    return bytes((size,)) + value.to_bytes(size, "big")


def encode_string(value: bytes) -> bytes:
    """str: any bytes."""
    return re.sub(rb"[\x00\xff]", lambda match: _ESCAPES[match[0]], value) + _STRING_END


def encode_signed(value: int) -> bytes:
    """snum: -2**63 <= `value` < 2**63, in 1 to 10 bytes."""
    magnitude = ~value if value < 0 else value
    size = magnitude.bit_length() // 7 + 1
    # `size` one-bits and a zero bit at the top of size * 8 bits, and the value below them.
    word = ((1 << size) - 1) << (7 * size) | magnitude
    return (word if value >= 0 else ~word & ((1 << 8 * size) - 1)).to_bytes(size, "big")
