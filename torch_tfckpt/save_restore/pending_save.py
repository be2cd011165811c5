"""Interface of a save in progress, and a save that writes the shards one by one and merges them.

Source: _AddShardedSaveOpsForV2 in tensorflow/python/training/saver.py.
"""

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt.bundle.leftovers import remove_leftovers
from torch_tfckpt.bundle.marker import Marker
from torch_tfckpt.bundle.merge import merge_bundles
from torch_tfckpt.bundle.parts import remove_folder
from torch_tfckpt.bundle.publish import remove, saving
from torch_tfckpt.bundle.removal import remove_bundle
from torch_tfckpt.bundle.unfinished import PART, PARTS_SUFFIX
from torch_tfckpt.errors import CheckpointError, FailedPreconditionError, IncompleteSaveError
from torch_tfckpt.format.tensor_bundle import index_filename
from torch_tfckpt.saveables.save_spec import SaveableObject, group_by_devices
from torch_tfckpt.storage.names import refuse_long_name, temporary_name
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.storage.small_files import make_directories
from torch_tfckpt.text import byte_text, printable
from torch_tfckpt.v1.shard_names import publish_shards, shard_names, shard_pattern

_log = logging.getLogger(__name__)


class PendingSave(Protocol):
    """A save that has begun."""

    @property
    def staged(self) -> threading.Event:
        """Set when training may change the values, or when the save has failed."""

    @property
    def total_bytes(self) -> int | None:
        """Total size of all data files; None if it is not known."""

    def finish(self) -> str:
        """Wait until everything is written, publish it, and return the checkpoint's path for the state file."""

    def abandon(self) -> None:
        """Stop, and remove everything that was written."""


class PartWriter(Protocol):
    """Methods of a builder that writes the parts one by one."""

    write_version: int

    def save_op(self, storage: Storage, filename: str, saveables: Sequence[SaveableObject]) -> None: ...

    def sharded_filename(self, filename: str, shard: int, num_shards: int) -> str: ...


