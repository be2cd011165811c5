"""The current contents of modules by checkpoint key: tensors, extra state, and the parts that load a state_dict."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import nn

from torch_tfckpt.errors import UnimplementedError
from torch_tfckpt.saveables.identity import Identity, identity_of
from torch_tfckpt.saveables.module_tensors import ModuleTensor, module_tensors
from torch_tfckpt.saveables.state_dicts import changes_state_dict, loads_state_dict, outermost
from torch_tfckpt.saveables.stateful import FunctionState, SaveableState
from torch_tfckpt.saveables.stored_keys import SHARED
from torch_tfckpt.saveables.wrappers import ModuleNames
from torch_tfckpt.text import quoted

EXTRA_STATE: Final = "_extra_state"  # last part of the state_dict name under which torch stores extra state


@dataclass(slots=True)
class KeyedTensor:
    """One tensor of the modules.

    Attributes:
        keys: All keys of the tensor, in order; it is stored under the first.
        place: Where the tensor is registered; None if it is not a parameter or buffer of the module.
        is_filled: Whether the tensor is in a module that is restored in place, not by load_state_dict.
    """

    value: torch.Tensor
    keys: list[str]
    place: ModuleTensor | None
    is_filled: bool = False

    @property
    def may_be_absent(self) -> bool:
        """Whether the tensor may be missing from a checkpoint."""
        return self.place is not None and self.place.may_be_absent


@dataclass(slots=True, eq=False)
class LoadedPart:
    """A module that is restored by its load_state_dict.

    Attributes:
        owner: Key prefix of the module in the var_list that contains this module: "net/", or "".
        within: Prefix of this module's names in the containing module: "fc.", or "".
        keys: Name in this module's own state_dict -> key.
    """

    module: nn.Module
    owner: str
    within: str
    names: ModuleNames = field(init=False)
    keys: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.names = ModuleNames(self.module)
        self.keys = {name: self.prefix + self.names.stored(name) for name in self.module.state_dict(keep_vars=True)}

    @property
    def prefix(self) -> str:
        """Prefix of this module's keys: "net/fc."."""
        return self.owner + self.within


@dataclass(slots=True)
class ModuleContents:
    """The contents of all modules.

    Attributes:
        tensors: Each tensor once.
        extra: Key -> value that is not a tensor.
        aliases: Key of a ".shared" entry -> alias -> stored key.
        parts: Modules that are restored by load_state_dict.
        keys: Each key -> the part that restores its value; None if the value does not belong to a part.
    """

    tensors: dict[Identity, KeyedTensor] = field(default_factory=dict)
    extra: dict[str, SaveableState] = field(default_factory=dict)
    aliases: dict[str, dict[str, str]] = field(default_factory=dict)
    parts: list[LoadedPart] = field(default_factory=list)
    keys: dict[str, LoadedPart | None] = field(default_factory=dict)

    def add(self, owner: str, module: nn.Module) -> None:
        """Add a module whose keys begin with `owner`.

        Raises:
            UnimplementedError: as `Modules.to_save`.
        """
        names, saved = ModuleNames(module), module.state_dict(keep_vars=True)
        own = {identity_of(each.tensor): each for each in module_tensors(module, saved, names)}
        identities = {name: identity_of(value) for name, value in saved.items()}
        foreign = {
            owner + names.stored(name): name
            for name, identity in identities.items()
            if identity not in own and not _is_extra(name)
        }
        parts = _parts(module, owner, names, loads_state_dict)
        if not foreign.keys() <= parts.keys():
            parts = _parts(module, owner, names, lambda each: loads_state_dict(each) or changes_state_dict(each))
            _check_loadable(foreign, parts, {owner + each.name for each in own.values()})
        self.parts += dict.fromkeys(parts.values())
        for name, value in saved.items():
            key = owner + names.stored(name) if names.has_wrappers else owner + name
            part = self.keys[key] = parts.get(key)
            if name.endswith(EXTRA_STATE) and _is_extra(name):
                self.extra[key] = _extra_state(module, name, value)
                continue
            if not isinstance(value, torch.Tensor):
                self.extra[key] = _Loaded(value)
                continue
            identity = identities[name]
            tensor = self.tensors.get(identity)
            if tensor is None:
                tensor = self.tensors[identity] = KeyedTensor(value, [key], own.get(identity))
            else:
                tensor.keys.append(key)
                self.aliases.setdefault(owner + SHARED, {})[key] = tensor.keys[0]
            if part is None:
                tensor.is_filled = True


class _Loaded(FunctionState):
    """A non-tensor value that is restored by the load_state_dict of its module."""

    def __init__(self, value: object) -> None:
        super().__init__(lambda: value, lambda _: None)


def _parts(
    module: nn.Module, owner: str, names: ModuleNames, wanted: Callable[[nn.Module], bool]
) -> dict[str, LoadedPart]:
    """Return key -> the module restored by load_state_dict that contains it."""
    parts = [LoadedPart(each, owner, names.stored(here)) for here, each in outermost(module, wanted)]
    return {key: part for part in parts for key in part.keys.values()}


def _check_loadable(foreign: Mapping[str, str], parts: Mapping[str, LoadedPart], registered: Collection[str]) -> None:
    """Raise UnimplementedError if nothing in a module would load an entry that is not one of its tensors."""
    for key in foreign:
        part = parts.get(key)
        if part is None or (key not in registered and not any(map(loads_state_dict, part.module.modules()))):
            raise UnimplementedError(
                f"{quoted(key)}: this entry of the module's state_dict is not one of its parameters "
                f"or buffers, so it cannot be restored in place. Put the result of state_dict() into var_list, "
                f"and call load_state_dict after the restore"
            )


def _is_extra(name: str) -> bool:
    return name.rpartition(".")[2] == EXTRA_STATE


def _extra_state(module: nn.Module, name: str, value: object) -> SaveableState:
    try:
        owner: Any = module.get_submodule(name.removesuffix(EXTRA_STATE).removesuffix("."))
    except AttributeError as error:
        raise UnimplementedError(
            f"{quoted(name)}: the module has no submodule for this entry: a hook has renamed the entries of its "
            "state_dict. Remove the hook"
        ) from error
    return FunctionState(lambda: value, owner.set_extra_state)
