"""List the parameters and buffers of a module: where each is registered, and its name in checkpoints.

    [tensor.name for tensor in module_tensors(model)]     # ["embed.weight", "layers.0.weight", "decoder.weight"]

Contract, the same for every caller:

    order         as in nn.Module.state_dict: parameters of a module, its buffers, then its submodules
    name          as in module.state_dict(keep_vars=True), without the parts that wrappers add
                  (see `wrappers`). A hook or an override of state_dict may rename an entry: activation checkpointing
                  removes "_checkpoint_wrapped_module." from all names
    persistent    whether the state_dict contains the tensor. Other buffers, and tensors that a hook or an override
                  removes, are listed under their attribute names
    shared        a tensor that is registered in several places (tied weights, a submodule with two names) is listed
                  once per place; `group_shared` groups these
    lazy, meta    listed like all others; a lazy tensor has no shape yet
    parametrized  the registered tensor is listed ("parametrizations.weight.original"), not the computed one
    left out      attributes that are None; extra state; unregistered entries that a hook adds to the state_dict
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from torch_tfckpt.saveables.identity import Identity, identity_of
from torch_tfckpt.saveables.wrappers import COUNT_OF_AVERAGES, ModuleNames, wrapped_part


@dataclass(frozen=True, slots=True, eq=False)
class ModuleTensor:
    """One tensor of a module, in one of the places where it is registered."""

    name: str
    module: nn.Module  # where it is registered: the module itself or a submodule
    attribute: str  # its name in `module`
    tensor: torch.Tensor
    is_parameter: bool
    persistent: bool

    @property
    def may_be_absent(self) -> bool:
        """Whether a checkpoint may lack this tensor: a counter that torch or a wrapper adds to a model.

        torch loads a BatchNorm without num_batches_tracked, which old versions did not have, if the state_dict has no
        version. A checkpoint of the model itself does not have the n_averaged of an AveragedModel.
        """
        if self.attribute == "num_batches_tracked":
            return isinstance(self.module, nn.modules.batchnorm._NormBase)
        return self.is_wrappers

    @property
    def is_wrappers(self) -> bool:
        """Whether this is n_averaged of an AveragedModel, and not a tensor of the model that it wraps."""
        return self.attribute == COUNT_OF_AVERAGES and wrapped_part(self.module) is not None

    @property
    def parent(self) -> str:
        """The name without its last part: "layers.0." for "layers.0.weight"."""
        return self.name[: self.name.rfind(".") + 1]

    def replace(self, value: torch.Tensor) -> None:
        """Register `value` instead of the tensor. A Parameter can only be replaced by a Parameter."""
        if self.is_parameter:
            assert isinstance(value, nn.Parameter)
            self.module._parameters[self.attribute] = value
        else:
            self.module._buffers[self.attribute] = value


def own_tensors(module: nn.Module, prefix: str = "") -> Iterator[ModuleTensor]:
    """Yield the tensors registered in `module` itself, not in submodules, named `prefix` plus attribute.

    Changes that hooks and overrides make to the state_dict of the whole model are not visible from one module, so
    `persistent` is the value that the buffer was registered with.
    """
    passing = module._non_persistent_buffers_set
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield ModuleTensor(prefix + name, module, name, parameter, is_parameter=True, persistent=True)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            persistent = name not in passing
            yield ModuleTensor(prefix + name, module, name, buffer, is_parameter=False, persistent=persistent)


def registered_tensors(module: nn.Module) -> Iterator[ModuleTensor]:
    """Yield `own_tensors` of `module` and its submodules, named by attributes."""
    for name, part in module.named_modules(remove_duplicate=False):
        yield from own_tensors(part, f"{name}." if name else "")


def module_tensors(
    module: nn.Module, state_dict: Mapping[str, object] | None = None, names: ModuleNames | None = None
) -> list[ModuleTensor]:
    """Return the tensors registered in `module` and its submodules, by the contract above.

    Args:
        state_dict: `module.state_dict(keep_vars=True)`, if the caller already has the result; default: it is computed.
        names: `ModuleNames(module)`, if the caller has it already.
    """
    saved = module.state_dict(keep_vars=True) if state_dict is None else state_dict
    found = list(registered_tensors(module))
    renamed = _renamed(saved, {each.name for each in found})
    found = [each if each.persistent and each.name in saved else _as_saved(each, saved, renamed) for each in found]
    names = ModuleNames(module) if names is None else names
    return [replace(each, name=names.stored(each.name)) for each in found] if names.has_wrappers else found


def _as_saved(place: ModuleTensor, saved: Mapping[str, object], renamed: Mapping[Identity, list[str]]) -> ModuleTensor:
    """Return `place` with its name in the state_dict, and whether it is persistent."""
    if place.name in saved:
        return replace(place, persistent=True)
    names = renamed.get(identity_of(place.tensor)) if renamed else None
    return replace(place, name=names.pop(0), persistent=True) if names else replace(place, persistent=False)


def _renamed(saved: Mapping[str, object], names: set[str]) -> dict[Identity, list[str]]:
    """Return the state_dict names that are not attribute names, grouped by tensor."""
    found: dict[Identity, list[str]] = {}
    for name, value in saved.items():
        if name not in names and isinstance(value, torch.Tensor):
            found.setdefault(identity_of(value), []).append(name)
    return found


def group_shared(tensors: Iterable[ModuleTensor]) -> list[list[ModuleTensor]]:
    """Group tensors that share memory; groups are in the order of their first tensor."""
    groups: dict[Identity, list[ModuleTensor]] = {}
    for each in tensors:
        groups.setdefault(identity_of(each.tensor), []).append(each)
    return list(groups.values())
