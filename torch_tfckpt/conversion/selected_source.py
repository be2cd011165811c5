"""A source limited to selected tensors, under new names, with a matching object graph."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

import numpy as np

from torch_tfckpt.conversion.graph_editing import edit_graph
from torch_tfckpt.conversion.state_editing import edit_state, referenced_tensors
from torch_tfckpt.errors import DataLossError, InvalidArgumentError, error_context
from torch_tfckpt.foreign_files.protocols import TensorSource
from torch_tfckpt.foreign_files.values import FileValue, TensorInfo
from torch_tfckpt.format.object_graph import OBJECT_GRAPH_KEY, PYTHON_STATE, ObjectGraph, checkpoint_key
from torch_tfckpt.text import printable, quoted
from torch_tfckpt.values import strings_from

_STATE_SUFFIX = checkpoint_key("", PYTHON_STATE)


class RenamedSource(Protocol):
    """Tensors of a source under new names, ready to be written."""

    @property
    def graph_edited(self) -> bool:
        """Whether the object graph was edited."""

    def names(self) -> list[str]:
        """The new names, in order."""

    def old_name(self, name: str) -> str:
        """Return the name of a tensor in the source."""

    def info(self, name: str) -> TensorInfo:
        """Return dtype, shape and size of a tensor. Raises like `TensorSource.info`."""

    def read(self, names: Iterable[str]) -> dict[str, FileValue]:
        """Return values under their new names. Raises like `TensorSource.read`."""


class SelectedSource:
    """Some tensors of `source`, under new names.

    Args:
        source: The source; it is not closed by this object.
        names: All tensors of the checkpoint, including those that `source` can no longer list.
        new_names: Name -> new name of the selected tensors.
        rename: Returns the new name for any name; None if nothing is renamed.
        graph: The object graph, if it has been read; otherwise it is read when it has to be edited.

    Attributes:
        new_names: As passed.

    Raises:
        InvalidArgumentError: the object graph is selected and cannot be edited to match the new names.
        DataLossError, NotFoundError: the object graph has to be edited, but is damaged.
    """

    def __init__(
        self,
        source: TensorSource,
        names: Iterable[str],
        new_names: Mapping[str, str],
        rename: Callable[[str], str] | None = None,
        graph: ObjectGraph | None = None,
    ) -> None:
        self._source, self._rename = source, rename
        self.new_names = new_names
        self._old_names = {new: old for old, new in new_names.items()}
        self._edited: dict[str, bytes] = {}
        belonging = [name for name in names if name != OBJECT_GRAPH_KEY]
        if OBJECT_GRAPH_KEY in new_names and (rename or any(name not in new_names for name in belonging)):
            self._edit(belonging, new_names, graph)

    @property
    def graph_edited(self) -> bool:
        """Whether the object graph was edited."""
        return OBJECT_GRAPH_KEY in self._edited

    def names(self) -> list[str]:
        """The new names, in the order of the source."""
        return list(self._old_names)

    def old_name(self, name: str) -> str:
        """Return the name of a tensor in the source."""
        return self._old_names[name]

    def info(self, name: str) -> TensorInfo:
        """Return dtype, shape and size of a tensor. Raises like `TensorSource.info`."""
        info = self._source.info(self._old_names[name])
        return info._replace(nbytes=len(self._edited[name])) if name in self._edited else info

    def read(self, names: Iterable[str]) -> dict[str, FileValue]:
        """Return values under their new names. Raises like `TensorSource.read`."""
        wanted = list(names)
        stored = self._source.read([self._old_names[name] for name in wanted if name not in self._edited])
        values: dict[str, FileValue] = {}
        for name in wanted:
            if name in self._edited:
                values[name] = strings_from(name, (), [self._edited[name]])
            else:
                values[name] = stored.pop(self._old_names[name])
        return values

    def _edit(self, names: Iterable[str], new_names: Mapping[str, str], known: ObjectGraph | None) -> None:
        place = f"{printable(self._source.path)}: {quoted(OBJECT_GRAPH_KEY)}"
        with error_context(place):
            graph = read_graph(self._source) if known is None else known
            edited, paths = edit_graph(graph, names, new_names, self._rename or (lambda name: name))
        if edited is not graph:
            self._edited[OBJECT_GRAPH_KEY] = edited.encode()
        left_out = {name for name in names if name not in new_names}
        for name, text in read_states(self._source, new_names):
            for key in referenced_tensors(text):
                if key in left_out:
                    raise InvalidArgumentError(
                        f"{printable(self._source.path)}: {quoted(key)} is omitted, but the state {quoted(name)} "
                        f"refers to it. Omit both or neither"
                    )
            new = edit_state(text, new_names, paths)
            if new is not text:
                self._edited[new_names[name]] = new


def read_graph(source: TensorSource) -> ObjectGraph:
    """Return the object graph of a source that has one.

    Raises:
        DataLossError, NotFoundError: the graph is damaged, or is not a single string.
    """
    value = source.read([OBJECT_GRAPH_KEY])[OBJECT_GRAPH_KEY]
    if not isinstance(value, np.ndarray) or value.shape != ():
        raise DataLossError("expected one string with an object graph")
    return ObjectGraph.decode(value.item())


def read_states(source: TensorSource, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the name and text of each tensor in `names` that is the state of an object."""
    for name in names:
        if name.endswith(_STATE_SUFFIX):
            info = source.info(name)
            if info.type.is_string and info.shape == ():
                value = source.read([name])[name]
                assert isinstance(value, np.ndarray), "its type is string"
                yield name, value.item()
