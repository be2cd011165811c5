"""Decide what load_model loads: the source of each tensor of a module, and why the rest is not loaded.

Contract: no tensor is read except counters and hyperparameters, and nothing is changed. Tensors that are missing
or unexpected, or that do not fit, are not an error here; they are listed in the report.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.dtypes import ELEMENTS
from torch_tfckpt.errors import NotFoundError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.models.auxiliary.averages import count_of_updates
from torch_tfckpt.models.auxiliary.named_kinds import Kinds, VariableKind
from torch_tfckpt.models.auxiliary.optimizer_slots import SlotPlan, plan_slots
from torch_tfckpt.models.auxiliary.recognition import kinds
from torch_tfckpt.models.auxiliary.saved_optimizers import how_to_restore
from torch_tfckpt.models.hints import NO_RULE_MATCHES, hints, remarks_on_parts, remarks_on_slots
from torch_tfckpt.models.layers.assembly import Source
from torch_tfckpt.models.layers.recurrent_layers import other_formula
from torch_tfckpt.models.rules.rule_set import RuleSet
from torch_tfckpt.models.sources import Averages, Found, find_sources
from torch_tfckpt.models.stored_names import variable_name_of
from torch_tfckpt.models.targets import Target
from torch_tfckpt.saveables.load_report import Conversion, LoadReport, Mismatch, size_mismatch
from torch_tfckpt.saveables.wrappers import COUNT_OF_AVERAGES
from torch_tfckpt.text import did_you_mean, quoted


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What is loaded into a module, and why the rest of the checkpoint is not.

    Attributes:
        loads: Tensors and their sources, only those that fit.
        filled: Tensors that TensorFlow does not store for their layer, and their value.
        uncounted: num_batches_tracked of modules whose statistics TensorFlow stored.
        averaged: n_averaged of each AveragedModel that gets averages, and its new value.
        slots: State for the optimizer, if one was given.
        found: Result of the search for sources.
        kinds: The kinds of all variables of the checkpoint.
    """

    report: LoadReport
    loads: Sequence[tuple[Target, Source]]
    filled: Sequence[tuple[Target, float]]
    uncounted: Sequence[Target]
    averaged: Sequence[tuple[Target, int]]
    slots: SlotPlan | None
    found: Found
    kinds: Kinds


