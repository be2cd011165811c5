"""Sets: the elements along the last axis.

Source: tensorflow/core/ops/set_ops.cc, tensorflow/core/kernels/set_kernels.cc.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, Final

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.text_arrays import array_of
from torch_tfckpt.graph_ops.values import AnyTensor, Tensor
from torch_tfckpt.text import quoted

_OPERATIONS: Final[dict[str, Callable[[set[Any], set[Any]], set[Any]]]] = {
    "a-b": set.difference,
    "b-a": lambda first, second: second - first,
    "intersection": set.intersection,
    "union": set.union,
}


@op("DenseToDenseSetOperation", outputs=("result_indices", "result_values", "result_shape"))
def dense_to_dense_set_operation(
    set1: AnyTensor, set2: AnyTensor, *, set_operation: str, validate_indices: bool = True
) -> tuple[Tensor, AnyTensor, Tensor]:
    """Return a sparse tensor with the sorted elements of each set."""
    operation = _OPERATIONS.get(set_operation.lower())
    if operation is None:
        raise InvalidArgumentError(f"Invalid set_operation {quoted(set_operation)}, expected {', '.join(_OPERATIONS)}")
    shape = tuple(set1.shape[:-1])
    if len(set1.shape) < 2 or shape != tuple(set2.shape[:-1]):
        raise InvalidArgumentError(f"sets of the shapes {list(set1.shape)} and {list(set2.shape)} do not match")
    count = math.prod(shape)
    groups = [each.reshape(count, each.shape[-1]).tolist() for each in (set1, set2)]
    rows = [sorted(operation(set(first), set(second))) for first, second in zip(*groups, strict=True)]
    longest = max(map(len, rows), default=0)
    places = torch.cartesian_prod(*(torch.arange(size) for size in shape)).reshape(count, len(shape))
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    within = torch.tensor([*itertools.chain.from_iterable(range(len(row)) for row in rows)], dtype=torch.int64)
    indices = torch.cat([places.repeat_interleave(lengths, 0), within[:, None]], 1)
    listed = itertools.chain.from_iterable(rows)
    values: AnyTensor
    if isinstance(set1, torch.Tensor):
        values = torch.tensor([*listed], dtype=set1.dtype)
    else:
        values = array_of(listed)
    return indices, values, torch.tensor([*shape, longest])
