"""Restoration: restores a graph of Python objects from one object-based checkpoint.

Beginning at the root, children are matched with the nodes that have the same local names in the checkpoint. Objects
that do not exist yet are restored when they are added. All existing objects are checked, and their values verified,
before the first value is assigned.

Source: tensorflow/python/checkpoint/restore.py.
"""

import itertools
import logging
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final, NamedTuple

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.errors import FailedPreconditionError, InvalidArgumentError, error_context
from torch_tfckpt.format.object_graph import PYTHON_STATE, ROOT, VARIABLE_VALUE, ObjectGraph, object_path
from torch_tfckpt.format.tensor_bundle import index_filename
from torch_tfckpt.objects.deferred import anything_waits, defer
from torch_tfckpt.objects.loaded_parts import NodesOfPart
from torch_tfckpt.objects.progress import Progress, log_unrestored
from torch_tfckpt.objects.trackables.modules import ModuleTrackable, distinct
from torch_tfckpt.objects.trackables.optimizers import OptimizerTrackable, check_slots, state_from_tensorflow
from torch_tfckpt.objects.trackables.registry import trackable_of
from torch_tfckpt.objects.trackables.tensors import TensorTrackable
from torch_tfckpt.objects.trackables.trackable import StoredNode, Trackable
from torch_tfckpt.save_restore.builder import BulkSaverBuilder
from torch_tfckpt.save_restore.restore import Agree, alone, restore_saveables
from torch_tfckpt.saveables.identity import Identity, identity_of
from torch_tfckpt.saveables.module_contents import EXTRA_STATE
from torch_tfckpt.saveables.save_spec import SaveableObject, refuse_sharded_values
from torch_tfckpt.saveables.stored_keys import same_stored
from torch_tfckpt.saveables.wrappers import COUNT_OF_AVERAGES, stored_wrapper
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.text import printable, quoted

# Node -> weak reference to the object matched with it, or the object's identity if weak references are impossible.
_Holders = dict[int, weakref.ref[object] | Identity]
_NUMBERS: Final = itertools.count(1)
# Object -> number of the newest restore that assigned its values. Several restores may expect the same child.
_RESTORED_BY: Final[Any] = WeakIdKeyDictionary()
_log = logging.getLogger(__name__)


class Restoration:
    """One restore.

    Args:
        storage: Where the checkpoint is stored.
        path: The checkpoint. It is opened again for objects that are added later.
        graph: Its graph.
        skip_slot_variables: Do not restore the state of optimizers.
        sharded: Accept DTensors, of which this rank restores its part.
        agree: Called before the first value is assigned.

    It has only weak references to the restored objects. When it is deleted, it logs the values that were not restored.
    """

    def __init__(
        self,
        storage: Storage,
        path: str,
        graph: ObjectGraph,
        *,
        skip_slot_variables: bool,
        sharded: bool = False,
        agree: Agree = alone,
    ) -> None:
        self.storage, self.path, self.graph = storage, path, graph
        self.skip_slot_variables, self.sharded = skip_slot_variables, sharded
        self._agree = agree
        self.number = next(_NUMBERS)
        self.progress = Progress(graph)
        self.waiting_optimizers: dict[int, weakref.ref[torch.optim.Optimizer]] = {}  # by node
        self._holders: _Holders = {}
        self._written = self._when_written()
        weakref.finalize(self, log_unrestored, self.progress)

    def restore(self, child: Trackable, node_id: int, reader: CheckpointReader) -> int:
        """Restore an object, and everything below it, from a node. Return the number of assigned values.

        Raises:
            NotFoundError, InvalidArgumentError: names, dtypes or shapes do not fit; nothing was assigned.
            DataLossError: a value is damaged; nothing was assigned, with the exception that `restore_saveables` states.
            ValueError: an object that cannot be saved.
        """
        matching = _Matching(self, reader)
        matching.descend(child, node_id)
        matching.add_optimizers()
        if not self.sharded:
            refuse_sharded_values(matching.saveables)
        restore_saveables(BulkSaverBuilder(), reader, matching.saveables, agree=self._agree)
        matching.commit()
        return sum(len(saveable.specs) for saveable in matching.saveables)

    def restore_late(self, child: object, local_name: str, node_id: int) -> None:
        """`restore` for an object that is added after the checkpoint was closed.

        Raises: as `restore`; FailedPreconditionError if another checkpoint has been written under the path.
        """
        # The caller only added an attribute, so the error must say that this restores a value.
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
        """Whether the node was matched with a different object that still exists."""
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
            wrapper = _wrapper_in(self.graph, node_id, trackable, here)
            for child in self.graph.nodes[node_id].children:
                if child.local_name == wrapper:
                    waiting.append((trackable, child.node_id, parent))
                elif child.local_name in here:
                    waiting.append((trackable_of(here[child.local_name], child.local_name), child.node_id, trackable))
        return {identity for node_id, identity in found.items() if node_id not in self.progress.unfilled}

    def _has_taken(self, trackable: Trackable, node_id: int, parent: Trackable) -> bool:
        holder = self._holders.get(node_id)
        if holder is None:  # a hook of load_state_dict may have created the object
            return node_id in self.progress.bound
        if not isinstance(holder, weakref.ref):
            return holder == trackable.identity
        taker = holder()
        if taker is None:
            # Module.to() replaces buffers with new tensors; parameters stay the same objects.
            is_buffer = isinstance(trackable, TensorTrackable) and not isinstance(trackable.target, nn.Parameter)
            return is_buffer and isinstance(parent, ModuleTrackable)
        return identity_of(taker) == trackable.identity


