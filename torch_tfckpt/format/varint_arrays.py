"""Arrays of varints: encode or decode many integers in a few numpy passes, without a Python loop."""

import numpy as np
import numpy.typing as npt

from torch_tfckpt.errors import DataLossError
from torch_tfckpt.format.coding import MAX_VARINT_SIZE


def encode_varints(values: npt.NDArray[np.uint64]) -> bytes:
    """Return `values` as consecutive varints."""
    values = values.astype(np.uint64, copy=False).reshape(-1)
    if not values.size:
        return b""
    widths = varint_sizes(values)
    longest = int(widths.max())
    shifts = np.arange(longest, dtype=np.uint64) * np.uint64(7)
    groups = ((values[:, None] >> shifts) & np.uint64(0x7F)).astype(np.uint8)
    position = np.arange(longest)
    groups[position < (widths[:, None] - 1)] |= 0x80
    return groups[position < widths[:, None]].tobytes()


def varint_sizes(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Return how many bytes each value takes as a varint."""
    sizes = np.ones(values.shape, dtype=np.int64)
    for group in range(1, MAX_VARINT_SIZE):
        sizes += values >= np.uint64(1 << (7 * group))
    return sizes


def decode_varints(buf: bytes | memoryview, count: int) -> tuple[npt.NDArray[np.uint64], int]:
    """Return the first `count` varints of `buf`, and the position after them.

    Raises:
        DataLossError: `buf` has fewer complete varints, or one is wider than 64 bits.

    Memory: a small multiple of the bytes decoded.
    """
    if not count:
        return np.zeros(0, dtype=np.uint64), 0
    if count > len(buf):
        raise DataLossError(f"expected {count} integers, but there are only {len(buf)} bytes")
    # Most lists are far shorter than the rest of the buffer: examine only as many bytes as `count` varints can take.
    raw = np.frombuffer(buf, dtype=np.uint8, count=min(len(buf), count * MAX_VARINT_SIZE))
    ends = np.flatnonzero(raw < 0x80)[:count]
    if len(ends) < count:
        raise DataLossError(f"expected {count} integers, found {len(ends)}")
    starts = np.concatenate((np.zeros(1, dtype=ends.dtype), ends[:-1] + 1))
    widths = ends - starts + 1
    if int(widths.max()) > MAX_VARINT_SIZE:
        raise DataLossError(f"integer at byte {int(starts[widths.argmax()])} is longer than {MAX_VARINT_SIZE} bytes")
    overflowing = raw[ends[widths == MAX_VARINT_SIZE]] > 1  # the tenth byte has room for one bit
    if overflowing.any():
        raise DataLossError("an integer is wider than 64 bits")
    values = np.zeros(count, dtype=np.uint64)
    for group in range(int(widths.max())):
        reached = widths > group
        byte = raw[starts[reached] + group].astype(np.uint64)
        values[reached] |= (byte & np.uint64(0x7F)) << np.uint64(7 * group)
    return values, int(ends[-1]) + 1
