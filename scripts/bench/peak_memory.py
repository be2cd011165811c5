#!/usr/bin/env python3
"""How much memory does each kind of work take in addition to the memory in use before it?

Setup:    1 GiB in 64 float32 tensors, one shard except for several devices; each kind of work in its own process. The
          peak is reset (Linux: /proc/self/clear_refs) after packages are imported, the tensors to save and to restore
          into are created, and a small checkpoint was processed, so that threads and lazily loaded code are not
          counted.
Floor:    the memory of the result: the tensors for a load, otherwise nothing.
Compare:  with the limits of the design: one chunk per thread, 256 MiB, another tensor if one must be copied; the
          buffers of an asynchronous save, which hold the whole state if it fits, and the values that a restore reads
          before it assigns the first one.
Reports:  MiB of the peak of resident memory above its start, and of its anonymous part, sampled every 2 ms. Results are
          compared with the saved values.
"""

import argparse
import importlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import safetensors.torch
import torch
from peers import check_equal
from timing import Report, WrongResult, parser, scratch
from workload import large

import torch_tfckpt as tfckpt

CONSTANT_MIB: Final = 256
SMALL_MIB: Final = 64  # buffers of one of the asynchronous saves
ASYNC_MIB: Final = tfckpt.StagingOptions().async_bytes // 2**20
_WARM_UP_MIB: Final = 8


class Work(NamedTuple):
    """One kind of work, and its limit in MiB for `mib` MiB whose largest tensor has `largest` MiB."""

    run: Callable[[argparse.Namespace, Path], Callable[[], None]]  # prepares; its return value is measured
    allowed: Callable[[float, float], float]


def load(given: argparse.Namespace, folder: Path) -> Callable[[], None]:
    return lambda: _keep(tfckpt.load_file(folder / "many"))


def load_mapped(given: argparse.Namespace, folder: Path) -> Callable[[], None]:
    return lambda: _keep(tfckpt.load_file(folder / "many", mmap=True, verify=False))


def verify(given: argparse.Namespace, folder: Path) -> Callable[[], None]:
    def work() -> None:
        with tfckpt.load_checkpoint(folder / "many") as reader:
            if reader.check().damage:
                raise WrongResult("a valid checkpoint is reported as damaged")

    return work


def convert(given: argparse.Namespace, folder: Path) -> Callable[[], None]:
    command = importlib.import_module("torch_tfckpt.cli.main")
    target = folder / "converted.safetensors"
    target.unlink(missing_ok=True)

    def work() -> None:
        if command.main(["convert", str(folder / "many"), str(target)]):
            raise WrongResult("tfckpt convert failed")

    return work


def save(given: argparse.Namespace, folder: Path) -> Callable[[], None]:
    tensors = _tensors(given)
    return lambda: _keep(tfckpt.save_file(tensors, folder / "saved"))


def save_strided(given: argparse.Namespace, folder: Path) -> Callable[[], None]:
    tensors = {name: tensor.t() for name, tensor in _tensors(given).items()}
    return lambda: _keep(tfckpt.save_file(tensors, folder / "strided"))


def slice_of_one(given: argparse.Namespace, folder: Path) -> Callable[[], None]:
    def work() -> None:
        with tfckpt.load_checkpoint(folder / "one") as reader:
            [name] = reader.keys()
            _keep(reader.get_slice(name)[2:5])

    return work


def save_sharded(given: argparse.Namespace, folder: Path) -> Callable[[], None]:
    saver = tfckpt.Saver(_on_devices(_tensors(given)), sharded=True)
    return lambda: _keep(saver.save(folder / "sharded"))


def save_async(given: argparse.Namespace, folder: Path) -> Callable[[], None]:
    return _async(given, folder / "async", None)


def save_async_small(given: argparse.Namespace, folder: Path) -> Callable[[], None]:
    return _async(given, folder / "async-small", tfckpt.StagingOptions(async_bytes=SMALL_MIB * 2**20))


def _async(given: argparse.Namespace, prefix: Path, staging: tfckpt.StagingOptions | None) -> Callable[[], None]:
    saver = tfckpt.Saver(_on_devices(_tensors(given)), sharded=True, staging=staging)
    return lambda: _keep(saver.save_async(prefix).result())


def restore(given: argparse.Namespace, folder: Path) -> Callable[[], None]:
    return _restore(given, folder, sequentially=False)


def restore_sequentially(given: argparse.Namespace, folder: Path) -> Callable[[], None]:
    return _restore(given, folder, sequentially=True)


def _restore(given: argparse.Namespace, folder: Path, *, sequentially: bool) -> Callable[[], None]:
    """Restore into existing tensors, like the parameters of a model."""
    expected = _tensors(given)
    # Filled with ones: pages of zeros would not be in memory before they are written to.
    targets = {name: torch.ones_like(tensor) for name, tensor in expected.items()}
    saver = tfckpt.Saver(targets, restore_sequentially=sequentially)

    def work() -> None:
        saver.restore(folder / "many")
        check_equal(targets, expected)

    return work


def _on_devices(tensors: dict[str, torch.Tensor]) -> dict[str, tfckpt.Variable]:
    """Return the tensors in four groups, as if on four devices."""
    return {
        name: tfckpt.Variable(tensor, name, device=f"/cpu:{number % 4}")
        for number, (name, tensor) in enumerate(tensors.items())
    }


