"""Summaries of meta graphs."""

import json
import math

import pytest
from golden_files import GOLDEN
from google.protobuf.any_pb2 import Any as AnyMessage

from torch_tfckpt._proto.control_flow_pb2 import CondContextDef
from torch_tfckpt._proto.meta_graph_pb2 import CollectionDef, MetaGraphDef, TensorInfo
from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt._proto.types_pb2 import DT_FLOAT, DT_INT64, DT_STRING
from torch_tfckpt._proto.variable_pb2 import SaveSliceInfoDef, VariableDef
from torch_tfckpt.errors import DataLossError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.meta_graph.files import open_meta_graph
from torch_tfckpt.meta_graph.raw import RawMetaGraph
from torch_tfckpt.meta_graph.summary import (
    AssetSummary,
    CollectionSummary,
    FunctionSummary,
    MetaGraphSummary,
    ObjectGraphSummary,
    PartSummary,
    SaverSummary,
    SignatureSummary,
    TensorSummary,
    Vintage,
    collection_items,
    plain,
    summary_of,
)


def summary(meta: MetaGraphDef) -> MetaGraphSummary:
    """Summarize a message."""
    return summary_of(RawMetaGraph(memoryview(meta.SerializeToString(deterministic=True)), "m.meta"))


def with_variable(meta: MetaGraphDef, name: str, dtype: int, *shape: int, op: str = "VariableV2") -> VariableDef:
    """Add a variable's node; return its definition, which is not in a collection yet."""
    node = meta.graph_def.node.add(name=name, op=op)
    node.attr["dtype"].type = dtype  # type: ignore[assignment]  # an int is what the enum is
    node.attr["shape"].shape.SetInParent()
    for length in shape:
        node.attr["shape"].shape.dim.add(size=length)
    return VariableDef(variable_name=f"{name}:0")


def test_an_empty_meta_graph() -> None:
    """An empty file is an empty meta graph."""
    assert summary(MetaGraphDef()) == MetaGraphSummary(
        nbytes=0,
        of_saved_model=False,
        vintage=Vintage("", "", "", 0, 0, [], False),
        tags=[],
        nodes=0,
        ops={},
        functions=[],
        function_ops={},
        function_aliases={},
        variables=[],
        variables_problem="",
        collections=[],
        signatures=[],
        assets=[],
        saver=None,
        savers=[],
        object_graph=None,
    )


def test_a_meta_file_of_tensorflow_1() -> None:
    """Variables from the collections, a saver, no signatures. Versions and counts are those that TensorFlow parses."""
    found = summary_of(open_meta_graph(GOLDEN / "graph-of-tensorflow-1.11" / "model.meta"))
    assert found.vintage == Vintage("1.11.0", "v1.11.0-0-gc19e29306c", "", 27, 0, [], False)
    assert (found.nodes, found.of_saved_model, found.object_graph) == (49, False, None)
    assert list(found.ops.items())[:3] == [("Const", 16), ("Assign", 4), ("Identity", 3)]
    assert [(each.name, each.dtype, each.shape, each.trainable, each.nbytes) for each in found.variables] == [
        ("W", DataType.DT_FLOAT, (), True, 4),
        ("b", DataType.DT_FLOAT, (), True, 4),
    ]
    assert found.collections == [
        CollectionSummary("train_op", "node_list", "", 1),
        CollectionSummary("trainable_variables", "bytes_list", "VariableDef", 2),
        CollectionSummary("variables", "bytes_list", "VariableDef", 2),
    ]
    assert found.savers == [] and found.saver == SaverSummary(
        "save/Const:0", "save/control_dependency:0", "save/restore_all", "V2", False, 5, 10000.0
    )


def test_a_saved_model_of_tensorflow_2() -> None:
    """Functions, signatures with a default, an asset, Python objects."""
    found = summary_of(open_meta_graph(GOLDEN / "digits-module"))
    assert (found.of_saved_model, found.tags) == (True, ["serve"])
    assert (found.nodes, len(found.functions), found.function_ops["ReadVariableOp"]) == (33, 9, 13)
    assert sum(found.function_ops.values()) == sum(each.nodes for each in found.functions) == 107
    assert sorted(each.name for each in found.variables) == [
        "authors", "hidden/bias", "hidden/kernel", "output/bias", "output/kernel", "seen", "version",
    ]  # fmt: skip
    assert found.object_graph == ObjectGraphSummary(
        root="_generic_user_object",
        nodes=27,
        kinds={
            "bare_concrete_function": 7, "variable": 7, "function": 5, "user_object": 5, "asset": 1, "constant": 1,
            "resource": 1,
        },
        identifiers={"_generic_user_object": 4, "signature_map": 1},
        concrete_functions=7,
    )  # fmt: skip
    assert list(found.object_graph.kinds.values()) == [7, 7, 5, 5, 1, 1, 1]
    assert found.assets == [AssetSummary("digits.txt", ["asset_path_initializer:0"])]
    [served] = [each for each in found.signatures if each.name == "serving_default"]
    assert served == SignatureSummary(
        "serving_default",
        "tensorflow/serving/predict",
        [
            TensorSummary("images", DataType.DT_FLOAT, (-1, 8, 8), ["serving_default_images:0"], "name"),
            TensorSummary("temperature", DataType.DT_FLOAT, (), ["serving_default_temperature:0"], "name"),
        ],
        [
            TensorSummary("logits", DataType.DT_FLOAT, (-1, 10), ["StatefulPartitionedCall_1:0"], "name"),
            TensorSummary("name", DataType.DT_STRING, (-1,), ["StatefulPartitionedCall_1:1"], "name"),
        ],
        ["temperature"],
    )


