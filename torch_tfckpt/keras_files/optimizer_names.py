"""Names that Keras gives to an optimizer's variables in a .keras or .weights.h5 file.

Keras numbers the variables: 0 is the iteration, in Keras 3 1 is the learning rate unless it follows a schedule, and the
slots of all trained variables follow, in the order of the model. The configuration has this order, the file does not;
so without a configuration, at most the first two variables have names.

    Keras 3    adam/iteration, adam/learning_rate, adam/stem_kernel_momentum, adam/stem_kernel_velocity, ...
    Keras 2    iteration, Adam/m/stem/kernel, Adam/v/stem/kernel, ...

An optimizer that scales the loss has variables of its own before those of the optimizer in it, which are stored again
in a group of their own; these copies have no names.

Source: keras/src/optimizers, version 3.15, and tf_keras/src/optimizers, version 2.21: `build` of each optimizer.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.keras_files.contents import KerasContents, SavedArray, SavedGroup
from torch_tfckpt.keras_files.layers import INNER_OPTIMIZER, KerasLayer

_ITERATION: Final = "iteration"
_RATE: Final = "learning_rate"
_SCALING: Final = ("step_counter", "dynamic_scale")
_SCALERS: Final = ("LossScaleOptimizer", "LossScaleOptimizerV3")
_Groups = Sequence[tuple[Sequence[str], str]]
"""Groups of slots: the slots of one group alternate for each variable, and the next group comes after all variables. A
group with a setting exists only if the setting is true."""
_SLOTS: Final[Mapping[str, _Groups]] = {
    **dict.fromkeys(("Adam", "AdamW"), ((("momentum", "velocity"), ""), (("velocity_hat",), "amsgrad"))),
    **dict.fromkeys(("Lamb", "Nadam"), ((("momentum", "velocity"), ""),)),
    "Adamax": ((("momentum", "norm"), ""),),
    "SGD": ((("momentum",), "momentum"),),
    "RMSprop": ((("velocity",), ""), (("momentum",), "momentum"), (("average_gradient",), "centered")),
    "Adagrad": ((("accumulator",), ""),),
    "Adadelta": ((("accumulated_grad", "accumulated_delta_var"), ""),),
    "Lion": ((("momentum",), ""),),
    "Ftrl": ((("accumulator", "linear"), ""),),
}
_SLOTS_OF_KERAS_2: Final[Mapping[str, _Groups]] = {
    **{name: _SLOTS[name] for name in ("RMSprop", "Adagrad", "Adadelta", "Ftrl")},
    **dict.fromkeys(("Adam", "AdamW"), ((("m", "v"), ""), (("vhat",), "amsgrad"))),
    "Nadam": ((("m", "v"), ""),),
    "Adamax": ((("m", "u"), ""),),
    **dict.fromkeys(("SGD", "Lion"), ((("m",), ""),)),
}
_NAMELESS: Final = {"Nadam": ((),)}  # shapes of the variables at the end to which Keras 3 gives no lasting name


class TrainedVariable(NamedTuple):
    """A variable that the optimizer trains. Lists of these follow the order of the model."""

    path: str
    shape: Shape


def optimizer_names(
    optimizer: SavedGroup,
    contents: KerasContents,
    trained: Sequence[TrainedVariable] | None,
    *,
    has_scalars: bool,
) -> dict[str, str]:
    """Return number -> name for all variables of the optimizer; "" for those without a known name.

    Args:
        optimizer: The group `optimizer`.
        trained: All variables that are trained; None if their order is not known.
        has_scalars: Whether the model has a variable without dimensions, whose slots look like a learning rate.
    """
    group = optimizer.groups["vars"]
    numbers = sorted(group.arrays, key=lambda name: (len(name), name))
    result = dict.fromkeys(numbers, "")
    stored = [group.arrays[number] for number in numbers]
    if numbers != [str(number) for number in range(len(numbers))] or not stored or not _is_count(stored[0]):
        return result
    config = contents.config.optimizer if contents.config is not None else None
    if contents.keras_2:
        names = _names_in_keras_2(stored, config, trained)
    elif config is not None and config.class_name in _SCALERS:
        inner = optimizer.groups.get(INNER_OPTIMIZER)
        own = inner.groups.get("vars") if inner is not None else None
        names = _names_with_scaling(group.name, own.name if own is not None else "", stored, config, trained)
    else:
        names = _names(group.name, stored, config, trained, has_scalars=has_scalars)
    result.update(zip(numbers, names, strict=False))
    return result


def _names(
    prefix: str,
    stored: Sequence[SavedArray],
    config: KerasLayer | None,
    trained: Sequence[TrainedVariable] | None,
    *,
    has_scalars: bool = False,
    above: str = "",
) -> list[str]:
    """Return the names of the first variables in a file of Keras 3.

    Args:
        prefix: The name of the optimizer.
        above: The beginning of the names of slots, if the optimizer is part of another one.
    """
    if not prefix:
        return []
    names = [f"{prefix}/{_ITERATION}"]
    if config is None:
        return names + ([f"{prefix}/{_RATE}"] if _is_rate(stored[1:2]) and not has_scalars else [])
    if isinstance(config.settings.get(_RATE), int | float):
        if not _is_rate(stored[1:2]):
            return names
        names.append(f"{prefix}/{_RATE}")
    if trained is not None and config.class_name in _SLOTS and config.is_builtin:
        expected = [
            (f"{above}{prefix}/{each.path.replace('/', '_')}_{slot}", each.shape)
            for slot, each in _slots(_SLOTS[config.class_name], config.settings, trained)
        ]
        names += _if_shapes_agree(stored[len(names) :], expected, _NAMELESS.get(config.class_name, ()))
    return names


def _names_with_scaling(
    prefix: str,
    inner: str,
    stored: Sequence[SavedArray],
    config: KerasLayer,
    trained: Sequence[TrainedVariable] | None,
) -> list[str]:
    """Return the names in a file of Keras 3 whose optimizer scales the loss."""
    own = [f"{prefix}/{name}" for name in (_ITERATION, _RATE, *_SCALING)]
    described = config.inner.get(INNER_OPTIMIZER)
    if not prefix or len(stored) <= len(own) or not _is_rate(stored[1:2]) or not _is_count(stored[2]):
        return []
    if not _is_rate(stored[3:4]) or not _is_count(stored[4]) or not described:
        return []
    return own + _names(inner, stored[len(own) :], described[0], trained, above=f"{prefix}/")


def _names_in_keras_2(
    stored: Sequence[SavedArray], config: KerasLayer | None, trained: Sequence[TrainedVariable] | None
) -> list[str]:
    names, above = [_ITERATION], ""
    if config is not None and config.class_name in _SCALERS:
        described = config.inner.get(INNER_OPTIMIZER)
        config = described[0] if described else None
    elif config is not None:
        above = f"{config.name}/"
    if trained is not None and config is not None and config.class_name in _SLOTS_OF_KERAS_2 and config.is_builtin:
        expected = [
            (f"{above}{slot}/{each.path}", each.shape)
            for slot, each in _slots(_SLOTS_OF_KERAS_2[config.class_name], config.settings, trained)
        ]
        names += _if_shapes_agree(stored[1:], expected)
    return names


def _slots(
    of_class: _Groups, settings: Mapping[str, Any], trained: Sequence[TrainedVariable]
) -> Iterator[tuple[str, TrainedVariable]]:
    """Yield slot and variable in the order in which they are stored."""
    groups = [slots for slots, setting in of_class if not setting or bool(settings.get(setting))]
    if settings.get("gradient_accumulation_steps"):
        groups.insert(0, ("gradient_accumulator",))
    if settings.get("use_ema"):
        groups.insert(0, ("average",))
    for slots in groups:
        for each in trained:
            for slot in slots:
                yield slot, each


def _if_shapes_agree(
    stored: Sequence[SavedArray], expected: Sequence[tuple[str, Shape]], nameless: Sequence[Shape] = ()
) -> list[str]:
    """Return the expected names; none if the stored variables have other shapes."""
    shapes = [*(shape for _, shape in expected), *nameless]
    return [name for name, _ in expected] if [each.array.shape for each in stored] == shapes else []


def _is_count(saved: SavedArray) -> bool:
    return saved.array.shape == () and saved.array.dtype in (DataType.DT_INT64, DataType.DT_INT32)


def _is_rate(stored: Sequence[SavedArray]) -> bool:
    """Return whether there is a variable, which is a number that is not whole."""
    return bool(stored) and stored[0].array.shape == () and not _is_count(stored[0])
