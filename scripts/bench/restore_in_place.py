"""How fast is a checkpoint restored into existing tensors, such as the parameters of a model?

Setup:    1 GiB in 64 float32 tensors, one shard, in the page cache. The targets are in memory that is in use, and hold
          other values before every run.
Floor:    preadv of the same bytes into memory in use, same chunks and threads. For a restore that verifies everything
          before it changes anything: two such reads with checksums, into a small buffer and into memory in use.
Compare:  Saver.restore, which verifies everything before it changes the first target, and without verifying;
          torch.load(mmap=True) and safetensors load_file, each followed by copy_, which verify nothing.
"""

from collections.abc import Callable
from typing import Final

import safetensors.torch
import torch
from contenders import restore_contender
from floors import checked_read_floor, read_floor
from loaders import Files
from settings import Bench
from timing import Comparison, Contender, WrongResult, timed

import torch_tfckpt as tfckpt
from torch_tfckpt.transfer.host_bytes import byte_view

OURS, UNVERIFIED = "Saver.restore", "Saver.restore(verify=False)"
TORCH, SAFETENSORS = "torch.load(mmap=True) and copy_", "safetensors load_file and copy_"
FLOOR: Final = "bare preadv into memory in use"
TWICE: Final = "bare preadv with checksums, twice"
COMPARISONS: Final = (
    Comparison(OURS, TORCH, at_least=0.6, floor=TWICE),
    Comparison(UNVERIFIED, TORCH, at_least=1, floor=FLOOR),
    Comparison(OURS, SAFETENSORS, floor=TWICE),
    Comparison(OURS, TWICE),
    Comparison(UNVERIFIED, FLOOR),
)


def run(bench: Bench) -> None:
    """Row "restore"."""
    tensors = bench.large()
    size = sum(tensor.nbytes for tensor in tensors.values())
    targets = {name: torch.ones_like(tensor) for name, tensor in tensors.items()}
    in_use = torch.ones(size, dtype=torch.uint8)
    saver = tfckpt.Saver(targets)
    with bench.scratch() as folder:
        files = Files.write(folder, tensors)

        def copy_from(values: dict[str, torch.Tensor]) -> None:
            for name, target in targets.items():
                target.copy_(values[name])

        def bare(name: str, read: Callable[[], object]) -> Contender:
            def measure() -> float:
                in_use.zero_()
                seconds, _ = timed(read)
                if not torch.equal(in_use, torch.from_file(str(files.data), size=size, dtype=torch.uint8)):
                    raise WrongResult(f"{name}: the bytes differ")
                return seconds

            return Contender(name, measure, size)

        def read_twice() -> None:
            if checked_read_floor(files.data) != checked_read_floor(files.data, byte_view(in_use)):
                raise WrongResult(f"{TWICE}: the checksums differ")

        ways = {
            OURS: lambda: saver.restore(files.bundle),
            UNVERIFIED: lambda: saver.restore(files.bundle, verify=False),
            TORCH: lambda: copy_from(torch.load(files.pt, weights_only=True, mmap=True)),
            SAFETENSORS: lambda: copy_from(safetensors.torch.load_file(files.safetensors)),
        }
        contenders = [restore_contender(name, size, way, targets, tensors) for name, way in ways.items()]
        contenders.append(bare(FLOOR, lambda: read_floor(files.data, byte_view(in_use))))
        contenders.append(bare(TWICE, read_twice))
        bench.report.race(f"restore {bench.describe()} into existing tensors", contenders, COMPARISONS)
