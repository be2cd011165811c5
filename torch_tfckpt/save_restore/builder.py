"""How saveables are grouped into data files, written, and read back: tf.train's saver builders.

`BaseSaverBuilder` is tf.train's: a subclass may write (`save_op`) and read (`restore_op`, `bulk_restore`) in ways of
its own, and everything else follows from that: shards are written one by one and merged. `BulkSaverBuilder`, the
default, knows all bytes of all shards beforehand and moves them in one plan. Both make the same files, byte for byte.

Source: tensorflow/python/training/saver.py.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt.bundle.plan import BundlePlan
from torch_tfckpt.bundle.save import BundleSave
from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.errors import FailedPreconditionError
from torch_tfckpt.save_restore.pending_save import PendingSave, SaveByParts
from torch_tfckpt.save_restore.saver_def import DEFAULT_FILENAME, check_scope, default_names
from torch_tfckpt.saveables.save_spec import SaveableObject, SaveSpec, group_by_devices, slice_of, specs_of, value_of
from torch_tfckpt.saveables.tensor_saveable import VariableSaveable
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.transfer.staging import Staging
from torch_tfckpt.v1.writer import SlicesWriter
from torch_tfckpt.values import Value, writable

# By these names, since the builder's class has attributes named like the classes.
Saveable = SaveableObject
Saveables = Sequence[SaveableObject]


class BaseSaverBuilder:
    """Writes and reads the saveables of a saver; override what should happen differently.

    Args:
        write_version: SaverDef.V2, or V1 for programs that read nothing newer.

    Raises:
        FailedPreconditionError: another version.

    Threads: one save at a time, in any thread.
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
        """Writes all specs of `saveables`, in order, as one checkpoint of one file: a bundle, or a version 1 file.

        Args:
            filename: Its prefix; of version 1 the path itself.
        """
        if self.write_version == SaverDef.V1:
            with SlicesWriter(storage, filename) as writer:
                for spec in specs_of(saveables):
                    shape, part = slice_of(spec) if spec.slice_spec else (None, None)
                    writer.add(spec.name, value_of(spec), shape=shape, part=part, dtype=spec.dtype)
        else:
            BundleSave(storage, filename, _plan([saveables]), Staging(), snapshot=False).finish()

    def restore_op(self, reader: CheckpointReader, saveable: Saveable, preferred_shard: int) -> list[Value]:
        """The values of one saveable's specs, in order.

        Args:
            preferred_shard: Where TensorFlow would look first; files know by themselves where things are.
        """
        return [_read(reader, spec) for spec in saveable.specs]

    def bulk_restore(
        self, reader: CheckpointReader, saveables: Saveables, preferred_shard: int, restore_sequentially: bool
    ) -> list[Value]:
        """The values of all specs of all saveables, in order: here, saveable by saveable.

        Args:
            restore_sequentially: Whether each is assigned before the next is read. If so, this is called for each
                saveable by itself.
        """
        return [value for saveable in saveables for value in self.restore_op(reader, saveable, preferred_shard)]

    def sharded_filename(self, filename: str, shard: int, num_shards: int) -> str:
        """The name of one of several files."""
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
        """Checks the saveables, and describes the saver as a meta graph does.

        Args:
            filename: The default path of a saver that has no graph to keep it: it takes the place of the name of the
                tensor that holds it, as it does in TensorFlow without a graph.

        Raises:
            InvalidArgumentError: the tensors of a saveable are on several devices.

        The names are those that TensorFlow would give to the saver's operations in a graph.
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

    def begin_save(
        self, storage: Storage, path: str, saveables: Saveables, *, sharded: bool, snapshot: bool, staging: Staging
    ) -> PendingSave:
        """Begins to write a checkpoint.

        Args:
            path: Its prefix.
            sharded: Whether each device gets a data file of its own.
            snapshot: Whether the values may change once `staged` is set. Here that takes a host copy of all of them,
                made before this returns; BulkSaverBuilder does it in bounded memory.
            staging: Where host memory for copies comes from.
        """
        return SaveByParts(self, storage, path, _snapshot(saveables) if snapshot else saveables, sharded)


class BulkSaverBuilder(BaseSaverBuilder):
    """Reads and writes everything in one plan: all devices at once, in bounded host memory.

    A subclass that overrides `save_op` or `sharded_filename` gets its files written as BaseSaverBuilder does, and one
    that overrides `restore_op` gets them read so.
    """

    def bulk_restore(
        self, reader: CheckpointReader, saveables: Saveables, preferred_shard: int, restore_sequentially: bool
    ) -> list[Value]:
        """The values of all specs: whole tensors that lie side by side are read together, large ones in parallel."""
        if type(self).restore_op is not BaseSaverBuilder.restore_op:
            return super().bulk_restore(reader, saveables, preferred_shard, restore_sequentially)
        specs = list(specs_of(saveables))
        wholes = reader.get_tensors({spec.name for spec in specs if not spec.slice_spec})
        return [_read(reader, spec) if spec.slice_spec else wholes[spec.name] for spec in specs]

    def begin_save(
        self, storage: Storage, path: str, saveables: Saveables, *, sharded: bool, snapshot: bool, staging: Staging
    ) -> PendingSave:
        """As BaseSaverBuilder, with `snapshot` in the memory that `staging` allows."""
        writes_its_own_way = (
            type(self).save_op is not BaseSaverBuilder.save_op
            or type(self).sharded_filename is not BaseSaverBuilder.sharded_filename
        )
        if writes_its_own_way or self.write_version == SaverDef.V1:
            return super().begin_save(storage, path, saveables, sharded=sharded, snapshot=snapshot, staging=staging)
        groups = [group for _, group in group_by_devices(saveables)] if sharded else [saveables]
        return BundleSave(storage, path, _plan(groups), staging, snapshot=snapshot)


def _snapshot(saveables: Iterable[Saveable]) -> list[Saveable]:
    """The saveables with their values of now, in host memory that nobody changes."""
    copies = []
    for saveable in saveables:
        specs = []
        for spec in saveable.specs:
            value = value_of(spec)
            writable(spec.name, value, spec.dtype)  # refuses here rather than in the thread that writes
            if isinstance(value, torch.Tensor):
                value = value.detach().to("cpu", copy=True)
            elif isinstance(value, np.ndarray):
                value = value.copy()
            specs.append(SaveSpec(value, spec.slice_spec, spec.name, spec.dtype, spec.device))
        copies.append(SaveableObject(saveable.op, specs, saveable.name))
    return copies


def _plan(groups: Sequence[Saveables]) -> BundlePlan:
    """The plan of everything, group i in shard i. Every spec's tensor is asked for once."""
    plan = BundlePlan(len(groups))
    for shard, group in enumerate(groups):
        for spec in specs_of(group):
            part = slice_of(spec) if spec.slice_spec else None
            plan.add(spec.name, value_of(spec), shard=shard, part=part, dtype=spec.dtype)
    return plan


def _read(reader: CheckpointReader, spec: SaveSpec) -> Value:
    return reader.read_slice(spec.name, slice_of(spec)[1]) if spec.slice_spec else reader.get_tensor(spec.name)
