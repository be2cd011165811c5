"""Find the optimizer state of a model's parameters: in the object graph if there is one, else by name.

`named_optimizers` finds it by name. A slot has the layout of its variable, and its axes are moved in the same way. The
package `optimizers` interprets the state and converts it to torch's form.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError
from torch_tfckpt.format.object_graph import ObjectGraph
from torch_tfckpt.format.tensor_slice import shape_text
from torch_tfckpt.models.assembly import Source
from torch_tfckpt.models.named_kinds import Kinds
from torch_tfckpt.models.named_optimizers import NamedOptimizers, Owner
from torch_tfckpt.models.saved_optimizers import how_to_restore
from torch_tfckpt.models.targets import Target
from torch_tfckpt.optimizers.slots import (
    KNOWN_TO_TENSORFLOW,
    is_optimizer,
    slot_names,
    slot_variables,
)
from torch_tfckpt.optimizers.tensorflow import FoundSlot, StatePlan, StoredOptimizer, plan_state
from torch_tfckpt.saveables.identity import Identity, identity_of
from torch_tfckpt.text import listed, quoted
from torch_tfckpt.values import value_dtype

_LISTED: Final = 4  # keys in a message

_Loaded = tuple[Target, Source]


@dataclass(frozen=True, slots=True)
class SlotPlan:
    """State to load into an optimizer."""

    state: StatePlan
    loaded: Mapping[Identity, _Loaded]
    remarks: Sequence[str] = ()

    @property
    def keys(self) -> dict[str, dict[str, str]]:
        """Parameter name -> name of an entry of its state -> stored key."""
        keys: dict[str, dict[str, str]] = {}
        for slot in self.state.slots:
            target, _ = self.loaded[identity_of(slot.parameter)]
            keys.setdefault(target.name, {})[slot.state] = slot.key
        return keys

    @property
    def missing(self) -> list[str]:
        """Names of loaded parameters whose required optimizer state is not stored."""
        return [self.loaded[identity_of(parameter)][0].name for parameter in self.state.missing]

    def state_dict(self, values: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Return the argument for the optimizer's load_state_dict. `values`: stored key -> tensor as stored."""
        sources = (self.loaded[identity_of(slot.parameter)][1] for slot in self.state.slots)
        pairs = zip(sources, self.state.slots, strict=True)
        turned = [source.of_slots().assemble([values[slot.key]]).contiguous() for source, slot in pairs]
        return self.state.state_dict(turned, keep_others=True)


def plan_slots(
    reader: CheckpointReader,
    optimizer: torch.optim.Optimizer,
    loaded: Sequence[tuple[Target, Source]],
    kinds: Kinds,
    prefix: str,
) -> SlotPlan:
    """Find the stored state of the loaded parameters. Changes nothing, and reads only scalars.

    Args:
        kinds: The kinds of all variables of the checkpoint.
        prefix: Common prefix of the names of the module, for a hint.

    Raises:
        UnimplementedError: the optimizer, or the stored one, is of a kind that cannot be converted.
        InvalidArgumentError: slots of two optimizers for one variable; a slot whose shape or kind of dtype differs from
            its variable's; momentum that Keras scaled by a learning rate that is not stored; a counter that is not a
            number.
        NotFoundError: the number of steps taken is not stored.
    """
    if not slot_names(optimizer):
        names = ", ".join(each.__name__ for each in KNOWN_TO_TENSORFLOW)
        raise UnimplementedError(
            f"load_model: optimizer {type(optimizer).__name__}: only the state of {names} can be loaded. "
            f"{how_to_restore(reader, optimizer, prefix) or 'Omit optimizer'}"
        )
    known = {identity_of(target.tensor): (target, source) for target, source in loaded}
    parameters = [known[identity] for identity in map(identity_of, _parameters(optimizer)) if identity in known]
    # Slots of joined variables are not searched for. The report lists their state as missing.
    parameters = [(target, source) for target, source in parameters if len(source.parts) == 1]
    if reader.object_graph is None:
        stored, slots, unclear = _find_by_name(reader, optimizer, parameters, kinds)
    else:
        stored, slots, unclear = _find_in_graph(reader, reader.object_graph, optimizer, parameters)
    for slot in slots:
        _check(reader, known[identity_of(slot.parameter)][1], slot)
    plan = plan_state(optimizer, stored, slots, (target.tensor for target, _ in loaded))
    if plan.problem is not None:
        raise plan.problem
    return SlotPlan(plan, known, list(_remarks(unclear)) if plan.missing else ())


def _remarks(unclear: Sequence[str]) -> Iterator[str]:
    """Yield advice on slots that do not show which kind of optimizer they belong to."""
    if unclear:
        yield (
            f"optimizer state of a different kind, or of a kind that is not stored: {listed(unclear, _LISTED)}. If the "
            f"kind is the same, rename the slots to TensorFlow's names (Adam and Adam_1, Momentum, Adagrad), as in "
            f"`tfckpt convert SRC DST --rename '/sgd$' /Momentum`"
        )


