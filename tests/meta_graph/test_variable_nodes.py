"""The nodes of variables. tests/conformance/test_meta_graph_bytes.py tests that they are TensorFlow's."""

import pytest
from meta_graph_files import graph_of

from torch_tfckpt._proto.graph_pb2 import GraphDef
from torch_tfckpt._proto.node_def_pb2 import NodeDef
from torch_tfckpt._proto.variable_pb2 import SaveSliceInfoDef
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.meta_graph.model import GraphVariable
from torch_tfckpt.meta_graph.variable_nodes import sizes_tensor, variable_def


def lines(graph: GraphDef) -> list[str]:
    return [line(node) for node in graph.node]


def line(node: NodeDef) -> str:
    return f"{node.name} = {node.op}({', '.join(node.input)}){node.device and ' on ' + node.device}"


def test_a_small_variable_is_initialized_by_a_constant() -> None:
    assert lines(graph_of([GraphVariable("a/b", DataType.DT_HALF, (999,), "/device:GPU:1")], [])) == [
        "a/b/Initializer/zeros = Const()",
        "a/b = VarHandleOp() on /device:GPU:1",
        "a/b/IsInitialized/VarIsInitializedOp = VarIsInitializedOp(a/b) on /device:GPU:1",
        "a/b/Assign = AssignVariableOp(a/b, a/b/Initializer/zeros) on /device:GPU:1",
        "a/b/Read/ReadVariableOp = ReadVariableOp(a/b) on /device:GPU:1",
    ]


def test_a_large_variable_is_initialized_by_fill() -> None:
    """The limit is 1000 elements."""
    assert lines(graph_of([GraphVariable("a", DataType.DT_HALF, (25, 40))], []))[:3] == [
        "a/Initializer/zeros/shape_as_tensor = Const()",
        "a/Initializer/zeros/Const = Const()",
        "a/Initializer/zeros = Fill(a/Initializer/zeros/shape_as_tensor, a/Initializer/zeros/Const)",
    ]


@pytest.mark.parametrize(
    "dtype", [DataType.DT_FLOAT8_E5M2, DataType.DT_FLOAT8_E4M3FN, DataType.DT_INT2, DataType.DT_FLOAT4_E2M1FN]
)
def test_types_without_fill_use_a_constant_of_any_size(dtype: DataType) -> None:
    """TensorFlow writes a Fill, but has no kernel for it. The constant stores one element."""
    [zeros, *_] = graph_of([GraphVariable("a", dtype, (1000, 1000))], []).node
    assert zeros.op == "Const"
    assert zeros.ByteSize() < 150


def test_unknown_dimensions() -> None:
    """The variable has the partly known shape; in its initial value, unknown dimensions are 0."""
    graph = graph_of([GraphVariable("a", DataType.DT_FLOAT, (-1, 3)), GraphVariable("b", DataType.DT_FLOAT, None)], [])
    nodes = {node.name: node for node in graph.node}
    assert [dim.size for dim in nodes["a"].attr["shape"].shape.dim] == [-1, 3]
    assert [dim.size for dim in nodes["a/Initializer/zeros"].attr["value"].tensor.tensor_shape.dim] == [0, 3]
    assert nodes["b"].attr["shape"].shape.unknown_rank
    assert not nodes["b/Initializer/zeros"].attr["value"].tensor.tensor_shape.dim


def test_a_definition_names_the_nodes() -> None:
    """With the numbers that the names got because they were taken."""
    part = SaveSliceInfoDef(full_name="w", full_shape=[4], var_offset=[2], var_shape=[2])
    variables = [
        GraphVariable("a", DataType.DT_FLOAT, (2,), trainable=True, part=part),
        GraphVariable("a/Assign", DataType.DT_FLOAT, ()),
        GraphVariable("a/Assign_1", DataType.DT_FLOAT, ()),
        GraphVariable("a/Initializer/zeros", DataType.DT_FLOAT, (5000,)),
        GraphVariable("a/Initializer/zeros/Initializer/zeros/Const", DataType.DT_FLOAT, ()),
    ]
    graph = graph_of(variables, [])
    nodes = {node.name: node for node in graph.node}
    assert len(nodes) == len(graph.node)
    definitions = [variable_def(variable, {variable.name for variable in variables}) for variable in variables]
    for variable, definition in zip(variables, definitions, strict=True):
        assert definition.variable_name == f"{variable.name}:0"
        assert nodes[variable.name].op == "VarHandleOp"
        assert nodes[definition.initializer_name].input == [
            variable.name,
            definition.initial_value_name.removesuffix(":0"),
        ]
        assert nodes[definition.initial_value_name.removesuffix(":0")].op in ("Const", "Fill")
        assert nodes[definition.snapshot_name.removesuffix(":0")].op == "ReadVariableOp"
    assert definitions[0].initializer_name == "a/Assign_2"
    assert definitions[0].initial_value_name == "a/Initializer/zeros_1:0"
    assert definitions[0].trainable
    assert definitions[0].save_slice_info_def == part
    assert not definitions[1].trainable
    assert not definitions[1].HasField("save_slice_info_def")


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((), DataType.DT_INT32), ((7,), DataType.DT_INT32), ((1 << 31,), DataType.DT_INT64), ((2, 3), DataType.DT_INT32)],
)
def test_sizes_are_int64_if_necessary(shape: tuple[int, ...], dtype: DataType) -> None:
    assert DataType(sizes_tensor(shape).dtype) == dtype
