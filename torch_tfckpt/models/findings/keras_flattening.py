"""How a Keras model orders the flattened feature map that a Dense layer multiplies, by its configuration.

    conv -> pooling -> Flatten -> Dropout -> Dense     5 x 3 positions of 4 channels; the channels are the last axis
    conv -> GlobalAveragePooling2D -> Dense            no map

Flatten moves the channels to the end, also for data_format="channels_first", if it has this setting itself; if only the
convolutions have it, the channels stay first, as in torch. Contract: None if anything on the way is not known.
"""

from math import prod
from typing import Final, NamedTuple

from torch_tfckpt.keras_files.layer_graph import LayerGraph
from torch_tfckpt.keras_files.layers import KerasLayer

_FIRST: Final = "channels_first"
# Layers after Flatten that keep the order of values.
_KEEPING: Final = frozenset(("Dropout", "Activation", "ReLU", "LeakyReLU", "ELU", "BatchNormalization"))


class FlattenedMap(NamedTuple):
    """The input of a Dense layer.

    Attributes:
        positions: Number of positions of the map; 1 if it is not a map.
        channels: Number of channels; 0 if it is not a map.
        channels_last: Whether the channels are the last axis of the flattened map.
    """

    positions: int = 1
    channels: int = 0
    channels_last: bool = True

    @property
    def is_in_torchs_order(self) -> bool:
        """Whether torch's flattened map has the same order."""
        return self.positions == 1 or not self.channels_last


def flattened_map(layer: KerasLayer, graph: LayerGraph) -> FlattenedMap | None:
    """Return the map that a Dense layer multiplies; None if it is not known."""
    before = next((each for each in graph.line_before(layer) if each.class_name not in _KEEPING), None)
    if before is None or not before.is_builtin:
        return None
    if before.class_name == "Dense" or (before.class_name.startswith("Global") and not before.settings.get("keepdims")):
        return FlattenedMap()
    format_of_map = _data_format(graph, before)
    sizes = before.input_shape[1:]
    known = [size for size in sizes if size is not None]
    if before.class_name != "Flatten" or not format_of_map or len(known) != len(sizes) or len(known) < 2:
        return None
    channels = known[0] if format_of_map == _FIRST else known[-1]
    moved = format_of_map != _FIRST or before.settings.get("data_format") == _FIRST
    return FlattenedMap(prod(known) // max(channels, 1), channels, moved)


def _data_format(graph: LayerGraph, layer: KerasLayer) -> str:
    """Return the format of the map that a layer takes: that of the last convolution or pooling; "" if unknown."""
    for before in graph.line_before(layer):
        found = before.settings.get("data_format")
        if isinstance(found, str):
            return found
        if before.class_name not in _KEEPING:
            break
    return ""
