"""Convert the state of TensorFlow's optimizers to torch's: slots, number of steps, hyperparameters.

    tf.compat.v1.train.AdamOptimizer       m, v; global_step, or beta1_power and beta2_power
    tf.compat.v1.train.MomentumOptimizer   momentum, as in torch
    tf.compat.v1.train.AdagradOptimizer    accumulator; global_step, if stored
    Keras 2 (OptimizerV2)                  slots; iter, learning_rate, beta_1, beta_2, momentum, decay
    Keras 3                                lists of slots; _iterations, _learning_rate

Keras's SGD accumulates v = momentum * v - learning_rate * gradient, torch b = momentum * b + gradient, so
b = -v / learning_rate. In Adam, TensorFlow's epsilon corresponds to torch's epsilon times sqrt(1 - beta2**step), so the
first steps differ.

Source: tensorflow/python/training/{adam,momentum,adagrad}.py; keras/src/optimizers/*.py; in tf_keras,
optimizers/legacy/*.py.
"""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import torch

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.errors import CheckpointError, InvalidArgumentError, NotFoundError, UnimplementedError
from torch_tfckpt.format.object_graph import ObjectGraph
from torch_tfckpt.optimizers.slots import ADAMS, MAXIMA, STEP, number_nodes, slot_names, slot_variables
from torch_tfckpt.saveables.identity import Identity, identity_of
from torch_tfckpt.text import quoted

# After this many steps Adam's bias corrections are 1 in float32. Assumed if the stored power of beta2 is zero and no
# counter is stored.
_MANY_STEPS: Final = 100_000
_SMALLEST_POWER: Final = 1e-37  # float32 stores smaller numbers with fewer digits
_GLOBAL_STEP: Final = "global_step"
_POWERS: Final = ("beta2_power", "beta1_power")  # the more precise one first
_log = logging.getLogger(__name__)


class FoundSlot(NamedTuple):
    """A stored slot, and the torch state tensor that it is converted to."""

    parameter: torch.Tensor
    state: str  # name in the parameter's state
    key: str


@dataclass(frozen=True, slots=True)
class StoredOptimizer:
    """An optimizer in a checkpoint.

    Attributes:
        name: Name for messages.
        keys: Name as in Keras 2 or TensorFlow 1 -> key of a counter or hyperparameter.
        slots: Names of all slots of the optimizer; empty for a name-based checkpoint, which does not record them.
        used: Names in `keys` that were read.
    """

    reader: CheckpointReader
    name: str
    keys: Mapping[str, str]
    slots: frozenset[str] = frozenset()
    used: set[str] = field(default_factory=set)

    @classmethod
    def at(cls, reader: CheckpointReader, graph: ObjectGraph, node_id: int) -> "StoredOptimizer":
        """Return the optimizer at a node of an object graph, with the program's global_step if it is unique."""
        keys = {name: graph.value_key(child) for name, child in number_nodes(graph, node_id).items()}
        named = (key for key in map(graph.value_key, range(len(graph.nodes))) if key is not None)
        counters = {key for key in named if key.partition("/.ATTRIBUTES/")[0].rpartition("/")[2] == _GLOBAL_STEP}
        if len(counters) == 1:
            keys.setdefault(_GLOBAL_STEP, counters.pop())
        slots = frozenset(slot.slot_name for slot in slot_variables(graph, node_id))
        return cls(reader, graph.name(node_id), {name: key for name, key in keys.items() if key is not None}, slots)

    def read(self, name: str) -> float | None:
        """Return a number; None if it is not stored. InvalidArgumentError if it is not a real number."""
        key = self.keys.get(name)
        if key is None or key not in self.reader or self.reader.shape(key) != ():
            return None
        value = self.reader.get_tensor(key)
        if not isinstance(value, torch.Tensor) or value.is_complex():
            found = value.dtype if isinstance(value, torch.Tensor) else "string"
            raise InvalidArgumentError(f"{self.reader.path}: {quoted(key)} should be a real number, but is {found}")
        self.used.add(name)
        return float(value)


