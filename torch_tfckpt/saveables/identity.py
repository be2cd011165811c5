"""Detect two objects that share memory, so that no value is saved or restored under two names."""

import torch
from torch.nn.parameter import is_lazy

Identity = tuple[object, ...]


def identity_of(thing: object) -> Identity:
    """Equal for two objects exactly where restoring one restores the other.

    Tensors are one where they are the same memory: storage, offset, shape and strides. Tensors without memory of their
    own (empty, meta, lazy, sparse) and all other objects are one only with themselves; so the result means something
    only as long as `thing` lives.
    """
    if isinstance(thing, torch.Tensor) and not is_lazy(thing) and thing.numel():
        try:
            memory = thing.untyped_storage().data_ptr()
        except (NotImplementedError, RuntimeError):  # sparse tensors and wrappers around several tensors
            memory = 0
        if memory:
            return ("memory", str(thing.device), memory, thing.storage_offset(), tuple(thing.shape), thing.stride())
    return ("object", id(thing))
