"""Create the torch tensors for the variables of an imported graph."""

import logging
from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
import torch

from torch_tfckpt._proto.variable_pb2 import SaveSliceInfoDef
from torch_tfckpt.dtypes import ELEMENTS
from torch_tfckpt.errors import DataLossError, FailedPreconditionError, as_data_loss
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_slice import Shape, element_count, shape_text
from torch_tfckpt.imported_graph.saveables import (
    HeldValue,
    Mirrors,
    SavedAgain,
    StringVariable,
    UnshapedVariable,
    fits,
    is_whole,
)
from torch_tfckpt.meta_graph.model import GraphVariable
from torch_tfckpt.meta_graph.saver_values import StoredValue
from torch_tfckpt.meta_graph.scopes import prepend_name_scope
from torch_tfckpt.saveables.save_spec import SaveableObject
from torch_tfckpt.saveables.slice_info import SaveSliceInfo
from torch_tfckpt.saveables.tensor_saveable import VariableSaveable
from torch_tfckpt.saveables.variables import Variable
from torch_tfckpt.text import quoted
from torch_tfckpt.values import Strings, Value

GraphTensor = Variable | StringVariable

_log = logging.getLogger(__name__)
_FILLED: Final = 1 << 20  # string variables with more elements are initialized with None instead of b""


