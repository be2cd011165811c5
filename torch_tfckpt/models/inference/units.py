"""Units that are matched with each other: layers of a checkpoint, and modules.

    stored layer   variables below one scope: dense/kernel and dense/bias; lstm/lstm_cell/kernel, .../recurrent_kernel
    module unit    a module with the tensors registered in it: weight and bias of a Linear; all weights of an LSTM

A stored layer fits a module if every tensor of the module can be made from its variables by a known layout, and none of
its variables is left over. The names of the variables show the kind of a layer: kernel, gamma, recurrent_kernel. A
single variable, such as BERT's "word_embeddings", fits a module with one tensor of its shape.

Contract: reads shapes only. How a layer fits is computed once for all layers and modules with equal shapes, so
1,000 equal layers take about as long as one layer, plus the time to process their names.
"""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from math import inf, prod
from typing import Final

from torch import nn

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.format.tensor_names import short_key
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.models.auxiliary.averages import OUTPUT
from torch_tfckpt.models.inference.scopes import attention_names, flat_layers
from torch_tfckpt.models.layers.assembly import Source, SourcePart
from torch_tfckpt.models.layers.layer_names import AMBIGUOUS, OF_LAYERS, variants_of
from torch_tfckpt.models.layers.layouts import DENSE, SAME, SQUEEZE, Layout, layout_of_rule
from torch_tfckpt.models.layers.tensor_origins import Leaves, TensorOrigin, Variant
from torch_tfckpt.models.stored_names import dotted, numbered_names, variable_name_of
from torch_tfckpt.models.targets import Target

_DEEPEST: Final = 6  # parts of a variable's name below its layer: rnn/multi_rnn_cell/cell_0/basic_lstm_cell/kernel
# Attribute -> names of the corresponding variable in custom layers.
_OWN_LEAVES: Final[Mapping[str, Sequence[str]]] = {
    "weight": ("weight", "w", "W", "kernel", "_kernel", "weights"),
    "bias": ("bias", "b", "biases"),
}
_LEAVES_OF_NORMS: Final[Mapping[str, Sequence[str]]] = {
    "weight": ("weight", "gamma", "scale", "g"),
    "bias": ("bias", "beta", "offset", "b"),
}
# Names of variables that are not a layer on their own.
_PARTS: Final = OF_LAYERS | {"_kernel", "g", "running_mean", "running_var"}
# What distinguishes the parts of a separable convolution, which is stored as one layer.
_SEPARABLE: Final = "depthwise_"
_OF_SEPARABLE: Final = ("pointwise_kernel", "pointwise_weights")


Form = tuple[object, ...]
"""What determines which layers fit which modules; equal for layers, or modules, with equal kinds and sizes."""


