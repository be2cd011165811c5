"""The values of a checkpoint under the names that torch.distributed.checkpoint uses.

A name is a path joined by ".". Documents (`dcp_texts`) have the paths of their values; the path of any other tensor is
its key, split at "/". If a key is also a directory of others ("w" and "w/Adam"), it is its own path.

Some values are found under further names, which are not listed:

    dense/kernel, dense.kernel            any "/" in a listed name may be a ".", and the reverse
    model.b                               a tensor that its module shares with "model/a", as a Saver stores it
    optim.param_groups.fc.weight.lr       hyperparameters as in a flattened optimizer
    optim.param_groups.0.param_names      names of parameters, as in an optimizer that was built with names
    net.layer.kernel                      any name that CheckpointReader accepts in an object-based checkpoint
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import torch

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.dtypes import is_holdable
from torch_tfckpt.errors import CheckpointError, DataLossError, error_context
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.object_graph import OBJECT_GRAPH_KEY
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.integrations.dcp_mapping import MappedTensors, MappedValue
from torch_tfckpt.integrations.dcp_names import GROUPS, PARAMETERS, Path
from torch_tfckpt.integrations.dcp_texts import StoredDocument, opened
from torch_tfckpt.models.rules.key_mapper import KeyMapper
from torch_tfckpt.saveables.state_dicts import VERSIONS
from torch_tfckpt.saveables.stored_keys import SHARED, shared_names
from torch_tfckpt.text import listed, quoted
from torch_tfckpt.values import value_dtype

_NAMES: Final = "param_names"  # of the parameters of a group, which "params" has in a stored optimizer
_VARIABLE: Final = "/.ATTRIBUTES/VARIABLE_VALUE"
_LISTED: Final = 8  # maximum number of names in a message

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoredTensorValue:
    """A tensor."""

    key: str
    shape: Shape
    dtype: torch.dtype


@dataclass(frozen=True, slots=True, eq=False)
class StoredObjectValue:
    """A value that is not a tensor: in a document, or a string by itself.

    Attributes:
        key: Key of the document, or of the strings.
        document: None: the strings are the value.
        path: Its place in the document.
    """

    key: str
    document: StoredDocument | None = None
    path: Path = ()


Entry = StoredTensorValue | StoredObjectValue | MappedValue


class StoredContents:
    """All values of an open checkpoint.

    Args:
        mapper: Rules for tensors with other names or layouts in the state_dict; tensors that they match have only the
            names that the rules give.

    Attributes:
        entries: Listed name -> the value.
        paths: Listed name -> its path.

    Raises:
        UnimplementedError, InvalidArgumentError: a rule of the mapper cannot be applied.
        DataLossError: a document refers to a tensor that does not exist; or the index or a document is damaged.

    Cost: one index entry per key; reads all documents.
    """

    def __init__(self, reader: CheckpointReader, mapper: KeyMapper | None = None) -> None:
        self._reader = reader
        self._mapped = None if mapper is None else MappedTensors(reader, mapper)
        self.entries: dict[str, Entry] = {}
        self.paths: dict[str, Path] = {}
        self._found: dict[str, Entry | None] = {}  # by names that are not listed
        described = self._described()
        in_documents: set[str] = set()
        listed_paths: list[tuple[Path, Entry]] = []
        for key, (shape, dtype) in described.items():
            if dtype != DataType.DT_STRING:
                continue
            document = None if shape else self._document(key, described)
            root = _path_of(key)
            if document is None:
                listed_paths.append((root, StoredObjectValue(key)))
                continue
            in_documents.update(document.tensors.values(), document.inner)
            for path, inner in document.tensors.items():
                listed_paths.append((root + path, self._tensor(inner, described)))
            listed_paths += [((*root, *path), StoredObjectValue(key, document, path)) for path in document.values]
        for key, (_, dtype) in described.items():
            if self._mapped is not None and key in self._mapped.keys:
                continue
            if dtype != DataType.DT_STRING and key not in in_documents:
                listed_paths.append((_path_of(key), self._tensor(key, described)))
        self._list(listed_paths)
        if self._mapped is not None:
            self.entries.update(self._mapped.items())
            self.paths.update((name, (name,)) for name, _ in self._mapped.items())

    def find(self, name: str) -> Entry | None:
        """Return the value with a listed name or one of its further names; None if there is none."""
        mapped = None if self._mapped is None else self._mapped.find(name)
        if mapped is not None:
            return mapped
        entry = self.entries.get(name)
        if entry is None and name not in self._found:
            self._found[name] = self._further(name)
        return entry or self._found.get(name)

    def _described(self) -> dict[str, tuple[Shape, DataType]]:
        found: dict[str, tuple[Shape, DataType]] = {}
        left_out = []
        for key in self._reader.keys():
            shape, dtype = self._reader.shape(key), self._reader.dtype(key)
            if not is_holdable(dtype):
                left_out.append(key)
            elif key != OBJECT_GRAPH_KEY and key.rpartition("/")[2] not in (SHARED, VERSIONS):
                found[key] = shape, dtype
        if left_out:
            _log.info("%s: torch has no dtype for %s, which are omitted", self._reader.path, listed(left_out, _LISTED))
        return found

    def _document(self, key: str, described: Mapping[str, tuple[Shape, DataType]]) -> StoredDocument | None:
        def stand_in(name: str) -> torch.Tensor:
            if name not in described or described[name][1] == DataType.DT_STRING:
                raise DataLossError(f"the state refers to a tensor {quoted(name)} that does not exist")
            shape, dtype = described[name]
            return torch.zeros((), dtype=value_dtype(name, dtype), device="cpu").expand(shape)

        text = self._reader.get_strings(key).item()
        with error_context(f"{self._reader.path}: state {quoted(key)}"):
            return opened(text, stand_in)

    def _tensor(self, key: str, described: Mapping[str, tuple[Shape, DataType]]) -> StoredTensorValue:
        shape, dtype = described[key]
        return StoredTensorValue(key, shape, value_dtype(key, dtype))

    def _list(self, found: list[tuple[Path, Entry]]) -> None:
        """List values by their paths; those in the way of others by their keys."""
        paths = [path for path, _ in found]
        above = {path[:end] for path in paths for end in range(len(path))}
        leaves = set(paths)
        for path, entry in found:
            blocked = path in above or any(path[:end] in leaves for end in range(1, len(path)))
            name = ".".join(map(str, path))
            if (blocked or name in self.entries) and isinstance(entry, StoredTensorValue):
                path, name = (entry.key,), entry.key
            self.entries.setdefault(name, entry)
            self.paths.setdefault(name, path)

    def _further(self, name: str) -> Entry | None:
        entry = self._by_dots.get(_dotted(name))
        if entry is not None:
            return entry
        try:
            key = self._reader.resolve(name)
        except CheckpointError:
            return None
        return next((each for each in self.entries.values() if each.key == key), None)

    @cached_property
    def _by_dots(self) -> dict[str, Entry]:
        """Name with dots only -> value, without names that several values have."""
        found: dict[str, Entry] = {}
        ambiguous: set[str] = set()
        for name, entry in (*self.entries.items(), *self._aliases()):
            dotted = _dotted(name)
            if found.setdefault(dotted, entry) is not entry:
                ambiguous.add(dotted)
        return {name: entry for name, entry in found.items() if name not in ambiguous}

    def _aliases(self) -> Iterator[tuple[str, Entry]]:
        of_key = {entry.key: entry for entry in self.entries.values() if isinstance(entry, StoredTensorValue)}
        for alias, key in shared_names(self._reader).items():
            if key in of_key and alias not in self._reader:
                yield alias, of_key[key]
        for name, path in self.paths.items():
            entry = self.entries[name]
            if (
                path[-1] != PARAMETERS
                or len(path) < 3
                or path[-3] != GROUPS
                or not isinstance(entry, StoredObjectValue)
            ):
                continue
            document, group = entry.document, ".".join(map(str, path[:-1]))
            parameters = None if document is None else document.values[entry.path]
            if document is None or not isinstance(parameters, list):
                continue
            if f"{group}.{_NAMES}" not in self.entries:
                yield f"{group}.{_NAMES}", entry
            hyperparameters = [each for each in document.values if each[:-1] == entry.path[:-1] and each != entry.path]
            for parameter in parameters:
                for each in hyperparameters:
                    optimizer = ".".join(map(str, path[:-2]))
                    yield f"{optimizer}.{parameter}.{each[-1]}", StoredObjectValue(entry.key, document, each)


def _path_of(key: str) -> Path:
    return tuple(key.removesuffix(_VARIABLE).split("/"))


def _dotted(name: str) -> str:
    return name.replace("/", ".")


def strings_of(reader: CheckpointReader, key: str) -> object:
    """Return the value of stored strings that are not a document: bytes, or an array of them."""
    strings: np.ndarray[tuple[int, ...], np.dtype[np.object_]] = reader.get_strings(key)
    return strings.item() if strings.shape == () else strings
