#!/usr/bin/env python3
"""What is the cost per tensor in a checkpoint of a hundred thousand tiny tensors?

Setup:    100,000 float32 tensors of 10 elements, with the names of a deep transformer and its optimizer's slots; one
          shard, page cache, with fsync.
Floor:    none; the time is spent on names, entries and objects.
Compare:  TensorFlow's SaveV2, RestoreV2 (C++, names and dtypes known beforehand), load_checkpoint + get_tensor of every
          name (the usual way in Python), and list_variables; this package in plain Python. Saver, which also tracks
          checkpoints, against save_file and load_file. One Saver saves in all rounds.
Reports:  median and spread of 7 interleaved rounds after a warm-up; ratios within a round. Every save is read back and
          compared, every load compared, before its time counts.
"""

import sys
from contextlib import ExitStack
from pathlib import Path

import torch
from peers import TensorFlow, check_equal, has_tensorflow
from timing import Comparison, Contender, Report, WrongResult, parser, scratch, timed
from workload import tiny

import torch_tfckpt as tfckpt

SAVE, LOAD, LIST = "tfckpt.save_file", "tfckpt.load_file", "tfckpt.list_variables"
SAVER_SAVE, SAVER_RESTORE = "tfckpt.Saver.save without a meta graph", "tfckpt.Saver.restore"
LOOP = "tfckpt.load_checkpoint + get_tensor of every name"
TF_SAVE, TF_LOAD, TF_LIST = "TensorFlow SaveV2", "TensorFlow RestoreV2", "TensorFlow list_variables"
TF_LOOP = "TensorFlow load_checkpoint + get_tensor"


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("--tensors", type=int, default=100_000)
    given = options.parse_args(arguments)
    tensors = {n: torch.from_numpy(array) for n, array in tiny(given.tensors, given.seed).items()}
    report = Report("many_tensors", given)
    with scratch(given.dir) as folder, ExitStack() as stack:
        ours, by_saver, theirs = folder / "ours", folder / "saver", folder / "theirs"
        restored = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        saver, restorer = tfckpt.Saver(tensors), tfckpt.Saver(restored)
        saves = [
            Contender(SAVE, lambda: _save(tensors, ours)),
            Contender(SAVER_SAVE, lambda: _save_by_saver(saver, tensors, by_saver)),
        ]
        loads = [
            Contender(LOAD, lambda: _load(tensors, ours)),
            Contender(SAVER_RESTORE, lambda: _restore(restorer, restored, tensors, ours)),
            Contender(LOOP, lambda: _loop(tensors, ours)),
        ]
        lists = [Contender(LIST, lambda: _list(tensors, ours))]
        if has_tensorflow():
            tensorflow = stack.enter_context(TensorFlow("tiny", given.tensors, given.seed))

            def save_by_tensorflow() -> float:
                _remove(theirs)
                seconds = tensorflow.call("save", str(theirs))
                check_equal(tfckpt.load_file(theirs), tensors)
                return seconds

            saves.append(Contender(TF_SAVE, save_by_tensorflow))
            # TensorFlow reads our file, which checks it.
            loads.append(Contender(TF_LOAD, lambda: tensorflow.call("restore", str(ours))))
            loads.append(Contender(TF_LOOP, lambda: tensorflow.call("get_tensors", str(ours))))
            lists.append(Contender(TF_LIST, lambda: tensorflow.call("list_variables", str(ours))))
        report.run(
            f"save {given.tensors} tensors",
            saves,
            [Comparison(SAVE, TF_SAVE, at_least=1), Comparison(SAVER_SAVE, SAVE)],
        )
        report.run(
            f"load {given.tensors} tensors",
            loads,
            [
                Comparison(LOAD, TF_LOAD, at_least=2),
                Comparison(LOAD, TF_LOOP),
                Comparison(LOOP, TF_LOOP),
                Comparison(SAVER_RESTORE, LOAD),
            ],
        )
        report.run(f"list {given.tensors} tensors", lists, [Comparison(LIST, TF_LIST, at_least=1)])
    report.write()
    return 0


def _save(tensors: dict[str, torch.Tensor], prefix: Path) -> float:
    _remove(prefix)
    seconds, _ = timed(lambda: tfckpt.save_file(tensors, prefix))
    check_equal(tfckpt.load_file(prefix), tensors)
    return seconds


def _save_by_saver(saver: tfckpt.Saver, tensors: dict[str, torch.Tensor], prefix: Path) -> float:
    _remove(prefix)
    seconds, _ = timed(lambda: saver.save(prefix, write_meta_graph=False))
    check_equal(tfckpt.load_file(prefix), tensors)
    return seconds


def _restore(
    saver: tfckpt.Saver, restored: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor], prefix: Path
) -> float:
    for tensor in restored.values():
        tensor.zero_()
    seconds, _ = timed(lambda: saver.restore(prefix))
    check_equal(restored, tensors)
    return seconds


def _load(tensors: dict[str, torch.Tensor], prefix: Path) -> float:
    seconds, values = timed(lambda: tfckpt.load_file(prefix))
    check_equal(values, tensors)
    return seconds


def _loop(tensors: dict[str, torch.Tensor], prefix: Path) -> float:
    def work() -> dict[str, object]:
        with tfckpt.load_checkpoint(prefix) as reader:
            return {name: reader.get_tensor(name) for name in reader}

    seconds, values = timed(work)
    check_equal(values, tensors)
    return seconds


def _list(tensors: dict[str, torch.Tensor], prefix: Path) -> float:
    seconds, listed = timed(lambda: tfckpt.list_variables(prefix))
    if listed != [(name, list(tensor.shape)) for name, tensor in tensors.items()]:
        raise WrongResult("names or shapes differ")
    return seconds


def _remove(prefix: Path) -> None:
    for path in prefix.parent.glob(f"{prefix.name}.*"):
        path.unlink()


if __name__ == "__main__":
    sys.exit(main())
