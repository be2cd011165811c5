"""Drawings of graphs for graphviz."""

import re
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_tfckpt._proto.graph_pb2 import GraphDef
from torch_tfckpt.errors import DataLossError, InvalidArgumentError
from torch_tfckpt.format.graph_def import Graph
from torch_tfckpt.meta_graph import dot
from torch_tfckpt.meta_graph.dot import dot_lines

# The grammar of our output: in quoted strings, a backslash escapes the next character.
STRING = r'"((?:[^"\\\n]|\\[^\n])*)"'
NODE = re.compile(rf"  (n\d+) \[label={STRING}(, shape=box)?\];")
EDGE = re.compile(r'  (n\d+) -> (n\d+) \[label="(\d+)"(, style=dashed)?\];')

DENSE = {
    "x": ("Placeholder", []),
    "w": ("VariableV2", []),
    "w/Assign": ("Assign", ["w", "w/initial"]),
    "dense/MatMul": ("MatMul", ["x", "w"]),
    "dense/add/y": ("Const", []),
    "dense/add": ("Add", ["dense/MatMul:0", "dense/add/y"]),
    "dense/Relu": ("Relu", ["dense/add"]),
    "init": ("NoOp", ["^w/Assign"]),
    "w/initial": ("Const", []),
}


def graph_of(nodes: Mapping[str, tuple[str, Sequence[str]]]) -> Graph:
    """Name -> (operation, inputs)."""
    graph = GraphDef()
    for name, (op, inputs) in nodes.items():
        graph.node.add(name=name, op=op, input=inputs)
    return Graph(memoryview(graph.SerializeToString()))


def drawn(lines: Sequence[str]) -> tuple[dict[str, tuple[str, bool]], dict[tuple[str, str, bool], int]]:
    """Id -> (label, whether it is a box), and (from, to, whether dashed) -> number; checks everything else."""
    body = [line for line in lines if not line.startswith("//")]
    assert body[:2] == ["digraph {", "  node [shape=ellipse];"] and body[-1] == "}"
    nodes, edges = {}, {}
    for line in body[2:-1]:
        node, edge = NODE.fullmatch(line), EDGE.fullmatch(line)
        if node:
            assert node[1] not in nodes
            nodes[node[1]] = (node[2], bool(node[3]))
        else:
            assert edge, line
            assert edge[1] in nodes and edge[2] in nodes and (edge[1], edge[2], bool(edge[4])) not in edges
            edges[edge[1], edge[2], bool(edge[4])] = int(edge[3])
    return nodes, edges


def named(lines: Sequence[str]) -> tuple[set[str], dict[tuple[str, str, bool], int]]:
    """Return the first lines of the labels, and the edges between these."""
    nodes, edges = drawn(lines)
    names = {node_id: label.partition(r"\n")[0] for node_id, (label, _) in nodes.items()}
    return set(names.values()), {(names[a], names[b], dashed): count for (a, b, dashed), count in edges.items()}


def test_the_example_in_the_docstring() -> None:
    """It is the output for its graph."""
    shown = list(dot_lines(graph_of(DENSE), {"w": "float32 [4,3]"}))
    from_docstring = (dot.__doc__ or "").partition("    //")[2].partition("\n\n")[0]
    assert shown == [line[4:] for line in f"    //{from_docstring}".splitlines()]
    drawn(shown)


def test_depth_expands_scopes() -> None:
    """At depth 2 each node of "dense" is drawn by itself, with the nodes below it; a larger depth shows all nodes."""
    graph = graph_of(DENSE)
    names, edges = named(list(dot_lines(graph, {"w": ""}, 2)))
    assert names == {"x", "w", "w/Assign", "w/initial", "dense/MatMul", "dense/add", "dense/Relu", "init"}
    assert edges["dense/MatMul", "dense/add", False] == 1 and edges["w/Assign", "init", True] == 1
    names, _ = named(list(dot_lines(graph, {}, 3)))
    assert names == set(DENSE)
    assert list(dot_lines(graph, {}, 3)) == list(dot_lines(graph, {}, 1 << 40))


def test_an_arrow_counts_tensors_not_uses() -> None:
    """An output used twice counts once, "a" is "a:0"; control dependencies are counted separately."""
    graph = graph_of(
        {
            "a/x": ("Split", []),
            "b/1": ("Add", ["a/x", "a/x:0"]),
            "b/2": ("Add", ["a/x:1", "a/x:12", "^a/x"]),
            "b/3": ("Neg", ["b/1", "^a/x"]),
        }
    )
    assert named(list(dot_lines(graph, {})))[1] == {("a", "b", False): 3, ("a", "b", True): 1}


def test_loops_are_drawn() -> None:
    """A while loop has an edge back; inside one scope it is not visible."""
    graph = graph_of({"m": ("Merge", ["e", "n"]), "e": ("Enter", []), "n": ("NextIteration", ["m"])})
    assert named(list(dot_lines(graph, {})))[1] == {("e", "m", False): 1, ("n", "m", False): 1, ("m", "n", False): 1}
    inside = graph_of({"w/m": ("Merge", ["w/n"]), "w/n": ("NextIteration", ["w/m"])})
    assert named(list(dot_lines(inside, {}))) == ({"w"}, {})


