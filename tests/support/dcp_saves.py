"""Functions that ranks run: every way in which torch.distributed.checkpoint saves (see rank_processes.py)."""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from dcp_ranks import LEAVES, differing, layouts_state, zeroed
from rank_processes import Rank
from sharded import numbered, spread
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, async_save, save

import torch_tfckpt as tfckpt


def state_of(rank: Rank, value: float) -> dict[str, Any]:
    """A sharded tensor, one that all ranks have, and other values."""
    return {
        "net": {"w": spread(numbered((7, 3)) + value, (rank.world_size,), [0]), "b": torch.full((2,), value)},
        "step": int(value),
        "other": LEAVES["nested"],
    }


def wrong(rank: Rank, path: str, value: float) -> list[str]:
    """Load, and return the names of what is wrong."""
    wanted = state_of(rank, value)
    state = zeroed(wanted)
    load(state, storage_reader=tfckpt.TFCheckpointReader(path))
    return differing(wanted, state)


def caching() -> DefaultSavePlanner:
    """A planner that keeps its plan for the next save."""
    return DefaultSavePlanner(enable_plan_caching=True)


def cached_plans(rank: Rank, folder: str) -> list[list[str]]:
    """Save three times with cached plans, and once with other values; what is wrong in each."""
    writer = tfckpt.TFCheckpointWriter(f"{folder}/unused")
    found = []
    for value in (1.0, 2.0, 3.0):
        path = f"{folder}/cached-{value:g}"
        save(state_of(rank, value), storage_writer=writer, planner=caching(), checkpoint_id=path)
        found.append(wrong(rank, path, value))
    again = f"{folder}/cached-again"
    save({**state_of(rank, 4.0), "more": rank.rank}, storage_writer=writer, planner=caching(), checkpoint_id=again)
    found.append(wrong(rank, again, 4.0))
    for cache in ("save_plan", "final_save_plan", "all_plans", "global_plan", "metadata"):
        getattr(SavePlanner, f"_cached_{cache}").clear()
    return found


def saved_in_the_background(rank: Rank, folder: str, kind: str) -> list[str]:
    """Save with async_save, change the values at once, and return what is wrong."""
    state = state_of(rank, 5.0)
    path = f"{folder}/background"
    options: dict[str, Any] = {}
    if kind == "process":
        options["async_checkpointer_type"] = AsyncCheckpointerType.PROCESS
    if kind == "stager":
        options["async_stager"] = DefaultStager(StagingOptions(False, False, False, False))
    future: Any = async_save(state, storage_writer=tfckpt.TFCheckpointWriter(path), **options)
    with torch.no_grad():
        state["net"]["w"].to_local().zero_()
        state["net"]["b"].zero_()
    future.result()
    return wrong(rank, path, 5.0)


class OtherPlanner(DefaultSavePlanner):
    """A planner that flattens nothing, and gives each value a name of its own."""

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        assert storage_meta.checkpoint_id
        super().set_up_planner(
            {f"mine/{key}": value for key, value in state_dict.items()}, storage_meta, is_coordinator
        )


class PicklingPlanner(SavePlanner):
    """A planner of one rank with nothing in common with the default one."""

    def __init__(self, value: object) -> None:
        self.value = value

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        self.state_dict = state_dict

    def create_local_plan(self) -> SavePlan:
        from torch.distributed.checkpoint.planner_helpers import _create_write_items

        items = [item for name, value in self.state_dict.items() for item in _create_write_items(name, value)]
        return SavePlan(items, planner_data="of this planner")

    def create_global_plan(self, all_plans: list[SavePlan]) -> Any:
        from torch.distributed.checkpoint.default_planner import create_default_global_save_plan

        return create_default_global_save_plan(all_plans)

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> Any:
        value = self.state_dict[write_item.index.fqn]
        if write_item.type != WriteItemType.BYTE_IO:
            return value
        stored = io.BytesIO()
        torch.save(value, stored)
        return stored


def with_other_planners(rank: Rank, folder: str) -> list[Any]:
    """Save with planners that do not flatten, rename, or pickle."""
    found: list[Any] = []
    flat = {"a.b": numbered((3,)), "c": 3, "d": {"nested": [1, (2, None)]}}
    path = f"{folder}/renamed"
    planner = OtherPlanner(flatten_state_dict=False)
    save(dict(flat), storage_writer=tfckpt.TFCheckpointWriter(path), planner=planner)
    state = {f"mine/{key}": value for key, value in zeroed(flat).items()}
    from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

    load(state, storage_reader=tfckpt.TFCheckpointReader(path), planner=DefaultLoadPlanner(flatten_state_dict=False))
    found.append(differing({f"mine/{key}": value for key, value in flat.items() if torch.is_tensor(value)}, state))
    dist.barrier()
    if rank.rank == 0:
        alone = f"{folder}/alone"
        writer = tfckpt.TFCheckpointWriter(alone)
        save({"x": numbered((2,)), "y": (1, "two")}, storage_writer=writer, planner=PicklingPlanner(0), no_dist=True)
        found.append(sorted(tfckpt.load_file(alone)))
    return found


class Unknown:
    """An object that could only be pickled."""


