"""How much memory does each kind of work take in addition to the memory in use before it?

Setup:    1 GiB in 64 float32 tensors, one shard except for several devices; 2 GiB to restore in place. Each kind of
          work in its own process. The peak is reset (Linux: /proc/self/clear_refs) after packages are imported, the
          tensors to save and to restore into are created, and a small checkpoint was processed, so that threads and
          lazily loaded code are not counted.
Floor:    the memory of the result: the tensors for a load, otherwise nothing.
Compare:  with the limits of the design: one chunk per thread, 256 MiB, another tensor if one must be copied; the
          buffers of an asynchronous save, which hold the whole state if it fits; 64 MiB to restore in place; 1.1 times
          the checkpoint for a module on the meta device.
Reports:  MiB of the peak of resident memory above its start. The JSON also has its anonymous part, sampled every 2 ms.
          Results are compared with the saved values.
"""

import contextlib
import importlib
import io
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import fresh
import safetensors.torch
import timing
import torch
from contenders import check_equal
from settings import NO_GPU, Bench
from timing import WrongResult
from torch import nn
from workload import large

import torch_tfckpt as tfckpt

T = TypeVar("T")

CONSTANT_MIB: Final = 256
IN_PLACE_MIB: Final = 64
SMALL_MIB: Final = 64  # buffers of one of the asynchronous saves
ASYNC_MIB: Final = tfckpt.StagingOptions().async_bytes // 2**20
_WARM_UP_MIB: Final = 8


class Given(NamedTuple):
    """The files and tensors of one measurement: prefix "many" has all tensors, prefix "one" a single one."""

    folder: Path
    mib: int
    number: int
    seed: int

    def tensors(self) -> dict[str, torch.Tensor]:
        return {n: torch.from_numpy(array) for n, array in large(self.mib, self.number, self.seed).items()}


class Job(NamedTuple):
    """What is measured, and the check of its result afterwards."""

    work: Callable[[], Any]
    check: Callable[[Any], None]


class Work(NamedTuple):
    """One kind of work, and its limit in MiB for `mib` MiB whose largest tensor has `largest` MiB."""

    prepare: Callable[[Given], Job]
    allowed: Callable[[float, float], float]
    states: int = 1  # how many times the size of the state is processed
    result: bool = False  # whether the result is new memory of the size of the state: the floor
    cuda: bool = False


def loaded(given: Given, **options: Any) -> Job:
    return Job(
        lambda: tfckpt.load_file(given.folder / "many", **options), lambda found: check_equal(found, given.tensors())
    )


def verified(given: Given) -> Job:
    def work() -> tuple[int, int]:
        with tfckpt.load_checkpoint(given.folder / "many") as reader:
            found = reader.check()
            return len(found.good), len(found.damage)

    def check(found: tuple[int, int]) -> None:
        if found != (given.number, 0):
            raise WrongResult(f"(good, damaged): {found}")

    return Job(work, check)


def converted(given: Given) -> Job:
    command = importlib.import_module("torch_tfckpt.cli.main")
    target = given.folder / "converted.safetensors"
    target.unlink(missing_ok=True)

    def work() -> int:
        with contextlib.redirect_stdout(io.StringIO()):
            return int(command.main(["convert", str(given.folder / "many"), str(target)]))

    def check(status: int) -> None:
        if status:
            raise WrongResult("tfckpt convert failed")
        check_equal(safetensors.torch.load_file(target), given.tensors())

    return Job(work, check)


def saved(given: Given) -> Job:
    tensors = given.tensors()
    return _saved(given, lambda prefix: tfckpt.save_file(tensors, prefix))


def saved_strided(given: Given) -> Job:
    tensors = {name: tensor.t() for name, tensor in given.tensors().items()}

    def check(prefix: str) -> None:
        check_equal({name: tensor.t() for name, tensor in _values(prefix).items()}, given.tensors())

    return Job(lambda: tfckpt.save_file(tensors, given.folder / "saved"), check)


def saved_by_saver(given: Given, *, device: str = "") -> Job:
    saver = tfckpt.Saver(_on_devices(given.tensors(), device), sharded=True)
    return _saved(given, lambda prefix: saver.save(prefix))


def saved_async(given: Given, *, staging: tfckpt.StagingOptions | None = None) -> Job:
    saver = tfckpt.Saver(_on_devices(given.tensors()), sharded=True, staging=staging)
    return _saved(given, lambda prefix: saver.save_async(prefix).result())


def _saved(given: Given, save: Callable[[Path], object]) -> Job:
    return Job(
        lambda: save(given.folder / "saved"),
        lambda _: check_equal(tfckpt.load_file(given.folder / "saved"), given.tensors()),
    )


def restored(given: Given, *, verify: bool = True, sequentially: bool = False) -> Job:
    """Restore into existing tensors, like the parameters of a model."""
    # Filled with ones: pages of zeros would not be in memory before they are written to.
    targets = {name: torch.ones_like(tensor) for name, tensor in given.tensors().items()}
    saver = tfckpt.Saver(targets, restore_sequentially=sequentially)
    return Job(
        lambda: saver.restore(given.folder / "many", verify=verify), lambda _: check_equal(targets, given.tensors())
    )


