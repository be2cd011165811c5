"""Ragged tensors: values in one tensor, and where each row begins.

    row_splits [0, 2, 2, 5]      rows 0:2, 2:2, 2:5 of the values
    row lengths, value_rowids    the same in other forms

Source: tensorflow/core/ops/ragged_*.cc and their kernels.
"""

import math
from typing import Any

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.limits import check_all, check_size
from torch_tfckpt.graph_ops.moves import moves_elements, rows_at
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.values import AnyTensor, Axes, Tensor, Tensors


@op("RaggedTensorToTensor")
def ragged_tensor_to_tensor(
    shape: Axes,
    values: AnyTensor,
    default_value: AnyTensor,
    row_partition_tensors: Tensors,
    *,
    row_partition_types: tuple[str, ...],
) -> AnyTensor:
    """Return a tensor with the rows of a ragged one, cut or filled with a default value.

    Args:
        shape: Of the result; -1 for sizes, or for the whole shape, that follow from the rows.
    """
    partitions = list(zip(row_partition_types, row_partition_tensors, strict=True))
    if not partitions:
        raise InvalidArgumentError("row_partition_types is empty")
    first = partitions[0]
    if first[0] == "FIRST_DIM_SIZE":
        count = _single(first[1])
        check_size((count,))
        partitions = partitions[1:]
    elif first[0] == "ROW_SPLITS":
        count = first[1].shape[0] - 1
    else:
        raise InvalidArgumentError(f"a partition of rows cannot begin with {first[0]}")
    rank = len(partitions)
    wanted = [-1] * (rank + 1 + len(values.shape[1:])) if isinstance(shape, int) else list(shape)
    if isinstance(shape, int) and shape != -1:
        raise InvalidArgumentError(f"shape is {shape}, expected -1 or a list of sizes")
    inner = tuple(values.shape[1:])
    if len(wanted) != rank + 1 + len(inner) or any(
        size not in (-1, own) for size, own in zip(wanted[rank + 1 :], inner, strict=True)
    ):
        raise InvalidArgumentError(f"a ragged tensor of {rank + 1} axes and values of {list(inner)} is not {wanted}")
    rows = count if wanted[0] < 0 else wanted[0]
    places = torch.arange(count)
    places = torch.where(places < rows, places, -1)
    sizes = [rows]
    for (kind, tensor), size in zip(partitions, wanted[1:], strict=False):
        owners, columns, longest = _cells(kind, tensor, places.shape[0])
        width = longest if size < 0 else size
        parents = places[owners]
        places = torch.where((parents >= 0) & (columns < width), parents * width + columns, -1)
        sizes.append(width)
    check_size((*sizes, *inner))
    if places.shape[0] != values.shape[0]:
        raise InvalidArgumentError(f"the rows have {places.shape[0]} values, but there are {values.shape[0]}")
    if len(default_value.shape) > len(inner):
        raise InvalidArgumentError(
            f"default_value has the shape {list(default_value.shape)}, a value has {list(inner)}"
        )
    placed: AnyTensor = _placed(values, default_value, places, tuple(sizes))
    return placed


def _cells(kind: str, tensor: Tensor, rows: int) -> tuple[Tensor, Tensor, int]:
    """Return the row of each value, its place in the row, and the length of the longest row."""
    tensor = tensor.to(torch.int64)
    if kind == "ROW_SPLITS":
        _check_splits(tensor, rows)
        owners, columns = rows_of(tensor)
        lengths = tensor.diff()
    elif kind == "VALUE_ROWIDS":
        if tensor.numel() and (int(tensor.min()) < 0 or int(tensor.max()) >= rows or bool((tensor.diff() < 0).any())):
            raise InvalidArgumentError(f"value_rowids must not decrease, and be in [0, {rows})")
        owners = tensor
        lengths = torch.bincount(tensor, minlength=rows)
        starts = lengths.cumsum(0) - lengths
        columns = torch.arange(tensor.shape[0]) - starts[owners]
    else:
        raise InvalidArgumentError(f"unsupported partition of rows: {kind}")
    return owners, columns, int(lengths.max()) if lengths.numel() else 0