WORKS: Final[dict[str, Work]] = {
    "load_file": Work(load, lambda mib, largest: mib + 64),
    "load_file(mmap=True, verify=False)": Work(load_mapped, lambda mib, largest: CONSTANT_MIB),
    "verify (reader.check)": Work(verify, lambda mib, largest: CONSTANT_MIB),
    "convert to safetensors": Work(convert, lambda mib, largest: CONSTANT_MIB + largest),
    "save_file": Work(save, lambda mib, largest: CONSTANT_MIB),
    "save_file of transposed tensors": Work(save_strided, lambda mib, largest: CONSTANT_MIB + largest),
    "Saver.save, 4 devices": Work(save_sharded, lambda mib, largest: CONSTANT_MIB),
    "Saver.save_async, 4 devices": Work(save_async, lambda mib, largest: min(mib, ASYNC_MIB) + CONSTANT_MIB),
    "the same, async_bytes 64 MiB": Work(save_async_small, lambda mib, largest: SMALL_MIB + CONSTANT_MIB),
    "Saver.restore": Work(restore, lambda mib, largest: mib + CONSTANT_MIB),
    "the same, restore_sequentially": Work(restore_sequentially, lambda mib, largest: CONSTANT_MIB + largest),
    "get_slice of one tensor that is all of it": Work(slice_of_one, lambda mib, largest: CONSTANT_MIB),
}


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__, rounds=1)
    options.add_argument("--mib", type=int, default=1024)
    options.add_argument("--tensors", type=int, default=64)
    options.add_argument("--work", choices=list(WORKS), help=argparse.SUPPRESS)  # the measured process
    options.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args(arguments)
    if given.work:
        print(json.dumps(_measured(given)))
        return 0
    report = Report("peak_memory", given)
    with scratch(given.dir) as folder:
        for name, mib in (("warm", _WARM_UP_MIB), ("full", given.mib)):
            (folder / name).mkdir()
            for prefix, count in (("many", min(given.tensors, mib)), ("one", 1)):
                tensors = {n: torch.from_numpy(a) for n, a in large(mib, count, given.seed).items()}
                tfckpt.save_file(tensors, folder / name / prefix)
        failures = 0
        print(f"\n{given.mib} MiB in {given.tensors} tensors: MiB of memory at the peak, above the start")
        for name, work in WORKS.items():
            failures += not _report_one(name, work, given, folder, report)
        tensors = {n: torch.from_numpy(a) for n, a in large(given.mib, given.tensors, given.seed).items()}
        _check_files(folder / "full", tensors)
    report.write()
    return 1 if failures else 0


def _report_one(name: str, work: Work, given: argparse.Namespace, folder: Path, report: Report) -> bool:
    """Return whether the work succeeded."""
    allowed = work.allowed(given.mib, given.mib / given.tensors)
    peaks: list[dict[str, float]] = []
    for _ in range(given.rounds):
        command = [sys.executable, __file__, "--work", name, "--folder", str(folder), "--mib", str(given.mib)]
        command += ["--tensors", str(given.tensors), "--seed", str(given.seed)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            print(f"  {name:<44} failed, see above (exit status {done.returncode})", flush=True)
            report.add({"title": name, "failed": done.returncode})
            return False
        peaks.append(json.loads(done.stdout.splitlines()[-1]))
    peak = {key: max(one[key] for one in peaks) for key in peaks[0]}
    met = peak["peak_mib"] <= allowed
    print(
        f"  {name:<44} {peak['peak_mib']:8.1f}  (anonymous {peak['anonymous_mib']:.1f}, started at "
        f"{peak['start_mib']:.0f})  allowed {allowed:.0f}: {'met' if met else 'NOT MET'}",
        flush=True,
    )
    report.add({"title": name, **peak, "allowed_mib": allowed, "met": met})
    return True


def _check_files(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Check the files that the work has written."""
    check_equal(tfckpt.load_file(folder / "saved"), tensors)
    check_equal(tfckpt.load_file(folder / "strided"), {name: tensor.t() for name, tensor in tensors.items()})
    for prefix in ("sharded", "async", "async-small"):
        check_equal(tfckpt.load_file(folder / prefix), tensors)
    if (folder / "converted.safetensors").exists():
        check_equal(safetensors.torch.load_file(folder / "converted.safetensors"), tensors)


# In the measured process.

_kept: list[object] = []  # results stay alive until the peak is read


def _keep(value: object) -> None:
    _kept.append(value)


def _tensors(given: argparse.Namespace) -> dict[str, torch.Tensor]:
    return {n: torch.from_numpy(array) for n, array in large(given.mib, given.tensors, given.seed).items()}


def _measured(given: argparse.Namespace) -> dict[str, float]:
    """Return the peaks of one kind of work in MiB above the start."""
    prepare = WORKS[given.work].run
    small = argparse.Namespace(**{**vars(given), "mib": _WARM_UP_MIB, "tensors": min(given.tensors, _WARM_UP_MIB)})
    prepare(small, given.folder / "warm")()
    _kept.clear()
    work = prepare(given, given.folder / "full")
    sampler = _AnonymousSampler()
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    start = _status()
    sampler.start()
    work()
    peak = _status()["VmHWM"]
    return {
        "peak_mib": peak - start["VmRSS"],
        "anonymous_mib": sampler.stop() - start["RssAnon"],
        "start_mib": start["VmRSS"],
    }


def _status() -> dict[str, float]:
    """Return the memory lines of /proc/self/status in MiB."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) / 1024 for words in lines if words[-1:] == ["kB"]}


class _AnonymousSampler(threading.Thread):
    """Thread that records the highest anonymous memory in its samples."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._ended = threading.Event()
        self._highest = 0.0

    def run(self) -> None:
        while not self._ended.wait(0.002):
            self._highest = max(self._highest, _status()["RssAnon"])

    def stop(self) -> float:
        self._ended.set()
        self.join()
        return max(self._highest, _status()["RssAnon"])


if __name__ == "__main__":
    sys.exit(main())
