"""Hints of load_model: what to pass if a tensor does not fit, has no known layout, or is not wanted.

One line for each kind of problem, with the first affected tensor as an example, however many are affected.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from torch import nn

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.format.tensor_names import short_key
from torch_tfckpt.format.tensor_slice import Shape, element_count, shape_text
from torch_tfckpt.models.auxiliary.named_kinds import Kinds
from torch_tfckpt.models.layers.assembly import Source
from torch_tfckpt.models.layers.layer_names import KERNELS
from torch_tfckpt.models.layers.layouts import LAYOUTS, SAME
from torch_tfckpt.models.layers.recurrent_layers import other_formula, reset_gate_reason
from torch_tfckpt.models.layers.tensor_origins import leaf_of
from torch_tfckpt.models.stored_names import dotted, variable_name_of
from torch_tfckpt.models.targets import Target
from torch_tfckpt.saveables.load_report import LoadReport, Mismatch
from torch_tfckpt.saveables.module_tensors import ModuleTensor
from torch_tfckpt.text import and_more, counted, listed, quoted

NO_RULE_MATCHES: Final = (
    "no rule of the mapper matches a stored name, so the mapper has no effect. It may be for another model, or for the "
    "names of another program"
)
_SHOWN: Final = 4  # names in one hint
_PART: Final = re.compile(r"(.*part_)\d+")


def hints(
    reader: CheckpointReader,
    targets: Sequence[Target],
    loads: Sequence[tuple[Target, Source]],
    of_other_shape: Sequence[Mismatch],
    report: LoadReport,
) -> Iterator[str]:
    """Yield the hints for a load.

    Args:
        of_other_shape: Tensors made from one whole variable, whose shape does not fit in the layout that was tried.

    Cost: looks at the names of the unexpected tensors, if tensors are missing.
    """
    yield from _other_formulas(targets, report)
    yield from _other_layouts(targets, of_other_shape)
    if report.missing and report.unexpected:
        yield from _unknown_layouts(reader, targets, report)
        yield from _only_one_left(reader, targets, report)
        yield from _parts(reader, targets, report)
    copied = [place.name for target, source in loads if (place := _copied_kernel(target, source)) is not None]
    if copied:
        yield (
            f"no layout is known for {listed(copied, _SHOWN)}: copied with the axes as stored. If they are in a "
            f"different order in the module, permute them after loading"
        )


def remarks_on_slots(stored: Kinds, report: LoadReport) -> Iterator[str]:
    """Yield a remark about tensors ignored as optimizer state only because of their name and shape."""
    ignored = set(report.ignored)
    uncertain = [key for key in stored.uncertain if key in ignored]
    if uncertain:
        key = uncertain[0]
        yield (
            f"ignored as optimizer state: {listed(uncertain, _SHOWN)}, because the name begins with the name of the "
            f"stored tensor {quoted(stored.slots[key].variable)} and the shapes are equal. If it is a weight of the "
            f"module, map it with a rule such as mapper={{{quoted(key)}: NAME}}"
        )


def remarks_on_parts(unplaced: Mapping[str, str]) -> Iterator[str]:
    """Yield a remark about tensors of parts that the module lacks, such as a head.

    Args:
        unplaced: Key -> name to which a rule maps it; "" if the rule omits it.
    """
    reasons = {
        "the module does not have the parts to which the rules map them": [key for key in unplaced if unplaced[key]],
        "the rules omit them": [key for key in unplaced if not unplaced[key]],
    }
    for reason, keys in reasons.items():
        if keys:
            yield f"not loaded, because {reason}: {listed(keys, _SHOWN)}"


def only_unexpected(report: LoadReport) -> str:
    """Return what to pass if the only problem is that the checkpoint has additional tensors; otherwise ""."""
    if report.missing or report.missing_slots or report.mismatched or not report.unexpected:
        return ""
    rule = f"mapper={{{quoted(short_key(report.unexpected[0]))}: None}}"
    return (
        f"Every tensor of the module is stored, but the checkpoint has {counted(len(report.unexpected), 'tensor')} "
        f"that the module lacks: "
        f'pass strict="shapes" to ignore unexpected keys, or omit single ones with a rule such as {rule}'
    )


def only_optimizer_state(report: LoadReport) -> str:
    """Return what to do if the only problem is that optimizer state is not stored; otherwise ""."""
    if report.missing or report.unexpected or report.mismatched or not report.missing_slots:
        return ""
    if report.slots:
        return "Omit `optimizer` to load the module alone, or pass strict=False to load the state that is stored"
    return "No state for this optimizer was found: omit `optimizer` to load the module alone"


def _other_formulas(targets: Sequence[Target], report: LoadReport) -> Iterator[str]:
    """Yield why the variables of a layer that computes a different function from torch's cannot be loaded."""
    of = {name: target for target in targets for name in target.names}
    for mismatch in report.mismatched:
        reason = other_formula(of[mismatch.name].places[0].module, mismatch.stored_shape)
        if reason:
            yield f"{quoted(mismatch.name)} and the other tensors of its layer: {reason}"
            break
    gates = next((key for key in report.unexpected if short_key(key).endswith("gates/kernel")), None)
    for name in report.missing if gates is not None else ():
        module = of[name].places[0].module
        if gates is not None and isinstance(module, nn.GRU | nn.GRUCell):
            yield f"{quoted(short_key(gates))}: stored by a GRUCell of TensorFlow 1, {reset_gate_reason(module)}"
            break


