"""Which part of a tensor a DTensor holds on this rank. Nothing here communicates.

A DTensor has a mesh of ranks and one placement for each dimension of the mesh: Shard(d) splits dimension d of the
tensor as torch.chunk does, Replicate() keeps a copy. A tensor [5, 4] on a mesh of 2 x 2 ranks:

    Shard(0), Replicate()                         rows 0:3 | 0:3 | 3:5 | 3:5       two replicas
    Shard(0), Shard(1)                            0:3 x 0:2 | 0:3 x 2:4 | 3:5 x 0:2 | 3:5 x 2:4
    Shard(0), Shard(0)                            0:2 | 2:3 | 3:4 | 4:5            first by the first mesh dimension
    _StridedShard(0, split_factor=2), Shard(0)    0:2 | 3:4 | 2:3 | 4:5            first by the second (TP, then FSDP2)

torch.chunk gives every rank the same size, rounded up, until nothing is left: 5 rows on 4 ranks are 2, 2, 1, 0.

torch computes the rows of _StridedShard in another way, which is the same for even sizes and differs from what FSDP2
holds for some uneven ones. Here the splits are repeated in the order in which they were made, and the resulting shape
must be the shape of the local tensor; otherwise it is unknown which rows the rank has, and the tensor is refused. For
meshes of up to 12 x 12 and up to 150 rows, wherever torch's rows are different ones on any rank, so is the size on at
least one rank: a tensor that has torch's rows is refused on that rank.

torch.distributed.tensor is not imported: before somebody imports it, no tensor is a DTensor.

Source: torch/distributed/tensor/placement_types.py; torch/distributed/fsdp/_fully_shard/_fsdp_param.py.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeGuard

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.tensor_slice import WHOLE, Extent, Shape, TensorSlice, shape_text
from torch_tfckpt.text import printable, quoted
from torch_tfckpt.values import PLAIN_CLASSES, check_plain

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

_MODULE: Final = "torch.distributed.tensor"
_SHARD: Final = "Shard"
_STRIDED: Final = "_StridedShard"
# Of these dtypes, TensorFlow cannot read a tensor that is stored in slices.
_WHOLE_IN_TENSORFLOW: Final = frozenset(
    {torch.float16, torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2}
)

_log = logging.getLogger(__name__)


class LocalShard(NamedTuple):
    """The elements of a DTensor that this rank holds: at least one, unless the whole tensor has none.

    Attributes:
        full_shape: Shape of the DTensor.
        part: Which box of it. A dimension that is not split is whole ("-"), so that a tensor that every rank has
            completely is `TensorSlice.full`.
        local: The elements, as a plain tensor without autograd. It shares memory with the DTensor.
        is_first_replica: Whether the coordinate of this rank is 0 in every mesh dimension in which copies are kept.
            Exactly one rank has each element as the first replica.
    """

    full_shape: Shape
    part: TensorSlice
    local: torch.Tensor
    is_first_replica: bool


def any_dtensors() -> bool:
    """Return whether there may be DTensors: whether somebody has imported torch.distributed.tensor."""
    return _dtensor() is not None


def is_dtensor(tensor: object) -> "TypeGuard[DTensor]":
    """Return whether an object is a DTensor. Does not import torch.distributed.tensor."""
    if type(tensor) in PLAIN_CLASSES:
        return False
    kind = _dtensor()
    return kind is not None and isinstance(tensor, kind)


def check_storable(name: str, tensor: torch.Tensor, *, meta: bool = False) -> None:
    """Raise InvalidArgumentError as `check_plain` does, for a DTensor about its local tensor, and as `local_shard`."""
    if is_dtensor(tensor):
        local_shard(name, tensor)
        tensor = local_tensor(name, tensor)
    check_plain(name, tensor, meta=meta)


def refuse_sharded(name: str, tensor: object) -> None:
    """Raise InvalidArgumentError if a tensor is a DTensor, which needs a save or restore by all ranks together."""
    if is_dtensor(tensor):
        check_plain(name, tensor)


def memory_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor itself; for a DTensor, its local tensor as it is, of any class."""
    if not is_dtensor(tensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()


def local_tensor(name: str, tensor: "DTensor") -> torch.Tensor:
    """Return what this rank holds of a DTensor, possibly nothing, as a plain tensor that shares its memory.

    A communication that still computes it is waited for.

    Raises:
        InvalidArgumentError: the local tensor is itself a tensor subclass; `name` is that of the DTensor.
    """
    with torch.no_grad():
        plain = plain_tensor(tensor.to_local())
    if (kind := type(plain)) is not torch.Tensor:
        raise InvalidArgumentError(
            f"tensor {quoted(name)}: this rank's part of the DTensor is a {kind.__module__}.{kind.__qualname__}, whose "
            f"values only that class can interpret. Convert it to a plain tensor first"
        )
    return plain


def plain_tensor(local: Any) -> torch.Tensor:
    """Return a local tensor without its history. A communication that still computes it is waited for."""
    # An AsyncCollectiveTensor, the result of a collective that may still run. Asking for its class by name keeps
    # torch.distributed._functional_collectives, which is private, out of here.
    if type(local).__name__ == "AsyncCollectiveTensor":
        local = local.wait()
    plain: torch.Tensor = local.detach()
    return plain


def is_split(tensor: "DTensor") -> bool:
    """Return whether ranks hold different elements of a DTensor."""
    return any(type(placement).__name__ in (_SHARD, _STRIDED) for placement in tensor.placements)


def local_shard(name: str, tensor: "DTensor") -> LocalShard | None:
    """Return the part of a DTensor that this rank holds.

    Args:
        name: Name of the tensor, for errors.

    Returns:
        None if this rank has no elements: it is not in the mesh, or nothing was left for it. A tensor that has no
        elements at all is held completely by every rank of the mesh.

    Raises:
        InvalidArgumentError: a Partial placement, which is a sum that was not computed yet; a placement that is not a
            box, or one of another library; a local tensor of another shape than the placements give, for example one
            from `DTensor.from_local` that is not split as torch.chunk does.
    """
    splits = _splits(name, tensor)
    coordinate = tensor.device_mesh.get_coordinate()
    if coordinate is None:
        return None
    full_shape = tuple(tensor.shape)
    if not prod(full_shape):
        empty = torch.empty(full_shape, dtype=tensor.dtype, device=local_tensor(name, tensor).device)
        return LocalShard(full_shape, TensorSlice.full(len(full_shape)), empty, not any(coordinate))
    local = local_tensor(name, tensor)
    mesh_shape = tuple(tensor.device_mesh.shape)
    extents = [
        _extent(size, [(mesh_shape[dim], coordinate[dim]) for dim in splits.get(axis, ())])
        for axis, size in enumerate(full_shape)
    ]
    expected: Shape = tuple(
        size if length == WHOLE else length for size, (_, length) in zip(full_shape, extents, strict=True)
    )
    if expected != tuple(local.shape) and (0 not in expected or local.numel()):
        raise InvalidArgumentError(
            f"tensor {quoted(name)}: this rank has {shape_text(local.shape)} of a DTensor {shape_text(full_shape)}, "
            f"but {tensor.placements} on a mesh {shape_text(mesh_shape)} give {shape_text(expected)} to coordinate "
            f"{tuple(coordinate)}. It is unknown which elements these are. Use a size that the ranks divide evenly"
        )
    if not local.numel():
        return None
    split_dims = {dim for dims in splits.values() for dim in dims}
    first = not any(index for dim, index in enumerate(coordinate) if dim not in split_dims)
    return LocalShard(full_shape, TensorSlice(tuple(extents)), local, first)


def tell_about_tensorflow(prefix: str, in_slices: Mapping[str, torch.dtype]) -> None:
    """Log which tensors of a checkpoint TensorFlow cannot read. `in_slices`: those that are stored in slices."""
    found = [name for name, dtype in in_slices.items() if dtype in _WHOLE_IN_TENSORFLOW]
    if found:
        _log.info(
            "%s: TensorFlow cannot join slices of the dtypes of %d tensors, such as %s. For TensorFlow, store them "
            "whole: `tfckpt convert %s TARGET --to tf`",
            printable(prefix),
            len(found),
            quoted(found[0]),
            printable(prefix),
        )


def like_dtensor(template: "DTensor", local: torch.Tensor | None, dtype: torch.dtype | None = None) -> "DTensor":
    """Return a DTensor with the mesh, placements, shape and strides of another one.

    Args:
        template: How it is spread over the ranks.
        local: This rank's part, of the shape of the template's; not copied if it is on the device of the template.
            None if this rank has no elements.
        dtype: Type of the elements if `local` is None; by default the template's. Otherwise `local` is converted.
    """
    kind = _dtensor()
    assert kind is not None
    with torch.no_grad():
        if local is None:
            theirs = template.to_local()
            local = torch.empty(theirs.shape, dtype=dtype or theirs.dtype, device=theirs.device)
        elif dtype is not None:
            local = local.to(dtype)
        made: Any = kind.from_local(
            local,
            template.device_mesh,
            template.placements,
            run_check=False,
            shape=template.shape,
            stride=template.stride(),
        )
        # `from_local` moves to the devices of the mesh, but FSDP2 may keep parameters in host memory.
        same = template.is_meta or made.device == template.device
        spread: DTensor = made if same else made.to(template.device)
        return spread


def _dtensor() -> "type[DTensor] | None":
    """Return the class, if somebody has imported it."""
    return getattr(sys.modules.get(_MODULE), "DTensor", None)


def _extent(size: int, splits: Sequence[tuple[int, int]]) -> Extent:
    """Return the range of one dimension after splits, each (number of pieces, which piece), in the order made."""
    if not splits:
        return Extent(0, WHOLE)
    start, length = 0, size
    for pieces, index in splits:
        piece = -(-length // pieces)  # as torch.chunk
        begin = min(length, piece * index)
        start, length = start + begin, min(length, begin + piece) - begin
    return Extent(0, WHOLE) if length == size else Extent(start, length)


def _splits(name: str, tensor: "DTensor") -> dict[int, list[int]]:
    """Return the mesh dimensions that split each dimension of a tensor, in the order in which the splits were made."""
    mesh_shape = tuple(tensor.device_mesh.shape)
    splits: dict[int, list[int]] = {}
    # From right to left: a Shard was made before the splits to the right of it, a _StridedShard after as many of them
    # as its split_factor says.
    placements: Sequence[Any] = tensor.placements
    for mesh_dim, placement in reversed(list(enumerate(placements))):
        if placement.is_replicate():
            continue
        kind = type(placement).__name__
        if placement.is_partial():
            raise InvalidArgumentError(
                f"tensor {quoted(name)}: {placement!r} is a sum that the ranks have not computed yet, so no rank has a "
                f"value. Call tensor.redistribute(placements=[Replicate(), ...]) first"
            )
        if kind not in (_SHARD, _STRIDED) or type(placement).__module__.partition(".")[0] != "torch":
            raise InvalidArgumentError(
                f"tensor {quoted(name)}: the placement {placement!r} ({type(placement).__module__}.{kind}) is unknown, "
                f"so is which elements this rank has. Use Shard or Replicate"
            )
        axis = int(placement.dim) % max(1, tensor.ndim)
        made = splits.setdefault(axis, [])
        factor = int(placement.split_factor) if kind == _STRIDED else 1
        before, pieces = 0, 1
        while pieces < factor and before < len(made):
            pieces *= mesh_shape[made[before]]
            before += 1
        if pieces != factor:
            raise InvalidArgumentError(
                f"tensor {quoted(name)}: {tensor.placements} on a mesh {shape_text(mesh_shape)} gives every rank "
                f"elements that are not consecutive in dimension {axis}, which a checkpoint cannot store as a slice. "
                f"Call tensor.redistribute(placements=[Shard({axis}), ...]) first"
            )
        made.insert(before, mesh_dim)
    return splits
