"""TFCheckpointReader: torch.distributed.checkpoint loads any TensorFlow checkpoint.

DCP is told of one chunk per tensor, the whole of it, however it is stored. So its planner makes one item for each part
that a rank needs, the metadata has one entry for each name, and the reader finds the slices that make up a part.
"""

import io
import os
from contextlib import suppress
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    STORAGE_TYPES,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from torch_tfckpt.format.tensor_slice import Extent, TensorSlice
from torch_tfckpt.integrations.dcp_contents import (
    Entry,
    StoredContents,
    StoredObjectValue,
    StoredTensorValue,
    strings_of,
)
from torch_tfckpt.integrations.dcp_mapping import MappedValue
from torch_tfckpt.models.rules.key_mapper import KeyMapper, Rules, as_key_mapper
from torch_tfckpt.storage.names import AnyPath, fspath
from torch_tfckpt.text import quoted

TensorValue = StoredTensorValue | MappedValue


class TFCheckpointReader(StorageReader):
    """Storage reader of torch.distributed.checkpoint for TensorFlow checkpoints.

    It reads what `TFCheckpointWriter`, a `Saver` and TensorFlow write, of version 1 and 2, on any number of ranks. Each
    rank reads the part of each tensor that it needs, straight into its own tensor.

    Args:
        path: As for CheckpointReader. `checkpoint_id=` of `dcp.load` replaces it.
        verify: Compare the bytes read with their checksums. The checksum of a stored slice covers all of it, so a rank
            that needs a part of a slice reads the whole slice once. False: reads only what is needed, and does not
            notice damage.
        mapper: Rules for checkpoints with other names and layouts, such as those of TensorFlow's models. The targets
            are names in the state_dict of the module, which may be below one key of the state: "fc.weight" is also
            found as "model.fc.weight". A kernel needs a layout, because there is no module that implies one;
            `KeyMapper.infer` gives each rule its layout. If a layout only moves axes, each rank reads only its part.

    Values of a different dtype are converted, as torch's `copy_` does. A tensor that is damaged is a DataLossError with
    its name, the file and the bytes, in the CheckpointException of all ranks; tensors of the state_dict may then be
    partly filled, as with any storage reader.

    Thread safety: one load at a time.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> import torch.distributed as dist, torch.distributed.checkpoint as dcp
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> path = tfckpt.save_file({"model/weight": torch.ones(1, 2), "model/bias": torch.zeros(1)}, "ckpt-7")
        >>> state = {"model": torch.nn.Linear(2, 1).state_dict()}
        >>> dcp.load(state, storage_reader=tfckpt.TFCheckpointReader(path))
        >>> state["model"]["weight"]
        tensor([[1., 1.]])
        >>> dist.destroy_process_group()
    """

    def __init__(self, path: AnyPath, *, verify: bool = True, mapper: KeyMapper | Rules | None = None) -> None:
        super().__init__()
        self._path, self._verify = fspath(path), verify
        self._mapper = None if mapper is None else as_key_mapper(mapper)
        self._reader: CheckpointReader | None = None
        self._contents: StoredContents | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None, "_contents": None}

    def __del__(self) -> None:
        with suppress(Exception):
            self._close()

    def _close(self) -> None:
        reader, self._reader, self._contents = self._reader, None, None
        if reader is not None:
            reader.close()

    # The methods that torch.distributed.checkpoint calls, in order.

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin a new load, of the checkpoint with the path `checkpoint_id`."""
        self._close()
        if checkpoint_id is not None:
            self._path = fspath(checkpoint_id)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Return whether this can be the path of a checkpoint."""
        try:
            fspath(checkpoint_id)
        except InvalidArgumentError:
            return False
        return True

    # No parameter has the name `kwargs`: DCP would call this method again after an error.
    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """Open the checkpoint, and return the shapes and dtypes of all tensors, and the names of all other values."""
        self._close()
        self._reader = CheckpointReader(self._path, verify=self._verify)
        self._contents = contents = StoredContents(self._reader, self._mapper)
        return Metadata(_MetadataByName(contents), planner_data=dict(contents.paths))

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Do nothing: `read_metadata` has opened the checkpoint."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Return the plan unchanged."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Return the plans unchanged."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read the items of this rank, and close the checkpoint."""
        reader, contents = self._reader, self._contents
        if reader is None or contents is None:
            raise FailedPreconditionError(f"{self._path}: read_data was called before read_metadata")
        try:
            tensors: list[tuple[ReadItem, TensorValue]] = []
            for item in plan.items:
                entry = contents.find(item.storage_index.fqn)
                if item.type == LoadItemType.BYTE_IO and isinstance(entry, StoredObjectValue):
                    planner.load_bytes(item, _pickled(_value(reader, entry)))
                elif item.type == LoadItemType.TENSOR and isinstance(entry, StoredTensorValue | MappedValue):
                    tensors.append((item, entry))
                else:
                    raise NotFoundError(f"{reader.path}: no {item.type.name} {quoted(item.storage_index.fqn)}")
            _read_tensors(reader, tensors, planner)
        finally:
            self._close()
        future: Future[None] = Future()
        future.set_result(None)
        return future


