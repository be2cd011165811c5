"""Progress of a restore from an object graph."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch_tfckpt.format.object_graph import ObjectGraph


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

    def unrestored(self) -> Iterator[str]:
        """Yield the names of nodes with values that were not matched."""
        for node_id, node in enumerate(self.graph.nodes):
            if node.attributes and node_id not in self.bound:
                yield self.graph.name(node_id)
