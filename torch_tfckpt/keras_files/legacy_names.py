"""Names of the variables in an HDF5 file of the older form.

Such files are written by `model.save("m.h5")` and `save_weights("m.h5")`, and as `tf_model.h5` by transformers.

    (root) or /model_weights     attribute layer_names: stem, tower
    .../stem                     attribute weight_names: stem/kernel:0, stem/bias:0
    .../stem/stem/kernel:0       the dataset
    /optimizer_weights           attribute weight_names

In a part of tf_model.h5, layer_names lists datasets instead of groups, and the parts have an index.

The names come from the attributes, without ":0". The names of the groups are different: they contain counters of the
session. Large attributes are split: layer_names0, layer_names1.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Final

from torch_tfckpt.errors import DataLossError
from torch_tfckpt.keras_files.contents import SavedArray, SavedGroup, attribute_strings
from torch_tfckpt.keras_files.names import NamedArrays
from torch_tfckpt.text import quoted

_MODEL: Final = "model_weights"
_OPTIMIZERS: Final = ("optimizer_weights", "optimizer")
_LAYERS: Final = "layer_names"
_WEIGHTS: Final = "weight_names"
_OF_LIST: Final = "_._"  # in transformers, between the name of a list and the number: layer_._0
_TOP_LEVEL: Final = "top_level_model_weights"


def is_legacy(root: SavedGroup) -> bool:
    """Return whether a file has the older form."""
    return _MODEL in root.groups or any(root.has(f"{_LAYERS}{number}") for number in ("", 0))


def name_legacy(root: SavedGroup) -> NamedArrays:
    """Return the datasets of a file of the older form by name."""
    model = root.groups.get(_MODEL, root)
    layers = list(dict.fromkeys(attribute_strings(model, _LAYERS)))
    if _TOP_LEVEL in model.groups and _TOP_LEVEL not in layers:
        layers.append(_TOP_LEVEL)
    found = [each for layer in layers for each in _of_layer(model, layer)]
    for name in _OPTIMIZERS:
        if name in root.groups:
            found += _weights(root.groups[name], name)
    counts = Counter(name for _, name, _ in found)
    result = NamedArrays()
    for group, name, array in found:
        longer = name if counts[name] == 1 else f"{group}/{name}"
        if longer in result.arrays:
            raise DataLossError(f"two weights have the name {quoted(longer)}")
        result.arrays[longer] = array
        if group in _OPTIMIZERS:
            result.of_optimizer.add(longer)
        else:
            is_inner = "/" in name and group not in name.split("/")  # in a model inside of the model
            result.paths[longer] = (f"{group}/{name}" if is_inner else name).replace(_OF_LIST, "/")
    return result


def _of_layer(model: SavedGroup, layer: str) -> Iterator[tuple[str, str, SavedArray]]:
    """Yield the group, name and dataset of each weight of a layer; the layer may be a dataset itself."""
    group, array = model.at(layer), _array(model, layer)
    if group is None and array is None:
        raise DataLossError(f"{_LAYERS} lists {quoted(layer)}, but there is no such group")
    if array is not None:
        yield layer.partition("/")[0], layer.removesuffix(":0"), array
    if group is not None:
        yield from _weights(group, layer)


def _weights(group: SavedGroup, where: str) -> Iterator[tuple[str, str, SavedArray]]:
    """Yield the group, name and dataset of each weight of a layer."""
    for name in attribute_strings(group, _WEIGHTS):
        array = _array(group, name)
        if array is None:
            raise DataLossError(f"{_WEIGHTS} of {quoted(where)} lists {quoted(name)}, but there is no such dataset")
        yield where, name.removesuffix(":0"), array


def _array(group: SavedGroup, name: str) -> SavedArray | None:
    """Return the dataset at a path below a group; None if there is no such dataset."""
    above, _, last = name.rpartition("/")
    inner = group.at(above) if not name.startswith("/") else None
    return inner.arrays.get(last) if inner is not None else None
