"""Restoration: restores a graph of Python objects from one object-based checkpoint.

Beginning at the root, children are matched with the nodes that have the same local names in the checkpoint. Objects
that do not exist yet are restored when they are added. All existing objects are checked and their values read before
the first value is assigned.

Source: tensorflow/python/checkpoint/restore.py.
"""

import itertools
import logging
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.errors import FailedPreconditionError, InvalidArgumentError, error_context
from torch_tfckpt.format.object_graph import ROOT, ObjectGraph, object_path
from torch_tfckpt.format.tensor_bundle import index_filename
from torch_tfckpt.objects.deferred import anything_waits, defer
from torch_tfckpt.objects.trackables.modules import ModuleTrackable, distinct
from torch_tfckpt.objects.trackables.optimizers import OptimizerTrackable, check_slots, state_from_tensorflow
from torch_tfckpt.objects.trackables.registry import trackable_of
from torch_tfckpt.objects.trackables.tensors import TensorTrackable
from torch_tfckpt.objects.trackables.trackable import StoredNode, Trackable
from torch_tfckpt.save_restore.builder import BulkSaverBuilder
from torch_tfckpt.save_restore.restore import restore_saveables
from torch_tfckpt.saveables.identity import Identity, identity_of
from torch_tfckpt.saveables.save_spec import SaveableObject
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.text import first_lines, printable

# Node -> weak reference to the object matched with it, or the object's identity if it cannot be referenced.
_Holders = dict[int, weakref.ref[object] | Identity]
_NUMBERS: Final = itertools.count(1)
# Object -> number of the newest restore that assigned its values. Several restores may expect the same child.
_RESTORED_BY: Final[Any] = WeakIdKeyDictionary()
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Progress:
    """Progress of a restore: the nodes of the checkpoint that were restored.

    Attributes:
        bound: Ids of the nodes that were matched with objects.
        unused_attributes: Node id -> attributes that its object does not use.
        unfilled: Ids of matched nodes that have no values for their objects.
        expect_partial: Whether to suppress the warning about unrestored values.
    """

    graph: ObjectGraph
    bound: set[int] = field(default_factory=set)
    unused_attributes: dict[int, list[str]] = field(default_factory=dict)
    unfilled: set[int] = field(default_factory=set)
    expect_partial: bool = False

    def slots_restored(self, optimizer: int, paths: set[str]) -> None:
        """Record that the state of parameters at these paths was restored after they were added to an optimizer."""
        for slot in self.graph.nodes[optimizer].slot_variables:
            route = self.graph.route(slot.original_variable_node_id)
            if route is not None and object_path(route) in paths:
                self.bound.add(slot.slot_variable_node_id)

    def unrestored(self) -> Iterator[str]:
        """Yield the names of nodes with values that were not matched."""
        for node_id, node in enumerate(self.graph.nodes):
            if node.attributes and node_id not in self.bound:
                yield self.graph.name(node_id)


