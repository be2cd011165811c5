"""How fast are tensors saved to a checkpoint that is checksummed, durable and published atomically?

Setup:    1 GiB in 64 float32 tensors, one shard; every run writes new files, removed before the next one.
Floor:    pwrite of one prefilled buffer, the same bytes, chunks and threads (no tensors, no checksum), with fsync and
          without.
Compare:  TensorFlow's SaveV2 (checksums, no fsync); safetensors save_file and torch.save (neither); this package with
          fsync, and without it, for a comparison with the others. TensorFlow also restores our last checkpoint and
          compares it.
"""

from functools import partial
from pathlib import Path
from typing import Final

import safetensors.torch
import torch
from contenders import UnsyncedStorage, check_equal, empty, save_contender
from floors import write_floor
from settings import Bench
from timing import Comparison, Contender, WrongResult

import torch_tfckpt as tfckpt

OURS, UNSYNCED = "save_file, synced", "save_file, not synced"
TENSORFLOW, SAFETENSORS, TORCH = "TensorFlow SaveV2", "safetensors save_file", "torch.save"
FLOOR, UNSYNCED_FLOOR = "bare pwrite and fsync", "bare pwrite"
COMPARISONS: Final = (
    Comparison(UNSYNCED, SAFETENSORS, at_least=1, floor=UNSYNCED_FLOOR),
    Comparison(UNSYNCED, TENSORFLOW, at_least=2, floor=UNSYNCED_FLOOR),
    Comparison(UNSYNCED, TORCH, floor=UNSYNCED_FLOOR),
    Comparison(OURS, FLOOR, at_least=0.95),
    Comparison(OURS, SAFETENSORS, floor=FLOOR),
    Comparison(OURS, TENSORFLOW, floor=FLOOR),
)


def run(bench: Bench) -> None:
    """Row "save"."""
    tensors = bench.large()
    size = sum(tensor.nbytes for tensor in tensors.values())
    with (
        bench.scratch() as folder,
        bench.tensorflow("large", bench.sizes.mib, bench.sizes.tensors, bench.seed) as tensorflow,
    ):
        contenders = _contenders(tensors, size, folder)
        if tensorflow is not None:

            def save_by_tensorflow() -> float:
                seconds = tensorflow.call("save", str(folder / "x"))
                check_equal(tfckpt.load_file(folder / "x"), tensors)
                empty(folder)
                return float(seconds)

            contenders.append(Contender(TENSORFLOW, save_by_tensorflow, size))
        bench.report.race(f"save {bench.describe()}", contenders, COMPARISONS)
        if tensorflow is not None:
            tensorflow.call("restore", tfckpt.save_file(tensors, folder / "x"))


def _contenders(tensors: dict[str, torch.Tensor], size: int, folder: Path) -> list[Contender]:
    contender = partial(save_contender, folder=folder, size=size)

    def save_unsynced(path: Path) -> None:
        tfckpt.save_file(tensors, path, storage=UnsyncedStorage())

    def check_bundle(path: Path) -> None:
        check_equal(tfckpt.load_file(path), tensors)

    def check_size(path: Path) -> None:
        if path.stat().st_size != size:
            raise WrongResult(f"{path.stat().st_size} bytes instead of {size}")

    return [
        contender(OURS, save=lambda path: tfckpt.save_file(tensors, path), check=check_bundle),
        contender(UNSYNCED, save=save_unsynced, check=check_bundle),
        contender(
            SAFETENSORS, save=lambda path: safetensors.torch.save_file(tensors, path),
            check=lambda path: check_equal(safetensors.torch.load_file(path), tensors),
        ),
        contender(
            TORCH, save=lambda path: torch.save(tensors, path),
            check=lambda path: check_equal(torch.load(path, weights_only=True), tensors),
        ),
        contender(FLOOR, save=lambda path: write_floor(path, size, sync=True), check=check_size),
        contender(UNSYNCED_FLOOR, save=lambda path: write_floor(path, size, sync=False), check=check_size),
    ]  # fmt: skip
