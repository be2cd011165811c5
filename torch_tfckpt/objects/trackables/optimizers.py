"""torch optimizers as nodes: slot variables of their parameters, as TensorFlow's optimizers have them, and the rest.

    optimizer                                              slot variables m and v of model.weight
    model/weight/.OPTIMIZER_SLOT/optimizer/m/...           Adam's exp_avg
    optimizer/.ATTRIBUTES/py_state                         text: param_groups, steps, which slot is which tensor
    optimizer/beta1_power, optimizer/beta2_power           how far Adam has come, for TensorFlow's

The text is everything, with the slot variables under their keys for its tensors; torch restores it to the bit. The
graph does not list it: TensorFlow could restore it into nothing, and `assert_consumed` would fail there for no reason.

Spec: FORMATS 4, CONVERT 3.
"""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import torch

from torch_tfckpt.errors import InvalidArgumentError, error_context
from torch_tfckpt.format.object_graph import PYTHON_STATE, checkpoint_key, object_path
from torch_tfckpt.format.tensor_slice import shape_text
from torch_tfckpt.objects.trackables.tensors import TensorTrackable
from torch_tfckpt.objects.trackables.trackable import StoredNode, Trackable
from torch_tfckpt.saveables.identity import Identity, identity_of
from torch_tfckpt.saveables.optimizer_state import OptimizerState, plan_for_some, stored_parameters
from torch_tfckpt.saveables.save_spec import SaveableObject, SaveSpec
from torch_tfckpt.saveables.state_tree import flatten
from torch_tfckpt.saveables.stateful import state_to_restore, stored_state
from torch_tfckpt.saveables.variables import Variable
from torch_tfckpt.text import quoted
from torch_tfckpt.values import value_dtype


class SlotName(NamedTuple):
    """How TensorFlow calls a tensor of an optimizer's state."""

    slot: str  # in the object graph
    suffix: str  # of the variable's name, behind that of the variable it is for


MAXIMA: Final = "max_exp_avg_sq"  # Adam's, where amsgrad is on
_ADAM: Final = {
    "exp_avg": SlotName("m", "Adam"),
    "exp_avg_sq": SlotName("v", "Adam_1"),
    MAXIMA: SlotName("vhat", "vhat"),
}
# Name of a tensor in the state of a parameter -> TensorFlow's slot that holds the same numbers. Others keep torch's
# names: RMSprop's, say, mean something else in TensorFlow (CONVERT 3).
_SLOTS: Final[Mapping[type, Mapping[str, SlotName]]] = {
    torch.optim.Adam: _ADAM,
    torch.optim.AdamW: _ADAM,
    torch.optim.Adagrad: {"sum": SlotName("accumulator", "Adagrad")},
    torch.optim.SGD: {"momentum_buffer": SlotName("momentum", "Momentum")},
}
ADAMS: Final = (torch.optim.Adam, torch.optim.AdamW)
_log = logging.getLogger(__name__)
STEP: Final = "step"  # of some optimizers a tensor, and of the shape of a parameter that is a scalar


KNOWN_TO_TENSORFLOW: Final = tuple(_SLOTS)


def steps_of_power(power: float, beta: float) -> int | None:
    """How many steps Adam has made where it keeps beta**(steps + 1), as TensorFlow's does.

    None where nothing tells: in float32 the power of 0.9 becomes zero after 828 steps, that of 0.999 after 87,293.
    """
    if not 0.0 < power < 1.0 or not 0.0 < beta < 1.0:
        return None
    return max(0, round(math.log(power) / math.log(beta)) - 1)


def slot_names(optimizer: torch.optim.Optimizer) -> Mapping[str, SlotName]:
    """Name in the state -> TensorFlow's, where it has one."""
    return next((_SLOTS[kind] for kind in type(optimizer).__mro__ if kind in _SLOTS), {})


class Slot(NamedTuple):
    """One slot variable."""

    name: str
    full_name_suffix: str
    parameter: torch.Tensor
    tensor: torch.Tensor


class _Power(TensorTrackable):
    """A number that is computed for the checkpoint; nothing here needs it back."""

    @property
    def needs_values(self) -> bool:
        return False


