r"""Draw a graph for graphviz, with nodes collapsed by name scope.

    // Nodes of the graph: 9. Functions of its library, not drawn: 0.
    digraph {
      node [shape=ellipse];
      n0 [label="x\nPlaceholder"];
      n1 [label="w\nfloat32 [4,3]", shape=box];
      n2 [label="dense\n4 nodes: Add 1, Const 1, MatMul 1, Relu 1"];
      n3 [label="init\nNoOp"];
      n0 -> n2 [label="1"];
      n1 -> n2 [label="1"];
      n1 -> n3 [label="1", style=dashed];
    }

Nodes whose names begin with the same parts are drawn as one: at depth 1, "dense/MatMul" and "dense/kernel/read" are
both part of "dense". A variable has its own box unless its name has more parts than the depth. A solid arrow is
labeled with the number of tensors, a dashed one with the number of control dependencies.

Source: https://graphviz.org/doc/info/lang.html; the scopes: tf.name_scope.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.graph_def import Graph
from torch_tfckpt.text import escaped, listed

_OPS: Final = 4  # number of operations listed in a label
_NAME: Final = 80  # longer names are shortened


@dataclass(slots=True)
class _Scope:
    """Nodes of the graph that are drawn as a single node."""

    id: str
    ops: Counter[str] = field(default_factory=Counter)
    boxes: int = 0  # variables inside


# (from, to, whether the edge is a control dependency) -> the (node, output) pairs that are its sources.
_Edges = dict[tuple[str, str, bool], set[tuple[str, str]]]


def dot_lines(graph: Graph, boxes: Mapping[str, str], depth: int = 1) -> Iterator[str]:
    """Yield the lines of a .dot file; the result is deterministic. Functions are not drawn.

    Args:
        boxes: Name of a variable's node -> second line of its box: "float32 [4,3]".
        depth: Number of name parts that identify a scope, at least 1.

    Raises:
        InvalidArgumentError: `depth` is less than 1.
        DataLossError: a part of the graph is damaged.

    Cost: a walk over the graph, memory for its edges.
    """
    if depth < 1:
        raise InvalidArgumentError(f"depth must be at least 1, got {depth}")
    scopes = _scopes(graph, boxes, depth)
    edges, missing = _edges(graph, depth)
    yield f"// Nodes of the graph: {len(graph.nodes)}. Functions of its library, not drawn: {len(graph.functions)}."
    if missing:
        yield f"// Inputs from missing nodes, not drawn: {missing}."
    yield "digraph {"
    yield "  node [shape=ellipse];"
    for name, scope in scopes.items():
        shape = ", shape=box" if name in boxes else ""
        yield f'  {scope.id} [label="{_label(name, scope, boxes.get(name))}"{shape}];'
    for (start, end, is_control), carried in edges.items():
        style = ", style=dashed" if is_control else ""
        yield f'  {scopes[start].id} -> {scopes[end].id} [label="{len(carried)}"{style}];'
    yield "}"


def _scope_name(name: str, depth: int) -> str:
    return "/".join(name.split("/", depth)[:depth])


def _scopes(graph: Graph, boxes: Mapping[str, str], depth: int) -> dict[str, _Scope]:
    """Return name -> scope, in the order of the graph."""
    scopes: dict[str, _Scope] = {}
    for node in graph.nodes.values():
        name = _scope_name(node.name, depth)
        scope = scopes.get(name)
        if scope is None:
            scope = scopes[name] = _Scope(f"n{len(scopes)}")
        scope.ops[node.op] += 1
        scope.boxes += node.name in boxes and node.name != name
    return scopes


def _edges(graph: Graph, depth: int) -> tuple[_Edges, int]:
    """Return the edges between scopes, and the number of inputs whose node is missing."""
    edges: _Edges = {}
    missing = 0
    for node in graph.nodes.values():
        end = _scope_name(node.name, depth)
        for name in node.inputs:
            is_control = name.startswith("^")
            source, output = _source(name)
            if source not in graph.nodes:
                missing += 1
                continue
            start = _scope_name(source, depth)
            if start != end:
                edges.setdefault((start, end, is_control), set()).add((source, output))
    return edges, missing


def _source(name: str) -> tuple[str, str]:
    """Return the node and output of an input: "w:1", "w" for output 0, or "^w" for a control dependency."""
    node, _, output = name.removeprefix("^").partition(":")
    return node, output or "0"


def _label(name: str, scope: _Scope, box: str | None) -> str:
    """Return the label: name, operation or variable type, and a summary of the nodes inside."""
    lines = [escaped(name, limit=_NAME)]
    count = scope.ops.total()
    ranked = sorted(scope.ops.items(), key=lambda pair: (-pair[1], pair[0]))
    if box is not None:
        lines.append(escaped(box, limit=_NAME))
    elif count == 1:
        lines.append(escaped(ranked[0][0], limit=_NAME))
    else:
        ops = [f"{escaped(op, limit=_NAME)} {number}" for op, number in ranked]
        lines.append(f"{count} nodes: {listed(ops, _OPS, str)}")
    if scope.boxes:
        lines.append(f"variables inside: {scope.boxes}")
    return r"\n".join(map(_quotable, lines))


def _quotable(text: str) -> str:
    r"""Escape text for a double-quoted label, in which "\N" and "&lt;" have a special meaning."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;")
