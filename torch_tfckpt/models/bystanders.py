"""What stands in a checkpoint beside the weights of a model, so that nobody calls it unexpected.

Counters, the slots and hyperparameters of optimizers, moving averages, texts and the state that belongs to them.

Source: spec CONVERT 3 and 5, WISHES 13.
"""

import re
from collections.abc import Container, Iterator
from typing import Final

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.dtypes import DataType
from torch_tfckpt.object_graph import ROOT, VARIABLE_VALUE, ObjectGraph, TrackableObject

# Behind the name of a variable: the name of its exponential moving average.
AVERAGE: Final = "/ExponentialMovingAverage"

_COUNTERS: Final = re.compile(r"(?:.*/)?(?:global_step|save_counter|beta[12]_power(?:_\d+)?)", re.DOTALL)
# Names of slots, behind that of their variable; a second and third slot has a number.
_SLOTS: Final = re.compile(
    r"(?:Adam|AdamW|AdaMax|Nadam|Momentum|RMSProp|Adagrad|AdagradDA|ProximalAdagrad|Adadelta|Ftrl|LAMB|adam_[mv])(?:_\d+)?"
)
_ADAFACTOR: Final = re.compile(r"(.+)_slot_(?:v|vr|vc|m)", re.DOTALL)
# What the optimizers of Keras 2, those since 2.11, and a LossScaleOptimizer have for children.
_OF_OPTIMIZERS: Final = (
    {"iter", "learning_rate"},
    {"_iterations", "_learning_rate"},
    {"base_optimizer", "loss_scale"},
)
_KERAS_API: Final = "keras_api"  # the child under which Keras 2 puts metrics, and layers a second time


def bystanders(reader: CheckpointReader) -> set[str]:
    """Keys of a checkpoint that are no weights of a model.

    Raises:
        DataLossError: the object graph is damaged.

    Cost: looks at the entries of all tensors.
    """
    keys = reader.keys()
    texts = {key for key in keys if reader.dtype(key) == DataType.DT_STRING}
    graph = reader.object_graph
    if graph is not None:
        weights = {key for name, key in _weights(graph) if not _COUNTERS.fullmatch(name)}
        return {key for key in keys if key not in weights or key in texts}
    known, longest = set(keys), max(map(len, texts), default=0)
    return {
        key
        for key in keys
        if _is_beside_weights(key, known) or key in texts or any(part in texts for part in _beginnings(key, longest))
    }


def is_optimizer(node: TrackableObject) -> bool:
    """Whether an object is an optimizer: it has slot variables, or the children that those of Keras have."""
    children = {child.local_name for child in node.children}
    return bool(node.slot_variables) or any(known <= children for known in _OF_OPTIMIZERS)


def _is_beside_weights(key: str, known: Container[str]) -> bool:
    if _COUNTERS.fullmatch(key) or key.endswith(AVERAGE):
        return True
    variable, _, slot = key.rpartition("/")
    if variable in known and _SLOTS.fullmatch(slot):
        return True
    adafactor = _ADAFACTOR.fullmatch(key)
    return adafactor is not None and adafactor[1] in known


def _beginnings(key: str, longest: int) -> Iterator[str]:
    """What comes before each of its slashes: the key of a text is how the keys of its state's tensors begin."""
    at = key.find("/")
    while 0 <= at <= longest:
        yield key[:at]
        at = key.find("/", at + 1)


def _weights(graph: ObjectGraph) -> Iterator[tuple[str, str]]:
    """Name and key of each variable that the root reaches without passing an optimizer."""
    seen = {ROOT}
    waiting = [(ROOT, "")] if graph.nodes else []
    while waiting:
        here, name = waiting.pop()
        node = graph.nodes[here]
        if is_optimizer(node):
            continue
        for attribute in node.attributes:
            if attribute.name == VARIABLE_VALUE:
                yield name, attribute.checkpoint_key
        for child in node.children:
            if child.node_id not in seen and child.local_name != _KERAS_API:
                seen.add(child.node_id)
                waiting.append((child.node_id, child.local_name))
