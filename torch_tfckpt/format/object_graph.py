"""The object graph of an object-based checkpoint: which object owns each tensor.

    node 0 (root) --"model"--> node 1 --"kernel"--> node 3, attribute VARIABLE_VALUE, stored under
                                                     model/kernel/.ATTRIBUTES/VARIABLE_VALUE
                  --"optimizer"--> node 2, slot variable "m" of node 3: node 4, stored under
                                                     model/kernel/.OPTIMIZER_SLOT/optimizer/m/.ATTRIBUTES/VARIABLE_VALUE

tf.train.Checkpoint stores it, serialized, as one string tensor. It is a graph, not a tree: an object may have several
parents and may be its own ancestor. So nothing here recurses, and memory does not grow with the length of paths.

Source: tensorflow/core/protobuf/trackable_object_graph.proto, tensorflow/python/trackable/trackable_utils.py.
Explained in docs/formats/object-graph.md.
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

# Key of the string tensor that contains the graph.
OBJECT_GRAPH_KEY: Final = "_CHECKPOINTABLE_OBJECT_GRAPH"
# Name of a variable's only attribute.
VARIABLE_VALUE: Final = "VARIABLE_VALUE"
# Attribute of an object that serializes its own state as a string.
PYTHON_STATE: Final = "py_state"

ATTRIBUTES: Final = "/.ATTRIBUTES/"
SLOTS: Final = "/.OPTIMIZER_SLOT/"
_ESCAPES: Final = re.compile(r"\.[.S]")
# The key of an attribute may end before a dash or underscore in a tensor's name. At most this many are tried, starting
# with the last.
_JOINTS: Final = 4
ROOT: Final = 0


class ObjectReference(NamedTuple):
    """Edge to a child object.

    Attributes:
        node_id: The child.
        local_name: Name of the child in its parent, such as the name of an attribute; not escaped.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> prefix = tfckpt.Checkpoint(w=torch.ones(2)).write("ckpt")
        >>> tfckpt.load_checkpoint(prefix).object_graph.nodes[0].children
        (ObjectReference(node_id=1, local_name='w'),)
    """

    node_id: int
    local_name: str


class SerializedTensor(NamedTuple):
    """Attribute of a node: one stored value.

    Attributes:
        name: Name of the attribute, escaped; "VARIABLE_VALUE" for a variable.
        full_name: The variable's own name, as tf.train.Saver would store it; "" if it is not a variable.
        checkpoint_key: Key of the tensor; for tables and the like, the prefix of several keys.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> prefix = tfckpt.Checkpoint(w=torch.ones(2)).write("ckpt")
        >>> [attribute] = tfckpt.load_checkpoint(prefix).object_graph.nodes[1].attributes
        >>> attribute.name, attribute.checkpoint_key
        ('VARIABLE_VALUE', 'w/.ATTRIBUTES/VARIABLE_VALUE')
    """

    name: str
    full_name: str
    checkpoint_key: str


class SlotVariable(NamedTuple):
    """Variable that an optimizer stores for another variable.

    Attributes:
        original_variable_node_id: The other variable.
        slot_name: Name of the slot, such as "m".
        slot_variable_node_id: The slot variable.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> graph = tfckpt.load_checkpoint(tfckpt.Checkpoint(model=model, opt=optimizer).write("ckpt")).object_graph
        >>> [slot.slot_name for node in graph.nodes for slot in node.slot_variables]
        ['momentum']
    """

    original_variable_node_id: int
    slot_name: str
    slot_variable_node_id: int


class RegisteredSaver(NamedTuple):
    """Registered saver that stored an object in separate files.

    Attributes:
        name: Name under which the saver is registered.
        object_name: Name of the object within that saver.

    Examples:
        >>> import torch_tfckpt as tfckpt
        >>> tfckpt.TrackableObject(registered_saver=tfckpt.RegisteredSaver("Custom.Saver", "index")).registered_saver
        RegisteredSaver(name='Custom.Saver', object_name='index')
    """

    name: str
    object_name: str


@dataclass(frozen=True, slots=True)
class TrackableObject:
    """One node of the graph.

    Attributes:
        children: Edges to other objects.
        attributes: Stored values.
        slot_variables: Variables that this object, an optimizer, stores for other variables.
        registered_saver: The registered saver that stored the object; None for most objects.
        has_checkpoint_values: Whether the object or a descendant has values; None if an old writer omitted this field.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> prefix = tfckpt.Checkpoint(w=torch.ones(2)).write("ckpt")
        >>> root = tfckpt.load_checkpoint(prefix).object_graph.nodes[0]
        >>> root.child("w"), root.child("b")
        (1, None)
    """

    children: tuple[ObjectReference, ...] = ()
    attributes: tuple[SerializedTensor, ...] = ()
    slot_variables: tuple[SlotVariable, ...] = ()
    registered_saver: RegisteredSaver | None = None
    has_checkpoint_values: bool | None = None

    def child(self, local_name: str) -> int | None:
        """Return the node id of the child named `local_name`; None if there is no such child."""
        return next((child.node_id for child in self.children if child.local_name == local_name), None)


@dataclass(frozen=True)
class ObjectGraph:
    """The object graph of one checkpoint.

    Attributes:
        nodes: The objects. Node 0 is the root; a node's id is its index.

    Thread safety: safe; lookups are cached.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> prefix = tfckpt.Checkpoint(model=torch.nn.Linear(2, 1)).write("ckpt")
        >>> graph = tfckpt.load_checkpoint(prefix).object_graph
        >>> [variable.checkpoint_key for variable in graph.variables()]
        ['model/weight/.ATTRIBUTES/VARIABLE_VALUE', 'model/bias/.ATTRIBUTES/VARIABLE_VALUE']
    """

    nodes: tuple[TrackableObject, ...]

    def __repr__(self) -> str:
        return f"<ObjectGraph of {len(self.nodes)} objects>"

    @classmethod
    def decode(cls, serialized: bytes) -> Self:
        """Return the graph decoded from a serialized TrackableObjectGraph.

        Raises:
            DataLossError: the bytes do not parse, refer to nodes that do not exist, or a node has two attributes of the
                same name.
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
        """Return the serialized message, byte-identical to TensorFlow's."""
        message = TrackableObjectGraph(nodes=map(_message_of, self.nodes))
        return message.SerializeToString(deterministic=True)

    def names_to_keys(self) -> dict[str, str]:
        """Return full_name -> checkpoint_key of all attributes; the last one wins if a name occurs twice.

        The empty name is included if some attribute does not belong to a variable.
        """
        return {attribute.full_name: attribute.checkpoint_key for node in self.nodes for attribute in node.attributes}

    def route(self, node_id: int, longest: int | None = None) -> tuple[str, ...] | None:
        """Return the local names on the shortest path from the root.

        Args:
            node_id: Number of the node.
            longest: Maximum number of names; None: no limit.

        Returns:
            The names; None if no path leads to the node, as for slot variables, or the path is longer than `longest`.

        Cost: proportional to the length of the path; the first call visits every edge once.
        """
        if node_id != ROOT and node_id not in self.parents:
            return None
        names: list[str] = []
        while node_id != ROOT:
            if len(names) == longest:
                return None
            node_id, local_name = self.parents[node_id]
            names.append(local_name)
        return tuple(reversed(names))

    def name(self, node_id: int) -> str:
        """Return a node's name for messages, such as "(root).opt's state 'm' for (root).model.kernel"."""
        route = self.route(node_id)
        if route is not None:
            return ".".join(("(root)", *route))
        slot = self._slots.get(node_id)
        if slot is None:
            return f"(node {node_id})"
        optimizer, variable, slot_name = slot
        # Name the optimizer and the variable by their paths only: a slot of a slot could lead to endless recursion.
        return f"{self._plain_name(optimizer)}'s state '{slot_name}' for {self._plain_name(variable)}"

    def variables(self) -> Iterator[SerializedTensor]:
        """Yield the values of all variables, in node order."""
        for node in self.nodes:
            for attribute in node.attributes:
                if attribute.name == VARIABLE_VALUE:
                    yield attribute

    def value_key(self, node_id: int) -> str | None:
        """Return the key of a variable's value; None if the node is not a variable."""
        attributes = self.nodes[node_id].attributes
        return next((each.checkpoint_key for each in attributes if each.name == VARIABLE_VALUE), None)

    def named(self, full_name: str) -> tuple[int, ...]:
        """Return the ids of the variables with this full name, in order; of all variables without one if it is ""."""
        return tuple(self._by_full_name.get(full_name, ()))

    @cached_property
    def _by_full_name(self) -> dict[str, list[int]]:
        ids: dict[str, list[int]] = {}
        for node_id, node in enumerate(self.nodes):
            for attribute in node.attributes:
                if attribute.name == VARIABLE_VALUE:
                    ids.setdefault(attribute.full_name, []).append(node_id)
        return ids

    @cached_property
    def slot_variable_ids(self) -> frozenset[int]:
        """Ids of the nodes that are slot variables of an optimizer."""
        return frozenset(self._slots)

    def _plain_name(self, node_id: int) -> str:
        route = self.route(node_id)
        return f"(node {node_id})" if route is None else ".".join(("(root)", *route))

    def attribute_keys(self, names: Iterable[str]) -> dict[str, str]:
        """Map each tensor that belongs to an attribute to the attribute's key.

        The key is the tensor's name, or the name without a suffix: tables store KEY-keys and KEY-values, iterators
        KEY_STATE. Names that do not belong to an attribute are omitted.
        """
        keys = {attribute.checkpoint_key for node in self.nodes for attribute in node.attributes}
        found: dict[str, str] = {}
        for name in names:
            ends = [len(name)]
            while len(ends) <= _JOINTS and ends[-1] > 0:
                ends.append(max(name.rfind("-", 0, ends[-1]), name.rfind("_", 0, ends[-1]), 0))
            key = next((name[:end] for end in ends if name[:end] in keys), None)
            if key is not None:
                found[name] = key
        return found

    @cached_property
    def parents(self) -> dict[int, tuple[int, str]]:
        """Node -> (parent, local name) by which a breadth-first search first reaches it, in search order."""
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
        """Slot variable -> (optimizer, variable, slot name)."""
        return {
            slot.slot_variable_node_id: (node_id, slot.original_variable_node_id, slot.slot_name)
            for node_id, node in enumerate(self.nodes)
            for slot in node.slot_variables
        }


