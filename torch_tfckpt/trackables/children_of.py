"""A node that has children which its object knows nothing of: what a Checkpoint attaches to its root."""

from collections.abc import Iterator, Sequence
from functools import cached_property

from torch_tfckpt.saveables.identity import Identity
from torch_tfckpt.trackables.trackable import RestoredValues, SavedValues, StoredNode, Trackable


class ChildrenOf(Trackable):
    """A node with more children.

    Args:
        own: The node of the object.
        attached: (local name, object) of the others.
    """

    def __init__(self, own: Trackable, attached: Sequence[tuple[str, object]]) -> None:
        super().__init__(own.target)
        self._own, self._attached = own, attached

    @cached_property
    def identity(self) -> Identity:
        return self._own.identity

    @property
    def holds_values(self) -> bool:
        return self._own.holds_values

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