def _other_layouts(targets: Sequence[Target], mismatched: Sequence[Mismatch]) -> Iterator[str]:
    """Yield a hint for each layout that would make mismatched tensors fit, layouts for their layer first."""
    of = {name: target for target in targets for name in target.names} if mismatched else {}
    fitting: dict[str, list[Mismatch]] = {}
    unknown: list[Mismatch] = []
    for mismatch in mismatched:
        shape, wanted = mismatch.stored_shape, mismatch.shape
        target = of.get(mismatch.name)
        own = target.layouts if target else []
        for layout in [SAME, *(each for each in own if each.functions is None), *LAYOUTS.values()]:
            resolved = layout.resolved(shape, wanted)
            fits = wanted is not None and resolved.fits(shape) and resolved.torch_shape(shape) == wanted
            if fits and layout.name != mismatch.layout:
                fitting.setdefault(layout.name, []).append(mismatch)
                break
        else:
            if wanted is not None and shape != wanted and element_count(shape) == element_count(wanted):
                unknown.append(mismatch)
    if unknown:
        first, more = unknown[0], and_more(len(unknown), 1)
        key, held = quoted(short_key(first.key)), shape_text(first.shape or ())
        yield (
            f"no layout turns {shape_text(first.stored_shape)} of {key} into {held} of {quoted(first.name)}{more}: "
            f"not supported yet. If you know the order of the elements, give two functions in a rule: "
            f"mapper={{{key}: ({quoted(first.name)}, (to_torch, to_stored))}}"
        )
    for name, those in fitting.items():
        first = those[0]
        order = "in torch's order, not in TensorFlow's" if name == SAME.name else "in TensorFlow's order"
        yield (
            f"{quoted(first.name)}{and_more(len(those), 1)}: the shape fits if the axes are stored {order}. If they "
            f"are, name the layout: {_rule(first.key, first.name, name)}"
        )


def _unknown_layouts(reader: CheckpointReader, targets: Sequence[Target], report: LoadReport) -> Iterator[str]:
    """Yield a hint about stored kernels of layers whose layouts are not known."""
    missing = set(report.missing)
    unknown: dict[str, list[tuple[ModuleTensor, Target]]] = {}
    for target in targets:
        for place in target.places:
            if place.name in missing and place.attribute.startswith("weight"):
                unknown.setdefault(place.parent, []).append((place, target))
    below = dotted(report.prefix)
    found: dict[str, tuple[ModuleTensor, Target, str]] = {}
    for key in (key for key in report.unexpected if key not in report.hints):
        for name in (short_key(key), *reader.names_of(key)):
            if not variable_name_of(name).endswith(KERNELS):
                continue
            parent = dotted(name).removeprefix(below).rpartition(".")[0]
            layer = unknown.get(f"{parent}." if parent else "", [])
            if layer and not any(_is_known(target, name) or _has_one_weight(target) for _, target in layer):
                found.setdefault(layer[0][0].parent, (*layer[0], key))
    if found:
        place, target, key = next(iter(found.values()))
        kind = type(place.module).__name__
        shown = quoted(short_key(key)) + and_more(len(found), 1)
        if target.origins:
            reason = f"the name does not show which weight of {kind} this is"
            fix = "Map it to one with mapper="
        else:
            reason = f"no layout is known for this weight of {kind}"
            fix = "Load it with load_file and permute it yourself"
            if place.attribute == "weight":
                fix += f"; or, if its axes are in torch's order, pass {_rule(key, place.name, SAME.name)}"
        yield f"{shown}: {reason}, so it is not loaded. {fix}"


