"""Optimizer state: saved by the names of parameters, never by their positions.

    optimizer                            JSON: see `optimizer_form`
    optimizer/state/fc1.weight/exp_avg   tensors of the state

torch numbers parameters in the order in which they were passed to the optimizer. If the module or its grouping changes,
the numbers refer to other parameters, and one parameter would get the moments of another. Names do not change.

Contract of a restore:

    state            restored bit for bit, for each parameter that is in the file and in the optimizer (see
                     `optimizer_loading`)
    hyperparameters  restored by group (see `optimizer_groups`)
    file only        the state is kept, and restored when `add_param_group` adds the parameter (see `late_parameters`);
                     until then, it is saved with the other parameters' state, as separate groups
    optimizer only   the parameter keeps its current state
    refused          hyperparameters of a different algorithm; a parameter with a different shape; no parameter in
                     common
    reported         every other difference, by a warning in the log, even a different class of optimizer

An optimizer whose state_dict has a custom structure, such as a Lookahead, is saved and restored in this structure,
under "own_form". The structure refers to parameters by their positions, so the restore requires the same parameters in
the same order. A wrapper such as SAM, whose state_dict lacks the state of the optimizer that it wraps, is saved with
that optimizer's state, under "wrapped".
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch.nn.parameter import is_lazy

from torch_tfckpt.errors import FailedPreconditionError, InvalidArgumentError
from torch_tfckpt.saveables.identity import identity_of
from torch_tfckpt.saveables.late_parameters import LateParameters, forget_late_parameters, with_late_state
from torch_tfckpt.saveables.optimizer_form import (
    FIELDS,
    HINT,
    MODULE,
    OWN_FORM,
    WRAPPED,
    as_dtype_of,
    by_name,
    check_class,
    check_hyperparameters,
    groups_and_state,
    properties_of,
)
from torch_tfckpt.saveables.optimizer_groups import hyperparameters_of_groups, names_in
from torch_tfckpt.saveables.optimizer_loading import hidden_optimizers, load_exactly, optimizer_at
from torch_tfckpt.saveables.optimizer_names import ParameterNames
from torch_tfckpt.saveables.optimizer_renaming import in_one_form, names_after, with_names_here
from torch_tfckpt.saveables.spread_state import Layouts, layouts_like, layouts_of_slots, spread_like
from torch_tfckpt.text import counted, first_lines, listed, quoted

_LISTED: Final = 8  # maximum number of names in a message
_LINES: Final = 20  # maximum number of remarks in a warning

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class PlannedOptimizer:
    """The planned restore of an optimizer.

    Attributes:
        state_dict: The argument for load_state_dict.
        remarks: One line for each difference between the stored optimizer and this one.
        late: Names of the stored parameters that this optimizer does not have.
        stored: The stored value.
        wrapped: The planned restores of the optimizers in its attributes.
    """

    state_dict: dict[str, Any]
    remarks: list[str] = field(default_factory=list)
    late: set[str] = field(default_factory=set)
    stored: dict[str, Any] = field(default_factory=dict)
    wrapped: "list[tuple[OptimizerState, PlannedOptimizer]]" = field(default_factory=list)

    def rename(self, here: ParameterNames) -> ParameterNames:
        """Use the parameters' current names (see `optimizer_renaming`), and return them, in full if needed."""
        stored, here = in_one_form(self.stored, here)
        stored = with_names_here(stored, here.known())
        assert isinstance(stored, dict), "planned from a dict"
        late = names_after(self.late, self.stored, stored)
        self.late.clear()
        self.late.update(late)
        self.stored = stored
        return here


