"""Several programs save the same prefix at once: at every moment a reader finds one of the checkpoints whole.

The heavy test starts TFCKPT_RANKS processes (default 16) that save TFCKPT_SAVES times each (default 200), in memory and
on disk:

    python -m pytest -n 0 -s tests/faults/test_one_prefix.py -m heavy
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
import torch
from forked_processes import forkserver
from killed_writers import number_of, values
from killing import folder_in_memory
from racing import read_until, save_again_and_again
from storages import Counting

import torch_tfckpt as tfckpt
from torch_tfckpt.bundle.writer import BundleWriter
from torch_tfckpt.storage.local import LocalStorage
from torch_tfckpt.storage.names import parse_temporary_name
from torch_tfckpt.storage.protocol import Storage

RANKS: Final = int(os.environ.get("TFCKPT_RANKS", "16"))
SAVES: Final = int(os.environ.get("TFCKPT_SAVES", "200"))


def race(folder: Path, ranks: int, saves: int) -> None:
    context, target = forkserver(), str(folder / "model")
    begin, end = context.Event(), context.Event()
    reader, reading = context.Pipe(duplex=False)
    processes = [context.Process(target=read_until, args=(target, begin, end, reading))]
    pipes = []
    for rank in range(ranks):
        here, there = context.Pipe(duplex=False)
        pipes.append(here)
        processes.append(context.Process(target=save_again_and_again, args=(target, rank, ranks, saves, begin, there)))
    for process in processes:
        process.start()
    started = time.monotonic()
    begin.set()
    errors = [error for pipe in pipes for error in pipe.recv()]
    seconds = time.monotonic() - started
    end.set()
    reads, seen, wrong = reader.recv()
    for process in processes:
        process.join()
    print(
        f"{ranks} processes x {saves} saves in {seconds:.0f} s, {len(errors)} errors; {reads} reads of {seen} "
        f"checkpoints, {len(wrong)} not whole"
    )
    assert not errors and not wrong, (errors[:3], wrong[:3])
    assert whole(target, set(range(1, ranks * saves + 1))) is not None
    tfckpt.save_file(values(1), target)
    left = sorted(path.name for path in folder.iterdir() if path.name.startswith("model.") and "meta" not in path.name)
    assert left == ["model.data-00000-of-00001", "model.index"]
    assert not [path.name for path in folder.iterdir() if "tempstate" in path.name]


def test_processes_that_save_one_prefix_leave_one_whole(tmp_path: Path) -> None:
    """Every save returns; the reader never finds a mix, nor an index without its data; nothing is left behind."""
    race(tmp_path, 4, 4)


@pytest.mark.heavy
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_many_processes_save_one_prefix(where: str, tmp_path: Path) -> None:
    if where == "disk":
        race(tmp_path, RANKS, SAVES)
        return
    with folder_in_memory(tmp_path) as folder:
        race(folder, RANKS, SAVES)


# All orders of the steps of two saves.


class Steps:
    """Lets one of several threads at a time run up to its next operation on storage."""

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._running: int | None = None
        self.ended: set[int] = set()

    def wait_for_turn(self, who: int) -> None:
        with self._turn:
            self._running = None
            self._turn.notify_all()
            self._turn.wait_for(lambda: self._running == who, 60)

    def step(self, who: int) -> bool:
        """Run `who` up to its next operation; return False if it has ended."""
        with self._turn:
            if who in self.ended:
                return False
            self._running = who
            self._turn.notify_all()
            assert self._turn.wait_for(lambda: self._running is None, 60)
            return who not in self.ended

    def end(self, who: int) -> None:
        with self._turn:
            self.ended.add(who)
            self._running = None
            self._turn.notify_all()


class Host(LocalStorage):
    """One of several hosts that share a directory, but do not see each other's locks."""

    def __init__(self, number: int) -> None:
        self._number = number
        self.lock_domain = lambda directory: number

    @contextmanager
    def exclusive(self, directory: str, patience: float = 0.0) -> Iterator[bool]:
        yield True  # the other host does not see the lock

    def in_use(self, path: str) -> bool:
        parsed = parse_temporary_name(path)
        return parsed is not None and parsed.domain == self._number and super().in_use(path)

    def remove_unused(self, path: str) -> bool:
        parsed = parse_temporary_name(path)
        if parsed is not None and parsed.domain == self._number:
            return super().remove_unused(path)
        os.unlink(path)  # no lock of another host is in the way
        return True


