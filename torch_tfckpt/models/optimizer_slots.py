"""The state of TensorFlow's optimizers, for those of torch that keep the same: Adam, AdamW, SGD with momentum, Adagrad.

    <v>/Adam, <v>/Adam_1, or slot variables m, v       exp_avg, exp_avg_sq, and a step
    <v>/Momentum, or slot variable momentum            momentum_buffer
    <v>/Adagrad, or slot variable accumulator          sum, and a step

A slot has the layout of its variable, and is turned as that is.

Source: spec CONVERT 3.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.errors import InvalidArgumentError, NotFoundError, UnimplementedError
from torch_tfckpt.format.object_graph import ObjectGraph
from torch_tfckpt.format.tensor_slice import shape_text
from torch_tfckpt.models.auxiliary import OUTPUT
from torch_tfckpt.models.sources import Source
from torch_tfckpt.models.targets import Target
from torch_tfckpt.objects.trackables.optimizers import KNOWN_TO_TENSORFLOW, MAXIMA, SlotName, slot_names, steps_of_power
from torch_tfckpt.saveables.identity import identity_of
from torch_tfckpt.text import quoted

_log = logging.getLogger(__name__)


class Parameter(NamedTuple):
    """A parameter of an optimizer that is loaded."""

    number: int  # in the optimizer's state_dict
    target: Target
    source: Source


@dataclass(slots=True)
class SlotPlan:
    """What an optimizer's state is to be."""

    optimizer: torch.optim.Optimizer
    keys: dict[str, dict[str, str]] = field(default_factory=dict)  # parameter -> state -> stored key
    missing: list[str] = field(default_factory=list)
    parameters: list[Parameter] = field(default_factory=list)  # those of `keys`
    step: torch.Tensor | None = None

    def state_dict(self, values: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """For load_state_dict: the state as it is now, with what is loaded in it. `values`: stored key -> as stored."""
        packed = self.optimizer.state_dict()
        state = dict(packed["state"])
        for number, target, source in self.parameters:
            loaded = {
                name: source.layout.to_torch(values[key]).contiguous() for name, key in self.keys[target.name].items()
            }
            step = {} if self.step is None else {"step": self.step.clone()}
            state[number] = {**step, **loaded}
        return {**packed, "state": state}


def plan_slots(
    reader: CheckpointReader, optimizer: torch.optim.Optimizer, loaded: Sequence[tuple[Target, Source]]
) -> SlotPlan:
    """Finds the stored state of the parameters that are loaded. Changes nothing, and reads only counters.

    Raises:
        UnimplementedError: an optimizer of another kind, here or there.
        InvalidArgumentError: slots of two optimizers for one variable; a slot of another shape than its variable.
        NotFoundError: nothing stored tells how many steps were taken.
    """
    slots = _slots_of(optimizer)
    plan = SlotPlan(optimizer)
    by_identity = {identity_of(target.tensor): (target, source) for target, source in loaded}
    in_graph = _GraphSlots(reader.object_graph) if reader.object_graph is not None else None
    beta2: float | None = None
    for number, (parameter, group) in enumerate(_parameters(optimizer)):
        if identity_of(parameter) not in by_identity or not group.get("momentum", True):
            continue
        target, source = by_identity[identity_of(parameter)]
        by_name = {state: _slot_key(source.key, slot.suffix) for state, slot in slots.items()}
        keys = by_name if in_graph is None else in_graph.keys(source.key, slots)
        if len(keys) < len(slots) or not all(key in reader for key in keys.values()):
            plan.missing.append(target.name)
            continue
        _check_shapes(reader, source, keys)
        plan.keys[target.name] = keys
        plan.parameters.append(Parameter(number, target, source))
        beta2 = group["betas"][1] if "betas" in group else None
    if plan.parameters and not isinstance(optimizer, torch.optim.SGD):  # which counts none
        plan.step = _step(reader, {} if in_graph is None else in_graph.counters(), beta2)
    return plan


def check_optimizer(optimizer: torch.optim.Optimizer, targets: Sequence[Target]) -> None:
    """InvalidArgumentError where it is the optimizer of something else."""
    held = {identity_of(target.tensor) for target in targets}
    if not any(identity_of(parameter) in held for parameter, _ in _parameters(optimizer)):
        raise InvalidArgumentError(
            f"load_model: none of the parameters of optimizer {type(optimizer).__name__} is one of the model's. Make "
            f"it over model.parameters(), of the model that is loaded"
        )


def _slot_key(variable: str, suffix: str) -> str:
    """ "v/Adam" of "v", "v/Adam:0" of "v:0"."""
    bare = variable.removesuffix(OUTPUT)
    return f"{bare}/{suffix}{variable[len(bare) :]}"


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[tuple[torch.Tensor, dict[str, Any]]]:
    """Each parameter, in the order of the state_dict, with its group."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield parameter, group


def _slots_of(optimizer: torch.optim.Optimizer) -> Mapping[str, SlotName]:
    """Name in the state -> TensorFlow's."""
    if type(optimizer) not in KNOWN_TO_TENSORFLOW:
        known = ", ".join(each.__name__ for each in KNOWN_TO_TENSORFLOW)
        raise UnimplementedError(
            f"load_model: optimizer {type(optimizer).__name__}: only the state of {known} is carried over. Leave "
            f"optimizer out"
        )
    if any(group.get("amsgrad") for group in optimizer.param_groups):
        raise UnimplementedError(
            "load_model: optimizer with amsgrad=True: its maxima are not carried over. Leave it out"
        )
    return {state: name for state, name in slot_names(optimizer).items() if state != MAXIMA}


class _GraphSlots:
    """Slot variables by the keys of their variables, and the optimizers whose slots were asked for."""

    def __init__(self, graph: ObjectGraph) -> None:
        self._graph = graph
        self._asked_for: set[int] = set()
        keys = [graph.value_key(node_id) for node_id in range(len(graph.nodes))]
        self._keys = keys
        self._slots: dict[str, dict[str, list[tuple[int, str]]]] = {}
        for optimizer, node in enumerate(graph.nodes):
            for slot in node.slot_variables:
                variable, key = keys[slot.original_variable_node_id], keys[slot.slot_variable_node_id]
                if variable is not None and key is not None:
                    self._slots.setdefault(variable, {}).setdefault(slot.slot_name, []).append((optimizer, key))

    def keys(self, variable: str, slots: Mapping[str, SlotName]) -> dict[str, str]:
        """State -> key, of the slots that are stored."""
        found = {}
        for state, (slot, _) in slots.items():
            stored = self._slots.get(variable, {}).get(slot, [])
            if len(stored) > 1:
                names = " and ".join(self._graph.name(optimizer) for optimizer, _ in stored)
                raise InvalidArgumentError(
                    f"{quoted(variable)} has a slot {quoted(slot)} of {names}. Leave optimizer out; which of "
                    f"them is meant cannot be said"
                )
            for optimizer, key in stored:
                if slot == "momentum" and self._graph.nodes[optimizer].child("iter") is not None:
                    raise UnimplementedError(
                        f"{self._graph.name(optimizer)} is Keras's SGD, whose momentum has the learning rate in it; it "
                        f"is not carried over. Leave optimizer out"
                    )
                self._asked_for.add(optimizer)
                found[state] = key
        return found

    def counters(self) -> dict[str, str]:
        """Name -> key of what the optimizer counts by. InvalidArgumentError where there are several optimizers."""
        optimizers = sorted(self._asked_for)
        if len(optimizers) > 1:
            names = " and ".join(self._graph.name(optimizer) for optimizer in optimizers)
            raise InvalidArgumentError(f"the slots are of several optimizers: {names}. Leave optimizer out")
        found = {}
        for child in (child for optimizer in optimizers for child in self._graph.nodes[optimizer].children):
            key = self._keys[child.node_id]
            if key is not None:
                found[child.local_name] = key
        for key in self._keys:
            if key is not None and key.partition("/.ATTRIBUTES/")[0].rpartition("/")[2] == "global_step":
                found.setdefault("global_step", key)
        return found


def _check_shapes(reader: CheckpointReader, source: Source, keys: Mapping[str, str]) -> None:
    for key in keys.values():
        if reader.shape(key) != reader.shape(source.read_key):
            raise InvalidArgumentError(
                f"{reader.path}: slot {quoted(key)} has shape {shape_text(reader.shape(key))}, its variable "
                f"{shape_text(reader.shape(source.read_key))}. Leave optimizer out"
            )


def _step(reader: CheckpointReader, counters: Mapping[str, str], beta2: float | None) -> torch.Tensor:
    """How many steps were taken: from a counter, or from beta2's power, which is multiplied once more at each."""
    names = {
        name: key
        for name in ("global_step", "beta2_power")
        for key in (name + OUTPUT, counters.get(name, name))
        if key in reader
    }
    counter = counters.get("iter", names.get("global_step"))
    if counter is not None:
        return torch.tensor(float(_number(reader, counter)), dtype=torch.float32)
    power = _number(reader, names["beta2_power"]) if "beta2_power" in names else 0.0
    step = None if beta2 is None else steps_of_power(power, beta2)
    if step is None:
        raise NotFoundError(
            f"{reader.path}: no global_step, iter or beta2_power tells how many steps the optimizer took. Leave "
            f"optimizer out"
        )
    _log.warning("%s: step %d of the optimizer is worked out from beta2_power, for beta2=%g", reader.path, step, beta2)
    return torch.tensor(float(step), dtype=torch.float32)


def _number(reader: CheckpointReader, key: str) -> float:
    value = reader.get_tensor(key)
    if not isinstance(value, torch.Tensor) or value.numel() != 1:
        raise InvalidArgumentError(f"{reader.path}: {quoted(key)} is no number. Leave optimizer out")
    return float(value.item())