def model_loaded(given: Given, *, assign: bool) -> Job:
    """Load into a torch module: all its kernels are transposed."""
    with torch.device("meta" if assign else "cpu"):
        layers = {
            name.split("/")[1]: nn.ModuleDict({"dense": nn.Linear(tensor.shape[0], tensor.shape[1], bias=False)})
            for name, tensor in given.tensors().items()
        }
    model = nn.ModuleDict({"encoder": nn.ModuleDict(layers)})

    def check(_: object) -> None:
        found = {
            name.replace(".", "/").replace("weight", "kernel"): tensor.detach().t()
            for name, tensor in model.named_parameters()
        }
        check_equal(found, given.tensors())

    return Job(lambda: tfckpt.load_model(model, given.folder / "many", assign=assign), check)


def slice_of_one(given: Given) -> Job:
    def work() -> torch.Tensor:
        with tfckpt.load_checkpoint(given.folder / "one") as reader:
            [name] = reader.keys()
            found = reader.get_slice(name)[2:5]
            assert isinstance(found, torch.Tensor)
            return found

    def check(found: torch.Tensor) -> None:
        [expected] = given._replace(number=1).tensors().values()
        check_equal({"": found}, {"": expected[2:5]})

    return Job(work, check)


def _on_devices(tensors: dict[str, torch.Tensor], device: str = "") -> dict[str, tfckpt.Variable]:
    """Return the tensors on a device; by default in four groups, as if on four devices."""
    return {
        name: tfckpt.Variable(tensor.to(device or "cpu"), name, device=f"/cpu:{number % 4}" if not device else "/gpu:0")
        for number, (name, tensor) in enumerate(tensors.items())
    }


def _values(prefix: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in tfckpt.load_file(prefix).items() if isinstance(value, torch.Tensor)}


def _constant(mib: float, largest: float) -> float:
    return CONSTANT_MIB + largest


WORKS: Final[dict[str, Work]] = {
    "load_file": Work(loaded, lambda mib, largest: mib + 64, result=True),
    "load_file(mmap=True, verify=False)": Work(
        partial(loaded, mmap=True, verify=False), lambda mib, largest: CONSTANT_MIB
    ),
    "reader.check()": Work(verified, _constant),
    "tfckpt convert to safetensors": Work(converted, _constant),
    "save_file": Work(saved, _constant),
    "save_file of transposed tensors": Work(saved_strided, _constant),
    "Saver.save, 4 devices": Work(saved_by_saver, _constant),
    "Saver.save from a GPU": Work(partial(saved_by_saver, device="cuda"), _constant, cuda=True),
    "Saver.save_async, 4 devices": Work(saved_async, lambda mib, largest: min(mib, ASYNC_MIB) + CONSTANT_MIB),
    "the same, async_bytes 64 MiB": Work(
        partial(saved_async, staging=tfckpt.StagingOptions(async_bytes=SMALL_MIB * 2**20)),
        lambda mib, largest: SMALL_MIB + CONSTANT_MIB,
    ),
    "Saver.restore": Work(restored, lambda mib, largest: IN_PLACE_MIB, states=2),
    "Saver.restore(verify=False)": Work(partial(restored, verify=False), lambda mib, largest: IN_PLACE_MIB, states=2),
    "Saver(restore_sequentially=True).restore": Work(partial(restored, sequentially=True), _constant),
    "load_model(assign=True) of a module on the meta device": Work(
        partial(model_loaded, assign=True), lambda mib, largest: 1.1 * mib, result=True
    ),
    "load_model into existing parameters": Work(
        partial(model_loaded, assign=False), lambda mib, largest: IN_PLACE_MIB + largest
    ),
    "get_slice of one tensor that is all of it": Work(slice_of_one, lambda mib, largest: CONSTANT_MIB),
}


def run(bench: Bench) -> None:
    """Row "memory"."""
    count = bench.sizes.tensors
    with bench.scratch() as folder:
        sizes = {_WARM_UP_MIB, bench.sizes.mib, 2 * bench.sizes.mib}
        for mib in sizes:
            for prefix, number in (("many", count), ("one", 1)):
                tfckpt.save_file(bench.large(mib, number), folder / str(mib) / prefix)
        for name, work in WORKS.items():
            mib = work.states * bench.sizes.mib
            what, allowed = f"memory for {bench.describe(mib)}", work.allowed(mib, mib / count)
            if work.cuda and not torch.cuda.is_available():
                bench.report.skip(what, name, "its limit", NO_GPU)
                continue
            peak = fresh.call("peak_memory.measured", name, str(folder), mib, count, bench.seed)
            bench.report.measure(
                what,
                name,
                [peak["peak_mib"]],
                "MiB",
                at_most=allowed,
                against="its limit",
                floor=("the result itself", mib) if work.result else None,
            )
            bench.report.keep({"memory": name, "mib": mib, **peak})


# In the measured process.


def measured(name: str, folder: str, mib: int, count: int, seed: int) -> dict[str, float]:
    """Return the peaks of one kind of work in MiB above the start."""
    prepare = WORKS[name].prepare
    small = Given(Path(folder) / str(_WARM_UP_MIB), _WARM_UP_MIB, count, seed)
    warm_up = prepare(small)
    warm_up.check(warm_up.work())
    del warm_up
    job = prepare(Given(Path(folder) / str(mib), mib, count, seed))
    result, peak = peak_above_start(job.work)
    job.check(result)
    return peak


def peak_above_start(work: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """Return the result of `work`, and the peaks of this process in MiB above the start."""
    timing.give_back_memory()
    sampler = _AnonymousSampler()
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    start = _status()
    sampler.start()
    result = work()
    peak = _status()["VmHWM"]
    return result, {
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
