"""Detect two objects that share memory, so that no value is saved or restored under two names."""

import torch
from torch.nn.parameter import is_lazy

Identity = tuple[object, ...]


def identity_of(thing: object) -> Identity:
    """Return a key that is equal for two objects exactly if restoring one restores the other.

    Two tensors are equal if they have the same storage, offset, shape and strides. Tensors without their own memory
    (empty, meta, lazy, sparse) and all other objects are compared by `id`, so the result is valid only while `thing`
    exists.
    """
    if isinstance(thing, torch.Tensor) and not is_lazy(thing) and thing.numel():
        try:
            memory = thing.untyped_storage().data_ptr()
        except (NotImplementedError, RuntimeError):  # sparse tensors and wrappers around several tensors
            memory = 0
        if memory:
            return ("memory", str(thing.device), memory, thing.storage_offset(), tuple(thing.shape), thing.stride())
    return ("object", id(thing))
