"""Convert the state of TensorFlow's optimizers to torch's: slots, number of steps, hyperparameters.

    tf.compat.v1.train    slots; global_step, or beta1_power and beta2_power
    Keras 2               slots; iter, learning_rate, beta_1, beta_2, momentum, rho, decay
    Keras 3               lists of slots; _iterations, _learning_rate

Contract (`kinds` has the names of the slots):

    units       everything is copied, except momentum that contains the learning rate. Keras's SGD accumulates
                v = momentum * v - rate * gradient, torch b = momentum * b + gradient, so b = -v / rate. TensorFlow's
                RMSprop also multiplies by the rate, so b = v / rate
    steps       the optimizer's own counter, then the program's, then the powers of Adam's betas; a guess is logged
    not equal   what torch computes differently is reported: see `differences`
    refused     a plan with a `problem` changes nothing

Source: tensorflow/python/training/*.py; tensorflow/core/kernels/training_ops.cc; keras/src/optimizers/*.py; in
tf_keras, optimizers/legacy/*.py.
"""

import logging
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import torch

from torch_tfckpt.errors import CheckpointError, InvalidArgumentError, NotFoundError, UnimplementedError
from torch_tfckpt.optimizers.differences import RATE_NOT_STORED, OptimizerDifference, differences
from torch_tfckpt.optimizers.kinds import (
    LR_IN_MOMENTUM,
    MAXIMA,
    MOMENTUM,
    NADAM,
    SGD,
    STEP,
    OptimizerKind,
    kind_called,
    kind_of,
    likely_kind,
)
from torch_tfckpt.optimizers.stored_optimizer import GLOBAL_STEP, StoredOptimizer, hyperparameters
from torch_tfckpt.saveables.identity import Identity, identity_of
from torch_tfckpt.text import quoted

# After this many steps Adam's bias corrections are 1 in float32. Assumed if the stored power of beta2 is zero and no
# counter is stored.
MANY_STEPS: Final = 100_000
_SMALLEST_POWER: Final = 1e-37  # float32 stores smaller numbers with fewer digits
_POWERS: Final = ("beta2_power", "beta1_power")  # the more precise one first
_log = logging.getLogger(__name__)


class FoundSlot(NamedTuple):
    """A stored slot, and the torch state tensor that it is converted to."""

    parameter: torch.Tensor
    state: str  # name in the parameter's state
    keys: tuple[str, ...]  # several if the parameter is joined from several variables


