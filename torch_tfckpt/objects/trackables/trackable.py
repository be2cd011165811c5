"""Trackable: a Python object as a node of an object graph. What every kind of object has in common.

`ChildrenOf` adds children that the object itself does not know: what a Checkpoint attaches to its root.

Source: tensorflow/python/trackable/base.py.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.format.object_graph import ObjectGraph, TrackableObject, object_path
from torch_tfckpt.saveables.identity import Identity, identity_of
from torch_tfckpt.saveables.save_spec import SaveableObject


@dataclass(frozen=True, slots=True)
class SavedValues:
    """What a node stores.

    Attributes:
        attributes: Name, escaped -> key, as the graph lists them.
        saveables: The values under their keys; also such as the graph does not list.
    """

    attributes: Mapping[str, str] = field(default_factory=dict)
    saveables: Sequence[SaveableObject] = ()


@dataclass(frozen=True, slots=True)
class StoredNode:
    """A node of a checkpoint that is being restored."""

    reader: CheckpointReader
    graph: ObjectGraph
    node_id: int

    @property
    def node(self) -> TrackableObject:
        return self.graph.nodes[self.node_id]

    @property
    def path(self) -> str:
        """Where it stands in keys, as `object_path` spells it."""
        return object_path(self.graph.route(self.node_id) or ())

    @property
    def keys(self) -> dict[str, str]:
        """Attribute -> key."""
        return {attribute.name: attribute.checkpoint_key for attribute in self.node.attributes}


@dataclass(frozen=True, slots=True)
class RestoredValues:
    """What takes values from a node.

    Attributes:
        saveables: What takes them.
        used: Attributes of the node that are restored by that.
    """

    saveables: Sequence[SaveableObject] = ()
    used: frozenset[str] = frozenset()


class Trackable:
    """An object that is a node. This class has neither children nor values.

    Args:
        target: The object itself.

    Nothing is kept of what the object has: it is looked at anew for every save and restore, by new Trackables.

    Attributes:
        is_part: Whether the node is a part of `target`, such as a plain value that it holds, and not `target` itself.
        holds_values: Whether it has values to save.
    """

    is_part: ClassVar[bool] = False
    holds_values: bool = False

    def __init__(self, target: object) -> None:
        self.target = target

    @cached_property
    def identity(self) -> Identity:
        """Equal for two nodes that are one; see `identity_of`."""
        return identity_of(self.target)

    @property
    def needs_values(self) -> bool:
        """Whether a checkpoint that lacks this object leaves something unrestored."""
        return self.holds_values

    def is_placeholder_for(self, node: TrackableObject) -> bool:
        """Whether it only keeps the place for the object that the node is, such as None for a module."""
        return False

    def children(self) -> Iterable[tuple[str, object]]:
        """(local name, object) of each child, in the order in which ids are given. An object, or a Trackable."""
        return ()

    def to_save(self, path: str) -> SavedValues:
        """The values now, under keys that begin with `path`. Errors as the saveables of its kind."""
        return SavedValues()

    def to_restore(self, stored: StoredNode) -> RestoredValues:
        """What takes the values of a node. Nothing is changed yet; what can be said against it is said now.

        Raises:
            NotFoundError, DataLossError, InvalidArgumentError: text of state that is read for this is missing, damaged,
                or does not fit.
        """
        return RestoredValues()


class ChildrenOf(Trackable):
    """A node with more children.

    Args:
        own: The node of the object.
        attached: (local name, object) of the others.
    """

    def __init__(self, own: Trackable, attached: Sequence[tuple[str, object]]) -> None:
        super().__init__(own.target)
        self._own, self._attached = own, attached
        self.holds_values = own.holds_values

    @cached_property
    def identity(self) -> Identity:
        return self._own.identity

    @property
    def needs_values(self) -> bool:
        return self._own.needs_values

    def children(self) -> Iterator[tuple[str, object]]:
        yield from self._own.children()
        yield from self._attached

    def to_save(self, path: str) -> SavedValues:
        return self._own.to_save(path)

    def to_restore(self, stored: StoredNode) -> RestoredValues:
        return self._own.to_restore(stored)
