"""load_model: load a TensorFlow checkpoint into a torch module.

First the source of every tensor is chosen, then everything is read, verified and converted, and only then is the first
tensor of the module changed. Large sets of values are therefore read twice, so that they are never all in memory.
"""

import logging
from collections.abc import Collection, Sequence
from functools import partial
from typing import Final, Literal, get_args

import torch
from torch import nn

from torch_tfckpt.distributed.shards import is_dtensor, local_tensor
from torch_tfckpt.errors import CheckpointError, InvalidArgumentError, NotFoundError
from torch_tfckpt.models.auxiliary.optimizer_slots import check_optimizer
from torch_tfckpt.models.file_reader import open_reader
from torch_tfckpt.models.filling import fill
from torch_tfckpt.models.findings.semantics import check_accept, find_semantics
from torch_tfckpt.models.hints import NO_RULE_MATCHES, only_optimizer_state, only_unexpected
from torch_tfckpt.models.keras_torch import with_paths, without_seeds
from torch_tfckpt.models.load_plan import plan_load
from torch_tfckpt.models.reading import NewValues, read_part_of, read_rest, read_values
from torch_tfckpt.models.rules.key_mapper import KeyMapper, Rules, as_key_mapper
from torch_tfckpt.models.sources import Averages
from torch_tfckpt.models.targets import targets_of
from torch_tfckpt.saveables.load_report import LoadReport, SemanticFinding
from torch_tfckpt.storage.names import AnyPath
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.text import listed, quoted
from torch_tfckpt.values import outside_modes

Strict = bool | Literal["names", "shapes", "semantics"]
_STRICT: Final = (True, False, "names", "shapes", "semantics")
_LISTED: Final = 8  # maximum number of names in a message
_GENERAL_FIX: Final = "Map names with mapper=, or pass strict=False to load the tensors that fit"
_INFER_FIX: Final = (
    "Map the rest with more rules, which KeyMapper.infer(path, model, rules=mapper) may find, or pass strict=False to "
    "load the tensors that fit"
)

