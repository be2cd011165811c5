"""Apply the rules of a KeyMapper to the tensors of a checkpoint: which tensor of the module each goes to, and how.

A rule without a layout gets the layout that follows from the stored name and the module (see `layer_names`). A rule
for a variable from which several tensors are made, such as the kernel of an LSTM cell of TensorFlow 1, may name any of
them; the others follow. Several variables that rules map to one tensor are joined if the layer is known to be stored
that way. A rule may also join variables of its own choice, split one, or fill a tensor for which none is stored.
Variables below a layer that a rule maps to a module are only renamed here; later they are found by TensorFlow's names.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.errors import InvalidArgumentError, error_context
from torch_tfckpt.format.tensor_slice import Shape, shape_text
from torch_tfckpt.models.assembly import Source, SourcePart
from torch_tfckpt.models.auxiliary import auxiliary_keys
from torch_tfckpt.models.key_mapper import KeyMapper, rule_match, rules_of
from torch_tfckpt.models.key_rules import CheckedRule, RuleMatch, source_text, targets_of_rule
from torch_tfckpt.models.layer_names import AMBIGUOUS, KERNELS
from torch_tfckpt.models.layouts import DENSE, LAYOUTS, SAME, SQUEEZE, Layout
from torch_tfckpt.models.stored_copies import without_copies
from torch_tfckpt.models.stored_names import dotted, names_for_rules, variable_name_of
from torch_tfckpt.models.targets import LayerOrigin, Target
from torch_tfckpt.models.tensor_origins import Bounds, TensorOrigin, leaf_of
from torch_tfckpt.saveables.module_tensors import ModuleTensor
from torch_tfckpt.text import natural_order, quoted
from torch_tfckpt.values import value_dtype


@dataclass(slots=True)
class MappedSources:
    """Result of applying the rules of a mapper.

    Attributes:
        sources: Name of a tensor -> its source.
        taken: The keys that rules match.
        left_out: Keys that are omitted.
        strays: Key -> name to which it is mapped, if the module has no tensor of that name.
        unplaced: The same for keys of rules for a part that the module lacks; "" for keys that such a rule omits.
        unused_rules: Names and patterns that match nothing.
        filled: Name of a tensor -> value of all elements.
        absent: Name of a tensor -> the name or pattern from which a rule maps it, if no stored name matches.
        below_modules: Dotted name below a module, such as "encoder.query.kernel", and the key that is mapped to it.
        layouts: Key in `below_modules` -> the layout that the rule gives.
    """

    sources: dict[str, Source] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    left_out: list[str] = field(default_factory=list)
    strays: dict[str, str] = field(default_factory=dict)
    unplaced: dict[str, str] = field(default_factory=dict)
    unused_rules: list[str] = field(default_factory=list)
    filled: dict[str, float] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    below_modules: list[tuple[str, str]] = field(default_factory=list)
    layouts: dict[str, Layout] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Mapped:
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
class _NamedTarget:
    """A tensor of the module under one of its names."""

    target: Target
    place: ModuleTensor

    @classmethod
    def of(cls, target: Target, name: str) -> "_NamedTarget":
        """Return the target under one of its names."""
        return cls(target, next(place for place in target.places if place.name == name))

    @property
    def origins(self) -> list[LayerOrigin]:
        return [each for each in self.target.origins if each.name == self.place.name]


def mapped_sources(
    mapper: KeyMapper, reader: CheckpointReader, targets: Sequence[Target], averages: Mapping[str, str]
) -> MappedSources:
    """Apply a mapper.

    Args:
        averages: Variable -> its moving average, if averages are wanted; the variable itself may not be stored.

    Raises:
        InvalidArgumentError: two tensors are mapped to one and cannot be joined; a layout is unknown; sizes do not fit.
    """
    result = MappedSources()
    places = {place.name: _NamedTarget(target, place) for target in targets for place in target.places}
    modules = [rule for rule in rules_of(mapper) if rule.is_module]
    known = {dotted(name) for target in targets for name in target.possible_names} if modules else frozenset()
    by_name: dict[str, list[_Mapped]] = {}
    joined: dict[tuple[str, int], list[_Mapped]] = {}  # name and rule -> parts
    split: list[_Mapped] = []
    names_of = names_for_rules(reader)
    unused = {id(rule): rule for rule in rules_of(mapper)}
    needless = {number for number, rule in unused.items() if rule.is_needless(places)}
    astray: dict[str, tuple[CheckedRule, str]] = {}
    for key in dict.fromkeys((*reader.keys(), *averages)):
        names = names_of(key)
        match = rule_match(mapper, names, known)
        if match is None:
            astray.update((key, (rule, path)) for rule in modules if (path := _below_module(rule, names)))
            continue
        rule = match.rule
        unused.pop(id(rule), None)
        result.taken.add(key)
        missing = [target for target in match.targets if target not in places]
        if id(rule) in needless and (missing or not match.targets):
            result.unplaced[key] = missing[0] if missing else ""
        elif not match.targets:
            result.left_out.append(key)
        elif rule.is_module:
            result.below_modules.append((match.targets[0], key))
            if rule.given_layout is not None:
                result.layouts[key] = rule.given_layout
        elif missing:
            result.strays[key] = missing[0]
        else:
            read_key = averages.get(key, key)
            every_name = (match.name, *names[2:], key)
            mapped = _Mapped(key, reader.shape(read_key), rule.given_layout, match.name, every_name, match)
            if rule.add and not value_dtype(read_key, reader.dtype(read_key)).is_floating_point:
                raise InvalidArgumentError(f"{reader.path}: {quoted(key)} has no floating-point values to add to")
            if rule.is_join:
                joined.setdefault((match.targets[0], id(rule)), []).append(mapped)
            elif len(match.targets) > 1:
                split.append(mapped)
            else:
                by_name.setdefault(match.targets[0], []).append(mapped)
    _add_fills(result, places, unused)
    if astray:
        auxiliary = auxiliary_keys(reader)
        for key, (rule, path) in astray.items():
            if key not in auxiliary:
                (result.unplaced if id(rule) in needless else result.strays)[key] = path
    found = {rule.targets for rule in rules_of(mapper) if id(rule) not in unused and rule.targets}
    wanted = [
        rule
        for number, rule in unused.items()
        if number not in needless and not rule.is_alias and rule.targets not in found
    ]
    result.absent.update((name, rule.name) for rule in wanted if rule.name for name in targets_of_rule(rule))
    result.unused_rules.extend(source_text(rule.source) for rule in wanted)
    for (name, _), given in joined.items():
        with error_context(f"{reader.path}: {quoted(given[0].matched)} and others, joined to {quoted(name)}"):
            _add_joined(result, places[name], name, without_copies(reader, given))
    for mapped in split:
        with error_context(f"{reader.path}: {quoted(mapped.matched)}"):
            _add_split(result, places, mapped)
    of_rules = dict(result.sources)
    for name, given in by_name.items():
        if name in of_rules:
            _check_free(of_rules, name, given[0].key)
        _add(result, places, name, without_copies(reader, given), reader.path)
    return result


def _below_module(rule: CheckedRule, names: Sequence[str]) -> str | None:
    """Return the name that a rule for modules would give to a tensor that the module does not have."""
    found = (rule.match(name, None) for name in names)
    return next((match.targets[0] for match in found if match is not None and match.targets), None)


def _add_fills(result: MappedSources, places: Mapping[str, _NamedTarget], unused: dict[int, CheckedRule]) -> None:
    for rule in [rule for rule in unused.values() if rule.fill is not None]:
        names = list(targets_of_rule(rule))
        if all(name in places for name in names):
            del unused[id(rule)]
        result.filled.update(dict.fromkeys(names, rule.fill or 0.0))


def _add_joined(result: MappedSources, here: _NamedTarget, name: str, given: list[_Mapped]) -> None:
    """Add the source of a tensor that a rule joins from several variables."""
    rule = given[0].rule
    count = len(rule.sources)
    if count == 1:
        given.sort(key=lambda mapped: natural_order(mapped.matched))
    else:
        for number, source in enumerate(rule.sources):
            of_part = [mapped for mapped in given if mapped.part == number]
            if len(of_part) > 1:
                raise InvalidArgumentError(
                    f"{quoted(of_part[0].key)} and {quoted(of_part[1].key)} both match {quoted(source_text(source))}. "
                    f"Map one of them to None"
                )
            if not of_part:
                result.absent[name] = source_text(source)
                return
        given.sort(key=lambda mapped: mapped.part)
    parts = [
        SourcePart(each.key, each.layout or _layout_of_part(here, each, at, len(given)))
        for at, each in enumerate(given)
    ]
    if rule.sizes is not None:
        for part, mapped, size in zip(parts, given, rule.sizes, strict=True):
            shape = part.layout.torch_shape(mapped.shape)
            if rule.axis >= len(shape) or shape[rule.axis] != size:
                raise InvalidArgumentError(
                    f"{quoted(mapped.key)} is {shape_text(shape)} in torch's order, but the rule gives it size {size} "
                    f"along axis {rule.axis}. Give the stored sizes"
                )
    _check_free(result.sources, name, given[0].key)
    variable_name = variable_name_of(given[0].matched)
    result.sources[name] = Source(tuple(parts), variable_name, rule.axis, added=rule.add)


def _layout_of_part(here: _NamedTarget, mapped: _Mapped, at: int, count: int) -> Layout:
    for each in here.origins:
        for leaves in each.origin.variables[at : at + 1] if len(each.origin.variables) == count else ():
            for name in mapped.names:
                leaf = leaf_of(name, leaves, loosely=True)
                if leaf is not None:
                    return leaves[leaf]
    return _whole_layout(here, mapped)


def _whole_layout(here: _NamedTarget, mapped: _Mapped) -> Layout:
    """Return the layout that the name of a variable would imply if the variable were the whole tensor."""
    of_layer = (layout for each, layout, _ in _origins_of(here, mapped) if each.origin.bounds is None)
    found = next(of_layer, None)
    if found is None:
        _check_known(here, variable_name_of(mapped.matched), len(mapped.shape))
    return found or SAME


def _add_split(result: MappedSources, places: Mapping[str, _NamedTarget], mapped: _Mapped) -> None:
    """Add the sources of the tensors into which a rule splits one variable."""
    rule, names = mapped.rule, mapped.match.targets if mapped.match is not None else ()
    wanted = [places[name].target.shape for name in names]
    sizes = rule.sizes
    if sizes is None and all(shape is not None and rule.axis < len(shape) for shape in wanted):
        sizes = tuple(shape[rule.axis] for shape in wanted if shape is not None)
    start = 0
    for number, name in enumerate(names):
        layout = mapped.layout or _whole_layout(places[name], mapped)
        if sizes is None:
            held = layout.torch_shape(mapped.shape)
            if rule.axis >= len(held) or held[rule.axis] % len(names):
                raise InvalidArgumentError(
                    f"{shape_text(held)} cannot be split into {len(names)} equal parts along axis {rule.axis}. Give "
                    f"sizes"
                )
            sizes = (held[rule.axis] // len(names),) * len(names)
        stop = start + sizes[number]
        _check_free(result.sources, name, mapped.key)
        bounds = Bounds(start, stop, sum(sizes))
        part = SourcePart(mapped.key, layout)
        result.sources[name] = Source((part,), variable_name_of(mapped.matched), rule.axis, bounds, rule.add)
        start = stop


def _check_free(sources: Mapping[str, Source], name: str, key: str) -> None:
    if name in sources:
        raise _both_mapped(sources[name].key, key, name)


def _both_mapped(first: str, second: str, name: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{quoted(first)} and {quoted(second)} are both mapped to {quoted(name)}. Map one of them to None"
    )


def implied_layout(target: Target, name: str, key: str, *, must_be_known: bool = False) -> Layout | None:
    """Return the layout that a stored name implies for a tensor; None if it implies none.

    Args:
        name: Name of the tensor.
        must_be_known: Raise InvalidArgumentError if the name implies none and the order of the axes is unknown.
    """
    here = _NamedTarget.of(target, name)
    found = next((layout for _, layout, _ in _origins_of(here, _Mapped(key, (), None, key, (key,)))), None)
    if found is None and must_be_known:
        _check_known(here, variable_name_of(key), target.tensor.dim())
    return found


def single_source(target: Target, name: str, names: Sequence[str], shape: Shape, layout: Layout | None) -> Source:
    """Return the source of a tensor made from one variable with these names, its key first. Raises if it is unknown."""
    return _single(_NamedTarget.of(target, name), _Mapped(names[0], shape, layout, names[0], names))[0]


def shared_origin(target: Target, name: str, key: str, layout: Layout | None) -> LayerOrigin | None:
    """Return the origin of a tensor if the tensor is only a range of the variable `key`; else None.

    Args:
        layout: The layout of the rule.
    """
    here = _NamedTarget.of(target, name)
    implied = (each for each, _, _ in _origins_of(here, _Mapped(key, (), None, key, (key,))))
    given = (
        each
        for each in here.origins
        for leaves in each.origin.variables
        if layout is not None and any(known.name == layout.name for known in leaves.values())
    )
    found = next(implied if layout is None else given, None)
    return found if found is not None and found.origin.bounds is not None else None


def part_layout(target: Target, name: str, key: str, part: int, count: int) -> Layout:
    """Return the layout that a stored name implies for one of the variables that are joined to a tensor.

    Raises InvalidArgumentError if the name implies none and the order of the axes is unknown.
    """
    here = _NamedTarget.of(target, name)
    return _layout_of_part(here, _Mapped(key, tuple(target.tensor.shape), None, key, (key,)), part, count)


def _add(
    result: MappedSources, places: Mapping[str, _NamedTarget], name: str, given: Sequence[_Mapped], path: str
) -> None:
    """Add the source of one tensor, and the sources of the tensors made from the same variable."""
    here = places[name]
    if len(given) > 1:
        source = _joined(here, given)
        if source is None:
            with error_context(path):
                raise _both_mapped(given[0].key, given[1].key, name)
        result.sources[name] = source
        return
    with error_context(f"{path}: {quoted(given[0].matched)}, mapped to {quoted(name)}"):
        source, used = _single(here, given[0])
    result.sources[name] = replace(source, added=given[0].rule.add)
    if used is None or used.origin.bounds is None:
        return
    for other, origin in used.siblings():
        if origin.bounds is not None and origin.variables == used.origin.variables and other in places:
            result.sources.setdefault(other, Source(source.parts, source.variable_name, origin.axis, origin.bounds))


def _single(here: _NamedTarget, mapped: _Mapped) -> tuple[Source, LayerOrigin | None]:
    """Return the source for one stored tensor, and the layer origin that determined it, if any."""
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
    _check_known(here, variable_name, len(mapped.shape))
    return Source.of(mapped.key, SAME, variable_name), None


def _by_layout(here: _NamedTarget, mapped: _Mapped, layout: Layout) -> tuple[Source, LayerOrigin | None]:
    if layout == DENSE:
        # This layout only puts the inputs first. The order of the gates follows from the layer.
        for each, own, name in _origins_of(here, mapped):
            source = _source(mapped, own, name, each.origin)
            if own.gates and _fits(source, mapped.shape, here.target.shape):
                return source, each
    variable_name = next((name for _, _, name in _origins_of(here, mapped)), variable_name_of(mapped.names[0]))
    source, wanted = Source.of(mapped.key, layout, variable_name), here.target.shape
    # Keras's two kernels of an RNN cell are "dense", and so is the one of TensorFlow 1: a range of it is used.
    for each in () if wanted is not None and _fits(source, mapped.shape, wanted) else here.origins:
        ranges = each.origin.bounds is not None and len(each.origin.variables) == 1
        if ranges and any(known.name == layout.name for known in each.origin.variables[0].values()):
            return _source(mapped, layout, variable_name, each.origin), each
    if layout.is_same and not _fits(source, mapped.shape, here.target.shape):
        squeezed = Source.of(mapped.key, SQUEEZE, variable_name)
        source = squeezed if _fits(squeezed, mapped.shape, here.target.shape) else source
    return source, None


def _origins_of(here: _NamedTarget, mapped: _Mapped) -> Iterable[tuple[LayerOrigin, Layout, str]]:
    """Yield the ways to build the target from a single variable that has one of the mapped names."""
    for name in mapped.names:
        for each in here.origins:
            if len(each.origin.variables) != 1:
                continue
            [leaves] = each.origin.variables
            leaf = leaf_of(name, leaves, loosely=True)
            if leaf is not None:
                yield each, leaves[leaf], variable_name_of(name)


def _joined(here: _NamedTarget, given: Sequence[_Mapped]) -> Source | None:
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


def _source(mapped: _Mapped, layout: Layout, variable_name: str, origin: TensorOrigin) -> Source:
    return Source((SourcePart(mapped.key, layout),), variable_name, origin.axis, origin.bounds)


def _fits(source: Source, stored: Shape, wanted: Shape | None) -> bool:
    shapes = dict.fromkeys(source.read_keys, stored)
    try:
        return wanted is None or source.resolved(shapes, wanted).shape(shapes) == wanted
    except InvalidArgumentError:
        return False


def _check_known(here: _NamedTarget, variable_name: str, rank: int) -> None:
    """Raise InvalidArgumentError if neither the stored name nor the module implies the order of axes."""
    attribute = here.place.attribute
    is_turned = any(not layout.is_same for each in here.origins for layout in each.origin.layouts())
    # Whether the variable has torch's own name for a weight. If TensorFlow stores this layer with its axes in a
    # different order, only names such as "weight", which say nothing about the order, count as torch's.
    is_own = variable_name == attribute and variable_name not in KERNELS and (not is_turned or attribute in AMBIGUOUS)
    if rank < 2 or is_own or (here.origins and not is_turned and variable_name not in KERNELS):
        return
    raise InvalidArgumentError(
        f"the layout of {quoted(attribute)} of a {type(here.place.module).__name__} is unknown: a name that ends in "
        f'{quoted(variable_name)} does not imply it. Give it in the rule, as in ("fc.weight", "dense"); '
        f'use "same" if the axes are in torch\'s order. Layouts: {", ".join(LAYOUTS)}'
    )
