"""Element types in torch: the torch dtype for each TensorFlow type, its size in bytes, and its range.

Source: tensorflow/core/framework/types.proto and types.cc.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

import torch

from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.text import quoted

_CAST_ELEMENTS: Final = 1024 * 1024  # a chunk of 8 MiB at most, still in the cache when it is written back


@dataclass(frozen=True, slots=True)
class Element:
    """Storage format of one element."""

    torch: torch.dtype | None  # None: torch has no dtype for it
    size: int  # bytes in the data file; 0: not a fixed width
    swap: int  # bytes to reverse when the byte order changes: `size`, or half of it for complex numbers


# Types that torch lacks are represented by plain integers of the same width.
_HELD_AS: Final[Mapping[DataType, torch.dtype | None]] = {
    DataType.DT_FLOAT: torch.float32,
    DataType.DT_DOUBLE: torch.float64,
    DataType.DT_INT32: torch.int32,
    DataType.DT_UINT8: torch.uint8,
    DataType.DT_INT16: torch.int16,
    DataType.DT_INT8: torch.int8,
    DataType.DT_STRING: None,
    DataType.DT_COMPLEX64: torch.complex64,
    DataType.DT_INT64: torch.int64,
    DataType.DT_BOOL: torch.bool,
    DataType.DT_QINT8: torch.int8,
    DataType.DT_QUINT8: torch.uint8,
    DataType.DT_QINT32: torch.int32,
    DataType.DT_BFLOAT16: torch.bfloat16,
    DataType.DT_QINT16: torch.int16,
    DataType.DT_QUINT16: torch.uint16,
    DataType.DT_UINT16: torch.uint16,
    DataType.DT_COMPLEX128: torch.complex128,
    DataType.DT_HALF: torch.float16,
    DataType.DT_UINT32: torch.uint32,
    DataType.DT_UINT64: torch.uint64,
    DataType.DT_FLOAT8_E5M2: torch.float8_e5m2,
    DataType.DT_FLOAT8_E4M3FN: torch.float8_e4m3fn,
    DataType.DT_FLOAT8_E4M3FNUZ: torch.float8_e4m3fnuz,
    DataType.DT_FLOAT8_E4M3B11FNUZ: None,
    DataType.DT_FLOAT8_E5M2FNUZ: torch.float8_e5m2fnuz,
    DataType.DT_INT4: torch.int8,
    DataType.DT_UINT4: torch.uint8,
    DataType.DT_INT2: torch.int8,
    DataType.DT_UINT2: torch.uint8,
    DataType.DT_FLOAT4_E2M1FN: None,
}


def _element(stored: DataType, dtype: torch.dtype | None) -> Element:
    size = stored.itemsize
    return Element(dtype, size, size // 2 if dtype is not None and dtype.is_complex else size)


ELEMENTS: Final[Mapping[int, Element]] = {stored: _element(stored, dtype) for stored, dtype in _HELD_AS.items()}

# The type under which a torch tensor is stored. Listed explicitly, since several stored types share one torch dtype.
STORED_AS: Final[dict[torch.dtype, DataType]] = {
    torch.float32: DataType.DT_FLOAT,
    torch.float64: DataType.DT_DOUBLE,
    torch.float16: DataType.DT_HALF,
    torch.bfloat16: DataType.DT_BFLOAT16,
    torch.int8: DataType.DT_INT8,
    torch.int16: DataType.DT_INT16,
    torch.int32: DataType.DT_INT32,
    torch.int64: DataType.DT_INT64,
    torch.uint8: DataType.DT_UINT8,
    torch.uint16: DataType.DT_UINT16,
    torch.uint32: DataType.DT_UINT32,
    torch.uint64: DataType.DT_UINT64,
    torch.bool: DataType.DT_BOOL,
    torch.complex64: DataType.DT_COMPLEX64,
    torch.complex128: DataType.DT_COMPLEX128,
    torch.float8_e5m2: DataType.DT_FLOAT8_E5M2,
    torch.float8_e4m3fn: DataType.DT_FLOAT8_E4M3FN,
    torch.float8_e4m3fnuz: DataType.DT_FLOAT8_E4M3FNUZ,
    torch.float8_e5m2fnuz: DataType.DT_FLOAT8_E5M2FNUZ,
}


def torch_dtype(dtype: DataType) -> torch.dtype:
    """Return the torch dtype for `dtype`; raise UnimplementedError if torch has none, as for strings."""
    element = ELEMENTS.get(dtype)
    if element is None or element.torch is None:
        raise UnimplementedError(f"element type {dtype.name} (number {int(dtype)}) has no torch dtype")
    return element.torch


def is_holdable(dtype: DataType) -> bool:
    """Return whether torch tensors, or numpy arrays of `bytes`, can represent values of `dtype`."""
    element = ELEMENTS.get(dtype)
    return dtype == DataType.DT_STRING or (element is not None and element.torch is not None)


def data_type(dtype: torch.dtype, name: str = "") -> DataType:
    """Return the TensorFlow type for a torch dtype; raise UnimplementedError naming `name` if none exists."""
    stored = STORED_AS.get(dtype)
    if stored is None:
        place = f"tensor {quoted(name)}: " if name else ""
        hint = "Convert the tensor before saving it"
        if dtype.itemsize == 1:  # several elements per byte, or a one-byte format that TensorFlow lacks
            hint += f", or save tensor.view(torch.uint8), whose bytes are the same, and view them as {dtype} later"
        raise UnimplementedError(f"{place}{dtype} has no TensorFlow element type. {hint}")
    return stored


def check_convertible(dtype: torch.dtype) -> None:
    """Raise InvalidArgumentError unless torch can convert numbers to `dtype`, a floating-point type."""
    if not dtype.is_floating_point:
        raise InvalidArgumentError(f"dtype={dtype}: only floating-point dtypes are supported")
    try:
        torch.zeros(1, dtype=torch.float32, device="cpu").to(dtype)
    except RuntimeError as error:
        raise InvalidArgumentError(
            f"dtype={dtype}: torch cannot convert numbers to it. Use float16, bfloat16 or one of torch's float8 types"
        ) from error


class RangeLoss(NamedTuple):
    """What a conversion to another floating-point type lost, other than digits.

    Attributes:
        beyond: Number of values that the type cannot represent: too large, or of a sign that it does not have.
        largest: Largest absolute value among them; 0.0 if there are none.
        to_zero: Number of values other than zero that became zero.
    """

    beyond: int = 0
    largest: float = 0.0
    to_zero: int = 0

    def __add__(self, other: object) -> "RangeLoss":
        if not isinstance(other, RangeLoss):
            return NotImplemented
        return RangeLoss(self.beyond + other.beyond, max(self.largest, other.largest), self.to_zero + other.to_zero)


def cast_counted(
    values: torch.Tensor, dtype: torch.dtype, *, clamp: bool = False, out: torch.Tensor | None = None
) -> tuple[torch.Tensor, RangeLoss]:
    """Convert a floating-point tensor to another floating-point type, and count what the range of that type loses.

    Values that round to the largest number of `dtype` are not lost. NaN, and infinities that `dtype` has, stay as they
    are and are not counted. What becomes of values beyond the range depends on the type: infinity, NaN, or the largest.

    Args:
        values: A tensor in host memory.
        clamp: Convert values beyond the range to the nearest finite number of `dtype`. They are counted all the same.
        out: Flat tensor to fill; it may share memory with `values` if their beginnings coincide and its elements are
            not larger. None: a new one.

    Returns:
        A contiguous tensor of the shape of `values`, and what was lost.

    Cost: memory of the result and a few chunks.
    """
    flat = values.detach().reshape(-1)
    target = torch.empty(flat.numel(), dtype=dtype, device="cpu") if out is None else out
    lost = RangeLoss()
    for begin in range(0, flat.numel(), _CAST_ELEMENTS):
        end = begin + _CAST_ELEMENTS
        target[begin:end], loss = _cast_chunk(flat[begin:end], dtype, clamp)
        lost += loss
    return target.view(values.shape), lost


def may_lose(stored: DataType, dtype: torch.dtype) -> bool:
    """Return whether `dtype` cannot represent all floating-point values of a stored type, other than their digits."""
    element = ELEMENTS.get(stored)
    own = None if element is None else element.torch
    return own is not None and own.is_floating_point and dtype.is_floating_point and not _covers(dtype, own)


def _cast_chunk(values: torch.Tensor, dtype: torch.dtype, clamp: bool) -> tuple[torch.Tensor, RangeLoss]:
    converted = values.to(dtype)
    if _covers(dtype, values.dtype):
        return converted, RangeLoss()
    wide = torch.float64 if values.dtype == torch.float64 else torch.float32
    before, after = values.to(wide), converted.to(wide)
    limits = _range_of(dtype)
    to_zero = max(0, int(before.count_nonzero()) - int(after.count_nonzero()))  # float8_e8m0fnu has no zero
    smallest, largest = map(float, before.aminmax())  # NaN if there is one
    if (0 if limits.lowest > 0 else -limits.end) < smallest and largest < limits.end:
        return converted, RangeLoss(to_zero=to_zero)
    beyond = (before.abs() >= limits.end) & (before != after)
    beyond |= before.isfinite() & ~after.isfinite()
    beyond |= (before < 0) & (after > 0)  # float8_e8m0fnu has no negative numbers
    if not beyond.any():
        return converted, RangeLoss(to_zero=to_zero)
    loss = RangeLoss(int(beyond.sum()), float(before[beyond].abs().max()), to_zero)
    if clamp:
        converted = before.where(~beyond, before.clamp(limits.lowest, limits.largest)).to(dtype)
    return converted, loss


class _Range(NamedTuple):
    """Range of a floating-point type."""

    lowest: float
    largest: float
    end: float  # from here on, values do not round to `largest`: it is half a step above it
    smallest: float  # positive number
    infinite: bool  # whether it has infinities


@lru_cache(maxsize=32)
def _range_of(dtype: torch.dtype) -> _Range:
    limits = torch.finfo(dtype)
    # Steps are measured, because torch.finfo(torch.float8_e5m2fnuz).eps is half of the actual one.
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    largest = torch.tensor([limits.max], dtype=torch.float64, device="cpu").to(dtype).view(bits)
    below = float((largest - 1).view(dtype).to(torch.float64))
    smallest = float(torch.ones(1, dtype=bits, device="cpu").view(dtype).to(torch.float64))
    infinite = bool(torch.tensor([math.inf], device="cpu").to(dtype).to(torch.float64).isinf())
    return _Range(limits.min, limits.max, limits.max + (limits.max - below) / 2, smallest, infinite)


def _covers(dtype: torch.dtype, other: torch.dtype) -> bool:
    """Return whether every number of `other` is within the range of `dtype`, and only zero becomes zero."""
    if dtype in (other, torch.float64):
        return True
    here, there = _range_of(dtype), _range_of(other)
    within = here.lowest <= there.lowest and here.largest >= there.largest and here.smallest <= there.smallest
    return within and here.infinite >= there.infinite