class Restoration:
    """One restore.

    Args:
        storage: Where the checkpoint is stored.
        path: The checkpoint. It is opened again for objects that are added later.
        graph: Its graph.
        skip_slot_variables: Do not restore the state of optimizers.

    It has only weak references to the restored objects. When it is deleted, it logs the values that were not restored.
    """

    def __init__(self, storage: Storage, path: str, graph: ObjectGraph, *, skip_slot_variables: bool) -> None:
        self.storage, self.path, self.graph = storage, path, graph
        self.skip_slot_variables = skip_slot_variables
        self.number = next(_NUMBERS)
        self.progress = Progress(graph)
        self.waiting_optimizers: dict[int, weakref.ref[torch.optim.Optimizer]] = {}  # by node
        self._holders: _Holders = {}
        self._written = self._when_written()
        weakref.finalize(self, _log_unrestored, self.progress)

    def restore(self, child: Trackable, node_id: int, reader: CheckpointReader) -> int:
        """Restore an object, and everything below it, from a node. Return how many stored values were assigned.

        Raises:
            NotFoundError, InvalidArgumentError: names, dtypes or shapes do not fit; nothing was assigned.
            DataLossError: a value is damaged; nothing was assigned.
            ValueError: an object that cannot be saved.
        """
        matching = _Matching(self, reader)
        matching.descend(child, node_id)
        matching.add_optimizers()
        restore_saveables(BulkSaverBuilder(), reader, matching.saveables)
        matching.commit()
        return sum(len(saveable.specs) for saveable in matching.saveables)

    def restore_late(self, child: object, local_name: str, node_id: int) -> None:
        """`restore` for an object that is added after the checkpoint was closed.

        Raises: as `restore`; FailedPreconditionError if another checkpoint has been written under the path.
        """
        # The caller only adds an attribute, so the error must say that a restore was expected.
        with error_context(f"restoring {self.graph.name(node_id)}, which was added after `restore`"):
            with CheckpointReader(self.path, storage=self.storage) as reader:
                if self._when_written() != self._written:
                    raise FailedPreconditionError(
                        f"{printable(self.path)} was overwritten after it was restored, and its objects may have "
                        f"changed. Restore again"
                    )
                self.restore(trackable_of(child, local_name), node_id, reader)

    def _when_written(self) -> float:
        return self.storage.modified(index_filename(self.path))

    def is_taken_by_another(self, node_id: int, trackable: Trackable) -> bool:
        """Whether the node was matched with another object, which still exists."""
        holder = self._holders.get(node_id)
        if isinstance(holder, weakref.ref):
            other = holder()
            return other is not None and identity_of(other) != trackable.identity
        return holder is not None and holder != trackable.identity

    def take(self, node_id: int, trackable: Trackable) -> None:
        """Record the object that is matched with a node."""
        self.progress.bound.add(node_id)
        weak = _weak(trackable)
        self._holders[node_id] = trackable.identity if weak is None else weak

    def tensors(self) -> dict[int, torch.Tensor]:
        """Node -> the tensor matched with it, if it still exists."""
        return _tensors(self._holders)

    def paths(self) -> Callable[[], dict[Identity, str]]:
        """Return a function that returns the path of each matched tensor; it does not keep this restore alive."""
        return partial(_paths, self._holders, self.graph)

    def matched(self, root: Trackable) -> set[Identity]:
        """Return the objects below `root` that were matched with the node at their path."""
        found: dict[int, Identity] = {}
        waiting: deque[tuple[Trackable, int, Trackable]] = deque([(root, ROOT, root)])
        while waiting:
            trackable, node_id, parent = waiting.popleft()
            if node_id in found or not self._has_taken(trackable, node_id, parent):
                continue
            found[node_id] = trackable.identity
            here = dict(distinct(trackable.children()))
            for child in self.graph.nodes[node_id].children:
                if child.local_name in here:
                    waiting.append((trackable_of(here[child.local_name], child.local_name), child.node_id, trackable))
        return {identity for node_id, identity in found.items() if node_id not in self.progress.unfilled}

    def _has_taken(self, trackable: Trackable, node_id: int, parent: Trackable) -> bool:
        holder = self._holders.get(node_id)
        if not isinstance(holder, weakref.ref):
            return holder == trackable.identity
        taker = holder()
        if taker is None:
            # Module.to() replaces buffers by other tensors; parameters stay the same objects.
            is_buffer = isinstance(trackable, TensorTrackable) and not isinstance(trackable.target, nn.Parameter)
            return is_buffer and isinstance(parent, ModuleTrackable)
        return identity_of(taker) == trackable.identity


def _tensors(holders: _Holders) -> dict[int, torch.Tensor]:
    alive = {node_id: ref() for node_id, ref in holders.items() if isinstance(ref, weakref.ref)}
    return {node_id: target for node_id, target in alive.items() if isinstance(target, torch.Tensor)}


def _paths(holders: _Holders, graph: ObjectGraph) -> dict[Identity, str]:
    routes = ((tensor, graph.route(node_id)) for node_id, tensor in _tensors(holders).items())
    return {identity_of(tensor): object_path(route) for tensor, route in routes if route is not None}


