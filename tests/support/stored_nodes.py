"""Nodes of checkpoints for tests of single trackables."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.objects.trackables.trackable import RestoredValues, StoredNode, Trackable
from torch_tfckpt.save_restore.builder import BulkSaverBuilder
from torch_tfckpt.save_restore.restore import restore_saveables


@contextmanager
def stored_node(path: str | os.PathLike[str], *names: str) -> Iterator[StoredNode]:
    """The node that these local names lead to, while its checkpoint is open."""
    with CheckpointReader(path) as reader:
        graph = reader.object_graph
        assert graph is not None
        node_id = 0
        for name in names:
            child = graph.nodes[node_id].child(name)
            assert child is not None, name
            node_id = child
        yield StoredNode(reader, graph, node_id)


def restore(trackable: Trackable, stored: StoredNode) -> RestoredValues:
    """Restore an object from a node. Return the result of its `to_restore`."""
    restored = trackable.to_restore(stored)
    restore_saveables(BulkSaverBuilder(), stored.reader, restored.saveables)
    return restored
