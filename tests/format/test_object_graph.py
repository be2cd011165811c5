"""The object graph: messages to nodes and back, hostile ones too; ways and names of nodes."""

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

# Checkpoint(v=Variable(name "vname")).save, as TensorFlow 2.21 wrote it.
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
    """Of three nodes, the first as given."""
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
    """From its parts, byte for byte what TensorFlow wrote."""
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
def test_graphs_of_real_checkpoints_come_out_as_they_went_in(folder: str) -> None:
    """Graphs that TensorFlow wrote: decoded and encoded they are the same messages; the same bytes too, except one
    whose fields are in another order."""
    prefix = json.loads((GOLDEN / folder / "expected.json").read_text(encoding="utf-8"))["prefix"]
    with tfckpt.CheckpointReader(GOLDEN / folder / prefix) as reader:
        stored = np.asarray(reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH"), dtype=object).item()
        assert reader.object_graph is not None
        again = reader.object_graph.encode()
    assert TrackableObjectGraph.FromString(again) == TrackableObjectGraph.FromString(stored)
    assert again == stored or folder == "reordered-object-graph"


def test_there_are_real_graphs() -> None:
    """A parametrized test over nothing would pass."""
    assert len(OBJECT_BASED) >= 8


def test_every_field_is_kept() -> None:
    """A registered saver, and the flag that old writers leave out, in its three states."""
    nodes = tuple(
        TrackableObject(registered_saver=RegisteredSaver("package.saver", "way/to"), has_checkpoint_values=flag)
        for flag in (None, False, True)
    )
    assert ObjectGraph.decode(ObjectGraph(nodes).encode()).nodes == nodes
    # false is written, too, `2a 00`.
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
def test_nodes_that_are_not_there(naming: Callable[[int], dict[str, object]], other: int) -> None:
    """DataLossError for an id below 0 or beyond the last, saying who names what."""
    with pytest.raises(DataLossError, match=rf"node 0 refers to node {other}, of 3 nodes.*Copy it again"):
        ObjectGraph.decode(message(**naming(other)).SerializeToString())


def test_an_attribute_twice() -> None:
    """DataLossError: which of the two is meant is unknown."""
    twice = message(attributes=[{"name": "a\n", "checkpoint_key": key} for key in ("one", "two")])
    with pytest.raises(DataLossError, match=r'node 0 has the attribute "a\\n" twice'):
        ObjectGraph.decode(twice.SerializeToString())


@pytest.mark.parametrize(
    "stored",
    [b"no message", EXAMPLE[:-1], EXAMPLE[:40], b"\x0a\x07\x0a\x05\x12\x03\xff\xfe\xfd", b"\xff" * 20],
    ids=["text", "cut by a byte", "cut in half", "no UTF-8", "endless varint"],
)
def test_what_is_no_graph(stored: bytes) -> None:
    """DataLossError, never an error of protobuf."""
    with pytest.raises(DataLossError, match=r"this is not an object graph.*damaged"):
        ObjectGraph.decode(stored)


def test_a_graph_of_nothing() -> None:
    """No node at all, as of an empty message, is a graph in which nothing is found."""
    graph = ObjectGraph.decode(b"")
    assert graph.nodes == () and graph.names_to_keys() == {}
    assert graph.slot_variable_ids == frozenset()


def test_fields_of_later_versions_are_passed_over() -> None:
    """What TensorFlow may add one day does no harm."""
    assert ObjectGraph.decode(EXAMPLE + b"\x7a\x03new").nodes == ObjectGraph.decode(EXAMPLE).nodes


# Names and keys.


def test_names_to_keys() -> None:
    """For a name that occurs twice the last key counts; the name of what is not a variable is ""."""
    graph = ObjectGraph(
        (
            TrackableObject(children(("a", 1), ("b", 2)), (SerializedTensor("py_state", "", "/.ATTRIBUTES/py_state"),)),
            TrackableObject(attributes=variable("v", "a")),
            TrackableObject(attributes=variable("v", "b")),
        )
    )
    assert graph.names_to_keys() == {"": "/.ATTRIBUTES/py_state", "v": "b/.ATTRIBUTES/VARIABLE_VALUE"}


def test_two_attributes_may_have_one_key() -> None:
    """It is read as it is; both names lead there."""
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
def test_escapes(name: str, escaped: str) -> None:
    """Examples that TensorFlow wrote."""
    assert escape_local_name(name) == escaped


def test_keys() -> None:
    """The root's own attributes, those of others, and slot variables."""
    assert checkpoint_key(object_path([]), "py_state") == "/.ATTRIBUTES/py_state"
    assert checkpoint_key(object_path(["a", "b/c"]), VARIABLE_VALUE) == "a/b.Sc/.ATTRIBUTES/VARIABLE_VALUE"
    assert slot_variable_path("model/kernel", "optimizer", "m/0") == "model/kernel/.OPTIMIZER_SLOT/optimizer/m.S0"


# Ways through the graph.


def test_ways_and_names() -> None:
    """The shortest way; ties go to the first child. Slot variables have a name of their own and no way."""
    assert [SMALL.route(node_id) for node_id in range(5)] == [(), ("model",), ("optimizer",), ("model", "kernel"), None]
    assert [SMALL.name(node_id) for node_id in range(5)] == [
        "(root)",
        "(root).model",
        "(root).optimizer",
        "(root).model.kernel",
        "(root).optimizer's state 'm' for (root).model.kernel",
    ]
    assert SMALL.slot_variable_ids == {4}


def test_the_shorter_way_goes_before_the_first() -> None:
    """A shared object has the path that is found first, breadth first: l=[v], same=v -> "same"."""
    graph = ObjectGraph((TrackableObject(children(("l", 1), ("same", 2))), TrackableObject(children(("0", 2)))))
    graph = ObjectGraph((*graph.nodes, TrackableObject()))
    assert graph.route(2) == ("same",)


def test_loops() -> None:
    """Children that name their parents, the root, and themselves: every node is met once."""
    graph = ObjectGraph(
        (
            TrackableObject(children(("self", 0), ("a", 1))),
            TrackableObject(children(("root", 0), ("me", 1), ("b", 2))),
            TrackableObject(children(("up", 1))),
        )
    )
    assert [graph.route(node_id) for node_id in range(3)] == [(), ("a",), ("a", "b")]


def test_what_nothing_leads_to() -> None:
    """It has no way, and a name that says its id; so has a slot variable of what nothing leads to."""
    graph = ObjectGraph(
        (TrackableObject(), TrackableObject(), TrackableObject(slot_variables=(SlotVariable(2, "m", 2),)))
    )
    assert graph.route(1) is None and graph.name(1) == "(node 1)"
    assert graph.name(2) == "(node 2)'s state 'm' for (node 2)"


def test_a_chain_100000_deep() -> None:
    """Nothing recurses: the way to the end is found, and its flags are."""
    links = [TrackableObject(children(("c", i + 1))) for i in range(DEEP)]
    nodes = with_checkpoint_values([*links, TrackableObject(attributes=variable("v", "c"))])
    graph = ObjectGraph.decode(ObjectGraph(nodes).encode())
    assert graph.route(DEEP) == ("c",) * DEEP
    assert graph.route(DEEP - 1) == ("c",) * (DEEP - 1)
    assert all(node.has_checkpoint_values for node in graph.nodes)


def test_megabyte_names() -> None:
    """They are names like any other."""
    long = "n" * 1_000_000
    graph = ObjectGraph((TrackableObject(children((long, 1))), TrackableObject(attributes=variable(long, long))))
    again = ObjectGraph.decode(graph.encode())
    assert again.route(1) == (long,) and list(again.names_to_keys()) == [long]


def test_child() -> None:
    """The id of the child with a local name; None if there is none."""
    assert SMALL.nodes[0].child("tied") == 1
    assert SMALL.nodes[0].child("tie") is None


def test_the_error_for_other_checkpoints() -> None:
    """TensorFlow's words, the place, and what to use."""
    error = not_object_based("run/model.ckpt-1")
    assert isinstance(error, NotFoundError)
    assert str(error).startswith("Key _CHECKPOINTABLE_OBJECT_GRAPH not found in checkpoint: run/model.ckpt-1")
    assert "Saver" in str(error)


# Which nodes have values.


def test_who_has_values() -> None:
    """Nodes with attributes, slot variables or a registered saver, and all above them; a loop too."""
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
    """Nodes with any children, names that repeat among nodes but not within one, and slot variables."""
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
    """The same graph, node i under the id new[i]."""
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
def test_ids_are_only_ids(graph: ObjectGraph, data: st.DataObject) -> None:
    """Under any other numbers for the nodes, the root's 0 apart, all ways, names and flags are the same."""
    new = [0, *data.draw(st.permutations(range(1, len(graph.nodes))))]
    other = renumbered(graph, new)
    assert [other.route(i) for i in new] == [graph.route(i) for i in range(len(new))]
    reached = [i for i in range(len(new)) if graph.route(i) is not None]
    assert [other.name(new[i]) for i in reached] == [graph.name(i) for i in reached]
    flags = [node.has_checkpoint_values for node in with_checkpoint_values(graph.nodes)]
    assert [with_checkpoint_values(other.nodes)[i].has_checkpoint_values for i in new] == flags


@settings(max_examples=100)
@given(graph=graphs())
def test_what_is_written_is_read(graph: ObjectGraph) -> None:
    """Any graph comes back as it was, and its ways lead where they say."""
    again = ObjectGraph.decode(graph.encode())
    assert again.nodes == graph.nodes
    for node_id in range(len(again.nodes)):
        route = again.route(node_id)
        here: int | None = 0
        for name in route or ():
            assert here is not None
            here = again.nodes[here].child(name)
        assert route is None or here == node_id
