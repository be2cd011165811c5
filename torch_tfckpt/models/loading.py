"""load_model: load a TensorFlow checkpoint into a torch module.

First the source of every tensor is chosen, then everything is read, verified and converted, and only then is the first
tensor of the module changed.
"""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from torch import nn

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.dtypes import ELEMENTS
from torch_tfckpt.errors import CheckpointError, InvalidArgumentError, NotFoundError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.models.assembly import Source
from torch_tfckpt.models.auxiliary import kinds
from torch_tfckpt.models.averages import count_of_updates
from torch_tfckpt.models.file_reader import open_reader
from torch_tfckpt.models.filling import fill
from torch_tfckpt.models.hints import hints, only_unexpected, remarks_on_slots
from torch_tfckpt.models.key_mapper import KeyMapper, Rules, as_key_mapper
from torch_tfckpt.models.named_kinds import Kinds, VariableKind
from torch_tfckpt.models.optimizer_slots import SlotPlan, check_optimizer, plan_slots
from torch_tfckpt.models.reading import read_values
from torch_tfckpt.models.saved_optimizers import how_to_restore
from torch_tfckpt.models.semantics import check_accept, find_semantics
from torch_tfckpt.models.sources import Averages, Found, find_sources
from torch_tfckpt.models.stored_names import variable_name_of
from torch_tfckpt.models.targets import Target, targets_of
from torch_tfckpt.saveables.load_report import (
    Conversion,
    LoadReport,
    Mismatch,
    SemanticFinding,
    size_mismatch,
)
from torch_tfckpt.saveables.wrappers import COUNT_OF_AVERAGES
from torch_tfckpt.storage.names import AnyPath
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.text import did_you_mean, listed, quoted
from torch_tfckpt.values import outside_modes

Strict = bool | Literal["names", "shapes", "semantics"]
_STRICT: Final = (True, False, "names", "shapes", "semantics")
_LISTED: Final = 8  # maximum number of names in a message
_GENERAL_FIX: Final = "Map names with mapper=, or pass strict=False to load the tensors that fit"

_log = logging.getLogger(__name__)


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


