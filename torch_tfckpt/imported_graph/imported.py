"""import_meta_graph: load variables, saver and collections of a TensorFlow graph, without its code.

    imported = import_meta_graph("run/model.ckpt-1000.meta")
    imported.saver.restore("run/model.ckpt-1000")
    imported.variables["dense/kernel"]                   # a torch tensor
    imported.saver.save("run/model.ckpt", 1001)          # from which the original TensorFlow program can continue

Source: import_meta_graph in tensorflow/python/training/saver.py.
"""

import logging
import operator
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from typing import Final

from google.protobuf.message import Message

from torch_tfckpt._proto.meta_graph_pb2 import CollectionDef, MetaGraphDef, SignatureDef
from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt._proto.variable_pb2 import VariableDef
from torch_tfckpt.dtypes import is_holdable
from torch_tfckpt.errors import (
    CheckpointError,
    DataLossError,
    FailedPreconditionError,
    as_data_loss,
    error_context,
)
from torch_tfckpt.imported_graph.bindings import NodeVariables, VariableBindings
from torch_tfckpt.imported_graph.runnable import RunsInTorch
from torch_tfckpt.imported_graph.running import GraphRunner
from torch_tfckpt.imported_graph.tables import table_sources
from torch_tfckpt.imported_graph.tensors import GraphTensor, GraphTensors
from torch_tfckpt.imported_graph.values import GraphValues
from torch_tfckpt.meta_graph import rescoping, rewriting
from torch_tfckpt.meta_graph.bound_variables import bound_variables
from torch_tfckpt.meta_graph.collection_defs import decode_collection, encode_collections
from torch_tfckpt.meta_graph.export_options import ExportsMetaGraph
from torch_tfckpt.meta_graph.files import chosen, meta_graph_of, open_meta_graph, saved_model_directory
from torch_tfckpt.meta_graph.graph_collections import Collections, registered_variables
from torch_tfckpt.meta_graph.nodes import nodes_of
from torch_tfckpt.meta_graph.raw import RawMetaGraph
from torch_tfckpt.meta_graph.saver_values import StoredValue, stored_values
from torch_tfckpt.meta_graph.scopes import prepend_name_scope, strip_name_scope
from torch_tfckpt.meta_graph.variables import values_by_name, variable_of
from torch_tfckpt.save_restore.saver_def import check_scope
from torch_tfckpt.saver.registered import InGraph, SaverInGraph, saver_in_graph
from torch_tfckpt.saver.saver import Saver
from torch_tfckpt.storage.names import AnyPath
from torch_tfckpt.text import counted, quoted
from torch_tfckpt.values import Value

_log = logging.getLogger(__name__)
_SAVED_MODEL_VALUES: Final = "variables", "variables"  # the prefix of its checkpoint, in the directory


