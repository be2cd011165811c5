#!/usr/bin/env python3
"""What does it cost to save and restore by objects rather than by names?

Setup:    A list of parameters: 64 float32 matrices of 512 MiB together, and 20,000 vectors of 10 elements. One shard,
          page cache, with fsync.
Floor:    Saver of this package over the same parameters, which visits no objects and writes no graph.
Compare:  tf.train.Checkpoint over a list of variables of the same values, which also reads our files.
Reports:  median and spread of 7 interleaved rounds after a warm-up; ratios within a round. Every save is read back and
          compared, every restore compared, before its time counts.
"""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import torch
from peers import TensorFlow, check_equal, has_tensorflow
from timing import Comparison, Contender, Report, parser, scratch, timed
from torch import nn
from workload import make

import torch_tfckpt as tfckpt

WRITE, READ = "tfckpt.Checkpoint.write", "tfckpt.Checkpoint.read"
SAVE, RESTORE = "tfckpt.Saver.save", "tfckpt.Saver.restore"
TF_WRITE, TF_READ = "tf.train.Checkpoint.write", "tf.train.Checkpoint.read"


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
        remove(self.by_object)
        seconds, _ = timed(lambda: self._checkpoint.write(self.by_object))
        stored = tfckpt.load_file(self.by_object)
        suffix = "/.ATTRIBUTES/VARIABLE_VALUE"
        check_equal({name: stored[f"layers/{name}{suffix}"] for name in self.expected}, self.expected)
        return seconds

    def save(self) -> float:
        """Time Saver.save."""
        remove(self.by_name)
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

    def _forget(self) -> None:
        with torch.no_grad():
            for parameter in self._layers:
                parameter.zero_()

    def _check(self) -> None:
        check_equal({name: tensor.detach() for name, tensor in self._layers.named_parameters()}, self.expected)


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("--mib", type=int, default=512)
    options.add_argument("--tensors", type=int, default=20_000)
    given = options.parse_args(arguments)
    report = Report("object_checkpoints", given)
    kinds: dict[str, tuple[Literal["large", "tiny"], list[int]]] = {
        f"64 tensors, {given.mib} MiB": ("large", [given.mib, 64, given.seed]),
        f"{given.tensors} tensors": ("tiny", [given.tensors, given.seed]),
    }
    for title, (kind, sizes) in kinds.items():
        with scratch(given.dir) as folder, ExitStack() as stack:
            compare(report, title, Objects(kind, sizes, folder), kind, sizes, folder, stack)
    report.write()
    return 0


def compare(
    report: Report, title: str, ours: Objects, kind: str, sizes: list[int], folder: Path, stack: ExitStack
) -> None:
    """Report both tables of one workload."""
    saves, loads = (
        [Contender(WRITE, ours.write), Contender(SAVE, ours.save)],
        [
            Contender(READ, ours.read),
            Contender(RESTORE, ours.restore),
        ],
    )
    if has_tensorflow():
        tensorflow = stack.enter_context(TensorFlow(kind, *sizes))
        theirs = folder / "theirs"

        def write_by_tensorflow() -> float:
            remove(theirs)
            return tensorflow.call("write_objects", str(theirs))

        saves.append(Contender(TF_WRITE, write_by_tensorflow))
        # TensorFlow reads our file, which checks it.
        loads.append(Contender(TF_READ, lambda: tensorflow.call("read_objects", str(ours.by_object))))
    report.run(f"save {title}", saves, [Comparison(WRITE, SAVE), Comparison(WRITE, TF_WRITE)])
    report.run(f"restore {title}", loads, [Comparison(READ, RESTORE), Comparison(READ, TF_READ)])


def remove(prefix: Path) -> None:
    for path in prefix.parent.glob(f"{prefix.name}.*"):
        path.unlink()


if __name__ == "__main__":
    sys.exit(main())
