"""Build the object graph and the values of a checkpoint from Python objects.

Ids are assigned breadth first from the root, in the order of the children; slot variables come after all others. An
object that can be reached by several paths is one node, stored under the first of its shortest paths.

Source: tensorflow/python/checkpoint/{graph_view,save_util,util}.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError, error_context
from torch_tfckpt.format.object_graph import (
    OBJECT_GRAPH_KEY,
    VARIABLE_VALUE,
    ObjectGraph,
    ObjectReference,
    SerializedTensor,
    SlotVariable,
    TrackableObject,
    checkpoint_key,
    object_path,
    slot_variable_path,
    with_checkpoint_values,
)
from torch_tfckpt.objects.trackables.modules import ModuleTrackable, distinct
from torch_tfckpt.objects.trackables.optimizers import OptimizerTrackable, Slot
from torch_tfckpt.objects.trackables.plain_values import PythonStateTrackable, StateTrackable
from torch_tfckpt.objects.trackables.registry import trackable_of
from torch_tfckpt.objects.trackables.tensors import TensorTrackable
from torch_tfckpt.objects.trackables.trackable import Trackable
from torch_tfckpt.saveables.identity import Identity
from torch_tfckpt.saveables.save_spec import SaveableObject, SaveSpec
from torch_tfckpt.text import quoted


@dataclass(slots=True)
class ObjectNode:
    """An object, at the first path by which it was reached."""

    trackable: Trackable
    parent: "ObjectNode | None" = None
    local_name: str = ""
    children: list[ObjectReference] = field(default_factory=list)

    @property
    def way(self) -> "list[ObjectNode]":
        """The nodes from the root to this one, including both."""
        # Computed on request: stored in every node of a long chain, they would take memory quadratic in its length.
        nodes = [self]
        while nodes[-1].parent is not None:
            nodes.append(nodes[-1].parent)
        return nodes[::-1]

    @property
    def route(self) -> tuple[str, ...]:
        """Local names from the root."""
        return tuple(node.local_name for node in self.way[1:])

    @property
    def full_name(self) -> str:
        """Name of a tensor for tf.train.Saver: its own name, or the name that a Saver of these objects uses.

        For example, a tensor of the module "model" is called "model/fc1.weight", or "fc1.weight" if the module is the
        root. A tensor outside of modules has a name such as "step" or "extra/ema". Other objects have the name "".
        """
        if not isinstance(self.trackable, TensorTrackable):
            return ""
        if self.trackable.own_name:
            return self.trackable.own_name
        way = self.way
        names = [node.local_name for node in way[1:]]
        module_at = next((at for at, node in enumerate(way) if isinstance(node.trackable.target, nn.Module)), None)
        if module_at is None:
            return "/".join(names)
        return "/".join((*names[:module_at], ".".join(names[module_at:])))

    def __str__(self) -> str:
        return ".".join(("(root)", *self.route))


def object_nodes(root: Trackable) -> list[ObjectNode]:
    """Return all objects that can be reached from the root, in the order of their ids.

    Raises:
        ValueError: an object that cannot be saved; two children with the same name; a name that cannot be encoded.

    Cost: linear in the number of objects and their children.
    """
    nodes = [ObjectNode(root)]
    ids: dict[Identity, int] = {root.identity: 0}
    for node in nodes:  # the list grows during the loop
        for name, value in distinct(node.trackable.children()):
            _check_name(name)
            child = trackable_of(value, name)
            if child.identity not in ids:
                ids[child.identity] = len(nodes)
                nodes.append(ObjectNode(child, node, name))
            node.children.append(ObjectReference(ids[child.identity], name))
    return nodes


def _check_name(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(
            f"the name {quoted(name)} is not valid Unicode: {error}. Rename the object"
        ) from error


def to_save(root: Trackable, *, skip_slot_variables: bool = False) -> list[SaveableObject]:
    """Return all values below `root`, followed by the encoded graph.

    Args:
        skip_slot_variables: Omit the state of optimizers.

    Raises:
        ValueError: as `object_nodes`.
        TypeError, InvalidArgumentError, UnimplementedError: a value that cannot be saved.
    """
    nodes = object_nodes(root)
    for node in nodes:
        if isinstance(node.trackable, ModuleTrackable):
            with error_context(str(node)):
                node.trackable.check()
    builder = _Builder(nodes)
    if skip_slot_variables:
        nodes = [each for each in nodes if not each.parent or not isinstance(each.parent.trackable, OptimizerTrackable)]
    else:
        builder.add_slots()
    values = [saveable for node in nodes if not _is_state(node.trackable) for saveable in builder.values_of(node)]
    values += builder.slot_values
    values += [saveable for node in nodes if _is_state(node.trackable) for saveable in builder.values_of(node)]
    if not skip_slot_variables:
        values += builder.optimizer_states()
    text = SaveSpec(builder.graph().encode(), "", OBJECT_GRAPH_KEY, device="")
    return [*values, SaveableObject(None, [text], OBJECT_GRAPH_KEY)]


def _is_state(trackable: Trackable) -> bool:
    """Return whether TensorFlow would write the values of this node after the tensors."""
    return isinstance(trackable, StateTrackable | PythonStateTrackable)


class _Builder:
    """Builds the graph of the given objects."""

    def __init__(self, nodes: Sequence[ObjectNode]) -> None:
        self._nodes = nodes
        self._ids = {node.trackable.identity: node_id for node_id, node in enumerate(nodes)}
        self._attributes: dict[int, list[SerializedTensor]] = {}
        self._slots: dict[int, list[SlotVariable]] = {}
        self._slot_nodes: list[TrackableObject] = []
        self._slot_keys: dict[int, str] = {}  # id of the tensor -> key; the optimizer keeps the tensor alive
        self.slot_values: list[SaveableObject] = []

    def values_of(self, node: ObjectNode) -> Sequence[SaveableObject]:
        """Return the saveables of a node, and record its attributes."""
        if not node.trackable.holds_values:
            return ()
        node_id = self._ids[node.trackable.identity]
        saved = node.trackable.to_save(object_path(node.route))
        full_name = node.full_name
        self._attributes[node_id] = [SerializedTensor(name, full_name, key) for name, key in saved.attributes.items()]
        return saved.saveables

    def add_slots(self) -> None:
        """Record the slot variables of all optimizers, sorted by slot name, then by variable."""
        for node_id, node in enumerate(self._nodes):
            if isinstance(node.trackable, OptimizerTrackable):
                placed = [
                    (slot, self._ids.get(TensorTrackable(slot.parameter).identity)) for slot in node.trackable.slots()
                ]
                known = [(slot, variable) for slot, variable in placed if variable is not None]
                for slot, variable in sorted(known, key=lambda pair: (pair[0].name, pair[1])):
                    self._add_slot(node_id, slot, variable)

    def _add_slot(self, optimizer: int, slot: Slot, variable: int) -> None:
        tensor = TensorTrackable(slot.tensor)
        if tensor.identity in self._ids or id(slot.tensor) in self._slot_keys:
            raise UnimplementedError(
                f"{self._nodes[optimizer]}: the slot variable {quoted(slot.name)} of {self._nodes[variable]} is also "
                f"in the checkpoint as a separate object. Remove that object from the checkpoint"
            )
        variable_path, optimizer_path = (object_path(self._nodes[each].route) for each in (variable, optimizer))
        path = slot_variable_path(variable_path, optimizer_path, slot.name)
        saved = tensor.to_save(path)
        full_name = f"{self._nodes[variable].full_name}/{slot.full_name_suffix}"
        self._slots.setdefault(optimizer, []).append(
            SlotVariable(variable, slot.name, len(self._nodes) + len(self._slot_nodes))
        )
        attributes = [SerializedTensor(name, full_name, key) for name, key in saved.attributes.items()]
        self._slot_nodes.append(TrackableObject(attributes=tuple(attributes)))
        self._slot_keys[id(slot.tensor)] = checkpoint_key(path, VARIABLE_VALUE)
        self.slot_values += saved.saveables

    def optimizer_states(self) -> list[SaveableObject]:
        """Return the state of all optimizers, except for slot variables."""
        tensors = [node for node in self._nodes if isinstance(node.trackable, TensorTrackable)]
        paths = {node.trackable.identity: object_path(node.route) for node in tensors}
        found: list[SaveableObject] = []
        for node in self._nodes:
            if isinstance(node.trackable, OptimizerTrackable):
                with error_context(str(node)):
                    found += node.trackable.state_to_save(object_path(node.route), paths, self._slot_keys)
        return found

    def graph(self) -> ObjectGraph:
        """Return the graph. REQUIRES: `values_of` was called for all nodes."""
        objects = [
            TrackableObject(
                tuple(node.children), tuple(self._attributes.get(node_id, ())), tuple(self._slots.get(node_id, ()))
            )
            for node_id, node in enumerate(self._nodes)
        ]
        return ObjectGraph(with_checkpoint_values([*objects, *self._slot_nodes]))
