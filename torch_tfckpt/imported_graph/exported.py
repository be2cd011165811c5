"""export_meta_graph: write a `.meta` file of registered variables and savers, or of an imported graph.

Source: export_meta_graph in tensorflow/python/training/saver.py.
"""

from collections.abc import Sequence
from typing import TypeVar

from google.protobuf.message import Message

from torch_tfckpt._proto.graph_pb2 import GraphDef
from torch_tfckpt._proto.meta_graph_pb2 import MetaGraphDef
from torch_tfckpt._proto.op_def_pb2 import OpList
from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.imported_graph.imported import ImportedMetaGraph
from torch_tfckpt.meta_graph.export_options import ExportOptions, export
from torch_tfckpt.meta_graph.files import meta_graph_of
from torch_tfckpt.meta_graph.nodes import known_ops, nodes_of
from torch_tfckpt.meta_graph.raw import GRAPH, META_INFO, RawMetaGraph
from torch_tfckpt.meta_graph.rewriting import with_saver_def
from torch_tfckpt.meta_graph.splicing import left_out, rewritten
from torch_tfckpt.save_restore.saver_def import naming_nodes
from torch_tfckpt.saver.meta_graph import TensorsGraph
from torch_tfckpt.storage.names import AnyPath
from torch_tfckpt.text import quoted

M = TypeVar("M", bound=Message)


def export_meta_graph(
    filename: AnyPath | None = None,
    meta_info_def: MetaGraphDef.MetaInfoDef | None = None,
    graph_def: GraphDef | None = None,
    saver_def: SaverDef | None = None,
    collection_list: Sequence[str] | None = None,
    as_text: bool = False,
    graph: ImportedMetaGraph | Message | None = None,
    export_scope: str | None = None,
    clear_devices: bool = False,
    clear_extraneous_savers: bool = False,
    strip_default_attrs: bool = False,
    save_debug_info: bool = False,
) -> MetaGraphDef:
    """Return a meta graph as a message; also write it to `filename`, if one is given.

    Args:
        filename: Missing parent directories are created. If the name is saved_model.pb (binary) or saved_model.pbtxt
            (text), the file becomes a SavedModel that also contains the other meta graphs of the SavedModel from which
            `graph` was imported, if any.
        meta_info_def: Version and tags to include; TensorFlow's versions are added.
        graph_def: A GraphDef to export instead of the one in `graph`.
        saver_def: The saver to include. Its nodes must be in the graph: add the saver to the collection "savers" with
            `add_to_collection` first, or use `Saver.export_meta_graph` instead.
        collection_list: Names of the collections to export; default: all.
        as_text: Write the text form of the message.
        graph: The result of `import_meta_graph`, or a MetaGraphDef. Default: a graph with a resource variable for each
            tensor in the collections of variables, and the nodes of the savers in "savers".
        export_scope: Export only the nodes in this scope, and remove the scope from their names.
        clear_devices: Omit the devices of nodes.
        clear_extraneous_savers: Omit the nodes of all savers except the exported one.
        strip_default_attrs: Omit attributes with default values, for older versions of TensorFlow that do not
            know these attributes.
        save_debug_info: Not supported.

    Raises:
        InvalidArgumentError: `saver_def` names nodes that the graph does not have, an argument is a message of the
            wrong type, or the graph is 2 GiB or larger.
        UnimplementedError: `save_debug_info` is set, or the text form is requested for a message with unknown fields,
            which text cannot represent.
        OSError: the file cannot be written; a previous file is unchanged.

    Collections may contain ints, floats, str, bytes, Any, variables, savers, and objects with a name. A collection that
    mixes these is omitted with a warning.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> saver = tfckpt.Saver({"w": torch.zeros(2)})
        >>> path = saver.save("model.ckpt")
        >>> imported = tfckpt.import_meta_graph("model.ckpt.meta")
        >>> meta_graph = tfckpt.export_meta_graph("copy.meta", graph=imported, clear_devices=True)
        >>> [node.name for node in meta_graph.graph_def.node if node.op == "VarHandleOp"]
        ['w']
    """
    options = ExportOptions(
        collection_list, export_scope, clear_devices, clear_extraneous_savers, strip_default_attrs, save_debug_info
    )
    if graph is None:
        meta = TensorsGraph().encoded(None)
    else:
        meta = graph._exported() if isinstance(graph, ImportedMetaGraph) else meta_graph_of(graph)
    if graph_def is not None:
        graph_def = _message(GraphDef, graph_def)
        meta = _with_part(_with_part(meta, GRAPH, graph_def), META_INFO, _info(meta, graph_def))
    if meta_info_def is not None:
        info = _message(MetaGraphDef.MetaInfoDef, meta_info_def)
        info.tensorflow_version = meta.info.tensorflow_version
        info.tensorflow_git_version = meta.info.tensorflow_git_version
        if not info.stripped_op_list.op:
            info.stripped_op_list.CopyFrom(meta.info.stripped_op_list)
        meta = _with_part(meta, META_INFO, info)
    if saver_def is not None:
        saver_def, _ = naming_nodes(_message(SaverDef, saver_def), None)
        missing = [name for name in nodes_of(saver_def) if name not in meta.graph.nodes]
        if missing:
            raise InvalidArgumentError(
                f"saver_def names {quoted(missing[0])}, which is not a node of the graph. Add its saver to the "
                f'collection "savers" with add_to_collection, or call that saver\'s export_meta_graph'
            )
        meta = with_saver_def(meta, saver_def)
    return export(meta, options, filename, as_text=as_text)


def _info(meta: RawMetaGraph, graph_def: GraphDef) -> MetaGraphDef.MetaInfoDef:
    """Return the meta info of `meta` with the known declarations of the operations in `graph_def`."""
    info = MetaGraphDef.MetaInfoDef()
    info.CopyFrom(meta.info)
    known = {**known_ops(), **{op.name: op for op in meta.info.stripped_op_list.op}}
    used = {
        node.op for nodes in (graph_def.node, *(each.node_def for each in graph_def.library.function)) for node in nodes
    }
    info.stripped_op_list.CopyFrom(OpList(op=[known[name] for name in sorted(used) if name in known]))
    return info


def _message(kind: type[M], message: Message) -> M:
    """Return a copy of a message, which may be an instance of TensorFlow's own class."""
    if not isinstance(message, Message) or message.DESCRIPTOR.name != kind.DESCRIPTOR.name:
        raise InvalidArgumentError(f"expected a {kind.DESCRIPTOR.name}, got {type(message).__name__}")
    return kind.FromString(message.SerializeToString(deterministic=True))


def _with_part(meta: RawMetaGraph, number: int, part: Message) -> RawMetaGraph:
    return rewritten(meta, {number: left_out}, [(number, part.SerializeToString(deterministic=True))])
