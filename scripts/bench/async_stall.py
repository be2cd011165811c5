#!/usr/bin/env python3
"""How long does training stop for an asynchronous save?

Setup:    512 MiB in 64 float32 tensors, on a GPU if there is one. As soon as a call returns, every value is changed in
          place, like in the next step of training; the files must have the earlier values.
Floor:    a copy of the state: into new memory (tensor.clone, from a GPU to new host memory), and into existing memory,
          pinned for a GPU.
Compare:  Saver.save_async: the first of a saver, later ones, which reuse the buffers, and one with buffers of 64 MiB;
          torch.distributed.checkpoint.async_save with its default, which allocates memory, and with a stager that
          reuses it; torch.save and Saver.save, for which training stops until they end.
Reports:  seconds until the call returns, and until the checkpoint is complete, of the same saves: median and spread of
          7 interleaved rounds after a warm-up, ratios within a round. All checkpoints are synced, except those of
          torch.save, and read back and compared before their time counts.
"""

import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import torch
from peers import (
    async_save_by_dcp,
    check_equal,
    copy_into,
    dcp_stager,
    empty,
    host_like,
    load_by_dcp,
    synchronize,
)
from timing import Comparison, Contender, Report, parser, scratch, timed
from workload import large

import torch_tfckpt as tfckpt

FIRST, WARM = "Saver.save_async, the first", "Saver.save_async"
SMALL, SYNC = "Saver.save_async, 64 MiB of buffers", "Saver.save"
DCP, DCP_KEPT = "DCP async_save", "DCP async_save, memory kept"
TORCH = "torch.save"
COPY, NEW_COPY = "floor: copy into memory that is there", "floor: copy into new memory"
SMALL_BYTES: Final = 64 * 2**20

State = dict[str, torch.Tensor]
Wait = Callable[[], object]
"""Return when the checkpoint is complete."""
Begin = Callable[[Path], Wait | None]
"""Begin a save; return when the state may change, with None if the checkpoint is complete by then."""


def comparisons(cuda: bool) -> list[Comparison]:
    """The target applies to GPUs: training stops for at most 1.1 times the copy alone."""
    return [
        Comparison(WARM, COPY, at_least=1 / 1.1 if cuda else None),
        Comparison(FIRST, NEW_COPY),
        Comparison(WARM, DCP_KEPT),
        Comparison(FIRST, DCP),
        Comparison(WARM, TORCH),
        Comparison(WARM, SYNC),
        Comparison(WARM, FIRST),
        Comparison(SMALL, SYNC),
    ]


class Stall:
    """One way to save: measures when the call returns, and records when the checkpoint was complete."""

    def __init__(self, name: str, state: State, expected: State, folder: Path) -> None:
        self.name, self._state, self._expected, self._folder = name, state, expected, folder
        self._complete: list[float] = []

    def contender(self, begin: Begin, load: Callable[[Path], State]) -> Contender:
        """Save under a path of the folder, and read it back by `load`."""

        def save() -> tuple[float, bool]:
            begun = time.perf_counter()
            wait = begin(path)
            stopped = time.perf_counter() - begun
            change(self._state.values())
            if wait is not None:
                wait()
            return stopped, wait is None

        def measure() -> float:
            synchronize()
            seconds, (stopped, complete_by_then) = timed(save)
            self._complete.append(stopped if complete_by_then else seconds)
            check_equal(load(path), self._expected)
            change(self._state.values())  # back to the earlier values
            empty(self._folder)
            return stopped

        path = self._folder / "x"
        return Contender(self.name, measure, size_of(self._state))

    def complete(self) -> Contender:
        """Return the same saves as a contender, with the seconds until each was complete."""
        seconds = iter(self._complete)
        return Contender(self.name, lambda: next(seconds), size_of(self._state))


def size_of(state: State) -> int:
    return sum(tensor.nbytes for tensor in state.values())


def change(tensors: Iterable[torch.Tensor]) -> None:
    """Change the sign of every value; a second call restores the values."""
    for tensor in tensors:
        tensor.neg_()


def ways(state: State) -> dict[str, tuple[Begin, Callable[[Path], State]]]:
    """Return how each contender begins a save, and how its files are read."""
    warm, sync = tfckpt.Saver(state), tfckpt.Saver(state)
    small = tfckpt.Saver(state, staging=tfckpt.StagingOptions(async_bytes=SMALL_BYTES))
    stager = dcp_stager(cuda=torch.cuda.is_available())

    def first(path: Path) -> Wait:
        saver = tfckpt.Saver(state)
        handle = saver.save_async(path)

        def wait() -> None:
            handle.result()
            saver.close()

        return wait

    def saved(path: Path) -> None:
        sync.save(path)

    def by_torch(path: Path) -> State:
        return dict(torch.load(path, weights_only=True, map_location="cpu"))

    def by_dcp(path: Path) -> State:
        return load_by_dcp(path, state)

    return {
        FIRST: (first, load_ours),
        WARM: (lambda path: warm.save_async(path).result, load_ours),
        SMALL: (lambda path: small.save_async(path).result, load_ours),
        SYNC: (saved, load_ours),
        DCP: (lambda path: async_save_by_dcp(state, path, stager=None), by_dcp),
        DCP_KEPT: (lambda path: async_save_by_dcp(state, path, stager=stager), by_dcp),
        TORCH: (lambda path: torch.save(state, path), by_torch),
    }


def load_ours(path: Path) -> State:
    return {name: value for name, value in tfckpt.load_file(path).items() if isinstance(value, torch.Tensor)}


def floors(state: State, expected: State) -> list[Contender]:
    """Return contenders that only copy the state."""
    targets = host_like(state.values())

    def copied() -> float:
        for target in targets:
            target.zero_()
        synchronize()
        seconds, _ = timed(lambda: copy_into(state.values(), targets))
        check_equal(dict(zip(state, targets, strict=True)), expected)
        return seconds

    def copied_anew() -> float:
        synchronize()
        seconds, copies = timed(lambda: [tensor.to("cpu", copy=True) for tensor in state.values()])
        check_equal(dict(zip(state, copies, strict=True)), expected)
        return seconds

    return [Contender(COPY, copied, size_of(state)), Contender(NEW_COPY, copied_anew, size_of(state))]


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("--mib", type=int, default=512)
    options.add_argument("--tensors", type=int, default=64)
    given = options.parse_args(arguments)
    cuda = torch.cuda.is_available()
    expected = {n: torch.from_numpy(array) for n, array in large(given.mib, given.tensors, given.seed).items()}
    state = {name: tensor.to("cuda") if cuda else tensor.clone() for name, tensor in expected.items()}
    report = Report("async_stall", given)
    where = torch.cuda.get_device_name() if cuda else "host"
    report.add({"title": "device", "device": where})
    with scratch(given.dir) as folder:
        every = {Stall(name, state, expected, folder): way for name, way in ways(state).items()}
        contenders = [stall.contender(*way) for stall, way in every.items()]
        what = f"{given.mib} MiB in {given.tensors} tensors, {where}"
        report.run(f"training stops: {what}", contenders + floors(state, expected), comparisons(cuda))
        complete = [stall.complete() for stall in every]
        report.run(f"the checkpoint is complete: {what}", complete, comparisons(False))
    report.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
