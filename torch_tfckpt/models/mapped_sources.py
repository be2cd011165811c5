"""Apply the rules of a KeyMapper to the tensors of a checkpoint: which tensor of the module each goes to, and how.

A rule without a layout gets the one that follows from the pair of stored name and module (see `layer_names`). A rule
for a variable from which several tensors are made, such as the kernel of an LSTM cell of TensorFlow 1, may name any of
them; the others follow. Several variables that rules map to one tensor are joined if the layer is known to be stored
that way.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.errors import InvalidArgumentError, error_context
from torch_tfckpt.format.tensor_names import short_key
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.models.assembly import Source, SourcePart
from torch_tfckpt.models.key_mapper import KeyMapper
from torch_tfckpt.models.layer_names import AMBIGUOUS, KERNELS
from torch_tfckpt.models.layouts import DENSE, LAYOUTS, SAME, SQUEEZE, Layout, layout_of_rule
from torch_tfckpt.models.stored_names import variable_name_of
from torch_tfckpt.models.targets import LayerOrigin, Target
from torch_tfckpt.models.tensor_origins import Leaves, TensorOrigin
from torch_tfckpt.saveables.module_tensors import ModuleTensor
from torch_tfckpt.text import quoted


@dataclass(slots=True)
class MappedSources:
    """Result of applying the rules of a mapper.

    Attributes:
        sources: Name of a tensor -> its source.
        taken: The keys that rules match.
        left_out: Keys that are omitted.
        strays: Key -> name to which it is mapped, but which the module does not have.
        unused_rules: Names and patterns that match nothing.
    """

    sources: dict[str, Source] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    left_out: list[str] = field(default_factory=list)
    strays: dict[str, str] = field(default_factory=dict)
    unused_rules: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Mapped:
    """A stored tensor that a rule maps to a tensor of the module."""

    key: str
    shape: Shape
    layout: Layout | None  # the rule's
    matched: str  # the name that the rule matched
    names: Sequence[str]  # all names of the variable, the matched one first


@dataclass(frozen=True, slots=True)
class _NamedTarget:
    """A tensor of the module under one of its names."""

    target: Target
    place: ModuleTensor

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
        InvalidArgumentError: two tensors are mapped to one and cannot be joined; a layout is unknown.
    """
    result = MappedSources()
    places = {place.name: _NamedTarget(target, place) for target in targets for place in target.places}
    by_name: dict[str, list[_Mapped]] = {}
    unused = dict.fromkeys(mapper.sources)
    for key in dict.fromkeys((*reader.keys(), *averages)):
        others = (name for name in reader.names_of(key) if name not in (key, short_key(key)))
        names = (short_key(key), key, *others)
        match = mapper.match(*names)
        if match is None:
            continue
        unused.pop(match.rule, None)
        result.taken.add(key)
        if match.mapped.target is None:
            result.left_out.append(key)
        elif match.mapped.target not in places:
            result.strays[key] = match.mapped.target
        else:
            shape = reader.shape(averages.get(key, key))
            layout = None if match.mapped.layout is None else layout_of_rule(match.mapped.layout)
            mapped = _Mapped(key, shape, layout, match.name, (match.name, *names[2:], key))
            by_name.setdefault(match.mapped.target, []).append(mapped)
    result.unused_rules.extend(rule if isinstance(rule, str) else rule.pattern for rule in unused)
    for name, given in by_name.items():
        _add(result, places, name, given, reader.path)
    return result


def implied_layout(target: Target, name: str, key: str, *, must_be_known: bool = False) -> Layout | None:
    """Return the layout that a stored name implies for a tensor; None if it implies none.

    Args:
        name: Name of the tensor.
        must_be_known: Raise InvalidArgumentError if the name must imply one, because axes may be in another order.
    """
    here = _NamedTarget(target, next(place for place in target.places if place.name == name))
    mapped = _Mapped(key, (), None, key, (key,))
    found = next((layout for _, layout, _ in _origins_of(here, mapped)), None)
    if found is None and must_be_known:
        _check_known(here, variable_name_of(key), target.tensor.dim())
    return found


