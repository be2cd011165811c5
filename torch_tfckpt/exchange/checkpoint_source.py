"""A TensorFlow checkpoint as one format among the others."""

from collections.abc import Iterable

from torch_tfckpt.bundle.publish import data_files_of
from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.dtypes import DataType
from torch_tfckpt.errors import DataLossError, InvalidArgumentError
from torch_tfckpt.exchange.values import ElementType, StoredBytes, TensorInfo, Value
from torch_tfckpt.format.tensor_bundle import index_filename
from torch_tfckpt.storage.local import LOCAL


class CheckpointSource:
    """The tensors of a checkpoint of either version; partitioned ones whole. Opening: as CheckpointReader."""

    def __init__(self, path: str) -> None:
        self.reader = CheckpointReader(path)
        self.path = self.reader.files.prefix
        self.format = f"TensorFlow checkpoint, version {self.reader.version}"
        self.skipped: dict[str, str] = {}
        self._types: dict[DataType, ElementType] = {}

    def names(self) -> list[str]:
        return self.reader.keys()

    def info(self, name: str) -> TensorInfo:
        parts = len(self.reader.slices(name))
        return TensorInfo(self._type(name), self.reader.shape(name), self.reader.nbytes(name), parts)

    def read(self, names: Iterable[str]) -> dict[str, Value]:
        wanted = list(names)
        kinds = {name: self._type(name) for name in wanted}
        plain = [name for name, kind in kinds.items() if kind.dtype is not None or kind.is_string]
        try:
            values: dict[str, Value] = {**self.reader.get_tensors(plain)}
            for name in kinds.keys() - values.keys():
                data = self.reader.get_stored_bytes(name)
                values[name] = StoredBytes(self.reader.dtype(name), self.reader.shape(name), data)
        except InvalidArgumentError as error:
            # The names are the checkpoint's own, so what is wrong (slices that leave holes) is wrong in the file.
            raise DataLossError(str(error)) from error
        return {name: values[name] for name in wanted}

    def _type(self, name: str) -> ElementType:
        dtype = self.reader.dtype(name)
        kind = self._types.get(dtype)
        if kind is None:
            kind = self._types[dtype] = ElementType.of_tensorflow(dtype)
        return kind

    def files(self) -> list[str]:
        files = self.reader.files
        return [index_filename(files.prefix), *self._data_files()] if files.version == 2 else list(files.paths)

    def data_bytes(self) -> int:
        return sum(_size(path) for path in self._data_files())

    def _data_files(self) -> list[str]:
        files = self.reader.files
        return data_files_of(LOCAL, files.prefix) if files.version == 2 else list(files.paths)

    def close(self) -> None:
        self.reader.close()


def _size(path: str) -> int:
    file = LOCAL.open(path)
    file.close()
    return file.size