@dataclass(slots=True)
class StatePlan:
    """The planned new state of a torch optimizer.

    Attributes:
        known: The tensors that the checkpoint has values for.
        groups: The optimizer's groups that contain tensors in `known`.
        slots: The slots to read, of parameters for which all required slots are stored.
        missing: Parameters in `known` that lack a required slot.
        hyperparameters: The stored hyperparameters for `groups`, by torch's names.
        step: Number of steps; None if torch does not count them, or if it is unknown and not needed.
        rate: The stored momentum is divided by -`rate`; None: it is used unchanged.
        problem: Why the state cannot be converted; if set, no part of the plan may be used.
    """

    optimizer: torch.optim.Optimizer
    known: set[Identity]
    groups: list[dict[str, Any]]
    slots: list[FoundSlot] = field(default_factory=list)
    missing: list[torch.Tensor] = field(default_factory=list)
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    step: float | None = None
    rate: float | None = None
    problem: CheckpointError | None = None

    def state_dict(self, values: Iterable[torch.Tensor], *, keep_others: bool) -> dict[str, Any]:
        """Return the argument for load_state_dict.

        Args:
            values: The values of `slots`, in torch's layout.
            keep_others: Whether parameters without slots keep their current state.
        """
        new: dict[Identity, dict[str, Any]] = {}
        for value, slot in zip(values, self.slots, strict=True):
            state = new.setdefault(identity_of(slot.parameter), {})
            state[slot.state] = value if self.rate is None else value / -self.rate
            if self.step is not None:
                state[STEP] = torch.tensor(self.step, dtype=torch.float32, device="cpu")
        for group in self.groups:
            for state in (new.get(identity_of(each), {}) for each in group["params"] if group.get("amsgrad")):
                # The stored run did not use amsgrad. TensorFlow would also start with maxima of zero.
                if state and MAXIMA not in state:
                    state[MAXIMA] = torch.zeros_like(state["exp_avg_sq"])
        packed = updated_state(self.optimizer, new, keep_others=keep_others)
        changed = set(map(id, self.groups))
        packed["param_groups"] = [
            {**group, **self.hyperparameters} if id(own) in changed else group
            for own, group in zip(self.optimizer.param_groups, packed["param_groups"], strict=True)
        ]
        return packed


def plan_state(
    optimizer: torch.optim.Optimizer,
    stored: StoredOptimizer,
    slots: Sequence[FoundSlot],
    parameters: Iterable[torch.Tensor],
) -> StatePlan:
    """Plan the conversion of a stored optimizer. Nothing is changed.

    Args:
        slots: The stored slots of parameters of `optimizer`.
        parameters: All tensors that the checkpoint has values for.

    Raises:
        InvalidArgumentError: a counter or hyperparameter is not a real number.
        NotFoundError, DataLossError: a counter or hyperparameter is missing or damaged.

    Cost: reads a few scalars.
    """
    known = set(map(identity_of, parameters))
    groups = [group for group in optimizer.param_groups if not known.isdisjoint(map(identity_of, group["params"]))]
    plan = StatePlan(optimizer, known, groups)
    foreign = stored.slots - {name.slot for name in slot_names(optimizer).values()}
    if foreign:
        finding = f"has {', '.join(map(quoted, sorted(foreign)))}, which {type(optimizer).__name__} does not have"
        plan.problem = UnimplementedError(_message(stored, f"{finding}: it is a different kind of optimizer"))
        return plan
    plan.hyperparameters = _hyperparameters(optimizer, stored)
    _choose_slots(plan, slots)
    if isinstance(optimizer, torch.optim.SGD):
        _plan_rate(plan, stored)
    elif isinstance(optimizer, (*ADAMS, torch.optim.Adagrad)):
        _plan_steps(plan, stored)
    if "vhat" in stored.slots and not any(group.get("amsgrad") for group in plan.groups):
        _log.warning("%s: %s used amsgrad, but this optimizer does not", stored.reader.path, stored.name)
    return plan


def _message(stored: StoredOptimizer, finding: str) -> str:
    return f"{stored.reader.path}: {stored.name} {finding}. Omit the optimizer"


def _hyperparameters(optimizer: torch.optim.Optimizer, stored: StoredOptimizer) -> dict[str, Any]:
    """Return the hyperparameters that Keras stored and torch also has."""
    steps = stored.read("iter")
    if steps is None:
        return {}
    found: dict[str, Any] = {"lr": stored.read("learning_rate")}
    decay = stored.read("decay") or 0.0
    if isinstance(optimizer, torch.optim.Adagrad):
        found["lr_decay"] = decay  # same definition as in Keras
    elif found["lr"] is not None and decay:
        found["lr"] /= 1.0 + decay * steps
        _log.warning(
            "%s: the stored learning rate decays. The optimizer uses the rate of the next step, %g; to continue the "
            "decay, use a scheduler",
            stored.reader.path,
            found["lr"],
        )
    if isinstance(optimizer, ADAMS):
        betas = stored.read("beta_1"), stored.read("beta_2")
        found["betas"] = None if None in betas else betas
    if isinstance(optimizer, torch.optim.SGD):
        found["momentum"] = stored.read("momentum")
    return {name: value for name, value in found.items() if value is not None}


