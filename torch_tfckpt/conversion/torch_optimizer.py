"""Convert the optimizer state of a checkpoint into an entry of a .pt file, next to the model's state.

    {"model": {"fc.weight": ...}, "optimizer": {"state": {0: {"exp_avg": ...}}, "param_groups": [...]}}

    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])     # of torch.optim.Adam(model.parameters())

Contract:

    which optimizer     the one for which the checkpoint has the most slots. Adam and AdamW have the same state
    which parameters    all of `model.parameters()`, in one group, as most programs create it
    layouts, units      as `load_model(optimizer=...)` converts them
    hyperparameters     those that are stored; the others are torch's defaults, and a remark says so
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import nn

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.conversion.deferred import DeferredTensor
from torch_tfckpt.errors import CheckpointError, InvalidArgumentError, NotFoundError
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.models.auxiliary.named_kinds import VariableKind
from torch_tfckpt.models.auxiliary.optimizer_slots import SlotPlan, plan_slots
from torch_tfckpt.models.load_plan import LoadPlan
from torch_tfckpt.optimizers.kinds import ADAMS, CONVERTED, TORCH_CLASSES
from torch_tfckpt.saveables.identity import identity_of
from torch_tfckpt.text import listed

MODEL: Final = "model."  # prefix of the names of the module's tensors
_PART: Final = "optimizer.state."
_LISTED: Final = 8
# Arguments that have no default in torch, or without which the optimizer has no state.
_ARGUMENTS: Final[Mapping[type, dict[str, Any]]] = {torch.optim.SGD: {"lr": 0.001, "momentum": 0.9}}

Outcome = tuple[str, Shape, str]  # name in the target, shape there, transform


@dataclass(slots=True)
class TorchOptimizerState:
    """State of one optimizer.

    Attributes:
        plan: The slots to convert.
        names: Stored key of each slot -> what becomes of it.
        remarks: For the report.
    """

    optimizer: torch.optim.Optimizer
    plan: SlotPlan
    names: dict[str, list[Outcome]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    _packed: dict[str, Any] = field(default_factory=dict)

    def values(self, deferred: Callable[[str], DeferredTensor]) -> dict[str, torch.Tensor]:
        """Return the tensors of the state, by their names in the target.

        Args:
            deferred: Returns the stored tensor of a key.
        """
        self._packed = self.plan.state_dict({key: deferred(key) for key in self.plan.stored_keys})
        found: dict[str, torch.Tensor] = {}
        for number, state in self._packed["state"].items():
            for name, value in state.items():
                if isinstance(value, torch.Tensor) and not value.is_meta:
                    found[f"{_PART}{number}.{name}"] = value
        return found

    def contents(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """Return what the file contains, given a stand-in for each of its tensors."""
        state: dict[int, dict[str, Any]] = {}
        for number, values in self._packed["state"].items():
            own = {name: tensors.pop(f"{_PART}{number}.{name}", value) for name, value in values.items()}
            if not any(isinstance(value, torch.Tensor) for value in own.values()):
                state[number] = own
        model = {name.removeprefix(MODEL): value for name, value in tensors.items()}
        return {"model": model, "optimizer": {"state": state, "param_groups": self._packed["param_groups"]}}


def optimizer_state(
    reader: CheckpointReader, model: nn.Module | None, plan: LoadPlan, *, strict: bool
) -> TorchOptimizerState:
    """Return the state of the optimizer that trained the variables of a module.

    Raises:
        InvalidArgumentError: no module is given, so the order of the parameters is unknown.
        NotFoundError: no state is stored for any torch optimizer; or, with `strict`, the state of some parameters is
            missing.
    """
    if model is None:
        raise InvalidArgumentError(
            "optimizer=True needs a module: torch numbers the state by the order of its parameters. Pass "
            "check=pkg.mod:factory"
        )
    best: tuple[int, TorchOptimizerState] | None = None
    reasons: dict[str, str] = {}
    for kind in TORCH_CLASSES:
        optimizer = kind(list(model.parameters()), **_ARGUMENTS.get(kind, {}))
        try:
            filled = [target for target, _ in plan.filled]
            slots = plan_slots(reader, optimizer, plan.loads, plan.kinds, plan.found.prefix, filled=filled)
        except CheckpointError as error:
            reasons[kind.__name__] = str(error)
            continue
        count = sum(map(len, slots.keys.values()))
        if count > (0 if best is None else best[0]):
            best = count, TorchOptimizerState(optimizer, slots)
    if best is None:
        stored = [key for key, found in plan.kinds.of.items() if found is VariableKind.OPTIMIZER]
        shown = f"Stored: {listed(stored, _LISTED)}. " if stored else ""
        why = "".join(f"\n  {name}: {reason}" for name, reason in reasons.items())
        raise NotFoundError(f"{reader.path}: no state is stored for {', '.join(CONVERTED)}. {shown}Omit optimizer{why}")
    state = best[1]
    if state.plan.missing and strict:
        raise NotFoundError(
            f"{reader.path}: no state of {type(state.optimizer).__name__} is stored for "
            f"{listed(state.plan.missing, _LISTED)}. Omit optimizer, or pass strict=False to convert the rest"
        )
    _describe(state)
    return state


def _describe(state: TorchOptimizerState) -> None:
    """Fill in the names and the remarks."""
    numbers = {id(each): number for number, each in enumerate(state.optimizer.param_groups[0]["params"])}
    for slot in state.plan.state.slots:
        number, shape = numbers[id(slot.parameter)], tuple(slot.parameter.shape)
        layout = state.plan.loaded[identity_of(slot.parameter)][1].layout.name
        for key in slot.keys:
            state.names.setdefault(key, []).append((f"{_PART}{number}.{slot.state}", shape, layout))
    kind = type(state.optimizer)
    defaults = {name: value for name, value in state.optimizer.defaults.items() if name in ("lr", "betas", "momentum")}
    unknown = [f"{name}={value}" for name, value in defaults.items() if name not in state.plan.state.hyperparameters]
    also = " or AdamW" if kind in ADAMS else ""
    state.remarks.append(
        f"the optimizer state is for torch.optim.{kind.__name__}{also} of model.parameters(): "
        f'optimizer.load_state_dict(checkpoint["optimizer"])'
    )
    if unknown:
        state.remarks.append(
            f"not stored, and set to torch's defaults in the optimizer state: {', '.join(unknown)}. Set them after "
            f"loading: for group in optimizer.param_groups: group[...] = ..."
        )
    state.remarks += [*state.plan.remarks, *map(str, state.plan.findings)]
