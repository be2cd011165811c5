"""Find which layers and modules fit each other, by kind and shapes, before any names are compared."""

from collections import Counter
from collections.abc import Mapping, Sequence

from torch_tfckpt.models.inference.units import Candidates, Form, ModuleUnit


def without_overlaps(candidates: Candidates, units: Sequence[ModuleUnit], given: Mapping[int, int]) -> list[int]:
    """Return the layers that may be matched: none shares variables with a larger layer that must be matched.

    For example, the query of an attention layer is a layer on its own, unless the module has the whole attention layer.
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


def drop_impossible(
    edges: dict[Form, set[Form]],
    layers: Mapping[Form, Sequence[int]],
    units: Mapping[Form, Sequence[int]],
) -> None:
    """Remove possibilities that would leave a module without a layer.

    If as many layers fit the modules of one form as there are such modules, these layers are reserved for them.
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


def components(
    edges: Mapping[Form, set[Form]], units: Mapping[Form, Sequence[int]]
) -> list[tuple[list[Form], list[Form]]]:
    """Return the connected components of forms that fit each other, each as forms of layers and of units."""
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
