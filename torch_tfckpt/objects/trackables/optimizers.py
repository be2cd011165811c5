"""torch optimizers as nodes: slot variables, as in TensorFlow's optimizers, and the rest of the state.

    optimizer                                              slot variables m and v of model.weight
    model/weight/.OPTIMIZER_SLOT/optimizer/m/...           Adam's exp_avg
    optimizer/.ATTRIBUTES/py_state                         string: param_groups, steps, which slot is which tensor
    optimizer/beta1_power, optimizer/beta2_power           Adam's steps, in the form that TensorFlow's Adam needs

The string contains the whole state, and refers to slot variables by their keys; a torch optimizer is restored from it
bit for bit. The graph does not list the string: TensorFlow has no object to restore it into, so its `assert_consumed`
would fail.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch.nn.parameter import is_lazy

from torch_tfckpt.devices import HOST
from torch_tfckpt.distributed.shards import is_dtensor
from torch_tfckpt.errors import InvalidArgumentError, error_context
from torch_tfckpt.format.object_graph import PYTHON_STATE, checkpoint_key, object_path
from torch_tfckpt.format.tensor_slice import Shape, shape_text
from torch_tfckpt.objects.trackables.tensors import TensorTrackable
from torch_tfckpt.objects.trackables.trackable import StoredNode, Trackable
from torch_tfckpt.optimizers.kinds import ADAMS, STEP, kind_of
from torch_tfckpt.optimizers.slots import SlotName, number_nodes, slot_names, slot_variables
from torch_tfckpt.optimizers.stored_optimizer import StoredOptimizer
from torch_tfckpt.optimizers.tensorflow import FoundSlot, StatePlan, plan_state
from torch_tfckpt.saveables.identity import Identity, identity_of
from torch_tfckpt.saveables.optimizer_names import ParameterNames
from torch_tfckpt.saveables.optimizer_state import OptimizerState, stored_parameters
from torch_tfckpt.saveables.save_spec import SaveableObject, SaveSpec
from torch_tfckpt.saveables.spread_state import spread
from torch_tfckpt.saveables.stateful import state_to_restore, state_to_save, stored_state
from torch_tfckpt.saveables.variables import Variable
from torch_tfckpt.text import quoted
from torch_tfckpt.values import Value, is_plain_tensor, value_dtype

_log = logging.getLogger(__name__)


class Slot(NamedTuple):
    """One slot variable."""

    name: str
    full_name_suffix: str
    parameter: torch.Tensor
    tensor: torch.Tensor


class _Power(TensorTrackable):
    """A number that is computed for the checkpoint, and never restored."""

    @property
    def needs_values(self) -> bool:
        return False


class OptimizerTrackable(Trackable):
    """An optimizer. Its state is found by the paths of its parameters in the graph, not by position."""

    holds_values = True

    def __init__(self, target: torch.optim.Optimizer) -> None:
        super().__init__(target)
        self.optimizer = target

    @property
    def parameters(self) -> list[torch.Tensor]:
        """The parameters of all groups, in order."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def children(self) -> Iterable[tuple[str, object]]:
        """For Adam, the powers that TensorFlow's Adam stores, if all parameters have the same number of steps."""
        if not isinstance(self.optimizer, ADAMS):
            return
        steps = _numbers(state[STEP] for state in self.optimizer.state.values() if STEP in state)
        betas = {tuple(map(float, group["betas"])) for group in self.optimizer.param_groups}
        if len(steps) <= 1 and len(betas) == 1:
            step = steps.pop() if steps else 0.0
            for number, beta in enumerate(betas.pop(), 1):
                # TensorFlow starts with the first power, and multiplies by beta after each step.
                power = torch.tensor(beta ** (step + 1), dtype=torch.float32, device="cpu")
                yield f"beta{number}_power", _Power(Variable(power, f"beta{number}_power", trainable=False))

    def slots(self) -> list[Slot]:
        """Return all existing slot variables: state tensors with the shape of their parameter.

        Their dtypes must also be of the same kind: real floating-point, complex, or other. Masks, counters and 8-bit
        moments are therefore not slot variables.
        """
        names = slot_names(self.optimizer)
        return [
            Slot(*names.get(name, SlotName(name, name)), parameter, value)
            for parameter in self.parameters
            for name, value in self.optimizer.state.get(parameter, {}).items()
            if name != STEP and isinstance(value, torch.Tensor) and (is_plain_tensor(value) or is_dtensor(value))
            if value.shape == parameter.shape
            if _kind(value.dtype) == _kind(parameter.dtype)
        ]

    def state_to_save(
        self, path: str, paths: Mapping[Identity, str], keys: Mapping[int, str]
    ) -> Sequence[SaveableObject]:
        """Return the encoded state, and all tensors in the state that are not slot variables.

        Args:
            paths: Path of each tensor in the graph.
            keys: id of a slot variable's tensor -> key of the slot variable.

        Raises:
            InvalidArgumentError: a parameter is not in the graph.
            TypeError: state that could be stored only by pickling it.
        """
        key = checkpoint_key(path, PYTHON_STATE)
        return state_to_save(key, OptimizerState(self.optimizer, lambda: self._names(paths), path), keys)

    def stored_paths(self, stored: StoredNode) -> set[str]:
        """Return the paths of the parameters of the stored optimizer. Raises like `state_to_restore`."""
        key = checkpoint_key(stored.path, PYTHON_STATE)
        if key in stored.reader:
            _, state = stored_state(key, stored.reader)
            with error_context(f"{stored.reader.path}: state {quoted(key)}"):
                return stored_parameters(state)
        slots = slot_variables(stored.graph, stored.node_id)
        routes = (stored.graph.route(slot.original_variable_node_id) for slot in slots)
        return {object_path(route) for route in routes if route is not None}

    def state_to_restore(
        self,
        stored: StoredNode,
        paths: Mapping[Identity, str],
        later_paths: Callable[[], Mapping[Identity, str]],
        when_added: Callable[[set[str]], object],
    ) -> SaveableObject | None:
        """Return the saveable that restores the encoded state; None if TensorFlow wrote the checkpoint.

        Args:
            paths: Path in the checkpoint of each matched tensor.
            later_paths: Returns the current `paths`, for parameters that are added to the optimizer after the restore.
            when_added: Called with the paths of such parameters once their state is restored.

        Raises:
            NotFoundError, DataLossError: the state, or a tensor that it refers to, is missing or damaged.
            InvalidArgumentError: the state is for a different kind of optimizer, or for parameters of different shapes.

        If the stored parameters or groups differ from the optimizer's, for example because the model has grown, the
        parts that both have are restored, and a warning lists the differences: see `saveables.optimizer_state`.
        """
        key = checkpoint_key(stored.path, PYTHON_STATE)
        if key not in stored.reader:
            return None
        state = OptimizerState(
            self.optimizer,
            lambda: self._names_if_known(paths),
            f"{stored.reader.path}: {key}",
            later_names=lambda: self._names_if_known(later_paths()),
            when_added=when_added,
        )
        return state_to_restore(key, state, stored.reader)

    def _names_if_known(self, paths: Mapping[Identity, str]) -> ParameterNames:
        groups = self.optimizer.param_groups
        return ParameterNames([[paths.get(identity_of(each)) for each in group["params"]] for group in groups])

    def _names(self, paths: Mapping[Identity, str]) -> ParameterNames:
        names: list[list[str | None]] = []
        for number, group in enumerate(self.optimizer.param_groups):
            names.append([])
            for position, parameter in enumerate(group["params"]):
                path = paths.get(identity_of(parameter))
                if path is None:
                    raise InvalidArgumentError(
                        f"parameter {position} of param_groups[{number}], of shape {shape_text(parameter.shape)}, is "
                        f"not a tensor of this checkpoint, so its state cannot be stored. Add its module"
                    )
                names[-1].append(path)
        return ParameterNames(names)


