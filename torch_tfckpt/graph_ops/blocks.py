"""Blocks of pixels moved to the batch or to the channels, and back.

    SpaceToBatchND  [batch, s1, s2, ..., rest]  ->  [b1 * b2 * batch, s1 / b1, s2 / b2, ..., rest]
    SpaceToDepth    [batch, h, w, c]            ->  [batch, h / b, w / b, b * b * c]

Source: tensorflow/core/ops/array_ops.cc.
"""

import math

import torch.nn.functional as F

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.axes import torch_pads
from torch_tfckpt.graph_ops.limits import check_size
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.sliding import as_format, channels_first, is_channels_first
from torch_tfckpt.graph_ops.values import IntMatrix, Ints, Tensor


@op("SpaceToBatchND")
def space_to_batch_nd(input: Tensor, block_shape: Ints, paddings: IntMatrix) -> Tensor:
    count = _checked(input, block_shape, paddings, "paddings")
    padded = [before + size + after for size, (before, after) in zip(input.shape[1 : count + 1], paddings, strict=True)]
    for size, block in zip(padded, block_shape, strict=True):
        if size % block:
            raise InvalidArgumentError(f"padded sizes {padded} are not multiples of the blocks {list(block_shape)}")
    batch, rest = input.shape[0], list(input.shape[count + 1 :])
    if any(before or after for before, after in paddings):
        check_size((batch, *padded, *rest))
        input = F.pad(input, torch_pads([*paddings, *[(0, 0)] * len(rest)]))
    split = [each for size, block in zip(padded, block_shape, strict=True) for each in (size // block, block)]
    x = input.reshape(batch, *split, *rest)
    inner = list(range(2, 2 * count + 2, 2))
    outer = list(range(1, 2 * count + 1, 2))
    x = x.permute(*inner, 0, *outer, *range(2 * count + 1, x.dim()))
    return x.reshape(batch * math.prod(block_shape), *split[::2], *rest)


@op("BatchToSpaceND")
def batch_to_space_nd(input: Tensor, block_shape: Ints, crops: IntMatrix) -> Tensor:
    count = _checked(input, block_shape, crops, "crops")
    blocks = math.prod(block_shape)
    if input.shape[0] % blocks:
        raise InvalidArgumentError(f"a batch of {input.shape[0]} cannot be divided into {blocks} blocks")
    batch, sizes, rest = input.shape[0] // blocks, input.shape[1 : count + 1], input.shape[count + 1 :]
    x = input.reshape(*block_shape, batch, *sizes, *rest)
    pairs = [axis for number in range(count) for axis in (count + 1 + number, number)]
    x = x.permute(count, *pairs, *range(2 * count + 1, x.dim()))
    full = [size * block for size, block in zip(sizes, block_shape, strict=True)]
    x = x.reshape(batch, *full, *rest)
    for axis, (size, (before, after)) in enumerate(zip(full, crops, strict=True), 1):
        if before + after > size:
            raise InvalidArgumentError(f"crops {list(crops)} are larger than the sizes {full}")
        if before or after:
            x = x.narrow(axis, before, size - before - after)
    return x


@op("SpaceToBatch")
def space_to_batch(input: Tensor, paddings: IntMatrix, *, block_size: int) -> Tensor:
    _check_images(input, block_size)
    return space_to_batch_nd(input, (block_size, block_size), paddings)


@op("BatchToSpace")
def batch_to_space(input: Tensor, crops: IntMatrix, *, block_size: int) -> Tensor:
    _check_images(input, block_size)
    return batch_to_space_nd(input, (block_size, block_size), crops)


@op("SpaceToDepth")
def space_to_depth(input: Tensor, *, block_size: int, data_format: str = "NHWC") -> Tensor:
    _check_images(input, block_size)
    x = channels_first(input, data_format)
    batch, channels, height, width = x.shape
    if height % block_size or width % block_size:
        raise InvalidArgumentError(f"{height} rows and {width} columns cannot be divided into blocks of {block_size}")
    rows, columns = height // block_size, width // block_size
    x = x.reshape(batch, channels, rows, block_size, columns, block_size)
    if is_channels_first(data_format):
        return x.permute(0, 3, 5, 1, 2, 4).reshape(batch, channels * block_size**2, rows, columns)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows, columns, channels * block_size**2)


@op("DepthToSpace")
def depth_to_space(input: Tensor, *, block_size: int, data_format: str = "NHWC") -> Tensor:
    _check_images(input, block_size)
    x = channels_first(input, data_format)
    batch, channels, rows, columns = x.shape
    if channels % block_size**2:
        raise InvalidArgumentError(f"{channels} channels cannot be divided into blocks of {block_size**2}")
    depth = channels // block_size**2
    height, width = rows * block_size, columns * block_size
    x = as_format(x, "NHWC").reshape(batch, rows, columns, block_size, block_size, depth)
    if is_channels_first(data_format):
        return x.permute(0, 5, 1, 3, 2, 4).reshape(batch, depth, height, width)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(batch, height, width, depth)


def _checked(input: Tensor, block_shape: Ints, ends: IntMatrix, what: str) -> int:
    """Return the number of blocked dimensions."""
    count = len(block_shape)
    if input.dim() < count + 1:
        raise InvalidArgumentError(f"{count} dimensions of blocks, but the input has the shape {list(input.shape)}")
    if any(block < 1 for block in block_shape):
        raise InvalidArgumentError(f"block_shape is {list(block_shape)}: blocks must be positive")
    if len(ends) != count or any(len(pair) != 2 for pair in ends):
        raise InvalidArgumentError(f"{what} must have the shape {[count, 2]}, found {list(ends)}")
    if any(end < 0 for pair in ends for end in pair):
        raise InvalidArgumentError(f"{what} are {list(ends)}, which must not be negative")
    return count


def _check_images(input: Tensor, block_size: int) -> None:
    if input.dim() != 4:
        raise InvalidArgumentError(f"expected a tensor of rank 4, found the shape {list(input.shape)}")
    if block_size < 2:
        raise InvalidArgumentError(f"block_size is {block_size}, which must be at least 2")
