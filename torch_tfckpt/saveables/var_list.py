"""VarList: the values that a Saver saves, looked up again for every save and every restore."""

import logging
import reprlib
from collections.abc import Iterable
from dataclasses import replace
from enum import Enum

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from torch_tfckpt.bundle.index import key_of
from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.distributed.shards import refuse_sharded
from torch_tfckpt.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, error_context
from torch_tfckpt.saveables.identity import Identity, identity_of
from torch_tfckpt.saveables.load_report import LoadReport
from torch_tfckpt.saveables.module_state import Modules
from torch_tfckpt.saveables.named_values import named_values
from torch_tfckpt.saveables.nested_values import CONTAINERS, ItemValue, is_module_snapshot, is_saved, taken_apart
from torch_tfckpt.saveables.optimizer_names import ParameterNames, has_groups, parameter_names
from torch_tfckpt.saveables.optimizer_state import OptimizerState
from torch_tfckpt.saveables.plain_types import PLAIN_TYPES
from torch_tfckpt.saveables.save_spec import SaveableObject, refuse_sharded_values
from torch_tfckpt.saveables.state_tree import flatten
from torch_tfckpt.saveables.stateful import (
    ContainerState,
    ObjectState,
    SaveableState,
    is_stateful,
    state_to_restore,
    state_to_save,
)
from torch_tfckpt.saveables.tensor_saveable import VariableSaveable, VarListValue, saveables_of
from torch_tfckpt.saveables.variables import PartitionedVariable, Variable
from torch_tfckpt.text import quoted
from torch_tfckpt.transfer.collector import new_objects_only

_log = logging.getLogger(__name__)


