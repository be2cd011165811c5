"""Convert the state of a torch optimizer to TensorFlow 1's form: slots, and powers of Adam's betas.

    Adam, AdamW   Adam, Adam_1; beta1_power, beta2_power
    SGD           Momentum, if it has momentum
    RMSprop       RMSProp, [RMSProp_1 if centered], and the momentum times the learning rate, zeros without momentum
    Adagrad       Adagrad
    Adadelta      Adadelta, Adadelta_1
    Adamax        AdaMax, AdaMax_1; beta1_power

This is the inverse of `tensorflow`. TensorFlow creates slots when its graph is built, torch at the first step:
a parameter without state gets TensorFlow's initial values.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError
from torch_tfckpt.optimizers.kinds import LR_IN_MOMENTUM, MOMENTUM, RMSPROP, STEP, OptimizerKind, kind_of
from torch_tfckpt.optimizers.slots import numbered_name
from torch_tfckpt.optimizers.stored_optimizer import GLOBAL_STEP
from torch_tfckpt.saveables.identity import Identity, identity_of

_INITIAL: Final[Mapping[tuple[str, str], float]] = {("RMSProp", "square_avg"): 1.0, ("Adagrad", "sum"): 0.1}


@dataclass(frozen=True, slots=True)
class WrittenState:
    """The state of an optimizer in TensorFlow's form.

    Attributes:
        slots: Last part of the names of slots, such as "Adam_1" -> values for the parameters.
        numbers: Name -> scalar: powers and the number of steps.
    """

    slots: Mapping[str, Mapping[Identity, torch.Tensor]]
    numbers: Mapping[str, torch.Tensor]


def state_to_tensorflow(optimizer: torch.optim.Optimizer) -> WrittenState:
    """Return the state of an optimizer in TensorFlow's form.

    Raises:
        UnimplementedError: TensorFlow 1 has no such optimizer, or not with these options.
        InvalidArgumentError: parameters have different numbers of steps or betas, but TensorFlow stores only one.
    """
    kind, name = kind_of(optimizer), type(optimizer).__name__
    groups = optimizer.param_groups
    if kind is None or not kind.in_order:
        raise UnimplementedError(f"save_model: TensorFlow 1 has no optimizer like {name}. Omit optimizer")
    if any(group.get("amsgrad") for group in groups):
        raise UnimplementedError(f"save_model: TensorFlow 1 has no {name} with amsgrad. Omit optimizer")
    if len({bool(group.get("centered")) for group in groups}) > 1:
        raise UnimplementedError(f"save_model: only some groups of this {name} are centered. Omit optimizer")
    centered = any(group.get("centered") for group in groups)
    in_order = kind.numbered(3) if centered else kind.in_order
    if kind is not RMSPROP and not any(kind.required(group) for group in groups):
        in_order = ()  # SGD without momentum
    slots: dict[str, dict[Identity, torch.Tensor]] = {}
    for number, state in enumerate(in_order):
        slots[numbered_name(kind.name, number)] = {
            identity_of(parameter): _value(optimizer, kind, group, parameter, state)
            for group in groups
            for parameter in group["params"]
        }
    return WrittenState(slots, dict(_numbers(optimizer, kind)))


def _value(
    optimizer: torch.optim.Optimizer, kind: OptimizerKind, group: Mapping[str, Any], parameter: torch.Tensor, state: str
) -> torch.Tensor:
    own = optimizer.state.get(parameter, {}).get(state)
    if not isinstance(own, torch.Tensor):
        return torch.full_like(parameter.detach(), _INITIAL.get((kind.name, state), 0.0))
    if kind is RMSPROP and state == MOMENTUM and not group.get(LR_IN_MOMENTUM):
        return own * float(group["lr"])
    return own


def _numbers(optimizer: torch.optim.Optimizer, kind: OptimizerKind) -> Iterator[tuple[str, torch.Tensor]]:
    steps = {float(state[STEP]) for state in optimizer.state.values() if STEP in state}
    if len(steps) > 1 and kind.needs_steps:
        shown = ", ".join(f"{step:.0f}" for step in sorted(steps))
        raise InvalidArgumentError(
            f"save_model: the parameters of {type(optimizer).__name__} have made different numbers of steps ({shown}), "
            f"but TensorFlow stores one. Omit optimizer"
        )
    if len(steps) == 1:
        yield GLOBAL_STEP, torch.tensor(int(next(iter(steps))), dtype=torch.int64, device="cpu")
    betas = {tuple(map(float, group["betas"])) for group in optimizer.param_groups} if kind.betas else set()
    if len(betas) > 1:
        raise InvalidArgumentError(
            f"save_model: the groups of {type(optimizer).__name__} have different betas, but TensorFlow stores one "
            f"power of each. Omit optimizer"
        )
    for own in betas:
        for number, beta in enumerate(own[: kind.betas], 1):
            # TensorFlow starts with the first power, and multiplies by beta after each step.
            power = beta ** (next(iter(steps), 0.0) + 1.0)
            yield f"beta{number}_power", torch.tensor(power, dtype=torch.float32, device="cpu")