@dataclass(slots=True)
class StatePlan:
    """The planned new state of a torch optimizer.

    Attributes:
        kind: Its kind; None if TensorFlow has no such optimizer.
        known: The tensors that the checkpoint has values for.
        groups: The optimizer's groups that contain tensors in `known`.
        slots: The slots to read, of parameters for which all required slots are stored.
        missing: Parameters in `known` that lack a required slot.
        hyperparameters: The stored hyperparameters for `groups`, by torch's names.
        step: Number of steps; None if torch does not count them, or if it is unknown and not needed.
        product: Product of NAdam's momenta, if stored.
        rates: What the stored momentum of a parameter is divided by; without an entry, it is used unchanged.
        differences: What torch will compute differently from TensorFlow.
        problem: Why the state cannot be converted; if set, no part of the plan may be used.
    """

    optimizer: torch.optim.Optimizer
    kind: OptimizerKind | None
    known: set[Identity]
    groups: list[dict[str, Any]]
    slots: list[FoundSlot] = field(default_factory=list)
    missing: list[torch.Tensor] = field(default_factory=list)
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    step: float | None = None
    product: float | None = None
    rates: dict[Identity, float] = field(default_factory=dict)
    differences: list[OptimizerDifference] = field(default_factory=list)
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
            rate = self.rates.get(identity_of(slot.parameter)) if slot.state == MOMENTUM else None
            state[slot.state] = value if rate is None else value / rate
        for group in self.groups:
            for parameter in group["params"]:
                if identity_of(parameter) in new:
                    own = new[identity_of(parameter)]
                    own.update(self._numbers(parameter, {**group, **self.hyperparameters}))
                    # The stored run did not use amsgrad. TensorFlow would also start with maxima of zero.
                    if group.get("amsgrad") and MAXIMA not in own:
                        own[MAXIMA] = torch.zeros_like(own["exp_avg_sq"])
        packed = updated_state(self.optimizer, new, keep_others=keep_others)
        changed = set(map(id, self.groups))
        packed["param_groups"] = [
            {**group, **self.hyperparameters} if id(own) in changed else group
            for own, group in zip(self.optimizer.param_groups, packed["param_groups"], strict=True)
        ]
        return packed

    def _numbers(self, parameter: torch.Tensor, group: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Return the numbers in the new state of a parameter."""
        numbers = {} if self.step is None else {STEP: self.step}
        if self.step is None and self.kind is not None and self.kind.counts:
            # Only counted, and never used: any number will do.
            numbers = {} if STEP in self.optimizer.state.get(parameter, {}) else {STEP: 0.0}
        if self.kind is NADAM:
            beta, decay = float(group["betas"][0]), float(group["momentum_decay"])
            product = product_of_momenta(int(self.step or 0), beta, decay) if self.product is None else self.product
            numbers["mu_product"] = product
        return {name: torch.tensor(value, dtype=torch.float32, device="cpu") for name, value in numbers.items()}


def plan_state(
    optimizer: torch.optim.Optimizer,
    stored: StoredOptimizer,
    slots: Sequence[FoundSlot],
    parameters: Iterable[torch.Tensor],
    *,
    accept: Collection[str] = (),
) -> StatePlan:
    """Plan the conversion of a stored optimizer. Nothing is changed.

    Args:
        slots: The stored slots of parameters of `optimizer`.
        parameters: All tensors that the checkpoint has values for.
        accept: Names of differences that the caller accepts, even if they are otherwise refused.

    Raises:
        InvalidArgumentError: a counter or hyperparameter is not a real number.
        NotFoundError, DataLossError: a counter or hyperparameter is missing or damaged.

    Cost: reads a few scalars.
    """
    known = set(map(identity_of, parameters))
    groups = [group for group in optimizer.param_groups if not known.isdisjoint(map(identity_of, group["params"]))]
    plan = StatePlan(optimizer, kind_of(optimizer), known, groups)
    plan.problem = _other_kind(plan, stored)
    if plan.problem is not None:
        return plan
    plan.hyperparameters = hyperparameters(optimizer, stored)
    _choose_slots(plan, slots)
    _plan_rates(plan, stored, accept)
    if plan.kind is not None and plan.kind.counts:
        _plan_steps(plan, stored)
    if plan.kind is not None and plan.slots:
        stored_states = {slot.state for slot in slots}
        options = [{**group, **plan.hyperparameters} for group in plan.groups]
        plan.differences += differences(plan.kind, stored, options, plan.step, stored_states)
    return plan


def _message(stored: StoredOptimizer, finding: str) -> str:
    return f"{stored.reader.path}: {stored.name} {finding}. Omit the optimizer"


def _other_kind(plan: StatePlan, stored: StoredOptimizer) -> CheckpointError | None:
    """Return an error if the stored optimizer is of a different kind; None if it may be of this kind."""
    kind, name = plan.kind, type(plan.optimizer).__name__
    foreign = {slot for slot in stored.slots if kind is None or kind.state_of(slot) is None}
    called = kind_called(stored.called)
    if foreign:
        likely = called[0] if called is not None else likely_kind(stored.slots)
        finding = f"has {', '.join(map(quoted, sorted(foreign)))}, which {name} does not have"
        shown = f" ({likely})" if likely else ""
        return UnimplementedError(_message(stored, f"{finding}: it is a different kind of optimizer{shown}"))
    if called is not None and called[1] not in (None, kind) and stored.slots:
        finding = f"is the state of {called[0]}, and {name} is a different kind of optimizer"
        return UnimplementedError(_message(stored, finding))
    return None


def _choose_slots(plan: StatePlan, slots: Sequence[FoundSlot]) -> None:
    """Plan the slots of parameters for which all required slots are stored.

    torch's next step would fail for a parameter that lacks a moment.
    """
    if plan.kind is None:
        return
    found: dict[Identity, dict[str, FoundSlot]] = {}
    for slot in slots:
        found.setdefault(identity_of(slot.parameter), {})[slot.state] = slot
    for group in plan.groups:
        required = plan.kind.required({**group, **plan.hyperparameters})
        for parameter in group["params"] if required else ():  # SGD without momentum keeps no state
            own = found.get(identity_of(parameter), {})
            if own.keys() >= required:
                plan.slots += [slot for state, slot in own.items() if state in required or state == MAXIMA]
            elif identity_of(parameter) in plan.known:
                plan.missing.append(parameter)


def _plan_rates(plan: StatePlan, stored: StoredOptimizer, accept: Collection[str]) -> None:
    """Plan the learning rates by which the momentum is divided, if it contains them."""
    slots = [slot for slot in plan.slots if slot.state == MOMENTUM]
    # tf.compat.v1.train.MomentumOptimizer has momentum as in torch.
    if not slots or (plan.kind is SGD and not stored.is_keras):
        return
    sign, rate = (-1.0 if plan.kind is SGD else 1.0), plan.hyperparameters.get("lr")
    of = "Keras's SGD" if plan.kind is SGD else "TensorFlow's RMSprop"
    for group in plan.groups:
        if group.get(LR_IN_MOMENTUM):
            continue
        own = float(group["lr"]) if rate is None else float(rate)
        if rate is None and stored.is_keras and RATE_NOT_STORED not in accept:
            finding = f"is {of}, whose momentum contains the learning rate, but no learning rate is stored"
            more = (
                f", or set the optimizer's learning rate to that of the next step and pass "
                f"accept=({quoted(RATE_NOT_STORED)},)"
            )
            plan.problem = InvalidArgumentError(_message(stored, finding) + more)
            return
        if not own or not math.isfinite(own):
            finding = f"is {of}, whose momentum contains the learning rate, but the stored learning rate is {own:g}"
            plan.problem = InvalidArgumentError(_message(stored, finding))
            return
        plan.rates.update((identity_of(parameter), sign * own) for parameter in group["params"])
    if rate is None and plan.rates:
        rates = sorted({abs(each) for each in plan.rates.values()})
        message = (
            f"the momentum of {of} contains the learning rate, which is not stored. It was divided by the rate of this "
            f"optimizer, {', '.join(f'{each:g}' for each in rates)}, which must be TensorFlow's at this step"
        )
        plan.differences.append(OptimizerDifference(RATE_NOT_STORED, message))


def _plan_steps(plan: StatePlan, stored: StoredOptimizer) -> None:
    """Plan the number of steps. For Adagrad it is needed only if the learning rate decays."""
    assert plan.kind is not None
    betas = plan.groups[0].get("betas", ()) if plan.groups and plan.kind.needs_steps else ()
    plan.step = _count_steps(stored, tuple(map(float, betas)))
    decays = any(plan.hyperparameters.get("lr_decay", group.get("lr_decay")) for group in plan.groups)
    if not stored.corrects_bias and plan.slots:
        plan.step = max(plan.step or 0.0, float(MANY_STEPS))
    if plan.step is None and plan.slots and (plan.kind.needs_steps or decays):
        finding = "has no iter, global_step or beta2_power, so the optimizer's number of steps is unknown"
        plan.problem = NotFoundError(_message(stored, finding))
    plan.product = stored.read("u_product")
    plan.product = stored.read("momentum_cache") if plan.product is None else plan.product


def _count_steps(stored: StoredOptimizer, betas: Sequence[float]) -> float | None:
    """Return the number of steps, or None if it is unknown.

    The optimizer's own counter is preferred, then the program's, then the powers of Adam's betas.
    """
    steps = stored.read("iter")
    if steps is not None:
        return steps
    counts = {GLOBAL_STEP: stored.read(GLOBAL_STEP)}
    powers = {name: stored.read(name) for name in _POWERS if betas}
    for (name, power), beta in zip(powers.items(), reversed(betas), strict=False):
        if power is not None and not 0.0 <= power <= _SMALLEST_POWER:
            counts[name] = steps_of_power(power, beta)
    known = {name: count for name, count in counts.items() if count is not None}
    if not known and powers.get("beta2_power") is not None and "beta2_power" not in counts:
        known["beta2_power"] = MANY_STEPS
    path = stored.reader.path
    if len(set(known.values())) > 1:
        message = "%s: %s imply different numbers of steps for the betas %s. The first one is used"
        _log.warning(message, path, known, betas)
    elif len(known) == 1 and GLOBAL_STEP not in known:
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


def product_of_momenta(steps: int, beta: float, decay: float) -> float:
    """Return torch's mu_product of NAdam after this many steps."""
    product = 1.0
    for step in range(1, steps + 1):
        product *= beta * (1.0 - 0.5 * 0.96 ** (step * decay))
        if product < _SMALLEST_POWER:
            return 0.0
    return product


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
