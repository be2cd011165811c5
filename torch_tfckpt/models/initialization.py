"""init_from_checkpoint: fill variables from a checkpoint, given a map from stored names to variables.

Source: tensorflow/python/training/checkpoint_utils.py (init_from_checkpoint).
"""

import logging
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Final, TypeGuard

import torch
from torch import nn

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.tensor_names import TensorNames
from torch_tfckpt.format.tensor_slice import Shape, shape_text
from torch_tfckpt.models.assignment_layouts import LayerTensor, TurnedSaveable, source_for
from torch_tfckpt.models.layers.layouts import Layout, LayoutLike, layout_of_rule
from torch_tfckpt.models.targets import Target, targets_of
from torch_tfckpt.save_restore.builder import BulkSaverBuilder
from torch_tfckpt.save_restore.restore import restore_saveables
from torch_tfckpt.saveables.identity import Identity, identity_of
from torch_tfckpt.saveables.named_values import named_values
from torch_tfckpt.saveables.stored_keys import same_stored
from torch_tfckpt.saveables.tensor_saveable import VariableSaveable, saveables_of
from torch_tfckpt.saveables.variables import PartitionedVariable, Variable
from torch_tfckpt.storage.names import AnyPath
from torch_tfckpt.text import did_you_mean, escaped, listed, quoted
from torch_tfckpt.values import outside_modes

Assignable = torch.Tensor | Variable | PartitionedVariable | Sequence[Variable]
Assigned = str | Assignable | tuple[str | torch.Tensor | Variable, LayoutLike]
AssignmentMap = Mapping[str, Assigned] | Iterable[tuple[str, Assigned]]

_ROOT: Final = "/"  # the scope that contains all names, on both sides of a map
_SCOPE_ENDS: Final = ("/", ".")  # "." separates the parts of names in modules and in their checkpoints

_log = logging.getLogger(__name__)


