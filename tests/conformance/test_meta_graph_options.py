"""Each option of export_meta_graph and import_meta_graph: ours, applied to a plain export, equals TensorFlow's.

Messages are compared after removing differences without a meaning that TensorFlow adds:

- A graph exported with an option spells some inputs "x:0" instead of "x", and its control dependencies are not sorted.
- It has no shapes of function arguments and function nodes.
- An import gives nodes without a device that of the node they are colocated with; their classes already imply it.
- An import changes the order of functions, and of nodes around loops.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from google.protobuf.message import Message
from tensorflow_process import TensorFlowProcess

from torch_tfckpt._proto.meta_graph_pb2 import CollectionDef, MetaGraphDef
from torch_tfckpt._proto.node_def_pb2 import NodeDef
from torch_tfckpt._proto.op_def_pb2 import OpDef
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.meta_graph import rescoping, rewriting, scopes
from torch_tfckpt.meta_graph.collection_defs import PROTO_COLLECTIONS
from torch_tfckpt.meta_graph.raw import RawMetaGraph

GRAPHS = ("plain", "values", "parts", "control flow", "queues", "functions", "two scopes")
# Graphs with a saver, and the index in the collection "savers" of the one that is exported.
SAVERS = {"plain": (0, 1), "two scopes": (0, 1), "parts": (0,)}
EVERY_GRAPH = pytest.mark.parametrize(
    ("graph", "saver"), [(graph, saver) for graph in GRAPHS for saver in SAVERS.get(graph, (None,))]
)

Described = dict[Any, Any]


def exports(
    tensorflow: TensorFlowProcess, graph: str, saver: int | None, options: Mapping[str, object]
) -> tuple[RawMetaGraph, MetaGraphDef]:
    """Return a graph as TensorFlow exports it without and with options."""
    plain, other = tensorflow.call("tensorflow_rewriting.exports", graph, saver, options)
    return encoded(plain), MetaGraphDef.FromString(other)


def encoded(raw: bytes) -> RawMetaGraph:
    return RawMetaGraph(memoryview(raw), "graph.meta")


def described(meta: MetaGraphDef, scope: str = "") -> Described:
    """Return everything in a meta graph except versions and the order of nodes, without meaningless differences."""
    parts: Described = {
        "ops": [op.name for op in meta.meta_info_def.stripped_op_list.op],
        "stripped": meta.meta_info_def.stripped_default_attrs,
        "saver": meta.saver_def,
        "versions": meta.graph_def.versions,
    }
    for function in meta.graph_def.library.function:
        function.attr.pop("_input_shapes", None)
        for node in function.node_def:
            node.attr.pop("_output_shapes", None)
        parts["function", function.signature.name] = function
    for node in meta.graph_def.node:
        parts["node", node.name] = _with_usual_inputs(node)
    for name, collection in meta.collection_def.items():
        if collection.WhichOneof("kind") is not None:
            parts["collection", name] = _values(name, collection, scope)
    return parts


def _with_usual_inputs(node: NodeDef) -> NodeDef:
    values = [name.removesuffix(":0") for name in node.input if not name.startswith("^")]
    node.input[:] = values + sorted(name for name in node.input if name.startswith("^"))
    return node


def _values(name: str, collection: CollectionDef, scope: str) -> Sequence[object]:
    """Return the values of a collection. `scope` is what TensorFlow leaves on nested contexts."""
    if name not in PROTO_COLLECTIONS:
        return [collection.WhichOneof("kind"), *getattr(collection, str(collection.WhichOneof("kind"))).value]
    messages: list[Message] = [PROTO_COLLECTIONS[name].FromString(each) for each in collection.bytes_list.value]
    return [scopes.out_of_scope(each, scope) for each in messages]


def node_names(meta: MetaGraphDef) -> list[str]:
    return [node.name for node in meta.graph_def.node]


def test_the_collections_of_messages(tensorflow: TensorFlowProcess) -> None:
    """They are those with registered messages in TensorFlow, and the messages are the same."""
    theirs = tensorflow.call("tensorflow_rewriting.registered")
    assert {name: kind.DESCRIPTOR.name for name, kind in PROTO_COLLECTIONS.items()} == theirs


def test_names_in_scopes(tensorflow: TensorFlowProcess) -> None:
    """Names of nodes, outputs, control dependencies and colocations, into a scope and out of it."""
    names = ["w", "w:0", "^w", "loc:@w", "a/w", "^a/w:1", "loc:@a/w", "a//w", "ab/w", "a", "a/", "b/a/w", "", "a/a/w"]
    pairs = [(name, scope) for name in names for scope in ("a", "a/", "a/b", "", None)]
    ours = [(scopes.prepend_name_scope(*pair), scopes.strip_name_scope(*pair)) for pair in pairs]
    assert ours == tensorflow.call("tensorflow_rewriting.names", pairs)


@EVERY_GRAPH
def test_clear_devices(tensorflow: TensorFlowProcess, graph: str, saver: int | None) -> None:
    """Nodes have no devices afterwards, but functions keep theirs."""
    plain, theirs = exports(tensorflow, graph, saver, {"clear_devices": True})
    ours = rewriting.clear_devices(plain).message()
    assert node_names(ours) == node_names(theirs)
    assert described(ours) == described(theirs)


@EVERY_GRAPH
def test_strip_default_attrs(tensorflow: TensorFlowProcess, graph: str, saver: int | None) -> None:
    """CASES 70: by the meta graph's own declarations."""
    plain, theirs = exports(tensorflow, graph, saver, {"strip_default_attrs": True})
    ours = rewriting.without_default_attrs(plain, {}).message()
    assert node_names(ours) == node_names(theirs)
    assert described(ours) == described(theirs)