class OptimizerState:
    """An optimizer's state_dict with names instead of positions. A `SaveableState`, by the contract of this module.

    Args:
        optimizer: Any torch.optim.Optimizer.
        names: Returns the names of the optimizer's parameters at the time of the call. `value` requires that each
            parameter has one.
        place: Name for the log.
        later_names: Used in place of `names` when parameters are added after a restore; default: `names`.
        when_added: Called with the names of the added parameters once their state is restored.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        names: Callable[[], ParameterNames],
        place: str = "optimizer",
        *,
        later_names: Callable[[], ParameterNames] | None = None,
        when_added: Callable[[set[str]], object] | None = None,
    ) -> None:
        self._optimizer = optimizer
        self.names = names
        self._place = place
        self._later_names = later_names or names
        self._when_added = when_added

    def value(self) -> object:
        """Return the current state.

        Raises:
            InvalidArgumentError: as `parameter_names`.
            FailedPreconditionError: the optimizer's state_dict() cannot be called now.
        """
        packed = self._packed()
        here = self.names()
        names = [[_known(name) for name in group] for group in here.groups]
        parameters = {name: (each.shape, each.dtype) for name, each in self.parameters(here)}
        common: dict[str, Any] = {"optimizer": type(self._optimizer).__name__, **properties_of(parameters)}
        if here.module is not None:
            common[MODULE] = here.module
        hidden = hidden_optimizers(self._optimizer, packed)
        wrapped = {name: self._of_wrapped(each).value() for name, each in hidden.items()}
        if wrapped:
            common[WRAPPED] = wrapped
        if not self._is_usual(packed):
            groups = [{"params": list(group)} for group in names]
            return {**common, "param_groups": groups, "state": {}, OWN_FORM: packed}
        return with_late_state(self._optimizer, {**common, **by_name(packed, names)})

    def plan(self, stored: object) -> PlannedOptimizer:
        """Plan the restore, for this optimizer's own order of parameters and groups.

        A hyperparameter that is not stored, for example one added by a newer torch, keeps its current value.

        Raises:
            InvalidArgumentError: the stored value is not an optimizer's state; it has no parameter in common with this
                optimizer; a parameter has a different shape; the stored optimizer is of a different class.
        """
        stored, names = in_one_form(stored, self.names())
        stored = with_names_here(stored, names.known())
        groups, state = groups_and_state(stored)
        assert isinstance(stored, dict)
        there = set(names_in(groups))
        for name in state.keys() - there:
            raise InvalidArgumentError(f"state is stored for {quoted(name)}, which is not in any of the param_groups")
        here = dict(self.parameters(names))
        self._check_form(stored)
        if OWN_FORM in stored:
            return self._plan_own_form(stored, groups, names)
        self._check_parameters(here, there, stored)
        planned = hyperparameters_of_groups(self._optimizer.param_groups, names.groups, groups)
        for number in planned.used:
            check_hyperparameters(self._optimizer, groups[number], stored)
        remarks = _differences(here.keys(), there, sum(name is None for name in names.flat()))
        module = stored.get(MODULE)
        if module is not None and names.module is not None and names.module != module:
            remarks.append(
                f"the state was saved for the parameters of {quoted(str(module))}, and is restored for those of "
                f"{quoted(names.module)} that have the same names"
            )
        kind = type(self._optimizer).__name__
        if stored.get("optimizer", kind) != kind:
            remarks.append(f"this {kind} gets the state and the hyperparameters of {stored['optimizer']}")
        position = {name: number for number, name in enumerate(names.flat())}
        present = self._state_of_new(here.keys() - there, position)
        for name in [name for name in here if name in state]:
            present[position[name]] = as_dtype_of(here[name], state[name], name, stored, remarks)
        by_position = dict(sorted(present.items()))
        first = 0
        for group, group_names in zip(planned.groups, names.groups, strict=True):
            group["params"] = list(range(first, first + len(group_names)))
            first += len(group_names)
        others = {key: value for key, value in stored.items() if key not in FIELDS}
        state_dict = {
            **others, "state": {**stored.get("other_state", {}), **by_position}, "param_groups": planned.groups
        }  # fmt: skip
        wrapped = self._plan_wrapped(stored.get(WRAPPED, {}))
        return PlannedOptimizer(state_dict, remarks + planned.remarks, there - here.keys(), stored, wrapped)

    def layouts(self, stored: object) -> Layouts:
        """Return how the stored tensors are to be spread over ranks. Raises like `plan`."""
        stored, names = in_one_form(stored, self.names())
        stored = with_names_here(stored, names.known())
        assert isinstance(stored, dict), "planned before"
        found: dict[int, Any] = {}
        if OWN_FORM in stored:
            found.update(layouts_like(stored[OWN_FORM], self._packed()))
        state = groups_and_state(stored)[1]
        for name, parameter in self.parameters(names):
            if name in state:
                found.update(layouts_of_slots(parameter, state[name], self._optimizer.state.get(parameter)))
        for inner, value in stored.get(WRAPPED, {}).items():
            if (here := optimizer_at(self._optimizer, inner)) is not None:
                found.update(self._of_wrapped(here).layouts(value))
        return found

    def load(self, planned: PlannedOptimizer) -> None:
        """Restore the state, and log what differs. Raises any error of the optimizer's load_state_dict."""
        forget_late_parameters(self._optimizer)
        remarks = [*planned.remarks, *load_exactly(self._optimizer, planned.state_dict)]
        for state, of_wrapped in planned.wrapped:
            shares_groups = state._optimizer.param_groups is self._optimizer.param_groups
            state.load(of_wrapped)
            if shares_groups:
                state._optimizer.param_groups = self._optimizer.param_groups
        if planned.late:
            LateParameters(
                self._optimizer,
                planned.late,
                restore=lambda: self._add_late(planned),
                state=lambda: (planned.stored, planned.late),
            ).wait()
        if remarks:
            _log.warning("%s: %s", self._place, "\n".join(first_lines(remarks, _LINES)))

    def _add_late(self, planned: PlannedOptimizer) -> set[str]:
        """Restore the state of parameters that were added after the restore. Return their names."""
        try:
            names = self._later_names()
        except InvalidArgumentError as error:
            _log.warning(
                "%s: the state of %s is not restored yet: %s",
                self._place,
                counted(len(planned.late), "parameter"),
                error,
            )
            return set()
        names = planned.rename(names)
        groups, state = groups_and_state(planned.stored)
        of_late = [{**group, "params": [name for name in group["params"] if name in planned.late]} for group in groups]
        new = planned.late.intersection(names.known())
        if not new:
            return set()
        here = dict(self.parameters(names))
        for name in new:
            _check_shape(name, tuple(here[name].shape), planned.stored.get("param_shapes"))
        own = self._optimizer.param_groups
        packed = self._packed()
        remarks: list[str] = []
        first = 0
        for index, group_names in enumerate(names.groups):
            positions = list(range(first, first + len(group_names)))
            first += len(group_names)
            if set(group_names) <= new:
                taken = hyperparameters_of_groups([own[index]], [group_names], of_late)
                remarks += taken.remarks
                packed["param_groups"][index] = {**taken.groups[0], "params": positions}
            for position, late in zip(positions, group_names, strict=True):
                if late in new and late in state:
                    kept = spread_like(here[late], late, state[late])
                    packed["state"][position] = as_dtype_of(here[late], kept, late, planned.stored, remarks)
        remarks += load_exactly(self._optimizer, packed)
        # The caller of add_param_group may keep its dict, and change it later.
        for old, loaded in zip(own, list(self._optimizer.param_groups), strict=True):
            old.clear()
            old.update(loaded)
        self._optimizer.param_groups[:] = own
        if remarks:
            _log.warning("%s: %s", self._place, "\n".join(first_lines(remarks, _LINES)))
        planned.late -= new
        if self._when_added is not None:
            self._when_added(new)
        return new

    def _packed(self) -> dict[str, Any]:
        try:
            packed: dict[str, Any] = self._optimizer.state_dict()
        except (RuntimeError, NotImplementedError) as error:
            raise FailedPreconditionError(
                f"state_dict() of this {type(self._optimizer).__name__} raised {type(error).__name__}: "
                f"{str(error).rstrip('.')}. If its state is spread over ranks, gather it before each save, for "
                f"example with consolidate_state_dict()"
            ) from error
        return packed

    def _is_usual(self, packed: object) -> bool:
        """Return whether a state_dict has torch's usual structure: state and groups, by parameter position."""
        if not isinstance(packed, dict) or not isinstance(packed.get("state"), dict):
            return False
        groups = packed.get("param_groups")
        sizes = [len(group["params"]) for group in self._optimizer.param_groups]
        return isinstance(groups, list) and [_size(group) for group in groups] == sizes

    def _of_wrapped(self, wrapped: torch.optim.Optimizer) -> "OptimizerState":
        def names() -> ParameterNames:
            here = self.names()
            name_of = {identity_of(parameter): name for name, parameter in self.parameters(here)}
            groups = [[name_of.get(identity_of(each)) for each in group["params"]] for group in wrapped.param_groups]
            return replace(here, groups=groups)

        return OptimizerState(wrapped, names, f"{self._place}: the {type(wrapped).__name__} in it")

    def _plan_wrapped(self, stored: object) -> "list[tuple[OptimizerState, PlannedOptimizer]]":
        found = []
        for name, value in stored.items() if isinstance(stored, dict) else ():
            here = optimizer_at(self._optimizer, str(name))
            if here is None:
                raise InvalidArgumentError(
                    f"the checkpoint has the state of an optimizer in the attribute {quoted(str(name))} of "
                    f"this {type(self._optimizer).__name__}, which has no such optimizer. {HINT}"
                )
            state = self._of_wrapped(here)
            found.append((state, state.plan(value)))
        return found

    def _plan_own_form(
        self, stored: dict[str, Any], groups: list[dict[str, Any]], names: ParameterNames
    ) -> PlannedOptimizer:
        check_class(self._optimizer, stored)
        order = [list(group["params"]) for group in groups]
        if order != list(map(list, names.groups)):
            raise InvalidArgumentError(
                f"the state of this {type(self._optimizer).__name__} refers to parameters by their positions, but the "
                f"parameters differ: the checkpoint has {listed(list(names_in(groups)), _LISTED)}, in "
                f"{counted(len(order), 'group')}. {HINT}, in the same order"
            )
        if not isinstance(stored[OWN_FORM], dict):
            raise InvalidArgumentError(
                f"the stored state of this {type(self._optimizer).__name__} is not a dict. {HINT}"
            )
        wrapped = self._plan_wrapped(stored.get(WRAPPED, {}))
        return PlannedOptimizer(stored[OWN_FORM], stored=stored, wrapped=wrapped)

    def parameters(self, names: ParameterNames) -> Iterable[tuple[str, torch.Tensor]]:
        """Return name and tensor of each parameter that has a name."""
        pairs = zip(names.groups, self._optimizer.param_groups, strict=True)
        return [
            (name, parameter)
            for group_names, group in pairs
            for name, parameter in zip(group_names, group["params"], strict=True)
            if name is not None
        ]

    def _state_of_new(self, names: Iterable[str], position: Mapping[str | None, int]) -> dict[int, Any]:
        """Return the current state of parameters that are not stored, by position."""
        new = {position[name] for name in names} | ({position[None]} if None in position else set())
        if not new:
            return {}
        present = self._packed()["state"]
        total = sum(len(group["params"]) for group in self._optimizer.param_groups)
        known = {number for name, number in position.items() if name is not None} - new
        return {number: present[number] for number in range(total) if number not in known and number in present}

    def _check_parameters(self, here: Mapping[str, torch.Tensor], there: set[str], stored: dict[str, Any]) -> None:
        """Raise InvalidArgumentError if the state cannot belong to this optimizer's parameters."""
        if here.keys() != there:
            check_class(self._optimizer, stored)
            if there and here and there.isdisjoint(here):
                raise InvalidArgumentError(
                    f"the optimizer's parameters differ. Only in the checkpoint: {listed(sorted(there), _LISTED)}. "
                    f"Only in this optimizer: {listed(sorted(here), _LISTED)}. {HINT}"
                )
        elif isinstance(self._optimizer, torch.optim.LBFGS) and list(here) != list(names_in(stored["param_groups"])):
            raise InvalidArgumentError(
                f"the state of LBFGS depends on the order of the parameters, which was "
                f"{listed(list(names_in(stored['param_groups'])), _LISTED)}. {HINT}, in the same order"
            )
        for name in there & here.keys():
            if is_lazy(here[name]):
                raise InvalidArgumentError(
                    f"the parameter {quoted(name)} is not initialised yet, so its optimizer cannot be restored. Run "
                    f"the module once first, or restore the module before the optimizer"
                )
            _check_shape(name, tuple(here[name].shape), stored.get("param_shapes"))

    def _check_form(self, stored: dict[str, Any]) -> None:
        """Raise InvalidArgumentError if load_state_dict expects a structure other than the stored one."""
        own_form = False
        if type(self._optimizer).state_dict is not torch.optim.Optimizer.state_dict:
            try:
                own_form = not self._is_usual(self._packed())
            except FailedPreconditionError:  # its state_dict() cannot be called now
                return
        if own_form != (OWN_FORM in stored):
            check_class(self._optimizer, stored)
            raise InvalidArgumentError(
                f"the state_dict of this {type(self._optimizer).__name__} had a different structure when it was saved. "
                f"Restore it with the version of the class that saved it, or omit the optimizer"
            )