def with_checkpoint_values(nodes: Iterable[TrackableObject]) -> tuple[TrackableObject, ...]:
    """Return the nodes with `has_checkpoint_values` set from their own and their descendants' values.

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
    """Escape a local name for use in a key: "a/b" becomes "a.Sb", "x.y" becomes "x..y"."""
    return name.replace(".", "..").replace("/", ".S")


def unescape_local_name(escaped: str) -> str:
    """Reverse `escape_local_name`. Invalid escapes, as in a damaged graph, are left unchanged."""
    return _ESCAPES.sub(lambda found: "/" if found[0] == ".S" else ".", escaped)


def object_path(route: Iterable[str]) -> str:
    """Return the path of an object in keys: its escaped local names from the root; "" for the root."""
    return "/".join(map(escape_local_name, route))


def checkpoint_key(path: str, attribute: str) -> str:
    """Return the key of an attribute of the object at `path` (from `object_path`).

    For example "a/b/.ATTRIBUTES/VARIABLE_VALUE".
    """
    return f"{path}{ATTRIBUTES}{escape_local_name(attribute)}"


def slot_variable_path(variable_path: str, optimizer_path: str, slot_name: str) -> str:
    """Return the path of an optimizer's slot variable in keys: "v/.OPTIMIZER_SLOT/optimizer/m"."""
    return f"{variable_path}{SLOTS}{optimizer_path}/{escape_local_name(slot_name)}"


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
            raise DataLossError(
                f"object graph: node {node_id} refers to node {other}, but there are {count} nodes. {DAMAGED}"
            )
    names = [attribute.name for attribute in node.attributes]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataLossError(f"object graph: node {node_id} has the attribute {quoted(twice)} twice. {DAMAGED}")


def not_object_based(path: str) -> NotFoundError:
    """Return the error for a checkpoint without an object graph."""
    return NotFoundError(
        f"Key {OBJECT_GRAPH_KEY} not found in checkpoint: {path} stores tensors by name, as written by tf.train.Saver. "
        f"Restore it with Saver or load_model"
    )
