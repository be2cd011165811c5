"""A save of all ranks: each writes its part alone, rank 0 merges the parts and publishes the checkpoint.

Who writes what needs no messages:

- a DTensor: every rank whose box of it is the first replica writes this box, as a slice;
- everything else: the rank crc32(name) modulo the number of ranks writes it.

A part is a complete checkpoint (`bundle.parts`), so that the parts of a save whose rank 0 has died can be published by
anybody. The files of a rank are protected from the cleanup of other programs by a file that the rank keeps locked.
"""

import logging
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, NoReturn

from torch_tfckpt.bundle.leftovers import remove_leftovers
from torch_tfckpt.bundle.merge import merge_bundles
from torch_tfckpt.bundle.parts import lock_name, part_prefix, parts_folder, write_note
from torch_tfckpt.bundle.plan import BundlePlan
from torch_tfckpt.bundle.publish import remove, saving
from torch_tfckpt.bundle.removal import remove_bundle
from torch_tfckpt.bundle.save import BundleSave
from torch_tfckpt.distributed.calls import RankCalls
from torch_tfckpt.distributed.commit import Commit, Json
from torch_tfckpt.distributed.comparison import Entry, check_same, plain_keys, report_of
from torch_tfckpt.distributed.shards import is_dtensor, is_split, local_shard, tell_about_tensorflow
from torch_tfckpt.errors import CheckpointError, IncompleteSaveError, InvalidArgumentError
from torch_tfckpt.format.tensor_slice import Shape, TensorSlice
from torch_tfckpt.storage.names import refuse_long_name, shared_save_number
from torch_tfckpt.storage.protocol import Storage, WritableFile
from torch_tfckpt.storage.small_files import make_directories
from torch_tfckpt.text import printable
from torch_tfckpt.transfer.staging import Staging
from torch_tfckpt.values import WritableValue

_log = logging.getLogger(__name__)


class _Own(NamedTuple):
    """What this rank writes of an entry."""

    entry: Entry
    value: WritableValue
    part: tuple[Shape, TensorSlice] | None


@contextmanager
def telling_the_others(ranks: RankCalls, commit: Commit, *, in_place: bool = False) -> Iterator[None]:
    """If an error ends the `with` block, tell the other ranks.

    Raises:
        IncompleteSaveError: after a system's error; it names this rank, as on the other ranks.
        Any other error as it is, with a note.
    """
    try:
        yield
    except BaseException as error:
        if commit.is_over:
            ranks.ended(commit)
            raise
        try:
            _tell(commit, error, in_place=in_place)
        except CheckpointError as told:
            if isinstance(error, OSError):
                raise told from error
        finally:
            ranks.ended(commit)
        error.add_note(f"The other ranks were told that rank {ranks.rank} of {ranks.world_size} failed")
        raise


def _tell(commit: Commit, error: BaseException, *, in_place: bool) -> NoReturn:
    cause = error
    if isinstance(error, IncompleteSaveError) and len(error.failures) == 1 and not in_place:
        (cause,) = error.failures.values()  # without the path of the part, which is not the checkpoint
    commit.fail({commit.rank: cause}, in_place=in_place)