def test_operations_are_sorted() -> None:
    """By descending frequency, then by name; those in functions separately."""
    meta = MetaGraphDef()
    for index, op in enumerate(["Sub", "Add", "Neg", "Sub"]):
        meta.graph_def.node.add(name=f"n{index}", op=op)
    for name in ("f", "g"):
        function = meta.graph_def.library.function.add()
        function.signature.name = name
        function.node_def.add(name="a", op="Mul")
        function.node_def.add(name="b", op="Add")
    function.node_def.add(name="c", op="Mul")
    found = summary(meta)
    assert list(found.ops.items()) == [("Sub", 2), ("Add", 1), ("Neg", 1)]
    assert found.functions == [
        FunctionSummary("f", 2, {"Add": 1, "Mul": 1}),
        FunctionSummary("g", 3, {"Mul": 2, "Add": 1}),
    ]
    assert list(found.function_ops.items()) == [("Mul", 3), ("Add", 2)]


@pytest.mark.parametrize(
    ("dtype", "shape", "elements", "nbytes"),
    [
        (DT_FLOAT, (4, 3), 12, 48),
        (DT_FLOAT, (), 1, 4),
        (DT_FLOAT, (0, 1 << 62, 1 << 62), 0, 0),
        (DT_FLOAT, (-1, 3), None, None),
        (DT_STRING, (2,), 2, None),
        (77, (2,), 2, None),
        (DT_INT64, (1 << 62, 1 << 62), None, None),
        (DT_INT64, (1 << 62,) * 5000, None, None),
    ],
    ids=["matrix", "scalar", "empty", "unknown", "strings", "no-type", "huge", "hostile"],
)
def test_sizes(dtype: int, shape: tuple[int, ...], elements: int | None, nbytes: int | None) -> None:
    """Sizes of variables; None if the shape or type does not determine them, or they are too large."""
    meta = MetaGraphDef()
    with_variable(meta, "v", dtype, *shape)
    [found] = summary(meta).variables
    assert (found.shape, found.elements, found.nbytes) == (shape, elements, nbytes)


def test_a_shape_of_unknown_rank() -> None:
    meta = MetaGraphDef()
    with_variable(meta, "v", DT_FLOAT)
    meta.graph_def.node[0].attr["shape"].shape.unknown_rank = True
    [found] = summary(meta).variables
    assert (found.shape, found.elements, found.nbytes) == (None, None, None)


def test_parts_of_larger_tensors() -> None:
    """Their positions are those in their definitions."""
    meta = MetaGraphDef()
    definition = with_variable(meta, "w/part_1", DT_FLOAT, 2, 3)
    info = SaveSliceInfoDef(full_name="w", full_shape=[4, 3], var_offset=[2, 0], var_shape=[2, 3])
    definition.save_slice_info_def.CopyFrom(info)
    meta.collection_def["variables"].bytes_list.value.append(definition.SerializeToString())
    [found] = summary(meta).variables
    assert found.part == PartSummary("w", (4, 3), (2, 0), (2, 3))


def test_variables_that_contradict_the_graph() -> None:
    """Meta graphs without nodes may list variables: none are returned, with the reason; all other parts are."""
    meta = MetaGraphDef()
    meta.collection_def["variables"].bytes_list.value.append(VariableDef(variable_name="v:0").SerializeToString())
    meta.saver_def.max_to_keep = 3
    found = summary(meta)
    assert found.variables == [] and found.variables_problem.startswith('m.meta: variable "v"')
    assert found.saver is not None and found.saver.max_to_keep == 3
    assert found.collections == [CollectionSummary("variables", "bytes_list", "VariableDef", 1)]


