"""Tensors from several tensors, and paddings.

Source: tensorflow/core/ops/array_ops.cc.
"""

from collections.abc import Sequence

import torch
from torch.nn.functional import pad as torch_pad

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.axes import axes_of, torch_pads
from torch_tfckpt.graph_ops.integers import axis_of
from torch_tfckpt.graph_ops.limits import check_shape_of, check_size
from torch_tfckpt.graph_ops.moves import moves_elements
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.values import IntMatrix, Ints, NestedInts, Tensor, Tensors


@op("Pack")
@moves_elements
def pack(values: Tensors, *, axis: int = 0) -> Tensor:
    return torch.stack(tuple(values), axis_of(axis, values[0].dim() + 1))


@op("ConcatV2")
@moves_elements
def concat_v2(values: Tensors, axis: int) -> Tensor:
    # torch.cat skips empty vectors, whatever the rank of the others.
    if len({each.dim() for each in values}) > 1:
        raise InvalidArgumentError(f"cannot join the shapes {[list(each.shape) for each in values]}")
    return torch.cat(tuple(values), axis_of(axis, values[0].dim()))


@op("Concat")
@moves_elements
def concat(concat_dim: int, values: Tensors) -> Tensor:
    return concat_v2(values, concat_dim)


@op("ParallelConcat")
@moves_elements
def parallel_concat(values: Tensors, *, shape: Ints) -> Tensor:
    found = concat_v2(values, 0)
    check_shape_of("the result", found, shape)
    return found


@op("Pad")
@moves_elements
def pad(input: Tensor, paddings: IntMatrix) -> Tensor:
    _check_paddings(input, paddings)
    return torch_pad(input, torch_pads(paddings))


@op("PadV2")
@moves_elements
def pad_v2(input: Tensor, paddings: IntMatrix, constant_values: Tensor) -> Tensor:
    """TensorFlow gives no gradient for the constant."""
    _check_paddings(input, paddings)
    sizes = [before + size + after for (before, after), size in zip(paddings, input.shape, strict=True)]
    found = constant_values.detach().expand(sizes).clone()
    inner = found
    for axis, (before, _) in enumerate(paddings):
        inner = inner.narrow(axis, before, input.shape[axis])
    inner.copy_(input)
    return found


@op("MirrorPad")
@moves_elements
def mirror_pad(input: Tensor, paddings: IntMatrix, *, mode: str) -> Tensor:
    _check_paddings(input, paddings)
    if mode not in ("REFLECT", "SYMMETRIC"):
        raise InvalidArgumentError(f'mode must be "REFLECT" or "SYMMETRIC", found "{mode}"')
    edge = 1 if mode == "REFLECT" else 0
    for axis, (before, after) in enumerate(paddings):
        size = input.shape[axis]
        if max(before, after) > size - edge:
            raise InvalidArgumentError(f"paddings {before} and {after} for an axis of {size} elements, mode {mode}")
        parts = [
            input.narrow(axis, edge, before).flip(axis),
            input,
            input.narrow(axis, size - edge - after, after).flip(axis),
        ]
        input = torch.cat(parts, axis) if before or after else input
    return input


@op("ReverseV2")
@moves_elements
def reverse_v2(tensor: Tensor, axis: Ints) -> Tensor:
    return tensor.flip(axes_of(axis, tensor.dim()))


@op("Reverse")
@moves_elements
def reverse(tensor: Tensor, dims: NestedInts) -> Tensor:
    if not isinstance(dims, tuple) or len(dims) != tensor.dim():
        raise InvalidArgumentError(f"dims {dims} for the shape {list(tensor.shape)}")
    return tensor.flip([axis for axis, chosen in enumerate(dims) if chosen])


def _check_paddings(input: Tensor, paddings: Sequence[Sequence[int]]) -> None:
    if len(paddings) != input.dim() or any(len(each) != 2 for each in paddings):
        raise InvalidArgumentError(f"paddings {list(paddings)} for the shape {list(input.shape)}")
    if any(each < 0 for before_after in paddings for each in before_after):
        raise InvalidArgumentError(f"paddings must not be negative: {list(paddings)}")
    check_size([before + size + after for (before, after), size in zip(paddings, input.shape, strict=True)])
