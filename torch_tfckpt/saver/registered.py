"""Collect a graph's contents: saved and registered variables, and savers, each under a unique name."""

import logging
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from google.protobuf.message import Message

from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt._proto.variable_pb2 import SaveSliceInfoDef
from torch_tfckpt.meta_graph.collection_defs import VARIABLE_COLLECTIONS
from torch_tfckpt.meta_graph.graph_collections import Collections, GraphKeys
from torch_tfckpt.meta_graph.model import GraphSaver, GraphVariable, SavedVariable
from torch_tfckpt.meta_graph.nodes import NodeNames, nodes_of, with_distinct_nodes
from torch_tfckpt.meta_graph.saver_nodes import given_names
from torch_tfckpt.meta_graph.variable_nodes import variable_def
from torch_tfckpt.meta_graph.variables import slice_info_def
from torch_tfckpt.saveables.identity import Identity, identity_of
from torch_tfckpt.saveables.save_spec import SaveableObject, SaveSpec, group_by_devices
from torch_tfckpt.saveables.slice_info import SaveSliceInfo
from torch_tfckpt.saveables.tensor_saveable import VariableSaveable
from torch_tfckpt.saveables.variables import PartitionedVariable, Variable

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SaverInGraph:
    """How a meta graph describes a saver.

    Attributes:
        saver_def: The saver's settings; the names in them are valid names of nodes.
        filename: The default path.
        saver: The saver itself, so that a graph describes each saver only once.
    """

    saver_def: SaverDef
    saveables: Sequence[SaveableObject]
    saver: object
    sharded: bool = False
    reshape: bool = False
    filename: str = "model"


@runtime_checkable
class InGraph(Protocol):
    """A saver, as stored in the collection "savers"."""

    def _in_graph(self) -> SaverInGraph | None:
        """Return the saver's description for meta graphs; None if it has nothing to save."""


def saver_in_graph(saver: InGraph) -> SaverInGraph | None:
    """Return a saver's description for meta graphs; None if it has nothing to save."""
    return saver._in_graph()


