"""What became of a restore: whether all of the checkpoint has found its place, and all objects their values.

Source: the status classes in tensorflow/python/checkpoint/checkpoint.py; spec: SAVER 7.
"""

from typing import Final, Protocol, Self

from torch_tfckpt.objects.graph_view import ObjectNode, object_nodes
from torch_tfckpt.objects.restoration import Restoration
from torch_tfckpt.objects.trackables.trackable import Trackable
from torch_tfckpt.saveables.identity import Identity
from torch_tfckpt.text import counted, printable

_SHOWN: Final = 10


class LoadStatus(Protocol):
    """What Checkpoint.read and restore return. All methods but the last raise AssertionError, and return the status."""

    def assert_consumed(self) -> Self:
        """All values of the checkpoint were restored, and all objects were."""

    def assert_existing_objects_matched(self) -> Self:
        """All objects that hold values were restored; the checkpoint may have more."""

    def assert_nontrivial_match(self) -> Self:
        """Something below the root was restored."""

    def expect_partial(self) -> Self:
        """Nothing is logged about values that were not restored."""


class CheckpointLoadStatus:
    """Of a restore from an object-based checkpoint.

    Args:
        restoration: The restore, whose late comers count too.
        root: The objects, which it keeps alive.
    """

    def __init__(self, restoration: Restoration, root: Trackable) -> None:
        self._restoration, self._root = restoration, root

    def __repr__(self) -> str:
        progress = self._restoration.progress
        bound = f"{len(progress.bound)} of {counted(len(progress.graph.nodes), 'object')} restored"
        return f"CheckpointLoadStatus({printable(self._restoration.path)!r}, {bound})"

    def assert_consumed(self) -> Self:
        """Asserts that every value of the checkpoint has found its object, and every object its value.

        Raises:
            AssertionError: what is left, by its path.
        """
        self.assert_existing_objects_matched()
        progress = self._restoration.progress
        skipped = progress.graph.slot_variable_ids if self._restoration.skip_slot_variables else frozenset()
        waiting = {node_id for node_id, ref in self._restoration.waiting_optimizers.items() if ref() is not None}
        if waiting:
            names = ", ".join(map(progress.graph.name, sorted(waiting)))
            raise AssertionError(
                f"Unresolved slot restorations in {self._restoration.path}: {names}. Not all parameters of the "
                f"optimizer are among the objects that were restored"
            )
        for node_id, node in enumerate(progress.graph.nodes):
            if node.attributes and node_id not in progress.bound and node_id not in skipped:
                raise AssertionError(
                    f"Unresolved object in checkpoint {progress.graph.name(node_id)}: {self._restoration.path} has "
                    f"{', '.join(each.checkpoint_key for each in node.attributes[:_SHOWN])}, and there is no such "
                    f"object. Say expect_partial() where that is meant"
                )
        if progress.unused_attributes:
            unused = progress.unused_attributes.items()
            lines = [f"{progress.graph.name(node_id)}: {', '.join(names)}" for node_id, names in unused]
            raise AssertionError(
                "Unused attributes in these objects (the attributes exist in the checkpoint but were not restored):\n"
                + "\n".join(lines[:_SHOWN])
            )
        return self

    def assert_existing_objects_matched(self) -> Self:
        """Asserts that every object with values has one from the checkpoint, which may have more.

        Raises:
            AssertionError: the objects that have none, by their paths.
        """
        unmatched = self._unmatched()
        if unmatched:
            shown = unmatched[:_SHOWN]
            raise AssertionError(
                f"Found {len(unmatched)} Python objects that were not bound to checkpointed values, likely due to "
                f"changes in the Python program. Showing {len(shown)} of {len(unmatched)} unmatched objects: "
                f"{', '.join(map(_described, shown))}"
            )
        return self

    def assert_nontrivial_match(self) -> Self:
        """Asserts that more than the root was found in the checkpoint. AssertionError otherwise."""
        if len(self._restoration.progress.bound) > 1:
            return self
        unmatched = self._unmatched()
        if unmatched:
            raise AssertionError(
                "Nothing except the root object matched a checkpointed value. Typically this means that the checkpoint "
                "does not match the Python program. The following objects have no matching checkpointed value: "
                f"{', '.join(map(_described, unmatched[:_SHOWN]))}"
            )
        raise AssertionError("Nothing to load. No dependencies have been added to the root object yet.")

    def expect_partial(self) -> Self:
        """Lets values that are not restored go without a word in the log."""
        self._restoration.progress.expect_partial = True
        return self

    def _unmatched(self) -> list[ObjectNode]:
        return unmatched(self._root, self._restoration.matched(self._root))


class InitializationOnlyStatus:
    """Of restore(None): nothing was restored, and every assertion fails."""

    def __repr__(self) -> str:
        return "InitializationOnlyStatus(nothing restored)"

    def assert_consumed(self) -> Self:
        raise self._nothing()

    def assert_existing_objects_matched(self) -> Self:
        raise self._nothing()

    def assert_nontrivial_match(self) -> Self:
        raise self._nothing()

    def expect_partial(self) -> Self:
        """There is nothing to be partial about."""
        return self

    def _nothing(self) -> AssertionError:
        return AssertionError("No checkpoint specified (save_path=None); nothing is being restored.")


class NameBasedSaverStatus:
    """Of a restore from a checkpoint that has tensors by name, as Saver writes them.

    Args:
        path: The checkpoint.
        root: The objects, which it keeps alive.
        restored: Those that were found by their names.
        optional: An object that need not have been.
    """

    def __init__(self, path: str, root: Trackable, restored: set[Identity], optional: Identity | None) -> None:
        self._path, self._root, self._restored, self._optional = path, root, restored, optional

    def __repr__(self) -> str:
        return f"NameBasedSaverStatus({self._path!r}, {counted(len(self._restored), 'object')} restored by name)"

    def assert_consumed(self) -> Self:
        """Asserts that every object was found. The checkpoint may have more: names alone tell no whole.

        Raises:
            AssertionError: the objects that were not, by their paths.
        """
        optional = set() if self._optional is None else {self._optional}
        missing = unmatched(self._root, self._restored | optional)
        if missing:
            raise AssertionError(
                f"{len(missing)} objects were not restored from the name-based checkpoint {self._path}: "
                f"{', '.join(map(_described, missing[:_SHOWN]))}"
            )
        return self

    def assert_existing_objects_matched(self) -> Self:
        """As `assert_consumed`."""
        return self.assert_consumed()

    def assert_nontrivial_match(self) -> Self:
        """Asserts that something was found. AssertionError otherwise."""
        if not self._restored:
            raise AssertionError(f"No object was found by its name in {self._path}.")
        return self

    def expect_partial(self) -> Self:
        """Nothing is logged in any case."""
        return self


def unmatched(root: Trackable, identities: set[Identity]) -> list[ObjectNode]:
    """Objects with values that are not among those."""
    return [
        node for node in object_nodes(root) if node.trackable.needs_values and node.trackable.identity not in identities
    ]


def _described(node: ObjectNode) -> str:
    name = f" (named {node.full_name})" if node.full_name else ""
    return f"{node}{name}"
