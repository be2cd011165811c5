"""export_meta_graph: the `.meta` file of registered variables and savers, or of a graph that was imported.

Source: export_meta_graph in tensorflow/python/training/saver.py; spec: SAVER 6.
"""

from collections.abc import Sequence
from typing import TypeVar

from google.protobuf.message import Message

from torch_tfckpt._proto.graph_pb2 import GraphDef
from torch_tfckpt._proto.meta_graph_pb2 import MetaGraphDef
from torch_tfckpt._proto.op_def_pb2 import OpList
from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt.checkpoint_reader import AnyPath
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
    """A meta graph as a message; written to `filename` too, if one is given.

    Args:
        filename: Directories that it lacks are made. One that is called saved_model.pb or saved_model.pbtxt becomes a
            SavedModel, binary or text as its name says, with the other meta graphs of the one that `graph` is from.
        meta_info_def: Version and tags to be told in it; versions of TensorFlow are put in.
        graph_def: A graph to take the place of that of `graph`.
        saver_def: The saver to be told in it, which the graph must have: one that `add_to_collection` put into
            "savers". `Saver.export_meta_graph` is the shorter way.
        collection_list: Names of the collections to export; None: all.
        as_text: Write the text form of the message.
        graph: What `import_meta_graph` gave, or a MetaGraphDef; None: a resource variable for each tensor in the
            collections of variables, and the nodes of the savers in "savers".
        export_scope: Export only what lies in this scope, without its name.
        clear_devices: Leave out on which devices things are.
        clear_extraneous_savers: Leave out the nodes of all savers but the one that is told.
        strip_default_attrs: Leave out attributes that are as operations have them by themselves, for older versions of
            TensorFlow that do not know them.
        save_debug_info: Not supported.

    Raises:
        InvalidArgumentError: `saver_def` names nodes that the graph has not, or something is another message than it
            should be, or the graph takes 2 GiB.
        UnimplementedError: `save_debug_info`; or a text of fields that are unknown here, which it could not keep.
        OSError: the file cannot be written; what was there is in place.

    Collections hold ints, floats, str, bytes, Any, variables, savers, and whatever has a name; one that mixes these is
    left out, with a warning.
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
                f"saver_def names {quoted(missing[0])}, which is no node of the graph. Put its saver into the "
                f'collection "savers" by add_to_collection, or call its export_meta_graph'
            )
        meta = with_saver_def(meta, saver_def)
    return export(meta, options, filename, as_text=as_text)


def _info(meta: RawMetaGraph, graph_def: GraphDef) -> MetaGraphDef.MetaInfoDef:
    """That of `meta`, with the declarations, as far as they are known, of what another graph uses."""
    info = MetaGraphDef.MetaInfoDef()
    info.CopyFrom(meta.info)
    known = {**known_ops(), **{op.name: op for op in meta.info.stripped_op_list.op}}
    used = {
        node.op for nodes in (graph_def.node, *(each.node_def for each in graph_def.library.function)) for node in nodes
    }
    info.stripped_op_list.CopyFrom(OpList(op=[known[name] for name in sorted(used) if name in known]))
    return info


def _message(kind: type[M], message: Message) -> M:
    """A copy of a message, which may be TensorFlow's own."""
    if not isinstance(message, Message) or message.DESCRIPTOR.name != kind.DESCRIPTOR.name:
        raise InvalidArgumentError(f"expected a {kind.DESCRIPTOR.name}, got a {type(message).__name__}")
    return kind.FromString(message.SerializeToString(deterministic=True))


def _with_part(meta: RawMetaGraph, number: int, part: Message) -> RawMetaGraph:
    return rewritten(meta, {number: left_out}, [(number, part.SerializeToString(deterministic=True))])