def _only_one_left(reader: CheckpointReader, targets: Sequence[Target], report: LoadReport) -> Iterator[str]:
    """Yield a rule for a layer of which one tensor is missing, and one variable in its scope is not known by name."""
    missing = set(report.missing)
    wanted: dict[str, list[Target]] = {}
    for target in targets:
        if target.name in missing and not target.is_counter:
            wanted.setdefault(target.places[0].parent, []).append(target)
    below = dotted(report.prefix)
    left: dict[str, list[tuple[str, str]]] = {}
    for key in report.unexpected:
        name = dotted(short_key(key)).removeprefix(below)
        scope, _, leaf = name.rpartition(".")
        left.setdefault(f"{scope}." if scope else "", []).append((key, leaf))
    rules: list[str] = []
    for parent, those in wanted.items():
        keys = left.get(parent, [])
        is_weight = len(those[0].shape or ()) > 1
        if len(those) == len(keys) == 1 and is_weight and not _is_known(those[0], short_key(keys[0][0])):
            layout = _fitting(those[0], reader.shape(keys[0][0]))
            if layout:
                rules.append(f"{quoted(short_key(keys[0][0]))}: ({quoted(those[0].name)}, {quoted(layout)})")
    if rules:
        yield (
            f"{counted(len(rules), 'variable')} in the scope of a layer may be what the layer lacks, but the name does "
            f"not imply it. If so, and if its axes are in TensorFlow's order, pass "
            f"mapper={{{', '.join(rules[:_SHOWN])}{', ...' * (len(rules) > _SHOWN)}}}"
        )


def _is_known(target: Target, name: str) -> bool:
    """Return whether a stored name implies how the tensor is made from it, wherever the variable is.

    If so, the tensor is missing only because of a mistake in a rule, and needs no layout.
    """
    return any(leaf_of(name, leaves) for each in target.origins for leaves in each.origin.variables)


def _has_one_weight(target: Target) -> bool:
    """Return whether the layer is known, and no other tensor of it may be the one for a kernel."""
    return bool(target.origins) and target.places[0].attribute == "weight"


def _fitting(target: Target, shape: Shape) -> str:
    """Return the name of the first layout of a layer that gives a stored shape that of the target; "" if none does."""
    for layout in target.layouts:
        resolved = layout.resolved(shape, target.shape)
        if layout.name in LAYOUTS and resolved.fits(shape) and target.shape in (None, resolved.torch_shape(shape)):
            return layout.name
    return ""


def _parts(reader: CheckpointReader, targets: Sequence[Target], report: LoadReport) -> Iterator[str]:
    """Yield a rule for a tensor that is stored in parts, as variables such as "emb/part_0" and "emb/part_1"."""
    parts: dict[str, list[str]] = {}
    for key in report.unexpected:
        found = _PART.fullmatch(short_key(key))
        if found is not None:
            parts.setdefault(found[1], []).append(key)
    for base, keys in parts.items():
        shapes = [reader.shape(key) for key in keys]
        whole = (sum(shape[0] for shape in shapes), *shapes[0][1:]) if all(shapes) else ()
        fits = [target.name for target in targets if target.name in report.missing and target.shape == whole]
        if len(keys) > 1 and fits:
            pattern = quoted(f"{re.escape(base)}\\d+")
            yield (
                f"{counted(len(keys), 'variable')} {quoted(f'{base}...')} are parts of one. If it is "
                f"{listed(fits, _SHOWN)}, join them: mapper=[tfckpt.KeyRule((r{pattern},), {quoted(fits[0])}, "
                f'"same")]. The rows of each part must be consecutive: the default of tf.nn.embedding_lookup, "mod", '
                f"distributes them in turns"
            )
            break


def _copied_kernel(target: Target, source: Source) -> ModuleTensor | None:
    """Return the place of a kernel that was loaded as stored for lack of a known layout; None for others."""
    place = target.places[0]
    is_kernel = source.variable_name in KERNELS and len(target.shape or ()) > 1
    return place if is_kernel and source.is_unchanged and not target.origins else None


def _rule(key: str, name: str, layout: str) -> str:
    return f"mapper={{{quoted(short_key(key))}: ({quoted(name)}, {quoted(layout)})}}"
