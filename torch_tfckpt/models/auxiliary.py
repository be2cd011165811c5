"""Distinguish weights in a checkpoint from auxiliary variables, which are not reported as unexpected.

Auxiliary variables are step counters, slots and hyperparameters of optimizers, moving averages, strings, and the
tensors of a state that such a string describes.
"""

import enum
import re
from collections.abc import Container, Iterable, Iterator
from typing import Final

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.object_graph import ROOT, VARIABLE_VALUE, ObjectGraph, TrackableObject

# Appended to a variable's name to form the name of its exponential moving average.
AVERAGE: Final = "/ExponentialMovingAverage"
# Suffix of a variable's name if the variable was stored under `variable.name`.
OUTPUT: Final = ":0"

_COUNTERS: Final = re.compile(r"(?:.*/)?(?:global_step|save_counter)", re.DOTALL)
_POWERS: Final = re.compile(r"(?:.*/)?beta[12]_power(?:_\d+)?", re.DOTALL)
# Slot names, which follow the name of the variable; the second and third slots have a number, such as "Adam_1".
_SLOTS: Final = re.compile(
    r"(?:Adam|AdamW|AdaMax|Nadam|Momentum|RMSProp|Adagrad|AdagradDA|ProximalAdagrad|Adadelta|Ftrl|LAMB|adam_[mv])(?:_\d+)?"
)
_ADAFACTOR: Final = re.compile(r"(.+)_slot_(?:v|vr|vc|m)", re.DOTALL)
# Keras 1 and 2 without an object graph: training/<optimizer>/<variable>/<slot>, training/<optimizer>/<counter>.
_TRAINING: Final = re.compile(r"training/[^/]+/(.+)", re.DOTALL)
_TRAINING_SLOTS: Final = ("m", "v", "vhat", "rms", "momentum", "accumulator")
_TRAINING_COUNTERS: Final = ("iter", "iterations")
_TRAINING_NUMBERS: Final = ("decay", "learning_rate", "lr", "beta_1", "beta_2", "rho", "momentum")
_WHOLE_NUMBERS: Final = {
    DataType.DT_INT8, DataType.DT_INT16, DataType.DT_INT32, DataType.DT_INT64,
    DataType.DT_UINT8, DataType.DT_UINT16, DataType.DT_UINT32, DataType.DT_UINT64,
}  # fmt: skip
# At most this many scopes may precede the name of a variable, to limit the work for a name that is a megabyte long.
_SCOPES: Final = 16
# Names of children that identify an optimizer: Keras 2, Keras 2.11 and later (two sets), LossScaleOptimizer.
_OF_OPTIMIZERS: Final = (
    {"iter", "learning_rate"},
    {"_iterations", "_learning_rate"},
    {"_iterations", "_trainable_variables"},  # with a learning rate schedule, which is not stored
    {"base_optimizer", "loss_scale"},
)
_KERAS_API: Final = "keras_api"  # child under which Keras 2 stores metrics, and layers a second time


class VariableKind(enum.StrEnum):
    """Purpose of a variable."""

    WEIGHT = "weights"
    AVERAGE = "moving averages"
    OPTIMIZER = "optimizer state"
    COUNTER = "counters"
    OTHER = "other"


def auxiliary_keys(reader: CheckpointReader) -> set[str]:
    """Return the keys of a checkpoint that are not weights of a model.

    Raises:
        DataLossError: the object graph is damaged.

    Cost: looks at the entries of all tensors.
    """
    return {key for key, kind in variable_kinds(reader).items() if kind is not VariableKind.WEIGHT}


def variable_kinds(reader: CheckpointReader) -> dict[str, VariableKind]:
    """Return the kind of each variable of a checkpoint, in the order of its keys.

    Raises:
        DataLossError: the object graph or the entry of a tensor is damaged.

    Cost: looks at the entries of all tensors.
    """
    keys = reader.keys()
    strings = {key for key in keys if reader.dtype(key) == DataType.DT_STRING}
    graph = reader.object_graph
    if graph is not None:
        return _kinds_of_objects(reader, graph, strings)
    known = {name.removesuffix(OUTPUT) for name in (*keys, *averages(keys))}
    longest = max(map(len, strings), default=0)
    return {key: _described_by(key, strings, longest) or _kind_by_name(key, known) for key in keys}


def is_optimizer(node: TrackableObject) -> bool:
    """Return whether an object has slot variables, or the children of a Keras optimizer."""
    children = {child.local_name for child in node.children}
    return bool(node.slot_variables) or any(known <= children for known in _OF_OPTIMIZERS)


def averages(keys: Iterable[str]) -> dict[str, str]:
    """Return variable key -> key of its moving average; the variable itself may not be stored."""
    found = {}
    for key in keys:
        bare = key.removesuffix(OUTPUT)
        if bare.endswith(AVERAGE):
            found[bare.removesuffix(AVERAGE) + key[len(bare) :]] = key
    return found


