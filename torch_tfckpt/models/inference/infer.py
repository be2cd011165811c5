"""KeyMapper.infer: find the rules that load a checkpoint into a module whose names are different.

    layers of the checkpoint and modules       infer_units
    words and numbers in names                 infer_names
    which layer belongs to which module        infer_matching
    rules with layouts, patterns               infer_rules

What counts as certain:

    kind and shape      a layer is the only one that fits a module, and it fits no other module
    words               a word occurs in the name of only one of the fitting layers, and of only one module: "query"
    scopes              the layer and the module have the same neighbors in their scopes: the normalization next to the
                        only convolution of its shape
    numbers             both names belong to families that are numbered alike (see `infer_matching`)
    order of axes       it follows from the name of the variable and the module. For names that torch and TensorFlow
                        share, such as "w", shapes that are not square determine the order for all layers of that kind.
                        A Linear that multiplies a flattened feature map gets the layout that reorders its inputs

What is never used: values; and the order in which layers are stored or registered, unless their names are numbered or
the module is one nn.Sequential. If the evidence leaves a choice, an error lists the candidates and rules to resolve it.

Contract: every tensor of the module gets a source, or an error lists what is missing. Stored weights may be left over
only in whole scopes whose parent scope contains everything that is used: a pooler or a head that the module does not
have. These are omitted by rules, and a log record lists them. The resulting rules are applied to the checkpoint once
more, without reading values, and must give exactly the sources that were found. Values are read only to find out
whether a weight that is left over is a copy of another one: tied weights may be stored twice. A log record lists the
copies.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from torch import nn

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.dtypes import ELEMENTS
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.tensor_names import short_key
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.models.auxiliary.averages import StoredAverages
from torch_tfckpt.models.auxiliary.named_kinds import VariableKind
from torch_tfckpt.models.auxiliary.recognition import variable_kinds
from torch_tfckpt.models.file_reader import open_reader
from torch_tfckpt.models.inference.flattening import InferredFlattening
from torch_tfckpt.models.inference.matching import LayerMatching
from torch_tfckpt.models.inference.proposed_rules import (
    ExplainedRule,
    PlainRule,
    compressed,
    effect,
    escaped_name,
    plain_rules,
)
from torch_tfckpt.models.inference.refusals import Choice, ambiguous, layouts_unknown, missing, unused
from torch_tfckpt.models.inference.units import Candidates, ModuleUnit, module_units, stored_candidates
from torch_tfckpt.models.layers.assembly import Source, SourcePart
from torch_tfckpt.models.layers.layouts import DENSE, DENSE_AFTER_FLATTEN
from torch_tfckpt.models.mapped_sources import mapped_sources
from torch_tfckpt.models.rules.base_module import mapper_for
from torch_tfckpt.models.rules.key_rules import KeyRule
from torch_tfckpt.models.rules.rule_set import RuleSet, extended
from torch_tfckpt.models.sources import Found, find_in_modules
from torch_tfckpt.models.stored_copies import further_copies, is_copy
from torch_tfckpt.models.targets import Target, targets_of
from torch_tfckpt.saveables.wrappers import ModuleNames
from torch_tfckpt.storage.names import AnyPath
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.text import listed, quoted

_LISTED: Final = 8
_PROPOSALS: Final = 12  # rules that an error proposes

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Given:
    """What the rules of the caller determine."""

    sources: Mapping[str, Source]  # by the name of a tensor
    filled: Mapping[str, float]
    omitted: frozenset[str]  # keys


def infer_rules(
    path: AnyPath, module: nn.Module, given: RuleSet, storage: Storage | None = None
) -> list[ExplainedRule]:
    """Return rules for all tensors of a module that `given` does not map. Raises as `KeyMapper.infer` describes."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"KeyMapper.infer: the model is a {type(module).__name__}. Pass a torch.nn.Module")
    targets = targets_of(module)
    with open_reader(path, storage) as reader:
        return _Inference(reader, module, targets, given).rules()


