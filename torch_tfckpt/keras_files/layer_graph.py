"""Which layers of a Keras model come directly before and after a layer.

    graph = LayerGraph(config.model)
    graph.after(layer)         the layers that take its output
    graph.before(layer)        the layers whose outputs it takes
    graph.line_before(layer)   the layer before it, the one before that, and so on

They are known for the layers of functional and Sequential models, also of models inside of a model. The first and the
last layers of such an inner model have no neighbors outside of it.
"""

from collections.abc import Callable, Iterator, Sequence

from torch_tfckpt.keras_files.layers import KerasLayer


class LayerGraph:
    """The connections between the layers of a model, by the paths of the layers."""

    def __init__(self, model: KerasLayer) -> None:
        self._after: dict[str, list[KerasLayer]] = {}
        self._before: dict[str, list[KerasLayer]] = {}
        for each in (model, *model.walk()):
            for first, second in _connections(each):
                self._after.setdefault(first.path, []).append(second)
                self._before.setdefault(second.path, []).append(first)

    def after(self, layer: KerasLayer) -> Sequence[KerasLayer]:
        """Return the layers that take the output of a layer; empty if none is known."""
        return self._after.get(layer.path, ())

    def before(self, layer: KerasLayer) -> Sequence[KerasLayer]:
        """Return the layers whose outputs a layer takes; empty if none is known."""
        return self._before.get(layer.path, ())

    def line_after(self, layer: KerasLayer) -> Iterator[KerasLayer]:
        """Yield the only layer after a layer, the only one after that, and so on. No layer is yielded twice."""
        return _line(layer, self.after)

    def line_before(self, layer: KerasLayer) -> Iterator[KerasLayer]:
        """Yield the layers before a layer, as `line_after`."""
        return _line(layer, self.before)


def _line(layer: KerasLayer, next_to: Callable[[KerasLayer], Sequence[KerasLayer]]) -> Iterator[KerasLayer]:
    seen: set[str] = set()
    found = next_to(layer)
    while len(found) == 1 and found[0].path not in seen:
        seen.add(found[0].path)
        yield found[0]
        found = next_to(found[0])


def _connections(model: KerasLayer) -> Iterator[tuple[KerasLayer, KerasLayer]]:
    """Yield pairs of layers, of which the second takes the output of the first."""
    if model.class_name == "Sequential":
        yield from zip(model.layers, model.layers[1:], strict=False)
        return
    by_name = {layer.name: layer for layer in model.layers}
    for layer in model.layers:
        for name in layer.inputs:
            if name in by_name:
                yield by_name[name], layer
