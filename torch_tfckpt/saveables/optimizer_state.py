"""Optimizer state for Savers: saved by the names of parameters, never by their positions.

    optimizer                            JSON: optimizer, param_shapes, param_groups, state
    optimizer/state/fc1.weight/exp_avg   tensors of the state

torch numbers parameters in the order in which they were passed to the optimizer. If the module or its grouping changes,
the numbers refer to other parameters, and one parameter would get the moments of another. Names do not change.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.tensor_slice import shape_text
from torch_tfckpt.saveables.identity import Identity, identity_of
from torch_tfckpt.saveables.stateful import placed_like
from torch_tfckpt.saveables.wrapped_parameters import with_names_here
from torch_tfckpt.text import counted, listed, quoted

_LISTED: Final = 8  # names that a message lists
_FIELDS: Final = ("optimizer", "param_shapes", "param_groups", "state", "other_state")
_HINT: Final = "Restore into an optimizer over the same parameters, or omit the optimizer"


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


class OptimizerState:
    """An optimizer's state_dict with names instead of positions. A `SaveableState`.

    Args:
        optimizer: Any torch.optim.Optimizer.
        names: Returns `parameter_names` of the optimizer at the time of the call.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, names: Callable[[], list[list[str]]]) -> None:
        self._optimizer = optimizer
        self.names = names

    def value(self) -> object:
        """Return the present state. Raises InvalidArgumentError as `parameter_names` does."""
        packed = self._optimizer.state_dict()
        names = self.names()
        flat = [name for group in names for name in group]
        state = {key: value for key, value in packed["state"].items() if isinstance(key, int)}
        return {
            "optimizer": type(self._optimizer).__name__,
            "param_shapes": {name: list(shape) for name, shape in self._shapes(names).items()},
            "param_groups": [
                {**_hyperparameters(group), "params": list(group_names)}
                for group, group_names in zip(packed["param_groups"], names, strict=True)
            ],
            "state": {flat[position]: value for position, value in state.items()},
            # Some optimizers also keep state that belongs to no parameter, such as a count of all steps.
            "other_state": {key: value for key, value in packed["state"].items() if not isinstance(key, int)},
            **{key: value for key, value in packed.items() if key not in _FIELDS},
        }

    def plan(self, stored: object) -> object:
        """Return the state_dict for this optimizer, in its own order of parameters and groups.

        A hyperparameter that is not stored, for example one added by a newer torch, keeps its present value.

        Raises:
            InvalidArgumentError: the stored value is not an optimizer's state; parameters, their shapes or their
                grouping differ; the stored optimizer is of another class, which lacks hyperparameters of this one.
        """
        names = self.names()
        stored = with_names_here(stored, [name for group in names for name in group])
        groups, state = _parts(stored)
        self._check_parameters(names, groups, stored)
        for name in state.keys() - {name for group in groups for name in group["params"]}:
            raise InvalidArgumentError(f"state is stored for {quoted(name)}, which is not in any of the param_groups")
        waiting = {index: set(group["params"]) for index, group in enumerate(groups)}
        here = [_hyperparameters(group) for group in self._optimizer.param_groups]
        planned: list[dict[str, object]] = []
        for index, (own, group_names) in enumerate(zip(here, names, strict=True)):
            match = next((number for number, members in waiting.items() if members == set(group_names)), None)
            if match is None or len(groups) != len(names):
                raise InvalidArgumentError(
                    f"the parameters are grouped differently: the checkpoint has {counted(len(groups), 'group')}, this "
                    f"optimizer has {len(names)}, and no stored group equals param_groups[{index}]: "
                    f"{listed(sorted(group_names), _LISTED)}. {_HINT}"
                )
            del waiting[match]
            self._check_kind(groups[match], stored)
            planned.append({**own, **placed_like(_hyperparameters(groups[match]), own)})
        position = {name: number for number, name in enumerate(name for group in names for name in group)}
        for group, group_names in zip(planned, names, strict=True):
            group["params"] = [position[name] for name in group_names]
        assert isinstance(stored, dict)
        others = {key: value for key, value in stored.items() if key not in _FIELDS}
        by_position = {position[name]: value for name, value in state.items()}
        return {**others, "state": {**stored.get("other_state", {}), **by_position}, "param_groups": planned}

    def load(self, planned: Any) -> None:
        """Call load_state_dict(), which moves state to the parameters' devices and casts it to their dtypes."""
        self._optimizer.load_state_dict(planned)

    def _shapes(self, names: list[list[str]]) -> dict[str, tuple[int, ...]]:
        pairs = zip(names, self._optimizer.param_groups, strict=True)
        return {
            name: tuple(parameter.shape)
            for group_names, group in pairs
            for name, parameter in zip(group_names, group["params"], strict=True)
        }

    def _check_parameters(self, names: list[list[str]], groups: list[dict[str, Any]], stored: object) -> None:
        """Raise InvalidArgumentError if the stored parameters differ from this optimizer's."""
        here = self._shapes(names)
        there = {name for group in groups for name in group["params"]}
        differences = []
        if there - here.keys():
            differences.append(f"Only in the checkpoint: {listed(sorted(there - here.keys()), _LISTED)}")
        if here.keys() - there:
            differences.append(f"Only in this optimizer: {listed(sorted(here.keys() - there), _LISTED)}")
        if differences:
            raise InvalidArgumentError(f"the optimizer's parameters differ. {'. '.join(differences)}. {_HINT}")
        shapes = stored.get("param_shapes") if isinstance(stored, dict) else None
        for name, shape in here.items():
            _check_shape(name, shape, shapes)

    def _check_kind(self, group: dict[str, Any], stored: object) -> None:
        """Raise InvalidArgumentError if the state belongs to a different algorithm."""
        here, there = type(self._optimizer).__name__, stored.get("optimizer") if isinstance(stored, dict) else None
        missing = self._optimizer.defaults.keys() - group.keys()
        if missing and here != there:
            lacking = listed(sorted(missing), _LISTED)
            raise InvalidArgumentError(
                f"the checkpoint has the state of {there}, which lacks {lacking} of this {here}. "
                f"Restore it into an optimizer of class {there}, or omit the optimizer"
            )