def _add(
    result: MappedSources, places: Mapping[str, _NamedTarget], name: str, given: Sequence[_Mapped], path: str
) -> None:
    """Add the source of one tensor, and of those that are made from the same variable."""
    here = places[name]
    if len(given) > 1:
        source = _joined(here, given)
        if source is None:
            raise InvalidArgumentError(
                f"{path}: {quoted(given[0].key)} and {quoted(given[1].key)} are both mapped to "
                f"{quoted(name)}. Map one of them to None"
            )
        result.sources[name] = source
        return
    [mapped] = given
    with error_context(f"{path}: {quoted(mapped.matched)}, mapped to {quoted(name)}"):
        source, used = _single(here, mapped)
    result.sources[name] = source
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
        # It says that the inputs come first. The order of the gates follows from the layer.
        for each, own, name in _origins_of(here, mapped):
            source = _source(mapped, own, name, each.origin)
            if own.gates and _fits(source, mapped.shape, here.target.shape):
                return source, each
    variable_name = next((name for _, _, name in _origins_of(here, mapped)), variable_name_of(mapped.names[0]))
    for each in here.origins:
        ranges = each.origin.bounds is not None and len(each.origin.variables) == 1
        if ranges and any(known.name == layout.name for known in each.origin.variables[0].values()):
            return _source(mapped, layout, variable_name, each.origin), each
    source = Source.of(mapped.key, layout, variable_name)
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
            leaf = _leaf_of(name, leaves, loosely=True)
            if leaf is not None:
                yield each, leaves[leaf], variable_name_of(name)


def _joined(here: _NamedTarget, given: Sequence[_Mapped]) -> Source | None:
    """Return the source that joins several variables, if they are those of the layer; else None."""
    for each in here.origins:
        if len(each.origin.variables) != len(given):
            continue
        parts: list[SourcePart] = []
        for leaves in each.origin.variables:
            found = [
                SourcePart(mapped.key, leaves[leaf] if mapped.layout is None else mapped.layout)
                for mapped in given
                if (leaf := next((leaf for name in mapped.names if (leaf := _leaf_of(name, leaves))), None)) is not None
            ]
            if len(found) == 1:
                parts += found
        if len({part.key for part in parts}) == len(given):
            return Source(tuple(parts), variable_name_of(given[0].matched), each.origin.axis)
    return None


def _leaf_of(name: str, leaves: Leaves, *, loosely: bool = False) -> str | None:
    """Return the longest of the names of a variable with which a stored name ends.

    Args:
        loosely: Only the last parts must be equal, since a rule says which layer it is.
    """
    stored = f"/{short_key(name)}"
    ends = [leaf for leaf in leaves if stored.endswith((f"/{leaf}", f".{leaf}"))]
    if ends or not loosely:
        return max(ends, key=len, default=None)
    last = variable_name_of(name)
    return next((leaf for leaf in leaves if leaf.rpartition("/")[2] == last), None)


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
    is_turned = any(
        not layout.is_same for each in here.origins for leaves in each.origin.variables for layout in leaves.values()
    )
    # Torch's own name for a weight. Of a layer that TensorFlow stores in another order, only "weight" and the like are.
    is_own = variable_name == attribute and variable_name not in KERNELS and (not is_turned or attribute in AMBIGUOUS)
    if rank < 2 or is_own or (here.origins and not is_turned and variable_name not in KERNELS):
        return
    raise InvalidArgumentError(
        f"the layout of {quoted(attribute)} of a {type(here.place.module).__name__} is unknown: a name that ends in "
        f'{quoted(variable_name)} does not imply it. Give it in the rule, as in ("fc.weight", "dense"); '
        f'use "same" if the axes are in torch\'s order. Layouts: {", ".join(LAYOUTS)}'
    )
