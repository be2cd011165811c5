"""Trackable: base class of Python objects as nodes of an object graph.

`ChildrenOf` adds further children to an object: those that a Checkpoint attaches to its root.

Source: tensorflow/python/trackable/base.py.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.format.object_graph import ObjectGraph, TrackableObject, object_path
from torch_tfckpt.saveables.identity import Identity, identity_of
from torch_tfckpt.saveables.save_spec import SaveableObject


@dataclass(frozen=True, slots=True)
class SavedValues:
    """The values of a node, to be saved.

    Attributes:
        attributes: Escaped name -> key, as the graph lists them.
        saveables: The values under their keys, including values that the graph does not list.
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
        """Its path in keys, as `object_path` writes it."""
        return object_path(self.graph.route(self.node_id) or ())

    @property
    def keys(self) -> dict[str, str]:
        """Attribute -> key."""
        return {attribute.name: attribute.checkpoint_key for attribute in self.node.attributes}

    def restored(self, attribute: str, make: Callable[[str], SaveableObject]) -> "RestoredValues":
        """Return how an attribute is restored: by the saveable that `make` returns for its key, if it is stored."""
        key = self.keys.get(attribute)
        return RestoredValues() if key is None else RestoredValues([make(key)], frozenset([attribute]))


@dataclass(frozen=True, slots=True)
class RestoredValues:
    """How the values of a node are restored.

    Attributes:
        saveables: The saveables that restore the values.
        used: Attributes of the node that the saveables restore.
    """

    saveables: Sequence[SaveableObject] = ()
    used: frozenset[str] = frozenset()


class Trackable:
    """An object as a node. This base class has neither children nor values.

    Args:
        target: The object itself.

    The contents of the object are not cached: new Trackables are created for every save and restore.

    Attributes:
        is_part: Whether the node is a part of `target`, such as a plain value in it, and not `target` itself.
        holds_values: Whether it has values to save.
    """

    is_part: ClassVar[bool] = False
    holds_values: bool = False

    def __init__(self, target: object) -> None:
        self.target = target

    @cached_property
    def identity(self) -> Identity:
        """Equal for two Trackables of the same object; see `identity_of`."""
        return identity_of(self.target)

    @property
    def needs_values(self) -> bool:
        """Whether this object must be in the checkpoint for a complete restore."""
        return self.holds_values

    def is_placeholder_for(self, node: TrackableObject) -> bool:
        """Return whether this is only a placeholder for the object of the node, such as None for a module."""
        return False

    def children(self) -> Iterable[tuple[str, object]]:
        """Return (local name, object or Trackable) of each child, in the order of their ids."""
        return ()

    def to_save(self, path: str) -> SavedValues:
        """Return the current values, under keys that begin with `path`. Raises the errors of the saveables."""
        return SavedValues()

    def to_restore(self, stored: StoredNode) -> RestoredValues:
        """Return the saveables that restore a node's values. Nothing is changed yet; errors are raised early.

        Raises:
            NotFoundError, DataLossError, InvalidArgumentError: stored state is missing, damaged, or does not fit.
        """
        return RestoredValues()


class ChildrenOf(Trackable):
    """A node with additional children.

    Args:
        own: The node of the object.
        attached: (local name, object) of the additional children.
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
