"""Distinguish weights in a checkpoint from auxiliary variables, which are not reported as unexpected.

Auxiliary variables are step counters, slots and hyperparameters of optimizers, moving averages, strings, and
tensors of a state that is described by such a string. In a name-based checkpoint, `named_kinds` recognises them; in
an object-based one, the object graph shows the owner of every tensor:

    below an optimizer, or a slot variable of one      optimizer state, or counters
    _model_variables_moving_average of an optimizer    moving averages
    renorm_mean and the like, next to moving_mean      other
    integers that are children of the root             counters
    below keras_api                                    other: metrics of Keras 2
    reached without passing through an optimizer       weights, even if an optimizer also lists them

A Keras file stores the variables of the optimizer in a group of their own.
"""

from collections.abc import Container, Iterator

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.object_graph import ROOT, VARIABLE_VALUE, ObjectGraph, TrackableObject
from torch_tfckpt.models.auxiliary.averages import StoredAverages, stored_averages
from torch_tfckpt.models.auxiliary.named_kinds import (
    COUNTERS,
    MOVING,
    POWERS,
    RENORM,
    WHOLE_NUMBERS,
    Kinds,
    VariableKind,
    named_kinds,
)
from torch_tfckpt.models.auxiliary.named_slots import find_slots
from torch_tfckpt.optimizers.slots import is_optimizer

_KERAS_API = "keras_api"  # child under which Keras 2 stores metrics, and layers a second time


def auxiliary_keys(reader: CheckpointReader) -> set[str]:
    """Return the keys of a checkpoint that are not weights of a model.

    Raises:
        DataLossError: the object graph is damaged.

    Cost: looks at the entries of all tensors.
    """
    return {key for key, kind in variable_kinds(reader).items() if kind is not VariableKind.WEIGHT}


def variable_kinds(reader: CheckpointReader) -> dict[str, VariableKind]:
    """Return the kind of each variable of a checkpoint, in the order of its keys. Raises like `kinds`."""
    return kinds(reader).of


def kinds(reader: CheckpointReader, averages: StoredAverages | None = None) -> Kinds:
    """Return the kind of each variable, and the variables whose kinds are uncertain.

    Args:
        averages: `stored_averages(reader)`, if the caller has it already.

    Raises:
        DataLossError: the object graph or the entry of a tensor is damaged.

    Cost: looks at the entries of all tensors.
    """
    if reader.keras is not None:
        return _kinds_of_keras(reader, reader.keras.of_optimizer)
    graph = reader.object_graph
    averages = stored_averages(reader) if averages is None else averages
    return named_kinds(reader, averages) if graph is None else _kinds_of_objects(reader, graph, averages.keys)


def _kinds_of_keras(reader: CheckpointReader, of_optimizer: Container[str]) -> Kinds:
    """Return the kinds of the variables of a Keras file, which has a separate group for the optimizer's."""

    def kind(key: str) -> VariableKind:
        if key not in of_optimizer:
            return VariableKind.WEIGHT
        return VariableKind.COUNTER if _is_whole_number(reader, key) else VariableKind.OPTIMIZER

    known = {key: kind(key) for key in reader.keys()}
    weights = {key: tuple(reader.shape(key)) for key, each in known.items() if each is VariableKind.WEIGHT}
    slots = {key: tuple(reader.shape(key)) for key, each in known.items() if each is VariableKind.OPTIMIZER}
    scopes = {key.rpartition("/")[0] for key, each in known.items() if each is VariableKind.COUNTER}
    return Kinds(known, find_slots(slots, {**weights, **slots}, scopes=scopes, keras_scopes=scopes), scopes)


def _kinds_of_objects(reader: CheckpointReader, graph: ObjectGraph, averages: Container[str]) -> Kinds:
    weights = {key for name, key in _weights(graph) if not _is_counted(name)} - _counts(reader, graph)
    of_optimizers = _optimizer_keys(graph)

    def kind(key: str) -> VariableKind:
        if reader.dtype(key) == DataType.DT_STRING:
            return VariableKind.OTHER
        if key in averages:
            return VariableKind.AVERAGE
        if key in weights:
            return VariableKind.WEIGHT
        if _is_whole_number(reader, key):
            return VariableKind.COUNTER
        return VariableKind.OPTIMIZER if key in of_optimizers else VariableKind.OTHER

    return Kinds({key: kind(key) for key in reader.keys()})


def _is_counted(name: str) -> bool:
    return bool(COUNTERS.fullmatch(name) or POWERS.fullmatch(name))


def _optimizer_keys(graph: ObjectGraph) -> set[str]:
    """Return the keys of objects below optimizers, weights included, and of slot variables."""
    optimizers = [node for node in graph.nodes if is_optimizer(node)]
    slots = {slot.slot_variable_node_id for node in optimizers for slot in node.slot_variables}
    waiting = [*slots, *(child.node_id for node in optimizers for child in node.children)]
    seen = set(waiting)
    for here in waiting:  # grows in the loop
        below = {child.node_id for child in graph.nodes[here].children} - seen
        seen |= below
        waiting += below
    return {attribute.checkpoint_key for here in seen for attribute in graph.nodes[here].attributes}


def _counts(reader: CheckpointReader, graph: ObjectGraph) -> set[str]:
    """Return the keys of integers that are children of the root, such as a Checkpoint's step and epoch."""
    children = graph.nodes[ROOT].children if graph.nodes else ()
    keys = (graph.value_key(child.node_id) for child in children)
    stored = {key for key in keys if key is not None and key in reader}
    return {key for key in stored if _is_whole_number(reader, key)}


def _is_whole_number(reader: CheckpointReader, key: str) -> bool:
    return reader.shape(key) == () and reader.dtype(key) in WHOLE_NUMBERS


def _weights(graph: ObjectGraph) -> Iterator[tuple[str, str]]:
    """Yield the name and key of each variable that can be reached without passing through an optimizer."""
    seen = {ROOT}
    waiting = [(ROOT, "")] if graph.nodes else []
    while waiting:
        here, name = waiting.pop()
        node = graph.nodes[here]
        if is_optimizer(node):
            continue
        for attribute in node.attributes:
            if attribute.name == VARIABLE_VALUE:
                yield name, attribute.checkpoint_key
        for child in node.children:
            if child.node_id not in seen and not _is_apart(node, child.local_name):
                seen.add(child.node_id)
                waiting.append((child.node_id, child.local_name))


def _is_apart(parent: TrackableObject, name: str) -> bool:
    """Return whether a child is not part of the model: metrics of Keras 2, or batch renormalization state."""
    return name == _KERAS_API or (name in RENORM and any(parent.child(moving) is not None for moving in MOVING))