def rows_of(splits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the row of each value and its place in the row, from where the rows begin."""
    lengths = splits.diff()
    owners = torch.arange(lengths.shape[0]).repeat_interleave(lengths)
    return owners, torch.arange(owners.shape[0]) - splits[owners]


def _splits_of(lengths: Tensor) -> Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def _check_splits(splits: Tensor, rows: int) -> None:
    if splits.dim() != 1 or splits.shape[0] != rows + 1:
        raise InvalidArgumentError(f"row_splits has the shape {list(splits.shape)}, expected [{rows + 1}]")
    if int(splits[0]) != 0 or bool((splits.diff() < 0).any()):
        raise InvalidArgumentError("row_splits must begin with 0, and must not decrease")


def _single(tensor: Tensor) -> int:
    if tensor.numel() != 1 or int(tensor) < 0:
        raise InvalidArgumentError("the number of rows must be one number that is not negative")
    return int(tensor)


@moves_elements
def _placed(values: Any, default_value: Any, places: Tensor, sizes: tuple[int, ...]) -> Any:
    inner = values.shape[1:]
    count = math.prod(sizes)
    kept = places >= 0
    filled = default_value.expand(count, *inner)
    return filled.index_copy(0, places[kept], values[kept]).reshape(*sizes, *inner)


@op("RaggedRange", outputs=("rt_nested_splits", "rt_dense_values"))
def ragged_range(
    starts: Tensor, limits: Tensor, deltas: Tensor, *, Tsplits: torch.dtype = torch.int64
) -> tuple[Tensor, Tensor]:
    """Return a row of numbers for each start, limit and step."""
    sizes = {each.shape[0] for each in (starts, limits, deltas) if each.dim() == 1}
    if any(each.dim() > 1 for each in (starts, limits, deltas)) or len(sizes) > 1:
        raise InvalidArgumentError("starts, limits and deltas must be numbers, or vectors of the same length")
    count = next(iter(sizes), 1)
    starts, limits, deltas = (each.expand(count) for each in (starts, limits, deltas))
    if bool((deltas == 0).any()):
        raise InvalidArgumentError("Requires delta != 0")
    if starts.is_floating_point():
        lengths = ((limits - starts).double() / deltas.double()).abs().ceil()
    else:
        wide = [each.to(torch.int64) for each in (starts, limits, deltas)]
        span, step = (wide[1] - wide[0]).abs(), wide[2].abs()
        lengths = (span + step - 1) // step
    forward = torch.where(deltas > 0, limits > starts, limits < starts)
    lengths = torch.where(forward, lengths, torch.zeros_like(lengths))
    total = float(lengths.double().sum())
    check_size((int(min(total, 1 << 62)) if total == total else 1 << 62,))
    lengths = lengths.to(torch.int64)
    splits = _splits_of(lengths)
    owners, columns = rows_of(splits)
    return splits.to(Tsplits), starts[owners] + columns.to(starts.dtype) * deltas[owners]


@op("RaggedGather", outputs=("output_nested_splits", "output_dense_values"))
def ragged_gather(
    params_nested_splits: Tensors, params_dense_values: AnyTensor, indices: Tensor, *, OUTPUT_RAGGED_RANK: int
) -> tuple[tuple[Tensor, ...], AnyTensor]:
    """Return the rows of a ragged tensor that indices name."""
    if len(params_nested_splits) + indices.dim() - 1 != OUTPUT_RAGGED_RANK:
        raise InvalidArgumentError(
            f"OUTPUT_RAGGED_RANK is {OUTPUT_RAGGED_RANK} for {len(params_nested_splits)} splits and indices of "
            f"{indices.dim()} axes"
        )
    kind = params_nested_splits[0].dtype
    splits = [each.to(torch.int64) for each in params_nested_splits]
    count = splits[0].shape[0] - 1
    chosen = indices.reshape(-1).to(torch.int64)
    check_all((chosen >= 0) & (chosen < count), "indices are out of range")
    found = []
    for axis in range(1, indices.dim()):
        # The leading axes of the indices become ragged axes with rows of the same length.
        found.append(torch.arange(math.prod(indices.shape[:axis]) + 1) * indices.shape[axis])
    for each in splits:
        if not each.numel() or int(each[0]) != 0 or bool((each.diff() < 0).any()):
            raise InvalidArgumentError("Ragged splits must begin with 0, and must not decrease")
        if chosen.numel() and int(chosen.max()) + 1 >= each.shape[0]:
            raise InvalidArgumentError("Ragged splits must point past the last value")
        lengths = each.diff()[chosen]
        check_size((int(lengths.sum()),))
        made = _splits_of(lengths)
        owners, columns = rows_of(made)
        chosen = each[chosen][owners] + columns
        found.append(made)
    if chosen.numel() and int(chosen.max()) >= params_dense_values.shape[0]:
        raise InvalidArgumentError("Ragged splits must point past the last value")
    return tuple(each.to(kind) for each in found), rows_at(params_dense_values, chosen)


@moves_elements
def _flat(values: Any) -> Any:
    return values.reshape(-1)


@op("RaggedTensorToSparse", outputs=("sparse_indices", "sparse_values", "sparse_dense_shape"))
def ragged_tensor_to_sparse(rt_nested_splits: Tensors, rt_dense_values: AnyTensor) -> tuple[Tensor, AnyTensor, Tensor]:
    """Return a ragged tensor as a sparse one."""
    splits = [each.to(torch.int64) for each in rt_nested_splits]
    if not splits or not rt_dense_values.shape:
        raise InvalidArgumentError("a ragged tensor needs splits and values")
    columns = [torch.arange(splits[0].shape[0] - 1)]
    sizes = [splits[0].shape[0] - 1]
    for each in splits:
        _check_splits(each, columns[0].shape[0])
        owners, places = rows_of(each)
        columns = [column[owners] for column in columns]
        columns.append(places)
        sizes.append(int(each.diff().max()) if each.shape[0] > 1 else 0)
    if columns[0].shape[0] != rt_dense_values.shape[0]:
        raise InvalidArgumentError("Final value of ragged splits must match the number of values")
    indices = torch.stack(columns, 1)
    inner = tuple(rt_dense_values.shape[1:])
    for size in inner:
        numbers = torch.arange(size).repeat(indices.shape[0])
        indices = torch.cat([indices.repeat_interleave(size, 0), numbers[:, None]], 1)
        sizes.append(size)
    return indices, _flat(rt_dense_values), torch.tensor(sizes)
