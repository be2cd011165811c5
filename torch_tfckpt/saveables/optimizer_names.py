"""Names of the parameters of an optimizer: its own, or those of modules and tensors of the var_list."""

from collections.abc import Iterable, Mapping
from typing import TypeGuard

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.tensor_slice import shape_text
from torch_tfckpt.saveables.identity import Identity, identity_of
from torch_tfckpt.text import quoted


def has_groups(value: object) -> TypeGuard[torch.optim.Optimizer]:
    """Return whether it is an optimizer with groups of parameters, so that its state can be stored by name."""
    return isinstance(value, torch.optim.Optimizer) and isinstance(getattr(value, "param_groups", None), list)


def parameter_names(
    optimizer: torch.optim.Optimizer,
    modules: Iterable[tuple[str, Mapping[Identity, str]]],
    tensors: Mapping[Identity, str],
) -> list[list[str]]:
    """Return the names of an optimizer's parameters, one list for each group.

    Args:
        modules: Key of each module of the var_list, and names of its tensors.
        tensors: Keys of the tensors that are themselves values of the var_list.

    Returns:
        The names that the optimizer was built with (from named_parameters()); else the names in the state_dict of the
        one module that has all of its parameters; else "<key of the module>/<name>", or the tensor's own key.

    Raises:
        InvalidArgumentError: a parameter is not found (with its position and shape), or two have the same name.
    """
    groups: list[list[torch.Tensor]] = [list(group["params"]) for group in optimizer.param_groups]
    if groups and all("param_names" in group for group in optimizer.param_groups):
        names = [list(group["param_names"]) for group in optimizer.param_groups]
    else:
        name_of = _names_by_identity({identity_of(p) for group in groups for p in group}, list(modules), tensors)
        names = [
            [_name(name_of, parameter, group, position) for position, parameter in enumerate(parameters)]
            for group, parameters in enumerate(groups)
        ]
    seen: set[str] = set()
    for name in (name for group in names for name in group):
        if name in seen:
            raise InvalidArgumentError(f"two parameters of the optimizer have the name {quoted(name)}. Rename one")
        seen.add(name)
    return names


def _names_by_identity(
    wanted: set[Identity], modules: list[tuple[str, Mapping[Identity, str]]], tensors: Mapping[Identity, str]
) -> dict[Identity, str]:
    for _, names in modules:
        if wanted <= names.keys():
            return dict(names)
    found = dict(tensors)
    for key, names in reversed(modules):  # if several modules have a parameter, the first one names it
        found.update({identity: f"{key}/{name}" if key else name for identity, name in names.items()})
    return found


def _name(name_of: Mapping[Identity, str], parameter: torch.Tensor, group: int, position: int) -> str:
    name = name_of.get(identity_of(parameter))
    if name is None:
        raise InvalidArgumentError(
            f"parameter {position} of param_groups[{group}], of shape {shape_text(parameter.shape)}, has no name: it "
            f"is not in any module of var_list, and not one of its tensors. Add its module to var_list, or build the "
            f"optimizer from model.named_parameters()"
        )
    return name
