"""Complex numbers and Fourier transforms equal TensorFlow's: values, dtypes, shapes, gradients."""

import numpy as np
import pytest
import torch
from op_inputs import Inputs, Results, int32
from op_rows import Row, check, operations, row

from torch_tfckpt.graph_ops.complex_numbers import complex_abs, complex_number, fft

INPUTS = Inputs(11)
floats, numbers = INPUTS.normal, INPUTS.complex
OF_RANK = {1: "", 2: "2D", 3: "3D"}
KINDS = [("complex64", torch.float32), ("complex128", torch.float64)]


def part_rows() -> list[Row]:
    rows = []
    for dtype, real in KINDS:
        for shape in [(3, 4), (), (0, 2)]:
            x = numbers(*shape, dtype=dtype)
            rows += [row(name, x, Tout=real, view=True) for name in ["Real", "Imag", "ComplexAbs", "Angle"]]
            rows.append(row("Conj", x))
        rows.append(row("Angle", np.array([1, -1, 0, 1j, -1j], dtype), Tout=real))
        rows.append(row("ComplexAbs", np.array([0, 3 + 4j, -2], dtype), Tout=real))
    for dtype, kind in [("float32", torch.complex64), ("float64", torch.complex128)]:
        for left, right in [((3, 4), (3, 4)), ((3, 1), (4,)), ((), (2,)), ((0,), ()), ((3,), (4,))]:
            rows.append(
                row("Complex", floats(*left, dtype=dtype), floats(*right, dtype=dtype), Tout=kind, gradients=False)
            )
    return rows


def transform_rows() -> list[Row]:
    rows = []
    for rank, suffix in OF_RANK.items():
        for name in ["FFT", "IFFT"]:
            for dtype, _ in KINDS:
                for shape in [(2, 3, 4, 5), (3, 1, 7), (2, 2, 2)]:
                    rows.append(row(name + suffix, numbers(*shape, dtype=dtype), view=rank == 2))
            rows.append(row(name + suffix, numbers(0, 3, 4)))
            rows.append(row(name + suffix, numbers(*[3] * (rank - 1))))  # an axis too few
    return rows


def real_transform_rows() -> list[Row]:
    """RFFT3D and IRFFT3D have no derivative in TensorFlow; IRFFT has one only for complex inputs."""
    rows = []
    for rank, suffix in OF_RANK.items():
        for lengths in [[8] * rank, [6, 5, 8][-rank:], [5, 3, 7][-rank:], [1] * rank]:
            for dtype, kind in [("float32", torch.complex64), ("float64", torch.complex128)]:
                x = floats(2, 8, 8, 8, dtype=dtype)
                rows.append(row("RFFT" + suffix, x, int32(lengths), Tcomplex=kind, gradients=False))
            for dtype, real in KINDS:
                x = numbers(2, 8, 8, 8, dtype=dtype)
                rows.append(row("IRFFT" + suffix, x, int32(lengths), Treal=real))
        refused = [[9] * rank, [8] * (rank + 1), [8] * (rank - 1)]
        rows += [row("RFFT" + suffix, floats(8, 8, 8), int32(each), gradients=False) for each in refused]
        rows += [row("IRFFT" + suffix, numbers(4, 4, 4), int32(each)) for each in refused]
        rows.append(row("RFFT" + suffix, floats(*[3] * (rank - 1)), int32([1] * rank), gradients=False))
    return rows


ROWS = [*part_rows(), *transform_rows(), *real_transform_rows()]


@pytest.mark.parametrize("name", operations(ROWS))
def test_operation(name: str, results: Results) -> None:
    """Every row of the table."""
    check(name, results)


def test_gradients() -> None:
    """The derivative of the power spectrum is that of Parseval's theorem."""
    x = torch.randn(8, dtype=torch.float64, requires_grad=True)
    power = complex_abs(fft(complex_number(x, torch.zeros_like(x), Tout=torch.complex128)), Tout=torch.float64) ** 2
    (slope,) = torch.autograd.grad(power.sum(), x)
    torch.testing.assert_close(slope, 2 * 8 * x.detach())
