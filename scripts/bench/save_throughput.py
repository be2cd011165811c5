#!/usr/bin/env python3
"""How fast are tensors saved to a checkpoint that is checksummed, durable and published atomically?

Setup:    1 GiB in 64 float32 tensors, one shard; every run writes new files, removed before the next one.
Floor:    pwrite of one prefilled buffer, the same bytes, chunks and threads (no tensors, no checksum), with fsync and
          without.
Compare:  TensorFlow's SaveV2 (checksums, no fsync); safetensors save_file and torch.save (neither); this package with
          fsync, and without it, for a comparison with the others.
Reports:  median and spread of 7 interleaved rounds after a warm-up; GB/s; ratios within a round. Every run is read back
          and compared before its time counts; TensorFlow also restores our last checkpoint and compares it.
"""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import safetensors.torch
import torch
from peers import TensorFlow, UnsyncedStorage, check_equal, has_tensorflow, write_floor
from timing import Comparison, Contender, Report, parser, scratch, timed
from workload import large

import torch_tfckpt as tfckpt
from torch_tfckpt.bundle.writer import BundleWriter

OURS, UNSYNCED = "tfckpt.save_file (fsync)", "tfckpt, no fsync"
TENSORFLOW, SAFETENSORS, TORCH = "TensorFlow SaveV2", "safetensors save_file", "torch.save"
FLOOR, UNSYNCED_FLOOR = "floor: pwrite + fsync", "floor: pwrite"
COMPARISONS = (
    Comparison(UNSYNCED, TENSORFLOW, at_least=3),
    Comparison(UNSYNCED, SAFETENSORS, at_least=1),
    Comparison(UNSYNCED, TORCH),
    Comparison(UNSYNCED, UNSYNCED_FLOOR),
    Comparison(OURS, TENSORFLOW),
    Comparison(OURS, SAFETENSORS),
    Comparison(OURS, FLOOR),
)


def save_unsynced(tensors: dict[str, torch.Tensor], prefix: str) -> None:
    """Run save_file on a storage that does not sync."""
    with BundleWriter(UnsyncedStorage(), prefix) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)


def contender(
    name: str, folder: Path, size: int, save: Callable[[Path], object], check: Callable[[Path], object]
) -> Contender:
    """Save under a path in `folder`, check what was written, and remove it."""

    def measure() -> float:
        seconds, _ = timed(lambda: save(folder / "x"))
        check(folder / "x")
        for path in folder.iterdir():
            path.unlink()
        return seconds

    return Contender(name, measure, size)


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("--mib", type=int, default=1024)
    options.add_argument("--tensors", type=int, default=64)
    given = options.parse_args(arguments)
    tensors = {n: torch.from_numpy(array) for n, array in large(given.mib, given.tensors, given.seed).items()}
    size = sum(tensor.nbytes for tensor in tensors.values())
    report = Report("save_throughput", given)
    with scratch(given.dir) as folder, ExitStack() as stack:

        def check_bundle(path: Path) -> None:
            check_equal(tfckpt.load_file(path), tensors)

        def check_size(path: Path) -> None:
            assert path.stat().st_size == size

        contenders = [
            contender(OURS, folder, size, lambda path: tfckpt.save_file(tensors, path), check_bundle),
            contender(UNSYNCED, folder, size, lambda path: save_unsynced(tensors, str(path)), check_bundle),
            contender(
                SAFETENSORS, folder, size, lambda path: safetensors.torch.save_file(tensors, path),
                lambda path: check_equal(safetensors.torch.load_file(path), tensors),
            ),
            contender(
                TORCH, folder, size, lambda path: torch.save(tensors, path),
                lambda path: check_equal(torch.load(path, weights_only=True), tensors),
            ),
            contender(FLOOR, folder, size, lambda path: write_floor(path, size, sync=True), check_size),
            contender(UNSYNCED_FLOOR, folder, size, lambda path: write_floor(path, size, sync=False), check_size),
        ]  # fmt: skip
        if has_tensorflow():
            tensorflow = stack.enter_context(TensorFlow("large", given.mib, given.tensors, given.seed))
            prefix = folder / "x"

            def save_by_tensorflow() -> float:
                seconds = tensorflow.call("save", str(prefix))
                check_bundle(prefix)
                for path in folder.iterdir():
                    path.unlink()
                return seconds

            contenders.insert(2, Contender(TENSORFLOW, save_by_tensorflow, size))
        report.run(f"save {given.mib} MiB in {given.tensors} tensors", contenders, COMPARISONS)
        if has_tensorflow():
            tensorflow.call("restore", tfckpt.save_file(tensors, prefix))
    report.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
