"""Statistics of one tensor: range, mean, standard deviation, number of NaNs and infinities."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

_CHUNK_ELEMENTS: Final = 1024 * 1024


class Statistics(NamedTuple):
    """Statistics of a tensor's elements, or of their absolute values if they are complex.

    Attributes:
        minimum: Smallest element that is not NaN; NaN if there is no such element.
        maximum: Largest element that is not NaN; NaN if there is no such element.
        mean: Mean of the finite elements; NaN if there are none.
        std: Standard deviation of the finite elements, with divisor N.
        nans: Number of NaNs.
        infinities: Number of infinite elements.
    """

    minimum: float
    maximum: float
    mean: float
    std: float
    nans: int
    infinities: int

    def __str__(self) -> str:
        text = f"min {self.minimum:.9g}, max {self.maximum:.9g}, mean {self.mean:.9g}, std {self.std:.9g}"
        infinities = f", {self.infinities} infinite" if self.infinities else ""
        return f"{text}, {self.nans} NaN{infinities}"


def statistics_of(tensor: torch.Tensor) -> Statistics:
    """Compute the statistics of a tensor; `has_numbers` must be true for its dtype.

    Cost: two passes; memory for a few chunks.
    """
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
    # A second pass: the difference of two large sums would lose the spread of numbers that are close together.
    squares = sum(float(np.square(chunk[np.isfinite(chunk)] - mean).sum()) for chunk in _magnitudes(tensor))
    return Statistics(minimum, maximum, mean, float(np.sqrt(squares / finite)) if finite else np.nan, nans, infinities)


@lru_cache(maxsize=64)
def has_numbers(dtype: torch.dtype) -> bool:
    """Whether elements of this type are numbers that torch can convert, unlike raw bits and packed pairs."""
    try:
        torch.zeros(1, dtype=dtype, device="cpu").to(torch.complex128)
    except (RuntimeError, TypeError):
        return False
    return True


def exact_numbers(chunk: torch.Tensor) -> npt.NDArray[Any]:
    """Return the elements in a numpy type that represents them exactly. The dtype must pass `has_numbers`."""
    if chunk.is_complex():
        return chunk.to(torch.complex128).numpy()
    if chunk.is_floating_point():
        return chunk.to(torch.float64).numpy()
    # If the machine has a long double, the 64 bits of its mantissa hold every integer and difference exactly.
    return chunk.numpy().astype(np.longdouble)


def _magnitudes(tensor: torch.Tensor) -> Iterator[npt.NDArray[Any]]:
    flat = tensor.detach().reshape(-1)
    for begin in range(0, flat.numel(), _CHUNK_ELEMENTS):
        numbers = exact_numbers(flat[begin : begin + _CHUNK_ELEMENTS])
        with np.errstate(invalid="ignore", over="ignore"):
            yield np.abs(numbers) if np.iscomplexobj(numbers) else numbers.astype(np.float64, copy=False)
