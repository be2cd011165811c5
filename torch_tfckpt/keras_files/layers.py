"""The configuration of a Keras model: its layers and their settings, such as padding.

    {"class_name": "Functional", "config": {"name": "net", "layers": [{"class_name": "Conv2D", "config": {...}}, ...]}}

It is JSON: `config.json` in a .keras file, or the attribute `model_config` of an HDF5 file. It is only parsed; no
Keras object is created, and code in it, as in a Lambda layer, is neither run nor decoded. A configuration that is
larger than MAX_CONFIG_BYTES, nested too deeply, or has more than MAX_LAYERS layers, is rejected.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from torch_tfckpt.errors import DataLossError
from torch_tfckpt.text import byte_text, quoted, shortened

MAX_CONFIG_BYTES: Final = 16 * 1024 * 1024  # parsed, it takes up to 25 times as much memory
MAX_NESTED: Final = 32  # maximum nesting of layers
MAX_LAYERS: Final = 100_000
_MODELS: Final = ("Functional", "Sequential", "Model")
INPUT_LAYER: Final = "InputLayer"
INNER_OPTIMIZER: Final = "inner_optimizer"
_INNER: Final = ("layer", "backward_layer", "cell", "cells", INNER_OPTIMIZER)  # settings that contain layers
_OMITTED: Final = ("name", "layers", "input_layers", "output_layers", *_INNER)
_ENDINGS_OMITTED: Final = ("_initializer", "_regularizer", "_constraint")  # they matter for training only
_MAX_PATH: Final = 1000  # characters
_MAX_LIST: Final = 64  # maximum items of a list in the settings: enough for shapes and axes, but not for vocabularies


@dataclass(frozen=True, slots=True)
class KerasLayer:
    """One layer of a Keras model, as its configuration describes it.

    Attributes:
        name: The name of the layer: "conv2d_1".
        class_name: The name of its class: "Conv2D".
        path: The names of the models and layers that contain it, and its own name, joined by slashes:
            "tower/conv2d_1".
        settings: Name -> number, string, bool, None, or list of them: "padding" -> "same".
        is_builtin: Whether the class is Keras's own; the variables of other classes are not known.
        inner: The layers that it contains: those of a model, or the one that a wrapper such as TimeDistributed applies.
        objects: The settings that are described as objects, such as functions of the program: their values here are
            only names.
        inputs: The names of the layers in the same functional model whose outputs it takes; empty if not known.
        input_shape: The shape of its only input, with the batch; empty if not known.
    """

    name: str
    class_name: str
    path: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    is_builtin: bool = True
    inner: Mapping[str, Sequence["KerasLayer"]] = field(default_factory=dict)  # attribute -> layers
    objects: frozenset[str] = frozenset()
    inputs: Sequence[str] = ()
    input_shape: Sequence[int | None] = ()

    @property
    def layers(self) -> Sequence["KerasLayer"]:
        """The layers of a model, in the order of its configuration, input layers included."""
        return self.inner.get("layers", ())

    def walk(self) -> Iterator["KerasLayer"]:
        """Yield all layers inside this layer, each before the layers that it contains."""
        for layers in self.inner.values():
            for layer in layers:
                yield layer
                yield from layer.walk()


class LayersByVariable:
    """Finds the layer of a variable, whose name begins with the path of the layer or with the model and this path."""

    def __init__(self, model: KerasLayer) -> None:
        self._model = model.name
        self._by_path = {layer.path: layer for layer in model.walk()}

    def find(self, name: str) -> KerasLayer | None:
        """Return the innermost layer that has the variable of this name; None if there is none."""
        scope = name.rpartition("/")[0]
        while scope:
            found = self._by_path.get(scope) or self._by_path.get(scope.removeprefix(f"{self._model}/"))
            if found is not None:
                return found
            scope = scope.rpartition("/")[0]
        return None


@dataclass(frozen=True, slots=True)
class KerasConfig:
    """The configuration of a model and its optimizer.

    Attributes:
        model: The model as one layer; its layers are in it.
        optimizer: The optimizer that the model was compiled with; None if the configuration has none.
    """

    model: KerasLayer
    optimizer: KerasLayer | None = None


def parse_config(text: str | bytes, compiled: str | bytes = "") -> KerasConfig:
    """Parse the configuration of a model.

    Args:
        text: `config.json` of a .keras file, or `model_config` of an HDF5 file.
        compiled: `training_config` of an HDF5 file, which describes the optimizer; "" if the file has none.

    Raises:
        DataLossError: the text is not JSON, is too large, is nested too deeply, or does not describe a model.
    """
    content = _parsed(text)
    left = iter(range(MAX_LAYERS))
    model = _layer(content, "", 0, left)
    training = _parsed(compiled) if compiled else content.get("compile_config")
    optimizer = None
    if isinstance(training, dict):
        described = training.get("optimizer", training.get("optimizer_config"))
        if isinstance(described, dict) and isinstance(described.get("class_name"), str):
            optimizer = _layer(described, "", 0, left)
    return KerasConfig(model, optimizer)


def _parsed(text: str | bytes) -> dict[str, Any]:
    if len(text) > MAX_CONFIG_BYTES:
        raise DataLossError(
            f"the configuration of the model has {byte_text(len(text))}; at most {byte_text(MAX_CONFIG_BYTES)} are read"
        )
    try:
        content = json.loads(text)
    except RecursionError:
        raise DataLossError("the configuration of the model is nested too deeply") from None
    except ValueError as error:
        raise DataLossError(f"the configuration of the model is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise DataLossError(f"the configuration of the model is {shortened(content)}, not an object")
    return content


def _layer(described: Mapping[str, Any], above: str, depth: int, left: Iterator[int]) -> KerasLayer:
    """Return the layer that an object with `class_name` and `config` describes. `left` ends after too many layers."""
    if next(left, None) is None:
        raise DataLossError(f"the configuration of the model has more than {MAX_LAYERS:,} layers")
    if depth > MAX_NESTED:
        raise DataLossError(f"the configuration of the model has layers nested more than {MAX_NESTED} deep")
    class_name, config = described.get("class_name"), described.get("config")
    if isinstance(config, list):  # Sequential of Keras 2.2 and earlier
        config = {"layers": config}
    if not isinstance(class_name, str) or not isinstance(config, dict):
        raise DataLossError(f"the configuration of the model has {shortened(described)} where a layer was expected")
    name = config.get("name", described.get("name"))
    name = name if isinstance(name, str) else ""
    path = f"{above}/{name}" if above else name
    if len(path) > _MAX_PATH:
        raise DataLossError(f"the configuration of the model has the path {quoted(path)}, of {len(path)} characters")
    inside = path if depth else ""
    inner = {
        attribute: [_layer(each, inside, depth + 1, left) for each in _objects(config.get(attribute))]
        for attribute in ("layers", *_INNER)
        if _objects(config.get(attribute))
    }
    return KerasLayer(
        name,
        class_name,
        path,
        {key: _simple(value) for key, value in config.items() if _is_setting(key, value)},
        _is_builtin(described, class_name),
        inner,
        frozenset(key for key, value in config.items() if isinstance(value, dict)),
        _layers_in(described.get("inbound_nodes")),
        _shape_in(described.get("build_config")),
    )


def _layers_in(nodes: object) -> list[str]:
    """Return the names of the layers in the calls of a layer.

    Each of them is in a list with two numbers, the call and the output: ["conv", 0, 0].
    """
    found: dict[str, None] = {}
    waiting = [nodes]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += reversed(value.values())
        elif isinstance(value, list):
            match value:
                case [str(name), int(), int(), *_]:
                    found[name] = None
            waiting += reversed(value)
    return list(found)


def _shape_in(built: object) -> list[int | None]:
    shape = built.get("input_shape") if isinstance(built, dict) else None
    if not isinstance(shape, list) or len(shape) > _MAX_LIST:
        return []
    return shape if all(size is None or (type(size) is int and size >= 0) for size in shape) else []


def _objects(value: object) -> list[Mapping[str, Any]]:
    """Return the descriptions of layers in a setting that contains one description or a list of them."""
    values = value if isinstance(value, list) else [value]
    return [each for each in values if isinstance(each, dict) and "class_name" in each and "config" in each]


def _is_builtin(described: Mapping[str, Any], class_name: str) -> bool:
    """Return whether a class is Keras's own: Keras 3 and 2.12 store its module, earlier versions do not."""
    module, registered = described.get("module"), described.get("registered_name")
    if isinstance(module, str):
        return module.partition(".")[0] in ("keras", "tf_keras") and (registered is None or class_name in _MODELS)
    return ">" not in class_name


def _is_setting(key: str, value: object) -> bool:
    if key in _OMITTED or key.endswith(_ENDINGS_OMITTED):
        return False
    if isinstance(value, list):
        return len(value) <= _MAX_LIST and all(
            all(map(_is_simple, each)) and len(each) <= _MAX_LIST if isinstance(each, list) else _is_simple(each)
            for each in value
        )
    return _is_simple(value) or (isinstance(value, dict) and _simple(value) is not None)


def _is_simple(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)


def _simple(value: object) -> object:
    """Return the value of a setting; for an object, such as an activation or dtype policy, its name."""
    if not isinstance(value, dict):
        return value
    config = value.get("config")
    if isinstance(config, dict) and isinstance(config.get("name"), str) and "Policy" in str(value.get("class_name")):
        return config["name"]
    if isinstance(config, str):  # a function: {"class_name": "function", "config": "relu"}
        return config
    name = value.get("class_name")
    return name if isinstance(name, str) else None
