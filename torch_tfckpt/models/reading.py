"""Read the stored tensors of a load, and turn them into the new values of a module.

Contract:

    verified      every byte is compared with its checksum, and every value is complete, before this returns
    memory        for values that the module will own: the values, and one batch of stored tensors
                  for values that are copied into the module: the stored tensors; values are views where possible
"""

from collections.abc import Sequence

import torch

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.foreign_files.values import batches
from torch_tfckpt.models.assembly import Source
from torch_tfckpt.models.targets import Target

Loads = Sequence[tuple[Target, Source]]


def read_values(reader: CheckpointReader, loads: Loads, *, own_memory: bool) -> list[torch.Tensor]:
    """Return the new value of each target, in the dtype of the target.

    Args:
        own_memory: Return contiguous values on the devices of their targets (on the CPU for the meta device); no two of
            them share memory.

    Raises:
        DataLossError: a value is damaged.
    """
    if not own_memory:
        return _made(reader, loads)
    values: list[torch.Tensor] = []
    sizes = {target.name: sum(map(reader.nbytes, source.read_keys)) for target, source in loads}
    by_name = {target.name: (target, source) for target, source in loads}
    for names in batches(sizes):
        batch = [by_name[name] for name in names]
        values += _owned(batch, _made(reader, batch))
    return values


def _made(reader: CheckpointReader, loads: Loads) -> list[torch.Tensor]:
    keys = dict.fromkeys(key for _, source in loads for key in source.read_keys)
    stored = {key: value for key, value in reader.get_tensors(keys).items() if isinstance(value, torch.Tensor)}
    return [source.value(stored).to(target.tensor.dtype) for target, source in loads]


def _owned(loads: Loads, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    owned: list[torch.Tensor] = []
    seen: set[int] = set()
    for (target, _), value in zip(loads, values, strict=True):
        device = target.tensor.device
        own = value.contiguous().to("cpu" if device.type == "meta" else device)
        if own.untyped_storage().nbytes() > own.nbytes:
            own = own.clone()  # part of a larger tensor, whose memory would stay in use
        # One stored tensor may be loaded into two targets; if they shared memory, a change to one would change both.
        if own.untyped_storage().data_ptr() in seen:
            own = own.clone()
        seen.add(own.untyped_storage().data_ptr())
        owned.append(own)
    return owned
