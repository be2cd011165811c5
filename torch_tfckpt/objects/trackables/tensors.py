"""Tensors, Parameters and Variables as nodes: one attribute, VARIABLE_VALUE."""

from functools import cached_property

import torch
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from torch_tfckpt.format.object_graph import VARIABLE_VALUE, checkpoint_key
from torch_tfckpt.objects.trackables.trackable import RestoredValues, SavedValues, StoredNode, Trackable
from torch_tfckpt.saveables.identity import Identity, identity_of
from torch_tfckpt.saveables.save_spec import SaveableObject
from torch_tfckpt.saveables.tensor_saveable import LazySaveable, VariableSaveable
from torch_tfckpt.saveables.variables import Variable


class TensorTrackable(Trackable):
    """A tensor, restored in place. A lazy parameter gets the stored shape."""

    holds_values = True

    def __init__(self, target: torch.Tensor | Variable) -> None:
        super().__init__(target)
        self.tensor = target.tensor if isinstance(target, Variable) else target
        self._variable = target

    @cached_property
    def identity(self) -> Identity:
        return identity_of(self.tensor)

    @property
    def own_name(self) -> str:
        """The name of a Variable; "" for a tensor."""
        variable = self._variable
        if not isinstance(variable, Variable):
            return ""
        return variable.slice_info.full_name if variable.slice_info is not None else variable.name.removesuffix(":0")

    def to_save(self, path: str) -> SavedValues:
        key = checkpoint_key(path, VARIABLE_VALUE)
        return SavedValues({VARIABLE_VALUE: key}, [VariableSaveable(self._variable, self._slice_spec, key)])

    def to_restore(self, stored: StoredNode) -> RestoredValues:
        return stored.restored(VARIABLE_VALUE, self.saveable)

    def saveable(self, key: str) -> SaveableObject:
        """Return the saveable that restores the value stored under `key`."""
        if isinstance(self.tensor, UninitializedParameter | UninitializedBuffer):
            return LazySaveable(self.tensor, key)
        return VariableSaveable(self._variable, self._slice_spec, key)

    @property
    def _slice_spec(self) -> str:
        info = self._variable.slice_info if isinstance(self._variable, Variable) else None
        return info.spec if info is not None else ""
