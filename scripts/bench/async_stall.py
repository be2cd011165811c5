"""How long does training stop for an asynchronous save?

Setup:    512 MiB in 64 float32 tensors: row "stall" in host memory, row "gpu-stall" on a GPU. As soon as a call
          returns, every value is changed in place, like in the next step of training; the files must have the earlier
          values.
Floor:    a copy of the state: into new memory (from a GPU to new host memory), and into existing memory, pinned for a
          GPU.
Compare:  Saver.save_async: the first of a saver, later ones, which reuse the buffers, and one with buffers of 64 MiB;
          torch.distributed.checkpoint.async_save with its default, which allocates memory, and with a stager that
          reuses it; torch.save and Saver.save, for which training stops until they end.
Reports:  seconds until the call returns, and until the checkpoint is complete, of the same saves; on a GPU also until
          the bytes have left it. All checkpoints are synced, except those of torch.save.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import torch
from contenders import check_equal, copy_into, empty, host_like, synchronize
from dcp import async_save_by_dcp, dcp_stager, load_by_dcp
from settings import NO_GPU, Bench
from timing import Comparison, Contender, timed

import torch_tfckpt as tfckpt

FIRST, WARM = "Saver.save_async, the first", "Saver.save_async"
SMALL, SYNC = "Saver.save_async, 64 MiB of buffers", "Saver.save"
STAGED: Final = "Saver.save_async, until staged"
DCP, DCP_KEPT = "DCP async_save", "DCP async_save, memory kept"
TORCH: Final = "torch.save"
COPY, NEW_COPY = "bare copy into memory in use", "bare copy into new memory"
PINNED_COPY: Final = "bare copy into pinned memory"
SMALL_BYTES: Final = 64 * 2**20
MOST_STALL: Final = 1 / 1.1  # training may stop for 1.1 times the copy alone

State = dict[str, torch.Tensor]
Wait = Callable[[], object]
"""Return when the checkpoint is complete."""
Begin = Callable[[Path], Wait | None]
"""Begin a save; return when the state may change, with None if the checkpoint is complete by then."""

STALLS: Final = (
    Comparison(WARM, COPY, at_least=MOST_STALL),
    Comparison(FIRST, NEW_COPY),
    Comparison(FIRST, WARM),
    Comparison(WARM, DCP_KEPT, floor=COPY),
    Comparison(FIRST, DCP, floor=NEW_COPY),
    Comparison(WARM, TORCH, floor=COPY),
    Comparison(SMALL, SYNC),
)
COMPLETE: Final = (Comparison(WARM, DCP_KEPT, at_least=1), Comparison(FIRST, DCP))
GPU_STALLS: Final = (
    Comparison(WARM, PINNED_COPY, at_least=MOST_STALL),
    Comparison(STAGED, PINNED_COPY, at_least=0.9),
    Comparison(WARM, DCP_KEPT, floor=PINNED_COPY),
    Comparison(WARM, TORCH, floor=PINNED_COPY),
)


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


def ways(state: State, *, cuda: bool) -> dict[str, tuple[Begin, Callable[[Path], State]]]:
    """Return how each contender begins a save, and how its files are read."""
    warm, sync = tfckpt.Saver(state), tfckpt.Saver(state)
    small = tfckpt.Saver(state, staging=tfckpt.StagingOptions(async_bytes=SMALL_BYTES))
    stager = dcp_stager(cuda=cuda)

    def first(path: Path) -> Wait:
        saver = tfckpt.Saver(state)
        handle = saver.save_async(path)

        def wait() -> None:
            handle.result()
            saver.close()

        return wait

    def staged(path: Path) -> Wait:
        handle = warm.save_async(path, block_until_staged=False)
        handle.staged.wait()
        return handle.result

    def saved(path: Path) -> None:
        sync.save(path)

    def by_torch(path: Path) -> State:
        return dict(torch.load(path, weights_only=True, map_location="cpu"))

    def by_dcp(path: Path) -> State:
        return load_by_dcp(path, state)

    found: dict[str, tuple[Begin, Callable[[Path], State]]] = {
        FIRST: (first, load_ours),
        WARM: (lambda path: warm.save_async(path).result, load_ours),
        SMALL: (lambda path: small.save_async(path).result, load_ours),
        SYNC: (saved, load_ours),
        DCP: (lambda path: async_save_by_dcp(state, path, stager=None), by_dcp),
        DCP_KEPT: (lambda path: async_save_by_dcp(state, path, stager=stager), by_dcp),
        TORCH: (lambda path: torch.save(state, path), by_torch),
    }
    if cuda:
        found[STAGED] = (staged, load_ours)
    return found


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

    pinned = any(target.is_pinned() for target in targets)
    name = PINNED_COPY if pinned else COPY
    return [Contender(name, copied, size_of(state)), Contender(NEW_COPY, copied_anew, size_of(state))]


def run(bench: Bench) -> None:
    """Row "stall"."""
    expected = bench.large(max(1, bench.sizes.mib // 2))
    state = {name: tensor.clone() for name, tensor in expected.items()}
    measure(bench, state, expected, STALLS)


def on_gpu(bench: Bench) -> None:
    """Row "gpu-stall"."""
    if not torch.cuda.is_available():
        bench.report.skip_all(f"stop for a save of {describe(bench)} on a GPU", GPU_STALLS, NO_GPU)
        return
    expected = bench.large(max(1, bench.sizes.mib // 2))
    measure(bench, {name: tensor.to("cuda") for name, tensor in expected.items()}, expected, GPU_STALLS)


def describe(bench: Bench) -> str:
    return bench.describe(max(1, bench.sizes.mib // 2))


def measure(bench: Bench, state: State, expected: State, comparisons: Sequence[Comparison]) -> None:
    """Report when training continues, and when the checkpoint is complete."""
    cuda = any(tensor.is_cuda for tensor in state.values())
    what = f"{describe(bench)}{' on a GPU' if cuda else ''}"
    rounds = bench.sizes.few_rounds
    with bench.scratch() as folder:
        every = {Stall(name, state, expected, folder): way for name, way in ways(state, cuda=cuda).items()}
        contenders = [stall.contender(*way) for stall, way in every.items()]
        bench.report.race(
            f"stop for a save of {what}", contenders + floors(state, expected), comparisons, rounds=rounds
        )
        # The same rounds, warm-up included: `complete` only returns what was measured.
        complete = [stall.complete() for stall in every]
        bench.report.race(f"complete a save of {what}", complete, COMPLETE, rounds=rounds)
