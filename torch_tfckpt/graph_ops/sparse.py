"""Sparse tensors: a matrix of indices, a vector of values, and a shape.

Source: tensorflow/core/ops/sparse_ops.cc.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.limits import check_all, check_size
from torch_tfckpt.graph_ops.moves import moves_elements, rows_at
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.slicing import nd_places
from torch_tfckpt.graph_ops.values import AnyTensor, Ints, Tensor


@op("SparseReshape", outputs=("output_indices", "output_shape"))
def sparse_reshape(input_indices: Tensor, input_shape: Ints, new_shape: Ints) -> tuple[Tensor, Tensor]:
    _check_indices(input_indices, input_shape)
    total = math.prod(input_shape)
    known = math.prod(each for each in new_shape if each != -1)
    sizes = [total // known if each == -1 and known else each for each in new_shape]
    if new_shape.count(-1) > 1 or any(each < 0 for each in sizes) or math.prod(sizes) != total:
        raise InvalidArgumentError(f"cannot reshape {list(input_shape)} to {list(new_shape)}")
    numbers = _numbers(input_indices, input_shape)
    columns = []
    for size in reversed(sizes):
        columns.append(numbers % max(size, 1))
        numbers = numbers // max(size, 1)
    shape = torch.tensor(sizes, dtype=torch.int64, device=input_indices.device)
    if not columns:
        return input_indices.new_zeros(input_indices.shape[0], 0), shape
    return torch.stack(columns[::-1], 1), shape


@op(
    "SparseFillEmptyRows",
    outputs=("output_indices", "output_values", "empty_row_indicator", "reverse_index_map"),
)
def sparse_fill_empty_rows(
    indices: Tensor, values: AnyTensor, dense_shape: Ints, default_value: AnyTensor
) -> tuple[Tensor, AnyTensor, Tensor, Tensor]:
    """Put a default value into the first column of rows that have none."""
    _check_indices(indices, dense_shape)
    count = indices.shape[0]
    if tuple(values.shape) != (count,) or len(default_value.shape) or not dense_shape:
        raise InvalidArgumentError(
            f"indices {list(indices.shape)}, values {list(values.shape)}, dense_shape {list(dense_shape)}, "
            f"default_value {list(default_value.shape)}"
        )
    check_size(dense_shape[:1])
    rows = indices[:, 0]
    check_all((rows >= 0) & (rows < dense_shape[0]), "indices of rows must be in the range of dense_shape")
    is_empty = torch.bincount(rows, minlength=dense_shape[0]) == 0
    (empty,) = is_empty.nonzero(as_tuple=True)
    added = torch.cat([empty[:, None], empty.new_zeros(empty.shape[0], len(dense_shape) - 1)], 1)
    order = torch.cat([rows, empty]).argsort(stable=True)
    places = torch.empty_like(order).scatter(0, order, torch.arange(order.shape[0], device=order.device))
    filled = _picked_or_default(values, default_value, order.clamp(max=count))
    return torch.cat([indices, added])[order], filled, is_empty, places[:count]


@op("SparseReorder", outputs=("output_indices", "output_values"))
def sparse_reorder(input_indices: Tensor, input_values: AnyTensor, input_shape: Ints) -> tuple[Tensor, AnyTensor]:
    """Sort by indices, row by row."""
    _check_indices(input_indices, input_shape)
    order = _numbers(input_indices, input_shape).argsort(stable=True)
    return input_indices[order], rows_at(input_values, order)


@op("SparseToDense")
@moves_elements
def sparse_to_dense(
    sparse_indices: Tensor,
    output_shape: Ints,
    sparse_values: Tensor,
    default_value: Tensor,
    *,
    validate_indices: bool = True,
) -> Tensor:
    check_size(output_shape)
    rank = len(output_shape)
    if sparse_indices.dim() > 2 or sparse_values.dim() > 1 or default_value.dim():
        raise InvalidArgumentError(
            f"sparse_indices {list(sparse_indices.shape)}, sparse_values {list(sparse_values.shape)}, default_value "
            f"{list(default_value.shape)}"
        )
    indices = sparse_indices if sparse_indices.dim() == 2 else sparse_indices.reshape(-1, 1)
    if indices.shape[1] != rank or (sparse_values.dim() and sparse_values.shape[0] != indices.shape[0]):
        raise InvalidArgumentError(
            f"sparse_indices {list(sparse_indices.shape)} and sparse_values {list(sparse_values.shape)} for the shape "
            f"{list(output_shape)}"
        )
    places, _ = nd_places(indices, output_shape, "")
    if validate_indices:
        check_all(places.diff() > 0, "sparse_indices must be sorted, without repetitions")
    dense = default_value.expand(math.prod(output_shape))
    return dense.index_copy(0, places, sparse_values.expand(places.shape[0])).reshape(output_shape)


@op("SparseTensorDenseMatMul")
def sparse_tensor_dense_mat_mul(
    a_indices: Tensor,
    a_values: Tensor,
    a_shape: Ints,
    b: Tensor,
    *,
    adjoint_a: bool = False,
    adjoint_b: bool = False,
) -> Tensor:
    if len(a_shape) != 2 or b.dim() != 2 or a_indices.dim() != 2 or a_indices.shape[1] != 2:
        raise InvalidArgumentError(f"expected matrices, found the shapes {list(a_shape)} and {list(b.shape)}")
    if a_values.shape != a_indices.shape[:1]:
        raise InvalidArgumentError(f"a_indices {list(a_indices.shape)} for a_values {list(a_values.shape)}")
    rows, columns = a_indices.to(torch.int64).unbind(1)
    height, width = a_shape
    if adjoint_a:
        rows, columns, height, width = columns, rows, width, height
        a_values = a_values.conj()
    if adjoint_b:
        b = b.mH
    if b.shape[0] != width:
        raise InvalidArgumentError(f"cannot multiply [{height}, {width}] by {list(b.shape)}")
    check_size((height, b.shape[1]))
    products = a_values[:, None] * b.index_select(0, columns)
    return products.new_zeros(height, b.shape[1]).index_add(0, rows, products)


def _check_indices(indices: Tensor, shape: Sequence[int]) -> None:
    if indices.dim() != 2 or indices.shape[1] != len(shape):
        raise InvalidArgumentError(f"indices have the shape {list(indices.shape)}, the tensor has {list(shape)}")


def _numbers(indices: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the number of each element in row-major order."""
    numbers = indices.new_zeros(indices.shape[0])
    for axis, size in enumerate(shape):
        numbers = numbers * size + indices[:, axis]
    return numbers


@moves_elements
def _picked_or_default(values: Any, default: Any, places: Tensor) -> Any:
    return torch.cat([values, default.reshape(1)]).index_select(0, places)
