"""The purpose of each tensor in a name-based checkpoint, from names, shapes and types.

    global_step, save_counter; integers without a scope          counters
    d_opt/beta1_power; learning_rate; loss scale                 optimizer state
    fc/kernel/Adam, training/SGD/moment_0                        optimizer state: see named_slots
    fc/kernel/ExponentialMovingAverage                           moving averages: see averages
    bn/renorm_mean, bn/renorm_stddev_weight, bn/moving_stddev    other: batch renormalization, next to bn/moving_mean
    bn/moving_mean/biased, bn/moving_mean/local_step             other: zero debiasing of an average
    fc/kernel/replica_1                                          other: the copy on another device
    accuracy/total, accuracy/count                               other: a metric, if both are scalars
    strings, and the tensors of a state that a string describes  other, or optimizer state
    fc/u, and everything else                                    weights

The vector `u` of spectral normalization counts as a weight: the layer computes with kernel / sigma, and sigma is
computed from `u`, so a module without `u` would compute something else.
"""

import enum
import re
from collections.abc import Collection, Container, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Final

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.models.auxiliary.averages import AVERAGE, OUTPUT, StoredAverages, located
from torch_tfckpt.models.auxiliary.named_slots import NamedSlot, find_slots

COUNTERS: Final = re.compile(r"(?:.*/)?(?:global_step(?:_\d+)?|save_counter)", re.DOTALL)
POWERS: Final = re.compile(r"(?:(.*)/)?beta[12]_power(?:_\d+)?", re.DOTALL)
WHOLE_NUMBERS: Final = {
    DataType.DT_INT8, DataType.DT_INT16, DataType.DT_INT32, DataType.DT_INT64,
    DataType.DT_UINT8, DataType.DT_UINT16, DataType.DT_UINT32, DataType.DT_UINT64,
}  # fmt: skip
# Variables of batch renormalization, next to moving_mean and moving_variance.
RENORM: Final = ("renorm_mean", "renorm_stddev", "renorm_mean_weight", "renorm_stddev_weight", "moving_stddev")
MOVING: Final = ("moving_mean", "moving_variance")
_FLOATS: Final = {
    DataType.DT_HALF, DataType.DT_BFLOAT16, DataType.DT_FLOAT, DataType.DT_DOUBLE, DataType.DT_COMPLEX64,
    DataType.DT_COMPLEX128,
}  # fmt: skip
# Counters and hyperparameters of optimizers of Keras, by which the scope of such an optimizer is recognised.
_KERAS_COUNTERS: Final = ("iter", "iterations", "iteration")
_KERAS_ROOT_COUNTERS: Final = ("iteration", "iterations")
_KERAS_NUMBERS: Final = ("decay", "learning_rate", "lr", "beta_1", "beta_2", "rho", "momentum")
_KERAS_SCOPE: Final = re.compile(r"(training/[^/]+)/.+", re.DOTALL)
# tf.keras, contrib.mixed_precision and copies of them.
_LOSS_SCALE: Final = ("current_loss_scale", "good_steps", "num_good_steps", "num_bad_steps")
_REPLICA: Final = re.compile(r"replica_\d+")
_METRIC: Final = ("total", "count")


class VariableKind(enum.StrEnum):
    """Purpose of a variable."""

    WEIGHT = "weights"
    AVERAGE = "moving averages"
    OPTIMIZER = "optimizer state"
    COUNTER = "counters"
    OTHER = "other"


@dataclass(slots=True)
class Kinds:
    """The kinds of all variables of a checkpoint.

    Attributes:
        of: Key -> kind, in the order of the keys.
        slots: Key -> slot, for the slots of a name-based checkpoint.
        keras_scopes: Scopes of optimizers of Keras, in a name-based checkpoint.
    """

    of: dict[str, VariableKind]
    slots: dict[str, NamedSlot] = field(default_factory=dict)
    keras_scopes: Collection[str] = ()

    @property
    def uncertain(self) -> list[str]:
        """Keys of tensors that count as slots only because they have the shape of their variable."""
        return [key for key, slot in self.slots.items() if not slot.is_certain]


