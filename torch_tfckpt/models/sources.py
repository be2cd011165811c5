"""Find the stored tensors, and their layouts, from which each tensor of a module is loaded."""

import logging
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Final, Literal

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.models.auxiliary.averages import StoredAverages, stored_averages
from torch_tfckpt.models.file_reader import has_known_layouts, renamed_only
from torch_tfckpt.models.layers.assembly import Source, SourcePart
from torch_tfckpt.models.layers.layer_names import AMBIGUOUS
from torch_tfckpt.models.layers.layouts import SAME, Layout
from torch_tfckpt.models.layers.tensor_origins import Leaves
from torch_tfckpt.models.mapped_sources import MappedSources, mapped_sources
from torch_tfckpt.models.rules.base_module import mapper_for
from torch_tfckpt.models.rules.rule_set import RuleSet
from torch_tfckpt.models.stored_copies import stored_copies
from torch_tfckpt.models.stored_names import (
    Names,
    Naming,
    StoredVariable,
    choose_naming,
    dotted,
    is_spelled_by_torch,
    naming_below,
    numbered_names,
    stored_names,
    variable_name_of,
)
from torch_tfckpt.models.targets import LayerOrigin, Target
from torch_tfckpt.saveables.stored_keys import same_stored
from torch_tfckpt.text import listed, quoted

Averages = Literal["warn", "ignore", "prefer", "only"]

_LISTED: Final = 4  # keys in a remark

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Found:
    """Result of the search. Each target is identified by its first name."""

    stored_averages: StoredAverages
    sources: dict[str, Source] = field(default_factory=dict)
    filled: dict[str, float] = field(default_factory=dict)  # name -> fill value; no variable is stored
    prefix: str = ""  # as the checkpoint spells it
    below_prefix: set[str] = field(default_factory=set)  # keys; without a prefix, all of them
    apart: set[str] = field(default_factory=set)  # keys of further copies of tied tensors, which are not read
    left_out: list[str] = field(default_factory=list)  # keys that the mapper omits
    strays: dict[str, str] = field(default_factory=dict)  # key -> name it is mapped to, which the module lacks
    unplaced: dict[str, str] = field(default_factory=dict)  # the same, for rules for parts that the module lacks
    asked_for: dict[str, str] = field(default_factory=dict)  # name -> key mapped to it, which is not stored
    not_averaged: list[str] = field(default_factory=list)  # names without an average, if only averages are wanted
    unused_rules: list[str] = field(default_factory=list)  # names and patterns of the mapper that match nothing
    is_unused: bool = False  # whether no rule of the mapper matches anything
    unknown_order: list[str] = field(default_factory=list)  # names of tensors whose axes may be in TensorFlow's order
    remarks: list[str] = field(default_factory=list)  # for the report: warnings, and arguments that would find more


