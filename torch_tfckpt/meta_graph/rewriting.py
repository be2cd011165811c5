"""Edit a meta graph's bytes: one function for each option of export_meta_graph.

Each function returns a new meta graph, or the same object if nothing changes. Parts that it does not change (fields,
nodes, attributes, collections) keep their bytes, including fields of later versions. Apply `without_extraneous_savers`
first, because it needs the savers' full names, and `rescoping.out_of_scope` second; the order of the others does not
matter.

Cost of each: a walk over the parts that it reads, and one copy of the bytes; large constants are not decoded.
Each raises DataLossError if a part that it reads is damaged.

Source: export_scoped_meta_graph and create_meta_graph_def in tensorflow/python/framework/meta_graph.py.
"""

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from torch_tfckpt._proto.attr_value_pb2 import AttrValue
from torch_tfckpt._proto.meta_graph_pb2 import CollectionDef
from torch_tfckpt._proto.op_def_pb2 import OpDef
from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt.errors import InvalidArgumentError, error_context
from torch_tfckpt.format.graph_def import Node
from torch_tfckpt.format.wire import WireType, fields, tag
from torch_tfckpt.meta_graph.collection_defs import PROTO_COLLECTIONS
from torch_tfckpt.meta_graph.graph_collections import GraphKeys
from torch_tfckpt.meta_graph.raw import COLLECTION, GRAPH, MAX_MESSAGE, META_INFO, SAVER, RawMetaGraph, decoded
from torch_tfckpt.meta_graph.scopes import require_names
from torch_tfckpt.meta_graph.splicing import (
    Chunks,
    Edit,
    each_entry,
    encoded,
    encoded_entry,
    left_out,
    payload_of,
    rewritten,
    spliced,
    text_of,
)

NODE: Final = 1  # of a GraphDef
ATTR: Final = 5  # of a NodeDef
_LIBRARY: Final = 2  # of a GraphDef
_FUNCTION: Final = 1  # of a FunctionDefLibrary
_FUNCTION_NODE: Final = 3  # of a FunctionDef
_DEVICE: Final = 4  # of a NodeDef
_OP_LIST: Final = 2  # of a MetaInfoDef
_OP: Final = 1  # of an OpList
_OP_NAME: Final = 1  # of an OpDef
_STRIPPED: Final = tag(7, WireType.VARINT) + b"\x01"  # of a MetaInfoDef: stripped_default_attrs = true

# SAVE_AND_RESTORE_OPS in TensorFlow's meta_graph.py: a scope that contains one of these belongs to a saver. The list
# lacks "SaveSlices", but savers that save with it use one of these operations to restore.
_SAVER_OPS: Final = frozenset(
    {"SaveV2", "Save", "SaveSlice", "LegacySave", "LegacySaveSlice"}
    | {"RestoreV2", "Restore", "RestoreSlice", "LegacyRestore", "LegacyRestoreSlice"}
)


def without_extraneous_savers(meta: RawMetaGraph, saver_def: SaverDef | None) -> RawMetaGraph:
    """Remove the nodes of all savers except `saver_def`, and make it the only one listed in "savers".

    A saver's nodes are all nodes in a scope that contains a save or restore operation. None removes all savers.

    Raises:
        InvalidArgumentError: `saver_def` does not name its save and restore nodes.
    """
    kept = _scopes_of_saver(saver_def) if saver_def is not None else set()
    with error_context(meta.place):
        nodes = meta.graph.nodes
        saving = {name for name, node in nodes.items() if node.op in _SAVER_OPS}
        scopes = tuple(f"{scope}/" for scope in {_scope_of(name) for name in saving} - saving - kept)
        removed = {name for name in nodes if name.startswith(scopes)}
        used = used_ops(meta, (node for name, node in nodes.items() if name not in removed))

    def kept_values(name: str, collection: CollectionDef) -> CollectionDef | None:
        if name == GraphKeys.SAVERS:
            savers = [] if saver_def is None else [encoded(saver_def)]
            return CollectionDef(bytes_list=CollectionDef.BytesList(value=savers)) if savers else None
        return _without_nodes(name, collection, removed)

    def kept_node(node: memoryview) -> Chunks | None:
        return None if Node(node).name in removed else [node]

    edits: dict[int, Edit] = {COLLECTION: each_entry(CollectionDef, kept_values)}
    if removed:
        edits |= {META_INFO: only_ops(used), GRAPH: lambda graph: spliced(graph, {NODE: kept_node})}
    return rewritten(meta, edits)


def with_saver_def(meta: RawMetaGraph, saver_def: SaverDef | None) -> RawMetaGraph:
    """Replace the settings of the saver; None removes them."""
    if saver_def == meta.saver_def:
        return meta
    added = [] if saver_def is None else [(SAVER, encoded(saver_def))]
    return rewritten(meta, {SAVER: left_out}, added)


def with_collections(meta: RawMetaGraph, changes: Mapping[str, CollectionDef | None]) -> RawMetaGraph:
    """Replace existing collections, and add new ones at the end; a value of None removes a collection."""
    edit = each_entry(CollectionDef, lambda name, present: changes.get(name, present))
    added = [
        (COLLECTION, encoded_entry(name, encoded(each)))
        for name, each in changes.items()
        if each is not None and name not in meta.collections
    ]
    return rewritten(meta, {COLLECTION: edit}, added)


