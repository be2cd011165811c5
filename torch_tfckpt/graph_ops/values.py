"""The kinds of inputs and results of TensorFlow's operations.

The annotations of an operation's parameters are these names, so that the caller knows what to pass.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from torch_tfckpt.format.data_type import DataType

Tensor = torch.Tensor
Tensors = Sequence[Tensor]  # an input that is a list of tensors, as of ConcatV2
Strings = npt.NDArray[np.object_]  # a tensor of strings: elements are bytes
AnyTensor = Tensor | Strings
AnyTensors = Sequence[AnyTensor]
StringsList = Sequence[Strings]
ElementType = torch.dtype | DataType  # an attribute of type "type"; DataType for what torch lacks, as strings

# Values that must be known when a result's shape is computed. They are Python integers, or SymInts of torch.export.
# A parameter with one of these annotations, or `int`, gets Python integers.
Ints = tuple[int, ...]  # a vector: a shape, begin, sizes
IntMatrix = tuple[tuple[int, ...], ...]  # paddings
Axes = int | tuple[int, ...]  # one axis or several
NestedInts = int | tuple["NestedInts", ...]
IntsList = Sequence[Ints]  # an input that is a list of vectors, as of ConcatOffset
NestedIntsList = Sequence[NestedInts]

# An input that is taken as it is: Python integers stay such, so that their sizes stay symbolic in torch.export, and
# tensors stay tensors.
Scalar = Tensor | int
