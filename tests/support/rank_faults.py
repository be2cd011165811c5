"""A save of several ranks in which one of them raises, is killed or hangs at a chosen step."""

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from rank_processes import Rank

import torch_tfckpt as tfckpt
from torch_tfckpt.errors import IncompleteSaveError
from torch_tfckpt.storage.local import LocalStorage

TIMEOUT = 10.0  # more than the 5 s that connecting to a TCPStore takes now and then

# Step -> (the storage's operation, whether it is that of the step, by its path). "link" and "state" are rank 0's.
STEPS: dict[str, tuple[str, Callable[[str], bool]]] = {
    "begin": ("create", lambda path: ".rank0" in path),
    "create": ("create", lambda path: "_temp" in path and ".data-" in path),
    "write": ("write", lambda path: "_temp" in path and ".data-" in path),
    "sync": ("sync", lambda path: "_temp" in path and ".data-" in path),
    "finish": ("replace", lambda path: "_temp" in path and path.endswith(".index")),
    "link": ("link", lambda path: "_temp" not in path and ".data-" in path),
    "publish": ("replace", lambda path: "_temp" not in path and path.endswith(".index")),
    "state": ("create", lambda path: os.path.basename(path).startswith("checkpoint.")),
}
OF_ALL = ("begin", "create", "write", "sync", "finish")
OF_RANK_0 = ("link", "publish", "state")


class Told(NamedTuple):
    """What one rank saw of the save with a fault."""

    text: str  # the error; "" if there was none
    failures: list[int]
    seconds: float
    newest: list[str]  # the saver's last checkpoints afterwards


class FaultyStorage(LocalStorage):
    """Calls `fault` once, at one step."""

    def __init__(self, step: str, fault: Callable[[], object]) -> None:
        self.fault: Callable[[], object] | None = fault
        self._operation, self._applies = STEPS[step]
        self.armed = False

    def at(self, operation: str, path: str) -> None:
        if self.armed and self.fault is not None and operation == self._operation and self._applies(path):
            fault, self.fault = self.fault, None
            fault()

    def create(self, path: str) -> Any:
        self.at("create", path)
        file = super().create(path)
        write, sync = file.write, file.sync

        def faulty_write(offset: int, buffers: Any) -> None:
            self.at("write", path)
            write(offset, buffers)

        def faulty_sync() -> None:
            self.at("sync", path)
            sync()

        file.write, file.sync = faulty_write, faulty_sync  # type: ignore[method-assign]
        return file

    def replace(self, source: str, target: str) -> None:
        self.at("replace", target)
        super().replace(source, target)

    def link(self, source: str, target: str) -> None:
        self.at("link", target)
        super().link(source, target)


def out_of_space() -> None:
    raise OSError(28, "No space left on device")


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hangs() -> None:
    threading.Event().wait(TIMEOUT + 5)


def state() -> dict[str, Any]:
    """Enough names that each of four ranks writes some."""
    return {f"w{number}": torch.full((number + 1,), float(number)) for number in range(12)} | {"done": [1, "x"]}


def meet(rank: Rank, place: str) -> None:
    """Return when all ranks have called this."""
    rank.store.set(f"{place} {rank.rank}", "")
    rank.store.wait([f"{place} {other}" for other in range(rank.world_size)])


def fail(rank: Rank, folder: str, step: str, failing: int, how: str) -> Told:
    """Save m-1; then m-2, with the fault on one rank. `how`: the name of a function of this module."""
    meet(rank, "start")  # a process may have been started just now
    timeout = 60 if how == "out_of_space" else TIMEOUT  # a rank that raises is named at once
    ranks = tfckpt.Ranks(rank.store, rank=rank.rank, world_size=rank.world_size, timeout=timeout)
    storage = FaultyStorage(step, globals()[how])
    saver = tfckpt.Saver(state(), ranks=ranks, max_to_keep=2, storage=storage)
    saver.save(os.path.join(folder, "m"), 1)
    meet(rank, "first save")  # otherwise a rank may die before another one has learned that m-1 is complete
    storage.armed = rank.rank == failing
    begun = time.monotonic()
    text, failures = "", list[int]()
    try:
        saver.save(os.path.join(folder, "m"), 2)
    except IncompleteSaveError as error:
        text, failures = str(error), sorted(error.failures)
    seconds = time.monotonic() - begun
    if how == "out_of_space":
        saver.save(os.path.join(folder, "m"), 3)
    return Told(text, failures, seconds, [os.path.basename(path) for path in saver.last_checkpoints])


def save_once_more(rank: Rank, folder: str, step: int) -> tuple[str | None, list[str]]:
    """The next run: return the newest complete checkpoint and, after one more save, the last checkpoints."""
    ranks = tfckpt.Ranks(rank.store, rank=rank.rank, world_size=rank.world_size, timeout=60)
    latest = tfckpt.latest_checkpoint(folder, valid=True)
    values = state()
    saver = tfckpt.Saver(values, ranks=ranks, max_to_keep=2)
    for value in values.values():
        if isinstance(value, torch.Tensor):
            value.zero_()
    saver.restore(latest)
    assert all(torch.equal(values[name], value) for name, value in state().items() if isinstance(value, torch.Tensor))
    saver.save(os.path.join(folder, "m"), step)
    newest = [os.path.basename(path) for path in saver.last_checkpoints]
    return None if latest is None else os.path.basename(latest), newest