class Stepping(Counting):
    """Waits for its turn before each operation, once it is told to."""

    def __init__(self, inner: Storage, steps: Steps, who: int) -> None:
        super().__init__(inner)
        self._steps, self._who = steps, who
        self.active = False

    def before(self, number: int, what: str) -> None:
        if self.active:
            self._steps.wait_for_turn(self._who)


def whole(prefix: str, allowed: set[int | None]) -> int | None:
    """Return the number of the checkpoint; None if there is none. Fail if it is not whole or not one of `allowed`."""
    try:
        read = [value for value in tfckpt.load_file(prefix).values() if isinstance(value, torch.Tensor)]
        number = number_of([tensor for tensor in read if tensor.is_floating_point()])
    except tfckpt.NotFoundError as error:
        assert not os.path.exists(f"{prefix}.index"), error
        number = None
    else:
        assert number is not None, "mixed"
    assert number in allowed
    return number


def two_saves(folder: Path, old: bool, first_steps: int, second_steps: int) -> tuple[int, int]:
    """Two hosts save one prefix: the first takes some steps, then the second, then the first ends, then the second.

    Returns:
        The number of steps that each has taken in total.
    """
    folder.mkdir()
    prefix, steps = str(folder / "m"), Steps()
    if old:
        tfckpt.save_file(values(1), prefix)
    storages = [Stepping(Host(number), steps, number) for number in range(2)]
    writers = [BundleWriter(storage, prefix, num_shards=1 + who) for who, storage in enumerate(storages)]
    for who, writer in enumerate(writers):
        for shard, (name, tensor) in enumerate(values(10 + who).items()):
            writer.add(name, tensor, shard=shard % (1 + who))
    errors: list[BaseException] = []

    def finish(who: int) -> None:
        try:
            steps.wait_for_turn(who)
            writers[who].finish()
        except BaseException as error:
            errors.append(error)
        finally:
            steps.end(who)

    threads = [threading.Thread(target=finish, args=(who,)) for who in range(2)]
    taken = [0, 0]
    for who, thread in enumerate(threads):
        storages[who].active = True
        thread.start()
    allowed: set[int | None] = {1 if old else None, 10, 11}
    for who, count in ((0, first_steps), (1, second_steps), (0, 10_000), (1, 10_000)):
        for _ in range(count):
            taken[who] += 1
            done = storages[who].log[-1].partition(" ")[0] if storages[who].log else ""
            if not steps.step(who):
                break
            if done in ("replace", "link", "remove") and whole(prefix, allowed) is not None:
                allowed.discard(None)
    for thread in threads:
        thread.join()
    assert not errors, errors
    assert whole(prefix, {10, 11}) is not None
    return taken[0], taken[1]


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.heavy)])
@pytest.mark.parametrize("old", [False, True], ids=["new", "replacing"])
def test_two_hosts_that_save_one_prefix_in_any_order(old: bool, stride: int, tmp_path: Path) -> None:
    """At every step there is one whole checkpoint, and both saves return, though neither sees the other's locks."""
    with folder_in_memory(tmp_path) as folder:
        total, most = two_saves(folder / "all", old, 10_000, 10_000)
        assert total > 8 and most > 8
        for first in range(1, total, stride):
            for second in range(1, most + 8, stride):
                two_saves(folder / f"{first}-{second}", old, first, second)
