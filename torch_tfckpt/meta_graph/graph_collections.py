"""Collections: named lists of objects, as in TensorFlow's graphs: "variables", "savers" and so on.

torch has no graph to store them in, so the process has one default set of collections, which can be replaced.

Source: tensorflow/python/framework/ops.py (Graph collections, GraphKeys).
"""

import threading
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final


class GraphKeys:
    """Names of TensorFlow's standard collections.

    Examples:
        >>> import torch_tfckpt as tfckpt
        >>> tfckpt.GraphKeys.GLOBAL_VARIABLES
        'variables'
    """

    GLOBAL_VARIABLES: Final = "variables"
    LOCAL_VARIABLES: Final = "local_variables"
    MODEL_VARIABLES: Final = "model_variables"
    TRAINABLE_VARIABLES: Final = "trainable_variables"
    SAVEABLE_OBJECTS: Final = "saveable_objects"
    SAVERS: Final = "savers"


class Collections(Mapping[Hashable, list[object]]):
    """Named lists of objects. As a mapping, it maps each name to a copy of its list.

    Thread safety: may be used from several threads.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> collections = tfckpt.Collections()
        >>> with collections.as_default():
        ...     tfckpt.add_to_collection("variables", tfckpt.Variable(torch.zeros(2), "w"))
        >>> collections["variables"]
        [Variable('w', torch.float32, [2])]
    """

    def __init__(self) -> None:
        self._lists: dict[Hashable, list[object]] = {}
        self._lock = threading.Lock()

    def add_to_collection(self, name: Hashable, value: object) -> None:
        """Append `value`, even if it is in the collection already.

        Args:
            name: Name of the collection. A collection whose name is not a str is never exported.
        """
        with self._lock:
            self._lists.setdefault(name, []).append(value)

    def get_collection(self, name: Hashable) -> list[object]:
        """Return a copy of the collection, in insertion order; empty if it does not exist."""
        with self._lock:
            return list(self._lists.get(name, ()))

    def lists(self) -> dict[Hashable, list[object]]:
        """Return a consistent copy of all collections."""
        with self._lock:
            return {name: list(values) for name, values in self._lists.items()}

    def get_all_collection_keys(self) -> list[str]:
        """Return all collection names that are str, in order of creation."""
        with self._lock:
            return [name for name in self._lists if isinstance(name, str)]

    def __getitem__(self, name: Hashable) -> list[object]:
        """Return a copy of the collection; KeyError if it does not exist."""
        with self._lock:
            return list(self._lists[name])

    def __iter__(self) -> Iterator[Hashable]:
        """Iterate over all collection names, including names that are not str, in order of creation."""
        with self._lock:
            return iter(list(self._lists))

    def __len__(self) -> int:
        return len(self._lists)

    def __repr__(self) -> str:
        return f"Collections({', '.join(f'{name!r}: {len(values)}' for name, values in self.lists().items())})"

    # By default, a Mapping compares by contents and is not hashable.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def clear_collection(self, name: Hashable) -> None:
        """Remove one collection."""
        with self._lock:
            self._lists.pop(name, None)

    def clear(self) -> None:
        """Remove all collections."""
        with self._lock:
            self._lists.clear()

    @contextmanager
    def as_default(self) -> Iterator["Collections"]:
        """Make this the process's default set of collections inside a `with` block, for all threads."""
        before = set_default_collections(self)
        try:
            yield self
        finally:
            set_default_collections(before)


_default = Collections()


def default_collections() -> Collections:
    """Return the process's current default collections."""
    return _default


def set_default_collections(collections: Collections) -> Collections:
    """Replace the process's default collections, and return the previous ones."""
    global _default
    before, _default = _default, collections
    return before


def add_to_collection(name: Hashable, value: object) -> None:
    """Append `value` to one of the process's default collections.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> with tfckpt.Collections().as_default():  # without this, the process's own collections are used
        ...     tfckpt.add_to_collection("variables", tfckpt.Variable(torch.zeros(2), "w"))
        ...     path = tfckpt.Saver().save("model.ckpt")  # saves the registered variables
        >>> tfckpt.list_variables(path)
        [('w', [2])]
    """
    default_collections().add_to_collection(name, value)


def get_collection(name: Hashable) -> list[object]:
    """Return a copy of one of the process's default collections; empty if it does not exist.

    Examples:
        >>> import torch_tfckpt as tfckpt
        >>> with tfckpt.Collections().as_default():  # without this, the process's own collections are used
        ...     tfckpt.add_to_collection("losses", "mean_squared_error:0")
        ...     tfckpt.get_collection("losses")
        ['mean_squared_error:0']
    """
    return default_collections().get_collection(name)


def registered_variables() -> list[object]:
    """Return the values that a saver without var_list saves: those in "variables" and "saveable_objects"."""
    return [*get_collection(GraphKeys.GLOBAL_VARIABLES), *get_collection(GraphKeys.SAVEABLE_OBJECTS)]
