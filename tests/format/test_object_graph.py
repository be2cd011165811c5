"""Object graphs: messages to nodes and back, including hostile ones; paths and names of nodes."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from golden_files import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st

import torch_tfckpt as tfckpt
from torch_tfckpt._proto.trackable_object_graph_pb2 import TrackableObjectGraph
from torch_tfckpt.errors import DataLossError, NotFoundError
from torch_tfckpt.format.object_graph import (
    VARIABLE_VALUE,
    ObjectGraph,
    ObjectReference,
    RegisteredSaver,
    SerializedTensor,
    SlotVariable,
    TrackableObject,
    checkpoint_key,
    escape_local_name,
    not_object_based,
    object_path,
    slot_variable_path,
    with_checkpoint_values,
)

# The graph of Checkpoint(v=Variable(name "vname")).save, as written by TensorFlow 2.21.
EXAMPLE = bytes.fromhex(
    "0a1d0a0508011201760a100802120c736176655f636f756e7465722a020801"
    "0a3b12350a0e5641524941424c455f56414c55451205766e616d651a1c"
    "762f2e415454524942555445532f5641524941424c455f56414c55452a020801"
    "0a4d12470a0e5641524941424c455f56414c5545120c736176655f636f756e7465721a27"
    "736176655f636f756e7465722f2e415454524942555445532f5641524941424c455f56414c55452a020801"
)
OBJECT_BASED = sorted(
    path.parent.relative_to(GOLDEN).as_posix()
    for path in GOLDEN.rglob("expected.json")
    if json.loads(path.read_text(encoding="utf-8")).get("object_graph")
)
DEEP = 100_000


def variable(name: str, key: str) -> tuple[SerializedTensor, ...]:
    return (SerializedTensor(VARIABLE_VALUE, name, f"{key}/.ATTRIBUTES/VARIABLE_VALUE"),)


def children(*edges: tuple[str, int]) -> tuple[ObjectReference, ...]:
    return tuple(ObjectReference(node_id, name) for name, node_id in edges)


# 0 --model--> 1 --kernel--> 3, 0 --optimizer--> 2, whose "m" of 3 is 4; 0 --tied--> 1.
SMALL = ObjectGraph(
    (
        TrackableObject(children(("model", 1), ("optimizer", 2), ("tied", 1))),
        TrackableObject(children(("kernel", 3))),
        TrackableObject(slot_variables=(SlotVariable(3, "m", 4),)),
        TrackableObject(attributes=variable("kernel", "model/kernel")),
        TrackableObject(attributes=variable("kernel/Adam", "model/kernel/.OPTIMIZER_SLOT/optimizer/m")),
    )
)


def message(**node: object) -> TrackableObjectGraph:
    """Return a message of three nodes, the first as given."""
    nodes = [TrackableObjectGraph.TrackableObject(**node) for node in (node, {}, {})]  # type: ignore[arg-type]
    return TrackableObjectGraph(nodes=nodes)


# Messages.


def test_the_worked_example_is_read() -> None:
    """Two variables below the root, each with its name and key."""
    graph = ObjectGraph.decode(EXAMPLE)
    assert graph.nodes == (
        TrackableObject(children(("v", 1), ("save_counter", 2)), has_checkpoint_values=True),
        TrackableObject(attributes=variable("vname", "v"), has_checkpoint_values=True),
        TrackableObject(attributes=variable("save_counter", "save_counter"), has_checkpoint_values=True),
    )


def test_the_worked_example_is_written() -> None:
    """Built from its parts, it is byte-identical to TensorFlow's."""
    counter = checkpoint_key(object_path(["save_counter"]), VARIABLE_VALUE)
    nodes = with_checkpoint_values(
        [
            TrackableObject(children(("v", 1), ("save_counter", 2))),
            TrackableObject(attributes=variable("vname", "v")),
            TrackableObject(attributes=(SerializedTensor(VARIABLE_VALUE, "save_counter", counter),)),
        ]
    )
    assert ObjectGraph(nodes).encode() == EXAMPLE


