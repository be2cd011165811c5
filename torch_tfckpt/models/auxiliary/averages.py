"""Moving averages in a checkpoint: which stored tensor is the average of which variable.

    fc/kernel/ExponentialMovingAverage           by name: the average of fc/kernel, which need not be stored
    train/fc/kernel/ExponentialMovingAverage     the same, created in a scope, if fc/kernel is stored with this shape
    fc/kernel/ema                                tf.train.ExponentialMovingAverage(name="ema")
    optimizer/_model_variables_moving_average/0  Keras, use_ema=True: the average of optimizer/_trainable_variables/0
    slot variable "average" of fc/kernel         tfa.optimizers.MovingAverage and others, in the object graph

Statistics of a batch normalization may have averages like any other variable. An average is only ever assigned by a
name or by the object graph, never by its shape or its position among other averages. If several
variables are possible, or none, the average is listed in `unknown`.

Source: tensorflow/python/training/moving_averages.py; keras/src/optimizers/base_optimizer.py.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import torch

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.object_graph import ObjectGraph, TrackableObject
from torch_tfckpt.optimizers.slots import is_optimizer, listed_originals, number_nodes
from torch_tfckpt.optimizers.stored_optimizer import GLOBAL_STEP

# Appended to a variable's name to form the name of its exponential moving average.
AVERAGE: Final = "/ExponentialMovingAverage"
# Suffix of a variable's name if the variable was stored under `variable.name`.
OUTPUT: Final = ":0"
# At most this many scopes may precede the name of a variable, to limit the work for a name that is a megabyte long.
SCOPES: Final = 16

_DEFAULT_NAME: Final = AVERAGE.removeprefix("/")
# Names that programs give to averages. They count only if the variable is stored with the same shape.
_OTHER_NAMES: Final = re.compile(r"(?:[^/]*_)?ema(?:_[^/]*)?|[^/]*average[^/]*", re.IGNORECASE)
_LIST_OF_KERAS: Final = "_model_variables_moving_average"
_SLOT: Final = "average"


@dataclass(slots=True)
class StoredAverages:
    """Moving averages of a checkpoint.

    Attributes:
        of: Key of a variable -> key of its average.
        others: Keys of averages that are not needed, such as a second average of the same variable.
        unknown: Keys of averages whose variables cannot be determined.
    """

    of: dict[str, str] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    @property
    def keys(self) -> set[str]:
        """Keys of all averages."""
        return {*self.of.values(), *self.others, *self.unknown}


def stored_averages(reader: CheckpointReader) -> StoredAverages:
    """Return the averages of a checkpoint.

    Raises:
        DataLossError: the object graph or the entry of a tensor is damaged.

    Cost: looks at all names, and at the entries of averages.
    """
    graph = reader.object_graph
    return _by_name(reader) if graph is None else _in_graph(reader, graph)


def count_of_updates(reader: CheckpointReader) -> int | None:
    """Return the training step of the stored averages: global_step, or an optimizer's counter.

    None if no such integer is stored, or if several with different values are stored.

    Raises:
        DataLossError: the object graph or a counter is damaged.

    Cost: reads a scalar.
    """
    graph = reader.object_graph
    keys: set[str | None]
    if graph is None:
        keys = {key for key in (GLOBAL_STEP, GLOBAL_STEP + OUTPUT) if key in reader}
    else:
        counters = (
            number_nodes(graph, number).get("iter") for number, node in enumerate(graph.nodes) if _averages(node)
        )
        keys = {graph.value_key(counter) for counter in counters if counter is not None}
    counts = set()
    for key in keys:
        value = reader.get_tensor(key) if key is not None and key in reader and reader.shape(key) == () else None
        if isinstance(value, torch.Tensor) and not (value.is_floating_point() or value.is_complex()):
            counts.add(int(value))
    return counts.pop() if len(counts) == 1 else None


def _averages(node: TrackableObject) -> bool:
    """Return whether an optimizer stores averages."""
    has_slots = any(slot.slot_name == _SLOT for slot in node.slot_variables)
    return has_slots or (is_optimizer(node) and node.child(_LIST_OF_KERAS) is not None)


def located(name: str, known: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Yield the variables that `name` may refer to, each with the scope that precedes it; the longest name first.

    "train/fc/kernel" is first taken as the variable of that name, then as "fc/kernel" in the scope "train".
    """
    rest = name
    for _ in range(SCOPES + 1):
        if rest in known:
            yield rest, name[: len(name) - len(rest)].removesuffix("/")
        rest = rest.partition("/")[2]
        if not rest:
            break


def _by_name(reader: CheckpointReader) -> StoredAverages:
    stored = {key.removesuffix(OUTPUT): key for key in reader.keys()}
    found = StoredAverages()
    ranked: dict[str, dict[int, list[str]]] = {}  # variable -> rank -> names of averages; rank 0 is the best
    for name, key in stored.items():
        base, _, part = name.rpartition("/")
        is_default = part == _DEFAULT_NAME
        if not base or not (is_default or _OTHER_NAMES.fullmatch(part)) or reader.dtype(key) == DataType.DT_STRING:
            continue
        shape = reader.shape(key)
        place = next((each for each in located(base, stored) if reader.shape(stored[each[0]]) == shape), None)
        if place is not None:
            ranked.setdefault(place[0], {}).setdefault((not is_default) * 2 + bool(place[1]), []).append(name)
        elif is_default and base in stored:
            found.unknown.append(key)
        elif is_default:
            ranked.setdefault(base, {}).setdefault(0, []).append(name)
    for variable, names in ranked.items():
        best, *rest = (names[rank] for rank in sorted(names))
        found.others += [stored[name] for worse in rest for name in worse]
        if len(best) > 1:
            found.unknown += [stored[name] for name in best]
            continue
        key = stored[best[0]]
        found.of[stored.get(variable, variable + key[len(best[0]) :])] = key
    return found


def _in_graph(reader: CheckpointReader, graph: ObjectGraph) -> StoredAverages:
    found = StoredAverages()
    averages: dict[str, dict[str, None]] = {}  # key of a variable -> keys of its averages

    def add(variable: str | None, average: str | None) -> None:
        if average is None or average not in reader:
            return
        if variable is None or variable not in reader or reader.shape(variable) != reader.shape(average):
            found.unknown.append(average)
        else:
            averages.setdefault(variable, {})[average] = None

    for number, node in enumerate(graph.nodes):
        if not is_optimizer(node):
            continue
        for slot in node.slot_variables:
            if slot.slot_name == _SLOT:
                add(graph.value_key(slot.original_variable_node_id), graph.value_key(slot.slot_variable_node_id))
        for average, variable in listed_originals(graph, number, _LIST_OF_KERAS):
            add(None if variable is None else graph.value_key(variable), graph.value_key(average))
    for name in {value.full_name for value in graph.variables() if value.full_name.endswith(AVERAGE)}:
        of, average_ids = graph.named(name.removesuffix(AVERAGE)), graph.named(name)
        for average in average_ids:
            add(graph.value_key(of[0]) if len(of) == len(average_ids) == 1 else None, graph.value_key(average))
    for key, several in averages.items():
        if len(several) == 1:
            found.of[key] = next(iter(several))
        else:
            found.unknown += several
    return found