def check_optimizer(optimizer: torch.optim.Optimizer, targets: Sequence[Target]) -> None:
    """Raise InvalidArgumentError if none of the targets is a parameter of the optimizer."""
    held = {identity_of(target.tensor) for target in targets}
    if not any(identity_of(parameter) in held for parameter in _parameters(optimizer)):
        raise InvalidArgumentError(
            f"load_model: none of the parameters of optimizer {type(optimizer).__name__} is one of the model's. Create "
            f"the optimizer from model.parameters() of the model that is loaded"
        )


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


_Found = tuple[StoredOptimizer, list[FoundSlot], list[str]]  # last: keys of slots of a different or unknown kind


def _find_by_name(
    reader: CheckpointReader, optimizer: torch.optim.Optimizer, parameters: Sequence[_Loaded], kinds: Kinds
) -> _Found:
    """Find slots by name: "v/Adam" of "v", "v/Adam:0" of "v:0", also below a scope.

    Raises:
        InvalidArgumentError: there are slots of several optimizers.
    """
    stored = NamedOptimizers(reader, kinds)
    slots: list[FoundSlot] = []
    owners: dict[Owner, None] = {}
    unclear: list[str] = []
    for target, source in parameters:
        found = stored.states(optimizer, source.key)
        if len(found) > 1:
            raise InvalidArgumentError(
                f"{reader.path}: {quoted(source.key)} has slots of {len(found)} optimizers, {_described(found)}, and "
                f"it is unclear which ones to load. Omit optimizer"
            )
        owners.update(dict.fromkeys(found))
        whole = (entry for states in found.values() for entry in states.items())
        entries = [*stored.misshapen(optimizer, source.key), *whole]
        slots += [FoundSlot(target.tensor, state, key) for state, key in entries]
        unclear += [] if entries else stored.slots_of(source.key)
    if len(owners) > 1:
        raise InvalidArgumentError(
            f"{reader.path}: the slots belong to several optimizers: {_described(owners)}. Load the modules that they "
            f"train one at a time, each with an optimizer of its own, or omit optimizer"
        )
    return stored.stored(optimizer, next(iter(owners), None)), slots, unclear


def _described(owners: Iterable[Owner]) -> str:
    return " and ".join(quoted("/".join(filter(None, owner))) for owner in owners)


def _find_in_graph(
    reader: CheckpointReader, graph: ObjectGraph, optimizer: torch.optim.Optimizer, parameters: Sequence[_Loaded]
) -> _Found:
    """Find slots by the variables that the optimizer nodes in the graph refer to.

    Raises:
        InvalidArgumentError: there are slots of several optimizers.
    """
    nodes = [number for number, node in enumerate(graph.nodes) if is_optimizer(node)]
    stored: dict[tuple[str, str], list[tuple[int, str]]] = {}  # variable and slot -> optimizers and keys
    for node in nodes:
        for slot in slot_variables(graph, node):
            variable, key = map(graph.value_key, (slot.original_variable_node_id, slot.slot_variable_node_id))
            if variable is not None and key is not None and key in reader:
                stored.setdefault((variable, slot.slot_name), []).append((node, key))
    slots: list[FoundSlot] = []
    owners: set[int] = set()
    for target, source in parameters:
        for state, name in slot_names(optimizer).items():
            found = stored.get((source.key, name.slot), [])
            if len(found) > 1:
                names = _named(graph, (node for node, _ in found))
                raise InvalidArgumentError(
                    f"{quoted(source.key)} has a slot {quoted(name.slot)} in each of {names}, and it is "
                    f"unclear which one to load. Omit optimizer"
                )
            for node, key in found:
                owners.add(node)
                slots.append(FoundSlot(target.tensor, state, key))
    if len(owners) > 1:
        raise InvalidArgumentError(
            f"the slots belong to several optimizers: {_named(graph, sorted(owners))}. Omit optimizer"
        )
    if not owners and len(nodes) == 1 and not slot_variables(graph, nodes[0]):
        owners = set(nodes)  # the only optimizer has no slots, like SGD without momentum
    if not owners:
        return StoredOptimizer(reader, "the optimizer", {}), [], []
    return StoredOptimizer.at(reader, graph, owners.pop()), slots, []


def _named(graph: ObjectGraph, nodes: Iterable[int]) -> str:
    return " and ".join(map(graph.name, nodes))


def _check(reader: CheckpointReader, source: Source, slot: FoundSlot) -> None:
    """Raise InvalidArgumentError if a slot does not fit its variable."""
    shape, wanted = reader.shape(slot.key), reader.shape(source.read_keys[0])
    dtype = value_dtype(slot.key, reader.dtype(slot.key))
    if shape != wanted or dtype.is_floating_point != slot.parameter.is_floating_point():
        kind = "" if shape != wanted else f" and dtype {dtype}"
        raise InvalidArgumentError(
            f"{reader.path}: slot {quoted(slot.key)} of shape {shape_text(shape)}{kind} does not fit its variable "
            f"of shape {shape_text(wanted)}. Omit optimizer"
        )
