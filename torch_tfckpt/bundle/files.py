"""The files of one version 2 checkpoint, opened together.

If a checkpoint is replaced while it is opened, the index of one save would not match the data of the next. So the
index is opened first and the data files right after it, and then the index's name is opened again; if it now refers to
a different file, everything is reopened. If the checkpoint keeps being replaced, writers are locked out during opening.

Guaranteed: all files are from the same save, even if other programs save at the same time; a data file that is opened
later, on first use, is from the same save or is refused. If opening fails, all files are closed again.
"""

import mmap
import os
import threading
from contextlib import nullcontext
from typing import Final

from torch_tfckpt.bundle.open_files import OpenFiles
from torch_tfckpt.errors import (
    DAMAGED,
    CheckpointError,
    DataLossError,
    FailedPreconditionError,
    NotFoundError,
    error_context,
    located,
)
from torch_tfckpt.format.file_kind import not_wanted
from torch_tfckpt.format.recognise import recognise
from torch_tfckpt.format.recognise_text import LFS_POINTER
from torch_tfckpt.format.table import Table
from torch_tfckpt.format.tensor_bundle import HEADER_KEY, BundleEntry, BundleHeader, data_filename, index_filename
from torch_tfckpt.storage.protocol import ReadableFile, Storage
from torch_tfckpt.text import printable, quoted

# If a checkpoint has more data files, from many processes, they are opened on first use, and only some of them are open
# at the same time: of a thousand files, a process reads few, and the usual limit is 1024 open files.
EAGER_SHARDS: Final = 16
_OPENING_ATTEMPTS: Final = 10


class BundleFiles:
    """Index and data files of checkpoint `prefix`.

    Args:
        lazy: Whether to open no data file before it is used. None: only if there are more than EAGER_SHARDS.

    Raises:
        NotFoundError: there is no index file.
        DataLossError: the index file is damaged, or is not a checkpoint index.
        InvalidArgumentError: the index requires a different reader version.

    Thread safety: safe.
    """

    def __init__(self, storage: Storage, prefix: str, *, lazy: bool | None = None) -> None:
        self._storage, self._prefix, self._lazy = storage, prefix, lazy
        self._open_files = OpenFiles()
        self._lock = threading.Lock()
        self._closed = False
        # A data file that cannot be opened is only an error for readers of its tensors.
        self._shards: dict[int, ReadableFile | CheckpointError] = {}
        for attempt in range(_OPENING_ATTEMPTS):
            patient = attempt >= _OPENING_ATTEMPTS // 2
            with storage.exclusive(os.path.dirname(prefix)) if patient else nullcontext():
                self._open()
                try:
                    if self._still_current():
                        return
                except BaseException:
                    self._close_files()
                    raise
            self._close_files()
        raise NotFoundError(
            f"{printable(prefix)}: the checkpoint was replaced {_OPENING_ATTEMPTS} times while it was "
            "being opened. Wait until its writer has finished, then try again"
        )

    def _open(self) -> None:
        path = index_filename(self._prefix)
        self.index = self._storage.open(path)
        try:
            with error_context(printable(path), DAMAGED):
                self.table, self.header = _table_and_header(self.index)
            for number in range(0 if self._is_lazy() else min(self.header.num_shards, EAGER_SHARDS)):
                # Names may declare more shards than exist (`bundle.publish`); those that exist have the lowest numbers.
                file = self._shards[number] = self._opened(number)
                if isinstance(file, NotFoundError):
                    break
        except CheckpointError as error:
            try:
                pointer = is_lfs_pointer(self.index)
                kind = recognise(self.index.read, self.index.size)
            finally:
                self._close_files()
            if pointer:
                raise located(lfs_error(path), "not an sstable (bad magic number)") from error
            if kind.is_foreign:
                wanted = "the index of a TensorFlow checkpoint: not an sstable (bad magic number)"
                raise DataLossError(not_wanted(path, kind, wanted)) from error
            raise
        except BaseException:
            self._close_files()
            raise

    def _is_lazy(self) -> bool:
        if self._lazy is not None or self.header.num_shards <= EAGER_SHARDS:
            return bool(self._lazy)
        try:
            return self._storage.exists(self.shard_path(EAGER_SHARDS))
        except OSError:
            return True

    @property
    def are_local(self) -> bool:
        """Whether the files are local: the system keeps their bytes in free memory, so a second read costs little."""
        try:
            self.index.fileno()
        except NotImplementedError:
            return False
        return True

    def _still_current(self) -> bool:
        try:
            again = self._storage.open(self.index.path)
        except NotFoundError:
            return False  # deleted: the data files may already belong to the next save
        try:
            return again.identity == self.index.identity
        finally:
            again.close()

    def shard_path(self, number: int) -> str:
        return data_filename(self._prefix, number, self.header.num_shards)

    def shard(self, number: int) -> ReadableFile:
        """Return data file `number`; raise NotFoundError if it is missing, DataLossError if out of range."""
        if not 0 <= number < self.header.num_shards:
            raise DataLossError(
                f"{printable(index_filename(self._prefix))}: an entry refers to shard {number}, but the header "
                f"declares {self.header.num_shards}. {DAMAGED}"
            )
        if self._closed:
            raise FailedPreconditionError(f"{printable(self._prefix)}: the reader is closed. Open the checkpoint again")
        file = self._shards.get(number) or self._open_later(number)
        if isinstance(file, CheckpointError):
            raise type(file)(str(file)) from file
        return file

    def _open_later(self, number: int) -> ReadableFile | CheckpointError:
        """Open a data file after the others; refuse it if the checkpoint has been replaced since."""
        with self._lock:
            if number not in self._shards:
                file = self._opened(number)
                try:
                    current = self._still_current()
                except BaseException:
                    _close(file)
                    raise
                if not current:
                    _close(file)
                    raise FailedPreconditionError(
                        f"{printable(self.shard_path(number))}: the checkpoint was replaced after it was opened. Open "
                        f"it again"
                    )
                if not isinstance(file, CheckpointError):
                    path = file.path
                    file = self._open_files.add(file, lambda: self._storage.open(path))
                self._shards[number] = file
            return self._shards[number]

    def _opened(self, number: int) -> ReadableFile | CheckpointError:
        path = self.shard_path(number)
        try:
            file = self._storage.open(path)
        except NotFoundError:
            return NotFoundError(f"{printable(path)}: No such file or directory. Copy shard {number} next to the index")
        except CheckpointError as error:
            return error
        try:
            pointer = is_lfs_pointer(file)
        except CheckpointError as error:
            file.close()
            return error
        except BaseException:
            file.close()
            raise
        if pointer:
            file.close()
            return lfs_error(path)
        return file

    def check_data(self) -> None:
        """Raise NotFoundError or DataLossError if a data file that the index needs is missing or too short."""
        for _, value in self.table.items(start=b"\0"):
            entry = BundleEntry.decode(value)
            if not entry.slices and entry.end > self.shard(entry.shard).size:
                raise DataLossError(f"{printable(self.shard_path(entry.shard))} is too short. {DAMAGED}")

    def close(self) -> None:
        """Close all files; further reads raise FailedPreconditionError."""
        self._closed = True
        self._close_files()

    def _close_files(self) -> None:
        with self._lock:
            shards, self._shards = self._shards, {}
        for file in (self.index, *shards.values()):
            _close(file)
        self._open_files.close()


