"""The items of a rank's plan, as tensors and slices of a checkpoint, and JSON."""

from collections.abc import Mapping

import torch
from torch.distributed.checkpoint.planner import SavePlanner, WriteItem

from torch_tfckpt.bundle.plan import BundlePlan
from torch_tfckpt.bundle.row_slices import row_slices
from torch_tfckpt.distributed.shards import plain_tensor
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.tensor_slice import Extent, TensorSlice, element_count
from torch_tfckpt.integrations.dcp_names import GROUPS, StateNames, key_of_path
from torch_tfckpt.integrations.dcp_texts import encode_value
from torch_tfckpt.text import quoted


def add_tensor(bundle: BundlePlan, names: StateNames, item: WriteItem, planner: SavePlanner, limit: int | None) -> None:
    """Add this rank's part of a tensor, in slices of at most `limit` bytes."""
    name, data = item.index.fqn, item.tensor_data
    key = names.tensor_key(name)
    if data is None:
        raise InvalidArgumentError(f"the plan has no shape for {quoted(name)}, which is a tensor")
    full, offsets, sizes = tuple(data.size), tuple(data.chunk.offsets), tuple(data.chunk.sizes)
    if not element_count(sizes) and (element_count(full) or any(offsets)):
        return  # a rank without elements; an empty tensor is stored once
    tensor = _plain(key, planner.resolve_data(item))
    if not element_count(full):
        bundle.add(key, tensor.reshape(full), shard=0)
        return
    if tuple(tensor.shape) != sizes:
        raise InvalidArgumentError(
            f"tensor {quoted(key)}: the plan of this rank has a part of shape {list(sizes)} at {list(offsets)}, "
            f"but the tensor in the state_dict has shape {list(tensor.shape)}"
        )
    whole = TensorSlice(tuple(map(Extent, offsets, sizes)))
    for part, piece in row_slices(full, whole, tensor, limit):
        bundle.add(key, piece, shard=0, part=(full, part or whole))


def add_value(bundle: BundlePlan, names: StateNames, item: WriteItem, planner: SavePlanner) -> str:
    """Return the JSON of a value that is not a tensor, and add the tensors in it."""
    name = item.index.fqn
    found = names.hyperparameters.get(name)
    path = names.paths[name] if found is None else (*found.optimizer, GROUPS, found.parameter, found.name)
    text, tensors = encode_value(key_of_path(path), _looked_up(planner, item))
    for key, tensor in tensors.items():
        bundle.add(key, tensor, shard=0)
    return text


def _looked_up(planner: SavePlanner, item: WriteItem) -> object:
    """Return the value of an item that is not a tensor."""
    look_up = getattr(planner, "lookup_object", None)
    if look_up is not None:
        value: object = look_up(item.index)
        return value
    state = getattr(planner, "state_dict", None)
    if isinstance(state, Mapping) and item.index.fqn in state:
        return state[item.index.fqn]
    raise TypeError(
        f"{quoted(item.index.fqn)} of the state_dict is not a tensor, and the planner {type(planner).__name__} has "
        f"neither lookup_object nor a state_dict with it, so the value would arrive pickled. Use a planner derived "
        f"from DefaultSavePlanner"
    )


def _plain(key: str, value: object) -> torch.Tensor:
    """Return the tensor that a planner has resolved, once its value has arrived."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{quoted(key)} is planned as a tensor, but the planner returns a {type(value).__name__}")
    return plain_tensor(value)
