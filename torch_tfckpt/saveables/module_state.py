"""Save and restore modules: parameters and buffers in place, and extra state.

Names are those of the module's state_dict without the parts that wrappers such as torch.compile add (see `wrappers`),
with the prefix "<key>/" if the module has a key in the var_list. A tensor that has several names, in one module or in
several, is stored under the first. "<key>/.shared" stores a JSON object that maps its other names to the first; both
are checkpoint keys: {"model/decoder.weight": "model/encoder.weight"}. "<key>/.versions" stores the versions of modules
that are restored by their load_state_dict (see `state_dicts`).

Contract of a restore:

    filled      every parameter and persistent buffer, in place. Modules with hooks or overridden methods for loading
                are restored by load_state_dict
    None        a persistent buffer that is None now, but is stored, is created, and a warning is logged. Exceptions:
                torch's own classes, where None is a setting, as in BatchNorm(track_running_stats=False); and
                parameters, which are never created
    no place    other stored tensors of the module are reported as unexpected, and a warning is logged. This applies to
                all names below the module's key or, if it has no key, below its submodules. As in TensorFlow they are
                not an error
    two values  if a tensor has several names, and different values are stored under them, the first is restored, the
                others are reported as unexpected, and a warning is logged
    counters    num_batches_tracked, and n_averaged of an AveragedModel, may be missing; they then keep their values
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter, is_lazy

from torch_tfckpt.bundle.index import key_of
from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.errors import DataLossError, NotFoundError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.saveables.identity import Identity, identity_of
from torch_tfckpt.saveables.load_report import LoadReport
from torch_tfckpt.saveables.module_contents import EXTRA_STATE, LoadedPart, ModuleContents
from torch_tfckpt.saveables.module_tensors import group_shared, module_tensors, registered_tensors
from torch_tfckpt.saveables.save_spec import SaveableObject, SaveSpec
from torch_tfckpt.saveables.state_dicts import VERSIONS, StateDictSaveable, is_class_of_torch, is_version_kept
from torch_tfckpt.saveables.stateful import state_to_restore, state_to_save
from torch_tfckpt.saveables.stored_keys import StoredKeys, stored_object
from torch_tfckpt.saveables.tensor_saveable import LazySaveable, VariableSaveable
from torch_tfckpt.saveables.wrappers import COUNT_OF_AVERAGES, ModuleNames
from torch_tfckpt.text import listed, quoted
from torch_tfckpt.values import Value

_LISTED: Final = 10  # maximum number of names in a message

_log = logging.getLogger(__name__)


class Modules:
    """All modules of one var_list, so that a tensor shared by two of them is stored once.

    Args:
        modules: Key -> module. The key "" is for a module passed by itself, whose names get no prefix.

    Tensors are looked up at each call, because `module.cuda()` and the like replace them.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = {key: modules[key] for key in sorted(modules, key=key_of)}

    @property
    def keys(self) -> list[str]:
        """The sorted keys of the modules."""
        return list(self._modules)

    def is_empty(self) -> bool:
        """Return whether no module has anything to save."""
        return not any(module.state_dict(keep_vars=True) for module in self._modules.values())

    def is_lazy(self) -> bool:
        """Return whether any tensor has no shape yet, so that nothing can be saved."""
        return any(is_lazy(each.tensor) for module in self._modules.values() for each in registered_tensors(module))

    def to_save(self) -> list[SaveableObject]:
        """Return saveables for each tensor, the extra state, and the other names of shared tensors.

        Raises:
            UnimplementedError: the state_dict has entries that are not parameters or buffers of the module, and that
                nothing in the module would load.
            InvalidArgumentError, TypeError: a lazy parameter without a shape; extra state that can only be pickled.
        """
        contents = self._look()
        saveables: list[SaveableObject] = [
            VariableSaveable(tensor.value, "", tensor.keys[0]) for tensor in contents.tensors.values()
        ]
        for key, state in contents.extra.items():
            saveables += state_to_save(key, state)
        for key, names in contents.aliases.items():
            _log.debug("%s: several names for one tensor, which is stored once: %s", key, names)
            saveables.append(_text(key, names))
        return saveables + [_text(key, versions) for key, versions in _versions(contents.parts).items()]

    def to_restore(
        self, reader: CheckpointReader, report: LoadReport | None = None, *, strict: bool = True
    ) -> list[SaveableObject]:
        """Return a saveable for each tensor and each extra state, with their names in the checkpoint.

        A shared tensor is found under any of its names. A tensor that is not shared here, but was shared in the saved
        module, is found under the name it was stored under, so two saveables may read the same key.

        Args:
            report: Receives the stored tensors that have no counterpart in the modules. The saveables of modules that
                are restored by load_state_dict add what load_state_dict reports.
            strict: Raise an error for missing extra state. The saveables of modules that are restored by
                load_state_dict also raise errors for missing entries.

        Raises: as `to_save`, plus NotFoundError and any other error from reading extra state and ".shared".
        """
        restore = _ModulesRestore(self._modules, self._look(), reader, LoadReport() if report is None else report)
        return restore.saveables(strict=strict)

    def names_of_tensors(self) -> Iterator[tuple[str, dict[Identity, str]]]:
        """Yield each module's key, and a dict: identity of a parameter or buffer -> its first name."""
        for key, module in self._modules.items():
            groups = group_shared(module_tensors(module))
            yield key, {identity_of(first.tensor): first.name for first, *_ in groups}

    def without_wrappers(
        self, optimizer: torch.optim.Optimizer, names: Sequence[Sequence[str | None]]
    ) -> Sequence[Sequence[str | None]]:
        """Return an optimizer's parameter names without the parts that wrappers among these modules add.

        An optimizer that was built from the named_parameters() of a wrapped module has names that contain these parts.
        """
        wrapped: dict[tuple[Identity, str], str] = {}
        for module in self._modules.values():
            of_module = ModuleNames(module)
            for name, parameter in module.named_parameters(remove_duplicate=False) if of_module.has_wrappers else ():
                wrapped[identity_of(parameter), name] = of_module.stored(name)
        if not wrapped:
            return names
        return [
            [
                name if name is None else wrapped.get((identity_of(each), name), name)
                for each, name in zip(group["params"], own, strict=True)
            ]
            for group, own in zip(optimizer.param_groups, names, strict=True)
        ]

    def _look(self) -> ModuleContents:
        contents = ModuleContents()
        for key, module in self._modules.items():
            contents.add(_owner(key), module)
        return contents


