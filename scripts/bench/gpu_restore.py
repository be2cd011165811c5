"""How fast is a checkpoint restored into tensors on a GPU?

Setup:    1 GiB in 64 float32 tensors, one shard, in the page cache; the targets hold other values before every run.
Floor:    a copy of the same bytes from pinned host memory.
Compare:  Saver.restore into existing tensors and load_file, verified; safetensors load_file on the device and
          torch.load, which verify nothing and make new tensors.
"""

from collections.abc import Callable
from typing import Any, Final

import safetensors.torch
import torch
from contenders import check_equal, restore_contender, synchronize
from loaders import Files
from settings import NO_GPU, Bench
from timing import Comparison, Contender, timed

import torch_tfckpt as tfckpt

OURS, NEW = "Saver.restore", "load_file(device=)"
SAFETENSORS, TORCH = "safetensors load_file on the device", "torch.load(mmap=True) to the device"
FLOOR: Final = "bare copy from pinned memory"
COMPARISONS: Final = (
    Comparison(OURS, SAFETENSORS, at_least=1.5, floor=FLOOR),
    Comparison(NEW, SAFETENSORS, floor=FLOOR),
    Comparison(OURS, TORCH, floor=FLOOR),
    Comparison(OURS, FLOOR),
)


def run(bench: Bench, device: str = "cuda") -> None:
    """Row "gpu-restore"."""
    work = f"restore {bench.describe()} to {device}"
    if device == "cuda" and not torch.cuda.is_available():
        bench.report.skip_all(work, COMPARISONS, NO_GPU)
        return
    expected = bench.large()
    size = sum(tensor.nbytes for tensor in expected.values())
    targets = {name: torch.ones_like(tensor, device=device) for name, tensor in expected.items()}
    pinned = {name: tensor.pin_memory() if device != "cpu" else tensor for name, tensor in expected.items()}
    saver = tfckpt.Saver(targets)

    def copy() -> None:
        for name, target in targets.items():
            target.copy_(pinned[name], non_blocking=True)

    with bench.scratch() as folder:
        files = Files.write(folder, expected)
        loads: dict[str, Callable[[], dict[str, Any]]] = {
            NEW: lambda: tfckpt.load_file(files.bundle, device=device),
            SAFETENSORS: lambda: safetensors.torch.load_file(files.safetensors, device=device),
            TORCH: lambda: torch.load(files.pt, weights_only=True, mmap=True, map_location=device),
        }

        def loader(name: str) -> Contender:
            def work() -> dict[str, torch.Tensor]:
                values = loads[name]()
                synchronize()
                return {key: value for key, value in values.items() if isinstance(value, torch.Tensor)}

            def measure() -> float:
                seconds, values = timed(work)
                check_equal({key: value.cpu() for key, value in values.items()}, expected)
                return seconds

            return Contender(name, measure, size)

        contenders = [
            restore_contender(OURS, size, lambda: saver.restore(files.bundle), targets, expected),
            *(loader(name) for name in loads),
            restore_contender(FLOOR, size, copy, targets, expected),
        ]
        bench.report.race(work, contenders, COMPARISONS)