@outside_modes
def init_from_checkpoint(model: object, path: AnyPath, assignment_map: AssignmentMap) -> dict[str, str]:
    """Fill variables of `model` from a checkpoint, in place.

    Variables that the map does not name are unchanged.

    Args:
        model: The variables: a Module, whose tensors are named as in its state_dict; a dict name -> tensor,
            Variable, PartitionedVariable, list of Variables that are slices, or Module; or anything else that Saver
            takes as var_list, except state such as an optimizer's.
        path: As for CheckpointReader.
        assignment_map: A dict, or, if one stored tensor goes into several variables, a list of pairs:
            "scope/" -> "other_scope/": each variable below `other_scope` takes the tensor of the same name below
                `scope`. "/" is the root: on the right all variables, on the left names without a scope. A scope may
                also end in ".".
            "name" -> name of a variable, or the tensor, Parameter, Variable, PartitionedVariable or list of slices
                itself, which need not be in `model`. A slice takes its part of the stored tensor.
            "name" -> (one of these except slices, layout): the stored tensor is converted first, as in a rule
                of load_model: "dense/w" -> ("fc.weight", "dense"). "same": it is copied.
            Names in the checkpoint are literal. In names of a Module's tensors "/" and "." mean the same: "encoder/"
            and "encoder." are both the scope of model.encoder, below which "layer.0.weight" takes the stored tensor
            "layer.0.weight" or else "layer/0/weight", or else, by TensorFlow's name, "layer/0/kernel". In an
            object-based checkpoint any name that CheckpointReader accepts may be used, if only one tensor has it.
            num_batches_tracked, which TensorFlow does not have, may be missing in a scope.

    Returns:
        Name in `model` -> key in the checkpoint, for everything that was filled; a shared tensor under all its names.

    Raises:
        InvalidArgumentError: a tensor is not in the checkpoint; a variable is not in `model`; a layout is unknown,
            for instance because a kernel is mapped to a Parameter that is not in `model`; a scope is mapped to
            something that is not a scope; a shape or dtype differs; two tensors are mapped to one variable; a parameter
            has no shape or memory yet.
        ValueError: a list whose elements are not slices of one tensor.
        TypeError: `assignment_map` or `model` is not in one of the forms above.
        NotFoundError, DataLossError: there is no checkpoint; a value is damaged.

    A tensor of a Module takes TensorFlow's names as in load_model: a Keras Dense kernel [in, out] is transposed for a
    Linear, and a name that does not imply a layout is an error unless the map gives one. Tensors and Variables in a
    dict are taken to have TensorFlow's layout; nothing is transposed for them.

    If an error is raised, nothing was assigned, with the exception that Saver.restore states. A scope without variables
    is logged as a warning and is not an error, because TensorFlow ignores it; filled variables are logged at INFO. In
    TensorFlow, the last of two tensors mapped to one variable wins, a scope may lack its "/", and a variable in a scope
    gets the stored shape; here these are errors.

    Cost: as for Saver.restore for variables that are filled with the stored values as they are. For others, one read of
    each tensor, and host memory for all of them.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> stored = {"bert/encoder/weight": torch.ones(1, 2), "bert/encoder/bias": torch.zeros(1)}
        >>> path = tfckpt.save_file(stored, "bert.ckpt")
        >>> model = torch.nn.ModuleDict({"encoder": torch.nn.Linear(2, 1)})
        >>> tfckpt.init_from_checkpoint(model, path, {"bert/encoder/": "encoder."})
        {'encoder.bias': 'bert/encoder/bias', 'encoder.weight': 'bert/encoder/weight'}
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
    """Assignment of one stored tensor to one variable."""

    key: str
    label: str  # name of the variable in messages
    parts: tuple[VariableSaveable, ...]  # one, unless the variable is partitioned
    is_turned: bool = False


@dataclass(frozen=True, slots=True)
class _Named:
    """A variable of the model."""

    names: tuple[str, ...]  # several if the tensor is shared
    value: Assignable
    target: Target | None = None  # if it is a tensor of a module
    prefix: str = ""  # of the module in the model

    @property
    def of_module(self) -> bool:
        return self.target is not None

    def place(self, name: str | None = None) -> LayerTensor | None:
        """Return the tensor of a module under `name`, by default its first name; None for other variables."""
        if self.target is None:
            return None
        known = {_slashed(self.prefix + each): each for each in self.target.names}
        return LayerTensor(self.target, known.get(_slashed(name or ""), self.target.name))

    def below(self, scope: str) -> list[str]:
        """Return the names of the variable relative to `scope`; empty if it is not in `scope`.

        The tensor may have any of these names in the stored scope that is mapped to `scope`.
        """
        start = "" if scope == _ROOT else scope
        if not self.of_module:
            return [name[len(start) :] for name in self.names if name.startswith(start)]
        rests = [name[len(start) :] for name in self.names if _slashed(name).startswith(_slashed(start))]
        return rests + [_slashed(rest) for rest in rests] + list(self._of_tensorflow(start))

    def _of_tensorflow(self, start: str) -> Iterator[str]:
        """Yield TensorFlow's names for the tensor below a scope, if it is made from one whole variable."""
        for each in self.target.origins if self.target is not None else ():
            is_whole = len(each.origin.variables) == 1 and each.origin.bounds is None
            for leaf in each.origin.leaves() if is_whole else ():
                name = _slashed(f"{self.prefix}{each.base}{leaf}")
                if name.startswith(_slashed(start)):
                    yield name[len(start) :]


