"""TFCheckpointWriter: torch.distributed.checkpoint saves a TensorFlow checkpoint.

    call                    what it does
    prepare_global_plan     on the coordinator: creates the marker of the save (`bundle.publish`)
    write_data              on each rank: writes its tensors to one data file with a temporary name, and returns its
                            part of the index, and the JSON of its other values, in one WriteResult
    finish                  on the coordinator: joins the parts, writes the JSON to a last data file, publishes all
    files

Nothing refers to this save in what planners may keep between saves: `SavePlan.storage_data` is the rank's number. DCP
does not tell writers when a save has failed, so each writer keeps its data file open, and the coordinator its marker,
until `abandon`, the next save in this thread with any writer, or the end of the writer. Other programs see that the
files are in use, and do not remove them as leftovers; after the process has ended, the next save in the directory
removes them.
"""

import io
import logging
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from torch_tfckpt.bundle.plan import BundlePlan
from torch_tfckpt.bundle.publish import BundlePublication, close_files, remove, saving
from torch_tfckpt.distributed.shards import plain_tensor
from torch_tfckpt.errors import FailedPreconditionError, InvalidArgumentError
from torch_tfckpt.format.file_kind import refuse_other_ending
from torch_tfckpt.format.tensor_bundle import BundleHeader, data_filename, encode_index
from torch_tfckpt.format.tensor_slice import Extent, Shape, TensorSlice, element_count
from torch_tfckpt.integrations.dcp_index import joined_entries
from torch_tfckpt.integrations.dcp_names import StateNames, key_of_path, state_names
from torch_tfckpt.integrations.dcp_texts import documents_of, encode_value
from torch_tfckpt.storage.choice import storage_of
from torch_tfckpt.storage.names import AnyPath, fspath, new_save_number, temporary_name
from torch_tfckpt.storage.protocol import WritableFile
from torch_tfckpt.text import printable, quoted
from torch_tfckpt.transfer.staging import Staging, StagingOptions
from torch_tfckpt.transfer.transfer import Transfer

_log = logging.getLogger(__name__)
# Of these dtypes, TensorFlow cannot read a tensor that is stored in slices.
_WHOLE_IN_TENSORFLOW: Final = frozenset(
    {torch.float16, torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2}
)


# Writers whose last save may not be over. A save runs in one thread from its beginning to its end.
_UNFINISHED: Final = weakref.WeakSet["TFCheckpointWriter"]()