def only_collections(meta: RawMetaGraph, names: Collection[str]) -> RawMetaGraph:
    """Remove all collections except those with these names."""
    return with_collections(meta, {name: None for name in meta.collections if name not in names})


def clear_devices(meta: RawMetaGraph) -> RawMetaGraph:
    """Remove the devices of nodes, but not of nodes in functions, as in TensorFlow."""

    def cleared(node: memoryview) -> Chunks:
        return spliced(node, {_DEVICE: left_out})

    return rewritten(meta, {GRAPH: lambda graph: spliced(graph, {NODE: cleared})})


def without_default_attrs(meta: RawMetaGraph, known_ops: Mapping[str, OpDef]) -> RawMetaGraph:
    """Remove attributes with default values, including those in functions.

    Args:
        known_ops: Declarations of operations that the meta graph does not declare itself. Nodes with undeclared
            operations are not changed.
    """
    declared = {**known_ops, **{op.name: op for op in meta.info.stripped_op_list.op}}
    with error_context(meta.place):
        functions = meta.graph.functions

    @functools.cache
    def defaults_of(op: str) -> dict[bytes, bytes]:
        known = declared[op].attr if op in declared and op not in functions else ()
        return {attr.name.encode(): encoded(attr.default_value) for attr in known if attr.HasField("default_value")}

    def stripped(node: memoryview) -> Chunks:
        defaults = defaults_of(Node(node).op)
        if not defaults:
            return [node]
        return spliced(node, {ATTR: lambda attr: None if _is_default(attr, defaults) else [attr]})

    def stripped_library(library: memoryview) -> Chunks:
        return spliced(library, {_FUNCTION: lambda function: spliced(function, {_FUNCTION_NODE: stripped})})

    edits: dict[int, Edit] = {GRAPH: lambda graph: spliced(graph, {NODE: stripped, _LIBRARY: stripped_library})}
    if meta.info.stripped_default_attrs:
        return rewritten(meta, edits)
    edits[META_INFO] = lambda info: [info, _STRIPPED]  # the last occurrence of a field counts
    has_info = any(field.number == META_INFO for field in fields(meta.raw))
    return rewritten(meta, edits, [] if has_info else [(META_INFO, _STRIPPED)])


def check_graph_size(meta: RawMetaGraph) -> None:
    """Raise InvalidArgumentError for a graph that is larger than protobuf libraries accept (2 GiB)."""
    size = len(meta.graph.raw)
    if size >= MAX_MESSAGE:
        raise InvalidArgumentError(
            f"{meta.place}: GraphDef cannot be larger than 2GB, but is {size} bytes. Keep large constants in variables"
        )


def used_ops(meta: RawMetaGraph, nodes: Iterable[Node]) -> set[str]:
    """Return the operations used by these nodes and by all functions."""
    inner = {node.op for function in meta.graph.functions.values() for node in function.nodes.values()}
    return inner | {node.op for node in nodes}


def only_ops(used: Iterable[str]) -> Edit:
    """Return an edit of a MetaInfoDef that keeps only the declarations of the used operations."""
    names = frozenset(used)

    def kept(op: memoryview) -> Chunks | None:
        return [op] if text_of(op, _OP_NAME) in names else None

    return lambda info: spliced(info, {_OP_LIST: lambda op_list: spliced(op_list, {_OP: kept})})


def with_values(collection: CollectionDef, values: Sequence[str] | Sequence[bytes]) -> CollectionDef | None:
    """Return the collection with its values replaced by `values`; None if `values` is empty."""
    if not values:
        return None
    copy = CollectionDef()
    copy.CopyFrom(collection)
    getattr(copy, str(copy.WhichOneof("kind"))).value[:] = values
    return copy


def _scopes_of_saver(saver_def: SaverDef) -> set[str]:
    require_names(saver_def)
    return {_scope_of(saver_def.save_tensor_name), _scope_of(saver_def.restore_op_name)}


def _scope_of(name: str) -> str:
    """Return the scope of a node: "a/b" for "a/b/c"."""
    return name.removeprefix("^").rpartition("/")[0]


def _without_nodes(name: str, collection: CollectionDef, removed: Collection[str]) -> CollectionDef | None:
    """Remove nodes from a collection, listed as nodes, outputs or strings; None if nothing is left."""
    if collection.HasField("node_list"):
        nodes = [each for each in collection.node_list.value if each.partition(":")[0] not in removed]
        return with_values(collection, nodes)
    if collection.HasField("bytes_list") and name not in PROTO_COLLECTIONS:
        names = {each.encode() for each in removed}
        return with_values(collection, [each for each in collection.bytes_list.value if each not in names])
    return collection


def _is_default(attr: memoryview, defaults: Mapping[bytes, bytes]) -> bool:
    default = defaults.get(bytes(payload_of(attr, 1)))
    if default is None:
        return False
    value = payload_of(attr, 2)
    return value == default or encoded(decoded(AttrValue, value)) == default