@dataclass(frozen=True, slots=True)
class NamedTensors:
    """The tensors of a name-based checkpoint that are not strings, by their names without ":0"."""

    keys: Mapping[str, str]
    shapes: Mapping[str, Shape]
    dtypes: Mapping[str, DataType]
    strings: Collection[str]  # keys of strings

    @classmethod
    def of(cls, reader: CheckpointReader) -> "NamedTensors":
        """Return the tensors. Cost: looks at the entries of all tensors."""
        dtypes = {key: reader.dtype(key) for key in reader.keys()}
        strings = {key for key, dtype in dtypes.items() if dtype == DataType.DT_STRING}
        keys = {key.removesuffix(OUTPUT): key for key in dtypes if key not in strings}
        shapes = {name: reader.shape(key) for name, key in keys.items()}
        return cls(keys, shapes, {name: dtypes[key] for name, key in keys.items()}, strings)

    def is_number(self, name: str) -> bool:
        """Return whether a tensor with this name is stored, and has one element."""
        return name in self.shapes and prod(self.shapes[name]) == 1 and len(self.shapes[name]) < 2

    def is_whole_number(self, name: str) -> bool:
        """Return whether a tensor with this name is stored, and is an integer scalar."""
        return name in self.shapes and self.shapes[name] == () and self.dtypes[name] in WHOLE_NUMBERS

    def keras_scopes(self) -> set[str]:
        """Return the scopes of Keras's optimizers.

        Such a scope has a counter and a learning rate; or is below "training/"; or, since Keras 2.11, contains nothing
        but slots, such as Adam/m/fc/kernel, while the counter is stored without a scope.
        """
        found = self._scopes_of_slots() if any(map(self.is_whole_number, _KERAS_ROOT_COUNTERS)) else set()
        for name in self.keys:
            scope, _, last = name.rpartition("/")
            rates = ("learning_rate", "lr", "decay")
            if scope and last in _KERAS_COUNTERS and any(self.is_number(f"{scope}/{rate}") for rate in rates):
                found.add(scope)
            training = _KERAS_SCOPE.fullmatch(name)
            if training is not None and self._is_of_keras(training[1]):
                found.add(training[1])
        return found

    def _scopes_of_slots(self) -> set[str]:
        """Return the scopes that contain only names like m/fc/kernel, with the shape of fc/kernel."""
        found: dict[str, bool] = {}
        for name, shape in self.shapes.items():
            scope, _, rest = name.partition("/")
            slot, _, variable = rest.partition("/")
            if rest:
                is_slot = bool(slot) and self.shapes.get(variable) == shape and scope[:1].isupper()
                found[scope] = found.get(scope, True) and is_slot
        return {scope for scope, has_only_slots in found.items() if has_only_slots}

    def _is_of_keras(self, scope: str) -> bool:
        """Return whether a scope below "training/" has a counter or a hyperparameter of an optimizer."""
        return any(self.is_number(f"{scope}/{name}") for name in (*_KERAS_COUNTERS, *_KERAS_NUMBERS))


def named_kinds(reader: CheckpointReader, averages: StoredAverages) -> Kinds:
    """Return the kinds of the tensors of a name-based checkpoint.

    Raises:
        DataLossError: the entry of a tensor is damaged.

    Cost: looks at the entries of all tensors.
    """
    tensors = NamedTensors.of(reader)
    strings = tensors.strings
    longest = max(map(len, strings), default=0)
    averaged = averages.keys
    keras_scopes = tensors.keras_scopes()
    known: dict[str, VariableKind] = {}
    for name, key in tensors.keys.items():
        kind = _described_by(key, strings, longest)
        if kind is None and key in averaged:
            kind = VariableKind.AVERAGE
        kind = kind or _number(name, tensors, keras_scopes) or _companion(name, tensors)
        if kind is not None:
            known[name] = kind
    slots = _slots(tensors, averages, known, keras_scopes)

    def kind_of(key: str) -> VariableKind:
        name = key.removesuffix(OUTPUT)
        if key in strings:
            return VariableKind.OTHER
        return known.get(name, VariableKind.OPTIMIZER if name in slots else VariableKind.WEIGHT)

    by_key = {tensors.keys[name]: slot for name, slot in slots.items()}
    return Kinds({key: kind_of(key) for key in reader.keys()}, by_key, keras_scopes)


