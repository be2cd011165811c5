"""Match the variables of a Keras model with the tensors of a checkpoint or file that has the weights of that model.

    objects    model/_operations/1/_kernel, layer_with_weights-0/kernel      as tf.train.Checkpoint finds them
    places     layers/dense/vars/0                                           as Keras finds them in another file
    names      stem/kernel, of the key or of the variable                    equal to Keras's paths

Contract: a way counts only if it finds every variable, with the same shape. If two ways find different tensors, or one
way finds several sets of them, an error is raised: nothing is guessed. A tensor that `rename` gives the name of a
variable is that variable, whatever the ways say.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.object_graph import ROOT, ObjectGraph
from torch_tfckpt.format.tensor_slice import Shape, shape_text
from torch_tfckpt.keras_files.object_parts import ObjectPart, object_parts
from torch_tfckpt.keras_files.template import TemplateVariable, WeightsTemplate
from torch_tfckpt.keras_files.variables import class_in
from torch_tfckpt.text import counted, did_you_mean, first_lines, quoted

Match = Mapping[str, str]
"""Name of a variable of the model -> key of a tensor."""

_LISTED: Final = 8  # lines in an error
_DEPTH: Final = 3  # names on the way from the root to the model


@dataclass(frozen=True, slots=True)
class Weights:
    """The tensors to match.

    Attributes:
        path: The checkpoint or file, for messages.
        names: Key -> names, the key first; one name if `rename` gave it.
        shapes: Key -> shape.
        renamed: The keys with a name from `rename`.
        weights: The keys of tensors that are weights; others are slots of an optimizer, for example.
        graph: The object graph of an object-based checkpoint.
        places: Key -> place, for a file of Keras.
    """

    path: str
    names: Mapping[str, Sequence[str]]
    shapes: Mapping[str, Shape]
    renamed: frozenset[str]
    weights: frozenset[str]
    graph: ObjectGraph | None
    places: Mapping[str, str]


def match_weights(template: WeightsTemplate, weights: Weights) -> dict[str, str]:
    """Return the key for each variable of the template except those of metrics.

    Raises:
        InvalidArgumentError: variables are not found, or not in one way.
    """
    wanted = {name: each for name, each in template.variables.items() if name not in template.metrics}
    given = {weights.names[key][0]: key for key in weights.names if key in weights.renamed}
    fixed = {name: given[name] for name in wanted if name in given}
    rest = {name: each for name, each in wanted.items() if name not in fixed}
    misfit = _misfit({name: wanted[name] for name in fixed}, fixed, weights)
    if misfit is not None:
        raise InvalidArgumentError(f"{weights.path}: {misfit}. Nothing was written")
    ways: dict[str, Sequence[Match]] = {
        "the objects": _by_objects(template, weights, rest),
        "the places in the file": [_by_places(weights, rest)],
        "the names": _by_names(weights, rest),
    }
    fitting = {
        way: [match for match in matches if _misfit(rest, match, weights) is None] for way, matches in ways.items()
    }
    found = [(way, dict(match)) for way, matches in fitting.items() for match in _distinct(matches, rest)]
    by_name = [match for way, match in found if way == "the names"]
    several = [match for way, match in found if way == "the objects"]
    if len(several) > 1 and len(by_name) == 1 and by_name[0] in several:
        found = [("the names", by_name[0])]
    if not found:
        raise _not_found(template, weights, rest, [match for matches in ways.values() for match in matches])
    for way, match in found[1:]:
        name = next((name for name in rest if match[name] != found[0][1][name]), "")
        if name:
            raise InvalidArgumentError(
                f"{quoted(name)} may be stored as {quoted(found[0][1][name])}, by {found[0][0]}, or as "
                f"{quoted(match[name])}, by {way}. Choose with rename=, or limit the tensors with include= or exclude="
            )
    _check_names(found[0][1], weights)
    return {**fixed, **found[0][1]}


def _check_names(match: Match, weights: Weights) -> None:
    """Raise InvalidArgumentError if a name that a program chose belongs to another tensor than the matched one."""
    keys = {name: key for key, names in weights.names.items() for name in names}
    for name, key in match.items():
        is_chosen = any(not class_in(part) for part in name.split("/")[:-1])
        if is_chosen and keys.get(name, key) != key and name not in weights.names[key]:
            raise InvalidArgumentError(
                f"{quoted(name)} may be stored as {quoted(key)}, by its place in the model, or as "
                f"{quoted(keys[name])}, by its name. Choose with rename="
            )


def _distinct(matches: Iterable[Match], rest: Iterable[str]) -> list[Match]:
    return list({tuple(match[name] for name in rest): match for match in matches}.values())


def _by_places(weights: Weights, wanted: Mapping[str, TemplateVariable]) -> Match:
    keys = {place: key for key, place in weights.places.items() if key in weights.names}
    return {name: keys[each.place] for name, each in wanted.items() if each.place in keys}


def _by_names(weights: Weights, wanted: Mapping[str, TemplateVariable]) -> Sequence[Match]:
    """Return matches of equal names; on each side, a common first part, such as a model's name, may be left out."""
    keys: dict[str, str] = {}
    for key, names in weights.names.items():
        for name in dict.fromkeys(names):
            keys[name] = "" if name in keys else key  # "": of several tensors
    of_weights = [name for key in weights.weights for name in weights.names[key]]
    ways = []
    for own in _with_and_without_first(list(wanted), list(wanted)):
        for stored in _with_and_without_first(list(keys), of_weights):
            of_name = {short: keys[name] for name, short in stored.items() if keys[name]}
            ways.append({name: of_name[short] for name, short in own.items() if short in of_name})
    return ways