def plan_for_some(optimizer: torch.optim.Optimizer, name_of: Mapping[Identity, str], stored: object) -> dict[str, Any]:
    """Return a state_dict with stored state for those of the optimizer's parameters that are stored.

    Groups, hyperparameters, and the state of parameters that are not stored keep their present values.

    Args:
        name_of: Identity of a parameter -> its name in `stored`.

    Raises:
        InvalidArgumentError: the stored value is not an optimizer's state, or one of another class; a parameter has
            another shape.
    """
    _, state = _parts(stored)
    assert isinstance(stored, dict)
    here, there = type(optimizer).__name__, stored.get("optimizer")
    if here != there:
        raise InvalidArgumentError(
            f"the checkpoint has the state of {there}, but this optimizer is {here}. "
            f"Restore it into an optimizer of class {there}, or omit the optimizer"
        )
    packed = optimizer.state_dict()
    planned = dict(packed["state"])
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    for position, parameter in enumerate(parameters):
        name = name_of.get(identity_of(parameter))
        if name is not None and name in state:
            _check_shape(name, tuple(parameter.shape), stored.get("param_shapes"))
            planned[position] = state[name]
    return {**packed, "state": planned}


def stored_parameters(stored: object) -> set[str]:
    """Return the names of all parameters of a stored optimizer; InvalidArgumentError if it is not one."""
    return {name for group in _parts(stored)[0] for name in group["params"]}


def _check_shape(name: str, shape: tuple[int, ...], stored: object) -> None:
    if isinstance(stored, dict) and stored.get(name) != list(shape):
        raise InvalidArgumentError(
            f"the state of parameter {quoted(name)} was stored for shape {stored.get(name)}, but the parameter has "
            f"shape {list(shape)}"
        )


def _parts(stored: object) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the groups, and the state by name; InvalidArgumentError if `stored` has another form."""
    groups = stored.get("param_groups") if isinstance(stored, dict) else None
    state = stored.get("state") if isinstance(stored, dict) else None
    other = stored.get("other_state", {}) if isinstance(stored, dict) else None
    if (
        not isinstance(groups, list)
        or not all(isinstance(group, dict) and _are_names(group.get("params")) for group in groups)
        or not isinstance(state, dict)
        or not _are_names(list(state))
        or not isinstance(other, dict)
    ):
        raise InvalidArgumentError(f"the stored value is not the state of an optimizer, keyed by name. {_HINT}")
    return groups, state


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _hyperparameters(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters of a group, without its parameters and their names."""
    return {key: value for key, value in group.items() if key not in ("params", "param_names")}
