"""The slots that save_model writes for the state of an optimizer: named and laid out like their variables.

    fc/kernel/Adam, fc/kernel/Adam_1      the state of "fc.weight", transposed like fc/kernel
    beta1_power, beta2_power, global_step

A variable into which several parameters are joined, such as the kernel of an LSTM, has slots if the optimizer trains
one of them. This is the inverse of `optimizer_slots`.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.nn.parameter import is_lazy

from torch_tfckpt.models.auxiliary.optimizer_slots import check_optimizer
from torch_tfckpt.models.rules.rule_set import RuleSet
from torch_tfckpt.models.targets import Target
from torch_tfckpt.models.written_variables import written_variables
from torch_tfckpt.optimizers.to_tensorflow import state_to_tensorflow
from torch_tfckpt.saveables.identity import identity_of
from torch_tfckpt.values import WritableValue


def written_slots(
    targets: Sequence[Target], optimizer: torch.optim.Optimizer, naming: str, mapper: RuleSet | None
) -> dict[str, WritableValue]:
    """Return key -> value for the state of the parameters of a module.

    Args:
        naming, mapper: As for `written_variables`.

    Raises:
        InvalidArgumentError: the optimizer has none of the module's parameters, or parameters with different numbers of
            steps.
        UnimplementedError: TensorFlow 1 has no such optimizer.
    """
    check_optimizer(optimizer, targets, "save_model")
    state = state_to_tensorflow(optimizer)
    trained = {identity_of(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    marks = [_filled(target, 1.0 if identity_of(target.tensor) in trained else 0.0) for target in targets]
    marked = written_variables(marks, naming, mapper, of_slots=True) if state.slots else {}
    with_slots = {key for key, mark in marked.items() if isinstance(mark, torch.Tensor) and bool(mark.any())}
    values: dict[str, WritableValue] = {}
    for suffix, of_parameters in state.slots.items():
        slots = [
            _filled(target, 0.0) if identity_of(target.tensor) not in trained
            else _with_tensor(target, of_parameters[identity_of(target.tensor)])
            for target in targets
        ]  # fmt: skip
        written = written_variables(slots, naming, mapper, of_slots=True)
        values.update({f"{key}/{suffix}": value for key, value in written.items() if key in with_slots})
    return {**values, **state.numbers}


def _filled(target: Target, number: float) -> Target:
    if is_lazy(target.tensor):
        return target
    return _with_tensor(target, torch.full((), number, device="cpu").expand(target.tensor.shape))


def _with_tensor(target: Target, tensor: torch.Tensor) -> Target:
    return replace(target, places=[replace(place, tensor=tensor.detach()) for place in target.places])
