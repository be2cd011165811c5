"""Names of the variables in a .keras or .weights.h5 file: the paths that Keras gives them, if known.

    layers/conv2d/vars            attribute name: stem          -> stem/kernel, stem/bias
    layers/lstm/cell/vars         names: lstm, then lstm_cell   -> lstm/lstm_cell/kernel, ...
    optimizer/vars                name: adam                    -> adam/iteration, adam/stem_kernel_momentum, ...

In the paths of the file, a layer in a list is identified by its class and a counter, not by its name: `layers/conv2d_1`
may be the layer "conv2d". The name is stored in an attribute of `vars` (Keras 3) or in the configuration (Keras 2). A
group without `vars` is a list. Keras puts the name of a model in front of the names of its layers, except for
functional models, which are built before they get a name; they are recognised by their input layer.

A variable whose name is not known is named by its path in the file, such as `layers/block/vars/0`, and is in `unnamed`.

A torch module of the same architecture has attributes instead of names. So `paths` has a second name of each variable,
in which layers are called by their attributes in the program (`head/kernel` for `self.head = Dense(2)`, whose path is
`my_model/dense/kernel`) and their numbers in lists. Layers of functional and Sequential models have their names, after
the names of all models that contain them, except the whole model. So have, in a subclassed model, layers whose
attributes come after "layers" in the alphabet: Keras stores them in its list of layers.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.keras_files.contents import KerasContents, SavedArray, SavedGroup
from torch_tfckpt.keras_files.layers import INPUT_LAYER, KerasLayer
from torch_tfckpt.keras_files.optimizer_names import TrainedVariable, optimizer_names
from torch_tfckpt.keras_files.variables import (
    Stored,
    class_in,
    is_trainable,
    names_by_shape,
    part_of,
    parts_in_order,
    snake_case,
    variable_names,
)

VARS: Final = "vars"
OPTIMIZER: Final = "optimizer"
METRICS: Final = "metrics"
_CLASSES: Final = {"GroupQueryAttention": "GroupedQueryAttention"}  # name in the configuration -> name of the class
_OLD_LAYERS: Final = "_layer_checkpoint_dependencies"  # "layers" in TensorFlow 2.12
LAYERS: Final = ("layers", _OLD_LAYERS)


@dataclass(slots=True)
class NamedArrays:
    """The datasets of a file by name.

    Attributes:
        arrays: Name -> dataset.
        unnamed: The names that are only paths in the file, because the variables are not known.
        of_optimizer: The names of the variables of the optimizer.
        places: Name -> path in the file, for the variables of the model, in the order in which Keras saves them, and
            for the states of metrics.
        paths: Name -> name by attributes, if known.
        of_metrics: The names of the states of metrics.
    """

    arrays: dict[str, SavedArray] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    unnamed: set[str] = field(default_factory=set)
    of_optimizer: set[str] = field(default_factory=set)
    paths: dict[str, str] = field(default_factory=dict)
    of_metrics: set[str] = field(default_factory=set)


_Path = tuple[str, str] | None
"""The path that Keras gives a layer, and the same path with the names of all models included; None: not known."""


class _PlacedVariable(NamedTuple):
    place: str  # path in the file
    array: SavedArray
    names: _Path
    by_attributes: str  # "" if unknown
    trainable: bool


class _PlacedLayer(NamedTuple):
    """One object that contains variables or other objects."""

    group: SavedGroup
    place: str  # path in the file
    kind: str  # class in snake case; "" if unknown
    config: KerasLayer | None
    above: _Path  # of the object that contains it
    name: str  # "" if unknown
    attributes: str | None  # path by attributes; None if unknown
    frozen: bool
    unscoped: bool = False  # its variables have the path of the object that contains it


def name_arrays(contents: KerasContents) -> NamedArrays:
    """Return the datasets of a .keras or .weights.h5 file by name."""
    config = contents.config.model if contents.config is not None else None
    found = list(_Walk(contents.keras_2).variables(contents.root, config))
    optimizer = contents.root.groups.get(OPTIMIZER)
    counts = Counter(each.names[0] for each in found if each.names is not None)
    full = Counter(each.names[1] for each in found if each.names is not None)
    result = NamedArrays()
    for each in found:
        name = _unique(each, counts, full)
        result.arrays[name or each.place] = each.array
        result.places[name or each.place] = each.place
        if not name:
            result.unnamed.add(each.place)
        elif each.by_attributes:
            result.paths[name] = each.by_attributes
    if optimizer is not None and VARS in optimizer.groups:
        trained: list[TrainedVariable] | None = None
        if config is not None and all(each.names is not None for each in found):
            trained = [
                TrainedVariable(each.names[0], each.array.array.shape or ())
                for each in found
                if each.trainable and each.names is not None
            ]
        has_scalars = any(not each.array.array.shape for each in found)
        names = optimizer_names(optimizer, contents, trained, has_scalars=has_scalars)
        counts = Counter(names.values())
        for place, name in names.items():
            array = optimizer.groups[VARS].arrays[place]
            if not name or counts[name] > 1 or name in result.arrays:
                name = f"{OPTIMIZER}/{VARS}/{place}"
                result.unnamed.add(name)
            result.arrays[name] = array
            result.of_optimizer.add(name)
    for place, array in _others(contents.root, result):
        result.arrays[place] = array
        result.unnamed.add(place)
        if place.startswith(f"{OPTIMIZER}/"):
            result.of_optimizer.add(place)
        if place.startswith(f"{METRICS}/"):
            result.of_metrics.add(place)
            result.places[place] = place
    return result


def _unique(each: _PlacedVariable, counts: Mapping[str, int], full: Mapping[str, int]) -> str:
    """Return a name that no other variable has; "" if there is no such name."""
    if each.names is None:
        return ""
    name, longer = each.names
    if counts[name] == 1 and (full[name] == 0 or longer == name):
        return name
    return longer if full[longer] == 1 and counts[longer] == (longer == name) else ""


def _others(root: SavedGroup, named: NamedArrays) -> Iterator[tuple[str, SavedArray]]:
    """Yield the datasets that have no name yet, with their paths in the file."""
    known = {id(array) for array in named.arrays.values()}
    waiting = [("", root)]
    while waiting:
        path, group = waiting.pop()
        for name, array in group.arrays.items():
            if id(array) not in known:
                yield f"{path}{name}", array
        waiting += [(f"{path}{name}/", inner) for name, inner in reversed(group.groups.items())]


class _Walk:
    """Visits the objects of a file in the order of the configuration, which is also the optimizer's order."""

    def __init__(self, keras_2: bool) -> None:
        self.keras_2 = keras_2

    def variables(self, root: SavedGroup, config: KerasLayer | None) -> Iterator[_PlacedVariable]:
        name = _name_of(root, config)
        kind = _kind_of(config) if config is not None else ""
        yield from self._object(_PlacedLayer(root, "", kind, config, ("", ""), name, "", False), is_root=True)

    def _object(self, layer: _PlacedLayer, *, is_root: bool = False) -> Iterator[_PlacedVariable]:
        group, place = layer.group, layer.place
        inside = path = None
        if layer.above is not None and layer.unscoped:
            path = inside = layer.above
        elif layer.above is not None and layer.name:
            own, whole = (_joined(above, layer.name) for above in layer.above)
            is_omitted = self._omits_name(layer)
            path, inside = (own, whole), ("" if is_omitted else own, "" if is_omitted and is_root else whole)
        elif is_root and _is_functional(group):
            inside = ("", "")
        yield from self._own(layer, path)
        order = parts_in_order(layer.kind)
        inner = [name for name in group.groups if name != VARS and not (is_root and name in (OPTIMIZER, METRICS))]
        inner.sort(key=lambda name: order.index(name) if name in order else -1)
        for name in inner:
            yield from self._member(layer, name, group.groups[name], inside, _joined(place, name))

    def _omits_name(self, layer: _PlacedLayer) -> bool:
        """Return whether Keras omits the name of a model from the names of its layers."""
        return _is_functional(layer.group) or (self.keras_2 and layer.kind == "sequential")

    def _own(self, layer: _PlacedLayer, path: _Path) -> Iterator[_PlacedVariable]:
        """Yield the variables of an object itself."""
        own = layer.group.groups.get(VARS)
        if own is None or not own.arrays:
            return
        numbered = {name: array for name, array in own.arrays.items() if name.isdecimal() and len(name) < 9}
        in_order = [numbered[str(number)] for number in range(len(numbered)) if str(number) in numbered]
        names: list[str] | None = None
        if path is not None and len(in_order) == len(own.arrays):
            stored = [Stored(each.array.shape or (), each.array.dtype or DataType.DT_INVALID) for each in in_order]
            settings = layer.config.settings if layer.config is not None else None
            names = variable_names(layer.kind, stored, settings, keras_2=self.keras_2)
            if names is None and not layer.kind and layer.config is None:
                names = names_by_shape(stored)
        place = _joined(layer.place, VARS)
        if names is None or path is None:
            for name, array in own.arrays.items():
                yield _PlacedVariable(f"{place}/{name}", array, None, "", not layer.frozen)
            return
        for number, (name, array) in enumerate(zip(names, in_order, strict=True)):
            trainable = not layer.frozen and is_trainable(layer.kind, name)
            by_attributes = "" if layer.attributes is None else _joined(layer.attributes, name)
            names_here = (_joined(path[0], name), _joined(path[1], name))
            yield _PlacedVariable(f"{place}/{number}", array, names_here, by_attributes, trainable)

    def _member(
        self, layer: _PlacedLayer, name: str, group: SavedGroup, inside: _Path, place: str
    ) -> Iterator[_PlacedVariable]:
        """Yield the variables in an attribute of an object; the attribute is an object or a list of objects."""
        if VARS in group.groups:
            yield from self._object(self._part(layer, name, group, inside, place))
            return
        if not group.groups and group.arrays:
            return
        configs = {} if layer.config is None else configs_in_list(layer.config, name, group)
        numbers = _numbers_in(group)
        is_model = _is_functional(layer.group) or layer.kind == "sequential" or not layer.place
        for item in configs or group.groups:
            inner = group.groups.get(item)
            if inner is None:
                continue
            if VARS not in inner.groups and item not in configs and not class_in(item):
                of_list = layer._replace(kind="", attributes=None)
                yield from self._member(of_list, item, inner, inside, _joined(place, item))
                continue
            config = configs.get(item)
            kind = _kind_of(config) if config is not None else class_in(item)
            made = self._made(layer, kind, config, inner, inside, _joined(place, item))
            if is_model and name in LAYERS:
                attributes = _below(layer.attributes, made.name)
            else:
                attributes = _below(_below(layer.attributes, name), numbers.get(item, ""))
            yield from self._object(made._replace(attributes=attributes))

    def _part(self, layer: _PlacedLayer, attribute: str, group: SavedGroup, inside: _Path, place: str) -> _PlacedLayer:
        """Return an object that is an attribute of another object."""
        kind, automatic = part_of(layer.kind, attribute)
        config = inner_config(layer.config, attribute)
        if kind:
            # A cell or projection of this layer has the settings of the layer.
            config = _config_of_part(layer.config, kind)
        elif config is not None:
            kind = _kind_of(config)
        else:
            named = group.groups.get(VARS)
            kind = class_in(named.name) if named is not None else ""
        made = self._made(layer, kind, config, group, inside, place)
        is_only = layer.kind == "time_distributed"  # it has no other layer, and is one with it in torch
        made = made._replace(attributes=layer.attributes if is_only else _below(layer.attributes, attribute))
        if self.keras_2 and config is not None and layer.kind == "bidirectional":
            made = made._replace(name=f"{attribute.removesuffix('_layer')}_{config.name}")
        unscoped = self.keras_2 and _shares_path(layer.kind, kind)
        return made._replace(name=made.name or automatic, unscoped=unscoped)

    def _made(
        self, layer: _PlacedLayer, kind: str, config: KerasLayer | None, group: SavedGroup, inside: _Path, place: str
    ) -> _PlacedLayer:
        frozen = layer.frozen or (config is not None and config.settings.get("trainable") is False)
        return _PlacedLayer(group, place, kind, config, inside, _name_of(group, config), None, frozen)


