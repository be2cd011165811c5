"""Write the nodes of a variable: its handle, initial zeros, and the operations that set and read it.

    a/Initializer/zeros                   Const                the zeros; with 1000 elements or more, a Fill of
        a/Initializer/zeros/shape_as_tensor, a/Initializer/zeros/Const
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
    colocated_with,
    constant,
    empty_tensor,
    numbered,
    shape_list,
    shape_value,
    string_value,
    type_value,
)

# array_ops._constant_if_small: larger values are computed, so that graphs stay small.
_FILLED_FROM: Final = 1000
_MAX_INT32: Final = (1 << 31) - 1
# Models have hundreds of different shapes, and variables of equal shape are usually close together.
SHAPES_KEPT: Final = 4096
# Types that TensorFlow 2.21 supports in Const, but not in Fill.
_NEVER_FILLED: Final = frozenset({
    DataType.DT_FLOAT8_E5M2, DataType.DT_FLOAT8_E4M3FN, DataType.DT_FLOAT8_E4M3FNUZ, DataType.DT_FLOAT8_E4M3B11FNUZ,
    DataType.DT_FLOAT8_E5M2FNUZ, DataType.DT_FLOAT4_E2M1FN, DataType.DT_INT2, DataType.DT_UINT2,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class VariableNodes:
    """The names of a variable's nodes, except its handle, which has the variable's name."""

    initial_value: str
    is_initialized: str
    initializer: str
    read: str

    @property
    def names(self) -> tuple[str, ...]:
        return (self.initial_value, self.is_initialized, self.initializer, self.read)

    @classmethod
    def named(cls, variable: str, taken: Container[str]) -> Self:
        """Choose the names for a variable. `taken` are all names that other nodes have or will have."""
        return cls(
            *(
                numbered(f"{variable}/{name}", taken)[0]
                for name in ("Initializer/zeros", "IsInitialized/VarIsInitializedOp", "Assign", "Read/ReadVariableOp")
            )
        )


def variable_def(variable: GraphVariable, taken: Container[str]) -> VariableDef:
    """Return the entry for a collection of variables. `taken` are the `given_names` of its graph."""
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
    place = attributes(_class=colocated_with(name))
    _add_zeros(graph, nodes.initial_value, dtype, _first_shape(shape), place)
    before, between = _handle_attributes(dtype, shape)
    debug_name, shared_name = (
        attributes(debug_name=string_value(f"{name}/")),
        attributes(shared_name=string_value(name)),
    )
    graph.add(name, "VarHandleOp", (), device, place + before + debug_name + between + shared_name)
    graph.add(nodes.is_initialized, "VarIsInitializedOp", (name,), device, _IS_INITIALIZED)
    graph.add(nodes.initializer, "AssignVariableOp", (name, nodes.initial_value), device, _assign_attributes(dtype))
    graph.add(nodes.read, "ReadVariableOp", (name,), device, read_attributes(dtype, shape))


def _add_zeros(graph: Nodes, name: str, dtype: DataType, shape: Shape, place: bytes) -> None:
    """Write an initial value. `place` is the attribute that colocates its nodes with the variable."""
    if prod(shape) < _FILLED_FROM or dtype in _NEVER_FILLED:
        graph.add(name, "Const", (), "", place + _zeros(dtype, shape))
        return
    sizes, zero = graph.unique(f"{name}/shape_as_tensor"), graph.unique(f"{name}/Const")
    attrs, before, after = _fill_attributes(dtype, shape)
    graph.add(sizes, "Const", (), "", place + attrs)
    graph.add(zero, "Const", (), "", place + _zeros(dtype, ()))
    graph.add(name, "Fill", (sizes, zero), "", before + place + after)


def sizes_tensor(shape: Shape) -> TensorProto:
    """Return a shape as TensorFlow writes it into constants: as int32 if possible, else as int64."""
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
    """Return the attributes of a constant, without colocation; one zero or "" represents all elements."""
    tensor = empty_tensor(dtype, shape)
    if dtype == DataType.DT_STRING:
        tensor.string_val.append(b"")
    elif not prod(shape) and not dtype.name.startswith("DT_Q"):
        pass  # TensorFlow writes an element into empty tensors only for strings and quantized numbers
    elif dtype.name.startswith("DT_FLOAT") and dtype != DataType.DT_FLOAT:
        tensor.float8_val = b"\0"
    else:
        zero = (0, 0) if dtype.name.startswith("DT_COMPLEX") else (0,)
        getattr(tensor, _FIELDS.get(dtype, "int_val")).extend(zero)
    return constant(tensor)


# The field of a TensorProto for elements of a type; int_val for all small integers.
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
    """Return the shape of the initial value: unknown dimensions are 0, an unknown shape becomes a scalar."""
    return tuple(max(size, 0) for size in shape or ())


_IS_INITIALIZED: Final = attributes(_output_shapes=shape_list(()))


@functools.lru_cache(SHAPES_KEPT)
def _handle_attributes(dtype: DataType, shape: Shape | None) -> tuple[bytes, bytes]:
    """Return the attributes between `_class` and `debug_name`, and between `debug_name` and `shared_name`."""
    before = attributes(_output_shapes=shape_list(()), allowed_devices=EMPTY_LIST, container=string_value(""))
    return before, attributes(dtype=type_value(dtype), shape=shape_value(shape))


@functools.lru_cache(SHAPES_KEPT)
def _fill_attributes(dtype: DataType, shape: Shape) -> tuple[bytes, bytes, bytes]:
    """Return the attributes of the shape's Const, those of Fill before `_class`, and those after it."""
    sizes = sizes_tensor(shape)
    after = attributes(_output_shapes=shape_list(shape), index_type=type_value(DataType(sizes.dtype)))
    return constant(sizes), attributes(T=type_value(dtype)), after


@functools.cache
def _assign_attributes(dtype: DataType) -> bytes:
    return attributes(dtype=type_value(dtype), validate_shape=FALSE)


@functools.lru_cache(SHAPES_KEPT)
def read_attributes(dtype: DataType, shape: Shape | None) -> bytes:
    return attributes(_output_shapes=shape_list(shape), dtype=type_value(dtype))
