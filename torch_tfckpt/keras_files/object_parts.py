"""The names that tf.train.Checkpoint gives to the objects of a Keras model, from the structure of a file of the model.

    layers/dense/vars/0     the variable kernel or _kernel of
                            _operations/1              Keras 3, functional models; the input has number 0
                            _functional/_operations/1  Keras 3, Sequential
                            layer_with_weights-0       Keras 2
                            layer-1                    Keras 2
    stem/cell/vars/0        the variable kernel of stem/cell, attributes of a subclassed model and of a layer

The order of the layers is that of the configuration; the file has only their classes. Objects in other lists are not
in it, and Keras 3 does not restore them from checkpoints.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from torch_tfckpt.keras_files.contents import SavedGroup
from torch_tfckpt.keras_files.layers import INPUT_LAYER, KerasLayer
from torch_tfckpt.keras_files.names import LAYERS, METRICS, OPTIMIZER, VARS, configs_in_list, inner_config
from torch_tfckpt.keras_files.template import WeightsTemplate

# Attributes that have another name than the variable in them.
_ATTRIBUTES: Final[Mapping[str, tuple[str, ...]]] = {
    "kernel": ("kernel", "_kernel"),
    "embeddings": ("embeddings", "_embeddings"),
    "mean": ("adapt_mean", "mean"),
    "variance": ("adapt_variance", "variance"),
}


@dataclass(frozen=True, slots=True)
class ObjectPart:
    """An object or variable of a Keras model.

    Attributes:
        names: The paths, from the object that has it, that versions of Keras use; empty if they are not known.
        place: Its path in the file.
        variable: Its name in the template; "" for an object.
        parts: The objects and variables in it.
        is_listed: Whether it is in a list other than that of the layers of a model.
    """

    names: tuple[str, ...]
    place: str
    variable: str = ""
    parts: tuple["ObjectPart", ...] = ()
    is_listed: bool = False

    def walk(self) -> Iterator["ObjectPart"]:
        """Yield this part and all parts in it, each before those in it."""
        yield self
        for part in self.parts:
            yield from part.walk()


def object_parts(template: WeightsTemplate) -> ObjectPart:
    """Return the model as a tree of objects; the model itself has no name."""
    config = None if template.config is None else template.config.model
    names = {each.place: each.name for each in template.variables.values()}
    return ObjectPart((), "", parts=tuple(_parts(template, template.root, "", config, names)))


def _parts(
    template: WeightsTemplate, group: SavedGroup, place: str, config: KerasLayer | None, names: Mapping[str, str]
) -> Iterator[ObjectPart]:
    """Yield the objects and variables directly in an object."""
    below = f"{place}/" if place else ""
    own = group.groups.get(VARS)
    for number in own.arrays if own is not None else ():
        name = names.get(f"{below}{VARS}/{number}")
        if name is not None:
            leaf = name.rpartition("/")[2]
            known = () if name in template.unnamed else _ATTRIBUTES.get(leaf, (leaf,))
            yield ObjectPart(known, f"{below}{VARS}/{number}", name)
    for name, inner in group.groups.items():
        here = f"{below}{name}"
        if name == VARS or here in (OPTIMIZER, METRICS):
            continue
        if VARS in inner.groups:
            other = (f"_{name}",) if name.endswith("_dense") and not name.startswith("_") else ()
            parts = tuple(_parts(template, inner, here, inner_config(config, name), names))
            yield ObjectPart((name, *other), here, parts=parts)
        elif name in LAYERS and config is not None and config.layers:
            yield from _layers(template, inner, here, config, names)
        else:
            yield from _items(template, inner, here, config, name, names)


def _layers(
    template: WeightsTemplate, group: SavedGroup, place: str, config: KerasLayer, names: Mapping[str, str]
) -> Iterator[ObjectPart]:
    """Yield the layers of a model, in the order of its configuration, also those that the file omits."""
    found = configs_in_list(config, "layers", group)
    items = {id(layer): item for item, layer in found.items()}
    is_sequential = not any(item.startswith("input_layer") for item in found)
    inputs = with_weights = 0
    for number, layer in enumerate(config.layers):
        item = items.get(id(layer), "")
        inner = group.groups.get(item)
        parts = () if inner is None else tuple(_parts(template, inner, f"{place}/{item}", layer, names))
        own = [f"_operations/{number}", f"_functional/_operations/{number}"]
        if any(each.variable for part in parts for each in part.walk()):
            own.append(f"layer_with_weights-{with_weights}")
            with_weights += 1
        if layer.class_name != INPUT_LAYER or not is_sequential:
            own.append(f"layer-{number - inputs}")
        else:
            inputs += 1
        yield ObjectPart(tuple(own), f"{place}/{item}" if inner is not None else "", parts=parts)
    known = set(items.values())
    for item, inner in group.groups.items():
        if item not in known:
            yield ObjectPart(
                (), f"{place}/{item}", parts=tuple(_parts(template, inner, f"{place}/{item}", None, names))
            )


def _items(
    template: WeightsTemplate,
    group: SavedGroup,
    place: str,
    config: KerasLayer | None,
    attribute: str,
    names: Mapping[str, str],
) -> Iterator[ObjectPart]:
    """Yield the objects of a list. Their numbers are known from the configuration, or if they have one class."""
    found = {} if config is None else configs_in_list(config, attribute, group)
    numbers = {item: str(number) for number, item in enumerate(found)}
    classes = {_class_of(item, group) for item in group.groups}
    for item, inner in group.groups.items():
        number = numbers.get(item, "")
        if not found and len(classes) == 1:
            number = item.removeprefix(_class_of(item, group)).removeprefix("_") or "0"
        own = (f"{attribute}/{number}",) if number and attribute not in LAYERS else ()
        parts = tuple(_parts(template, inner, f"{place}/{item}", found.get(item), names))
        yield ObjectPart(own, f"{place}/{item}", parts=parts, is_listed=True)


def _class_of(item: str, group: SavedGroup) -> str:
    """Return the class of an item of a list, which Keras numbers: "dense_1" -> "dense", if there is a "dense"."""
    base, _, number = item.rpartition("_")
    return base if number.isdecimal() and base in group.groups else item
