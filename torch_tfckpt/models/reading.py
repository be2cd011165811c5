"""Read the stored tensors of a load, and turn them into the new values of a module.

Contract:

    verified    before the first tensor of the module changes, every byte is compared with its checksum, every shape is
                checked, and values beyond the range of the module's dtype are counted
    memory      for values that the module will own (assign): the values, and one batch of stored tensors
                for large tensors that are stored as they are, in local files: none, they are read in place
                for values that are copied into the module: all of them, up to _HELD_BYTES. If they are larger, they
                are read twice, first to verify them and then, batch by batch, to copy them. Values that a module's
                load_state_dict takes, and those made by functions of a rule, are held in any case

    ranks       of a DTensor, only the elements that this rank has are read and made, and held unless they are read in
                place: each rank verifies what it reads

Stored tensors from which several tensors of the module are made are read once for all of them, except parts for
DTensors.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

import torch

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.distributed.shards import any_dtensors, local_shard, local_tensor
from torch_tfckpt.dtypes import ELEMENTS, RangeLoss, cast_counted, may_lose, torch_dtype
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.tensor_slice import TensorSlice, shape_text
from torch_tfckpt.models.layers.assembly import Source
from torch_tfckpt.models.layers.boxes import box_of
from torch_tfckpt.models.targets import Target
from torch_tfckpt.save_restore.builder import BulkSaverBuilder
from torch_tfckpt.save_restore.in_place import LARGE_BYTES, InPlaceRestore, verify_in_place
from torch_tfckpt.saveables.save_spec import SaveableObject
from torch_tfckpt.saveables.tensor_saveable import VariableSaveable
from torch_tfckpt.text import counted, listed, quoted
from torch_tfckpt.transfer.batching import SMALL_BYTES

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Load = tuple[Target, Source]
NewValue = tuple[Target, torch.Tensor]

_HELD_BYTES: Final = 256 * 1024 * 1024  # up to this size, holding the values is preferable to reading them twice
_BATCH_BYTES: Final = 16 * 1024 * 1024  # enough for parallel reads; a batch may exist twice, as stored and transformed
_SCRATCH_BYTES: Final = 32 * 1024 * 1024  # largest tensor that is read into reused memory
_ALIGNMENT: Final = 64  # of tensors, as torch allocates them
_NAMED: Final = 5  # tensors in a message


@dataclass(slots=True)
class NewValues:
    """The new values of a module.

    Attributes:
        held: Targets with their new values.
        in_place: Reads what is stored as it is: verified, but not held.
        rest: What `read_rest` reads: verified, but not held.
        lost: Name of a tensor -> what its dtype cannot represent.
    """

    held: list[NewValue] = field(default_factory=list)
    in_place: InPlaceRestore = field(default_factory=InPlaceRestore)
    rest: list[Load] = field(default_factory=list)
    lost: dict[str, RangeLoss] = field(default_factory=dict)

    def beyond_range(self) -> str:
        """Return which tensors have values beyond the range of their dtype in the module; "" if there are none."""
        names = [name for name, loss in self.lost.items() if loss.beyond]
        shown = {
            name: f"{quoted(name)} ({counted(self.lost[name].beyond, 'value')}, largest {self.lost[name].largest:.9g})"
            for name in names
        }
        return (
            f"values beyond the range of the module's dtype: {listed(names, _NAMED, shown.__getitem__)}"
            if names
            else ""
        )


def read_values(reader: CheckpointReader, loads: Sequence[Load], *, own_memory: bool) -> NewValues:
    """Return the new values, in the dtypes of the targets, after verifying all of them.

    Args:
        own_memory: Hold all values, contiguous and on the devices of their targets (on the CPU for the meta device);
            no two of them share memory.

    Raises:
        DataLossError: a value is damaged.
        InvalidArgumentError: a function of a rule returned a shape that does not fit the target.
    """
    found = NewValues()
    if not own_memory:
        found.in_place, loads = _split_off_in_place(reader, loads)
    parts = [load for load in loads if is_read_in_part(reader, *load)]
    if parts:
        in_part = {id(target) for target, _ in parts}
        loads = [load for load in loads if id(load[0]) not in in_part]
        values = [_part(reader, target, source, found.lost) for target, source in parts]
        found.held += _owned(values) if own_memory else values
    size = sum(reader.nbytes(key) for key in {key for _, source in loads for key in source.read_keys})
    held = list(loads)
    if not own_memory and size > _HELD_BYTES:
        found.rest = [(target, source) for target, source in loads if not _must_be_held(target, source)]
        rest = {id(target) for target, _ in found.rest}
        held = [(target, source) for target, source in loads if id(target) not in rest]
        _verify(reader, found)
    scratch = _Scratch(reader) if own_memory else None
    for batch in _batches(reader, held, _BATCH_BYTES if own_memory else size):
        values = _made(reader, batch, found.lost, scratch)
        found.held += _owned(values) if own_memory else values
    return found


def is_read_in_part(reader: CheckpointReader, target: Target, source: Source) -> bool:
    """Return whether the target is a DTensor of which this rank has only a part, and its shape is the source's."""
    if not any_dtensors() or (tensor := target.spread) is None:
        return False
    return source.fits({key: reader.shape(key) for key in source.read_keys}, tuple(tensor.shape))


