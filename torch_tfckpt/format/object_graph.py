"""The object graph: which object of a program each tensor of an object-based checkpoint belongs to.

    node 0 (root) --"model"--> node 1 --"kernel"--> node 3, attribute VARIABLE_VALUE, stored under
                                                     model/kernel/.ATTRIBUTES/VARIABLE_VALUE
                  --"optimizer"--> node 2, slot variable "m" of node 3: node 4, stored under
                                                     model/kernel/.OPTIMIZER_SLOT/optimizer/m/.ATTRIBUTES/VARIABLE_VALUE

tf.train.Checkpoint stores it, serialized, as one string tensor. It is a graph, not a tree: an object may have several
parents, and may be its own ancestor. Nothing here recurses, and nothing is copied once per name of a path.

Source: tensorflow/core/protobuf/trackable_object_graph.proto, tensorflow/python/trackable/trackable_utils.py.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple, Self

from google.protobuf.message import DecodeError

from torch_tfckpt._proto.trackable_object_graph_pb2 import TrackableObjectGraph
from torch_tfckpt.errors import DAMAGED, DataLossError, NotFoundError
from torch_tfckpt.text import quoted

# Key of the string tensor that holds the graph.
OBJECT_GRAPH_KEY: Final = "_CHECKPOINTABLE_OBJECT_GRAPH"
# The only attribute of a variable.
VARIABLE_VALUE: Final = "VARIABLE_VALUE"
# Attribute of an object that stores its state as a string of its own.
PYTHON_STATE: Final = "py_state"

_ATTRIBUTES: Final = "/.ATTRIBUTES/"
_SLOTS: Final = "/.OPTIMIZER_SLOT/"
_ESCAPES: Final = re.compile(r"\.[.S]")
ROOT: Final = 0


class ObjectReference(NamedTuple):
    """Edge to a child."""

    node_id: int
    local_name: str  # not escaped


class SerializedTensor(NamedTuple):
    """Value of a node."""

    name: str  # of the attribute, escaped
    full_name: str  # name of the variable, as tf.train.Saver would have stored it; "" if it is not a variable
    checkpoint_key: str  # for tables and the like, the prefix of several keys


class SlotVariable(NamedTuple):
    """Value that an optimizer keeps for a variable."""

    original_variable_node_id: int
    slot_name: str
    slot_variable_node_id: int


class RegisteredSaver(NamedTuple):
    """Saver that stored an object in files of its own."""

    name: str
    object_name: str


@dataclass(frozen=True, slots=True)
class TrackableObject:
    """Node of the graph."""

    children: tuple[ObjectReference, ...] = ()
    attributes: tuple[SerializedTensor, ...] = ()
    slot_variables: tuple[SlotVariable, ...] = ()
    registered_saver: RegisteredSaver | None = None
    has_checkpoint_values: bool | None = None  # in this node or below it; None: not recorded, by old writers

    def child(self, local_name: str) -> int | None:
        """Return the node id of the child with this name; None if there is none."""
        return next((child.node_id for child in self.children if child.local_name == local_name), None)


@dataclass(frozen=True)
class ObjectGraph:
    """Objects of one checkpoint, and the tensors that belong to them.

    Attributes:
        nodes: The objects. Node 0 is the root, and the id of a node is its index.

    Thread safety: may be used from several threads; what is looked up is kept.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> path = tfckpt.Checkpoint(model=torch.nn.Linear(2, 1)).write("ckpt")
        >>> with tfckpt.load_checkpoint(path) as reader:
        ...     graph = reader.object_graph
        >>> [graph.name(node_id) for node_id in range(len(graph.nodes))]
        ['(root)', '(root).model', '(root).model.weight', '(root).model.bias']
        >>> graph.value_key(2)
        'model/weight/.ATTRIBUTES/VARIABLE_VALUE'
    """

    nodes: tuple[TrackableObject, ...]

    def __repr__(self) -> str:
        return f"<ObjectGraph of {len(self.nodes)} objects>"

    @classmethod
    def decode(cls, serialized: bytes) -> Self:
        """Decode a stored graph.

        Raises:
            DataLossError: these bytes are not an object graph; or it refers to nodes that it does not have, or has one
                attribute of a node twice.
        """
        try:
            message = TrackableObjectGraph.FromString(serialized)
        except DecodeError as error:
            raise DataLossError(f"this is not an object graph: {error}. {DAMAGED}") from error
        nodes = tuple(map(_node_of, message.nodes))
        for node_id, node in enumerate(nodes):
            _check(node_id, node, len(nodes))
        return cls(nodes)

    def encode(self) -> bytes:
        """Return the stored form, byte for byte as TensorFlow would write it."""
        message = TrackableObjectGraph(nodes=map(_message_of, self.nodes))
        return message.SerializeToString(deterministic=True)

    def names_to_keys(self) -> dict[str, str]:
        """Return full_name -> checkpoint_key of all attributes; for a name that occurs twice, the last key.

        The name "" is included if something is not a variable.
        """
        return {attribute.full_name: attribute.checkpoint_key for node in self.nodes for attribute in node.attributes}

    def route(self, node_id: int) -> tuple[str, ...] | None:
        """Return the local names on the shortest way from the root to a node.

        None if no child leads to the node, as with slot variables.

        Cost: the length of the way; the first call looks at all edges once.
        """
        return self.route_within(node_id, len(self.nodes))

    def route_within(self, node_id: int, longest: int) -> tuple[str, ...] | None:
        """Return `route`, or None if it has more than `longest` names."""
        if node_id != ROOT and node_id not in self._parents:
            return None
        names: list[str] = []
        while node_id != ROOT:
            if len(names) == longest:
                return None
            node_id, local_name = self._parents[node_id]
            names.append(local_name)
        return tuple(reversed(names))

    def name(self, node_id: int) -> str:
        """Return the name of a node in messages: "(root).model.kernel", "(root).optimizer's state 'm' for (root).v"."""
        route = self.route(node_id)
        if route is not None:
            return ".".join(("(root)", *route))
        slot = self._slots.get(node_id)
        if slot is None:
            return f"(node {node_id})"
        optimizer, variable, slot_name = slot
        # Their names are looked up by their routes only: a slot of a slot could end in a loop.
        return f"{self._plain_name(optimizer)}'s state '{slot_name}' for {self._plain_name(variable)}"

    def variables(self) -> Iterator[SerializedTensor]:
        """Yield the values of all variables, in the order of the nodes."""
        for node in self.nodes:
            for attribute in node.attributes:
                if attribute.name == VARIABLE_VALUE:
                    yield attribute

    def value_key(self, node_id: int) -> str | None:
        """Return the key of the value of a variable; None if the node is not a variable."""
        attributes = self.nodes[node_id].attributes
        return next((each.checkpoint_key for each in attributes if each.name == VARIABLE_VALUE), None)

    @cached_property
    def slot_variable_ids(self) -> frozenset[int]:
        """Ids of the nodes that are slot variables of some optimizer."""
        return frozenset(self._slots)

    def _plain_name(self, node_id: int) -> str:
        route = self.route(node_id)
        return f"(node {node_id})" if route is None else ".".join(("(root)", *route))

    @cached_property
    def _parents(self) -> dict[int, tuple[int, str]]:
        """Node -> the parent from which it was first reached, breadth first, and its name there; in that order."""
        parents: dict[int, tuple[int, str]] = {}
        waiting = deque([ROOT] if self.nodes else [])
        while waiting:
            here = waiting.popleft()
            for child in self.nodes[here].children:
                if child.node_id != ROOT and child.node_id not in parents:
                    parents[child.node_id] = (here, child.local_name)
                    waiting.append(child.node_id)
        return parents

    @cached_property
    def _slots(self) -> dict[int, tuple[int, int, str]]:
        """Slot variable -> optimizer, variable, slot name."""
        return {
            slot.slot_variable_node_id: (node_id, slot.original_variable_node_id, slot.slot_name)
            for node_id, node in enumerate(self.nodes)
            for slot in node.slot_variables
        }


def with_checkpoint_values(nodes: Iterable[TrackableObject]) -> tuple[TrackableObject, ...]:
    """Return the nodes with has_checkpoint_values set: whether a node, or one below it, has values.

    Source: add_checkpoint_values_check in tensorflow/python/checkpoint/util.py.
    """
    given = tuple(nodes)
    parents: dict[int, set[int]] = {}
    for node_id, node in enumerate(given):
        for child in node.children:
            parents.setdefault(child.node_id, set()).add(node_id)
    waiting = [i for i, node in enumerate(given) if node.attributes or node.slot_variables or node.registered_saver]
    having = set(waiting)
    while waiting:
        new = parents.pop(waiting.pop(), set()) - having
        having |= new
        waiting += new
    return tuple(
        TrackableObject(node.children, node.attributes, node.slot_variables, node.registered_saver, i in having)
        for i, node in enumerate(given)
    )


def escape_local_name(name: str) -> str:
    """Return a local name as a part of a key: "a/b" becomes "a.Sb", "x.y" becomes "x..y"."""
    return name.replace(".", "..").replace("/", ".S")


def unescape_local_name(escaped: str) -> str:
    """Return the local name that `escape_local_name` was given; what it cannot have returned is unchanged."""
    return _ESCAPES.sub(lambda found: "/" if found[0] == ".S" else ".", escaped)


def object_path(route: Iterable[str]) -> str:
    """Return the part of a key that names an object: its local names from the root, escaped; "" for the root."""
    return "/".join(map(escape_local_name, route))


def checkpoint_key(path: str, attribute: str) -> str:
    """Return the key of an attribute of the object at `path`, an `object_path`: "a/b/.ATTRIBUTES/VARIABLE_VALUE"."""
    return f"{path}{_ATTRIBUTES}{escape_local_name(attribute)}"


def slot_variable_path(variable_path: str, optimizer_path: str, slot_name: str) -> str:
    """Return the part of a key that names a slot variable: "v/.OPTIMIZER_SLOT/optimizer/m"."""
    return f"{variable_path}{_SLOTS}{optimizer_path}/{escape_local_name(slot_name)}"


def _node_of(message: TrackableObjectGraph.TrackableObject) -> TrackableObject:
    saver = message.registered_saver
    return TrackableObject(
        tuple(ObjectReference(child.node_id, child.local_name) for child in message.children),
        tuple(SerializedTensor(each.name, each.full_name, each.checkpoint_key) for each in message.attributes),
        tuple(
            SlotVariable(slot.original_variable_node_id, slot.slot_name, slot.slot_variable_node_id)
            for slot in message.slot_variables
        ),
        RegisteredSaver(saver.name, saver.object_name) if message.HasField("registered_saver") else None,
        message.has_checkpoint_values.value if message.HasField("has_checkpoint_values") else None,
    )


def _message_of(node: TrackableObject) -> TrackableObjectGraph.TrackableObject:
    message = TrackableObjectGraph.TrackableObject()
    for child in node.children:
        message.children.add(node_id=child.node_id, local_name=child.local_name)
    for attribute in node.attributes:
        message.attributes.add(**attribute._asdict())
    for slot in node.slot_variables:
        message.slot_variables.add(**slot._asdict())
    if node.registered_saver is not None:
        message.registered_saver.name = node.registered_saver.name
        message.registered_saver.object_name = node.registered_saver.object_name
    if node.has_checkpoint_values is not None:
        message.has_checkpoint_values.value = node.has_checkpoint_values
    return message


def _check(node_id: int, node: TrackableObject, count: int) -> None:
    named = [child.node_id for child in node.children]
    for slot in node.slot_variables:
        named += (slot.original_variable_node_id, slot.slot_variable_node_id)
    for other in named:
        if not 0 <= other < count:
            raise DataLossError(f"object graph: node {node_id} refers to node {other}, of {count} nodes. {DAMAGED}")
    names = [attribute.name for attribute in node.attributes]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataLossError(f"object graph: node {node_id} has the attribute {quoted(twice)} twice. {DAMAGED}")


def not_object_based(path: str) -> NotFoundError:
    """Return the error for a checkpoint without an object graph."""
    return NotFoundError(
        f"Key {OBJECT_GRAPH_KEY} not found in checkpoint: {path} holds tensors by name, as tf.train.Saver writes them. "
        f"Restore it with Saver or load_model"
    )
