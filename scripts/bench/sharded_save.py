"""How fast is a save of a state on several devices, with one file each?

Setup:    512 MiB in 64 float32 tensors, in four groups with one data file each. Row "sharded": tensors of the host with
          the names of four devices. Row "gpu-save": the whole state, spread over the GPUs. Every run writes new files,
          removed before the next one.
Floor:    pwrite of one prefilled buffer, the same bytes, number of files, chunks and threads (no tensors, no checksum),
          with fsync and without.
Compare:  Saver with a file for each device, with fsync, state file and meta graph; Saver without these three, for a
          comparison with torch.save and safetensors save_file; torch.distributed.checkpoint (FileSystemWriter, four
          threads with a file each, a single process) with fsync, its default, and without.
"""

from functools import partial
from pathlib import Path
from typing import Final

import safetensors.torch
import torch
from contenders import UnsyncedStorage, check_equal, save_contender
from dcp import load_by_dcp, save_by_dcp
from floors import write_floor_in_files
from settings import NO_GPU, Bench
from timing import Comparison, Contender, WrongResult

import torch_tfckpt as tfckpt

GROUPS: Final = 4
OURS, UNSYNCED = "Saver(sharded=True).save, synced", "Saver(sharded=True).save, not synced"
DCP, DCP_UNSYNCED = "DCP save, synced", "DCP save, not synced"
TORCH, SAFETENSORS = "torch.save", "safetensors save_file"
FLOOR, UNSYNCED_FLOOR = "bare pwrite and fsync, 4 files", "bare pwrite, 4 files"
HOST_COMPARISONS: Final = (
    Comparison(UNSYNCED, SAFETENSORS, at_least=1, floor=UNSYNCED_FLOOR),
    Comparison(UNSYNCED, TORCH, floor=UNSYNCED_FLOOR),
    Comparison(OURS, DCP, floor=FLOOR),
    Comparison(OURS, FLOOR),
)
GPU_COMPARISONS: Final = (
    Comparison(OURS, DCP, at_least=2, floor=FLOOR),
    Comparison(UNSYNCED, DCP_UNSYNCED, at_least=2, floor=UNSYNCED_FLOOR),
    Comparison(UNSYNCED, TORCH, at_least=3, floor=UNSYNCED_FLOOR),
    Comparison(UNSYNCED, SAFETENSORS, floor=UNSYNCED_FLOOR),
)


def run(bench: Bench) -> None:
    """Row "sharded"."""
    mib = max(1, bench.sizes.mib // 2)
    expected = bench.large(mib)
    with bench.scratch() as folder:
        found = contenders(expected, expected, folder, kind="cpu")
        bench.report.race(
            f"save {bench.describe(mib)} and {GROUPS} groups", found, HOST_COMPARISONS, rounds=bench.sizes.few_rounds
        )


def on_gpus(bench: Bench) -> None:
    """Row "gpu-save"."""
    count = torch.cuda.device_count()
    work = f"save {bench.describe()} from {count or 1} GPU"
    if not count:
        bench.report.skip_all(work, GPU_COMPARISONS, NO_GPU)
        return
    expected = bench.large()
    state = {
        name: tensor.to(f"cuda:{number % GROUPS % count}") for number, (name, tensor) in enumerate(expected.items())
    }
    with bench.scratch() as folder:
        found = contenders(expected, state, folder, kind="gpu")
        bench.report.race(work, found, GPU_COMPARISONS)


def contenders(
    expected: dict[str, torch.Tensor], state: dict[str, torch.Tensor], folder: Path, *, kind: str
) -> list[Contender]:
    """Return all contenders that save `state`; with fewer devices than groups some devices have several groups."""
    size = sum(tensor.nbytes for tensor in state.values())
    grouped = {
        name: tfckpt.Variable(tensor, name, device=f"/{kind}:{number % GROUPS}")
        for number, (name, tensor) in enumerate(state.items())
    }
    synced = tfckpt.Saver(grouped, sharded=True)
    unsynced = tfckpt.Saver(grouped, sharded=True, storage=UnsyncedStorage())
    files = [folder / str(number) for number in range(GROUPS)]
    contender = partial(save_contender, folder=folder, size=size)

    def check_shards(path: Path) -> None:
        if len(list(folder.glob("x.data-*"))) != min(GROUPS, len(state)):
            raise WrongResult("not one file for each group")
        check_equal(tfckpt.load_file(path), expected)

    def check_dcp(path: Path) -> None:
        check_equal(load_by_dcp(path, expected), expected)

    def check_size(path: Path) -> None:
        if sum(file.stat().st_size for file in folder.iterdir()) != size:
            raise WrongResult("wrong size")

    return [
        contender(OURS, save=synced.save, check=check_shards),
        contender(
            UNSYNCED, save=lambda path: unsynced.save(path, write_meta_graph=False, write_state=False),
            check=check_shards,
        ),
        contender(DCP, save=lambda path: save_by_dcp(state, path, sync=True), check=check_dcp),
        contender(DCP_UNSYNCED, save=lambda path: save_by_dcp(state, path, sync=False), check=check_dcp),
        contender(
            TORCH, save=lambda path: torch.save(state, path),
            check=lambda path: check_equal(torch.load(path, weights_only=True, map_location="cpu"), expected),
        ),
        contender(
            SAFETENSORS, save=lambda path: safetensors.torch.save_file(state, path),
            check=lambda path: check_equal(safetensors.torch.load_file(path), expected),
        ),
        contender(FLOOR, save=lambda _: write_floor_in_files(files, size, sync=True), check=check_size),
        contender(UNSYNCED_FLOOR, save=lambda _: write_floor_in_files(files, size, sync=False), check=check_size),
    ]  # fmt: skip
