"""Programs of several ranks: they save and restore spread state together, and train."""

import logging
import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rank_processes import Rank
from sharded import LAYOUTS, Blocks, numbered, sharded, spread
from sharded_state import INNER, OPTIMIZERS, WIDTH, step, trained, whole
from torch import nn

import torch_tfckpt as tfckpt

SAVE_EVERY, STEPS, KEEP = 2, 12, 2


def save_layouts(rank: Rank, folder: str) -> int:
    """All layouts and a plain tensor; return how many calls the process group has seen during the saves."""
    values: dict[str, Any] = {
        name: spread(numbered(shape, dtype), mesh_shape, placements)
        for name, shape, mesh_shape, placements in LAYOUTS
        for dtype in (torch.float32,)
    }
    saver = tfckpt.Saver({**values, "plain": torch.arange(7), "epoch": [1, 2]}, ranks=tfckpt.Ranks())
    group: Any = dist.group.WORLD
    before = group._get_sequence_number_for_group()
    saver.save(os.path.join(folder, "m"), 1)
    saver.save_async(os.path.join(folder, "m"), 2).result()
    saver.restore(os.path.join(folder, "m-2"))
    return int(group._get_sequence_number_for_group() - before)


def incomplete(rank: Rank, folder: str) -> dict[str, str]:
    """Save DTensors of which the ranks that save do not have, or do not save, everything; return the errors."""
    values = numbered((8, 3))
    rows, copies = spread(values, (4,), [0]), spread(values, (2, 2), ["R", 0])
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    half = tfckpt.Ranks(group=groups[rank.rank // 2])
    everybody = tfckpt.Ranks()
    cases: dict[str, tuple[tfckpt.Ranks, dict[str, Any]]] = {
        "one rank saves nothing of it": (everybody, {} if rank.rank == 2 else {"x": rows}),
        "other placements": (everybody, {"x": spread(values, (4,), ["R"]) if rank.rank == 3 else rows}),
        "half of the ranks": (half, {"x": rows}),
        "half of the ranks, with copies": (half, {"x": copies}),
    }
    found = {}
    for case, (ranks, state) in cases.items():
        try:
            name = f"m{rank.rank // 2 if ranks is half else ''}"
            prefix = tfckpt.save_file({"p": torch.ones(1), **state}, os.path.join(folder, name), ranks=ranks)
        except tfckpt.IncompleteSaveError as error:
            found[case] = str(error)
        else:
            found[case] = str(torch.equal(tfckpt.load_file(prefix)["x"], values))
    return found


def logged_by_a_save(rank: Rank, folder: str) -> list[str]:
    """Save tensors in slices and whole, of types whose slices TensorFlow joins or not; what is logged."""
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("torch_tfckpt.distributed")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    values = {
        "half in slices": spread(numbered((8, 2), torch.float16), (rank.world_size,), [0]),
        "half": spread(numbered((8, 2), torch.float16), (rank.world_size,), ["R"]),
        "float": spread(numbered((8, 2)), (rank.world_size,), [0]),
    }
    try:
        tfckpt.Saver(dict(values), ranks=tfckpt.Ranks()).save(os.path.join(folder, "m"))
    finally:
        logger.setLevel(logging.NOTSET)
        logger.removeHandler(handler)
    return records


def restore_rows(rank: Rank, folder: str) -> bool:
    """Restore all layouts by any number of ranks, spread by rows."""
    values = {
        name: spread(torch.zeros(shape), (rank.world_size,), ["R" if not shape else 0]) for name, shape, *_ in LAYOUTS
    }
    values["plain"] = torch.zeros(7, dtype=torch.int64)  # type: ignore[assignment]
    tfckpt.Saver(dict(values), ranks=tfckpt.Ranks()).restore(os.path.join(folder, "m-2"))
    return all(torch.equal(whole(values[name]), numbered(shape)) for name, shape, *_ in LAYOUTS)


def save_spread(rank: Rank, folder: str, kind: str, optimizer: str) -> None:
    """Train as `trained` does, spread over the ranks, and save with all of them."""
    torch.manual_seed(0)
    module = Blocks(WIDTH, INNER)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    spread_module = sharded(kind, module)
    made = OPTIMIZERS[optimizer](spread_module.parameters())
    for _ in range(2):
        step(spread_module, made)
    saver = tfckpt.Saver({"model": spread_module, "optim": made}, ranks=tfckpt.Ranks())
    saver.save(os.path.join(folder, "m"))


def restore_alone(rank: Rank, folder: str, optimizer: str) -> None:
    """One process without ranks restores what was spread, and continues."""
    module, made = trained(optimizer, steps=1)
    expected, expected_optimizer = trained(optimizer)
    tfckpt.Saver({"model": module, "optim": made}).restore(os.path.join(folder, "m"))
    for (name, parameter), wanted in zip(module.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(parameter, wanted, msg=name)
        for slot, value in expected_optimizer.state[wanted].items():
            torch.testing.assert_close(made.state[parameter][slot], value)
    step(module, made)
    step(expected, expected_optimizer)
    torch.testing.assert_close(list(module.parameters()), list(expected.parameters()))


class Program:
    """A training program of any number of ranks: a replicated model, batches split over the ranks, gradients summed.

    Every line is the same on all ranks.
    """

    def __init__(self, rank: Rank, folder: str, timeout: float) -> None:
        self.rank, self.folder = rank, folder
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)).double()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        self.at = torch.zeros((), dtype=torch.int64)
        state = {"model": self.model, "optim": self.optimizer, "at": self.at}
        self.saver = tfckpt.Saver(state, ranks=tfckpt.Ranks(timeout=timeout), max_to_keep=KEEP)

    def resume(self) -> int:
        latest = tfckpt.latest_checkpoint(self.folder, valid=True)
        if latest is not None:
            self.saver.restore(latest)
        return int(self.at)

    def loss_of_step(self) -> float:
        """One step with the batch of the current step: 12 rows, of which this rank has its share."""
        generator = torch.Generator().manual_seed(int(self.at))
        rows = torch.rand((12, 6), generator=generator, dtype=torch.float64)
        own = rows[self.rank.rank :: self.rank.world_size]
        loss = (self.model(own) - own.sum(1, keepdim=True)).square().sum()
        loss.backward()
        total = loss.detach().clone()
        for value in (total, *(parameter.grad for parameter in self.model.parameters())):
            dist.all_reduce(value)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.at += 1
        return float(total)


def train(
    rank: Rank, folder: str, kill_seed: int | None = None, victims: tuple[int, ...] = ()
) -> tuple[int, list[float]]:
    """Train from the newest checkpoint to the end; return the step where this began, and the losses.

    Args:
        kill_seed: Kill this process at a random moment, if it is one of `victims`: a random call of the storage. The
            others notice after some seconds, and end as a program does after an error, so that none waits for them.
    """
    if kill_seed is None:
        return _train(Program(rank, folder, timeout=30), folder)
    with _killed_later(kill_seed) if rank.rank in victims else nullcontext():
        try:
            return _train(Program(rank, folder, timeout=4), folder)
        except BaseException:
            os._exit(1)


def _train(program: Program, folder: str) -> tuple[int, list[float]]:
    first, losses = program.resume(), []
    while int(program.at) < STEPS:
        losses.append(program.loss_of_step())
        if int(program.at) % SAVE_EVERY == 0:
            path = os.path.join(folder, "m")
            if int(program.at) % (2 * SAVE_EVERY):
                program.saver.save(path, program.at)
            else:
                program.saver.save_async(path, program.at)
    program.saver.close()
    return first, losses


@contextmanager
def _killed_later(seed: int) -> Iterator[None]:
    """End this process with SIGKILL after some of the system's calls for files, unless the block ends before."""
    left = [random.Random(seed).randrange(5, 250)]
    names = ("open", "replace", "rename", "unlink", "mkdir", "rmdir", "link", "fsync", "pwritev", "listdir", "scandir")
    originals = {name: getattr(os, name) for name in names}
    for name, original in originals.items():

        def counted(*arguments: Any, original: Any = original, **options: Any) -> Any:
            left[0] -= 1
            if left[0] <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        setattr(os, name, counted)
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(os, name, original)


def kept(folder: Path) -> list[str]:
    """The checkpoints in a directory."""
    return sorted(path.stem for path in folder.glob("*.index"))
