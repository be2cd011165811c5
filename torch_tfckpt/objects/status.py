"""Results of a restore: whether all values in the checkpoint and all Python objects were matched.

Source: the status classes in tensorflow/python/checkpoint/checkpoint.py.
"""

from typing import Final, Protocol, Self

from torch_tfckpt.objects.graph_view import ObjectNode, object_nodes
from torch_tfckpt.objects.restoration import Restoration
from torch_tfckpt.objects.trackables.trackable import Trackable
from torch_tfckpt.saveables.identity import Identity
from torch_tfckpt.text import counted, printable

_SHOWN: Final = 10


class LoadStatus(Protocol):
    """Result of `Checkpoint.read` and `restore`.

    The methods raise AssertionError, or return the status, so that calls can be chained.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> path = tfckpt.Checkpoint(w=torch.ones(2), b=torch.ones(1)).save("ckpt")
        >>> status = tfckpt.Checkpoint(w=torch.zeros(2)).restore(path)
        >>> status.expect_partial().assert_existing_objects_matched() is status
        True
    """

    def assert_consumed(self) -> Self:
        """Assert that all values of the checkpoint and all objects were restored."""

    def assert_existing_objects_matched(self) -> Self:
        """Assert that all objects with values were restored; the checkpoint may have more values."""

    def assert_nontrivial_match(self) -> Self:
        """Assert that an object below the root was restored."""

    def expect_partial(self) -> Self:
        """Do not log values that are not restored."""


class CheckpointLoadStatus:
    """Status of a restore from an object-based checkpoint.

    Args:
        restoration: The restore. Objects that are restored later are included.
        root: The root of the objects; the status holds a reference to it.
    """

    def __init__(self, restoration: Restoration, root: Trackable) -> None:
        self._restoration, self._root = restoration, root

    def __repr__(self) -> str:
        progress = self._restoration.progress
        bound = f"{len(progress.bound)} of {counted(len(progress.graph.nodes), 'object')} restored"
        return f"CheckpointLoadStatus({printable(self._restoration.path)!r}, {bound})"

    def assert_consumed(self) -> Self:
        """Assert that every value of the checkpoint was restored, and that every object was restored.

        Raises:
            AssertionError: with the paths of the values or objects that were not restored.
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
                    f"{', '.join(each.checkpoint_key for each in node.attributes[:_SHOWN])}, but no such "
                    f"object exists. If that is intended, call expect_partial() instead"
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
        """Assert that every object with values was restored. The checkpoint may have more values.

        Raises:
            AssertionError: with the paths of the objects that were not restored.
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
        """Assert that more than the root was found in the checkpoint."""
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
        """Do not log values that are not restored."""
        self._restoration.progress.expect_partial = True
        return self

    def _unmatched(self) -> list[ObjectNode]:
        return unmatched(self._root, self._restoration.matched(self._root))


class InitializationOnlyStatus:
    """Status of restore(None): nothing was restored, and every assertion fails."""

    def __repr__(self) -> str:
        return "InitializationOnlyStatus(nothing restored)"

    def assert_consumed(self) -> Self:
        raise self._nothing()

    def assert_existing_objects_matched(self) -> Self:
        raise self._nothing()

    def assert_nontrivial_match(self) -> Self:
        raise self._nothing()

    def expect_partial(self) -> Self:
        """Do nothing."""
        return self

    def _nothing(self) -> AssertionError:
        return AssertionError("No checkpoint specified (save_path=None); nothing is being restored.")


class NameBasedSaverStatus:
    """Status of a restore from a checkpoint with tensors by name, as written by Saver.

    Args:
        path: The checkpoint.
        root: The root of the objects; the status holds a reference to it.
        restored: The objects that were found by their names.
        optional: An object that may be missing.
    """

    def __init__(self, path: str, root: Trackable, restored: set[Identity], optional: Identity | None) -> None:
        self._path, self._root, self._restored, self._optional = path, root, restored, optional

    def __repr__(self) -> str:
        return f"NameBasedSaverStatus({self._path!r}, {counted(len(self._restored), 'object')} restored by name)"

    def assert_consumed(self) -> Self:
        """Assert that every object was found. The checkpoint may contain further tensors.

        Raises:
            AssertionError: with the paths of the objects that were not found.
        """
        optional = set() if self._optional is None else {self._optional}
        missing = unmatched(self._root, self._restored | optional)
        if missing:
            raise AssertionError(
                f"{counted(len(missing), 'object')} could not be restored from the name-based checkpoint {self._path}: "
                f"{', '.join(map(_described, missing[:_SHOWN]))}"
            )
        return self

    def assert_existing_objects_matched(self) -> Self:
        """Do the same as `assert_consumed`."""
        return self.assert_consumed()

    def assert_nontrivial_match(self) -> Self:
        """Assert that at least one object was found."""
        if not self._restored:
            raise AssertionError(f"No object was found by its name in {self._path}.")
        return self

    def expect_partial(self) -> Self:
        """Do nothing: nothing is logged in any case."""
        return self


def unmatched(root: Trackable, identities: set[Identity]) -> list[ObjectNode]:
    """Return the objects that need values from the checkpoint, except those in `identities`."""
    return [
        node for node in object_nodes(root) if node.trackable.needs_values and node.trackable.identity not in identities
    ]


def _described(node: ObjectNode) -> str:
    name = f" (named {node.full_name})" if node.full_name else ""
    return f"{node}{name}"