@outside_modes
def load_model(
    model: nn.Module,
    path: AnyPath,
    *,
    mapper: KeyMapper | Rules | None = None,
    strict: Strict = True,
    assign: bool = False,
    ema: Averages = "warn",
    optimizer: torch.optim.Optimizer | None = None,
    prefix: str | None = None,
    accept: Collection[str] = (),
    storage: Storage | None = None,
) -> LoadReport:
    """Load a module's tensors from a checkpoint or file, which may use different names and layouts.

    A tensor of the module is looked up in this order: by the mapper; by its own name, as a key ("fc1.weight",
    "fc1/weight"); in an object-based checkpoint by objects with the names of the module's attributes, then by the full
    names of variables. TensorFlow's names for the tensors of torch's layers are known (docs/conversion/layouts.md lists
    them), and the stored name implies the layout: "fc1/kernel" is transposed. Nothing is ever found by its shape. Only
    cells of a recurrent layer, which TensorFlow numbers by itself, are found by their order. All names may be below a
    common prefix, or all objects below one object, such as "model/".

    Args:
        model: Module whose tensors are filled in place, on any devices and with any strides. Extra state and buffers
            that are not persistent are unchanged; so is num_batches_tracked if the checkpoint is TensorFlow's.
        path: As for CheckpointReader; or a .safetensors, .pt or .npz file, as for `convert`. TensorFlow's names have
            TensorFlow's layouts there, too; torch's names have torch's.
        mapper: Rules for names and layouts, which override everything else.
        strict: The mismatches that raise an error. True: all. "names": missing and unexpected names; tensors
            whose shape or dtype does not fit are not loaded. "shapes": only shapes and dtypes that do not fit.
            "semantics": all, and findings on settings that weights do not show, such as the epsilon of a BatchNorm,
            unless they are listed in `accept`.
            False: none; see the report.
        assign: Replace the module's tensors by new ones, as load_state_dict(assign=True) does. The new tensors are on
            the same devices, or on the CPU if the module is on the meta device. num_batches_tracked on the meta device
            becomes zero if the checkpoint is TensorFlow's.
        ema: Whether to load moving averages instead of the variables. "warn": never, but the report and the log
            mention that they are stored; "ignore": never; "prefer": for variables that have an average; "only":
            always, and a missing average is an error. An AveragedModel that gets averages also gets its n_averaged: the
            number of steps, or 1 if the number is not stored.
        optimizer: Adam, AdamW, Adagrad or SGD over parameters of the module. It gets the state of TensorFlow's
            optimizer of the same kind, converted to torch's units, and the hyperparameters that Keras stored (learning
            rate, betas, momentum). State that a Saver of this package stored is not read; a remark in the
            report, or the error, says how to restore it.
        prefix: Common prefix of all names of the module; "" for no prefix. None: it is detected.
        accept: Names of findings in `LoadReport.semantics` for which the module is known to be correct, such as
            ("gelu_form",). They are not logged and never raise an error. docs/conversion/semantics.md lists the names.
        storage: Where files are stored. None: chosen according to the path.

    Returns:
        A report, which unpacks as (missing, unexpected).

    Raises:
        NotFoundError: there is no such checkpoint; names, averages or optimizer state are missing.
        InvalidArgumentError: unexpected names; shapes or dtypes that do not fit; an ambiguous
            name; a rule without a layout for a tensor whose name implies none; a tensor that cannot be filled in
            place; an optimizer with none of the module's parameters; momentum that Keras scaled by a learning rate
            that is not stored; an invalid argument.
        TypeError: `model` is not a Module, or `optimizer` not an Optimizer.
        DataLossError: a value or the object graph is damaged.
        UnimplementedError: an optimizer whose state cannot be converted.

    If it raises, nothing was changed. Floating-point values are converted to the dtype of the module; other dtypes must
    match. Modules with hooks or overridden methods for loading are loaded by their load_state_dict. The parts that
    wrappers add to names, such as "_orig_mod." of torch.compile, are ignored. If a Linear and a convolution get values
    from TensorFlow, the forward method of a copy on the meta device is run once, symbolically, to see whether the
    Linear multiplies the flattened output of the convolution.
    Cost: one read of the values; host memory for all of them in addition to the module. With `assign` this memory
    becomes the module's; in addition, about 32 MiB or the size of the largest tensor is needed, or twice that if
    axes are moved.
    Thread safety: no other thread may use the module during the call.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> path = tfckpt.save_file({"fc/kernel": torch.ones(3, 2), "fc/bias": torch.zeros(2)}, "model.ckpt-1")
        >>> model = torch.nn.ModuleDict({"fc": torch.nn.Linear(3, 2)})
        >>> report = tfckpt.load_model(model, path)
        >>> print(report)
        loaded 2 tensors; 0 stored tensors ignored
        converted: "fc.weight" from "fc/kernel", layout dense
    """
    _check_arguments(model, prefix, strict, ema, optimizer, assign)
    check_accept(accept)
    rules = None if mapper is None else as_key_mapper(mapper)
    targets = targets_of(model)
    if optimizer is not None:
        check_optimizer(optimizer, targets)
    with open_reader(path, storage) as reader:
        plan = plan_load(reader, targets, mapper=rules, ema=ema, prefix=prefix, optimizer=optimizer)
        _check_report(reader.path, model, plan.report, strict)
        unused = plan.found.stored_averages.of if ema == "warn" else {}
        found_semantics = find_semantics(
            model, plan.loads, unused_averages=unused, trains=optimizer is not None, accept=accept
        )
        _report_semantics(reader.path, model, plan.report, found_semantics, strict)
        if targets and not plan.loads:
            _log.warning("%s: no tensor of the %s was loaded. %s", reader.path, type(model).__name__, plan.report)
        changed = [*(target for target, _ in plan.loads), *(target for target, _ in plan.filled)]
        for target in changed if not assign else ():
            target.check_fillable()
        slot_keys = () if plan.slots is None else (key for keys in plan.slots.keys.values() for key in keys.values())
        values = read_values(reader, plan.loads, own_memory=assign)
        stored = reader.get_tensors(dict.fromkeys(slot_keys))
    if plan.report.filled:
        names = listed(list(plan.report.filled), _LISTED)
        _log.warning("%s: tensors not stored, and filled with a constant instead: %s", reader.path, names)
    tensors = {key: value for key, value in stored.items() if isinstance(value, torch.Tensor)}
    for target, number in plan.filled:
        tensor = target.tensor
        device = "cpu" if tensor.is_meta else tensor.device
        values.append(torch.full(tuple(tensor.shape), number, dtype=tensor.dtype, device=device))
    state = None if plan.slots is None else plan.slots.state_dict(tensors)
    # Load the optimizer first: it may raise an error, and then the module has not been changed yet.
    if optimizer is not None and state is not None:
        optimizer.load_state_dict(state)
    new_values = list(zip(changed, values, strict=True))
    plan.report.remarks.extend(fill(model, new_values, assign=assign, strict=strict in (True, "shapes", "semantics")))
    for target, count in plan.averaged:
        target.set_count(count)
    for target in plan.uncounted if assign else ():
        target.start_counting()
    return plan.report


