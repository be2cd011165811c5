"""Parts of tensors.

Source: tensorflow/core/ops/array_ops.cc.
"""

import math

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.axes import gathered_axes_of
from torch_tfckpt.graph_ops.integer_arrays import split_sizes
from torch_tfckpt.graph_ops.integers import axis_of
from torch_tfckpt.graph_ops.limits import check_all, check_size, is_empty
from torch_tfckpt.graph_ops.moves import moves_elements
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.strided import NEW_AXIS, Item, Masks, check_index, items_of
from torch_tfckpt.graph_ops.values import Ints, Tensor


@op("Unpack", list_output=True)
@moves_elements
def unpack(value: Tensor, *, num: int, axis: int = 0) -> tuple[Tensor, ...]:
    at = axis_of(axis, value.dim())
    if value.shape[at] != num:
        raise InvalidArgumentError(f"cannot unpack axis {axis} of the shape {list(value.shape)} into {num} parts")
    return value.unbind(at)


@op("Split", list_output=True)
@moves_elements
def split(split_dim: int, value: Tensor, *, num_split: int) -> tuple[Tensor, ...]:
    at = axis_of(split_dim, value.dim())
    if value.shape[at] % num_split:
        raise InvalidArgumentError(f"cannot split {value.shape[at]} elements into {num_split} equal parts")
    step = value.shape[at] // num_split
    return tuple(value.narrow(at, number * step, step) for number in range(num_split))


@op("SplitV", list_output=True)
@moves_elements
def split_v(value: Tensor, size_splits: Ints, split_dim: int, *, num_split: int) -> tuple[Tensor, ...]:
    at = axis_of(split_dim, value.dim())
    return value.split_with_sizes(split_sizes(value.shape[at], size_splits), at)


@op("Slice")
@moves_elements
def slice_(input: Tensor, begin: Ints, size: Ints) -> Tensor:
    if not input.dim() == len(begin) == len(size):
        raise InvalidArgumentError(f"begin {list(begin)} and size {list(size)} for the shape {list(input.shape)}")
    for axis, (first, count) in enumerate(zip(begin, size, strict=True)):
        if first < 0:
            raise InvalidArgumentError(f"begin must not be negative: {list(begin)}")
        input = input.narrow(axis, first, input.shape[axis] - first if count == -1 else count)
    return input


@op("StridedSlice")
@moves_elements
def strided_slice(
    input: Tensor,
    begin: Ints,
    end: Ints,
    strides: Ints,
    *,
    begin_mask: int = 0,
    end_mask: int = 0,
    ellipsis_mask: int = 0,
    new_axis_mask: int = 0,
    shrink_axis_mask: int = 0,
) -> Tensor:
    masks = Masks(begin_mask, end_mask, ellipsis_mask, new_axis_mask, shrink_axis_mask)
    index, reversed_axes = _index(items_of(input.dim(), begin, end, strides, masks), input.shape)
    return (input.flip(reversed_axes) if reversed_axes else input)[index]


@op("StridedSliceGrad")
def strided_slice_grad(
    shape: Ints,
    begin: Ints,
    end: Ints,
    strides: Ints,
    dy: Tensor,
    *,
    begin_mask: int = 0,
    end_mask: int = 0,
    ellipsis_mask: int = 0,
    new_axis_mask: int = 0,
    shrink_axis_mask: int = 0,
) -> Tensor:
    """Put `dy` where StridedSlice takes its result from; zeros elsewhere."""
    check_size(shape)
    masks = Masks(begin_mask, end_mask, ellipsis_mask, new_axis_mask, shrink_axis_mask)
    index, reversed_axes = _index(items_of(len(shape), begin, end, strides, masks), shape)
    found = dy.new_zeros(shape)
    if found[index].shape != dy.shape:
        raise InvalidArgumentError(f"dy has the shape {list(dy.shape)}, the slice {list(found[index].shape)}")
    found[index] = dy
    return found.flip(reversed_axes) if reversed_axes else found


def _index(items: list[Item], sizes: Ints) -> tuple[tuple[slice | int | None, ...], list[int]]:
    """Return an index without negative strides, for a tensor that is reversed along the axes that are also returned."""
    index: list[slice | int | None] = []
    reversed_axes = []
    axis = 0
    for item in items:
        if isinstance(item, str):
            assert item == NEW_AXIS
            index.append(None)
            continue
        if isinstance(item, slice):
            if item.step is not None and item.step < 0:
                reversed_axes.append(axis)
                size = sizes[axis]
                item = slice(_from_the_end(item.start, size), _from_the_end(item.stop, size), -item.step)
        else:
            check_index(item, sizes[axis], axis)
        index.append(item)
        axis += 1
    return tuple(index), reversed_axes


