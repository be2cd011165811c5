"""tfckpt ls --tree: the objects of an object-based checkpoint, and the tensors that each has.

    object                 dtype    shape  size  note
    (root)
      model
        kernel             float32  [4,3]  48 B  variable "dense/kernel"
      optimizer
        m of model.kernel  float32  [4,3]  48 B  variable "dense/kernel/Adam"
      tied                                       = (root).model

Every object is shown once in full: on the shortest path from the root, from which the keys of its tensors are made.
Elsewhere a line refers to it. Graphs come from files and may be of any depth, so nothing here recurses, and the length
of a line is limited.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any, Final, NamedTuple

from torch_tfckpt.cli.console import say, show, show_json
from torch_tfckpt.cli.show import (
    Row,
    as_json,
    cells,
    kinds_of,
    missing_files_of,
    open_for_listing,
    rows_of,
    sums_text,
    total_of,
    unmatched,
    warn_of_missing,
)
from torch_tfckpt.cli.tables import show_table
from torch_tfckpt.errors import NotFoundError
from torch_tfckpt.foreign_files.tensorflow import CheckpointSource
from torch_tfckpt.format.object_graph import (
    OBJECT_GRAPH_KEY,
    ROOT,
    VARIABLE_VALUE,
    ObjectGraph,
    SerializedTensor,
    TrackableObject,
)
from torch_tfckpt.text import counted, encodable, escaped, printable, quoted

_INDENTED: Final = 20  # levels; deeper lines begin with the number of their level
_NAME: Final = 80  # characters of a name
_WAY: Final = 12  # names on the path to an object that a line refers to

_Line = tuple[int, str, Sequence[str]]  # level, object, the other cells


class _Edge(NamedTuple):
    """Edge from an object to a child or slot variable."""

    node_id: int
    name: str
    variable: int | None = None  # of a slot variable: the variable that it belongs to


class _TreePosition(NamedTuple):
    """Place at which the tree shows an object with all its children."""

    parent: int | None  # None: the root, and unreachable objects
    level: int
    edge: _Edge


def ls_tree(options: argparse.Namespace) -> int:
    """Show the objects; return 1 if a tensor is missing or cannot be read, or no name matches."""
    with closing(open_for_listing(options.path)) as source:
        if not isinstance(source, CheckpointSource):
            raise NotFoundError(f"{printable(source.path)}: {source.format} has no object graph. Omit --tree")
        graph = source.reader.object_graph
        if graph is None:
            raise NotFoundError(f"{source.reader.path} stores tensors by name and has no objects. Omit --tree")
        rows = rows_of(source, options.patterns)
        nothing = unmatched(source, options.patterns) if options.patterns and not rows else ""
        path, form, kinds, missing = source.path, source.format, kinds_of(source), missing_files_of(source)
    tree = _Tree(graph, rows, all_objects=options.all, all_attributes=not options.patterns)
    if options.json:
        show_json(
            {
                "path": encodable(path),
                "format": form,
                **tree.as_json(),
                "missing_files": list(map(encodable, missing)),
                "total": total_of(rows, kinds),
            }
        )
    else:
        lines = list(tree.lines())
        table = [[_indented(level, text), *others] for level, text, others in lines]
        show_table(["object", "dtype", "shape", "size", "note"], table, numeric=["size"])
        show(f"{counted(tree.size, 'object')}, {sums_text(rows)}")
        if tree.size < len(graph.nodes) and not options.patterns and not options.quiet:
            say(f"{counted(len(graph.nodes) - tree.size, 'object')} without tensors not shown; --all shows them")
        if any(level > _INDENTED for level, _, _ in lines) and not options.quiet:
            say(f"lines deeper than {_INDENTED} levels are not indented further, and begin with their level")
    warn_of_missing(missing)
    if nothing:
        say(nothing)
    return 1 if nothing or tree.lacks_tensors or any(row.info is None for row in rows) else 0


class _Tree:
    """The graph as a tree, with the tensors of `rows`.

    Args:
        all_objects: Also show objects that have no tensors of their own and none in the objects below them.
        all_attributes: Also show attributes without a tensor in `rows`.
    """

    def __init__(self, graph: ObjectGraph, rows: Sequence[Row], *, all_objects: bool, all_attributes: bool) -> None:
        self._nodes, self._rows = graph.nodes, rows
        self._all_objects, self._all_attributes = all_objects, all_attributes
        self._places = _places(graph.nodes)
        self._keys = graph.attribute_keys(row.name for row in rows)
        self._stored: dict[str, list[Row]] = {}
        for row in rows:
            if row.name in self._keys:
                self._stored.setdefault(self._keys[row.name], []).append(row)
        self._shown = self._objects_to_show()

    @property
    def size(self) -> int:
        """Number of objects shown."""
        return len(self._shown)

    @property
    def lacks_tensors(self) -> bool:
        """Whether an attribute that is shown has no tensor in `rows`."""
        every = (each for node_id in self._shown for each in self._attributes(node_id))
        return any(each.checkpoint_key not in self._stored for each in every)

    def lines(self) -> Iterator[_Line]:
        """Yield the tree from the root, then unreachable objects, then tensors without an object."""
        complete: set[int] = set()
        tops = [(None, 0, place.edge) for place in self._places.values() if place.parent is None]
        waiting: list[tuple[int | None, int, _Edge]] = list(reversed(tops))
        while waiting:
            parent, level, edge = waiting.pop()
            node_id = edge.node_id
            if node_id not in self._shown:
                continue
            if self._places[node_id].parent != parent or node_id in complete:
                yield level, self._label(edge), ["", "", "", f"= {self._way(node_id)}"]
                continue
            complete.add(node_id)
            yield from self._object(level, edge)
            waiting += [(node_id, level + 1, below) for below in reversed(list(_edges(self._nodes[node_id])))]
        unnamed = [row for row in self._rows if row.name not in self._keys and row.name != OBJECT_GRAPH_KEY]
        if unnamed:
            yield 0, "(tensors that do not belong to an object)", [""] * 4
        for row in unnamed:
            yield 1, _short(row.name), cells(row)[1:]

    def as_json(self) -> dict[str, Any]:
        """Return the objects as a flat list, and the tensors, each with the key of its attribute."""
        tensors = [{**as_json(row), "attribute": self._keys.get(row.name)} for row in self._rows]
        return {"objects": [self._object_as_json(node_id) for node_id in sorted(self._shown)], "tensors": tensors}

    def _objects_to_show(self) -> set[int]:
        if self._all_objects:
            return set(self._places)
        having = [node_id for node_id in self._places if self._attributes(node_id)]
        if not self._all_attributes:
            return self._with_parents(having)
        # A registered saver stores its values in separate files.
        having += [node_id for node_id, node in enumerate(self._nodes) if node.registered_saver is not None]
        return {*self._leading_to(having), *(() if not self._nodes else (ROOT,))}

    def _with_parents(self, node_ids: Iterable[int]) -> set[int]:
        """Return these objects and all objects on the paths at which the tree shows them."""
        shown: set[int] = set()
        for node_id in node_ids:
            here: int | None = node_id
            while here is not None and here not in shown:
                shown.add(here)
                here = self._places[here].parent
        return shown

    def _leading_to(self, node_ids: Iterable[int]) -> set[int]:
        """Return these objects and all objects from which one of them can be reached."""
        owners: dict[int, list[int]] = {}
        for node_id, node in enumerate(self._nodes):
            for edge in _edges(node):
                owners.setdefault(edge.node_id, []).append(node_id)
        shown = set(node_ids)
        waiting = list(shown)
        while waiting:
            new = set(owners.pop(waiting.pop(), ())) - shown
            shown |= new
            waiting += new
        return shown

    def _attributes(self, node_id: int) -> list[SerializedTensor]:
        """The attributes of an object that are shown."""
        attributes = self._nodes[node_id].attributes
        return [each for each in attributes if self._all_attributes or each.checkpoint_key in self._stored]

    def _object(self, level: int, edge: _Edge) -> Iterator[_Line]:
        """The lines of an object: a single one if it has at most one tensor."""
        saver = self._nodes[edge.node_id].registered_saver
        note = "" if saver is None else f"saved by {quoted(saver.name)} as {quoted(saver.object_name)}"
        attributes = self._attributes(edge.node_id)
        rows = [self._stored.get(each.checkpoint_key, []) for each in attributes]
        if len(attributes) == 1 and len(rows[0]) <= 1:
            yield level, self._label(edge), _value(attributes[0], rows[0], note)
            return
        yield level, self._label(edge), ["", "", "", note]
        for attribute, stored in zip(attributes, rows, strict=True):
            name = f".{_short(attribute.name)}"
            if len(stored) <= 1:
                yield level + 1, name, _value(attribute, stored)
                continue
            yield level + 1, name, ["", "", "", f"{len(stored)} tensors"]
            for row in stored:
                yield level + 2, _short(row.name.removeprefix(attribute.checkpoint_key)), cells(row)[1:]
            # A second attribute with the same tensors does not list them again.
            stored[1:] = []

    def _label(self, edge: _Edge) -> str:
        name = _short(edge.name)
        return name if edge.variable is None else f"{name} of {self._way(edge.variable).removeprefix('(root).')}"

    def _way(self, node_id: int) -> str:
        """Return the names on the path to an object; for a long path, only the last names."""
        names: list[str] = []
        place = self._places[node_id]
        while place.parent is not None and len(names) < _WAY:
            names.append(_short(place.edge.name))
            place = self._places[place.parent]
        names.append(_short(place.edge.name) if place.parent is None else "(...)")
        return escaped(".".join(reversed(names)), limit=2 * _NAME)

    def _object_as_json(self, node_id: int) -> dict[str, Any]:
        node, place = self._nodes[node_id], self._places[node_id]
        return {
            "id": node_id,
            "parent": place.parent,
            "name": place.edge.name,
            "slot_variable_of": place.edge.variable,
            "children": [{"name": child.local_name, "id": child.node_id} for child in node.children],
            "slot_variables": [
                {"name": slot.slot_name, "variable": slot.original_variable_node_id, "id": slot.slot_variable_node_id}
                for slot in node.slot_variables
            ],
            "attributes": [
                {
                    "name": each.name,
                    "full_name": each.full_name,
                    "checkpoint_key": each.checkpoint_key,
                    "stored": each.checkpoint_key in self._stored,
                }
                for each in self._attributes(node_id)
            ],
            "registered_saver": None if node.registered_saver is None else node.registered_saver._asdict(),
        }


def _edges(node: TrackableObject) -> Iterator[_Edge]:
    """Yield the edges to children, then to slot variables."""
    for child in node.children:
        yield _Edge(child.node_id, child.local_name)
    for slot in node.slot_variables:
        yield _Edge(slot.slot_variable_node_id, slot.slot_name, slot.original_variable_node_id)


def _places(nodes: Sequence[TrackableObject]) -> dict[int, _TreePosition]:
    """Return the place of each node: as a child if possible, else as a slot variable, else on its own."""
    places: dict[int, _TreePosition] = {}
    for top in range(len(nodes)):
        if top in places:
            continue
        places[top] = _TreePosition(
            None, 0, _Edge(top, "(root)" if top == ROOT else f"(object {top}, not reachable from the root)")
        )
        reached = _spread(nodes, places, top)
        for optimizer in reached:  # grows in the loop
            for edge in _edges(nodes[optimizer]):
                if edge.node_id not in places:
                    places[edge.node_id] = _TreePosition(optimizer, places[optimizer].level + 1, edge)
                    reached += _spread(nodes, places, edge.node_id)
    return places


def _spread(nodes: Sequence[TrackableObject], places: dict[int, _TreePosition], start: int) -> list[int]:
    """Place all nodes reachable from `start` through children, breadth first; return them, `start` first."""
    reached = [start]
    for here in reached:  # grows in the loop
        for child in nodes[here].children:
            if child.node_id not in places:
                edge = _Edge(child.node_id, child.local_name)
                places[child.node_id] = _TreePosition(here, places[here].level + 1, edge)
                reached.append(child.node_id)
    return reached


def _value(attribute: SerializedTensor, stored: Sequence[Row], note: str = "") -> list[str]:
    """The cells of an attribute, after its name."""
    notes = [note] if note else []
    name = attribute.name + stored[0].name.removeprefix(attribute.checkpoint_key) if stored else attribute.name
    if name != VARIABLE_VALUE:
        notes.append(_short(name))
    if attribute.full_name:
        notes.append(f"variable {_short(quoted(attribute.full_name))}")
    if not stored:
        return ["?", "?", "?", "; ".join([*notes, f"not in the file: {quoted(attribute.checkpoint_key)}"])]
    _, dtype, shape, size, _ = cells(stored[0])
    return [dtype, shape, size, "; ".join(filter(None, [*notes, stored[0].note]))]


def _short(name: str) -> str:
    """Return a name for use within a line, quoted if it is empty or looks like indentation."""
    shown = escaped(name, limit=_NAME)
    return f'"{shown}"' if shown != shown.strip() or not shown else shown


def _indented(level: int, text: str) -> str:
    return f"{'  ' * level}{text}" if level <= _INDENTED else f"{'  ' * _INDENTED}[{level}] {text}"
