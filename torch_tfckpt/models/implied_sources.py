"""The source of one tensor, as implied by a stored name, a rule and the module.

    "dense/kernel", for the weight of a Linear                the layout "dense"
    "cell/kernel", for weight_ih of an LSTMCell               a range of the variable
    "layer/weight", for the weight of a Linear, no layout     an error: the order of the axes is unknown

A layout given by a rule is used. A name implies a layout only for layers that have such variables (see
`layer_names`). If neither determines the order of the axes, an error is raised, unless the name is torch's own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.models.layers.assembly import Source, SourcePart
from torch_tfckpt.models.layers.layer_names import AMBIGUOUS, KERNELS
from torch_tfckpt.models.layers.layouts import DENSE, LAYOUTS, SAME, SQUEEZE, Layout
from torch_tfckpt.models.layers.tensor_origins import TensorOrigin, leaf_of
from torch_tfckpt.models.rules.key_rules import CheckedRule, RuleMatch
from torch_tfckpt.models.stored_names import is_spelled_by_torch, variable_name_of
from torch_tfckpt.models.targets import LayerOrigin, Target
from torch_tfckpt.saveables.module_tensors import ModuleTensor
from torch_tfckpt.text import quoted


@dataclass(frozen=True, slots=True)
class MappedTensor:
    """A stored tensor that a rule maps to a tensor of the module."""

    key: str
    shape: Shape
    layout: Layout | None  # the layout that the rule gives
    matched: str  # the name that the rule matched
    names: Sequence[str]  # all names of the variable, the matched one first
    match: RuleMatch | None = None

    @property
    def rule(self) -> CheckedRule:
        """The rule that matched."""
        assert self.match is not None
        return self.match.rule

    @property
    def part(self) -> int:
        """Number of the pattern that matched, if the rule joins variables; else 0."""
        return 0 if self.match is None else self.match.part


@dataclass(frozen=True, slots=True)
class NamedTarget:
    """A tensor of the module under one of its names."""

    target: Target
    place: ModuleTensor

    @classmethod
    def of(cls, target: Target, name: str) -> "NamedTarget":
        """Return the target under one of its names."""
        return cls(target, next(place for place in target.places if place.name == name))

    @property
    def origins(self) -> list[LayerOrigin]:
        return [each for each in self.target.origins if each.name == self.place.name]


def implied_layout(target: Target, name: str, key: str, *, must_be_known: bool = False) -> Layout | None:
    """Return the layout that a stored name implies for a tensor; None if it implies none.

    Args:
        name: Name of the tensor.
        must_be_known: Raise InvalidArgumentError if the name implies none and the order of the axes is unknown.
    """
    here = NamedTarget.of(target, name)
    found = next((layout for _, layout, _ in _origins_of(here, MappedTensor(key, (), None, key, (key,)))), None)
    if found is None and must_be_known:
        _check_known(here, variable_name_of(key), target.tensor.dim())
    return found


def single_source(target: Target, name: str, names: Sequence[str], shape: Shape, layout: Layout | None) -> Source:
    """Return the source of a tensor made from one variable with these names, its key first. Raises if it is unknown."""
    mapped = MappedTensor(names[0], shape, layout, names[0], names)
    return source_of_one(NamedTarget.of(target, name), mapped, any_spelling=True)[0]


def shared_origin(target: Target, name: str, key: str, layout: Layout | None) -> LayerOrigin | None:
    """Return the origin of a tensor if the tensor is only a range of the variable `key`; else None.

    Args:
        layout: The layout of the rule.
    """
    here = NamedTarget.of(target, name)
    implied = (each for each, _, _ in _origins_of(here, MappedTensor(key, (), None, key, (key,))))
    given = (
        each
        for each in here.origins
        for leaves in each.origin.variables
        if layout is not None and any(known.name == layout.name for known in leaves.values())
    )
    found = next(implied if layout is None else given, None)
    return found if found is not None and found.origin.bounds is not None else None


def part_layout(target: Target, name: str, key: str, part: int, count: int) -> Layout:
    """Return the layout that a stored name implies for one of the variables that are joined into a tensor.

    Raises InvalidArgumentError if the name implies none and the order of the axes is unknown.
    """
    here = NamedTarget.of(target, name)
    return layout_of_part(here, MappedTensor(key, tuple(target.tensor.shape), None, key, (key,)), part, count)


def layout_of_part(here: NamedTarget, mapped: MappedTensor, at: int, count: int) -> Layout:
    """Return the layout implied by the name of variable number `at` of those joined into a tensor."""
    for each in here.origins:
        for leaves in each.origin.variables[at : at + 1] if len(each.origin.variables) == count else ():
            for name in mapped.names:
                leaf = leaf_of(name, leaves, loosely=True)
                if leaf is not None:
                    return leaves[leaf]
    return whole_layout(here, mapped)


def whole_layout(here: NamedTarget, mapped: MappedTensor) -> Layout:
    """Return the layout that the name of a variable would imply if the variable were the whole tensor."""
    of_layer = (layout for each, layout, _ in _origins_of(here, mapped) if each.origin.bounds is None)
    found = next(of_layer, None)
    if found is None:
        _check_known(here, variable_name_of(mapped.matched), len(mapped.shape))
    return found or SAME


def source_of_one(
    here: NamedTarget, mapped: MappedTensor, *, any_spelling: bool = False
) -> tuple[Source, LayerOrigin | None]:
    """Return the source for one stored tensor, and the layer origin that determined it, if any.

    Args:
        any_spelling: Whether "fc/weight" is torch's name, too; otherwise only "fc.weight" is.
    """
    if mapped.layout is not None:
        return _by_layout(here, mapped, mapped.layout)
    candidates = list(_origins_of(here, mapped))
    for each, layout, variable_name in candidates:
        source = _source(mapped, layout, variable_name, each.origin)
        if _fits(source, mapped.shape, here.target.shape):
            return source, each
    if candidates:
        each, layout, variable_name = candidates[0]
        return _source(mapped, layout, variable_name, each.origin), each
    variable_names = [variable_name_of(name) for name in mapped.names]
    variable_name = next((each for each in variable_names if each == here.place.attribute), variable_names[0])
    spelled = any_spelling or is_spelled_by_torch(mapped.key, mapped.names, here.place.name)
    may_be_own = spelled or variable_name not in AMBIGUOUS or here.target.other_layout(mapped.shape) is None
    _check_known(here, variable_name, len(mapped.shape), may_be_own=may_be_own)
    return Source.of(mapped.key, SAME, variable_name), None


def _by_layout(here: NamedTarget, mapped: MappedTensor, layout: Layout) -> tuple[Source, LayerOrigin | None]:
    if layout == DENSE:
        # This layout only puts the inputs first. The order of the gates follows from the layer.
        for each, own, name in _origins_of(here, mapped):
            source = _source(mapped, own, name, each.origin)
            if own.gates and _fits(source, mapped.shape, here.target.shape):
                return source, each
    variable_name = next((name for _, _, name in _origins_of(here, mapped)), variable_name_of(mapped.names[0]))
    source = Source.of(mapped.key, layout, variable_name)
    # Keras's SimpleRNN has two kernels in the layout in which TensorFlow 1's cell has one.
    is_whole = here.target.shape is not None and _fits(source, mapped.shape, here.target.shape)
    for each in here.origins if not is_whole else ():
        ranges = each.origin.bounds is not None and len(each.origin.variables) == 1
        if ranges and any(known.name == layout.name for known in each.origin.variables[0].values()):
            return _source(mapped, layout, variable_name, each.origin), each
    if layout.is_same and not _fits(source, mapped.shape, here.target.shape):
        squeezed = Source.of(mapped.key, SQUEEZE, variable_name)
        source = squeezed if _fits(squeezed, mapped.shape, here.target.shape) else source
    return source, None


def _origins_of(here: NamedTarget, mapped: MappedTensor) -> Iterable[tuple[LayerOrigin, Layout, str]]:
    """Yield the ways to build the target from a single variable that has one of the mapped names."""
    for name in mapped.names:
        for each in here.origins:
            if len(each.origin.variables) != 1:
                continue
            [leaves] = each.origin.variables
            leaf = leaf_of(name, leaves, loosely=True)
            if leaf is not None:
                yield each, leaves[leaf], variable_name_of(name)


def source_of_several(here: NamedTarget, given: Sequence[MappedTensor]) -> Source | None:
    """Return the source that joins several variables, if they are the variables of the layer; else None."""
    for each in here.origins:
        if len(each.origin.variables) != len(given):
            continue
        parts: list[SourcePart] = []
        for leaves in each.origin.variables:
            found = [
                SourcePart(mapped.key, leaves[leaf] if mapped.layout is None else mapped.layout)
                for mapped in given
                if (leaf := next((leaf for name in mapped.names if (leaf := leaf_of(name, leaves))), None)) is not None
            ]
            if len(found) == 1:
                parts += found
        if len({part.key for part in parts}) == len(given):
            return Source(tuple(parts), variable_name_of(given[0].matched), each.origin.axis)
    return None


def _source(mapped: MappedTensor, layout: Layout, variable_name: str, origin: TensorOrigin) -> Source:
    return Source((SourcePart(mapped.key, layout),), variable_name, origin.axis, origin.bounds)


def _fits(source: Source, stored: Shape, wanted: Shape | None) -> bool:
    shapes = dict.fromkeys(source.read_keys, stored)
    return wanted is None or source.resolved(shapes, wanted).fits(shapes, wanted)


def _check_known(here: NamedTarget, variable_name: str, rank: int, *, may_be_own: bool = True) -> None:
    """Raise InvalidArgumentError if neither the stored name nor the module implies the order of axes."""
    attribute = here.place.attribute
    is_turned = any(not layout.is_same for each in here.origins for layout in each.origin.layouts())
    # Whether the variable has torch's own name for a weight. If TensorFlow stores this layer with its axes in a
    # different order, only names such as "weight", which say nothing about the order, count as torch's.
    is_own = variable_name == attribute and variable_name not in KERNELS and (not is_turned or attribute in AMBIGUOUS)
    is_own = is_own and may_be_own
    if rank < 2 or is_own or (here.origins and not is_turned and variable_name not in KERNELS):
        return
    raise InvalidArgumentError(
        f"the layout of {quoted(attribute)} of a {type(here.place.module).__name__} is unknown: a name that ends in "
        f'{quoted(variable_name)} does not imply it. Give it in the rule, as in ("fc.weight", "dense"); '
        f'use "same" if the axes are in torch\'s order. Layouts: {", ".join(LAYOUTS)}'
    )
