"""The meta graph of tensors that no graph of TensorFlow computes: a resource variable for each, and the savers.

TensorFlow imports it, restores the checkpoint beside it, goes on from there, and saves what this package restores.

Source: tensorflow/python/framework/meta_graph.py; spec: SAVER 6, FORMATS 5.
"""

import threading
from collections.abc import Callable, Hashable
from functools import partial
from importlib import metadata
from typing import Final, Protocol

from torch_tfckpt._proto.meta_graph_pb2 import MetaGraphDef
from torch_tfckpt._proto.op_def_pb2 import OpList
from torch_tfckpt.format.wire import sized_tag
from torch_tfckpt.graph_collections import default_collections
from torch_tfckpt.meta_graph.collection_defs import encode_collections
from torch_tfckpt.meta_graph.described import GraphSaver, GraphVariable
from torch_tfckpt.meta_graph.encoded import GRAPH, EncodedMetaGraph
from torch_tfckpt.meta_graph.registered import Registered, SaverInGraph
from torch_tfckpt.meta_graph.saver_nodes import encoded_graph_of

# The version whose files these equal: readers of old meta graphs decide by it what a missing field means.
TENSORFLOW_VERSION: Final = "2.21.0"
_PLACE: Final = "the meta graph of a saver"


class MetaGraphSource(Protocol):
    """Where a saver has its meta graphs from."""

    def described(self, saver: SaverInGraph | None) -> Callable[[], EncodedMetaGraph]:
        """Looks at what is there now; the meta graph that says of a saver what it is, is made when it is called for.

        Threads: what it returns may be called in any.
        """
        ...


class TensorsGraph:
    """The graph of what is saved now. Making it again is cheap as long as names, shapes and places are the same.

    Threads: safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: tuple[list[GraphVariable], list[GraphSaver]] = ([], [])
        self._first_parts = _info_and_graph(*encoded_graph_of(*self._made))

    def described(self, saver: SaverInGraph | None) -> Callable[[], EncodedMetaGraph]:
        """The meta graph of a saver, with the default collections: registered variables and savers get their nodes.

        Args:
            saver: None: of no saver in particular.

        Returns:
            What makes it of what there is now; InvalidArgumentError for a graph of 2 GiB or more.
        """
        registered = Registered(saver, default_collections())
        return partial(self._encoded, registered, registered.collections())

    def encoded(self, saver: SaverInGraph | None) -> EncodedMetaGraph:
        """`described`, made at once."""
        return self.described(saver)()

    def _encoded(self, registered: Registered, collections: dict[Hashable, list[object]]) -> EncodedMetaGraph:
        made = registered.variables, registered.savers
        with self._lock:
            if made != self._made:
                self._first_parts, self._made = _info_and_graph(*encoded_graph_of(*made)), made
            first_parts = self._first_parts
        graph = first_parts.graph
        rest = MetaGraphDef(saver_def=registered.saver_def)
        encoded = encode_collections(collections, registered.to_proto, lambda name: name in graph.nodes)
        for key, collection in encoded.items():
            rest.collection_def[key].CopyFrom(collection)
        whole = b"".join((first_parts.raw, rest.SerializeToString(deterministic=True)))
        return EncodedMetaGraph(memoryview(whole), _PLACE)


def _info_and_graph(graph: bytes, ops: OpList) -> EncodedMetaGraph:
    """A meta graph of nothing but its first two fields."""
    info = MetaGraphDef.MetaInfoDef(
        stripped_op_list=ops,
        tensorflow_version=TENSORFLOW_VERSION,
        tensorflow_git_version=f"torch_tfckpt {_own_version()}",
    )
    encoded = MetaGraphDef(meta_info_def=info).SerializeToString(deterministic=True)
    return EncodedMetaGraph(memoryview(b"".join((encoded, sized_tag(GRAPH, len(graph)), graph))), _PLACE)


def _own_version() -> str:
    try:
        return metadata.version("torch-tfckpt")
    except metadata.PackageNotFoundError:  # copied somewhere, not installed: no reason for a save to fail
        return "unknown"
