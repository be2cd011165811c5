"""The caller's handle for a save in the background. Every error is reported, if necessary at exit.

- A program whose last save failed, and that has not asked for the result, prints the error at exit and ends with a
  nonzero status (`exit_status`). So does a child of `multiprocessing`.
- A signal handler may call any method, and start or await other saves. A call that would have to wait for the code that
  the handler has interrupted raises FailedPreconditionError immediately.
- After Ctrl-C while `save_async` waits, either nothing is published and all files of the save are removed, or the save
  continues in the background and the next call waits for it.
- A forked child does not wait for the saves of its parent, and does not touch their files.
"""

import atexit
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from torch_tfckpt.errors import FailedPreconditionError
from torch_tfckpt.save_restore.delayed_logs import delayed_logs, prepare_delay, write_logs
from torch_tfckpt.save_restore.exit_status import at_end_of_child, fail_at_exit, finalizers_follow
from torch_tfckpt.text import printable
from torch_tfckpt.transfer.threads import Latch

# None is returned only if the caller has allowed it: the save may be skipped, or the saver may have nothing to save.
# Other programs can use the result without checking for None.
MaybeNone: TypeAlias = Any

# Seconds that `result` waits until the log lines of a finished save are written. Writing them takes locks of `logging`,
# which the waiting thread itself may hold if `result` is called by a signal handler.
_FOR_LOGS: Final = 0.2
# Seconds after which a signal handler that interrupts the start of a save assumes that the save has no thread yet.
_TO_START: Final = 0.2


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
        self._done = Latch()
        self._logged = Latch()
        self._taken = Latch()  # set by the thread that completes the save, or by the thread that abandons it
        self._starter: int | None = threading.get_ident()  # None once the thread that completes the save has started
        self._runner: int | None = None  # the thread that completes the save
        self._path: str | None = None
        self._error: BaseException | None = None
        self._reported = False
        if complete is None:
            self._done.set()
            self._logged.set()

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
        prepare_delay()
        at_end_of_child(_report)
        thread = threading.Thread(target=self._run, name="tfckpt-save")
        _UNREPORTED.add(self)
        thread.start()
        self._starter = None

    def _give_up(self, abandon: Callable[[], object]) -> None:
        """Remove everything that was written, unless a thread is already completing the save."""
        if not self._taken.set_first():
            return
        _UNREPORTED.discard(self)  # otherwise exit would wait for it forever
        self._complete = None
        self._error = FailedPreconditionError("the save was abandoned while it was starting. Save again")
        self._reported = True  # the caller of `save_async` gets the cause
        try:
            abandon()
        finally:
            for latch in (self.staged, self._logged, self._done):
                latch.set()

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
            FailedPreconditionError: called by a callback of this save, or by a signal handler that interrupted its
                start. The save would wait for itself.
        """
        if not self._wait(timeout):
            raise TimeoutError(f"the save has not ended after {timeout} seconds. Call again, or wait without a timeout")
        if self._error is not None:
            self._reported = True
            _UNREPORTED.discard(self)
            raise self._error
        return self._path

    def _wait(self, timeout: float | None = None) -> bool:
        """Wait for the save to end; return whether it has ended."""
        if not self._done.is_set():
            me = threading.get_ident()
            if me == self._runner or (me == self._starter and not self._taken.wait(_TO_START)):
                raise FailedPreconditionError(
                    f"{self!r}: a callback of the save, or a signal handler that interrupted its start, waits for the "
                    f"save, which cannot end before this callback or handler returns. Call this method afterwards"
                )
            if not self._done.wait(timeout):
                return False
        self._logged.wait(_FOR_LOGS)
        return True

    def _raise_unreported(self) -> None:
        """Wait for the save to end, and raise its error unless `result` has raised it."""
        self._wait()
        if self._error is not None and not self._reported:
            self.result()

    def _disown(self) -> None:
        """Stop waiting for the save. Called in forked children, which do not have the saving thread."""
        self._complete = None
        self._error = FailedPreconditionError("the save continues in the process that started it. Call result() there")
        self._reported = True
        # New latches: a thread may have held the locks of the old ones at the time of the fork.
        self.staged, self._done, self._logged = Latch(), Latch(), Latch()
        for latch in (self.staged, self._done, self._logged):
            latch.set()

    def _run(self) -> None:
        if not self._taken.set_first():
            return  # the thread that started this one has abandoned the save
        assert self._complete is not None, "a skipped save was started"
        self._runner = threading.get_ident()
        logs: list[logging.LogRecord] = []
        try:
            with delayed_logs() as logs:
                self._path = self._complete()
            _UNREPORTED.discard(self)
        except BaseException as error:
            self._error = error
        finally:
            self._complete = None  # it references the tensors
            self.staged.set()
            self._done.set()
            write_logs(logs)
            self._logged.set()


def skipped_save() -> SaveHandle:
    """Return the handle for a save skipped because of an earlier save in flight; its result is None."""
    staged = Latch()
    staged.set()
    return SaveHandle("", staged, None)


class InFlight:
    """The save that a Saver or a Checkpoint has in the background; there is at most one at a time.

    Thread safety: one thread at a time may start a save; any thread may wait for it.
    """

    def __init__(self) -> None:
        self._handle: SaveHandle | None = None

    @property
    def busy(self) -> bool:
        """Whether a save is still running."""
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
        """In the background, complete a save that has begun. REQUIRES: the previous save has ended.

        Args:
            path: Path of the checkpoint.
            staged: Set once the values may change.
            complete: Waits until everything is written, and publishes it.
            abandon: Stops, and removes everything that was written; called if no thread can be started, or on Ctrl-C.
            block_until_staged: Whether to wait for `staged`.
        """
        self._handle = handle = SaveHandle(path, staged, complete)
        try:
            if block_until_staged:
                staged.wait()
            handle._start()
        except BaseException:  # Ctrl-C, or no thread can be started
            handle._give_up(abandon)
            raise
        return handle

    def sync(self) -> None:
        """Wait until no save is in flight. Raises the save's error unless `result` has raised it."""
        while (earlier := self._handle) is not None:
            earlier._wait()
            if self._handle is earlier:
                self._handle = None
            earlier._raise_unreported()


# Saves that are running, and failed saves whose error has not been raised yet.
_UNREPORTED: set[SaveHandle] = set()


def _disown_all() -> None:
    for handle in _UNREPORTED:
        handle._disown()
    _UNREPORTED.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)


def _unreported_errors() -> list[BaseException]:
    """Wait for all saves, and return the errors that have not been raised yet."""
    errors: list[BaseException] = []
    for handle in list(_UNREPORTED):
        try:
            handle._raise_unreported()
        except BaseException as error:
            errors.append(error)
    return errors


def _report() -> bool:
    """Print the errors that have not been raised yet; return whether there are any."""
    errors = _unreported_errors()
    for error in errors:
        print("A save in the background failed, and result() was not called:", file=sys.stderr)
        traceback.print_exception(error, file=sys.stderr)
    return bool(errors)


@atexit.register
def _report_at_exit() -> None:
    """Print the errors that have not been raised yet; if there are any, end with a nonzero status."""
    if not finalizers_follow() and _report():
        fail_at_exit()
