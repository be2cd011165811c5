"""Several ranks of torch.distributed on this machine: processes with gloo on the CPU, for tests of sharded state.

One `RankProcesses` keeps its processes for many runs, so that a test file pays once for importing torch. Every run has
a process group of its own, of any size up to the number of processes:

    with RankProcesses(4) as processes:
        values = processes.call("sharded_modules:save_sharded", folder, world_size=2)
        outcomes = processes.run("rank_faults:save_killed", folder, killed=1)    # errors and deaths are results

The function is "module:function" of a module in this folder, or of any module on `sys.path`. It receives a `Rank` and
then the arguments given. Its result and its arguments are sent by pickle.
"""

import atexit
import contextlib
import importlib
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import connection as connections
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any, Literal, NamedTuple, Self

import torch
import torch.distributed as dist
from forked_processes import forkserver
from torch._C._distributed_c10d import TCPStore  # torch.distributed does not declare it for type checkers

TIMEOUT = 120.0  # seconds for one run, including the start of the processes


class Rank(NamedTuple):
    """What the function of a run is told first."""

    rank: int
    world_size: int
    store: TCPStore  # of this run; with `process_group` the default group's keys are under a prefix of it


class RankError(Exception):
    """An exception that could not be sent by pickle: its class name and message."""


class RanksFailed(Exception):
    """Ranks that raised, died or did not answer in time, from `RankProcesses.call`."""


@dataclass(frozen=True, slots=True)
class RankOutcome:
    """How a run ended on one rank. None in all three fields but `value`: it returned."""

    value: Any = None
    error: BaseException | None = None  # what the function raised; its traceback there is a note
    exit_status: int | None = None  # of a process that ended before it answered; negative: killed by this signal
    late: bool = False  # no answer within the timeout; the process was killed
    seconds: float = 0.0  # from the call of the function to its end

    @property
    def returned(self) -> bool:
        return self.error is None and self.exit_status is None and not self.late

    def __str__(self) -> str:
        if self.error is not None:
            notes = "\n".join(getattr(self.error, "__notes__", ()))
            return f"{type(self.error).__name__}: {self.error}\n{notes}"
        if self.exit_status is not None:
            return f"ended with status {self.exit_status} before it answered"
        return "did not answer in time" if self.late else f"returned after {self.seconds:.1f} s"


@dataclass(frozen=True, slots=True)
class _Run:
    """One function to run in a process."""

    function: str
    args: Sequence[Any]
    kwargs: dict[str, Any]
    rank: int
    world_size: int
    port: int | None  # of the store; None: host it here and send the port
    process_group: bool
    timeout: float  # of the store's and the group's calls


class _Release(NamedTuple):
    """All ranks have answered: end the process group and the store."""


class RunningRanks:
    """A run that was started. `wait` gives the outcome of each rank."""

    def __init__(self, processes: Sequence["_Process"], timeout: float, store: TCPStore | None) -> None:
        self._processes = processes
        self._deadline = time.monotonic() + timeout
        self._store = store  # hosted here

    def kill(self, rank: int, signal_number: int = signal.SIGKILL) -> None:
        """Send a signal to the process of a rank."""
        self._processes[rank].signal(signal_number)

    def wait(self) -> list[RankOutcome]:
        """Wait for all ranks. Those that do not answer within the timeout are killed."""
        outcomes: dict[int, RankOutcome] = {}
        while missing := [index for index in range(len(self._processes)) if index not in outcomes]:
            pipes = {self._processes[index].pipe: index for index in missing}
            ready = connections.wait(list(pipes), max(0.0, self._deadline - time.monotonic()))
            for pipe in ready:
                assert isinstance(pipe, Connection)
                outcomes[pipes[pipe]] = self._processes[pipes[pipe]].answer()
            if not ready:
                for index in missing:
                    self._processes[index].kill()
                    outcomes[index] = RankOutcome(late=True)
        for process in self._processes:
            process.release()
        self._store = None
        return [outcomes[index] for index in range(len(self._processes))]