def read_part_of(
    reader: CheckpointReader, source: Source, keys: Sequence[str], name: str, tensor: "DTensor"
) -> torch.Tensor:
    """Return the elements of a source's value that this rank has of a DTensor, read from the given keys."""
    shard = local_shard(name, tensor)
    shapes = {key: reader.shape(key) for key in keys}
    if shard is None:
        return torch.empty(local_tensor(name, tensor).shape, dtype=torch_dtype(reader.dtype(keys[0])), device="cpu")
    return box_of(source, keys, shard.part, shard.full_shape, shapes, partial(_box, reader))


def _box(reader: CheckpointReader, key: str, part: TensorSlice) -> torch.Tensor:
    value = reader.get_tensor(key) if part.covers(reader.shape(key)) else reader.read_slice(key, part)
    assert isinstance(value, torch.Tensor), "its dtype was checked"
    return value


def _part(reader: CheckpointReader, target: Target, source: Source, lost: dict[str, RangeLoss]) -> NewValue:
    """Return a target with this rank's part of its new value."""
    tensor = target.spread
    assert tensor is not None
    value = read_part_of(reader, source, source.read_keys, target.name, tensor)
    if value.dtype != tensor.dtype and value.is_floating_point():
        value, lost[target.name] = cast_counted(value, tensor.dtype)
    return target, _compact(value.to(tensor.dtype))


def _compact(value: torch.Tensor) -> torch.Tensor:
    """Return a value that does not keep much more memory in use than its own."""
    return value.clone() if value.untyped_storage().nbytes() > 2 * value.nbytes else value


def _split_off_in_place(reader: CheckpointReader, loads: Sequence[Load]) -> tuple[InPlaceRestore, Sequence[Load]]:
    """Verify the tensors that can be read in place, unless they are small; return their read, and the other loads."""
    saveables: list[SaveableObject] = []
    load_of: dict[int, Load] = {}
    for target, source in loads:
        tensor = target.tensor
        if not source.is_unchanged or target.shape is None or tensor.nbytes < LARGE_BYTES:
            continue
        element = ELEMENTS.get(reader.dtype(source.read_keys[0]))
        if element is None or element.torch != tensor.dtype:
            continue
        saveable = VariableSaveable(tensor, "", source.read_keys[0])
        saveables.append(saveable)
        load_of[id(saveable)] = (target, source)
    in_place = verify_in_place(BulkSaverBuilder(), reader, saveables, reshape=False)
    for other in in_place.without(saveables):
        del load_of[id(other)]
    done = {id(target) for target, _ in load_of.values()}
    return in_place, [load for load in loads if id(load[0]) not in done]


def read_rest(reader: CheckpointReader, loads: Sequence[Load]) -> Iterator[NewValue]:
    """Yield the targets with their new values, which may be overwritten when the next one is asked for."""
    scratch = _Scratch(reader)
    for batch in _batches(reader, loads, _BATCH_BYTES):
        yield from _made(reader, batch, {}, scratch)


def _must_be_held(target: Target, source: Source) -> bool:
    return target.is_loaded or any(part.layout.functions is not None for part in source.parts)


def _verify(reader: CheckpointReader, found: NewValues) -> None:
    """Verify the rest without holding it. Values that may be lost in the dtype of the module are read to count them."""
    narrowed = [load for load in found.rest if _may_lose(reader, *load)]
    counted_keys = {key for _, source in narrowed for key in source.read_keys}
    scratch = _Scratch(reader)
    for batch in _batches(reader, narrowed, _BATCH_BYTES):
        _made(reader, batch, found.lost, scratch)
    others = dict.fromkeys(key for _, source in found.rest for key in source.read_keys if key not in counted_keys)
    reader.check_tensors(others)