class _Matching:
    """Matches objects with nodes. Nothing is recorded in the restoration before `commit`."""

    def __init__(self, restoration: Restoration, reader: CheckpointReader) -> None:
        self._restoration, self._reader = restoration, reader
        self._graph = restoration.graph
        self._taken: dict[int, Trackable] = {}
        self._restored: set[Identity] = set()
        self._unused: dict[int, list[str]] = {}
        self._unfilled: set[int] = set()
        self._late: list[tuple[Trackable, str, int]] = []
        self._waiting = {i: ref for i, ref in restoration.waiting_optimizers.items() if ref() is not None}
        self._slot_nodes: set[int] = set()
        self.saveables: list[SaveableObject] = []

    def descend(self, start: Trackable, node_id: int) -> None:
        """Match breadth first: the user has more control over shorter paths."""
        waiting = deque([(start, node_id)])
        while waiting:
            trackable, node_id = waiting.popleft()
            if self._take(trackable, node_id):
                self._add_values(trackable, node_id)
                waiting.extend(self._children(trackable, node_id))

    def _take(self, trackable: Trackable, node_id: int) -> bool:
        """Match a node with an object; return False if it was matched before."""
        here = self._taken.get(node_id)
        if here is not None:
            other = here.identity != trackable.identity
        else:
            other = self._restoration.is_taken_by_another(node_id, trackable)
        if other:
            _log.warning(
                "Inconsistent references when loading %s into this object graph: %s is one object in the checkpoint, "
                "but two in the program. The second one, a %s, is not restored",
                self._reader.path,
                self._graph.name(node_id),
                type(trackable.target).__name__,
            )
        if other or here is not None:
            return False
        self._taken[node_id] = trackable
        return True

    def _add_values(self, trackable: Trackable, node_id: int) -> None:
        node = self._graph.nodes[node_id]
        if isinstance(trackable, OptimizerTrackable):
            if self._restoration.skip_slot_variables:
                self._slot_nodes.update(child.node_id for child in node.children)
            else:
                self._waiting[node_id] = weakref.ref(trackable.optimizer)
            return
        if node.registered_saver is not None:
            raise InvalidArgumentError(
                f"{self._reader.path}: {self._graph.name(node_id)} was saved by the registered saver "
                f"{node.registered_saver.name}, which is code of the program that saved it. Omit that object"
            )
        if trackable.identity in self._restored or _restored_later(trackable, self._restoration.number):
            return
        restored = trackable.to_restore(self._stored(node_id))
        self.saveables += restored.saveables
        self._restored.add(trackable.identity)
        if trackable.needs_values and not restored.saveables:
            self._unfilled.add(node_id)
        unused = [each.name for each in node.attributes if each.name not in restored.used]
        if unused:
            self._unused[node_id] = unused

    def _children(self, trackable: Trackable, node_id: int) -> Iterator[tuple[Trackable, int]]:
        if isinstance(trackable, OptimizerTrackable):
            return  # its children in the checkpoint belong to its state
        here = dict(distinct(trackable.children()))
        for child in self._graph.nodes[node_id].children:
            node = self._graph.nodes[child.node_id]
            own = trackable_of(here[child.local_name], child.local_name) if child.local_name in here else None
            if own is not None and not own.is_placeholder_for(node):
                yield own, child.node_id
            # Old programs did not store whether there are values below.
            elif node.has_checkpoint_values is not False:
                self._late.append((trackable, child.local_name, child.node_id))

    def add_optimizers(self) -> None:
        """Add the state of optimizers whose parameters were matched."""
        if not self._waiting:
            return
        tensors = self._restoration.tensors()
        for node_id, trackable in self._taken.items():
            if isinstance(trackable, TensorTrackable):
                tensors[node_id] = trackable.tensor
        routes = {node_id: self._graph.route(node_id) for node_id in tensors}
        paths = {
            identity_of(tensors[node_id]): object_path(route) for node_id, route in routes.items() if route is not None
        }
        for node_id, ref in list(self._waiting.items()):
            optimizer = ref()
            assert optimizer is not None, "the caller of restore references it"
            trackable = OptimizerTrackable(optimizer)
            known = [identity_of(parameter) in paths for parameter in trackable.parameters]
            # Parameters may be added later. If all those of the stored optimizer were matched, the others are new.
            if all(known) or (any(known) and trackable.stored_paths(self._stored(node_id)) <= set(paths.values())):
                self._add_state(trackable, node_id, tensors, paths)
                del self._waiting[node_id]

    def _add_state(
        self, trackable: OptimizerTrackable, node_id: int, tensors: dict[int, torch.Tensor], paths: dict[Identity, str]
    ) -> None:
        if _restored_later(trackable, self._restoration.number):
            return
        node, stored = self._graph.nodes[node_id], self._stored(node_id)
        check_slots(stored, tensors)
        here = {identity_of(parameter) for parameter in trackable.parameters}
        if not here <= paths.keys():
            self._unfilled.add(node_id)
        added = partial(self._restoration.progress.slots_restored, node_id)
        own = trackable.state_to_restore(stored, paths, self._restoration.paths(), added)
        if own is not None:
            self.saveables.append(own)
            self._slot_nodes.update(
                slot.slot_variable_node_id
                for slot in node.slot_variables
                if (tensor := tensors.get(slot.original_variable_node_id)) is not None and identity_of(tensor) in here
            )
            self._slot_nodes.update(child.node_id for child in node.children)
        else:
            saveable, node_ids = state_from_tensorflow(trackable.optimizer, stored, tensors)
            self.saveables += [saveable] if saveable is not None else []
            self._slot_nodes.update(node_ids)
        self._restored.add(trackable.identity)

    def _stored(self, node_id: int) -> StoredNode:
        return StoredNode(self._reader, self._graph, node_id)

    def commit(self) -> None:
        """Record the restored nodes and the expected children."""
        restoration = self._restoration
        for node_id, trackable in self._taken.items():
            restoration.take(node_id, trackable)
        restoration.progress.bound |= self._slot_nodes
        restoration.progress.unused_attributes.update(self._unused)
        restoration.waiting_optimizers = self._waiting
        restoration.progress.unfilled |= self._unfilled
        for parent, local_name, node_id in self._late:
            if _weak(parent) is not None:  # additions to a dict or list are not noticed
                restore = partial(restoration.restore_late, local_name=local_name, node_id=node_id)
                defer(parent.target, local_name, restore)
        if anything_waits():  # an older restore may expect these objects
            for trackable in self._taken.values():
                if trackable.identity in self._restored and (weak := _weak(trackable)) is not None:
                    _RESTORED_BY[weak()] = restoration.number


