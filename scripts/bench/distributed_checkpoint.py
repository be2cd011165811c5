"""How fast do several ranks save and load a sharded state with torch.distributed.checkpoint?

Setup:    512 MiB in 64 float32 DTensors, whose rows are spread over 2 processes (gloo, CPU). Every save writes a new
          checkpoint, removed before the next one.
Compare:  dcp.save with TFCheckpointWriter, and with DCP's own FileSystemWriter, its default and with two threads; all
          sync their files. dcp.load into existing tensors with TFCheckpointReader, with and without checksums, and with
          FileSystemReader, which has no checksums. The files that are loaded are in the page cache.
Floor:    bare pwrite and fsync of the same bytes to one file for each rank.
Reports:  the time of a round is that of the slowest rank.
"""

import multiprocessing
import shutil
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
import torch.distributed as dist
from contenders import claim_file_memory
from floors import write_floor_in_files
from settings import Bench
from timing import Comparison, Contender, WrongResult, timed
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from workload import large

import torch_tfckpt as tfckpt

OURS, DCP, DCP_THREADS = "TFCheckpointWriter", "FileSystemWriter", "FileSystemWriter, 2 threads"
VERIFIED, UNVERIFIED, DCP_LOAD = "TFCheckpointReader, verified", "TFCheckpointReader, verify=False", "FileSystemReader"
RANKS: Final = 2
FLOOR: Final = f"bare pwrite and fsync, {RANKS} files"
COMPARISONS: Final = [
    Comparison(OURS, DCP, at_least=1.5, floor=FLOOR),
    Comparison(OURS, DCP_THREADS, floor=FLOOR),
    Comparison(VERIFIED, DCP_LOAD, at_least=1),
    Comparison(UNVERIFIED, DCP_LOAD),
]


class Work(NamedTuple):
    """What the ranks are to do."""

    name: str
    path: str


def writer_of(name: str, path: str) -> Any:
    """Return the storage writer of a contender."""
    if name == OURS:
        return tfckpt.TFCheckpointWriter(path)
    return FileSystemWriter(path, thread_count=2 if name == DCP_THREADS else 1)


def reader_of(name: str, path: str) -> Any:
    """Return the storage reader of a contender."""
    if name in (VERIFIED, UNVERIFIED):
        return tfckpt.TFCheckpointReader(path, verify=name == VERIFIED)
    return FileSystemReader(path)


def serve(rank: int, ranks: int, store: str, given: tuple[int, int, int], pipe: Connection) -> None:
    """Run one rank: do what is asked for, and answer with the seconds."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    mib, tensors, seed = given
    state: dict[str, Any] = {}
    for name, array in large(mib, tensors, seed).items():
        own = torch.from_numpy(array).chunk(ranks)[rank].clone()
        state[name] = DTensor.from_local(own, mesh, [Shard(0)], run_check=False)
    target: dict[str, Any] = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    while (work := pipe.recv()) is not None:
        dist.barrier()
        if work.name in (OURS, DCP, DCP_THREADS):
            seconds, _ = timed(partial(save, state, storage_writer=writer_of(work.name, work.path)))
        else:
            for tensor in target.values():
                tensor.to_local().zero_()
            dist.barrier()
            seconds, _ = timed(partial(load, target, storage_reader=reader_of(work.name, work.path)))
            wrong = [name for name in state if not torch.equal(state[name].to_local(), target[name].to_local())]
            if wrong:
                pipe.send(f"{work.name}: {wrong[0]} is wrong on rank {rank}")
                continue
        pipe.send(seconds)
    dist.destroy_process_group()


class RankTimes:
    """Processes for the ranks."""

    def __init__(self, ranks: int, store: Path, given: tuple[int, int, int]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes = []
        self._processes = []
        for rank in range(ranks):
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(rank, ranks, str(store), given, there), daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)

    def seconds(self, work: Work) -> float:
        """Return the seconds of the slowest rank."""
        for pipe in self._pipes:
            pipe.send(work)
        answers: list[float | str] = [pipe.recv() for pipe in self._pipes]
        seconds = [answer for answer in answers if not isinstance(answer, str)]
        if len(seconds) < len(answers):
            raise WrongResult("; ".join(answer for answer in answers if isinstance(answer, str)))
        return max(seconds)

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join()


def contenders(ranks: RankTimes, folder: Path, size: int) -> list[Contender]:
    """Return all contenders. A save is read back by the reader of the same format."""

    def saving(name: str) -> Contender:
        def measure() -> float:
            place = folder / "saves"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            claim_file_memory(folder, size)
            seconds = ranks.seconds(Work(name, str(place / "x")))
            ranks.seconds(Work(VERIFIED if name == OURS else DCP_LOAD, str(place / "x")))
            return seconds

        return Contender(name, measure, size)

    def loading(name: str) -> Contender:
        kept = str(folder / ("dcp" if name == DCP_LOAD else "ours"))
        return Contender(name, lambda: ranks.seconds(Work(name, kept)), size)

    def bare() -> float:
        place = folder / "bare"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        claim_file_memory(folder, size)
        files = [place / str(rank) for rank in range(RANKS)]
        seconds, _ = timed(lambda: write_floor_in_files(files, size, sync=True))
        return seconds

    ranks.seconds(Work(OURS, str(folder / "ours")))
    ranks.seconds(Work(DCP, str(folder / "dcp")))
    saves = [*map(saving, (OURS, DCP, DCP_THREADS)), Contender(FLOOR, bare, size)]
    return [*saves, *map(loading, (VERIFIED, UNVERIFIED, DCP_LOAD))]


def run(bench: Bench) -> None:
    """Row "ranks"."""
    mib = max(1, bench.sizes.mib // 2)
    work = f"{bench.describe(mib)} on {RANKS} ranks"
    with bench.scratch() as folder, bench.scratch() as of_store:
        ranks = RankTimes(RANKS, of_store / "store", (mib, bench.sizes.tensors, bench.seed))
        rounds = bench.sizes.few_rounds
        try:
            bench.report.race(
                f"save and load {work}", contenders(ranks, folder, mib * 2**20), COMPARISONS, rounds=rounds
            )
        finally:
            ranks.close()
