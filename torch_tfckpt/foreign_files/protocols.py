"""TensorSource and TensorSink: what every file format offers to its reader and its writer, tensor by tensor."""

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from torch_tfckpt.foreign_files.values import FileValue, TensorInfo
from torch_tfckpt.format.tensor_names import TensorNames
from torch_tfckpt.storage.publication import Publication


class TensorSource(Protocol):
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

    @property
    def object_names(self) -> TensorNames | None:
        """The other names of its tensors if it is an object-based checkpoint."""

    def names(self) -> list[str]:
        """In the order of the file."""

    def info(self, name: str) -> TensorInfo:
        """CheckpointError where this one tensor cannot be described."""

    def read(self, names: Iterable[str]) -> dict[str, FileValue]:
        """New values, contiguous and in host memory, which the caller may change.

        Raises:
            DataLossError, UnimplementedError: one of them is damaged, or is nothing that can be held.
        """

    def files(self) -> list[str]:
        """Everything that belongs to it, but its sidecar."""

    def data_bytes(self) -> int:
        """Size of the files that hold values, an index not counted: what its sidecar must agree with."""

    def close(self) -> None: ...


def names_of(source: TensorSource) -> Callable[[str], tuple[str, ...]]:
    """Return a function that returns all names of a tensor of `source`, its own first."""
    known = source.object_names
    return (lambda name: (name,)) if known is None else known.names_of


class TensorSink(Protocol):
    """A target. In order: `refusal` for each tensor, `plan`, `open`, `write` until all are written, `finish`."""

    @property
    def path(self) -> str:
        """What its sidecar is named after: file, prefix, or the file that shards make up."""

    @property
    def format(self) -> str:
        """For people."""

    def refusal(self, name: str, info: TensorInfo) -> str | None:
        """Why this tensor cannot be in there; None where it can."""

    def noted_type(self, info: TensorInfo) -> bool:
        """Whether the tensor is held as plain numbers from which its type cannot be told."""

    def plan(self, tensors: Mapping[str, TensorInfo]) -> list[str]:
        """Decides where everything goes; the order in which values are wanted. Touches no file."""

    def files(self) -> list[str]:
        """What will be published. REQUIRES: planned."""

    def open(self, publication: Publication) -> None:
        """Creates the files under temporary names, and arranges for `publication` to publish them."""

    def write(self, values: Mapping[str, FileValue]) -> None:
        """Some tensors, in the order of `plan`."""

    def finish(self) -> int:
        """All bytes are written. Returns what `TensorSource.data_bytes` will say."""

    def close(self) -> None:
        """Lets go of the files, also after an error. Publishing is the publication's."""
