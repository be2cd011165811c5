"""The graphs of our savers equal those that TensorFlow exports for the same variables, and run in TensorFlow."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorflow_process import Call, RawTensor, TensorFlowError, TensorFlowProcess

from torch_tfckpt import Saver, SaveSliceInfo, Variable
from torch_tfckpt._proto.graph_pb2 import GraphDef
from torch_tfckpt._proto.meta_graph_pb2 import MetaGraphDef
from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt._proto.variable_pb2 import SaveSliceInfoDef
from torch_tfckpt.devices import canonical_device
from torch_tfckpt.dtypes import ELEMENTS, torch_dtype
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.meta_graph.model import GraphSaver, GraphVariable, SavedVariable
from torch_tfckpt.meta_graph.nodes import declarations, known_ops
from torch_tfckpt.meta_graph.saver_nodes import encoded_graph_of, given_names
from torch_tfckpt.meta_graph.variable_nodes import variable_def

Part = tuple[str, Sequence[int], Sequence[int]]
Described = tuple[str, str, Sequence[int] | None, str, Part | None]

V1, V2 = SaverDef.V1, SaverDef.V2


def described(
    name: str, dtype: str = "float", shape: Sequence[int] | None = (2, 3), device: str = "", part: Part | None = None
) -> Described:
    return name, dtype, shape, device, part


PLAIN = [described("a"), described("b/c", "int32", (2000,)), described("global_step", "int64", ())]
PARTS = [
    described("b"),
    described("p/w/part_0", "float", (2, 3), "", ("p/w", (4, 3), (0, 0))),
    described("p/w/part_1", "float", (2, 3), "", ("p/w", (4, 3), (2, 0))),
    described("z", "double", ()),
]
SHARDED = [
    described("a", device="/cpu:0"),
    described("b", "int32", (2000,), "/cpu:2"),
    described("c", "double", (), "/cpu:1"),
    described("d", "half", (0, 4), "/cpu:0"),
    described("e", "string", (2,)),
]
SHARDED_PARTS = [
    described("b", device="/gpu:1"),
    described("w/part_0", "float", (2, 3), "/gpu:0", ("w", (6, 3), (0, 0))),
    described("w/part_1", "float", (2, 3), "/job:ps/task:3/gpu:1", ("w", (6, 3), (2, 0))),
    described("w/part_2", "float", (2, 3), "", ("w", (6, 3), (4, 0))),
]
REMOTE = [
    described("a", device="/gpu:0"),
    described("b", device="/job:ps/task:1/gpu:1"),
    described("c", device="/job:ps/task:1/cpu:0"),
    described("d"),
    described("e", device="/gpu:0"),
]
UNKNOWN = [described("a", "float", None), described("b", "int32", (-1, 3)), described("c", "int64", (2000, -1))]
SIZES = [
    described("empty", "float", (0, 3)),
    described("none", "string", (0,)),
    described("small", "float", (999,)),
    described("large", "float", (1000,)),
    described("matrix", "double", (25, 40)),
    described("strings", "string", (40, 25, 1)),
    described("long", "int8", (1 << 31,)),
    described("wide", "bool", (2, 1 << 31)),
    described("a.b-c_d", "int32", (1,)),
]

CASES: dict[str, tuple[list[Described], list[dict[str, Any]]]] = {
    "plain": (PLAIN, [{}]),
    "no saver": (PLAIN, []),
    "V1": (PLAIN, [{"write_version": V1}]),
    "reshape": (PLAIN, [{"reshape": True}]),
    "sequential": (PLAIN, [{"restore_sequentially": True}]),
    "name": (PLAIN, [{"name": "mine"}]),
    "filename": (PLAIN, [{"filename": "xyz"}]),
    "scoped name": (PLAIN, [{"name": "outer/mine", "sharded": True}]),
    "sharded on none": (PLAIN, [{"sharded": True}]),
    "sharded": (SHARDED, [{"sharded": True}]),
    "sharded V1": (SHARDED, [{"sharded": True, "write_version": V1}]),
    "sharded reshape": (SHARDED, [{"sharded": True, "reshape": True}]),
    "sharded sequential": (SHARDED, [{"sharded": True, "restore_sequentially": True}]),
    "unsharded on devices": (SHARDED, [{}]),
    "parts": (PARTS, [{}]),
    "parts V1": (PARTS, [{"write_version": V1}]),
    "parts reshape": (PARTS, [{"reshape": True}]),
    "parts on devices": (SHARDED_PARTS, [{}]),
    "parts sharded": (SHARDED_PARTS, [{"sharded": True}]),
    "parts sharded V1": (SHARDED_PARTS, [{"sharded": True, "write_version": V1}]),
    "parts sharded reshape": (SHARDED_PARTS, [{"sharded": True, "reshape": True}]),
    "remote": (REMOTE, [{}]),
    "remote sharded": (REMOTE, [{"sharded": True}]),
    "remote V1": (REMOTE, [{"sharded": True, "write_version": V1}]),
    "remote reshape": (REMOTE, [{"sharded": True, "reshape": True}]),
    "unknown shapes": (UNKNOWN, [{}]),
    "unknown shapes reshape": (UNKNOWN, [{"reshape": True}]),
    "sizes": (SIZES, [{}]),
    "sizes reshape": (SIZES, [{"reshape": True}]),
    "two savers": (SHARDED, [{}, {"sharded": True, "names": ["c", "a", "b"]}]),
    "savers of all kinds": (
        SHARDED_PARTS,
        [{"write_version": V1}, {"sharded": True}, {"reshape": True}, {"sharded": True, "write_version": V1}],
    ),
    "names that savers make": (
        [described("save_1/Identity"), described("save_1/SaveV2/tensor_names"), described("save_1/restore_all/NoOp")],
        [{}, {"name": "save_1"}],
    ),
}


def graph_variable(each: Described) -> GraphVariable:
    name, dtype, shape, device, part = each
    info = None
    if part is not None:
        full_name, full_shape, offset = part
        info = SaveSliceInfoDef(full_name=full_name, full_shape=full_shape, var_offset=offset, var_shape=shape)
    dims = None if shape is None else tuple(shape)
    return GraphVariable(name, DataType[f"DT_{dtype.upper()}"], dims, canonical_device(device), True, info)


def graph_saver(variables: Mapping[str, GraphVariable], options: Mapping[str, Any], saver_def: SaverDef) -> GraphSaver:
    saved = sorted((_saved(variables[name]) for name in options.get("names", variables)), key=lambda each: each.key)
    groups: dict[str, list[SavedVariable]] = {}
    for each in saved:
        groups.setdefault(each.variable.device if saver_def.sharded else "", []).append(each)
    return GraphSaver(
        saver_def, sorted(groups.items()), options.get("reshape", False), options.get("filename", "model")
    )


def _saved(variable: GraphVariable) -> SavedVariable:
    part = variable.part
    if part is None:
        return SavedVariable(variable, variable.name)
    extents = ":".join(f"{start},{size}" for start, size in zip(part.var_offset, part.var_shape, strict=True))
    return SavedVariable(variable, part.full_name, " ".join(map(str, (*part.full_shape, extents))))


def assert_same_graph(ours: GraphDef, theirs: GraphDef) -> None:
    """Assert that all nodes are equal, one by one so that the difference is readable, and then the bytes."""
    for own, other in zip(ours.node, theirs.node, strict=False):
        assert str(own) == str(other)
    assert [node.name for node in ours.node] == [node.name for node in theirs.node]
    assert ours.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True)


def assert_like_tensorflows(tensorflow: TensorFlowProcess, variables: list[Described], savers: list[Any]) -> None:
    """Assert that the graph, and the declarations of its operations and variables, have TensorFlow's bytes."""
    encoded_meta, saver_defs = tensorflow.call("tensorflow_graphs.saver_graph", variables, savers)
    theirs = MetaGraphDef.FromString(encoded_meta)
    made = {each[0]: graph_variable(each) for each in variables}
    ours = [
        graph_saver(made, options, SaverDef.FromString(saver_def))
        for options, saver_def in zip(savers, saver_defs, strict=True)
    ]
    encoded, ops = encoded_graph_of(list(made.values()), ours)
    assert_same_graph(GraphDef.FromString(encoded), theirs.graph_def)
    assert encoded in encoded_meta
    assert ops.SerializeToString() == theirs.meta_info_def.stripped_op_list.SerializeToString()
    taken = given_names(made.values(), ours)
    definitions = [variable_def(variable, taken).SerializeToString() for variable in made.values()]
    assert definitions == list(theirs.collection_def["variables"].bytes_list.value)


