"""Every writer of the package as a process that writes until it is killed, and what its output must look like.

The values of one output are all the same number, so whoever reads it sees whether it is whole, and which one it is.
"""

import itertools
import os
import random
import re
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import safetensors.torch
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt.bundle.merge import merge_bundles
from torch_tfckpt.saveables.save_spec import SaveSpec
from torch_tfckpt.saveables.tensor_saveable import VariableSaveable
from torch_tfckpt.storage.local import LOCAL

SIZES: Final = {"a": 40_000, "b": 300, "c": 5}
for _name in tfckpt.__all__:
    getattr(tfckpt, _name)  # imports its module, before processes are forked
READY: Final = -1
NAMES: Final = 3  # outputs that a process writes to, one of them several times


class OnDevice(VariableSaveable):
    """A tensor that is saved as if it were on device number `number`."""

    def __init__(self, tensor: torch.Tensor, name: str, number: int) -> None:
        super().__init__(tensor, "", name)
        self.specs = [SaveSpec(tensor, "", name, device=f"cpu:{number}")]


def values(number: int) -> dict[str, torch.Tensor]:
    return {name: torch.full((size,), float(number)) for name, size in SIZES.items()}


def on_devices(number: int) -> dict[str, OnDevice]:
    return {name: OnDevice(tensor, name, at) for at, (name, tensor) in enumerate(values(number).items())}


def _saver(target: str, number: int, **options: object) -> None:
    tfckpt.Saver(on_devices(number), **options).save(target, write_meta_graph=number % 3 == 0)  # type: ignore[arg-type]


def _save_async(target: str, number: int) -> None:
    tfckpt.Saver(on_devices(number), sharded=True).save_async(target).result()


def _checkpoint(target: str, number: int) -> None:
    tfckpt.Checkpoint(**values(number)).write(target)


def _manager(target: str, number: int) -> None:
    path = Path(target)
    manager = tfckpt.CheckpointManager(
        tfckpt.Checkpoint(**values(number)), path.parent, max_to_keep=NAMES, checkpoint_name="managed"
    )
    manager.save(checkpoint_number=number)


def _save_model(target: str, number: int) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(200, 200), torch.nn.Linear(200, 5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(number)
    tfckpt.save_model(model, target)


def _convert(target: str, number: int, **options: object) -> None:
    source = Path(target).parent / "sources" / "in"
    tfckpt.save_file(values(number), source)
    tfckpt.convert(source, target, **options)  # type: ignore[arg-type]


def _merge(target: str, number: int) -> None:
    sources = [str(Path(target).parent / "sources" / f"part-{name}") for name in SIZES]
    for source, (name, tensor) in zip(sources, values(number).items(), strict=True):
        tfckpt.save_file({name: tensor}, source)
    merge_bundles(LOCAL, sources, target)


def _load_checkpoint(path: str) -> list[torch.Tensor]:
    return [
        value
        for value in tfckpt.load_file(path).values()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    ]


def _load_npz(path: str) -> list[torch.Tensor]:
    with np.load(path) as arrays:
        return [torch.from_numpy(arrays[name]) for name in arrays.files]


def _load_pt(path: str) -> list[torch.Tensor]:
    return list(torch.load(path, weights_only=True).values())


def _load_safetensors(path: str) -> list[torch.Tensor]:
    return list(safetensors.torch.load_file(path).values())


class Writer(NamedTuple):
    """One way to write the values of a number to a path, and to read them back."""

    write: Callable[[str, int], None]
    load: Callable[[str], list[torch.Tensor]] = _load_checkpoint
    ending: str = ""
    found: str = r"(.*)\.index"  # names of files that show that an output exists


WRITERS: Final[dict[str, Writer]] = {
    "Saver": Writer(_saver),
    "Saver sharded": Writer(lambda target, number: _saver(target, number, sharded=True)),
    "Saver in parts": Writer(
        lambda target, number: _saver(target, number, sharded=True, builder=tfckpt.BaseSaverBuilder())
    ),
    "Saver async": Writer(_save_async),
    "Saver version 1": Writer(
        lambda target, number: _saver(target, number, write_version=tfckpt.SaverDef.V1), found=r"(out-\d+)"
    ),
    "Saver version 1 sharded": Writer(
        lambda target, number: _saver(target, number, write_version=tfckpt.SaverDef.V1, sharded=True),
        found=r"(out-\d+)-00000-of-00003",
        ending="-?????-of-00003",
    ),
    "Checkpoint": Writer(_checkpoint),
    "CheckpointManager": Writer(_manager),
    "save_file": Writer(lambda target, number: void(tfckpt.save_file(values(number), target))),
    "save_model": Writer(_save_model),
    "convert to tf": Writer(lambda target, number: _convert(target, number, to="tf")),
    "convert to npz": Writer(_convert, _load_npz, ".npz", r"(.*)\.npz"),
    "convert to pt": Writer(_convert, _load_pt, ".pt", r"(.*)\.pt"),
    "convert to safetensors": Writer(_convert, _load_safetensors, ".safetensors", r"(.*)\.safetensors"),
    "merge": Writer(_merge),
}


def void(_: object) -> None:
    """Return nothing."""


def number_of(tensors: list[torch.Tensor]) -> int | None:
    """Return the number that all values are; None if they are not all the same."""
    everything = torch.cat([tensor.reshape(-1) for tensor in tensors])
    first = float(everything[0])
    return int(first) if bool((everything == first).all()) else None


def write_until_killed(name: str, folder: str, seed: int, first: int, reports: Connection) -> None:
    """Write numbers from `first` on, each to a new or an old name.

    Reports READY, then (number, output) whenever an output is safe.
    """
    torch.set_num_threads(1)
    chance, writer = random.Random(seed), WRITERS[name]
    ending = writer.ending if writer.ending.startswith(".") else ""
    reports.send(READY)
    for number in itertools.count(first):
        output = f"out-{chance.randrange(NAMES)}"
        with suppress(FileNotFoundError):
            writer.write(f"{folder}/{output}{ending}", number)
            reports.send((number, output))


def orphans_in(name: str, folder: Path) -> list[str]:
    """Return the files that belong to no output of the writer: data files that no index has, meta graphs, sidecars."""
    found, files = re.compile(WRITERS[name].found), {path.name for path in folder.iterdir() if path.is_file()}
    used = {"checkpoint", "checkpoint.retention.json"}
    for file in files:
        match = found.fullmatch(file)
        if match is None:
            continue
        output = match[1]
        used |= {file, f"{output}.meta", f"{output}{WRITERS[name].ending}.tfckpt.json"}
        if file.endswith(".index"):
            with tfckpt.load_checkpoint(folder / output) as reader:
                shards = {file for key in reader.keys() for file in reader.locate(key)}
            used |= {os.path.basename(shard) for shard in shards}
        used |= {f"{output}-{shard:05d}-of-00003" for shard in range(3)}
    return sorted(files - used)


class State(NamedTuple):
    """What is in a directory: output -> number, and outputs that are not whole."""

    numbers: dict[str, int]
    mixed: list[str]
    unreadable: list[str]


def state_of(name: str, folder: Path) -> State:
    writer, state = WRITERS[name], State({}, [], [])
    for path in sorted(folder.iterdir()):
        match = re.fullmatch(writer.found, path.name)
        if match is None or path.is_dir():
            continue
        output = match[1]
        try:
            number = number_of(writer.load(f"{folder}/{output}{writer.ending}"))
        except Exception as error:
            state.unreadable.append(f"{output}: {error}")
            continue
        if number is None:
            state.mixed.append(output)
        else:
            state.numbers[output] = number
    return state