@dataclass(frozen=True, slots=True)
class RankPart:
    """What one rank has written.

    Attributes:
        rank: Its number.
        path: Its data file, with a temporary name; "" if it has written no tensor.
        index: The index entries of its tensors, as the shard with the rank's number.
        values: Name -> JSON of the values that are not tensors.
    """

    rank: int
    path: str
    index: bytes
    values: dict[str, str]


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
        try:
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
            rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        self._rank = rank

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Return the plan unchanged."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Create the directory and the marker of the save."""
        with saving(self._prefix):
            self._publication = BundlePublication(storage_of(self._prefix), self._prefix)
        return [replace(plan, storage_data=rank) for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write the values of this rank."""
        rank = plan.storage_data if isinstance(plan.storage_data, int) else self._rank
        with saving(self._prefix):
            try:
                part = self._written(rank, plan, planner)
            except BaseException:
                self._remove_file()
                raise
        future: Future[list[WriteResult]] = Future()
        future.set_result([WriteResult(MetadataIndex(""), 0, part)])
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Publish the checkpoint."""
        parts = [
            each.storage_data for of_rank in results for each in of_rank if isinstance(each.storage_data, RankPart)
        ]
        parts.sort(key=lambda part: part.rank)
        publication = self._publication
        if publication is None:
            raise FailedPreconditionError(f"{printable(self._prefix)}: finish was called before prepare_global_plan")
        names = state_names(metadata.state_dict_metadata, metadata.planner_data)
        names.check_unique()
        leaves = {name for name, of in metadata.state_dict_metadata.items() if isinstance(of, BytesStorageMetadata)}
        values = {name: text for part in parts for name, text in part.values.items()}
        texts = documents_of(names, set(names.paths) - leaves, values)
        _tell_about_tensorflow(self._prefix, metadata)
        own = self._file
        with saving(self._prefix):
            written = [part for part in parts if part.path]
            paths, indexes = [part.path for part in written], [part.index for part in written]
            files = [] if own is None else [own]
            try:
                if texts or not written:
                    number = max((part.rank for part in parts), default=0) + 1
                    file, index = self._write_texts(texts, number)
                    files.append(file)
                    paths.append(file.path)
                    indexes.append(index)
                entries = joined_entries(self._prefix, indexes)
                publication.publish(lambda count: encode_index(BundleHeader(count), entries), files, data=paths)
            except BaseException:
                for path in paths:
                    remove(storage_of(self._prefix), path)
                close_files(files)
                self.abandon()
                raise
        self._publication = self._file = None

    def _written(self, rank: int, plan: SavePlan, planner: SavePlanner) -> RankPart:
        """Write the tensors of this rank's plan."""
        names = state_names(_all_names(plan), plan.planner_data)
        names.check_unique()
        bundle = BundlePlan()
        values: dict[str, str] = {}
        for item in plan.items:
            if item.type == WriteItemType.BYTE_IO:
                self._add_value(bundle, names, item, planner, values)
            else:
                self._add_tensor(bundle, names, item, planner)
        if not bundle.waiting:
            return RankPart(rank, "", b"", values)
        storage = storage_of(self._prefix)
        save = new_save_number(storage.lock_domain(os.path.dirname(self._prefix)))
        self._file = file = storage.create(temporary_name(data_filename(self._prefix, rank, 0), save))
        self._staging = self._staging or Staging(self._options)
        _write(bundle, file, self._staging)
        return RankPart(rank, file.path, bundle.part_index(rank), values)

    def _add_tensor(self, bundle: BundlePlan, names: StateNames, item: WriteItem, planner: SavePlanner) -> None:
        name, data = item.index.fqn, item.tensor_data
        key = names.tensor_key(name)
        if data is None:
            raise InvalidArgumentError(f"the plan has no shape for {quoted(name)}, which is a tensor")
        full, offsets, sizes = tuple(data.size), tuple(data.chunk.offsets), tuple(data.chunk.sizes)
        if not element_count(sizes) and (element_count(full) or any(offsets)):
            return  # a rank without elements; an empty tensor is stored once
        tensor = _plain(key, planner.resolve_data(item))
        if not element_count(full):
            bundle.add(key, tensor.reshape(full), shard=0)
            return
        if tuple(tensor.shape) != sizes:
            raise InvalidArgumentError(
                f"tensor {quoted(key)}: the plan of this rank has a part of shape {list(sizes)} at {list(offsets)}, "
                f"but the tensor in the state_dict has shape {list(tensor.shape)}"
            )
        for start, piece in _pieces(tensor, self._max_piece_bytes):
            extents = zip(offsets, start, piece.shape, strict=True)
            part = TensorSlice(tuple(Extent(offset + begin, length) for offset, begin, length in extents))
            bundle.add(key, piece, shard=0, part=(full, part))

    def _add_value(
        self, bundle: BundlePlan, names: StateNames, item: WriteItem, planner: SavePlanner, values: dict[str, str]
    ) -> None:
        name = item.index.fqn
        found = names.hyperparameters.get(name)
        path = names.paths[name] if found is None else (*found.optimizer, "param_groups", found.parameter, found.name)
        values[name], tensors = encode_value(key_of_path(path), _looked_up(planner, item))
        for key, tensor in tensors.items():
            bundle.add(key, tensor, shard=0)

    def _write_texts(self, texts: dict[str, str], number: int) -> tuple[WritableFile, bytes]:
        """Write the documents to a data file; return it, and its part of the index as shard `number`."""
        bundle = BundlePlan()
        for key in sorted(texts):
            bundle.add(key, texts[key], shard=0)
        storage = storage_of(self._prefix)
        save = new_save_number(storage.lock_domain(os.path.dirname(self._prefix)))
        file = storage.create(temporary_name(data_filename(self._prefix, number, 0), save))
        try:
            _write(bundle, file, Staging(self._options))
        except BaseException:
            remove(storage, file.path)
            close_files([file])
            raise
        return file, bundle.part_index(number)

    def _remove_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            remove(storage_of(self._prefix), file.path)
            close_files([file])


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


def _looked_up(planner: SavePlanner, item: WriteItem) -> object:
    """Return the value of an item that is not a tensor."""
    look_up = getattr(planner, "lookup_object", None)
    if look_up is not None:
        value: object = look_up(item.index)
        return value
    stored = planner.resolve_data(item)
    if isinstance(stored, io.BytesIO):
        stored.seek(0)
        try:
            value = torch.load(stored, weights_only=True)
        except Exception as error:
            raise TypeError(
                f"{quoted(item.index.fqn)} of the state_dict cannot be stored: the planner has pickled it, and it is "
                f"not a plain value: {error}. Use a planner derived from DefaultSavePlanner"
            ) from error
        return value
    return stored


def _plain(key: str, value: object) -> torch.Tensor:
    """Return the tensor that a planner has resolved, once its value has arrived."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{quoted(key)} is planned as a tensor, but the planner returns a {type(value).__name__}")
    return plain_tensor(value)


def _pieces(tensor: torch.Tensor, limit: int | None) -> Iterator[tuple[Shape, torch.Tensor]]:
    """Yield a tensor in slices of at most `limit` bytes each, with their offsets."""
    if limit is None or tensor.nbytes <= limit or tensor.numel() <= 1:
        yield (0,) * tensor.dim(), tensor
        return
    axis = next(axis for axis, size in enumerate(tensor.shape) if size > 1)
    length = tensor.shape[axis]
    step = max(1, limit * length // tensor.nbytes)
    for start in range(0, length, step):
        for inner, piece in _pieces(tensor.narrow(axis, start, min(step, length - start)), limit):
            yield (*inner[:axis], start + inner[axis], *inner[axis + 1 :]), piece


def _tell_about_tensorflow(prefix: str, metadata: Metadata) -> None:
    """Log which tensors TensorFlow cannot read, because they are in slices."""
    found: Sequence[str] = [
        name
        for name, of in metadata.state_dict_metadata.items()
        if not isinstance(of, BytesStorageMetadata)
        and len(of.chunks) > 1
        and of.properties.dtype in _WHOLE_IN_TENSORFLOW
    ]
    if found:
        _log.info(
            "%s: TensorFlow cannot join slices of the dtypes of %d tensors, such as %s. For TensorFlow, store them "
            "whole: tfckpt convert %s TARGET --to tf",
            printable(prefix),
            len(found),
            quoted(found[0]),
            printable(prefix),
        )
