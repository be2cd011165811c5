"""Modules as nodes, and objects with methods that return their children and values.

Source: tensorflow/python/trackable/base.py for the methods that an object may have.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import nn

from torch_tfckpt.devices import HOST
from torch_tfckpt.errors import UnimplementedError
from torch_tfckpt.format.object_graph import checkpoint_key, escape_local_name, unescape_local_name
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.objects.trackables.plain_values import StateTrackable
from torch_tfckpt.objects.trackables.tensors import TensorTrackable
from torch_tfckpt.objects.trackables.trackable import RestoredValues, SavedValues, StoredNode, Trackable
from torch_tfckpt.saveables.identity import identity_of
from torch_tfckpt.saveables.module_contents import EXTRA_STATE
from torch_tfckpt.saveables.module_tensors import module_tensors, own_tensors
from torch_tfckpt.saveables.save_spec import SaveableObject, SaveSpec
from torch_tfckpt.saveables.state_dicts import loads_state_dict
from torch_tfckpt.saveables.stateful import FunctionState
from torch_tfckpt.saveables.tensor_saveable import has_saveables, saveables_of_attribute
from torch_tfckpt.saveables.wrappers import wrapped_part
from torch_tfckpt.text import quoted
from torch_tfckpt.values import Value, WritableValue


class ModuleTrackable(Trackable):
    """A module: its own parameters, then persistent buffers, then submodules, by their attribute names.

    Buffers that are not persistent, and attributes that are None, are omitted. Extra state is a separate child, under
    its name in the state_dict. A module and the wrappers around it, such as torch.compile, are one node.
    """

    def __init__(self, target: nn.Module) -> None:
        wrappers = [target]
        while (part := wrapped_part(wrappers[-1])) is not None:
            wrappers.append(wrappers[-1]._modules[part])  # type: ignore[arg-type]
        while len(wrappers) > 1 and not _has_entries(wrappers[0]):
            del wrappers[0]
        super().__init__(wrappers[0])
        self.module = wrappers[0]
        self._layers = wrappers  # from the outermost wrapper that has its own entries to the wrapped module

    def children(self) -> Iterable[tuple[str, object]]:
        layers = self._layers
        for module in layers:
            for each in own_tensors(module):
                if each.persistent:
                    is_wrappers = module is not layers[-1] and each.is_wrappers
                    yield each.attribute, _WrapperTensor(each.tensor) if is_wrappers else each.tensor
        for module in layers:
            part = wrapped_part(module) if module is not layers[-1] else None
            for name, child in module._modules.items():
                if child is not None and name != part:
                    yield name, child
        for module in layers:
            if type(module).get_extra_state is not nn.Module.get_extra_state:
                yield EXTRA_STATE, _ExtraState(module)

    @property
    def innermost(self) -> nn.Module:
        """The module inside all wrappers."""
        return self._layers[-1]

    @property
    def loads_state_dict(self) -> bool:
        """Whether it is restored by load_state_dict, so that its hooks and overridden methods are called."""
        return loads_state_dict(self.module) or any(map(loads_state_dict, self._layers[1:]))

    def check(self) -> None:
        """Raise UnimplementedError if the state_dict has entries that are not children: these would be lost."""
        for module in self._layers:
            if type(module)._save_to_state_dict is not nn.Module._save_to_state_dict:
                saved: dict[str, object] = {}
                module._save_to_state_dict(saved, "", True)
                self._check_entries(module, saved.keys() - {name for name, _ in self.children()})
            if loads_state_dict(module):
                saved = module.state_dict(keep_vars=True)
                own = {identity_of(each.tensor) for each in module_tensors(module, saved)}
                lost = {name for name, value in saved.items() if identity_of(value) not in own}
                self._check_entries(module, {name for name in lost if name.rpartition(".")[2] != EXTRA_STATE})

    def _check_entries(self, module: nn.Module, lost: Collection[str]) -> None:
        if lost:
            raise UnimplementedError(
                f"{type(module).__name__}: the entries {', '.join(map(quoted, sorted(lost)))} of the module's "
                f"state_dict are not parameters or buffers of the module, so they cannot be restored in place. "
                f"Pass an object that delegates its state_dict and load_state_dict to the module"
            )


def _has_entries(wrapper: nn.Module) -> bool:
    """Return whether a wrapper has something of its own to save."""
    others = wrapper._modules.keys() - {wrapped_part(wrapper)}
    has_tensors = any(each.persistent for each in own_tensors(wrapper))
    return has_tensors or bool(others) or type(wrapper).get_extra_state is not nn.Module.get_extra_state


class _WrapperTensor(TensorTrackable):
    """A tensor of a wrapper, such as n_averaged. A checkpoint of the bare module leaves it unchanged."""

    @property
    def needs_values(self) -> bool:
        return False


class _ExtraState(StateTrackable):
    """The extra state of a module; the module itself is a separate node."""

    is_part = True

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module, FunctionState(module.get_extra_state, module.set_extra_state))

    @cached_property
    def identity(self) -> tuple[object, ...]:
        return (EXTRA_STATE, *super().identity)


class CustomTrackable(Trackable):
    """An object with some of the methods that TensorFlow's trackable objects have.

    _trackable_children() -> {local name: object}
    _serialize_to_tensors() -> {attribute: tensor} and _restore_from_tensors({attribute: tensor})
    _gather_saveables_for_checkpoint() -> {attribute: tensor, Variable, SaveableObject, or a function of a name}
    """

    def __init__(self, target: Any) -> None:
        super().__init__(target)
        self._object = target
        self._serializes = callable(getattr(target, "_serialize_to_tensors", None))
        self._gathers = has_saveables(target)
        self.holds_values = self._serializes or self._gathers

    def children(self) -> Iterable[tuple[str, object]]:
        if not callable(getattr(self._object, "_trackable_children", None)):
            return []
        named = self._object._trackable_children()
        return list(named.items() if isinstance(named, Mapping) else named)

    def to_save(self, path: str) -> SavedValues:
        attributes: dict[str, str] = {}
        saveables: list[SaveableObject] = []
        if self._serializes:
            values: Mapping[str, WritableValue] = self._object._serialize_to_tensors()
            for name, value in values.items():
                key = attributes[escape_local_name(name)] = checkpoint_key(path, name)
                saveables.append(SaveableObject(None, [SaveSpec(value, "", key)], key))
        elif self._gathers:
            for name, item in self._object._gather_saveables_for_checkpoint().items():
                # For a saveable with several values this is the prefix of their keys, as in TensorFlow.
                key = attributes[escape_local_name(name)] = checkpoint_key(path, name)
                saveables += saveables_of_attribute(key, item)
        return SavedValues(attributes, saveables)

    def to_restore(self, stored: StoredNode) -> RestoredValues:
        keys = {unescape_local_name(name): key for name, key in stored.keys.items()}
        if self._serializes and keys:
            return RestoredValues([_Deserialized(self._object, keys)], frozenset(stored.keys))
        if not self._gathers:
            return RestoredValues()
        gathered = self._object._gather_saveables_for_checkpoint()
        found = [name for name in gathered if name in keys]
        saveables = [each for name in found for each in saveables_of_attribute(keys[name], gathered[name])]
        return RestoredValues(saveables, frozenset(map(escape_local_name, found)))


class _Deserialized(SaveableObject):
    """Passes all values to an object in one call."""

    def __init__(self, target: Any, keys: Mapping[str, str]) -> None:
        specs = [SaveSpec(None, "", key, device=HOST) for key in keys.values()]
        super().__init__(target, specs, specs[0].name)
        self._object, self._names = target, list(keys)

    def restore(self, restored_tensors: Sequence[Value], restored_shapes: Sequence[Shape] | None) -> None:
        self._object._restore_from_tensors(dict(zip(self._names, restored_tensors, strict=True)))


def has_trackable_methods(value: object) -> bool:
    """Whether an object, not a class, has any of the methods that CustomTrackable uses."""
    names = ("_trackable_children", "_serialize_to_tensors", "_gather_saveables_for_checkpoint")
    return not isinstance(value, type | torch.Tensor) and any(callable(getattr(value, name, None)) for name in names)


def distinct(children: Iterable[tuple[str, object]]) -> list[tuple[str, object]]:
    """Return the children of one node; ValueError if two have the same name."""
    named: dict[str, object] = {}
    for name, child in children:
        if name in named:
            raise ValueError(
                f"the name {quoted(name)} is already declared as a dependency of the object. Rename one of the two"
            )
        named[name] = child
    return list(named.items())
