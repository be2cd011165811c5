"""Lookup tables of a graph: which node is which table, and where their contents come from.

A table is an object that lives as long as the program. Nodes with the same `shared_name` are the same table. Before a
request that uses a table runs for the first time, the table is filled: from the checkpoint that was restored, if the
graph's saver stores the table, and again after each restore; else by the nodes that initialise it, which are among
those that the graph's initialisers need. These nodes name files: assets of the SavedModel, or files in the directory
of the graph. A save writes what the graph has put into the tables.

Source: LookupTableOp in tensorflow/core/kernels/lookup_table_op.h; tensorflow/python/saved_model/loader_impl.py.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from torch_tfckpt.errors import DataLossError, InvalidArgumentError, NotFoundError, error_context
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.graph_def import Node
from torch_tfckpt.graph_ops.lookup import LookupTable, fill_from_text
from torch_tfckpt.graph_run.attributes import python_value, type_attribute
from torch_tfckpt.graph_run.constants import constant_of
from torch_tfckpt.graph_run.steps import TABLE_CHANGES, TABLES, GraphStep, Region, without_identities
from torch_tfckpt.text import quoted
from torch_tfckpt.values import Value

RESTORES: Final = "RestoreV2"


def _no_file(name: str) -> bytes:
    raise NotFoundError(f"the graph needs the file {quoted(name)}")


@dataclass(frozen=True, slots=True)
class TableSources:
    """Where a graph's tables get their contents.

    Attributes:
        initializers: Nodes that initialise tables, and possibly more.
        restore: The node that restores a checkpoint; "" if there is none.
        paths: Tensor -> path of a file: the assets of a SavedModel.
        read: Returns the contents of the file that the graph names.
        stored: Returns the values that the last restore gave for keys of the checkpoint; None for those it did not.
        store: Takes the values that the next save writes for keys of the checkpoint.
    """

    initializers: Sequence[str] = ()
    restore: str = ""
    paths: Mapping[tuple[str, int], str] = field(default_factory=dict)
    read: Callable[[str], bytes] = _no_file
    stored: Callable[[Sequence[str]], Sequence[Value | None]] = lambda keys: [None for _ in keys]
    store: Callable[[Mapping[str, Value]], None] = lambda values: None


class LookupTables:
    """The tables of one graph.

    Args:
        sources: Where their contents come from.
    """

    def __init__(self, sources: TableSources) -> None:
        self.sources = sources
        self._tables: dict[str, LookupTable] = {}
        self._restored: dict[str, tuple[Value, Value]] = {}
        self._versions: dict[str, int] = {}  # of tables when they were restored or stored

    def of(self, step: GraphStep) -> LookupTable:
        """Return the table of a node.

        Raises:
            DataLossError: nodes of the same table declare different types.
        """
        name = table_name(step)
        keys, values = (type_attribute(step.attributes, each) for each in ("key_dtype", "value_dtype"))
        if keys is None or values is None:
            raise DataLossError("the types of the table are missing")
        shape = python_value(step.attributes["value_shape"]) if "value_shape" in step.attributes else ()
        found = self._tables.get(name)
        if found is None:
            if not isinstance(shape, tuple) or min(shape, default=0) < 0:
                raise DataLossError(f"value_shape is {shape}, expected a known shape")
            is_mutable = TABLES[step.op]
            found = self._tables[name] = LookupTable(name, keys, values, shape, is_mutable)
        if (found.key_type, found.value_type) != (keys, values):
            raise DataLossError(f"table {quoted(name)} is declared with different types")
        return found

    def restore(self, name: str, stored: Sequence[Value | None]) -> None:
        """Set a table to the keys and values of the checkpoint that was restored last, if there was one."""
        keys, values = stored
        before = self._restored.get(name)
        if keys is None or values is None or (before is not None and before[0] is keys and before[1] is values):
            return
        self._restored[name] = keys, values
        self._tables[name].fill(keys, values)
        self._versions[name] = self._tables[name].version

    def changed(self, name: str) -> tuple[Value, Value] | None:
        """Return the keys and values of a table that has changed since this or `restore` was called; else None.

        The first time, also those of a table that may be changed and is still empty, as TensorFlow stores it.
        """
        table = self._tables[name]
        if table.version == self._versions.get(name, -1 if table.is_mutable else 0):
            return None
        self._versions[name] = table.version
        self._restored[name] = table.contents()
        return self._restored[name]

    @property
    def names(self) -> Sequence[str]:
        """The tables that modules use."""
        return tuple(self._tables)

    def named(self, name: str) -> LookupTable:
        return self._tables[name]


def table_name(step: GraphStep) -> str:
    """Return the name that the nodes of one table share."""
    shared = step.attributes.get("shared_name")
    return shared.s.decode("utf-8", "replace") if shared is not None and shared.s else step.name


def changes_of(region: Region, names: Iterable[str]) -> list[GraphStep]:
    """Return the steps of a region that fill tables with these names."""
    wanted = set(names)
    return [
        step
        for step in region.steps
        if step.op in TABLE_CHANGES
        and step.inputs
        and (table := without_identities(step.inputs[0])[0]).op in TABLES
        and table_name(table) in wanted
    ]


def stored_tables(region: Region) -> dict[str, tuple[str, str]]:
    """Return name of a table -> keys in the checkpoint of its keys and values, from the steps that restore it."""
    found: dict[str, tuple[str, str]] = {}
    for step in region.steps:
        if step.op not in ("LookupTableImport", "LookupTableImportV2") or len(step.inputs) != 3:
            continue
        table, keys, values = (without_identities(source) for source in step.inputs)
        if table[0].op in TABLES:
            names = [_checkpoint_key(source) for source in (keys, values)]
            if all(names):
                found[table_name(table[0])] = names[0], names[1]
    return found


def _checkpoint_key(source: tuple[GraphStep, int]) -> str:
    step, index = source
    if step.op != RESTORES or len(step.inputs) < 2:
        return ""
    names = without_identities(step.inputs[1])[0]
    value = names.attributes.get("value")
    if names.op != "Const" or value is None or int(value.tensor.dtype) != int(DataType.DT_STRING):
        return ""
    listed = constant_of(value.tensor).reshape(-1).tolist()
    return bytes(listed[index]).decode("utf-8", "replace") if index < len(listed) else ""


def asset_feeds(nodes: Mapping[str, Node], paths: Mapping[tuple[str, int], str]) -> dict[tuple[str, int], Any]:
    """Return tensor -> path to feed: the assets' tensors, and reads of variables that hold nothing but such a path."""
    found = {each: path for each, path in paths.items() if each[0] in nodes}
    values = {_tensor(*each): path for each, path in found.items()}
    held: dict[str, str] = {}
    for node in nodes.values():
        if node.op in ("Assign", "AssignVariableOp") and len(node.inputs) > 1 and node.inputs[1] in values:
            held[node.inputs[0]] = values[node.inputs[1]]
    for node in nodes.values():
        if node.op in ("ReadVariableOp", "Identity") and node.inputs and node.inputs[0] in held:
            found[node.name, 0] = held[node.inputs[0]]
    return {each: np.array(os.fsencode(path), dtype=object) for each, path in found.items()}


def _tensor(name: str, index: int) -> str:
    return f"{name}:{index}" if index else name


def initialize_from_file(table: LookupTable, filename: Any, read: Callable[[str], bytes], **attributes: Any) -> None:
    """Fill a table from a text file.

    Args:
        read: Returns the contents of the file with this name.

    Raises:
        NotFoundError: there is no such file.
        InvalidArgumentError: its lines are not what the table needs.
    """
    if table.is_filled:
        return
    if not isinstance(filename, np.ndarray) or filename.size != 1:
        raise InvalidArgumentError("the name of a vocabulary file must be one string")
    with error_context(f"table {quoted(table.name)}"):
        fill_from_text(table, read(os.fsdecode(filename.item())), **attributes)