@pytest.mark.parametrize("case", CASES)
def test_graph_bytes_are_tensorflows(tensorflow: TensorFlowProcess, case: str) -> None:
    """Every node, attribute and version equals TensorFlow's export of the same variables and savers, in its order; and
    so do the declarations of operations and variables.
    """
    assert_like_tensorflows(tensorflow, *CASES[case])


# TensorFlow has no TensorProto of these.
UNWRITTEN = {DataType.DT_FLOAT8_E4M3FNUZ, DataType.DT_FLOAT8_E4M3B11FNUZ, DataType.DT_FLOAT8_E5M2FNUZ}
# TensorFlow cannot initialize large variables of these: it computes the zeros by Fill, which has no kernel. Ours are
# constants.
UNFILLED = UNWRITTEN | {
    DataType.DT_FLOAT8_E5M2,
    DataType.DT_FLOAT8_E4M3FN,
    DataType.DT_FLOAT4_E2M1FN,
    DataType.DT_INT2,
    DataType.DT_UINT2,
}
# TensorFlow 2.21 has no kernel that assigns these to a resource variable.
UNASSIGNED = UNWRITTEN | {DataType.DT_QINT16, DataType.DT_QUINT16}
TYPES = [DataType(number) for number in ELEMENTS]


def test_graph_bytes_for_every_type_are_tensorflows(tensorflow: TensorFlowProcess) -> None:
    """Every type that TensorFlow can write: small, empty, scalar, and large variables."""
    shapes = [(2, 3), (0, 3), (), (1,), (2000,)]
    variables = [
        described(f"{dtype.short_name}/{number}", dtype.short_name, shape)
        for dtype in TYPES
        for number, shape in enumerate(shapes)
        if dtype not in UNWRITTEN and not (dtype in UNFILLED and shape == (2000,))
    ]
    assert len(variables) > 120
    assert_like_tensorflows(tensorflow, variables, [{}, {"reshape": True, "sharded": True}])


