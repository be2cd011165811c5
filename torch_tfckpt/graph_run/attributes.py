"""Attributes of nodes as Python values.

    AttrValue   i, f, b            int, float, bool
                s                  str; bytes that are not UTF-8 stay bytes
                type               torch.dtype; DataType if torch has none, as for strings
                shape              tuple of ints, -1 for an unknown size; None for an unknown rank
                tensor             torch.Tensor, or array of bytes
                func               name of the function
                list               tuple of these

Source: tensorflow/core/framework/attr_value.proto.
"""

from collections.abc import Mapping
from typing import Final

import torch

from torch_tfckpt._proto.attr_value_pb2 import AttrValue
from torch_tfckpt._proto.tensor_pb2 import TensorProto
from torch_tfckpt._proto.tensor_shape_pb2 import TensorShapeProto
from torch_tfckpt.dtypes import ELEMENTS
from torch_tfckpt.errors import DataLossError, UnimplementedError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.graph_run.constants import constant_of, data_type
from torch_tfckpt.meta_graph.variables import shape_of
from torch_tfckpt.text import quoted

_LISTS: Final = ("s", "i", "f", "b", "type", "shape", "tensor", "func")


def python_value(value: AttrValue, name: str = "") -> object:
    """Return an attribute as a Python value.

    Raises:
        DataLossError: it is a tensor that cannot be decoded.
        UnimplementedError: the attribute is a placeholder, for which the caller of a function has the value.
    """
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "list":
        for field in _LISTS:
            if found := getattr(value.list, field):
                return tuple(_single(field, each) for each in found)
        return ()
    if kind == "placeholder":
        raise UnimplementedError(f"attribute {quoted(name)} is given by each caller of the function")
    return _single(kind, getattr(value, kind))


def dtype_of(number: int) -> torch.dtype | DataType:
    """Return the torch dtype for a number in a file, without the mark of references; DataType if there is none."""
    found = data_type(number)
    element = ELEMENTS.get(found)
    return element.torch if element is not None and element.torch is not None else found


def type_attribute(attributes: Mapping[str, AttrValue], name: str) -> torch.dtype | DataType | None:
    """Return an attribute that is a type; None if the node does not have it."""
    value = attributes.get(name)
    return dtype_of(value.type) if value is not None and value.type else None


def function_name(attributes: Mapping[str, AttrValue], name: str) -> str:
    """Return the name of a function that an attribute gives; DataLossError if it does not."""
    value = attributes.get(name)
    if value is None or not value.func.name:
        raise DataLossError(f"attribute {quoted(name)}, the name of a function, is missing")
    return value.func.name


def constant_attribute(attributes: Mapping[str, AttrValue]) -> TensorProto:
    """Return the value of a Const; DataLossError if the node has none."""
    value = attributes.get("value")
    if value is None or not value.HasField("tensor"):
        raise DataLossError('attribute "value", a tensor, is missing')
    return value.tensor


def _single(kind: str, value: object) -> object:
    if kind == "s":
        assert isinstance(value, bytes)
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    if kind == "type":
        assert isinstance(value, int)
        return dtype_of(value)
    if kind == "shape":
        assert isinstance(value, TensorShapeProto)
        return shape_of(value)
    if kind == "tensor":
        return constant_of(value)  # type: ignore[arg-type]  # the message's field
    if kind == "func":
        return value.name  # type: ignore[attr-defined]
    return value
