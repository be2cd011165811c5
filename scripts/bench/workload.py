"""Tensors that the benchmarks save and load, created from a seed.

Uses only numpy, so that the TensorFlow process creates the same ones. Both dictionaries are in the order of a
checkpoint's index: sorted by the bytes of the names.
"""

from itertools import islice, product
from typing import Any, Final, Literal

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
    rows = mib * 2**20 // (count * COLUMNS * 4)
    if rows < 1:
        raise ValueError(f"{mib} MiB in {count} tensors leaves less than one row of {COLUMNS} floats for each")
    generator = np.random.default_rng(seed)
    return {
        f"encoder/layer_{number:03d}/dense/kernel": generator.random((rows, COLUMNS), dtype=np.float32)
        for number in range(count)
    }


def tiny(count: int, seed: int) -> Arrays:
    """Return `count` vectors of 10 floats with the names of a deep transformer and its optimizer's slots."""
    values = np.random.default_rng(seed).random((count, 10), dtype=np.float32)
    every = product(range(_LAYERS), _PARTS, _LEAVES, _SLOTS)
    names = [f"bert/encoder/layer_{layer}/{part}/{leaf}{slot}" for layer, part, leaf, slot in islice(every, count)]
    return dict(zip(sorted(names), values, strict=True))


def make(kind: Literal["large", "tiny"], arguments: list[Any]) -> Arrays:
    """Return the workload `kind`, as requested through a pipe."""
    return large(*arguments) if kind == "large" else tiny(*arguments)
