"""Saveables by device, and what their specs stand for.

Source: BaseSaverBuilder._GroupByDevices in tensorflow/python/training/saver.py; spec: SAVER 2.
"""

from collections.abc import Iterable, Iterator

from torch_tfckpt.bundle.values import WritableValue
from torch_tfckpt.errors import InvalidArgumentError, quoted
from torch_tfckpt.format.tensor_slice import Shape, TensorSlice, parse_shape_and_slice
from torch_tfckpt.saveables.save_spec import SaveableObject, SaveSpec


def group_by_devices(saveables: Iterable[SaveableObject]) -> list[tuple[str, list[SaveableObject]]]:
    """(device, saveables on it), in the order of the devices' names as text: GPU:10 comes before GPU:2.

    InvalidArgumentError where the specs of one saveable name several devices.
    """
    groups: dict[str, list[SaveableObject]] = {}
    for saveable in saveables:
        devices = {spec.device for spec in saveable.specs}
        if len(devices) > 1:
            raise InvalidArgumentError(
                f"All tensors of a saveable object must be on the same device: {saveable.name}: they are on "
                f"{', '.join(sorted(devices))}. Make one saveable object for each device"
            )
        groups.setdefault(devices.pop() if devices else "", []).append(saveable)
    return sorted(groups.items())


def specs_of(saveables: Iterable[SaveableObject]) -> Iterator[SaveSpec]:
    """The specs of all, in order."""
    return (spec for saveable in saveables for spec in saveable.specs)


def value_of(spec: SaveSpec) -> WritableValue:
    """The value to be saved; a function is called."""
    value = spec.tensor
    if value is None:
        raise InvalidArgumentError(f"tensor {quoted(spec.name)} has no value yet. Give it one, or leave it out")
    return value


def slice_of(spec: SaveSpec) -> tuple[Shape, TensorSlice]:
    """Full shape, and the slice of it that a spec with a slice stands for."""
    full_shape, part, _ = parse_shape_and_slice(spec.slice_spec)
    return full_shape, part