def _from_the_end(place: int | None, size: int) -> int | None:
    """Return a place of a slice in the reversed axis."""
    if place is None:
        return None
    found: int = -1 - place if place < 0 else torch.sym_max(size - 1 - place, 0)  # type: ignore[no-untyped-call]
    return found


@op("Gather")
@moves_elements
def gather(params: Tensor, indices: Tensor) -> Tensor:
    return gather_v2(params, indices, 0)


@op("GatherV2")
@moves_elements
def gather_v2(params: Tensor, indices: Tensor, axis: int, *, batch_dims: int = 0) -> Tensor:
    at, same = gathered_axes_of(axis, batch_dims, params.shape, indices.shape)
    if same == 0:
        shape = (*params.shape[:at], *indices.shape, *params.shape[at + 1 :])
        if is_empty(shape):  # then TensorFlow does not look at the indices
            return params.reshape(-1)[:0].reshape(shape)
        return params.index_select(at, indices.reshape(-1)).reshape(shape)
    batch, between, after = params.shape[:same], params.shape[same:at], params.shape[at + 1 :]
    many = indices.shape[same:]
    groups, count, rest = math.prod(batch), math.prod(many), math.prod(between) * math.prod(after)
    rows = params.movedim(at, same).reshape(groups, params.shape[at], rest)
    places = indices.to(torch.int64).reshape(groups, count, 1).expand(groups, count, rest)
    taken = rows.gather(1, places).reshape((*batch, count, *between, *after))
    moved = taken.movedim(same, at)
    return moved.reshape((*batch, *between, *many, *after))


@op("ResourceGather")
def resource_gather(resource: Tensor, indices: Tensor, *, dtype: torch.dtype, batch_dims: int = 0) -> Tensor:
    """GatherV2 along the first axis after the batch. The caller passes the value of the variable."""
    at, _ = gathered_axes_of(batch_dims, batch_dims, resource.shape, indices.shape)
    if is_empty(resource.shape):  # here, TensorFlow looks at the indices
        check_all((indices >= 0) & (indices < resource.shape[at]), "indices are out of range")
    return gather_v2(resource, indices, batch_dims, batch_dims=batch_dims)


@op("GatherNd")
@moves_elements
def gather_nd(params: Tensor, indices: Tensor, *, bad_indices_policy: str = "") -> Tensor:
    depth = indices.shape[-1] if indices.dim() else params.dim() + 1
    if depth > params.dim():
        raise InvalidArgumentError(
            f"indices of the shape {list(indices.shape)} for params of the shape {list(params.shape)}"
        )
    if is_empty(params.shape) and not is_empty(indices.shape[:-1]):
        raise InvalidArgumentError(f"{list(indices.shape)} indices into params without elements: {list(params.shape)}")
    if depth == 0:
        return params.expand((*indices.shape[:-1], *params.shape))
    places, valid = nd_places(indices, params.shape, bad_indices_policy)
    rest = params.shape[depth:]
    rows = params.reshape(math.prod(params.shape[:depth]), math.prod(rest))
    taken = rows.index_select(0, places)
    if valid is not None:
        taken = torch.where(valid.reshape(-1, 1), taken, 0)
    return taken.reshape((*indices.shape[:-1], *rest))


def nd_places(indices: Tensor, sizes: Ints, bad_indices_policy: str) -> tuple[Tensor, Tensor | None]:
    """Return the number of the row that each vector of indices is about, as a vector.

    Args:
        indices: [..., d]: indices for the first d axes.
        sizes: The shape of the tensor.
        bad_indices_policy: "IGNORE": replace indices out of range by 0 and also return which rows are valid.
    """
    depth = indices.shape[-1]
    leading = list(sizes[:depth])
    flat = indices.to(torch.int64).reshape(math.prod(indices.shape[:-1]), depth)
    valid = (flat >= 0) & (flat < torch.tensor(leading, device=flat.device))
    ignored = None
    if bad_indices_policy == "IGNORE":
        ignored = valid.all(-1)
        flat = torch.where(ignored[:, None], flat, 0)
    else:
        check_all(valid, "indices are out of range")
    places = torch.zeros_like(flat[:, 0])
    for axis, size in enumerate(leading):
        places = places * size + flat[:, axis]
    return places, ignored
