"""Write a .weights.h5 file, which keras_model.load_weights takes, with the structure of a template.

    layers/dense/vars       group, attribute name: fc1
    layers/dense/vars/0     dataset; bfloat16 as |V2 with the attribute dtype: bfloat16

HDF5 is written by h5py, of the extra `keras`, which is imported only here: unlike a reader, a writer sees no bytes of
strangers. Each tensor is written when it arrives, so memory is that of one tensor. libhdf5 may end the process after a
write that failed, as on a full disk, so it writes through an object of Python, which keeps the error for the sink.

Source: H5IOStore in keras/src/saving/saving_lib.py, version 3.15.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from torch_tfckpt.dtypes import cast_counted, torch_dtype
from torch_tfckpt.errors import InvalidArgumentError, error_context
from torch_tfckpt.foreign_files.publishing import publish_files
from torch_tfckpt.foreign_files.values import ElementType, FileValue, TensorInfo
from torch_tfckpt.format.tensor_slice import element_count, shape_text
from torch_tfckpt.keras_files.template import TemplateVariable, WeightsTemplate
from torch_tfckpt.storage.names import refuse_url
from torch_tfckpt.storage.protocol import Buffer
from torch_tfckpt.storage.publication import Publication
from torch_tfckpt.text import counted, printable, quoted

ENDING: Final = ".weights.h5"


def is_weights_name(path: str) -> bool:
    """Return whether Keras takes a file of this name for weights."""
    return path.lower().endswith(ENDING)


class KerasWeightsSink:
    """Writes the variables of a template, under their names, to the file `path`.

    Raises:
        InvalidArgumentError: h5py is not installed, or `path` is a URL.
        UnimplementedError: torch lacks the dtype of a variable.
    """

    format = "Keras weights"

    def __init__(self, path: str, template: WeightsTemplate) -> None:
        refuse_url(path, "HDF5 files are written locally only", "Write to a local path and copy the result")
        self.path = path
        self._template = template
        self._h5py = _import_h5py()
        self._file: Any = None
        self._written: _FileForHdf5 | None = None
        self._temporary = ""
        for variable in template.variables.values():
            with error_context(f"{template.path}: {quoted(variable.name)}"):
                torch_dtype(variable.dtype)

    def refusal(self, name: str, info: TensorInfo) -> str | None:
        return None

    def noted_type(self, info: TensorInfo) -> bool:
        return False

    def plan(self, tensors: Mapping[str, TensorInfo], *, sidecar: bool = False) -> list[str]:
        assert tensors.keys() == self._template.variables.keys(), "every variable has a value"
        return list(self._template.variables)

    def files(self) -> list[str]:
        return [self.path]

    def replaced(self) -> list[str]:
        return []

    def open(self, publication: Publication) -> None:
        publication.rename_with(partial(publish_files, self.path))
        self._temporary = publication.place(self.path)
        self._written = _FileForHdf5(self._temporary)
        with self._writing():
            self._file = self._h5py.File(self._written, "w")
            for place, name in self._template.groups():
                group = self._file.create_group(place)
                if name:
                    group.attrs["name"] = name

    def write(self, values: Mapping[str, FileValue]) -> None:
        for name, value in values.items():
            assert isinstance(value, torch.Tensor), "Keras has no variables of strings"
            variable = self._template.variables[name]
            array = _array(as_variable(value, variable))
            with self._writing():
                dataset = self._file.create_dataset(variable.place, data=array)
                if torch_dtype(variable.dtype) is torch.bfloat16:
                    dataset.attrs["dtype"] = "bfloat16"

    def finish(self) -> int:
        with self._writing():
            self._file.close()
        self.close()
        return Path(self._temporary).stat().st_size

    def identity(self) -> str | None:
        return None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._written is not None:
            self._written.close()
            self._written = None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Raise the error of a write, and OSError for names that HDF5 cannot write."""
        assert self._written is not None, "open"
        try:
            yield
        except (RuntimeError, ValueError) as error:
            raise self._written.error or OSError(f"{printable(self.path)}: h5py cannot write it: {error}") from error
        if self._written.error is not None:
            raise self._written.error


