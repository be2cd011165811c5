"""Open a file that contains only a graph: a frozen graph, or the graph.pbtxt of a training program.

    GraphDef = node: NodeDef = 1 ... | library = 2 | versions = 4

The result is a meta graph with this graph and nothing else: no saver, collections or signatures.

Source: tensorflow/core/framework/graph.proto; write_graph in tensorflow/python/framework/graph_io.py.
"""

import os
from typing import Final

from google.protobuf.message import EncodeError, Message

from torch_tfckpt.errors import DataLossError, InvalidArgumentError, NotFoundError, error_context
from torch_tfckpt.format.file_kind import FileKind, not_wanted
from torch_tfckpt.format.recognise import recognise_bytes
from torch_tfckpt.format.recognise_text import looks_like_text
from torch_tfckpt.format.wire import sized_tag
from torch_tfckpt.meta_graph.files import (
    SAVED_MODEL_FILES,
    MissingMetaGraphError,
    UnreadableMetaGraphError,
    missing_file,
    read_meta_graph,
)
from torch_tfckpt.meta_graph.raw import GRAPH, RawMetaGraph
from torch_tfckpt.meta_graph.text import GRAPH_DEF, META_GRAPH, SAVED_MODEL, encode_text
from torch_tfckpt.storage.choice import storage_of
from torch_tfckpt.storage.names import AnyPath, fspath
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.text import listed, printable, quoted

_LISTED: Final = 10
_WANTED: Final = "a GraphDef"
_IMPORT: Final = "Import it with import_meta_graph"
_META_GRAPHS: Final = frozenset(
    {FileKind.META_GRAPH, FileKind.META_GRAPH_TEXT, FileKind.SAVED_MODEL, FileKind.SAVED_MODEL_TEXT}
)
# Kinds that a GraphDef may be taken for.
_PERHAPS: Final = frozenset({FileKind.GRAPH, FileKind.GRAPH_TEXT, FileKind.TEXT, FileKind.UNKNOWN})


def open_graph_def(path: AnyPath, *, storage: Storage | None = None) -> RawMetaGraph:
    """Open a GraphDef file, binary or text.

    Raises:
        NotFoundError: no such file (also a FileNotFoundError).
        DataLossError: the file is not a GraphDef, or it is damaged, or 2 GiB or larger (also an OSError).

    Cost: one read of the file, twice its size in memory, and a walk over its nodes; constants are not decoded.
    """
    text = fspath(path)
    storage = storage_of(text) if storage is None else storage
    if storage.is_directory(text):
        raise _not_a_file(storage, text)
    try:
        content = read_meta_graph(storage, text)
    except MissingMetaGraphError:
        raise
    except NotFoundError as error:
        raise missing_file(storage, text) from error
    kind, place = recognise_bytes(content), printable(text)
    if kind in _META_GRAPHS:
        raise UnreadableMetaGraphError(f"{place} is {kind.what}, not {_WANTED}. {_IMPORT}")
    if kind not in _PERHAPS:
        raise UnreadableMetaGraphError(not_wanted(text, kind, _WANTED))
    try:
        return _checked(content, place)
    except DataLossError as error:
        finding = str(error).removeprefix(f"{place}: ")
    if looks_like_text(content):
        try:
            return _checked(encode_text(content, GRAPH_DEF), place)
        except DataLossError as error:
            finding = f"as text: {str(error).removeprefix(f'{place}: ')}; as a binary message: {finding}"
    raise UnreadableMetaGraphError(
        f"{place} is not {_WANTED}: {finding.rstrip('.')}. Copy it again, or pass another file"
    )


def graph_def_of(message: Message) -> RawMetaGraph:
    """Return the graph of a GraphDef, of our or TensorFlow's class.

    Raises:
        InvalidArgumentError: another message, or one that is too large.
        DataLossError: a node has no name or no operation.
    """
    name = message.DESCRIPTOR.name
    if name != GRAPH_DEF:
        hint = f". {_IMPORT}" if name in (META_GRAPH, SAVED_MODEL) else ""
        raise InvalidArgumentError(f"expected a GraphDef, got {name}{hint}")
    try:
        return _checked(message.SerializeToString(deterministic=True), GRAPH_DEF)
    except EncodeError as error:
        raise InvalidArgumentError(f"the GraphDef cannot be serialised: {error}. Make it smaller") from error


def _checked(graph: bytes, place: str) -> RawMetaGraph:
    """Return a meta graph with this graph; DataLossError if the bytes are not a GraphDef with at least one node."""
    meta = RawMetaGraph(memoryview(b"".join((sized_tag(GRAPH, len(graph)), graph))), place)
    with error_context(place):
        for node in meta.graph.nodes.values():
            if not node.name or not node.op:
                raise DataLossError(f"node {quoted(node.name)} has no {'operation' if node.name else 'name'}")
        if not meta.graph.nodes:
            raise DataLossError("the graph has no nodes")
    return meta


def _not_a_file(storage: Storage, directory: str) -> UnreadableMetaGraphError:
    names = storage.list(directory)
    if any(name in names for name in SAVED_MODEL_FILES):
        return UnreadableMetaGraphError(f"{printable(directory)} is a SavedModel, not {_WANTED}. {_IMPORT}")
    graphs = [printable(name) for name in names if os.path.splitext(name)[1] in (".pb", ".pbtxt")]
    hint = f"Pass one of its files: {listed(graphs, _LISTED)}" if graphs else f"Pass the file of {_WANTED}"
    return UnreadableMetaGraphError(f"{printable(directory)} is a directory, not {_WANTED}. {hint}")
