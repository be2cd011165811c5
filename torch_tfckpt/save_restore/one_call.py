"""One call at a time for objects that save and restore: threads wait; signal handlers get an error.

A signal handler may interrupt a thread at any point during a call of a Saver. If the handler calls the same object, its
call can neither wait for the interrupted call, which continues only after the handler has returned, nor use what that
call is changing. So it raises an error immediately, and changes nothing. A call from another thread waits for its turn.
"""

import functools
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Concatenate, Final, NamedTuple, ParamSpec, Protocol, TypeVar

from torch_tfckpt.distributed.calls import taking_part
from torch_tfckpt.errors import FailedPreconditionError
from torch_tfckpt.values import outside_modes

_FIRST_WAIT, _LONGEST_WAIT = 0.0005, 0.05  # seconds between two checks of whether earlier calls have ended

_FIX: Final = (
    "Only note the signal in the handler and save in the training loop, as `Saver.save_on_signal` does, or let the "
    "handler use a different object"
)


class Call(NamedTuple):
    """A call that is running or waiting for its turn."""

    name: str
    frame: FrameType  # of the decorator's wrapper
    thread: int

    @property
    def runs(self) -> bool:
        """Whether the call has not ended yet.

        A call that has ended is still in the list if Ctrl-C interrupted its removal.
        """
        frame = sys._current_frames().get(self.thread)
        while frame is not None:
            if frame is self.frame:
                return True
            frame = frame.f_back
        return False


class TakesTurns(Protocol):
    """An object whose decorated methods run one at a time."""

    _calls: list[Call]  # the running call, then the waiting calls in the order of their turns

    def sync(self) -> None:
        """Wait until no save is in flight. Raises the save's error."""


Self = TypeVar("Self", bound=TakesTurns)
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def one_at_a_time(
    method: Callable[Concatenate[Self, Arguments], Result],
) -> Callable[Concatenate[Self, Arguments], Result]:
    """Run the decorated methods of one object one after the other, each only when no save is in flight.

    While this waits for a save in flight, a signal handler may still save, because the method has not begun yet.

    Raises:
        FailedPreconditionError: called by a signal handler or a callback during another such call in the same thread.
        The error of an earlier save in the background, if it was not raised by `result()`.
    """
    in_turn = takes_turns(method)

    @functools.wraps(method)
    def after_saves(self: Self, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with taking_part(getattr(self, "_ranks", None), "save"):
            self.sync()
        return in_turn(self, *args, **kwargs)

    return after_saves


def takes_turns(
    method: Callable[Concatenate[Self, Arguments], Result],
) -> Callable[Concatenate[Self, Arguments], Result]:
    """Like `one_at_a_time`, for a method that may run, at least in part, while a save is in flight.

    The method runs outside of torch's FakeTensorMode and InferenceMode.
    """
    name = method.__qualname__.replace("._", ".")
    run = outside_modes(method)

    @functools.wraps(method)
    def in_turn(self: Self, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        calls = self._calls
        call = Call(name, sys._getframe(), threading.get_ident())
        try:
            calls.append(call)
            if len(calls) > 1:
                _wait_for_turn(calls, call)
            return run(self, *args, **kwargs)
        finally:
            with suppress(ValueError):  # Ctrl-C interrupted this call before it was added
                calls.remove(call)
            del call  # it references this frame

    return in_turn


def _wait_for_turn(calls: list[Call], call: Call) -> None:
    pause = _FIRST_WAIT
    while True:
        for other in list(calls):
            if other is call:
                continue
            if not other.runs:
                with suppress(ValueError):  # it has ended in the meantime
                    calls.remove(other)
            elif other.thread == call.thread:
                raise FailedPreconditionError(
                    f"{call.name} was called during {other.name} of the same object in the same thread, by a signal "
                    f"handler or a callback. Nothing was changed. {_FIX}"
                )
        if calls[0] is call:
            return
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_WAIT)