class ImportedMetaGraph(ExportsMetaGraph, RunsInTorch):
    """A TensorFlow graph as tensors, savers and collections. `import_meta_graph` returns it.

    So does `import_graph_def`. The constructor is private.

    Attributes:
        saver: Saves and restores `variables` with the keys and shards of the graph's saver; its `save` also writes the
            graph as `.meta`. None if there are no variables.
        variables: Name -> torch tensor, or numpy array of `bytes` for strings: zeros until something is restored.
            A partitioned variable is one tensor under the name of the whole variable. Names are as in the graph,
            with the import scope; checkpoint keys may differ. In a TF2 SavedModel, they are the names of the program's
            variables, such as "dense/kernel", or the paths of objects, such as "layers/1/kernel", if several variables
            have one name. Assigning an item copies the value into the tensor.
        checkpoint_keys: Name -> key under which `saver` stores the variable, for the variables that it stores.
        collections: Name -> values: ints, floats, bytes, names of nodes, Any, messages; Variables and Savers in the
            collections of variables and savers. Values that are added to these collections are exported.
        signatures: Name -> SignatureDef, of a SavedModel; without the import scope, as in TensorFlow.
        assets: Name of a tensor -> name of the asset file whose path is the tensor's value.
        import_scope: The import scope, or "".

    Thread safety: not thread-safe.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> path = tfckpt.Saver({"w": torch.ones(2)}).save("model.ckpt")
        >>> imported = tfckpt.import_meta_graph("model.ckpt.meta")
        >>> imported
        ImportedMetaGraph('model.ckpt.meta', 1 variable)
        >>> imported.op_counts["VarHandleOp"]
        1
    """

    def __init__(
        self,
        _meta: RawMetaGraph,
        import_scope: str | None,
        *,
        _saved_model: str | None = None,
        _is_graph_def: bool = False,
        _directory: str = "",
    ) -> None:
        """Private: `import_meta_graph` calls it with a decoded file, and the directory if it is of a SavedModel."""
        self.import_scope = (check_scope(import_scope) or "").rstrip("/")
        self._meta = meta = _meta
        self._graph = _ImportedGraph(meta, self.import_scope)
        self.saver: Saver | None = self._graph.saver
        if self.saver is None and not _is_graph_def:
            self.saver = _of_registered_variables(self.import_scope)
        self.variables: dict[str, Value] = GraphValues(self._graph.tensors.values, self._graph.tensors.mark_set)
        self.checkpoint_keys: dict[str, str] = self._graph.checkpoint_keys
        self.collections: Collections = self._graph.collections
        self.signatures: dict[str, SignatureDef] = dict(meta.signatures)
        self.assets: dict[str, str] = {asset.tensor_info.name: asset.filename for asset in meta.assets}
        self._saved_model = _saved_model
        self._directory = _saved_model or _directory

    @cached_property
    def op_counts(self) -> Counter[str]:
        """Operation -> number of its nodes in the graph, without nodes of functions."""
        with error_context(self._meta.place):
            return self._meta.graph.op_counts()

    @cached_property
    def meta_graph_def(self) -> MetaGraphDef:
        """The meta graph of the file, without the import scope, and without devices if these were cleared.

        Cost: the size of the file in memory, at the first access.
        """
        return self._meta.message()

    @cached_property
    def _runner(self) -> GraphRunner:
        tables = table_sources(self._meta, self._directory, self._stored, self._graph.tensors.hold)
        variables = NodeVariables(self._bindings, self._meta.graph)
        self._graph.runner = GraphRunner(self._meta, variables, self.import_scope, tables)
        return self._graph.runner

    def _stored(self, keys: Sequence[str]) -> list[Value | None]:
        """Return values of the graph's tables that were restored from a checkpoint, by their keys in it."""
        found = [self._graph.tensors.held(key) for key in keys]
        if any(value is None for value in found):
            self._bindings.read_unless_restored()
            found = [self._graph.tensors.held(key) for key in keys]
        return found

    @cached_property
    def _bindings(self) -> VariableBindings:
        """Which variable each node is. Also reads the values of a SavedModel before they are first used."""
        read: Callable[[Sequence[str]], None] | None = None
        if self._saved_model is not None:
            read = partial(self._graph.read_values, os.path.join(self._saved_model, *_SAVED_MODEL_VALUES))
        return VariableBindings(self._graph.bound, self._graph.tensors, read)

    def _exported(self) -> RawMetaGraph:
        """Return the meta graph to which the options of an export are applied. Cost: none if it is unchanged."""
        return self._graph.encoded(saver_in_graph(self.saver) if self.saver is not None else None)

    def __repr__(self) -> str:
        return f"ImportedMetaGraph({self._meta.place!r}, {counted(len(self.variables), 'variable')})"


def import_meta_graph(
    file_or_proto: AnyPath | Message,
    clear_devices: bool = False,
    import_scope: str | None = None,
    *,
    tags: Iterable[str] | None = None,
) -> ImportedMetaGraph:
    """Import the variables, the saver and the collections of a graph.

    Args:
        file_or_proto: A `.meta` file, binary or text; the prefix of its checkpoint; the directory or file of a
            SavedModel; or a MetaGraphDef (ours or TensorFlow's class).
        clear_devices: Remove the devices from all nodes. Sharded savers then write one shard.
        import_scope: Prefix for the names of variables, nodes and savers. The graph's savers keep their checkpoint
            keys; for a graph without a saver, one is created whose keys include the scope, as in TensorFlow.
        tags: The tags of the graph to choose from a SavedModel; default: the only graph, or the one tagged "serve".

    Raises:
        NotFoundError (an OSError): there is no such file, or no graph with these tags.
        DataLossError (an OSError if the file is not a meta graph at all): a part of the meta graph is damaged.
        InvalidArgumentError (a ValueError): the graph has unbound inputs, `tags` is needed to choose a graph, or
            `import_scope` is not a valid scope name.
        FailedPreconditionError: a variable is larger than the address space.

    The graph is not executed, and nothing is added to the default collections.
    Cost: one read of the file, and its size in memory; constants are not decoded. Memory for the variables is allocated
    when they are restored.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> path = tfckpt.Saver({"w": torch.ones(2)}).save("model.ckpt")
        >>> imported = tfckpt.import_meta_graph("model.ckpt.meta")
        >>> report = imported.saver.restore("model.ckpt")
        >>> imported.variables["w"]
        tensor([1., 1.])
    """
    saved_model, directory = None, ""
    if isinstance(file_or_proto, Message):
        meta = chosen([meta_graph_of(file_or_proto)], tags, "MetaGraphDef")
    else:
        meta = open_meta_graph(file_or_proto, tags)
        directory = os.path.dirname(meta.place)
        if meta.around is not None:
            saved_model = saved_model_directory(file_or_proto)
    rescoping.check_unbound(meta)
    return ImportedMetaGraph(
        rewriting.clear_devices(meta) if clear_devices else meta,
        import_scope,
        _saved_model=saved_model,
        _directory=directory,
    )


