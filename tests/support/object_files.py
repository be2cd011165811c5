"""Object-based checkpoints for tests, written without TensorFlow and without Checkpoint."""

import os
from collections.abc import Iterable, Mapping

import numpy as np

import torch_tfckpt as tfckpt
from torch_tfckpt.format.object_graph import (
    OBJECT_GRAPH_KEY,
    VARIABLE_VALUE,
    ObjectGraph,
    ObjectReference,
    SerializedTensor,
    TrackableObject,
    with_checkpoint_values,
)
from torch_tfckpt.values import Value


def variable(name: str, key: str) -> TrackableObject:
    """The node of a variable: its own name, and the key of its value."""
    return TrackableObject(attributes=(SerializedTensor(VARIABLE_VALUE, name, key),))


def children(*edges: tuple[str, int]) -> tuple[ObjectReference, ...]:
    """References (local name, node id)."""
    return tuple(ObjectReference(node_id, name) for name, node_id in edges)


def write_graph(
    prefix: str | os.PathLike[str], nodes: Iterable[TrackableObject], tensors: Mapping[str, Value] | None = None
) -> str:
    """Write a checkpoint of these nodes and tensors, which need not match."""
    graph = np.array(ObjectGraph(with_checkpoint_values(nodes)).encode(), dtype=object)
    return tfckpt.save_file({**(tensors or {}), OBJECT_GRAPH_KEY: graph}, prefix)


def write_variables(prefix: str | os.PathLike[str], variables: Mapping[str, Value]) -> str:
    """Write a checkpoint whose root has variables of these names, as children "v0", "v1", ..."""
    keys = {name: f"v{i}/.ATTRIBUTES/{VARIABLE_VALUE}" for i, name in enumerate(variables)}
    root = TrackableObject(children(*((f"v{i}", i + 1) for i in range(len(variables)))))
    nodes = [root, *(variable(name, key) for name, key in keys.items())]
    return write_graph(prefix, nodes, {keys[name]: value for name, value in variables.items()})
