"""The variables of a meta graph, and which of them each node and each function of the graph uses.

In a `.meta` file, a variable is its node. In a TF2 SavedModel, a variable is an object, which cannot be found by the
names of nodes: Keras 3 writes graphs like this, and two layers may have one name.

    object graph    node 8 = SavedVariable("dense/kernel", trainable), reached from the root as "variables/0"
                    concrete_functions["__inference_wrapper_7"].bound_inputs = [8]
    saver           "variables/0/.ATTRIBUTES/VARIABLE_VALUE" is restored into the node "Variable_10"
    graph           StatefulPartitionedCall(x, "dense/kernel_1") calls __inference_wrapper_7 with a third name

So a variable is a group of objects, nodes and stored values that belong together:

- a stored value and the object of its key, by the object graph of the checkpoint, which the saver stores as a constant;
- a stored value and the nodes that the saver restores it into;
- an object and the node that is passed to a function in its place. The last inputs of a call are the function's
  bound inputs, in order.

The variable has the name of its object if no other variable has that name, and else the path of the object.

Source: SavedObjectGraph in tensorflow/core/protobuf/saved_object_graph.proto; _map_captures_to_created_tensors in
tensorflow/python/saved_model/save.py; _setup_function_captures in tensorflow/python/saved_model/load.py.
"""

import logging
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from torch_tfckpt._proto.saved_object_graph_pb2 import SavedObjectGraph, SavedVariable
from torch_tfckpt.errors import CheckpointError, DataLossError, error_context
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.graph_def import Node
from torch_tfckpt.format.object_graph import OBJECT_GRAPH_KEY, ROOT, ObjectGraph, object_path
from torch_tfckpt.format.tensor_names import short_key
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.meta_graph.model import GraphVariable
from torch_tfckpt.meta_graph.raw import RawMetaGraph
from torch_tfckpt.meta_graph.saver_values import VARIABLE_OPS, StoredValue, called_function
from torch_tfckpt.meta_graph.variables import graph_variables, parts_stored, saver_values, shape_of, variable_of
from torch_tfckpt.text import quoted

_log = logging.getLogger(__name__)
_VARIABLE: Final = "variable"  # kind of a SavedObject


@dataclass(frozen=True, slots=True)
class BoundVariables:
    """The variables of a meta graph.

    Attributes:
        variables: The variables, with unique names.
        stored: The values that the saver stores; their `variables` and `computing` are names of `variables`. None if
            there is no saver, or it has no nodes.
        of_nodes: Name of a node -> name of its variable.
        of_functions: Name of a function that the object graph lists -> names of the variables that it captures, in the
            order of its last arguments; None for a captured value that is not a variable.
    """

    variables: Sequence[GraphVariable]
    stored: Sequence[StoredValue] | None
    of_nodes: Mapping[str, str]
    of_functions: Mapping[str, Sequence[str | None]] = field(default_factory=dict)

    def of_variables(self, stored: Sequence[StoredValue] | None) -> list[StoredValue] | None:
        """Return the values that another saver of the graph stores, with names of variables instead of nodes."""
        if stored is None:
            return None
        return [
            replace(value, variables=tuple(dict.fromkeys(self.of_nodes.get(node, node) for node in value.variables)))
            for value in stored
        ]


def bound_variables(meta: RawMetaGraph) -> BoundVariables:
    """Return the variables of a meta graph: those of its objects if it has an object graph, else those of its nodes.

    Raises:
        DataLossError: a part is damaged, or refers to something that does not exist.

    Cost: a walk over the graph's nodes and the object graph. Thread safety: may be called from several threads.
    """
    stored = saver_values(meta)
    objects = meta.object_graph
    if objects is not None and any(each.WhichOneof("kind") == _VARIABLE for each in objects.nodes):
        with error_context(meta.place):
            return _Binding(meta, objects, stored or ()).result(stored is not None)
    variables = graph_variables(meta, stored)
    with error_context(meta.place):
        of_nodes = _with_shared_names(meta, {variable.name: variable.name for variable in variables})
    return BoundVariables(variables, stored, of_nodes)


