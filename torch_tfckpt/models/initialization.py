"""init_from_checkpoint: variables of a model take values of a checkpoint, by a map from its names to theirs.

    init_from_checkpoint(model, "bert/model.ckpt", {
        "bert/encoder/": "encoder.",                                   # all that lies under model.encoder
        "bert/embeddings/word_embeddings": model.embeddings.weight,    # one tensor into one parameter
    })

Source: tensorflow/python/training/checkpoint_utils.py (init_from_checkpoint); spec: SAVER 8.
"""

import logging
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from operator import itemgetter
from typing import Final, TypeGuard

import torch
from torch import nn

from torch_tfckpt.checkpoint_reader import AnyPath, CheckpointReader
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.object_graph import VARIABLE_VALUE, checkpoint_key
from torch_tfckpt.format.tensor_slice import shape_text
from torch_tfckpt.save_restore.builder import BulkSaverBuilder
from torch_tfckpt.save_restore.restore import restore_saveables
from torch_tfckpt.saveables.identity import Identity, identity_of
from torch_tfckpt.saveables.module_tensors import group_shared, module_tensors
from torch_tfckpt.saveables.named_values import named_values
from torch_tfckpt.saveables.tensor_saveable import VariableSaveable, saveables_of
from torch_tfckpt.saveables.variables import PartitionedVariable, Variable
from torch_tfckpt.text import did_you_mean, escaped, listed, quoted

Assignable = torch.Tensor | Variable | PartitionedVariable | Sequence[Variable]
AssignmentMap = Mapping[str, str | Assignable] | Iterable[tuple[str, str | Assignable]]

_ROOT: Final = "/"  # the scope of all names, on either side of a map
_SCOPE_ENDS: Final = ("/", ".")  # the other is how names of modules, and of checkpoints of them, are divided

_log = logging.getLogger(__name__)


def init_from_checkpoint(model: object, path: AnyPath, assignment_map: AssignmentMap) -> dict[str, str]:
    """Fill variables of `model` from a checkpoint, in place; those that the map does not name stay as they are.

    Args:
        model: Where the map's names are looked up: a Module, by the names of its state_dict; a dict name -> tensor,
            Variable, PartitionedVariable, list of Variables that are slices, or Module; or what else Saver takes as
            var_list, without state such as an optimizer's.
        path: Any spelling that CheckpointReader takes.
        assignment_map: A dict, or pairs where one stored tensor goes into several variables, of
            "scope/" -> "other_scope/": each variable below `other_scope` takes the tensor of that name below `scope`.
                "/" is the root: all variables, or names without a scope. "scope." is one as well.
            "name" -> name of a variable, or the tensor, Parameter, Variable, PartitionedVariable or list of slices
                itself, which need not be in `model`. A part takes its part of the stored tensor.
            Names of the checkpoint are verbatim. In names of a Module's tensors "/" and "." mean the same: "encoder/"
            and "encoder." both are the scope of model.encoder, below which "layer.0.weight" takes the stored tensor
            "layer.0.weight" or else "layer/0/weight". Of object-based checkpoints names are keys, or else paths of
            objects ("model/kernel") or names that variables had ("dense/kernel"), where only one variable has them.

    Returns:
        Name in `model` -> key in the checkpoint, of what was filled. A shared tensor stands under all its names.

    Raises:
        InvalidArgumentError: a tensor is not in the checkpoint; a name is that of no variable; a scope is mapped to no
            scope; shape or dtype differs; a variable would get two tensors; a parameter has no shape or memory yet.
        ValueError: a list whose elements are not slices of one tensor.
        TypeError: the map, or `model`, is of another form.
        NotFoundError, DataLossError: there is no checkpoint; a value is damaged.

    Whatever is raised, nothing was assigned. Layouts are not changed: a Keras Dense kernel is [in, out]. A scope that
    holds no variable is a logged warning and no error, since TensorFlow passes over it; what was filled is logged at
    INFO. TensorFlow lets the last of two tensors win, takes a scope without its "/" for another one, and through a
    scope gives a variable the shape that is stored; these are errors here.

    Cost: one read of the tensors, of a partitioned one up to one for each part; host memory of all of them.
    """
    pairs = _pairs(assignment_map)
    variables = _Variables(model)
    with CheckpointReader(path) as reader:
        stored = _CheckpointNames(reader)
        plan = [each for name, target in pairs for each in _assignments(name, target, variables, stored)]
        _check_once(plan)
        for each in plan:
            _check_shape(reader, each)
        try:
            restore_saveables(BulkSaverBuilder(), reader, [part for each in plan for part in each.parts])
        except InvalidArgumentError as error:
            raise InvalidArgumentError(
                f"init_from_checkpoint from {reader.path}: {str(error).rstrip('.')}. Nothing was assigned; `tfckpt ls` "
                f"shows the stored dtypes and shapes"
            ) from error
        for each in plan:
            _log.info("%s: %s initialised from %s", reader.path, quoted(each.label), quoted(each.key))
    return {name: each.key for each in plan for part in each.parts for name in variables.names_of(part.tensor)}


