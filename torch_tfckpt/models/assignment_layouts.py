"""Layouts in init_from_checkpoint: how a stored tensor is converted for the variable it is mapped to.

Contract:

    layout in the map     that layout; "same" copies
    a known layer         TensorFlow's names as in load_model: "dense/kernel" into the weight of a Linear is transposed.
                          Other names: copied if the name implies torch's order of axes, else an error
    other tensors         copied, as in TensorFlow, which has the same layout on both sides. An error if the
                          variable is called "weight", as in torch, and the stored tensor is not; or if "kernel" is
                          mapped to a Parameter that is not in the model
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from torch_tfckpt.errors import InvalidArgumentError, error_context
from torch_tfckpt.format.tensor_slice import Shape, shape_text
from torch_tfckpt.models.implied_sources import single_source
from torch_tfckpt.models.layers.assembly import Source
from torch_tfckpt.models.layers.layer_names import KERNELS
from torch_tfckpt.models.layers.layouts import LAYOUTS, Layout
from torch_tfckpt.models.stored_names import dotted, variable_name_of
from torch_tfckpt.models.targets import Target
from torch_tfckpt.saveables.tensor_saveable import VariableSaveable
from torch_tfckpt.text import escaped, quoted
from torch_tfckpt.values import Value

_TORCHS: Final = "weight"  # torch's name for what TensorFlow calls kernel


@dataclass(frozen=True, slots=True)
class LayerTensor:
    """A tensor of a module under one of its names, without the prefix of the module in the model."""

    target: Target
    name: str


class TurnedSaveable(VariableSaveable):
    """A tensor that is filled with a stored tensor in a different layout."""

    def __init__(self, tensor: torch.Tensor, key: str, label: str, source: Source) -> None:
        super().__init__(tensor, "", label)
        self.specs[0].name = key
        self._source = source
        self._turned = VariableSaveable(tensor, "", label)  # receives the converted value

    def check(self, shapes: Sequence[Shape], restored_shapes: Sequence[Shape] | None = None) -> None:
        stored = tuple(shapes[0])
        of_key = dict.fromkeys(self._source.read_keys, stored)
        source = self._source.resolved(of_key, tuple(self.tensor.shape))
        try:
            made = source.shape(of_key)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{quoted(self.name)} from {quoted(source.key)}: {error}") from error
        if made != tuple(self.tensor.shape):
            raise InvalidArgumentError(
                f"Shape of variable {escaped(self.name)} ({shape_text(self.tensor.shape)}) doesn't match with shape of "
                f"tensor {escaped(source.key)} ({shape_text(stored)}) from checkpoint reader, which is "
                f"({shape_text(made)}) after layout {quoted(source.layout.name)}. Map the tensor to a variable of that "
                f"shape, or give another layout: {', '.join(LAYOUTS)}"
            )
        self._turned.check([made])

    def restore(self, restored_tensors: Sequence[Value], restored_shapes: Sequence[Shape] | None) -> None:
        (value,) = restored_tensors
        assert isinstance(value, torch.Tensor), "its dtype was checked"
        of_key = dict.fromkeys(self._source.read_keys, tuple(value.shape))
        source = self._source.resolved(of_key, tuple(self.tensor.shape))
        self._turned.restore([source.assemble([value])], None)


def source_for(
    names: Sequence[str],
    shape: Shape,
    tensor: torch.Tensor,
    label: str | None,
    place: LayerTensor | None,
    given: Layout | None,
) -> Source | None:
    """Return how a stored tensor is converted for a variable; None if it is copied.

    Args:
        names: All names of the stored tensor, its key first.
        shape: Its stored shape.
        label: Name of the variable in the model; None if it is not in the model.
        place: The variable, if it is a tensor of a module.
        given: The layout in the map.

    Raises:
        InvalidArgumentError: the order of axes is unknown.
    """
    key = names[0]
    if is_lazy(tensor):
        return None
    if place is not None and (place.target.origins or given is not None):
        with error_context(f"assignment_map: {quoted(key)}, mapped to {quoted(label or place.name)}"):
            source = single_source(place.target, place.name, names, shape, given)
        return None if source.is_unchanged else source
    if given is None:
        _check_not_torchs(variable_name_of(key), tensor, label, key)
    return None if given is None or given.is_same else Source.of(key, given, variable_name_of(key))


def _check_not_torchs(leaf: str, tensor: torch.Tensor, label: str | None, key: str) -> None:
    """Raise InvalidArgumentError if the stored axes may be in a different order from the variable's."""
    if tensor.dim() < 2:
        return
    if label is None:
        if leaf not in KERNELS or not isinstance(tensor, nn.Parameter):
            return
        what = "a Parameter that is not in the model"
    else:
        if dotted(label).rpartition(".")[2] != _TORCHS or leaf == _TORCHS:
            return
        what = f"{quoted(label)}, which has torch's name for a weight"
    raise InvalidArgumentError(
        f"assignment_map: {quoted(key)} is mapped to {what}. It is unknown whether its axes are in TensorFlow's order. "
        f"Pass the module as the model, or give the layout after the variable: {quoted(key)}: (variable, "
        f'"dense"), or "same" if TensorFlow and the variable have the same order. Layouts: {", ".join(LAYOUTS)}'
    )