def configs_in_list(config: KerasLayer, attribute: str, group: SavedGroup) -> dict[str, KerasLayer]:
    """Return the configurations of the layers in a list, by their names in the file; empty if not known.

    Args:
        config: The object that has the list.
        group: The list in the file.
    """
    described = config.inner.get("layers" if attribute == _OLD_LAYERS else attribute, ())
    if "sequential" in snake_case(config.class_name):
        described = [each for each in described if each.class_name != INPUT_LAYER]
    counts: Counter[str] = Counter()
    found: dict[str, KerasLayer] = {}
    for each in described:
        base = _snake_case_of(each)
        number = counts[base]
        counts[base] += 1
        found[f"{base}_{number}" if number else base] = each
    # Keras 3 also stores the names of the layers in the file: omit a layer whose name there is different.
    named = {item: _name_of(inner, None) for item, inner in group.groups.items()}
    return {item: each for item, each in found.items() if named.get(item, "") in ("", each.name)}


def _shares_path(kind: str, inner: str) -> bool:
    """Return whether Keras 2 omits the name of a layer inside of another layer. Their classes are in snake case."""
    return (kind == "time_distributed" and inner not in ("functional", "sequential")) or inner == "conv_lstm_cell"


def _snake_case_of(config: KerasLayer) -> str:
    return snake_case(_CLASSES.get(config.class_name, config.class_name))


