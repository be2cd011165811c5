"""A training run that saves all the time, which tests kill, interrupt, and start again.

As a program, `python training_script.py FOLDER WAY`, it exits while its only save is in progress.
"""

import itertools
import random
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from numbered import STEP, State
from own_threads import own_thread_names

import torch_tfckpt as tfckpt
from torch_tfckpt import BaseSaverBuilder, BulkSaverBuilder, Saver, SaverDef
from torch_tfckpt.transfer.staging import StagingOptions

# Some KiB to some MiB; the largest takes several buffers of a background save.
SIZES: Final = {
    "embedding": ("cpu:0", 300_000),
    "embedding/Adam": ("cpu:0", 300_000),
    "layer/bias": ("cpu:1", 700),
    "layer/kernel": ("cpu:1", 70_000),
    "layer/kernel/Adam": ("cpu:1", 70_000),
    "output/kernel": ("cpu:2", 2_000),
}
STAGING: Final = StagingOptions(buffer_bytes=1 << 20, async_bytes=2 << 20, threads=2)
KEPT: Final = 3
READY: Final = -1


def make_saver(state: State, builder: BaseSaverBuilder | None = None, **options: Any) -> Saver:
    defaults = {"sharded": True, "max_to_keep": KEPT, "recover": True, "staging": STAGING}
    return state.saver(builder=builder, **{**defaults, **options})


def train(folder: str, seed: int, reports: Connection) -> None:
    """Continue from the newest checkpoint, and save until killed. Report READY, then every number that is safe.

    Each run has a builder; each save randomly waits or runs in the background, with a new path or the last one.
    """
    chance = random.Random(seed)
    state = State(SIZES)
    reports.send(READY)
    with make_saver(state, chance.choice([BulkSaverBuilder(), BaseSaverBuilder()])) as saver:
        resume(saver, state, folder)
        path_number = first = int(state.tensors[STEP])
        for number in itertools.count(first + 1):
            state.fill(number)
            if number == first + 1 or chance.random() < 0.7:
                path_number = number
            if chance.random() < 0.5:
                saver.save(f"{folder}/m", path_number)
            else:
                handle = saver.save_async(f"{folder}/m", path_number)
                state.fill(10**6 + number)  # training continues
                handle.result()
            reports.send(number)


def resume(saver: Saver, state: State, folder: str) -> None:
    latest = tfckpt.latest_checkpoint(folder)
    if latest is not None:
        saver.restore(latest)
        number = int(state.tensors[STEP])
        expected = state.expected(number)
        assert all(tensor.equal(expected[name]) for name, tensor in state.tensors.items()), f"{latest} is not {number}"


def train_until_interrupted(folder: str, seed: int, reports: Connection) -> None:
    """`train` until Ctrl-C; the last report is the number of our threads that are left then."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        train(folder, seed, reports)
    except KeyboardInterrupt:
        until = time.monotonic() + 10
        while (left := own_thread_names()) and time.monotonic() < until:
            time.sleep(0.001)  # a background save may be finishing; a thread may be starting or ending
        reports.send(f"interrupted, left: {left}")


def alternate(folder: str, base: str, numbers: range, reports: Connection) -> None:
    """Save `numbers` under `base` while another process does the same; all kept checkpoints restore each time."""
    state = State()
    with state.saver(sharded=True, max_to_keep=2, save_relative_paths=True) as saver:
        for number in numbers:
            state.fill(number)
            saver.save(f"{folder}/{base}", number)
            for path in saver.last_checkpoints:
                saver.restore(path)
                assert f"{folder}/{base}-{int(state.tensors[STEP])}" == path
    reports.send(saver.last_checkpoints)


WAYS: Final[dict[str, Callable[[State], Saver]]] = {
    "bulk": make_saver,
    "parts": lambda state: make_saver(state, BaseSaverBuilder()),
    "version 1": lambda state: make_saver(state, write_version=SaverDef.V1, sharded=False),
}

if __name__ == "__main__":
    trained = State(SIZES)
    trained.fill(7)
    WAYS[sys.argv[2]](trained).save_async(Path(sys.argv[1]) / "m", 7)
    trained.fill(8)
