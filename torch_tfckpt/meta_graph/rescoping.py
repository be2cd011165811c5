"""Put a meta graph into a name scope (import_scope), or take it out of one (export_scope).

What has names is renamed: nodes, their inputs and places, the frames of loops, collections of nodes and of messages,
signatures and assets. Functions have names of their own and stay. What changes keeps all else of it, byte for byte, as
in rewriting.py.

Two texts are no names and are treated like some, because TensorFlow does: strings in collections get the import scope
before them; and those that do not begin with the export scope are dropped, while the others keep it.

Source: import_scoped_meta_graph_with_return_elements and export_scoped_meta_graph in
tensorflow/python/framework/meta_graph.py, tensorflow/core/common_runtime/graph_constructor.cc.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from google.protobuf.message import Message

from torch_tfckpt._proto.attr_value_pb2 import AttrValue
from torch_tfckpt._proto.meta_graph_pb2 import AssetFileDef, CollectionDef, SignatureDef
from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt.errors import InvalidArgumentError, error_context
from torch_tfckpt.format.graph_def import Node
from torch_tfckpt.meta_graph import scopes
from torch_tfckpt.meta_graph.collection_defs import PROTO_COLLECTIONS
from torch_tfckpt.meta_graph.raw import ASSET, COLLECTION, GRAPH, META_INFO, SAVER, SIGNATURE, RawMetaGraph, decoded
from torch_tfckpt.meta_graph.rewriting import ATTR, NODE, only_ops, used_ops, with_values
from torch_tfckpt.meta_graph.splicing import (
    Chunks,
    each_entry,
    each_message,
    encoded,
    encoded_entry,
    payload_of,
    rewritten,
    spliced,
)
from torch_tfckpt.text import escaped, quoted

# The collection of what a graph takes from outside of the scope that it was exported from.
UNBOUND_INPUTS: Final = "unbound_inputs"
_UNBOUND: Final = "$unbound_inputs_"
_LOCATION: Final = "loc:@"
_NAME, _INPUT = 1, 3  # of a NodeDef
# Operations with the name of a loop's frame.
_ENTER_OPS: Final = ("Enter", "RefEnter")
# Nodes up to this size are searched for what few of them have, before they are walked.
_SEARCHED: Final = 1 << 12

M = TypeVar("M", SignatureDef, AssetFileDef)


def in_import_scope(meta: RawMetaGraph, scope: str | None) -> RawMetaGraph:
    """The meta graph in `scope`; as it is, with None or "".

    Raises:
        InvalidArgumentError: no node can have such a name.
        DataLossError: a part is broken.

    Cost: a walk over all nodes, and one copy of the bytes.
    """
    if not scope:
        return meta
    if not scopes.VALID_SCOPE.fullmatch(scope):
        raise InvalidArgumentError(
            f"import_scope {quoted(scope)} is not a valid scope name. Begin it with a letter, a digit or a dot; _ - / "
            f"may follow"
        )
    renamed = partial(scopes.prepend_name_scope, scope=scope)
    nodes = _NodeRenaming(kept=lambda _: True, name=renamed, input=renamed)
    return rewritten(
        meta,
        {
            GRAPH: lambda graph: spliced(graph, {NODE: nodes.edit}),
            SAVER: each_message(SaverDef, lambda saver_def: scopes.in_scope(saver_def, scope)),
            COLLECTION: each_entry(CollectionDef, lambda name, each: _collection_into(name, each, scope)),
            SIGNATURE: each_entry(SignatureDef, lambda _, signature: _renamed(signature, renamed)),
            ASSET: each_message(AssetFileDef, lambda asset: _renamed(asset, renamed)),
        },
    )


def out_of_scope(meta: RawMetaGraph, scope: str | None) -> RawMetaGraph:
    """What lies in `scope`, and without the scope in its names; as it is, with None or "".

    An input from outside, say x, becomes "$unbound_inputs_x", and stands in the collection "unbound_inputs". Of
    collections, signatures and assets stays what lies in the scope as a whole. The settings of the saver stay as they
    are, as in TensorFlow.

    Raises:
        DataLossError: a part is broken.

    Cost: two walks over all nodes, and one copy of the bytes.
    """
    if not scopes.scope_prefix(scope):
        return meta

    inside = partial(scopes.in_name_scope, scope=scope)
    stripped = partial(scopes.strip_name_scope, scope=scope)

    def input_of(name: str) -> str:
        return stripped(name) if inside(name) else _unbound(name)

    def out(message: M) -> M | None:
        whole = all(inside(getattr(holder, field)) for holder, field in _tensor_names(message))
        return _renamed(message, stripped) if whole else None

    nodes = _NodeRenaming(kept=inside, name=stripped, input=input_of)
    with error_context(meta.place):
        kept = [node for node in meta.graph.nodes.values() if inside(node.name)]
        used = used_ops(meta, kept)
    # Edges of control have no value that could be given instead, and TensorFlow does not list them.
    outer = [_unbound(name) for node in kept for name in node.inputs if not inside(name) and not name.startswith("^")]
    unbound = CollectionDef(bytes_list=CollectionDef.BytesList(value=[name.encode() for name in outer]))
    return rewritten(
        meta,
        {
            META_INFO: only_ops(used),
            GRAPH: lambda graph: spliced(graph, {NODE: nodes.edit}),
            COLLECTION: each_entry(CollectionDef, lambda name, each: _collection_from(name, each, scope)),
            SIGNATURE: each_entry(SignatureDef, lambda _, signature: out(signature)),
            ASSET: each_message(AssetFileDef, out),
        },
        [(COLLECTION, encoded_entry(UNBOUND_INPUTS, encoded(unbound)))] if outer else [],
    )


def check_unbound(meta: RawMetaGraph) -> None:
    """InvalidArgumentError for a graph that takes inputs from outside of the scope that it was exported from."""
    collection = meta.collections.get(UNBOUND_INPUTS)
    if collection is None:
        return
    names = [str(value, "utf-8", "replace") for value in collection.bytes_list.value] + [*collection.node_list.value]
    if names:
        raise InvalidArgumentError(
            f"{meta.place}: Graph contains unbound inputs: {', '.join(map(escaped, names))}. It is a part of a larger "
            f"graph, and takes these from the rest. Export that graph, or a scope that contains them"
        )


@dataclass(frozen=True, slots=True)
class _NodeRenaming:
    """The names in a node, and what becomes of them.

    Attributes:
        kept: Whether a node stays.
        name: Of a node, or of a loop's frame.
        input: Of an input.
    """

    kept: Callable[[str], bool]
    name: Callable[[str], str]
    input: Callable[[str], str]

    def edit(self, node: memoryview) -> Chunks | None:
        """The edit of a NodeDef."""
        known = Node(node)
        if not self.kept(known.name):
            return None
        edits = {
            _NAME: lambda payload: _text(payload, self.name),
            _INPUT: lambda payload: _text(payload, self.input),
        }
        # Most nodes have neither, and looking at each attribute would take most of the time.
        if known.op in _ENTER_OPS or len(node) > _SEARCHED or b"_class" in bytes(node):
            edits[ATTR] = lambda attr: self._attr(known, attr)
        return spliced(node, edits)

    def _attr(self, node: Node, attr: memoryview) -> Chunks:
        name = bytes(payload_of(attr, 1))
        if name == b"_class":
            return spliced(attr, {2: each_message(AttrValue, self._locations)})
        if name == b"frame_name" and node.op in _ENTER_OPS:
            return spliced(attr, {2: each_message(AttrValue, self._frame)})
        return [attr]

    def _locations(self, value: AttrValue) -> AttrValue:
        """Beside which nodes it is; other classes than these stay."""
        copy = AttrValue()
        copy.CopyFrom(value)
        if value.HasField("list"):
            classes = [_decoded(each) for each in value.list.s]
            kept = [each for each in classes if not each.startswith(_LOCATION) or self.kept(each)]
            copy.list.s[:] = [_encoded(self.name(each) if each.startswith(_LOCATION) else each) for each in kept]
        return copy

    def _frame(self, value: AttrValue) -> AttrValue:
        copy = AttrValue()
        copy.CopyFrom(value)
        if value.HasField("s"):
            copy.s = _encoded(self.name(_decoded(value.s)))
        return copy


def _text(payload: memoryview, renamed: Callable[[str], str]) -> Chunks:
    name = _decoded(payload)
    new = renamed(name)
    return [payload] if new == name else [_encoded(new)]


def _decoded(name: bytes | memoryview) -> str:
    """Bytes that should be a name, as a text that keeps those that are none."""
    return str(name, "utf-8", "surrogateescape")


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _unbound(name: str) -> str:
    return f"^{_UNBOUND}{name[1:]}" if name.startswith("^") else f"{_UNBOUND}{name}"


def _collection_into(name: str, collection: CollectionDef, scope: str) -> CollectionDef:
    kind = collection.WhichOneof("kind")
    if kind == "node_list":
        nodes = [scopes.prepend_name_scope(value, scope) for value in collection.node_list.value]
        return with_values(collection, nodes) or collection
    if kind != "bytes_list":
        return collection
    proto = PROTO_COLLECTIONS.get(name)
    if proto is not None:
        messages = [encoded(scopes.in_scope(decoded(proto, value), scope)) for value in collection.bytes_list.value]
        return with_values(collection, messages) or collection
    texts = [scopes.prepend_name_scope(_decoded(value), scope) for value in collection.bytes_list.value]
    return with_values(collection, [_encoded(text) for text in texts]) or collection


def _collection_from(name: str, collection: CollectionDef, scope: str | None) -> CollectionDef | None:
    """What of a collection lies in a scope; None: nothing."""
    if name == UNBOUND_INPUTS:  # of another scope
        return None
    kind = collection.WhichOneof("kind")
    if kind == "node_list":
        nodes = [value for value in collection.node_list.value if scopes.in_name_scope(value, scope)]
        return with_values(collection, [scopes.strip_name_scope(value, scope) for value in nodes])
    if kind != "bytes_list":
        return collection
    proto = PROTO_COLLECTIONS.get(name)
    if proto is not None:
        messages = [decoded(proto, value) for value in collection.bytes_list.value]
        return with_values(
            collection,
            [encoded(scopes.out_of_scope(each, scope)) for each in messages if scopes.is_in_scope(each, scope)],
        )
    prefix = scopes.scope_prefix(scope).encode()
    return with_values(collection, [value for value in collection.bytes_list.value if value.startswith(prefix)])


def _renamed(message: M, renamed: Callable[[str], str]) -> M:
    """A copy of a signature or an asset with its tensors renamed."""
    copy = type(message)()
    copy.CopyFrom(message)
    for holder, field in _tensor_names(copy):
        setattr(holder, field, renamed(getattr(holder, field)))
    return copy


def _tensor_names(message: SignatureDef | AssetFileDef) -> Iterator[tuple[Message, str]]:
    if isinstance(message, AssetFileDef):
        return scopes.tensor_names([message.tensor_info])
    return scopes.tensor_names([*message.inputs.values(), *message.outputs.values()])