def _with_and_without_first(names: Sequence[str], among: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yield name -> name; and name -> name without the first part that all names in `among` have, if they have one."""
    yield {name: name for name in names}
    first, slash, _ = next(iter(among), "").partition("/")
    if slash and all(name.startswith(first + slash) for name in among):
        yield {name: name.removeprefix(first + slash) for name in names if name.startswith(first + slash)}


def _by_objects(template: WeightsTemplate, weights: Weights, wanted: Mapping[str, TemplateVariable]) -> Sequence[Match]:
    """Return what tf.train.Checkpoint would restore, for each object that may be the model.

    If no object has all variables, the best match of the root and its children is returned, for the error.
    """
    graph = weights.graph
    if graph is None or not graph.nodes:
        return []
    model, child_of = object_parts(template), _ChildOf(graph)

    def match(node: int, *, whole: bool) -> Match:
        found: dict[str, str] = {}
        for name, key in _below(child_of, node, model):
            if name in wanted and key is not None and key in weights.names:
                found[name] = key
            elif whole and name in wanted:
                break
        return found

    whole = [found for node in _near_root(graph) if len(found := match(node, whole=True)) == len(wanted)]
    nodes = [ROOT, *(child.node_id for child in graph.nodes[ROOT].children)]
    return whole or [max((match(node, whole=False) for node in nodes), key=len)]


def _near_root(graph: ObjectGraph) -> Iterator[int]:
    level = {ROOT}
    seen: set[int] = set()
    for _ in range(_DEPTH):
        yield from sorted(level)
        seen |= level
        level = {child.node_id for node in level for child in graph.nodes[node].children} - seen


class _ChildOf:
    """The children of nodes by name, and the keys of variables."""

    def __init__(self, graph: ObjectGraph) -> None:
        self.graph = graph
        self._children: dict[int, dict[str, int]] = {}

    def at(self, node: int, path: str) -> int | None:
        """Return the node at a path below a node; None if there is none."""
        found: int | None = node
        for name in path.split("/"):
            if found is None:
                return None
            if found not in self._children:
                self._children[found] = {each.local_name: each.node_id for each in self.graph.nodes[found].children}
            found = self._children[found].get(name)
        return found


def _below(child_of: _ChildOf, node: int, part: ObjectPart) -> Iterator[tuple[str, str | None]]:
    """Yield the variables of a part of the model, with their keys below a node; None for those that are not found."""
    for each in part.parts:
        found = next((at for path in each.names if (at := child_of.at(node, path)) is not None), None)
        if each.variable:
            yield each.variable, None if found is None else child_of.graph.value_key(found)
        elif found is not None:
            yield from _below(child_of, found, each)
        else:
            yield from ((inner.variable, None) for inner in each.walk() if inner.variable)


def _misfit(wanted: Mapping[str, TemplateVariable], match: Match, weights: Weights) -> str | None:
    """Return why a match cannot be used; None if every variable has a tensor of its shape."""
    for name, variable in wanted.items():
        if name not in match:
            return _unfound(name, weights)
        shape = weights.shapes[match[name]]
        if shape != variable.shape:
            return (
                f"{quoted(name)} is {shape_text(variable.shape)} in the Keras model, but {quoted(match[name])} is "
                f"{shape_text(shape)}"
            )
    return None


def _unfound(name: str, weights: Weights) -> str:
    known = [each for names in weights.names.values() for each in names]
    return f"{quoted(name)} is not found. {did_you_mean(name, known)}".rstrip()


def _not_found(
    template: WeightsTemplate, weights: Weights, wanted: Mapping[str, TemplateVariable], matches: Sequence[Match]
) -> InvalidArgumentError:
    best = max(matches, key=len, default={})
    lines = [
        text for name, variable in wanted.items() if (text := _misfit({name: variable}, best, weights)) is not None
    ]
    what = counted(len(lines), "variable")
    return InvalidArgumentError(
        f"{weights.path}: it does not have {what} of the Keras model in {template.path}:\n  "
        + "\n  ".join(first_lines(lines, _LISTED))
        + "\nNothing was written. Pass like= with the .keras file of the model whose weights these are; or give the "
        "tensors the names of the variables with rename="
    )
