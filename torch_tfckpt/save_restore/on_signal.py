"""Save when a signal arrives: the handler only notes the signal; the save happens at a safe point.

A handler may interrupt training anywhere, even in the middle of `optimizer.step()`. A checkpoint taken then would
mix new and old parameters, and nobody would notice. So the handler saves nothing. Safe points are calls that the
training loop makes while its values are consistent: `should_stop()`, and the saves of the same object.

If a safe point is reached before the process is killed, one durable checkpoint of that point is guaranteed, even if
another save is in flight, and even if that other save fails. A second signal of the same number has its usual effect,
so that a loop that never reaches a safe point can be ended. Forked children do not note signals: in a child, every
signal has its usual effect.

Several SaveOnSignal objects may be open for the same signal, and may be closed in any order: every open object notes
the signal. Closing an object may reinstall the handler of an object that is already closed; this handler then forwards
signals to the handler that was installed before it.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable
from types import FrameType, TracebackType
from typing import Final, Self

from torch_tfckpt.errors import FailedPreconditionError, InvalidArgumentError
from torch_tfckpt.save_restore.handle import SaveHandle
from torch_tfckpt.text import printable

_log = logging.getLogger(__name__)

# When a handler of one of these signals returns, the same instruction fails again; no safe point is ever reached.
_FATAL: Final = frozenset(
    number for name in ("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT") if (number := getattr(signal, name, None))
)


class SaveOnSignal:
    """A save at the next safe point after a signal, as returned by `save_on_signal`. A context manager.

    Leaving the `with` block without an exception is a safe point, too, and restores the earlier signal handlers. After
    an exception nothing is saved: it may have interrupted an update of the values.

    Attributes:
        signal: Number of the signal that has arrived; None if none has arrived yet.
        path: The checkpoint that was saved because of the signal; None if none has been saved yet.

    Examples:
        >>> import os, signal, torch, torch_tfckpt as tfckpt
        >>> step = torch.tensor(0)
        >>> saver = tfckpt.Saver({"step": step})
        >>> with saver.save_on_signal(signal.SIGUSR1, "run/model.ckpt", global_step=step) as preemption:
        ...     while not preemption.should_stop():
        ...         step += 1
        ...         if step == 3:  # the scheduler takes the machine
        ...             os.kill(os.getpid(), signal.SIGUSR1)
        >>> preemption.path
        'run/model.ckpt-3'

    Thread safety: created and closed in the main thread; only the training thread calls `should_stop`.
    """

    def __init__(
        self,
        signals: int | Iterable[int],
        save: Callable[[], str | None],
        sync: Callable[[], object],
        *,
        exit: bool,
        target: Callable[[], str | None] = lambda: None,
    ) -> None:
        numbers = [signals] if isinstance(signals, int) else list(signals)
        self.signal: int | None = None
        self.path: str | None = None
        self._save, self._sync, self._target, self._exit = save, sync, target, exit
        self._process = os.getpid()
        self._saved = self._saving = False
        self._closed = False
        self._earlier: dict[int, Callable[[int, FrameType | None], object] | int] = {}
        _check(numbers)
        try:
            for number in numbers:
                earlier = signal.getsignal(number)
                # None: the handler was not installed by Python, and cannot be restored.
                self._earlier[number] = signal.SIG_DFL if earlier is None else earlier
                signal.signal(number, self._note)
        except (ValueError, OSError) as error:
            self._earlier.pop(number, None)
            self.close()
            raise InvalidArgumentError(
                f"save_on_signal: signal {number} cannot be handled: {error}. Pass signal.SIGTERM, SIGUSR1 or SIGINT"
            ) from error

    def __repr__(self) -> str:
        names = ", ".join(map(_name, self._earlier))
        state = "waiting" if self.signal is None else f"{_name(self.signal)} received"
        if self._saved:
            state += f", saved {printable(self.path)!r}" if self.path is not None else ", saved"
        return f"SaveOnSignal({names}: {state})"

    @property
    def is_open(self) -> bool:
        """Whether signals are noted, i.e. `close` has not been called."""
        return not self._closed

    def should_stop(self) -> bool:
        """If a signal has arrived, save once; return whether a signal has arrived.

        Call this only while all values are consistent.

        Raises:
            SystemExit: with `exit=True`, once the checkpoint is durable; its code is 128 plus the signal's number.
            Any error of the save; the next call tries again.

        Cost: nothing until a signal arrives; then one save.
        """
        if self.signal is None:
            return False
        if not self._saved:
            self._save_now()
        if self._exit:
            raise SystemExit(128 + self.signal)
        return True

    def close(self) -> None:
        """Restore the earlier handlers. Does nothing when called again.

        Raises:
            FailedPreconditionError: called in a thread other than the main thread.
        """
        if self._closed:
            return
        _check_thread()
        for number, earlier in self._earlier.items():
            if signal.getsignal(number) == self._note:  # otherwise a later handler would be lost
                signal.signal(number, earlier)
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.should_stop()
            elif self.signal is not None and not self._saved:
                finding = "%s was received, but nothing was saved: %s was raised before a safe point"
                _log.warning(finding, _name(self.signal), kind.__name__)
        finally:
            self.close()

    def at_safe_point(self, target: str, save: SaveHandle | str | None) -> None:
        """If a signal has arrived, save again after `save`, an ordinary save of the same object.

        If both saves have the same path, `target`, only wait until `save` ends, and save again if it failed.
        """
        if self.signal is None or self._saved or self._saving:
            return
        if target == self._target():
            try:
                self.path = save.result() if isinstance(save, SaveHandle) else save
                self._saved = True
            except Exception as error:
                _log.warning("%s could not be saved in the background: %s. Saving again", printable(target), error)
        self.should_stop()

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal.

        This may run between any two bytecodes of the program, so it does as little as possible.
        """
        noted = False
        each: object = self
        while isinstance(each, SaveOnSignal):
            if each.signal is None and os.getpid() == each._process and each.is_open:
                each.signal, noted = number, True
            each = getattr(each._earlier.get(number), "__self__", None)
        if noted:
            return
        earlier = self._earlier.get(number, signal.SIG_DFL)
        signal.signal(number, earlier)
        if callable(earlier):
            earlier(number, frame)
        else:
            signal.raise_signal(number)

    def _save_now(self) -> None:
        assert self.signal is not None, "no signal"
        _log.info("%s received: saving a checkpoint", _name(self.signal))
        self._saving = True
        try:
            try:
                self._sync()
            except Exception as error:  # the error of an earlier save must not prevent this save
                _log.error("an earlier save in the background failed: %s", error)
            self.path = self._save()
            self._saved = True
        finally:
            self._saving = False


def _check(numbers: Iterable[int]) -> None:
    _check_thread()
    for number in numbers:
        if number in _FATAL:
            raise InvalidArgumentError(
                f"save_on_signal: after {_name(number)} the program cannot continue to a safe point. Pass "
                f"signal.SIGTERM, SIGUSR1 or SIGINT"
            )


def _check_thread() -> None:
    if threading.current_thread() is not threading.main_thread():
        raise FailedPreconditionError(
            "Python handles signals in the main thread only. Call save_on_signal, and leave its `with` block, in the "
            "main thread"
        )


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