class _Inference:
    """One checkpoint and one module."""

    def __init__(self, reader: CheckpointReader, module: nn.Module, targets: Sequence[Target], given: RuleSet) -> None:
        self._reader = reader
        self._module = module
        self._targets = targets
        self._mapper = mapper_for(given, targets)
        self._given = self._apply(self._mapper)
        # Such a variable must not be taken for another of the same shape, such as beta for gamma.
        mapped = {key for source in self._given.sources.values() for key in source.keys}
        unnamed = frozenset[str]() if reader.keras is None else reader.keras.unnamed_weights - mapped
        left_out = {*self._given.omitted, *further_copies(reader), *unnamed}
        self._unnamed = [(key, tuple(reader.shape(key))) for key in sorted(unnamed)]
        self._weights = [
            key for key, kind in variable_kinds(reader).items() if kind is VariableKind.WEIGHT and key not in left_out
        ]
        self._copies: set[str] = set()  # tied weights that are stored twice
        self._shapes: dict[str, Shape] = {key: tuple(reader.shape(key)) for key in self._weights}

    def rules(self) -> list[ExplainedRule]:
        """Return the rules, in the order of the module's tensors."""
        units, candidates, pairs = self._units()
        sequentials = {
            name.removesuffix("."): part
            for name, part in ModuleNames(self._module).owners().items()
            if isinstance(part, nn.Sequential)
        }

        def matching(more: Mapping[int, int]) -> LayerMatching:
            return LayerMatching(candidates, units, {**pairs, **more}, sequentials)

        found = matching({})
        self._check(found, units, candidates)
        if found.ambiguous and self._drop_copies(found, candidates):
            return self.rules()
        if found.ambiguous:
            raise ambiguous(self._reader.path, self._choices(found, matching, units, candidates))
        plain: list[PlainRule] = []
        fills: list[ExplainedRule] = []
        used: set[str] = set()
        sources = self._sources(units, candidates, found)
        for unit, reason, of_unit, of_fills in sources:
            explicit = isinstance(unit.module, nn.RNNBase | nn.RNNCellBase)
            given = {name: source for name, source in of_unit.items() if name not in self._given.sources}
            plain += plain_rules(given, self._shapes, explicit, reason)
            used.update(key for source in of_unit.values() for key in source.keys)
            fills += [
                ExplainedRule(KeyRule(None, name, fill=value), "not stored by TensorFlow")
                for name, value in of_fills.items()
                if name not in self._given.sources and name not in self._given.filled
            ]
        used.update(key for source in self._given.sources.values() for key in source.keys)
        expected = {name: source for _, _, of_unit, _ in sources for name, source in of_unit.items()}
        omissions = self._omissions(used, self._often_tied({**expected, **self._given.sources}))
        all_names = [self._reader.names_of(key) for key in self._reader.keys()]
        rules = [*compressed(plain, all_names), *fills, *omissions]
        if not self._gives(rules, expected):
            rules = [*(ExplainedRule(each.rule(), each.reason) for each in plain), *fills, *omissions]
            assert self._gives(rules, expected), "the rules do not give what was found"
        return rules

    def _apply(self, given: RuleSet) -> _Given:
        """Return what the caller's rules determine."""
        mapped = mapped_sources(given, self._reader, self._targets, {})
        if mapped.strays or mapped.unused_rules:
            what = [
                f"{quoted(key)} is mapped to {quoted(name)}, which the module does not have"
                for key, name in mapped.strays.items()
            ]
            what += [f"{quoted(name)} matches no stored name" for name in mapped.unused_rules]
            raise InvalidArgumentError(f"{self._reader.path}: rules: {'; '.join(what[:_LISTED])}. Correct the rules")
        found = Found(StoredAverages(), sources=dict(mapped.sources))
        find_in_modules(self._reader, [t for t in self._targets if t.name not in found.sources], mapped, found)
        by_first_name = {name: target.name for target in self._targets for name in target.names}
        sources = {by_first_name[name]: source for name, source in found.sources.items()}
        filled = {by_first_name[name]: value for name, value in mapped.filled.items() if name in by_first_name}
        return _Given(sources, filled, frozenset(mapped.left_out))

    def _units(self) -> tuple[list[ModuleUnit], Candidates, dict[int, int]]:
        """Return the units that rules do not cover completely, the layers for them, and the pairs from rules."""
        done = {*self._given.sources, *self._given.filled}
        units = [
            unit
            for unit in module_units(self._targets)
            if not all(target.name in done for target in unit.tensors.values())
        ]
        open_names = {target.name for unit in units for target in unit.tensors.values()}
        taken = {key for name, source in self._given.sources.items() if name not in open_names for key in source.keys}
        candidates = stored_candidates(
            self._reader, [key for key in self._weights if key not in taken | self._copies], units
        )
        pairs: dict[int, int] = {}
        for at, unit in enumerate(units):
            keys = {
                key
                for target in unit.tensors.values()
                if target.name in self._given.sources
                for key in self._given.sources[target.name].keys
            }
            if not keys:
                continue
            fitting = [
                number
                for number, layer in enumerate(candidates.layers)
                if keys <= set(layer.keys) and unit.form in candidates.fits.get(layer.form, {})
            ]
            if len(fitting) == 1 and fitting[0] not in pairs.values():
                pairs[at] = fitting[0]
            else:
                rest = [target.name for target in unit.tensors.values() if target.name not in done]
                raise InvalidArgumentError(
                    f"{self._reader.path}: the rules map {listed(sorted(keys), 4)} to a part of {quoted(unit.name)}, "
                    f"but no stored layer with these variables fits the rest. Write rules for "
                    f"{listed(rest, 4)}, too"
                )
        return units, candidates, pairs

    def _check(self, found: LayerMatching, units: Sequence[ModuleUnit], candidates: Candidates) -> None:
        """Raise NotFoundError if modules have no layer."""
        short = [each for each in found.classes if len(each.layers) < len(each.units)]
        if not short:
            return
        fitting = {key for layer in candidates.layers for key in layer.keys}
        unmatched = [key for key in self._weights if key not in fitting]
        raise missing(
            self._reader.path,
            [([units[at] for at in each.units], [candidates.layers[at] for at in each.layers]) for each in short],
            [(key, self._shapes[key]) for key in unmatched],
            self._unnamed,
        )

    def _choices(
        self,
        found: LayerMatching,
        matching: Callable[[Mapping[int, int]], LayerMatching],
        units: Sequence[ModuleUnit],
        candidates: Candidates,
    ) -> list[Choice]:
        """Return the ambiguous choices, each with a rule that resolves it after the rules before it."""
        more: dict[int, int] = {}
        choices: list[Choice] = []
        while found.ambiguous and len(choices) < _PROPOSALS:
            each = min(found.ambiguous, key=lambda each: each.units)
            unit, layer = next(
                ((unit, layer) for unit in each.units for layer in each.layers if found.fits(layer, unit)),
                (each.units[0], each.layers[0]),
            )
            sources, _ = self._made(units[unit], candidates, layer)
            chosen = {name: of[0] for name, of in sources.items()}
            rules = plain_rules(chosen, self._shapes, True, "")
            choices.append(
                Choice(
                    [candidates.layers[at].names[0] for at in each.layers],
                    [units[at].name for at in each.units],
                    max(rules, key=lambda rule: len(self._shapes.get(rule.names[0], ()))).rule() if rules else None,
                )
            )
            if unit in more or not found.fits(layer, unit):
                break
            more[unit] = layer
            found = matching(more)
        return choices

    def _made(
        self, unit: ModuleUnit, candidates: Candidates, layer: int
    ) -> tuple[dict[str, list[Source]], dict[str, float]]:
        """Return the possible sources of each tensor of a unit, and the values of those that are filled."""
        form = candidates.layers[layer].form
        recipe = candidates.fits[form][unit.form]
        keys = candidates.variables[layer]
        sources = {
            unit.tensors[attribute].name: [_with_keys(source, keys) for source in possible]
            for attribute, possible in recipe.sources.items()
        }
        fills = {unit.tensors[attribute].name: value for attribute, value in recipe.fills.items()}
        return sources, fills

    def _sources(
        self, units: Sequence[ModuleUnit], candidates: Candidates, found: LayerMatching
    ) -> list[tuple[ModuleUnit, str, dict[str, Source], dict[str, float]]]:
        """Return the source of each tensor of each unit. Raises InvalidArgumentError if an order of axes is unknown."""
        made = {at: self._made(unit, candidates, found.pairs[at][0]) for at, unit in enumerate(units)}
        possible: dict[tuple[object, ...], set[str]] = {}
        for at, (sources, _) in made.items():
            for name, choices in sources.items():
                group = _group(units[at], name, choices[0], self._shapes)
                layouts = {each.layout.name for each in choices}
                possible[group] = possible.get(group, layouts) & layouts
        flat = InferredFlattening(self._module, self._reader)
        unknown: list[tuple[str, Sequence[Source]]] = []
        result = []
        for at, unit in enumerate(units):
            chosen: dict[str, Source] = {}
            sources, fills = made[at]
            for name, choices in sources.items():
                if name in self._given.sources:
                    chosen[name] = self._given.sources[name]
                    continue
                group = _group(unit, name, choices[0], self._shapes)
                # The layers of the same group matter only if this shape leaves a choice.
                left = [each for each in choices if len(choices) == 1 or each.layout.name in possible[group]]
                if name.endswith("weight") and len(left) == 1 and left[0].layout.name == DENSE.name:
                    left = flat.choices(left[0], self._shapes[left[0].key], unit.module)
                if len(left) != 1:
                    unknown.append((name, left or choices))
                    continue
                chosen[name] = left[0]
            reason = found.pairs[at][1]
            if any(each.layout.name == DENSE_AFTER_FLATTEN.name for each in chosen.values()):
                reason += (
                    "; its input is a flattened feature map, which TensorFlow orders height, width, channels "
                    "(unless its data_format was channels_first)"
                )
            result.append((unit, reason, chosen, fills))
        if unknown:
            raise layouts_unknown(self._reader.path, unknown, self._shapes)
        return result

    def _often_tied(self, sources: Mapping[str, Source]) -> list[str]:
        """Return the keys of weights that are tied, or often are: the tables of embeddings."""
        names = [
            target.name
            for target in self._targets
            if len(target.places) > 1 or isinstance(target.places[0].module, nn.Embedding)
        ]
        return sorted({key for name in names if name in sources for key in sources[name].keys})

    def _omissions(self, used: set[str], tied: Sequence[str]) -> list[ExplainedRule]:
        """Return rules that omit unused weights. Raises InvalidArgumentError if these weights may be needed.

        Args:
            tied: Used keys of which other weights may be copies.
        """
        rest = [key for key in self._weights if key not in used and self._mapper.find(short_key(key)) is None]
        if not rest:
            return []
        used_names = [short_key(key) for key in used]
        trunk = _common_scope(used_names)
        scopes = {scope for name in used_names for scope in _scopes(name)}
        omitted: dict[str, list[str]] = {}
        inside: list[str] = []
        copies: list[ExplainedRule] = []
        for key in rest:
            name = short_key(key)
            same = next((each for each in tied if is_copy(self._reader, each, key)), None)
            if same is not None:
                reason = f"not used: a copy of {quoted(short_key(same))}"
                copies.append(ExplainedRule(KeyRule(name, None, literal=True), reason))
                continue
            top = next((scope for scope in reversed(_scopes(name)) if scope and scope not in scopes), name)
            above = top.rpartition("/")[0]
            element = ELEMENTS.get(self._reader.dtype(key))
            is_float = element is not None and element.torch is not None and element.torch.is_floating_point
            if is_float and not f"{trunk}/".startswith(f"{above}/" if above else ""):
                inside.append(key)
            omitted.setdefault(top, []).append(name)
        if inside:
            raise unused(self._reader.path, inside)
        others = [name for names in omitted.values() for name in names]
        if others:
            _log.warning(
                "%s: stored weights that the module does not have: %s", self._reader.path, listed(others, _LISTED)
            )
        if copies:
            listing = listed([f"{each.rule.pattern} is {each.reason}" for each in copies], _LISTED, str)
            _log.info("%s: %s", self._reader.path, listing)
        reason = "not used: the module has nothing like it"
        found = copies
        for top, names in omitted.items():
            if names == [top]:
                found.append(ExplainedRule(KeyRule(top, None, literal=True), reason))
            else:
                found.append(ExplainedRule(KeyRule(f"{escaped_name(top)}/.*", None), reason))
        return found

    def _drop_copies(self, found: LayerMatching, candidates: Candidates) -> bool:
        """Note the layers with one variable that are copies of other candidates for the same modules."""
        before = len(self._copies)
        for each in found.ambiguous:
            alone = [candidates.layers[at].keys[0] for at in each.layers if len(candidates.layers[at].keys) == 1]
            for number, key in enumerate(alone if len(each.layers) > len(each.units) else ()):
                if any(is_copy(self._reader, first, key) for first in alone[:number]):
                    self._copies.add(key)
        return len(self._copies) > before

    def _gives(self, rules: Sequence[ExplainedRule], expected: Mapping[str, Source]) -> bool:
        """Return whether rules give exactly the expected sources."""
        mapper = extended(self._mapper, rules)
        mapped = mapped_sources(mapper, self._reader, self._targets, {})
        if mapped.strays or mapped.unused_rules or mapped.absent:
            return False
        return all(
            name in self._given.sources or (name in mapped.sources and self._is_same(mapped.sources[name], source))
            for name, source in expected.items()
        )

    def _is_same(self, one: Source, other: Source) -> bool:
        if (one.keys, one.bounds) != (other.keys, other.bounds) or (len(one.keys) > 1 and one.axis != other.axis):
            return False
        return all(
            effect(part.layout, self._shapes[part.key]) == effect(that.layout, self._shapes[that.key])
            for part, that in zip(one.parts, other.parts, strict=True)
        )


def _with_keys(source: Source, keys: Mapping[str, str]) -> Source:
    return replace(source, parts=tuple(SourcePart(keys[part.key], part.layout) for part in source.parts))


def _group(unit: ModuleUnit, name: str, source: Source, shapes: Mapping[str, Shape]) -> tuple[object, ...]:
    """Return a value that is equal for layers whose axes are stored in the same order."""
    rank = len(shapes[source.key])
    is_grouped = getattr(unit.module, "groups", 1) > 1
    return (type(unit.module), name.rpartition(".")[2], source.variable_name, rank, len(source.parts), is_grouped)


def _scopes(name: str) -> list[str]:
    """Return the scopes around a name, the innermost first; the last one, "", contains all names."""
    return [*(name[:at] for at in range(len(name) - 1, 0, -1) if name[at] == "/"), ""]


def _common_scope(names: Iterable[str]) -> str:
    """Return the innermost scope that contains all names."""
    common: list[str] | None = None
    for name in names:
        parts = name.split("/")[:-1]
        if common is None:
            common = parts
        length = next(
            (at for at, (a, b) in enumerate(zip(common, parts, strict=False)) if a != b), min(len(common), len(parts))
        )
        common = common[:length]
    return "/".join(common or [])
