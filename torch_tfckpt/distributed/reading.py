"""Read this rank's part of a stored tensor, for a DTensor that is spread over ranks.

    value = read_part(reader, "up.weight", dtensor)         # a plain tensor in host memory: rows 4 to 7
    again = like_dtensor(dtensor, part_of("up.weight", value, dtensor))

Each rank reads alone, only its own elements; nothing is communicated. A rank without elements reads nothing. If the
stored shape is not that of the DTensor, the whole value is returned: the caller decides whether it can be reshaped.
"""

from typing import TYPE_CHECKING

import torch

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.distributed.shards import is_dtensor, local_shard, local_tensor
from torch_tfckpt.format.tensor_slice import TensorSlice
from torch_tfckpt.values import Value, value_dtype

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_split(reader: CheckpointReader, name: str, tensor: object) -> bool:
    """Return whether less than the whole tensor stored under `name` is to be read for `tensor`.

    That is a DTensor of the stored shape of which this rank does not have everything.
    """
    if not is_dtensor(tensor) or reader.shape(name) != tuple(tensor.shape):
        return False
    shard = local_shard(name, tensor)
    return shard is None or shard.part != TensorSlice.full(tensor.ndim)


def read_part(reader: CheckpointReader, name: str, tensor: "DTensor") -> Value:
    """Return the elements of a stored tensor that this rank has of a DTensor, in host memory.

    Returns:
        The part, with the stored dtype; the whole value if the stored shape is another one.

    Raises: as `CheckpointReader.get_tensor` and `local_shard`.
    """
    full = TensorSlice.full(tensor.ndim)
    part = full
    if reader.shape(name) == tuple(tensor.shape):
        shard = local_shard(name, tensor)
        if shard is None:
            dtype = value_dtype(name, reader.dtype(name))
            return torch.empty(local_tensor(name, tensor).shape, dtype=dtype, device="cpu")
        part = shard.part
    value: Value = reader.get_tensor(name) if part == full else reader.read_slice(name, part)
    return value


def part_of(name: str, value: torch.Tensor, tensor: "DTensor") -> torch.Tensor:
    """Return the elements of a value that this rank has of a DTensor.

    Args:
        value: The part itself, or a whole tensor with as many elements as the DTensor.
    """
    local = local_tensor(name, tensor)
    if value.shape == local.shape:
        return value
    if not value.numel():
        return value.new_empty(local.shape)
    shard = local_shard(name, tensor)
    whole = value.reshape(tensor.shape)
    return whole.new_empty(local.shape) if shard is None else whole[shard.part.to_index()]
