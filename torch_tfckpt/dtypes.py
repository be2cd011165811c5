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
