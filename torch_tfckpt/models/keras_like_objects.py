"""The objects of a Keras model for tf.train.Checkpoint, with values from a torch module and names from a Keras file.

    tf.train.Checkpoint(model=keras_model)      model/_operations/1/kernel, and every other name that Keras uses

Contract: each variable of the file is stored once, under all names of `keras_files.object_parts`. A variable without a
name there, or in a list, which Keras 3 does not restore from checkpoints, is an error.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from typing import Any, Final

import torch

from torch_tfckpt.dtypes import torch_dtype
from torch_tfckpt.errors import UnimplementedError
from torch_tfckpt.foreign_files.keras_weights import as_variable
from torch_tfckpt.format.object_graph import VARIABLE_VALUE, checkpoint_key
from torch_tfckpt.keras_files.object_parts import ObjectPart, object_parts
from torch_tfckpt.keras_files.template import TemplateVariable, WeightsTemplate
from torch_tfckpt.models.keras_objects import OPTIMIZER, ObjectWithoutValues, model_root
from torch_tfckpt.models.source_inverse import Compute
from torch_tfckpt.objects.trackables.trackable import SavedValues, Trackable
from torch_tfckpt.saveables.identity import Identity
from torch_tfckpt.saveables.save_spec import SaveableObject, SaveSpec
from torch_tfckpt.text import quoted
from torch_tfckpt.values import WritableValue

_WEIGHTS: Final = "Write a .weights.h5 file instead: save_model(model, 'model.weights.h5', like=...)"


def like_root(
    template: WeightsTemplate, values: Mapping[str, Compute], extra: Mapping[str, WritableValue]
) -> Trackable:
    """Return the root of a checkpoint of a model, as tf.train.Checkpoint(model=model, **extra) in a Keras program.

    Raises:
        UnimplementedError: a variable that tf.train.Checkpoint does not restore, or whose name is not known.
    """
    model = object_parts(template)
    _check_named(template, model, is_listed=False)
    return model_root(LikeObject(template, values, model), extra)


def _check_named(template: WeightsTemplate, part: ObjectPart, *, is_listed: bool) -> None:
    for each in part.parts:
        variable = next((inner.variable for inner in each.walk() if inner.variable), "")
        if not variable or variable in template.metrics:
            continue
        if each.is_listed and each.names:
            raise UnimplementedError(
                f"{quoted(variable)} of the Keras model is in a list, which Keras 3 does not restore from a "
                f"checkpoint. {_WEIGHTS}"
            )
        if not each.names:
            raise UnimplementedError(
                f"{template.path} does not record the attribute that has {quoted(variable)} in the Keras model, by "
                f"which a checkpoint names it. {_WEIGHTS}"
            )
        _check_named(template, each, is_listed=each.is_listed)


class LikeObject(Trackable):
    """An object of a Keras model, or the model."""

    is_part = True

    def __init__(self, template: WeightsTemplate, values: Mapping[str, Compute], part: ObjectPart) -> None:
        super().__init__(None)
        self._template, self._values, self._part = template, values, part

    @cached_property
    def identity(self) -> Identity:
        return ("Keras object", self._part.place or self._part.names)

    def children(self) -> Iterator[tuple[str, object]]:
        tree: dict[str, Any] = {}
        for part in self._part.parts:
            node = self._node(part)
            for path in part.names:
                *above, name = path.split("/")
                inner = tree
                for each in above:
                    inner = inner.setdefault(each, {})
                inner[name] = node
        if not self._part.names:
            tree["optimizer"] = OPTIMIZER
        for name, below in tree.items():
            is_node = isinstance(below, Trackable)
            yield name, below if is_node else ObjectWithoutValues((self.identity, name), below)

    def _node(self, part: ObjectPart) -> Trackable:
        if not part.variable:
            return LikeObject(self._template, self._values, part)
        return LikeVariable(self._template.variables[part.variable], self._values[part.variable])


class LikeVariable(Trackable):
    """A variable of a Keras model."""

    holds_values = True
    is_part = True

    def __init__(self, variable: TemplateVariable, compute: Compute) -> None:
        super().__init__(None)
        self._variable, self._compute = variable, compute

    @cached_property
    def identity(self) -> Identity:
        return ("Keras variable", self._variable.place)

    def to_save(self, path: str) -> SavedValues:
        key = checkpoint_key(path, VARIABLE_VALUE)
        dtype = self._variable.dtype
        torch_dtype(dtype)
        spec = SaveSpec(partial(_value, self._variable, self._compute), "", key, dtype, torch.device("cpu"))
        return SavedValues({VARIABLE_VALUE: key}, [SaveableObject(None, [spec], key)])


def _value(variable: TemplateVariable, compute: Compute) -> torch.Tensor:
    return as_variable(compute(), variable)