def _kind(dtype: torch.dtype) -> tuple[bool, bool]:
    return dtype.is_floating_point, dtype.is_complex


def _numbers(steps: Iterable[torch.Tensor | float]) -> set[float]:
    """Return the numbers in scalar tensors, with one synchronization for each device."""
    by_device: dict[torch.device, list[torch.Tensor]] = {}
    for step in steps:
        number = step if isinstance(step, torch.Tensor) else torch.tensor(step, device="cpu")
        by_device.setdefault(number.device, []).append(number.detach().to(torch.float64))
    return {number for tensors in by_device.values() for number in torch.stack(tensors).tolist()}


def check_slots(stored: StoredNode, parameters: Mapping[int, torch.Tensor]) -> None:
    """Raise InvalidArgumentError if the shape or dtype of a slot variable does not fit its parameter.

    torch accepts any tensor as state, and fails at the next step.

    Args:
        parameters: Node id -> the tensor matched with it.
    """
    for slot in slot_variables(stored.graph, stored.node_id):
        parameter = parameters.get(slot.original_variable_node_id)
        key = stored.graph.value_key(slot.slot_variable_node_id)
        if parameter is None or is_lazy(parameter) or key is None or key not in stored.reader:
            continue  # `OptimizerState` raises an error for a parameter that is not initialised
        shape, dtype = stored.reader.shape(key), value_dtype(key, stored.reader.dtype(key))
        if shape != tuple(parameter.shape):
            raise InvalidArgumentError(
                f"{stored.reader.path}: Received incompatible tensor with shape {shape} for slot variable "
                f"{quoted(key)} of a parameter of shape {tuple(parameter.shape)}. Restore into the "
                f"parameters that were saved"
            )
        if _kind(dtype) != _kind(parameter.dtype):
            raise InvalidArgumentError(
                f"{stored.reader.path}: slot variable {quoted(key)} is {dtype}, but its parameter is "
                f"{parameter.dtype}. "
                f"Restore into the parameters that were saved"
            )


