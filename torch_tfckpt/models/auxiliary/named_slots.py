"""Recognise the slots of optimizers in a name-based checkpoint by structure, whatever the optimizer was called.

    fc/kernel                [3, 2]
    fc/kernel/d_opt          [3, 2]     a slot: the name of a stored variable and one more part, with the same shape
    fc/kernel/d_opt_1        [3, 2]     the second slot of the same optimizer
    train/fc/kernel/Adam     [3, 2]     scopes may precede the name of the variable
    fc/kernel/Adafactor      [3]        a factored form: one axis is missing; its counterpart lacks a different axis
    fc/bias/Adafactor_1      [1]        a placeholder of an optimizer that has slots elsewhere
    emb_slot_vc              [7]        Mesh TensorFlow joins the names with "_slot_"
    Adam/m/fc/kernel         [3, 2]     Keras 2.11 and later
    adam/fc_kernel_momentum  [3, 2]     Keras 3, if it is clear which variable "fc_kernel" is
    training/SGD/moment_0    [3, 2]     any tensor with a variable's shape directly in the scope of a Keras optimizer;
                                        such a scope also has counters and hyperparameters

Contract:

    never a slot   a name that ends like the variables of layers (kernel, bias, gamma, ...) or like its own parent; a
                   last part that occurs in plain scopes at least as often as directly below a variable; a factored
                   form without its counterpart
    certain        there is evidence other than one equal shape: several slots of one variable (x and x_1,
                   x_m and x_v, rows and columns), slots of different kinds of variables (kernel and bias), a class name
                   ("LARSOptimizer"), or counters in the optimizer's own scope
    not certain    an equal shape is the only evidence. The tensor counts as a slot only if no scope precedes the
                   variable and nothing but slots is stored below the variable. A weight "a/b/c" of a module with a
                   weight "a/b" of the same shape would be mistaken for a slot: callers must report these names

Only names and shapes are looked at. If the module has a tensor of the same name, the stored tensor is a weight, even if
it is recognised as a slot here: callers look for the module's tensors first.

Source: tensorflow/python/training/{slot_creator,optimizer}.py; mesh_tensorflow/optimize.py.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.models.auxiliary.averages import SCOPES, located
from torch_tfckpt.models.layers.layer_names import OF_LAYERS
from torch_tfckpt.optimizers.slots import stem_and_number

_JOINT: Final = re.compile(r"_(slot_[a-z]{1,2})\Z")
# Names that layers give to their own variables, so that "attention/kernel" is not a slot of a variable "attention".
_LEAVES: Final = OF_LAYERS | {
    *("weight", "weights", "scale", "offset", "alpha", "embedding", "embeddings", "table", "output_weights"),
    *("output_bias", "Matrix", "Bias", "Variable"),
}
_LONGEST: Final = 1000  # maximum length of a name that is tried with every possible end
_SAME, _FACTORED, _PLACEHOLDER = "same", "factored", "placeholder"


@dataclass(frozen=True, slots=True)
class NamedSlot:
    """A slot, recognised by its name and shape.

    Attributes:
        variable: Name of its variable; "" if only the optimizer is known.
        part: What its name adds to the name of the variable: "Adam_1".
        scope: What precedes the name of the variable, such as "train"; "" if nothing does.
        is_whole: Whether it has the shape of the variable.
        is_certain: Whether there is evidence, other than an equal shape, that it is a slot.
    """

    variable: str
    part: str
    scope: str = ""
    is_whole: bool = True
    is_certain: bool = True


@dataclass(frozen=True, slots=True)
class _Candidate:
    variable: str
    scope: str  # or what is between the variable and the part, for names of partitioned variables
    is_direct: bool  # a slash precedes the part, not "_slot_"
    form: str
    part: str
    stem: str  # the part without a number
    axes: frozenset[int] = frozenset()  # axes of the variable, one of which is missing in a factored form

    @property
    def place(self) -> tuple[str, str]:
        return self.variable, self.scope


def stem_of(part: str) -> str:
    """Return the name of an optimizer from the last part of a slot's name: "Adam" for "Adam_1"."""
    return stem_and_number(part)[0]