@dataclass(frozen=True, slots=True)
class _Assignment:
    """One stored tensor on its way into one variable."""

    key: str
    label: str  # how texts call the variable
    parts: tuple[VariableSaveable, ...]  # one, unless it is partitioned


@dataclass(frozen=True, slots=True)
class _Named:
    """A variable of the model."""

    names: tuple[str, ...]  # several where a module shares it between its parts
    value: Assignable
    of_module: bool

    def below(self, scope: str) -> list[str]:
        """What the checkpoint may call it below a scope that this one is mapped from; empty where it lies elsewhere."""
        start = "" if scope == _ROOT else scope
        if not self.of_module:
            return [name[len(start) :] for name in self.names if name.startswith(start)]
        rests = [name[len(start) :] for name in self.names if _slashed(name).startswith(_slashed(start))]
        return rests + [_slashed(rest) for rest in rests]


class _Variables:
    """The variables of a model under their names."""

    def __init__(self, model: object) -> None:
        self._all = sorted(_variables_of(model), key=lambda each: each.names)
        self._by_name = {name: each for each in self._all for name in each.names}
        self._by_path = {_slashed(name): each for name, each in self._by_name.items() if each.of_module}

    def named(self, name: str) -> _Named | None:
        """The variable of that name."""
        return self._by_name.get(name) or self._by_path.get(_slashed(name))

    def below(self, scope: str) -> Iterator[tuple[_Named, list[str]]]:
        """The variables in a scope, sorted, each with what `_Named.below` says of it."""
        for each in self._all:
            rests = each.below(scope)
            if rests:
                yield each, rests

    def names_of(self, tensor: torch.Tensor) -> list[str]:
        """All names of a tensor, or of that which it is a part of; empty of one that is not in the model."""
        return self._names_of_tensors.get(identity_of(tensor), [])

    def closest(self, name: str) -> str:
        """A hint for a name that is none."""
        return did_you_mean(name, self._by_name) or did_you_mean(_slashed(name), self._by_path)

    def closest_scope(self, scope: str) -> str:
        """A hint for a scope that holds nothing."""
        return did_you_mean(scope, {name[: end.end()] for name in self._by_name for end in re.finditer("[./]", name)})

    @cached_property
    def _names_of_tensors(self) -> dict[Identity, list[str]]:
        found: dict[Identity, list[str]] = {}
        for each in self._all:
            for tensor in _tensors_in(each.value):
                found.setdefault(identity_of(tensor), []).extend(each.names)
        return found


class _CheckpointNames:
    """The names by which a map may refer to the tensors of a checkpoint."""

    def __init__(self, reader: CheckpointReader) -> None:
        self._reader = reader

    def key(self, name: str) -> str | None:
        """The key that a name means; None where it means nothing."""
        if name in self._reader:
            return name
        keys = self._keys_of_objects.get(name, [])
        if len(keys) > 1:
            raise InvalidArgumentError(
                f"{self._reader.path}: {len(keys)} variables are called {quoted(name)}. Map their keys instead: "
                f"{listed(keys, 10)}"
            )
        return keys[0] if keys else None

    def not_found(self, name: str, within: str = "", others: int = 0) -> InvalidArgumentError:
        """The error in TensorFlow's words; `within`, as "z in a/", where a scope was mapped."""
        where = f" ({escaped(within)})" if within else ""
        more = f" Nor are {others} others of that scope." if others else ""
        hint = did_you_mean(name, chain(self._reader.keys(), self._keys_of_objects))
        if name.endswith(_SCOPE_ENDS):
            hint = "A scope is mapped to a scope: 'scope/': 'other_scope/'."
        text = f"Tensor {escaped(name)}{where} is not found in {self._reader.path} checkpoint.{more} {hint}"
        return InvalidArgumentError(f"{text.rstrip()} `tfckpt ls` lists all {len(self._reader)} that are")

    @cached_property
    def _keys_of_objects(self) -> dict[str, list[str]]:
        """Paths of objects, and names that variables had, -> keys of their values."""
        graph = self._reader.object_graph
        found: dict[str, list[str]] = {}
        for variable in graph.variables() if graph is not None else ():
            path = variable.checkpoint_key.removesuffix(checkpoint_key("", VARIABLE_VALUE))
            for name in dict.fromkeys((path, variable.full_name)):
                found.setdefault(name, []).append(variable.checkpoint_key)
        found.pop("", None)
        return found


def _pairs(assignment_map: AssignmentMap) -> list[tuple[str, object]]:
    """Sorted by name in the checkpoint, as TensorFlow goes through them."""
    if not isinstance(assignment_map, Mapping | Iterable):
        raise TypeError(f"assignment_map is a {type(assignment_map).__name__}. Pass a dict, or a list of pairs")
    pairs: list[tuple[str, object]] = []
    for pair in assignment_map.items() if isinstance(assignment_map, Mapping) else assignment_map:
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not isinstance(pair[0], str):
            raise TypeError(
                f"assignment_map: {reprlib.repr(pair)} is no pair of a name in the checkpoint and a variable or a name "
                f"of one. Pass a dict, or a list of pairs"
            )
        pairs.append((pair[0], pair[1]))
    return sorted(pairs, key=itemgetter(0))