def refused(rank: Rank, folder: str) -> dict[str, dict[int, str]]:
    """What cannot be stored, and the error that all ranks see."""
    cases: dict[str, dict[str, Any]] = {
        "object": {"a": {"b": [1, {"c": Unknown()}]}},
        "function": {"a": len},
        "sparse": {"a": {"b": torch.eye(2).to_sparse()}},
        "one key": {"a": {"b": torch.ones(2)}, "a/b": torch.ones(2)},
        "part in a tuple": {"a": ("x", spread(numbered((4,)), (rank.world_size,), [0]))},
        "document and tensor": {"a": {"b": torch.ones(2), "c": 3}, "a/c": torch.ones(2)},
    }
    found = {}
    for name, state in cases.items():
        try:
            save(state, storage_writer=tfckpt.TFCheckpointWriter(f"{folder}/refused"))
        except CheckpointException as error:
            found[name] = {number: f"{type(each[0]).__name__}: {each[0]}" for number, each in error.failures.items()}
    save({"a": 1}, storage_writer=tfckpt.TFCheckpointWriter(f"{folder}/good"))
    return found


def writer_by_pickle(rank: Rank, folder: str) -> list[str]:
    """Save with a writer that was used and then sent by pickle, as processes for saving get it."""
    writer = tfckpt.TFCheckpointWriter(f"{folder}/sent", max_piece_bytes=16)
    save(state_of(rank, 8.0), storage_writer=writer)
    again = pickle.loads(pickle.dumps(writer))  # noqa: S301 -- our own writer
    save(state_of(rank, 9.0), storage_writer=again)
    return wrong(rank, str(Path(folder) / "sent"), 9.0)


def without_collectives(rank: Rank, folder: str) -> list[Any]:
    """Save all layouts without collectives, twice over one name; then values that only one rank has."""
    path = f"{folder}/alone"
    writer = tfckpt.TFCheckpointWriter(path)
    found: list[Any] = []
    for value in (1.0, 2.0):
        wanted = {**layouts_state(rank), **LEAVES, "value": value}
        save(wanted, storage_writer=writer, use_collectives=False)
        state = zeroed(wanted)
        load(state, storage_reader=tfckpt.TFCheckpointReader(path))
        found.append(differing(wanted, state))
        dist.barrier()
    try:
        own = {f"of rank {rank.rank}": numbered((2,)) for _ in range(1)}
        save(own, storage_writer=tfckpt.TFCheckpointWriter(f"{folder}/apart"), use_collectives=False)
    except (tfckpt.IncompleteSaveError, tfckpt.FailedPreconditionError) as error:
        found.append(str(error))
    else:
        found.append("saved")
    return found


class UnpublishedWriter(tfckpt.TFCheckpointWriter):
    """Fails in the last step of the coordinator."""

    def _publish(self, *args: Any) -> None:
        raise OSError(28, "No space left on device")


def failing_without_collectives(rank: Rank, folder: str) -> list[str]:
    """Each rank fails in writing; the errors."""
    found = []
    for failing in range(rank.world_size):
        state = state_of(rank, 1.0)
        if rank.rank == failing:
            state["net"]["w"] = spread(numbered((7, 3)).to(torch.complex32), (rank.world_size,), [0])
        try:
            save(state, storage_writer=tfckpt.TFCheckpointWriter(f"{folder}/failed"), use_collectives=False)
        except (tfckpt.IncompleteSaveError, tfckpt.UnimplementedError) as error:
            found.append(f"{type(error).__name__}: {error}")
    try:
        save(state_of(rank, 1.0), storage_writer=UnpublishedWriter(f"{folder}/failed"), use_collectives=False)
    except (tfckpt.IncompleteSaveError, OSError) as error:
        found.append(f"{type(error).__name__}: {error}")
    save(state_of(rank, 2.0), storage_writer=tfckpt.TFCheckpointWriter(f"{folder}/good"), use_collectives=False)
    return [*found, *wrong(rank, f"{folder}/good", 2.0)]


def different_without_collectives(rank: Rank, folder: str) -> list[str]:
    """Rank 1 has another dtype, another shape, and no part of a DTensor; the errors."""
    rows = spread(numbered((7, 3)), (rank.world_size,), [0])
    states: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"a": torch.ones(2)}, {"a": torch.ones(2, dtype=torch.int64)}),
        ({"a": torch.ones(2)}, {"a": torch.ones(3)}),
        ({"a": torch.ones(2), "x": rows}, {"a": torch.ones(2)}),
    ]
    found = []
    for of_rank_0, of_rank_1 in states:
        state = of_rank_1 if rank.rank else of_rank_0
        try:
            save(state, storage_writer=tfckpt.TFCheckpointWriter(f"{folder}/failed"), use_collectives=False)
        except (tfckpt.IncompleteSaveError, tfckpt.InvalidArgumentError) as error:
            found.append(str(error))
    return found


def save_again_and_again(rank: Rank, url: str) -> list[list[str]]:
    """Save three times over one name, and once more without collectives; what is wrong after each of the three."""
    os.chdir("/")  # the driver removes the first slash of a path
    found = []
    for value in (1.0, 2.0, 3.0):
        save(state_of(rank, value), storage_writer=tfckpt.TFCheckpointWriter(url))
        found.append(wrong(rank, url, value))
        dist.barrier()
    save({"step": 4}, storage_writer=tfckpt.TFCheckpointWriter(url), use_collectives=False)
    return found
