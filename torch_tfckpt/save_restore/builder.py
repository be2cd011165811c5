"""Saver builders, as in tf.train: group saveables into data files, write them, and read them back.

A subclass of `BaseSaverBuilder` may override how values are written (`save_op`) and read (`restore_op`,
`bulk_restore`); its shards are written one by one and merged. `BulkSaverBuilder`, the default, plans all bytes of all
shards and transfers them together. Both write the same files, byte for byte.

Source: tensorflow/python/training/saver.py.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby

import numpy as np
import torch

from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt.bundle.plan import BundlePlan
from torch_tfckpt.bundle.save import BundleSave
from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.distributed.reading import is_split, read_part
from torch_tfckpt.distributed.shards import any_dtensors
from torch_tfckpt.errors import FailedPreconditionError
from torch_tfckpt.save_restore.pending_save import PendingSave, SaveByParts
from torch_tfckpt.save_restore.saver_def import DEFAULT_FILENAME, check_scope, default_names
from torch_tfckpt.saveables.save_spec import SaveableObject, SaveSpec, group_by_devices, slice_of, specs_of, value_of
from torch_tfckpt.saveables.tensor_saveable import VariableSaveable
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.transfer.collector import new_objects_only
from torch_tfckpt.transfer.staging import Staging
from torch_tfckpt.v1.writer import SlicesWriter
from torch_tfckpt.values import Value, writable

# Aliases, because the builder class has attributes with the same names as these classes.
Saveable = SaveableObject
Saveables = Sequence[SaveableObject]


class BaseSaverBuilder:
    """Writes and reads the saveables of a saver; subclasses may override either operation.

    Args:
        write_version: SaverDef.V2, or V1 for programs that cannot read version 2.

    Raises:
        FailedPreconditionError: `write_version` is neither of these.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> class Loud(tfckpt.BaseSaverBuilder):
        ...     def restore_op(self, reader, saveable, preferred_shard):
        ...         print("restoring", saveable.name)
        ...         return super().restore_op(reader, saveable, preferred_shard)
        >>> saver = tfckpt.Saver({"w": torch.ones(2)}, builder=Loud())
        >>> report = saver.restore(saver.save("model.ckpt"))
        restoring w

    Thread safety: one save at a time, in any thread.
    """

    SaveSpec = SaveSpec
    SaveableObject = SaveableObject
    VariableSaveable = VariableSaveable
    ResourceVariableSaveable = VariableSaveable

    def __init__(self, write_version: int = SaverDef.V2) -> None:
        if write_version not in (SaverDef.V1, SaverDef.V2):
            raise FailedPreconditionError(
                f"Unexpected write_version: {write_version}. Pass SaverDef.V2, or SaverDef.V1 for old readers"
            )
        self.write_version = write_version

    def __repr__(self) -> str:
        return f"{type(self).__name__}(write_version={self.write_version})"

    def save_op(self, storage: Storage, filename: str, saveables: Saveables) -> None:
        """Write all specs of `saveables`, in order, as one checkpoint with one data file.

        Args:
            filename: Prefix of the checkpoint; for version 1, its path.
        """
        if self.write_version == SaverDef.V1:
            with SlicesWriter(storage, filename) as writer:
                for spec in specs_of(saveables):
                    shape, part = slice_of(spec) if spec.slice_spec else (None, None)
                    writer.add(spec.name, value_of(spec), shape=shape, part=part, dtype=spec.dtype)
        else:
            BundleSave(storage, filename, _plan([saveables]), Staging(), snapshot=False).finish()

    def restore_op(self, reader: CheckpointReader, saveable: Saveable, preferred_shard: int) -> list[Value]:
        """Return the values of one saveable's specs, in order.

        Args:
            preferred_shard: The shard in which TensorFlow would look first. Not used: the index names the shard.
        """
        return [_read(reader, spec) for spec in saveable.specs]

    def bulk_restore(
        self, reader: CheckpointReader, saveables: Saveables, preferred_shard: int, restore_sequentially: bool
    ) -> list[Value]:
        """Return the values of all specs of all saveables, in order. Calls `restore_op` for each saveable.

        Args:
            restore_sequentially: Whether each saveable is assigned before the next is read. If so, this is called with
                one saveable at a time.
        """
        return [value for saveable in saveables for value in self.restore_op(reader, saveable, preferred_shard)]

    def sharded_filename(self, filename: str, shard: int, num_shards: int) -> str:
        """Return the name of the file for one shard of several."""
        return f"{filename}-{shard:05d}-of-{num_shards:05d}"

    def build(
        self,
        names_to_saveables: Saveables,
        reshape: bool = False,
        sharded: bool = False,
        max_to_keep: int | None = 5,
        keep_checkpoint_every_n_hours: float = 10000.0,
        name: str | None = None,
        restore_sequentially: bool = False,
        filename: str | None = DEFAULT_FILENAME,
    ) -> SaverDef:
        """Check the saveables, and return the saver's settings as a message.

        Args:
            filename: The default path. In the message it replaces the name of the tensor that would contain the path in
                a graph, as in TensorFlow without a graph.

        Raises:
            InvalidArgumentError: the tensors of one saveable are on several devices.

        The names in the message are the names that TensorFlow would give to the saver's operations in a graph.
        """
        group_by_devices(names_to_saveables)
        saver_def = default_names(check_scope(name) or "save", sharded=sharded, version=self.write_version)
        if filename not in (None, "", DEFAULT_FILENAME):
            saver_def.filename_tensor_name = filename
        saver_def.max_to_keep = max_to_keep or 0
        saver_def.sharded = sharded
        saver_def.keep_checkpoint_every_n_hours = keep_checkpoint_every_n_hours
        saver_def.version = SaverDef.V1 if self.write_version == SaverDef.V1 else SaverDef.V2
        return saver_def


class BulkSaverBuilder(BaseSaverBuilder):
    """Reads and writes everything together: all devices at the same time, in bounded host memory.

    If a subclass overrides `save_op` or `sharded_filename`, it writes files as BaseSaverBuilder does; if it overrides
    `restore_op`, it reads them as BaseSaverBuilder does.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> builder = tfckpt.BulkSaverBuilder(write_version=tfckpt.SaverDef.V2)
        >>> tfckpt.Saver({"w": torch.ones(2)}, builder=builder).save("model.ckpt")
        'model.ckpt'
    """

    def bulk_restore(
        self, reader: CheckpointReader, saveables: Saveables, preferred_shard: int, restore_sequentially: bool
    ) -> list[Value]:
        """Return the values of all specs. Adjacent tensors are read together, large ones in parallel."""
        if not reads_in_bulk(self):
            return super().bulk_restore(reader, saveables, preferred_shard, restore_sequentially)
        specs = list(specs_of(saveables))
        dtensors = any_dtensors()
        apart = {
            id(spec) for spec in specs if spec.slice_spec or (dtensors and is_split(reader, spec.name, spec.dtensor))
        }
        wholes = reader.get_tensors(spec.name for spec in specs if id(spec) not in apart)
        return [_read(reader, spec) if id(spec) in apart else wholes[spec.name] for spec in specs]


def reads_in_bulk(builder: BaseSaverBuilder) -> bool:
    """Return whether a builder reads values as BulkSaverBuilder does, and not in a way of its own."""
    kind = type(builder)
    return (
        isinstance(builder, BulkSaverBuilder)
        and kind.bulk_restore is BulkSaverBuilder.bulk_restore
        and kind.restore_op is BaseSaverBuilder.restore_op
    )


def begin_save(
    builder: BaseSaverBuilder,
    storage: Storage,
    path: str,
    saveables: Saveables,
    *,
    sharded: bool,
    snapshot: bool,
    staging: Staging,
) -> PendingSave:
    """Begin to write a checkpoint.

    Args:
        builder: A BulkSaverBuilder writes all version 2 files together, in bounded host memory. For version 1,
            for other builders, and for subclasses that override `save_op` or `sharded_filename`, the files are written
            one by one with `save_op`.
        path: Prefix of the checkpoint.
        sharded: Whether each device gets its own data file.
        snapshot: Whether to copy the values, so that they may change once `staged` is set. If the files are written
            together, values are copied within the limits of `staging`; otherwise, all are copied before this
            returns.
        staging: Provides host memory for copies.
    """
    if not writes_in_bulk(builder):
        return SaveByParts(builder, storage, path, _snapshot(saveables) if snapshot else saveables, sharded)
    groups = [group for _, group in group_by_devices(saveables)] if sharded else [saveables]
    with new_objects_only(len(saveables)):
        plan = _plan(groups)
    return BundleSave(storage, path, plan, staging, snapshot=snapshot)


def writes_in_bulk(builder: BaseSaverBuilder) -> bool:
    """Return whether a builder writes all files together, so that its methods for single files are not called."""
    return (
        isinstance(builder, BulkSaverBuilder)
        and type(builder).save_op is BaseSaverBuilder.save_op
        and type(builder).sharded_filename is BaseSaverBuilder.sharded_filename
        and builder.write_version != SaverDef.V1
    )


def _snapshot(saveables: Iterable[Saveable]) -> list[Saveable]:
    """Return the saveables with copies of their current values in host memory."""
    copies = []
    for saveable in saveables:
        specs = []
        for spec in saveable.specs:
            value = value_of(spec)
            writable(spec.name, value, spec.dtype)  # raises here rather than in the thread that writes
            if isinstance(value, torch.Tensor):
                value = value.detach().to("cpu", copy=True)
            elif isinstance(value, np.ndarray):
                value = value.copy()
            specs.append(SaveSpec(value, spec.slice_spec, spec.name, spec.dtype, spec.device))
        copies.append(SaveableObject(saveable.op, specs, saveable.name))
    return copies


def _plan(groups: Sequence[Saveables]) -> BundlePlan:
    """Plan one shard for each group, in order. Every spec's tensor is accessed once."""
    plan = BundlePlan(len(groups))
    for shard, group in enumerate(groups):
        for is_slice, some in groupby(specs_of(group), key=lambda spec: bool(spec.slice_spec)):
            specs = list(some)
            if is_slice:
                for spec in specs:
                    plan.add(spec.name, value_of(spec), shard=shard, part=slice_of(spec), dtype=spec.dtype)
            else:
                names, values, dtypes = zip(*[(spec.name, value_of(spec), spec.dtype) for spec in specs], strict=True)
                plan.add_all(names, values, dtypes, shard=shard)
    return plan


def _read(reader: CheckpointReader, spec: SaveSpec) -> Value:
    """Return the value of a spec; for a DTensor, this rank's part of it, unless the stored shape is another one."""
    if spec.slice_spec:
        return reader.read_slice(spec.name, slice_of(spec)[1])
    tensor = spec.dtensor
    return reader.get_tensor(spec.name) if tensor is None else read_part(reader, spec.name, tensor)