class _MetadataByName(dict[str, STORAGE_TYPES]):
    """Metadata by name. Lists each value once; also finds values by their further names (`dcp_contents`)."""

    def __init__(self, contents: StoredContents) -> None:
        super().__init__({name: _metadata(entry) for name, entry in contents.entries.items()})
        self._contents = contents

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._contents.find(name) is not None

    def __missing__(self, name: str) -> STORAGE_TYPES:
        entry = self._contents.find(name)
        if entry is None:
            raise KeyError(name)
        return _metadata(entry)


def _metadata(entry: Entry) -> STORAGE_TYPES:
    if isinstance(entry, StoredObjectValue):
        return BytesStorageMetadata()
    size = torch.Size(entry.shape)
    chunk = ChunkStorageMetadata(torch.Size([0] * len(size)), size)
    return TensorStorageMetadata(TensorProperties(dtype=entry.dtype), size, [chunk])


def _value(reader: CheckpointReader, entry: StoredObjectValue) -> object:
    if entry.document is None:
        return strings_of(reader, entry.key)
    return entry.document.value_of(entry.path, lambda key: reader.get_tensor(key))


def _pickled(value: object) -> io.BytesIO:
    """Return a value in the form in which planners take it. It is pickled in memory only, and by this process."""
    stored = io.BytesIO()
    torch.save(value, stored)
    stored.seek(0)
    return stored


def _read_tensors(reader: CheckpointReader, items: list[tuple[ReadItem, TensorValue]], planner: LoadPlanner) -> None:
    """Read the items into the tensors that the planner gives: those of the stored dtype directly, in one plan."""
    direct: list[tuple[str, TensorSlice | None, torch.Tensor]] = []
    others: list[tuple[TensorValue, TensorSlice, torch.Tensor]] = []
    targets = []
    for item, entry in items:
        target = planner.resolve_tensor(item)
        targets.append((item, target))
        into, lengths = target.detach(), tuple(item.lengths)
        if tuple(into.shape) != lengths:
            raise InvalidArgumentError(
                f"{reader.path}: {quoted(entry.key)}: the planner gives a tensor of shape {list(into.shape)} for a "
                f"part of shape {list(lengths)}"
            )
        part = TensorSlice(tuple(map(Extent, item.storage_offsets, item.lengths)))
        if isinstance(entry, StoredTensorValue) and into.dtype == entry.dtype:
            direct.append((entry.key, None if lengths == entry.shape else part, into))
        else:
            others.append((entry, part, into))
    reader.read_into(direct)
    with torch.no_grad():
        for entry, part, into in others:
            if isinstance(entry, MappedValue):
                into.copy_(entry.read(reader, part))
            else:
                into.copy_(reader.read_slice(entry.key, part))
    for item, target in targets:
        planner.commit_tensor(item, target)
