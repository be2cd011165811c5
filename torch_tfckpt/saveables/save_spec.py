"""SaveSpec and SaveableObject: a value under a name, and the object that values are restored into. Grouping by device.

Source: tensorflow/python/training/saving/saveable_object.py; BaseSaverBuilder._GroupByDevices in
tensorflow/python/training/saver.py.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch.nn.parameter import is_lazy

from torch_tfckpt.devices import HOST, canonical_device
from torch_tfckpt.dtypes import data_type
from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_slice import Shape, TensorSlice, parse_shape_and_slice
from torch_tfckpt.text import quoted
from torch_tfckpt.values import Value, WritableValue

SpecValue = WritableValue | None


class SaveSpec:
    """One value of a checkpoint: what, under which name, which part.

    Args:
        tensor: A torch tensor, a numeric array, strings (bytes, str, an array of them), or a function without arguments
            that gives one, called each time `tensor` is read. None: there is no value yet.
        slice_spec: "" for a whole tensor; "4 5 0,2:-" where `tensor` is rows 0 and 1 of a tensor of shape [4, 5].
        name: Key in the checkpoint. May be changed later.
        dtype: Type to store under; None takes the value's. A function needs one.
        device: Where the value lives, in any spelling of `canonical_device`; None takes the value's. A function needs
            one.

    Raises:
        AssertionError: a function without dtype or device.
        InvalidArgumentError: no value that a checkpoint holds.
        UnimplementedError: TensorFlow has no such dtype.
    """

    def __init__(
        self,
        tensor: SpecValue | Callable[[], SpecValue],
        slice_spec: str,
        name: str,
        dtype: torch.dtype | DataType | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if callable(tensor) and (dtype is None or device is None):
            raise AssertionError(
                f"SaveSpec {quoted(name)}: a callable `tensor` needs both a dtype and a device, since it is not called "
                f"before its value is saved"
            )
        self._tensor = tensor
        self.slice_spec = slice_spec
        self.name = name
        self.dtype = _dtype(name, tensor, dtype)
        self.device = _device_of(tensor) if device is None else canonical_device(device)

    @property
    def tensor(self) -> SpecValue:
        """The value as it is now; a function is called each time."""
        return self._tensor() if callable(self._tensor) else self._tensor

    @property
    def shape(self) -> Shape | None:
        """Shape of the value now, without calling a function for it; None where it takes that, or there is no value."""
        value = self._tensor
        if isinstance(value, torch.Tensor | np.ndarray):
            return tuple(value.shape)
        return () if isinstance(value, str | bytes) else None

    def __repr__(self) -> str:
        dtype = self.dtype.name if self.dtype is not None else None
        return f"SaveSpec(name={self.name!r}, slice_spec={self.slice_spec!r}, dtype={dtype}, device={self.device!r})"


class SaveableObject:
    """Something that is saved as one or several values, and takes them back. To be derived from.

    Args:
        op: What is restored; two saveables with the same `op` cannot be saved under two names. None is like no other.
        specs: The values, in the order in which `restore` is given them. At least one.
        name: Under which texts and sorting know it; usually the name of its only spec.
    """

    def __init__(self, op: object, specs: Sequence[SaveSpec], name: str) -> None:
        self.op = op
        self.specs = list(specs)
        self.name = name

    @property
    def device(self) -> str:
        """Device of the first spec, in TensorFlow's spelling; "" where there are no specs."""
        return self.specs[0].device if self.specs else ""

    def check(self, shapes: Sequence[Shape], restored_shapes: Sequence[Shape] | None = None) -> None:
        """Says no, before anything is assigned anywhere, to values that `restore` could not take.

        Args:
            shapes: Of the values to come, one for each spec.
            restored_shapes: As `restore` will get them.

        Raises:
            InvalidArgumentError: `restore` would fail. This class objects to nothing.
        """

    def restore(self, restored_tensors: Sequence[Value], restored_shapes: Sequence[Shape] | None) -> object:
        """Takes the values, one for each spec.

        Args:
            restored_tensors: Tensors on any device; arrays of `bytes` for strings. They are the saveable's from now on.
            restored_shapes: Shapes to give them first, where the saver was made with `reshape=True`; else None.

        Raises:
            ValueError: of this class, always; those derived from it have their own.
        """
        raise ValueError("Calling an abstract method.")


def _dtype(name: str, tensor: object, dtype: torch.dtype | DataType | None) -> DataType | None:
    if isinstance(dtype, torch.dtype):
        return data_type(dtype, name)
    if dtype is not None or tensor is None:
        return dtype
    if isinstance(tensor, torch.Tensor):
        if is_lazy(tensor):
            raise InvalidArgumentError(
                f"tensor {quoted(name)} is not initialised yet: its shape is not known. Run the module once before"
            )
        return data_type(tensor.dtype, name)
    if isinstance(tensor, np.ndarray) and tensor.dtype.kind not in "OSUT":
        try:
            return data_type(torch.from_numpy(np.empty(0, tensor.dtype.newbyteorder("="))).dtype, name)
        except TypeError as error:
            raise UnimplementedError(f"tensor {quoted(name)}: numpy dtype {tensor.dtype} has no torch dtype") from error
    if isinstance(tensor, np.ndarray | str | bytes):
        return DataType.DT_STRING
    raise InvalidArgumentError(
        f"tensor {quoted(name)}: {type(tensor).__name__} is neither a tensor nor bytes nor str. Store a torch tensor"
    )


def _device_of(tensor: object) -> str:
    if tensor is None:
        return ""
    return canonical_device(tensor.device) if isinstance(tensor, torch.Tensor) else HOST


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
