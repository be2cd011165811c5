"""What does it cost to save and restore by objects rather than by names?

Setup:    A list of parameters: 64 float32 matrices of 512 MiB together, and 20,000 vectors of 10 elements. One shard,
          page cache, with fsync.
Floor:    Saver of this package over the same parameters, which visits no objects and writes no graph.
Compare:  tf.train.Checkpoint over a list of variables of the same values, which also reads our files.
"""

from pathlib import Path
from typing import Final, Literal

import torch
from contenders import check_equal
from peers import TensorFlow
from settings import Bench
from timing import Comparison, Contender, timed
from torch import nn
from workload import make

import torch_tfckpt as tfckpt

WRITE, READ = "Checkpoint.write", "Checkpoint.read"
SAVE, RESTORE = "Saver.save", "Saver.restore"
TF_WRITE, TF_READ = "tf.train.Checkpoint.write", "tf.train.Checkpoint.read"
SAVES: Final = (Comparison(WRITE, TF_WRITE, floor=SAVE), Comparison(WRITE, SAVE))
LOADS: Final = (Comparison(READ, TF_READ, floor=RESTORE), Comparison(READ, RESTORE))


class Objects:
    """The parameters, and the objects that save them."""

    def __init__(self, kind: Literal["large", "tiny"], arguments: list[int], folder: Path) -> None:
        arrays = make(kind, arguments)
        self.expected = {str(number): torch.from_numpy(array) for number, array in enumerate(arrays.values())}
        self._layers = nn.ParameterList(tensor.clone() for tensor in self.expected.values())
        self._checkpoint = tfckpt.Checkpoint(layers=self._layers)
        self._saver = tfckpt.Saver(self._layers, max_to_keep=None)
        self.by_object, self.by_name = folder / "objects", folder / "names"

    def write(self) -> float:
        """Time Checkpoint.write."""
        _remove(self.by_object)
        seconds, _ = timed(lambda: self._checkpoint.write(self.by_object))
        self._check_file(self.by_object)
        return seconds

    def save(self) -> float:
        """Time Saver.save."""
        _remove(self.by_name)
        seconds, _ = timed(lambda: self._saver.save(self.by_name, write_meta_graph=False, write_state=False))
        check_equal(tfckpt.load_file(self.by_name), self.expected)
        return seconds

    def read(self) -> float:
        """Time Checkpoint.read with the assertion that everything was restored."""
        self._forget()
        seconds, _ = timed(lambda: self._checkpoint.read(self.by_object).assert_consumed())
        self._check()
        return seconds

    def restore(self) -> float:
        """Time Saver.restore."""
        self._forget()
        seconds, _ = timed(lambda: self._saver.restore(self.by_name))
        self._check()
        return seconds

    def saves(self, tensorflow: TensorFlow | None) -> list[Contender]:
        """Contenders that save."""
        found = [Contender(WRITE, self.write), Contender(SAVE, self.save)]
        if tensorflow is not None:
            theirs = self.by_object.with_name("theirs")

            def write_by_tensorflow() -> float:
                _remove(theirs)
                seconds = tensorflow.call("write_objects", str(theirs))
                self._check_file(theirs)
                return float(seconds)

            found.append(Contender(TF_WRITE, write_by_tensorflow))
        return found

    def loads(self, tensorflow: TensorFlow | None) -> list[Contender]:
        """Contenders that restore the files of `saves`; TensorFlow reads our file, which checks it."""
        found = [Contender(READ, self.read), Contender(RESTORE, self.restore)]
        if tensorflow is not None:
            found.append(Contender(TF_READ, lambda: tensorflow.call("read_objects", str(self.by_object))))
        return found

    def _forget(self) -> None:
        with torch.no_grad():
            for parameter in self._layers:
                parameter.zero_()

    def _check_file(self, prefix: Path) -> None:
        stored = tfckpt.load_file(prefix)
        suffix = "/.ATTRIBUTES/VARIABLE_VALUE"
        check_equal({name: stored[f"layers/{name}{suffix}"] for name in self.expected}, self.expected)

    def _check(self) -> None:
        check_equal({name: tensor.detach() for name, tensor in self._layers.named_parameters()}, self.expected)


def run(bench: Bench) -> None:
    """Row "objects"."""
    mib, count, seed = max(1, bench.sizes.mib // 2), max(1, bench.sizes.tiny // 5), bench.seed
    rounds = bench.sizes.few_rounds
    kinds: dict[str, tuple[Literal["large", "tiny"], list[int]]] = {
        bench.describe(mib): ("large", [mib, bench.sizes.tensors, seed]),
        f"{count:,} tiny tensors": ("tiny", [count, seed]),
    }
    for what, (kind, arguments) in kinds.items():
        with bench.scratch() as folder, bench.tensorflow(kind, *arguments) as tensorflow:
            objects = Objects(kind, arguments, folder)
            bench.report.race(f"save {what} by objects", objects.saves(tensorflow), SAVES, rounds=rounds)
            bench.report.race(f"restore {what} by objects", objects.loads(tensorflow), LOADS, rounds=rounds)


def _remove(prefix: Path) -> None:
    for path in prefix.parent.glob(f"{prefix.name}.*"):
        path.unlink()
