"""Read weights from files of other formats by the methods of a CheckpointReader.

    with open_reader("model.safetensors") as reader:
        reader.keys()

Contract:

    formats     .safetensors, with its index, as one file or a directory; .pt, .pth and .bin; .npz. They are recognised
                by content, not by name. Everything else is opened as a checkpoint; if this fails, the error names what
                the file is
    sidecar     strings, the object graph and TensorFlow's types that `convert` stored in a sidecar are read with the
                file
    layouts     a name like "fc.kernel" is TensorFlow's in any file, and the tensor has TensorFlow's layout. "weight" is
                torch's own name: in a file of torch, the tensor has torch's layout. In an .npz file, which belongs to
                neither framework, it may have either layout; in a file whose sidecar declares that tensors were only
                renamed, it has TensorFlow's. In both cases `says_layouts` is False
"""

from collections.abc import Callable, Iterable, Mapping
from typing import cast

import torch

from torch_tfckpt.bundle.check import Verification
from torch_tfckpt.bundle.tensor_reader import TensorReader
from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.directory.locate import CheckpointFiles
from torch_tfckpt.errors import InvalidArgumentError, NotFoundError, UnimplementedError
from torch_tfckpt.foreign_files.formats import format_of, open_source
from torch_tfckpt.foreign_files.protocols import TensorSource
from torch_tfckpt.foreign_files.sidecar_source import tensorflow_layouts
from torch_tfckpt.foreign_files.tensorflow import CheckpointSource
from torch_tfckpt.foreign_files.values import StoredBytes
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_slice import Shape, TensorSlice
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.names import AnyPath, fspath
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.text import printable, quoted
from torch_tfckpt.transfer.host_bytes import copy_slice
from torch_tfckpt.values import LoadedValue, check_out


class FileReader(CheckpointReader):
    """Reader of a file that is not a checkpoint.

    Args:
        source: The file. It is closed with the reader.
    """

    def __init__(self, source: TensorSource) -> None:
        self.source = source
        super().__init__(source.path, storage=LOCAL)

    def _open(self, where: str, *, verify: bool) -> tuple[CheckpointFiles, TensorReader]:
        reader = _FileTensors(self.source)
        return CheckpointFiles(reader.version, where, tuple(self.source.files())), reader

    @property
    def says_layouts(self) -> bool:
        """Whether tensors with torch's names have torch's layouts."""
        return self.source.format != "npz" and not tensorflow_layouts(self.source)


class _FileTensors(TensorReader):
    """The tensors of a file. Those with TensorFlow's names have TensorFlow's layout."""

    version = 0

    def __init__(self, source: TensorSource) -> None:
        self._source = source
        self._names = dict.fromkeys(source.names())
        self.path = printable(source.path)

    def keys(self) -> list[str]:
        return sorted(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def shape(self, name: str) -> Shape:
        self._check(name)
        return self._source.info(name).shape

    def dtype(self, name: str) -> DataType:
        self._check(name)
        return self._source.info(name).type.tensorflow or DataType.DT_INVALID

    def slices(self, name: str) -> tuple[TensorSlice, ...]:
        self._check(name)
        return ()

    def nbytes(self, name: str) -> int:
        self._check(name)
        return self._source.info(name).nbytes

    def locate(self, name: str) -> list[str]:
        self._check(name)
        return [self._source.path]

    def read(self, name: str, out: torch.Tensor | None = None) -> LoadedValue:
        return self.read_all([name], None if out is None else {name: out})[name]

    def read_all(self, names: Iterable[str], out: Mapping[str, torch.Tensor] | None = None) -> dict[str, LoadedValue]:
        wanted = list(names)
        for name in wanted:
            self._check(name)
        values = self._source.read(wanted)
        for name, value in values.items():
            if isinstance(value, StoredBytes):
                raise UnimplementedError(f"{self.path}: tensor {quoted(name)}: torch has no {value.dtype.name}")
        loaded = cast("dict[str, LoadedValue]", values)
        for name, target in (out or {}).items():
            value = loaded.get(name, target)
            if not isinstance(value, torch.Tensor) or (target.shape, target.dtype) != (value.shape, value.dtype):
                raise InvalidArgumentError(f"{self.path}: out does not have the shape and dtype of {quoted(name)}")
            loaded[name] = target.copy_(value)
        return loaded

    def read_slice(self, name: str, part: TensorSlice, out: torch.Tensor | None = None) -> LoadedValue:
        shape = part.shape_of(self.shape(name))  # raises an error for a part outside the tensor
        value = self.read(name)[part.to_index()]
        if out is not None:
            if not isinstance(value, torch.Tensor):
                raise InvalidArgumentError(f"{self.path}: {quoted(name)} contains strings. Omit `out`")
            check_out(name, out, shape, value.dtype)
            copy_slice(out.detach(), (), value)
            return out
        return value.clone() if isinstance(value, torch.Tensor) else value

    def check(self, progress: Callable[[int], object] | None = None) -> Verification:
        raise UnimplementedError(f"{self.path}: only checkpoints are checked as a whole. Load the file to verify it")

    def close(self) -> None:
        self._source.close()

    def _check(self, name: str) -> None:
        if name not in self._names:
            raise NotFoundError(f"{self.path}: there is no tensor {quoted(name)}")


def open_reader(path: AnyPath, storage: Storage | None = None, *, verify: bool = True) -> CheckpointReader:
    """Open a checkpoint, or a file of another format that `convert` reads.

    Args:
        verify: Whether to verify the checksums of a checkpoint.

    Raises:
        NotFoundError, DataLossError, InvalidArgumentError, UnimplementedError: as `CheckpointReader` and the readers of
            the other formats raise.
    """
    where = fspath(path)
    if storage is not None or format_of(where) == "tf":
        return CheckpointReader(path, storage=storage, verify=verify)
    return FileReader(open_source(where))


def reader_of(source: TensorSource) -> CheckpointReader:
    """Return a reader for an open source. Closing the reader or the source closes both."""
    return source.reader if isinstance(source, CheckpointSource) else FileReader(source)


def has_known_layouts(reader: CheckpointReader) -> bool:
    """Return whether tensors with torch's names can be assumed to have torch's layouts."""
    return not isinstance(reader, FileReader) or reader.says_layouts


def renamed_only(reader: CheckpointReader) -> bool:
    """Return whether TensorFlow's tensors were only renamed: torch's names, but TensorFlow's layouts."""
    return isinstance(reader, FileReader) and bool(tensorflow_layouts(reader.source))