class _FileForHdf5:
    """A new file in which no operation fails, as h5py's driver for objects of Python uses it.

    Attributes:
        error: The first exception of an operation, KeyboardInterrupt included; nothing is written after it.
    """

    def __init__(self, path: str) -> None:
        self._file = Path(path).open("x+b", buffering=0)  # noqa: SIM115 (the sink closes it)
        self._at = self._size = 0
        self.error: BaseException | None = None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset if whence == os.SEEK_SET else self._size + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def write(self, content: Buffer) -> int:
        view = memoryview(content).cast("B")
        try:
            self._file.seek(self._at)
            rest = view if self.error is None else view[:0]
            while len(rest):
                rest = rest[self._file.write(rest) :]
        except BaseException as error:
            self.error = error
        self._at += len(view)
        self._size = max(self._size, self._at)
        return len(view)

    def read(self, size: int) -> bytes:
        content = bytearray(size)
        self.readinto(content)
        return bytes(content)

    def readinto(self, target: Buffer) -> int:
        view = memoryview(target).cast("B")
        try:
            self._file.seek(self._at)
            count = self._file.readinto(view) or 0
        except BaseException as error:
            self.error = self.error or error
            count = 0
        view[count:] = bytes(len(view) - count)
        self._at += len(view)
        return len(view)

    def truncate(self, size: int) -> int:
        try:
            if self.error is None:
                self._file.truncate(size)
        except BaseException as error:
            self.error = error
        self._size = size
        return size

    def flush(self) -> None:
        """Do nothing: the file has no buffer, and the publication syncs it."""

    def close(self) -> None:
        self._file.close()


def info_of(variable: TemplateVariable) -> TensorInfo:
    """Return the properties of a variable in the file."""
    size = element_count(variable.shape) * variable.dtype.itemsize
    return TensorInfo(ElementType.of_tensorflow(variable.dtype), variable.shape, size)


def as_variable(value: torch.Tensor, variable: TemplateVariable) -> torch.Tensor:
    """Return a value in host memory, in the dtype of the variable.

    Raises:
        InvalidArgumentError: the shape is different, or values are beyond the range of the dtype.
    """
    name, dtype = quoted(variable.name), torch_dtype(variable.dtype)
    held = value.detach().cpu()
    if tuple(held.shape) != variable.shape:
        raise InvalidArgumentError(
            f"{name} is {shape_text(variable.shape)} in the Keras model, not {shape_text(tuple(held.shape))}"
        )
    if held.dtype == dtype:
        return held
    if not held.is_floating_point() or not dtype.is_floating_point:
        raise InvalidArgumentError(f"{name} is {variable.dtype.dtype_name} in the Keras model, not {held.dtype}")
    cast, lost = cast_counted(held, dtype)
    if lost.beyond:
        raise InvalidArgumentError(
            f"{name} has {counted(lost.beyond, 'value')} beyond the range of {variable.dtype.dtype_name}, its type in "
            f"the Keras model; the largest is {lost.largest:.9g}. Clip them, or give the Keras layer a wider dtype"
        )
    return cast


def _array(value: torch.Tensor) -> Any:
    """Return a numpy array of the values: bfloat16, which numpy lacks, as |V2."""
    if value.dtype is torch.bfloat16:
        return value.contiguous().view(torch.int16).numpy().view("V2")
    return value.contiguous().resolve_conj().resolve_neg().numpy()  # torch transposes faster than numpy


def _import_h5py() -> Any:
    try:
        import h5py  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError as error:
        raise InvalidArgumentError(
            "writing a .weights.h5 file needs h5py, which is not installed. pip install torch-tfckpt[keras]"
        ) from error
    return h5py