def find_slots(
    shapes: Mapping[str, Shape],
    variables: Mapping[str, Shape],
    *,
    scopes: Collection[str] = (),
    keras_scopes: Collection[str] = (),
) -> dict[str, NamedSlot]:
    """Return the slots among some tensors, by name.

    Args:
        shapes: Name -> shape of the floating-point tensors that may be slots. No name ends in ":0".
        variables: Name -> shape of all tensors that may have slots.
        scopes: Scopes that contain powers or counters of optimizers.
        keras_scopes: Scopes of optimizers of Keras, with counters and rates.

    Cost: looks at all names; at most a few parts of each.
    """
    found: dict[str, NamedSlot] = {}
    if keras_scopes:
        found.update(_in_keras_scopes(shapes, variables, keras_scopes))
    rest = {name: shape for name, shape in shapes.items() if name not in found}
    candidates = {
        name: each for name, shape in rest.items() if (each := _candidate(name, shape, variables)) is not None
    }
    evidence = _Evidence(rest, candidates, {*scopes, *keras_scopes})
    crowded: set[str] = set()  # names below which something other than slots is stored
    weak: dict[str, _Candidate] = {}
    for name in sorted(rest, key=len, reverse=True):  # names below another name come before it
        each = None if name in crowded else candidates.get(name)
        if each is not None and evidence.is_slot(each):
            found[name] = NamedSlot(each.variable, each.part, each.scope, each.form == _SAME)
        elif each is not None and evidence.is_weak(each):
            weak[name] = each
        else:
            crowded.update(_ancestors(name))
    for name, each in weak.items():
        if each.variable not in crowded:
            found[name] = NamedSlot(each.variable, each.part, is_certain=False)
    return {name: found[name] for name in shapes if name in found}


class _Evidence:
    """What the candidates together show about optimizers."""

    def __init__(self, names: Collection[str], candidates: Mapping[str, _Candidate], scopes: Collection[str]) -> None:
        self._scopes = {*scopes, *(scope.rpartition("/")[2] for scope in scopes)}
        shaped = [each for each in candidates.values() if each.form != _PLACEHOLDER]
        self._attached = Counter(each.stem for each in shaped if each.is_direct)
        self._all = Counter(stem_of(name.rpartition("/")[2]) for name in names)
        self._placeholders = Counter(
            each.stem for each in candidates.values() if each.form == _PLACEHOLDER and each.is_direct
        )
        self._parts: dict[tuple[str, str], list[_Candidate]] = {}
        kinds: dict[str, set[str]] = {}
        for each in shaped:
            self._parts.setdefault(each.place, []).append(each)
            kinds.setdefault(each.stem, set()).add(_kind_of(each.variable))
        self._repeated = {stem for stem, of in kinds.items() if len(of) > 1}
        self._paired: set[tuple[str, str]] = set()  # places with factored slots: rows and columns
        for place, parts in self._parts.items():
            factored = [each for each in parts if each.form == _FACTORED]
            if len(factored) > 1 and len(frozenset().union(*(each.axes for each in factored))) > 1:
                self._paired.add(place)
                self._repeated.update(each.stem for each in factored)
            self._repeated.update(_companions(parts))

    def is_slot(self, each: _Candidate) -> bool:
        """Return whether a candidate is certainly a slot."""
        if self._is_leaf(each) or (each.is_direct and not self._is_known(each)):
            return False
        if each.form == _FACTORED:
            return each.place in self._paired
        return each.form == _SAME or bool(self._attached[each.stem])

    def is_weak(self, each: _Candidate) -> bool:
        """Return whether its shape is the only evidence that a candidate is a slot."""
        return each.form == _SAME and each.is_direct and not each.scope and not self._is_leaf(each)

    def _is_leaf(self, each: _Candidate) -> bool:
        """Return whether the last part is the name of a layer's variable, and not the name of an optimizer."""
        if not each.is_direct:
            return False
        stem = each.stem
        if stem in _LEAVES or stem == stem_of(each.variable.rpartition("/")[2]):
            return True
        elsewhere = self._all[stem] - self._attached[stem] - self._placeholders[stem]
        return elsewhere > self._attached[stem] or (elsewhere == self._attached[stem] and not _is_class_name(stem))

    def _is_known(self, each: _Candidate) -> bool:
        """Return whether there is evidence that the last part, or the scope, belongs to an optimizer."""
        stem = each.stem
        return _is_class_name(stem) or stem in self._repeated or stem in self._scopes or each.scope in self._scopes


