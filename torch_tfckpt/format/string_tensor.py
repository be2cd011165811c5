"""Encoding of a string tensor with N elements.

    length: varint64 ... (N of them) | checksum of the lengths: u32le | bytes of element 0 | bytes of element 1 ...

    ["hello", "", "x01"]   05 00 03 | c1 66 ac 13 | 68 65 6c 6c 6f 78 30 31

The checksum of the lengths is the masked CRC-32C over each length as u32le, or as u64le if it needs more than 32 bits.
The tensor's own checksum extends the unmasked checksum of the lengths over the four stored checksum bytes and then
over all element bytes. A big-endian writer computes the lengths' checksum in its own byte order.

Source: WriteStringTensor, ReadStringTensor in tensorflow/core/util/tensor_bundle/tensor_bundle.cc. Explained in
docs/formats/bundle.md.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from torch_tfckpt.errors import DataLossError
from torch_tfckpt.format import crc32c
from torch_tfckpt.format.varint_arrays import decode_varints, encode_varints

_CHECKSUM_SIZE: Final = 4
_MAX_U32: Final = 0xFFFFFFFF
_ByteOrder = Literal["little", "big"]


def encode_strings(elements: Sequence[bytes]) -> tuple[bytes, int]:
    """Return the stored bytes, and their masked checksum."""
    lengths = np.fromiter(map(len, elements), dtype=np.uint64, count=len(elements))
    running = _sum_lengths(lengths, "little")
    stored_sum = crc32c.mask(running).to_bytes(_CHECKSUM_SIZE, "little")
    payload = b"".join(elements)
    running = crc32c.extend(crc32c.extend(running, stored_sum), payload)
    return encode_varints(lengths) + stored_sum + payload, crc32c.mask(running)


def decode_strings(
    stored: bytes, count: int, checksum: int, *, big_endian: bool = False, verify: bool = True
) -> list[bytes]:
    """Return the `count` elements, in row-major order.

    Args:
        checksum: The masked checksum from the index.
        verify: Whether to compute and compare both checksums; the sizes are always checked.

    Raises:
        DataLossError: a length, a checksum or the total size is wrong.
    """
    if count + _CHECKSUM_SIZE > len(stored):
        raise DataLossError(
            f"too few bytes for the string lengths and their checksum: expected at least {count + _CHECKSUM_SIZE}, "
            f"got {len(stored)}"
        )
    lengths, at = decode_varints(stored, count)
    start = at + _CHECKSUM_SIZE
    byte_order: _ByteOrder = "big" if big_endian else "little"
    running = _sum_lengths(lengths, byte_order) if verify else 0
    stored_sum = stored[at:start]
    if verify and crc32c.mask(running) != int.from_bytes(stored_sum, byte_order):
        raise DataLossError(
            f"The length checksum does not match: stored {int.from_bytes(stored_sum, byte_order):#010x}, computed "
            f"{crc32c.mask(running):#010x}"
        )
    # Add them as Python integers: damaged 64-bit lengths could overflow.
    total = sum(lengths.tolist())
    if start + total != len(stored):
        raise DataLossError(
            f"the string lengths add up to {total}, but the stored strings have size {len(stored) - start}"
        )
    if verify:
        running = crc32c.extend(crc32c.extend(running, stored_sum), memoryview(stored)[start:])
        if crc32c.mask(running) != checksum:
            raise DataLossError(
                f"Checksum does not match: stored {checksum:#010x}, computed {crc32c.mask(running):#010x}"
            )
    ends = np.cumsum(lengths.astype(np.int64)) + start
    bounds = [start, *ends.tolist()]
    return [stored[begin:end] for begin, end in pairwise(bounds)]


def _sum_lengths(lengths: npt.NDArray[np.uint64], byte_order: _ByteOrder) -> int:
    """Return the CRC-32C of the lengths as fixed-width integers."""
    if not lengths.size or int(lengths.max()) <= _MAX_U32:
        return crc32c.value(lengths.astype(">u4" if byte_order == "big" else "<u4").tobytes())
    running = 0
    for length in lengths.tolist():
        running = crc32c.extend(running, length.to_bytes(8 if length > _MAX_U32 else 4, byte_order))
    return running
