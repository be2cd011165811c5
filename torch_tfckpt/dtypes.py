"""Element types in torch: the torch dtype for each TensorFlow type, and its size in bytes.

Source: tensorflow/core/framework/types.proto and types.cc.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch

from torch_tfckpt.errors import UnimplementedError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.text import quoted


@dataclass(frozen=True, slots=True)
class Element:
    """Storage format of one element."""

    torch: torch.dtype | None  # None: torch has no dtype for it
    size: int  # bytes in the data file; 0: not a fixed width
    swap: int  # bytes to reverse when the byte order changes: `size`, or half of it for complex numbers


def _fixed(dtype: torch.dtype | None, size: int, swap: int | None = None) -> Element:
    return Element(dtype, size, size if swap is None else swap)


# Types that torch lacks use the plain integer type of the same width; 4-bit and 2-bit elements take one byte each.
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

# The type a torch tensor is stored as. Listed explicitly because several stored types share one torch dtype.
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
        raise UnimplementedError(f"{place}{dtype} has no TensorFlow element type. Convert the tensor before saving it")
    return stored
