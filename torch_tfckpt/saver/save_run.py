"""One save of a saver, from the values to the state file."""

import operator
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Self

import torch

from torch_tfckpt.checkpoint_reader import AnyPath
from torch_tfckpt.directory.management import meta_graph_filename
from torch_tfckpt.directory.names import STATE_FILE
from torch_tfckpt.directory.retention import Metrics
from torch_tfckpt.directory.retention_file import check_metrics
from torch_tfckpt.errors import IncompleteSaveError, InvalidArgumentError, NotFoundError
from torch_tfckpt.format.tensor_bundle import parse_data_filename
from torch_tfckpt.meta_graph.export_options import ExportOptions
from torch_tfckpt.save_restore.pending_save import PendingSave, published
from torch_tfckpt.saveables.variables import Variable
from torch_tfckpt.saver.records import Bookkeeping
from torch_tfckpt.storage.choice import storage_of
from torch_tfckpt.storage.names import fspath
from torch_tfckpt.storage.protocol import Buffer
from torch_tfckpt.storage.small_files import write_file
from torch_tfckpt.text import printable, quoted


@dataclass(frozen=True, slots=True)
class SaveRequest:
    """The arguments of one save, checked. Their meaning is that of Saver.save."""

    books: Bookkeeping
    save_path: str
    target: str  # the path with the step
    write_meta_graph: bool
    write_state: bool
    export: ExportOptions
    metrics: Metrics

    @classmethod
    def of(
        cls,
        save_path: AnyPath,
        global_step: object,
        latest_filename: str | None,
        meta_graph_suffix: str,
        write_meta_graph: bool,
        write_state: bool,
        strip_default_attrs: bool,
        save_debug_info: bool,
        metrics: object,
        *,
        pad: bool,
        sharded: bool,
    ) -> Self:
        """Raises InvalidArgumentError, or UnimplementedError, for arguments that cannot be honoured."""
        state = state_filename(latest_filename)
        if write_meta_graph:
            _check_suffix(meta_graph_suffix)
        export = ExportOptions(strip_default_attrs=strip_default_attrs, save_debug_info=save_debug_info)
        path = fspath(save_path)
        if global_step is None and not sharded and os.path.basename(path) == state:
            raise InvalidArgumentError(
                f"'latest_filename' collides with 'save_path': {quoted(printable(path))} is the state file's name. "
                f"Save under another name, or give a global_step"
            )
        return cls(
            Bookkeeping(storage_of(path), os.path.dirname(path), state, meta_graph_suffix),
            path,
            checkpoint_filename(path, global_step, pad=pad),
            write_meta_graph,
            write_state,
            export,
            check_metrics(metrics),
        )


@dataclass(slots=True)
class SaveRun:
    """A save that has begun.

    Attributes:
        save_path: The path as it was given, which errors name.
        checkpoint_file: The path asked for, with the step; the meta graph is named after it.
        pending: Its bytes on their way; None for a saver of nothing, which writes only the meta graph.
        enter: Enters a published path in the saver's records; None where no state is to be written.
        meta_graph: Makes the content of the meta graph file; None where none is wanted.
    """

    books: Bookkeeping
    save_path: str
    checkpoint_file: str
    pending: PendingSave | None
    enter: Callable[[str], None] | None
    meta_graph: Callable[[], Buffer] | None

    def complete(self) -> str | None:
        """Waits until all is written and publishes it; then the state file, older checkpoints, the meta graph."""
        path, meta_graph = None, None
        if self.meta_graph is not None:
            try:
                meta_graph = self.meta_graph()
            except BaseException:
                self.abandon()
                raise
        with naming_a_missing_parent(self.books, self.save_path):
            if self.pending is not None:
                path = self.pending.finish()
        if path is not None and self.enter is not None:
            with published(path, "the state file may not name it"):
                self.enter(path)
        if meta_graph is not None:
            target = meta_graph_filename(self.checkpoint_file, self.books.meta_graph_suffix)
            with naming_a_missing_parent(self.books, self.save_path), published(path, "it has no meta graph"):
                write_file(self.books.storage, target, meta_graph)
        return path

    def abandon(self) -> None:
        """Stops, and removes everything written."""
        if self.pending is not None:
            self.pending.abandon()


def _check_suffix(suffix: str) -> None:
    """InvalidArgumentError for what would be a file of the checkpoint, or in another directory."""
    if suffix == "index" or parse_data_filename(f"x.{suffix}") is not None or os.path.dirname(suffix):
        raise InvalidArgumentError(
            f"meta_graph_suffix {quoted(suffix)} would put the meta graph over a file of the checkpoint, or elsewhere. "
            f'Leave it out: "meta" is what readers look for'
        )


@contextmanager
def naming_a_missing_parent(books: Bookkeeping, save_path: str) -> Iterator[None]:
    """Says it in TensorFlow's words where a save failed for want of a directory.

    Raises:
        InvalidArgumentError (a ValueError): there is no directory to save into.
    """
    try:
        yield
    except (IncompleteSaveError, NotFoundError, FileNotFoundError, NotADirectoryError) as error:
        directory = books.directory or os.curdir
        missing = False
        with suppress(OSError):  # of two errors the first tells more
            missing = books.storage.renames and not books.storage.is_directory(directory)
        if missing:
            # TensorFlow's words exactly, for programs that look for them; the mend is a note.
            told = InvalidArgumentError(f"Parent directory of {printable(save_path)} doesn't exist, can't save.")
            told.add_note("Only one directory is made; make those above it first")
            raise told from error
        raise


def step_number(global_step: object) -> int:
    """A step as a number: an int, a bool, an integral tensor of one element, a Variable of one.

    InvalidArgumentError for everything else.
    """
    step = global_step.tensor if isinstance(global_step, Variable) else global_step
    if isinstance(step, torch.Tensor):
        if step.numel() == 1 and not step.is_floating_point() and not step.is_complex():
            return int(step.item())
        raise InvalidArgumentError(
            f"global_step is a tensor of {step.dtype} and {step.numel()} elements; pass one integer"
        )
    try:
        return operator.index(step)  # type: ignore[arg-type]
    except TypeError as error:
        raise InvalidArgumentError(f"global_step is a {type(global_step).__name__}; pass an integer") from error


def checkpoint_filename(save_path: str, global_step: object, *, pad: bool) -> str:
    """`save_path`, with "-" and the step behind it; with `pad` of eight digits at least."""
    if global_step is None:
        return save_path
    step = step_number(global_step)
    return f"{save_path}-{step:08d}" if pad else f"{save_path}-{step}"


def state_filename(latest_filename: str | None) -> str:
    """The state file's name, which has no directory in it."""
    name = STATE_FILE if latest_filename is None else latest_filename
    if os.path.dirname(name) or not name:
        raise InvalidArgumentError(
            f"'latest_filename' must not contain path components: {quoted(name)}. It lies beside the checkpoints"
        )
    return name
