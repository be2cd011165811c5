"""Functions that ranks run: saves with torch.distributed.checkpoint that fail on one rank (see rank_processes.py)."""

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rank_processes import Rank
from sharded import spread
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

import torch_tfckpt as tfckpt

STAGES = ("set up", "local plan", "global plan", "before writing", "after writing", "finish")
ON_THE_COORDINATOR = ("global plan", "finish")


class FailingWriter(tfckpt.TFCheckpointWriter):
    """Raises, or kills its process, in one stage."""

    def __init__(self, path: str, stage: str, *, fails: bool, kill: bool = False) -> None:
        super().__init__(path)
        self.stage, self.fails, self.kill = stage, fails, kill

    def reach(self, stage: str) -> None:
        """Fail in this stage."""
        if self.fails and stage == self.stage:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(28, "No space left on device", stage)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        super().set_up_storage_writer(is_coordinator, *args, **kwargs)
        self.reach("set up")

    def prepare_local_plan(self, plan: Any) -> Any:
        self.reach("local plan")
        return super().prepare_local_plan(plan)

    def prepare_global_plan(self, plans: Any) -> Any:
        plans = super().prepare_global_plan(plans)
        self.reach("global plan")
        return plans

    def write_data(self, plan: Any, planner: Any) -> Any:
        self.reach("before writing")
        written = super().write_data(plan, planner)
        self.reach("after writing")
        return written

    def finish(self, metadata: Any, results: Any) -> None:
        self.reach("finish")
        super().finish(metadata, results)


def small_state(rank: Rank, value: float) -> dict[str, Any]:
    """A DTensor of rows, and a value that is not a tensor."""
    mesh = (rank.world_size,)
    return {"w": spread(torch.full((6, 2), value), mesh, [0]), "step": int(value)}


def loaded(rank: Rank, path: str) -> float:
    """The value of the checkpoint, if all its elements are equal."""
    state = small_state(rank, 0.0)
    load(state, storage_reader=tfckpt.TFCheckpointReader(path))
    values = state["w"].to_local().unique().tolist()
    assert values == [float(state["step"])]
    return float(values[0])


def fail_in_all_stages(rank: Rank, folder: str) -> dict[str, Any]:
    """Let each rank fail in each stage; what this rank sees, and what is left."""
    found: dict[str, Any] = {}
    path = str(Path(folder) / "ckpt")
    save(small_state(rank, 1.0), storage_writer=tfckpt.TFCheckpointWriter(path))
    value = 1.0
    for stage in STAGES:
        for failing in range(rank.world_size):
            if stage in ON_THE_COORDINATOR and failing:
                continue
            writer = FailingWriter(path, stage, fails=failing == rank.rank)
            try:
                save(small_state(rank, 99.0), storage_writer=writer)
            except CheckpointException as error:
                failures = {number: str(each[0]) for number, each in error.failures.items()}
            else:
                failures = {}
            dist.barrier()
            old = loaded(rank, path)
            dist.barrier()
            if failing == 1:  # the next save with the same writer cleans up, or `abandon`
                writer.abandon()
            value += 1
            writer.fails = False
            save(small_state(rank, value), storage_writer=writer)
            is_good = loaded(rank, path) == value
            dist.barrier()
            found[f"{stage}, rank {failing}"] = failures, old == value - 1, is_good, sorted(os.listdir(folder))
            dist.barrier()
    return found


def save_small(rank: Rank, path: str, value: float) -> None:
    """Save a small state."""
    save(small_state(rank, value), storage_writer=tfckpt.TFCheckpointWriter(path))


def load_small(rank: Rank, path: str) -> float:
    """The value of a small state."""
    return loaded(rank, path)


def save_and_die(rank: Rank, path: str, stage: str, killed: int) -> str:
    """Save, and kill one rank in a stage. The error that the others see."""
    writer = FailingWriter(path, stage, fails=rank.rank == killed, kill=True)
    try:
        save(small_state(rank, 99.0), storage_writer=writer)
    except (CheckpointException, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def load_damaged(rank: Rank, path: str) -> dict[int, str]:
    """The errors of all ranks, as this rank sees them."""
    state = small_state(rank, 0.0)
    try:
        load(state, storage_reader=tfckpt.TFCheckpointReader(path))
    except CheckpointException as error:
        return {number: f"{type(each[0]).__name__}: {each[0]}" for number, each in error.failures.items()}
    return {}


class LyingWriter(tfckpt.TFCheckpointWriter):
    """Reports that it has written another file than it has."""

    def __init__(self, path: str, reported: str) -> None:
        super().__init__(path)
        self.reported = reported

    def _written(self, *args: Any) -> Any:
        return dataclasses.replace(super()._written(*args), path=self.reported)


def report_other_files(rank: Rank, folder: str, reported: list[str], use_collectives: bool) -> list[str]:
    """Save once for each path that rank 1 reports; the errors that this rank sees."""
    found = []
    path = f"{folder}/ckpt"
    for each in reported:
        writer = LyingWriter(path, each) if rank.rank == 1 else tfckpt.TFCheckpointWriter(path)
        try:
            save(small_state(rank, 1.0), storage_writer=writer, use_collectives=use_collectives)
        except (tfckpt.CheckpointError, CheckpointException) as error:
            found.append(str(error))
        writer.abandon()
    save(small_state(rank, 2.0), storage_writer=tfckpt.TFCheckpointWriter(path))
    assert loaded(rank, path) == 2.0
    return found