NAMES = {"float": "float32", "double": "float64", "half": "float16"}


def value_of(dtype: DataType, count: int) -> RawTensor:
    """Ones and zeros, whose bytes are valid for every type."""
    if dtype == DataType.DT_STRING:
        return RawTensor(
            "string", (count,), b"".join(len(b"x" * n).to_bytes(8, "little") + b"x" * n for n in range(count))
        )
    size = ELEMENTS[dtype].size
    return RawTensor(NAMES.get(dtype.short_name, dtype.short_name), (count,), bytes(n % 2 for n in range(count * size)))


@pytest.mark.parametrize("count", [5, 1500], ids=["small", "large"])
def test_tensorflow_runs_the_graph_for_every_type(tensorflow: TensorFlowProcess, tmp_path: Path, count: int) -> None:
    """TensorFlow imports the graph, initializes, restores its own checkpoint, reads the values, and saves them again.

    For types that TensorFlow cannot assign to any variable, it reports that.
    """
    calls = []
    for dtype in TYPES:
        prefix = str(tmp_path / dtype.short_name)
        value = value_of(dtype, count)
        variable = GraphVariable("a", dtype, (count,))
        calls += [Call("save_v2", (prefix, {"a": value})), run([variable], saver_def(), prefix, f"{prefix}-again")]
        calls.append(Call("restore", (f"{prefix}-again", ["a"])))
    results = tensorflow.batch(calls)
    for dtype, ran, again in zip(TYPES, results[1::3], results[2::3], strict=True):
        if dtype in UNASSIGNED:
            assert isinstance(ran, TensorFlowError), dtype
            assert "No OpKernel was registered to support Op 'AssignVariableOp'" in str(ran)
        else:
            value = value_of(dtype, count)
            assert ran == ([value], f"{tmp_path / dtype.short_name}-again"), dtype
            assert again == [value], dtype


def saver_def(**settings: Any) -> SaverDef:
    names: dict[str, Any] = {
        "filename_tensor_name": "save/Const:0",
        "save_tensor_name": "save/control_dependency:0",
        "restore_op_name": "save/restore_all",
        "version": V2,
    }
    return SaverDef(**(names | settings))


def run(variables: list[GraphVariable], definition: SaverDef, read_from: str | None, save_as: str) -> Call:
    """Run our graph of these variables and one saver in TensorFlow."""
    saver = graph_saver({variable.name: variable for variable in variables}, {}, definition)
    encoded, _ = encoded_graph_of(variables, [saver])
    taken = given_names(variables, [saver])
    definitions = [variable_def(variable, taken) for variable in variables]
    nodes = [(each.initializer_name, each.snapshot_name) for each in definitions]
    return Call("tensorflow_graphs.run_saver", (encoded, definition.SerializeToString(), nodes, read_from, save_as))


