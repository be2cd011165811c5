"""Named lists of things that belong together, as TensorFlow's graphs keep them: "variables", "savers" and so on.

torch has no graph to keep them, so one set of collections is the process's default, and can be replaced.

Source: tensorflow/python/framework/ops.py (Graph collections, GraphKeys); spec: SAVER 6.
"""

import threading
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final


class GraphKeys:
    """TensorFlow's names of its collections."""

    GLOBAL_VARIABLES: Final = "variables"
    LOCAL_VARIABLES: Final = "local_variables"
    MODEL_VARIABLES: Final = "model_variables"
    TRAINABLE_VARIABLES: Final = "trainable_variables"
    SAVEABLE_OBJECTS: Final = "saveable_objects"
    SAVERS: Final = "savers"


class Collections(Mapping[Hashable, list[object]]):
    """Lists under names; a mapping of copies of them. Threads: safe."""

    def __init__(self) -> None:
        self._lists: dict[Hashable, list[object]] = {}
        self._lock = threading.Lock()

    def add_to_collection(self, name: Hashable, value: object) -> None:
        """Appends `value`, also where it stands in the collection already.

        A name that is no str is kept too, and never exported.
        """
        with self._lock:
            self._lists.setdefault(name, []).append(value)

    def get_collection(self, name: Hashable) -> list[object]:
        """A copy of the collection, in the order of adding; empty where there is none."""
        with self._lock:
            return list(self._lists.get(name, ()))

    def lists(self) -> dict[Hashable, list[object]]:
        """A copy of all collections at one moment."""
        with self._lock:
            return {name: list(values) for name, values in self._lists.items()}

    def get_all_collection_keys(self) -> list[str]:
        """Names of all collections, those that are no str left out, in the order of their first value."""
        with self._lock:
            return [name for name in self._lists if isinstance(name, str)]

    def __getitem__(self, name: Hashable) -> list[object]:
        """`get_collection`, but KeyError where there is none."""
        with self._lock:
            return list(self._lists[name])

    def __iter__(self) -> Iterator[Hashable]:
        """The names of all, also those that are no str, in the order of their first value."""
        with self._lock:
            return iter(list(self._lists))

    def __len__(self) -> int:
        return len(self._lists)

    def __repr__(self) -> str:
        return f"Collections({', '.join(f'{name!r}: {len(values)}' for name, values in self.lists().items())})"

    # As mappings they would be equal by what is in them, and could be in no set.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def clear_collection(self, name: Hashable) -> None:
        """Forgets one collection."""
        with self._lock:
            self._lists.pop(name, None)

    def clear(self) -> None:
        """Forgets all."""
        with self._lock:
            self._lists.clear()

    @contextmanager
    def as_default(self) -> Iterator["Collections"]:
        """Makes these the default ones of the process inside a `with` block. Other threads see it too."""
        before = set_default_collections(self)
        try:
            yield self
        finally:
            set_default_collections(before)


_default = Collections()


def default_collections() -> Collections:
    """The collections that are the process's default now."""
    return _default


def set_default_collections(collections: Collections) -> Collections:
    """Makes `collections` the default ones; returns those that were."""
    global _default
    before, _default = _default, collections
    return before


def add_to_collection(name: Hashable, value: object) -> None:
    """Appends to a collection of the default ones."""
    default_collections().add_to_collection(name, value)


def get_collection(name: Hashable) -> list[object]:
    """A copy of a collection of the default ones."""
    return default_collections().get_collection(name)


def registered_variables() -> list[object]:
    """What a saver without a var_list saves: the collections "variables" and "saveable_objects"."""
    return [*get_collection(GraphKeys.GLOBAL_VARIABLES), *get_collection(GraphKeys.SAVEABLE_OBJECTS)]