def _may_lose(reader: CheckpointReader, target: Target, source: Source) -> bool:
    return any(may_lose(reader.dtype(key), target.tensor.dtype) for key in source.read_keys)


def _batches(reader: CheckpointReader, loads: Sequence[Load], limit: int) -> Iterator[list[Load]]:
    """Yield groups of up to `limit` stored bytes. Targets made from the same stored tensor are in one group."""
    groups: list[list[Load]] = []
    group_of: dict[str, list[Load]] = {}
    for load in loads:
        keys = load[1].read_keys
        group = next((group_of[key] for key in keys if key in group_of), None)
        if group is None:
            groups.append(group := [])
        group.append(load)
        group_of.update((key, group) for key in keys if key not in group_of)
    batch: list[Load] = []
    filled = 0
    for group in groups:
        size = sum(map(reader.nbytes, {key for _, source in group for key in source.read_keys}))
        if batch and filled + size > limit:
            yield batch
            batch, filled = [], 0
        batch += group
        filled += size
    if batch:
        yield batch


class _Scratch:
    """Memory for stored tensors of a batch, reused for each batch.

    If each batch allocated its own memory, the process would keep it: glibc's malloc does not reuse a freed
    block for an aligned block of the same size. Blocks of more than 32 MiB are returned to the system, so these are
    allocated as usual.
    """

    def __init__(self, reader: CheckpointReader) -> None:
        self._reader = reader
        self._memory = torch.empty(0, dtype=torch.uint8, device="cpu")

    def tensors(self, keys: Iterable[str]) -> dict[str, torch.Tensor]:
        """Return key -> tensor to read into. The tensors of an earlier call are no longer valid."""
        places: dict[str, tuple[int, int]] = {}
        end = 0
        for key in keys:
            size = self._reader.nbytes(key)
            if SMALL_BYTES <= size <= _SCRATCH_BYTES:
                places[key] = (end, size)
                end += -(-size // _ALIGNMENT) * _ALIGNMENT
        # At least one byte more than needed: `_owned` would not copy a tensor that spans its whole storage.
        if end >= self._memory.numel():
            self._memory = torch.empty(0, dtype=torch.uint8, device="cpu")  # released before more is allocated
            self._memory = torch.empty(end + 1, dtype=torch.uint8, device="cpu")
        found: dict[str, torch.Tensor] = {}
        for key, (start, size) in places.items():
            dtype = torch_dtype(self._reader.dtype(key))
            found[key] = self._memory[start : start + size].view(dtype).view(self._reader.shape(key))
        return found


def _made(
    reader: CheckpointReader, loads: Sequence[Load], lost: dict[str, RangeLoss], scratch: _Scratch | None
) -> list[NewValue]:
    """Return the targets with their new values, which are views of what was read where possible.

    Args:
        lost: Receives what the dtypes of the targets cannot represent.
    """
    keys = dict.fromkeys(key for _, source in loads for key in source.read_keys)
    read = reader.get_tensors(keys, None if scratch is None else scratch.tensors(keys))
    stored = {key: value for key, value in read.items() if isinstance(value, torch.Tensor)}
    made: list[NewValue] = []
    for target, source in loads:
        value = source.value(stored)
        if target.shape not in (None, tuple(value.shape)):
            raise InvalidArgumentError(
                f"{reader.path}: the layout of {quoted(source.description)} returned {shape_text(value.shape)} for "
                f"{quoted(target.name)}, which is {shape_text(target.shape or ())}. The shape that its functions "
                f"return must not depend on the values"
            )
        if value.dtype != target.tensor.dtype and value.is_floating_point():
            value, lost[target.name] = cast_counted(value, target.tensor.dtype)
        made.append((target, value.to(target.tensor.dtype)))
    return made


def _owned(values: Sequence[NewValue]) -> list[NewValue]:
    owned: list[NewValue] = []
    seen: set[int] = set()
    for target, value in values:
        device = target.tensor.device
        own = value.contiguous().to("cpu" if device.type == "meta" else device)
        if own.untyped_storage().nbytes() > own.nbytes:
            own = own.clone()  # part of a larger tensor, whose memory would stay in use
        # One stored tensor may be loaded into two targets; if they shared memory, a change to one would change both.
        if own.untyped_storage().data_ptr() in seen:
            own = own.clone()
        seen.add(own.untyped_storage().data_ptr())
        owned.append((target, own))
    return owned
