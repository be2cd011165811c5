"""Checks of inputs: the largest tensor that an operation may create from numbers among them, shapes, and indices.

A graph in a file may ask for `Fill([1000000000000], 0)`. Memory is only taken for results that are proportional to the
inputs, or that are below this limit.
"""

import math
from collections.abc import Iterable
from typing import Final

import torch

from torch_tfckpt.errors import InvalidArgumentError

MAX_ELEMENTS: Final = 1 << 28  # 1 GiB of float32


def check_size(shape: Iterable[int]) -> None:
    """Raise InvalidArgumentError if a result of this shape would be too large, or if a size is negative."""
    sizes = list(shape)
    known = [size for size in sizes if isinstance(size, int)]  # sizes of torch.export are not known yet
    if any(size < 0 for size in known):
        raise InvalidArgumentError(f"a result cannot have the shape {sizes}: sizes must not be negative")
    if math.prod(known) > MAX_ELEMENTS and 0 not in known:
        raise InvalidArgumentError(
            f"the result would have the shape {sizes}, more than {MAX_ELEMENTS} elements, the limit for sizes that "
            f"are given as numbers"
        )


def is_empty(shape: Iterable[int]) -> bool:
    """Return whether a tensor of this shape has no elements. Sizes of torch.export count as more than 0."""
    return any(isinstance(size, int) and size == 0 for size in shape)


def check_shape_of(name: str, value: torch.Tensor, expected: Iterable[int]) -> None:
    """Raise InvalidArgumentError unless the input has the shape."""
    wanted = tuple(expected)
    if tuple(value.shape) != wanted:
        raise InvalidArgumentError(f"{name} has the shape {list(value.shape)}, expected {list(wanted)}")


def check_all(condition: torch.Tensor, message: str) -> None:
    """Raise a RuntimeError unless all elements are true. A GPU, or an exported graph, raises it later.

    Args:
        message: Without sizes of tensors, which may be symbolic: torch.compile cannot put them into a string.
    """
    torch._assert_async(condition.all(), message)
