"""How a saver's tensors are cut into files, written, and read back.

`BaseSaverBuilder` is tf.train's: a subclass may write (`save_op`) and read (`restore_op`, `bulk_restore`) in ways of
its own, and everything else follows from that: shards are written one by one and merged. `BulkSaverBuilder`, the
default, knows all bytes of all shards beforehand and moves them in one plan. Both make the same files, byte for byte.

Source: tensorflow/python/training/saver.py; spec: SAVER 2 and 3, FORMATS 2.8.
"""

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final, Protocol

import numpy as np
import torch

from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt.bundle.leftovers import PARTS_SUFFIX
from torch_tfckpt.bundle.marker import Marker
from torch_tfckpt.bundle.merge import merge_bundles
from torch_tfckpt.bundle.publish import saving
from torch_tfckpt.bundle.removal import remove_bundle
from torch_tfckpt.bundle.save import BundleSave
from torch_tfckpt.bundle.slices_writer import SlicesWriter
from torch_tfckpt.bundle.values import Value, WritableValue, writable
from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.device.staging import Staging
from torch_tfckpt.errors import (
    CheckpointError,
    FailedPreconditionError,
    IncompleteSaveError,
    InvalidArgumentError,
    printable,
    quoted,
)
from torch_tfckpt.format.tensor_slice import TensorSlice, parse_shape_and_slice
from torch_tfckpt.saveables.save_spec import SaveableObject, SaveSpec
from torch_tfckpt.saveables.tensor_saveable import VariableSaveable
from torch_tfckpt.storage.protocol import Storage

DEFAULT_FILENAME: Final = "model"
# By these names, since the builder's class has attributes named like the classes.
Saveable = SaveableObject
Saveables = Sequence[SaveableObject]


