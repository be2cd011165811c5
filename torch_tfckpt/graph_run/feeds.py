"""Values that a caller gives for tensors of a graph, as torch tensors or arrays of bytes.

Converted as TensorFlow's Session does: numbers and lists get the type of the tensor that is fed. Values that would
change, such as 0.5 for an integer, are refused.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_slice import shape_text
from torch_tfckpt.text import shortened
from torch_tfckpt.values import Value


def fed_value(value: Any, dtype: torch.dtype | DataType | None, shape: Sequence[int] | None) -> Value:
    """Return a value that is fed.

    Args:
        dtype: Of the tensor in the graph; None if it is not known.
        shape: With -1 for unknown sizes; None if it is not known.

    Raises:
        InvalidArgumentError: it has another shape, or cannot be converted to the dtype without loss.
    """
    found = _converted(value, dtype)
    if shape is not None:
        given = tuple(found.shape)
        if len(given) != len(shape) or any(
            wanted not in (-1, size) for size, wanted in zip(given, shape, strict=False)
        ):
            raise InvalidArgumentError(f"expected the shape {shape_text(tuple(shape))}, got {shape_text(given)}")
    return found


def _converted(value: Any, dtype: torch.dtype | DataType | None) -> Value:
    if isinstance(value, torch.Tensor):
        return _cast(value, dtype)
    if dtype == DataType.DT_STRING:
        return _strings(value)
    if isinstance(dtype, DataType):
        raise InvalidArgumentError(f"a tensor of {dtype.name} cannot be fed")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InvalidArgumentError(f"{shortened(value)} is not an array: {error}") from error
    if array.dtype.kind in "SUO" and array.size:
        if dtype is None and all(isinstance(each, str | bytes) for each in array.flat):
            return _strings(value)
        raise InvalidArgumentError(f"{shortened(value)} is not a tensor of {dtype or 'numbers'}")
    if not isinstance(value, np.ndarray | np.generic) and dtype is None and array.dtype == np.float64:
        array = array.astype(np.float32)
    if array.dtype.name == "bfloat16":  # of ml_dtypes
        return _cast(torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16), dtype)
    try:
        # Arrays with negative strides and read-only ones are copied.
        plain = array if array.flags.writeable and array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
        tensor = torch.from_numpy(plain if all(step >= 0 for step in plain.strides) else plain.copy())
    except TypeError as error:
        raise InvalidArgumentError(f"{shortened(value)} is not a tensor of {dtype or 'numbers'}") from error
    if not isinstance(value, np.ndarray | np.generic) and not tensor.numel():
        return tensor.to(dtype) if isinstance(dtype, torch.dtype) else tensor  # an empty list has no type of its own
    return _cast(tensor, dtype)


def _cast(tensor: torch.Tensor, dtype: torch.dtype | DataType | None) -> torch.Tensor:
    if dtype is None or tensor.dtype == dtype:
        return tensor
    if isinstance(dtype, DataType):
        raise InvalidArgumentError(f"expected {dtype.name}, got a tensor of {tensor.dtype}")
    loses = (
        (tensor.is_complex() and not dtype.is_complex)
        or (tensor.is_floating_point() and not (dtype.is_floating_point or dtype.is_complex))
        or (dtype == torch.bool)
    )
    if loses:
        raise InvalidArgumentError(f"expected {dtype}, got {tensor.dtype}")
    converted = tensor.to(dtype)
    if not (dtype.is_floating_point or dtype.is_complex) and not bool((converted.to(tensor.dtype) == tensor).all()):
        raise InvalidArgumentError(f"the values do not fit into {dtype}")
    return converted


def _strings(value: Any) -> Value:
    array = np.asarray(value, dtype=object)
    result = np.empty(array.shape, dtype=object)
    for index, each in np.ndenumerate(array):
        if isinstance(each, str):
            each = each.encode()
        if not isinstance(each, bytes):
            raise InvalidArgumentError(f"{shortened(each)} is not a string")
        result[index] = each
    return result