class _ModulesRestore:
    """A single restore of modules."""

    def __init__(
        self, modules: Mapping[str, nn.Module], contents: ModuleContents, reader: CheckpointReader, report: LoadReport
    ) -> None:
        self._modules = {_owner(key): module for key, module in modules.items()}
        self._contents, self._reader, self._report = contents, reader, report
        self._stored = StoredKeys(reader, list(self._modules))

    def saveables(self, *, strict: bool) -> list[SaveableObject]:
        found: list[SaveableObject] = []
        read_as: dict[str, str] = {}  # key -> the key to read
        absent: dict[str, torch.Tensor] = {}
        anything = False
        for tensor in self._contents.tensors.values():
            key = self._stored.key_for(tensor.keys, self._report)
            is_stored = key in self._reader
            anything = anything or is_stored
            if self._contents.parts:
                read_as.update(dict.fromkeys(tensor.keys, key))
            if not is_stored and tensor.may_be_absent:
                absent[tensor.keys[0]] = tensor.value
            elif tensor.is_filled:
                found.append(_filled(tensor.value, tensor.keys[0], key))
        if not anything:  # nothing is stored: add the optional tensors, so that the error counts all tensors
            found += [_filled(value, key, key) for key, value in absent.items()]
            absent = {}
        for key, state in self._contents.extra.items():
            read_as[key] = self._stored.key_for([key], self._report)
            if self._contents.keys[key] is not None:
                continue
            try:
                found.append(state_to_restore(read_as[key], state, self._reader))
            except NotFoundError:
                if strict:
                    raise
                self._report.missing.append(key)
        found += self._parts(read_as, frozenset(absent), strict=strict)
        found += self._without_place({spec.name for saveable in found for spec in saveable.specs})
        if absent:
            self._remark(f"not stored, and unchanged: {listed(list(absent), _LISTED)}", logging.INFO)
        return found

    def _parts(
        self, read_as: Mapping[str, str], may_be_absent: frozenset[str], *, strict: bool
    ) -> Iterator[StateDictSaveable]:
        """Yield the saveables of modules that are restored by load_state_dict."""
        if not self._contents.parts:
            return
        unknown = self._unknown(set(read_as.values()))
        for part in self._contents.parts:
            entries = {name: read_as[key] for name, key in part.keys.items() if read_as[key] in self._reader}
            for name, key in unknown.get(part.prefix, {}).items():
                entries.setdefault(part.names.spelled(name), key)
            strings = {name for name, key in entries.items() if self._reader.dtype(key) == DataType.DT_STRING}
            yield StateDictSaveable(
                part.prefix.rstrip("./"),
                part.module,
                tensors={name: key for name, key in entries.items() if name not in strings},
                states={name: key for name, key in entries.items() if name in strings},
                reader=self._reader,
                versions=self._versions_of(part),
                wanted=part.keys,
                optional=frozenset(name for name, key in part.keys.items() if key in may_be_absent),
                strict=strict,
                report=self._report,
            )

    def _unknown(self, known: set[str]) -> dict[str, dict[str, str]]:
        """Return stored values for which no module has a name: prefix of a module -> {name below it: key}."""
        prefixes = {part.prefix for part in self._contents.parts}
        found: dict[str, dict[str, str]] = {}
        for bare, key in (*((key, key) for key in self._reader.keys()), *self._stored.wrapped.items()):
            owner = self._owner_of(bare)
            if key in known or bare in self._contents.keys or owner is None or not self._is_entry(bare, owner):
                continue
            end = len(bare)
            while end > len(owner) and bare[:end] not in prefixes:
                end = max(bare.rfind(".", 0, end - 1) + 1, len(owner))
            if bare[:end] in prefixes:
                found.setdefault(bare[:end], {})[bare[end:]] = key
        return found

    def _owner_of(self, key: str) -> str | None:
        """Return the prefix of the module in the var_list that a key belongs to: the longest that fits."""
        return max((owner for owner in self._modules if key.startswith(owner)), key=len, default=None)

    def _is_entry(self, key: str, owner: str) -> bool:
        """Return whether a key may be an entry of a module's state_dict, and not a key of another object."""
        if "/" in key[len(owner) :] or ("/" in owner and not key.startswith(owner)):
            return False
        return key.rpartition(".")[2] == EXTRA_STATE or self._reader.dtype(key) != DataType.DT_STRING

    def _versions_of(self, part: LoadedPart) -> dict[str, int]:
        """Return the stored versions of a module: path in its state_dict -> version."""
        key = part.owner + VERSIONS
        if key not in self._reader:
            return {}
        found: dict[str, int] = {}
        for path, version in stored_object(self._reader, key).items():
            if not isinstance(version, int):
                raise DataLossError(f"{self._reader.path}: {quoted(key)} is not a JSON object with integer values")
            prefix = f"{path}." if path else ""
            if prefix.startswith(part.within):
                found[part.names.spelled(prefix[len(part.within) :]).removesuffix(".")] = version
        return found

    def _without_place(self, used: set[str]) -> Iterator[SaveableObject]:
        """Yield saveables for the buffers to create, and report stored tensors that the modules lack."""
        left = [key for key in self._reader.keys() if key not in used and key not in self._contents.keys]
        if not left:
            return
        bare_of = {key: bare for bare, key in self._stored.wrapped.items()}
        owners: dict[str, dict[str, nn.Module]] = {}
        lost, created = [], []
        for key in left:
            bare = bare_of.get(key, key)
            owner = self._owner_of(bare)
            if owner is None or bare in self._contents.keys or not self._is_entry(key, key[: len(owner)]):
                continue
            if owner not in owners:
                owners[owner] = ModuleNames(self._modules[owner]).owners()
            end = bare.rfind(".", len(owner)) + 1 or len(owner)
            module, attribute = owners[owner].get(bare[len(owner) : end]), bare[end:]
            if module is not None and _is_empty_buffer(module, attribute):
                created.append(key)
                yield _NewBuffer(module, attribute, _device_of(module, self._modules[owner]), key, self._reader)
            elif module is not None and attribute == COUNT_OF_AVERAGES and not self._reader.shape(key):
                self._remark(f"{quoted(key)} counts the averages of an AveragedModel. It is ignored", logging.INFO)
                self._report.ignored.append(key)
            elif owner or (module is not None and (end or attribute in module._parameters)):
                lost.append(key)
        if created:
            self._remark(f"buffers that were None were created: {listed(created, _LISTED)}", logging.WARNING)
        if lost:
            self._report.unexpected.extend(lost)
            _log.warning(
                "%s: these stored tensors match nothing in the restored modules and are not restored: %s. If the "
                "modules create them later, for example in the first forward pass, create them before the restore",
                self._reader.path,
                listed(lost, _LISTED),
            )

    def _remark(self, text: str, level: int) -> None:
        self._report.remarks.append(text)
        _log.log(level, "%s: %s", self._reader.path, text)