class _Groups:
    """Disjoint sets of objects (by number), nodes (by name) and stored values (as `_NumberedValue`)."""

    def __init__(self) -> None:
        self._parents: dict[Hashable, Hashable] = {}

    def of(self, member: Hashable) -> Hashable:
        """Return the member that stands for the whole group."""
        root = member
        while self._parents.get(root, root) != root:
            root = self._parents[root]
        while member != root:
            self._parents[member], member = root, self._parents[member]
        return root

    def join(self, one: Hashable, other: Hashable) -> None:
        self._parents[self.of(other)] = self.of(one)


class _NumberedValue(NamedTuple):
    """A stored value, by its number."""

    number: int


@dataclass(slots=True)
class _Members:
    """One variable: what belongs together."""

    objects: list[int] = field(default_factory=list)
    nodes: dict[str, None] = field(default_factory=dict)
    values: list[int] = field(default_factory=list)  # indices of stored values
    name: str = ""


class _Binding:
    """Finds the variables of one TF2 SavedModel."""

    def __init__(self, meta: RawMetaGraph, objects: SavedObjectGraph, stored: Sequence[StoredValue]) -> None:
        self._meta, self._stored = meta, stored
        self._saved = {
            number: each.variable for number, each in enumerate(objects.nodes) if each.WhichOneof("kind") == _VARIABLE
        }
        self._functions = {name: list(each.bound_inputs) for name, each in objects.concrete_functions.items()}
        for name, bound in self._functions.items():
            if any(not 0 <= number < len(objects.nodes) for number in bound):
                raise DataLossError(f"function {quoted(name)} captures an object that the object graph does not have")
        self._paths = _paths(objects, self._saved)
        self._keys = _keys(objects, stored)
        self._parts = dict(parts_stored(stored))
        self._captured = {number for bound in self._functions.values() for number in bound}
        self._groups = _Groups()
        self._overruled: dict[str, int] = {}  # nodes of which a call says otherwise than the saver

    def result(self, has_saver: bool) -> BoundVariables:
        self._join_stored()
        self._join_calls()
        groups = self._collected()
        self._choose_names(groups)
        of_objects = {number: group.name for group in groups for number in group.objects}
        of_nodes = {name: group.name for group in groups for name in group.nodes}
        of_nodes |= {name: of_objects[number] for name, number in self._overruled.items()}
        left_out = {of_nodes[node] for value in self._stored for node in value.computing}
        return BoundVariables(
            [self._variable(group) for group in groups if group.name not in left_out],
            self._renamed(groups, of_nodes) if has_saver else None,
            _with_shared_names(self._meta, {node: name for node, name in of_nodes.items() if name not in left_out}),
            {name: [of_objects.get(number) for number in bound] for name, bound in self._functions.items()},
        )

    def _join_stored(self) -> None:
        """Join each stored value with its nodes, and with the object that is stored under its key."""
        owners: dict[str, list[int]] = {}
        for number, key in self._keys.items():
            owners.setdefault(key, []).append(number)
        for index, value in enumerate(self._stored):
            # The parts of a divided variable have one key, but each is an object of its own.
            objects = owners.get(value.key, ()) if not value.slice_spec else ()
            for member in (*value.variables, *value.computing, *objects):
                self._groups.join(_NumberedValue(index), member)

    def _join_calls(self) -> None:
        """Join each captured object with the node that a call passes in its place."""
        graph = self._meta.graph
        objects_of = {self._groups.of(number): number for number in self._saved}
        for node in graph.nodes.values():
            function = called_function(graph.functions, node)
            bound = self._functions.get(function.name) if function is not None else None
            if not bound:
                continue
            inputs = [name.removesuffix(":0") for name in node.inputs if not name.startswith("^")]
            if len(inputs) < len(bound):
                raise DataLossError(
                    f"node {quoted(node.name)} calls a function with {len(inputs)} inputs, but the function captures "
                    f"{len(bound)} objects"
                )
            for name, number in zip(inputs[-len(bound) :], bound, strict=True):
                passed = graph.nodes.get(name)
                if number not in self._saved or passed is None or passed.op not in VARIABLE_OPS:
                    continue
                other = objects_of.get(self._groups.of(name), number)
                if self._form(other) != self._form(number):
                    # The file contradicts itself. TensorFlow passes the captured object.
                    _log.warning("the saver restores node %s into a variable that no function reads", quoted(name))
                    self._overruled[name] = number
                    continue
                self._groups.join(number, name)
                objects_of[self._groups.of(number)] = number

    def _form(self, number: int) -> tuple[int, Shape | None]:
        return self._saved[number].dtype, shape_of(self._saved[number].shape)

    def _collected(self) -> list[_Members]:
        """Return the variables that are stored or captured: first in the order of the saver, then of the objects."""
        found: dict[Hashable, _Members] = {}
        with_objects = {self._groups.of(number) for number in self._saved}
        for index, value in enumerate(self._stored):
            root = self._groups.of(_NumberedValue(index))
            if value.variables or value.computing or root in with_objects:
                group = found.setdefault(root, _Members())
                group.values.append(index)
                group.nodes |= dict.fromkeys((*value.variables, *value.computing))
        for number in self._saved:
            root = self._groups.of(number)
            if root in found or number in self._captured:
                found.setdefault(root, _Members()).objects.append(number)
        for node in self._meta.graph.nodes.values():
            if node.op in VARIABLE_OPS and (root := self._groups.of(node.name)) in found:
                found[root].nodes[node.name] = None
        for each in found.values():
            # The object that functions read comes first: TensorFlow restores it, and its key is the variable's key.
            each.objects.sort(key=lambda number: (number not in self._captured, number))
            main = self._keys.get(each.objects[0]) if each.objects else None
            each.values.sort(key=lambda index: (self._stored[index].key != main, index))
        return list(found.values())

    def _choose_names(self, groups: Sequence[_Members]) -> None:
        """Name each variable after its object, or by the object's path if that could mean another variable, too."""
        paths = [self._path(group) for group in groups]
        names = [self._own_name(group) or path for group, path in zip(groups, paths, strict=True)]
        counts = Counter(names)
        taken = set(paths)
        for group, name, path in zip(groups, names, paths, strict=True):
            group.name = name if counts[name] == 1 and (name == path or name not in taken) else path
        twice = [name for name, count in Counter(group.name for group in groups).items() if count > 1]
        if twice:
            raise DataLossError(f"the object graph has two variables at {quoted(twice[0])}")

    def _own_name(self, group: _Members) -> str:
        return self._saved[group.objects[0]].name.removesuffix(":0") if group.objects else ""

    def _path(self, group: _Members) -> str:
        if group.values and not (value := self._stored[group.values[0]]).slice_spec:
            return short_key(value.key)
        if group.objects:
            return self._paths.get(group.objects[0], f"object {group.objects[0]}")
        return next(iter(group.nodes))

    def _variable(self, group: _Members) -> GraphVariable:
        part = next((self._parts[node] for node in group.nodes if node in self._parts), None)
        of_nodes = [variable_of(self._meta, node, False, part) for node in group.nodes]
        if not group.objects:
            return replace(of_nodes[0], name=group.name)
        saved = self._saved[group.objects[0]]
        if not saved.dtype:
            raise DataLossError(f"the object graph's variable {quoted(group.name)} has no dtype")
        device = of_nodes[0].device if of_nodes else ""
        return GraphVariable(group.name, DataType(saved.dtype), shape_of(saved.shape), device, saved.trainable, part)

    def _renamed(self, groups: Iterable[_Members], of_nodes: Mapping[str, str]) -> list[StoredValue]:
        """Return the stored values with names of variables instead of nodes."""
        of_values = {index: group for group in groups for index in group.values}
        renamed = []
        for index, value in enumerate(self._stored):
            group = of_values.get(index)
            names = (group.name,) if group is not None and not value.computing else ()
            is_copy = group is not None and index != group.values[0]
            computing = tuple(dict.fromkeys(of_nodes[node] for node in value.computing))
            renamed.append(replace(value, variables=names, computing=computing, is_copy=is_copy))
        return renamed


