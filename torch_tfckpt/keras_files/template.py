"""What a .weights.h5 file of a Keras model contains, and where: taken from another file of the same model.

    layers/conv2d/vars      a group, with the attribute name: stem
    layers/conv2d/vars/0    the variable stem/kernel, float32 [3, 3, 1, 4]

    .weights.h5 file        all groups and variables of the template, without the optimizer

Keras finds a variable by its place, and the place depends on the order of the layers and on their classes. A file that
Keras wrote has all places, also those of custom layers, so they are copied and never derived.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.keras_files.contents import SavedGroup
from torch_tfckpt.keras_files.layers import KerasConfig, KerasLayer, LayersByVariable
from torch_tfckpt.keras_files.names import OPTIMIZER


@dataclass(frozen=True, slots=True)
class TemplateVariable:
    """One variable of the model.

    Attributes:
        name: The path that Keras gives it, or its place if it is unnamed.
        place: Its path in the file: "layers/conv2d/vars/0".
    """

    name: str
    place: str
    shape: Shape
    dtype: DataType


@dataclass(frozen=True, slots=True)
class WeightsTemplate:
    """The structure of a file with weights.

    Attributes:
        path: The file that it is from, in printable form.
        root: The groups.
        variables: The variables of the model, and the states of metrics, by name, in the order in which Keras saves
            them.
        unnamed: Those whose names are only their places.
        metrics: The states of metrics, which no model outside of Keras has.
        config: The configuration of the model; None if the file has none.
    """

    path: str
    root: SavedGroup
    variables: Mapping[str, TemplateVariable]
    unnamed: frozenset[str]
    metrics: frozenset[str]
    config: KerasConfig | None

    def groups(self) -> Iterator[tuple[str, str]]:
        """Yield the path of each group, and its attribute `name`, or ""; a group comes after the one it is in."""
        waiting = [("", self.root)]
        while waiting:
            path, group = waiting.pop()
            if path:
                yield path, group.name
            below = f"{path}/" if path else ""
            waiting += [
                (f"{below}{name}", inner) for name, inner in reversed(group.groups.items()) if path or name != OPTIMIZER
            ]

    def layer_of(self, name: str) -> KerasLayer | None:
        """Return the layer that has a variable; None if it is not known."""
        if self.config is None or name in self.unnamed:
            return None
        return LayersByVariable(self.config.model).find(name)