def state_from_tensorflow(
    optimizer: torch.optim.Optimizer, stored: StoredNode, parameters: Mapping[int, torch.Tensor]
) -> tuple[SaveableObject | None, Sequence[int]]:
    """Return a saveable that restores TensorFlow's optimizer state, and the ids of the restored nodes.

    If the state cannot be converted, the reason is logged, and the result is `(None, ())`.

    Args:
        parameters: Node id -> the tensor matched with it.

    Raises:
        InvalidArgumentError: a counter or hyperparameter is not a number.
        NotFoundError, DataLossError: such a value is missing or damaged.

    Cost: reads scalars.
    """
    kind = kind_of(optimizer)
    node_of: dict[str, int] = {}
    slots: list[FoundSlot] = []
    for slot in slot_variables(stored.graph, stored.node_id):
        key = stored.graph.value_key(slot.slot_variable_node_id)
        parameter = parameters.get(slot.original_variable_node_id)
        state = None if kind is None else kind.state_of(slot.slot_name)
        if state is not None and key is not None and parameter is not None:
            node_of[key] = slot.slot_variable_node_id
            slots.append(FoundSlot(parameter, state, (key,)))
    there = StoredOptimizer.at(stored.reader, stored.graph, stored.node_id)
    plan = plan_state(optimizer, there, slots, parameters.values())
    if plan.problem is not None:
        _log.warning("the state of an optimizer is not restored. %s", plan.problem)
        return None, ()
    for name, message in plan.differences:
        if name:
            _log.warning("%s: %s: %s", stored.reader.path, name, message)
    nodes = number_nodes(stored.graph, stored.node_id)
    used = [node_of[key] for slot in plan.slots for key in slot.keys]
    used += [nodes[name] for name in there.used if name in nodes]
    is_empty = not plan.slots and not plan.hyperparameters and plan.step is None
    return None if is_empty else _TensorFlowSaveable(plan, stored), used


class _TensorFlowSaveable(SaveableObject):
    """Restores slot variables into the state of a torch optimizer."""

    def __init__(self, plan: StatePlan, stored: StoredNode) -> None:
        specs = []
        for slot in plan.slots:
            (key,) = slot.keys
            template = slot.parameter if is_dtensor(slot.parameter) else None
            specs.append(SaveSpec(template, "", key, stored.reader.dtype(key), HOST))
        super().__init__(None, specs, stored.path)
        self._plan = plan

    def restore(self, restored_tensors: Sequence[Value], restored_shapes: Sequence[Shape] | None) -> None:
        values = [
            spread(spec.dtensor, spec.name, value) if spec.dtensor is not None else value
            for spec, value in zip(self.specs, restored_tensors, strict=True)
            if isinstance(value, torch.Tensor)
        ]
        self._plan.optimizer.load_state_dict(self._plan.state_dict(values, keep_others=False))