@dataclass(frozen=True, slots=True)
class ModuleUnit:
    """A module, or a tensor of an unknown module, with the tensors that are to be loaded together.

    Attributes:
        name: Name of the module; for a tensor of an unknown module, the name of the tensor.
        tensors: Attribute -> the tensor, for each tensor registered here that was not registered before.
        form: What determines which stored layers fit; equal for modules of the same kind and sizes.
    """

    name: str
    module: nn.Module
    tensors: Mapping[str, Target]
    form: Form

    @property
    def prefix(self) -> str:
        """What comes before the attributes in the names of the tensors."""
        return f"{self.name}." if self.name else ""


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """Variables of a checkpoint that belong together.

    Attributes:
        names: The names of the layer, from its keys and the names of its variables. The first is used in messages.
        keys: The keys of its variables, in the order of the checkpoint.
        form: What determines which modules it fits: the names of its variables in the layer, and their shapes.
    """

    names: tuple[str, ...]
    keys: tuple[str, ...]
    form: Form


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a module is made from a stored layer, in terms of names in the layer.

    Attributes:
        sources: Attribute -> the possible sources, whose keys are names in the layer; several only if neither name nor
            shape determines the order of axes.
        fills: Attribute -> value of all elements, if TensorFlow stores nothing for it.
    """

    sources: Mapping[str, Sequence[Source]]
    fills: Mapping[str, float]

    def used(self) -> set[str]:
        """Return the names in the layer that are used."""
        return {key for sources in self.sources.values() for source in sources for key in source.keys}


@dataclass(slots=True)
class Candidates:
    """All stored layers that fit a module, and how.

    Attributes:
        layers: The layers; some may have variables in common.
        fits: Form of a layer -> form of a module -> how they fit.
        variables: For each layer, name in the layer -> key.
    """

    layers: list[StoredLayer] = field(default_factory=list)
    fits: dict[Form, dict[Form, Recipe]] = field(default_factory=dict)
    variables: list[Mapping[str, str]] = field(default_factory=list)


def module_units(targets: Iterable[Target]) -> list[ModuleUnit]:
    """Return the units of a module, in the order in which the tensors are registered. Counters are left out."""
    grouped: dict[str, tuple[nn.Module, dict[str, Target]]] = {}
    for target in targets:
        if target.is_counter:
            continue
        place = target.places[0]
        origin = next((each for each in target.origins if each.name == place.name), None)
        base = place.parent if origin is None else origin.base
        name = base.removesuffix(".")
        attribute = place.name.removeprefix(base)
        known = origin is not None or _is_custom_layer(place.module)
        if not known:
            name, attribute = place.name, ""
        grouped.setdefault(name, (place.module, {}))[1][attribute] = target
    return [ModuleUnit(name, *_of_layer(module, tensors)) for name, (module, tensors) in grouped.items()]


def _of_layer(module: nn.Module, tensors: dict[str, Target]) -> tuple[nn.Module, Mapping[str, Target], Form]:
    shapes = tuple((attribute, target.shape) for attribute, target in tensors.items())
    names = ("groups", "num_layers", "bidirectional", "input_size", "hidden_size", "proj_size", "normalized_shape")
    settings = tuple(getattr(module, name, None) for name in names)
    return module, tensors, (type(module), shapes, settings)


def _is_custom_layer(module: nn.Module) -> bool:
    """Return whether an unknown module looks like a layer: a weight, possibly a bias, and no submodules."""
    own = {name for name, value in (*module._parameters.items(), *module._buffers.items()) if value is not None}
    return "weight" in own and own <= set(_OWN_LEAVES) and not module._modules


def stored_candidates(reader: CheckpointReader, keys: Sequence[str], units: Sequence[ModuleUnit]) -> Candidates:
    """Return the stored layers among `keys` that fit one of the units."""
    below, spelled = _by_scope(reader, keys)
    by_form = {unit.form: unit for unit in units}
    found = Candidates()
    known: dict[frozenset[str], int] = {}
    recipes: dict[tuple[object, Form], Recipe | None] = {}
    shapes = {key: tuple(reader.shape(key)) for key in keys}
    by_leaves: dict[frozenset[str], list[_Known]] = {}
    for unit in by_form.values():
        of_unit = _Known.of(unit)
        by_leaves.setdefault(of_unit.leaves, []).append(of_unit)
    for scope, variables in below.items():
        if scope not in spelled:
            continue
        for chosen in _choices(variables):
            for leaves, of_units in by_leaves.items():
                relevant = _by_key(chosen, leaves)
                if not relevant or _has_more(chosen, relevant):
                    continue
                count = sum(prod(shapes[key]) for key in relevant.values())
                layer_form = tuple(sorted((leaf, shapes[key]) for leaf, key in relevant.items()))
                for each in of_units:
                    if not each.least <= count <= each.most:
                        continue
                    form = each.unit.form
                    if (layer_form, form) not in recipes:
                        recipes[layer_form, form] = _recipe(each.unit, dict(layer_form))
                    recipe = recipes[layer_form, form]
                    if recipe is not None:
                        _add(found, known, spelled[scope], relevant, layer_form, each.unit, recipe)
    alone: dict[Shape | None, list[ModuleUnit]] = {}
    for unit in by_form.values():
        if len(unit.tensors) == 1:
            alone.setdefault(next(iter(unit.tensors.values())).shape, []).append(unit)
    for key in keys:
        for unit in alone.get(shapes[key], ()):
            same_name = variable_name_of(key) == unit.name.rpartition(".")[2]
            if not same_name and variable_name_of(key) in _PARTS:
                continue
            recipe = _single_recipe(unit, shapes[key], same_name=same_name)
            if recipe is not None:
                names = _names_of(reader, key)
                index = known.get(frozenset({key}))
                if index is None:
                    index = known[frozenset({key})] = len(found.layers)
                    found.layers.append(StoredLayer(names, (key,), ("single", shapes[key], variable_name_of(key))))
                    found.variables.append({"": key})
                layer = found.layers[index]
                if "" in found.variables[index]:
                    found.fits.setdefault(layer.form, {})[unit.form] = recipe
    return found


def _add(
    found: Candidates,
    known: dict[frozenset[str], int],
    scope: str,
    used: Mapping[str, str],
    form: Form,
    unit: ModuleUnit,
    recipe: Recipe,
) -> None:
    """Add a stored layer that fits a unit; if it is known, add the scope to its names."""
    keys = frozenset(used.values())
    index = known.get(keys)
    if index is None:
        index = known[keys] = len(found.layers)
        found.layers.append(StoredLayer((scope,), tuple(sorted(keys)), form))
        found.variables.append(used)
    layer = found.layers[index]
    # The innermost scope has the most words: "lstm/lstm_cell" rather than "lstm".
    names = [scope if scope.startswith((f"{name}/", f"{name}.")) or not name else name for name in layer.names]
    if scope not in names and not any(name.startswith((f"{scope}/", f"{scope}.")) or not scope for name in names):
        names.append(scope)
    found.layers[index] = replace(layer, names=tuple(dict.fromkeys(names)))
    if layer.form == form:  # else the same variables under other names
        found.fits.setdefault(form, {}).setdefault(unit.form, recipe)


def _names_of(reader: CheckpointReader, key: str) -> tuple[str, ...]:
    variable = reader.variable_name(key)
    names = (short_key(key), *([variable] if variable else []))
    return tuple(dict.fromkeys(name.removesuffix(OUTPUT) for name in names))


def _by_scope(reader: CheckpointReader, keys: Sequence[str]) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Return dotted scope -> dotted name in the scope -> key; and dotted scope -> the scope as it is spelled.

    Names that two variables share are left out.
    """
    pairs = [(name, key) for key in keys for name in _names_of(reader, key)]
    counts: dict[str, set[str]] = {}
    for name, key in pairs:
        counts.setdefault(dotted(name), set()).add(key)
    pairs = [(name, key) for name, key in pairs if len(counts[dotted(name)]) == 1]
    pairs += flat_layers(pairs)
    spelled: dict[str, str] = {}
    for name, _ in pairs:
        spelled.update({dotted(name[:at]): name[:at] for at, character in enumerate(name) if character in "/."})
    below: dict[str, dict[str, str]] = {}
    for name, key in (*pairs, *numbered_names(pairs)):
        parts = dotted(name).split(".")
        for at in range(max(0, len(parts) - _DEEPEST), len(parts)):
            below.setdefault(".".join(parts[:at]), {})[".".join(parts[at:])] = key
    for variables in below.values():
        variables.update((name, key) for name, key in attention_names(variables).items() if name not in variables)
    return below, spelled


