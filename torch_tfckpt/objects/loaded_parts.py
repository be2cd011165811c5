"""Modules restored from an object-based checkpoint by load_state_dict, so that their hooks run.

The nodes below such a module are matched as for other modules, but their values are collected here under the names of
its state_dict. Stored values for which the module has no object yet are passed to load_state_dict, too: a hook may
create the object, or rename the value.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.format.object_graph import ObjectGraph
from torch_tfckpt.objects.trackables.modules import ModuleTrackable
from torch_tfckpt.objects.trackables.trackable import Trackable
from torch_tfckpt.saveables.identity import identity_of
from torch_tfckpt.saveables.load_report import LoadReport
from torch_tfckpt.saveables.state_dicts import StateDictSaveable
from torch_tfckpt.saveables.wrappers import ModuleNames, stored_wrapper


@dataclass(slots=True)
class NodesOfPart:
    """The matched nodes below a module that is restored by load_state_dict.

    Attributes:
        trackable: The module.
        name: Its name, for messages.
        tensors: Dotted path below the module -> key, and the object if there is one.
        states: Dotted path below the module -> key, for extra state.
        unknown: Node -> key, for stored values without an object.
    """

    trackable: ModuleTrackable
    name: str
    tensors: dict[str, tuple[str, Trackable | None]] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    unknown: dict[int, str] = field(default_factory=dict)
    report: LoadReport = field(default_factory=LoadReport)

    def add_unknown(self, graph: ObjectGraph, node_id: int, path: str) -> None:
        """Add the tensors at and below a node for which there is no object."""
        for below, at in _leaves(graph, node_id, path):
            key = graph.value_key(below)
            if key is not None:
                self.unknown[below] = key
                self.tensors.setdefault(at, (key, None))

    def loaded(self) -> set[int]:
        """Return the nodes without an object whose values the module has loaded nevertheless."""
        return {node_id for node_id, key in self.unknown.items() if key not in self.report.unexpected}

    def saveable(self, reader: CheckpointReader) -> StateDictSaveable:
        """Return the saveable. Missing values are not an error: the status of the restore reports them."""
        module = self.trackable.module
        names, saved = ModuleNames(module), module.state_dict(keep_vars=True)
        renamed = {identity_of(value): name for name, value in saved.items() if isinstance(value, torch.Tensor)}
        tensors: dict[str, str] = {}
        for path, (key, trackable) in self.tensors.items():
            name = names.spelled(path)
            if trackable is not None and name not in saved:
                name = renamed.get(trackable.identity, name)
            if key in reader:
                tensors[name] = key
        return StateDictSaveable(
            self.name,
            module,
            tensors=tensors,
            states={names.spelled(path): key for path, key in self.states.items()},
            reader=reader,
            versions={},
            wanted={name: name for name in saved},
            optional=frozenset(saved),
            strict=True,
            report=self.report,
        )


def _leaves(graph: ObjectGraph, node_id: int, path: str) -> Iterator[tuple[int, str]]:
    """Yield the nodes at and below a node with their paths; each node once."""
    waiting, seen = [(node_id, path)], set[int]()
    while waiting:
        here, at = waiting.pop()
        if here in seen:
            continue
        seen.add(here)
        yield here, at
        children = graph.nodes[here].children
        part = stored_wrapper([child.local_name for child in children])
        for child in children:
            waiting.append((child.node_id, at if child.local_name == part else f"{at}.{child.local_name}"))
