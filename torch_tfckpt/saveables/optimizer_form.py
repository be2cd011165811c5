"""The form in which the state of an optimizer is stored: its state_dict with names instead of positions.

module_key     key of the module whose state_dict has these names. If it is absent, a name is the key under which the
               parameter itself is stored, or the name that the optimizer was built with
optimizer      name of its class; absent if it is unknown, as in a state_dict that `convert` read from a .pt file
param_shapes   name of each parameter -> its shape
param_dtypes   name -> dtype, for parameters that are not float32
param_groups   hyperparameters of each group; "params" has the names
state          name -> state
other_state    state that belongs to no parameter, such as a count of all steps
others         further entries of the state_dict
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.saveables.optimizer_groups import without_parameters
from torch_tfckpt.text import listed, quoted

OWN_FORM: Final = "own_form"
MODULE: Final = "module_key"
WRAPPED: Final = "wrapped"
HINT: Final = "Restore into an optimizer over the same parameters, or omit the optimizer"
FIELDS: Final = (
    "optimizer", MODULE, "param_shapes", "param_dtypes", "param_groups", "state", "other_state", OWN_FORM, WRAPPED
)  # fmt: skip
# Hyperparameters that newer versions of torch have added to existing classes, with a default that changes nothing.
_ADDED_LATER: Final = frozenset(
    {"maximize", "foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay"}
)


def properties_of(parameters: Mapping[str, tuple[Sequence[int], torch.dtype]]) -> dict[str, Any]:
    """Return the entries with the shapes and dtypes of all parameters, given as name -> (shape, dtype)."""
    dtypes = {name: str(dtype).removeprefix("torch.") for name, (_, dtype) in parameters.items()}
    return {
        "param_shapes": {name: list(shape) for name, (shape, _) in parameters.items()},
        "param_dtypes": {name: dtype for name, dtype in dtypes.items() if dtype != "float32"},
    }


def by_name(packed: Mapping[str, Any], names: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return the groups, state and all further entries, from a state_dict and the names in each group."""
    flat = [name for group in names for name in group]
    state = {key: value for key, value in packed["state"].items() if isinstance(key, int)}
    return {
        "param_groups": [
            {**without_parameters(group), "params": list(group_names)}
            for group, group_names in zip(packed["param_groups"], names, strict=True)
        ],
        "state": {flat[position]: value for position, value in state.items()},
        "other_state": {key: value for key, value in packed["state"].items() if not isinstance(key, int)},
        **{key: value for key, value in packed.items() if key not in FIELDS},
    }


def check_class(optimizer: torch.optim.Optimizer, stored: Mapping[str, Any]) -> None:
    """Raise InvalidArgumentError if the state is known to be from a different class of optimizer."""
    here, there = type(optimizer).__name__, stored.get("optimizer", type(optimizer).__name__)
    if here != there:
        raise InvalidArgumentError(
            f"the checkpoint has the state of {there}, but this optimizer is {here}. "
            f"Restore it into an optimizer of class {there}, or omit the optimizer"
        )


def check_hyperparameters(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], stored: Mapping[str, Any]
) -> None:
    """Raise InvalidArgumentError if the hyperparameters of a stored group are for a different algorithm."""
    here, there = type(optimizer).__name__, stored.get("optimizer")
    missing = getattr(optimizer, "defaults", {}).keys() - group.keys()
    if there is None:
        missing -= _ADDED_LATER
    if missing and here != there:
        lacking = listed(sorted(missing), len(missing))
        kind = "an optimizer of a different class" if there is None else there
        fix = "the class that saved it" if there is None else f"an optimizer of class {there}"
        raise InvalidArgumentError(
            f"the checkpoint has the state of {kind}, which lacks hyperparameters of this {here}: {lacking}. "
            f"Restore it into {fix}, or omit the optimizer"
        )


def groups_and_state(stored: object) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the groups, and the state by name; InvalidArgumentError if `stored` has a different form."""
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
        raise InvalidArgumentError(f"the stored value is not the state of an optimizer, keyed by name. {HINT}")
    return groups, state


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def as_dtype_of(
    parameter: torch.Tensor, state: object, name: str, stored: Mapping[str, Any], remarks: list[str]
) -> object:
    """Return the state for a parameter that may have had a different dtype when it was saved.

    Tensors that have the parameter's old dtype are cast to its current one, as torch requires of moments; others are
    not changed.
    """
    dtypes = stored.get("param_dtypes")
    if not isinstance(dtypes, dict):
        return state
    here, there = str(parameter.dtype).removeprefix("torch."), dtypes.get(name, "float32")
    if here == there or not isinstance(state, dict):
        return state
    remarks.append(f"{quoted(name)} was {there} and is {here}: state of the old dtype is converted")
    return {
        key: value.to(parameter.dtype)
        if isinstance(value, torch.Tensor) and str(value.dtype).removeprefix("torch.") == there and key != "step"
        else value
        for key, value in state.items()
    }
