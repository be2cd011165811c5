"""Apply the rules of a KeyMapper to the tensors of a checkpoint: which tensor of the module each goes to, and how.

A rule without a layout gets the layout that follows from the stored name and the module (see `layer_names`). A rule
for a variable from which several tensors are made, such as the kernel of an LSTM cell of TensorFlow 1, may name any of
them; the others follow. Several variables that rules map to one tensor are joined if the layer is known to be stored
that way. A rule may also join any variables, split a variable, or fill a tensor for which none is stored.
Variables below a layer that a rule maps to a module are only renamed here; later they are found by TensorFlow's names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.errors import InvalidArgumentError, error_context
from torch_tfckpt.format.tensor_slice import shape_text
from torch_tfckpt.models.auxiliary.recognition import auxiliary_keys
from torch_tfckpt.models.implied_sources import (
    MappedTensor,
    NamedTarget,
    layout_of_part,
    source_of_one,
    source_of_several,
    whole_layout,
)
from torch_tfckpt.models.layers.assembly import Source, SourcePart
from torch_tfckpt.models.layers.layouts import Layout
from torch_tfckpt.models.layers.tensor_origins import Bounds
from torch_tfckpt.models.rules.joined_names import check_numbers
from torch_tfckpt.models.rules.key_rules import CheckedRule, source_text, targets_of_rule
from torch_tfckpt.models.rules.module_rules import known_below, path_below
from torch_tfckpt.models.rules.rule_set import RuleSet, rule_match, rules_of
from torch_tfckpt.models.stored_copies import without_copies
from torch_tfckpt.models.stored_names import names_for_rules, variable_name_of
from torch_tfckpt.models.targets import Target
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
        unplaced: As `strays`, for rules for a part that the module lacks; "" for keys that such a rule omits.
        unused_rules: Names and patterns that match nothing.
        is_unused: Whether no rule at all matches anything.
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
    is_unused: bool = False
    filled: dict[str, float] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    below_modules: list[tuple[str, str]] = field(default_factory=list)
    layouts: dict[str, Layout] = field(default_factory=dict)


def mapped_sources(
    mapper: RuleSet, reader: CheckpointReader, targets: Sequence[Target], averages: Mapping[str, str]
) -> MappedSources:
    """Apply a mapper.

    Args:
        averages: Variable -> its moving average, if averages are wanted; the variable itself may not be stored.

    Raises:
        InvalidArgumentError: two tensors are mapped to one and cannot be joined; a layout is unknown; sizes do not fit.
    """
    result = MappedSources()
    places = {place.name: NamedTarget(target, place) for target in targets for place in target.places}
    modules = [rule for rule in rules_of(mapper) if rule.is_module]
    names_of = names_for_rules(reader)
    stored = {key: names_of(key) for key in (*reader.keys(), *averages)}
    known = known_below(modules, targets, stored.values()) if modules else frozenset()
    by_name: dict[str, list[MappedTensor]] = {}
    joined: dict[tuple[str, int], list[MappedTensor]] = {}  # name and rule -> parts
    split: list[MappedTensor] = []
    unused = {id(rule): rule for rule in rules_of(mapper)}
    needless = {number for number, rule in unused.items() if rule.is_needless(places)}
    astray: dict[str, tuple[CheckedRule, str]] = {}
    for key, names in stored.items():
        match = rule_match(mapper, names, known)
        if match is None:
            astray.update((key, (rule, path)) for rule in modules if (path := path_below(rule, names)))
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
            mapped = MappedTensor(key, reader.shape(read_key), rule.given_layout, match.name, every_name, match)
            if rule.add and not value_dtype(read_key, reader.dtype(read_key)).is_floating_point:
                raise InvalidArgumentError(
                    f"{reader.path}: {quoted(key)} is not floating-point, so a rule cannot add to it"
                )
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
    is_used = len(unused) < len(rules_of(mapper))
    result.is_unused = bool(unused) and not is_used and not astray
    result.unused_rules.extend(source_text(rule.source) for rule in wanted if not (is_used and rule.is_of_preset))
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


def _add_fills(result: MappedSources, places: Mapping[str, NamedTarget], unused: dict[int, CheckedRule]) -> None:
    for rule in [rule for rule in unused.values() if rule.fill is not None]:
        names = list(targets_of_rule(rule))
        if all(name in places for name in names):
            del unused[id(rule)]
        result.filled.update(dict.fromkeys(names, rule.fill or 0.0))


def _add_joined(result: MappedSources, here: NamedTarget, name: str, given: list[MappedTensor]) -> None:
    """Add the source of a tensor that a rule joins from several variables."""
    rule = given[0].rule
    count = len(rule.sources)
    if count == 1:
        given.sort(key=lambda mapped: natural_order(mapped.matched))
        check_numbers([mapped.matched for mapped in given])
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
        SourcePart(each.key, each.layout or layout_of_part(here, each, at, len(given))) for at, each in enumerate(given)
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


def _add_split(result: MappedSources, places: Mapping[str, NamedTarget], mapped: MappedTensor) -> None:
    """Add the sources of the tensors into which a rule splits one variable."""
    rule, names = mapped.rule, mapped.match.targets if mapped.match is not None else ()
    wanted = [places[name].target.shape for name in names]
    sizes = rule.sizes
    if sizes is None and all(shape is not None and rule.axis < len(shape) for shape in wanted):
        sizes = tuple(shape[rule.axis] for shape in wanted if shape is not None)
    start = 0
    for number, name in enumerate(names):
        layout = mapped.layout or whole_layout(places[name], mapped)
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


def _add(
    result: MappedSources, places: Mapping[str, NamedTarget], name: str, given: Sequence[MappedTensor], path: str
) -> None:
    """Add the source of one tensor, and the sources of the tensors made from the same variable."""
    here = places[name]
    if len(given) > 1:
        source = source_of_several(here, given)
        if source is None:
            with error_context(path):
                raise _both_mapped(given[0].key, given[1].key, name)
        result.sources[name] = source
        return
    with error_context(f"{path}: {quoted(given[0].matched)}, mapped to {quoted(name)}"):
        source, used = source_of_one(here, given[0])
    result.sources[name] = replace(source, added=given[0].rule.add)
    if used is None or used.origin.bounds is None:
        return
    for other, origin in used.siblings():
        if origin.bounds is not None and origin.variables == used.origin.variables and other in places:
            result.sources.setdefault(other, Source(source.parts, source.variable_name, origin.axis, origin.bounds))