def _candidate(name: str, shape: Shape, variables: Mapping[str, Shape]) -> _Candidate | None:
    """Return what a tensor would be a slot of; None if it cannot be one."""
    parent, _, last = name.rpartition("/")
    joint = _JOINT.search(last)
    is_direct = joint is None
    if joint is not None:
        parent, last = name[: len(name) - len(joint[0])], joint[1]
    if not parent or not last:
        return None
    places = list(located(parent, variables))
    if not places and is_direct and _is_class_name(last):
        places = list(_partitioned(parent, variables))
    stem = stem_of(last)
    for variable, scope in places:
        if shape == variables[variable]:
            return _Candidate(variable, scope, is_direct, _SAME, last, stem)
    for variable, scope in places:
        wanted = variables[variable]
        axes = frozenset(axis for axis in range(len(wanted)) if shape == wanted[:axis] + wanted[axis + 1 :])
        if axes and len(wanted) > 1:
            return _Candidate(variable, scope, is_direct, _FACTORED, last, stem, axes)
    is_placeholder = bool(places) and prod(shape) == 1 and len(shape) < 2
    return _Candidate(*places[0], is_direct, _PLACEHOLDER, last, stem) if is_placeholder else None


def _partitioned(parent: str, variables: Mapping[str, Shape]) -> Iterator[tuple[str, str]]:
    """Yield the variable in "weights/weights/part_0" or "weights/t_0", irregular names from TensorFlow."""
    yield from ((base, parent[len(base) :]) for base in _ancestors(parent) if base in variables)


def _in_keras_scopes(
    shapes: Mapping[str, Shape], variables: Mapping[str, Shape], scopes: Collection[str]
) -> Iterator[tuple[str, NamedSlot]]:
    """Yield the slots in the scopes of optimizers of Keras."""
    known = {shape for name, shape in variables.items() if _scope_of(name, scopes) is None}
    joined: dict[str, list[str]] = {}  # name as Keras 3 writes it in names of slots -> variables
    for name in variables:
        if _scope_of(name, scopes) is None:
            joined.setdefault(name.replace("/", "_"), []).append(name)
    for name, shape in shapes.items():
        scope = _scope_of(name, scopes)
        if scope is None:
            continue
        part, _, variable = name[len(scope) + 1 :].partition("/")
        if variable and variables.get(variable) == shape:
            yield name, NamedSlot(variable, part, scope)
        elif not variable and part not in _LEAVES and shape in known:
            yield name, _joined_slot(part, scope, joined, variables, shape)


def _joined_slot(
    part: str, scope: str, joined: Mapping[str, Sequence[str]], variables: Mapping[str, Shape], shape: Shape
) -> NamedSlot:
    """Return the slot "fc_kernel_momentum" of "fc/kernel" (Keras 3); its variable is "" if ambiguous."""
    for end in range(len(part) - 1, 0, -1) if len(part) <= _LONGEST else ():
        of = joined.get(part[:end], ()) if part[end] == "_" else ()
        if len(of) == 1 and variables[of[0]] == shape:
            return NamedSlot(of[0], part[end + 1 :], scope)
    return NamedSlot("", part, scope)


def _scope_of(name: str, scopes: Collection[str]) -> str | None:
    """Return the shortest of the scopes that contains the name."""
    end = name.find("/")
    for _ in range(SCOPES):
        if end < 0:
            break
        if name[:end] in scopes:
            return name[:end]
        end = name.find("/", end + 1)
    return None


def _companions(parts: Collection[_Candidate]) -> Iterator[str]:
    """Yield the stems of slots of one variable that belong together: x and x_1; x_m and x_v."""
    stems = Counter(each.stem for each in parts)
    families: dict[str, set[str]] = {}
    for stem in stems:
        family, _, ending = stem.rpartition("_")
        if family and len(ending) < 3:
            families.setdefault(family, set()).add(stem)
    yield from (stem for stem, count in stems.items() if count > 1)
    for together in families.values():
        yield from together if len(together) > 1 else ()


def _is_class_name(stem: str) -> bool:
    return stem[:1].isupper()


def _kind_of(variable: str) -> str:
    """Return what the name of a variable says about its purpose: "Variable" for "net/Variable_12"."""
    return variable.rpartition("/")[2].rstrip("_0123456789")


def _ancestors(name: str) -> Iterator[str]:
    """Yield the longest prefixes of a name that end before a slash, the longest first."""
    for _ in range(SCOPES):
        name = name.rpartition("/")[0]
        if not name:
            break
        yield name