def _slots(
    tensors: NamedTensors, averages: StoredAverages, known: Container[str], keras_scopes: Collection[str]
) -> dict[str, NamedSlot]:
    """Return the slots among the tensors whose kind is not known, by name."""
    variables = dict(tensors.shapes)
    for variable, average in averages.of.items():
        variables.setdefault(variable.removesuffix(OUTPUT), tensors.shapes[average.removesuffix(OUTPUT)])
    powers = (POWERS.fullmatch(name) for name in tensors.keys if "_power" in name)
    scopes = {power[1] for power in powers if power is not None and power[1]}
    counters = (name.rpartition("/") for name in tensors.keys if tensors.is_whole_number(name))
    scopes.update(scope for scope, _, last in counters if scope and last in _KERAS_COUNTERS)
    scopes.update(scope[1] for scope in map(_KERAS_SCOPE.fullmatch, tensors.keys) if scope is not None)
    floats = {
        name: shape for name, shape in tensors.shapes.items() if name not in known and tensors.dtypes[name] in _FLOATS
    }
    return find_slots(floats, variables, scopes=scopes, keras_scopes=keras_scopes)


def _number(name: str, tensors: NamedTensors, keras_scopes: Container[str]) -> VariableKind | None:
    """Return the kind of a counter, or of a hyperparameter of an optimizer; None for other tensors."""
    if COUNTERS.fullmatch(name):
        return VariableKind.COUNTER
    if not tensors.is_number(name):
        return None
    scope, _, last = name.rpartition("/")
    is_whole = tensors.is_whole_number(name)
    if is_whole and ((not scope and "." not in name) or last in _KERAS_COUNTERS):
        return VariableKind.COUNTER
    if POWERS.fullmatch(name) or last == "learning_rate" or name == "lr":
        return VariableKind.OPTIMIZER
    if scope in keras_scopes:
        if last in _KERAS_COUNTERS:
            return VariableKind.COUNTER
        counts = any(f"{scope}/{counter}" in tensors.keys for counter in _KERAS_COUNTERS)
        return VariableKind.OPTIMIZER if counts or last in _KERAS_NUMBERS else None
    siblings = (f"{scope}/{other}" if scope else other for other in _LOSS_SCALE)
    if last in _LOSS_SCALE or (last == "loss_scale" and any(map(tensors.is_number, siblings))):
        return VariableKind.COUNTER if is_whole else VariableKind.OPTIMIZER
    return None


def _companion(name: str, tensors: NamedTensors) -> VariableKind | None:
    """Return OTHER for a tensor that accompanies a variable, such as its copy on another device; else None."""
    scope, _, last = name.rpartition("/")
    shape = tensors.shapes[name]
    if not scope:
        return None
    is_companion = False
    if last in RENORM:
        moving = {tensors.shapes.get(f"{scope}/{other}") for other in MOVING}
        is_companion = shape in moving or (moving != {None} and last.endswith("_weight") and tensors.is_number(name))
    elif last in _METRIC:
        is_companion = all(tensors.shapes.get(f"{scope}/{other}") == () for other in _METRIC)
    elif last in ("biased", "local_step") or _REPLICA.fullmatch(last):
        base = scope.removesuffix(AVERAGE)
        of = [tensors.shapes[variable] for each in {scope, base} for variable, _ in located(each, tensors.shapes)]
        if last == "local_step":
            is_companion = tensors.is_number(name) and (bool(of) or f"{scope}/biased" in tensors.shapes)
        else:
            has_step = last == "biased" and tensors.is_number(f"{scope}/local_step")
            is_companion = shape in of or (not of and has_step)
    return VariableKind.OTHER if is_companion else None


def _described_by(key: str, strings: Container[str], longest: int) -> VariableKind | None:
    """Return the kind of a tensor that belongs to a state described by a string; None for other tensors."""
    for beginning in _beginnings(key, longest):
        if beginning in strings:
            of_optimizer = key.startswith("/state/", len(beginning))
            return VariableKind.OPTIMIZER if of_optimizer else VariableKind.OTHER
    return None


def _beginnings(key: str, longest: int) -> Iterator[str]:
    """Yield each prefix of a key that ends before a slash.

    The keys of a state's tensors begin with the key of the string that describes the state.
    """
    at = key.find("/")
    while 0 <= at <= longest:
        yield key[:at]
        at = key.find("/", at + 1)