def _choose_slots(plan: StatePlan, slots: Sequence[FoundSlot]) -> None:
    """Plan the slots of parameters for which all required slots are stored.

    torch's next step would fail for a parameter that lacks a moment.
    """
    found: dict[Identity, dict[str, FoundSlot]] = {}
    for slot in slots:
        found.setdefault(identity_of(slot.parameter), {})[slot.state] = slot
    required = slot_names(plan.optimizer).keys() - {MAXIMA}
    for group in plan.groups:
        if not plan.hyperparameters.get("momentum", group.get("momentum", True)):
            continue  # SGD without momentum keeps no state
        for parameter in group["params"]:
            own = found.get(identity_of(parameter), {})
            if own.keys() >= required:
                plan.slots += own.values()
            elif identity_of(parameter) in plan.known:
                plan.missing.append(parameter)


def _plan_rate(plan: StatePlan, stored: StoredOptimizer) -> None:
    """Plan the learning rate by which the momentum is divided."""
    if not plan.slots or "iter" not in stored.keys:  # tf.compat.v1.train.MomentumOptimizer: momentum as in torch
        return
    plan.rate = plan.hyperparameters.get("lr")
    if not plan.rate or not math.isfinite(plan.rate):
        rate = "no learning rate is stored" if plan.rate is None else f"the stored learning rate is {plan.rate:g}"
        finding = f"is Keras's SGD, whose momentum contains the learning rate, but {rate}"
        plan.problem = InvalidArgumentError(_message(stored, finding))


def _plan_steps(plan: StatePlan, stored: StoredOptimizer) -> None:
    """Plan the number of steps. For Adagrad it is needed only if the learning rate decays."""
    adam = isinstance(plan.optimizer, ADAMS)
    plan.step = _count_steps(stored, tuple(map(float, plan.groups[0]["betas"] if adam and plan.groups else ())))
    decays = any(plan.hyperparameters.get("lr_decay", group.get("lr_decay")) for group in plan.groups)
    if plan.step is None and plan.slots and (adam or decays):
        finding = "has no iter, global_step or beta2_power, so the optimizer's number of steps is unknown"
        plan.problem = NotFoundError(_message(stored, finding))


def _count_steps(stored: StoredOptimizer, betas: Sequence[float]) -> float | None:
    """Return the number of steps, or None if it is unknown.

    The optimizer's own counter is preferred, then the program's, then the powers of Adam's betas.
    """
    steps = stored.read("iter")
    if steps is not None:
        return steps
    counts = {_GLOBAL_STEP: stored.read(_GLOBAL_STEP)}
    powers = {name: stored.read(name) for name in _POWERS if betas}
    for (name, power), beta in zip(powers.items(), reversed(betas), strict=False):
        if power is not None and not 0.0 <= power <= _SMALLEST_POWER:
            counts[name] = steps_of_power(power, beta)
    known = {name: count for name, count in counts.items() if count is not None}
    if not known and powers.get("beta2_power") is not None and "beta2_power" not in counts:
        known["beta2_power"] = _MANY_STEPS
    path = stored.reader.path
    if len(set(known.values())) > 1:
        message = "%s: %s imply different numbers of steps for the betas %s. The first one is used"
        _log.warning(message, path, known, betas)
    elif len(known) == 1 and _GLOBAL_STEP not in known:
        [(name, count)] = known.items()
        message = "%s: the optimizer's step %d is computed from %s = %g, assuming the betas %s"
        _log.warning(message, path, count, name, powers[name], betas)
    return next(map(float, known.values()), None)


def steps_of_power(power: float, beta: float) -> int | None:
    """Return the number of steps after which TensorFlow's Adam stores `power` = beta**(steps + 1).

    None if it cannot be known: in float32, the power becomes zero after 828 steps for beta 0.9, after 87,293 for 0.999.
    """
    if not 0.0 < power < 1.0 or not 0.0 < beta < 1.0:
        return None
    return max(0, round(math.log(power) / math.log(beta)) - 1)


def updated_state(
    optimizer: torch.optim.Optimizer, new: Mapping[Identity, Mapping[str, Any]], *, keep_others: bool = False
) -> dict[str, Any]:
    """Return the optimizer's state_dict with the state in `new`, whose keys identify the parameters.

    Unless `keep_others`, the state of other parameters is removed, because it is from a different point in training;
    the optimizer creates new state at its next step. Adagrad creates state only when it is constructed, so its state
    is kept.
    """
    packed = optimizer.state_dict()
    keep = keep_others or not new or isinstance(optimizer, torch.optim.Adagrad)
    state = dict(packed["state"]) if keep else {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for position, parameter in enumerate(parameters):
        values = new.get(identity_of(parameter))
        if values is not None:
            state[position] = {**packed["state"].get(position, {}), **values}
    return {**packed, "state": state}