def plan_load(
    reader: CheckpointReader,
    targets: Sequence[Target],
    *,
    mapper: RuleSet | None,
    ema: Averages,
    prefix: str | None,
    optimizer: torch.optim.Optimizer | None = None,
    accept: Collection[str] = (),
) -> LoadPlan:
    """Decide what to load; everything else goes into the report. Arguments and errors as for `load_model`.

    Missing and unexpected tensors, and tensors that do not fit, are only reported. No tensor is read, except counters
    and hyperparameters of an optimizer.
    """
    found = find_sources(reader, targets, mapper=mapper, ema=ema, prefix=prefix)
    loads: list[tuple[Target, Source]] = []
    filled: list[tuple[Target, float]] = []
    report = LoadReport(prefix=found.prefix, unused_rules=found.unused_rules, remarks=found.remarks)
    without_counts = _read_from_tensorflow(found, targets)
    refused = _other_formulas(reader, targets, found.sources)
    of_other_shape: list[Mismatch] = []
    for target in targets:
        source = found.sources.get(target.name)
        if source is None:
            if target.name in found.filled and target.shape is not None:
                filled.append((target, found.filled[target.name]))
                report.filled.update(dict.fromkeys(target.names, found.filled[target.name]))
            elif not target.is_wrappers and target.name not in without_counts:
                report.missing.extend(target.names)
            continue
        shapes = {key: reader.shape(key) for key in source.read_keys}
        source = found.sources[target.name] = source.resolved(shapes, target.shape)
        is_refused = any(place.parent in refused for place in target.places)
        mismatch = _mismatch(reader, target, source, shapes, is_refused)
        if mismatch is not None:
            report.mismatched.append(mismatch)
            if not is_refused and source.is_one_variable and not source.fits(shapes, target.shape):
                of_other_shape.append(mismatch)
            continue
        loads.append((target, source))
        report.sources.update(dict.fromkeys(target.names, source.description))
        if source.is_averaged:
            report.averaged.extend(target.names)
        stored_dtype = reader.dtype(source.read_keys[0])
        if not source.is_unchanged or _torch_dtype(stored_dtype) != target.tensor.dtype:
            layout, dtype = source.layout.name, target.tensor.dtype
            report.converted.append(Conversion(target.name, source.description, layout, stored_dtype, dtype))
    if found.is_unused:
        report.remarks.append(NO_RULE_MATCHES)
    averaged = list(_counts_of_averages(reader, targets, found, report))
    stored = kinds(reader, found.stored_averages)
    _report_rest(reader, targets, found, stored, report)
    missing = set(report.missing)
    for target in targets if missing else ():
        report.looked_for.update((name, target.possible_names) for name in target.names if name in missing)
    report.remarks.extend(hints(reader, targets, loads, of_other_shape, report))
    for key in reader.keys() if reader.object_graph is not None else ():
        variable = reader.variable_name(key)
        if variable is not None:
            report.variables[key] = variable
    if found.not_averaged:
        names = ", ".join(map(quoted, found.not_averaged))
        raise NotFoundError(
            f'{reader.path}: ema="only", but no moving average is stored for {names}. Pass ema="prefer" to load '
            f"the variables themselves"
        )
    slots = None
    if optimizer is not None:
        of_filled = [target for target, _ in filled]
        slots = plan_slots(reader, optimizer, loads, stored, found.prefix, filled=of_filled, accept=accept)
    if optimizer is not None and slots is not None:
        if not slots.keys:
            report.remarks.extend(filter(None, [how_to_restore(reader, optimizer, found.prefix)]))
        report.remarks.extend(slots.remarks)
        report.slots.update(slots.keys)
        report.missing_slots.extend(slots.missing)
        report.hyperparameters.update(slots.state.hyperparameters)
    uncounted = [target for target in targets if target.name in without_counts - found.sources.keys()]
    return LoadPlan(report, loads, filled, uncounted, averaged, slots, found, stored)


def _counts_of_averages(
    reader: CheckpointReader, targets: Sequence[Target], found: Found, report: LoadReport
) -> Iterator[tuple[Target, int]]:
    """Yield n_averaged of each AveragedModel that gets moving averages, and its new value.

    If n_averaged were 0, the first call of update_parameters would replace the averages with the parameters.
    """
    for target in targets:
        if not target.is_wrappers or target.name in found.sources:
            continue
        below = target.places[0].parent  # names omit the wrapper's part, "module."
        if not any(name.startswith(below) for name in report.averaged):
            report.remarks.append(f"{quoted(target.name)} is not stored, and is unchanged")
            continue
        steps = count_of_updates(reader)
        count, origin = (
            (1, "the number of averaged steps is not stored") if steps is None else (max(steps, 1), "the step")
        )
        report.remarks.append(f"{quoted(target.name)} is set to {count} ({origin}), so that averaging can continue")
        yield target, count


