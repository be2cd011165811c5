"""Saves in the background: the handle that a caller gets, and a guarantee that no error of one is lost."""

import atexit
import os
import threading
from collections.abc import Callable
from typing import Any, TypeAlias

from torch_tfckpt.errors import CheckpointError, FailedPreconditionError
from torch_tfckpt.text import printable

# None in rare cases that the caller has asked for; any other program can use the result as what it is without a check.
MaybeNone: TypeAlias = Any


class SaveHandle:
    """One save by `Saver.save_async`.

    Attributes:
        staged: Set when training may change the values: they have been copied, or the save has failed.

    Threads: any may wait and ask.
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

    @classmethod
    def skipped(cls) -> "SaveHandle":
        """Of a save that did not happen, since another one was in flight; its result is None."""
        staged = threading.Event()
        staged.set()
        return cls("", staged, None)

    def __repr__(self) -> str:
        if not self._target:
            return "SaveHandle(skipped)"
        staged = ", staged" if self.staged.is_set() else ""
        state = f"{staged}, running"
        if self.done():
            state = ", published" if self._error is None else f", failed: {type(self._error).__name__}"
        return f"SaveHandle({printable(self._target)!r}{state})"

    def start(self) -> None:
        """Completes the save in a thread of its own, which the interpreter waits for before it ends."""
        thread = threading.Thread(target=self._run, name="tfckpt-save")
        _UNREPORTED.add(self)
        try:
            thread.start()
        except BaseException:
            _UNREPORTED.discard(self)  # at exit nobody is to wait for an end that never comes
            raise

    def done(self) -> bool:
        """Whether the save has ended, well or not."""
        return self._done.is_set()

    def result(self, timeout: float | None = None) -> str | MaybeNone:
        """The checkpoint's path, once it is published; None of a save that was skipped.

        Args:
            timeout: Seconds to wait; None: until it has ended.

        Raises:
            TimeoutError: it has not ended yet.
            IncompleteSaveError, and whatever else `Saver.save` raises. It is not raised once more by the saver.
        """
        if not self._done.wait(timeout):
            raise TimeoutError(f"the save has not ended after {timeout} seconds. Ask again, or wait without a timeout")
        if self._error is not None:
            self._reported = True
            _UNREPORTED.discard(self)
            raise self._error
        return self._path

    def raise_unreported(self) -> None:
        """Waits for the end, and raises its error if `result` never did."""
        self._done.wait()
        if self._error is not None and not self._reported:
            self.result()

    def disown(self) -> None:
        """In a forked child, where the thread that saves is not: nobody is to wait for it there."""
        self._complete = None
        self._error = FailedPreconditionError("the save goes on in the process that began it. Ask for its result there")
        self._reported = True
        # New ones: at the time of the fork somebody may have held the locks of the old ones.
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
            self._complete = None  # it holds on to the tensors
            self.staged.set()
            self._done.set()


class InFlight:
    """The one save that goes on beside training, of a saver or a Checkpoint.

    Threads: one at a time.
    """

    def __init__(self) -> None:
        self._handle: SaveHandle | None = None

    @property
    def busy(self) -> bool:
        """Whether it goes on still."""
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
        """Completes a save that has begun beside training. REQUIRES: the one before has ended.

        Args:
            path: The checkpoint.
            staged: Set once the values may change.
            complete: Waits until all is written, and does the rest.
            abandon: Stops, and removes everything written; called if no thread could be started.
            block_until_staged: Whether to return no sooner.
        """
        self._handle = handle = SaveHandle(path, staged, complete)
        try:
            if block_until_staged:
                staged.wait()
            handle.start()
        except BaseException:  # Ctrl-C, or no thread to be had
            self._handle = None
            abandon()
            raise
        return handle

    def sync(self) -> None:
        """Returns once nothing is in flight; raises what the save failed with, if nobody has asked for it."""
        earlier, self._handle = self._handle, None
        if earlier is not None:
            try:
                earlier.raise_unreported()
            except KeyboardInterrupt:
                self._handle = earlier
                raise


# Saves that run, and those whose error nobody has heard of yet.
_UNREPORTED: set[SaveHandle] = set()


def _disown_all() -> None:
    for handle in _UNREPORTED:
        handle.disown()
    _UNREPORTED.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)


@atexit.register
def _report_at_exit() -> None:
    """Nothing is lost when a program ends: the interpreter prints what is raised here."""
    errors = []
    for handle in list(_UNREPORTED):
        try:
            handle.raise_unreported()
        except BaseException as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise CheckpointError(
            f"{len(errors)} saves failed, and nobody asked for their results: " + "; ".join(map(str, errors))
        )
