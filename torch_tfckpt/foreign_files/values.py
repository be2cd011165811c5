"""Tensors that are converted between two formats: element type, shape, size and value."""

import re
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple, Self

import torch

from torch_tfckpt.dtypes import ELEMENTS, STORED_AS, RangeLoss, cast_counted
from torch_tfckpt.errors import DataLossError, InvalidArgumentError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_slice import Shape, element_count
from torch_tfckpt.text import quoted, shortened
from torch_tfckpt.values import Strings

# Small tensors are copied together, up to this many bytes: enough to keep the threads busy, and an eighth of the memory
# that a conversion may take in addition to its largest tensor.
BATCH_BYTES: Final = 32 * 1024 * 1024
_NUMBERED: Final = re.compile(r"DT_(\d{1,9})")
_TORCH_NAME: Final = re.compile(r"torch\.([a-z0-9_]+)")
_CAST_IN_PLACE_BYTES: Final = 256 * 1024 * 1024


class StoredBytes(NamedTuple):
    """A value that torch cannot represent, as its bytes in a version 2 data file."""

    dtype: DataType
    shape: Shape
    data: bytes


FileValue = torch.Tensor | Strings | StoredBytes


class ElementType(NamedTuple):
    """Torch's and TensorFlow's dtype of an element; one of the two may be missing."""

    dtype: torch.dtype | None  # None: strings, or bytes of a type that torch lacks
    tensorflow: DataType | None  # None: TensorFlow has no such type

    @classmethod
    def of_torch(cls, dtype: torch.dtype) -> Self:
        return cls(dtype, STORED_AS.get(dtype))

    @classmethod
    def of_tensorflow(cls, dtype: DataType) -> Self:
        element = ELEMENTS.get(dtype)
        return cls(None if element is None else element.torch, dtype)

    @property
    def is_plain(self) -> bool:
        """Whether torch's dtype alone determines the type; False for quantized types and types below one byte."""
        return self.dtype is not None and STORED_AS.get(self.dtype) == self.tensorflow

    @property
    def is_string(self) -> bool:
        return self.tensorflow == DataType.DT_STRING

    @property
    def name(self) -> str:
        """Human-readable name: torch's if that is exact, otherwise TensorFlow's."""
        if self.tensorflow is not None:
            return self.tensorflow.dtype_name
        return "unknown" if self.dtype is None else str(self.dtype).removeprefix("torch.")

    @property
    def itemsize(self) -> int:
        """Bytes per element; 0 if not fixed or not known."""
        if self.dtype is not None:
            return self.dtype.itemsize
        return 0 if self.tensorflow is None else self.tensorflow.itemsize

    @property
    def code(self) -> str:
        """The spelling that `from_code` reads: DT_QINT8, DT_77, torch.float8_e8m0fnu."""
        if self.tensorflow is None:
            return str(self.dtype)
        known = DataType.__members__.get(self.tensorflow.name)
        return f"DT_{int(self.tensorflow)}" if known is None else known.name

    @classmethod
    def from_code(cls, code: object) -> Self:
        """Return the type with this `code`; raise DataLossError for any other string."""
        if isinstance(code, str):
            if code in DataType.__members__:
                return cls.of_tensorflow(DataType[code])
            if match := _NUMBERED.fullmatch(code):
                return cls.of_tensorflow(DataType(int(match[1])))
            match = _TORCH_NAME.fullmatch(code)
            dtype = None if match is None else getattr(torch, match[1], None)
            if isinstance(dtype, torch.dtype):
                return cls.of_torch(dtype)
        raise DataLossError(f"unknown element type {quoted(code) if isinstance(code, str) else shortened(code)}")


class TensorInfo(NamedTuple):
    """Properties of a tensor that are known before it is read."""

    type: ElementType
    shape: Shape
    nbytes: int  # of all elements; strings and types that torch lacks are counted in stored form
    parts: int = 0  # stored slices of a partitioned tensor

    def cast(self, dtype: torch.dtype | None) -> "TensorInfo":
        """Return the properties after conversion to `dtype`, which affects floating-point tensors only."""
        if dtype is None or self.type.dtype is None or not self.type.dtype.is_floating_point:
            return self
        return self._replace(type=ElementType.of_torch(dtype), nbytes=element_count(self.shape) * dtype.itemsize)


def batches(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Yield the names in order, in groups of at most BATCH_BYTES; a larger tensor is a separate group."""
    batch: list[str] = []
    filled = 0
    for name, size in sizes.items():
        if batch and filled + size > BATCH_BYTES:
            yield batch
            batch, filled = [], 0
        batch.append(name)
        filled += size
    if batch:
        yield batch


def cast_floating(tensor: torch.Tensor, dtype: torch.dtype, *, clamp: bool = False) -> tuple[torch.Tensor, RangeLoss]:
    """Return `tensor` as `dtype`, and what the range of `dtype` lost.

    A huge tensor is converted in place, from front to back, without a second copy, unless `dtype` is wider. All other
    tensors are converted into new memory: a result in place would keep all of the old memory alive.

    Args:
        tensor: It must own contiguous host memory, which may be overwritten.
        clamp: As for `cast_counted`.
    """
    if tensor.numel() * tensor.dtype.itemsize <= _CAST_IN_PLACE_BYTES or dtype.itemsize > tensor.dtype.itemsize:
        return cast_counted(tensor, dtype, clamp=clamp)
    out = tensor.detach().reshape(-1).view(dtype)[: tensor.numel()]
    return cast_counted(tensor, dtype, clamp=clamp, out=out)


def dtype_named(text: str) -> torch.dtype:
    """Return the floating-point dtype with this name: torch's name, or bf16, fp16, half, fp32 or fp64.

    Raises:
        InvalidArgumentError: there is no such floating-point dtype.
    """
    short = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "fp64": "float64"}
    name = short.get(text.lower(), text.lower()).removeprefix("torch.")
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InvalidArgumentError(
            f"dtype {quoted(text)}: not a floating-point type. Use float64, float32, float16, bfloat16 or one of "
            f"torch's float8 types"
        )
    return dtype
