"""Random inputs for tables of operations, and short names for their dtypes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from op_rows import Computed, Row

Array = np.ndarray[Any, Any]
Results = Mapping[str, Sequence[tuple[Row, Computed]]]


class Inputs:
    """Arrays of random numbers: the same ones each time for a seed."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def normal(self, *shape: int, dtype: str = "float32", scale: float = 1) -> Array:
        return (scale * self._random.normal(size=shape)).astype(dtype)

    def complex(self, *shape: int, dtype: str = "complex64") -> Array:
        return (self.normal(*shape) + 1j * self.normal(*shape)).astype(dtype)

    def uniform(self, *shape: int, dtype: str = "float32", low: float = 0, high: float = 1) -> Array:
        return self._random.uniform(low, high, shape).astype(dtype)

    def integers(self, *shape: int, dtype: str = "int32", low: int = -9, high: int = 9) -> Array:
        return self._random.integers(low, high, shape).astype(dtype)

    def bfloat16(self, *shape: int) -> torch.Tensor:
        return torch.from_numpy(self.normal(*shape)).bfloat16()


def int32(value: Any) -> Array:
    return np.asarray(value, dtype=np.int32)


def int64(value: Any) -> Array:
    return np.asarray(value, dtype=np.int64)


def float32(value: Any) -> Array:
    return np.asarray(value, dtype=np.float32)


def strings(value: Any) -> Array:
    """Return bytes, or nested lists of bytes, as an array."""
    return np.array(value, dtype=object)


def masks_of(masks: Mapping[str, int]) -> dict[str, Any]:
    """Return the attributes of StridedSlice: {"begin": 1} is begin_mask=1."""
    return {f"{name}_mask": mask for name, mask in masks.items()}


def output_size(size: int, kernel: int, stride: int, padding: str) -> int:
    """Return how many positions a window has along an axis."""
    return -(-size // stride) if padding == "SAME" else (size - kernel) // stride + 1
