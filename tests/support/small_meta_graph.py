"""A small meta graph with a bit of everything, for the tests of edits."""

from typing import Final

from google.protobuf.any_pb2 import Any

from torch_tfckpt._proto.meta_graph_pb2 import MetaGraphDef
from torch_tfckpt._proto.op_def_pb2 import OpDef
from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt._proto.variable_pb2 import VariableDef
from torch_tfckpt.meta_graph.raw import RawMetaGraph

SAVER: Final = SaverDef(
    filename_tensor_name="save/Const:0",
    save_tensor_name="save/c:0",
    restore_op_name="save/restore_all",
)
OTHER_SAVER: Final = SaverDef(
    filename_tensor_name="a/save/Const:0", save_tensor_name="a/save/Identity:0", restore_op_name="a/save/restore_all"
)
# In the meta graph, a message and a node: field 1022, as a later version of TensorFlow may write it.
LATER: Final = b"\xf2\x3f\x02hi"


def meta_graph() -> MetaGraphDef:
    """Variables a/w and b, two savers, a loop, a function, collections of all kinds, a signature, an asset."""
    meta = MetaGraphDef()
    ops = [op("MatMul", transpose=False), op("SaveV2"), op("NoOp"), op("VarHandleOp")]
    meta.meta_info_def.stripped_op_list.op.extend(ops)
    for name, kind, inputs in (
        ("a/w", "VarHandleOp", ()),
        ("b", "VarHandleOp", ()),
        ("a/mul", "MatMul", ("a/w", "b:1", "^a/w", "^b")),
        ("a/enter", "Enter", ("a/mul",)),
        ("save/SaveV2", "SaveV2", ("b",)),
        ("save/restore_all", "NoOp", ("^save/SaveV2",)),
        ("a/save/SaveV2", "SaveV2", ("a/w",)),
        ("a/save/Identity", "Identity", ("^a/save/SaveV2",)),
    ):
        meta.graph_def.node.add(name=name, op=kind, input=inputs, device="/device:CPU:0")
    w, _, multiply, enter, *_ = meta.graph_def.node
    w.attr["_class"].list.s.extend([b"loc:@a/w", b"loc:@b", b"other"])
    multiply.attr["transpose"].b = False
    multiply.attr["_transpose"].b = False
    enter.attr["frame_name"].s = b"a/while"
    enter.attr["parallel"].i = 10
    function = meta.graph_def.library.function.add()
    function.signature.name = "f"
    function.node_def.add(name="a/mul", op="MatMul", device="/device:CPU:0").attr["transpose"].b = False
    meta.saver_def.CopyFrom(SAVER)
    _add_collections(meta)
    signature = meta.signature_def["serve"]
    signature.inputs["x"].name = "a/w:0"
    signature.inputs["sparse"].coo_sparse.values_tensor_name = "a/values:0"
    signature.outputs["y"].composite_tensor.components.add().name = "a/mul:0"
    meta.signature_def["outer"].inputs["x"].name = "b:0"
    meta.asset_file_def.add(filename="words.txt").tensor_info.name = "a/words:0"
    return meta


def _add_collections(meta: MetaGraphDef) -> None:
    for name in ("a/w", "b"):
        definition = VariableDef(variable_name=f"{name}:0").SerializeToString()
        meta.collection_def["variables"].bytes_list.value.append(definition)
    for saver in (SAVER, OTHER_SAVER):
        meta.collection_def["savers"].bytes_list.value.append(saver.SerializeToString())
    meta.collection_def["ints"].int64_list.value.extend([3, -1])
    meta.collection_def["floats"].float_list.value.extend([3.5, float("nan")])
    meta.collection_def["strings"].bytes_list.value.extend([b"a/text", b"hello", b"a/save/SaveV2", b"a/\xff"])
    meta.collection_def["nodes"].node_list.value.extend(["a/mul:0", "b", "a/save/Identity:0"])
    meta.collection_def["anys"].any_list.value.append(Any(type_url="x/y", value=b"a/w"))
    meta.collection_def["empty"].SetInParent()


def op(name: str, **defaults: bool) -> OpDef:
    """An operation with attributes with these defaults, and two without."""
    declared = OpDef(name=name)
    declared.attr.add(name="T", type="type")
    declared.attr.add(name="_transpose", type="bool")
    for attr, default in defaults.items():
        declared.attr.add(name=attr, type="bool").default_value.b = default
    return declared


def encoded(meta: MetaGraphDef) -> RawMetaGraph:
    """Serialize, with an unknown field at the end."""
    return RawMetaGraph(memoryview(meta.SerializeToString(deterministic=True) + LATER), "x.meta")
