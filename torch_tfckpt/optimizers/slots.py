"""Map the slots of TensorFlow's optimizers to the tensors of a torch optimizer's state.

    torch                           slot variable   name           list in Keras 3
    Adam, AdamW   exp_avg           m               v/Adam         _momentums
                  exp_avg_sq        v               v/Adam_1       _velocities
                  max_exp_avg_sq    vhat            v/vhat         _velocity_hats
    Adagrad       sum               accumulator     v/Adagrad      _accumulators
    SGD           momentum_buffer   momentum        v/Momentum     momentums

RMSprop is not in the table: TensorFlow adds epsilon inside the square root, so torch cannot continue from its state.

Source: get_slot_names of tensorflow/python/training/*.py; keras/src/optimizers/*.py.
"""

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

import torch

from torch_tfckpt.format.object_graph import ObjectGraph, SlotVariable


class SlotName(NamedTuple):
    """TensorFlow's name for a tensor of an optimizer's state."""

    slot: str  # its name in the object graph
    suffix: str  # last part of the slot variable's name, which follows the name of the variable


STEP: Final = "step"  # in the state of some optimizers; looks like a slot if the parameter is a scalar
MAXIMA: Final = "max_exp_avg_sq"  # of Adam with amsgrad
ADAMS: Final = (torch.optim.Adam, torch.optim.AdamW)
_ADAM: Final = {
    "exp_avg": SlotName("m", "Adam"),
    "exp_avg_sq": SlotName("v", "Adam_1"),
    MAXIMA: SlotName("vhat", "vhat"),
}
_SLOTS: Final[Mapping[type, Mapping[str, SlotName]]] = {
    torch.optim.Adam: _ADAM,
    torch.optim.AdamW: _ADAM,
    torch.optim.Adagrad: {"sum": SlotName("accumulator", "Adagrad")},
    torch.optim.SGD: {"momentum_buffer": SlotName("momentum", "Momentum")},
}
KNOWN_TO_TENSORFLOW: Final = tuple(_SLOTS)

# Keras 3 has no slot variables. It keeps lists that are parallel to its list of trainable variables.
_TRAINED: Final = "_trainable_variables"
_LISTS: Final = {
    "_momentums": "m", "_velocities": "v", "_velocity_hats": "vhat", "momentums": "momentum",
    "_accumulators": "accumulator", "_linears": "linear",
}  # fmt: skip
_LISTS_OF_RMSPROP: Final = {"_velocities": "rms", "_momentums": "momentum", "_average_gradients": "mg"}
_NUMBERS: Final = {"_iterations": "iter", "_learning_rate": "learning_rate"}  # Keras 3's name -> Keras 2's


def slot_names(optimizer: torch.optim.Optimizer) -> Mapping[str, SlotName]:
    """Return torch's state name -> TensorFlow's names; empty if TensorFlow has no such optimizer."""
    return next((_SLOTS[kind] for kind in type(optimizer).__mro__ if kind in _SLOTS), {})


def slot_variables(graph: ObjectGraph, optimizer: int) -> tuple[SlotVariable, ...]:
    """Return the slot variables of an optimizer's node; for Keras 3, with their Keras 2 names."""
    return graph.nodes[optimizer].slot_variables or tuple(_listed_slots(graph, optimizer))


def _listed_slots(graph: ObjectGraph, optimizer: int) -> Iterator[SlotVariable]:
    lists = {child.local_name: graph.nodes[child.node_id] for child in graph.nodes[optimizer].children}
    if _TRAINED not in lists:  # Keras 2.11 to 2.15, which do not store the order of the variables
        return
    trained = {child.local_name: child.node_id for child in lists[_TRAINED].children}
    for name, slot in (_LISTS_OF_RMSPROP if "_average_gradients" in lists else _LISTS).items():
        for child in lists[name].children if name in lists else ():
            if child.local_name in trained:
                yield SlotVariable(trained[child.local_name], slot, child.node_id)


def number_nodes(graph: ObjectGraph, optimizer: int) -> dict[str, int]:
    """Return the children of an optimizer's node by name; for Keras 3, only numbers, by Keras 2 names."""
    children = {child.local_name: child.node_id for child in graph.nodes[optimizer].children}
    if _TRAINED in children:
        return {_NUMBERS[name]: node_id for name, node_id in children.items() if name in _NUMBERS}
    return children
