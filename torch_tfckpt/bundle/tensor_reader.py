"""TensorReader: the interface through which CheckpointReader reads each format.

`BundleReader` implements all of it. The readers of other formats inherit defaults for what they do not support:
views of the file's pages, the bytes as stored, and indexes that are only partly readable.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, Self

import torch

from torch_tfckpt.bundle.check import Verification
from torch_tfckpt.bundle.planned_read import PartRequest
from torch_tfckpt.errors import UnimplementedError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_slice import Shape, TensorSlice
from torch_tfckpt.text import quoted
from torch_tfckpt.values import LoadedValue


class TensorReader(Protocol):
    """The tensors of an open file or checkpoint, by their keys.

    Every method that takes a name raises NotFoundError if it is not a key.

    Attributes:
        path: The file, prefix or pattern, in printable form.
        version: Version of TensorFlow's format, 1 or 2; 0 for other formats.
    """

    path: str
    version: int

    def keys(self) -> list[str]:
        """Return the names of all tensors, sorted."""

    def undamaged_keys(self) -> tuple[list[str], list[str]]:
        """Return the names that a damaged index still lists, and the damage in the rest of the index."""
        return self.keys(), []

    def __contains__(self, name: object) -> bool: ...

    def describe(self, name: str) -> tuple[Shape, DataType]:
        """Return the shape and the element type of a tensor."""
        return self.shape(name), self.dtype(name)

    def describe_all(self, names: Sequence[str]) -> list[tuple[Shape, DataType] | None]:
        """Return `describe` of each name; None for names that are not there."""
        return [self.describe(name) if name in self else None for name in names]

    def shape(self, name: str) -> Shape:
        """Return the full shape of a tensor."""

    def dtype(self, name: str) -> DataType:
        """Return the element type of a tensor; DT_INVALID if TensorFlow has no such type."""

    def slices(self, name: str) -> tuple[TensorSlice, ...]:
        """Return the slices in which a tensor is stored; empty if it is stored whole."""

    def nbytes(self, name: str) -> int:
        """Return the size of the values in bytes."""

    def locate(self, name: str) -> list[str]:
        """Return the files that contain a tensor."""

    def read(self, name: str, out: torch.Tensor | None = None) -> LoadedValue:
        """Read a tensor into `out`, or into a new contiguous CPU tensor."""

    def read_slice(self, name: str, part: TensorSlice, out: torch.Tensor | None = None) -> LoadedValue:
        """Read one part of a tensor into `out`, or into a new CPU tensor."""

    def read_into(self, requests: Iterable[PartRequest]) -> None:
        """Fill several tensors, each with one part of a stored tensor, or with all of it (None)."""
        for name, part, out in requests:
            if part is None:
                self.read(name, out)
            else:
                self.read_slice(name, part, out)

    def verify_in_place(self, requests: Iterable[PartRequest]) -> Callable[[], None] | None:
        """Verify tensors, and return a function that then fills them; None if a second read costs as much as the first.

        If the function fails, a note on its error lists the tensors that may have changed.
        """
        return None

    def read_all(self, names: Iterable[str], out: Mapping[str, torch.Tensor] | None = None) -> dict[str, LoadedValue]:
        """Read several tensors, in the order given; `out` maps some of the names to tensors to fill."""

    def verify_all(self, names: Iterable[str]) -> None:
        """Verify several tensors without keeping their values; raise DataLossError if one is damaged."""
        for name in dict.fromkeys(names):
            self.read(name)

    def map(self, name: str) -> LoadedValue:
        """Return a tensor as a view of the file's pages if possible; otherwise read it."""
        return self.read(name)

    def map_all(self, names: Iterable[str]) -> dict[str, LoadedValue]:
        """Return the results of `map` for several tensors."""
        return self.read_all(names)

    def read_stored(self, name: str) -> bytes:
        """Return the bytes of a tensor as stored."""
        raise UnimplementedError(f"{self.path}: the bytes of {quoted(name)} cannot be read as stored. Use get_tensor")

    def check(self, progress: Callable[[int], object] | None = None) -> Verification:
        """Read everything and report the damage; `progress` is called with numbers of bytes."""

    def close(self) -> None:
        """Close all files."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
