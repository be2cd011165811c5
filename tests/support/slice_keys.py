"""Decode slice keys and ordered codes; the package only encodes them, since records repeat the contents of keys.

The decoders are strict, to show that each value has only one encoding.

Source: tensorflow/core/lib/strings/ordered_code.{h,cc}, tensorflow/core/util/saved_tensor_slice_util.cc.
"""

from typing import Final

from torch_tfckpt._proto.tensor_slice_pb2 import TensorSliceProto
from torch_tfckpt.errors import DataLossError
from torch_tfckpt.format.ordered_code import encode_signed
from torch_tfckpt.format.tensor_slice import WHOLE, TensorSlice

_MAX_SIGNED_SIZE: Final = 10  # bytes of the longest snum


def decode_num(buf: bytes, at: int) -> tuple[int, int]:
    """Return the num at `at`, and the position after it."""
    if at >= len(buf):
        raise DataLossError(f"number at byte {at}: the key ends there")
    size = buf[at]
    end = at + 1 + size
    if size > 8 or end > len(buf) or (size and not buf[at + 1]):
        raise DataLossError(f"number at byte {at}: there is no number of {size} bytes")
    return int.from_bytes(buf[at + 1 : end], "big"), end


def decode_string(buf: bytes, at: int) -> tuple[bytes, int]:
    """Return the str at `at`, and the position after its end mark."""
    out = bytearray()
    position = at
    while position + 1 < len(buf):
        byte, following = buf[position], buf[position + 1]
        if byte == 0x00:
            if following == 0x01:
                return bytes(out), position + 2
            if following != 0xFF:
                raise DataLossError(f"string at byte {at}: escape 00 {following:02x} is not defined")
            position += 1
        elif byte == 0xFF:
            if following != 0x00:
                raise DataLossError(f"string at byte {at}: escape ff {following:02x} is not defined")
            position += 1
        out.append(byte)
        position += 1
    raise DataLossError(f"string at byte {at} has no end mark")


def decode_signed(buf: bytes, at: int) -> tuple[int, int]:
    """Return the snum at `at`, and the position after it."""
    head = int.from_bytes(buf[at : at + 2].ljust(2, b"\0"), "big")
    negative = not head & 0x8000
    ones = head ^ 0xFFFF if negative else head
    size = 16 - (ones ^ 0xFFFF).bit_length()
    if not 1 <= size <= _MAX_SIGNED_SIZE or at + size > len(buf):
        raise DataLossError(f"signed number at byte {at}: there is no number of {size} bytes")
    word = int.from_bytes(buf[at : at + size], "big")
    if negative:
        word ^= (1 << 8 * size) - 1
    magnitude = word & ((1 << (7 * size)) - 1)
    value = ~magnitude if negative else magnitude
    if encode_signed(value) != buf[at : at + size] or magnitude >> 63:
        raise DataLossError(f"signed number at byte {at} is not in its shortest form")
    return value, at + size


def decode_slice_key(key: bytes) -> tuple[bytes, TensorSlice]:
    """Return name and slice of a slice key; DataLossError if `key` is not one."""
    mark, at = decode_num(key, 0)
    if mark != 0:
        raise DataLossError(f"slice key begins with {mark}, expected 0")
    name, at = decode_string(key, at)
    rank, at = decode_num(key, at)
    # Each dimension takes at least two bytes: reject an absurd rank before looping over it.
    if 2 * rank > len(key) - at:
        raise DataLossError(f"slice key has rank {rank}, but only {len(key) - at} bytes for its extents")
    extents = []
    for _ in range(rank):
        start, at = decode_signed(key, at)
        length, at = decode_signed(key, at)
        whole = length <= WHOLE
        extents.append(
            TensorSliceProto.Extent(start=start) if whole else TensorSliceProto.Extent(start=start, length=length)
        )
    if at != len(key):
        raise DataLossError(f"slice key has {len(key) - at} bytes after its last extent")
    return name, TensorSlice.from_proto(TensorSliceProto(extent=extents))