class _NewBuffer(SaveableObject):
    """A persistent buffer that is None now."""

    def __init__(
        self, module: nn.Module, attribute: str, device: torch.device, key: str, reader: CheckpointReader
    ) -> None:
        super().__init__(None, [SaveSpec(None, "", key, reader.dtype(key), device)], key)
        self._module, self._attribute, self._device = module, attribute, device

    def restore(self, restored_tensors: Sequence[Value], restored_shapes: Sequence[Shape] | None) -> None:
        """Set the buffer to a copy of the value."""
        (value,) = restored_tensors
        assert isinstance(value, torch.Tensor), "its dtype was checked"
        self._module._buffers[self._attribute] = value.to(self._device, copy=True)


def _owner(key: str) -> str:
    return f"{key}/" if key else ""


def _text(key: str, value: Mapping[str, Any]) -> SaveableObject:
    return SaveableObject(None, [SaveSpec(json.dumps(value), "", key)], key)


def _versions(parts: Sequence[LoadedPart]) -> dict[str, dict[str, int]]:
    """Return ".versions" key -> {path of a submodule in the module of the var_list: its version}."""
    found: dict[str, dict[str, int]] = {}
    for part in parts:
        for path, each in part.module.named_modules(remove_duplicate=False):
            if is_version_kept(each):
                stored = part.within + part.names.stored(f"{path}." if path else "")
                found.setdefault(part.owner + VERSIONS, {})[stored.removesuffix(".")] = int(each._version)
    return found


def _filled(tensor: torch.Tensor, name: str, key: str) -> SaveableObject:
    if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
        saveable: SaveableObject = LazySaveable(tensor, name)
    else:
        saveable = VariableSaveable(tensor, "", name)
    saveable.specs[0].name = key
    return saveable


def _is_empty_buffer(module: nn.Module, attribute: str) -> bool:
    """Return whether this is a buffer that is None now, and that a stored value may replace."""
    if attribute not in module._buffers or module._buffers[attribute] is not None:
        return False
    return attribute not in module._non_persistent_buffers_set and not is_class_of_torch(module)


def _device_of(*modules: nn.Module) -> torch.device:
    """Return the device of the modules' first tensor that is not a meta tensor; default: the CPU."""
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.device.type != "meta":
                return tensor.device
    return torch.device("cpu")
