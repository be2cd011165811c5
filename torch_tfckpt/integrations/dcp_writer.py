"""TFCheckpointWriter: torch.distributed.checkpoint saves a TensorFlow checkpoint.

    call                    what it does
    prepare_global_plan     on the coordinator: creates the marker of the save (`bundle.publish`)
    write_data              on each rank: writes its tensors to one data file with a temporary name, and returns its
                            part of the index, and the JSON of its other values, in one WriteResult
    finish                  on the coordinator: joins the parts, writes the JSON to a last data file, publishes it all

Nothing refers to this save in what planners may keep between saves: `SavePlan.storage_data` is the rank, and the number
of ranks. DCP does not tell writers when a save has failed, so each writer keeps its data file open, and the coordinator
its marker, until `abandon`, the next save in this thread with any writer, or the end of the writer. Other programs see
that the files are in use, and do not remove them as leftovers; after the process has ended, the next save in the
directory removes them. In an object store, files of a failed save stay until the next save of the same name.
"""

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Final

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItemType
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from torch_tfckpt.bundle.index import key_of
from torch_tfckpt.bundle.index_merge import merge_indexes
from torch_tfckpt.bundle.part_index import PartIndex
from torch_tfckpt.bundle.plan import BundlePlan
from torch_tfckpt.bundle.publish import BundlePublication, close_files, remove, saving
from torch_tfckpt.bundle.unfinished import current_count
from torch_tfckpt.distributed.ranks import Ranks
from torch_tfckpt.distributed.shards import tell_about_tensorflow
from torch_tfckpt.errors import DataLossError, FailedPreconditionError, InvalidArgumentError
from torch_tfckpt.format.file_kind import refuse_other_ending
from torch_tfckpt.format.tensor_bundle import data_filename
from torch_tfckpt.format.tensor_slice import shape_text
from torch_tfckpt.integrations.dcp_alone import CommitOverStore, RankNames, RankPart
from torch_tfckpt.integrations.dcp_items import add_tensor, add_value
from torch_tfckpt.integrations.dcp_names import StateNames, path_of, state_names
from torch_tfckpt.integrations.dcp_texts import documents_of, not_written
from torch_tfckpt.storage.choice import storage_of
from torch_tfckpt.storage.names import AnyPath, fspath, new_save_number, parse_temporary_name, stem, temporary_name
from torch_tfckpt.storage.protocol import Storage, WritableFile
from torch_tfckpt.text import printable, quoted
from torch_tfckpt.transfer.staging import Staging, StagingOptions
from torch_tfckpt.transfer.transfer import Transfer

# Writers whose last save may not be over. A save runs in one thread from its beginning to its end.
_UNFINISHED: Final = weakref.WeakSet["TFCheckpointWriter"]()


