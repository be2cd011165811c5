#!/usr/bin/env python3
"""How fast is a save of a state on several devices, with one file each?

Setup:    512 MiB in 64 float32 tensors, in four groups with one data file each. With CUDA the groups are spread over
          the GPUs; otherwise they are tensors of the host with the names of four devices. Every run writes new files,
          removed before the next one.
Floor:    pwrite of one prefilled buffer, the same bytes, number of files, chunks and threads (no tensors, no checksum),
          with fsync and without; with CUDA also a copy of the same bytes to pinned memory, without writing.
Compare:  Saver with a file for each device and with one file, both with fsync, state file and meta graph; Saver without
          these three, for a comparison with torch.save and safetensors save_file; torch.distributed.checkpoint
          (FileSystemWriter, four threads with a file each, a single process) with fsync, its default, and without.
Reports:  median and spread of 7 interleaved rounds after a warm-up; GB/s; ratios within a round. Every run is read back
          and compared before its time counts.
"""

import sys
from pathlib import Path
from typing import Final

import safetensors.torch
import torch
from peers import (
    UnsyncedStorage,
    check_equal,
    copy_into,
    host_like,
    load_by_dcp,
    save_by_dcp,
    save_contender,
    synchronize,
    write_floor,
    write_floor_in_files,
)
from timing import Comparison, Contender, Report, parser, scratch, timed
from workload import large

import torch_tfckpt as tfckpt

GROUPS: Final = 4
OURS, ONE_FILE = "Saver(sharded=True).save (fsync)", "Saver().save (fsync)"
UNSYNCED, ONE_UNSYNCED = "Saver(sharded=True), no fsync", "Saver(), no fsync"
DCP, DCP_UNSYNCED = "DCP save (fsync)", "DCP save, no fsync"
TORCH, SAFETENSORS = "torch.save", "safetensors save_file"
FLOOR, UNSYNCED_FLOOR = "floor: pwrite + fsync, 4 files", "floor: pwrite, 4 files"
ONE_FLOOR, COPY_FLOOR = "floor: pwrite, 1 file", "floor: copy to pinned memory"


def comparisons(cuda: bool) -> list[Comparison]:
    """The targets: on a GPU against torch.save and DCP, otherwise against safetensors."""
    return [
        Comparison(UNSYNCED, TORCH, at_least=3 if cuda else None),
        Comparison(UNSYNCED, DCP_UNSYNCED, at_least=2 if cuda else None),
        Comparison(OURS, DCP, at_least=2 if cuda else None),
        Comparison(UNSYNCED, SAFETENSORS, at_least=None if cuda else 1),
        Comparison(UNSYNCED, UNSYNCED_FLOOR),
        Comparison(ONE_UNSYNCED, ONE_FLOOR),
        Comparison(OURS, FLOOR),
        Comparison(UNSYNCED, COPY_FLOOR),
        Comparison(UNSYNCED, ONE_UNSYNCED),
        Comparison(OURS, ONE_FILE),
    ]


def grouped(tensors: dict[str, torch.Tensor]) -> dict[str, tfckpt.Variable]:
    """Return groups of every fourth tensor; with fewer GPUs some have several groups."""
    kind = "gpu" if torch.cuda.is_available() else "cpu"
    return {
        name: tfckpt.Variable(tensor, name, device=f"/{kind}:{number % GROUPS}")
        for number, (name, tensor) in enumerate(tensors.items())
    }


def placed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors on the devices of their groups."""
    count = torch.cuda.device_count()
    if not count:
        return tensors
    return {name: tensor.to(f"cuda:{number % GROUPS % count}") for number, (name, tensor) in enumerate(tensors.items())}


def contenders(expected: dict[str, torch.Tensor], folder: Path) -> list[Contender]:
    """Return all contenders, with the state on its devices."""
    state = placed(expected)
    size = sum(tensor.nbytes for tensor in state.values())
    savers = {
        OURS: tfckpt.Saver(grouped(state), sharded=True),
        ONE_FILE: tfckpt.Saver(grouped(state)),
        UNSYNCED: tfckpt.Saver(grouped(state), sharded=True, storage=UnsyncedStorage()),
        ONE_UNSYNCED: tfckpt.Saver(grouped(state), storage=UnsyncedStorage()),
    }

    def saved_by(name: str, *, files: int, full: bool) -> Contender:
        def check(path: Path) -> None:
            assert len(list(folder.glob("x.data-*"))) == files
            check_equal(tfckpt.load_file(path), expected)

        def save(path: Path) -> None:
            savers[name].save(path, write_meta_graph=full, write_state=full)

        return save_contender(name, folder, size, save, check)

    def check_size(path: Path) -> None:
        assert sum(file.stat().st_size for file in folder.iterdir()) == size

    def saved_by_dcp(name: str, *, sync: bool) -> Contender:
        return save_contender(
            name, folder, size, lambda path: save_by_dcp(state, path, sync=sync),
            lambda path: check_equal(load_by_dcp(path, expected), expected),
        )  # fmt: skip

    files = [folder / str(number) for number in range(GROUPS)]
    found = [
        saved_by(OURS, files=GROUPS, full=True),
        saved_by(ONE_FILE, files=1, full=True),
        saved_by(UNSYNCED, files=GROUPS, full=False),
        saved_by(ONE_UNSYNCED, files=1, full=False),
        saved_by_dcp(DCP, sync=True),
        saved_by_dcp(DCP_UNSYNCED, sync=False),
        save_contender(
            TORCH, folder, size, lambda path: torch.save(state, path),
            lambda path: check_equal(torch.load(path, weights_only=True, map_location="cpu"), expected),
        ),
        save_contender(
            SAFETENSORS, folder, size, lambda path: safetensors.torch.save_file(state, path),
            lambda path: check_equal(safetensors.torch.load_file(path), expected),
        ),
        save_contender(
            FLOOR, folder, size, lambda path: write_floor_in_files(files, size, sync=True), check_size
        ),
        save_contender(
            UNSYNCED_FLOOR, folder, size, lambda path: write_floor_in_files(files, size, sync=False), check_size
        ),
        save_contender(ONE_FLOOR, folder, size, lambda path: write_floor(path, size, sync=False), check_size),
    ]  # fmt: skip
    if torch.cuda.is_available():
        found.append(copy_floor(state, expected, size))
    return found


def copy_floor(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], size: int) -> Contender:
    """Return a contender that copies all bytes from the devices to existing pinned memory."""
    targets = host_like(state.values())

    def measure() -> float:
        for target in targets:
            target.zero_()
        synchronize()
        seconds, _ = timed(lambda: copy_into(state.values(), targets))
        check_equal(dict(zip(state, targets, strict=True)), expected)
        return seconds

    return Contender(COPY_FLOOR, measure, size)


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("--mib", type=int, default=512)
    options.add_argument("--tensors", type=int, default=64)
    given = options.parse_args(arguments)
    expected = {n: torch.from_numpy(array) for n, array in large(given.mib, given.tensors, given.seed).items()}
    report = Report("sharded_save", given)
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    report.add({"title": "devices", "gpus": gpus})
    where = f"{len(gpus)} x {gpus[0]}" if gpus else "tagged tensors of the host"
    with scratch(given.dir) as folder:
        title = f"save {given.mib} MiB in {given.tensors} tensors and {GROUPS} groups, {where}"
        report.run(title, contenders(expected, folder), comparisons(bool(gpus)))
    report.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