def _check_arguments(
    model: object, prefix: object, strict: object, ema: object, optimizer: object, assign: bool
) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"load_model: the model is a {type(model).__name__}. Pass a torch.nn.Module")
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"load_model: the optimizer is a {type(optimizer).__name__}. Pass a torch.optim.Optimizer")
    if prefix is not None and not isinstance(prefix, str):
        raise InvalidArgumentError(f'load_model: prefix={prefix!r}: pass a string such as "model/", or None')
    if not any(strict is known or (isinstance(strict, str) and strict == known) for known in _STRICT):
        raise InvalidArgumentError(f'load_model: strict={strict!r}: pass True, False, "names", "shapes" or "semantics"')
    if ema not in get_args(Averages):
        raise InvalidArgumentError(f'load_model: ema={ema!r}: pass "warn", "ignore", "prefer" or "only"')
    if optimizer is not None and assign:
        raise InvalidArgumentError(
            "load_model: assign=True replaces the parameters, but the optimizer keeps the old ones. Omit assign, "
            "or first load the model alone, then load into an optimizer created from its new parameters"
        )


def plan_load(
    reader: CheckpointReader,
    targets: Sequence[Target],
    *,
    mapper: KeyMapper | None,
    ema: Averages,
    prefix: str | None,
    optimizer: torch.optim.Optimizer | None = None,
) -> LoadPlan:
    """Decide what to load; everything else goes into the report. Arguments, and what is raised, as for `load_model`.

    Missing and unexpected tensors, and tensors that do not fit, are only reported. No tensor is read, except counters
    and hyperparameters of an optimizer.
    """
    found = find_sources(reader, targets, mapper=mapper, ema=ema, prefix=prefix)
    loads: list[tuple[Target, Source]] = []
    filled: list[tuple[Target, float]] = []
    report = LoadReport(prefix=found.prefix, unused_rules=found.unused_rules, remarks=found.remarks)
    without_counts = _read_from_tensorflow(found, targets)
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
        mismatch = _mismatch(reader, target, source, shapes)
        if mismatch is not None:
            report.mismatched.append(mismatch)
            continue
        loads.append((target, source))
        report.sources.update(dict.fromkeys(target.names, source.description))
        if source.is_averaged:
            report.averaged.extend(target.names)
        stored_dtype = reader.dtype(source.read_keys[0])
        if not source.is_unchanged or _torch_dtype(stored_dtype) != target.tensor.dtype:
            layout, dtype = source.layout.name, target.tensor.dtype
            report.converted.append(Conversion(target.name, source.description, layout, stored_dtype, dtype))
    averaged = list(_counts_of_averages(reader, targets, found, report))
    stored = kinds(reader, found.stored_averages)
    _report_rest(reader, found, stored, report)
    missing = set(report.missing)
    for target in targets if missing else ():
        report.looked_for.update((name, target.possible_names) for name in target.names if name in missing)
    report.remarks.extend(hints(reader, targets, loads, report))
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
    slots = None if optimizer is None else plan_slots(reader, optimizer, loads, stored, found.prefix)
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