def _choices(variables: Mapping[str, str]) -> Iterator[Mapping[str, str]]:
    """Yield the variables of a scope; a separable convolution is divided into its two convolutions."""
    if any(leaf.startswith(_SEPARABLE) for leaf in variables) and any(leaf in variables for leaf in _OF_SEPARABLE):
        yield {leaf: key for leaf, key in variables.items() if leaf.startswith(_SEPARABLE)}
        yield {leaf: key for leaf, key in variables.items() if not leaf.startswith(_SEPARABLE)}
    else:
        yield variables


def _by_key(variables: Mapping[str, str], leaves: Container[str]) -> dict[str, str]:
    """Return the variables with these names, each under one name only."""
    found: dict[str, str] = {}
    for leaf, key in variables.items():
        if leaf in leaves:
            found.setdefault(key, leaf)
    return {leaf: key for key, leaf in found.items()}


def _has_more(variables: Mapping[str, str], of_layer: Mapping[str, str]) -> bool:
    """Return whether the scopes of a layer's variables contain others, which belong to the layer, too."""
    scopes = {leaf.rpartition(".")[0] for leaf in of_layer}
    keys = set(of_layer.values())
    return any(key not in keys and leaf.rpartition(".")[0] in scopes for leaf, key in variables.items())


def _variants(unit: ModuleUnit) -> Iterator[Variant]:
    """Yield the ways in which a unit may be stored, for the tensors that it has."""
    own = {name: TensorOrigin((dict.fromkeys(_own_leaves(unit, name), SAME),)) for name in unit.tensors}
    for variant in variants_of(unit.module):
        if unit.tensors.keys() <= variant.keys():
            yield {name: _with_own_names(name, variant[name]) for name in unit.tensors}
    if "" not in unit.tensors:
        yield own


def _own_leaves(unit: ModuleUnit, attribute: str) -> Sequence[str]:
    if variants_of(unit.module):
        return (attribute,)
    shape = unit.tensors.get("weight", unit.tensors[attribute]).shape
    names = _OWN_LEAVES if shape is None or len(shape) > 1 else _LEAVES_OF_NORMS
    return names.get(attribute, (attribute,))