def _kinds_of_objects(reader: CheckpointReader, graph: ObjectGraph, strings: Container[str]) -> dict[str, VariableKind]:
    weights = {key for name, key in _weights(graph) if not _is_counted(name)} - _counts(reader, graph)
    of_optimizers = _optimizer_keys(graph)

    def kind(key: str) -> VariableKind:
        if key in strings:
            return VariableKind.OTHER
        if key in weights:
            return VariableKind.WEIGHT
        if _is_whole_number(reader, key):
            return VariableKind.COUNTER
        return VariableKind.OPTIMIZER if key in of_optimizers else VariableKind.OTHER

    return {key: kind(key) for key in reader.keys()}


def _is_counted(name: str) -> bool:
    return bool(_COUNTERS.fullmatch(name) or _POWERS.fullmatch(name))


def _optimizer_keys(graph: ObjectGraph) -> set[str]:
    """Return the keys of objects below optimizers, weights included, and of slot variables."""
    optimizers = [node for node in graph.nodes if is_optimizer(node)]
    slots = {slot.slot_variable_node_id for node in optimizers for slot in node.slot_variables}
    waiting = [*slots, *(child.node_id for node in optimizers for child in node.children)]
    seen = set(waiting)
    for here in waiting:  # grows in the loop
        below = {child.node_id for child in graph.nodes[here].children} - seen
        seen |= below
        waiting += below
    return {attribute.checkpoint_key for here in seen for attribute in graph.nodes[here].attributes}


def _described_by(key: str, strings: Container[str], longest: int) -> VariableKind | None:
    """Return the kind if `key` is a string, or a tensor of a state that a string describes; else None."""
    if key in strings:
        return VariableKind.OTHER
    for beginning in _beginnings(key, longest):
        if beginning in strings:
            of_optimizer = key.startswith("/state/", len(beginning))
            return VariableKind.OPTIMIZER if of_optimizer else VariableKind.OTHER
    return None


def _kind_by_name(key: str, known: Container[str]) -> VariableKind:
    """Derive the kind of a tensor from its key. `known`: names of all variables, without ":0"."""
    name = key.removesuffix(OUTPUT)
    if _COUNTERS.fullmatch(name):
        return VariableKind.COUNTER
    if name.endswith(AVERAGE):
        return VariableKind.AVERAGE
    return VariableKind.OPTIMIZER if _POWERS.fullmatch(name) else _kind_by_variable(name, known)


def _kind_by_variable(name: str, known: Container[str]) -> VariableKind:
    """Return the kind of a variable. The name of a slot contains the name of its variable."""
    variable, _, slot = name.rpartition("/")
    if _SLOTS.fullmatch(slot) and _is_variable(variable, known):
        return VariableKind.OPTIMIZER
    adafactor = _ADAFACTOR.fullmatch(name)
    if adafactor is not None and _is_variable(adafactor[1], known):
        return VariableKind.OPTIMIZER
    training = _TRAINING.fullmatch(name)
    if training is None:
        return VariableKind.WEIGHT
    if training[1] in _TRAINING_COUNTERS:
        return VariableKind.COUNTER
    variable, _, slot = training[1].rpartition("/")
    is_state = training[1] in _TRAINING_NUMBERS or (slot in _TRAINING_SLOTS and variable in known)
    return VariableKind.OPTIMIZER if is_state else VariableKind.WEIGHT


def _is_variable(name: str, known: Container[str]) -> bool:
    """Return whether `name` is a variable's name, possibly preceded by scopes such as an optimizer's."""
    for _ in range(_SCOPES + 1):
        if name in known:
            return True
        name = name.partition("/")[2]
    return False


def _counts(reader: CheckpointReader, graph: ObjectGraph) -> set[str]:
    """Return the keys of integers that are children of the root, such as a Checkpoint's step and epoch."""
    children = graph.nodes[ROOT].children if graph.nodes else ()
    keys = (graph.value_key(child.node_id) for child in children)
    stored = {key for key in keys if key is not None and key in reader}
    return {key for key in stored if _is_whole_number(reader, key)}


def _is_whole_number(reader: CheckpointReader, key: str) -> bool:
    return reader.shape(key) == () and reader.dtype(key) in _WHOLE_NUMBERS


def _beginnings(key: str, longest: int) -> Iterator[str]:
    """Yield each prefix of a key that ends before a slash.

    The keys of a state's tensors begin with the key of the string that describes the state.
    """
    at = key.find("/")
    while 0 <= at <= longest:
        yield key[:at]
        at = key.find("/", at + 1)


def _weights(graph: ObjectGraph) -> Iterator[tuple[str, str]]:
    """Yield the name and key of each variable that can be reached without passing through an optimizer."""
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