_log = logging.getLogger(__name__)


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
    verify: bool = True,
    storage: Storage | None = None,
) -> LoadReport:
    """Load a module's tensors from a checkpoint or file, which may use different names and layouts.

    A tensor of the module is looked up in this order: by the mapper; by its own name, as a key ("fc1.weight",
    "fc1/weight"); in an object-based checkpoint by objects with the names of the module's attributes, then by the full
    names of variables. TensorFlow's names for the tensors of torch's layers are known (docs/conversion/layouts.md lists
    them), and the stored name implies the layout: "fc1/kernel" is transposed. No tensor is ever found by its shape.
    Only cells of a recurrent layer, which TensorFlow numbers automatically, are found by their order. All names may be
    below a common prefix, or all objects below one object, such as "model/".

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
        optimizer: Adam, AdamW, SGD, RMSprop, Adagrad, Adadelta, Adamax or NAdam over parameters of the module. It gets
            the state of TensorFlow's optimizer of the same kind, converted to torch's units and layouts, and the
            hyperparameters that Keras stored (learning rate, betas, momentum). What torch computes differently is
            in `LoadReport.semantics`; docs/conversion/optimizer-state.md explains it. State that a Saver of this
            package stored is not read; a remark in the report, or the error, says how to restore it.
        prefix: Common prefix of all names of the module; "" for no prefix. None: it is detected.
        accept: Names of findings in `LoadReport.semantics` for which the module is known to be correct, such as
            ("gelu_form",). They are not logged and never raise an error. docs/conversion/semantics.md lists the names.
        verify: Whether to verify the checksums of a checkpoint.
        storage: Where files are stored. None: chosen according to the path.

    Returns:
        A report, which unpacks as (missing, unexpected).

    Raises:
        NotFoundError: there is no such checkpoint; names, averages or optimizer state are missing.
        InvalidArgumentError: unexpected names; shapes or dtypes that do not fit; an ambiguous
            name; a rule without a layout for a tensor whose name implies none; values beyond the range of the
            module's dtype; a tensor that cannot be filled in place; an optimizer with none of the module's parameters;
            momentum that Keras scaled by a learning rate that is not stored; an invalid argument.
        TypeError: `model` is not a Module, or `optimizer` not an Optimizer.
        DataLossError: a value or the object graph is damaged.
        UnimplementedError: an optimizer whose state cannot be converted.

    If an error is raised, nothing was changed, with one exception: a file that is overwritten, or becomes unreadable,
    after it was verified and before it is read a second time. In that case, a note on the error lists the tensors that
    were changed.

    Floating-point values are converted to the dtype of the module; other dtypes must match. Modules with hooks or
    overridden methods for loading are loaded by their load_state_dict. The parts that wrappers add to names, such as
    "_orig_mod." of torch.compile, are ignored. If a Linear and a convolution get values from TensorFlow, the forward
    method of a copy on the meta device is run once, symbolically, to see whether the Linear multiplies the flattened
    output of the convolution.
    Of a DTensor, each rank reads and fills its own part, and nothing is communicated: every rank calls this function,
    and after an error on one rank, the others may be loaded. With `verify`, a rank reads the stored tensors that its
    part is in; without it, only the part. Layouts that do more than move axes need whole tensors.
    Cost: large tensors in local files that are stored as they are in the module are read twice, to verify them and into
    the module. Of the others: one read; two if they exceed 256 MiB. Host memory in addition to the module: up to 256
    MiB; if the others exceed that, about 64 MiB or twice the size of the largest tensor. Optimizer state, and values
    for modules with hooks, are held in memory. With `assign`: all values, whose memory becomes the module's, and about
    64 MiB or twice the size of the largest tensor.
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
    targets = without_seeds(targets_of(model))
    if optimizer is not None:
        check_optimizer(optimizer, targets)
    with open_reader(path, storage, verify=verify) as reader:
        by_path = with_paths(rules, reader, targets)
        plan = plan_load(reader, targets, mapper=by_path, ema=ema, prefix=prefix, optimizer=optimizer, accept=accept)
        _check_report(reader.path, model, plan.report, strict, with_rules=rules is not None)
        unused = plan.found.stored_averages.of if ema == "warn" else {}
        found_semantics = find_semantics(
            model,
            plan.loads,
            unused_averages=unused,
            unknown_order=plan.found.unknown_order,
            trains=optimizer is not None,
            accept=accept,
            keras=reader.keras,
        )
        found_semantics += () if plan.slots is None else plan.slots.findings
        _report_semantics(reader.path, model, plan.report, found_semantics, strict)
        if targets and not plan.loads:
            _log.warning("%s: no tensor of the %s was loaded. %s", reader.path, type(model).__name__, plan.report)
        changed = [*(target for target, _ in plan.loads), *(target for target, _ in plan.filled)]
        for target in changed if not assign else ():
            target.check_fillable()
        values = read_values(reader, plan.loads, own_memory=assign)
        if plan.found.is_unused:
            _log.warning("%s: %s", reader.path, NO_RULE_MATCHES)
        _report_range(reader.path, plan.report, values, strict)
        stored = reader.get_tensors(() if plan.slots is None else plan.slots.stored_keys)
        # No warning is needed for the second bias that some of torch's layers have where TensorFlow has only one.
        filled = [
            target.name for target, _ in plan.filled if not any(each.origin.summed_with for each in target.origins)
        ]
        if filled:
            names = listed(filled, _LISTED)
            _log.warning("%s: tensors not stored, and filled with a constant instead: %s", reader.path, names)
        tensors = {key: value for key, value in stored.items() if isinstance(value, torch.Tensor)}
        for target, number in plan.filled:
            tensor = target.tensor
            device = "cpu" if tensor.is_meta else tensor.device
            shape = local_tensor(target.name, tensor).shape if is_dtensor(tensor) else tensor.shape
            value = torch.full(tuple(shape), number, dtype=tensor.dtype, device=device)
            values.held.append((target, value))
        state = None if plan.slots is None else plan.slots.state_dict(tensors, partial(read_part_of, reader))
        # Load the optimizer first: it may raise an error, and then the module has not been changed yet.
        if optimizer is not None and state is not None:
            optimizer.load_state_dict(state)
        rest = read_rest(reader, values.rest)
        stops = strict in (True, "shapes", "semantics")
        plan.report.remarks.extend(fill(model, values.held, rest, values.in_place.read, assign=assign, strict=stops))
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


def _check_report(path: str, model: nn.Module, report: LoadReport, strict: Strict, *, with_rules: bool) -> None:
    """Raise an error for mismatches that `strict` does not allow."""
    names = bool(report.missing or report.unexpected or report.missing_slots) and strict in (True, "names", "semantics")
    shapes = bool(report.mismatched) and strict in (True, "shapes", "semantics")
    if not names and not shapes:
        return
    kind: type[CheckpointError] = InvalidArgumentError
    if names and (report.missing or report.missing_slots):
        kind = NotFoundError
    lines = "\n  ".join([*report.problems(), *report.advice()])
    fix = _INFER_FIX if with_rules and report.missing and report.unexpected else _GENERAL_FIX
    raise kind(
        f"{path}: Error(s) in loading state_dict for {type(model).__name__}:\n  {lines}\n"
        f"Nothing was loaded. {only_unexpected(report) or only_optimizer_state(report) or fix}"
    )


def _report_range(path: str, report: LoadReport, values: NewValues, strict: Strict) -> None:
    """Raise an error for values that the module's dtype cannot represent; if `strict` allows them, add a remark."""
    found = values.beyond_range()
    if not found:
        return
    if strict in (True, "shapes", "semantics"):
        raise InvalidArgumentError(
            f"{path}: {found}. Nothing was loaded. Load into a module with a wider range, such as bfloat16 or float32, "
            f'or pass strict="names" to load the values that the conversion yields, usually infinity'
        )
    report.remarks.append(f"{found}: loaded as the values that the conversion yields, usually infinity")
    _log.warning("%s: %s", path, report.remarks[-1])


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