def _report_rest(reader: CheckpointReader, found: Found, stored: Kinds, report: LoadReport) -> None:
    """Report the stored tensors that are not loaded."""
    used = {key for source in found.sources.values() for key in (*source.keys, *source.read_keys)}
    ignored = {key for key, kind in stored.of.items() if kind is not VariableKind.WEIGHT}
    ignored |= found.apart | set(found.left_out)
    for key in reader.keys():
        if key in used:
            continue
        if key in found.strays:
            report.unexpected.append(key)
            report.hints[key] = f"mapped to {quoted(found.strays[key])}, which the module does not have"
        elif key in ignored or key not in found.below_prefix or _counts_averages(reader, key):
            report.ignored.append(key)
        else:
            report.unexpected.append(key)
    report.remarks.extend(remarks_on_slots(stored, report))
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


def _mismatch(reader: CheckpointReader, target: Target, source: Source, shapes: Mapping[str, Shape]) -> Mismatch | None:
    """Return why stored tensors cannot be loaded into the target; None if they can."""
    key, layout, wanted = source.description, source.layout, target.shape
    shape, dtype = shapes[source.read_keys[0]], target.tensor.dtype
    dtypes = [reader.dtype(each) for each in source.read_keys]
    stored_dtype = next((each for each in dtypes if not _converts(_torch_dtype(each), dtype)), dtypes[0])
    reason = ""
    try:
        fits = wanted in (None, source.shape(shapes))
    except InvalidArgumentError:
        fits = False
    if not fits:
        reason = size_mismatch(target.name, shape, layout.name, wanted)
    elif not _converts(_torch_dtype(stored_dtype), dtype):
        reason = f"dtype mismatch for {target.name}: {stored_dtype.short_name} in checkpoint, {dtype} in current model"
    if not reason:
        return None
    return Mismatch(target.name, key, shape, stored_dtype, layout.name, wanted, dtype, reason)


def _torch_dtype(dtype: DataType) -> torch.dtype | None:
    element = ELEMENTS.get(dtype)
    return None if element is None else element.torch


def _converts(stored: torch.dtype | None, held: torch.dtype) -> bool:
    return stored == held or (stored is not None and stored.is_floating_point and held.is_floating_point)


def _check_report(path: str, model: nn.Module, report: LoadReport, strict: Strict) -> None:
    """Raise an error for mismatches that `strict` does not allow."""
    names = bool(report.missing or report.unexpected or report.missing_slots) and strict in (True, "names", "semantics")
    shapes = bool(report.mismatched) and strict in (True, "shapes", "semantics")
    if not names and not shapes:
        return
    kind: type[CheckpointError] = InvalidArgumentError
    if names and (report.missing or report.missing_slots):
        kind = NotFoundError
    lines = "\n  ".join([*report.problems(), *report.advice()])
    raise kind(
        f"{path}: Error(s) in loading state_dict for {type(model).__name__}:\n  {lines}\n"
        f"Nothing was loaded. {only_unexpected(report) or _GENERAL_FIX}"
    )


def _report_semantics(
    path: str, model: nn.Module, report: LoadReport, findings: Sequence[SemanticFinding], strict: Strict
) -> None:
    """Add findings to the report, and log those that are not accepted, or raise an error for them."""
    report.semantics.extend(findings)
    open_findings = [finding for finding in findings if not finding.accepted]
    if open_findings and strict == "semantics":
        names = dict.fromkeys(finding.name for finding in open_findings)
        lines = "\n  ".join(map(str, open_findings))
        raise InvalidArgumentError(
            f"{path}: the weights alone do not show whether this {type(model).__name__} computes the same "
            f"function:\n  {lines}\n"
            f"Nothing was loaded. Change the module, or, if it is correct, pass "
            f"accept=({', '.join(map(quoted, names))},)"
        )
    for finding in open_findings:
        report.remarks.append(str(finding))
        _log.warning("%s: %s", path, finding)
