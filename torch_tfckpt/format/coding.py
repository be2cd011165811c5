"""Variable-length integers.

    varint   base 128, least significant group first, high bit = another byte follows:   300 -> ac 02

Source: LevelDB util/coding.h; Protocol Buffers encoding guide.
"""

from typing import Final

from torch_tfckpt.errors import DataLossError

MAX_VARINT_SIZE: Final = 10  # bytes of the longest 64-bit varint


def encode_varint(value: int) -> bytes:
    """Return `value` (0 <= value < 2**64) as a varint of 1 to 10 bytes."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode_varint(buf: bytes | memoryview, at: int, bits: int = 64) -> tuple[int, int]:
    """Return the varint at `at` and the offset after it; raise DataLossError if truncated or too wide."""
    value = shift = 0
    for byte in buf[at : at + MAX_VARINT_SIZE]:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            if value >> bits:
                raise DataLossError(f"integer at byte {at} is wider than {bits} bits")
            return value, at + shift // 7
    examined = min(MAX_VARINT_SIZE, max(0, len(buf) - at))
    raise DataLossError(f"integer at byte {at} is truncated or too long; bytes examined: {examined}")
