"""import_graph_def: load a graph without a saver, such as a frozen graph.

Source: import_graph_def in tensorflow/python/framework/importer.py.
"""

from google.protobuf.message import Message

from torch_tfckpt.imported_graph.imported import ImportedMetaGraph
from torch_tfckpt.meta_graph import rescoping, rewriting
from torch_tfckpt.meta_graph.graph_files import graph_def_of, open_graph_def
from torch_tfckpt.storage.names import AnyPath


def import_graph_def(
    file_or_proto: AnyPath | Message, *, import_scope: str | None = None, clear_devices: bool = False
) -> ImportedMetaGraph:
    """Import a graph without a saver: a frozen graph, or the graph that a training program wrote.

    Args:
        file_or_proto: A GraphDef file, binary (frozen_inference_graph.pb) or text (graph.pbtxt), or a message (ours or
            TensorFlow's class).
        import_scope: Prefix for the names of nodes and variables.
        clear_devices: Remove the devices from all nodes.

    Returns:
        A graph without collections and signatures. A frozen graph has neither variables nor a saver. If the graph has
        variables, `saver` restores them by the names of their nodes, with the import scope.

    Raises:
        NotFoundError (an OSError): there is no such file.
        DataLossError: the file is not a GraphDef (also an OSError), or it is damaged, or 2 GiB or larger.
        InvalidArgumentError (a ValueError): a message other than a GraphDef; the graph has unbound inputs; or
            `import_scope` is not a valid scope name.
        FailedPreconditionError: a variable is larger than the address space.

    The graph is not executed.
    Cost: one read of the file, and twice its size in memory; constants are not decoded.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> graph_def = tfckpt.GraphDef()
        >>> node = graph_def.node.add(name="x", op="Placeholder")
        >>> node = graph_def.node.add(name="y", op="Identity", input=["x"])
        >>> imported = tfckpt.import_graph_def(graph_def)
        >>> imported.variables, imported.saver, imported.op_counts["Identity"]
        ({}, None, 1)
    """
    if isinstance(file_or_proto, Message):
        meta = graph_def_of(file_or_proto)
    else:
        meta = open_graph_def(file_or_proto)
    rescoping.check_unbound(meta)
    return ImportedMetaGraph(rewriting.clear_devices(meta) if clear_devices else meta, import_scope, _is_graph_def=True)