def _tensors(holders: _Holders) -> dict[int, torch.Tensor]:
    alive = {node_id: ref() for node_id, ref in holders.items() if isinstance(ref, weakref.ref)}
    return {node_id: target for node_id, target in alive.items() if isinstance(target, torch.Tensor)}


def _paths(holders: _Holders, graph: ObjectGraph) -> dict[Identity, str]:
    routes = ((tensor, graph.route(node_id)) for node_id, tensor in _tensors(holders).items())
    return {identity_of(tensor): object_path(route) for tensor, route in routes if route is not None}


class _Place(NamedTuple):
    """An object and the node that it is matched with.

    Attributes:
        part: The module that contains the object, if that module is restored by load_state_dict.
        path: Dotted path below that module.
    """

    trackable: Trackable
    node_id: int
    part: NodesOfPart | None = None
    path: str = ""


def _wrapper_in(graph: ObjectGraph, node_id: int, trackable: Trackable, here: Mapping[str, object]) -> str | None:
    """Return the local name of the wrapped module if the node is a wrapper and `here` lacks that name."""
    if not isinstance(trackable, ModuleTrackable):
        return None
    part = stored_wrapper([child.local_name for child in graph.nodes[node_id].children])
    return None if part in here else part


class _Matching:
    """Matches objects with nodes. Nothing is recorded in the restoration before `commit`."""

    def __init__(self, restoration: Restoration, reader: CheckpointReader) -> None:
        self._restoration, self._reader = restoration, reader
        self._graph = restoration.graph
        self._taken: dict[int, Trackable] = {}
        self._restored: dict[Identity, str] = {}  # object -> key if it is a tensor, otherwise ""
        self._parts: list[NodesOfPart] = []
        self._unused: dict[int, list[str]] = {}
        self._unfilled: set[int] = set()
        self._late: list[tuple[Trackable, str, int]] = []
        self._waiting = {i: ref for i, ref in restoration.waiting_optimizers.items() if ref() is not None}
        self._slot_nodes: set[int] = set()
        self.saveables: list[SaveableObject] = []

    def descend(self, start: Trackable, node_id: int) -> None:
        """Match breadth first: the user has more control over shorter paths."""
        waiting: deque[_Place] = deque([_Place(start, node_id)])
        while waiting:
            place = waiting.popleft()
            if self._take(place.trackable, place.node_id):
                if place.part is None and isinstance(place.trackable, ModuleTrackable):
                    place = self._started(place.trackable, place.node_id)
                self._add_values(place)
                waiting.extend(self._children(place))
        for part in self._parts:
            self.saveables.append(part.saveable(self._reader))

    def _started(self, trackable: ModuleTrackable, node_id: int) -> "_Place":
        """Return the place of a module, with a new `NodesOfPart` if it is restored by load_state_dict."""
        if not trackable.loads_state_dict or trackable.identity in self._restored:
            return _Place(trackable, node_id)
        if _restored_later(trackable, self._restoration.number):
            return _Place(trackable, node_id)
        self._restored[trackable.identity] = ""
        self._parts.append(NodesOfPart(trackable, self._graph.name(node_id)))
        return _Place(trackable, node_id, self._parts[-1])

    def _take(self, trackable: Trackable, node_id: int) -> bool:
        """Match a node with an object; return False if the node was already matched."""
        here = self._taken.get(node_id)
        if here is not None:
            other = here.identity != trackable.identity
        else:
            other = self._restoration.is_taken_by_another(node_id, trackable)
        if other:
            _log.warning(
                "Inconsistent references when loading %s into this object graph: %s is one object in the checkpoint, "
                "but two in the program. The second object (%s) is not restored",
                self._reader.path,
                self._graph.name(node_id),
                type(trackable.target).__name__,
            )
        if other or here is not None:
            return False
        self._taken[node_id] = trackable
        return True

    def _add_values(self, place: "_Place") -> None:
        trackable, node_id = place.trackable, place.node_id
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
                f"{node.registered_saver.name}, which is defined in the program that saved it. Omit that object"
            )
        stored = self._stored(node_id)
        if trackable.identity in self._restored:
            if not self._is_same_value(trackable, stored):
                del self._taken[node_id]  # so that the status reports it
            if place.part is None:
                return
        if _restored_later(trackable, self._restoration.number):
            return
        if place.part is not None and self._add_to_part(place, stored):
            return
        restored = trackable.to_restore(stored)
        self.saveables += restored.saveables
        self._restored[trackable.identity] = stored.keys.get(VARIABLE_VALUE, "")
        if trackable.needs_values and not restored.saveables:
            self._unfilled.add(node_id)
        unused = [each.name for each in node.attributes if each.name not in restored.used]
        if unused:
            self._unused[node_id] = unused

    def _is_same_value(self, trackable: Trackable, stored: StoredNode) -> bool:
        """Return whether a second node of an object has the same value as its first. Logs a warning if not."""
        key, other = stored.keys.get(VARIABLE_VALUE), self._restored[trackable.identity]
        if key is None or not other or key == other or key not in self._reader or other not in self._reader:
            return True
        if same_stored(self._reader, key, other):
            return True
        _log.warning(
            "%s: %s and %s are one tensor in the program, but are stored with different values. The second is not "
            "restored",
            self._reader.path,
            quoted(other),
            quoted(key),
        )
        return False

    def _add_to_part(self, place: "_Place", stored: StoredNode) -> bool:
        """Collect a value for the load_state_dict of its module; return False if it is restored separately."""
        assert place.part is not None
        if isinstance(place.trackable, TensorTrackable):
            key = stored.keys.get(VARIABLE_VALUE)
            if key is None:
                self._unfilled.add(place.node_id)
                return True
            first = self._restored.setdefault(place.trackable.identity, key)
            place.part.tensors[place.path] = first, place.trackable
            return True
        key = stored.keys.get(PYTHON_STATE) if place.path.rpartition(".")[2] == EXTRA_STATE else None
        if key is None:
            return False
        place.part.states[place.path] = key
        self._restored[place.trackable.identity] = ""
        return True

    def _children(self, place: "_Place") -> "Iterator[_Place]":
        trackable, node_id = place.trackable, place.node_id
        if isinstance(trackable, OptimizerTrackable):
            return  # its children in the checkpoint belong to its state
        here = dict(distinct(trackable.children()))
        wrapper = _wrapper_in(self._graph, node_id, trackable, here)
        for child in self._graph.nodes[node_id].children:
            name, node = child.local_name, self._graph.nodes[child.node_id]
            if name == wrapper:  # written by a program that stored wrappers as objects
                yield place._replace(node_id=child.node_id)
                continue
            own = trackable_of(here[name], name) if name in here else None
            path = f"{place.path}.{name}" if place.path else name
            if own is not None and not own.is_placeholder_for(node):
                yield _Place(own, child.node_id, place.part, path)
            elif own is None and name == COUNT_OF_AVERAGES and isinstance(trackable, ModuleTrackable):
                _log.info("%s: %s is ignored: it belongs to an AveragedModel", self._reader.path, quoted(name))
                self._slot_nodes.add(child.node_id)
            # None if an old program wrote the checkpoint, and did not store whether there are values below the node.
            elif node.has_checkpoint_values is not False:
                self._late.append((trackable, name, child.node_id))
                if place.part is not None:
                    place.part.add_unknown(self._graph, child.node_id, path)

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
            # Parameters may be added later. If all parameters of the stored optimizer were matched, this optimizer's
            # other parameters are new.
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
        self._restored[trackable.identity] = ""

    def _stored(self, node_id: int) -> StoredNode:
        return StoredNode(self._reader, self._graph, node_id)

    def commit(self) -> None:
        """Record the restored nodes and the expected children."""
        restoration = self._restoration
        for node_id, trackable in self._taken.items():
            restoration.take(node_id, trackable)
        restoration.progress.bound |= self._slot_nodes
        loaded = {node_id for part in self._parts for node_id in part.loaded()}
        restoration.progress.bound |= loaded
        restoration.progress.unused_attributes.update(self._unused)
        restoration.waiting_optimizers = self._waiting
        restoration.progress.unfilled |= self._unfilled
        for parent, local_name, node_id in self._late:
            # Additions to a dict or list are not noticed.
            if _weak(parent) is not None and node_id not in loaded:
                restore = partial(restoration.restore_late, local_name=local_name, node_id=node_id)
                defer(parent.innermost if isinstance(parent, ModuleTrackable) else parent.target, local_name, restore)
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

    None for dicts, lists and tuples, which do not support weak references, and for nodes that are parts of an object.
    """
    if trackable.is_part:
        return None
    try:
        return weakref.ref(trackable.tensor if isinstance(trackable, TensorTrackable) else trackable.target)
    except TypeError:
        return None
