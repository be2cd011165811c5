"""Write a .weights.h5 file, which keras_model.load_weights takes, with the structure of a template.

    layers/dense/vars       group, attribute name: fc1
    layers/dense/vars/0     dataset; bfloat16 as |V2 with the attribute dtype: bfloat16

HDF5 is written by h5py, of the extra `keras`, which is imported only here: unlike a reader, a writer sees no bytes of
strangers. Each tensor is written when it arrives, so memory is that of one tensor.

Source: H5IOStore in keras/src/saving/saving_lib.py, version 3.15.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from torch_tfckpt.dtypes import cast_counted, torch_dtype
from torch_tfckpt.errors import InvalidArgumentError, error_context
from torch_tfckpt.foreign_files.publishing import publish_files
from torch_tfckpt.foreign_files.values import FileValue, TensorInfo
from torch_tfckpt.format.tensor_slice import shape_text
from torch_tfckpt.keras_files.template import TemplateVariable, WeightsTemplate
from torch_tfckpt.storage.names import refuse_url
from torch_tfckpt.storage.publication import Publication
from torch_tfckpt.text import counted, quoted

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
        with _os_errors():
            # The name is new, so no lock is needed, which some file systems do not have.
            self._file = self._h5py.File(self._temporary, "w", locking=False)
            for place, name in self._template.groups():
                group = self._file.create_group(place)
                if name:
                    group.attrs["name"] = name

    def write(self, values: Mapping[str, FileValue]) -> None:
        for name, value in values.items():
            assert isinstance(value, torch.Tensor), "Keras has no variables of strings"
            variable = self._template.variables[name]
            array = _array(self._h5py, as_variable(value, variable))
            with _os_errors():
                dataset = self._file.create_dataset(variable.place, data=array)
                if torch_dtype(variable.dtype) is torch.bfloat16:
                    dataset.attrs["dtype"] = "bfloat16"

    def finish(self) -> int:
        with _os_errors():
            self._file.close()
        self._file = None
        return Path(self._temporary).stat().st_size

    def identity(self) -> str | None:
        return None

    def close(self) -> None:
        if self._file is not None:
            with _os_errors():
                self._file.close()


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


def _array(h5py: Any, value: torch.Tensor) -> Any:
    """Return a numpy array of the values: bfloat16, which numpy lacks, as |V2."""
    if value.dtype is torch.bfloat16:
        return value.contiguous().view(torch.int16).numpy().view("V2")
    return value.resolve_conj().resolve_neg().numpy()


def _import_h5py() -> Any:
    try:
        import h5py  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError as error:
        raise InvalidArgumentError(
            "writing a .weights.h5 file needs h5py, which is not installed. pip install torch-tfckpt[keras]"
        ) from error
    return h5py


@contextmanager
def _os_errors() -> Iterator[None]:
    """Raise OSError for the other errors of h5py: of a failed write that it notices late, or a name it cannot write."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise OSError(f"h5py could not write the file: {error}") from error