class RankProcesses:
    """Processes for ranks of torch.distributed, started by the first run. Not thread-safe."""

    def __init__(self, count: int, *, timeout: float = TIMEOUT) -> None:
        """`count`: largest world size. `timeout`: seconds for one run."""
        self._processes = [_Process(index) for index in range(count)]
        self._timeout = timeout
        atexit.register(_close_processes, weakref.ref(self))

    def call(self, function: str, /, *args: Any, **options: Any) -> list[Any]:
        """Run a function on all ranks and return their results, in rank order. Options as for `run`.

        Raises:
            RanksFailed: a rank raised, died or did not answer in time.
        """
        outcomes = self.run(function, *args, **options)
        if failed := {rank: outcome for rank, outcome in enumerate(outcomes) if not outcome.returned}:
            raise RanksFailed("".join(f"\nrank {rank} of {len(outcomes)}: {each}" for rank, each in failed.items()))
        return [outcome.value for outcome in outcomes]

    def run(self, function: str, /, *args: Any, **options: Any) -> list[RankOutcome]:
        """Run a function on all ranks and return how it ended on each; options as for `start`."""
        return self.start(function, *args, **options).wait()

    def start(
        self,
        function: str,
        /,
        *args: Any,
        world_size: int | None = None,
        process_group: bool = True,
        store_at: Literal["test", "rank 0"] = "test",
        timeout: float | None = None,
        **kwargs: Any,
    ) -> RunningRanks:
        """Start a function on all ranks and return at once.

        Args:
            function: "module:function".
            args: Arguments after the `Rank`; `kwargs` too.
            world_size: How many ranks; all processes by default.
            process_group: Whether the default process group (gloo) is made. Without it there is only `Rank.store`.
            store_at: Process that hosts the store: this one, or rank 0 (whose death then takes it away).
            timeout: Seconds for the run, by default those of the constructor.
        """
        world_size = len(self._processes) if world_size is None else world_size
        chosen = self._processes[:world_size]
        assert len(chosen) == world_size, f"{world_size} ranks of {len(self._processes)} processes"
        timeout = self._timeout if timeout is None else timeout
        store = None
        if store_at == "test":
            store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        port = None if store is None else store.port
        for rank, process in enumerate(chosen):
            process.send(_Run(function, args, kwargs, rank, world_size, port, process_group, timeout))
            if port is None:
                port = process.port()
        return RunningRanks(chosen, timeout, store)

    def pids(self) -> list[int]:
        """Process ids of the processes that are running."""
        return [process.pid for process in self._processes if process.pid]

    def close(self) -> None:
        """Kill all processes. A later run starts new ones."""
        for process in self._processes:
            process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Process:
    """One child process, started when it is first sent something, and again after it died."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._process: ForkServerProcess | None = None
        self._pipe: Connection | None = None

    @property
    def pipe(self) -> Connection:
        assert self._pipe is not None
        return self._pipe

    @property
    def pid(self) -> int:
        return 0 if self._process is None else self._process.pid or 0

    def send(self, run: _Run) -> None:
        if self._process is not None and not self._process.is_alive():
            self.kill()
        if self._process is None:
            # Not forked from here: a child would have the threads of the test runner. Not a daemon: the processes of
            # torch.distributed.checkpoint's asynchronous saves are children of this one.
            context = forkserver()
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs,), name=f"rank {self._index}", daemon=False)
            self._process.start()
            theirs.close()
        self.pipe.send(run)

    def port(self) -> int:
        """The port of the store that this process hosts."""
        port: int = self.pipe.recv()
        return port

    def answer(self) -> RankOutcome:
        """The outcome of the run. The process has answered or ended."""
        assert self._process is not None
        try:
            outcome: RankOutcome = pickle.loads(self.pipe.recv_bytes())  # noqa: S301 -- our own child process
        except (EOFError, ConnectionResetError):
            self._process.join(10)
            status = self._process.exitcode
            self.kill()
            return RankOutcome(exit_status=-signal.SIGKILL if status is None else status)
        return outcome

    def release(self) -> None:
        """Let the process end its process group, if it is alive."""
        if self._pipe is not None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._pipe.send(_Release())

    def signal(self, signal_number: int) -> None:
        assert self._process is not None
        assert self._process.pid is not None
        os.kill(self._process.pid, signal_number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None


def _close_processes(processes: weakref.ref[RankProcesses]) -> None:
    """At exit, before multiprocessing waits for children that are not daemons."""
    if (alive := processes()) is not None:
        alive.close()


def _serve(pipe: Connection) -> None:
    """The child process: run functions until the pipe ends."""
    # Ctrl-C reaches the whole process group; the parent decides, and closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    while True:
        try:
            run: _Run = pipe.recv()
        except EOFError:
            return
        with _ranks(run, pipe) as rank:
            pipe.send_bytes(_encoded(_outcome(run, rank)))
            # Other ranks may still use the process group and the store.
            try:
                assert isinstance(pipe.recv(), _Release)
            except EOFError:
                return


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextlib.contextmanager
def _ranks(run: _Run, pipe: Connection) -> Iterator[Rank]:
    """The store of a run, and the default process group where one is wanted."""
    hosts = run.port is None
    timeout = timedelta(seconds=run.timeout)
    store = TCPStore("127.0.0.1", run.port or 0, is_master=hosts, wait_for_workers=False, timeout=timeout)
    if hosts:
        pipe.send(store.port)
    os.environ |= {
        **{"RANK": str(run.rank), "WORLD_SIZE": str(run.world_size), "LOCAL_RANK": str(run.rank)},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)},
    }
    if run.process_group:
        dist.init_process_group("gloo", store=store, rank=run.rank, world_size=run.world_size, timeout=timeout)
    try:
        yield Rank(run.rank, run.world_size, store)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _outcome(run: _Run, rank: Rank) -> RankOutcome:
    begin = time.monotonic()
    try:
        module, _, function = run.function.partition(":")
        value = getattr(importlib.import_module(module), function)(rank, *run.args, **run.kwargs)
    except BaseException as error:  # torch.distributed.checkpoint's CheckpointException is not an Exception
        error.add_note(traceback.format_exc())
        return RankOutcome(error=error, seconds=time.monotonic() - begin)
    return RankOutcome(value=value, seconds=time.monotonic() - begin)


def _encoded(outcome: RankOutcome) -> bytes:
    """Pickle an outcome; an error that does not pickle, both ways, is sent as its string."""
    try:
        encoded = pickle.dumps(outcome)
        if outcome.error is not None:
            pickle.loads(encoded)  # noqa: S301 -- encoded above
    except Exception as problem:
        failed = problem if outcome.error is None else outcome.error
        error = RankError(f"{type(failed).__name__}: {failed}")
        for note in getattr(failed, "__notes__", ()):
            error.add_note(note)
        return pickle.dumps(RankOutcome(error=error, seconds=outcome.seconds))
    return encoded
