"""export_meta_graph: its options as one record, and the file it writes.

Source: export_meta_graph in tensorflow/python/training/saver.py.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import InitVar, dataclass

from torch_tfckpt._proto.meta_graph_pb2 import MetaGraphDef
from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError
from torch_tfckpt.meta_graph import rescoping, rewriting
from torch_tfckpt.meta_graph.files import BINARY_SAVED_MODEL, SAVED_MODEL_FILES, TEXT_SAVED_MODEL
from torch_tfckpt.meta_graph.nodes import known_ops
from torch_tfckpt.meta_graph.raw import RawMetaGraph
from torch_tfckpt.meta_graph.text import saved_model_to_text, to_text
from torch_tfckpt.storage.choice import storage_of
from torch_tfckpt.storage.names import AnyPath, fspath
from torch_tfckpt.storage.protocol import Buffer
from torch_tfckpt.storage.small_files import make_directories, write_file
from torch_tfckpt.text import printable


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What of a meta graph is exported, and how.

    Attributes:
        collection_list: Names of the collections; None: all.
        export_scope: Only what lies in this scope, its name taken off.
        clear_devices: Without the devices of nodes.
        clear_extraneous_savers: Without the nodes of other savers than the one that is exported.
        strip_default_attrs: Without attributes that are as an operation has them by itself, so that older versions of
            TensorFlow, which do not know newer attributes, can read the graph.

    Raises:
        UnimplementedError: `save_debug_info` is asked for.
    """

    collection_list: Sequence[str] | None = None
    export_scope: str | None = None
    clear_devices: bool = False
    clear_extraneous_savers: bool = False
    strip_default_attrs: bool = False
    save_debug_info: InitVar[bool] = False

    def __post_init__(self, save_debug_info: bool) -> None:
        if save_debug_info:
            raise UnimplementedError("save_debug_info: a torch model has no graph whose sources to tell. Leave it out")

    def applied_to(self, meta: RawMetaGraph) -> RawMetaGraph:
        """The meta graph as the options want it; the very same bytes where they want nothing.

        Raises:
            DataLossError: a part that the options look at is broken.
            InvalidArgumentError: a graph of 2 GiB or more.
        """
        if self.clear_extraneous_savers:
            meta = rewriting.without_extraneous_savers(meta, meta.saver_def)
        if self.export_scope:
            meta = rescoping.out_of_scope(meta, self.export_scope)
        if self.collection_list is not None:
            meta = rewriting.only_collections(meta, self.collection_list)
        if self.clear_devices:
            meta = rewriting.clear_devices(meta)
        if self.strip_default_attrs:
            meta = rewriting.without_default_attrs(meta, known_ops())
        rewriting.check_graph_size(meta)
        return meta


class ExportsMetaGraph(ABC):
    """Base of what can be exported as a meta graph: savers and imported meta graphs."""

    @abstractmethod
    def _exported(self) -> RawMetaGraph:
        """The meta graph that is exported without options."""

    def export_meta_graph(
        self,
        filename: AnyPath | None = None,
        collection_list: Sequence[str] | None = None,
        as_text: bool = False,
        export_scope: str | None = None,
        clear_devices: bool = False,
        clear_extraneous_savers: bool = False,
        strip_default_attrs: bool = False,
        save_debug_info: bool = False,
    ) -> MetaGraphDef:
        """Return the meta graph as a message; also write it to `filename`, if one is given.

        The arguments are those of `torch_tfckpt.export_meta_graph`, in TensorFlow's order. A saver exports what its
        `save` writes; an imported graph exports itself, with the import scope and with what was added to its
        collections: without options, and nothing added, it is the file, byte for byte, if that is binary.
        """
        options = ExportOptions(
            collection_list, export_scope, clear_devices, clear_extraneous_savers, strip_default_attrs, save_debug_info
        )
        return export(self._exported(), options, filename, as_text=as_text)


def export(meta: RawMetaGraph, options: ExportOptions, filename: AnyPath | None, *, as_text: bool) -> MetaGraphDef:
    """The meta graph as the options want it, as a message; written, too, if there is a file name."""
    exported = options.applied_to(meta)
    if filename is not None:
        write_meta_graph(filename, exported, as_text=as_text)
    return exported.message()


def write_meta_graph(filename: AnyPath, meta: RawMetaGraph, *, as_text: bool) -> None:
    """Puts it under `filename`, whole or not at all; directories that are missing are made.

    Args:
        filename: One that is called saved_model.pb or saved_model.pbtxt becomes a SavedModel, binary or text as its
            name says, with the other meta graphs of the one that this was imported from.

    Raises:
        InvalidArgumentError: a saved_model.pb as text.
        UnimplementedError: as text, and it holds fields that are unknown here.
        OSError: the system refused a step.
    """
    path = fspath(filename)
    name = os.path.basename(path)
    if name == BINARY_SAVED_MODEL and as_text:
        raise InvalidArgumentError(f"{printable(path)}: TensorFlow reads {name} as binary. Call it {TEXT_SAVED_MODEL}")
    if name in SAVED_MODEL_FILES:
        encoded: Buffer = meta.saved_model() if name == BINARY_SAVED_MODEL else saved_model_to_text(meta).encode()
    else:
        encoded = to_text(meta).encode() if as_text else meta.raw
    storage = storage_of(path)
    make_directories(storage, os.path.dirname(path))
    write_file(storage, path, encoded)
