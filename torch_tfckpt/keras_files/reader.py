"""KerasReader: the tensors of a Keras file by name, read like those of a checkpoint.

It has the methods of the readers of versions 1 and 2. Tensors keep TensorFlow's layout: a Dense kernel is [in, out].
HDF5 files have no checksums; the archive of a .keras file has checksums, which `check` verifies.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

import torch

from torch_tfckpt.bundle.check import Damage, Verification
from torch_tfckpt.bundle.index import no_such_tensor
from torch_tfckpt.bundle.tensor_reader import TensorReader
from torch_tfckpt.dtypes import ELEMENTS
from torch_tfckpt.errors import (
    CheckpointError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    UnimplementedError,
    error_context,
)
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_slice import Shape, TensorSlice
from torch_tfckpt.keras_files.contents import KerasContents, SavedArray, open_contents
from torch_tfckpt.keras_files.layers import KerasConfig
from torch_tfckpt.keras_files.legacy_names import is_legacy, name_legacy
from torch_tfckpt.keras_files.names import VARS, NamedArrays, name_arrays
from torch_tfckpt.keras_files.template import TemplateVariable, WeightsTemplate
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.storage.zip_archive import zip_errors
from torch_tfckpt.text import escaped, printable, quoted
from torch_tfckpt.transfer.host_bytes import byte_view, copy_slice, is_row_major, swap_bytes
from torch_tfckpt.values import Value, check_out, new_tensor, value_dtype

_CHUNK: Final = 4 * 1024 * 1024


class KerasReader(TensorReader):
    """Reads the Keras file at `path`: .keras, .weights.h5, .weights.json, or .h5.

    Attributes:
        path: The file, in printable form.
        format: The form of the file in words.
        skipped: Name -> kind of each dataset that is not a tensor.
        unnamed: Tensors whose names are only their paths in the file, because the file does not record which
            variables they are. They can be read, but must not be matched with others by name.
        of_optimizer: Tensors of the optimizer.
        paths: Name -> name by the attributes of the program and the names of all models, if known.
        places: Name -> path in the file, for variables of the model and metrics; empty for the older form of .h5 files.
        of_metrics: States of metrics, which Keras 2 stores.

    Raises:
        DataLossError: the file is damaged, or is not a Keras file.
        UnimplementedError: it uses a part of HDF5 or zip that Keras does not use, such as a link to another file.
        NotFoundError: a shard is missing.

    Cost: opening reads the structure of all files, and no values. The files stay open.
    Thread safety: safe.
    """

    version = 0

    def __init__(self, storage: Storage, path: str) -> None:
        self.path = printable(path)
        self._contents: KerasContents = open_contents(storage, path)
        self._closed = False
        try:
            with error_context(self.path):
                named = self._named()
        except BaseException:
            self._contents.close()
            raise
        self.format = self._contents.format
        self.skipped: dict[str, str] = {}
        self._arrays: dict[str, SavedArray] = {}
        self._types: dict[str, DataType] = {}
        for name, saved in named.arrays.items():
            dtype = _data_type(saved)
            if dtype is None or saved.array.shape is None:
                self.skipped[name] = "an empty dataset" if saved.array.shape is None else saved.array.type.what
            else:
                self._arrays[name], self._types[name] = saved, dtype
        self.unnamed = frozenset(named.unnamed & self._arrays.keys())
        self.of_optimizer = frozenset(named.of_optimizer & self._arrays.keys())
        self.paths: Mapping[str, str] = {name: path for name, path in named.paths.items() if name in self._arrays}
        self.places: Mapping[str, str] = {name: place for name, place in named.places.items() if name in self._arrays}
        self.of_metrics = frozenset(named.of_metrics & self._arrays.keys())

    def _named(self) -> NamedArrays:
        root = self._contents.root
        if is_legacy(root):
            return name_legacy(root)
        if VARS not in root.groups and not any(VARS in inner.groups for inner in root.groups.values()):
            raise DataLossError(
                "an HDF5 file, but not from Keras: it has neither groups named `vars` nor the attribute layer_names. "
                "Open it with h5py"
            )
        return name_arrays(self._contents)

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of the open files."""
        return tuple(file.path for file in self._contents.files)

    @property
    def config(self) -> KerasConfig | None:
        """The configuration of the model; None if the file has none."""
        return self._contents.config

    @property
    def keras_2(self) -> bool:
        """Whether Keras 1 or 2 wrote the file."""
        return self._contents.keras_2

    @property
    def unnamed_weights(self) -> frozenset[str]:
        """The tensors in `unnamed` that are neither the optimizer's nor those of metrics."""
        return self.unnamed - self.of_optimizer - self.of_metrics

    def template(self) -> WeightsTemplate:
        """Return the structure of the file, for another file of the same model.

        Raises:
            InvalidArgumentError: an .h5 file of the older form, which has another structure.
        """
        if not self.places:
            raise InvalidArgumentError(
                f"{self.path}: {self.format}, without the structure that Keras 3 gives to files of weights. Open the "
                f"model in Keras, save it with model.save({quoted('model.keras')}), and pass that file as `like`"
            )
        variables = {name: TemplateVariable(name, place, *self.describe(name)) for name, place in self.places.items()}
        unnamed = self.unnamed & variables.keys()
        return WeightsTemplate(self.path, self._contents.root, variables, unnamed, self.of_metrics, self.config)

    def keys(self) -> list[str]:
        """Return the names of all tensors, sorted by their bytes."""
        return sorted(self._arrays, key=lambda name: name.encode("utf-8", "surrogateescape"))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._arrays

    def describe(self, name: str) -> tuple[Shape, DataType]:
        """Return the shape and the element type of `name`; raise NotFoundError if there is no such tensor."""
        return self.shape(name), self._types[name]

    def shape(self, name: str) -> Shape:
        """Return the shape of `name`; raise NotFoundError if there is no such tensor."""
        return self._find(name).array.shape or ()

    def dtype(self, name: str) -> DataType:
        """Return the element type of `name`; raise NotFoundError if there is no such tensor."""
        self._find(name)
        return self._types[name]

    def slices(self, name: str) -> tuple[TensorSlice, ...]:
        """Return no slices: tensors are stored whole."""
        self._find(name)
        return ()

    def nbytes(self, name: str) -> int:
        """Return the size of the values in bytes."""
        return self._find(name).array.nbytes

    def locate(self, name: str) -> list[str]:
        """Return the file that contains `name`."""
        return [self._find(name).file.path]

    def read(self, name: str, out: torch.Tensor | None = None) -> Value:
        """Read the full tensor into `out`, or into a new contiguous CPU tensor.

        Raises:
            NotFoundError: no such tensor.
            InvalidArgumentError: `out` has a different shape or dtype; it is untouched.
            DataLossError: the file became shorter since it was opened.
            UnimplementedError: torch has no such dtype.
        """
        saved = self._find(name)
        self._require_open()
        shape = saved.array.shape or ()
        with error_context(self.path):
            dtype = value_dtype(name, self._types[name])
            if out is not None:
                check_out(name, out, shape, dtype)
            in_place = out is not None and out.device.type == "cpu" and is_row_major(out)
            target = out.detach() if out is not None and in_place else new_tensor(name, shape, dtype)
        if saved.array.nbytes:
            saved.file.read_into(saved.offset, [byte_view(target)])
        if saved.array.type.big_endian:
            swap_bytes(target, ELEMENTS[self._types[name]].swap)
        if out is None:
            return target
        if not in_place:
            copy_slice(out.detach(), TensorSlice.full(len(shape)).to_index(), target)
        return out

    def read_slice(self, name: str, part: TensorSlice, out: torch.Tensor | None = None) -> Value:
        """Read one slice of `name`. Errors as `read`; cost: the whole tensor is read."""
        shape = part.shape_of(self.shape(name))
        if out is not None:
            with error_context(self.path):
                check_out(name, out, shape, value_dtype(name, self._types[name]))
        value = self.read(name)
        assert isinstance(value, torch.Tensor)  # there are no strings in these files
        if out is None:
            return value[part.to_index()].clone()
        copy_slice(out.detach(), (), value[part.to_index()])
        return out

    def read_all(self, names: Iterable[str], out: Mapping[str, torch.Tensor] | None = None) -> dict[str, Value]:
        """Read several tensors, in the order given, after looking up all names. Raises like `read`.

        Args:
            out: Name -> tensor to fill, as for `read`, for some of the names.
        """
        wanted = list(dict.fromkeys(names))
        for name in wanted:
            self._find(name)
        in_file = sorted(wanted, key=lambda name: self._arrays[name].offset)
        values = {name: self.read(name, (out or {}).get(name)) for name in in_file}
        return {name: values[name] for name in wanted}

    def verify_all(self, names: Iterable[str]) -> None:
        """Raise the errors of `read` if a tensor cannot be read; tensors have no checksums."""
        for name in names:
            value_dtype(name, self.dtype(name))

    def read_stored(self, name: str) -> bytes:
        """Return the bytes of `name` as stored."""
        saved = self._find(name)
        self._require_open()
        if saved.array.type.big_endian:
            raise UnimplementedError(f"{self.path}: tensor {quoted(name)} is big-endian. Use get_tensor")
        return saved.file.read(saved.offset, saved.array.nbytes)

    def check(self, progress: Callable[[int], object] | None = None) -> Verification:
        """Read everything, and verify the checksums in the archive of a .keras file.

        HDF5 files have no checksums: their structure is decoded when they are opened, and every tensor is inside of the
        file, but changed values cannot be detected.

        Args:
            progress: Called with the number of bytes checked since the last call.
        """
        self._require_open()
        damage: list[Damage] = []
        archive = self._contents.archive
        for member in archive.members if archive is not None else ():
            assert archive is not None
            try:
                with zip_errors(), archive.open(member) as content:
                    while chunk := content.read(_CHUNK):
                        if progress is not None:
                            progress(len(chunk))
            except CheckpointError as error:
                end = min(member.header_offset + member.compress_size, self._contents.files[0].size)
                problem = f"{quoted(member.orig_filename)}: {error}"
                damage.append(Damage("", self._contents.files[0].path, member.header_offset, end, problem))
        if archive is None:
            for name in self.keys():
                self.read(name)
                if progress is not None:
                    progress(self.nbytes(name))
        return Verification([] if damage else self.keys(), damage, has_checksums=archive is not None)

    def close(self) -> None:
        """Close all files; may be called repeatedly."""
        if not self._closed:
            self._contents.close()
        self._closed = True

    def _require_open(self) -> None:
        if self._closed:
            raise FailedPreconditionError(f"{self.path}: the reader is closed. Open the file again")

    def _find(self, name: str) -> SavedArray:
        saved = self._arrays.get(name) if isinstance(name, str) else None
        if saved is None:
            text = name if isinstance(name, str) else repr(name)
            raise no_such_tensor(self.path, text, self._arrays, f"{escaped(text)} not found in checkpoint")
        return saved


def _data_type(saved: SavedArray) -> DataType | None:
    """Return the element type; None for strings and other types that are not tensors."""
    kind = saved.array.type
    if kind.is_opaque and kind.size == 2 and not saved.array.dtype_name:
        return DataType.DT_BFLOAT16  # the older form does not name it; Keras has no other type that HDF5 lacks
    return saved.array.dtype
