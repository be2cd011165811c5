"""GraphDefs decoded in place: the same nodes, functions and attributes as in the protobuf messages."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_tfckpt._proto.attr_value_pb2 import AttrValue
from torch_tfckpt._proto.function_pb2 import FunctionDef
from torch_tfckpt._proto.graph_pb2 import GraphDef
from torch_tfckpt._proto.node_def_pb2 import NodeDef
from torch_tfckpt.errors import DataLossError
from torch_tfckpt.format.graph_def import Function, Graph, Node
from torch_tfckpt.format.wire import sized_tag

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
LARGE = 1 << 17  # nodes of this size are decoded without their attributes


@st.composite
def node_defs(draw: st.DrawFn) -> NodeDef:
    """NodeDefs, half of them so large that they are decoded without their attributes."""
    message = NodeDef(name=draw(TEXT), op=draw(TEXT), device=draw(TEXT), input=draw(st.lists(TEXT, max_size=4)))
    for name in draw(st.lists(TEXT, max_size=3)):
        message.attr[name].i = draw(st.integers(-(2**63), 2**63 - 1))
    if draw(st.booleans()):
        message.attr[draw(TEXT)].tensor.tensor_content = bytes(LARGE)
    message.experimental_debug_info.original_node_names.extend(draw(st.lists(TEXT, max_size=2)))
    return message


def graph_of(*nodes: NodeDef) -> Graph:
    return Graph(memoryview(GraphDef(node=nodes).SerializeToString()))


# Nodes.


@settings(max_examples=100)
@given(node_defs())
def test_a_node_equals_its_message(message: NodeDef) -> None:
    """Name, operation, device, inputs and every attribute, for small and large nodes."""
    node = Node(memoryview(message.SerializeToString()))
    assert (node.name, node.op, node.device, node.inputs) == (
        message.name, message.op, message.device, tuple(message.input),
    )  # fmt: skip
    for name, value in message.attr.items():
        assert node.attr(name) == value
    assert node.attr("no such name") is None or "no such name" in message.attr


def test_repeated_fields_are_merged_as_in_protobuf() -> None:
    """The last name, all inputs, the last of two attributes of the same name; also after a large node's attributes."""
    first, second = NodeDef(name="a", op="X", input=["i"]), NodeDef(name="b", input=["j"])
    first.attr["T"].s = bytes(LARGE)
    second.attr["T"].i = 2
    raw = first.SerializeToString() + second.SerializeToString()
    expected, node = NodeDef.FromString(raw), Node(memoryview(raw))
    assert (node.name, node.op, node.inputs) == ("b", "X", ("i", "j"))
    assert (node.name, node.op, node.inputs) == (expected.name, expected.op, tuple(expected.input))
    assert node.attr("T") == expected.attr["T"] == AttrValue(i=2)


def test_attributes_without_key_or_value() -> None:
    """A map entry may lack either: it has the empty name or the empty value."""
    value = AttrValue(i=3).SerializeToString()
    raw = sized_tag(5, 2 + len(value)) + sized_tag(2, len(value)) + value + sized_tag(5, 3) + sized_tag(1, 1) + b"x"
    node, expected = Node(memoryview(raw)), NodeDef.FromString(raw)
    assert node.attr("") == expected.attr[""] == AttrValue(i=3)
    assert node.attr("x") == expected.attr["x"] == AttrValue()


