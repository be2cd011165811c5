"""A file and its sidecar, which contains the tensors and dtypes that the format cannot store."""

from collections.abc import Iterable, Mapping

import torch

from torch_tfckpt.errors import DataLossError
from torch_tfckpt.foreign_files.protocols import DerivedSource, TensorSource
from torch_tfckpt.foreign_files.sidecar import Sidecar
from torch_tfckpt.foreign_files.values import FileValue, TensorInfo
from torch_tfckpt.format.tensor_names import TensorNames
from torch_tfckpt.text import printable, quoted


class SidecarSource(DerivedSource):
    """The tensors of `source` and those of `sidecar`, which was read from `sidecar_path`.

    Raises:
        DataLossError: a tensor is in both; or a tensor whose type the sidecar stores is missing from `source`, or has
            elements of a different size in `source`.
    """

    def __init__(self, source: TensorSource, sidecar: Sidecar, sidecar_path: str) -> None:
        super().__init__(source)
        self._sidecar, self._sidecar_path = sidecar, sidecar_path
        held = set(source.names())
        for name in sidecar.tensors.keys() & held:
            raise DataLossError(f"{printable(sidecar_path)}: tensor {quoted(name)} is also in {printable(source.path)}")
        for name, kind in sidecar.types.items():
            if name not in held:
                raise DataLossError(f"{printable(sidecar_path)}: no tensor {quoted(name)} in {printable(source.path)}")
            plain = source.info(name).type
            if kind.dtype is None or plain.dtype is None or kind.itemsize != plain.itemsize:
                raise DataLossError(
                    f"{printable(sidecar_path)}: tensor {quoted(name)} is {plain.name}, not {kind.name}"
                )

    @property
    def format(self) -> str:
        return self._source.format

    @property
    def skipped(self) -> Mapping[str, str]:
        return self._source.skipped

    @property
    def object_names(self) -> TensorNames | None:
        return self._source.object_names

    @property
    def tensorflow_layouts(self) -> set[str]:
        """Names of tensors that have torch's names, but TensorFlow's order of axes."""
        return self._sidecar.tensorflow_layouts

    def names(self) -> list[str]:
        return [*self._source.names(), *self._sidecar.tensors]

    def info(self, name: str) -> TensorInfo:
        if name in self._sidecar.tensors:
            return self._sidecar.tensors[name][0]
        info = self._source.info(name)
        kind = self._sidecar.types.get(name)
        return info if kind is None else info._replace(type=kind)

    def read(self, names: Iterable[str]) -> dict[str, FileValue]:
        wanted = list(names)
        values = self._source.read(name for name in wanted if name not in self._sidecar.tensors)
        for name in wanted:
            if name in self._sidecar.tensors:
                value = self._sidecar.tensors[name][1]
                values[name] = value.clone() if isinstance(value, torch.Tensor) else value
            elif name in self._sidecar.types:
                values[name] = _as_type(values[name], self._sidecar.types[name].dtype)
        return {name: values[name] for name in wanted}

    def files(self) -> list[str]:
        return [*super().files(), self._sidecar_path]


def tensorflow_layouts(source: TensorSource) -> set[str]:
    """Return the tensors with torch's names but TensorFlow's order of axes, as listed in the sidecar."""
    return source.tensorflow_layouts if isinstance(source, SidecarSource) else set()


def _as_type(value: FileValue, dtype: torch.dtype | None) -> FileValue:
    """Reinterpret the bits as another dtype of the same width."""
    assert isinstance(value, torch.Tensor) and dtype is not None, "checked on opening"
    return value if value.dtype == dtype else value.view(dtype)
