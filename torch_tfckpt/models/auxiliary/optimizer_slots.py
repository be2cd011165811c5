"""Find the optimizer state of a model's parameters: in the object graph if there is one, else by name.

`named_optimizers` finds it by name. A slot has the layout of its variable, and its axes are moved in the same way: if a
parameter is joined from several variables, or is a range of one, so is its state. Amounts that are added to a variable
(forget_bias) are not added to its slots. The package `optimizers` interprets the state and converts it to torch's form.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.distributed.shards import is_dtensor
from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError
from torch_tfckpt.format.object_graph import ObjectGraph
from torch_tfckpt.format.tensor_slice import shape_text
from torch_tfckpt.models.auxiliary.named_kinds import Kinds
from torch_tfckpt.models.auxiliary.named_optimizers import NamedOptimizers, Owner
from torch_tfckpt.models.auxiliary.named_slots import stem_of
from torch_tfckpt.models.auxiliary.saved_optimizers import how_to_restore
from torch_tfckpt.models.layers.assembly import Source, SourcePart
from torch_tfckpt.models.targets import Target
from torch_tfckpt.optimizers.kinds import CONVERTED, OptimizerKind, is_default_name, kind_called, kind_of, likely_kind
from torch_tfckpt.optimizers.slots import is_lettered, is_optimizer, slot_variables
from torch_tfckpt.optimizers.stored_optimizer import StoredOptimizer
from torch_tfckpt.optimizers.tensorflow import FoundSlot, StatePlan, plan_state
from torch_tfckpt.saveables.identity import Identity, identity_of
from torch_tfckpt.saveables.load_report import SemanticFinding
from torch_tfckpt.saveables.spread_state import spread
from torch_tfckpt.text import listed, quoted
from torch_tfckpt.values import value_dtype

_LISTED: Final = 4  # keys in a message

_Loaded = tuple[Target, Source]
ReadPart = Callable[[Source, Sequence[str], str, Any], torch.Tensor]


@dataclass(frozen=True, slots=True)
class SlotPlan:
    """State to load into an optimizer."""

    state: StatePlan
    loaded: Mapping[Identity, _Loaded]
    remarks: Sequence[str] = ()
    findings: Sequence[SemanticFinding] = ()

    @property
    def keys(self) -> dict[str, dict[str, str]]:
        """Parameter name -> name of an entry of its state -> stored key, or keys: "q/kernel/Adam + k/kernel/Adam"."""
        keys: dict[str, dict[str, str]] = {}
        for slot in self.state.slots:
            target, _ = self.loaded[identity_of(slot.parameter)]
            keys.setdefault(target.name, {})[slot.state] = " + ".join(slot.keys)
        return keys

    @property
    def stored_keys(self) -> list[str]:
        """The keys to read as a whole, each once: not those of parameters that are spread over ranks."""
        wholes = [slot for slot in self.state.slots if self.loaded[identity_of(slot.parameter)][0].spread is None]
        return list(dict.fromkeys(key for slot in wholes for key in slot.keys))

    @property
    def missing(self) -> list[str]:
        """Names of loaded parameters whose required optimizer state is not stored."""
        return [self.loaded[identity_of(parameter)][0].name for parameter in self.state.missing]

    def state_dict(self, values: Mapping[str, torch.Tensor], read_part: ReadPart | None = None) -> dict[str, Any]:
        """Return the argument for the optimizer's load_state_dict.

        Args:
            values: Stored key -> tensor as stored, for `stored_keys`.
            read_part: Returns this rank's part of a slot, from its source, its keys, and the name and DTensor of the
                parameter. None: no parameter is spread over ranks.
        """
        turned: list[torch.Tensor] = []
        for slot in self.state.slots:
            target, source = self.loaded[identity_of(slot.parameter)]
            if (tensor := target.spread) is not None:
                assert read_part is not None
                part = read_part(source.of_slots(), slot.keys, target.name, tensor)
                turned.append(spread(tensor, target.name, part))
                continue
            value = source.of_slots().assemble([values[key] for key in slot.keys]).contiguous()
            # A part of a larger tensor would keep all of its memory in use.
            own = value if value.untyped_storage().nbytes() == value.nbytes else value.clone()
            turned.append(spread(target.tensor, target.name, own) if is_dtensor(target.tensor) else own)
        return self.state.state_dict(turned, keep_others=True)


def plan_slots(
    reader: CheckpointReader,
    optimizer: torch.optim.Optimizer,
    loaded: Sequence[tuple[Target, Source]],
    kinds: Kinds,
    prefix: str,
    *,
    filled: Sequence[Target] = (),
    accept: Collection[str] = (),
) -> SlotPlan:
    """Find the stored state of the loaded parameters. Changes nothing, and reads only scalars.

    Args:
        kinds: The kinds of all variables of the checkpoint.
        prefix: Common prefix of the names of the module, for a hint.
        filled: Tensors that are filled with a constant, because TensorFlow does not store them.
        accept: Names of findings that the caller accepts.

    Raises:
        UnimplementedError: the optimizer, or the stored one, is of a kind that cannot be converted.
        InvalidArgumentError: slots of two optimizers for one variable; a slot whose shape or kind of dtype differs from
            its variable's; momentum that Keras scaled by a learning rate that is not stored; a counter that is not a
            number; a layout that changes values.
        NotFoundError: the number of steps taken is not stored.
    """
    kind = kind_of(optimizer)
    if kind is None:
        raise UnimplementedError(
            f"load_model: optimizer {type(optimizer).__name__}: only the state of {', '.join(CONVERTED)} can be "
            f"loaded. {how_to_restore(reader, optimizer, prefix) or 'Omit optimizer'}"
        )
    known = {identity_of(target.tensor): (target, source) for target, source in loaded}
    parameters = [known[identity] for identity in map(identity_of, _parameters(optimizer)) if identity in known]
    if reader.object_graph is None:
        stored, slots, remarks = _find_by_name(reader, optimizer, kind, parameters, kinds)
    else:
        stored, slots, remarks = _find_in_graph(reader, reader.object_graph, optimizer, kind, parameters)
    for slot in slots:
        _check(reader, known[identity_of(slot.parameter)][1], slot)
    plan = plan_state(optimizer, stored, slots, (target.tensor for target, _ in loaded), accept=accept)
    if plan.problem is not None:
        raise plan.problem
    for slot in plan.slots:
        _check_layouts(reader, known[identity_of(slot.parameter)][1], slot)
    remarks = [
        *(remarks if plan.missing else ()),
        *_remarks_on_values(reader, known, plan, slots, optimizer),
        *(message for name, message in plan.differences if not name),
    ]
    with_state = (known[identity_of(slot.parameter)][0] for slot in plan.slots)
    modules = tuple(dict.fromkeys(target.places[0].parent[:-1] for target in with_state))
    findings = [SemanticFinding(name, modules, message) for name, message in plan.differences if name]
    findings += _trained_constants(optimizer, filled)
    return SlotPlan(plan, known, remarks, [each._replace(accepted=each.name in accept) for each in findings])


def _remarks_on_values(
    reader: CheckpointReader,
    known: Mapping[Identity, _Loaded],
    plan: StatePlan,
    slots: Sequence[FoundSlot],
    optimizer: torch.optim.Optimizer,
) -> Iterator[str]:
    """Yield remarks on parameters that lack part of their state, and on state cast to a narrower type."""
    missing = set(map(identity_of, plan.missing))
    partial = [slot for slot in slots if identity_of(slot.parameter) in missing]
    if partial and plan.kind is not None:
        of = identity_of(partial[0].parameter)
        group = next(each for each in plan.groups if of in map(identity_of, each["params"]))
        stored = {slot.state for slot in partial if identity_of(slot.parameter) == of}
        lacking = sorted(plan.kind.required({**group, **plan.hyperparameters}) - stored)
        name = quoted(known[of][0].name)
        yield (
            f"only a part of the optimizer state of {name} is stored: {listed(partial[0].keys, 1)}, but "
            f"not {' and '.join(lacking)} of {type(optimizer).__name__}. Its options may differ from TensorFlow's"
        )
    for slot in plan.slots:
        dtype = value_dtype(slot.keys[0], reader.dtype(slot.keys[0]))
        if dtype.itemsize > slot.parameter.dtype.itemsize:
            yield (
                f"optimizer state is stored as {dtype}, and was converted to {slot.parameter.dtype}, the type of the "
                f"parameters, as torch's optimizers keep it"
            )
            break


def _trained_constants(optimizer: torch.optim.Optimizer, filled: Sequence[Target]) -> Iterator[SemanticFinding]:
    """Yield a finding on parameters of the optimizer for which TensorFlow has no variable."""
    trained = {identity_of(parameter) for parameter in _parameters(optimizer) if parameter.requires_grad}
    targets = [target for target in filled if identity_of(target.tensor) in trained]
    if not targets:
        return
    twice = [target for target in targets if any(each.origin.summed_with for each in target.origins)]
    more = (
        f" {quoted(twice[0].name)} would be trained in addition to another bias where TensorFlow has one, so their sum "
        f"would change twice as fast."
        if twice
        else ""
    )
    names = listed([target.name for target in targets], _LISTED)
    message = (
        f"the optimizer trains {names}, for which TensorFlow has no variable: they were filled with constants, and "
        f"have no optimizer state.{more} Set requires_grad=False, or omit them from the optimizer"
    )
    yield SemanticFinding("trained_constants", tuple(dict.fromkeys(t.places[0].parent[:-1] for t in targets)), message)


def _remark_on_kinds(optimizer: torch.optim.Optimizer, unclear: Sequence[str]) -> Iterator[str]:
    """Yield a remark on slots that belong to a different kind of optimizer, or to an unknown kind."""
    name = type(optimizer).__name__
    stems = dict.fromkeys(stem_of(key.rpartition("/")[2]) for key in unclear)
    called = {stem: found for stem in stems if (found := kind_called(stem)) is not None}
    shown = ", ".join(dict.fromkeys(found[0] for found in called.values()))
    if unclear and all(stem in called and is_default_name(stem) for stem in stems):
        yield (
            f"the stored optimizer state is that of {shown}, and {name} is a different kind of optimizer: "
            f"{listed(unclear, _LISTED)}"
        )
    elif unclear:
        yield (
            f"optimizer state of a different kind{f' ({shown})' if shown else ''}, or of a kind that is not stored: "
            f"{listed(unclear, _LISTED)}. If the kind is the same, rename the slots to TensorFlow's names (Adam and "
            f"Adam_1, Momentum, Adagrad), as in `tfckpt convert SRC DST --rename '/sgd$' /Momentum`"
        )


def check_optimizer(optimizer: torch.optim.Optimizer, targets: Sequence[Target], function: str = "load_model") -> None:
    """Raise InvalidArgumentError if none of the targets is a parameter of the optimizer."""
    held = {identity_of(target.tensor) for target in targets}
    if not any(identity_of(parameter) in held for parameter in _parameters(optimizer)):
        raise InvalidArgumentError(
            f"{function}: none of the parameters of optimizer {type(optimizer).__name__} is one of the model's. Create "
            f"the optimizer from model.parameters() of this model"
        )


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


_Found = tuple[StoredOptimizer, list[FoundSlot], list[str]]  # the last item: remarks on missing state


def _find_by_name(
    reader: CheckpointReader,
    optimizer: torch.optim.Optimizer,
    kind: OptimizerKind,
    parameters: Sequence[_Loaded],
    kinds: Kinds,
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
        of_parts: list[dict[str, str]] = []
        for key in source.keys:
            found = stored.states(kind, key)
            if len(found) > 1:
                raise InvalidArgumentError(
                    f"{reader.path}: {quoted(key)} has slots of {len(found)} optimizers, {_described(found)}, and "
                    f"it is unclear which ones to load. Omit optimizer"
                )
            owners.update(dict.fromkeys(found))
            whole = [entry for states in found.values() for entry in states.items()]
            of_parts.append(dict([*stored.misshapen(kind, key), *whole]))
            unclear += [] if of_parts[-1] else stored.slots_of(key)
        slots += _of_all_parts(target, of_parts)
    if len(owners) > 1:
        raise InvalidArgumentError(
            f"{reader.path}: the slots belong to several optimizers: {_described(owners)}. Load the modules that they "
            f"train one at a time, each with an optimizer of its own, or omit optimizer"
        )
    lettered = any(is_lettered(key.rpartition("/")[2]) for slot in slots for key in slot.keys)
    owner = next(iter(owners), None)
    return stored.stored(kind, owner, lettered), slots, list(_remark_on_kinds(optimizer, unclear))


def _of_all_parts(target: Target, of_parts: Sequence[Mapping[str, str]]) -> Iterator[FoundSlot]:
    """Yield the slots that all variables of a parameter have."""
    for state in of_parts[0]:
        if all(state in states for states in of_parts):
            yield FoundSlot(target.tensor, state, tuple(states[state] for states in of_parts))


def _described(owners: Iterable[Owner]) -> str:
    return " and ".join(quoted("/".join(filter(None, owner))) for owner in owners)


def _find_in_graph(
    reader: CheckpointReader,
    graph: ObjectGraph,
    optimizer: torch.optim.Optimizer,
    kind: OptimizerKind,
    parameters: Sequence[_Loaded],
) -> _Found:
    """Find slots by the variables that the optimizer nodes in the graph refer to.

    Raises:
        InvalidArgumentError: there are slots of several optimizers.
    """
    nodes = [number for number, node in enumerate(graph.nodes) if is_optimizer(node)]
    stored: dict[str, dict[str, list[tuple[int, str]]]] = {}  # variable -> slot -> optimizers and keys
    for node in nodes:
        for slot in slot_variables(graph, node):
            variable, key = map(graph.value_key, (slot.original_variable_node_id, slot.slot_variable_node_id))
            if variable is not None and key is not None and key in reader:
                stored.setdefault(variable, {}).setdefault(slot.slot_name, []).append((node, key))
    slots: list[FoundSlot] = []
    owners: set[int] = set()
    others: set[int] = set()
    for target, source in parameters:
        of_parts: list[dict[str, str]] = []
        for variable in source.keys:
            of_parts.append({})
            for name, found in stored.get(variable, {}).items():
                others.update(node for node, _ in found)
                state = kind.state_of(name)
                if state is None:
                    continue
                if len(found) > 1:
                    names = _named(graph, (node for node, _ in found))
                    raise InvalidArgumentError(
                        f"{quoted(variable)} has a slot {quoted(name)} in each of {names}, and it is "
                        f"unclear which one to load. Omit optimizer"
                    )
                [(node, key)] = found
                owners.add(node)
                of_parts[-1][state] = key
        slots += _of_all_parts(target, of_parts)
    if len(owners) > 1:
        raise InvalidArgumentError(
            f"the slots belong to several optimizers: {_named(graph, sorted(owners))}. Omit optimizer"
        )
    if not owners and len(nodes) == 1 and not slot_variables(graph, nodes[0]):
        owners = set(nodes)  # the only optimizer has no slots, like SGD without momentum
    if not owners:
        remarks = [_of_other_kind(graph, node, optimizer) for node in sorted(others)]
        return StoredOptimizer(reader, "the optimizer", {}), [], remarks
    return StoredOptimizer.at(reader, graph, owners.pop()), slots, []


def _of_other_kind(graph: ObjectGraph, node: int, optimizer: torch.optim.Optimizer) -> str:
    """Return a remark on a stored optimizer that has none of the slots of this kind."""
    slots = sorted({slot.slot_name for slot in slot_variables(graph, node)})
    names, likely = ", ".join(map(quoted, slots)), likely_kind(slots)
    return (
        f"{graph.name(node)} has {names}, which {type(optimizer).__name__} does not have: it is a different kind of "
        f"optimizer{f' ({likely})' if likely else ''}"
    )


def _named(graph: ObjectGraph, nodes: Iterable[int]) -> str:
    return " and ".join(map(graph.name, nodes))


def _check(reader: CheckpointReader, source: Source, slot: FoundSlot) -> None:
    """Raise InvalidArgumentError if a slot does not fit its variable."""
    for part, key in zip(source.parts, slot.keys, strict=True):
        shape, wanted = reader.shape(key), reader.shape(part.read_key)
        dtype = value_dtype(key, reader.dtype(key))
        if shape != wanted or dtype.is_floating_point != slot.parameter.is_floating_point():
            kind = "" if shape != wanted else f" and dtype {dtype}"
            raise InvalidArgumentError(
                f"{reader.path}: slot {quoted(key)} of shape {shape_text(shape)}{kind} does not fit its variable "
                f"of shape {shape_text(wanted)}. Omit optimizer"
            )


def _check_layouts(reader: CheckpointReader, source: Source, slot: FoundSlot) -> None:
    """Raise InvalidArgumentError if functions that a rule gives as a layout do more than move elements.

    A slot of squared gradients, for one, must not change its sign with its variable.
    """
    for part, key in zip(source.of_slots().parts, slot.keys, strict=True):
        if part.layout.functions is not None and not _moves_only(part, reader.shape(part.read_key)):
            raise InvalidArgumentError(
                f"{reader.path}: {quoted(key)} cannot be converted: the function that is given as the layout of "
                f"{quoted(part.key)} changes values, and it is unknown what it would do to optimizer state. Omit "
                f"optimizer"
            )


def _moves_only(part: SourcePart, shape: Sequence[int]) -> bool:
    numbers = torch.arange(1, torch.Size(shape).numel() + 1, dtype=torch.float64, device="cpu").reshape(tuple(shape))
    try:
        moved = part.layout.to_torch(numbers.clone()).reshape(-1)
    except Exception:  # the function is the caller's
        return False
    return moved.numel() == numbers.numel() and torch.equal(moved.sort().values, numbers.reshape(-1))