def _paths(objects: SavedObjectGraph, wanted: Mapping[int, SavedVariable]) -> dict[int, str]:
    """Return the shortest paths from the root to the variables."""
    parents: dict[int, tuple[int, str]] = {}
    waiting, count = [ROOT], len(objects.nodes)
    for here in waiting:
        for child in objects.nodes[here].children:
            if not 0 <= child.node_id < count:
                raise DataLossError(f"the object graph's node {here} has a child {child.node_id} that does not exist")
            if child.node_id != ROOT and child.node_id not in parents:
                parents[child.node_id] = here, child.local_name
                waiting.append(child.node_id)
    paths = {}
    for number in wanted:
        names, here = list[str](), number
        while here in parents:
            here, name = parents[here]
            names.append(name)
        if names:
            paths[number] = object_path(reversed(names))
    return paths


def _keys(objects: SavedObjectGraph, stored: Iterable[StoredValue]) -> dict[int, str]:
    """Return variable -> the key under which it is stored.

    The saver stores the object graph of the checkpoint, which has the same objects with other numbers. Both are walked
    together, from the root along the same names.
    """
    constants = (value.constant for value in stored if value.key == OBJECT_GRAPH_KEY)
    encoded = next((constant for constant in constants if constant is not None), None)
    if encoded is None:
        return {}
    try:
        graph = ObjectGraph.decode(encoded)
    except CheckpointError as error:
        raise DataLossError(f"the saver's object graph is damaged: {error}") from error
    pairs = {ROOT: ROOT} if graph.nodes else {}
    waiting = list(pairs)
    for here in waiting:
        children = {child.local_name: child.node_id for child in graph.nodes[pairs[here]].children}
        for child in objects.nodes[here].children:
            if child.node_id not in pairs and child.local_name in children:
                pairs[child.node_id] = children[child.local_name]
                waiting.append(child.node_id)
    slots = {
        (number, slot.original_variable_node_id, slot.slot_name): slot.slot_variable_node_id
        for number, node in enumerate(graph.nodes)
        for slot in node.slot_variables
    }
    for number in waiting:
        for slot in objects.nodes[number].slot_variables:
            wanted = pairs[number], pairs.get(slot.original_variable_node_id, -1), slot.slot_name
            if wanted in slots:
                pairs.setdefault(slot.slot_variable_node_id, slots[wanted])
    found = ((number, graph.value_key(other)) for number, other in pairs.items() if number < len(objects.nodes))
    return {
        number: key
        for number, key in found
        if key is not None and objects.nodes[number].WhichOneof("kind") == _VARIABLE
    }


def _with_shared_names(meta: RawMetaGraph, of_nodes: dict[str, str]) -> dict[str, str]:
    """Add the nodes that are other handles of the same resources: those with the same container and shared name."""
    owners: dict[tuple[bytes, bytes], set[str]] = {}
    others: list[tuple[str, tuple[bytes, bytes]]] = []
    for node in meta.graph.nodes.values():
        if node.op in VARIABLE_OPS:
            resource = _resource(node)
            if node.name in of_nodes:
                owners.setdefault(resource, set()).add(of_nodes[node.name])
            else:
                others.append((node.name, resource))
    # Object graphs may contain several variables of one shared name; such a name identifies none of them.
    known = {resource: next(iter(names)) for resource, names in owners.items() if len(names) == 1}
    return of_nodes | {name: known[resource] for name, resource in others if resource in known}


def _resource(node: Node) -> tuple[bytes, bytes]:
    """Return container and name of the resource that a node is a handle of. The default name is that of the node."""
    container, name = node.attr("container"), node.attr("shared_name")
    return container.s if container is not None else b"", (name.s if name is not None else b"") or node.name.encode()
