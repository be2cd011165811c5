"""Small graphs of savers, and the result of `stored_values` for them."""

from collections.abc import Iterable, Sequence

from meta_graph_files import SAVER, node, texts

from torch_tfckpt._proto.function_pb2 import FunctionDef
from torch_tfckpt._proto.graph_pb2 import GraphDef
from torch_tfckpt._proto.node_def_pb2 import NodeDef
from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.graph_def import Graph
from torch_tfckpt.meta_graph.saver_values import StoredValue, stored_values

FLOAT, STRING = DataType.DT_FLOAT, DataType.DT_STRING


def found(
    nodes: Iterable[NodeDef], saver: SaverDef = SAVER, functions: Iterable[FunctionDef] = ()
) -> list[StoredValue]:
    graph = GraphDef(node=nodes)
    graph.library.function.extend(functions)
    values = stored_values(Graph(memoryview(graph.SerializeToString())), saver)
    assert values is not None
    return values


def of(key: str, *variables: str, dtype: DataType = FLOAT) -> StoredValue:
    return StoredValue(key, "", dtype, variables)


def restore_v2(name: str, keys: str, slices: str, *dtypes: int, path: str = "save/Const") -> NodeDef:
    made = node(name, "RestoreV2", path, keys, slices)
    made.attr["dtypes"].list.type.extend(dtypes)  # type: ignore[arg-type]  # the stub's own enum, same numbers
    return made


def restore_one(name: str, op: str, *inputs: str, dtype: int = FLOAT) -> NodeDef:
    """A node as in the oldest graphs: one value per node."""
    made = node(name, op, "save/Const", *inputs)
    made.attr["dt"].type = dtype  # type: ignore[assignment]
    return made


def saving(op: str, keys: Sequence[bytes], *values: str) -> list[NodeDef]:
    """The save nodes of SAVER."""
    slices = [] if op == "Save" else ["s/slices"]
    return [
        texts("s/keys", keys),
        texts("s/slices", [b""] * len(keys)),
        node("s", op, "save/Const", "s/keys", *slices, *values, "^save/Const"),
        node("save/control_dependency", "Identity", "save/Const", "^s"),
    ]


def text(name: str, value: bytes) -> NodeDef:
    made = texts(name, [value])
    made.attr["value"].tensor.tensor_shape.SetInParent()
    return made
