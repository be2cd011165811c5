"""What the numbers of one tensor look like: range, mean, spread, and how many are none."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

_CHUNK_ELEMENTS: Final = 1024 * 1024


class Statistics(NamedTuple):
    """Of a tensor's elements; of complex ones, of their absolute values."""

    minimum: float  # of all that are not NaN; NaN where there are none
    maximum: float
    mean: float  # of the finite ones; NaN where there are none
    std: float  # with divisor N
    nans: int
    infinities: int

    def __str__(self) -> str:
        text = f"min {self.minimum:.9g}, max {self.maximum:.9g}, mean {self.mean:.9g}, std {self.std:.9g}"
        infinities = f", {self.infinities} infinite" if self.infinities else ""
        return f"{text}, {self.nans} NaN{infinities}"


def statistics_of(tensor: torch.Tensor) -> Statistics:
    """REQUIRES: `has_numbers` of its dtype. Cost: two passes; memory of some chunks."""
    minimum, maximum = np.inf, -np.inf
    nans = infinities = finite = 0
    total = 0.0
    for chunk in _magnitudes(tensor):
        missing = np.isnan(chunk)
        present = chunk[~missing]
        if present.size:
            minimum, maximum = min(minimum, float(present.min())), max(maximum, float(present.max()))
        within = present[np.isfinite(present)]
        nans += int(missing.sum())
        infinities += present.size - within.size
        finite += within.size
        total += float(within.sum())
    if minimum > maximum:
        minimum = maximum = np.nan
    mean = total / finite if finite else np.nan
    # A second pass: the difference of two large sums would lose the spread of numbers that lie close together.
    squares = sum(float(np.square(chunk[np.isfinite(chunk)] - mean).sum()) for chunk in _magnitudes(tensor))
    return Statistics(minimum, maximum, mean, float(np.sqrt(squares / finite)) if finite else np.nan, nans, infinities)


@lru_cache(maxsize=64)
def has_numbers(dtype: torch.dtype) -> bool:
    """Whether its elements are numbers that torch converts: not so for bits and packed pairs."""
    try:
        torch.zeros(1, dtype=dtype).to(torch.complex128)
    except (RuntimeError, TypeError):
        return False
    return True


def exact_numbers(chunk: torch.Tensor) -> npt.NDArray[Any]:
    """The elements in a type of numpy that holds each of them exactly. REQUIRES: `has_numbers` of its dtype."""
    if chunk.is_complex():
        return chunk.to(torch.complex128).numpy()
    if chunk.is_floating_point():
        return chunk.to(torch.float64).numpy()
    # The 64 bits of a long double's mantissa, where the machine has one, hold every integer and difference exactly.
    return chunk.numpy().astype(np.longdouble)


def _magnitudes(tensor: torch.Tensor) -> Iterator[npt.NDArray[Any]]:
    flat = tensor.detach().reshape(-1)
    for begin in range(0, flat.numel(), _CHUNK_ELEMENTS):
        numbers = exact_numbers(flat[begin : begin + _CHUNK_ELEMENTS])
        with np.errstate(invalid="ignore", over="ignore"):
            yield np.abs(numbers) if np.iscomplexobj(numbers) else numbers.astype(np.float64, copy=False)
