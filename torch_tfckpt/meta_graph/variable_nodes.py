"""The nodes of a variable: its handle, a first value of zeros, and what sets and reads it.

    a/Initializer/zeros                   Const                the zeros; from 1000 elements on
        a/Initializer/zeros/shape_as_tensor, a/Initializer/zeros/Const     these two, and Fill
    a                                     VarHandleOp
    a/IsInitialized/VarIsInitializedOp    VarIsInitializedOp   a
    a/Assign                              AssignVariableOp     a  a/Initializer/zeros
    a/Read/ReadVariableOp                 ReadVariableOp       a

Source: zeros in tensorflow/python/ops/array_ops.py, ResourceVariable in tensorflow/python/ops/resource_variable_ops.py.
"""

import functools
from collections.abc import Container
from dataclasses import dataclass
from math import prod
from typing import Final, Self

import numpy as np

from torch_tfckpt._proto.tensor_pb2 import TensorProto
from torch_tfckpt._proto.variable_pb2 import VariableDef
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.meta_graph.model import GraphVariable
from torch_tfckpt.meta_graph.nodes import (
    EMPTY_LIST,
    FALSE,
    Nodes,
    attributes,
    beside,
    constant,
    empty_tensor,
    numbered,
    shape_list,
    shape_value,
    text_value,
    type_value,
)

