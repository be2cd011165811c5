"""A GraphDef decoded in place: constants of the graph are copied only on access.

    GraphDef    = node: NodeDef = 1 ... | versions = 4 | library: FunctionDefLibrary = 2
    NodeDef     = name = 1 | op = 2 | input = 3 ... | device = 4 | attr: map = 5 ...
    FunctionDefLibrary = function: FunctionDef = 1 ...
    FunctionDef = signature: OpDef = 1 | node_def: NodeDef = 3 ... | ret: map = 4 | control_ret: map = 6

An input is "node", "node:2" (its third output) or "^node" (a control dependency); inside a function it is an
argument's name or "node:output_arg:2". A Const stores its values in an attribute, which may be as large as the model;
therefore a Node contains the name, operation, inputs and device, and decodes attributes one at a time.

Source: tensorflow/core/framework/{graph,node_def,function}.proto. Explained in docs/formats/meta-graph.md.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Final

from google.protobuf.message import DecodeError

from torch_tfckpt._proto.attr_value_pb2 import AttrValue
from torch_tfckpt._proto.node_def_pb2 import NodeDef
from torch_tfckpt._proto.op_def_pb2 import OpDef
from torch_tfckpt._proto.versions_pb2 import VersionDef
from torch_tfckpt.errors import DataLossError, located
from torch_tfckpt.format.wire import Field, WireType, fields, replaced
from torch_tfckpt.text import quoted

_NODE: Final = 1  # field number in a GraphDef
_ATTR: Final = 5  # field number in a NodeDef
# Nodes above this size are decoded without their attributes, which are the large part.
_LARGE: Final = 1 << 16


class Node:
    """One operation of a graph.

    Attributes:
        raw: The serialized NodeDef.

    Raises:
        DataLossError: the bytes are not a NodeDef.
    """

    __slots__ = ("device", "inputs", "name", "op", "raw")

    def __init__(self, raw: memoryview) -> None:
        message = _decoded(raw, None)
        self.raw = raw
        self.name, self.op, self.device = message.name, message.op, message.device
        self.inputs = tuple(message.input)

    def attr(self, name: str) -> AttrValue | None:
        """Return one attribute, or None. Cost: decodes the node, or scans a large one."""
        try:
            return _decoded(self.raw, name).attr.get(name)
        except DataLossError as error:
            raise located(error, f"node {quoted(self.name)}, attribute {quoted(name)}") from error.__cause__

    def attributes(self) -> Mapping[str, AttrValue]:
        """Return all attributes. Cost: decodes the node."""
        try:
            return NodeDef.FromString(self.raw).attr  # type: ignore[arg-type]  # accepts views, but its stub says bytes
        except DecodeError as error:
            raise DataLossError(f"node {quoted(self.name)}: invalid attributes: {error}") from error

    def __repr__(self) -> str:
        return f"Node({self.name!r}, {self.op!r}, inputs={list(self.inputs)!r})"


class Function:
    """One function of a graph's library.

    Attributes:
        name: The name by which nodes call the function.
        arguments: Names of the input arguments, in order.
        outputs: Names of the output arguments, in order.
        nodes: Name -> node.
        results: Name of an output argument -> "node:output_arg:index".
        control_results: Nodes that must run in every call, although no output may need them.
    """

    def __init__(self, raw: memoryview) -> None:
        signature, nodes, results = b"", [], {}
        control_results = []
        for field in fields(raw):
            if field.wire_type != WireType.BYTES:
                continue
            if field.number == 1:
                signature += bytes(field.payload)
            elif field.number == 3:
                nodes.append(Node(field.payload))
            elif field.number in (4, 6):
                entry = {each.number: str(each.payload, "utf-8", "replace") for each in _texts(field.payload)}
                if field.number == 4:
                    results[entry.get(1, "")] = entry.get(2, "")
                else:
                    control_results.append(entry.get(2, ""))
        try:
            declared = OpDef.FromString(signature)
        except DecodeError as error:
            raise DataLossError(f"a function's signature is not an OpDef: {error}") from error
        self.name = declared.name
        self.arguments = tuple(argument.name for argument in declared.input_arg)
        self.outputs = tuple(output.name for output in declared.output_arg)
        self.nodes = _by_name(iter(nodes))
        self.results: Mapping[str, str] = results
        self.control_results = tuple(control_results)


class Graph:
    """The nodes and functions of a GraphDef.

    Args:
        raw: The serialized GraphDef. It is not copied and must not change.

    The first access to each property scans the graph once; an invalid part raises DataLossError then.
    Thread safety: safe.
    """

    def __init__(self, raw: memoryview) -> None:
        self.raw = raw

    @cached_property
    def nodes(self) -> Mapping[str, Node]:
        """Name -> node, in the graph's order. Raises DataLossError if two nodes have the same name."""
        return _by_name(self.iter_nodes())

    @cached_property
    def functions(self) -> Mapping[str, Function]:
        """Name -> function."""
        libraries = (field.payload for field in fields(self.raw) if (field.number, field.wire_type) == (2, 2))
        functions = (Function(field.payload) for library in libraries for field in fields(library) if field.number == 1)
        return {function.name: function for function in functions}

    @cached_property
    def versions(self) -> VersionDef:
        """The TensorFlow versions that the graph is compatible with."""
        joined = b"".join(field.payload for field in fields(self.raw) if (field.number, field.wire_type) == (4, 2))
        try:
            return VersionDef.FromString(joined)
        except DecodeError as error:
            raise DataLossError(f"the graph's versions are not a VersionDef: {error}") from error

    def op_counts(self) -> Counter[str]:
        """Return operation -> number of nodes, excluding nodes inside functions."""
        return Counter(node.op for node in self.nodes.values())

    def iter_nodes(self) -> Iterator[Node]:
        """Yield the nodes in order, decoding each on demand."""
        for index, field in enumerate(fields(self.raw)):
            if field.number == _NODE and field.wire_type == WireType.BYTES:
                try:
                    yield Node(field.payload)
                except DataLossError as error:
                    raise located(error, f"part {index} of the graph") from error.__cause__


def _decoded(raw: memoryview, attr: str | None) -> NodeDef:
    """Decode a node; if it is large, skip all attributes except `attr`."""
    light = raw
    if len(raw) > _LARGE:
        attributes = [field for field in fields(raw) if field.number == _ATTR and field.wire_type == WireType.BYTES]
        kept = None if attr is None else attr.encode()
        light = memoryview(replaced(raw, [(each, None) for each in attributes if _name_of(each.payload) != kept]))
    try:
        return NodeDef.FromString(light)  # type: ignore[arg-type]  # accepts views, but its stub says bytes
    except DecodeError as error:
        raise DataLossError(f"invalid NodeDef of {len(raw)} bytes: {error}") from error


def _name_of(entry: memoryview) -> bytes:
    return bytes({each.number: each.payload for each in _texts(entry)}.get(1, b""))


def _texts(entry: memoryview) -> Iterator[Field]:
    """Return the fields of a map entry whose key and value are strings or messages."""
    return (field for field in fields(entry) if field.wire_type == WireType.BYTES)


def _by_name(nodes: Iterator[Node]) -> dict[str, Node]:
    found: dict[str, Node] = {}
    for node in nodes:
        if found.setdefault(node.name, node) is not node:
            raise DataLossError(f"two nodes are named {quoted(node.name)}")
    return found