class TFCheckpointWriter(StorageWriter):
    """Storage writer of torch.distributed.checkpoint that writes TensorFlow checkpoints.

    The checkpoint is what a `Saver` of one process would have written: the same names, optimizers by the names of
    parameters, and JSON for everything that is not a tensor. It can be read by `TFCheckpointReader` on any number of
    ranks, by a `Saver`, and by TensorFlow.

    Args:
        path: Prefix of the checkpoint, such as "run/ckpt-100". All ranks need the same path, in a directory that all of
            them see. `checkpoint_id=` of `dcp.save` replaces it.
        staging: Limits for host memory and threads; None: as for a Saver.
        max_piece_bytes: A rank's part of a tensor that is larger is stored as several slices, each with a checksum of
            its own, so that a rank that reads a part of it has less to verify. None: no limit.

    Raises:
        InvalidArgumentError: the path has the extension of another format, or `max_piece_bytes` is not positive.

    Works with any planner, `dcp.save` and `dcp.async_save` with threads and processes, and plan caching. What cannot be
    stored is a TypeError or an InvalidArgumentError that names it, in the CheckpointException of all ranks.

    Cost: one write of the bytes; host memory as for a Saver. A few bytes per slice go to the coordinator.
    Thread safety: one save at a time.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> import torch.distributed as dist, torch.distributed.checkpoint as dcp
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> state = {"model": torch.nn.Linear(2, 1).state_dict(), "step": 7}
        >>> metadata = dcp.save(state, storage_writer=tfckpt.TFCheckpointWriter("run/ckpt-7"))
        >>> [name for name, shape in tfckpt.list_variables("run/ckpt-7")]
        ['model', 'model/bias', 'model/weight', 'step']
        >>> dist.destroy_process_group()
    """

    def __init__(
        self, path: AnyPath, *, staging: StagingOptions | None = None, max_piece_bytes: int | None = None
    ) -> None:
        super().__init__()
        if max_piece_bytes is not None and (type(max_piece_bytes) is not int or max_piece_bytes < 1):
            raise InvalidArgumentError(f"max_piece_bytes={max_piece_bytes!r}: pass a positive number of bytes, or None")
        self._prefix = _prefix(path)
        self._options, self._max_piece_bytes = staging, max_piece_bytes
        self._start()

    def _start(self) -> None:
        """Set what belongs to one save."""
        self._staging: Staging | None = None
        self._rank = 0
        self._publication: BundlePublication | None = None  # on the coordinator
        self._file: WritableFile | None = None  # data file of this rank
        self._ranks: Ranks | None = None  # for use_collectives=False
        self._commit: CommitOverStore | None = None
        self._owner = os.getpid()  # process that removes the files
        self._thread: threading.Thread | None = None  # in which the save runs

    def __getstate__(self) -> dict[str, Any]:
        return {"_prefix": self._prefix, "_options": self._options, "_max_piece_bytes": self._max_piece_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def __del__(self) -> None:
        if getattr(self, "_owner", None) == os.getpid():  # a forked child does not own the files
            with suppress(Exception):
                self.abandon()

    def abandon(self) -> None:
        """Remove the files that this rank has written in a save that failed. Does nothing after a successful save.

        The next save in the same thread does this, too, with any writer; so does the end of the writer.

        Examples:
            >>> import torch_tfckpt as tfckpt
            >>> tfckpt.TFCheckpointWriter("run/ckpt-8").abandon()
        """
        _UNFINISHED.discard(self)
        publication, self._publication = self._publication, None
        file, self._file = self._file, None
        commit, self._commit = self._commit, None
        try:
            if commit is not None:
                commit.abandon()
            if file is not None:
                if storage_of(self._prefix).renames:  # after a successful save, no file has this name any more
                    remove(storage_of(self._prefix), file.path)
                close_files([file])
        finally:
            if publication is not None:
                publication.abandon()

    # The methods that torch.distributed.checkpoint calls, in order.

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin a new save, of the checkpoint with the prefix `checkpoint_id`."""
        self.abandon()
        if checkpoint_id is not None:
            self._prefix = _prefix(checkpoint_id)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Return whether this can be the prefix of a checkpoint."""
        try:
            _prefix(checkpoint_id)
        except InvalidArgumentError:
            return False
        return True

    def storage_meta(self) -> StorageMeta | None:
        """Return the prefix, for planners."""
        return StorageMeta(checkpoint_id=self._prefix)

    # DCP passes `rank` and `use_collectives` only to a parameter with the name `kwargs`.
    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Begin a save on this rank."""
        self.abandon()
        _abandon_failed_saves()
        self._thread = threading.current_thread()
        _UNFINISHED.add(self)
        rank = kwargs.get("rank")
        if rank is None:
            rank = dist.get_rank() if _has_group() else 0
        self._rank = rank
        if not kwargs.get("use_collectives", True) and _has_group():
            self._ranks = self._ranks or Ranks()
            self._commit = CommitOverStore(self._ranks, self._prefix, rank)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Return the plan unchanged."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Create the directory and the marker of the save, on one rank."""
        if self._commit is None or self._rank == 0:
            with self._telling(), saving(self._prefix):
                self._publication = BundlePublication(storage_of(self._prefix), self._prefix)
        first, count = (0, len(plans)) if self._commit is None else (self._rank, self._commit.world_size)
        return [replace(plan, storage_data=(first + number, count)) for number, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write the values of this rank."""
        if not isinstance(plan.storage_data, tuple):
            raise InvalidArgumentError(
                f"{printable(self._prefix)}: the planner has dropped the storage_data of the plan. Its finish_plan "
                f"must keep what create_global_plan and the storage writer have put there"
            )
        with self._telling(), saving(self._prefix):
            try:
                rank, count = plan.storage_data
                part = self._written(rank, count, plan, planner)
            except BaseException:
                self._remove_file()
                raise
        future: Future[list[WriteResult]] = Future()
        future.set_result([WriteResult(MetadataIndex(""), 0, part)])
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Publish the checkpoint."""
        written = [each.storage_data for of_rank in results for each in of_rank]
        parts = [part for part in written if isinstance(part, RankPart)]
        commit, self._commit = self._commit, None
        found = metadata.state_dict_metadata
        names = state_names(found, metadata.planner_data)
        leaves = {name for name, of in found.items() if isinstance(of, BytesStorageMetadata)}
        if commit is None:
            tell_about_tensorflow(self._prefix, _in_slices(metadata))
            self._publish(parts, names, set(found) - leaves)
            return
        known = metadata.planner_data if isinstance(metadata.planner_data, dict) else {}
        paths = {name: path_of(known.get(name), name) for name in found}
        own = RankNames(
            {name: path for name, path in paths.items() if name not in leaves},
            {name: paths[name] for name in leaves},
            {
                name: f"{of.properties.dtype} {shape_text(of.size)}"
                for name, of in found.items()
                if not isinstance(of, BytesStorageMetadata)
            },
        )

        def publish(parts: list[RankPart], of_all: RankNames) -> None:
            everything = {**of_all.tensors, **of_all.others}
            self._publish(parts, state_names(everything, everything), set(of_all.tensors))

        try:
            [part] = parts
            commit.finish(part, own, publish)
        except BaseException:
            self.abandon()
            raise

    def _publish(self, parts: list[RankPart], names: StateNames, tensors: set[str]) -> None:
        """Publish what the ranks have written. `tensors`: their names."""
        publication, own = self._publication, self._file
        if publication is None:
            raise FailedPreconditionError(f"{printable(self._prefix)}: finish was called before prepare_global_plan")
        names.check_unique()
        for part in parts:
            self._check_path(part, len(parts))
        texts = documents_of(names, tensors, {name: text for part in parts for name, text in part.values.items()})
        with saving(self._prefix):
            written = sorted((part for part in parts if part.path), key=lambda part: part.rank)
            paths = [part.path for part in written]
            indexes = [
                PartIndex(f"rank {part.rank}", part.index, {part.rank: number}) for number, part in enumerate(written)
            ]
            files = [] if own is None else [own]
            try:
                if texts or not written or not storage_of(self._prefix).renames:
                    file, index = self._write_texts(texts, len(written))
                    files.append(file)
                    paths.append(file.path)
                    indexes.append(PartIndex("the coordinator", index, {len(written): len(written)}))
                # Without collectives, ranks may write copies of parts that are not parts of DTensors.
                place = f"save of {printable(self._prefix)}"
                merged = merge_indexes(indexes, place, equal_duplicates=True, complete=True)
                stored = merged.names()
                for name in tensors:
                    if key_of(names.tensor_key(name)) not in stored:
                        raise not_written(name)
                publication.publish(merged.encode, files, data=paths)
            except BaseException:
                for path in paths:
                    remove(storage_of(self._prefix), path)
                close_files(files)
                self.abandon()
                raise
        self._publication = self._file = None

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Tell the other ranks of an error in the `with` block, if they would wait for this one."""
        try:
            yield
        except BaseException as error:
            commit, self._commit = self._commit, None
            if commit is not None:
                commit.fail(error)
            raise

    def _written(self, rank: int, count: int, plan: SavePlan, planner: SavePlanner) -> RankPart:
        """Write the tensors of this rank's plan. `count`: the number of ranks."""
        names = state_names(_all_names(plan), plan.planner_data)
        names.check_unique()
        bundle = BundlePlan()
        values: dict[str, str] = {}
        for item in plan.items:
            if self._commit is not None and not self._commit.is_own(item, planner):
                continue
            if item.type == WriteItemType.BYTE_IO:
                values[item.index.fqn] = add_value(bundle, names, item, planner)
            else:
                add_tensor(bundle, names, item, planner, self._max_piece_bytes)
        storage = storage_of(self._prefix)
        if not bundle.waiting and storage.renames:
            return RankPart(rank, "", b"", values)
        self._file = file = storage.create(self._data_path(storage, rank, count + 1))
        self._staging = self._staging or Staging(self._options)
        _write(bundle, file, self._staging)
        return RankPart(rank, file.path, bundle.part_index(rank), values)

    def _write_texts(self, texts: dict[str, str], number: int) -> tuple[WritableFile, bytes]:
        """Write the documents to a data file; return it, and its part of the index as shard `number`."""
        bundle = BundlePlan()
        for key in sorted(texts):
            bundle.add(key, texts[key], shard=0)
        storage = storage_of(self._prefix)
        file = storage.create(self._data_path(storage, number, number + 1))
        try:
            _write(bundle, file, Staging(self._options))
        except BaseException:
            remove(storage, file.path)
            close_files([file])
            raise
        return file, bundle.part_index(number)

    def _data_path(self, storage: Storage, number: int, count: int) -> str:
        """Return the path under which to write data file `number` of `count`."""
        prefix = self._prefix
        if storage.renames:
            save = new_save_number(storage.lock_domain(os.path.dirname(prefix)))
            return temporary_name(data_filename(prefix, number, count), save)
        # A final name that the checkpoint in place does not use; from its index, so that all ranks find the same.
        return data_filename(prefix, number, count + (current_count(storage, prefix) == count))

    def _check_path(self, part: RankPart, count: int) -> None:
        """Refuse to publish, or to remove, a file that is not a data file of this checkpoint by rank `part.rank`."""
        storage = storage_of(self._prefix)
        if storage.renames:
            temporary = parse_temporary_name(part.path)
            path, expected = (
                temporary.path if temporary else "",
                [stem(data_filename(self._prefix, part.rank, count + 1))],
            )
        else:
            path, expected = part.path, [data_filename(self._prefix, part.rank, count + 1 + more) for more in (0, 1)]
        if part.path and path not in expected:
            raise DataLossError(
                f"save of {printable(self._prefix)}: rank {part.rank} reports that it has written "
                f"{quoted(part.path)}, which is not a file of this save. All ranks need the same path and the same "
                f"version of torch_tfckpt; if they have, something else writes to the store of the process group"
            )

    def _remove_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            remove(storage_of(self._prefix), file.path)
            close_files([file])


def _has_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def _abandon_failed_saves() -> None:
    """Abandon saves that are over: those that ran in this thread, or in one that has ended."""
    here = threading.current_thread()
    for writer in list(_UNFINISHED):
        thread = writer._thread
        if writer._owner == os.getpid() and (thread is here or thread is None or not thread.is_alive()):
            writer.abandon()


def _prefix(path: AnyPath) -> str:
    prefix = fspath(path)
    refuse_other_ending(prefix, "TFCheckpointWriter")
    if not os.path.basename(prefix):
        raise InvalidArgumentError(
            f"TFCheckpointWriter: {quoted(prefix)} is a directory. Pass the prefix of a checkpoint in it, such as "
            f"{quoted(os.path.join(prefix, 'ckpt-1'))}"
        )
    return prefix


def _write(bundle: BundlePlan, file: WritableFile, staging: Staging) -> None:
    bundle.enter(Transfer(bundle.waiting, [file], staging, snapshot=False).result())
    bundle.close()
    if not bundle.shards[0].data_end:  # others were synced when their last bytes were written
        file.sync()


def _all_names(plan: SavePlan) -> dict[str, None]:
    """Return the names of all values of the rank's state_dict, as far as the plan has them."""
    known = plan.planner_data if isinstance(plan.planner_data, dict) else {}
    names = dict.fromkeys(name for name in known if isinstance(name, str))
    return names | dict.fromkeys(item.index.fqn for item in plan.items)


def _in_slices(metadata: Metadata) -> dict[str, torch.dtype]:
    """Return the dtypes of the tensors that are stored in slices."""
    return {
        name: of.properties.dtype
        for name, of in metadata.state_dict_metadata.items()
        if not isinstance(of, BytesStorageMetadata) and len(of.chunks) > 1
    }