def test_strip_default_attrs_of_known_operations(tensorflow: TensorFlowProcess) -> None:
    """By our declarations, for operations that the meta graph does not declare; unknown ones are unchanged."""
    plain, theirs = exports(tensorflow, "functions", None, {"strip_default_attrs": True})
    ops = {op.name for op in plain.info.stripped_op_list.op}
    known = {op: OpDef.FromString(tensorflow.call("tensorflow_rewriting.op_def", op)) for op in ops}
    undeclared = plain.message()
    undeclared.meta_info_def.ClearField("stripped_op_list")
    bare = encoded(undeclared.SerializeToString(deterministic=True))
    ours = rewriting.without_default_attrs(bare, known).message()
    assert ours.graph_def == theirs.graph_def
    assert rewriting.without_default_attrs(bare, {}).message().graph_def == plain.message().graph_def


@EVERY_GRAPH
def test_collection_list(tensorflow: TensorFlowProcess, graph: str, saver: int | None) -> None:
    """The given collections, if they exist."""
    names = ["variables", "savers", "ints", "cond_context", "no such"]
    plain, theirs = exports(tensorflow, graph, saver, {"collection_list": names})
    assert described(rewriting.only_collections(plain, names).message()) == described(theirs)


@pytest.mark.parametrize(("graph", "saver"), [(graph, saver) for graph in SAVERS for saver in SAVERS[graph]])
def test_clear_extraneous_savers(tensorflow: TensorFlowProcess, graph: str, saver: int) -> None:
    """The nodes of one saver are kept, and the declarations of operations in use."""
    plain, theirs = exports(tensorflow, graph, saver, {"clear_extraneous_savers": True})
    ours = rewriting.without_extraneous_savers(plain, plain.saver_def).message()
    assert node_names(ours) == node_names(theirs)
    assert described(ours) == described(theirs)