@pytest.mark.parametrize("size", [0, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(
    "broken", [b"\x0a\x05ab", b"\x0a\x01\xff", b"\x1a\x01\xff", b"\x2a\x7f", b"\x0b"],
    ids=["cut off", "name is not UTF-8", "input is not UTF-8", "attribute cut off", "open group"],
)  # fmt: skip
def test_a_broken_node_is_an_error(broken: bytes, size: int) -> None:
    message = NodeDef(name="a")
    if size:
        message.attr["value"].s = bytes(size)
    with pytest.raises(DataLossError):
        Node(memoryview(message.SerializeToString() + broken))


def test_a_broken_attribute_is_an_error_on_access() -> None:
    """In a large node, the other attributes and the node itself remain accessible."""
    message = NodeDef(name="a/b", op="X")
    message.attr["value"].s = bytes(LARGE)
    message.attr["T"].i = 1
    node = Node(memoryview(message.SerializeToString() + sized_tag(5, 6) + sized_tag(1, 1) + b"x" + b"\x12\x01\xff"))
    assert node.name == "a/b" and node.attr("T") == AttrValue(i=1)
    with pytest.raises(DataLossError, match=r'node "a/b", attribute "x": .*invalid NodeDef of .* bytes'):
        node.attr("x")


def test_the_repr_of_a_node() -> None:
    node = Node(memoryview(NodeDef(name="a", op="Add", input=["x", "^y"]).SerializeToString()))
    assert repr(node) == "Node('a', 'Add', inputs=['x', '^y'])"


# Graphs.


@settings(max_examples=50)
@given(st.lists(node_defs(), max_size=5, unique_by=lambda node: node.name))
def test_a_graph_has_the_nodes_of_its_message(messages: list[NodeDef]) -> None:
    """In order, each under its name; counted by operation."""
    graph = graph_of(*messages)
    assert list(graph.nodes) == [node.name for node in messages]
    assert [NodeDef.FromString(bytes(node.raw)) for node in graph.nodes.values()] == messages
    assert graph.op_counts() == Counter(node.op for node in messages)


def test_two_nodes_of_one_name_are_an_error() -> None:
    """TensorFlow refuses such a graph, too. The nodes can be iterated, but not looked up."""
    graph = graph_of(NodeDef(name="a"), NodeDef(name="b"), NodeDef(name="a"))
    assert [node.name for node in graph.iter_nodes()] == ["a", "b", "a"]
    with pytest.raises(DataLossError, match='two nodes are named "a"'):
        _ = graph.nodes


def test_the_error_for_a_broken_node_contains_its_index() -> None:
    graph = Graph(memoryview(GraphDef(node=[NodeDef(name="a")]).SerializeToString() + sized_tag(1, 1) + b"\xff"))
    with pytest.raises(DataLossError, match=r"^part 1 of the graph: "):
        _ = graph.nodes


def test_versions_are_merged_as_in_protobuf() -> None:
    assert not graph_of().versions.producer
    parts = [GraphDef(), GraphDef()]
    parts[0].versions.producer, parts[1].versions.min_consumer = 27, 12
    versions = Graph(memoryview(b"".join(part.SerializeToString() for part in parts))).versions
    assert (versions.producer, versions.min_consumer) == (27, 12)
    with pytest.raises(DataLossError, match="not a VersionDef"):
        _ = Graph(memoryview(sized_tag(4, 1) + b"\xff")).versions


# Functions.


def function_def() -> FunctionDef:
    message = FunctionDef()
    message.signature.name = "f"
    message.signature.input_arg.add(name="x")
    message.signature.input_arg.add(name="y")
    message.node_def.add(name="sum", op="Add", input=["x", "y"])
    message.ret["out"] = "sum:z:0"
    return message


def test_a_function_equals_its_message() -> None:
    message = GraphDef(node=[NodeDef(name="call", op="f")])
    message.library.function.append(function_def())
    graph = Graph(memoryview(message.SerializeToString()))
    assert list(graph.functions) == ["f"]
    function = graph.functions["f"]
    assert (function.name, function.arguments, dict(function.results)) == ("f", ("x", "y"), {"out": "sum:z:0"})
    assert function.nodes["sum"].inputs == ("x", "y")
    assert list(graph.nodes) == ["call"]


def test_two_libraries_are_merged() -> None:
    """A repeated field adds to the message."""
    libraries = [GraphDef(), GraphDef()]
    for name, part in zip("ab", libraries, strict=True):
        part.library.function.add().signature.name = name
    graph = Graph(memoryview(b"".join(part.SerializeToString() for part in libraries)))
    assert list(graph.functions) == ["a", "b"]


@pytest.mark.parametrize(
    ("broken", "finding"),
    [
        (sized_tag(1, 1) + b"\xff", "signature is not an OpDef"),
        (sized_tag(3, 1) + b"\xff", "invalid NodeDef"),
        (sized_tag(3, 3) + b"\x0a\x01a" + sized_tag(3, 3) + b"\x0a\x01a", 'two nodes are named "a"'),
        (sized_tag(4, 1) + b"\xff", "integer at byte 0"),
    ],
    ids=["signature", "node", "duplicate node names", "result"],
)
def test_a_broken_function_is_an_error(broken: bytes, finding: str) -> None:
    with pytest.raises(DataLossError, match=finding):
        Function(memoryview(function_def().SerializeToString() + broken))