def stored_parameters(stored: object) -> set[str]:
    """Return all parameter names of a stored optimizer; InvalidArgumentError if it is not an optimizer."""
    return set(names_in(groups_and_state(stored)[0]))


def _check_shape(name: str, shape: tuple[int, ...], stored: object) -> None:
    if isinstance(stored, dict) and stored.get(name) != list(shape):
        raise InvalidArgumentError(
            f"the state of parameter {quoted(name)} was stored for shape {stored.get(name)}, but the parameter has "
            f"shape {list(shape)}"
        )


def _differences(here: Set[str], there: Set[str], unknown: int) -> list[str]:
    """Return a line for each way in which the parameters differ.

    Args:
        unknown: Number of parameters of this optimizer that cannot be in the file.
    """
    if here == there and not unknown:
        return []
    both = counted(len(there & here), "common parameter")
    lines = [f"the stored optimizer has different parameters. The state of the {both} is restored"]
    if there - here:
        names = listed(sorted(there - here), _LISTED)
        lines += [f"only in the checkpoint: {names}. Their state is restored when add_param_group adds them"]
    if here - there:
        lines += [f"only in this optimizer: {listed(sorted(here - there), _LISTED)}. They keep their current state"]
    if unknown:
        lines += [f"{counted(unknown, 'parameter')} of this optimizer are not in the checkpoint, and keep their state"]
    return lines


def _known(name: str | None) -> str:
    if name is None:
        raise InvalidArgumentError(
            "an optimizer in an attribute of this optimizer has a parameter that this optimizer does not have, so its "
            "state cannot be stored. Pass the inner optimizer itself"
        )
    return name


def _size(group: object) -> int | None:
    positions = group.get("params") if isinstance(group, dict) else None
    return len(positions) if isinstance(positions, list) else None