def find_sources(
    reader: CheckpointReader,
    targets: Sequence[Target],
    *,
    mapper: RuleSet | None,
    ema: Averages,
    prefix: str | None,
) -> Found:
    """Find a source for each target, first by the mapper, then by names.

    Raises:
        InvalidArgumentError: a name is ambiguous, or a layout is unknown; nothing is guessed.
        NotFoundError: nothing is stored below `prefix`.
        DataLossError: the object graph, or a list of shared names, is damaged.
    """
    found = Found(stored_averages(reader))
    among_stored = found.stored_averages
    averages = among_stored.of if ema in ("prefer", "only") else {}
    copies = stored_copies(reader)
    mapped = MappedSources()
    if mapper is not None:
        mapped = mapped_sources(mapper_for(mapper, targets), reader, targets, averages)
        found.is_unused = mapped.is_unused and not any(mapper.match(name) for name in among_stored.of)
    found.left_out, found.strays, found.unused_rules = mapped.left_out, mapped.strays, mapped.unused_rules
    found.unplaced = mapped.unplaced
    if ema in ("prefer", "only") and among_stored.unknown:
        found.remarks.append(
            f"it is not stored which variables these moving averages belong to, or one variable has several, so they "
            f"are not loaded: {listed(among_stored.unknown, _LISTED)}. Load one with a rule in mapper="
        )
    unnamed = set() if reader.keras is None else reader.keras.unnamed - reader.keras.of_optimizer
    if unnamed:
        found.remarks.append(
            f"the file does not record which variables these are, so they are not found by name: "
            f"{listed(sorted(unnamed), _LISTED)}. Load the .keras file of the model, or name them with rules in mapper="
        )
    for target in targets:
        given = [mapped.sources[name] for name in target.names if name in mapped.sources]
        if given:
            found.sources[target.name] = given[0]
            _note_apart(reader, target, [source.key for source in given], found)
    filled = {target.name: mapped.filled[name] for target in targets for name in target.names if name in mapped.filled}
    left = [target for target in targets if target.name not in found.sources and target.name not in filled]
    for target in left:
        found.asked_for.update({name: mapped.absent[name] for name in target.names if name in mapped.absent})
    without_rules = [target for target in left if not any(name in found.asked_for for name in target.names)]
    find_in_modules(reader, without_rules, mapped, found)
    left = [target for target in without_rules if target.name not in found.sources]
    _find_by_name(reader, left, averages, prefix, mapped.taken, copies, found)
    _check_order_of_axes(reader, without_rules, mapped.layouts, found)
    _fill_the_rest(targets, found)
    found.filled.update(filled)
    used = {copies.get(key, key) for source in found.sources.values() for key in source.keys}
    found.apart.update(key for pair in copies.items() if pair[1] in used for key in pair)
    for target in targets:
        source = found.sources.get(target.name)
        if source is None:
            continue
        parts = [replace(part, average=averages.get(part.key)) for part in source.parts]
        if any(part.average for part in parts):
            found.sources[target.name] = replace(source, parts=tuple(parts))
        if ema == "only" and not all(part.average for part in parts) and not target.is_counter:
            found.not_averaged.append(target.name)
    if ema in ("warn", "ignore") and among_stored.of:
        _remark_on_averages(among_stored.of, [target for target in left if target.name not in found.sources], found)
    return found


def _fill_the_rest(targets: Sequence[Target], found: Found) -> None:
    """Fill tensors that TensorFlow does not store for a layer whose other tensors are from TensorFlow's variables."""
    from_tensorflow = {
        name
        for target in targets
        for name in target.names
        if (source := found.sources.get(target.name)) is not None and _has_name_of_tensorflow(target, source, name)
    }
    for target in targets:
        if target.name in found.sources or any(name in found.asked_for for name in target.names):
            continue
        for each in target.origins:
            if each.origin.fill is not None and any(name in from_tensorflow for name, _ in each.siblings()):
                found.filled[target.name] = each.origin.fill


def _has_name_of_tensorflow(target: Target, source: Source, name: str) -> bool:
    """Return whether a tensor of this name is stored under a name that only TensorFlow gives to it."""
    leaves = (leaf.rpartition("/")[2] for each in target.origins for leaf in each.origin.leaves())
    return source.variable_name != name.rpartition(".")[2] and source.variable_name in leaves


def _remark_on_averages(averages: Mapping[str, str], missing: Sequence[Target], found: Found) -> None:
    names = Names(
        ((base, base) for base in averages), {base: variable_name_of(base) for base in averages}, unique=False
    )
    below = names.below({name: {target.name} for target in missing for name in target.possible_names})
    averaged = {name for of in below.values() for name in of}
    averaged.update(name for name, key in found.asked_for.items() if key in averages)
    if averaged:
        found.remarks.append(f'moving averages of {len(averaged)} missing tensors are stored: pass ema="prefer"')


def _find_by_name(
    reader: CheckpointReader,
    targets: Sequence[Target],
    averages: Mapping[str, str],
    prefix: str | None,
    taken: set[str],
    copies: Mapping[str, str],
    found: Found,
) -> None:
    """Add a source for each target that is found by name."""
    _check_distinct(targets)
    wanted: dict[str, set[str]] = {}
    for target in targets:
        for each in target.possible_names:
            wanted.setdefault(each, set()).add(target.name)
    counted = {target.name for target in targets if not target.is_counter and not _may_be_filled(target)}
    with_wrapper = any(target.is_wrappers for target in targets)
    ways = stored_names(reader, averages, leave_out=taken, with_wrapper=with_wrapper, copies=copies)
    if prefix is None:
        naming = choose_naming(ways, wanted, counted, reader.path)
    else:
        naming = naming_below(ways, wanted, prefix, reader.path)
    found.prefix = naming.spelled_prefix
    if naming.remark:
        found.remarks.append(naming.remark)
    found.below_prefix = set(reader.keys()) if not naming.prefix else naming.keys_below()
    layers = _LayersByName(naming, targets)
    for target in targets:
        source = _source_of(reader, target, naming, layers, found)
        if source is not None:
            found.sources[target.name] = source


