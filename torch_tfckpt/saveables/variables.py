"""Tensors under a name, whole or as parts of a larger one, as the lists that TensorFlow's Saver takes have them.

Source: tensorflow/python/ops/variables.py (PartitionedVariable).
"""

from collections.abc import Iterable, Iterator

import torch

from torch_tfckpt.devices import canonical_device
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_slice import shape_text
from torch_tfckpt.saveables.slice_info import SaveSliceInfo
from torch_tfckpt.text import quoted


class Variable:
    """A tensor under a name: what TensorFlow's Saver has for variables.

    Args:
        tensor: Restored in place. A Parameter, a view, any device.
        name: Key in checkpoints, where the variable stands in a list.
        slice_info: Where the tensor is a part of a larger one.
        device: Tag for grouping, in any spelling of `canonical_device`; None: where the tensor is.
        trainable: Said in meta graphs.
        dtype: Type to store under, where it is not the tensor's: DT_QINT8 of an int8 tensor.

    Raises:
        InvalidArgumentError: `slice_info` is of another shape than the tensor.
    """

    def __init__(
        self,
        tensor: torch.Tensor,
        name: str,
        slice_info: SaveSliceInfo | None = None,
        *,
        device: torch.device | str | None = None,
        trainable: bool = True,
        dtype: DataType | None = None,
    ) -> None:
        if not isinstance(tensor, torch.Tensor):
            raise InvalidArgumentError(
                f"Variable {quoted(name)}: `tensor` is a {type(tensor).__name__}, no torch tensor"
            )
        if slice_info is not None and slice_info.var_shape != tuple(tensor.shape):
            raise InvalidArgumentError(
                f"Variable {quoted(name)} has shape {shape_text(tensor.shape)}, but its slice of "
                f"{quoted(slice_info.full_name)} has {shape_text(slice_info.var_shape)}"
            )
        self.tensor = tensor
        self.name = name
        self.slice_info = slice_info
        self.trainable = trainable
        self.dtype = dtype
        self._device = None if device is None else canonical_device(device)

    @property
    def device(self) -> str:
        """The tag it was given, or where the tensor is now; TensorFlow's spelling."""
        return canonical_device(self.tensor.device) if self._device is None else self._device

    def __repr__(self) -> str:
        part = f", slice_info={self.slice_info.spec!r}" if self.slice_info is not None else ""
        return f"Variable({self.name!r}, {self.tensor.dtype}, {shape_text(self.tensor.shape)}{part})"


class PartitionedVariable:
    """Variables that together are one tensor. Iterable.

    Args:
        name: Key in checkpoints, where it stands in a list.
        variables: The parts, each with its `slice_info`; that they fit is checked where they are used.
    """

    def __init__(self, name: str, variables: Iterable[Variable]) -> None:
        self.name = name
        self._variables = tuple(variables)

    def __iter__(self) -> Iterator[Variable]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)

    def __repr__(self) -> str:
        return f"PartitionedVariable({self.name!r}, {len(self)} parts)"
