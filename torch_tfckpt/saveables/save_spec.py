"""SaveSpec (one named value), SaveableObject (saved as one or several values), grouping by device.

Source: tensorflow/python/training/saving/saveable_object.py; BaseSaverBuilder._GroupByDevices in
tensorflow/python/training/saver.py.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from torch_tfckpt.devices import HOST, canonical_device
from torch_tfckpt.distributed.shards import any_dtensors, check_storable, is_dtensor, refuse_sharded
from torch_tfckpt.dtypes import data_type
from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_slice import Shape, TensorSlice, parse_shape_and_slice
from torch_tfckpt.text import counted, quoted
from torch_tfckpt.values import Value, WritableValue

SpecValue = WritableValue | None


class SaveSpec:
    """One value of a checkpoint: the tensor or a function that returns it, its key, and its slice.

    Args:
        tensor: A torch tensor, which may be a DTensor, a numeric array, strings (bytes, str, an array of them), or a
            function without arguments that returns such a value and is called each time `tensor` is read. None: there
            is no value yet.
        slice_spec: "" for a whole tensor; "4 5 0,2:-" if `tensor` is rows 0 and 1 of a tensor of shape [4, 5].
        name: Key in the checkpoint. May be changed later.
        dtype: Type to store; default: the value's. Required for a function.
        device: Device of the value, e.g. "cuda:0" or "/device:GPU:0"; default: the value's. Required for a function.

    Raises:
        AssertionError: a function without dtype or device.
        InvalidArgumentError: a value that a checkpoint cannot store.
        UnimplementedError: TensorFlow has no such dtype.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> spec = tfckpt.SaveSpec(torch.ones(2, 5), "4 5 0,2:-", "emb")
        >>> spec.shape, spec.dtype.name
        ((2, 5), 'DT_FLOAT')
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
        """The current value; a function is called each time."""
        return self._tensor() if callable(self._tensor) else self._tensor

    @property
    def dtensor(self) -> Any:
        """The tensor, if it is a DTensor; None otherwise, and for a function, which is not called."""
        return self._tensor if is_dtensor(self._tensor) else None

    @property
    def shape(self) -> Shape | None:
        """The current shape; None if there is no value, or for a function, which is not called."""
        value = self._tensor
        if isinstance(value, torch.Tensor | np.ndarray):
            return tuple(value.shape)
        return () if isinstance(value, str | bytes) else None

    def __repr__(self) -> str:
        dtype = self.dtype.name if self.dtype is not None else None
        return f"SaveSpec(name={self.name!r}, slice_spec={self.slice_spec!r}, dtype={dtype}, device={self.device!r})"


class SaveableObject:
    """Base class for objects that are saved as one or several values and restored from them.

    Args:
        op: The object that is restored. Two saveables with the same `op` cannot be saved under two names. This
            does not apply to None.
        specs: The values, in the order in which `restore` receives them. At least one.
        name: Name for sorting and messages; usually the name of its only spec.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> class Count(tfckpt.SaveableObject):
        ...     value = 3
        ...     def __init__(self):
        ...         current = lambda: torch.tensor(self.value)
        ...         spec = tfckpt.SaveSpec(current, "", "count", torch.int64, "cpu")
        ...         super().__init__(self, [spec], "count")
        ...     def restore(self, restored_tensors, restored_shapes):
        ...         self.value = int(restored_tensors[0])
        >>> count = Count()
        >>> saver = tfckpt.Saver([count])
        >>> path = saver.save("model.ckpt")
        >>> count.value = 0
        >>> report = saver.restore(path)
        >>> count.value
        3
    """

    def __init__(self, op: object, specs: Sequence[SaveSpec], name: str) -> None:
        self.op = op
        self.specs = list(specs)
        self.name = name

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {counted(len(self.specs), 'spec')})"

    @property
    def device(self) -> str:
        """Device of the first spec, in TensorFlow's spelling; "" without specs."""
        return self.specs[0].device if self.specs else ""

    def check(self, shapes: Sequence[Shape], restored_shapes: Sequence[Shape] | None = None) -> None:
        """Reject values that `restore` would fail on, before anything is assigned.

        Args:
            shapes: Shapes of the stored values, one for each spec.
            restored_shapes: The shapes that `restore` will receive.

        Raises:
            InvalidArgumentError: `restore` would fail. The base class accepts everything.
        """

    def restore(self, restored_tensors: Sequence[Value], restored_shapes: Sequence[Shape] | None) -> object:
        """Restore the object from its values, one for each spec. Subclasses must override this.

        Args:
            restored_tensors: Tensors on any device; arrays of `bytes` for strings. The saveable may keep them. For a
                spec with a DTensor, this rank's part, as a plain tensor.
            restored_shapes: Shapes to reshape them to first, if the saver has `reshape=True`; else None.

        Raises:
            ValueError: always in the base class; subclasses raise their own errors.
        """
        raise ValueError("Calling an abstract method.")


def _dtype(name: str, tensor: object, dtype: torch.dtype | DataType | None) -> DataType | None:
    if isinstance(dtype, torch.dtype):
        return data_type(dtype, name)
    if dtype is not None or tensor is None:
        return dtype
    if isinstance(tensor, torch.Tensor):
        if not tensor.is_meta:  # for a meta tensor, the restore raises a more specific error
            check_storable(name, tensor)
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
    """Return (device, its saveables), sorted by the device names as strings: GPU:10 comes before GPU:2.

    Raises:
        InvalidArgumentError: the specs of one saveable are on several devices.
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


def refuse_sharded_values(saveables: Iterable[SaveableObject]) -> None:
    """Raise InvalidArgumentError if a value is a DTensor: it needs a save, or a restore, by all ranks together."""
    if not any_dtensors():
        return
    for spec in specs_of(saveables):
        refuse_sharded(spec.name, spec._tensor)


def specs_of(saveables: Iterable[SaveableObject]) -> Iterator[SaveSpec]:
    """Return the specs of all saveables, in order."""
    return (spec for saveable in saveables for spec in saveable.specs)


def value_of(spec: SaveSpec) -> WritableValue:
    """Return the value to save; InvalidArgumentError if there is none yet."""
    value = spec.tensor
    if value is None:
        raise InvalidArgumentError(f"tensor {quoted(spec.name)} has no value yet. Assign one, or omit it")
    return value


def slice_of(spec: SaveSpec) -> tuple[Shape, TensorSlice]:
    """Return the full shape of a spec with a slice, and the slice."""
    full_shape, part, _ = parse_shape_and_slice(spec.slice_spec)
    return full_shape, part