def _close(file: ReadableFile | CheckpointError) -> None:
    if not isinstance(file, CheckpointError):
        file.close()


def read_header(storage: Storage, prefix: str) -> BundleHeader:
    """Return the header of the index of `prefix`, without opening data files. Raises like BundleFiles."""
    file = storage.open(index_filename(prefix))
    try:
        with error_context(printable(file.path), DAMAGED):
            return _table_and_header(file)[1]
    finally:
        file.close()


def _table_and_header(index: ReadableFile) -> tuple[Table, BundleHeader]:
    table = Table(index.read, index.size)
    header = table.get(HEADER_KEY)
    if header is None:
        raise DataLossError("the table has no header entry, so it is not a checkpoint index")
    return table, BundleHeader.decode(header)


def is_lfs_pointer(file: ReadableFile) -> bool:
    """Return whether `file` is the small text file that git-lfs puts in place of the real one."""
    return len(LFS_POINTER) <= file.size < 1024 and file.read(0, len(LFS_POINTER)) == LFS_POINTER


def lfs_error(path: str) -> DataLossError:
    """Return the error for a git-lfs pointer."""
    return DataLossError(
        f"{quoted(printable(path))} is a git-lfs pointer, not the file itself. Run `git lfs pull` in its repository"
    )


def map_file(file: ReadableFile) -> mmap.mmap:
    """Map `file` into memory; raise DataLossError if that fails, for example because it was truncated."""
    try:
        # ACCESS_COPY: writing to such a tensor changes private pages, never the file.
        return mmap.mmap(file.fileno(), file.size, access=mmap.ACCESS_COPY)
    except (ValueError, OSError) as error:
        raise DataLossError(f"{printable(file.path)}: cannot be mapped into memory: {error}. {DAMAGED}") from error
