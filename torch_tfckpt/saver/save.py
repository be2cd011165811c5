"""One save of a Saver, from the first byte to the state file and the meta graph."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from torch_tfckpt.directory.management import meta_graph_filename
from torch_tfckpt.distributed.rank_save import RankSave
from torch_tfckpt.errors import IncompleteSaveError, InvalidArgumentError, NotFoundError
from torch_tfckpt.meta_graph.raw import RawMetaGraph
from torch_tfckpt.save_restore.pending_save import PendingSave, log_saved, published
from torch_tfckpt.saver.records import SaverRecords
from torch_tfckpt.saver.request import SaveRequest
from torch_tfckpt.storage.small_files import write_file
from torch_tfckpt.text import printable


@dataclass(frozen=True, slots=True)
class SaverSave:
    """A save that has begun.

    Attributes:
        pending: The save of the tensors; None for a saver without variables, which writes only the meta graph.
        records: Records the published path, if the request writes the state file.
        clock: Returns seconds since the epoch.
        meta_graph: Encodes the meta graph; None if it is not written.
        begun: When the save began, by `clock`.
    """

    request: SaveRequest
    pending: PendingSave | None
    records: SaverRecords
    clock: Callable[[], float]
    meta_graph: Callable[[], RawMetaGraph] | None
    begun: float

    @property
    def staged(self) -> threading.Event:
        """Set when the values may change again."""
        if self.pending is not None:
            return self.pending.staged
        staged = threading.Event()
        staged.set()
        return staged

    def complete(self) -> str | None:
        """Wait, publish, write the state file, delete old checkpoints, and write the meta graph."""
        meta_graph = None
        if self.meta_graph is not None:
            try:
                meta_graph = self.request.export.applied_to(self.meta_graph()).raw
            except BaseException as error:
                self.abandon(error)
                raise
        if self.pending is None:
            self._write_meta_graph(None, meta_graph)
            return None
        if isinstance(self.pending, RankSave):
            with naming_a_missing_parent(self.request):
                told = self.pending.finish_with(lambda path: self._entered(path, meta_graph))
            if self.pending.rank and self.request.write_state:
                self.records.follow(told)
            return self.request.target
        with naming_a_missing_parent(self.request):
            path = self.pending.finish()
        self._entered(path, meta_graph)
        return path

    def _entered(self, path: str, meta_graph: memoryview | None) -> dict[str, object]:
        """Record the published checkpoint and write its meta graph; return what all ranks must know."""
        if self.pending is not None:
            log_saved(path, self.pending, self.clock() - self.begun)
        if self.request.write_state:
            with published(path, "the state file may not name it"):
                self.records.enter(self.request, path, self.clock())
        self._write_meta_graph(path, meta_graph)
        return self.records.newest_and_best

    def _write_meta_graph(self, path: str | None, meta_graph: memoryview | None) -> None:
        if meta_graph is not None:
            target = meta_graph_filename(self.request.target, self.request.meta_graph_suffix)
            with naming_a_missing_parent(self.request), published(path, "it has no meta graph"):
                write_file(self.request.storage, target, meta_graph)

    def abandon(self, cause: BaseException | None = None) -> None:
        """Stop, and remove everything that was written. Other ranks are told the cause."""
        if isinstance(self.pending, RankSave):
            self.pending.abandon(cause)
        elif self.pending is not None:
            self.pending.abandon()


@contextmanager
def naming_a_missing_parent(request: SaveRequest) -> Iterator[None]:
    """Raise TensorFlow's error if a save failed because there is no directory to save into.

    If permission was denied, or the file system is read-only, the original error is raised, since it gives the reason.

    Raises:
        InvalidArgumentError (a ValueError): the parent directory does not exist.
    """
    try:
        yield
    except (IncompleteSaveError, NotFoundError, FileNotFoundError, NotADirectoryError) as error:
        cause = error.failures.get(0, error) if isinstance(error, IncompleteSaveError) else error
        if isinstance(cause, OSError) and cause.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        missing = False
        with suppress(OSError):  # the first error is more useful than this one
            missing = request.storage.renames and not request.storage.is_directory(request.directory or os.curdir)
        if missing:
            # TensorFlow's exact words, for programs that look for them; the cause is added as a note.
            in_its_words = InvalidArgumentError(
                f"Parent directory of {printable(request.save_path)} doesn't exist, can't save."
            )
            in_its_words.add_note(
                f"It could not be created, or was removed during the save: {cause}. Remove the file at this path or "
                f"a parent, or save to another directory"
            )
            raise in_its_words from error
        raise