def _kind_of(config: KerasLayer) -> str:
    """Return the class of a layer in snake case; "" if it is not Keras's own."""
    return _snake_case_of(config) if config.is_builtin else ""


def _name_of(group: SavedGroup, config: KerasLayer | None) -> str:
    """Return the name of a layer: its attribute in the file, or its name in the configuration."""
    own = group.groups.get(VARS)
    return (own.name if own is not None else "") or (config.name if config is not None else "")


def _is_functional(group: SavedGroup) -> bool:
    layers = group.groups.get("layers") or group.groups.get(_OLD_LAYERS)
    return layers is not None and any(class_in(name) == snake_case(INPUT_LAYER) for name in layers.groups)


def inner_config(config: KerasLayer | None, attribute: str) -> KerasLayer | None:
    """Return the configuration of a layer inside of a wrapper."""
    if config is None:
        return None
    setting = {"forward_layer": "layer", "backward_layer": "backward_layer"}.get(attribute, attribute)
    found = config.inner.get(setting) or (config.inner.get("layer") if attribute == "backward_layer" else None)
    return found[0] if found else None


def _config_of_part(config: KerasLayer | None, kind: str) -> KerasLayer | None:
    if config is None:
        return None
    settings = {**config.settings, "bias_axes": "" if config.settings.get("use_bias", True) else None}
    return KerasLayer("", kind, config.path, settings)


def _below(above: str | None, name: str) -> str | None:
    """Return the path of an attribute; None if it is not known."""
    return None if above is None or not name else _joined(above, name)


def _numbers_in(group: SavedGroup) -> dict[str, str]:
    """Return the numbers of the objects in a list of objects of one class, "block_2" -> "2"; {} if there are others.

    Keras counts the objects of each class on their own.
    """
    base = min(group.groups, key=len, default="")
    found = {f"{base}_{number}" if number else base: str(number) for number in range(len(group.groups))}
    return found if found.keys() == group.groups.keys() else {}


def _joined(above: str, name: str) -> str:
    return f"{above}/{name}" if above and name else above or name
