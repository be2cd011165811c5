"""Saves in the background: the caller's handle. Every error is raised, at the latest at exit."""

import atexit
import os
import threading
from collections.abc import Callable
from typing import Any, TypeAlias

from torch_tfckpt.errors import CheckpointError, FailedPreconditionError
from torch_tfckpt.text import printable

# None only if the caller has asked for it: a save that may be skipped, a saver that may have nothing to save. Other
# programs can use the result without a check.
MaybeNone: TypeAlias = Any


class SaveHandle:
    """A save in the background, as returned by `save_async`.

    Attributes:
        staged: Event that is set when training may change the values: they have been copied, or the save has failed.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> weights = torch.ones(2)
        >>> handle = tfckpt.Saver({"w": weights}).save_async("model.ckpt", global_step=1)
        >>> weights.zero_()  # the checkpoint still gets ones
        tensor([0., 0.])
        >>> handle.result()
        'model.ckpt-1'
        >>> handle.done()
        True

    Thread safety: any thread may wait for the save.
    """

    def __init__(self, path: str, staged: threading.Event, complete: Callable[[], str | None] | None) -> None:
        self._target = path
        self.staged = staged
        self._complete = complete
        self._done = threading.Event()
        self._path: str | None = None
        self._error: BaseException | None = None
        self._reported = False
        if complete is None:
            self._done.set()

    def __repr__(self) -> str:
        if not self._target:
            return "SaveHandle(skipped)"
        staged = ", staged" if self.staged.is_set() else ""
        state = f"{staged}, running"
        if self.done():
            state = ", published" if self._error is None else f", failed: {type(self._error).__name__}"
        return f"SaveHandle({printable(self._target)!r}{state})"

    def _start(self) -> None:
        """Complete the save in a new thread, which the interpreter waits for before it exits."""
        thread = threading.Thread(target=self._run, name="tfckpt-save")
        _UNREPORTED.add(self)
        try:
            thread.start()
        except BaseException:
            _UNREPORTED.discard(self)  # or exit would wait for it forever
            raise

    def done(self) -> bool:
        """Return whether the save has ended, successfully or not."""
        return self._done.is_set()

    def result(self, timeout: float | None = None) -> str | MaybeNone:
        """Wait until the checkpoint is published, and return its path.

        Args:
            timeout: Seconds to wait; None: until the save has ended.

        Returns:
            The path; None if the save was skipped, or the saver has nothing to save.

        Raises:
            TimeoutError: the save has not ended yet.
            IncompleteSaveError, or any other error of `Saver.save`. The saver does not raise it again.
        """
        if not self._done.wait(timeout):
            raise TimeoutError(f"the save has not ended after {timeout} seconds. Call again, or wait without a timeout")
        if self._error is not None:
            self._reported = True
            _UNREPORTED.discard(self)
            raise self._error
        return self._path

    def _raise_unreported(self) -> None:
        """Wait for the save to end, and raise its error unless `result` has raised it."""
        self._done.wait()
        if self._error is not None and not self._reported:
            self.result()

    def _disown(self) -> None:
        """Stop waiting for the save. For forked children, which do not have the saving thread."""
        self._complete = None
        self._error = FailedPreconditionError("the save continues in the process that started it. Call result() there")
        self._reported = True
        # New events: at the time of the fork a thread may have held the locks of the old ones.
        self.staged, self._done = threading.Event(), threading.Event()
        self.staged.set()
        self._done.set()

    def _run(self) -> None:
        assert self._complete is not None, "a skipped save was started"
        try:
            self._path = self._complete()
            _UNREPORTED.discard(self)
        except BaseException as error:
            self._error = error
        finally:
            self._complete = None  # it references the tensors
            self.staged.set()
            self._done.set()


def skipped_save() -> SaveHandle:
    """Return the handle of a save that was skipped because another one was in flight; its result is None."""
    staged = threading.Event()
    staged.set()
    return SaveHandle("", staged, None)


class InFlight:
    """The save in the background of a Saver or a Checkpoint; there is at most one.

    Thread safety: one thread at a time.
    """

    def __init__(self) -> None:
        self._handle: SaveHandle | None = None

    @property
    def busy(self) -> bool:
        """Whether it is still running."""
        return self._handle is not None and not self._handle.done()

    def start(
        self,
        path: str,
        staged: threading.Event,
        complete: Callable[[], str | None],
        abandon: Callable[[], object],
        *,
        block_until_staged: bool = True,
    ) -> SaveHandle:
        """Complete a save that has begun, in the background. REQUIRES: the previous one has ended.

        Args:
            path: The checkpoint.
            staged: Set once the values may change.
            complete: Waits until everything is written, and publishes it.
            abandon: Stops, and removes everything that was written; called if no thread could be started.
            block_until_staged: Whether to wait for `staged`.
        """
        self._handle = handle = SaveHandle(path, staged, complete)
        try:
            if block_until_staged:
                staged.wait()
            handle._start()
        except BaseException:  # Ctrl-C, or no thread can be started
            self._handle = None
            abandon()
            raise
        return handle

    def sync(self) -> None:
        """Wait until no save is in flight. Raises the save's error unless `result` has raised it."""
        earlier, self._handle = self._handle, None
        if earlier is not None:
            try:
                earlier._raise_unreported()
            except KeyboardInterrupt:
                self._handle = earlier
                raise


# Saves that are running, and those whose error was not raised yet.
_UNREPORTED: set[SaveHandle] = set()


def _disown_all() -> None:
    for handle in _UNREPORTED:
        handle._disown()
    _UNREPORTED.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)


@atexit.register
def _report_at_exit() -> None:
    """Raise errors that were not raised yet; the interpreter prints them."""
    errors = []
    for handle in list(_UNREPORTED):
        try:
            handle._raise_unreported()
        except BaseException as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise CheckpointError(
            f"{len(errors)} saves failed, and result() was not called: " + "; ".join(map(str, errors))
        )