class _ImportedGraph:
    """A graph and its tensors. The graph's savers call it to get the meta graphs that they write."""

    def __init__(self, meta: RawMetaGraph, scope: str) -> None:
        self._meta, self._scope = meta, scope
        self.runner: GraphRunner | None = None  # once something was run
        self._savers: dict[bytes, Saver] = {}
        self._definitions: dict[int, Message] = {}  # id of an object in `collections` -> the message it replaces
        self.bound = bound = bound_variables(meta)
        stored, self._variables = bound.stored, bound.variables
        with error_context(meta.place):
            self.tensors = GraphTensors(self._variables, scope)
            for name in dict.fromkeys(name for value in stored or () for name in value.computing):
                self.tensors.leave_out(name, "the graph computes its value from stored values")
            self.saver = self._saver(meta.saver_def, stored)
            self.checkpoint_keys = self.tensors.checkpoint_keys(self._stored_by(stored))
            self.collections = Collections()
            for name, encoded in meta.collections.items():
                for value in self._values(name, encoded):
                    self.collections.add_to_collection(name, value)
        self._imported = self.collections.lists()

    @cached_property
    def _scoped(self) -> RawMetaGraph:
        return rescoping.in_import_scope(self._meta, self._scope) if self._scope else self._meta

    def described(self, saver: SaverInGraph | None) -> Callable[[], RawMetaGraph]:
        """Encode the graph now, and return a function that returns the result."""
        encoded = self.encoded(saver)
        return lambda: encoded

    def check_values(self) -> None:
        """Raise FailedPreconditionError if no variable has been restored or set yet, so that all are zeros."""
        if self.tensors.are_all_zeros():
            raise FailedPreconditionError(
                "Attempting to use uninitialized value: no variable of the graph has been restored or set. Restore a "
                "checkpoint first"
            )
        if self.runner is not None:
            self.runner.store_tables()

    def values_restored(self) -> None:
        """Record that a checkpoint was restored: from now on, variables may be saved even if all are zeros.

        Lookup tables of modules get their new contents.
        """
        self.tensors.are_restored = True
        if self.runner is not None:
            self.runner.restore_tables()

    def read_values(self, prefix: str, names: Sequence[str]) -> None:
        """Restore these variables, and values without a variable, from the files of the SavedModel."""
        wanted = set(names)
        values = [
            value
            for value in self._stored_by(self.bound.stored)
            if not value.variables or any(self.tensors.name(each) in wanted for each in self.tensors.holding(value))
        ]
        with error_context("reading the values of the SavedModel"):
            Saver(self._var_list(values), reshape=any(each.reshaped for each in values), _graph=self).restore(prefix)

    def encoded(self, saver: SaverInGraph | None) -> RawMetaGraph:
        """Return the graph with the current collections, and with the SaverDef of `saver` if its nodes exist."""
        collections = self.collections.lists()
        changed = {name: values for name, values in collections.items() if not _same(values, self._imported.get(name))}
        gone = {str(name): None for name in self._imported if name not in collections}
        meta = self._scoped
        if changed or gone:
            encoded: dict[str, CollectionDef | None] = {
                **encode_collections(changed, self._to_proto, lambda name: name in self._scoped.graph.nodes)
            }
            meta = rewriting.with_collections(meta, {**gone, **encoded})
        if saver is not None and saver.saver_def != meta.saver_def and self._has(saver.saver_def):
            meta = rewriting.with_saver_def(meta, saver.saver_def)
        return meta

    def _has(self, saver_def: SaverDef) -> bool:
        return all(strip_name_scope(name, self._scope) in self._meta.graph.nodes for name in nodes_of(saver_def))

    def _values(self, name: str, encoded: CollectionDef) -> Iterable[object]:
        """Yield the values of one collection; tensors and savers replace the messages that describe them."""
        plain = encoded.bytes_list.value
        for index, value in enumerate(decode_collection(name, encoded, self._scope)):
            found: object = value
            if isinstance(value, VariableDef):
                found = self._variable(VariableDef.FromString(plain[index])) or value
            elif isinstance(value, SaverDef):
                found = self._saver_or_message(value, SaverDef.FromString(plain[index]))
            if isinstance(value, Message) and found is not value:
                self._definitions[id(found)] = value
            yield found

    def _variable(self, definition: VariableDef) -> GraphTensor | None:
        node = definition.variable_name.partition(":")[0]
        node = self.bound.of_nodes.get(node, node)
        if node in self.tensors:
            return self.tensors[node]
        part = definition.save_slice_info_def if definition.HasField("save_slice_info_def") else None
        return self.tensors.add(variable_of(self._meta, node, definition.trainable, part))

    def _saver_or_message(self, scoped: SaverDef, saver_def: SaverDef) -> Saver | SaverDef:
        try:
            stored = self.bound.of_variables(stored_values(self._meta.graph, saver_def))
            return self._saver(saver_def, stored) or scoped
        except CheckpointError as error:
            _log.warning("a SaverDef in the graph's collections is not converted to a Saver: %s", error)
            return scoped

    def _saver(self, saver_def: SaverDef | None, stored: Sequence[StoredValue] | None) -> Saver | None:
        """Return the saver with these settings, or None if the graph has no variables that torch can hold.

        Args:
            saver_def: The settings; None for a saver of all variables.
            stored: The values that the saver's nodes store; None if the saver has no nodes.
        """
        encoded = b"" if saver_def is None else saver_def.SerializeToString(deterministic=True)
        if encoded not in self._savers:
            stored = self._stored_by(stored)
            if all(self.tensors[variable.name] is None for variable in self._variables):
                return None
            with as_data_loss("saver"):
                self._savers[encoded] = Saver(
                    self._var_list(stored),
                    reshape=any(value.reshaped for value in stored),
                    saver_def=saver_def,
                    name=self._scope if self._scope and saver_def is not None else None,
                    _graph=self,
                )
        return self._savers[encoded]

    def _stored_by(self, stored: Sequence[StoredValue] | None) -> Sequence[StoredValue]:
        """Return `stored`, or for a saver without nodes, all variables under their names."""
        return values_by_name(self._variables, self._scope) if stored is None else stored

    def _var_list(self, stored: Iterable[StoredValue]) -> dict[str, object]:
        """Return key -> value for a saver, with the parts of one tensor in a list."""
        saved: dict[str, object] = {}
        for value in stored:
            if not value.variables and not is_holdable(value.dtype):
                _log.warning(
                    "%s: the saver's value %s is neither restored nor saved: torch has no %s",
                    self._meta.place,
                    quoted(value.key),
                    value.dtype.name,
                )
                continue
            saveable = self.tensors.saveable(value)
            if not value.slice_spec:
                if value.key in saved:
                    raise DataLossError(f"the saver stores two values under the key {quoted(value.key)}")
                saved[value.key] = saveable
                continue
            parts = saved.setdefault(value.key, [])
            if not isinstance(parts, list):
                raise DataLossError(f"the saver stores a whole tensor and a slice under the key {quoted(value.key)}")
            parts.append(saveable)
        return saved

    def _to_proto(self, value: object) -> Message | None:
        if id(value) in self._definitions:
            return self._definitions[id(value)]
        if isinstance(value, InGraph):
            saver = saver_in_graph(value)
            if saver is not None and self._has(saver.saver_def):
                return saver.saver_def
            _log.warning("a saver in a collection is not written: the graph does not have its nodes")
            return None
        return value if isinstance(value, Message) else None


def _same(values: Sequence[object], imported: Sequence[object] | None) -> bool:
    return imported is not None and len(values) == len(imported) and all(map(operator.is_, values, imported))


def _of_registered_variables(scope: str) -> Saver | None:
    """Return a saver of all registered variables, as in TensorFlow; None if none of them is in the scope."""
    prefix = prepend_name_scope("", scope)
    names = (getattr(variable, "name", "") for variable in registered_variables())
    return Saver() if any(str(name).startswith(prefix) for name in names) else None
