"""Restore large tensors without holding their values: verify the files, then read straight into the tensors.

A saveable is restored in place if all that its `restore` does is to copy one stored value into its tensor: it is a
VariableSaveable whose `restore` is not overridden, of the stored dtype: whole, a slice, or the local part of a DTensor.
Tensors on accelerators and tensors with strides are included. The result is the same as that of `restore`.

Restored by their `restore`, from values that were read into new memory, are

    all other saveables, and tensors that share memory with another tensor of the restore
    tensors of less than LARGE_BYTES, if together they take up to HELD_BYTES: it is faster to read runs of small tensors
      once, and to copy them
    everything, if a subclass of the builder reads the values in its own way
    everything, if the files are not local: verifying them first would download them twice
    everything in version 1 and Keras files

Measured with 1 GiB in 64 tensors, on two cores: with the file in the system's memory, two reads take less than half of
the time of one read into new memory and a copy, because new memory costs more than a second read. With the file on
disk, both take as long as the first read of the disk. Files that are larger than the free memory are read from disk
twice; their values could not be held in memory at all.
"""

from collections.abc import Callable, Sequence
from typing import Final

import torch

from torch_tfckpt.bundle.planned_read import PartRequest
from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.distributed.shards import is_dtensor, local_shard, memory_of
from torch_tfckpt.dtypes import ELEMENTS
from torch_tfckpt.format.tensor_slice import TensorSlice
from torch_tfckpt.save_restore.builder import BaseSaverBuilder, reads_in_bulk
from torch_tfckpt.save_restore.object_names import UnderKeys
from torch_tfckpt.saveables.save_spec import SaveableObject, SaveSpec, slice_of
from torch_tfckpt.saveables.tensor_saveable import VariableSaveable
from torch_tfckpt.transfer.host_bytes import is_row_major

LARGE_BYTES: Final = 256 * 1024
"""Tensors of at least this size are read straight into their memory."""
HELD_BYTES: Final = 64 * 1024 * 1024
"""Up to this size, the values of smaller tensors are held in memory before the first is assigned."""

_Target = tuple[SaveableObject, torch.Tensor]


class InPlaceRestore:
    """The part of a restore that reads straight into tensors.

    Args:
        targets: The saveables and the tensors that are filled.
        fill: Reads the values; None if there are no targets.
    """

    def __init__(self, targets: Sequence[_Target] = (), fill: Callable[[], None] | None = None) -> None:
        self._targets, self._fill = targets, fill
        self._chosen = {id(saveable) for saveable, _ in targets}

    @property
    def names(self) -> list[str]:
        """The names of the saveables that are restored in place."""
        return [saveable.name for saveable, _ in self._targets]

    def without(self, saveables: Sequence[SaveableObject]) -> list[SaveableObject]:
        """Return the saveables that are not restored in place."""
        return [saveable for saveable in saveables if id(saveable) not in self._chosen]

    def read(self) -> None:
        """Read the values into the tensors. Raises as PlannedRead.read does; a note lists the tensors that changed."""
        if self._fill is None:
            return
        try:
            self._fill()
        finally:
            for _, tensor in self._targets:  # autograd must notice the change, as after `copy_`
                torch.autograd.graph.increment_version(tensor)


def verify_in_place(
    builder: BaseSaverBuilder,
    reader: CheckpointReader,
    saveables: Sequence[SaveableObject],
    *,
    reshape: bool,
    held_bytes: int = HELD_BYTES,
) -> InPlaceRestore:
    """Choose the saveables to restore in place, and verify their values, unless the reader does not verify.

    REQUIRES: names, dtypes and shapes were checked.

    Args:
        reshape: Whether the stored values may have other shapes than the tensors.
        held_bytes: Limit for the values of smaller tensors that are held.

    Raises:
        DataLossError, InvalidArgumentError: as BundleReader.read_into; nothing has changed.
    """
    found = [(saveable, variable) for saveable in saveables if (variable := _variable(saveable)) is not None]
    memory = {id(saveable): memory_of(variable.tensor) for saveable, variable in found}
    small = sum(here.nbytes for here in memory.values() if here.nbytes < LARGE_BYTES)
    least = LARGE_BYTES if small <= held_bytes else 0
    if not reads_in_bulk(builder) or not any(here.nbytes >= least for here in memory.values()):
        return InPlaceRestore()
    shared = _sharing_memory(list(memory.values()))
    targets: list[_Target] = []
    requests: list[PartRequest] = []
    for saveable, variable in found:
        here = memory[id(saveable)]
        if here.nbytes < least or id(here) in shared or not _is_plain(variable):
            continue
        request = _request(reader, saveable.specs[0], variable.tensor, reshape=reshape)
        if request is not None:
            targets.append((saveable, request[2]))
            requests.append(request)
    fill = reader.verify_in_place(requests) if requests else None
    return InPlaceRestore() if fill is None else InPlaceRestore(targets, fill)


def _variable(saveable: SaveableObject) -> VariableSaveable | None:
    """Return the VariableSaveable that a saveable is, or that it wraps."""
    if isinstance(saveable, UnderKeys):
        saveable = saveable.saveable
    return saveable if isinstance(saveable, VariableSaveable) else None


def _is_plain(variable: VariableSaveable) -> bool:
    """Return whether `restore` is not overridden, and the tensor may be filled outside of inference mode."""
    own = getattr(variable.restore, "__func__", None)
    return own is VariableSaveable.restore and not variable.tensor.is_inference()


def _request(reader: CheckpointReader, spec: SaveSpec, tensor: torch.Tensor, *, reshape: bool) -> PartRequest | None:
    """Return what to read into a tensor; None if the value has a different dtype, or a shape that no view has."""
    element = ELEMENTS.get(reader.dtype(spec.name))
    if element is None or element.torch != tensor.dtype:
        return None
    part: TensorSlice | None = None
    if is_dtensor(tensor):
        shard = local_shard(spec.name, tensor) if reader.shape(spec.name) == tuple(tensor.shape) else None
        return None if shard is None or spec.slice_spec else (spec.name, shard.part, shard.local)
    if spec.slice_spec:
        full_shape, part = slice_of(spec)
        shape = part.shape_of(full_shape)
    else:
        shape = reader.shape(spec.name)
    if tuple(tensor.shape) != shape:
        if not reshape or not is_row_major(tensor):
            return None
        tensor = tensor.detach().view(shape)
    return spec.name, part, tensor


def _sharing_memory(tensors: Sequence[torch.Tensor]) -> set[int]:
    """Return the ids of tensors that may share memory with another one, or whose memory is unknown."""
    found: set[int] = set()
    placed: list[tuple[str, int, int, int]] = []
    for tensor in tensors:
        steps = [(size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
        try:
            begin = tensor.data_ptr()
        except RuntimeError:
            found.add(id(tensor))
            continue
        size = (sum(steps) + 1) * tensor.dtype.itemsize if tensor.numel() else 0
        placed.append((str(tensor.device), begin, begin + size, id(tensor)))
    placed.sort()
    last = ("", 0, 0, 0)  # of those so far on the same device, the one that ends last
    for place in placed:
        if place[0] == last[0] and place[1] < last[2]:
            found.update((place[3], last[3]))
        if place[0] != last[0] or place[2] > last[2]:
            last = place
    return found
