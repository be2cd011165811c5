"""Save a module for a Keras model: as a checkpoint of objects, or as a .weights.h5 file.

    order of registration     keras_objects
    order of a Keras file     keras_like and keras_like_objects
    .weights.h5               keras_like and foreign_files.keras_weights

A file is written tensor by tensor and replaces an earlier one only when it is complete.
"""

import os
from collections.abc import Mapping
from contextlib import closing

import torch
from torch import nn

from torch_tfckpt.bundle.leftovers import remove_leftovers
from torch_tfckpt.bundle.publish import saving
from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError, error_context
from torch_tfckpt.foreign_files.keras_weights import KerasWeightsSink, info_of
from torch_tfckpt.keras_files.template import WeightsTemplate
from torch_tfckpt.models.extra_values import extra_values
from torch_tfckpt.models.keras_like import like_model, open_like
from torch_tfckpt.models.keras_like_objects import like_root
from torch_tfckpt.models.keras_objects import keras_root
from torch_tfckpt.models.rules.key_mapper import KeyMapper, Rules, as_key_mapper
from torch_tfckpt.models.source_inverse import Compute
from torch_tfckpt.objects.graph_view import to_save
from torch_tfckpt.objects.trackables.trackable import Trackable
from torch_tfckpt.saveables.save_spec import specs_of, value_of
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.names import AnyPath, fspath
from torch_tfckpt.storage.publication import Publication
from torch_tfckpt.tensor_dict import save_file
from torch_tfckpt.text import printable


def save_for_keras(
    model: nn.Module,
    path: AnyPath,
    naming: str,
    mapper: KeyMapper | Rules | None,
    extra: Mapping[str, object] | None,
    optimizer: torch.optim.Optimizer | None,
    like: AnyPath | None,
) -> str:
    """Write a .weights.h5 file, or a checkpoint if `naming` is "keras" and `path` a prefix. As `save_model`."""
    where, is_file = fspath(path), naming != "keras" or fspath(path).lower().endswith(".h5")
    if mapper is not None and like is None:
        raise InvalidArgumentError(
            'save_model: naming="keras" names objects by the attributes of the module, which mapper= cannot change. '
            'Pass like= with a file of the Keras model, rename the attributes, or pass naming="tf"'
        )
    if optimizer is not None:
        what = "a .weights.h5 file" if is_file else 'naming="keras"'
        raise UnimplementedError(
            f'save_model: {what} does not store an optimizer. Omit optimizer=, or pass naming="tf"'
        )
    if is_file and naming == "tf":
        raise InvalidArgumentError('save_model: naming="tf" is for checkpoints. Omit it to write a .weights.h5 file')
    if is_file and extra is not None:
        raise InvalidArgumentError("save_model: a .weights.h5 file cannot store extra=. Omit it")
    place = f"save_model to {printable(where)}"
    if like is None:
        with error_context(place):
            return _save_objects(keras_root(model, extra_values(extra or {}, ["model"])), path)
    with error_context(place), closing(open_like(like)) as reader:
        assert reader.keras is not None, "open_like refuses other files"
        template = reader.keras.template()
        sink = KerasWeightsSink(where, template) if is_file else None
        values = like_model(model, reader, template, None if mapper is None else as_key_mapper(mapper))
        if sink is None:
            return _save_objects(like_root(template, values, extra_values(extra or {}, ["model"])), path)
        _write(sink, template, values)
    return where


def _save_objects(root: Trackable, prefix: AnyPath) -> str:
    """Write an object-based checkpoint that a Keras model restores."""
    return save_file({spec.name: value_of(spec) for spec in specs_of(to_save(root))}, prefix)


def _write(sink: KerasWeightsSink, template: WeightsTemplate, values: Mapping[str, Compute]) -> None:
    with saving(sink.path):
        remove_leftovers(LOCAL, os.path.dirname(sink.path))
        with closing(sink), Publication() as publication:
            order = sink.plan({name: info_of(variable) for name, variable in template.variables.items()})
            sink.open(publication)
            for name in order:
                sink.write({name: values[name]()})
            sink.finish()
