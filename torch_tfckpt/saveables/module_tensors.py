"""The parameters and buffers of a module: every place where one is registered, and its name in the state_dict.

    [tensor.name for tensor in module_tensors(model)]     # ["embed.weight", "layers.0.weight", "decoder.weight"]

Contract, the same for every caller:

    order         that of nn.Module.state_dict: parameters of a module, its buffers, then its submodules
    name          the one in module.state_dict(keep_vars=True). A hook or an override of state_dict may rename an entry:
                  activation checkpointing takes "_checkpoint_wrapped_module." out of all names
    persistent    whether the state_dict has the tensor. Other buffers, and what a hook or an override leaves out, are
                  listed under the names that their attributes give
    shared        a tensor that is registered in several places (tied weights, a submodule with two names) is listed
                  once for each; `group_shared` puts these together
    lazy, meta    listed like all others; a lazy tensor has no shape yet
    parametrized  what is registered is listed ("parametrizations.weight.original"), and not what is computed from it
    left out      attributes that are None; extra state; what a hook adds to the state_dict that is not registered
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from torch_tfckpt.saveables.identity import Identity, identity_of


@dataclass(frozen=True, slots=True, eq=False)
class ModuleTensor:
    """One tensor of a module, in one of the places where it is registered."""

    name: str
    module: nn.Module  # where it is registered: the module itself or a submodule
    attribute: str  # under which name `module` has it
    tensor: torch.Tensor
    is_parameter: bool
    persistent: bool

    @property
    def parent(self) -> str:
        """The name without its last part, "layers.0." of "layers.0.weight"."""
        return self.name[: self.name.rfind(".") + 1]

    def replace(self, value: torch.Tensor) -> None:
        """Register `value` in this place instead of the tensor. Parameters are replaced by Parameters."""
        if self.is_parameter:
            assert isinstance(value, nn.Parameter)
            self.module._parameters[self.attribute] = value
        else:
            self.module._buffers[self.attribute] = value


def own_tensors(module: nn.Module, prefix: str = "") -> Iterator[ModuleTensor]:
    """The tensors registered in `module` itself, without submodules, named `prefix` and attribute.

    What hooks and overrides do to the state_dict of the whole is not visible from one module; so `persistent` is only
    what the buffer was registered with.
    """
    passing = module._non_persistent_buffers_set
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield ModuleTensor(prefix + name, module, name, parameter, is_parameter=True, persistent=True)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            persistent = name not in passing
            yield ModuleTensor(prefix + name, module, name, buffer, is_parameter=False, persistent=persistent)


def module_tensors(module: nn.Module, state_dict: Mapping[str, object] | None = None) -> list[ModuleTensor]:
    """The tensors registered in `module` and its submodules, by the contract above.

    Args:
        state_dict: `module.state_dict(keep_vars=True)`, if the caller has it already; asked of the module otherwise.
    """
    saved = module.state_dict(keep_vars=True) if state_dict is None else state_dict
    found = [
        each
        for name, part in module.named_modules(remove_duplicate=False)
        for each in own_tensors(part, f"{name}." if name else "")
    ]
    renamed = _renamed(saved, {each.name for each in found})
    return [each if each.persistent and each.name in saved else _as_saved(each, saved, renamed) for each in found]


def _as_saved(place: ModuleTensor, saved: Mapping[str, object], renamed: Mapping[Identity, list[str]]) -> ModuleTensor:
    """The place, if the state_dict has it under another name, or has not what was registered as persistent."""
    if place.name in saved:
        return replace(place, persistent=True)
    names = renamed.get(identity_of(place.tensor)) if renamed else None
    return replace(place, name=names.pop(0), persistent=True) if names else replace(place, persistent=False)


def _renamed(saved: Mapping[str, object], names: set[str]) -> dict[Identity, list[str]]:
    """The names in a state_dict that no attribute gives, by the tensor that has them."""
    found: dict[Identity, list[str]] = {}
    for name, value in saved.items():
        if name not in names and isinstance(value, torch.Tensor):
            found.setdefault(identity_of(value), []).append(name)
    return found


def group_shared(tensors: Iterable[ModuleTensor]) -> list[list[ModuleTensor]]:
    """Tensors of the same memory put together, in the order of the first of each group."""
    groups: dict[Identity, list[ModuleTensor]] = {}
    for each in tensors:
        groups.setdefault(identity_of(each.tensor), []).append(each)
    return list(groups.values())
