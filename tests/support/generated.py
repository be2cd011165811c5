"""Dictionaries of tensors for comparison with TensorFlow: every dtype, shape and kind of name that it can write.

Generated from a seed, so that failures are reproducible. The TensorFlow process gets the same values as `RawTensor`s.
"""

import random
from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from tensorflow_process import RawTensor

from torch_tfckpt.dtypes import STORED_AS
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.values import WritableValue

# Types that torch represents by another dtype: stored type -> torch dtype and TensorFlow's name.
UNDER_ANOTHER_NAME: Final = {
    DataType.DT_QINT8: (torch.int8, "qint8"),
    DataType.DT_QUINT8: (torch.uint8, "quint8"),
    DataType.DT_QINT16: (torch.int16, "qint16"),
    DataType.DT_QUINT16: (torch.uint16, "quint16"),
    DataType.DT_QINT32: (torch.int32, "qint32"),
    DataType.DT_INT4: (torch.int8, "int4"),
    DataType.DT_UINT4: (torch.uint8, "uint4"),
}
SHAPES: Final = ((), (1,), (5,), (2, 3), (4, 1, 3), (0,), (0, 3), (7, 0, 2), (3, 2, 2, 2))
NAMES: Final = (
    "global_step", "dense/kernel", "dense/bias", "dense/kernel/Adam", "dense/kernel/Adam_1", "dense_1/kernel",
    "größe/w", "日本語", "x", "X", "a b", "v:0", "layer.0",
    "model/layer_with_weights-0/kernel/.ATTRIBUTES/VARIABLE_VALUE",
)  # fmt: skip


class Named:
    """One value, for this package and for TensorFlow."""

    def __init__(self, value: WritableValue, raw: RawTensor, dtype: DataType | None = None) -> None:
        self.value, self.raw, self.dtype = value, raw, dtype


def dictionary(seed: int) -> dict[str, Named]:
    """A few dozen tensors at most; every tenth dictionary fills more than one block of the index."""
    rng = random.Random(seed)
    if seed % 10 == 9:
        return {name: _numeric(rng, torch.float32, ()) for name in _many_names(rng)}
    names = [*rng.sample(NAMES, rng.randint(1, len(NAMES))), *(f"block_{i}/w" for i in range(rng.randint(0, 40)))]
    rng.shuffle(names)
    return {name: _any(rng) for name in names}


def _many_names(rng: random.Random) -> Iterator[str]:
    """Names that take more than the 262,144 bytes of one block even with prefix compression."""
    for number in range(rng.randint(3200, 4000)):
        yield f"{rng.getrandbits(480):x}/{number}"


def _any(rng: random.Random) -> Named:
    kind = rng.random()
    shape = rng.choice(SHAPES)
    if kind < 0.2:
        return _strings(rng, shape)
    if kind < 0.35:
        stored, (dtype, name) = rng.choice(list(UNDER_ANOTHER_NAME.items()))
        value = _numeric(rng, dtype, shape)
        return Named(value.value, RawTensor(name, shape, value.raw.data), stored)
    return _numeric(rng, rng.choice(list(STORED_AS)), shape)


def _numeric(rng: random.Random, dtype: torch.dtype, shape: tuple[int, ...]) -> Named:
    count = int(np.prod(shape, dtype=np.int64))
    if dtype == torch.bool:
        tensor = torch.tensor([rng.random() < 0.5 for _ in range(count)], dtype=torch.bool).reshape(shape)
    else:
        # Any bit pattern, including NaNs and denormals: bytes are compared, not numbers.
        data = bytearray(rng.randbytes(count * dtype.itemsize))
        tensor = (torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)).reshape(shape)
    return Named(tensor, RawTensor.of(tensor))


def _strings(rng: random.Random, shape: tuple[int, ...]) -> Named:
    count = int(np.prod(shape, dtype=np.int64))
    flat = np.empty(count, dtype=object)
    flat[:] = [rng.randbytes(rng.choice((0, 1, 5, 127, 128, 300))) for _ in range(count)]
    array = flat.reshape(shape)
    return Named(array, RawTensor.of(array))
