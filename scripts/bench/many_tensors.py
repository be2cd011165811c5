"""What is the cost per tensor in a checkpoint of a hundred thousand tiny tensors, and of a million?

Setup:    100,000 float32 tensors of 10 elements, with the names of a deep transformer and its optimizer's slots; one
          shard, page cache, with fsync. By number: from 10 to 1,000,000 tensors, each number in its own processes.
Floor:    none; the time is spent on names, entries and objects.
Compare:  TensorFlow's SaveV2, RestoreV2 (C++, names and dtypes known beforehand) and list_variables; this package in
          plain Python. Saver, which also tracks checkpoints, against save_file and load_file. One Saver saves in all
          rounds. The cost per tensor of a million against that of 100,000.
"""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Final

import fresh
import torch
from contenders import check_equal, load_contender, restore_contender
from peers import TensorFlow
from settings import Bench
from timing import Comparison, Contender, WrongResult, timed
from workload import tiny

import torch_tfckpt as tfckpt

SAVE, LOAD, LIST = "save_file", "load_file", "list_variables"
SAVER_SAVE, SAVER_RESTORE = "Saver.save(write_meta_graph=False)", "Saver.restore"
TF_SAVE, TF_LOAD, TF_LIST = "TensorFlow SaveV2", "TensorFlow RestoreV2", "TensorFlow list_variables"
SAVES: Final = (Comparison(SAVE, TF_SAVE, at_least=0.6, aim=1), Comparison(SAVER_SAVE, SAVE, at_least=0.75))
LOADS: Final = (
    Comparison(LOAD, TF_LOAD, at_least=1.5, aim=2),
    Comparison(SAVER_RESTORE, LOAD, at_least=0.75),
)
LISTS: Final = (Comparison(LIST, TF_LIST, at_least=1, aim=1.5),)
LINEAR: Final = 0.8  # the speed per tensor of the largest number, to that of a tenth of it


class Tiny:
    """The tensors, and all that saves, loads and lists them."""

    def __init__(self, tensors: dict[str, torch.Tensor], folder: Path) -> None:
        self._tensors = tensors
        self._restored = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        self._folder = folder
        self._ours = folder / "ours"

    def saves(self, tensorflow: TensorFlow | None) -> list[Contender]:
        """Contenders that save; the files of the first one stay for loads."""
        saver, by_saver, theirs = tfckpt.Saver(self._tensors), self._folder / "saver", self._folder / "theirs"
        found = [
            self._save(SAVE, self._ours, lambda: tfckpt.save_file(self._tensors, self._ours)),
            self._save(SAVER_SAVE, by_saver, lambda: saver.save(by_saver, write_meta_graph=False)),
        ]
        if tensorflow is not None:
            found.append(self._save(TF_SAVE, theirs, seconds_by=lambda: tensorflow.call("save", str(theirs))))
        return found

    def loads(self, tensorflow: TensorFlow | None) -> list[Contender]:
        """Contenders that load the file of `saves`; TensorFlow reads our file, too, which checks it."""
        restorer = tfckpt.Saver(self._restored)
        found = [
            load_contender(LOAD, 0, lambda: tfckpt.load_file(self._ours), self._tensors),
            restore_contender(SAVER_RESTORE, 0, lambda: restorer.restore(self._ours), self._restored, self._tensors),
        ]
        if tensorflow is not None:
            found.append(Contender(TF_LOAD, lambda: tensorflow.call("restore", str(self._ours))))
        return found

    def lists(self, tensorflow: TensorFlow | None) -> list[Contender]:
        """Contenders that list names and shapes."""

        def measure() -> float:
            seconds, listed = timed(lambda: tfckpt.list_variables(self._ours))
            if listed != [(name, list(tensor.shape)) for name, tensor in self._tensors.items()]:
                raise WrongResult("names or shapes differ")
            return seconds

        found = [Contender(LIST, measure)]
        if tensorflow is not None:
            found.append(Contender(TF_LIST, lambda: tensorflow.call("list_variables", str(self._ours))))
        return found

    def _save(
        self,
        name: str,
        prefix: Path,
        save: Callable[[], object] = lambda: None,
        *,
        seconds_by: Callable[[], float] | None = None,
    ) -> Contender:
        def measure() -> float:
            for path in prefix.parent.glob(f"{prefix.name}.*"):
                path.unlink()
            seconds = timed(save)[0] if seconds_by is None else seconds_by()
            check_equal(tfckpt.load_file(prefix), self._tensors)
            return seconds

        return Contender(name, measure)


def run(bench: Bench) -> None:
    """Row "tiny"."""
    count = bench.sizes.tiny
    with bench.scratch() as folder, bench.tensorflow("tiny", count, bench.seed) as tensorflow:
        work = Tiny(bench.tiny(), folder)
        races = ("save", work.saves, SAVES), ("load", work.loads, LOADS), ("list", work.lists, LISTS)
        for verb, contenders, comparisons in races:
            what = f"{verb} {count:,} tiny tensors"
            bench.report.race(what, contenders(tensorflow), comparisons, rounds=bench.sizes.few_rounds)


def by_number(bench: Bench) -> None:
    """Row "number": the seconds per tensor, up to ten times as many tensors as in row "tiny"."""
    most = 10 * bench.sizes.tiny
    counts = [most // 10**power for power in range(6, -1, -1) if most // 10**power >= 10]
    per_tensor: dict[str, list[float]] = {}
    with bench.scratch() as folder:
        for count in counts:
            found = fresh.call("many_tensors.measured", count, bench.seed, str(folder))
            per_tensor.update(
                {f"{name} of {count:,} tensors": [s / count for s in taken] for name, taken in found.items()}
            )
    for count in counts:
        values = {name: per_tensor[f"{name} of {count:,} tensors"] for name in (SAVE, LOAD)}
        bench.report.point("by number of tensors", count, {n: [1e6 * s for s in v] for n, v in values.items()})
        print(f"  {count:>9,}: " + ", ".join(f"{n} {1e6 * statistics.median(v):.1f} us" for n, v in values.items()))
    for name in (SAVE, LOAD):
        ours, peer = (f"{name} of {count:,} tensors" for count in (most, most // 10))
        few = min(len(per_tensor[ours]), len(per_tensor[peer]))
        pairs = {each: per_tensor[each][:few] for each in (ours, peer)}
        bench.report.compare("speed per tensor", Comparison(ours, peer, at_least=LINEAR), pairs)


def measured(count: int, seed: int, folder: str) -> dict[str, list[float]]:
    """Return the seconds of saves and loads of `count` tensors in this process: two, or more if they are short."""
    prefix = Path(folder) / "x"
    tensors = {name: torch.from_numpy(array) for name, array in tiny(count, seed).items()}
    few = {name: tensors[name] for name in list(tensors)[:10]}
    found: dict[str, list[float]] = {SAVE: [], LOAD: []}
    tfckpt.load_file(tfckpt.save_file(few, prefix))  # starts what only the first call starts
    for _ in range(max(2, min(100, 10_000 // count))):
        found[SAVE].append(timed(lambda: tfckpt.save_file(tensors, prefix))[0])
        seconds, values = timed(lambda: tfckpt.load_file(prefix))
        check_equal(values, tensors)
        found[LOAD].append(seconds)
        del values
    return found