SAVER_DEFS = {
    "plain": saver_def(),
    "V1": saver_def(version=V1),
    "sharded": saver_def(sharded=True, save_tensor_name="save/Identity:0"),
    "sharded V1": saver_def(sharded=True, version=V1, save_tensor_name="save/ShardedFilespec:0"),
    "TensorFlow 2": saver_def(
        filename_tensor_name="saver_filename:0",
        save_tensor_name="StatefulPartitionedCall_1:0",
        restore_op_name="StatefulPartitionedCall_2",
        sharded=True,
    ),
    "names of a user": saver_def(
        filename_tensor_name="path:0", save_tensor_name="mine/Const:0", restore_op_name="mine/RestoreV2"
    ),
}


@pytest.mark.parametrize("kind", SAVER_DEFS)
def test_savers_of_any_names_run(tensorflow: TensorFlowProcess, tmp_path: Path, kind: str) -> None:
    """The nodes that the SaverDef names restore a checkpoint and save it again, with parts, devices, and variables
    that have names of generated nodes.
    """
    part = SaveSliceInfoDef(full_name="w", full_shape=[4, 3], var_offset=[2, 0], var_shape=[2, 3])
    first = SaveSliceInfoDef(full_name="w", full_shape=[4, 3], var_offset=[0, 0], var_shape=[2, 3])
    variables = [
        GraphVariable("a", DataType.DT_FLOAT, (6,), "/device:CPU:1"),
        GraphVariable("a/Assign", DataType.DT_FLOAT, (6,), "/device:CPU:2"),
        GraphVariable("save", DataType.DT_FLOAT, (6,)),
        GraphVariable("save/SaveV2", DataType.DT_FLOAT, (6,)),
        GraphVariable("mine/RestoreV2/shape_and_slices", DataType.DT_FLOAT, (6,)),
        GraphVariable("w/part_1", DataType.DT_FLOAT, (2, 3), "/device:CPU:2", part=part),
        GraphVariable("w/part_0", DataType.DT_FLOAT, (2, 3), part=first),
    ]
    whole = value_of(DataType.DT_FLOAT, 6)
    parts = [RawTensor("float32", (2, 3), bytes([n]) * 24) for n in (1, 0)]
    stored = {each.name: whole for each in variables[:-2]}
    tensors = [*stored.items(), ("w", RawTensor("float32", (4, 3), parts[1].data + parts[0].data))]
    prefix, again = str(tmp_path / "theirs"), str(tmp_path / "again")
    saved, (values, path), restored = tensorflow.batch(
        [
            Call("save_v2", (prefix, tensors)),
            run(variables, SAVER_DEFS[kind], prefix, again),
            Call("restore_all", (again if "V1" not in kind else f"{again}*",)),
        ]
    )
    assert saved is None
    assert values == [whole] * 5 + parts
    assert path.startswith(again)
    assert restored == dict(tensors)


def test_the_known_operations_are_tensorflows(tensorflow: TensorFlowProcess) -> None:
    """CASES 69: every declaration, byte for byte. If a later TensorFlow has others, ops.pbtxt must be updated."""
    ours = declarations(known_ops()).SerializeToString(deterministic=True)
    assert ours == tensorflow.call("tensorflow_graphs.declarations", list(known_ops()))


@pytest.mark.parametrize(
    "case", ["unsharded on devices", "sharded", "sharded V1", "sharded reshape", "parts on devices"]
)
def test_meta_graph_bytes_of_a_saver_are_tensorflows(tensorflow: TensorFlowProcess, case: str) -> None:
    """The whole file, except for the string that names the build of TensorFlow."""
    [options] = CASES[case][1]
    variables = [each for each in CASES[case][0] if each[1] != "string"]  # which are not torch tensors
    theirs = MetaGraphDef.FromString(tensorflow.call("tensorflow_graphs.saver_meta_graph", variables, options))
    ours = Saver([torch_variable(each) for each in variables], **options).export_meta_graph()
    assert ours.meta_info_def.tensorflow_version == theirs.meta_info_def.tensorflow_version
    theirs.meta_info_def.tensorflow_git_version = ours.meta_info_def.tensorflow_git_version
    assert_same_graph(ours.graph_def, theirs.graph_def)
    assert ours.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True)


def torch_variable(each: Described) -> Variable:
    name, dtype, shape, device, part = each
    assert shape is not None
    info = None if part is None else SaveSliceInfo(part[0], part[1], part[2], shape)
    return Variable(torch.zeros(shape, dtype=torch_dtype(DataType[f"DT_{dtype.upper()}"])), name, info, device=device)
