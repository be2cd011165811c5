"""The state of TensorFlow's optimizers -> torch's: slot variables, how many steps were made, learning rate and betas.

    tf.compat.v1.train.AdamOptimizer   slots m, v; beta1_power, beta2_power
    Keras 2, OptimizerV2 Adam          slots m, v; iter, learning_rate, beta_1, beta_2, decay
    MomentumOptimizer                  slot momentum
    Keras 2 SGD                        slot momentum, which has -lr in it; iter, learning_rate, momentum, decay

What is not known here is left, and the status of the restore says so.

Spec: CONVERT 3.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import torch

from torch_tfckpt.devices import HOST
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.objects.trackables.optimizers import ADAMS, STEP, slot_names, steps_of_power, updated_state
from torch_tfckpt.objects.trackables.trackable import StoredNode
from torch_tfckpt.saveables.identity import Identity, identity_of
from torch_tfckpt.saveables.save_spec import SaveableObject, SaveSpec
from torch_tfckpt.text import quoted
from torch_tfckpt.values import Value, value_dtype

# Steps after which Adam's correction of its bias makes no difference in float32; taken where a power of beta has become
# zero and nothing else counts.
_MANY_STEPS: Final = 100_000
_EXACT_POWER: Final = 1e-30  # well above the numbers that float32 holds with fewer digits
_COUNTERS: Final = ("iter", "beta2_power", "beta1_power")  # the first that is there is taken
_SECOND: Final = "exp_avg_sq"
_MAXIMUM: Final = "max_exp_avg_sq"
_MOMENTS: Final = frozenset({"exp_avg", _SECOND})
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TensorFlowState:
    """What was found for a torch optimizer.

    Attributes:
        saveable: Takes it; None where nothing fits.
        node_ids: The nodes whose values it takes.
    """

    saveable: SaveableObject | None = None
    node_ids: Sequence[int] = field(default_factory=tuple)


def state_from_tensorflow(
    optimizer: torch.optim.Optimizer, stored: StoredNode, parameters: Mapping[int, torch.Tensor]
) -> TensorFlowState:
    """The state that a node of TensorFlow's has for `optimizer`.

    Args:
        parameters: Node id -> the tensor here that is bound to it.

    Raises:
        NotFoundError, DataLossError: a scalar that is read for this is missing or damaged.

    Cost: reads scalars.
    """
    names = {slot.slot: name for name, slot in slot_names(optimizer).items()}
    slots: list[_Slot] = []
    for slot in stored.node.slot_variables:
        key = stored.graph.value_key(slot.slot_variable_node_id)
        parameter = parameters.get(slot.original_variable_node_id)
        if slot.slot_name in names and key is not None and parameter is not None:
            slots.append(_Slot(slot.slot_variable_node_id, key, parameter, names[slot.slot_name]))
    if isinstance(optimizer, ADAMS):
        slots = _with_both_moments(slots)
    scalars = _Scalars(stored)
    settings = _settings(optimizer, scalars)
    step = _step(optimizer, scalars) if isinstance(optimizer, ADAMS) else None
    if isinstance(optimizer, ADAMS) and slots and step is None:
        _log.warning("%s: nothing tells how many steps %s has made; it is left", stored.reader.path, stored.path)
        return TensorFlowState()
    scale = 1.0
    if isinstance(optimizer, torch.optim.SGD) and "iter" in scalars and slots:
        rate = scalars.read("learning_rate") if "learning_rate" in scalars else 0.0
        if not rate:
            return TensorFlowState()
        scale = -1.0 / rate  # Keras adds -lr times the gradient, torch the gradient
    if not slots and not settings and step is None:
        return TensorFlowState(None, scalars.used)
    saveable = _TensorFlowSaveable(optimizer, stored, slots, step, scale, settings)
    return TensorFlowState(saveable, [*(slot.node_id for slot in slots), *scalars.used])


class _Slot(NamedTuple):
    """A slot variable that has its place in the optimizer."""

    node_id: int
    key: str
    parameter: torch.Tensor
    name: str  # in the parameter's state


def _with_both_moments(slots: Sequence[_Slot]) -> list[_Slot]:
    """Those of parameters that have all of _MOMENTS, without which Adam's next step fails."""
    names: dict[Identity, set[str]] = {}
    for slot in slots:
        names.setdefault(identity_of(slot.parameter), set()).add(slot.name)
    return [slot for slot in slots if names[identity_of(slot.parameter)] >= _MOMENTS]


