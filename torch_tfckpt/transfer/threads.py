"""Wait for threads in a way that is safe with signal handlers and Ctrl-C.

Python runs a signal handler in the main thread, between any two bytecodes. If the interrupted code holds a lock, and
the handler waits for a thread that needs this lock, both wait forever; if the handler raises, the lock may stay locked.
The classes of `threading` and `concurrent.futures` can be interrupted at such points. So code of this package that may
run in the main thread shares data with other threads only through

- `Latch`, which holds no lock while Python code runs;
- `SimpleQueue` and single operations of lists, which are atomic in C;
- locks that are held by a `with` statement whose body calls nothing that can wait;
- daemon threads: for other threads, `threading` acquires a global lock when they are started or joined.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from queue import SimpleQueue
from typing import Final, TypeVar

_RECHECK: Final = 1.0  # seconds; in case Ctrl-C interrupts a waiting thread right after it has acquired the lock

Item = TypeVar("Item")
Result = TypeVar("Result")


class Latch(threading.Event):
    """An Event that is set once, for good. Signal handlers may call all methods, whatever they interrupt."""

    def __init__(self) -> None:
        super().__init__()
        self._is_set = False
        self._to_release = [threading.Lock()]
        self._gate = self._to_release[0]
        self._gate.acquire()

    def is_set(self) -> bool:
        """Return whether `set` was called."""
        return self._is_set

    isSet = is_set

    def set(self) -> None:
        """Let all waiting threads continue, now and later."""
        self.set_first()

    def set_first(self) -> bool:
        """Do what `set` does; return whether this call was the first. Exactly one call returns True."""
        self._is_set = True
        try:
            gate = self._to_release.pop()
        except IndexError:
            return False
        gate.release()
        return True

    def clear(self) -> None:
        """Raise RuntimeError: a Latch cannot be reset."""
        raise RuntimeError("a Latch cannot be cleared; create a new one")

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until `set` is called, at most `timeout` seconds; return whether it was called."""
        until = None if timeout is None else time.monotonic() + timeout
        while not self._is_set:
            left = _RECHECK if until is None else min(_RECHECK, until - time.monotonic())
            if left <= 0 and until is not None:
                return False
            if self._gate.acquire(timeout=left):
                self._gate.release()
        return True


def finish(wait: Callable[[], object]) -> None:
    """Call `wait` until it returns; exceptions of signal handlers (Ctrl-C) are raised afterwards.

    Used where memory or files must stay valid because other threads still use them.
    """
    interrupt: BaseException | None = None
    while True:
        try:
            wait()
            break
        except BaseException as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt


def join(threads: Iterable[threading.Thread]) -> None:
    """Wait until all threads have ended; Ctrl-C is raised afterwards."""
    for thread in threads:
        finish(thread.join)


class InTurns(Iterator[Item]):
    """Iterator that several threads share: each item goes to one of them.

    If getting an item raises an error, the thread that asked for it gets the error, and no thread gets further items.
    """

    def __init__(self, items: Iterator[Item]) -> None:
        self._items, self._lock = items, threading.Lock()

    def __next__(self) -> Item:
        with self._lock:
            return next(self._items)


class Workers:
    """A few threads that run functions, started when needed, ended when this object is deleted or closed.

    Thread safety: several threads may call `map` at the same time; any thread may call `close`.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count, self._name = count, name
        self._work = SimpleQueue[Callable[[], object] | None]()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Call `function` for every item on the threads; return the results in order.

        Once a call has raised, or after Ctrl-C, no new call begins. No call is running when this returns or raises.

        Raises:
            The error of the first failed item, in the order of the items.
            RuntimeError: no thread can be started.
        """
        count = len(items)
        results: dict[int, Result] = {}
        errors: dict[int, BaseException] = {}
        stopped: list[bool] = []
        turns, ended, over = iter(range(count)), list[int](), Latch()

        def work() -> None:
            for turn in turns:
                try:
                    if not stopped:
                        results[turn] = function(items[turn])
                except BaseException as error:
                    stopped.append(True)
                    errors[turn] = error
                finally:
                    ended.append(turn)
                    if len(ended) == count:
                        over.set()

        try:
            wanted = min(self._count, count)
            in_caller = not self._start(wanted)
            for _ in range(wanted):
                self._work.put(work)
            if in_caller or self._closed:  # no thread will take the work
                work()
            over.wait()
        finally:
            stopped.append(True)
            ended.extend(turns)
            if len(ended) == count:
                over.set()
            finish(over.wait)
        if errors:
            first = errors[min(errors)]
            errors.clear()  # it refers to exceptions whose tracebacks refer to it: break the cycle
            raise first
        return [results[turn] for turn in range(count)]

    def close(self) -> None:
        """Stop the threads after they have finished their work."""
        self._closed = True
        self._work.put(None)
        join(self._threads)

    def __del__(self) -> None:
        self._work.put(None)

    def _start(self, wanted: int) -> bool:
        """Start threads up to `wanted`; return False if there are none because the interpreter is exiting."""
        while len(self._threads) < wanted:
            thread = threading.Thread(target=_run, args=(self._work,), name=self._name, daemon=True)
            try:
                thread.start()
            except RuntimeError as refused:
                if self._threads:
                    break
                if "interpreter shutdown" not in str(refused):
                    raise
                return False
            self._threads.append(thread)
        return True


def _run(work: SimpleQueue[Callable[[], object] | None]) -> None:
    while (call := work.get()) is not None:
        call()
        call = None  # do not keep the buffers of a plan alive
    work.put(None)  # for the next thread