def find_in_modules(reader: CheckpointReader, targets: Sequence[Target], mapped: MappedSources, found: Found) -> None:
    """Add a source for each target that is stored below the name of a layer that a rule maps to its module."""
    if not mapped.below_modules:
        return
    keys = {key for _, key in mapped.below_modules}
    names = [*mapped.below_modules, *numbered_names(mapped.below_modules)]
    naming = Naming(Names(names, {key: variable_name_of(key) for key in keys}, unique=False), "")
    layers = _LayersByName(naming, targets)
    for target in targets:
        source = _source_of(reader, target, naming, layers, found)
        if source is None:
            continue
        is_turned = any(layout.changes_values for layout in target.layouts)
        may_be_turned = source.variable_name in AMBIGUOUS and is_turned
        parts = (
            replace(part, layout=mapped.layouts.get(part.key, part.layout))
            if part.layout.changes_values or may_be_turned
            else part
            for part in source.parts
        )
        found.sources[target.name] = replace(source, parts=tuple(parts))


def _may_be_filled(target: Target) -> bool:
    return any(not each.origin.variables for each in target.origins)


def _check_distinct(targets: Sequence[Target]) -> None:
    """Raise InvalidArgumentError if names differ only in "/" and ".", which stored names treat as equal."""
    seen: dict[str, tuple[str, Target]] = {}
    for target in targets:
        for name in target.names:
            other, owner = seen.setdefault(dotted(name), (name, target))
            if owner is not target:
                raise InvalidArgumentError(
                    f"{quoted(other)} and {quoted(name)} of the module cannot be told apart by stored names. Map them "
                    f"with a KeyMapper"
                )


def _source_of(
    reader: CheckpointReader, target: Target, naming: Naming, layers: "_LayersByName", found: Found
) -> Source | None:
    """Return the source of a target, found by its own names or else by TensorFlow's; None if not found."""
    candidates = [
        (place.name, _by_own_name(reader, target, each)) for place in target.places for each in naming.find(place.name)
    ]
    if not candidates:
        candidates = [(each.name, source) for each in target.origins for source in layers.sources(each)]
    sources = {source.key: (name, source) for name, source in reversed(candidates)}
    if not sources:
        return None
    if len({name for name, _ in sources.values()}) < len(sources):
        keys = dict.fromkeys(source.key for _, source in candidates)
        raise InvalidArgumentError(
            f"{reader.path}: {quoted(target.name)} may be stored as {' or '.join(map(quoted, keys))}. Choose "
            f"one of these keys with a KeyMapper"
        )
    first = candidates[0][1]
    _note_apart(reader, target, list(dict.fromkeys(source.key for _, source in candidates)), found)
    return first


def _by_own_name(reader: CheckpointReader, target: Target, stored: StoredVariable) -> Source:
    """Return the source for a tensor that is stored under torch's name.

    In an object-based checkpoint, the variable of an attribute "weight" may be called "kernel", which implies a layout.
    TensorFlow's variables may have torch's name, too: the "bias" of a dense layer with heads has two axes.
    """
    variable = reader.variable_name(stored.key)
    leaf = stored.variable_name if variable is None else variable_name_of(variable)
    implied = [leaves[leaf] for each in target.origins for leaves in each.origin.variables if leaf in leaves]
    return Source.of(stored.key, implied[0] if implied else SAME, stored.variable_name)


