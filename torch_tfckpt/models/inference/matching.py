"""Match the layers of a checkpoint with the modules of a model, where the evidence leaves no choice.

Layers and modules are divided into classes: first by kind and shapes, then further, as long as one of these kinds of
evidence divides the layers and the modules of a class in the same way:

    rules       pairs that the caller gives
    words       a word that one name on each side has, and no other name: "query" and "q_proj"
    scopes      the layers next to a layer: the normalization next to the only convolution of its shape
    numbers     names that are numbered alike: layer_0 to layer_11, and encoder.layer.0 to encoder.layer.11

A layer and a module match if they are alone in their class. Layers and modules in larger classes are ambiguous.

Contract: a division is made only if each part has as many layers as modules, or if only layers are left over. So names
of different programs that merely look alike in one place decide nothing. Numbers decide only between families of names
(see `infer_names`), which must agree as a whole: the same number of members, and equal kinds and shapes in the same
order. Numbers that a program chose show the order in which layers were created, which may differ from their order in
the module. They decide only if the module is an nn.Sequential that contains nothing else, or if a family in the same
scope confirms the order: its kinds and shapes have at least six possible orders, and the same order on both sides.
Layers that are not numbered on both sides are never matched by order.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product
from math import factorial, prod
from typing import Final, TypeVar

from torch import nn

from torch_tfckpt.models.inference.classes import components, drop_impossible, without_overlaps
from torch_tfckpt.models.inference.names import Family, dense_ranks, families, name_path
from torch_tfckpt.models.inference.units import Candidates, Form, ModuleUnit
from torch_tfckpt.text import natural_order, quoted

BY_KIND: Final = "the only layer of this kind and shape"
BY_RULE: Final = "given by a rule"
_Key = TypeVar("_Key", bound=Hashable)

_CONVINCING: Final = 6  # with this many possible orders of kinds and shapes, agreement by chance is negligible
_FEW: Final = 12  # members; larger families have at least _CONVINCING possible orders
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


@dataclass(frozen=True, slots=True)
class _View:
    """Which name of each layer is used, and the separators of its scopes: in flat names also "_"."""

    number: int
    separators: str


_Content = frozenset[tuple[int, int]]  # labels, and how many layers have each


class LayerMatching:
    """The classes of layers and modules of one model.

    Args:
        units: All units of the module, in the order in which they are registered.
        given: Unit -> layer, by index, for pairs that the caller gives.
        sequentials: The nn.Sequential modules of the model by name.
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
        self._layer_ids = without_overlaps(candidates, units, given)
        self._label_of_layer: dict[int, int] = {}
        self._label_of_unit: dict[int, int] = {}
        self._views = max((len(candidates.layers[each].names) for each in self._layer_ids), default=0)
        self._families_of_layers = [self._families(view) for view in range(self._views)]
        self._family_of_unit = _by_member(families([unit.name for unit in units]), range(len(units)))
        self.classes = self._initial(given)
        self._label()
        self._kind_of_layer = dict(self._label_of_layer)
        self._refine()

    def fits(self, layer: int, unit: int) -> bool:
        """Return whether a layer fits a module."""
        form = self._candidates.layers[layer].form
        return self._units[unit].form in self._candidates.fits.get(form, {})

    @cached_property
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
        matched = self.pairs
        return [each for each in self.classes if each.layers and any(unit not in matched for unit in each.units)]

    def _families(self, view: int) -> dict[int, Family]:
        layers = [each for each in self._layer_ids if view < len(self._candidates.layers[each].names)]
        names = [self._candidates.layers[each].names[view] for each in layers]
        return _by_member(families(names), layers)

    def _initial(self, given: Mapping[int, int]) -> list[MatchingClass]:
        """Return the classes by given pairs, kind and shapes alone."""
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
        drop_impossible(edges, layers, units)
        for layer_forms, unit_forms in components(edges, units):
            found.append(
                MatchingClass(
                    self._in_order(each for form in layer_forms for each in layers[form]),
                    tuple(sorted(each for form in unit_forms for each in units[form])),
                    BY_KIND,
                )
            )
        return found

    def _label(self) -> None:
        self._settled = {label for label, each in enumerate(self.classes) if each.units and each.is_settled}
        for label, each in enumerate(self.classes):
            self._label_of_layer.update(dict.fromkeys(each.layers, label))
            self._label_of_unit.update(dict.fromkeys(each.units, label))

    def _in_order(self, layers: Iterable[int]) -> tuple[int, ...]:
        return tuple(sorted(layers, key=lambda layer: natural_order(self._candidates.layers[layer].names[0])))

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
                self._contexts: dict[_View | None, dict[str, tuple[int, _Content]]] = {}
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
        """Divide a class by words that exactly one group of names on each side contains."""
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
        return [*found, *self._rest(layers, units, "the names of all others match")] if found else [each]

    def _words_of_layer(self, layer: int) -> frozenset[str]:
        stored = self._candidates.layers[layer]
        leaf = next(iter(self._candidates.variables[layer])).rpartition(".")[2]
        parts = [word for word in ("depthwise", "pointwise") if leaf.startswith(word)]
        return frozenset(parts).union(*(name_path(name).all_words for name in stored.names))

    def _by_scopes(self, each: MatchingClass) -> list[MatchingClass]:
        """Divide a class by the other layers in the same scope, or in the scopes that enclose it.

        All modules of the class must be divided, or a scope must contain a layer that is matched already.
        """
        reason = "the layers in the same scope are the same"
        for view, separators, level in product(range(self._views), ("/.", "/._"), range(_LEVELS)):
            layers = _grouped(each.layers, partial(self._context, _View(view, separators), level))
            units = _grouped(each.units, partial(self._context, None, level))
            label = self._label_of_unit[each.units[0]]
            alike = [
                key
                for key, of in units.items()
                # Only a scope with all of its members of the class counts; the level alone distinguishes nothing.
                if key is not None and len(layers.get(key, ())) == len(of) and len(of) % dict(key)[label] == 0
            ]
            if len(alike) < len(units):
                alike = [key for key in alike if any(other in self._settled for other, _ in key)]
            if len(layers) == 1 or not alike:
                continue
            parts = [MatchingClass(tuple(layers.pop(key)), tuple(units.pop(key)), reason) for key in alike]
            return [*parts, *self._rest(layers, units, "the scopes of all others match")]
        return [each]

    def _rest(
        self, layers: Mapping[_Key, Sequence[int]], units: Mapping[_Key, Sequence[int]], reason: str
    ) -> list[MatchingClass]:
        """Return the class of the layers and modules that are left in these groups, if there are any."""
        of_layers = self._in_order(layer for group in layers.values() for layer in group)
        of_units = tuple(sorted(unit for group in units.values() for unit in group))
        return [MatchingClass(of_layers, of_units, reason)] if of_layers or of_units else []

    def _context(self, view: "_View | None", level: int, index: int) -> "_Content | None":
        """Return the content of the scope `level` levels above a layer or module; None if there is none.

        Scopes that contain no more than the ones inside them do not count as levels.
        """
        known = self._contexts.get(view)
        if known is None:
            known = self._contexts[view] = self._scopes(view)
        seen = 1
        for scope in self._scopes_of(view, index):
            count, content = known[scope]
            if count > seen:
                seen = count
                if level == 0:
                    return content
                level -= 1
        return None

    def _scopes(self, view: "_View | None") -> "dict[str, tuple[int, _Content]]":
        """Return scope -> how many layers or modules it contains, and their labels."""
        labels = self._label_of_unit if view is None else self._label_of_layer
        common = set(self._label_of_layer.values()) & set(self._label_of_unit.values())
        content: dict[str, Counter[int]] = {}
        for index, label in labels.items():
            if label in common:
                for scope in self._scopes_of(view, index):
                    content.setdefault(scope, Counter())[label] += 1
        return {scope: (of.total(), frozenset(of.items())) for scope, of in content.items()}

    def _scopes_of(self, view: "_View | None", index: int) -> list[str]:
        """Return the scopes around a name, the innermost first; the last one, "", contains all names.

        The name itself is also a scope: slim has layers in the scope of a layer. In automatic names, "_" is not a
        separator.
        """
        name = self._units[index].name if view is None else self._name(index, view.number)
        separators = "." if view is None else view.separators
        path = name_path(name)
        if path.automatic and path.automatic[-1]:
            separators = separators.replace("_", "")
        ends = [at for at, character in enumerate(name) if character in separators]
        return [name, *(name[:at] for at in reversed(ends)), *([""] if name else [])]

    def _name(self, layer: int, view: int) -> str:
        names = self._candidates.layers[layer].names
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
        """Return the reason why the numbers of two families decide the match; "" if they do not."""
        labels = {self._label_of_layer[layer] for layer, _ in of_layers.members}
        labels &= {self._label_of_unit[unit] for unit, _ in of_units.members}
        layers = [member for member in of_layers.members if self._label_of_layer[member[0]] in labels]
        units = [member for member in of_units.members if self._label_of_unit[member[0]] in labels]
        if [self._label_of_layer[layer] for layer, _ in layers] != [self._label_of_unit[unit] for unit, _ in units]:
            return ""
        kinds = Counter(self._kind_of_layer[layer] for layer, _ in layers)
        positions = [unit for unit, _ in units]
        numbers_of_layers, numbers_of_units = [each for _, each in layers], [each for _, each in units]
        if positions != sorted(positions) or len(set(numbers_of_layers)) < len(layers):
            return ""
        first, last = self._name(layers[0][0], view), self._name(layers[-1][0], view)
        theirs = f"{quoted(first)} to {quoted(last)}"
        ours = f"{quoted(self._units[positions[0]].name)} to {quoted(self._units[positions[-1]].name)}"
        words = [name_path(name).all_words for name in (first, self._units[positions[0]].name)]
        same_words = bool(words[0] & words[1]) and (words[0] <= words[1] or words[1] <= words[0])
        if numbers_of_layers == numbers_of_units and same_words and not of_layers.first_is_bare:
            return f"numbered alike: {theirs}, {ours}"
        alike = dense_ranks(numbers_of_layers) == dense_ranks(numbers_of_units)
        if alike and not of_layers.automatic:
            return f"numbered alike: {theirs}, {ours}"
        place = (view, name_path(first).words[:-1])
        if _orders(kinds) >= _CONVINCING:
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
    """Return layer or unit -> its family, with members given by the indices in `names`."""
    result: dict[int, Family] = {}
    for family in found:
        members = tuple((names[at], numbers) for at, numbers in family.members)
        renamed = replace(family, members=members)
        result.update((at, renamed) for at, _ in members)
    return result


def _orders(kinds: Counter[int]) -> int:
    """Return the number of distinguishable orders of layers of these kinds, or a sufficient bound."""
    if len(kinds) == 1:
        return 1
    if kinds.total() > _FEW:
        return _CONVINCING
    return factorial(kinds.total()) // prod(map(factorial, kinds.values()))


def _grouped(items: Iterable[int], key: Callable[[int], _Key]) -> dict[_Key, list[int]]:
    found: dict[_Key, list[int]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def _exclusive(groups: Iterable[frozenset[str]]) -> set[str]:
    """Return the words that exactly one of the groups has."""
    counts = Counter(word for words in groups for word in words)
    return {word for word, count in counts.items() if count == 1}
