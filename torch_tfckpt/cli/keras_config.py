"""tfckpt show --config: the layers of a Keras model and their settings, such as padding."""

import argparse
from collections.abc import Mapping
from typing import Any, Final

from torch_tfckpt.cli.console import escaped, show, show_json
from torch_tfckpt.cli.tables import show_table
from torch_tfckpt.cli.tensor_values import json_numbers
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.keras_files.config import read_config
from torch_tfckpt.keras_files.layers import KerasLayer
from torch_tfckpt.storage.names import fspath
from torch_tfckpt.text import counted, encodable, printable, shortened

# Settings that almost all layers have, with the usual value, which is not shown.
_USUAL: Final[Mapping[str, object]] = {"trainable": True, "dtype": "float32"}


def show_config(options: argparse.Namespace) -> int:
    """Print the layers of a model with their settings."""
    if options.name is not None:
        raise InvalidArgumentError("--config shows the layers of a model, not a tensor. Omit NAME")
    path = fspath(options.path)
    config = read_config(path)
    layers = list(config.model.walk())
    if options.json:
        show_json(
            {
                "path": encodable(path),
                "name": config.model.name,
                "class": config.model.class_name,
                "layers": [_as_json(layer) for layer in layers],
                "optimizer": None if config.optimizer is None else _as_json(config.optimizer),
            }
        )
        return 0
    show(f"{printable(path)}: {escaped(config.model.class_name)} {escaped(config.model.name)}".rstrip())
    if config.optimizer is not None:
        show(escaped(f"optimizer: {config.optimizer.class_name} {_settings_text(config.optimizer)}").rstrip())
    show("")
    rows = [[layer.path, _class_text(layer), _settings_text(layer)] for layer in layers]
    show_table(["layer", "class", "settings"], rows, numeric=[])
    show(counted(len(layers), "layer"))
    return 0


def _class_text(layer: KerasLayer) -> str:
    return layer.class_name + ("" if layer.is_builtin else " (not Keras's own)")


def _settings_text(layer: KerasLayer) -> str:
    return ", ".join(
        f"{key}={value if isinstance(value, bool | int | float) else shortened(value, 60)}"
        for key, value in layer.settings.items()
        if value is not None and key != "name" and _USUAL.get(key) != value
    )


def _as_json(layer: KerasLayer) -> dict[str, Any]:
    return {
        "path": layer.path,
        "name": layer.name,
        "class": layer.class_name,
        "builtin": layer.is_builtin,
        "settings": json_numbers(dict(layer.settings)),
    }
