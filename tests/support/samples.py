"""Small checkpoints of every kind, written by this package, with their values."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from torch_tfckpt.bundle.writer import BundleWriter
from torch_tfckpt.format.tensor_slice import TensorSlice
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.v1.writer import SlicesWriter
from torch_tfckpt.values import Strings, Value


class Sample(NamedTuple):
    """One checkpoint on disk."""

    path: Path  # path to open
    files: list[Path]
    values: dict[str, Value]


def strings(*elements: bytes) -> Strings:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array


def v2_plain(folder: Path, alignment: int = 1) -> Sample:
    """One shard: a matrix, a scalar, strings, bfloat16, an empty tensor."""
    values: dict[str, Value] = {
        "bf16": torch.tensor([1.5, -2.0, 0.25], dtype=torch.bfloat16),
        "empty": torch.zeros(0, 3),
        "matrix": torch.arange(6, dtype=torch.float32).reshape(2, 3) + 0.5,
        "scalar": torch.tensor(7, dtype=torch.int64),
        "strings": strings(b"hello", b"", b"x01"),
    }
    path = folder / "plain"
    with BundleWriter(LOCAL, str(path), alignment=alignment) as writer:
        for name, value in values.items():
            writer.add(name, value)
    return Sample(path, [folder / "plain.index", folder / "plain.data-00000-of-00001"], values)


def v2_aligned(folder: Path) -> Sample:
    """As `v2_plain`, with gaps of zeros between the tensors."""
    return v2_plain(folder, alignment=16)


def v2_sharded(folder: Path) -> Sample:
    """Two shards; one tensor in three slices across them, one string tensor in two."""
    matrix = torch.arange(20, dtype=torch.float32).reshape(4, 5) - 3
    words = strings(b"north", b"east", b"south")
    values: dict[str, Value] = {
        "a": torch.tensor([1, -2, 3], dtype=torch.int16),
        "matrix": matrix,
        "words": words,
        "z": torch.tensor([True, False]),
    }
    path = folder / "sharded"
    with BundleWriter(LOCAL, str(path), num_shards=2) as writer:
        writer.add("a", values["a"])
        writer.add("z", values["z"], shard=1)
        for shard, text in enumerate(("0,2:-", "2,2:0,1", "2,2:1,4")):
            part = TensorSlice.parse(text)
            writer.add_slice("matrix", (4, 5), part, matrix[part.to_index()], shard=shard % 2)
        for shard, text in enumerate(("0,2", "2,1")):
            part = TensorSlice.parse(text)
            writer.add_slice("words", (3,), part, words[part.to_index()], shard=shard)
    data = [folder / f"sharded.data-0000{shard}-of-00002" for shard in range(2)]
    return Sample(path, [folder / "sharded.index", *data], values)


def v1(folder: Path) -> Sample:
    """One version 1 file: floats, integers, strings, a scalar, a tensor in two slices."""
    rows = torch.arange(8, dtype=torch.float64).reshape(4, 2)
    values: dict[str, Value] = {
        "floats": torch.tensor([[0.5, -1.25], [3.0, 1e30]]),
        "integers": torch.tensor([-1, 300, 2**40], dtype=torch.int64),
        "rows": rows,
        "scalar": torch.tensor(2.5),
        "strings": strings(b"hello", b"", b"x01"),
    }
    path = folder / "v1"
    with SlicesWriter(LOCAL, str(path)) as writer:
        for name, value in values.items():
            if name != "rows":
                writer.add(name, value)
        for text in ("0,1:-", "1,3:-"):
            part = TensorSlice.parse(text)
            writer.add("rows", rows[part.to_index()], shape=(4, 2), part=part)
    return Sample(path, [path], values)


SAMPLES: dict[str, Callable[[Path], Sample]] = {
    "v2_plain": v2_plain,
    "v2_sharded": v2_sharded,
    "v1": v1,
}
