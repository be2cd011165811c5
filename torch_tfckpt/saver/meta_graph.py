"""Build the `.meta` file of a Saver: a resource variable for each tensor, and the nodes of all savers.

TensorFlow can import it, restore the checkpoint, continue training, and save checkpoints that this package restores.

Source: tensorflow/python/framework/meta_graph.py.
"""

from collections.abc import Callable, Hashable
from functools import partial
from importlib import metadata
from typing import Final, Protocol

from torch_tfckpt._proto.meta_graph_pb2 import MetaGraphDef
from torch_tfckpt.format.graph_def import Graph
from torch_tfckpt.format.wire import sized_tag
from torch_tfckpt.meta_graph.collection_defs import encode_collections
from torch_tfckpt.meta_graph.graph_collections import default_collections
from torch_tfckpt.meta_graph.model import GraphSaver, GraphVariable
from torch_tfckpt.meta_graph.nodes import known_ops
from torch_tfckpt.meta_graph.raw import GRAPH, RawMetaGraph
from torch_tfckpt.meta_graph.saver_nodes import encoded_graph_of
from torch_tfckpt.saver.registered import Registered, SaverInGraph

# The files are identical to those that this version writes. Readers use the version to interpret missing fields.
TENSORFLOW_VERSION: Final = "2.21.0"
_PLACE: Final = "the meta graph of a saver"


class MetaGraphSource(Protocol):
    """Creates the meta graphs of a saver."""

    def described(self, saver: SaverInGraph | None) -> Callable[[], RawMetaGraph]:
        """Return a function that encodes the meta graph of a saver with the current variables.

        Thread safety: the function may be called in any thread.
        """

    def check_values(self) -> None:
        """Raise FailedPreconditionError before a save if the variables of the graph have no values yet."""

    def values_restored(self) -> None:
        """Called after the saver has restored the variables."""


class TensorsGraph:
    """The graph of the saved tensors.

    It is encoded again only if names, shapes or devices have changed.

    Thread safety: safe, even if the process forks while a thread encodes a graph, since there are no locks.
    """

    def __init__(self) -> None:
        self._made: _Made | None = None
        self._version = ""

    def described(self, saver: SaverInGraph | None) -> Callable[[], RawMetaGraph]:
        """Return a function that encodes the meta graph of a saver, with the default collections.

        Args:
            saver: The saver; None for a meta graph without a SaverDef of its own.

        Returns:
            The function; it raises InvalidArgumentError for a graph of 2 GiB or more.
        """
        # The next two calls import modules. They are made here, not in another thread: if the process forked while that
        # thread was importing, the child could no longer import.
        known_ops()
        self._version = self._version or _own_version()
        registered = Registered(saver, default_collections())
        return partial(self._encoded, registered, registered.collections())

    def check_values(self) -> None:
        """Do nothing: tensors always have values."""

    def values_restored(self) -> None:
        """Do nothing."""

    def encoded(self, saver: SaverInGraph | None) -> RawMetaGraph:
        """Encode the meta graph of a saver now."""
        return self.described(saver)()

    def _encoded(self, registered: Registered, collections: dict[Hashable, list[object]]) -> RawMetaGraph:
        made = self._made
        if made is None or (made.variables, made.savers) != (registered.variables, registered.savers):
            made = self._made = _Made(registered.variables, registered.savers, self._version)
        rest = MetaGraphDef(saver_def=registered.saver_def)
        for key, collection in encode_collections(collections, registered.to_proto, made.has_node).items():
            rest.collection_def[key].CopyFrom(collection)
        whole = b"".join((made.first_fields, rest.SerializeToString(deterministic=True)))
        return RawMetaGraph(memoryview(whole), _PLACE)


class _Made:
    """An encoded graph, and the variables and savers in it.

    Attributes:
        first_fields: The first fields of the meta graph: the info and the graph.
    """

    def __init__(self, variables: list[GraphVariable], savers: list[GraphSaver], version: str) -> None:
        self.variables, self.savers = variables, savers
        self._graph, ops = encoded_graph_of(variables, savers)
        info = MetaGraphDef.MetaInfoDef(
            stripped_op_list=ops,
            tensorflow_version=TENSORFLOW_VERSION,
            tensorflow_git_version=f"torch_tfckpt {version}",
        )
        encoded = MetaGraphDef(meta_info_def=info).SerializeToString(deterministic=True)
        self.first_fields = b"".join((encoded, sized_tag(GRAPH, len(self._graph)), self._graph))
        self._names: set[str] | None = None

    def has_node(self, name: str) -> bool:
        """Whether there is a node of that name."""
        if self._names is None:
            self._names = {node.name for node in Graph(memoryview(self._graph)).iter_nodes()}
        return name in self._names


def _own_version() -> str:
    try:
        return metadata.version("torch-tfckpt")
    except metadata.PackageNotFoundError:  # the package was copied, not installed; a save should not fail
        return "unknown"
