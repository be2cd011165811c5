"""Edit an object graph to match tensors that are renamed or omitted.

The key of a tensor contains the path of its object, so renaming `^model/` to `net/` also moves the object:

    before   (root) --"model"--> node 1 --"w"--> node 2, stored under model/w/.ATTRIBUTES/VARIABLE_VALUE
    after    (root) --"net"----> node 1 --"w"--> node 2, stored under net/w/.ATTRIBUTES/VARIABLE_VALUE

A program that restores the result finds its objects under the new names, as if it had saved them there. A rename may
add levels (nodes are created) or remove some (nodes are merged). If a new key has a different suffix than the old one
(/.ATTRIBUTES/...), only the key changes, and the object keeps its place.

Objects whose tensors are all omitted are removed: a program that still has them must notice that they were not
restored. Objects without tensors keep their names.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.object_graph import (
    ATTRIBUTES,
    PYTHON_STATE,
    ROOT,
    SLOTS,
    ObjectGraph,
    ObjectReference,
    RegisteredSaver,
    SerializedTensor,
    SlotVariable,
    TrackableObject,
    checkpoint_key,
    escape_local_name,
    object_path,
    unescape_local_name,
    with_checkpoint_values,
)
from torch_tfckpt.text import quoted

# Levels of objects. Real graphs have fewer than 30; time and memory grow with nodes times levels.
_MAX_DEPTH: Final = 1000
_GIVE_UP: Final = (
    "Change the patterns, or exclude _CHECKPOINTABLE_OBJECT_GRAPH to write the tensors by name, without objects"
)

Route = tuple[str, ...]  # local names from the root, not escaped


class EditedGraph(NamedTuple):
    """The result of an edit.

    Attributes:
        graph: The new graph; the same object if nothing had to change.
        paths: Old path of each remaining object, spelled as in keys -> its path in the new graph.
    """

    graph: ObjectGraph
    paths: Mapping[str, str]


def edit_graph(
    graph: ObjectGraph,
    names: Iterable[str],
    new_names: Mapping[str, str],
    rename: Callable[[str], str] = lambda name: name,
) -> EditedGraph:
    """Edit `graph` to match tensors that are renamed or omitted.

    Args:
        names: All tensors that belong to the graph.
        new_names: Name -> new name of the tensors that are kept.
        rename: Returns the new name for any name. Used for objects whose place does not follow from a tensor: a Keras
            model may have all its variables under the keys of its optimizer. Called with the path of each such object,
            followed by "/".

    Raises:
        InvalidArgumentError: the graph cannot be edited to match: tensors of one attribute are renamed differently, or
            only some of them are left out; two children of one object would have the same name; a restore would not
            find the state of an object.
    """
    return _Edit(graph, list(names), new_names, rename).result()


def object_paths(graph: ObjectGraph) -> list[str]:
    """Return the paths of all reachable objects, ending in "/", as `edit_graph` passes them to `rename`."""
    return [f"{object_path(route)}/" for route in _routes(graph).values() if route]


def other_keys(graph: ObjectGraph, names: Iterable[str]) -> dict[str, list[str]]:
    """Return tensor -> its keys by other paths to its object. Tensors with only one path are omitted."""
    routes = _routes(graph)
    others: dict[int, list[str]] = {}
    for parent, route in routes.items():
        for child in graph.nodes[parent].children:
            if graph.parents.get(child.node_id) != (parent, child.local_name):
                others.setdefault(child.node_id, []).append(object_path((*route, child.local_name)))
    key_of = graph.attribute_keys(names)
    node_of = {each.checkpoint_key: node_id for node_id, node in enumerate(graph.nodes) for each in node.attributes}
    return {
        name: [f"{path}{ATTRIBUTES}{name.partition(ATTRIBUTES)[2]}" for path in others[node_of[key]]]
        for name, key in key_of.items()
        if node_of[key] in others
    }


def _routes(graph: ObjectGraph) -> dict[int, Route]:
    """Return the shortest path to each reachable node; InvalidArgumentError if one is too long."""
    routes: dict[int, Route] = {ROOT: ()} if graph.nodes else {}
    for node_id, (parent, local_name) in graph.parents.items():
        routes[node_id] = (*routes[parent], local_name)
        if len(routes[node_id]) > _MAX_DEPTH:
            raise InvalidArgumentError(
                f"the object graph cannot be edited: objects are nested deeper than {_MAX_DEPTH} levels. {_GIVE_UP}"
            )
    return routes


class _Edit:
    def __init__(
        self, graph: ObjectGraph, names: Sequence[str], new_names: Mapping[str, str], rename: Callable[[str], str]
    ) -> None:
        self._graph, self._rename = graph, rename
        self._new_names = new_names
        self._key_of = graph.attribute_keys(names)
        self._new_keys = self._renamed_keys()
        self._routes = _routes(graph)
        self._node_at = {object_path(route): node_id for node_id, route in self._routes.items()}
        self._removed = self._nodes_to_remove()

    def result(self) -> EditedGraph:
        places = self._places()
        kept_in_place = not self._removed and places == self._routes
        if kept_in_place and all(old == new for old, new in self._new_keys.items()):
            paths = {path: path for path in self._node_at}
            self._check_states(paths)
            return EditedGraph(self._graph, paths)
        rebuilding = _Rebuilding(self._graph, places, self._removed)
        edited = rebuilding.build({node_id: self._values_of(node_id) for node_id in rebuilding.ids})
        paths = {
            path: object_path(edited.route(rebuilding.ids[node_id]) or ())
            for path, node_id in self._node_at.items()
            if node_id in rebuilding.ids
        }
        self._check_states(paths)
        return EditedGraph(edited, paths)

    def _renamed_keys(self) -> dict[str, str | None]:
        """Key of each attribute -> its new key; None if its tensors are omitted."""
        tensors: dict[str, list[str]] = {}
        for name, key in self._key_of.items():
            tensors.setdefault(key, []).append(name)
        keys = {attribute.checkpoint_key for node in self._graph.nodes for attribute in node.attributes}
        return {key: self._renamed_key(key, tensors[key]) if key in tensors else key for key in keys}

    def _renamed_key(self, key: str, stored: Sequence[str]) -> str | None:
        kept = [name for name in stored if name in self._new_names]
        if not kept:
            return None
        for name in stored:
            if name not in self._new_names:
                raise InvalidArgumentError(
                    f"the object graph cannot be edited to match: {quoted(name)} is omitted and {quoted(kept[0])} is "
                    "not, but they are parts of one value. Omit both or neither"
                )
        new_keys: set[str] = set()
        for name in kept:
            new, suffix = self._new_names[name], name[len(key) :]
            new_keys.add(new.removesuffix(suffix))
            if not new.endswith(suffix) or len(new_keys) > 1:
                raise InvalidArgumentError(
                    f"the object graph cannot be edited to match: {quoted(name)} would become {quoted(new)}, but the "
                    "tensors of "
                    f"{quoted(key)} must have the same prefix and keep their endings. {_GIVE_UP}"
                )
        return new_keys.pop()

    def _kept_attributes(self, node_id: int) -> list[SerializedTensor]:
        """Attributes of a node under their new keys, without the omitted ones."""
        return [
            attribute._replace(checkpoint_key=new)
            for attribute in self._graph.nodes[node_id].attributes
            if (new := self._new_keys[attribute.checkpoint_key]) is not None
        ]

    def _nodes_to_remove(self) -> set[int]:
        """Return nodes with no values left in them or below them, and slot variables of removed variables."""
        nodes = self._graph.nodes
        bare = {
            node_id
            for node_id, node in enumerate(nodes)
            if node_id != ROOT and node.attributes and not self._kept_attributes(node_id) and not node.registered_saver
        }
        removed: set[int] = set()
        # Children before parents; slot variables, which are not children, before all others.
        for node_id in reversed([*self._graph.parents, *(bare - self._graph.parents.keys())]):
            below = [child.node_id for child in nodes[node_id].children]
            below += [slot.slot_variable_node_id for slot in nodes[node_id].slot_variables]
            if node_id in bare and all(other in removed for other in below):
                removed.add(node_id)
        # TensorFlow cannot even name a slot variable whose variable is not in the graph.
        orphans = {
            slot.slot_variable_node_id
            for node in nodes
            for slot in node.slot_variables
            if slot.original_variable_node_id in removed and slot.slot_variable_node_id not in self._graph.parents
        }
        return removed | orphans

    def _places(self) -> dict[int, Route]:
        """Return each node's new place: by the new keys of values in or below it, or else by its path."""
        parents = self._graph.parents
        order = [node_id for node_id in self._routes if node_id not in self._removed]  # parents before children
        wanted = self._wanted_places()
        votes: dict[int, Counter[Route]] = {}
        for node_id in reversed(order):
            told = node_id in wanted or node_id in votes
            if node_id not in wanted and told:
                wanted[node_id] = self._elected(node_id, votes[node_id])
            if node_id == ROOT:
                continue
            parent, local_name = parents[node_id]
            if not told:  # without tensors: it does not affect the place of its parent
                path = f"{object_path(self._routes[node_id])}/"
                new = self._rename(path)
                if new != path:
                    _note_place(wanted, node_id, new, "/")
                elif parent == ROOT:
                    votes.setdefault(ROOT, Counter())[()] += 1
            elif place := wanted[node_id]:
                # The root moves down only if all of its children move with it and keep their names.
                moved = () if parent == ROOT and place[-1] != local_name else place[:-1]
                votes.setdefault(parent, Counter())[moved] += 1
        places: dict[int, Route] = {}
        for node_id in order:
            if node_id in wanted:
                places[node_id] = wanted[node_id]
            else:
                parent, local_name = parents.get(node_id, (ROOT, ""))
                places[node_id] = () if node_id == ROOT else (*places[parent], local_name)
        return places

    def _elected(self, node_id: int, votes: Counter[Route]) -> Route:
        """Return the place of a node that has tensors only below it."""
        old = self._routes[node_id]
        if old in votes:
            return old
        return max(votes, key=lambda place: (place[-1:] == old[-1:], votes[place]))

    def _wanted_places(self) -> dict[int, Route]:
        """Return the places that the new keys of a node's own values imply."""
        wanted: dict[int, Route] = {}
        for node_id, route in self._routes.items():
            path = object_path(route)
            for attribute in self._graph.nodes[node_id].attributes:
                key = attribute.checkpoint_key
                new = self._new_keys[key]
                if new is not None and key.startswith(f"{path}{ATTRIBUTES}") and node_id not in wanted:
                    _note_place(wanted, node_id, new, key[len(path) :])
        for _, node_id, new in self._unlisted_states():
            if node_id not in wanted:
                _note_place(wanted, node_id, new, checkpoint_key("", PYTHON_STATE))
        return wanted

    def _unlisted_states(self) -> list[tuple[str, int, str]]:
        """Return path, node and new name of states that the graph does not list (our optimizers' states)."""
        suffix = checkpoint_key("", PYTHON_STATE)
        return [
            (path, self._node_at[path], new)
            for name, new in self._new_names.items()
            if name not in self._key_of and name.endswith(suffix)
            if (path := name.removesuffix(suffix)) in self._node_at
        ]

    def _check_states(self, paths: Mapping[str, str]) -> None:
        """Raise InvalidArgumentError if the new key of an unlisted state does not match its object."""
        for path, _, new in self._unlisted_states():
            if path in paths and new != checkpoint_key(paths[path], PYTHON_STATE):
                raise InvalidArgumentError(
                    "the object graph cannot be edited to match: the state "
                    f"{quoted(checkpoint_key(path, PYTHON_STATE))} would "
                    f"become {quoted(new)}, but its object would be at {quoted(paths[path])}. {_GIVE_UP}"
                )

    def _values_of(self, node_id: int) -> "_NodeValues":
        node = self._graph.nodes[node_id]
        slots = [
            slot._replace(slot_name=self._new_slot_name(slot))
            for slot in node.slot_variables
            if not {slot.slot_variable_node_id, slot.original_variable_node_id} & self._removed
        ]
        return _NodeValues(self._kept_attributes(node_id), slots, node.registered_saver)

    def _new_slot_name(self, slot: SlotVariable) -> str:
        """Return the slot name that the new key of a slot variable contains."""
        key = self._graph.value_key(slot.slot_variable_node_id)
        new = None if key is None else self._new_keys[key]
        if key is None or new is None:
            return slot.slot_name
        before, after = (each.partition(ATTRIBUTES)[0] for each in (key, new))
        if SLOTS not in after or not before.endswith(f"/{escape_local_name(slot.slot_name)}"):
            return slot.slot_name
        return unescape_local_name(after.rpartition("/")[2])