def _restored_later(trackable: Trackable, number: int) -> bool:
    """Whether a newer restore has assigned the object's values."""
    weak = _weak(trackable)
    return weak is not None and bool(_RESTORED_BY.get(weak(), 0) > number)


def _weak(trackable: Trackable) -> weakref.ref[object] | None:
    """Return a weak reference to the object of a node.

    None for dicts, lists and tuples, which cannot be referenced, and for nodes that are parts of an object.
    """
    if trackable.is_part:
        return None
    try:
        return weakref.ref(trackable.tensor if isinstance(trackable, TensorTrackable) else trackable.target)
    except TypeError:
        return None


def _log_unrestored(progress: Progress) -> None:
    """Log the values of a checkpoint that were never restored."""
    if progress.expect_partial:
        return
    lines = [f"Value in checkpoint could not be found in the restored object: {name}" for name in progress.unrestored()]
    for node_id, names in progress.unused_attributes.items():
        lines += [f"An attribute in the restored object could not be found: {progress.graph.name(node_id)} {names}"]
    if lines:
        _log.warning("%s", _shown(lines))


def _shown(lines: list[str]) -> str:
    head = (
        "some values of a restored checkpoint were never restored. If that is intended, call "
        "`status.expect_partial()`; if not, `status.assert_consumed()` after `restore` raises an error for them:"
    )
    return "\n".join([head, *first_lines(lines, 20)])
