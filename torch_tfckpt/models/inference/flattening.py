"""The layout of a Linear that multiplies, or may multiply, a flattened feature map, for KeyMapper.infer.

    torch flattens a map              certain from the forward method, or possible (see `flattened_maps`)
    Keras flattens it                 from the configuration in a file of Keras (see `keras_flattening`), else assumed

If both are certain, the layout follows; if Keras has torch's order, it is "dense". If only Keras certainly flattens a
map, and the input of the Linear is not understood, both layouts are possible.
"""

from dataclasses import replace

from torch import nn
from torch.nn.modules.conv import _ConvNd

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.keras_files.layer_graph import LayerGraph
from torch_tfckpt.models.findings.flattened_maps import inputs_of_linear_layers
from torch_tfckpt.models.findings.keras_flattening import FlattenedMap, flattened_map
from torch_tfckpt.models.findings.keras_semantics import KerasLayers
from torch_tfckpt.models.layers.assembly import Source, SourcePart
from torch_tfckpt.models.layers.layouts import DENSE_AFTER_FLATTEN, Layout


class InferredFlattening:
    """The Linear layers of a module whose inputs may be flattened feature maps.

    Cost: one symbolic run of the forward method, if the module has convolutions and Linear layers.
    """

    def __init__(self, module: nn.Module, reader: CheckpointReader) -> None:
        self._inputs = inputs_of_linear_layers(module)
        self._has_maps = any(isinstance(part, _ConvNd) for part in module.modules())
        config = None if reader.keras is None else reader.keras.config
        self._layers = None if reader.keras is None else KerasLayers(reader.keras)
        self._graph = None if config is None else LayerGraph(config.model)

    def choices(self, source: Source, stored: Shape, linear: nn.Module) -> list[Source]:
        """Return the possible sources of the weight of a Linear, given the one with the layout "dense"."""
        found, stored_map = self._inputs.get(id(linear)), self._of_keras(source)
        is_open = id(linear) not in self._inputs and self._has_maps
        if found is None and not (is_open and stored_map is not None):
            return [source]
        if stored_map is not None and stored_map.is_in_torchs_order:
            return [source]
        channels = stored_map.channels if stored_map is not None else found.channels if found is not None else None
        if channels is None or len(stored) != 2 or stored[0] % channels:
            return [source, replace(source, parts=(SourcePart(source.key, DENSE_AFTER_FLATTEN),))]
        positions = stored[0] // channels
        side = round(positions**0.5)
        height, width = (side, side) if side * side == positions else (positions, 1)  # only their product matters
        layout: Layout = DENSE_AFTER_FLATTEN.with_lengths(height=height, width=width)
        flattened = replace(source, parts=(SourcePart(source.key, layout),))
        return [flattened] if found is not None and found.is_certain else [source, flattened]

    def _of_keras(self, source: Source) -> FlattenedMap | None:
        layer = self._layers.of(source.keys) if self._layers is not None else None
        return None if layer is None or self._graph is None else flattened_map(layer, self._graph)
