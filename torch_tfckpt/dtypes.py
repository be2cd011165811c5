"""The one table of element types: TensorFlow's number, its names, torch's dtype, bytes per element.

Source: tensorflow/core/framework/types.proto and types.cc; spec: FORMATS 2.4.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

import torch

from torch_tfckpt.errors import UnimplementedError, quoted

REFERENCE_OFFSET: Final = 100  # a reference to type n is number n + 100 (types.proto, DT_FLOAT_REF = 101)


class DataType(enum.IntEnum):
    """TensorFlow's element types under TensorFlow's numbers.

    Any other number found in a file becomes a member too (`DT_77`, or `DT_INT32_REF` for references), so that one
    exotic tensor does not keep the others from being listed.
    """

    DT_INVALID = 0
    DT_FLOAT = 1
    DT_DOUBLE = 2
    DT_INT32 = 3
    DT_UINT8 = 4
    DT_INT16 = 5
    DT_INT8 = 6
    DT_STRING = 7
    DT_COMPLEX64 = 8
    DT_INT64 = 9
    DT_BOOL = 10
    DT_QINT8 = 11
    DT_QUINT8 = 12
    DT_QINT32 = 13
    DT_BFLOAT16 = 14
    DT_QINT16 = 15
    DT_QUINT16 = 16
    DT_UINT16 = 17
    DT_COMPLEX128 = 18
    DT_HALF = 19
    DT_RESOURCE = 20
    DT_VARIANT = 21
    DT_UINT32 = 22
    DT_UINT64 = 23
    DT_FLOAT8_E5M2 = 24
    DT_FLOAT8_E4M3FN = 25
    DT_FLOAT8_E4M3FNUZ = 26
    DT_FLOAT8_E4M3B11FNUZ = 27
    DT_FLOAT8_E5M2FNUZ = 28
    DT_INT4 = 29
    DT_UINT4 = 30
    DT_INT2 = 31
    DT_UINT2 = 32
    DT_FLOAT4_E2M1FN = 33

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, int):
            return None
        member = int.__new__(cls, value)
        member._value_ = value
        base = cls._value2member_map_.get(value - REFERENCE_OFFSET)
        member._name_ = f"{base.name}_REF" if base is not None else f"DT_{value}"
        return member

    def __reduce_ex__(self, protocol: object) -> tuple[type[Self], tuple[int]]:
        # By number: Python 3.11.0 to 3.11.3 look the name up in the class, which knows only the members listed above.
        return type(self), (int(self),)

    @property
    def short_name(self) -> str:
        """The name TensorFlow's error texts use: `float`, `half`, `int64`."""
        return self.name.removeprefix("DT_").lower()


@dataclass(frozen=True, slots=True)
class Element:
    """How one element is stored and held."""

    torch: torch.dtype | None  # None: torch has no dtype for it
    size: int  # bytes in the data file; 0: not a fixed width
    swap: int  # bytes that a change of endianness reverses: `size`, or half of it for complex numbers


def _fixed(dtype: torch.dtype | None, size: int, swap: int | None = None) -> Element:
    return Element(dtype, size, size if swap is None else swap)


# Types that torch lacks are held in the plain integer of the same width; 4 and 2 bit types are stored one per byte.
ELEMENTS: Final[Mapping[int, Element]] = {
    DataType.DT_FLOAT: _fixed(torch.float32, 4),
    DataType.DT_DOUBLE: _fixed(torch.float64, 8),
    DataType.DT_INT32: _fixed(torch.int32, 4),
    DataType.DT_UINT8: _fixed(torch.uint8, 1),
    DataType.DT_INT16: _fixed(torch.int16, 2),
    DataType.DT_INT8: _fixed(torch.int8, 1),
    DataType.DT_STRING: _fixed(None, 0),
    DataType.DT_COMPLEX64: _fixed(torch.complex64, 8, swap=4),
    DataType.DT_INT64: _fixed(torch.int64, 8),
    DataType.DT_BOOL: _fixed(torch.bool, 1),
    DataType.DT_QINT8: _fixed(torch.int8, 1),
    DataType.DT_QUINT8: _fixed(torch.uint8, 1),
    DataType.DT_QINT32: _fixed(torch.int32, 4),
    DataType.DT_BFLOAT16: _fixed(torch.bfloat16, 2),
    DataType.DT_QINT16: _fixed(torch.int16, 2),
    DataType.DT_QUINT16: _fixed(torch.uint16, 2),
    DataType.DT_UINT16: _fixed(torch.uint16, 2),
    DataType.DT_COMPLEX128: _fixed(torch.complex128, 16, swap=8),
    DataType.DT_HALF: _fixed(torch.float16, 2),
    DataType.DT_UINT32: _fixed(torch.uint32, 4),
    DataType.DT_UINT64: _fixed(torch.uint64, 8),
    DataType.DT_FLOAT8_E5M2: _fixed(torch.float8_e5m2, 1),
    DataType.DT_FLOAT8_E4M3FN: _fixed(torch.float8_e4m3fn, 1),
    DataType.DT_FLOAT8_E4M3FNUZ: _fixed(torch.float8_e4m3fnuz, 1),
    DataType.DT_FLOAT8_E4M3B11FNUZ: _fixed(None, 1),
    DataType.DT_FLOAT8_E5M2FNUZ: _fixed(torch.float8_e5m2fnuz, 1),
    DataType.DT_INT4: _fixed(torch.int8, 1),
    DataType.DT_UINT4: _fixed(torch.uint8, 1),
    DataType.DT_INT2: _fixed(torch.int8, 1),
    DataType.DT_UINT2: _fixed(torch.uint8, 1),
    DataType.DT_FLOAT4_E2M1FN: _fixed(None, 1),
}

# The type under which a torch tensor is stored. Written out, since several stored types share one torch dtype.
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
    """The torch dtype that holds `dtype`; UnimplementedError where there is none (strings have none either)."""
    element = ELEMENTS.get(dtype)
    if element is None or element.torch is None:
        raise UnimplementedError(f"element type {dtype.name} (number {int(dtype)}) has no torch dtype")
    return element.torch


def is_holdable(dtype: DataType) -> bool:
    """Whether torch has tensors, or numpy arrays of `bytes`, for values of `dtype`."""
    element = ELEMENTS.get(dtype)
    return dtype == DataType.DT_STRING or (element is not None and element.torch is not None)


def data_type(dtype: torch.dtype, name: str = "") -> DataType:
    """The TensorFlow type of a torch dtype; UnimplementedError, naming the tensor, where TensorFlow has none."""
    stored = STORED_AS.get(dtype)
    if stored is None:
        place = f"tensor {quoted(name)}: " if name else ""
        raise UnimplementedError(f"{place}{dtype} has no TensorFlow element type. Convert the tensor before saving it")
    return stored