class SaveByParts:
    """A save that calls the builder's `save_op`, in `finish`."""

    def __init__(
        self,
        builder: PartWriter,
        storage: Storage,
        path: str,
        saveables: Sequence[SaveableObject],
        sharded: bool,
    ) -> None:
        self._builder, self._storage, self._path, self._sharded = builder, storage, path, sharded
        self._groups = [group for _, group in group_by_devices(saveables)] if sharded else [saveables]
        self.staged = threading.Event()
        self.staged.set()
        self.total_bytes: int | None = None  # a subclass's `save_op` may write anything

    def finish(self) -> str:
        save_op, storage, path = self._builder.save_op, self._storage, self._path
        if self._builder.write_version == SaverDef.V1:  # the version 1 writer creates no directory
            if storage.renames:
                refuse_long_name(shard_names(path, 1)[0] if self._sharded else path)
            with saving(path):
                make_directories(storage, os.path.dirname(path))
                _refuse_version_2(storage, path)
            remove_leftovers(storage, os.path.dirname(path))
        if not self._sharded:
            save_op(storage, path, self._groups[0])
            return path
        count = len(self._groups)
        if self._builder.write_version == SaverDef.V1:
            targets = [self._builder.sharded_filename(path, shard, count) for shard in range(count)]
            if storage.renames and targets == shard_names(path, count):
                self._save_shards_together(targets)
            else:
                self._save_shards_one_by_one(targets)
            return shard_pattern(path, count)
        with saving(path):
            make_directories(storage, os.path.dirname(path))
            remove_leftovers(storage, os.path.dirname(path))
            marker = Marker(storage, path)  # from here on, leftovers of a killed save can be recognized
        # The names are unique, because another save of the same path must not merge these parts. An object store
        # needs no folder for them.
        folder = temporary_name(path + PARTS_SUFFIX, marker.save)
        base = os.path.join(folder, PART) if storage.renames else f"{path}.{PART}{marker.save}"
        parts = [self._builder.sharded_filename(base, shard, count) for shard in range(count)]
        clean = False
        try:
            for part, group in zip(parts, self._groups, strict=True):
                with _part_of(path):
                    save_op(storage, part, group)
            merge_bundles(storage, parts, path, marker=marker)
        finally:
            try:
                clean = self._remove_parts(parts)
            finally:
                marker.end(clean=clean)
        return path

    def abandon(self) -> None:
        """Do nothing: nothing has been written yet."""

    def _remove_parts(self, parts: Sequence[str]) -> bool:
        """Remove the parts; return whether that succeeded. Never raises, so that an earlier error is not lost."""
        storage, folder = self._storage, os.path.dirname(parts[0])
        try:
            if storage.renames and not storage.is_directory(folder):
                return True
            for part in parts:
                remove_bundle(storage, part)
            if storage.renames:
                remove_folder(storage, folder)
        except (OSError, CheckpointError):
            return False
        return True

    def _save_shards_together(self, targets: Sequence[str]) -> None:
        """Write all shards of version 1 under temporary names, and then publish them."""
        storage, path = self._storage, self._path
        with saving(path):
            marker = Marker(storage, path)  # kept until the end, so that no program takes the shards for leftovers
        temporaries = [temporary_name(target, marker.save) for target in targets]
        committed: list[bool] = []
        clean = False
        try:
            for temporary, group in zip(temporaries, self._groups, strict=True):
                with _part_of(path):
                    self._builder.save_op(storage, temporary, group)
            with saving(path):
                publish_shards(storage, path, temporaries, committed)
            clean = True
        finally:
            try:
                if not committed:
                    clean = all([remove(storage, temporary) for temporary in temporaries])
            finally:
                marker.end(clean=clean)

    def _save_shards_one_by_one(self, targets: Sequence[str]) -> None:
        """Write each version 1 shard under its final name. If one fails, remove the new shards.

        Used for object stores, and if the program's own builder determines the names.
        """
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
            clean = all([remove(self._storage, target) for target in new])
            if isinstance(error, IncompleteSaveError) and (replaced or not clean):
                raise IncompleteSaveError(
                    f"save of {printable(self._path)}: {error.failures.get(0, error)}. Some of its {len(targets)} "
                    "shards are new, others are missing or from an earlier save: do not restore them. Fix the "
                    "cause, then "
                    f"save again",
                    error.failures,
                ) from error
            raise


def _refuse_version_2(storage: Storage, path: str) -> None:
    """Raise FailedPreconditionError if a version 2 checkpoint at `path` would hide the version 1 files."""
    if storage.exists(index_filename(path)):
        raise FailedPreconditionError(
            f"{printable(path)} is a checkpoint of version 2, and all readers would read it instead of a version 1 "
            f"checkpoint with this name. Remove it with `remove_checkpoint`, or save under another name"
        )


@contextmanager
def _part_of(path: str) -> Iterator[None]:
    """Convert the error of one part to an error of the whole checkpoint, which is not published."""
    try:
        yield
    except IncompleteSaveError as error:
        with saving(path):
            raise error.failures.get(0, error) from error


@contextmanager
def published(path: str | None, lacking: str) -> Iterator[None]:
    """Convert an OSError after publication to an IncompleteSaveError: the checkpoint is in place."""
    try:
        yield
    except CheckpointError:
        raise
    except OSError as error:
        state = (
            f"{printable(path)} is in place and can be restored, but {lacking}" if path else f"nothing saved: {lacking}"
        )
        raise IncompleteSaveError(f"{state}: {error}. Fix the cause, then save again", {0: error}) from error


def log_saved(path: str, save: PendingSave, seconds: float) -> None:
    """Log that a checkpoint was published: "Saved run/m-30 (1.2 GB in 3.4 s)"."""
    if not _log.isEnabledFor(logging.INFO):
        return
    duration = f"{seconds:.1f} s" if seconds >= 0.1 else f"{max(0.0, seconds) * 1000:.0f} ms"
    size = "" if save.total_bytes is None else f"{byte_text(save.total_bytes)} "
    _log.info("Saved %s (%sin %s)", printable(path), size, duration)
