"""Names of the tensors of an object-based checkpoint, and lookup of tensors by name.

    key          model/layer/kernel/.ATTRIBUTES/VARIABLE_VALUE              the name in the index
    short key    model/layer/kernel                                         the key without its suffix
    path         model.layer.kernel, (root).model.layer.kernel              the object, as `tfckpt ls --tree` prints it
    other path   opt.variables.3, opt/variables/3                           the same, through another object (for rules)
    full name    dense/kernel, dense/kernel:0                               the name of the variable itself

The path of a slot variable is the path of its optimizer, followed by ".m of model.layer.kernel". The path of an object
with several tensors, such as a hash table, does not refer to any of them.

A stored key always refers to the tensor stored under it. Any other name may belong to several tensors: Keras stores the
total of each metric as "total". Looking up such a name raises an error that lists the keys.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator
from functools import cached_property
from typing import Final

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.object_graph import ROOT, VARIABLE_VALUE, ObjectGraph, checkpoint_key
from torch_tfckpt.text import listed, quoted

_SUFFIX: Final = checkpoint_key("", VARIABLE_VALUE)
_ROOT: Final = "(root)."
_OUTPUT: Final = ":0"  # what TensorFlow's graphs append to the name of a variable
_LISTED: Final = 8  # maximum number of keys in an error message
# Limits, because graphs come from files. Longer paths, and more names for one tensor, are not generated; a longer path
# is still accepted as input.
_LONGEST_PATH: Final = 400
_DEEPEST: Final = 64
_PATHS_OF_ONE: Final = 4
_NAMES_OF_ONE: Final = 8


def short_key(key: str) -> str:
    """Return a key without "/.ATTRIBUTES/VARIABLE_VALUE"; other keys unchanged."""
    return key.removesuffix(_SUFFIX)


class TensorNames:
    """All names of the tensors of one checkpoint.

    Args:
        graph: The objects of the checkpoint.
        keys: The keys of all stored tensors.

    Cost: the first use visits all nodes once; memory for a few names per tensor.
    Thread safety: may be used from several threads.
    """

    def __init__(self, graph: ObjectGraph, keys: Iterable[str]) -> None:
        self._graph = graph
        self._keys = dict.fromkeys(keys)
        self._children: dict[int, tuple[dict[str, list[int]], int]] = {}

    def __repr__(self) -> str:
        return f"<TensorNames of {len(self._keys)} tensors, {len(self._graph.nodes)} objects>"

    def names_of(self, key: str, *, every_path: bool = False) -> tuple[str, ...]:
        """Return the key, then the other names: short key, path, full name. Duplicates are omitted.

        Args:
            every_path: Also return the paths through objects other than the one that the key begins with.
        """
        return (key, *self._aliases.get(key, ()), *(self._others.get(key, ()) if every_path else ()))

    def variable(self, key: str) -> str | None:
        """Return the full name of the variable stored under `key`; None if it is not a variable or has no name."""
        return self._variables.get(key)

    def note(self, key: str) -> str:
        """Return the note shown next to `key` in a listing: 'variable "dense/kernel"', or ""."""
        variable = self._variables.get(key)
        if variable is not None:
            return f"variable {quoted(variable)}"
        return self._slots.get(key, "")

    def find(self, name: str) -> list[str]:
        """Return the keys of all tensors that `name` may refer to. A stored key refers only to itself."""
        if name in self._keys:
            return [name]
        found = self._called(name)
        if not found and name.endswith(_OUTPUT):
            bare = name.removesuffix(_OUTPUT)
            found = [bare] if bare in self._keys else self._called(bare)
        return found

    def resolve(self, name: str) -> str | None:
        """Return the key of the tensor that `name` refers to; None if there is no such tensor.

        Raises:
            InvalidArgumentError: `name` belongs to several tensors. The message lists their keys.
        """
        found = self.find(name)
        if len(found) > 1:
            raise InvalidArgumentError(
                f"{quoted(name)} is the name of {len(found)} tensors: {listed(found, _LISTED)}. Use one of these keys"
            )
        return found[0] if found else None

    def known(self) -> Iterator[str]:
        """Yield every name, for suggestions."""
        yield from self._keys
        yield from self._by_name

    def _called(self, name: str) -> list[str]:
        """Return the keys of the tensors that have `name` as one of their other names, in the order found."""
        path = name.removeprefix(_ROOT)
        found = dict.fromkeys(self._by_name.get(name, ()))
        found.update(dict.fromkeys(self._by_name.get(path, ())))
        # A shared object has several paths, but `_by_name` contains only the shortest.
        for node_id in self._objects_at(path):
            tensors = self._tensors_of(node_id)
            if len(tensors) == 1:
                found.update(dict.fromkeys(tensors))
        return list(found)

    def _objects_at(self, path: str) -> dict[int, None]:
        """Return the objects at `path`: local names, which may contain dots, joined by dots."""
        found: dict[int, None] = {}
        ends = [at for at, character in enumerate(path) if character == "."]
        waiting = [(ROOT, 0)] if self._graph.nodes else []
        seen = set(waiting)
        while waiting:
            here, at = waiting.pop()
            children, longest = self._children_of(here)
            found.update(dict.fromkeys(children.get(path[at:], ())))
            for end in ends[bisect_left(ends, at) : bisect_right(ends, at + longest)]:
                for step in [(node_id, end + 1) for node_id in children.get(path[at:end], ())]:
                    if step not in seen:
                        seen.add(step)
                        waiting.append(step)
        return found

    def _children_of(self, node_id: int) -> tuple[dict[str, list[int]], int]:
        """Return local name -> children of an object, and the length of the longest name."""
        known = self._children.get(node_id)
        if known is None:
            children: dict[str, list[int]] = {}
            for child in self._graph.nodes[node_id].children:
                children.setdefault(child.local_name, []).append(child.node_id)
            known = self._children[node_id] = children, max(map(len, children), default=0)
        return known

    def _tensors_of(self, node_id: int) -> Collection[str]:
        """Return the stored tensors of an object."""
        keys = (attribute.checkpoint_key for attribute in self._graph.nodes[node_id].attributes)
        return dict.fromkeys(name for key in keys for name in self._stored.get(key, ()))

    @cached_property
    def _stored(self) -> dict[str, list[str]]:
        """Key of an attribute -> its tensors."""
        stored: dict[str, list[str]] = {}
        for name, key in self._graph.attribute_keys(self._keys).items():
            stored.setdefault(key, []).append(name)
        return stored

    @cached_property
    def _variables(self) -> dict[str, str]:
        variables: dict[str, str] = {}
        for attribute in self._graph.variables():
            if attribute.full_name and attribute.checkpoint_key in self._keys:
                variables.setdefault(attribute.checkpoint_key, attribute.full_name)
        return variables

    @cached_property
    def _slots(self) -> dict[str, str]:
        """Key of a slot variable -> its slot name and variable, as in "m of model.layer.kernel"."""
        slots: dict[str, str] = {}
        for node in self._graph.nodes:
            for slot in node.slot_variables:
                variable = self._path(slot.original_variable_node_id)
                if variable is not None:
                    for key in self._tensors_of(slot.slot_variable_node_id):
                        slots.setdefault(key, f"{slot.slot_name} of {variable}")
        return slots

    @cached_property
    def _aliases(self) -> dict[str, tuple[str, ...]]:
        """Key -> its other names."""
        found: dict[str, dict[str, None]] = {key: {short_key(key): None} for key in self._keys}
        for node_id, path in self._paths():
            tensors = self._tensors_of(node_id)
            if len(tensors) == 1:
                for key in tensors:
                    _add(found[key], path, _PATHS_OF_ONE)
        for attribute in self._graph.variables():
            if attribute.full_name and attribute.checkpoint_key in found:
                _add(found[attribute.checkpoint_key], attribute.full_name, _NAMES_OF_ONE)
        # A name that is also the key of a tensor refers only to that tensor.
        return {key: tuple(name for name in names if name not in self._keys) for key, names in found.items()}

    @cached_property
    def _others(self) -> dict[str, tuple[str, ...]]:
        """Key -> its paths through other objects, in both spellings."""
        found: dict[str, dict[str, None]] = {key: {} for key in self._keys}
        for node_id, names in self._other_routes():
            tensors = self._tensors_of(node_id)
            for key in tensors if len(tensors) == 1 else ():
                if len(found[key]) < _NAMES_OF_ONE:
                    _add(found[key], ".".join(names), _NAMES_OF_ONE)
                    _add(found[key], "/".join(names), _NAMES_OF_ONE)
        return {key: tuple(name for name in names if name not in self._keys) for key, names in found.items()}

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        by_name: dict[str, list[str]] = {}
        for key, names in self._aliases.items():
            for name in names:
                by_name.setdefault(name, []).append(key)
        return by_name

    def _paths(self) -> Iterator[tuple[int, str]]:
        """Yield each object that has tensors, with its path; slot variables are below their optimizers."""
        for node_id, node in enumerate(self._graph.nodes):
            path = self._path(node_id) if node.attributes else None
            if path is not None:
                yield node_id, path
            if not node.slot_variables:
                continue
            optimizer = self._path(node_id)
            for slot in node.slot_variables if optimizer is not None else ():
                variable = self._path(slot.original_variable_node_id)
                if variable is not None:
                    yield slot.slot_variable_node_id, f"{optimizer}.{slot.slot_name} of {variable}"

    def _other_routes(self) -> Iterator[tuple[int, tuple[str, ...]]]:
        """Yield objects with tensors and several parents, with their routes through the other parents.

        Keras 3 lists all variables both in the layers and in the optimizer, and either path may be a variable's key.
        """
        for parent, node in enumerate(self._graph.nodes):
            others = [
                child
                for child in node.children
                if self._graph.nodes[child.node_id].attributes
                and self._graph.parents.get(child.node_id) not in (None, (parent, child.local_name))
            ]
            route = self._graph.route(parent, _DEEPEST - 1) if others else None
            for child in others if route is not None else ():
                names = (*(route or ()), child.local_name)
                if sum(map(len, names)) <= _LONGEST_PATH:
                    yield child.node_id, names

    def _path(self, node_id: int) -> str | None:
        """Return the shortest path to an object; None if there is no path or it is too long."""
        names = self._graph.route(node_id, _DEEPEST)
        if not names or sum(map(len, names)) > _LONGEST_PATH:
            return None
        return ".".join(names)


def _add(names: dict[str, None], name: str, limit: int) -> None:
    if len(names) < limit:
        names[name] = None
