"""The nodes of savers. tests/conformance/test_meta_graph_bytes.py tests that they are TensorFlow's."""

import pytest
from meta_graph_files import graph_of

from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.graph_def import Graph
from torch_tfckpt.meta_graph.model import GraphSaver, GraphVariable, SavedVariable
from torch_tfckpt.meta_graph.nodes import declarations
from torch_tfckpt.meta_graph.saver_nodes import encoded_graph_of, given_names
from torch_tfckpt.meta_graph.saver_values import StoredValue, stored_values

A = GraphVariable("a", DataType.DT_FLOAT, (2, 3), "/device:GPU:1")
B = GraphVariable("b", DataType.DT_INT64, (), "/job:ps/task:1/device:GPU:0")
PART = GraphVariable("w/part_1", DataType.DT_FLOAT, (2, 3))


def saver_def(path: str, saved_path: str, restore: str, *, sharded: bool = False, version: str = "V2") -> SaverDef:
    return SaverDef(
        filename_tensor_name=path,
        save_tensor_name=saved_path,
        restore_op_name=restore,
        sharded=sharded,
        version=version,
    )


PLAIN = saver_def("save/Const:0", "save/control_dependency:0", "save/restore_all")
SAVED = [SavedVariable(A, "a"), SavedVariable(B, "average/b"), SavedVariable(PART, "w", "4 3 2,2:-")]


@pytest.mark.parametrize("version", ["V1", "V2"])
@pytest.mark.parametrize("sharded", [False, True], ids=["plain", "sharded"])
@pytest.mark.parametrize("reshape", [False, True], ids=["", "reshape"])
def test_stored_values_are_found_in_the_graph(version: str, sharded: bool, reshape: bool) -> None:
    """Our reader for graphs of all TensorFlow versions finds the written keys, slices, types and variables."""
    settings = saver_def("s/Const:0", "s/save:0", "s/restore_all", sharded=sharded, version=version)
    groups = [("", SAVED[2:]), (A.device, SAVED[:1]), (B.device, SAVED[1:2])] if sharded else [("", SAVED)]
    encoded, ops = encoded_graph_of([A, B, PART], [GraphSaver(settings, groups, reshape)])
    found = stored_values(Graph(memoryview(encoded)), settings)
    assert found is not None
    assert sorted(found, key=lambda value: value.key) == [
        StoredValue("a", "", DataType.DT_FLOAT, ("a",), reshaped=reshape),
        StoredValue("average/b", "", DataType.DT_INT64, ("b",), reshaped=reshape),
        StoredValue("w", "4 3 2,2:-", DataType.DT_FLOAT, ("w/part_1",), reshaped=reshape),
    ]
    graph = graph_of([A, B, PART], [GraphSaver(settings, groups, reshape)])
    assert graph.SerializeToString(deterministic=True) == encoded
    assert declarations({node.op for node in graph.node}) == ops


@pytest.mark.parametrize(
    ("settings", "scope"),
    [
        (saver_def("mine/Const:0", "mine/x:0", "mine/restore_all", sharded=True), "mine"),
        (saver_def("saver_filename:0", "StatefulPartitionedCall_1:0", "StatefulPartitionedCall_2"), "save"),
        (saver_def("save/SaveV2:0", "save/RestoreV2:0", "save/Identity"), "save"),
        (saver_def("path", "saved", "a/b/restore", sharded=True, version="V1"), "a/b"),
    ],
)
def test_the_names_in_a_saver_def_are_used(settings: SaverDef, scope: str) -> None:
    """For any SaverDef; all other nodes are in the scope of the restore operation."""
    saver = GraphSaver(settings, [("", [SavedVariable(A, "a")])])
    graph = graph_of([A], [saver])
    nodes = {node.name: node for node in graph.node}
    assert len(nodes) == len(graph.node)
    path, saved_path = (name.removesuffix(":0") for name in (settings.filename_tensor_name, settings.save_tensor_name))
    assert nodes[path].op == "PlaceholderWithDefault"
    assert nodes[saved_path].op in ("Identity", "ShardedFilespec")
    assert nodes[settings.restore_op_name].op == "NoOp"
    given = given_names([A], [saver])
    assert given == {"a", path, saved_path, settings.restore_op_name}
    others = [name for name in nodes if name not in given and not name.startswith(("a/I", "a/A", "a/R"))]
    assert all(name.startswith((f"{scope}/", f"{settings.restore_op_name}/")) for name in others)


def test_all_inputs_are_nodes_of_the_graph() -> None:
    """Also for two savers with the same scope."""
    savers = [
        GraphSaver(saver_def("x", "y", "z", sharded=True), [("", SAVED[2:]), (A.device, SAVED[:1])]),
        GraphSaver(PLAIN, [("", SAVED)], reshape=True),
    ]
    graph = graph_of([A, B, PART], savers)
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)
    assert {name.removeprefix("^").partition(":")[0] for node in graph.node for name in node.input} <= set(names)


@pytest.mark.parametrize("version", ["V1", "V2"])
def test_variables_may_have_the_names_of_generated_nodes(version: str) -> None:
    """With the names of all of them at once: the generated ones get numbers, and all names stay unique."""
    settings = saver_def("save/Const:0", "save/saved:0", "save/restore_all", sharded=True, version=version)
    saver = GraphSaver(settings, [("", SAVED[2:]), (A.device, SAVED[:1])], reshape=True)
    first = [node.name for node in graph_of([A, PART], [saver]).node]
    others = sorted(set(first) - given_names([A, PART], [saver]))
    variables = [A, PART, *(GraphVariable(name, DataType.DT_FLOAT, (1000,)) for name in others)]
    nodes = {node.name: node for node in graph_of(variables, [saver]).node}
    assert len(nodes) == len(first) + 7 * len(others)
    assert all(nodes[name].op == "VarHandleOp" for name in others)
    assert {name.removeprefix("^").partition(":")[0] for node in nodes.values() for name in node.input} <= nodes.keys()


def test_a_saver_without_variables_has_its_three_nodes() -> None:
    """Empty groups are left out, because TensorFlow's operations do not accept empty lists."""
    graph = graph_of([], [GraphSaver(PLAIN, [("", [])])])
    assert [(node.name, node.op) for node in graph.node] == [
        ("save/filename/input", "Const"),
        ("save/filename", "PlaceholderWithDefault"),
        ("save/Const", "PlaceholderWithDefault"),
        ("save/control_dependency", "Identity"),
        ("save/restore_all", "NoOp"),
    ]


def test_a_saver_def_names_first_outputs() -> None:
    """A saver's nodes have no other outputs."""
    with pytest.raises(InvalidArgumentError) as error:
        graph_of([A], [GraphSaver(saver_def("save/Const:0", "save/x:1", "save/restore_all"), [("", SAVED[:1])])])
    assert str(error.value) == (
        'SaverDef: "save/x:1" is not the first output of a node, but a saver\'s nodes have only one output. '
        'Name it "save/x:0"'
    )