def _report_rest(
    reader: CheckpointReader, targets: Sequence[Target], found: Found, stored: Kinds, report: LoadReport
) -> None:
    """Report the stored tensors that are not loaded."""
    names = [name for target in targets for name in target.names] if found.strays else []
    used = {key for source in found.sources.values() for key in (*source.keys, *source.read_keys)}
    ignored = {key for key, kind in stored.of.items() if kind is not VariableKind.WEIGHT}
    ignored |= found.apart | set(found.left_out) | found.unplaced.keys()
    for key in reader.keys():
        if key in used:
            continue
        if key in found.strays:
            report.unexpected.append(key)
            close = did_you_mean(found.strays[key], names)
            report.hints[key] = (
                f"mapped to {quoted(found.strays[key])}, which the module does not have. {close}".strip()
            )
        elif key in ignored or key not in found.below_prefix or _counts_averages(reader, key):
            report.ignored.append(key)
        else:
            report.unexpected.append(key)
    report.remarks.extend(remarks_on_slots(stored, report))
    weights = (key for key in found.unplaced if stored.of.get(key, VariableKind.WEIGHT) is VariableKind.WEIGHT)
    report.remarks.extend(remarks_on_parts({key: found.unplaced[key] for key in weights if key not in used}))
    known = [name for key in (reader.keys() if found.asked_for else ()) for name in reader.names_of(key)]
    for name, key in found.asked_for.items():
        report.hints[name] = f"mapped from {quoted(key)}, which is not stored. {did_you_mean(key, known)}".strip()


def _counts_averages(reader: CheckpointReader, key: str) -> bool:
    """Return whether a key is n_averaged of an AveragedModel; models without this wrapper lack it."""
    name = variable_name_of(key)
    return name == COUNT_OF_AVERAGES and reader.dtype(key) == DataType.DT_INT64 and reader.shape(key) == ()


def _read_from_tensorflow(found: Found, targets: Sequence[Target]) -> set[str]:
    """Return the name of each num_batches_tracked whose module's running_mean was stored by TensorFlow."""
    names = set()
    for target in targets:
        for place in target.places if target.counts_batches else ():
            mean = found.sources.get(place.parent + "running_mean")
            if mean is not None and mean.variable_name != "running_mean":
                names.add(target.name)
    return names


def _other_formulas(
    reader: CheckpointReader, targets: Sequence[Target], sources: Mapping[str, Source]
) -> dict[str, str]:
    """Return layer -> why it cannot be loaded although its kernel fits. Layers are named as in `parent`."""
    refused: dict[str, str] = {}
    for target in targets:
        source = sources.get(target.name)
        if source is None:
            continue
        for place in target.places:
            # A bias under torch's own name has torch's formula, too.
            if place.attribute.startswith("bias") and source.variable_name != place.attribute:
                found = other_formula(place.module, reader.shape(source.read_keys[0]))
                refused[place.parent] = refused.get(place.parent) or found
    return {layer: reason for layer, reason in refused.items() if reason}


def _mismatch(
    reader: CheckpointReader, target: Target, source: Source, shapes: Mapping[str, Shape], is_refused: bool
) -> Mismatch | None:
    """Return why stored tensors cannot be loaded into the target; None if they can.

    Args:
        is_refused: Whether they cannot be loaded even if their shapes fit, because the layer has another formula.
    """
    key, layout, wanted = source.description, source.layout, target.shape
    shape, dtype = shapes[source.read_keys[0]], target.tensor.dtype
    dtypes = [reader.dtype(each) for each in source.read_keys]
    stored_dtype = next((each for each in dtypes if not _converts(_torch_dtype(each), dtype)), dtypes[0])
    if is_refused:
        reason = f"formula mismatch for {target.name}: the layer computes a different function in TensorFlow"
    elif not source.fits(shapes, wanted):
        reason = size_mismatch(target.name, shape, layout.name, wanted)
    elif not _converts(_torch_dtype(stored_dtype), dtype):
        reason = f"dtype mismatch for {target.name}: {stored_dtype.short_name} in checkpoint, {dtype} in current model"
    else:
        return None
    return Mismatch(target.name, key, shape, stored_dtype, layout.name, wanted, dtype, reason)


def _torch_dtype(dtype: DataType) -> torch.dtype | None:
    element = ELEMENTS.get(dtype)
    return None if element is None else element.torch


def _converts(stored: torch.dtype | None, held: torch.dtype) -> bool:
    return stored == held or (stored is not None and stored.is_floating_point and held.is_floating_point)
