"""Shapes of tensors, and other shapes for the same elements.

Source: tensorflow/core/ops/array_ops.cc.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.axes import new_axis_of, squeezed_axes_of
from torch_tfckpt.graph_ops.integer_arrays import check_multiples
from torch_tfckpt.graph_ops.integers import axis_of
from torch_tfckpt.graph_ops.limits import check_size
from torch_tfckpt.graph_ops.moves import moves_elements
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.values import AnyTensor, AnyTensors, Axes, Ints, Tensor


@op("Shape")
def shape(input: AnyTensor, *, out_type: torch.dtype = torch.int32) -> Ints:
    return tuple(input.shape)


@op("ShapeN", list_output=True)
def shape_n(input: AnyTensors, *, out_type: torch.dtype = torch.int32) -> tuple[Ints, ...]:
    return tuple(tuple(each.shape) for each in input)


@op("Size")
def size(input: AnyTensor, *, out_type: torch.dtype = torch.int32) -> int:
    return math.prod(input.shape)


@op("Rank")
def rank(input: AnyTensor) -> int:
    return len(input.shape)


@op("Reshape")
@moves_elements
def reshape(tensor: Tensor, shape: Ints) -> Tensor:
    if 0 in shape and shape.count(-1) == 1:  # any size would do; TensorFlow chooses by the other sizes
        chosen = math.prod(each for each in tensor.shape if each) // math.prod(each for each in shape if each > 0)
        shape = tuple(chosen if each == -1 else each for each in shape)
    return torch.reshape(tensor, shape)


@op("Squeeze")
@moves_elements
def squeeze(input: Tensor, *, squeeze_dims: Ints = ()) -> Tensor:
    if not squeeze_dims:
        return input.squeeze()
    return input.squeeze(tuple(squeezed_axes_of(squeeze_dims, input.shape)))


@op("ExpandDims")
@moves_elements
def expand_dims(input: Tensor, dim: Axes) -> Tensor:
    return input.unsqueeze(new_axis_of(dim, input.dim()))


@op("Transpose")
@moves_elements
def transpose(x: Tensor, perm: Ints) -> Tensor:
    return x.permute(permutation(perm, x.shape))


@op("ConjugateTranspose")
def conjugate_transpose(x: Tensor, perm: Ints) -> Tensor:
    return transpose(x, perm).conj().resolve_conj()


def permutation(perm: Ints, sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the axes of a permutation, counted from the beginning."""
    axes = tuple(axis_of(axis, len(sizes)) for axis in perm)
    if sorted(axes) != list(range(len(sizes))):
        raise InvalidArgumentError(f"{list(perm)} is not a permutation of the axes of the shape {list(sizes)}")
    return axes


@op("InvertPermutation")
def invert_permutation(x: Tensor) -> Tensor:
    order = x.argsort()
    numbers = torch.arange(x.shape[0], dtype=x.dtype, device=x.device)
    if not torch.equal(x[order], numbers):
        raise InvalidArgumentError(f"the vector of {x.shape[0]} numbers is not a permutation")
    return order.to(x.dtype)


@op("BroadcastTo")
@moves_elements
def broadcast_to(input: Tensor, shape: Ints) -> Tensor:
    check_size(shape)
    return input.expand(shape)


@op("Fill")
def fill(dims: Ints, value: AnyTensor) -> AnyTensor:
    check_size(dims)
    if math.prod(value.shape) != 1 or len(value.shape) > 1:  # TensorFlow accepts a vector of one number
        raise InvalidArgumentError(f"value must be a scalar, found the shape {list(value.shape)}")
    if isinstance(value, np.ndarray):
        return np.full(dims, value.item(), dtype=object)
    return value.reshape(()).expand(dims).contiguous()


@op("ZerosLike")
def zeros_like(x: AnyTensor) -> AnyTensor:
    return np.full(x.shape, b"", dtype=object) if isinstance(x, np.ndarray) else torch.zeros_like(x)


@op("OnesLike")
def ones_like(x: Tensor) -> Tensor:
    return torch.ones_like(x)


@op("Tile")
@moves_elements
def tile(input: Tensor, multiples: Ints) -> Tensor:
    check_multiples(multiples, input.shape)
    return input.repeat(multiples)