def _check_order_of_axes(
    reader: CheckpointReader, targets: Sequence[Target], given: Container[str], found: Found
) -> None:
    """Raise InvalidArgumentError for a "weight" that may be stored in TensorFlow's order of axes or in torch's.

    Both orders are possible if the shape fits either order, and if other tensors of the module have TensorFlow's names
    or the file does not show which framework wrote it. In a checkpoint, tensors whose names are spelled as in
    TensorFlow are only listed in `unknown_order`.

    Args:
        given: Keys whose layout a rule gives.
    """
    from_tensorflow = any(
        _has_name_of_tensorflow(target, source, target.name)
        for target in targets
        if (source := found.sources.get(target.name)) is not None
    )
    says_layouts = has_known_layouts(reader)
    why = "other variables have TensorFlow's names" if from_tensorflow else "the file may have been written by either"
    if not from_tensorflow and renamed_only(reader):
        why = "the file was converted from a checkpoint of TensorFlow without to_torch"
    for target in targets:
        source = found.sources.get(target.name)
        if source is None or not source.is_unchanged or source.variable_name not in AMBIGUOUS or target.shape is None:
            continue
        if source.key in given:
            continue
        layout = target.other_layout(reader.shape(source.key))
        if layout is None:
            continue
        if from_tensorflow or not says_layouts:
            rule = f"mapper={{{quoted(source.key)}: ({quoted(target.name)}, {quoted(layout.name)})}}"
            raise InvalidArgumentError(
                f"{reader.path}: it is unknown whether the axes of {quoted(source.key)} are in TensorFlow's order "
                f"or in torch's: the name is torch's, but {why}. Give the "
                f'layout, as in {rule}, or "same" instead of {quoted(layout.name)}'
            )
        if not is_spelled_by_torch(source.key, reader.names_of(source.key), target.name):
            found.unknown_order.append(target.name)


class _LayersByName:
    """Finds the stored variables of a module's layers by name.

    Args:
        targets: The tensors of the module. Origins of attributes that the module does not have are ignored.
    """

    def __init__(self, naming: Naming, targets: Sequence[Target]) -> None:
        self._naming = naming
        self._origins: dict[str, dict[int, list[LayerOrigin]]] = {}
        for each in (each for target in targets for each in target.origins):
            self._origins.setdefault(each.base, {}).setdefault(each.order, []).append(each)
        self._chosen: dict[str, int] = {}

    def sources(self, each: LayerOrigin) -> Iterator[Source]:
        """Yield the sources of a tensor: several if a variable is stored under several of its names.

        Sources are yielded only for the layer's variant chosen by `_variant`.
        """
        if each.order != self._variant(each.base) or not each.origin.variables:
            return
        for chosen in product(*(self._find(each.base, leaves) for leaves in each.origin.variables)):
            parts = tuple(SourcePart(stored.key, layout) for stored, layout in chosen)
            yield Source(parts, chosen[0][0].variable_name, each.origin.axis, each.origin.bounds)

    def _variant(self, base: str) -> int:
        """Return the number of the best variant: preferably complete, then with the most stored variables."""
        if base not in self._chosen:
            variants = self._origins[base]
            self._chosen[base] = max(variants, key=lambda order: (*self._score(base, variants[order]), -order))
        return self._chosen[base]

    def _score(self, base: str, origins: Sequence[LayerOrigin]) -> tuple[bool, int]:
        needed = [
            (each.origin.fill is None, bool(self._find(base, leaves)))
            for each in origins
            for leaves in each.origin.variables
        ]
        return all(stored for is_needed, stored in needed if is_needed), sum(stored for _, stored in needed)

    def _find(self, base: str, leaves: Leaves) -> list[tuple[StoredVariable, Layout]]:
        return [(each, layout) for leaf, layout in leaves.items() for each in self._naming.find(base + dotted(leaf))]


def _note_apart(reader: CheckpointReader, target: Target, keys: Sequence[str], found: Found) -> None:
    others = [key for key in dict.fromkeys(keys) if key != keys[0]]
    found.apart.update(others)
    if not others:
        return
    listed = ", ".join(map(quoted, (keys[0], *others)))
    if all(same_stored(reader, keys[0], key) for key in others):
        level = logging.INFO
        text = f"{target.name} is one tensor in the module, but is stored several times: {listed}. The first is loaded"
    else:
        level = logging.WARNING
        text = f"{target.name} is one tensor in the module, but is stored with different values: {listed}. The first "
        text += "is loaded"
        found.remarks.append(text)
    _log.log(level, "%s: %s", reader.path, text)
