r"""A graph as a drawing for graphviz, its name scopes folded.

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

Nodes whose names begin with the same parts are drawn as one: at depth 1 "dense/MatMul" and "dense/kernel/read" are
"dense". A variable has a box of its own where its whole name is no deeper than that. An arrow says how many tensors go
along it, a dashed one how many nodes must have run before.

Source: https://graphviz.org/doc/info/lang.html; the scopes: tf.name_scope.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.graph_def import Graph
from torch_tfckpt.text import escaped, listed

_OPS: Final = 4  # operations that a label names
_NAME: Final = 80  # characters of a name


@dataclass(slots=True)
class _Scope:
    """What is drawn as one."""

    id: str
    ops: Counter[str] = field(default_factory=Counter)
    boxes: int = 0  # variables folded into it


# (from, to, whether it only says what runs first) -> what goes along: outputs of nodes, or nodes.
_Edges = dict[tuple[str, str, bool], set[tuple[str, str]]]


def dot_lines(graph: Graph, boxes: Mapping[str, str], depth: int = 1) -> Iterator[str]:
    """The lines of a .dot file, the same for the same graph.

    Args:
        boxes: Name of a variable's node -> what its box says below the name: "float32 [4,3]".
        depth: How many parts of a name tell scopes apart, 1 or more.

    Raises:
        InvalidArgumentError: `depth` is less.
        DataLossError: a part of the graph is broken.

    Cost: a walk over the graph, memory for its edges. Functions are not drawn.
    """
    if depth < 1:
        raise InvalidArgumentError(f"depth {depth}: scopes can be told apart by 1 part of their names or more")
    scopes = _scopes(graph, boxes, depth)
    edges, missing = _edges(graph, depth)
    yield f"// Nodes of the graph: {len(graph.nodes)}. Functions of its library, not drawn: {len(graph.functions)}."
    if missing:
        yield f"// Inputs that no node of the graph gives, not drawn: {missing}."
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
    """Name -> scope, in the order in which the graph has them."""
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
    """The edges between scopes, and how many inputs lead nowhere."""
    edges: _Edges = {}
    missing = 0
    for node in graph.nodes.values():
        end = _scope_name(node.name, depth)
        for text in node.inputs:
            is_control = text.startswith("^")
            source, output = _source(text)
            if source not in graph.nodes:
                missing += 1
                continue
            start = _scope_name(source, depth)
            if start != end:
                edges.setdefault((start, end, is_control), set()).add((source, output))
    return edges, missing


def _source(text: str) -> tuple[str, str]:
    """Node and output of an input: "w:1", "w" for its first output, "^w" for none."""
    name, _, output = text.removeprefix("^").partition(":")
    return name, output or "0"


def _label(name: str, scope: _Scope, box: str | None) -> str:
    """Name, what it is, and what is folded into it."""
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
    r"""Between double quotes in a label: there "\N" and "&lt;" are more than themselves."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;")
