"""Constants of a graph: TensorProto -> torch tensor, or numpy array of bytes for strings.

    TensorProto = dtype = 1 | tensor_shape = 2 | tensor_content = 4 | float_val = 5 ... | ...

`tensor_content` has the elements as little-endian bytes. Otherwise the field for the element type lists them; if it has
fewer values than the shape has elements, the last one is repeated, so that a few bytes may declare any size.

Source: tensorflow/core/framework/tensor.proto; Tensor::FromProto in tensorflow/core/framework/tensor.cc.
"""

from typing import Any, Final

import numpy as np
import torch

from torch_tfckpt._proto.tensor_pb2 import TensorProto
from torch_tfckpt.dtypes import torch_dtype
from torch_tfckpt.errors import DataLossError
from torch_tfckpt.format.data_type import REFERENCE_OFFSET, DataType
from torch_tfckpt.format.tensor_slice import element_count, shape_text
from torch_tfckpt.graph_ops.limits import check_size
from torch_tfckpt.graph_ops.values import AnyTensor

# Field with the elements of a type; `int_val` for the others, mostly small integers.
_FIELDS: Final = {
    DataType.DT_FLOAT: "float_val",
    DataType.DT_DOUBLE: "double_val",
    DataType.DT_COMPLEX64: "scomplex_val",
    DataType.DT_COMPLEX128: "dcomplex_val",
    DataType.DT_HALF: "half_val",
    DataType.DT_BFLOAT16: "half_val",
    DataType.DT_INT64: "int64_val",
    DataType.DT_UINT32: "uint32_val",
    DataType.DT_UINT64: "uint64_val",
    DataType.DT_BOOL: "bool_val",
}
# numpy's type for the listed values; their bits become elements of the torch dtype.
_LISTED_AS: Final[dict[DataType, Any]] = {
    DataType.DT_FLOAT: np.float32,
    DataType.DT_DOUBLE: np.float64,
    DataType.DT_COMPLEX64: np.float32,
    DataType.DT_COMPLEX128: np.float64,
    DataType.DT_HALF: np.uint16,
    DataType.DT_BFLOAT16: np.uint16,
    DataType.DT_INT64: np.int64,
    DataType.DT_UINT32: np.uint32,
    DataType.DT_UINT64: np.uint64,
    DataType.DT_BOOL: np.bool_,
    DataType.DT_INT32: np.int32,
    DataType.DT_QINT32: np.int32,
    DataType.DT_INT16: np.int16,
    DataType.DT_QINT16: np.int16,
    DataType.DT_UINT16: np.uint16,
    DataType.DT_QUINT16: np.uint16,
    DataType.DT_INT8: np.int8,
    DataType.DT_QINT8: np.int8,
    DataType.DT_UINT8: np.uint8,
    DataType.DT_QUINT8: np.uint8,
}


def constant_of(proto: TensorProto) -> AnyTensor:
    """Return the elements of a constant.

    Raises:
        DataLossError: the values do not match the shape.
        InvalidArgumentError: few bytes declare a tensor of more elements than `limits` allows.
        UnimplementedError: torch has no such element type.
    """
    dtype, shape = data_type(proto.dtype), tuple(dim.size for dim in proto.tensor_shape.dim)
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        raise DataLossError(f"a constant has the shape {shape_text(shape)}, whose sizes are not all known")
    if dtype == DataType.DT_STRING:
        return _strings(proto, shape)
    own = torch_dtype(dtype)
    if proto.tensor_content:
        expected = element_count(shape) * own.itemsize
        if len(proto.tensor_content) != expected:
            raise DataLossError(
                f"a constant {dtype.name} of shape {shape_text(shape)} has {len(proto.tensor_content)} bytes, expected "
                f"{expected}"
            )
        return torch.frombuffer(bytearray(proto.tensor_content), dtype=own).reshape(shape)
    if own.itemsize == 1 and own.is_floating_point:
        listed = np.frombuffer(proto.float8_val, dtype=np.uint8)
    else:
        with np.errstate(over="ignore"):
            values = getattr(proto, _FIELDS.get(dtype, "int_val"))
            listed = np.array(values, dtype=np.int64 if dtype not in _LISTED_AS else None).astype(
                _LISTED_AS.get(dtype, np.uint8)
            )
    found = torch.from_numpy(np.array(listed)).view(own) if len(listed) else torch.zeros(0, dtype=own, device="cpu")
    return _filled(found, shape, own)


def data_type(number: int) -> DataType:
    """Return the type for a number in a file; for a reference, the type of what it refers to."""
    return DataType(number - REFERENCE_OFFSET if number > REFERENCE_OFFSET else number)


def _filled(listed: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return listed values in a shape; the last one is repeated."""
    count = element_count(shape)
    if len(listed) > count:
        raise DataLossError(f"a constant of shape {shape_text(shape)} has {len(listed)} values, expected {count}")
    if len(listed) == count:
        return listed.reshape(shape)
    check_size(shape)
    if not len(listed):
        return torch.zeros(shape, dtype=dtype, device="cpu")
    return torch.cat([listed, listed[-1:].expand(count - len(listed))]).reshape(shape)


def _strings(proto: TensorProto, shape: tuple[int, ...]) -> AnyTensor:
    count = element_count(shape)
    values = list(proto.string_val)
    if len(values) > count:
        raise DataLossError(f"a constant of shape {shape_text(shape)} has {len(values)} strings, expected {count}")
    if len(values) < count:
        check_size(shape)
        values += [values[-1] if values else b""] * (count - len(values))
    strings = np.empty(count, dtype=object)
    strings[:] = values
    return strings.reshape(shape)