def test_variables_are_boxes_if_they_are_not_inside_a_scope() -> None:
    """Otherwise the scope's label counts them; so does a variable with others below its name."""
    variables: dict[str, tuple[str, list[str]]] = {
        "v": ("VariableV2", []),
        "v/Adam": ("VariableV2", []),
        "s/w": ("VarHandleOp", []),
        "s/op": ("Add", []),
    }
    boxes = {"v": "int32 []", "v/Adam": "int32 []", "s/w": "float32 [2]"}
    assert list(drawn(list(dot_lines(graph_of(variables), boxes)))[0].values()) == [
        (r"v\nint32 []\nvariables inside: 1", True),
        (r"s\n2 nodes: Add 1, VarHandleOp 1\nvariables inside: 1", False),
    ]
    assert [box for _, box in drawn(list(dot_lines(graph_of(variables), boxes, 2)))[0].values()] == [
        True,
        True,
        True,
        False,
    ]


def test_a_label_names_the_most_frequent_operations() -> None:
    """Four of them, sorted by frequency and name, and the number of the others."""
    ops = ["Sub", "Add", "Mul", "Add", "Neg", "Abs", "Mul", "Exp", "Add"]
    graph = graph_of({f"s/{index}": (op, []) for index, op in enumerate(ops)})
    assert drawn(list(dot_lines(graph, {})))[0] == {"n0": (r"s\n9 nodes: Add 3, Mul 2, Abs 1, Exp 1 and 2 more", False)}


def test_parts_that_are_not_drawn_are_counted() -> None:
    """Comments count the library's functions and the inputs from missing nodes."""
    message = GraphDef.FromString(bytes(graph_of({"a": ("Neg", ["gone:1", "^gone"])}).raw))
    message.library.function.add().signature.name = "f"
    lines = list(dot_lines(Graph(memoryview(message.SerializeToString())), {}))
    assert lines[:2] == [
        "// Nodes of the graph: 1. Functions of its library, not drawn: 1.",
        "// Inputs from missing nodes, not drawn: 2.",
    ]


def test_an_empty_graph() -> None:
    assert drawn(list(dot_lines(Graph(memoryview(b"")), {}))) == ({}, {})


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ('a"b', r"a\"b"),
        ("a\\", r"a\\"),
        ("a\\N", r"a\\N"),
        ("a\nb", r"a\\nb"),
        ("\x1b[31mred", r"\\x1b[31mred"),
        ("a&lt;b", "a&amp;lt;b"),
        ("<b>", "<b>"),
        ("", ""),
        ("]; n9 -> n9 //", "]; n9 -> n9 //"),
        ("\u202eevil", r"\\u202eevil"),
        ("m" * 1_000_000, f"{'m' * 60}...{'m' * 10}"),
    ],
    ids=["quote", "backslash", "escape", "newline", "ansi", "entity", "html", "empty", "code", "bidi", "long"],
)
def test_names_are_data(name: str, label: str) -> None:
    """No name ends its label, or has a meaning for graphviz or a terminal."""
    lines = list(dot_lines(graph_of({name: (name, []), "other": ("Neg", [name])}), {name: name}, depth=9))
    assert drawn(lines)[0]["n0"] == (rf"{label}\n{label}", True)
    assert all(line.isprintable() and len(line) < 1000 for line in lines)


NAMES = st.text(max_size=6, alphabet='a/b"\\\n&<:^;\x1b')


@settings(max_examples=100)
@given(
    nodes=st.dictionaries(NAMES, st.tuples(NAMES, st.lists(NAMES, max_size=3)), max_size=6),
    boxes=st.dictionaries(NAMES, NAMES, max_size=3),
    depth=st.integers(1, 4),
)
def test_any_graph_is_drawn(nodes: dict[str, tuple[str, list[str]]], boxes: dict[str, str], depth: int) -> None:
    """With our grammar, deterministically, and with each node in one of the scopes."""
    lines = list(dot_lines(graph_of(nodes), boxes, depth))
    assert lines == list(dot_lines(graph_of(nodes), boxes, depth))
    scopes, _ = drawn(lines)
    assert len(scopes) == len({"/".join(name.split("/")[:depth]) for name in nodes})


@pytest.mark.parametrize("depth", [0, -1])
def test_a_depth_below_one_is_rejected(depth: int) -> None:
    with pytest.raises(InvalidArgumentError, match=f"depth must be at least 1, got {depth}$"):
        list(dot_lines(graph_of(DENSE), {}, depth))


def test_a_damaged_graph() -> None:
    """Two nodes with the same name cannot be distinguished."""
    message = GraphDef()
    message.node.add(name="a")
    message.node.add(name="a")
    with pytest.raises(DataLossError, match="two nodes"):
        list(dot_lines(Graph(memoryview(message.SerializeToString())), {}))