class GraphTensors:
    """Tensors of zeros for variables; parts of one larger tensor are views of it.

    Args:
        variables: The variables of one graph.
        scope: Prefix for names; "" for no prefix.

    Attributes:
        values: Name -> tensor, or array of `bytes`. Parts are merged into one tensor, under the whole tensor's name.
        trainable: Name in `values` -> whether the variable is trainable.
        are_restored: Whether a saver has restored the tensors. The caller sets this.

    Raises:
        DataLossError: parts of one tensor do not match.
        FailedPreconditionError: a tensor does not fit into the address space.

    Cost: address space; memory is allocated when values are restored.
    """

    def __init__(self, variables: Iterable[GraphVariable], scope: str) -> None:
        self.values: dict[str, Value] = {}
        self.trainable: dict[str, bool] = {}
        self.are_restored = False
        self._scope = scope
        self._of_nodes: dict[str, GraphTensor | None] = {}
        self._shapes: dict[str, Shape | None] = {}
        self._divided: dict[str, Value] = {}  # whole tensors of partitioned variables
        self._parts: dict[str, SaveSliceInfo] = {}  # names of nodes -> the part of a tensor in `_divided`
        self._versions: dict[str, int] = {}  # counts of changes of the tensors in `values`, when they were created
        self._set: set[str] = set()  # names in `values` that are known to be set
        self._held: dict[tuple[str, str], HeldValue] = {}
        found = list(variables)
        self._whole = {variable.name for variable in found if variable.part is None}
        for variable in found:
            if self.add(variable) is None:
                continue
            name = self.name(variable.name)
            is_part = variable.name in self._parts
            self.values[name] = self._divided[name] if is_part else self.value(variable.name)
            self.trainable[name] = self.trainable.get(name, False) or variable.trainable
        self._versions = {name: _version(value) for name, value in self.values.items()}

    def __contains__(self, node: str) -> bool:
        """Return whether the variable with this node name was added."""
        return node in self._of_nodes

    def __getitem__(self, node: str) -> GraphTensor | None:
        """Return the variable with this node name; None if torch cannot represent it, or it was not added."""
        return self._of_nodes.get(node)

    def add(self, variable: GraphVariable) -> GraphTensor | None:
        """Create a variable's tensor, without changing `values`. Warn and return None if torch cannot hold it."""
        name = prepend_name_scope(variable.name, self._scope)
        element = ELEMENTS.get(variable.dtype)
        dtype = element.torch if element is not None else None
        info = _slice_info(variable, variable.part, self._scope) if variable.part is not None else None
        shape = variable.shape if info is None else info.var_shape
        if dtype is None and variable.dtype != DataType.DT_STRING:
            self.leave_out(variable.name, f"torch has no {variable.dtype.name}")
            return None
        if dtype is None and not is_whole(shape):
            # Unlike a tensor, an array cannot be resized in place.
            self.leave_out(variable.name, "it contains strings, and its shape is not known")
            return None
        if info is not None and self._is_part(variable):
            value = self._part(info, name, dtype)
            self._parts[variable.name] = info
        else:
            value = _zeros(name, shape, dtype)
        tensor: GraphTensor
        if isinstance(value, torch.Tensor):
            device, trainable = variable.device, variable.trainable
            tensor = Variable(value, name, info, device=device, trainable=trainable, dtype=variable.dtype)
        else:
            tensor = StringVariable(value, name)
        self._of_nodes[variable.name] = tensor
        self._shapes[variable.name] = shape
        return tensor

    def are_all_zeros(self) -> bool:
        """Return whether no variable has been restored or set yet. Cost: if so, scans all values."""
        return not self.are_restored and bool(self.values) and not any(map(_is_set, self.values.values()))

    def is_set(self, name: str) -> bool:
        """Return whether the variable `name` of `values` was restored or set, or is not all zeros.

        Cost: a scan of the values until the variable is set, then none.
        """
        if name in self._set:
            return True
        value = self.values[name]
        if _version(value) == self._versions[name] and not _is_set(value):
            return False
        self._set.add(name)
        return True

    def mark_set(self, name: str) -> None:
        """Record that a variable was set, possibly to zeros or empty strings."""
        self._set.add(name)

    def name(self, node: str) -> str:
        """Return the name in `values` of the variable with this node name. REQUIRES: it has a tensor."""
        return self._parts[node].full_name if node in self._parts else prepend_name_scope(node, self._scope)

    def holding(self, value: StoredValue) -> list[str]:
        """Return the node names of the variables with tensors that a stored value is restored into."""
        return [node for node in value.variables if self._of_nodes.get(node) is not None]

    def value(self, node: str) -> Value:
        """Return the tensor or array of the variable with this node name. REQUIRES: it has one."""
        tensor = self._of_nodes[node]
        assert tensor is not None, "the variable has a tensor"
        return tensor.tensor if isinstance(tensor, Variable) else tensor.array

    def part(self, node: str) -> tuple[slice, ...] | None:
        """Return the part of a larger tensor that the variable with this node name is; None for a whole tensor."""
        return _region(self._parts[node]) if node in self._parts else None

    def checkpoint_keys(self, stored: Iterable[StoredValue]) -> dict[str, str]:
        """Return name in `values` -> key under which the variable is stored."""
        keys = {}
        for value in stored:
            if not value.is_copy:
                keys.update(dict.fromkeys(map(self.name, self.holding(value)), value.key))
        return {name: key for name, key in keys.items() if name in self.values}

    def held(self, key: str) -> Value | None:
        """Return the value without a variable that was restored under this key; None if there is none."""
        found = self._held.get((key, ""))
        return None if found is None else found.value

    def hold(self, values: Mapping[str, Value]) -> None:
        """Replace values without a variable, by their keys."""
        for key, value in values.items():
            if (key, "") in self._held:
                self._held[key, ""].value = value

    def leave_out(self, node: str, reason: str) -> None:
        """Record that there is no tensor for the variable with this node name, and log a warning."""
        _log.warning("variable %s is omitted: %s", quoted(prepend_name_scope(node, self._scope)), reason)
        self._of_nodes[node] = None

    def saveable(self, value: StoredValue) -> Variable | SaveableObject:
        """Return the object that restores a stored value.

        Raises:
            DataLossError: the value is a slice whose shape differs from its variable's.
        """
        found = [(node, tensor) for node in value.variables if (tensor := self._of_nodes.get(node)) is not None]
        if not found:
            if (value.key, value.slice_spec) not in self._held:
                constant = None if value.constant is None else np.array(value.constant, dtype=object)
                held = HeldValue(value.key, value.slice_spec, value.dtype, constant)
                self._held[value.key, value.slice_spec] = held
            return self._held[value.key, value.slice_spec]
        mirrors = [self._saveable(value, *each) for each in found]
        if value.is_copy:
            return SavedAgain(_as_saveable(mirrors[0], value))
        if len(mirrors) == 1:
            return mirrors[0]
        return Mirrors([_as_saveable(each, value) for each in mirrors])

    def _saveable(self, value: StoredValue, node: str, tensor: GraphTensor) -> Variable | SaveableObject:
        shape = self._shapes[node]
        if isinstance(tensor, StringVariable):
            return StringVariable(tensor.array, value.key, value.slice_spec, lambda: self.mark_set(self.name(node)))
        if not is_whole(shape):
            return UnshapedVariable(tensor, shape, value.key, value.slice_spec)
        if not value.slice_spec:
            return _stored_as(tensor, None)
        with as_data_loss(f"variable {quoted(tensor.name)}, stored as {quoted(value.key)}"):
            return _stored_as(tensor, SaveSliceInfo.of_spec(value.key, value.slice_spec))

    def _is_part(self, variable: GraphVariable) -> bool:
        """Return whether the variable is a part of a larger tensor that is not itself a variable."""
        return variable.part is not None and variable.part.full_name not in self._whole

    def _part(self, info: SaveSliceInfo, name: str, dtype: torch.dtype | None) -> Value:
        """Return a view of the whole tensor. For the first part, create the whole tensor."""
        if info.full_name not in self._divided:
            self._divided[info.full_name] = _zeros(info.full_name, info.full_shape, dtype)
        whole = self._divided[info.full_name]
        found = whole.dtype if isinstance(whole, torch.Tensor) else None
        if tuple(whole.shape) != info.full_shape or found != dtype:
            raise DataLossError(
                f"variable {quoted(name)} is a part of {quoted(info.full_name)}, {dtype or 'strings'} of shape "
                f"{shape_text(info.full_shape)}; another part declares {found or 'strings'} of shape "
                f"{shape_text(whole.shape)}"
            )
        return whole[_region(info)]