class _Variables:
    """The variables of a model by name."""

    def __init__(self, model: object) -> None:
        self._all = sorted(_variables_of(model), key=lambda each: each.names)
        self._by_name = {name: each for each in self._all for name in each.names}
        self._by_path = {_slashed(name): each for name, each in self._by_name.items() if each.of_module}

    def named(self, name: str) -> _Named | None:
        """Return the variable with this name."""
        return self._by_name.get(name) or self._by_path.get(_slashed(name))

    def below(self, scope: str) -> Iterator[tuple[_Named, list[str]]]:
        """Yield the variables in a scope, sorted, each with the result of `_Named.below`."""
        for each in self._all:
            rests = each.below(scope)
            if rests:
                yield each, rests

    def names_of(self, tensor: torch.Tensor) -> list[str]:
        """Return all names of a tensor, or of the variable that it is part of; empty if not in the model."""
        return self._names_of_tensors.get(identity_of(tensor), [])

    def closest(self, name: str) -> str:
        """Return a hint for an unknown name."""
        return did_you_mean(name, self._by_name) or did_you_mean(_slashed(name), self._by_path)

    def closest_scope(self, scope: str) -> str:
        """Return a hint for a scope without variables."""
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
        """Return the key that a name refers to; None if there is no such tensor."""
        if name in self._reader or self._names is None:
            return name if name in self._reader else None
        keys = self._names.find(name) or self._names.find(name.replace("/", "."))
        if len(keys) > 1 and not all(same_stored(self._reader, keys[0], other) for other in keys[1:]):
            raise InvalidArgumentError(
                f"{self._reader.path}: {len(keys)} variables are called {quoted(name)}. Map their keys instead: "
                f"{listed(keys, 10)}"
            )
        return keys[0] if keys else None

    def names_of(self, key: str) -> tuple[str, ...]:
        """Return all names of a stored tensor."""
        return self._reader.names_of(key)

    def shape(self, key: str) -> Shape:
        """Return the shape of a stored tensor."""
        return self._reader.shape(key)

    def not_found(self, name: str, within: str = "", others: int = 0) -> InvalidArgumentError:
        """Return the error in TensorFlow's words. `within`: "z in a/", if a scope was mapped."""
        where = f" ({escaped(within)})" if within else ""
        more = f" Also missing in that scope: {others} more." if others else ""
        hint = did_you_mean(name, self._reader.keys() if self._names is None else self._names.known())
        if name.endswith(_SCOPE_ENDS):
            hint = "A scope is mapped to a scope: 'scope/': 'other_scope/'."
        text = f"Tensor {escaped(name)}{where} is not found in {self._reader.path} checkpoint.{more} {hint}"
        return InvalidArgumentError(f"{text.rstrip()} `tfckpt ls` lists all {len(self._reader)} tensors")

    @cached_property
    def _names(self) -> TensorNames | None:
        graph = self._reader.object_graph
        return None if graph is None else TensorNames(graph, self._reader.keys())


def _pairs(assignment_map: AssignmentMap) -> list[tuple[str, object]]:
    """Return the pairs of the map in TensorFlow's order: sorted by the name in the checkpoint."""
    if not isinstance(assignment_map, Mapping | Iterable):
        raise TypeError(f"assignment_map is a {type(assignment_map).__name__}. Pass a dict, or a list of pairs")
    pairs: list[tuple[str, object]] = []
    for pair in assignment_map.items() if isinstance(assignment_map, Mapping) else assignment_map:
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not isinstance(pair[0], str):
            raise TypeError(
                f"assignment_map: {reprlib.repr(pair)} is not a pair of a name in the checkpoint and a variable or its "
                f"name. Pass a dict, or a list of pairs"
            )
        pairs.append((pair[0], pair[1]))
    return sorted(pairs, key=itemgetter(0))


def _assignments(name: str, target: object, variables: _Variables, stored: _CheckpointNames) -> list[_Assignment]:
    """Return what one entry of the map assigns."""
    layout = None
    if isinstance(target, tuple) and len(target) == 2 and not isinstance(target[1], Variable):
        given: tuple[object, object] = target
        target, layout = given[0], _layout(name, given[1])
    if not isinstance(target, str):
        if not _is_assignable(target):
            raise TypeError(
                f"assignment_map: {quoted(name)} is mapped to a {type(target).__name__}. Map it to the name of a "
                f"variable, a tensor, a Variable, or a list of Variables that are slices"
            )
        return [_assignment(_key(name, stored), target, variables, stored, layout=layout)]
    named = variables.named(target)
    if named is not None:
        return [_assignment(_key(name, stored), named.value, variables, stored, named.place(target), layout)]
    if layout is not None and target.endswith(_SCOPE_ENDS):
        raise InvalidArgumentError(
            f"assignment_map: {quoted(name)} maps a scope, which cannot have a layout. Map its variables one by one"
        )
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
        key, rest = next(((key, rest) for rest in rests if (key := stored.key(prefix + rest)) is not None), (None, ""))
        if key is None:
            if named.target is None or not named.target.is_counter:
                missing.append(rests[0])
        else:
            start = "" if scope == _ROOT else scope
            found.append(_assignment(key, named.value, variables, stored, named.place(start + rest)))
    if missing:
        raise stored.not_found(prefix + missing[0], f"{missing[0]} in {name}", len(missing) - 1)
    if not found:
        hint = variables.closest_scope(scope)
        text = f"no variable is in scope {quoted(scope)}, to which {quoted(name)} is mapped. {hint}"
        _log.warning("init_from_checkpoint: %s", text.rstrip(". "))
    return found


