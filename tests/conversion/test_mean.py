"""The mean of tensors: exact for equal values, never overflowing, rounded once; the oracle is Python's fractions."""

from fractions import Fraction
from math import inf, isfinite, isnan, nan, prod

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_tfckpt.conversion.mean import Mean, blocks

REAL = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.float8_e4m3fn,
    torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
]  # fmt: skip


def mean_of(tensors: list[torch.Tensor]) -> torch.Tensor:
    mean = Mean(len(tensors))
    for tensor in tensors:
        mean.add(tensor.clone())
    return mean.result(tensors[0].dtype)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=7), st.sampled_from(REAL))
def test_the_mean_is_as_close_as_the_dtype_allows(numbers: list[float], dtype: torch.dtype) -> None:
    """Within one step of the exact mean, relative to the largest number, for all finite numbers."""
    stored = [torch.tensor([number], dtype=torch.float64).to(dtype) for number in numbers]
    values = [float(each.double()) for each in stored]
    if not all(map(isfinite, values)):
        return
    exact = sum(map(Fraction, values), Fraction(0)) / len(values)
    found = mean_of(stored)
    assert found.dtype == dtype
    largest = max(map(abs, values))
    step = 2.0**-52 if dtype == torch.float64 else 2 * torch.finfo(dtype).eps
    allowed = Fraction(step) * Fraction(largest) + Fraction(torch.finfo(dtype).smallest_normal)
    assert abs(Fraction(float(found.double())) - exact) <= allowed


@given(st.floats(), st.integers(1, 11), st.sampled_from(REAL))
def test_equal_values_are_unchanged(number: float, count: int, dtype: torch.dtype) -> None:
    """Bit for bit, including the sign of zero; NaN stays NaN."""
    value = torch.tensor([number], dtype=torch.float64).to(dtype)
    found = mean_of([value] * count)
    if value.double().isnan():
        assert found.double().isnan()
    else:
        assert torch.equal(found.view(torch.uint8), value.view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.complex64, torch.complex128])
def test_no_overflow(dtype: torch.dtype) -> None:
    """Sums of the largest numbers are not finite, their means are."""
    real = dtype.to_real() if dtype.is_complex else dtype
    largest = torch.finfo(real).max
    values = [torch.tensor([largest, -largest, largest], dtype=dtype) for _ in range(3)]
    values[0][2] = -largest
    found = mean_of(values)
    assert torch.isfinite(torch.view_as_real(found) if dtype.is_complex else found).all()
    assert found[0] == largest and found[1] == -largest


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float8_e5m2])
def test_what_is_not_finite_shows(dtype: torch.dtype) -> None:
    """In any place: NaN wins, one infinity stays, opposite ones give NaN."""
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        columns = torch.tensor([[nan, inf, inf, -inf, 1.0], [1.0, 2.0, -inf, -inf, 2.0], [1.0, 0.5, 1.0, -inf, 3.0]])
        rows = [columns[row].to(dtype) for row in order]
        mean = Mean(3)
        for row in rows:
            mean.add(row)
        found = mean.result(dtype).double().tolist()
        assert isnan(found[0]) and found[1] == inf and isnan(found[2]) and found[3:] == [-inf, 2.0]
        assert not mean.finite


def test_complex_numbers() -> None:
    """Real and imaginary parts separately, as numpy does."""
    rng = np.random.default_rng(0)
    values = [(rng.standard_normal((2, 3)) + 1j * rng.standard_normal((2, 3))).astype(np.complex64) for _ in range(3)]
    found = mean_of([torch.from_numpy(value) for value in values])
    assert np.allclose(found.numpy(), np.mean(np.stack(values).astype(np.complex128), 0), rtol=1e-7)


@given(st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple), st.integers(1, 30))
def test_blocks_partition_a_tensor(shape: tuple[int, ...], limit: int) -> None:
    """Each element once, in order, at most `limit` at a time, and not in many more blocks than necessary."""
    elements = np.arange(prod(shape)).reshape(shape)
    parts = [elements[block.to_index()].reshape(-1) for block in blocks(shape, limit)]
    assert np.concatenate(parts).tolist() == elements.reshape(-1).tolist()
    assert all(part.size <= limit for part in parts)
    assert len(parts) <= 4 * elements.size / limit + 1
