"""Progress of a restore from an object graph."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch_tfckpt.format.object_graph import ObjectGraph, object_path
from torch_tfckpt.text import first_lines

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
        """Record that the parameters at `paths` were added to an optimizer and their state was then restored."""
        for slot in self.graph.nodes[optimizer].slot_variables:
            route = self.graph.route(slot.original_variable_node_id)
            if route is not None and object_path(route) in paths:
                self.bound.add(slot.slot_variable_node_id)

    def unrestored(self) -> Iterator[str]:
        """Yield the names of nodes that have values but were not matched."""
        for node_id, node in enumerate(self.graph.nodes):
            if node.attributes and node_id not in self.bound:
                yield self.graph.name(node_id)


def log_unrestored(progress: Progress) -> None:
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