class RankSave:
    """A save of all ranks, on one of them; it begins on construction.

    Args:
        commit: The call of all ranks that this save is.
        path: Prefix of the checkpoint, the same on all ranks.
        entries: All values, on every rank.
        staging: Source of host memory for copies.
        snapshot: Whether the values may change once `staged` is set; otherwise only after `finish_with` has returned.
        note: What whoever publishes the parts after a crash must know; written by rank 0.

    Attributes:
        rank: This rank.
        staged: Set when the values may change again.
        total_bytes: Size of this rank's part; on rank 0, when the checkpoint is published, of all parts.

    Raises:
        IncompleteSaveError: a rank has failed. Any other error of `BundlePlan.add`, on the rank with the value.
    """

    def __init__(
        self,
        ranks: RankCalls,
        commit: Commit,
        storage: Storage,
        path: str,
        entries: Sequence[Entry],
        staging: Staging,
        *,
        snapshot: bool,
        note: Json | None = None,
    ) -> None:
        self._ranks, self._commit, self._path = ranks, commit, path
        self._names = [entry.name for entry in entries]
        self.rank = ranks.rank
        self._storage: Any = _WithProgress(storage, commit)
        self._lock: WritableFile | None = None
        self._save: BundleSave | None = None
        self._owner = os.getpid()
        with telling_the_others(ranks, commit):
            try:
                self._plain = plain_keys(entries)
                self._report = report_of(ranks, commit, entries)
                own = list(_own(ranks, entries))
                self._save = self._begin(own, staging, snapshot=snapshot, note=note)
                if self.rank == 0:
                    split = {name: value.dtype for name, value, *_ in entries if is_dtensor(value) and is_split(value)}
                    tell_about_tensorflow(path, split)
            except BaseException:
                self._clean_up()
                raise

    def _begin(self, own: Sequence[_Own], staging: Staging, *, snapshot: bool, note: Json | None) -> BundleSave:
        storage, path, ranks = self._storage, self._path, self._ranks
        directory = os.path.dirname(path)
        with saving(path):
            if storage.renames:
                refuse_long_name(path, appended=len(".data-00000-of-00001"))
            make_directories(storage, directory)
            if ranks.rank == 0:
                remove_leftovers(storage, directory)
            domain = storage.lock_domain(directory) if storage.renames else 0
            self._report["domain"] = domain
            self._token = ranks.token(self._commit)
            number = shared_save_number(domain, self._token)
            if storage.renames:
                self._lock = storage.create(lock_name(path, number, ranks.rank))
                make_directories(storage, parts_folder(path, number))
                if ranks.rank == 0 and note is not None:
                    write_note(storage, path, number, note)
        self._part = part_prefix(storage, path, number, ranks.rank, ranks.world_size)
        devices = sorted({each.entry.device for each in own}) or [""]
        plan = BundlePlan(len(devices))
        for entry, value, part in own:
            plan.add(entry.name, value, shard=devices.index(entry.device), part=part, dtype=entry.dtype)
        save = BundleSave(storage, self._part, plan, staging, snapshot=snapshot)
        self.staged: threading.Event = save.staged
        self.total_bytes: int | None = save.total_bytes
        self._report["bytes"] = save.total_bytes
        return save

    def finish_with(self, then: Callable[[str], Json]) -> Json:
        """Wait until all ranks have written, and until rank 0 has published; return what `then` has returned there.

        Args:
            then: Called on rank 0 with the path, when the checkpoint is published and before the others know.

        Raises:
            IncompleteSaveError: a rank failed or is missing, or the store is gone. Any error of `then`.
        """
        commit, ranks = self._commit, self._ranks
        assert self._save is not None, "the save did not start"
        try:
            with telling_the_others(ranks, commit):
                self._save.finish()
                if self._storage.renames:
                    with saving(self._path):
                        self._storage.sync_directory(os.path.dirname(self._path))
                commit.report(self._report)
                if ranks.rank:
                    return commit.result()
                self._merge(commit.gather())
            with telling_the_others(ranks, commit, in_place=True):
                result = then(self._path)
                commit.conclude(result)
            return result
        finally:
            ranks.ended(commit)
            self._clean_up()

    def finish(self) -> str:
        """`finish_with` nothing to do, and return the path."""
        self.finish_with(lambda _: {})
        return self._path

    def _merge(self, reports: Sequence[Json]) -> None:
        """On rank 0: check the reports of all ranks, merge their parts and publish."""
        check_same(self._commit, reports, self._plain, replicas=self._ranks.check_replicas)
        storage, path, count = self._storage, self._path, len(reports)
        parts = []
        for rank, report in enumerate(reports):
            domain = report.get("domain")
            if not isinstance(domain, int) or not 0 <= domain < 1 << 32:
                self._commit.fail({rank: IncompleteSaveError("its report in the store is not valid")})
            parts.append(part_prefix(storage, path, shared_save_number(domain, self._token), rank, count))
        sizes = [report.get("bytes") for report in reports]
        self.total_bytes = sum(size for size in sizes if isinstance(size, int))
        self._commit.go()
        try:
            merge_bundles(storage, parts, path, delete_sources=False, equal_duplicates=True, of_ranks=self._names)
        except InvalidArgumentError as error:  # the parts do not fit together
            self._commit.fail({0: error}, common=str(error).removeprefix(f"merge into {printable(path)}: "))

    def abandon(self, cause: BaseException | None = None) -> None:
        """Stop, remove everything that was written, and tell the others why. Does nothing after `finish_with`."""
        try:
            if not self._commit.is_over:
                with suppress(CheckpointError):
                    self._commit.fail({self._ranks.rank: cause or RuntimeError("the save was abandoned")})
        finally:
            self._ranks.ended(self._commit)
            self._clean_up()

    def __del__(self) -> None:
        # Ctrl-C may have arrived before the caller received this object. A forked child does not own the files.
        if getattr(self, "_owner", 0) == os.getpid():
            with suppress(Exception):
                self.abandon()

    def _clean_up(self) -> None:
        """Remove this rank's part, unless it may be needed to publish the checkpoint. Never raises a system's error."""
        if not self._owner:
            return
        self._owner = 0
        try:
            if self._save is not None and not self._commit.keeps_parts:
                self._save.abandon()
                with suppress(OSError, CheckpointError):
                    self._remove_part()
        finally:
            lock, self._lock = self._lock, None
            if lock is not None:
                remove(self._storage, lock.path)
                with suppress(OSError):
                    lock.close()

    def _remove_part(self) -> None:
        storage = self._storage
        remove_bundle(storage, self._part)
        if storage.renames:
            folder = os.path.dirname(self._part)
            if self._ranks.rank == 0:
                for name in storage.list(folder):
                    if name.endswith(".note"):
                        storage.remove(os.path.join(folder, name))
            storage.remove_directory(folder)  # the last rank of this host succeeds


def writer_of(name: str, world_size: int) -> int:
    """Return the rank that writes a value that all ranks have."""
    return zlib.crc32(name.encode(errors="surrogateescape")) % world_size


def _own(ranks: RankCalls, entries: Sequence[Entry]) -> Iterator[_Own]:
    """Yield what this rank writes."""
    for entry in entries:
        value = entry.value
        if is_dtensor(value):
            shard = local_shard(entry.name, value)
            if shard is not None and shard.is_first_replica:
                yield _Own(entry, shard.local, (shard.full_shape, shard.part))
        elif writer_of(entry.name, ranks.world_size) == ranks.rank:
            yield _Own(entry, value, entry.part)


class _WithProgress:
    """A storage; every operation counts as progress of this rank."""

    def __init__(self, storage: Storage, commit: Commit) -> None:
        self._storage, self._commit = storage, commit

    def __getattr__(self, name: str) -> Any:
        self._commit.progress += 1
        return getattr(self._storage, name)

    def create(self, path: str) -> Any:
        self._commit.progress += 1
        return _FileWithProgress(self._storage.create(path), self._commit)


class _FileWithProgress:
    """A file; every write counts as progress of this rank."""

    def __init__(self, file: WritableFile, commit: Commit) -> None:
        self._file, self._commit = file, commit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, offset: int, buffers: Any) -> None:
        self._file.write(offset, buffers)
        self._commit.progress += 1
