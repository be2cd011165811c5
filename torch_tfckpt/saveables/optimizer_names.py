"""Names of an optimizer's parameters: from the optimizer, or from modules and tensors of the var_list."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.tensor_slice import shape_text
from torch_tfckpt.saveables.identity import Identity, identity_of
from torch_tfckpt.text import quoted


@dataclass(frozen=True, slots=True)
class ParameterNames:
    """Names of an optimizer's parameters.

    Attributes:
        groups: The names in each group; None for a parameter that cannot be in the checkpoint.
        module: Key of the one module of the var_list that has all of the parameters; names then do not begin with
            this key. None: there is no such module.
        modules: Keys of all modules of the var_list.
    """

    groups: Sequence[Sequence[str | None]]
    module: str | None = None
    modules: Sequence[str] = ()

    def flat(self) -> Iterator[str | None]:
        """Yield the name of each parameter, in the order of the optimizer's positions."""
        return (name for group in self.groups for name in group)

    def known(self) -> list[str]:
        """Return all names that are not None."""
        return [name for name in self.flat() if name is not None]

    def in_full(self) -> "ParameterNames":
        """Return the names with the key of the module in front: "<key of the module>/<name>"."""
        if self.module is None:
            return self
        full = [[None if name is None else name_in_full(self.module, name) for name in group] for group in self.groups]
        return ParameterNames(full, None, self.modules)


def name_in_full(module: str, name: str) -> str:
    """Return the key under which a Saver stores a parameter of the module that has the key `module`."""
    return f"{module}/{name}" if module else name


def has_groups(value: object) -> TypeGuard[torch.optim.Optimizer]:
    """Return whether a value is an optimizer with parameter groups, so that its state is stored by name."""
    return isinstance(value, torch.optim.Optimizer) and isinstance(getattr(value, "param_groups", None), list)


def parameter_names(
    optimizer: torch.optim.Optimizer,
    modules: Iterable[tuple[str, Mapping[Identity, str]]],
    tensors: Mapping[Identity, str],
) -> ParameterNames:
    """Return the names of an optimizer's parameters.

    Args:
        modules: Key of each module of the var_list, and names of its tensors.
        tensors: Keys of the tensors that are themselves values of the var_list.

    Returns:
        The names that the optimizer was built with (from named_parameters()); else the names in the state_dict of the
        one module that has all of its parameters; else "<key of the module>/<name>", or the tensor's own key.

    Raises:
        InvalidArgumentError: a parameter is not found (the message has its position and shape), or two parameters
            have the same name.
    """
    groups: list[list[torch.Tensor]] = [list(group["params"]) for group in optimizer.param_groups]
    names_of = dict(modules)
    wanted = {identity_of(parameter) for group in groups for parameter in group}
    module = next((key for key, names in names_of.items() if wanted <= names.keys()), None)
    if groups and all("param_names" in group for group in optimizer.param_groups):
        names = [list(group["param_names"]) for group in optimizer.param_groups]
    else:
        name_of = _names_by_identity(names_of, tensors) if module is None else names_of[module]
        names = [
            [_name(name_of, parameter, group, position) for position, parameter in enumerate(parameters)]
            for group, parameters in enumerate(groups)
        ]
    seen: set[str] = set()
    for name in (name for group in names for name in group):
        if name in seen:
            raise InvalidArgumentError(f"two parameters of the optimizer have the name {quoted(name)}. Rename one")
        seen.add(name)
    return ParameterNames(names, module, list(names_of))


def _names_by_identity(
    modules: Mapping[str, Mapping[Identity, str]], tensors: Mapping[Identity, str]
) -> Mapping[Identity, str]:
    found = dict(tensors)
    for key, names in reversed(list(modules.items())):  # the name from the first module that has the tensor is kept
        found.update({identity: name_in_full(key, name) for identity, name in names.items()})
    return found


def _name(name_of: Mapping[Identity, str], parameter: torch.Tensor, group: int, position: int) -> str:
    name = name_of.get(identity_of(parameter))
    if name is None:
        raise InvalidArgumentError(
            f"parameter {position} of param_groups[{group}], of shape {shape_text(parameter.shape)}, has no name: it "
            f"is neither in a module of var_list nor itself in var_list. Add its module to var_list, or build the "
            f"optimizer from model.named_parameters()"
        )
    return name
