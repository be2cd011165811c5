"""Apply stored hyperparameters to an optimizer whose parameter groups may differ from the stored ones.

Contract of `hyperparameters_of_groups`:

    same group       a group with the same parameters as a stored group gets all of its hyperparameters. Groups are
                     compared as sets; groups without parameters are matched in order
    split            several groups here were one stored group: a hyperparameter that has one value in all of them now
                     is taken from the file. If they have different values, for example of weight_decay, this is
                     assumed to be the reason for the split, and each group keeps its current value
    merged           one group here was several stored ones: a hyperparameter is restored if all have the same value
    new              a group with a parameter that is not stored keeps its current values: none are stored for it
    subset           a group with only some of the parameters of a stored group, because the others are frozen now, gets
                     the values of the stored group
    reported         each hyperparameter that keeps its current value although a different one is stored, and why
    otherwise        a hyperparameter that is not stored keeps its current value
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from torch_tfckpt.saveables.stateful import placed_like
from torch_tfckpt.text import listed

_PARAMETERS: Final = ("params", "param_names")
_LISTED: Final = 4  # maximum number of parameters in a message
_ABSENT: Final = object()

Group = Mapping[str, Any]


@dataclass(slots=True)
class PlannedGroups:
    """The hyperparameters of an optimizer's groups after a restore.

    Attributes:
        groups: One dict for each group, without parameters.
        used: Indices of the stored groups that share a parameter with one of these groups, or match an empty group.
        remarks: One line for each hyperparameter that keeps its current value although a different one is stored.
    """

    groups: list[dict[str, Any]]
    used: set[int] = field(default_factory=set)
    remarks: list[str] = field(default_factory=list)


def without_parameters(group: Group) -> dict[str, Any]:
    """Return the hyperparameters of a group."""
    return {key: value for key, value in group.items() if key not in _PARAMETERS}


def hyperparameters_of_groups(
    groups: Sequence[Group], names: Sequence[Sequence[str | None]], stored: Sequence[Group]
) -> PlannedGroups:
    """Return the hyperparameters for the groups of an optimizer, by the contract above.

    Args:
        names: The names of the parameters of each group; None for a parameter that cannot be in the file.
        stored: The stored groups; "params" has names.
    """
    own = [without_parameters(group) for group in groups]
    same = _same_groups(names, stored)
    origins = [
        {number} if (number := same.get(index)) is not None else _origins(members, stored)
        for index, members in enumerate(names)
    ]
    plan = PlannedGroups([], set().union(*origins))
    for index, hyperparameters in enumerate(own):
        if index in same:
            theirs = without_parameters(stored[same[index]])
            plan.groups.append({**hyperparameters, **placed_like(theirs, hyperparameters)})
            continue
        siblings = [own[other] for other, there in enumerate(origins) if there & origins[index]]
        parents = [without_parameters(stored[number]) for number in sorted(origins[index])]
        taken, kept = _agreed(hyperparameters, siblings, parents)
        if not set(names[index]) <= {name for number in origins[index] for name in stored[number]["params"]}:
            kept.update(dict.fromkeys(taken, "the group has parameters that are not stored"))
            taken = {}
        plan.groups.append({**hyperparameters, **placed_like(taken, hyperparameters)})
        for key, reason in kept.items():
            members = listed([name for name in names[index] if name is not None], _LISTED)
            plan.remarks.append(f"{key} of param_groups[{index}] ({members}) keeps its current value: {reason}")
    return plan


def _same_groups(names: Sequence[Sequence[str | None]], stored: Sequence[Group]) -> dict[int, int]:
    """Return index of a group -> index of the stored group with the same parameters."""
    waiting = {number: set(group["params"]) for number, group in enumerate(stored)}
    found: dict[int, int] = {}
    for index, members in enumerate(names):
        match = next((number for number, others in waiting.items() if others == set(members)), None)
        if match is not None:
            del waiting[match]
            found[index] = match
    return found


def _origins(members: Sequence[str | None], stored: Sequence[Group]) -> set[int]:
    return {number for number, group in enumerate(stored) if not set(members).isdisjoint(group["params"])}


def _agreed(own: Group, siblings: Sequence[Group], parents: Sequence[Group]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the stored values to use, and hyperparameter -> reason why a different stored value is not used."""
    taken: dict[str, Any] = {}
    kept: dict[str, str] = {}
    for key in dict.fromkeys(key for parent in parents for key in parent):
        values = [parent.get(key, _ABSENT) for parent in parents]
        present = own.get(key, _ABSENT)
        if all(_is_equal(value, present) for value in values):
            continue
        if not all(_is_equal(value, values[0]) for value in values):
            kept[key] = f"the stored groups have {', '.join(_shown(values))}"
        elif not all(_is_equal(other.get(key, _ABSENT), present) for other in siblings):
            here = ", ".join(_shown([other.get(key, _ABSENT) for other in siblings]))
            kept[key] = f"one stored group, with {_shown(values)[0]}, is several groups here, with {here}"
        else:
            taken[key] = values[0]
    return taken, kept


def _is_equal(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and bool((one.cpu() == other.cpu()).all())
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        tensor, value = (one, other) if isinstance(one, torch.Tensor) else (other, one)
        return isinstance(tensor, torch.Tensor) and not tensor.dim() and tensor.item() == value
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_is_equal, one, other))
    try:
        return bool(one == other)
    except (RuntimeError, TypeError, ValueError):  # arrays of several elements have no truth value
        return False


def _shown(values: Sequence[object]) -> list[str]:
    return list(dict.fromkeys("no value" if value is _ABSENT else str(value)[:40] for value in values))


def names_in(groups: Sequence[Group]) -> Iterator[str]:
    """Yield the names of all parameters of stored groups."""
    return (name for group in groups for name in group["params"])
