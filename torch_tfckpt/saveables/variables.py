"""Named tensors and slices of tensors, the elements of the variable lists of TensorFlow's Saver.

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
    """A named tensor for a var_list: the counterpart of TensorFlow's variables.

    Args:
        tensor: The tensor, restored in place. May be a Parameter or a view, on any device.
        name: Key in checkpoints if the variable is an element of a list; in a dict, the dict's key is used.
        slice_info: Position of the tensor, if it is a slice of a larger one.
        device: Device for grouping, e.g. "cuda:0" or "/device:GPU:0"; default: the tensor's.
        trainable: Whether a meta graph lists the variable as trainable.
        dtype: Type to store, if it is not the tensor's: DT_QINT8 for an int8 tensor.

    Raises:
        InvalidArgumentError: not a torch tensor, or the shape in `slice_info` is not the tensor's.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> saver = tfckpt.Saver([tfckpt.Variable(torch.ones(2), "w"), tfckpt.Variable(torch.zeros(()), "b")])
        >>> tfckpt.list_variables(saver.save("model.ckpt"))
        [('b', []), ('w', [2])]
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
                f"Variable {quoted(name)}: `tensor` has type {type(tensor).__name__} and is not a torch tensor"
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
        """The given device, or the tensor's current one, in TensorFlow's spelling."""
        return canonical_device(self.tensor.device) if self._device is None else self._device

    def __repr__(self) -> str:
        part = f", slice_info={self.slice_info.spec!r}" if self.slice_info is not None else ""
        return f"Variable({self.name!r}, {self.tensor.dtype}, {shape_text(self.tensor.shape)}{part})"


class PartitionedVariable:
    """Variables that together form one tensor. Iterating yields the variables.

    Args:
        name: Key in checkpoints if the object is an element of a list; in a dict, the dict's key is used.
        variables: The parts. The `slice_info` of each is checked when they are saved or restored.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> halves = [
        ...     tfckpt.Variable(torch.full((2, 5), float(i)), f"part_{i}",
        ...                     tfckpt.SaveSliceInfo("emb", [4, 5], [2 * i, 0], [2, 5]))
        ...     for i in range(2)
        ... ]
        >>> path = tfckpt.Saver([tfckpt.PartitionedVariable("emb", halves)]).save("model.ckpt")
        >>> tfckpt.load_variable(path, "emb")[:, 0]
        tensor([0., 0., 1., 1.])
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