def test_collections_of_every_kind() -> None:
    """Name, kind, count; one of unknown kind is empty. The order is that of the file."""
    meta = MetaGraphDef()
    meta.collection_def["a"].node_list.value.extend(["n", "m:0"])
    meta.collection_def["b"].bytes_list.value.extend([b"x", b"\xff"])
    meta.collection_def["c"].int64_list.value.append(1)
    meta.collection_def["d"].float_list.value.append(0.5)
    meta.collection_def["e"].any_list.value.add(type_url="u/t", value=b"v")
    meta.collection_def["f"].SetInParent()
    meta.collection_def["global_step"].node_list.value.append("global_step:0")
    assert summary(meta).collections == [
        CollectionSummary("a", "node_list", "", 2),
        CollectionSummary("b", "bytes_list", "", 2),
        CollectionSummary("c", "int64_list", "", 1),
        CollectionSummary("d", "float_list", "", 1),
        CollectionSummary("e", "any_list", "", 1),
        CollectionSummary("f", "", "", 0),
        CollectionSummary("global_step", "node_list", "", 1),
    ]
    items = {name: collection_items(name, each) for name, each in meta.collection_def.items()}
    assert items.pop("e") == [AnyMessage(type_url="u/t", value=b"v")]
    assert items == {
        "a": ["n", "m:0"],
        "b": [b"x", b"\xff"],
        "c": [1],
        "d": [0.5],
        "f": [],
        "global_step": ["global_step:0"],
    }


def test_collections_of_messages() -> None:
    """Decoded by their names; bytes that cannot be decoded stay bytes; `limit` is obeyed."""
    collection = CollectionDef()
    definitions = [VariableDef(variable_name=f"v{index}:0") for index in range(3)]
    collection.bytes_list.value.extend(each.SerializeToString() for each in definitions)
    collection.bytes_list.value.append(b"\xff\xff")
    assert collection_items("trainable_variables", collection) == [*definitions, b"\xff\xff"]
    assert collection_items("trainable_variables", collection, 2) == definitions[:2]
    assert collection_items("mine", collection, 1) == [definitions[0].SerializeToString()]


def test_savers() -> None:
    """The meta graph's own and those of the collection; an unknown version is its number."""
    meta = MetaGraphDef()
    meta.saver_def.version = 7  # type: ignore[assignment]  # an open enum takes any number
    meta.saver_def.restore_op_name = "r"
    for version in (SaverDef.LEGACY, SaverDef.V1):
        encoded = SaverDef(version=version, sharded=True).SerializeToString()
        meta.collection_def["savers"].bytes_list.value.append(encoded)
    meta.collection_def["savers"].bytes_list.value.append(b"\xff")
    found = summary(meta)
    assert found.saver == SaverSummary("", "", "r", "7", False, 0, 0.0)
    assert [(each.version, each.sharded) for each in found.savers] == [("LEGACY", True), ("V1", True)]


def test_tensors_of_signatures() -> None:
    """A sparse tensor has three, a composite one those of its components at any depth; sorted by name."""
    meta = MetaGraphDef()
    signature = meta.signature_def["s"]
    signature.inputs["b"].coo_sparse.CopyFrom(
        TensorInfo.CooSparse(values_tensor_name="v", indices_tensor_name="i", dense_shape_tensor_name="d")
    )
    signature.inputs["b"].tensor_shape.dim.add(size=-1)
    composite = signature.inputs["a"].composite_tensor
    composite.components.add(name="c0")
    composite.components.add().composite_tensor.components.add(name="c1")
    composite.components.add(name="c2")
    signature.inputs["c"].tensor_shape.unknown_rank = True
    [found] = summary(meta).signatures
    assert found.inputs == [
        TensorSummary("a", DataType.DT_INVALID, None, ["c0", "c1", "c2"], "composite_tensor"),
        TensorSummary("b", DataType.DT_INVALID, (-1,), ["v", "i", "d"], "coo_sparse"),
        TensorSummary("c", DataType.DT_INVALID, None, [], ""),
    ]


def test_values_for_json() -> None:
    """Every kind of value; strict parsers, which reject NaN, accept the document."""
    context = CondContextDef(context_name="c", branch=1)
    values: list[tuple[str | int | float | bytes | CondContextDef | AnyMessage, object]] = [
        ("n", "n"),
        (1 << 62, 1 << 62),
        (0.5, 0.5),
        (math.nan, "NaN"),
        (math.inf, "Infinity"),
        (-math.inf, "-Infinity"),
        ("é".encode(), "é"),
        (b"\xff\x00", {"base64": "/wA="}),
        (context, {"context_name": "c", "branch": 1}),
        (AnyMessage(type_url="u/t", value=b"v"), {"type_url": "u/t", "base64": "dg=="}),
    ]
    for value, expected in values:
        assert plain(value) == expected
        assert json.loads(json.dumps(plain(value), allow_nan=False)) == expected


def test_a_damaged_part_is_an_error_with_its_file() -> None:
    """Two nodes with one name; a damaged collection; a damaged node."""
    meta = MetaGraphDef()
    for _ in range(2):
        meta.graph_def.node.add(name="a")
    with pytest.raises(DataLossError, match=r"^m\.meta: two nodes"):
        summary(meta)
    for raw in (b"\x22\x02\x12\x05", b"\x12\x03\x0a\x01\xff"):
        with pytest.raises(DataLossError, match=r"^m\.meta: "):
            summary_of(RawMetaGraph(memoryview(raw), "m.meta"))
