"""Names that Keras 3 gives to an optimizer's variables in a .keras or .weights.h5 file.

Keras numbers the variables: 0 is the iteration, 1 the learning rate, and the slots of all trained variables follow, in
the order of the model. The configuration has this order, the file does not; so without a configuration, only the first
two variables have names.

    adam/iteration, adam/learning_rate, adam/stem_kernel_momentum, adam/stem_kernel_velocity, ...

Source: keras/src/optimizers, version 3.15: `build` of each optimizer.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.keras_files.contents import KerasContents, SavedArray, SavedGroup
from torch_tfckpt.keras_files.layers import KerasLayer

_FIRST: Final = ("iteration", "learning_rate")
# Groups of slots: the slots of one group alternate for each variable, and the next group comes after all variables.
# A group with a setting exists only if the setting is true.
_SLOTS: Final[Mapping[str, Sequence[tuple[Sequence[str], str]]]] = {
    **dict.fromkeys(("Adam", "AdamW"), ((("momentum", "velocity"), ""), (("velocity_hat",), "amsgrad"))),
    "Lamb": ((("momentum", "velocity"), ""),),
    "Adamax": ((("momentum", "norm"), ""),),
    "SGD": ((("momentum",), "momentum"),),
    "RMSprop": ((("velocity",), ""), (("momentum",), "momentum"), (("average_gradient",), "centered")),
    "Adagrad": ((("accumulator",), ""),),
    "Adadelta": ((("accumulated_grad", "accumulated_delta_var"), ""),),
    "Lion": ((("momentum",), ""),),
    "Ftrl": ((("accumulator", "linear"), ""),),
}


class TrainedVariable(NamedTuple):
    """A variable that the optimizer trains. Lists of these follow the order of the model."""

    path: str
    shape: Shape


def optimizer_names(
    group: SavedGroup, contents: KerasContents, trained: Sequence[TrainedVariable] | None
) -> dict[str, str]:
    """Return number -> name for all variables of the optimizer; "" for those without a known name.

    Args:
        group: `optimizer/vars`.
        trained: All variables that are trained; None if their order is not known.
    """
    numbers = sorted(group.arrays, key=lambda name: (len(name), name))
    result = dict.fromkeys(numbers, "")
    stored = [group.arrays[number] for number in numbers]
    if numbers != [str(number) for number in range(len(numbers))] or contents.keras_2:
        return result
    prefix = group.name
    if not prefix or len(stored) < 2 or not _is_scalar(stored[0], whole=True) or not _is_scalar(stored[1], whole=False):
        return result
    names = [f"{prefix}/{name}" for name in _FIRST]
    config = contents.config.optimizer if contents.config is not None else None
    if trained is not None and config is not None and config.class_name in _SLOTS and config.is_builtin:
        expected = list(_slots(config, trained))
        shapes = [shape for _, shape in expected]
        if [each.array.shape for each in stored[2:]] == shapes:
            names += [f"{prefix}/{name}" for name, _ in expected]
    result.update(zip(numbers, names, strict=False))
    return result


def _slots(config: KerasLayer, trained: Sequence[TrainedVariable]) -> list[tuple[str, Shape]]:
    settings: Mapping[str, Any] = config.settings
    found: list[tuple[str, Shape]] = []
    groups: list[Sequence[str]] = [
        slots for slots, setting in _SLOTS[config.class_name] if not setting or bool(settings.get(setting))
    ]
    if settings.get("use_ema"):
        groups.insert(0, ("average",))
    if settings.get("gradient_accumulation_steps"):
        groups.insert(1 if settings.get("use_ema") else 0, ("gradient_accumulator",))
    for slots in groups:
        for path, shape in trained:
            found += [(f"{path.replace('/', '_')}_{slot}", shape) for slot in slots]
    return found


def _is_scalar(saved: SavedArray, *, whole: bool) -> bool:
    dtype = saved.array.dtype
    wholes = (DataType.DT_INT64, DataType.DT_INT32)
    return saved.array.shape == () and dtype is not None and (dtype in wholes) == whole
