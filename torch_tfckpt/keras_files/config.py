"""Read the configuration of a Keras file: the layers of the model and their settings, such as padding.

for layer in layers_of("model.keras"):
    print(layer.path, layer.class_name, layer.settings.get("padding"))
"""

import os

from torch_tfckpt.errors import NotFoundError, error_context
from torch_tfckpt.format.file_kind import KERAS_CONFIG_FILE, FileKind
from torch_tfckpt.keras_files.contents import open_contents
from torch_tfckpt.keras_files.layers import MAX_CONFIG_BYTES, KerasConfig, KerasLayer, parse_config
from torch_tfckpt.storage.choice import storage_of
from torch_tfckpt.storage.names import AnyPath, fspath
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.storage.small_files import kind_of_file, read_small
from torch_tfckpt.text import printable


def read_config(path: AnyPath, *, storage: Storage | None = None) -> KerasConfig:
    """Return the configuration of the model in a .keras file or directory, an .h5 file of a model, or a JSON file.

    Raises:
        NotFoundError: there is no such file, or it contains weights without a configuration.
        DataLossError: it is damaged, or not a file of Keras.
    """
    where = fspath(path)
    storage = storage or storage_of(where)
    if storage.is_directory(where):
        where = os.path.join(where, KERAS_CONFIG_FILE)
    if not storage.exists(where) or storage.is_directory(where):
        raise NotFoundError(f"{printable(where)}: no such file. Pass a .keras or .h5 file")
    if kind_of_file(storage, where) is FileKind.KERAS_CONFIG:
        with error_context(printable(where)):
            return parse_config(read_small(storage, where, MAX_CONFIG_BYTES, "the description of a Keras model"))
    contents = open_contents(storage, where)
    contents.close()
    if contents.config is None:
        raise NotFoundError(
            f"{printable(where)}: {contents.format}, without the configuration of the model. Pass a .keras file, or "
            f"an .h5 file written by Keras's `model.save`"
        )
    return contents.config


def layers_of(path: AnyPath, *, storage: Storage | None = None) -> list[KerasLayer]:
    """Return all layers of a model, each before the layers that it contains. Raises like `read_config`."""
    return list(read_config(path, storage=storage).model.walk())
