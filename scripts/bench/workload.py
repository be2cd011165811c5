"""Tensors that the benchmarks save and load, created from a seed.

Uses neither torch nor this package, so that the TensorFlow process creates the same ones. All dictionaries are in the
order of a checkpoint's index: sorted by the bytes of the names.
"""

from itertools import islice, product
from typing import Any, Final, Literal

import crc32c
import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[np.float32]]

COLUMNS: Final = 1024
_LAYERS: Final = 100_000
_PARTS: Final = (
    "attention/key", "attention/output", "attention/query", "attention/value", "intermediate", "norm", "output", "pos",
)  # fmt: skip
_LEAVES: Final = ("bias", "kernel")
_SLOTS: Final = ("", "/Adam", "/Adam_1")


def large(mib: int, count: int, seed: int) -> Arrays:
    """Return `mib` MiB in `count` matrices of equal size."""
    names = large_names(count)
    rows = mib * 2**20 // (count * COLUMNS * 4)
    if rows < 1:
        raise ValueError(f"{mib} MiB in {count} tensors leaves less than one row of {COLUMNS} floats for each")
    generator = np.random.default_rng(seed)
    return {name: generator.random((rows, COLUMNS), dtype=np.float32) for name in names}


def sized(size: int, count: int, seed: int) -> Arrays:
    """Return `count` vectors of `size` bytes each."""
    generator = np.random.default_rng(seed)
    return {f"layer_{number:06d}/kernel": generator.random(size // 4, dtype=np.float32) for number in range(count)}


def large_names(count: int) -> list[str]:
    """Return the names of `count` large tensors, sorted."""
    return sorted(f"encoder/layer_{number:03d}/dense/kernel" for number in range(count))


def tiny(count: int, seed: int) -> Arrays:
    """Return `count` vectors of 10 floats with the names of a deep transformer and its optimizer's slots."""
    values = np.random.default_rng(seed).random((count, 10), dtype=np.float32)
    every = product(range(_LAYERS), _PARTS, _LEAVES, _SLOTS)
    names = [f"bert/encoder/layer_{layer}/{part}/{leaf}{slot}" for layer, part, leaf, slot in islice(every, count)]
    return dict(zip(sorted(names), values, strict=True))


def make(kind: Literal["large", "tiny"], arguments: list[Any]) -> Arrays:
    """Return the workload `kind`, as requested through a pipe."""
    return large(*arguments) if kind == "large" else tiny(*arguments)


def checksum(arrays: Arrays) -> int:
    """Return the CRC-32C of all values, in the order of a checkpoint's data file."""
    crc = 0
    for name in sorted(arrays):
        crc = int(crc32c.crc32c(np.ascontiguousarray(arrays[name]).data.cast("B"), crc))
    return crc