class VarList:
    """The values to save and their names.

    Args:
        var_list: A dict name -> value; a Module, whose names get no prefix; an iterable of (name, value) pairs
            (consumed here); a list of Variables, SaveableObjects and PartitionedVariables. Values are tensors,
            Parameters, Variables, SaveableObjects, lists of slices, Modules, Optimizers, objects with state_dict and
            load_state_dict, plain dicts, lists, sets and deques, None, and dicts, lists and tuples of all these: see
            `nested_values`.
        sharded: Accept DTensors, of which this rank saves and restores its own part. The caller sees to it that all
            ranks save together.

    Raises:
        TypeError, ValueError, AttributeError: with TensorFlow's messages, as `named_values` and `saveables_of`; also
            if one object has two names, and for plain state that could only be pickled.
        InvalidArgumentError: an optimizer with a parameter that has no name; the state_dict() of an optimizer; a
            DTensor, unless `sharded`.

    Errors that no later change can resolve are raised by the constructor; tensors, parameters and state are looked up
    at each call. Saveables of tensors that are themselves values of the var_list are reused until the tensor's memory,
    shape, dtype or device changes.

    Thread safety: as for the objects in the var_list.
    """

    def __init__(self, var_list: object, *, sharded: bool = False) -> None:
        self._sharded = sharded
        self._saved: dict[str, VarListValue] = {}
        self._kept: dict[str, VariableSaveable] = {}
        self._in_order: list[SaveableObject] | None = None  # `_kept`, sorted, if there is nothing else to save
        self._states: dict[str, SaveableState] = {}
        self._off: list[str] = []  # names of values that are None
        modules: dict[str, nn.Module] = {}
        seen: set[Identity] = set()
        values = taken_apart(named_values(var_list))
        for name, value in sorted(values.items(), key=lambda item: key_of(item[0])):
            if is_saved(value):
                self._saved[name] = value
                continue
            if value is None:
                self._off.append(name)
                continue
            if identity_of(value) in seen:
                raise _two_names(name)
            seen.add(identity_of(value))
            if isinstance(value, nn.Module):
                modules[name] = value
            else:
                self._states[name] = self._state(name, value)
        self._modules = Modules(modules)
        self._check_now()

    def __len__(self) -> int:
        """Return the number of entries of the var_list; a module or an optimizer counts as one."""
        return len(self._saved) + len(self._states) + len(self._modules.keys)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to save."""
        return not self._saved and not self._states and self._modules.is_empty()

    @property
    def is_lazy(self) -> bool:
        """Whether a tensor of a module has no shape yet: nothing can be saved then, but everything can be restored."""
        return self._modules.is_lazy()

    def to_save(self, *, to_check: bool = False) -> list[SaveableObject]:
        """Return the current saveables, sorted by name; one per tensor, so that they can be grouped by device.

        Args:
            to_check: Omit the state of an optimizer whose state_dict() cannot be called now, such as one whose state is
                spread over ranks and gathered before each save. It can still be restored.

        Raises:
            ValueError: "The same saveable will be restored with two names": a tensor has two names in the var_list,
                or is a value and also part of a module; "At least two variables have the same name".
            TypeError: state that could only be pickled.
            InvalidArgumentError, UnimplementedError: a value that a checkpoint cannot store; an optimizer's parameter
                without a name.
            FailedPreconditionError: the state_dict() of an optimizer cannot be called now.
        """
        if (unchanged := self._unchanged()) is not None:
            return unchanged
        with new_objects_only(len(self._saved)):
            own = self._own_saveables()
        saveables = own + self._modules.to_save()
        for key, state in self._states.items():
            with error_context(f"state {quoted(key)}"):
                try:
                    saveables += state_to_save(key, state)
                except FailedPreconditionError:
                    if not to_check:
                        raise
        self._check_sharded(saveables)
        _check_names(saveables)
        with new_objects_only(len(saveables)):
            ordered = _in_order(saveables)
        # Modules, objects with state, and objects that list their own saveables may have more values at the next call.
        all_kept = len(self._kept) == len(self._saved) and not self._states and not self._modules.keys
        self._in_order = ordered if all_kept else None
        return list(ordered)

    def to_restore(
        self, reader: CheckpointReader, report: LoadReport | None = None, *, strict: bool = True
    ) -> list[SaveableObject]:
        """Return the saveables that restore from the checkpoint of `reader`, sorted by name. Nothing is changed yet.

        An object with state has one saveable, with a spec for its JSON and one for each tensor that the JSON names.

        Args:
            report: Records values that modules have no place for and, unless `strict`, state that cannot be restored.
            strict: Raise an error for state that cannot be restored.

        Raises:
            NotFoundError: "Key N not found in checkpoint", for state. Tensors are not looked up.
            DataLossError: stored state does not have the expected form.
            InvalidArgumentError: stored state does not fit the object, e.g. an optimizer with different parameters.
            ValueError, UnimplementedError: as `to_save`.

        Cost: reads the JSON of all state; at most one index entry per tensor.
        """
        report = LoadReport() if report is None else report
        for name in self._off:
            if name in reader:
                _log.warning("%s: %s is stored, but is None in var_list. It is not restored", reader.path, quoted(name))
        if (unchanged := self._unchanged()) is not None:
            return unchanged
        saveables = self._own_saveables() + self._modules.to_restore(reader, report, strict=strict)
        for key, state in self._states.items():
            try:
                saveables.append(state_to_restore(key, state, reader))
            except (NotFoundError, InvalidArgumentError) as error:
                if strict:
                    raise
                report.missing.append(key)
                report.remarks.append(str(error))
        self._check_sharded(saveables)
        return _in_order(saveables)

    def _check_sharded(self, saveables: list[SaveableObject]) -> None:
        if not self._sharded:
            refuse_sharded_values(saveables)

    def _unchanged(self) -> list[SaveableObject] | None:
        """Return the saveables of the last call if all of them are kept and current."""
        if self._in_order is not None and all(saveable.is_current() for saveable in self._kept.values()):
            return list(self._in_order)
        return None

    def _own_saveables(self) -> list[SaveableObject]:
        found: list[SaveableObject] = []
        for key, value in self._saved.items():
            kept = self._kept.pop(key, None)
            saveables = [kept] if kept is not None and kept.is_current() else saveables_of(key, value)
            if isinstance(value, torch.Tensor | Variable) and isinstance(saveables[0], VariableSaveable):
                self._kept[key] = saveables[0]
            found += saveables
        return found

    def _state(self, name: str, value: object) -> SaveableState:
        if has_groups(value):
            return OptimizerState(value, lambda: self._parameter_names(value), name)
        if is_stateful(value):
            return ObjectState(value)
        if isinstance(value, ItemValue):
            return value
        if isinstance(value, CONTAINERS):
            if is_module_snapshot(value):
                _log.warning(
                    "%s is the state_dict() of a module. It contains the module's current tensors, not tensors that "
                    "replace them later, for example in model.to(...). Pass the module itself",
                    quoted(name),
                )
            return ContainerState(value)
        raise _not_a_variable(name, value)

    def _parameter_names(self, optimizer: torch.optim.Optimizer) -> ParameterNames:
        tensors: dict[Identity, str] = {}
        for key, value in self._saved.items():
            parts = value if isinstance(value, list | tuple | PartitionedVariable) else [value]
            for part in parts:
                tensor = part.tensor if isinstance(part, Variable) else part
                if isinstance(tensor, torch.Tensor):
                    name = part.name if isinstance(part, Variable) and part is not value else key
                    tensors.setdefault(identity_of(tensor), name)
        names = parameter_names(optimizer, self._modules.names_of_tensors(), tensors)
        return replace(names, groups=self._modules.without_wrappers(optimizer, names.groups))

    def _check_now(self) -> None:
        """Raise the errors that every later save would raise. state_dict() is not called: it may be large."""
        if not any(isinstance(value, UninitializedParameter) for value in self._saved.values()):
            with new_objects_only(len(self._saved)):
                own = _in_order(self._own_saveables())
            self._check_sharded(own)
        for key, state in self._states.items():
            with error_context(f"state {quoted(key)}"):
                if isinstance(state, ContainerState | ItemValue):
                    flatten(state.value(), key)
                elif isinstance(state, OptimizerState):
                    names = state.names()  # raises if a parameter has no name
                    for name, parameter in [] if self._sharded else state.parameters(names):
                        refuse_sharded(name, parameter)


def _in_order(saveables: list[SaveableObject]) -> list[SaveableObject]:
    """Return the saveables sorted by name; ValueError if one object would be restored twice."""
    ordered = sorted(saveables, key=lambda saveable: key_of(saveable.name))
    seen: set[Identity] = set()
    for saveable in ordered:
        if saveable.op is None:
            continue
        identity = identity_of(saveable.op)
        if identity in seen:
            raise _two_names(saveable.name)
        seen.add(identity)
    return ordered


def _check_names(saveables: Iterable[SaveableObject]) -> None:
    """Raise ValueError if two values would be stored under one key."""
    specs = [spec for saveable in saveables for spec in saveable.specs]
    if len({spec.name for spec in specs}) == len(specs):
        return
    stored: dict[str, set[str]] = {}
    for spec in specs:
        parts = stored.setdefault(spec.name, set())
        if spec.slice_spec in parts or (parts and "" in (*parts, spec.slice_spec)):
            raise ValueError(
                f"At least two variables have the same name: {spec.name}. One of them may belong to a module or an "
                f"object with state, whose names begin with its key; rename that key"
            )
        parts.add(spec.slice_spec)


def _two_names(name: str) -> ValueError:
    return ValueError(
        f"The same saveable will be restored with two names: {name}. Omit one; for tensors that a module shares "
        f"between its parts, pass the module itself, which stores them once"
    )


def _not_a_variable(name: str, value: object) -> TypeError:
    hint = "Wrap it in an object with state_dict and load_state_dict, or subclass SaveableObject"
    if isinstance(value, int | float | complex | str | bytes | tuple | Enum | slice) or type(value) in PLAIN_TYPES:
        hint = (
            f"A Python {type(value).__name__} cannot change, so it could not be restored in place. Pass "
            f'torch.tensor(...), or a dict such as {{"step": 5}}, which is saved as JSON and restored in place'
        )
    elif type(value).__module__ == "numpy":
        hint = "Pass torch.from_numpy(array), which shares its memory with the array"
    return TypeError(
        f"names_to_saveables must be a dict mapping string names to Tensors/Variables. Not a variable: "
        f"{reprlib.repr(value)}, under {quoted(name)}. {hint}"
    )
