"""What every format offers to whoever reads it, tensor by tensor."""

from collections.abc import Iterable, Mapping
from typing import Protocol

from torch_tfckpt.exchange.values import TensorInfo, Value


class Source(Protocol):
    """A checkpoint or file, open for reading. Opening reads names and shapes, no tensor."""

    @property
    def path(self) -> str:
        """As the files themselves are called; may hold surrogate escapes."""

    @property
    def format(self) -> str:
        """For people: "safetensors", "TensorFlow checkpoint, version 2"."""

    @property
    def skipped(self) -> Mapping[str, str]:
        """What is in there and is no tensor -> what it is instead."""

    def names(self) -> list[str]:
        """In the order of the file."""

    def info(self, name: str) -> TensorInfo:
        """CheckpointError where this one tensor cannot be described."""

    def read(self, names: Iterable[str]) -> dict[str, Value]:
        """New values, contiguous and in host memory, which the caller may change.

        Raises:
            DataLossError, UnimplementedError: one of them is damaged, or is nothing that can be held.
        """

    def files(self) -> list[str]:
        """Everything that belongs to it, but its sidecar."""

    def data_bytes(self) -> int:
        """Size of the files that hold values, an index not counted: what its sidecar must agree with."""

    def close(self) -> None: ...