class PendingSave(Protocol):
    """A save that has begun."""

    @property
    def staged(self) -> threading.Event:
        """Set when the values are safe from what training does next, or when the save has failed."""
        ...

    def finish(self) -> str:
        """Waits until all is written, publishes, and returns the checkpoint's path, as the state file names it."""
        ...

    def abandon(self) -> None:
        """Stops, and removes everything written."""
        ...


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

    def save_op(self, storage: Storage, filename: str, saveables: Saveables) -> None:
        """Writes all specs of `saveables`, in order, as one checkpoint of one file: a bundle, or a version 1 file.

        Args:
            filename: Its prefix; of version 1 the path itself.
        """
        if self.write_version == SaverDef.V1:
            with SlicesWriter(storage, filename) as writer:
                for spec in _specs_of(saveables):
                    _add_to_version_1(writer, spec)
        else:
            save = BundleSave(storage, filename, num_shards=1, staging=Staging())
            _plan(save, [saveables])
            save.start(snapshot=False)
            save.finish()

    def restore_op(self, reader: CheckpointReader, saveable: Saveable, preferred_shard: int) -> list[Value]:
        """The values of one saveable's specs, in order.

        Args:
            preferred_shard: Where TensorFlow would look first; files know by themselves where things are.
        """
        return [_read(reader, spec) for spec in saveable.specs]

    def bulk_restore(
        self,
        reader: CheckpointReader,
        saveables: Saveables,
        preferred_shard: int,
        restore_sequentially: bool,
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
        scope = name or "save"
        saves = "control_dependency"
        if sharded:
            saves = "ShardedFilespec" if self.write_version == SaverDef.V1 else "Identity"
        return SaverDef(
            filename_tensor_name=filename if filename not in (None, "", DEFAULT_FILENAME) else f"{scope}/Const:0",
            save_tensor_name=f"{scope}/{saves}:0",
            restore_op_name=f"{scope}/restore_all",
            max_to_keep=max_to_keep or 0,
            sharded=sharded,
            keep_checkpoint_every_n_hours=keep_checkpoint_every_n_hours,
            version=SaverDef.CheckpointFormatVersion.Name(self.write_version),
        )

    def begin_save(
        self,
        storage: Storage,
        path: str,
        saveables: Saveables,
        *,
        sharded: bool,
        snapshot: bool,
        staging: Staging,
    ) -> PendingSave:
        """Begins to write a checkpoint.

        Args:
            path: Its prefix.
            sharded: Whether each device gets a data file of its own.
            snapshot: Whether the values may change once `staged` is set. Here that takes a host copy of all of them,
                made before this returns; BulkSaverBuilder does it in bounded memory.
            staging: Where host memory for copies comes from.
        """
        return _SaveByParts(self, storage, path, _snapshot(saveables) if snapshot else saveables, sharded)


class BulkSaverBuilder(BaseSaverBuilder):
    """Reads and writes everything in one plan: all devices at once, in bounded host memory.

    A subclass that overrides `save_op` or `sharded_filename` gets its files written as BaseSaverBuilder does, and one
    that overrides `restore_op` gets them read so.
    """

    def bulk_restore(
        self,
        reader: CheckpointReader,
        saveables: Saveables,
        preferred_shard: int,
        restore_sequentially: bool,
    ) -> list[Value]:
        """The values of all specs: whole tensors that lie side by side are read together, large ones in parallel."""
        if type(self).restore_op is not BaseSaverBuilder.restore_op:
            return super().bulk_restore(reader, saveables, preferred_shard, restore_sequentially)
        specs = list(_specs_of(saveables))
        wholes = reader.get_tensors({spec.name for spec in specs if not spec.slice_spec})
        return [_read(reader, spec) if spec.slice_spec else wholes[spec.name] for spec in specs]

    def begin_save(
        self,
        storage: Storage,
        path: str,
        saveables: Saveables,
        *,
        sharded: bool,
        snapshot: bool,
        staging: Staging,
    ) -> PendingSave:
        """As BaseSaverBuilder, with `snapshot` in the memory that `staging` allows."""
        writes_its_own_way = (
            type(self).save_op is not BaseSaverBuilder.save_op
            or type(self).sharded_filename is not BaseSaverBuilder.sharded_filename
        )
        if writes_its_own_way or self.write_version == SaverDef.V1:
            return super().begin_save(storage, path, saveables, sharded=sharded, snapshot=snapshot, staging=staging)
        groups = [group for _, group in group_by_devices(saveables)] if sharded else [saveables]
        save = BundleSave(storage, path, num_shards=len(groups), staging=staging)
        _plan(save, groups)
        save.start(snapshot=snapshot)
        return _SaveInOnePlan(save, path)


class _SaveInOnePlan:
    """BundleSave, seen as a save of a saver."""

    def __init__(self, save: BundleSave, path: str) -> None:
        self._save, self._path = save, path
        self.staged = save.staged

    def finish(self) -> str:
        self._save.finish()
        return self._path

    def abandon(self) -> None:
        self._save.abandon()


class _SaveByParts:
    """A save by `save_op`, which happens in `finish`."""

    def __init__(
        self,
        builder: BaseSaverBuilder,
        storage: Storage,
        path: str,
        saveables: Saveables,
        sharded: bool,
    ) -> None:
        self._builder, self._storage, self._path, self._sharded = builder, storage, path, sharded
        self._groups = [group for _, group in group_by_devices(saveables)] if sharded else [saveables]
        self.staged = threading.Event()
        self.staged.set()

    def finish(self) -> str:
        save_op, storage, path = self._builder.save_op, self._storage, self._path
        if not self._sharded:
            save_op(storage, path, self._groups[0])
            return path
        count = len(self._groups)
        if self._builder.write_version == SaverDef.V1:
            self._save_version_1([self._builder.sharded_filename(path, shard, count) for shard in range(count)])
            return f"{path}-?????-of-{count:05d}"
        # Where files appear whole under their names there is no directory to clear away either.
        base = os.path.join(path + PARTS_SUFFIX, "part") if storage.renames else f"{path}.part"
        parts = [self._builder.sharded_filename(base, shard, count) for shard in range(count)]
        clean = False
        with saving(path):
            storage.make_directory(os.path.dirname(path))
            marker = Marker(storage, path)  # from here on a killed save can be told by what it leaves
        try:
            try:
                for part, group in zip(parts, self._groups, strict=True):
                    with _part_of(path):
                        save_op(storage, part, group)
                merge_bundles(storage, parts, path)
            finally:
                clean = self._remove_parts(parts)
        finally:
            marker.end(clean=clean)
        return path

    def abandon(self) -> None:
        """Nothing has been written yet."""

    def _remove_parts(self, parts: Sequence[str]) -> bool:
        """Removes what is left of them. Returns whether it could: what led here is what the caller must hear of."""
        storage, folder = self._storage, os.path.dirname(parts[0])
        try:
            for part in parts:
                remove_bundle(storage, part)
            if storage.renames:
                for name in storage.list(folder):
                    storage.remove(os.path.join(folder, name))
                storage.remove_directory(folder)
        except (OSError, CheckpointError):
            return False
        return True

    def _save_version_1(self, targets: Sequence[str]) -> None:
        """Each shard under its name. If one of them fails, none stays that was not there before."""
        new: list[str] = []
        replaced = 0
        try:
            for target, group in zip(targets, self._groups, strict=True):
                with _part_of(self._path):
                    with saving(target):
                        replaces = self._storage.exists(target)
                    if not replaces:
                        new.append(target)
                    self._builder.save_op(self._storage, target, group)
                    replaced += replaces
        except BaseException as error:
            for target in new:
                with suppress(OSError):  # what led here is what the caller must hear of
                    self._storage.remove(target)
            if replaced and isinstance(error, IncompleteSaveError):
                raise IncompleteSaveError(
                    f"save of {printable(self._path)}: {error.failures.get(0, error)}. {replaced} of {len(targets)} "
                    f"shards are new already, the others of an earlier save: do not restore them. Mend what the system "
                    f"complains of, then save again",
                    error.failures,
                ) from error
            raise


@contextmanager
def _part_of(path: str) -> Iterator[None]:
    """Says of a part that could not be saved what that means for the whole: it was not published."""
    try:
        yield
    except IncompleteSaveError as error:
        with saving(path):
            raise error.failures.get(0, error) from error


def group_by_devices(saveables: Iterable[Saveable]) -> list[tuple[str, list[Saveable]]]:
    """(device, saveables on it), in the order of the devices' names as text: GPU:10 comes before GPU:2.

    InvalidArgumentError where the specs of one saveable name several devices.
    """
    groups: dict[str, list[Saveable]] = {}
    for saveable in saveables:
        devices = {spec.device for spec in saveable.specs}
        if len(devices) > 1:
            raise InvalidArgumentError(
                f"All tensors of a saveable object must be on the same device: {saveable.name}: they are on "
                f"{', '.join(sorted(devices))}. Make one saveable object for each device"
            )
        groups.setdefault(devices.pop() if devices else "", []).append(saveable)
    return sorted(groups.items())


def _snapshot(saveables: Iterable[Saveable]) -> list[Saveable]:
    """The saveables with their values of now, in host memory that nobody changes."""
    copies = []
    for saveable in saveables:
        specs = []
        for spec in saveable.specs:
            value = _value_of(spec)
            writable(spec.name, value, spec.dtype)  # refuses here rather than in the thread that writes
            if isinstance(value, torch.Tensor):
                value = value.detach().to("cpu", copy=True)
            elif isinstance(value, np.ndarray):
                value = value.copy()
            specs.append(SaveSpec(value, spec.slice_spec, spec.name, spec.dtype, spec.device))
        copies.append(SaveableObject(saveable.op, specs, saveable.name))
    return copies


def _specs_of(saveables: Iterable[Saveable]) -> Iterable[SaveSpec]:
    return (spec for saveable in saveables for spec in saveable.specs)


def _plan(save: BundleSave, groups: Sequence[Saveables]) -> None:
    """Adds everything, group i to shard i. Every spec's tensor is asked for once."""
    for shard, group in enumerate(groups):
        for spec in _specs_of(group):
            if spec.slice_spec:
                full_shape, part = slice_of(spec)
                save.add_slice(spec.name, full_shape, part, _value_of(spec), shard=shard, dtype=spec.dtype)
            else:
                save.add(spec.name, _value_of(spec), shard=shard, dtype=spec.dtype)


def _add_to_version_1(writer: SlicesWriter, spec: SaveSpec) -> None:
    if spec.slice_spec:
        full_shape, part = slice_of(spec)
        writer.add(spec.name, _value_of(spec), shape=full_shape, part=part, dtype=spec.dtype)
    else:
        writer.add(spec.name, _value_of(spec), dtype=spec.dtype)


def _value_of(spec: SaveSpec) -> WritableValue:
    """The value to be saved; a function is called."""
    value = spec.tensor
    if value is None:
        raise InvalidArgumentError(f"tensor {quoted(spec.name)} has no value yet. Give it one, or leave it out")
    return value


def slice_of(spec: SaveSpec) -> tuple[tuple[int, ...], TensorSlice]:
    """Full shape, and the slice of it that a spec with a slice stands for."""
    full_shape, part, _ = parse_shape_and_slice(spec.slice_spec)
    return full_shape, part


def _read(reader: CheckpointReader, spec: SaveSpec) -> Value:
    return reader.read_slice(spec.name, slice_of(spec)[1]) if spec.slice_spec else reader.get_tensor(spec.name)