def _key(name: str, stored: _CheckpointNames) -> str:
    key = stored.key(name)
    if key is None:
        raise stored.not_found(name)
    return key


def _layout(name: str, given: object) -> Layout:
    try:
        return layout_of_rule(given)  # type: ignore[arg-type]
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"assignment_map: {quoted(name)}: {error}") from None


def _assignment(
    key: str,
    target: Assignable,
    variables: _Variables,
    stored: _CheckpointNames,
    place: LayerTensor | None = None,
    layout: Layout | None = None,
) -> _Assignment:
    names = next((names for tensor in _tensors_in(target) if (names := variables.names_of(tensor))), [])
    own = [target.name] if isinstance(target, Variable | PartitionedVariable) else []
    label = (names or own or [key])[0]
    if isinstance(target, torch.Tensor | Variable):
        tensor = target.tensor if isinstance(target, Variable) else target
        named = variables.named(names[0]) if names else None
        place = place or (None if named is None else named.place())
        own_name = next(iter(names or own), None)
        source = source_for(stored.names_of(key), stored.shape(key), tensor, own_name, place, layout)
        if source is not None:
            return _Assignment(key, label, (TurnedSaveable(tensor, key, label, source),), is_turned=True)
    elif layout is not None:
        raise InvalidArgumentError(
            f"assignment_map: {quoted(key)}: slices cannot have a layout. Load the tensor with load_variable, convert "
            f"it, and copy the parts"
        )
    parts = []
    for part in saveables_of(label, target):
        assert isinstance(part, VariableSaveable), "tensors and Variables have no other kind"
        part.specs[0].name = key
        parts.append(part)
    return _Assignment(key, label, tuple(parts))


def _check_once(plan: Iterable[_Assignment]) -> None:
    """Raise InvalidArgumentError if two stored tensors are mapped to one variable."""
    taken: dict[Identity, _Assignment] = {}
    for each in plan:
        for part in each.parts:
            before = taken.setdefault(identity_of(part.tensor), each)
            if before.key != each.key:
                raise InvalidArgumentError(
                    f"assignment_map: {quoted(before.key)} and {quoted(each.key)} are both mapped to variable "
                    f"{quoted(each.label)}. Omit one, or map smaller scopes"
                )


def _check_shape(reader: CheckpointReader, assignment: _Assignment) -> None:
    """Raise InvalidArgumentError, in TensorFlow's words, if a whole variable has a different shape."""
    stored = reader.shape(assignment.key)
    for part in assignment.parts:
        if assignment.is_turned:
            part.check([stored])
        elif not part.specs[0].slice_spec and tuple(part.tensor.shape) != stored:
            raise InvalidArgumentError(
                f"Shape of variable {escaped(assignment.label)} ({shape_text(part.tensor.shape)}) doesn't match with "
                f"shape of tensor {escaped(assignment.key)} ({shape_text(stored)}) from checkpoint reader. Map "
                f"the tensor to a variable of the stored shape, or to a list of slices of such a variable. To "
                f"reshape the tensor first, use load_variable"
            )


def _variables_of(model: object) -> Iterator[_Named]:
    for name, value in named_values(model).items():
        if isinstance(value, nn.Module):
            prefix = f"{name}/" if name else ""
            for target in targets_of(value):
                yield _Named(tuple(prefix + name for name in target.names), target.tensor, target, prefix)
        elif _is_assignable(value):
            yield _Named((name,), value)
        else:
            raise TypeError(
                f"{quoted(name)} is a {type(value).__name__}. init_from_checkpoint fills tensors, Variables and slices "
                f"of them; omit all other objects, even if a Saver can save them"
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
