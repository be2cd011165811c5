"""Do speed and memory stay the same for a checkpoint of 16 GiB?

Setup:    16 names for each tensor of a state of 1 GiB, so that the process needs 1 GiB for 16 GiB of files. One run
          each, on a disk (--large-dir): files of that size do not stay in the page cache.
Floor:    the same bytes by bare pwrite and fsync, and by bare preadv with CRC-32C; memory: nothing.
Compare:  save_file, reader.check() and Saver.restore in place with the floors, and their memory above the start with
          the limit for any size.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import fresh
import torch
from contenders import check_equal
from floors import checked_read_floor, write_floor
from peak_memory import CONSTANT_MIB, IN_PLACE_MIB, peak_above_start
from report import size_text
from settings import Bench
from timing import Comparison, WrongResult, timed
from workload import large

import torch_tfckpt as tfckpt

TIMES: Final = 16
SAVE, VERIFY, RESTORE = "save_file, synced", "reader.check()", "Saver.restore"
WRITE_FLOOR, READ_FLOOR = "bare pwrite and fsync", "bare preadv and CRC-32C"
COMPARISONS: Final = (
    Comparison(SAVE, WRITE_FLOOR, at_least=0.95),
    Comparison(VERIFY, READ_FLOOR, at_least=0.95),
    Comparison(RESTORE, READ_FLOOR),
)
LIMITS: Final = {SAVE: CONSTANT_MIB, VERIFY: CONSTANT_MIB, RESTORE: IN_PLACE_MIB}
SMALL_MIB: Final = 2048  # up to this size no directory of its own is needed


def run(bench: Bench) -> None:
    """Row "16-gib"."""
    mib = TIMES * bench.sizes.mib
    work = f"{size_text(mib)} in {TIMES * bench.sizes.tensors} tensors"
    reason = _why_not(bench, mib)
    if reason:
        bench.report.skip_all(work, COMPARISONS, reason)
        return
    with bench.scratch(bench.large_directory) as folder:
        arguments = str(folder), bench.sizes.mib, bench.sizes.tensors, bench.seed
        found = {name: fresh.call("large_files.measured", name, *arguments) for name in _WAYS}
    seconds = {name: [taken] for name, (taken, _) in found.items()}
    bench.report.keep({"work": work, "seconds": seconds, "bytes": dict.fromkeys(seconds, mib * 2**20)})
    for comparison in COMPARISONS:
        bench.report.compare(work, comparison, seconds)
    for name, limit in LIMITS.items():
        bench.report.measure(f"memory for {work}", name, [found[name][1]], "MiB", at_most=limit, against="its limit")


def _why_not(bench: Bench, mib: int) -> str:
    """Return why the row is skipped, or an empty string."""
    if mib <= SMALL_MIB:
        return ""
    if bench.large_directory is None:
        return f"writes {size_text(mib)}; pass --large-dir DIRECTORY"
    free = shutil.disk_usage(bench.large_directory).free // 2**20
    return f"needs {size_text(1.1 * mib)}; {size_text(free)} are free" if free < 1.1 * mib else ""


# In the measured process.


def measured(name: str, folder: str, mib: int, count: int, seed: int) -> tuple[float, float]:
    """Return the seconds and the MiB above the start of one way. They run in the order of _WAYS."""
    return _WAYS[name](Path(folder), mib, count, seed)


def _state(mib: int, count: int, seed: int) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in large(mib, count, seed).items()}


def _names(tensors: dict[str, torch.Tensor], copy: int) -> dict[str, torch.Tensor]:
    """Return the tensors under the names of one of the 16 copies."""
    return {f"copy_{copy:02d}/{name}": tensor for name, tensor in tensors.items()}


def _measure(work: Callable[[], object]) -> tuple[float, float]:
    (seconds, _), peak = peak_above_start(lambda: timed(work))
    return seconds, peak["peak_mib"]


def _write_floor(folder: Path, mib: int, count: int, seed: int) -> tuple[float, float]:
    found = _measure(lambda: write_floor(folder / "floor", TIMES * mib * 2**20, sync=True))
    (folder / "floor").unlink()
    return found


def _save(folder: Path, mib: int, count: int, seed: int) -> tuple[float, float]:
    state, tensors = _state(mib, count, seed), dict[str, torch.Tensor]()
    for copy in range(TIMES):
        tensors.update(_names(state, copy))
    return _measure(lambda: tfckpt.save_file(tensors, folder / "x"))  # `_verify` reads it, `_restore` compares it


def _read_floor(folder: Path, mib: int, count: int, seed: int) -> tuple[float, float]:
    return _measure(lambda: checked_read_floor(folder / "x.data-00000-of-00001"))


def _verify(folder: Path, mib: int, count: int, seed: int) -> tuple[float, float]:
    def work() -> None:
        with tfckpt.load_checkpoint(folder / "x") as reader:
            if len(reader.check().good) != TIMES * count:
                raise WrongResult("a good checkpoint is reported as damaged")

    return _measure(work)


def _restore(folder: Path, mib: int, count: int, seed: int) -> tuple[float, float]:
    expected = _state(mib, count, seed)
    targets = {name: torch.ones_like(tensor) for name, tensor in expected.items()}
    # A saver refuses two names for a tensor, so there is one saver for each copy.
    savers = [tfckpt.Saver(_names(targets, copy)) for copy in range(TIMES)]

    def work() -> None:
        for saver in savers:
            saver.restore(folder / "x")

    found = _measure(work)
    check_equal(targets, expected)
    return found


_WAYS: Final = {
    WRITE_FLOOR: _write_floor,
    SAVE: _save,
    READ_FLOOR: _read_floor,
    VERIFY: _verify,
    RESTORE: _restore,
}