class Registered:
    """The variables and savers of one graph, each under a unique name.

    Args:
        saver: The saver that the meta graph belongs to; None if it belongs to no saver.
        collections: Collections whose variables and savers are also in the graph.

    Attributes:
        saver_def: The settings of `saver`.
        savers: All savers, `saver` first.
    """

    def __init__(self, saver: SaverInGraph | None, collections: Collections) -> None:
        self._collections = collections
        registered = {id(each): each for each in collections.get_collection(GraphKeys.SAVERS)}
        if saver is not None:
            registered.pop(id(saver.saver), None)
        others = [saver_in_graph(each) for each in registered.values() if isinstance(each, InGraph)]
        found = [each for each in (saver, *others) if each is not None]
        definitions = with_distinct_nodes([each.saver_def for each in found])
        self.saver_def = definitions[0] if saver is not None else None
        self._definitions = {id(each.saver): one for each, one in zip(found, definitions, strict=True)}
        self._names = NodeNames(name for definition in definitions for name in nodes_of(definition))
        self._variables: dict[Identity, GraphVariable] = {}
        self.savers = [self._saver(*each) for each in zip(found, definitions, strict=True) if each[0].saveables]
        self._saved = self.variables
        self._given: set[str] = set()

    @property
    def variables(self) -> list[GraphVariable]:
        """All variables added so far, in the order in which they were added."""
        return list(self._variables.values())

    def collections(self) -> dict[Hashable, list[object]]:
        """Return collection name -> values, including the saved variables; all variables are GraphVariables."""
        found: dict[Hashable, list[object]] = {
            name: [each for value in values for each in self._in_graph(value)]
            for name, values in self._collections.lists().items()
        }
        saved = {
            GraphKeys.GLOBAL_VARIABLES: self._saved,
            GraphKeys.TRAINABLE_VARIABLES: [variable for variable in self._saved if variable.trainable],
        }
        for key in VARIABLE_COLLECTIONS:
            registered = list(_variables_in(key, found.get(key, ())))
            variables = {variable.name: variable for variable in (*saved.get(key, ()), *registered)}
            if variables:
                found[key] = list(variables.values())
        self._given = given_names(self.variables, self.savers)
        return found

    def to_proto(self, value: object) -> Message | None:
        """Return the message that represents `value` in a collection, or None if there is none.

        REQUIRES: `collections` was called, because it finds the nodes of the graph.
        """
        if isinstance(value, GraphVariable):
            return variable_def(value, self._given)
        return value if isinstance(value, Message) else self._definitions.get(id(value))

    def _saver(self, saver: SaverInGraph, definition: SaverDef) -> GraphSaver:
        stored = {id(each): list(self._stored(each)) for each in saver.saveables}
        groups = group_by_devices(saver.saveables) if saver.sharded else [("", list(saver.saveables))]
        saved = [(device, [each for one in group for each in stored[id(one)]]) for device, group in groups]
        return GraphSaver(definition, saved, saver.reshape, saver.filename)

    def _stored(self, saveable: SaveableObject) -> Iterator[SavedVariable]:
        variable = saveable.variable if isinstance(saveable, VariableSaveable) else None
        for index, spec in enumerate(saveable.specs):
            if spec.dtype is None:  # it has no value yet; saving it will raise
                continue
            if variable is not None:
                stored = self._of_variable(variable, spec)
            else:
                identity = ("spec", id(saveable), index)
                stored = self._add(identity, spec.name, spec, _part(spec))
            yield SavedVariable(stored, spec.name, spec.slice_spec)

    def _in_graph(self, value: object) -> Iterator[object]:
        """Yield the graph's variables for a value in a collection; yield any other value unchanged."""
        if isinstance(value, PartitionedVariable):
            yield from (self._of_variable(part, _spec(part)) for part in value)
        elif isinstance(value, Variable):
            yield self._of_variable(value, _spec(value))
        elif isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], torch.Tensor):
            named = Variable(value[1], str(value[0]), trainable=value[1].requires_grad)
            yield self._of_variable(named, _spec(named))
        elif isinstance(value, SaveableObject):
            yield from (each.variable for each in self._stored(value))
        else:
            yield value

    def _of_variable(self, variable: Variable, spec: SaveSpec) -> GraphVariable:
        info = variable.slice_info
        part = slice_info_def(info) if info is not None else _part(spec)
        identity = (*identity_of(variable.tensor), spec.dtype)
        return self._add(identity, variable.name, spec, part, trainable=variable.trainable)

    def _add(
        self, identity: Identity, name: str, spec: SaveSpec, part: SaveSliceInfoDef | None, *, trainable: bool = False
    ) -> GraphVariable:
        if identity not in self._variables:
            assert spec.dtype is not None, "skipped by the caller"
            self._variables[identity] = GraphVariable(
                self._names.unique(name), spec.dtype, spec.shape, spec.device, trainable, part
            )
        return self._variables[identity]


def _variables_in(key: str, values: Iterable[object]) -> Iterator[GraphVariable]:
    for value in values:
        if isinstance(value, GraphVariable):
            yield value
        else:
            _log.warning(
                "collection %s: a value of type %s is not written. Add a Variable, or a pair of a name and a tensor",
                key,
                type(value).__name__,
            )


def _part(spec: SaveSpec) -> SaveSliceInfoDef | None:
    return slice_info_def(SaveSliceInfo.of_spec(spec.name, spec.slice_spec)) if spec.slice_spec else None


def _spec(variable: Variable) -> SaveSpec:
    slice_spec = variable.slice_info.spec if variable.slice_info is not None else ""
    return SaveSpec(variable.tensor, slice_spec, variable.name, variable.dtype, variable.device)