@pytest.mark.parametrize("scope", ["part/", "other/", "no such/"])
@EVERY_GRAPH
def test_export_scope(tensorflow: TensorFlowProcess, graph: str, saver: int | None, scope: str) -> None:
    """The part of the graph, with renamed outside inputs, and the values of collections in the scope.

    TensorFlow leaves the scope on nested control flow contexts, whose names are then wrong; and it leaves an empty
    collection if no saver is in the scope, about which its import complains.
    """
    plain, theirs = exports(tensorflow, graph, saver, {"export_scope": scope})
    ours = rescoping.out_of_scope(plain, scope).message()
    assert node_names(ours) == node_names(theirs)
    one, other = described(ours), described(theirs, scope)
    # TensorFlow does not remove the functions that no node calls any more.
    in_functions = {node.op for function in theirs.graph_def.library.function for node in function.node_def}
    assert set(one.pop("ops")) - in_functions == set(other.pop("ops")) - in_functions
    assert one == other


@pytest.mark.parametrize(("scope", "saver"), [("part/", 0), ("other/", 1)])
def test_all_options_together(tensorflow: TensorFlowProcess, scope: str, saver: int) -> None:
    """They do not interfere with each other."""
    options = {
        "export_scope": scope,
        "clear_devices": True,
        "clear_extraneous_savers": True,
        "strip_default_attrs": True,
        "collection_list": ["variables", "savers"],
    }
    plain, theirs = exports(tensorflow, "two scopes", saver, options)
    ours = rewriting.without_extraneous_savers(plain, plain.saver_def)
    ours = rescoping.out_of_scope(ours, scope)
    ours = rewriting.clear_devices(rewriting.without_default_attrs(ours, {}))
    ours = rewriting.only_collections(ours, ["variables", "savers"])
    assert described(ours.message()) == described(theirs)


@EVERY_GRAPH
def test_import_scope(tensorflow: TensorFlowProcess, graph: str, saver: int | None) -> None:
    """Everything in the imported graph gets the scope.

    TensorFlow does not rename frames of loops that are in no collection, such as those of gradients, so that after two
    imports of one graph, two loops share a frame.
    """
    plain, _ = exports(tensorflow, graph, saver, {})
    again = tensorflow.call("tensorflow_rewriting.import_and_export", bytes(plain.raw), "new/scope")
    ours, theirs = rescoping.in_import_scope(plain, "new/scope").message(), MetaGraphDef.FromString(again)
    if graph != "control flow":
        assert node_names(ours) == node_names(theirs)
    devices = {node.name: node.device for node in ours.graph_def.node}
    for node in theirs.graph_def.node:
        if "_class" in node.attr and not devices[node.name]:
            node.device = ""
        frame = node.attr["frame_name"].s if node.op == "Enter" else None
        if frame is not None and not frame.startswith(b"new/scope/"):
            node.attr["frame_name"].s = b"new/scope/" + frame
    assert described(ours) == described(theirs)


def test_a_scope_that_ends_with_a_slash(tensorflow: TensorFlowProcess) -> None:
    """It is the same scope."""
    plain, _ = exports(tensorflow, "two scopes", 0, {})
    assert rescoping.in_import_scope(plain, "a/").raw == rescoping.in_import_scope(plain, "a").raw
    assert rescoping.out_of_scope(plain, "part/").raw == rescoping.out_of_scope(plain, "part").raw


def test_unbound_inputs(tensorflow: TensorFlowProcess) -> None:
    """A part with outside inputs is not imported, with TensorFlow's words."""
    plain, _ = exports(tensorflow, "two scopes", None, {})
    part = rescoping.out_of_scope(plain, "part")
    theirs = tensorflow.call("tensorflow_rewriting.import_error", bytes(part.raw))
    assert theirs.startswith("Graph contains unbound inputs: $unbound_inputs_other/")
    with pytest.raises(InvalidArgumentError) as caught:
        rescoping.check_unbound(part)
    names = theirs.removeprefix("Graph contains unbound inputs: ").partition(". Must")[0].split(",")
    assert f"graph.meta: Graph contains unbound inputs: {', '.join(names)}. It is" in str(caught.value)
    rescoping.check_unbound(plain)
