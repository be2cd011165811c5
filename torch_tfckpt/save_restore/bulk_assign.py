"""Check and assign ordinary tensors in bulk: of 100,000 small ones, the general way takes longer than their reading.

An ordinary saveable is one whose `restore` only copies a stored tensor, of the same dtype and shape, into a tensor in
host memory. For all others, and for those that do not fit, the saveable's own `check` and `restore` are called.
"""

from collections.abc import Sequence

import torch

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.dtypes import ELEMENTS
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.saveables.save_spec import SaveableObject
from torch_tfckpt.saveables.tensor_saveable import VariableSaveable
from torch_tfckpt.values import PLAIN_CLASSES, Value, is_ordinary


class OrdinarySaveables:
    """The ordinary saveables of a restore that fit, and the copies into their tensors.

    Args:
        reader: The checkpoint that is restored.
        saveables: All saveables of the restore.
    """

    def __init__(self, reader: CheckpointReader, saveables: Sequence[SaveableObject]) -> None:
        ordinary = [saveable for saveable in saveables if _is_ordinary(saveable)]
        stored = reader.describe_all([saveable.specs[0].name for saveable in ordinary])
        self._fitting = {id(each) for each, found in zip(ordinary, stored, strict=True) if _fits(each, found)}
        self._names: list[str] = []
        self._targets: list[torch.Tensor] = []
        self._sources: list[torch.Tensor] = []

    def __contains__(self, saveable: object) -> bool:
        """Whether none of the checks of a saveable would fail, and its value can be passed to `add`."""
        return id(saveable) in self._fitting

    def add(self, saveable: SaveableObject, values: Sequence[Value]) -> bool:
        """Note a copy, if the saveable is one of these and its tensor still fits; return whether it was noted."""
        if id(saveable) not in self._fitting:
            return False
        value, tensor = values[0], saveable.op
        if (
            not isinstance(value, torch.Tensor)
            or not isinstance(tensor, torch.Tensor)
            or value.shape != tensor.shape
            or value.dtype != tensor.dtype
        ):
            return False
        self._names.append(saveable.name)
        self._targets.append(tensor)
        self._sources.append(value)
        return True

    def assign(self) -> list[str]:
        """Make the copies that were noted, in their order, and return the names of the saveables."""
        if self._targets:
            with torch.no_grad():
                torch._foreach_copy_(self._targets, self._sources)
        names, self._names, self._targets, self._sources = self._names, [], [], []
        return names


def _is_ordinary(saveable: SaveableObject) -> bool:
    if type(saveable) is not VariableSaveable:
        return False
    tensor, own = saveable.tensor, saveable.__dict__
    return (
        type(tensor) in PLAIN_CLASSES
        and tensor.is_cpu
        and is_ordinary(tensor)
        and tensor.is_contiguous()
        and not tensor.is_inference()
        and not saveable.specs[0].slice_spec
        and "check" not in own
        and "restore" not in own
    )


def _fits(saveable: SaveableObject, stored: tuple[Shape, DataType] | None) -> bool:
    if stored is None:
        return False
    shape, dtype = stored
    tensor, wanted = saveable.op, saveable.specs[0].dtype
    return (
        dtype == wanted
        and isinstance(tensor, torch.Tensor)
        and shape == tensor.shape
        and ELEMENTS[dtype].torch == tensor.dtype
    )
