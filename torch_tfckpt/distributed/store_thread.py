"""Call a c10d store that may never answer.

A call of a store whose host is stopped, or has lost its network, blocks for as long as the host does not answer,
whatever the timeout of the store is. So the calls are made in a daemon thread, and the caller waits only for a limited
time.

`get`, `multi_get` and `wait` are not used. If the key does not exist, they wait. And sometimes they wait although it
exists: TCPStore (torch 2.13) may lose their request while another connection of the server is being closed.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from torch_tfckpt.transfer.threads import Latch

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_ABSENT: Final = "torch_tfckpt: no value"

Result = TypeVar("Result")
Operation: TypeAlias = "Callable[[Store], Result]"


def peek(store: "Store", key: str) -> bytes | None:
    """Return the value of a key, or None if there is none, without waiting for it."""
    # A comparison with a value that no key has never sets anything, and returns the value that is there.
    found: bytes = store.compare_set(key, _ABSENT, _ABSENT)
    return None if found == _ABSENT.encode() else found


class StoreLost(Exception):
    """The store cannot be reached, or does not answer. The message is one line."""


class _StoreCall:
    """One call, and its result."""

    def __init__(self, operation: "Operation[Any]") -> None:
        self.operation = operation
        self.done = Latch()
        self.result: Any = None
        self.error: BaseException | None = None


class StoreThread:
    """A thread that calls a store, and repeats one call at intervals.

    Args:
        connect: Returns the store. It is called in the thread, because it may block, too.
        patience: Seconds after which a call is given up.
        beat: Repeated every `interval` seconds while no other call is made; its errors are ignored.
        interval: Seconds between two beats.

    Thread safety: any thread may call `call`.
    """

    def __init__(
        self,
        connect: "Callable[[], Store]",
        patience: float,
        beat: "Operation[object] | None" = None,
        interval: float = 5.0,
    ) -> None:
        self._connect, self.patience = connect, patience
        self._beat, self._interval = beat, interval
        self._calls = SimpleQueue[_StoreCall | None]()
        self._lost = False
        threading.Thread(target=self._run, name="tfckpt-ranks", daemon=True).start()

    @property
    def is_lost(self) -> bool:
        """Whether a call has failed or was given up. Later calls fail immediately."""
        return self._lost

    def call(self, operation: "Operation[Result]") -> Result:
        """Return `operation(store)`.

        Raises:
            StoreLost: the store cannot be reached, has not answered for `patience` seconds, or has failed before.
        """
        if self._lost:
            raise StoreLost("the store has failed before")
        call = _StoreCall(operation)
        self._calls.put(call)
        if not call.done.wait(self.patience):
            self._lost = True
            raise StoreLost(f"the store has not answered for {self.patience:g} s")
        if call.error is not None:
            self._lost = True
            raise StoreLost(_first_line(call.error)) from call.error
        result: Result = call.result
        return result

    def close(self) -> None:
        """End the thread, once it is not in a call."""
        self._calls.put(None)

    def _run(self) -> None:
        store: Store | None = None
        due = time.monotonic() + self._interval
        while True:
            try:
                call = self._calls.get(timeout=max(0.0, due - time.monotonic()) if self._beat is not None else None)
            except Empty:
                if store is not None and self._beat is not None and not self._lost:
                    with suppress(RuntimeError, OSError):  # the next call reports it
                        self._beat(store)
                due = time.monotonic() + self._interval
                continue
            if call is None:
                return
            try:
                if store is None:
                    store = self._connect()
                call.result = call.operation(store)
            except BaseException as error:  # handed to the caller
                call.error = error
            call.done.set()
            del call  # it may reference a caller's frame


def _first_line(error: BaseException) -> str:
    """Return the first line of an error of torch, whose messages contain a C++ stack trace."""
    lines = str(error).splitlines()
    return (lines[0] if lines else "") or type(error).__name__
