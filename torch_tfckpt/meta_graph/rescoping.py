"""Add a name scope to a meta graph (import_scope), or remove one from it (export_scope).

Everything with a name is renamed: nodes, their inputs and colocations, the frames of loops, collections of nodes and
of messages, signatures and assets. Functions have their own names and are not changed. All other bytes of a changed
message stay the same, as in rewriting.py.

Strings in collections are not names, but TensorFlow treats them like names, and so does this module: an import adds
the scope to them; an export drops strings that do not begin with the scope, and does not change the others.

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

# The collection that lists the inputs that come from outside an exported scope.
UNBOUND_INPUTS: Final = "unbound_inputs"
_UNBOUND: Final = "$unbound_inputs_"
_LOCATION: Final = "loc:@"
_NAME, _INPUT = 1, 3  # of a NodeDef
# Operations with an attribute for the name of a loop's frame.
_ENTER_OPS: Final = ("Enter", "RefEnter")
# Nodes up to this size are first searched for "_class". Most do not contain it, so their attributes are not decoded.
_SEARCHED: Final = 1 << 12

M = TypeVar("M", SignatureDef, AssetFileDef)


def in_import_scope(meta: RawMetaGraph, scope: str | None) -> RawMetaGraph:
    """Return the meta graph with `scope` added to all names; unchanged if `scope` is None or "".

    Raises:
        InvalidArgumentError: `scope` is not a valid node name.
        DataLossError: a part is damaged.

    Cost: a walk over all nodes, and one copy of the bytes.
    """
    if not scope:
        return meta
    if not scopes.VALID_SCOPE.fullmatch(scope):
        raise InvalidArgumentError(
            f"import_scope {quoted(scope)} is not a valid scope name. It must begin with a letter, a digit or a dot; "
            f"_ - / may follow"
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
    """Return the part of a meta graph that is in `scope`, with the scope removed from its names.

    If `scope` is None or "", return the whole meta graph.
    An input x from outside becomes "$unbound_inputs_x", and is listed in the collection "unbound_inputs". In the other
    collections, names, strings and messages are kept only if they are in the scope; all other values are kept.
    Signatures and assets are kept if all of their tensors are in the scope. As in TensorFlow, the settings of the saver
    do not change.

    Raises:
        DataLossError: a part is damaged.

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
    # TensorFlow does not list control dependencies, which have no value that could be fed instead.
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
    """Raise InvalidArgumentError for a graph with inputs from outside the scope that it was exported from."""
    collection = meta.collections.get(UNBOUND_INPUTS)
    if collection is None:
        return
    names = [str(value, "utf-8", "replace") for value in collection.bytes_list.value] + [*collection.node_list.value]
    if names:
        raise InvalidArgumentError(
            f"{meta.place}: Graph contains unbound inputs: {', '.join(map(escaped, names))}. It is a part of a larger "
            f"graph, which computes these inputs. Export the larger graph, or a scope that contains them"
        )


@dataclass(frozen=True, slots=True)
class _NodeRenaming:
    """How to rename a node.

    Attributes:
        kept: Returns whether a node is kept.
        name: Returns the new name of a node or of a loop's frame.
        input: Returns the new name of an input.
    """

    kept: Callable[[str], bool]
    name: Callable[[str], str]
    input: Callable[[str], str]

    def edit(self, node: memoryview) -> Chunks | None:
        """Edit a NodeDef."""
        known = Node(node)
        if not self.kept(known.name):
            return None
        edits = {
            _NAME: lambda payload: _text(payload, self.name),
            _INPUT: lambda payload: _text(payload, self.input),
        }
        # Most nodes have neither _class nor frame_name, and decoding all attributes would take most of the time.
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
        """Rename the nodes in "loc:@" entries of a `_class` attribute; other entries are not changed."""
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
    """Decode a name; bytes that are not UTF-8 are preserved as surrogates."""
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
    strings = [scopes.prepend_name_scope(_decoded(value), scope) for value in collection.bytes_list.value]
    return with_values(collection, [_encoded(string) for string in strings]) or collection


def _collection_from(name: str, collection: CollectionDef, scope: str | None) -> CollectionDef | None:
    """Return the collection with only the values that are in a scope; None if no values are left."""
    if name == UNBOUND_INPUTS:  # from an earlier export
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
    """Return a copy of a signature or an asset with its tensors renamed."""
    copy = type(message)()
    copy.CopyFrom(message)
    for holder, field in _tensor_names(copy):
        setattr(holder, field, renamed(getattr(holder, field)))
    return copy


def _tensor_names(message: SignatureDef | AssetFileDef) -> Iterator[tuple[Message, str]]:
    if isinstance(message, AssetFileDef):
        return scopes.tensor_names([message.tensor_info])
    return scopes.tensor_names([*message.inputs.values(), *message.outputs.values()])
