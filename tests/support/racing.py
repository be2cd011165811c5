"""Processes that save the same prefix at once, by every writer of version 2 checkpoints, and one that reads it."""

import itertools
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from typing import Final

import torch
from killed_writers import WRITERS, number_of, values

import torch_tfckpt as tfckpt
from torch_tfckpt.bundle.writer import BundleWriter
from torch_tfckpt.storage.local import LOCAL


def save_in_shards(target: str, number: int) -> None:
    """Save in one to three shards, so that the data files of overlapping saves have other names, too."""
    shards = 1 + number % 3
    with BundleWriter(LOCAL, target, num_shards=shards) as writer:
        for shard, (name, tensor) in enumerate(values(number).items()):
            writer.add(name, tensor, shard=shard % shards)


WAYS: Final[Sequence[Callable[[str, int], None]]] = (
    WRITERS["save_file"].write,
    save_in_shards,
    WRITERS["Saver"].write,
    WRITERS["Checkpoint"].write,
    save_in_shards,
    WRITERS["Saver sharded"].write,
    WRITERS["save_file"].write,
    WRITERS["Saver async"].write,
)


def save_again_and_again(target: str, rank: int, ranks: int, saves: int, begin: Event, reports: Connection) -> None:
    """Save numbers of its own under `target`; report errors."""
    torch.set_num_threads(1)
    begin.wait()
    errors = []
    for number in range(rank + 1, saves * ranks + 1, ranks):
        try:
            WAYS[rank % len(WAYS)](target, number)
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
    reports.send(errors)


def read_until(target: str, begin: Event, end: Event, reports: Connection) -> None:
    """Read `target` all the time; report how often, and everything that was not whole."""
    torch.set_num_threads(1)
    begin.wait()
    wrong: list[str] = []
    seen: set[int] = set()
    for count in itertools.count():
        if end.is_set():
            reports.send((count, len(seen), wrong))
            return
        try:
            read = [value for value in tfckpt.load_file(target).values() if isinstance(value, torch.Tensor)]
            number = number_of([tensor for tensor in read if tensor.is_floating_point()])
        except tfckpt.NotFoundError as error:
            if seen:
                wrong.append(str(error))
            time.sleep(0.001)
        except Exception as error:
            wrong.append(f"{type(error).__name__}: {error}")
        else:
            if number is None:
                wrong.append("mixed")
            else:
                seen.add(number)
