"""How does the speed depend on the size of the tensors, and on the number of threads?

Setup:    By size: tensors from 4 KiB to the size of the state, 128 MiB of each size, or one tensor. By threads: 512 MiB
          in 64 tensors. Page cache, with fsync.
Compare:  safetensors save_file, torch.save and torch.load. The number of threads is set for this package only.
Reports:  the points of the plots, in GB/s.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import safetensors.torch
import torch
from contenders import check_equal, load_contender, save_contender
from loaders import LOADERS, OURS, TORCH, Files
from report import size_text
from settings import Bench
from timing import Contender, run_interleaved
from workload import sized

import torch_tfckpt as tfckpt
from torch_tfckpt.transfer.pipeline import Pipeline

KIB: Final = 1024
SAVE, SAFETENSORS, TORCH_SAVE = "save_file", "safetensors save_file", "torch.save"
THREADS: Final = (1, 2, 4, 8, 16)


def by_size(bench: Bench) -> None:
    """Row "size": save and load the same bytes in tensors of different sizes."""
    size, largest = 4 * KIB, bench.sizes.mib * KIB**2
    while True:
        size = min(size, largest)
        count = max(1, largest // 8 // size)
        tensors = {name: torch.from_numpy(array) for name, array in sized(size, count, bench.seed).items()}
        with bench.scratch() as folder:
            _measure(bench, "save by size of a tensor", size, _saves(folder, tensors))
        with bench.scratch() as folder:
            files = Files.write(folder, tensors)
            loads = [
                load_contender(name, size * count, partial(LOADERS[name], files), tensors) for name in (OURS, TORCH)
            ]
            _measure(bench, "load by size of a tensor", size, loads)
        if size == largest:
            return
        size *= 16


def by_threads(bench: Bench) -> None:
    """Row "threads": save, load and verify with different numbers of threads."""
    mib = max(1, bench.sizes.mib // 2)
    tensors = bench.large(mib)
    size = sum(tensor.nbytes for tensor in tensors.values())

    def equal(path: Path) -> None:
        check_equal(tfckpt.load_file(path), tensors)

    with bench.scratch() as folder, bench.scratch() as saved:
        prefix = folder / "x"
        tfckpt.save_file(tensors, prefix)

        def checked() -> dict[str, torch.Tensor]:
            with tfckpt.load_checkpoint(prefix) as reader:
                return tensors if len(reader.check().good) == len(tensors) else {}

        contenders = [
            save_contender("save_file", saved, size, lambda path: tfckpt.save_file(tensors, path), equal),
            load_contender("load_file", size, lambda: tfckpt.load_file(prefix), tensors),
            load_contender("reader.check()", size, checked, tensors),
        ]
        for threads in THREADS:
            with _threads(threads):
                _measure(bench, "by threads", threads, contenders)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let readers and writers that are created meanwhile use `count` threads; they have no option for that."""
    before = Pipeline.__init__.__defaults__
    Pipeline.__init__.__defaults__ = (count,)
    try:
        yield
    finally:
        Pipeline.__init__.__defaults__ = before


def _saves(folder: Path, tensors: dict[str, torch.Tensor]) -> list[Contender]:
    size = sum(tensor.nbytes for tensor in tensors.values())

    ways: dict[str, tuple[Callable[[Path], object], Callable[[Path], Mapping[str, object]]]] = {
        SAVE: (lambda path: tfckpt.save_file(tensors, path), tfckpt.load_file),
        SAFETENSORS: (lambda path: safetensors.torch.save_file(tensors, path), safetensors.torch.load_file),
        TORCH_SAVE: (lambda path: torch.save(tensors, path), lambda path: torch.load(path, weights_only=True)),
    }

    def contender(name: str) -> Contender:
        save, load = ways[name]
        return save_contender(name, folder, size, save, lambda path: check_equal(load(path), tensors))

    return [contender(name) for name in ways]


def _measure(bench: Bench, curve: str, at: int, contenders: list[Contender]) -> None:
    seconds = run_interleaved(contenders, bench.sizes.few_rounds)
    sizes = {contender.name: contender.bytes_moved for contender in contenders}
    speeds = {name: [sizes[name] / each / 1e9 for each in taken] for name, taken in seconds.items()}
    bench.report.point(curve, at, speeds)
    label = size_text(at / KIB**2) if "size" in curve else str(at)
    print(f"  {curve}, {label}: " + ", ".join(f"{name} {max(each):.2f} GB/s" for name, each in speeds.items()))
