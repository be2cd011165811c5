"""The one reader that users see, over both versions.

    with load_checkpoint("model.ckpt-1000") as reader:
        for name in reader.keys():
            print(name, reader.dtype(name).name, reader.shape(name))
        kernel = reader.get_tensor("dense/kernel")
        rows = reader.get_slice("embedding")[100:200]

Names are tf.train's; the layout of every tensor is TensorFlow's (a Keras Dense kernel is [in, out]).
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from types import EllipsisType
from typing import Self

import numpy as np
import torch

from torch_tfckpt.bundle.check import Verification, check_bundle
from torch_tfckpt.bundle.reader import BundleReader
from torch_tfckpt.directory.locate import CheckpointFiles, find_checkpoint
from torch_tfckpt.errors import DataLossError, InvalidArgumentError, UnimplementedError, error_context
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.object_graph import OBJECT_GRAPH_KEY, ObjectGraph
from torch_tfckpt.format.tensor_slice import Extent, Shape, TensorSlice, shape_text
from torch_tfckpt.storage.choice import storage_of
from torch_tfckpt.storage.names import AnyPath as AnyPath
from torch_tfckpt.storage.names import fspath
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.text import quoted
from torch_tfckpt.v1.reader import SlicesReader
from torch_tfckpt.values import Value

AxisIndex = int | slice
Index = AxisIndex | EllipsisType | tuple[AxisIndex | EllipsisType, ...]

_log = logging.getLogger(__name__)


class CheckpointReader:
    """Reads one checkpoint.

    Args:
        path: A prefix; a file of the checkpoint (.index, .data-..., .meta); a version 1 file or a pattern of such; a
            directory with a `checkpoint` file; a SavedModel directory.
        verify: Whether to hold the bytes read against their checksums.
        storage: Where files are stored; None chooses by the path: this machine, or what a URL such as
            s3://bucket/model leads to.

    Raises:
        NotFoundError: nothing is there; the text names what is there instead.
        DataLossError: the index is damaged, or the file is something else.
        InvalidArgumentError: the directory holds several checkpoints, or the format is of another version.

    Cost: opening reads the end of each index and no tensor. All files are opened at once and stay open: the reader
    keeps working, with the same values, while a writer replaces or deletes the checkpoint.
    Threads: safe.
    """

    def __init__(self, path: AnyPath, *, verify: bool = True, storage: Storage | None = None) -> None:
        where = fspath(path)
        self.storage = storage or storage_of(where)
        files = find_checkpoint(self.storage, where)
        self._reader = _open(self.storage, files, verify)
        self._object_graph: ObjectGraph | None = None
        self.files = files

    @property
    def path(self) -> str:
        """Prefix, file or pattern, as it can be printed."""
        return self._reader.path

    @property
    def version(self) -> int:
        """1 or 2."""
        return self._reader.version

    def keys(self) -> list[str]:
        """Names of all tensors, sorted. A partitioned tensor has one name."""
        return self._reader.keys()

    def undamaged_keys(self) -> tuple[list[str], list[str]]:
        """Names of the tensors that a damaged index still lists, and what is wrong with the rest of the index.

        As `keys()` and an empty list if the index is undamaged. The tensors themselves may be damaged all the same.
        """
        return (self.keys(), []) if isinstance(self._reader, SlicesReader) else self._reader.undamaged_keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __contains__(self, name: object) -> bool:
        return name in self._reader

    def has_tensor(self, name: str) -> bool:
        """Whether there is a tensor of that name. Cost: one block of the index."""
        return name in self._reader

    def shape(self, name: str) -> Shape:
        """Full shape of `name`; NotFoundError where there is none."""
        return self._reader.shape(name)

    def dtype(self, name: str) -> DataType:
        """TensorFlow's element type, also where torch holds the values under another."""
        return self._reader.dtype(name)

    def slices(self, name: str) -> tuple[TensorSlice, ...]:
        """The parts in which a partitioned tensor is stored; empty where it is stored whole."""
        return self._reader.slices(name)

    def nbytes(self, name: str) -> int:
        """Bytes of the values; of strings, their bytes in the file."""
        return self._reader.nbytes(name)

    def locate(self, name: str) -> list[str]:
        """Paths of the data files that hold `name`."""
        return self._reader.locate(name)

    def get_tensor(self, name: str, out: torch.Tensor | None = None) -> Value:
        """Return the full tensor stored under `name`.

        Args:
            name: As in `keys()`, e.g. "layer/kernel/.ATTRIBUTES/VARIABLE_VALUE".
            out: Tensor to fill, of the stored shape and dtype, any device, any strides. A CUDA `out` is filled on the
                current stream. None allocates a contiguous CPU tensor.

        Returns:
            `out`, or a new tensor of the stored shape. Strings come as a numpy array of `bytes` objects, quantized
            integers as the plain integers. No layout change.

        Raises:
            NotFoundError: `name` is not in the checkpoint, or the data file that holds it is missing.
            InvalidArgumentError: shape or dtype of `out` differs from the stored one; `out` is untouched.
            DataLossError: length or checksum is wrong; `out` may be partly written.
            UnimplementedError: torch has no such dtype (variant, resource, float8_e4m3b11fnuz).

        Cost: one read of the stored bytes; host memory of one stored slice beyond `out`.
        """
        return self._reader.read(name, out)

    def get_tensors(self, names: Iterable[str]) -> dict[str, Value]:
        """Several tensors in one plan: what lies side by side is read together, large ones in parallel."""
        return self._reader.read_all(names)

    def map_tensor(self, name: str) -> Value:
        """The tensor as a view of the file's pages, where they can serve as one; else as `get_tensor`.

        Changes to it stay private to the process. Version 1 files hold no plain bytes; their tensors are decoded.
        """
        if isinstance(self._reader, SlicesReader):
            return self._reader.read(name)
        return self._reader.map(name)

    def map_tensors(self, names: Iterable[str]) -> dict[str, Value]:
        """`map_tensor` of each name."""
        if isinstance(self._reader, SlicesReader):
            return self._reader.read_all(names)
        return self._reader.map_all(names)

    def get_stored_bytes(self, name: str) -> bytes:
        """The bytes of `name` as they lie in the file, their checksum verified: for what torch cannot hold.

        UnimplementedError for partitioned tensors and for version 1.
        """
        if isinstance(self._reader, SlicesReader):
            raise UnimplementedError(f"{self.path}: tensor {quoted(name)}: version 1 files hold messages, not bytes")
        return self._reader.read_stored(name)

    def get_slice(self, name: str) -> "StoredTensor":
        """A handle on `name` that reads what is indexed: `reader.get_slice(name)[2:5]`."""
        return StoredTensor(self, name)

    def read_slice(self, name: str, part: TensorSlice) -> Value:
        """The part `part` of `name`, whichever way it is stored. Errors as `get_tensor`."""
        return self._reader.read_slice(name, part)

    def get_variable_to_shape_map(self) -> dict[str, list[int]]:
        """Name -> shape. A tensor whose entry is damaged is left out and logged."""
        return {name: list(shape) for name, shape, _ in self._sound_tensors()}

    def get_variable_to_dtype_map(self) -> dict[str, DataType]:
        """Name -> element type. A tensor whose entry is damaged is left out and logged."""
        return {name: dtype for name, _, dtype in self._sound_tensors()}

    def debug_string(self) -> str:
        """One line a tensor: `dense/kernel (DT_FLOAT) [784,10]`, with `, k slices` where there are several."""
        lines = []
        for name, shape, dtype in self._sound_tensors():
            count = len(self.slices(name))
            suffix = f", {count} slices" if count > 1 else ""
            lines.append(f"{name} ({dtype.name}) {shape_text(shape)}{suffix}")
        return "\n".join(lines)

    def check(self, progress: Callable[[int], object] | None = None) -> Verification:
        """Reads everything and says what is good and what is damaged; damage is a result, not an error.

        Args:
            progress: Called with the number of bytes checked since the last call.

        Cost: one read of all files; memory of one chunk a thread, or of one string tensor.
        """
        if isinstance(self._reader, SlicesReader):
            return self._reader.check(progress)
        return check_bundle(self._reader, progress)

    @property
    def object_graph(self) -> ObjectGraph | None:
        """The objects that the tensors belong to; None of a checkpoint whose tensors are stored by name alone.

        DataLossError where the graph is damaged; the tensors can be read all the same. Cost: the first time, one read
        of the graph, and memory of several times its size.
        """
        if self._object_graph is None and OBJECT_GRAPH_KEY in self:
            with error_context(f"{self.path}: tensor {quoted(OBJECT_GRAPH_KEY)}"):
                value = (
                    self.get_tensor(OBJECT_GRAPH_KEY) if self.dtype(OBJECT_GRAPH_KEY) == DataType.DT_STRING else None
                )
                if not isinstance(value, np.ndarray) or value.shape != ():
                    raise DataLossError("this is not the one string that holds an object graph")
                self._object_graph = ObjectGraph.decode(value.item())
        return self._object_graph

    def close(self) -> None:
        """Closes the files. Tensors already read, mapped ones too, stay valid."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _sound_tensors(self) -> Iterator[tuple[str, Shape, DataType]]:
        """All tensors whose entry is sound; the others are logged."""
        for name in self.keys():
            try:
                shape, dtype = self._reader.describe(name)
            except DataLossError as error:
                _log.warning("left out: %s", error)
            else:
                yield name, shape, dtype


class StoredTensor:
    """A tensor in a checkpoint, read as it is indexed: integers, slices with positive steps, and one ellipsis."""

    def __init__(self, reader: CheckpointReader, name: str) -> None:
        self._reader, self._name = reader, name
        self.shape = reader.shape(name)

    def get_shape(self) -> list[int]:
        return list(self.shape)

    def get_dtype(self) -> DataType:
        return self._reader.dtype(self._name)

    def __getitem__(self, index: Index) -> Value:
        """The elements at `index`, with the shape that a tensor would give.

        Raises:
            InvalidArgumentError: an index is out of range, of another kind, or one too many.

        Cost: the bytes from the first to the last element; the first time also the rest of the stored tensor, which is
        summed and not kept, to verify the checksum.
        """
        axes = self._axes(index)
        extents: list[Extent] = []
        after: list[AxisIndex] = []
        for axis, (wanted, size) in enumerate(zip(axes, self.shape, strict=True)):
            if isinstance(wanted, slice):
                start, stop, step = self._bounds(wanted, axis, size)
                extents.append(Extent(start, max(0, stop - start)))
                after.append(slice(None, None, step))
            else:
                extents.append(Extent(self._position(wanted, axis, size), 1))
                after.append(0)
        value = self._reader.read_slice(self._name, TensorSlice(tuple(extents)))
        return value[tuple(after)] if after else value

    def _axes(self, index: Index) -> list[AxisIndex]:
        items = list(index) if isinstance(index, tuple) else [index]
        rank = len(self.shape)
        if sum(item is ... for item in items) > 1 or sum(item is not ... for item in items) > rank:
            raise InvalidArgumentError(f"{self._what()}: index {index} has too many parts for rank {rank}")
        axes: list[AxisIndex] = []
        for item in items if any(item is ... for item in items) else [*items, ...]:
            if isinstance(item, EllipsisType):
                axes += [slice(None)] * (rank - len(items) + any(other is ... for other in items))
            else:
                axes.append(item)
        return axes

    def _bounds(self, wanted: slice, axis: int, size: int) -> tuple[int, int, int]:
        try:
            start, stop, step = wanted.indices(size)
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError(f"{self._what()}: index of dimension {axis}: {error}") from error
        if step < 1:
            raise InvalidArgumentError(f"{self._what()}: step {step} in dimension {axis}; steps are positive")
        return start, stop, step

    def _position(self, wanted: object, axis: int, size: int) -> int:
        if not isinstance(wanted, int) or isinstance(wanted, bool):
            raise InvalidArgumentError(
                f"{self._what()}: index of dimension {axis} is a {type(wanted).__name__}; take integers and slices"
            )
        if not -size <= wanted < size:
            raise InvalidArgumentError(f"{self._what()}: index {wanted} is out of range in dimension {axis}")
        return wanted % size

    def _what(self) -> str:
        return f"tensor {quoted(self._name)} of shape {shape_text(self.shape)}"


def _open(storage: Storage, files: CheckpointFiles, verify: bool) -> BundleReader | SlicesReader:
    if files.version == 2:
        return BundleReader(storage, files.prefix, verify=verify)
    return SlicesReader(storage, files.paths, verify=verify)


def load_checkpoint(path: AnyPath) -> CheckpointReader:
    """A reader of the checkpoint that `path` means; the same as `CheckpointReader(path)`."""
    return CheckpointReader(path)


def list_variables(path: AnyPath) -> list[tuple[str, list[int]]]:
    """(name, shape) of every tensor, sorted by name. Cost: reads the index, no tensor."""
    with CheckpointReader(path) as reader:
        return list(reader.get_variable_to_shape_map().items())  # names come sorted by their bytes, so as text too


def load_variable(path: AnyPath, name: str) -> Value:
    """The tensor `name`; a trailing ":0", as TensorFlow's graphs append, is dropped. Errors as `get_tensor`."""
    with CheckpointReader(path) as reader:
        return reader.get_tensor(name.removesuffix(":0"))
