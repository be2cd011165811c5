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
    metrics = set(template.metrics)
    wanted = {name: each for name, each in template.variables.items() if name not in metrics}
    given = {weights.names[key][0]: key for key in weights.names if key in weights.renamed}
    fixed = {name: given[name] for name in wanted if name in given}
    rest = {name: each for name, each in wanted.items() if name not in fixed}
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
    return {**fixed, **found[0][1]}


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
    """Return what tf.train.Checkpoint would restore, for each object that may be the model; the best one at least."""
    if weights.graph is None:
        return []
    model = object_parts(template)
    matches = [
        {name: key for name, key in _below(weights.graph, node, model) if name in wanted and key in weights.names}
        for node in _near_root(weights.graph)
    ]
    complete = [match for match in matches if len(match) == len(wanted)]
    return complete or sorted(matches, key=len)[-1:]


def _near_root(graph: ObjectGraph) -> Iterator[int]:
    level = {ROOT} if graph.nodes else set()
    seen: set[int] = set()
    for _ in range(_DEPTH):
        yield from sorted(level)
        seen |= level
        level = {child.node_id for node in level for child in graph.nodes[node].children} - seen


def _below(graph: ObjectGraph, node: int, part: ObjectPart) -> Iterator[tuple[str, str]]:
    """Yield the variables that are found from a node, with their keys."""
    for each in part.parts:
        found = next((at for path in each.names if (at := _followed(graph, node, path)) is not None), None)
        if found is None:
            continue
        if each.variable:
            key = graph.value_key(found)
            if key is not None:
                yield each.variable, key
        else:
            yield from _below(graph, found, each)


def _followed(graph: ObjectGraph, node: int, path: str) -> int | None:
    at: int | None = node
    for name in path.split("/"):
        at = None if at is None else graph.nodes[at].child(name)
    return at


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