def _note_place(wanted: dict[int, Route], node_id: int, new_key: str, suffix: str) -> None:
    """Record the place that a key implies, if it is the key of an object's value."""
    if not new_key.endswith(suffix):
        return
    path = new_key.removesuffix(suffix)
    parts = path.split("/") if path else []
    if "" not in parts and not {ATTRIBUTES.strip("/"), SLOTS.strip("/")} & set(parts):
        wanted[node_id] = tuple(map(unescape_local_name, parts))


@dataclass(slots=True)
class _NodeValues:
    """Contents of a node except its children; slot variables refer to nodes by their old ids."""

    attributes: list[SerializedTensor] = field(default_factory=list)
    slots: list[SlotVariable] = field(default_factory=list)
    saver: RegisteredSaver | None = None


class _Rebuilding:
    """Copies a graph and moves its nodes to new places. Nodes that end up at the same place are merged.

    Args:
        places: The new place of each node. Nodes without one, such as slot variables, are not moved.
        removed: Nodes to remove.

    Attributes:
        ids: Old id of each remaining node -> its new id.
    """

    def __init__(self, graph: ObjectGraph, places: Mapping[int, Route], removed: set[int]) -> None:
        self._graph, self._places = graph, places
        self._at: dict[Route, int] = {(): ROOT}
        self.ids: dict[int, int] = {}
        size = 1
        for node_id in range(len(graph.nodes)):
            if node_id in removed:
                continue
            place = places.get(node_id)
            self.ids[node_id] = size if place is None else self._at.setdefault(place, size)
            size += self.ids[node_id] == size
        for place in list(self._at):
            for end in range(len(place) - 1, 0, -1):
                if self._at.setdefault(place[:end], size) != size:
                    break
                size += 1
        self._children: list[dict[str, int]] = [{} for _ in range(size)]

    def build(self, values: Mapping[int, _NodeValues]) -> ObjectGraph:
        """Return the new graph. `values`: old id -> contents of the node.

        Raises InvalidArgumentError if two nodes have to be merged but cannot be.
        """
        self._add_children()
        merged = [_NodeValues() for _ in self._children]
        for node_id, own in values.items():
            target = merged[self.ids[node_id]]
            for attribute in own.attributes:
                if any(attribute.name == other.name for other in target.attributes):
                    raise self._refusal(node_id, f"two values called {quoted(attribute.name)}")
            if own.saver is not None and target.saver is not None:
                raise self._refusal(node_id, "two registered savers")
            target.attributes += own.attributes
            target.slots += [
                slot._replace(
                    original_variable_node_id=self.ids[slot.original_variable_node_id],
                    slot_variable_node_id=self.ids[slot.slot_variable_node_id],
                )
                for slot in own.slots
            ]
            target.saver = own.saver or target.saver
        nodes = tuple(
            TrackableObject(
                tuple(ObjectReference(child, name) for name, child in children.items()),
                tuple(own.attributes),
                tuple(own.slots),
                own.saver,
            )
            for children, own in zip(self._children, merged, strict=True)
        )
        says = any(node.has_checkpoint_values is not None for node in self._graph.nodes)
        return ObjectGraph(with_checkpoint_values(nodes) if says else nodes)

    def _add_children(self) -> None:
        for node_id, new_id in self.ids.items():
            for child in self._graph.nodes[node_id].children:
                if child.node_id not in self.ids:
                    continue
                name: str | None = child.local_name
                if self._graph.parents.get(child.node_id) == (node_id, name):
                    place = self._places[child.node_id]  # this edge is part of the child's keys
                    name = place[-1] if place and place[:-1] == self._places[node_id] else None
                if name is not None:
                    self._add_child(node_id, new_id, name, self.ids[child.node_id])
        for place, new_id in self._at.items():
            if place:
                self._add_child(None, self._at[place[:-1]], place[-1], new_id)

    def _add_child(self, node_id: int | None, new_id: int, name: str, child: int) -> None:
        if self._children[new_id].setdefault(name, child) != child:
            old_id = next((old for old, new in self.ids.items() if new == new_id), ROOT) if node_id is None else node_id
            raise self._refusal(old_id, f"two children called {quoted(name)}")

    def _refusal(self, node_id: int, what: str) -> InvalidArgumentError:
        return InvalidArgumentError(
            f"the object graph cannot be edited to match: {self._graph.name(node_id)} would have {what}. {_GIVE_UP}"
        )
