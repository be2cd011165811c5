"""Save and restore modules: parameters and buffers in place, and extra state.

Names are those of the module's state_dict, with the prefix "<key>/" if the module has a key in the var_list. A tensor
that has several names, in one module or in several, is stored under the first. "<key>/.shared" stores a JSON object
that maps its other names to the first; both are checkpoint keys: {"model/decoder.weight": "model/encoder.weight"}.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import torch
from torch import nn

from torch_tfckpt.bundle.index import key_of
from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.errors import DataLossError, UnimplementedError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.saveables.identity import Identity, identity_of
from torch_tfckpt.saveables.module_tensors import group_shared, module_tensors
from torch_tfckpt.saveables.save_spec import SaveableObject, SaveSpec
from torch_tfckpt.saveables.stateful import FunctionState, SaveableState, read_text, state_to_restore, state_to_save
from torch_tfckpt.saveables.tensor_saveable import VariableSaveable
from torch_tfckpt.text import quoted

SHARED: Final = ".shared"
EXTRA_STATE: Final = "_extra_state"  # last part of the state_dict name of the value of get_extra_state()

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Contents:
    """The current contents of the modules, by checkpoint key."""

    tensors: dict[Identity, tuple[torch.Tensor, list[str]]] = field(default_factory=dict)  # all keys of each, in order
    extra: dict[str, SaveableState] = field(default_factory=dict)
    aliases: dict[str, dict[str, str]] = field(default_factory=dict)  # key of a ".shared" -> alias -> stored key


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

    def to_save(self) -> list[SaveableObject]:
        """Return saveables for each tensor, the extra state, and the other names of shared tensors.

        Raises:
            UnimplementedError: the state_dict has entries that are not parameters or buffers of the module.
            InvalidArgumentError, TypeError: a lazy parameter without a shape; extra state that can only be pickled.
        """
        contents = self._look()
        saveables: list[SaveableObject] = []
        for tensor, keys in contents.tensors.values():
            saveables.append(VariableSaveable(tensor, "", keys[0]))
        for key, state in contents.extra.items():
            saveables += state_to_save(key, state)
        for key, names in contents.aliases.items():
            _log.debug("%s: several names for one tensor, which is stored once: %s", key, names)
            saveables.append(SaveableObject(None, [SaveSpec(json.dumps(names), "", key)], key))
        return saveables

    def to_restore(self, reader: CheckpointReader) -> list[SaveableObject]:
        """Return a saveable for each tensor and each extra state, with the names that `reader` has for them.

        A shared tensor is found under any of its names. A tensor that is not shared here, but was shared in the saved
        module, is found under the name it was stored by, so two saveables may read the same key.

        Raises: as `to_save`, plus NotFoundError and any other error from reading extra state and ".shared".
        """
        contents = self._look()
        stored = _StoredKeys(reader)
        saveables: list[SaveableObject] = []
        for tensor, keys in contents.tensors.values():
            saveable = VariableSaveable(tensor, "", keys[0])
            saveable.specs[0].name = stored.key_for(keys)
            saveables.append(saveable)
        return saveables + [state_to_restore(key, state, reader) for key, state in contents.extra.items()]

    def names_of_tensors(self) -> Iterator[tuple[str, dict[Identity, str]]]:
        """Yield each module's key, and the first name of each of its parameters and buffers by identity."""
        for key, module in self._modules.items():
            groups = group_shared(module_tensors(module))
            yield key, {identity_of(first.tensor): first.name for first, *_ in groups}

    def _look(self) -> _Contents:
        contents = _Contents()
        for key, module in self._modules.items():
            prefix = f"{key}/" if key else ""
            saved = module.state_dict(keep_vars=True)
            own = {identity_of(each.tensor) for each in module_tensors(module, saved)}
            for name, value in saved.items():
                if name.rpartition(".")[2] == EXTRA_STATE:
                    contents.extra[prefix + name] = _extra_state(module, name, value)
                    continue
                identity = identity_of(value)
                if identity not in own:
                    raise UnimplementedError(
                        f"{quoted(prefix + name)}: this entry of the module's state_dict is not one of its parameters "
                        f"or buffers, so it cannot be restored in place. Put the result of state_dict() into var_list, "
                        f"and call load_state_dict after the restore"
                    )
                _, keys = contents.tensors.setdefault(identity, (value, []))
                keys.append(prefix + name)
                if len(keys) > 1:
                    contents.aliases.setdefault(prefix + SHARED, {})[prefix + name] = keys[0]
        return contents


class _StoredKeys:
    """Find the key under which a checkpoint stores a tensor."""

    def __init__(self, reader: CheckpointReader) -> None:
        self._reader = reader

    def key_for(self, keys: list[str]) -> str:
        """Return the key to read for a tensor with these keys; the first of them if the checkpoint has none."""
        present = [key for key in keys if key in self._reader]
        if len(present) > 1:
            _log.info(
                "the checkpoint stores separate values for one shared tensor: %s. The first is restored",
                ", ".join(map(quoted, present)),
            )
        if present:
            return present[0]
        return next((self._shared[key] for key in keys if key in self._shared), keys[0])

    @cached_property
    def _shared(self) -> dict[str, str]:
        """Alias -> stored key, of all modules in the checkpoint. Read only when a name is missing."""
        return shared_names(self._reader)


def shared_names(reader: CheckpointReader) -> dict[str, str]:
    """Return alias -> stored key, of all modules in the checkpoint.

    Raises:
        DataLossError: a ".shared" entry is damaged.

    Cost: visits all keys, and reads the ".shared" entries.
    """
    found: dict[str, str] = {}
    for key in reader.keys():
        if key.rpartition("/")[2] == SHARED and reader.dtype(key) == DataType.DT_STRING:
            found.update(_aliases_in(reader, key))
    return found


def _aliases_in(reader: CheckpointReader, key: str) -> dict[str, str]:
    text = read_text(reader, key)
    try:
        names = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataLossError(f"{reader.path}: {quoted(key)} is not valid JSON: {error}") from error
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise DataLossError(f"{reader.path}: {quoted(key)} is not a JSON object of names")
    return names


def _extra_state(module: nn.Module, name: str, value: object) -> SaveableState:
    try:
        owner = module.get_submodule(name.removesuffix(EXTRA_STATE).removesuffix("."))
    except AttributeError as error:
        raise UnimplementedError(
            f"{quoted(name)}: the module has no such submodule: a hook has renamed the entries of its "
            "state_dict. Remove the hook"
        ) from error
    return FunctionState(lambda: value, owner.set_extra_state)
