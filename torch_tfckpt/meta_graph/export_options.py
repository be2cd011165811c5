"""The options of export_meta_graph as one record, and a function that writes the file.

Source: export_meta_graph in tensorflow/python/training/saver.py.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import InitVar, dataclass

from torch_tfckpt._proto.meta_graph_pb2 import MetaGraphDef
from torch_tfckpt.bundle.leftovers import remove_leftovers
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
    """Options of an export.

    Attributes:
        collection_list: Names of the collections to export; None: all.
        export_scope: Export only the nodes in this scope, and remove the scope from their names.
        clear_devices: Omit the devices of nodes.
        clear_extraneous_savers: Omit the nodes of all savers except the exported one.
        strip_default_attrs: Omit attributes with default values, so that older versions of TensorFlow, which do
            not know newer attributes, can read the graph.

    Raises:
        UnimplementedError: `save_debug_info` is set.
    """

    collection_list: Sequence[str] | None = None
    export_scope: str | None = None
    clear_devices: bool = False
    clear_extraneous_savers: bool = False
    strip_default_attrs: bool = False
    save_debug_info: InitVar[bool] = False

    def __post_init__(self, save_debug_info: bool) -> None:
        if save_debug_info:
            raise UnimplementedError(
                "save_debug_info is not supported: a torch model has no graph with source locations. Omit it"
            )

    def applied_to(self, meta: RawMetaGraph) -> RawMetaGraph:
        """Return the meta graph with the options applied; with default options, the same bytes.

        Raises:
            DataLossError: a part that an option reads is damaged.
            InvalidArgumentError: the graph is 2 GiB or larger.
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
    """Base class of objects that can be exported as a meta graph: savers and imported meta graphs."""

    @abstractmethod
    def _exported(self) -> RawMetaGraph:
        """Return the meta graph to which the options of an export are applied."""

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

        The arguments are those of `torch_tfckpt.export_meta_graph`, in TensorFlow's order. A saver exports the meta
        graph that its `save` writes. An imported graph exports itself, with the import scope and with values that were
        added to its collections. Without a scope, added values or options, the result is byte-identical to the
        imported file, if that is binary.
        """
        options = ExportOptions(
            collection_list, export_scope, clear_devices, clear_extraneous_savers, strip_default_attrs, save_debug_info
        )
        return export(self._exported(), options, filename, as_text=as_text)


def export(meta: RawMetaGraph, options: ExportOptions, filename: AnyPath | None, *, as_text: bool) -> MetaGraphDef:
    """Apply the options, write the meta graph if there is a file name, and return it as a message."""
    exported = options.applied_to(meta)
    if filename is not None:
        write_meta_graph(filename, exported, as_text=as_text)
    return exported.message()


def write_meta_graph(filename: AnyPath, meta: RawMetaGraph, *, as_text: bool) -> None:
    """Write a meta graph atomically. Missing parent directories are created.

    Args:
        filename: If the name is saved_model.pb (binary) or saved_model.pbtxt (text), the file becomes a SavedModel
            that also contains the other meta graphs of the SavedModel from which `meta` was imported, if any.

    Raises:
        InvalidArgumentError: `as_text` is set, but the file name is saved_model.pb.
        UnimplementedError: the text form is requested for a message with unknown fields.
        OSError: the file cannot be written.
    """
    path = fspath(filename)
    name = os.path.basename(path)
    if name == BINARY_SAVED_MODEL and as_text:
        raise InvalidArgumentError(
            f"{printable(path)}: TensorFlow expects {name} to be binary. For text, name it {TEXT_SAVED_MODEL}"
        )
    if name in SAVED_MODEL_FILES:
        encoded: Buffer = meta.saved_model() if name == BINARY_SAVED_MODEL else saved_model_to_text(meta).encode()
    else:
        encoded = to_text(meta).encode() if as_text else meta.raw
    storage = storage_of(path)
    make_directories(storage, os.path.dirname(path))
    remove_leftovers(storage, os.path.dirname(path))
    write_file(storage, path, encoded)
