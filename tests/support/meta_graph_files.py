"""Hand-made meta graphs, valid and invalid."""

from collections.abc import Iterable, Sequence

from torch_tfckpt import DataType, SaverDef
from torch_tfckpt._proto.graph_pb2 import GraphDef
from torch_tfckpt._proto.meta_graph_pb2 import MetaGraphDef
from torch_tfckpt._proto.node_def_pb2 import NodeDef
from torch_tfckpt._proto.variable_pb2 import SaveSliceInfoDef, VariableDef
from torch_tfckpt.meta_graph.model import GraphSaver, GraphVariable
from torch_tfckpt.meta_graph.saver_nodes import encoded_graph_of

FLOAT = DataType.DT_FLOAT
SAVER = SaverDef(
    filename_tensor_name="save/Const:0",
    save_tensor_name="save/control_dependency:0",
    restore_op_name="save/restore_all",
    version=SaverDef.V2,
)


def node(name: str, op: str, *inputs: str) -> NodeDef:
    return NodeDef(name=name, op=op, input=inputs)


def variable(name: str, shape: Iterable[int] | None = (4, 5), dtype: int = FLOAT) -> NodeDef:
    made = node(name, "VarHandleOp")
    made.attr["dtype"].type = dtype  # type: ignore[assignment]  # the stub's own enum, same numbers
    made.attr["shape"].shape.SetInParent()
    made.attr["shape"].shape.unknown_rank = shape is None
    for size in shape or ():
        made.attr["shape"].shape.dim.add(size=size)
    return made


def texts(name: str, values: Sequence[bytes]) -> NodeDef:
    made = node(name, "Const")
    made.attr["value"].tensor.string_val.extend(values)
    return made


def restoring(
    assigned: Sequence[tuple[str, int]],
    keys: Sequence[bytes],
    slices: Sequence[bytes] | None = None,
    dtype: int = FLOAT,
) -> list[NodeDef]:
    """A saver's nodes: (variable, output of RestoreV2) for each assignment."""
    restore = node("save/RestoreV2", "RestoreV2", "save/Const", "save/RestoreV2/keys", "save/RestoreV2/slices")
    restore.attr["dtypes"].list.type.extend([dtype] * len(keys))  # type: ignore[list-item]
    return [
        texts("save/RestoreV2/keys", keys),
        texts("save/RestoreV2/slices", [b""] * len(keys) if slices is None else slices),
        restore,
        *[
            node(f"save/Assign_{n}", "AssignVariableOp", *(each[0], f"save/RestoreV2:{each[1]}"))
            for n, each in enumerate(assigned)
        ],
        node("save/restore_all", "NoOp", *[f"^save/Assign_{n}" for n in range(len(assigned))]),
    ]


def graph(
    nodes: Iterable[NodeDef], variables: Iterable[str | VariableDef] = (), saver_def: SaverDef | None = None
) -> MetaGraphDef:
    meta = MetaGraphDef(saver_def=saver_def)
    meta.graph_def.node.extend(nodes)
    definitions = [VariableDef(variable_name=f"{one}:0") if isinstance(one, str) else one for one in variables]
    if definitions:
        meta.collection_def["variables"].bytes_list.value.extend(each.SerializeToString() for each in definitions)
    return meta


def part(
    name: str, full_name: str, full_shape: Sequence[int], offset: Sequence[int], shape: Sequence[int]
) -> VariableDef:
    info = SaveSliceInfoDef(full_name=full_name, full_shape=full_shape, var_offset=offset, var_shape=shape)
    return VariableDef(variable_name=f"{name}:0", save_slice_info_def=info)


def graph_of(variables: Sequence[GraphVariable], savers: Sequence[GraphSaver]) -> GraphDef:
    """The graph that this package writes for these."""
    encoded, _ = encoded_graph_of(variables, savers)
    return GraphDef.FromString(encoded)