def _region(info: SaveSliceInfo) -> tuple[slice, ...]:
    extents = zip(info.var_offset, info.var_shape, strict=True)
    return tuple(slice(start, start + length) for start, length in extents)


def _version(value: Value) -> int:
    """Return how often a tensor was changed in place, as far as torch counts it: not for arrays of strings."""
    return value._version if isinstance(value, torch.Tensor) and not value.is_inference() else 0


def _is_set(value: Value) -> bool:
    if isinstance(value, torch.Tensor):
        return bool(value.reshape(-1).view(torch.uint8).any())  # torch lacks `any` for some dtypes
    return any(value.flat)


def _stored_as(variable: Variable, info: SaveSliceInfo | None) -> Variable:
    """Return a Variable with the same tensor, and with the slice that the saver declares."""
    device, trainable, dtype = variable.device, variable.trainable, variable.dtype
    return Variable(variable.tensor, variable.name, info, device=device, trainable=trainable, dtype=dtype)


def _slice_info(variable: GraphVariable, part: SaveSliceInfoDef, scope: str) -> SaveSliceInfo:
    """Return the slice; DataLossError if it exceeds the whole tensor or contradicts the variable's shape."""
    with as_data_loss(f"variable {quoted(variable.name)}"):
        full_name = prepend_name_scope(part.full_name, scope)
        info = SaveSliceInfo(full_name, part.full_shape, part.var_offset, part.var_shape)
        if variable.shape is not None and not fits(info.var_shape, variable.shape):
            listed, shape = shape_text(info.var_shape), shape_text(variable.shape)
            raise DataLossError(f"its collection declares a part of shape {listed}, but its node has shape {shape}")
        return info


def _as_saveable(mirror: Variable | SaveableObject, value: StoredValue) -> SaveableObject:
    return VariableSaveable(mirror, value.slice_spec, value.key) if isinstance(mirror, Variable) else mirror


def _zeros(name: str, known: Shape | None, dtype: torch.dtype | None) -> Value:
    """Return zeros that take no memory until they are written, since a file may declare any shape.

    Args:
        known: The shape; unknown dimensions become 0, and an unknown shape becomes a scalar.
        dtype: None for an array of strings.
    """
    shape = tuple(max(size, 0) for size in known or ())
    try:
        if dtype is None:
            return _empty_strings(shape)
        zeros = torch.from_numpy(np.zeros(element_count(shape) * dtype.itemsize, dtype=np.uint8))
        return zeros.view(dtype).reshape(shape) if len(zeros) else torch.zeros(shape, dtype=dtype, device="cpu")
    except (MemoryError, ValueError, RuntimeError) as error:
        raise FailedPreconditionError(
            f"variable {quoted(name)} of shape {shape_text(shape)} cannot be held in memory: {error}"
        ) from error


def _empty_strings(shape: Shape) -> Strings:
    strings = np.empty(shape, dtype=object)
    if strings.size <= _FILLED:
        strings[...] = b""
    return strings