class OptimizerTrackable(Trackable):
    """An optimizer. Its state is looked up by where its parameters stand in the graph, never by their positions."""

    def __init__(self, target: torch.optim.Optimizer) -> None:
        super().__init__(target)
        self.optimizer = target

    @property
    def holds_values(self) -> bool:
        return True

    @property
    def parameters(self) -> list[torch.Tensor]:
        """Of all groups, in order."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def children(self) -> Iterable[tuple[str, object]]:
        """For Adam the powers that TensorFlow's keeps, where all parameters have come equally far."""
        if not isinstance(self.optimizer, ADAMS):
            return
        steps = _numbers(state[STEP] for state in self.optimizer.state.values() if STEP in state)
        betas = {tuple(map(float, group["betas"])) for group in self.optimizer.param_groups}
        if len(steps) <= 1 and len(betas) == 1:
            step = steps.pop() if steps else 0.0
            for number, beta in enumerate(betas.pop(), 1):
                # TensorFlow multiplies after each step, and begins with the first power.
                power = torch.tensor(beta ** (step + 1), dtype=torch.float32)
                yield f"beta{number}_power", _Power(Variable(power, f"beta{number}_power", trainable=False))

    def slots(self) -> list[Slot]:
        """All slot variables there are now: tensors of the state that have the shape of their parameter and are numbers
        of its kind, neither masks nor counts, nor moments in 8 bits."""
        names = slot_names(self.optimizer)
        return [
            Slot(*names.get(name, SlotName(name, name)), parameter, value)
            for parameter in self.parameters
            for name, value in self.optimizer.state.get(parameter, {}).items()
            if name != STEP and isinstance(value, torch.Tensor) and value.shape == parameter.shape
            if _kind(value.dtype) == _kind(parameter.dtype)
        ]

    def state_to_save(
        self, path: str, paths: Mapping[Identity, str], keys: Mapping[int, str]
    ) -> Sequence[SaveableObject]:
        """The text and those of its tensors that are no slot variables.

        Args:
            paths: Where each tensor of the graph stands.
            keys: id of the tensor of a slot variable -> its key.

        Raises:
            InvalidArgumentError: a parameter is not in the graph.
            TypeError: state that could only be pickled.
        """
        key = checkpoint_key(path, PYTHON_STATE)
        text, tensors = flatten(OptimizerState(self.optimizer, lambda: self._names(paths)).value(), key, stored_as=keys)
        saveables = [SaveableObject(None, [SaveSpec(text, "", key)], key)]
        return saveables + [
            SaveableObject(None, [SaveSpec(tensor, "", name)], name) for name, tensor in tensors.items()
        ]

    def stored_paths(self, stored: StoredNode) -> set[str]:
        """Where the parameters stand that the stored optimizer has state for. Errors as `state_to_restore`."""
        key = checkpoint_key(stored.path, PYTHON_STATE)
        if key in stored.reader:
            state = stored_state(key, stored.reader)
            with error_context(f"{stored.reader.path}: state {quoted(key)}"):
                return stored_parameters(state)
        routes = (stored.graph.route(slot.original_variable_node_id) for slot in stored.node.slot_variables)
        return {object_path(route) for route in routes if route is not None}

    def state_to_restore(self, stored: StoredNode, paths: Mapping[Identity, str]) -> SaveableObject | None:
        """What takes the text and its tensors; None where the checkpoint has none, as those that TensorFlow wrote.

        Args:
            paths: Where each tensor here stands in the checkpoint, of those that do.

        Raises:
            NotFoundError, DataLossError: the text, or a tensor that it names, is missing or damaged.
            InvalidArgumentError: it is the state of another kind of optimizer, or of parameters of other shapes, or
                the same parameters are grouped otherwise.

        Where the parameters are not the same, as in a model that has grown, those that are in both get their state, and
        hyperparameters stay as they are here.
        """
        key = checkpoint_key(stored.path, PYTHON_STATE)
        if key not in stored.reader:
            return None
        whole = OptimizerState(self.optimizer, lambda: self._names(paths))
        return state_to_restore(key, _FittingState(self, whole, paths, f"{stored.reader.path}: {key}"), stored.reader)

    def _names(self, paths: Mapping[Identity, str]) -> list[list[str]]:
        names: list[list[str]] = []
        for number, group in enumerate(self.optimizer.param_groups):
            names.append([])
            for position, parameter in enumerate(group["params"]):
                path = paths.get(identity_of(parameter))
                if path is None:
                    raise InvalidArgumentError(
                        f"parameter {position} of param_groups[{number}], of shape {shape_text(parameter.shape)}, is "
                        f"none of the tensors of this checkpoint, so its state has no place. Add the module that has it"
                    )
                names[-1].append(path)
        return names


