"""TensorSource and TensorSink: the interfaces of every file format's reader and writer."""

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from torch_tfckpt.foreign_files.values import FileValue, TensorInfo
from torch_tfckpt.format.tensor_names import TensorNames
from torch_tfckpt.storage.publication import Publication


class TensorSource(Protocol):
    """A checkpoint or file that is open for reading. Opening it reads names and shapes but no tensors."""

    @property
    def path(self) -> str:
        """Path of the file or prefix of the checkpoint; may contain surrogate escapes."""

    @property
    def format(self) -> str:
        """Human-readable name of the format: "safetensors", "TensorFlow checkpoint, version 2"."""

    @property
    def skipped(self) -> Mapping[str, str]:
        """Name of each entry that is not a tensor -> its kind."""

    @property
    def object_names(self) -> TensorNames | None:
        """Other names of the tensors, if the source is an object-based checkpoint."""

    def names(self) -> list[str]:
        """Names of all tensors, in the order of the file."""

    def info(self, name: str) -> TensorInfo:
        """Dtype, shape and size of a tensor; raises CheckpointError if its entry is damaged."""

    def read(self, names: Iterable[str]) -> dict[str, FileValue]:
        """Read tensors into new, contiguous host memory, which the caller may change.

        Raises:
            DataLossError: a tensor is damaged.
            UnimplementedError: a tensor has a dtype that torch does not have.
        """

    def files(self) -> list[str]:
        """Paths of all files of the source except the sidecar."""

    def data_bytes(self) -> int:
        """Total size of the files that hold values, without an index.

        A sidecar stores this size to recognise the files that it belongs to.
        """

    def identity(self) -> str | None:
        """Identity of the files (`foreign_files.identity`); None if they do not have an identity.

        Raises if the files are damaged.
        """

    def close(self) -> None: ...


class DerivedSource:
    """Base class of sources that present the tensors of another source differently, from the same files."""

    def __init__(self, source: TensorSource) -> None:
        self._source = source

    @property
    def path(self) -> str:
        return self._source.path

    def files(self) -> list[str]:
        return self._source.files()

    def data_bytes(self) -> int:
        return self._source.data_bytes()

    def identity(self) -> str | None:
        return self._source.identity()

    def close(self) -> None:
        self._source.close()


def names_of(source: TensorSource) -> Callable[[str], tuple[str, ...]]:
    """Return a function that maps a key of `source` to all names of the tensor, starting with the key."""
    known = source.object_names
    return (lambda name: (name,)) if known is None else known.names_of


class TensorSink(Protocol):
    """A file or checkpoint to write. Call `refusal` for each tensor, then `plan`, `open`, `write` ..., `finish`."""

    @property
    def path(self) -> str:
        """The file, the prefix, or the name without shard numbers; the sidecar is named after it."""

    @property
    def format(self) -> str:
        """Human-readable name of the format."""

    def refusal(self, name: str, info: TensorInfo) -> str | None:
        """Return why the format cannot store this tensor; None if it can."""

    def noted_type(self, info: TensorInfo) -> bool:
        """Return whether the tensor is written as plain numbers, without its dtype."""

    def plan(self, tensors: Mapping[str, TensorInfo], *, sidecar: bool = False) -> list[str]:
        """Decide the layout; return the names in the order in which `write` needs them. No file is touched.

        Args:
            sidecar: Whether there will be a sidecar.
        """

    def files(self) -> list[str]:
        """Paths of the files that will be published, or have been. Call `plan` first."""

    def replaced(self) -> list[str]:
        """Paths of other files of an earlier target, which publishing removes. Call `plan` first."""

    def open(self, publication: Publication) -> None:
        """Create the files under temporary names and register them with `publication`."""

    def write(self, values: Mapping[str, FileValue]) -> None:
        """Write some tensors, in the order of `plan`."""

    def finish(self) -> int:
        """Write the rest; return the `TensorSource.data_bytes` of the result."""

    def identity(self) -> str | None:
        """Return the `TensorSource.identity` of the result. Call `finish` first."""

    def close(self) -> None:
        """Close the files, even after an error. The publication publishes or removes them."""
