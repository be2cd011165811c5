"""Rows written to given places, and rows sorted into several tensors.

Source: tensorflow/core/ops/array_ops.cc and data_flow_ops.cc.
"""

import math
from typing import Final

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.limits import check_all, check_size, is_empty
from torch_tfckpt.graph_ops.moves import moves_elements
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.slicing import nd_places
from torch_tfckpt.graph_ops.values import Ints, Tensor, Tensors

MAX_PARTITIONS: Final = 1 << 16


@op("ScatterNd")
def scatter_nd(indices: Tensor, updates: Tensor, shape: Ints, *, bad_indices_policy: str = "") -> Tensor:
    """Sum of the rows for each place; zeros elsewhere."""
    check_size(shape)
    if updates.dtype == torch.bool:
        none = updates.new_zeros(shape, dtype=torch.int32)
        return _scattered(none, indices, updates.int(), bad_indices_policy, "sum") > 0
    return _scattered(updates.new_zeros(shape), indices, updates, bad_indices_policy, "sum")


@op("TensorScatterUpdate")
@moves_elements
def tensor_scatter_update(tensor: Tensor, indices: Tensor, updates: Tensor, *, bad_indices_policy: str = "") -> Tensor:
    return _scattered(tensor, indices, updates, bad_indices_policy, "copy")


@op("TensorScatterAdd")
def tensor_scatter_add(tensor: Tensor, indices: Tensor, updates: Tensor, *, bad_indices_policy: str = "") -> Tensor:
    return _scattered(tensor, indices, updates, bad_indices_policy, "sum")


@op("TensorScatterSub")
def tensor_scatter_sub(tensor: Tensor, indices: Tensor, updates: Tensor, *, bad_indices_policy: str = "") -> Tensor:
    return _scattered(tensor, indices, -updates, bad_indices_policy, "sum")


@op("TensorScatterMax")
def tensor_scatter_max(tensor: Tensor, indices: Tensor, updates: Tensor, *, bad_indices_policy: str = "") -> Tensor:
    return _scattered(tensor, indices, updates, bad_indices_policy, "amax")


@op("TensorScatterMin")
def tensor_scatter_min(tensor: Tensor, indices: Tensor, updates: Tensor, *, bad_indices_policy: str = "") -> Tensor:
    return _scattered(tensor, indices, updates, bad_indices_policy, "amin")


def _scattered(tensor: Tensor, indices: Tensor, updates: Tensor, policy: str, how: str) -> Tensor:
    depth = indices.shape[-1] if indices.dim() > 1 else tensor.dim() + 1
    if depth > tensor.dim():
        raise InvalidArgumentError(f"indices of the shape {list(indices.shape)} for a tensor {list(tensor.shape)}")
    rest = tensor.shape[depth:]
    if updates.shape != (*indices.shape[:-1], *rest):
        raise InvalidArgumentError(
            f"updates have the shape {list(updates.shape)}, expected {[*indices.shape[:-1], *rest]}"
        )
    if is_empty(tensor.shape) and not is_empty(indices.shape):
        raise InvalidArgumentError(
            f"{list(indices.shape)} indices into a tensor without elements: {list(tensor.shape)}"
        )
    places, valid = nd_places(indices, tensor.shape, policy)
    base = tensor.reshape(math.prod(tensor.shape[:depth]), math.prod(rest))
    rows = updates.reshape(places.shape[0], math.prod(rest))
    if valid is not None:
        places, rows = places[valid], rows[valid]
    if how == "copy":
        found = base.index_copy(0, places, rows)
    elif how == "sum":
        found = base.index_add(0, places, rows)
    else:
        found = base.scatter_reduce(0, places[:, None].expand(rows.shape), rows, how)
    return found.reshape(tensor.shape)


@op("DynamicPartition", outputs=("outputs",), list_output=True)
@moves_elements
def dynamic_partition(data: Tensor, partitions: Tensor, *, num_partitions: int) -> tuple[Tensor, ...]:
    if data.shape[: partitions.dim()] != partitions.shape:
        raise InvalidArgumentError(
            f"the shape of partitions, {list(partitions.shape)}, must be the beginning of the data's, "
            f"{list(data.shape)}"
        )
    if not 1 <= num_partitions <= MAX_PARTITIONS:
        raise InvalidArgumentError(f"num_partitions must be 1 to {MAX_PARTITIONS}, found {num_partitions}")
    check_all((partitions >= 0) & (partitions < num_partitions), f"partitions must be in [0, {num_partitions})")
    return tuple(data[partitions == number] for number in range(num_partitions))


@op("DynamicStitch", "ParallelDynamicStitch", outputs=("merged",))
@moves_elements
def dynamic_stitch(indices: Tensors, data: Tensors) -> Tensor:
    """Later rows replace earlier ones. Rows that no index names are zeros; TensorFlow leaves them undefined."""
    rest = tuple(data[0].shape[indices[0].dim() :])
    if len(indices) != len(data) or any(
        tuple(rows.shape) != (*places.shape, *rest) for places, rows in zip(indices, data, strict=True)
    ):
        shapes = [(list(places.shape), list(rows.shape)) for places, rows in zip(indices, data, strict=False)]
        raise InvalidArgumentError(f"the shapes of indices and data do not match: {shapes}")
    places = torch.cat([each.reshape(-1) for each in indices]).to(torch.int64)
    count = int(places.max()) + 1 if places.shape[0] else 0
    check_size((count, *rest))
    check_all(places >= 0, "indices must not be negative")
    width = math.prod(rest)
    rows = torch.cat([each.reshape(part.numel(), width) for each, part in zip(data, indices, strict=True)])
    return rows.new_zeros(count, width).index_copy(0, places, rows).reshape(count, *rest)
