"""CheckpointReader: read a checkpoint of either version.

Methods are named as in tf.train. Tensors keep TensorFlow's layout: a Keras Dense kernel is [in, out].
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Self, TypeVar, cast, overload

import numpy as np
import torch

from torch_tfckpt.bundle.check import Verification
from torch_tfckpt.bundle.planned_read import PartRequest
from torch_tfckpt.bundle.tensor_reader import TensorReader
from torch_tfckpt.directory.locate import CheckpointFiles, find_checkpoint
from torch_tfckpt.directory.opening import open_files
from torch_tfckpt.errors import (
    CheckpointError,
    DataLossError,
    InvalidArgumentError,
    NotFoundError,
    error_context,
)
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.object_graph import OBJECT_GRAPH_KEY, ObjectGraph
from torch_tfckpt.format.tensor_names import TensorNames
from torch_tfckpt.format.tensor_slice import Shape, TensorSlice, shape_text
from torch_tfckpt.keras_files.reader import KerasReader
from torch_tfckpt.storage.choice import storage_of
from torch_tfckpt.storage.names import AnyPath, fspath
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.text import did_you_mean, escaped, quoted
from torch_tfckpt.values import LoadedValue, StoredTensor, Strings, Value, outside_modes

Result = TypeVar("Result")
ReadAll = Callable[[Iterable[str]], dict[str, Value]]

_log = logging.getLogger(__name__)


class CheckpointReader:
    """Reader of one checkpoint.

    In an object-based checkpoint (tf.train.Checkpoint, Keras), every method that takes a `name` accepts any of the
    following, as long as it identifies exactly one tensor:

    - the key: "model/layer/kernel/.ATTRIBUTES/VARIABLE_VALUE". A key takes precedence over all other names.
    - the key without "/.ATTRIBUTES/VARIABLE_VALUE": "model/layer/kernel"
    - the path of the object, as `tfckpt ls --tree` prints it: "model.layer.kernel" or "(root).model.layer.kernel"
    - the full name of the variable: "dense/kernel" or "dense/kernel:0"

    `keys()`, iteration, `in` and `has_tensor` consider only keys, so that `name in reader` means "stored under this
    key". `resolve` finds the key of a name.

    Args:
        path: A prefix; a file of the checkpoint (.index, .data-..., .meta); a version 1 file or pattern; a
            directory with a `checkpoint` file; a SavedModel directory; a file of Keras (.keras, .h5).
        verify: Whether to verify the checksums of all bytes read.
        storage: Where files are stored. None chooses by the path: local files, or a store such as s3://bucket.

    Raises:
        NotFoundError: there is no checkpoint; the message lists the files that exist.
        DataLossError: the index is damaged, or the file is not a checkpoint.
        InvalidArgumentError: the directory holds several checkpoints, or the format version is not supported.

    Cost: opening reads the end of each index and no tensor. The files stay open, so values do not change while a
    writer replaces or deletes the checkpoint. The first use of a name that is not a key reads the object graph.
    Thread safety: may be used from several threads.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> path = tfckpt.save_file({"dense/kernel": torch.ones(2, 3)}, "model.ckpt-1")
        >>> with tfckpt.CheckpointReader(path) as reader:
        ...     for name in reader:
        ...         print(name, reader.shape(name), reader.dtype(name).name)
        ...     print(reader["dense/kernel"].sum())
        dense/kernel (2, 3) DT_FLOAT
        tensor(6.)
    """

    def __init__(self, path: AnyPath, *, verify: bool = True, storage: Storage | None = None) -> None:
        where = fspath(path)
        self.storage = storage or storage_of(where)
        self.files, self._reader = self._open(where, verify=verify)
        # Set only for a file of Keras: has the file's form, its configuration, and the keys of unknown variables.
        self.keras = self._reader if isinstance(self._reader, KerasReader) else None
        self._object_graph: ObjectGraph | None = None
        self._names: TensorNames | None = None

    def _open(self, where: str, *, verify: bool) -> tuple[CheckpointFiles, TensorReader]:
        return open_files(self.storage, find_checkpoint(self.storage, where), verify=verify)

    def __repr__(self) -> str:
        return f"<CheckpointReader of {quoted(self.path)}, version {self.version}>"

    @property
    def path(self) -> str:
        """Prefix, file or pattern, in printable form."""
        return self._reader.path

    @property
    def version(self) -> int:
        """Version of the format: 1 or 2; 0 for a Keras file."""
        return self._reader.version

    def keys(self) -> list[str]:
        """Return the keys of all tensors, sorted. A partitioned tensor has one key."""
        return self._reader.keys()

    def undamaged_keys(self) -> tuple[list[str], list[str]]:
        """Return the keys that a damaged index still lists, and the damage in the rest of the index."""
        return self._reader.undamaged_keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __contains__(self, name: object) -> bool:
        return name in self._reader

    def __getitem__(self, name: str) -> LoadedValue:
        """Return `get_tensor(name)`."""
        return self.get_tensor(name)

    def has_tensor(self, name: str) -> bool:
        """Return whether a tensor is stored under the key `name`. Cost: one block of the index."""
        return name in self._reader

    def resolve(self, name: str) -> str:
        """Return the key of the tensor that `name` refers to.

        Args:
            name: A key, or any other name of a tensor in an object-based checkpoint.

        Raises:
            NotFoundError: no tensor has this name.
            InvalidArgumentError: several tensors have it; the message lists their keys.
        """
        return self._look_up(name, lambda key: (self._reader.describe(key), key)[1])

    def names_of(self, key: str, *, every_path: bool = False) -> tuple[str, ...]:
        """Return all names of a tensor, its key first. Without an object graph, the key is the only name.

        With `every_path`, also its paths through other objects. Raises like `object_graph`.
        """
        names = self._tensor_names()
        return (key,) if names is None else names.names_of(key, every_path=every_path)

    def variable_name(self, key: str) -> str | None:
        """Return the full name of the variable stored under `key`.

        None if it is not a variable or has no name.

        Raises:
            DataLossError, NotFoundError: the object graph cannot be read.
        """
        names = self._tensor_names()
        return None if names is None else names.variable(key)

    def shape(self, name: str) -> Shape:
        """Return the full shape of a tensor; raise NotFoundError if there is no such tensor."""
        return self._look_up(name, self._reader.shape)

    def dtype(self, name: str) -> DataType:
        """Return TensorFlow's element type, even if torch represents the values in a different dtype."""
        return self._look_up(name, self._reader.dtype)

    def describe_all(self, keys: Sequence[str]) -> list[tuple[Shape, DataType] | None]:
        """Return `shape` and `dtype` of each key, None for those not stored; of many keys, faster than one by one."""
        return self._reader.describe_all(keys)

    def slices(self, name: str) -> tuple[TensorSlice, ...]:
        """Return the slices in which a partitioned tensor is stored; empty if it is stored whole."""
        return self._look_up(name, self._reader.slices)

    def nbytes(self, name: str) -> int:
        """Return the size of the values in bytes; for strings, their size in the file."""
        return self._look_up(name, self._reader.nbytes)

    def locate(self, name: str) -> list[str]:
        """Return the paths of the data files that hold a tensor."""
        return self._look_up(name, self._reader.locate)

    @overload
    def get_tensor(self, name: str, out: torch.Tensor) -> torch.Tensor: ...
    @overload
    def get_tensor(self, name: str, out: None = None) -> LoadedValue: ...
    def get_tensor(self, name: str, out: torch.Tensor | None = None) -> LoadedValue:
        """Return a full tensor.

        Args:
            name: A key, e.g. "dense/kernel", or another name as described for the class.
            out: Tensor to fill, of the stored shape and dtype, any device, any strides. On an accelerator it is filled
                on the current stream. None allocates a contiguous CPU tensor.

        Returns:
            `out`, or a new tensor of the stored shape, in TensorFlow's layout. A string tensor is returned as a numpy
            array of `bytes` objects; quantized integers are returned as plain integers.
            The declared type is `torch.Tensor | Any`, so that no cast is needed; `get_strings` has the exact type.

        Raises:
            NotFoundError: no tensor has this name, or the data file that holds it is missing.
            InvalidArgumentError: several tensors have this name; or `out` does not have the stored shape and dtype, in
                which case it is unchanged.
            DataLossError: length or checksum is wrong; `out` may be partly written.
            UnimplementedError: torch has no such dtype (variant, resource, float8_e4m3b11fnuz).

        Cost: one read of the stored bytes; host memory for one stored slice in addition to the result.

        Examples:
            >>> import torch, torch_tfckpt as tfckpt
            >>> path = tfckpt.save_file({"w": torch.tensor([1.0, 2.0])}, "model.ckpt-1")
            >>> with tfckpt.load_checkpoint(path) as reader:
            ...     w = reader.get_tensor("w")
            ...     same = reader.get_tensor("w", out=torch.empty(2))
            >>> w
            tensor([1., 2.])
        """
        return self._read_one(name, lambda key: self._reader.read(key, out))

    def get_strings(self, name: str) -> Strings:
        """Return a string tensor as a numpy array of `bytes` objects.

        Raises:
            InvalidArgumentError: the tensor is not a string tensor. Other errors as for `get_tensor`.

        Examples:
            >>> import torch_tfckpt as tfckpt
            >>> path = tfckpt.save_file({"labels": ["cat", "dog"]}, "model.ckpt-1")
            >>> with tfckpt.load_checkpoint(path) as reader:
            ...     print(reader.get_strings("labels").tolist())
            [b'cat', b'dog']
        """
        value = self.get_tensor(name)
        if isinstance(value, torch.Tensor):
            raise InvalidArgumentError(
                f"{self.path}: tensor {quoted(name)} is {self.dtype(name).name}, not DT_STRING. Use get_tensor"
            )
        return cast(Strings, value)

    def get_tensors(self, names: Iterable[str], out: dict[str, torch.Tensor] | None = None) -> dict[str, LoadedValue]:
        """Return name -> tensor for the given names, read in one plan.

        Tensors that are adjacent in the file are read together, large ones in parallel. If two names refer to the same
        tensor, the same object is returned for both. `out`: key -> tensor to fill. Raises like `get_tensor`.
        """
        return self._read_several(names, lambda keys: self._reader.read_all(keys, out))

    def check_tensors(self, keys: Iterable[str]) -> None:
        """Verify the tensors with these keys without keeping their values. Raises like `get_tensors`."""
        self._reader.verify_all(keys)

    def map_tensor(self, name: str) -> LoadedValue:
        """Return a tensor as a view of the file's pages if possible; otherwise read it like `get_tensor`.

        Changes to the tensor stay private to the process. Tensors of version 1 and of Keras are copied.
        """
        return self._read_one(name, self._reader.map)

    def map_tensors(self, names: Iterable[str]) -> dict[str, LoadedValue]:
        """Return name -> the result of `map_tensor` for that name."""
        return self._read_several(names, self._reader.map_all)

    def get_stored_bytes(self, name: str) -> bytes:
        """Return a tensor's bytes as stored, verified. UnimplementedError for slices, and for version 1."""
        return self._read_one(name, self._reader.read_stored)

    def get_slice(self, name: str) -> StoredTensor:
        """Return a handle that reads the indexed part: `reader.get_slice(name)[2:5]`."""
        key = self.resolve(name)
        return StoredTensor(key, *self._reader.describe(key), lambda part: self._reader.read_slice(key, part))

    def read_slice(self, name: str, part: TensorSlice, out: torch.Tensor | None = None) -> LoadedValue:
        """Return one part of a tensor, stored whole or in slices. `out` and errors as for `get_tensor`."""
        return self._read_one(name, lambda key: self._reader.read_slice(key, part, out))

    def read_into(self, requests: Iterable[PartRequest]) -> None:
        """Fill tensors, each given as (name, part or None for the whole, tensor), as `read_slice` does, in one plan."""
        self._reader.read_into([(self.resolve(name), part, out) for name, part, out in requests])

    def verify_in_place(self, requests: Iterable[PartRequest]) -> Callable[[], None] | None:
        """Verify tensors, named by keys; return a function that then fills them. None: it would download them twice."""
        return self._reader.verify_in_place(requests)

    def get_variable_to_shape_map(self) -> dict[str, list[int]]:
        """Return key -> shape. A tensor with a damaged entry is omitted, with a warning in the log."""
        return {name: list(shape) for name, shape, _ in self._sound_tensors()}

    def get_variable_to_dtype_map(self) -> dict[str, DataType]:
        """Return key -> element type. A tensor with a damaged entry is omitted, with a warning in the log."""
        return {name: dtype for name, _, dtype in self._sound_tensors()}

    def debug_string(self) -> str:
        """Return one line per tensor: `dense/kernel (DT_FLOAT) [784,10]`, then `, k slices` if it has several."""
        lines = []
        for name, shape, dtype in self._sound_tensors():
            count = len(self.slices(name))
            lines.append(f"{name} ({dtype.name}) {shape_text(shape)}" + (f", {count} slices" if count > 1 else ""))
        return "\n".join(lines)

    @outside_modes
    def check(self, progress: Callable[[int], object] | None = None) -> Verification:
        """Read everything and report the undamaged and the damaged tensors; damage does not raise an error.

        Args:
            progress: Called with the number of bytes checked since the last call.

        Cost: one read of all files; memory of one chunk per thread, or of one string tensor.
        """
        return self._reader.check(progress)

    @property
    def object_graph(self) -> ObjectGraph | None:
        """The objects that the tensors belong to; None if tensors are stored by name alone.

        Raises DataLossError if the graph is damaged; the tensors can still be read. Cost: the first time, one read of
        the graph, and several times its size in memory.
        """
        if self._object_graph is None and OBJECT_GRAPH_KEY in self:
            is_string = self._reader.dtype(OBJECT_GRAPH_KEY) == DataType.DT_STRING
            value = self._reader.read(OBJECT_GRAPH_KEY) if is_string else None
            with error_context(f"{self.path}: tensor {quoted(OBJECT_GRAPH_KEY)}"):
                if not isinstance(value, np.ndarray) or value.shape != ():
                    raise DataLossError("expected one string with an object graph")
                self._object_graph = ObjectGraph.decode(value.item())
        return self._object_graph

    def close(self) -> None:
        """Close the files. Tensors already read, mapped ones included, stay valid."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _sound_tensors(self) -> Iterator[tuple[str, Shape, DataType]]:
        """Yield all tensors with a readable entry; log the others."""
        for name in self.keys():
            try:
                yield name, *self._reader.describe(name)
            except DataLossError as error:
                _log.warning("tensor omitted: %s", error)

    def _tensor_names(self) -> TensorNames | None:
        """The names of all tensors; None without an object graph. Raises like `object_graph`."""
        if self._names is None:
            graph = self.object_graph
            self._names = None if graph is None else TensorNames(graph, self.keys())
        return self._names

    @outside_modes
    def _read_one(self, name: str, read: Callable[[str], Result]) -> Result:
        return self._look_up(name, read)

    def _look_up(self, name: str, read: Callable[[str], Result]) -> Result:
        """Return `read(name)`; if `name` is not a key, pass the key that it refers to."""
        if self._names is None or not isinstance(name, str):
            try:
                return read(name)
            except NotFoundError:
                # The error may also mean that a data file, and not the key, is missing.
                if not isinstance(name, str) or name in self._reader or OBJECT_GRAPH_KEY not in self._reader:
                    raise
        return read(self._key_meant(name))

    @outside_modes
    def _key_meant(self, name: str) -> str:
        """The key that a name refers to in an object-based checkpoint."""
        known: Iterable[str] = self.keys()
        hint = f"The checkpoint is object-based: `tfckpt ls --tree {self.path}` shows the objects."
        try:
            names = self._tensor_names()
        except CheckpointError as error:  # the tensors can still be read by their keys
            names, hint = None, f"Only keys can be looked up: {error}"
        if names is not None:
            with error_context(self.path):
                key = names.resolve(name)
            if key is not None:
                return key
            known = names.known()
        closest = did_you_mean(name, known)
        raise NotFoundError(
            f"{self.path}: no tensor {quoted(name)}: Key {escaped(name)} not found in checkpoint. "
            f"{closest}{' ' if closest else ''}`tfckpt ls {self.path}` lists all {len(self)}. {hint}"
        )

    @outside_modes
    def _read_several(self, names: Iterable[str], read: ReadAll) -> dict[str, LoadedValue]:
        wanted = dict.fromkeys(names)
        try:
            return dict(read(wanted))
        except NotFoundError:
            if OBJECT_GRAPH_KEY not in self._reader or all(name in self._reader for name in wanted):
                raise
        other = {name for name in wanted if isinstance(name, str) and name not in self._reader}
        keys = {name: self._key_meant(name) if name in other else name for name in wanted}
        values = read(dict.fromkeys(keys.values()))
        return {name: values[key] for name, key in keys.items()}


def load_checkpoint(path: AnyPath) -> CheckpointReader:
    """Open a checkpoint for reading; the same as `CheckpointReader(path)`.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> path = tfckpt.save_file({"w": torch.zeros(2, 3), "step": torch.tensor(7)}, "model.ckpt-7")
        >>> with tfckpt.load_checkpoint(path) as reader:
        ...     print(reader.get_variable_to_shape_map())
        {'step': [], 'w': [2, 3]}
    """
    return CheckpointReader(path)


def list_variables(path: AnyPath) -> list[tuple[str, list[int]]]:
    """Return (key, shape) of every tensor, sorted by key. Cost: reads the index, but no tensors.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> tfckpt.list_variables(tfckpt.save_file({"w": torch.zeros(2, 3), "b": torch.zeros(3)}, "model.ckpt-1"))
        [('b', [3]), ('w', [2, 3])]
    """
    with CheckpointReader(path) as reader:
        return list(reader.get_variable_to_shape_map().items())  # sorting strings gives the same order as sorting bytes


def load_variable(path: AnyPath, name: str) -> LoadedValue:
    """Return one tensor of a checkpoint.

    Args:
        path: As for CheckpointReader.
        name: As for `CheckpointReader.get_tensor`. A trailing ":0", which TensorFlow's graphs append, is dropped unless
            it belongs to the key.

    Raises:
        NotFoundError, InvalidArgumentError, DataLossError, UnimplementedError: as for `CheckpointReader.get_tensor`.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> path = tfckpt.save_file({"dense/bias": torch.zeros(3)}, "model.ckpt-1")
        >>> tfckpt.load_variable(path, "dense/bias")
        tensor([0., 0., 0.])
    """
    with CheckpointReader(path) as reader:
        known = name in reader or not isinstance(name, str)  # get_tensor raises the error if it is not a str
        return reader.get_tensor(name if known else name.removesuffix(":0"))