class _FittingState:
    """The whole state of an optimizer where the parameters are those stored; else, of what is in both.

    Args:
        whole: The state of all parameters.
        paths: Where each tensor here stands in the checkpoint, of those that do.
        place: For the log.
    """

    def __init__(
        self, optimizer: OptimizerTrackable, whole: OptimizerState, paths: Mapping[Identity, str], place: str
    ) -> None:
        self._optimizer, self._whole, self._paths, self._place = optimizer.optimizer, whole, paths, place
        self._here = {paths.get(identity_of(parameter)) for parameter in optimizer.parameters}
        self._in_both: int | None = None

    def value(self) -> object:
        """The whole state now."""
        return self._whole.value()

    def plan(self, stored: object) -> object:
        """InvalidArgumentError as OptimizerState.plan, or plan_for_some."""
        there = stored_parameters(stored)
        if self._here == there:
            return self._whole.plan(stored)
        self._in_both = len(self._here & there)
        return plan_for_some(self._optimizer, self._paths, stored)

    def load(self, planned: Any) -> None:
        """load_state_dict()."""
        if self._in_both is not None:
            _log.warning(
                "%s is of other parameters than the optimizer here: state of the %d that are in both is restored, and "
                "no hyperparameters",
                self._place,
                self._in_both,
            )
        self._whole.load(planned)


def _kind(dtype: torch.dtype) -> tuple[bool, bool]:
    return dtype.is_floating_point, dtype.is_complex


def _numbers(steps: Iterable[torch.Tensor | float]) -> set[float]:
    """The numbers in scalar tensors, with one wait for each device."""
    by_device: dict[torch.device, list[torch.Tensor]] = {}
    for step in steps:
        number = torch.as_tensor(step)
        by_device.setdefault(number.device, []).append(number.detach().to(torch.float64))
    return {number for tensors in by_device.values() for number in torch.stack(tensors).tolist()}


def check_slots(stored: StoredNode, parameters: Mapping[int, torch.Tensor]) -> None:
    """InvalidArgumentError where a slot variable cannot be one of the parameter that it is for.

    torch takes over any tensor as state, and fails at the next step.

    Args:
        parameters: Node id -> the tensor here that is bound to it.
    """
    for slot in stored.node.slot_variables:
        parameter, key = (
            parameters.get(slot.original_variable_node_id),
            stored.graph.value_key(slot.slot_variable_node_id),
        )
        if parameter is None or key is None or key not in stored.reader:
            continue
        shape, dtype = stored.reader.shape(key), value_dtype(key, stored.reader.dtype(key))
        if shape != tuple(parameter.shape):
            raise InvalidArgumentError(
                f"{stored.reader.path}: Received incompatible tensor with shape {shape} for slot variable "
                f"{quoted(key)} of a parameter of shape {tuple(parameter.shape)}. Restore into the "
                f"parameters that were saved"
            )
        if _kind(dtype) != _kind(parameter.dtype):
            raise InvalidArgumentError(
                f"{stored.reader.path}: slot variable {quoted(key)} is {dtype}, its parameter {parameter.dtype}. "
                f"Restore into the parameters that were saved"
            )


def updated_state(optimizer: torch.optim.Optimizer, new: Mapping[Identity, Mapping[str, Any]]) -> dict[str, Any]:
    """The optimizer's state_dict with the state of parameters that is `new`.

    The others lose theirs, which is of another time, where the optimizer makes new state at its next step. Adagrad
    makes it only when it is constructed.
    """
    packed = optimizer.state_dict()
    state = dict(packed["state"]) if not new or isinstance(optimizer, torch.optim.Adagrad) else {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for position, parameter in enumerate(parameters):
        values = new.get(identity_of(parameter))
        if values is not None:
            state[position] = {**packed["state"].get(position, {}), **values}
    return {**packed, "state": state}