# array_ops._constant_if_small: a larger one is computed, so that graphs stay small.
_FILLED_FROM: Final = 1000
_MAX_INT32: Final = (1 << 31) - 1
# Models have hundreds of shapes, and those that are used again are used soon.
SHAPES_KEPT: Final = 4096
# Types that a constant may have, but of which TensorFlow 2.21 cannot fill a tensor.
_NEVER_FILLED: Final = frozenset({
    DataType.DT_FLOAT8_E5M2, DataType.DT_FLOAT8_E4M3FN, DataType.DT_FLOAT8_E4M3FNUZ, DataType.DT_FLOAT8_E4M3B11FNUZ,
    DataType.DT_FLOAT8_E5M2FNUZ, DataType.DT_FLOAT4_E2M1FN, DataType.DT_INT2, DataType.DT_UINT2,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class VariableNodes:
    """The names of a variable's nodes, the handle aside, which has the variable's."""

    initial_value: str
    is_initialized: str
    initializer: str
    read: str

    @property
    def names(self) -> tuple[str, ...]:
        return (self.initial_value, self.is_initialized, self.initializer, self.read)

    @classmethod
    def named(cls, variable: str, taken: Container[str]) -> Self:
        """Those of a variable. `taken`: names that others have, or will have, whatever it is they name."""
        return cls(
            *(
                numbered(f"{variable}/{name}", taken)[0]
                for name in ("Initializer/zeros", "IsInitialized/VarIsInitializedOp", "Assign", "Read/ReadVariableOp")
            )
        )


def variable_def(variable: GraphVariable, taken: Container[str]) -> VariableDef:
    """What a collection of variables says of it. `taken`: the `given_names` of its graph."""
    nodes = VariableNodes.named(variable.name, taken)
    return VariableDef(
        variable_name=f"{variable.name}:0",
        initializer_name=nodes.initializer,
        snapshot_name=f"{nodes.read}:0",
        initial_value_name=f"{nodes.initial_value}:0",
        is_resource=True,
        trainable=variable.trainable,
        save_slice_info_def=variable.part,
    )


def add_variable(graph: Nodes, variable: GraphVariable, nodes: VariableNodes) -> None:
    """Write the nodes of a variable."""
    name, dtype, shape, device = variable.name, variable.dtype, variable.shape, variable.device
    place = attributes(_class=beside(name))
    _add_zeros(graph, nodes.initial_value, dtype, _first_shape(shape), place)
    before, between = _handle_attributes(dtype, shape)
    debug_name, shared_name = attributes(debug_name=text_value(f"{name}/")), attributes(shared_name=text_value(name))
    graph.add(name, "VarHandleOp", (), device, place + before + debug_name + between + shared_name)
    graph.add(nodes.is_initialized, "VarIsInitializedOp", (name,), device, _IS_INITIALIZED)
    graph.add(nodes.initializer, "AssignVariableOp", (name, nodes.initial_value), device, _assign_attributes(dtype))
    graph.add(nodes.read, "ReadVariableOp", (name,), device, read_attributes(dtype, shape))


def _add_zeros(graph: Nodes, name: str, dtype: DataType, shape: Shape, place: bytes) -> None:
    """A first value. `place`: the attribute that puts its nodes on the variable's device."""
    if prod(shape) < _FILLED_FROM or dtype in _NEVER_FILLED:
        graph.add(name, "Const", (), "", place + _zeros(dtype, shape))
        return
    sizes, zero = graph.unique(f"{name}/shape_as_tensor"), graph.unique(f"{name}/Const")
    attrs, before, behind = _fill_attributes(dtype, shape)
    graph.add(sizes, "Const", (), "", place + attrs)
    graph.add(zero, "Const", (), "", place + _zeros(dtype, ()))
    graph.add(name, "Fill", (sizes, zero), "", before + place + behind)


def sizes_tensor(shape: Shape) -> TensorProto:
    """A shape as TensorFlow writes it into constants: 32 bits a size where they suffice."""
    wide = any(size > _MAX_INT32 for size in shape)
    tensor = empty_tensor(DataType.DT_INT64 if wide else DataType.DT_INT32, (len(shape),))
    if len(shape) > 1:
        tensor.tensor_content = np.array(shape, dtype="<i8" if wide else "<i4").tobytes()
    elif wide:
        tensor.int64_val.extend(shape)
    else:
        tensor.int_val.extend(shape)
    return tensor


@functools.lru_cache(SHAPES_KEPT)
def _zeros(dtype: DataType, shape: Shape) -> bytes:
    """The attributes of a constant, but for its place. One zero, or one empty text, stands for all."""
    tensor = empty_tensor(dtype, shape)
    if dtype == DataType.DT_STRING:
        tensor.string_val.append(b"")
    elif not prod(shape) and not dtype.name.startswith("DT_Q"):
        pass  # TensorFlow writes an element into empty tensors of texts and quantized numbers only
    elif dtype.name.startswith("DT_FLOAT") and dtype != DataType.DT_FLOAT:
        tensor.float8_val = b"\0"
    else:
        zero = (0, 0) if dtype.name.startswith("DT_COMPLEX") else (0,)
        getattr(tensor, _FIELDS.get(dtype, "int_val")).extend(zero)
    return constant(tensor)


# Where a TensorProto keeps its elements; small integers of all kinds in int_val.
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


def _first_shape(shape: Shape | None) -> Shape:
    """Of the first value: no element along dimensions that are not known, one where not even their number is."""
    return tuple(max(size, 0) for size in shape or ())


_IS_INITIALIZED: Final = attributes(_output_shapes=shape_list(()))


@functools.lru_cache(SHAPES_KEPT)
def _handle_attributes(dtype: DataType, shape: Shape | None) -> tuple[bytes, bytes]:
    """Those that stand between `_class`, `debug_name` and `shared_name`."""
    before = attributes(_output_shapes=shape_list(()), allowed_devices=EMPTY_LIST, container=text_value(""))
    return before, attributes(dtype=type_value(dtype), shape=shape_value(shape))


@functools.lru_cache(SHAPES_KEPT)
def _fill_attributes(dtype: DataType, shape: Shape) -> tuple[bytes, bytes, bytes]:
    """Those of the shape; those of Fill before and behind `_class`."""
    sizes = sizes_tensor(shape)
    behind = attributes(_output_shapes=shape_list(shape), index_type=type_value(DataType(sizes.dtype)))
    return constant(sizes), attributes(T=type_value(dtype)), behind


@functools.cache
def _assign_attributes(dtype: DataType) -> bytes:
    return attributes(dtype=type_value(dtype), validate_shape=FALSE)


@functools.lru_cache(SHAPES_KEPT)
def read_attributes(dtype: DataType, shape: Shape | None) -> bytes:
    return attributes(_output_shapes=shape_list(shape), dtype=type_value(dtype))
