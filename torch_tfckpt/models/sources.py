"""Find the stored tensor, and its layout, from which each tensor of a module is loaded."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.errors import InvalidArgumentError, error_context
from torch_tfckpt.format.tensor_names import short_key
from torch_tfckpt.models.auxiliary import averages as averages_among
from torch_tfckpt.models.key_mapper import KeyMapper
from torch_tfckpt.models.layer_names import is_variable_name, layout_by_rule, layout_of, variable_names
from torch_tfckpt.models.layouts import SAME, Layout
from torch_tfckpt.models.stored_names import (
    Names,
    Naming,
    choose_naming,
    dotted,
    naming_below,
    stored_names,
    variable_name_of,
)
from torch_tfckpt.models.targets import Target
from torch_tfckpt.saveables.module_tensors import ModuleTensor
from torch_tfckpt.saveables.stored_keys import same_stored
from torch_tfckpt.text import quoted

Averages = Literal["warn", "ignore", "prefer", "only"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Source:
    """Stored tensor from which a target is loaded."""

    key: str  # of the variable
    layout: Layout
    variable_name: str  # last part of the name, "kernel"
    average: str | None = None  # key of its moving average, if that is read instead

    @property
    def read_key(self) -> str:
        """The key to read."""
        return self.average or self.key


@dataclass(slots=True)
class Found:
    """Result of the search. Each target is identified by its first name."""

    sources: dict[str, Source] = field(default_factory=dict)
    prefix: str = ""  # as the checkpoint spells it
    below_prefix: set[str] = field(default_factory=set)  # keys; without a prefix, all of them
    apart: set[str] = field(default_factory=set)  # keys of further copies of tied tensors, which are not read
    left_out: list[str] = field(default_factory=list)  # keys that the mapper omits
    strays: dict[str, str] = field(
        default_factory=dict
    )  # key -> name that the mapper maps it to, but that the module lacks
    asked_for: dict[str, str] = field(default_factory=dict)  # name -> key that the mapper maps to it; it is not stored
    not_averaged: list[str] = field(default_factory=list)  # names without an average, if only averages are wanted
    unused_rules: list[str] = field(default_factory=list)  # names and patterns of the mapper that match nothing
    remarks: list[str] = field(default_factory=list)  # for the report: warnings, and arguments that would find more


def find_sources(
    reader: CheckpointReader,
    targets: Sequence[Target],
    *,
    mapper: KeyMapper | None,
    ema: Averages,
    prefix: str | None,
) -> Found:
    """Find a source for each target, first by the mapper, then by names.

    Raises:
        InvalidArgumentError: a name is ambiguous, or a layout is unknown; nothing is guessed.
        NotFoundError: nothing is stored below `prefix`.
        DataLossError: the object graph, or a list of shared names, is damaged.
    """
    stored_averages = averages_among(reader.keys())
    averages = stored_averages if ema in ("prefer", "only") else {}
    found = Found()
    taken = _apply(mapper, reader, targets, averages, found) if mapper is not None else set()
    named = {mapped.target: key for key, mapped in mapper.names.items()} if mapper is not None else {}
    left = [target for target in targets if target.name not in found.sources]
    for target in left:
        found.asked_for.update({name: named[name] for name in target.names if name in named})
    left = [target for target in left if not any(name in found.asked_for for name in target.names)]
    _find_by_name(reader, left, averages, prefix, taken, found)
    for target in targets:
        source = found.sources.get(target.name)
        if source is None:
            continue
        if source.key in averages:
            found.sources[target.name] = Source(source.key, source.layout, source.variable_name, averages[source.key])
        elif ema == "only" and not target.is_counter:
            found.not_averaged.append(target.name)
    if ema in ("warn", "ignore") and stored_averages:
        _remark_on_averages(stored_averages, [target for target in left if target.name not in found.sources], found)
    return found


def possible_names(target: Target) -> dict[str, ModuleTensor]:
    """Return the names under which a target may be stored, its own first; each with its place."""
    names = {place.name: place for place in target.places}
    for place in target.places:
        for variable_name in variable_names(place.module, place.attribute):
            names.setdefault(place.parent + variable_name, place)
    return names


def _apply(
    mapper: KeyMapper,
    reader: CheckpointReader,
    targets: Sequence[Target],
    averages: Mapping[str, str],
    found: Found,
) -> set[str]:
    """Apply the mapper; return the keys that its rules match."""
    places = {place.name: (target, place) for target in targets for place in target.places}
    by_name: dict[str, tuple[str, Source]] = {}
    taken: set[str] = set()
    unused = dict.fromkeys(mapper.sources)
    for key in dict.fromkeys((*reader.keys(), *averages)):
        others = (name for name in reader.names_of(key) if name not in (key, short_key(key)))
        names = (short_key(key), key, *others)
        match = mapper.match(*names)
        if match is None:
            continue
        mapped = match.mapped
        unused.pop(match.rule, None)
        taken.add(key)
        if mapped.target is None:
            found.left_out.append(key)
        elif mapped.target in by_name:
            raise InvalidArgumentError(
                f"{reader.path}: {quoted(by_name[mapped.target][0])} and {quoted(key)} are both mapped to "
                f"{quoted(mapped.target)}. Map one of them to None"
            )
        elif mapped.target not in places:
            found.strays[key] = mapped.target
        else:
            _, place = places[mapped.target]
            module, attribute = place.module, place.attribute
            candidates = [variable_name_of(each) for each in (match.name, *names[2:], key)]
            variable_name = next(
                (each for each in candidates if is_variable_name(module, attribute, each)), candidates[0]
            )
            rank = len(reader.shape(averages.get(key, key)))
            with error_context(f"{reader.path}: {quoted(match.name)}, mapped to {quoted(place.name)}"):
                layout = layout_by_rule(mapped.layout, module, attribute, variable_name, rank)
            by_name[mapped.target] = (key, Source(key, layout, variable_name))
    found.unused_rules.extend(rule if isinstance(rule, str) else rule.pattern for rule in unused)
    for target in targets:
        given = [by_name[name][1] for name in target.names if name in by_name]
        if given:
            found.sources[target.name] = given[0]
            _note_apart(reader, target, [source.key for source in given], found)
    return taken


def _remark_on_averages(averages: Mapping[str, str], missing: Sequence[Target], found: Found) -> None:
    names = Names(
        ((base, base) for base in averages), {base: variable_name_of(base) for base in averages}, unique=False
    )
    below = names.below({name: {target.name} for target in missing for name in possible_names(target)})
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
    found: Found,
) -> None:
    """Add a source for each target that is found by name."""
    _check_distinct(targets)
    possible = {target.name: possible_names(target) for target in targets}
    wanted: dict[str, set[str]] = {}
    for name, names in possible.items():
        for each in names:
            wanted.setdefault(each, set()).add(name)
    counted = {target.name for target in targets if not target.is_counter}
    with_wrapper = any(target.is_wrappers for target in targets)
    ways = stored_names(reader, averages, leave_out=taken, with_wrapper=with_wrapper)
    if prefix is None:
        naming = choose_naming(ways, wanted, counted, reader.path)
    else:
        naming = naming_below(ways, wanted, prefix, reader.path)
    found.prefix = naming.spelled_prefix
    if naming.remark:
        found.remarks.append(naming.remark)
    found.below_prefix = set(reader.keys()) if not naming.prefix else naming.keys_below()
    for target in targets:
        source = _source_of(reader, target, possible[target.name], naming, found)
        if source is not None:
            found.sources[target.name] = source


def _check_distinct(targets: Sequence[Target]) -> None:
    """Raise InvalidArgumentError if names differ only in "/" and ".", which are equal in stored names."""
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
    reader: CheckpointReader, target: Target, possible: Mapping[str, ModuleTensor], naming: Naming, found: Found
) -> Source | None:
    """Return the source of a target, found by its own names or else by TensorFlow's; None if not found."""
    own = {place.name for place in target.places}
    for names in ([name for name in possible if name in own], [name for name in possible if name not in own]):
        stored = {each: possible[name] for name in names for each in naming.find(name)}
        if not stored:
            continue
        if len({place.name for place in stored.values()}) < len({each.key for each in stored}):
            raise InvalidArgumentError(
                f"{reader.path}: {quoted(target.name)} may be stored as "
                f"{' or '.join(quoted(each.key) for each in stored)}. Choose "
                f"one of these keys with a KeyMapper"
            )
        _note_apart(reader, target, [each.key for each in stored], found)
        (key, variable_name), place = next(iter(stored.items()))
        # A hook may have renamed "weight" to "kernel" in the state_dict: then this is not TensorFlow's kernel.
        is_renamed = place.name in own and variable_name == place.name.rpartition(".")[2] != place.attribute
        layout = SAME if is_renamed else layout_of(place.module, place.attribute, variable_name)
        return Source(key, layout, variable_name)
    return None


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
