"""Detect objects that share memory, so that no value is saved or restored under two names."""

import torch
from torch.nn.parameter import is_lazy

from torch_tfckpt.distributed.shards import is_dtensor, memory_of

Identity = tuple[object, ...]


def identity_of(thing: object) -> Identity:
    """Return a key that is equal for two objects if and only if restoring one restores the other.

    Two tensors have equal keys if they have the same storage, offset, shape, strides, dtype, and conjugate and
    negative flags: `z` and `z.conj()` share memory, and so do `x` and `x.view(torch.int32)`, but a value of one is
    not a value of the other. DTensors are compared by the memory of this rank's part, and by how they are spread.
    Tensors without their own memory (empty, meta, lazy, sparse, wrappers of other tensors)
    and all other objects are compared by `id`, so the result is valid only while `thing` exists.
    """
    if is_dtensor(thing):
        local = identity_of(memory_of(thing))
        if local[0] == "memory":
            return (*local, tuple(thing.shape), thing.device_mesh, thing.placements)
        return ("object", id(thing))
    if (
        isinstance(thing, torch.Tensor)
        and type(thing).__torch_dispatch__ is torch.Tensor.__torch_dispatch__  # else it wraps other tensors
        and not is_lazy(thing)
        and not thing.is_nested
        and thing.numel()
    ):
        try:
            memory = thing.untyped_storage().data_ptr()
        except (NotImplementedError, RuntimeError):  # sparse tensors and wrappers around several tensors
            memory = 0
        if memory:
            layout = (thing.storage_offset(), tuple(thing.shape), thing.stride(), thing.dtype)
            return ("memory", thing.device, memory, layout, thing.is_conj(), thing.is_neg())
    return ("object", id(thing))
