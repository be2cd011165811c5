"""Match the layers of a checkpoint with the modules of a model, by evidence that leaves no choice.

Layers and modules are divided into classes: first by what fits what (kind and shapes), then further, as long as one of
these sorts of evidence divides the layers and the modules of a class in the same way:

    rules       pairs that the caller gives
    words       a word that one name on each side has, and no other name: "query" and "q_proj"
    scopes      the layers next to a layer: the normalization beside the only convolution of its shape
    numbers     names that are numbered alike: layer_0 to layer_11, and encoder.layer.0 to encoder.layer.11

A layer and a module match if they are alone in their class. Whatever remains together with others is ambiguous.

Contract: a division is made only if each part has as many layers as modules, or if only layers are left over. So names
of different programs that merely look alike in one place decide nothing. Numbers decide only between families of names
(see `infer_names`), which must agree as a whole: as many members, and equal kinds and shapes in the same order. Numbers
that a program chose are the order in which layers were created, which need not be that of the module. They decide only
if the order is confirmed by a family in the same scope whose members differ in kind or shape, or if the module is an
nn.Sequential that contains nothing else. Layers that are not numbered on both sides are never matched by order.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from torch import nn

from torch_tfckpt.models.infer_names import Family, dense_ranks, families, name_path
from torch_tfckpt.models.infer_units import Candidates, Form, ModuleUnit
from torch_tfckpt.text import quoted

BY_KIND: Final = "the only layer of this kind and shape"
BY_RULE: Final = "given by a rule"
_Key = TypeVar("_Key", bound=Hashable)

_LEVELS: Final = 4  # enclosing scopes that are compared


@dataclass(frozen=True, slots=True)
class MatchingClass:
    """Layers and modules, by index, that the evidence does not distinguish."""

    layers: tuple[int, ...]
    units: tuple[int, ...]
    reason: str

    @property
    def is_settled(self) -> bool:
        """Whether there is no choice."""
        return not self.units or (len(self.layers) == 1 and len(self.units) == 1)


class Matching:
    """The classes of layers and modules of one model.

    Args:
        units: All units of the module, in the order in which they are registered.
        given: Unit -> layer, by index, for pairs that the caller gives.
        siblings: The nn.Sequential modules of the model: name -> number of units below it.
    """

    def __init__(
        self,
        candidates: Candidates,
        units: Sequence[ModuleUnit],
        given: Mapping[int, int],
        sequentials: Mapping[str, nn.Sequential],
    ) -> None:
        self._candidates = candidates
        self._units = units
        self._sequentials = sequentials
        self._confirmed: set[tuple[int, Hashable]] = set()
        self._layer_ids = _without_overlaps(candidates, units, given)
        self._kind_of_layer: dict[int, int] = {}
        self._kind_of_unit: dict[int, int] = {}
        self._label_of_layer: dict[int, int] = {}
        self._label_of_unit: dict[int, int] = {}
        self._views = max((len(candidates.layers[each].names) for each in self._layer_ids), default=0)
        self._families_of_layers = [self._families(view) for view in range(self._views)]
        self._family_of_unit = _by_member(families([unit.name for unit in units]), range(len(units)))
        self.classes = self._initial(given)
        self._label()
        self._kind_of_layer, self._kind_of_unit = dict(self._label_of_layer), dict(self._label_of_unit)
        self._refine()

    def fits(self, layer: int, unit: int) -> bool:
        """Return whether a layer fits a module."""
        form = self._candidates.layers[layer].form
        return self._units[unit].form in self._candidates.fits.get(form, {})

    @property
    def pairs(self) -> dict[int, tuple[int, str]]:
        """Unit -> layer and reason, for everything that matches."""
        return {
            each.units[0]: (each.layers[0], each.reason)
            for each in self.classes
            if each.units and each.is_settled and self.fits(each.layers[0], each.units[0])
        }

    @property
    def ambiguous(self) -> list[MatchingClass]:
        """Classes with several possibilities."""
        return [each for each in self.classes if each.layers and not each.is_settled]

    @property
    def missing(self) -> list[int]:
        """Units without any layer that fits."""
        return [unit for each in self.classes if not each.layers for unit in each.units]

    def _families(self, view: int) -> dict[int, Family]:
        layers = [each for each in self._layer_ids if view < len(self._candidates.layers[each].names)]
        names = [self._candidates.layers[each].names[view] for each in layers]
        return _by_member(families(names), layers)

    def _initial(self, given: Mapping[int, int]) -> list[MatchingClass]:
        """Return the classes of what fits what."""
        found = [MatchingClass((layer,), (unit,), BY_RULE) for unit, layer in given.items()]
        taken = set(given.values())
        layers: dict[Form, list[int]] = {}
        for layer in self._layer_ids:
            if layer not in taken:
                layers.setdefault(self._candidates.layers[layer].form, []).append(layer)
        units: dict[Form, list[int]] = {}
        for at, unit in enumerate(self._units):
            if at not in given:
                units.setdefault(unit.form, []).append(at)
        edges: dict[Form, set[Form]] = {
            form: {each for each in self._candidates.fits.get(form, {}) if each in units} for form in layers
        }
        _drop_impossible(edges, layers, units)
        for layer_forms, unit_forms in _components(edges, units):
            found.append(
                MatchingClass(
                    tuple(sorted(each for form in layer_forms for each in layers[form])),
                    tuple(sorted(each for form in unit_forms for each in units[form])),
                    BY_KIND,
                )
            )
        return found

    def _label(self) -> None:
        for label, each in enumerate(self.classes):
            self._label_of_layer.update(dict.fromkeys(each.layers, label))
            self._label_of_unit.update(dict.fromkeys(each.units, label))

    def _refine(self) -> None:
        ways: Sequence[Callable[[MatchingClass], list[MatchingClass]]] = (
            self._by_words,
            self._by_scopes,
            self._by_numbers,
        )
        changed = True
        while changed:
            changed = False
            for way in ways:
                self._contexts: dict[tuple[bool, int], dict[str, tuple[int, Hashable]]] = {}
                refined: list[MatchingClass] = []
                for each in self.classes:
                    parts = [each] if each.is_settled or not each.layers else way(each)
                    changed |= len(parts) > 1
                    refined += parts
                self.classes = refined
                self._label()
                if changed:
                    break

    def _by_words(self, each: MatchingClass) -> list[MatchingClass]:
        """Divide a class by words that one group of names on each side has, and no other."""
        layers = _grouped(each.layers, self._words_of_layer)
        units = _grouped(each.units, lambda unit: name_path(self._units[unit].name).all_words)
        found: list[MatchingClass] = []
        while len(units) > 1 or len(layers) > 1:
            links: dict[frozenset[str], dict[frozenset[str], str]] = {}
            for word in sorted(_exclusive(layers) & _exclusive(units)):
                of_layers = next(words for words in layers if word in words)
                of_units = next(words for words in units if word in words)
                links.setdefault(of_layers, {}).setdefault(of_units, word)
            times = Counter(of_units for linked in links.values() for of_units in linked)
            good = {
                of_layers: (of_units, word)
                for of_layers, linked in links.items()
                for of_units, word in linked.items()
                if len(linked) == 1 and times[of_units] == 1 and len(layers[of_layers]) == len(units[of_units])
            }
            if not good:
                break
            for of_layers, (of_units, word) in good.items():
                reason = f"the names have {quoted(word)} in common, which no other candidate has"
                found.append(MatchingClass(tuple(layers.pop(of_layers)), tuple(units.pop(of_units)), reason))
        rest_of_layers = tuple(sorted(layer for group in layers.values() for layer in group))
        rest_of_units = tuple(sorted(unit for group in units.values() for unit in group))
        if not found:
            return [each]
        if rest_of_layers or rest_of_units:
            found.append(MatchingClass(rest_of_layers, rest_of_units, "what the names of the others leave"))
        return found

    def _words_of_layer(self, layer: int) -> frozenset[str]:
        stored = self._candidates.layers[layer]
        leaf = next(iter(self._candidates.variables[layer])).rpartition(".")[2]
        parts = [word for word in ("depthwise", "pointwise") if leaf.startswith(word)]
        return frozenset(parts).union(*(name_path(name).all_words for name in stored.names))

    def _by_scopes(self, each: MatchingClass) -> list[MatchingClass]:
        """Divide a class by the layers that are in the same scope, or the scopes around it."""
        for view in range(self._views):
            for level in range(_LEVELS):
                layers = _grouped(each.layers, partial(self._context, True, view, level))
                units = _grouped(each.units, partial(self._context, False, 0, level))
                if len(layers) > 1 and all(len(layers.get(key, ())) == len(of) for key, of in units.items()):
                    reason = "the layers in the same scope are the same"
                    parts = [MatchingClass(tuple(layers.pop(key)), tuple(of), reason) for key, of in units.items()]
                    rest = tuple(sorted(layer for group in layers.values() for layer in group))
                    return [*parts, *([MatchingClass(rest, (), reason)] if rest else [])]
        return [each]

    def _context(self, stored: bool, view: int, level: int, index: int) -> Hashable:
        """Return what the scope at one level above a layer or module contains; None if there is no such scope.

        Scopes that contain no more than the ones inside them do not count as levels.
        """
        known = self._contexts.get((stored, view))
        if known is None:
            known = self._contexts[stored, view] = self._scopes(stored, view)
        name = self._name(stored, index, view)
        seen = 1
        for scope in _scopes_of(name):
            count, content = known[scope]
            if count > seen:
                seen = count
                if level == 0:
                    return content
                level -= 1
        return None

    def _scopes(self, stored: bool, view: int) -> dict[str, tuple[int, Hashable]]:
        """Return scope -> how many layers or modules it contains, and their labels."""
        labels = self._label_of_layer if stored else self._label_of_unit
        common = set(self._label_of_layer.values()) & set(self._label_of_unit.values())
        content: dict[str, Counter[int]] = {}
        for index, label in labels.items():
            if label in common:
                for scope in _scopes_of(self._name(stored, index, view)):
                    content.setdefault(scope, Counter())[label] += 1
        return {scope: (of.total(), frozenset(of.items())) for scope, of in content.items()}

    def _name(self, stored: bool, index: int, view: int) -> str:
        if not stored:
            return self._units[index].name
        names = self._candidates.layers[index].names
        return names[min(view, len(names) - 1)]

    def _by_numbers(self, each: MatchingClass) -> list[MatchingClass]:
        """Divide a class by numbers in names that are numbered alike on both sides."""
        if len(each.layers) != len(each.units):
            return [each]
        of_units = {id(self._family_of_unit[unit]): self._family_of_unit[unit] for unit in each.units}
        if len(of_units) != 1:
            return [each]
        [family] = of_units.values()
        orders: dict[tuple[tuple[int, int], ...], str] = {}
        for view, known in enumerate(self._families_of_layers):
            of_layers = {id(known.get(layer)): known.get(layer) for layer in each.layers}
            [one, *others] = of_layers.values()
            if one is None or others:
                continue
            reason = self._numbered_alike(one, family, view)
            if reason:
                layers = [layer for layer, _ in one.members if layer in each.layers]
                units = [unit for unit, _ in family.members if unit in each.units]
                orders.setdefault(tuple(zip(layers, units, strict=True)), reason)
        if len(orders) != 1:  # not numbered alike, or the numbers of objects and of names contradict each other
            return [each]
        [(pairs, reason)] = orders.items()
        return [MatchingClass((layer,), (unit,), reason) for layer, unit in pairs]

    def _numbered_alike(self, of_layers: Family, of_units: Family, view: int) -> str:
        """Return why the numbers of two families decide; "" if they do not."""
        kinds = {self._kind_of_layer[layer] for layer, _ in of_layers.members}
        kinds &= {self._kind_of_unit[unit] for unit, _ in of_units.members}
        layers = [member for member in of_layers.members if self._kind_of_layer[member[0]] in kinds]
        units = [member for member in of_units.members if self._kind_of_unit[member[0]] in kinds]
        order = [self._kind_of_layer[layer] for layer, _ in layers]
        if order != [self._kind_of_unit[unit] for unit, _ in units]:
            return ""
        positions = [unit for unit, _ in units]
        numbers_of_layers, numbers_of_units = [each for _, each in layers], [each for _, each in units]
        if positions != sorted(positions) or len(set(numbers_of_layers)) < len(layers):
            return ""
        first, last = self._name(True, layers[0][0], view), self._name(True, layers[-1][0], view)
        theirs = f"{quoted(first)} to {quoted(last)}"
        ours = f"{quoted(self._units[positions[0]].name)} to {quoted(self._units[positions[-1]].name)}"
        words = [name_path(name).all_words for name in (first, self._units[positions[0]].name)]
        if numbers_of_layers == numbers_of_units and (words[0] <= words[1] or words[1] <= words[0]):
            return f"numbered alike: {theirs}, {ours}"
        alike = dense_ranks(numbers_of_layers) == dense_ranks(numbers_of_units)
        if alike and not of_layers.automatic:
            return f"numbered alike: {theirs}, {ours}"
        place = (view, name_path(first).words[:-1])
        if len(set(order)) > 1:
            self._confirmed.add(place)
            return f"numbered alike, with the same kinds and shapes in the same order: {theirs}, {ours}"
        if place in self._confirmed:
            return f"numbered alike, in a scope whose other layers confirm the order: {theirs}, {ours}"
        if len(layers) == len(self._layer_ids) == len(self._units) and self._in_sequential(positions):
            return f"all layers of the model, which is a sequence: {theirs}, {ours}"
        return ""

    def _in_sequential(self, units: Iterable[int]) -> bool:
        return {self._units[unit].name.rpartition(".")[0] for unit in units} <= self._sequentials.keys()


def _by_member(found: Iterable[Family], names: Sequence[int]) -> dict[int, Family]:
    """Return layer or unit -> its family, whose members are numbered like `names`."""
    result: dict[int, Family] = {}
    for family in found:
        members = tuple((names[at], numbers) for at, numbers in family.members)
        renamed = Family(members, family.automatic)
        result.update((at, renamed) for at, _ in members)
    return result


def _without_overlaps(candidates: Candidates, units: Sequence[ModuleUnit], given: Mapping[int, int]) -> list[int]:
    """Return the layers that may be matched: none shares variables with a larger layer that must be matched.

    For example, the query of an attention layer is a layer of its own, unless the module has the attention layer.
    """
    layers = candidates.layers
    left = dict.fromkeys(range(len(layers)))
    counts = Counter(unit.form for unit in units)
    by_unit_form: dict[Form, list[int]] = {}
    for at, layer in enumerate(layers):
        for form in candidates.fits.get(layer.form, {}):
            if form in counts:
                by_unit_form.setdefault(form, []).append(at)
    of_key: dict[str, list[int]] = {}
    for at, layer in enumerate(layers):
        for key in layer.keys:
            of_key.setdefault(key, []).append(at)

    def keep_only(at: int) -> None:
        for key in layers[at].keys:
            for other in of_key[key]:
                if other != at:
                    left.pop(other, None)

    for at in given.values():
        keep_only(at)
    largest_first = sorted(by_unit_form.items(), key=lambda item: -max(len(layers[at].keys) for at in item[1]))
    for form, fitting in largest_first:
        now = [at for at in fitting if at in left]
        if len(now) == counts[form] and sum(len(layers[at].keys) for at in now) == len(
            {key for at in now for key in layers[at].keys}
        ):
            for at in now:
                keep_only(at)
    return list(left)


def _drop_impossible(
    edges: dict[Form, set[Form]],
    layers: Mapping[Form, Sequence[int]],
    units: Mapping[Form, Sequence[int]],
) -> None:
    """Remove possibilities that would leave a module without a layer.

    If exactly as many layers fit the modules of one form as there are such modules, these layers fit nothing else.
    """
    changed = True
    while changed:
        changed = False
        for unit_form, of_units in units.items():
            fitting = [form for form, others in edges.items() if unit_form in others]
            if sum(len(layers[form]) for form in fitting) == len(of_units):
                for form in fitting:
                    changed |= len(edges[form]) > 1
                    edges[form] = {unit_form}


def _components(
    edges: Mapping[Form, set[Form]], units: Mapping[Form, Sequence[int]]
) -> list[tuple[list[Form], list[Form]]]:
    """Return the connected parts of what fits what: forms of layers, forms of units."""
    found: list[tuple[list[Form], list[Form]]] = []
    by_unit: dict[Form, list[Form]] = {form: [] for form in units}
    for form, others in edges.items():
        for other in others:
            by_unit[other].append(form)
    seen: set[Form] = set()
    for start in units:
        if start in seen:
            continue
        seen.add(start)
        waiting, of_layers, of_units = [start], dict[Form, None](), list[Form]()
        while waiting:
            here = waiting.pop()
            of_units.append(here)
            for form in by_unit[here]:
                of_layers[form] = None
                for other in edges[form] - seen:
                    seen.add(other)
                    waiting.append(other)
        found.append((list(of_layers), of_units))
    return found


def _grouped(items: Iterable[int], key: Callable[[int], _Key]) -> dict[_Key, list[int]]:
    found: dict[_Key, list[int]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def _exclusive(groups: Iterable[frozenset[str]]) -> set[str]:
    """Return the words that exactly one of the groups has."""
    counts = Counter(word for words in groups for word in words)
    return {word for word, count in counts.items() if count == 1}


def _scopes_of(name: str) -> list[str]:
    """Return the scopes around a name, the innermost first, and "" for all."""
    ends = [at for at, character in enumerate(name) if character in "/."]
    return [*(name[:at] for at in reversed(ends)), ""]
