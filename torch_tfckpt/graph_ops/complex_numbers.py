"""Complex numbers and Fourier transforms.

Source: tensorflow/core/ops/math_ops.cc, spectral_ops.cc, tensorflow/core/kernels/fft_ops.cc.
"""

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.limits import is_empty
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.values import Ints, Tensor


@op("Complex")
def complex_number(real: Tensor, imag: Tensor, *, Tout: torch.dtype = torch.complex64) -> Tensor:
    real, imag = torch.broadcast_tensors(real, imag)  # type: ignore[no-untyped-call]
    return torch.complex(real, imag).to(Tout)


@op("Real")
def real_part(input: Tensor, *, Tout: torch.dtype = torch.float32) -> Tensor:
    return torch.real(input).to(Tout)


@op("Imag")
def imaginary_part(input: Tensor, *, Tout: torch.dtype = torch.float32) -> Tensor:
    return torch.imag(input).to(Tout)


@op("ComplexAbs")
def complex_abs(x: Tensor, *, Tout: torch.dtype = torch.float32) -> Tensor:
    return torch.abs(x).to(Tout)


@op("Angle")
def angle(input: Tensor, *, Tout: torch.dtype = torch.float32) -> Tensor:
    return torch.angle(input).to(Tout)


@op("Conj")
def conj(input: Tensor) -> Tensor:
    return torch.conj(input).resolve_conj()


@op("FFT")
def fft(input: Tensor) -> Tensor:
    return _transformed(input, 1, inverse=False)


@op("FFT2D")
def fft2d(input: Tensor) -> Tensor:
    return _transformed(input, 2, inverse=False)


@op("FFT3D")
def fft3d(input: Tensor) -> Tensor:
    return _transformed(input, 3, inverse=False)


@op("IFFT")
def ifft(input: Tensor) -> Tensor:
    return _transformed(input, 1, inverse=True)


@op("IFFT2D")
def ifft2d(input: Tensor) -> Tensor:
    return _transformed(input, 2, inverse=True)


@op("IFFT3D")
def ifft3d(input: Tensor) -> Tensor:
    return _transformed(input, 3, inverse=True)


@op("RFFT")
def rfft(input: Tensor, fft_length: Ints, *, Tcomplex: torch.dtype = torch.complex64) -> Tensor:
    return _transformed_reals(input, fft_length, 1).to(Tcomplex)


@op("RFFT2D")
def rfft2d(input: Tensor, fft_length: Ints, *, Tcomplex: torch.dtype = torch.complex64) -> Tensor:
    return _transformed_reals(input, fft_length, 2).to(Tcomplex)


@op("RFFT3D")
def rfft3d(input: Tensor, fft_length: Ints, *, Tcomplex: torch.dtype = torch.complex64) -> Tensor:
    return _transformed_reals(input, fft_length, 3).to(Tcomplex)


@op("IRFFT")
def irfft(input: Tensor, fft_length: Ints, *, Treal: torch.dtype = torch.float32) -> Tensor:
    return _transformed_to_reals(input, fft_length, 1).to(Treal)


@op("IRFFT2D")
def irfft2d(input: Tensor, fft_length: Ints, *, Treal: torch.dtype = torch.float32) -> Tensor:
    return _transformed_to_reals(input, fft_length, 2).to(Treal)


@op("IRFFT3D")
def irfft3d(input: Tensor, fft_length: Ints, *, Treal: torch.dtype = torch.float32) -> Tensor:
    return _transformed_to_reals(input, fft_length, 3).to(Treal)


def _transformed(input: Tensor, rank: int, *, inverse: bool) -> Tensor:
    axes = _last_axes(input, rank)
    if input.numel() == 0:
        return input
    found: Tensor = torch.fft.ifftn(input, dim=axes) if inverse else torch.fft.fftn(input, dim=axes)
    return found


def _transformed_reals(input: Tensor, length: Ints, rank: int) -> Tensor:
    axes = _last_axes(input, rank)
    sizes = (*length[:-1], *(each // 2 + 1 if each else 0 for each in length[-1:]))
    _check_lengths(input, rank, length, tuple(length), sizes)
    if is_empty(input.shape):
        return input.new_zeros((*input.shape[:-rank], *sizes))
    found: Tensor = torch.fft.rfftn(input, s=length, dim=axes)
    return found


def _transformed_to_reals(input: Tensor, length: Ints, rank: int) -> Tensor:
    axes = _last_axes(input, rank)
    _check_lengths(input, rank, length, (*length[:-1], length[-1] // 2 + 1) if length else (), tuple(length))
    if is_empty(input.shape):
        return input.new_zeros((*input.shape[:-rank], *length))
    found: Tensor = torch.fft.irfftn(input, s=length, dim=axes)
    return found


def _last_axes(input: Tensor, rank: int) -> tuple[int, ...]:
    if input.dim() < rank:
        raise InvalidArgumentError(f"the transform needs {rank} axes, but the input has the shape {list(input.shape)}")
    return tuple(range(-rank, 0))


def _check_lengths(input: Tensor, rank: int, length: Ints, needed: Ints, results: Ints) -> None:
    """Check that each axis is long enough; TensorFlow does not fill up what is shorter.

    Without elements, the result must not have any either: TensorFlow leaves them uninitialised.
    """
    sizes = tuple(input.shape[-rank:])
    are_missing = is_empty(input.shape) and not is_empty((*input.shape[:-rank], *results))
    if are_missing or len(length) != rank or any(0 != size < least for size, least in zip(sizes, needed, strict=True)):
        raise InvalidArgumentError(
            f"a transform of length {list(length)} needs {list(needed)} elements, but the input has {list(sizes)}"
        )
