"""Integers and strings encoded as bytes that sort in the same order as the values.

    num(v)   unsigned   n, then v big-endian in n bytes without leading zeros        0 -> 00      300 -> 02 01 2c
    str(s)              00 -> 00 ff, ff -> ff 00, then the end mark 00 01            "t" -> 74 00 01
    snum(v)  signed     L one-bits, a zero bit, then v, in L bytes altogether, for the smallest L with
                        -2**(7L-1) <= v < 2**(7L-1); for a negative v, the code of -1-v with every bit flipped
                        0 -> 80   63 -> bf   64 -> c0 40   -1 -> 7f   -65 -> 3f bf

These are only ever encoded, not decoded: the record stored under a key repeats the key's contents.

Source: tensorflow/core/lib/strings/ordered_code.{h,cc}. Explained in docs/formats/bundle.md.
"""

import re
from typing import Final

_STRING_END: Final = b"\x00\x01"
_ESCAPES: Final = {b"\x00": b"\x00\xff", b"\xff": b"\xff\x00"}


def encode_num(value: int) -> bytes:
    """Encode as num: `value` >= 0, below 2**64."""
    size = (value.bit_length() + 7) // 8
    return bytes((size,)) + value.to_bytes(size, "big")


def encode_string(value: bytes) -> bytes:
    """Encode as str: any bytes."""
    return re.sub(rb"[\x00\xff]", lambda match: _ESCAPES[match[0]], value) + _STRING_END


def encode_signed(value: int) -> bytes:
    """Encode as snum: -2**63 <= `value` < 2**63, in 1 to 10 bytes."""
    magnitude = ~value if value < 0 else value
    size = magnitude.bit_length() // 7 + 1
    # `size` one-bits and a zero bit at the top of size * 8 bits, followed by the value.
    word = ((1 << size) - 1) << (7 * size) | magnitude
    return (word if value >= 0 else ~word & ((1 << 8 * size) - 1)).to_bytes(size, "big")