class _Scalars:
    """The scalar children of an optimizer's node."""

    def __init__(self, stored: StoredNode) -> None:
        self._reader = stored.reader
        self._nodes = {child.local_name: child.node_id for child in stored.node.children}
        self._keys = {name: stored.graph.value_key(node_id) for name, node_id in self._nodes.items()}
        self.used: list[int] = []

    def __contains__(self, name: str) -> bool:
        key = self._keys.get(name)
        return key is not None and key in self._reader and self._reader.shape(key) == ()

    def read(self, name: str) -> float:
        """REQUIRES: it is there."""
        key = self._keys[name]
        assert key is not None
        value = self._reader.get_tensor(key)
        if not isinstance(value, torch.Tensor) or value.is_complex():
            found = value.dtype if isinstance(value, torch.Tensor) else "string"
            raise InvalidArgumentError(f"{self._reader.path}: {quoted(key)} is a {found} where a real number belongs")
        self.use(name)
        return float(value)

    def use(self, name: str) -> None:
        """Notes that it has found its place."""
        if self._nodes[name] not in self.used:
            self.used.append(self._nodes[name])


def _step(optimizer: torch.optim.Optimizer, scalars: _Scalars) -> float | None:
    """Steps made so far; None where nothing tells."""
    found = [name for name in _COUNTERS if name in scalars]
    for name in found:
        scalars.use(name)  # they all say the same
    if not found:
        return None
    value = scalars.read(found[0])
    if found[0] == "iter":
        return value
    betas = dict(zip(("beta1_power", "beta2_power"), map(float, optimizer.param_groups[0]["betas"]), strict=True))
    counts = {name: steps_of_power(scalars.read(name), betas[name]) for name in found}
    steps = counts[found[0]]
    # Smaller ones have lost digits, and with them a step or two.
    if len({counts[name] for name in found if scalars.read(name) > _EXACT_POWER}) > 1:
        _log.warning("%s tell different numbers of steps for the betas %s: others were used", counts, betas)
    if steps is None:
        _log.warning("%s is %g, which tells no number of steps; %d are assumed", found[0], value, _MANY_STEPS)
    return float(_MANY_STEPS if steps is None else steps)


def _settings(optimizer: torch.optim.Optimizer, scalars: _Scalars) -> dict[str, Any]:
    """Hyperparameters that Keras 2 stored and torch has too."""
    settings: dict[str, Any] = {}
    if "iter" not in scalars:
        return settings
    scalars.use("iter")
    if "learning_rate" in scalars:
        settings["lr"] = scalars.read("learning_rate")
    if isinstance(optimizer, ADAMS) and "beta_1" in scalars and "beta_2" in scalars:
        settings["betas"] = (scalars.read("beta_1"), scalars.read("beta_2"))
    if isinstance(optimizer, torch.optim.SGD) and "momentum" in scalars:
        settings["momentum"] = scalars.read("momentum")
    if "decay" in scalars and scalars.read("decay") != 0.0:
        _log.warning("the learning rate decayed in TensorFlow, which torch leaves to a scheduler")
    return settings


class _TensorFlowSaveable(SaveableObject):
    """Takes slot variables into the state of a torch optimizer."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        stored: StoredNode,
        slots: Sequence[_Slot],
        step: float | None,
        scale: float,
        settings: Mapping[str, Any],
    ) -> None:
        specs = []
        for slot in slots:
            dtype = stored.reader.dtype(slot.key)
            value_dtype(slot.key, dtype)
            specs.append(SaveSpec(None, "", slot.key, dtype, HOST))
        super().__init__(None, specs, stored.path)
        self._optimizer, self._slots = optimizer, slots
        self._step, self._scale, self._settings = step, scale, settings

    def restore(self, restored_tensors: Sequence[Value], restored_shapes: Sequence[Shape] | None) -> None:
        new: dict[Identity, dict[str, Any]] = {}
        for value, slot in zip(restored_tensors, self._slots, strict=True):
            assert isinstance(value, torch.Tensor), "its dtype was looked at"
            state = new.setdefault(identity_of(slot.parameter), {})
            state[slot.name] = value * self._scale if self._scale != 1.0 else value
            if self._step is not None:
                state[STEP] = torch.tensor(self._step, dtype=torch.float32)
        for group in self._optimizer.param_groups:
            for state in (new.get(identity_of(each), {}) for each in group["params"] if group.get("amsgrad")):
                # Not stored where TensorFlow went without it. It begins with zeros there, too.
                if _MAXIMUM not in state and _SECOND in state:
                    state[_MAXIMUM] = torch.zeros_like(state[_SECOND])
        packed = updated_state(self._optimizer, new)
        packed["param_groups"] = [{**group, **self._settings} for group in packed["param_groups"]]
        self._optimizer.load_state_dict(packed)