def _assignments(name: str, target: object, variables: _Variables, stored: _CheckpointNames) -> list[_Assignment]:
    """What one entry of the map means."""
    if not isinstance(target, str):
        if not _is_assignable(target):
            raise TypeError(
                f"assignment_map: {quoted(name)} is mapped to a {type(target).__name__}. Map it to the name of a "
                f"variable, a tensor, a Variable, or a list of Variables that are slices"
            )
        return [_assignment(_key(name, stored), target, variables)]
    named = variables.named(target)
    if named is not None:
        return [_assignment(_key(name, stored), named.value, variables)]
    if not name.endswith(_SCOPE_ENDS) or not target.endswith(_SCOPE_ENDS):
        scope = target[: max(target.rfind("/"), target.rfind("."), 0)]
        raise InvalidArgumentError(
            f"Assignment map with scope only name {escaped(scope)} should map to scope only {escaped(name)}. Should be "
            f"'scope/': 'other_scope/'. There is no variable {quoted(target)}. {variables.closest(target)}".rstrip()
        )
    return _scope_assignments(name, target, variables, stored)


def _scope_assignments(name: str, scope: str, variables: _Variables, stored: _CheckpointNames) -> list[_Assignment]:
    prefix = "" if name == _ROOT else name
    found: list[_Assignment] = []
    missing: list[str] = []
    for named, rests in variables.below(scope):
        key = next((key for rest in rests if (key := stored.key(prefix + rest)) is not None), None)
        if key is None:
            missing.append(rests[0])
        else:
            found.append(_assignment(key, named.value, variables))
    if missing:
        raise stored.not_found(prefix + missing[0], f"{missing[0]} in {name}", len(missing) - 1)
    if not found:
        hint = variables.closest_scope(scope)
        text = f"no variable lies in scope {quoted(scope)}, to which {quoted(name)} is mapped. {hint}"
        _log.warning("init_from_checkpoint: %s", text.rstrip(". "))
    return found


def _key(name: str, stored: _CheckpointNames) -> str:
    key = stored.key(name)
    if key is None:
        raise stored.not_found(name)
    return key


def _assignment(key: str, target: Assignable, variables: _Variables) -> _Assignment:
    names = next((names for tensor in _tensors_in(target) if (names := variables.names_of(tensor))), [])
    own = [target.name] if isinstance(target, Variable | PartitionedVariable) else []
    label = (names or own or [key])[0]
    parts = []
    for part in saveables_of(label, target):
        assert isinstance(part, VariableSaveable), "of tensors and Variables there are no others"
        part.specs[0].name = key
        parts.append(part)
    return _Assignment(key, label, tuple(parts))


def _check_once(plan: Iterable[_Assignment]) -> None:
    """InvalidArgumentError where two stored tensors are to go into one variable."""
    taken: dict[Identity, _Assignment] = {}
    for each in plan:
        for part in each.parts:
            before = taken.setdefault(identity_of(part.tensor), each)
            if before.key != each.key:
                raise InvalidArgumentError(
                    f"assignment_map: {quoted(before.key)} and {quoted(each.key)} are both to go into variable "
                    f"{quoted(each.label)}. Leave one out, or map smaller scopes"
                )


def _check_shape(reader: CheckpointReader, assignment: _Assignment) -> None:
    """InvalidArgumentError, in TensorFlow's words, where a whole variable is not of the stored shape."""
    stored = reader.shape(assignment.key)
    for part in assignment.parts:
        if not part.specs[0].slice_spec and tuple(part.tensor.shape) != stored:
            raise InvalidArgumentError(
                f"Shape of variable {escaped(assignment.label)} ({shape_text(part.tensor.shape)}) doesn't match with "
                f"shape of tensor {escaped(assignment.key)} ({shape_text(stored)}) from checkpoint reader. Map a "
                f"variable of that shape, or slices of one in a list; load_variable reads what is to be reshaped first"
            )


def _variables_of(model: object) -> Iterator[_Named]:
    for name, value in named_values(model).items():
        if isinstance(value, nn.Module):
            prefix = f"{name}/" if name else ""
            for places in group_shared(each for each in module_tensors(value) if each.persistent):
                yield _Named(tuple(prefix + place.name for place in places), places[0].tensor, of_module=True)
        elif _is_assignable(value):
            yield _Named((name,), value, of_module=False)
        else:
            raise TypeError(
                f"{quoted(name)} is a {type(value).__name__}. init_from_checkpoint fills tensors, Variables and slices "
                f"of them; leave out what else a Saver saves"
            )


def _is_assignable(value: object) -> TypeGuard[Assignable]:
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(part, Variable) for part in value)
    return isinstance(value, torch.Tensor | Variable | PartitionedVariable)


def _tensors_in(value: Assignable) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [part.tensor for part in ([value] if isinstance(value, Variable) else value)]


def _slashed(name: str) -> str:
    return name.replace(".", "/")