@pytest.mark.parametrize("folder", OBJECT_BASED)
def test_graphs_of_real_checkpoints_round_trip(folder: str) -> None:
    """Decoding and encoding TensorFlow's graphs yields equal messages.

    The bytes are equal too, except for one graph whose fields are in a different order.
    """
    prefix = json.loads((GOLDEN / folder / "expected.json").read_text(encoding="utf-8"))["prefix"]
    with tfckpt.CheckpointReader(GOLDEN / folder / prefix) as reader:
        stored = np.asarray(reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH"), dtype=object).item()
        assert reader.object_graph is not None
        again = reader.object_graph.encode()
    assert TrackableObjectGraph.FromString(again) == TrackableObjectGraph.FromString(stored)
    assert again == stored or folder == "reordered-object-graph"


def test_real_graphs_were_found() -> None:
    """Otherwise the parametrized test above would pass without checking anything."""
    assert len(OBJECT_BASED) >= 8


def test_every_field_is_kept() -> None:
    """A registered saver, and the flag that old writers omit, in its three states."""
    nodes = tuple(
        TrackableObject(registered_saver=RegisteredSaver("package.saver", "way/to"), has_checkpoint_values=flag)
        for flag in (None, False, True)
    )
    assert ObjectGraph.decode(ObjectGraph(nodes).encode()).nodes == nodes
    # TensorFlow writes false too: `2a 00`.
    assert ObjectGraph((TrackableObject(has_checkpoint_values=False),)).encode() == b"\x0a\x02\x2a\x00"


@pytest.mark.parametrize("other", [-1, 3, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize(
    "naming",
    [
        lambda other: {"children": [{"node_id": other, "local_name": "c"}]},
        lambda other: {"slot_variables": [{"original_variable_node_id": other}]},
        lambda other: {"slot_variables": [{"slot_variable_node_id": other}]},
    ],
    ids=["child", "variable", "slot variable"],
)
def test_references_to_missing_nodes_are_refused(naming: Callable[[int], dict[str, object]], other: int) -> None:
    """DataLossError for a negative or too large id; the message names both nodes."""
    with pytest.raises(DataLossError, match=rf"node 0 refers to node {other}, but there are 3 nodes.*Copy it again"):
        ObjectGraph.decode(message(**naming(other)).SerializeToString())


def test_a_duplicate_attribute_is_refused() -> None:
    """DataLossError, because it is ambiguous which of the two is meant."""
    twice = message(attributes=[{"name": "a\n", "checkpoint_key": key} for key in ("one", "two")])
    with pytest.raises(DataLossError, match=r'node 0 has the attribute "a\\n" twice'):
        ObjectGraph.decode(twice.SerializeToString())


@pytest.mark.parametrize(
    "stored",
    [b"no message", EXAMPLE[:-1], EXAMPLE[:40], b"\x0a\x07\x0a\x05\x12\x03\xff\xfe\xfd", b"\xff" * 20],
    ids=["text", "cut by a byte", "cut in half", "not UTF-8", "endless varint"],
)
def test_bytes_that_are_not_a_graph_are_refused(stored: bytes) -> None:
    """DataLossError with an explanation, never an error of protobuf."""
    with pytest.raises(DataLossError, match=r"this is not an object graph.*damaged"):
        ObjectGraph.decode(stored)


def test_an_empty_graph() -> None:
    """An empty message is a graph without nodes, in which every lookup fails."""
    graph = ObjectGraph.decode(b"")
    assert graph.nodes == () and graph.names_to_keys() == {}
    assert graph.slot_variable_ids == frozenset()


def test_unknown_fields_are_ignored() -> None:
    """Fields that TensorFlow may add in the future do no harm."""
    assert ObjectGraph.decode(EXAMPLE + b"\x7a\x03new").nodes == ObjectGraph.decode(EXAMPLE).nodes


# Names and keys.


def test_names_to_keys() -> None:
    """If a name occurs twice, the last key counts; attributes that are not variables have the name ""."""
    graph = ObjectGraph(
        (
            TrackableObject(children(("a", 1), ("b", 2)), (SerializedTensor("py_state", "", "/.ATTRIBUTES/py_state"),)),
            TrackableObject(attributes=variable("v", "a")),
            TrackableObject(attributes=variable("v", "b")),
        )
    )
    assert graph.names_to_keys() == {"": "/.ATTRIBUTES/py_state", "v": "b/.ATTRIBUTES/VARIABLE_VALUE"}


def test_two_attributes_may_have_one_key() -> None:
    """Both names map to the same key."""
    graph = ObjectGraph(
        (
            TrackableObject(children(("a", 1), ("b", 2))),
            TrackableObject(attributes=variable("v", "a")),
            TrackableObject(attributes=variable("w", "a")),
        )
    )
    assert set(ObjectGraph.decode(graph.encode()).names_to_keys()) == {"v", "w"}


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        ("a/b", "a.Sb"),
        ("x.y", "x..y"),
        ("d/.S", "d.S..S"),
        (".ATTRIBUTES", "..ATTRIBUTES"),
        ("a.Sb", "a..Sb"),
        ("", ""),
    ],
)
def test_local_names_are_escaped_as_in_tensorflow(name: str, escaped: str) -> None:
    """Examples written by TensorFlow 2.21."""
    assert escape_local_name(name) == escaped


def test_keys() -> None:
    """Attributes of the root and of other objects, and slot variables."""
    assert checkpoint_key(object_path([]), "py_state") == "/.ATTRIBUTES/py_state"
    assert checkpoint_key(object_path(["a", "b/c"]), VARIABLE_VALUE) == "a/b.Sc/.ATTRIBUTES/VARIABLE_VALUE"
    assert slot_variable_path("model/kernel", "optimizer", "m/0") == "model/kernel/.OPTIMIZER_SLOT/optimizer/m.S0"


# Paths through the graph.


def test_paths_and_names() -> None:
    """The shortest path; ties go to the first child. Slot variables have a name but no path."""
    assert [SMALL.route(node_id) for node_id in range(5)] == [(), ("model",), ("optimizer",), ("model", "kernel"), None]
    assert [SMALL.name(node_id) for node_id in range(5)] == [
        "(root)",
        "(root).model",
        "(root).optimizer",
        "(root).model.kernel",
        "(root).optimizer's state 'm' for (root).model.kernel",
    ]
    assert SMALL.slot_variable_ids == {4}


def test_the_shortest_path_wins_over_the_first() -> None:
    """A shared object is named by its first path breadth-first: list l=[v], same=v -> "same"."""
    graph = ObjectGraph((TrackableObject(children(("l", 1), ("same", 2))), TrackableObject(children(("0", 2)))))
    graph = ObjectGraph((*graph.nodes, TrackableObject()))
    assert graph.route(2) == ("same",)


def test_loops() -> None:
    """Children that refer to their parents, the root or themselves: every node is visited once."""
    graph = ObjectGraph(
        (
            TrackableObject(children(("self", 0), ("a", 1))),
            TrackableObject(children(("root", 0), ("me", 1), ("b", 2))),
            TrackableObject(children(("up", 1))),
        )
    )
    assert [graph.route(node_id) for node_id in range(3)] == [(), ("a",), ("a", "b")]


def test_unreachable_nodes() -> None:
    """They have no path, and their name contains the id; the same applies to their slot variables."""
    graph = ObjectGraph(
        (TrackableObject(), TrackableObject(), TrackableObject(slot_variables=(SlotVariable(2, "m", 2),)))
    )
    assert graph.route(1) is None and graph.name(1) == "(node 1)"
    assert graph.name(2) == "(node 2)'s state 'm' for (node 2)"


def test_a_chain_100000_deep() -> None:
    """Nothing recurses: the path to the last node and its flags are computed."""
    links = [TrackableObject(children(("c", i + 1))) for i in range(DEEP)]
    nodes = with_checkpoint_values([*links, TrackableObject(attributes=variable("v", "c"))])
    graph = ObjectGraph.decode(ObjectGraph(nodes).encode())
    assert graph.route(DEEP) == ("c",) * DEEP
    assert graph.route(DEEP - 1) == ("c",) * (DEEP - 1)
    assert all(node.has_checkpoint_values for node in graph.nodes)


def test_megabyte_names() -> None:
    """Very long names work like any others."""
    long = "n" * 1_000_000
    graph = ObjectGraph((TrackableObject(children((long, 1))), TrackableObject(attributes=variable(long, long))))
    again = ObjectGraph.decode(graph.encode())
    assert again.route(1) == (long,) and list(again.names_to_keys()) == [long]


def test_child() -> None:
    """Return the id of the child with that name, or None."""
    assert SMALL.nodes[0].child("tied") == 1
    assert SMALL.nodes[0].child("tie") is None


def test_the_error_for_other_checkpoints() -> None:
    """The message contains TensorFlow's words, the path, and which function to use."""
    error = not_object_based("run/model.ckpt-1")
    assert isinstance(error, NotFoundError)
    assert str(error).startswith("Key _CHECKPOINTABLE_OBJECT_GRAPH not found in checkpoint: run/model.ckpt-1")
    assert "Saver" in str(error)


# has_checkpoint_values.


def test_has_checkpoint_values() -> None:
    """Set for nodes with attributes, slot variables or a registered saver, and all their ancestors, even in a loop."""
    nodes = with_checkpoint_values(
        [
            TrackableObject(children(("a", 1), ("b", 2))),
            TrackableObject(children(("v", 3), ("up", 0))),
            TrackableObject(children(("nothing", 4))),
            TrackableObject(attributes=variable("v", "a/v")),
            TrackableObject(children(("up", 2))),
            TrackableObject(children(("s", 6))),
            TrackableObject(registered_saver=RegisteredSaver("p.s", "s")),
            TrackableObject(slot_variables=(SlotVariable(3, "m", 3),)),
        ]
    )
    assert [node.has_checkpoint_values for node in nodes] == [True, True, False, True, False, True, True, True]


@st.composite
def graphs(draw: st.DrawFn) -> ObjectGraph:
    """Nodes with arbitrary children, names that repeat across nodes but not within one, and slot variables."""
    count = draw(st.integers(1, 8))
    node_ids = st.integers(0, count - 1)
    nodes = []
    for _ in range(count):
        names = draw(st.lists(st.sampled_from("abcd"), unique=True, max_size=4))
        edges = tuple(ObjectReference(draw(node_ids), name) for name in names)
        slots = tuple(SlotVariable(draw(node_ids), name, draw(node_ids)) for name in draw(st.sampled_from(["", "m"])))
        nodes.append(TrackableObject(edges, variable("v", "k") if draw(st.booleans()) else (), slots))
    return ObjectGraph(tuple(nodes))


def renumbered(graph: ObjectGraph, new: list[int]) -> ObjectGraph:
    """Return the same graph with node i under the id new[i]."""
    moved = {
        new[node_id]: TrackableObject(
            tuple(ObjectReference(new[child.node_id], child.local_name) for child in node.children),
            node.attributes,
            tuple(SlotVariable(new[a], name, new[b]) for a, name, b in node.slot_variables),
        )
        for node_id, node in enumerate(graph.nodes)
    }
    return ObjectGraph(tuple(moved[node_id] for node_id in range(len(moved))))


@settings(max_examples=100)
@given(graph=graphs(), data=st.data())
def test_renumbering_nodes_changes_nothing(graph: ObjectGraph, data: st.DataObject) -> None:
    """With any other node numbers, except the root's 0, all paths, names and flags are the same."""
    new = [0, *data.draw(st.permutations(range(1, len(graph.nodes))))]
    other = renumbered(graph, new)
    assert [other.route(i) for i in new] == [graph.route(i) for i in range(len(new))]
    reached = [i for i in range(len(new)) if graph.route(i) is not None]
    assert [other.name(new[i]) for i in reached] == [graph.name(i) for i in reached]
    flags = [node.has_checkpoint_values for node in with_checkpoint_values(graph.nodes)]
    assert [with_checkpoint_values(other.nodes)[i].has_checkpoint_values for i in new] == flags


@settings(max_examples=100)
@given(graph=graphs())
def test_every_graph_round_trips(graph: ObjectGraph) -> None:
    """Every graph decodes to what was encoded, and its paths lead to the right nodes."""
    again = ObjectGraph.decode(graph.encode())
    assert again.nodes == graph.nodes
    for node_id in range(len(again.nodes)):
        route = again.route(node_id)
        here: int | None = 0
        for name in route or ():
            assert here is not None
            here = again.nodes[here].child(name)
        assert route is None or here == node_id