def _with_own_names(attribute: str, origin: TensorOrigin) -> TensorOrigin:
    """Return the origin with torch's names, too, for a weight that may have TensorFlow's order of axes."""
    if attribute != "weight" or len(origin.variables) != 1 or origin.bounds is not None:
        return origin
    [leaves] = origin.variables
    layout = leaves.get("kernel")
    if layout is None:
        return origin
    more: Leaves = {name: layout for name in AMBIGUOUS}
    return TensorOrigin(({**leaves, **more},), origin.axis, None, origin.fill, origin.summed_with)


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known about the layers that fit a unit, before they are compared in detail.

    Attributes:
        leaves: The names that variables may have.
        least, most: Bounds of the number of elements in the layer.
    """

    unit: ModuleUnit
    leaves: frozenset[str]
    least: float
    most: float

    @classmethod
    def of(cls, unit: ModuleUnit) -> "_Known":
        variants = list(_variants(unit))
        leaves = frozenset(dotted(leaf) for each in variants for origin in each.values() for leaf in origin.leaves())
        shapes = {name: target.shape for name, target in unit.tensors.items()}
        if None in shapes.values():
            return cls(unit, leaves, 0, inf)
        counts = {name: prod(shape or ()) for name, shape in shapes.items()}
        optional = {name for each in variants for name, origin in each.items() if origin.fill is not None}
        least = sum(count for name, count in counts.items() if name not in optional)
        return cls(unit, leaves, least, sum(counts.values()))


def _recipe(unit: ModuleUnit, stored: Mapping[str, Shape]) -> Recipe | None:
    """Return how a unit is made from variables of these names and shapes; None if they do not fit."""
    for variant in _variants(unit):
        sources: dict[str, list[Source]] = {}
        fills: dict[str, float] = {}
        for attribute, origin in variant.items():
            made = _sources(unit, attribute, origin, stored)
            if made:
                sources[attribute] = made
            elif origin.fill is not None and not _is_stored(origin, stored):
                fills[attribute] = origin.fill
            else:
                break
        else:
            recipe = Recipe(sources, fills)
            if sources and stored.keys() == recipe.used():
                return recipe
    return None


def _is_stored(origin: TensorOrigin, stored: Mapping[str, Shape]) -> bool:
    return any(dotted(leaf) in stored for leaf in origin.leaves())


def _sources(unit: ModuleUnit, attribute: str, origin: TensorOrigin, stored: Mapping[str, Shape]) -> list[Source]:
    """Return the possible sources of one tensor; none if a variable is missing or does not fit."""
    parts: list[tuple[str, Layout]] = []
    for leaves in origin.variables:
        found = {dotted(leaf): layout for leaf, layout in leaves.items() if dotted(leaf) in stored}
        if len(found) != 1:
            return []
        parts += found.items()
    if not parts:
        return []
    wanted = unit.tensors[attribute].shape
    last = parts[0][0].rpartition(".")[2]
    choices = [[layout for _, layout in parts]]
    layout = parts[0][1]
    unsure = (last in AMBIGUOUS and not layout.is_same) or (not variants_of(unit.module) and attribute in _OWN_LEAVES)
    if len(parts) == 1 and unsure and len(stored[parts[0][0]]) > 1:
        choices = [[layout] for layout in dict.fromkeys([layout, SAME, SQUEEZE, DENSE])]
    made: list[Source] = []
    for layouts in choices:
        source = Source(
            tuple(SourcePart(name, layout) for (name, _), layout in zip(parts, layouts, strict=True)),
            last,
            origin.axis,
            origin.bounds,
        )
        resolved = source.resolved(stored, wanted)
        if resolved.fits(stored, wanted) and not any(each.parts == resolved.parts for each in made):
            made.append(resolved)
    return made


def _single_recipe(unit: ModuleUnit, shape: Shape, *, same_name: bool) -> Recipe | None:
    """Return how the only tensor of a unit is made from a single variable; None if it does not fit."""
    [(attribute, target)] = unit.tensors.items()
    is_embedding = isinstance(unit.module, nn.Embedding | nn.EmbeddingBag)
    if (attribute and not is_embedding) or target.shape != shape:
        return None
    sources = [Source.of("", SAME, attribute)]
    if not is_embedding and not same_name:
        equal = [(one, two) for one, two in combinations(range(len(shape)), 2) if shape[one] == shape[two] > 1]
        for one, two in equal[:1]:  # then the shape does not determine the order of axes
            axes = list(range(len(shape)))
            axes[one], axes[two] = two, one
            sources.append(Source.of("", layout_of_rule(axes), attribute))
    return Recipe({attribute: sources}, {})
