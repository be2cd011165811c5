"""The values of a Keras model's variables, from the tensors of a torch module, with names and order from a Keras file.

    like_model(module, reader of "model.keras", mapper)    stem/kernel -> a function that computes it

Contract: the tensors go to the variables that `load_model` would load them from, by names or rules, never by order or
shape. Every variable of the model must get a value, and every tensor must be in a variable, of the same shape; so the
settings of the layers that decide which variables they have (use_bias, center, scale) agree. A variable that a rule
omits keeps the value that it has in the file. Other settings that differ, such as epsilon, are logged.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.tensor_slice import shape_text
from torch_tfckpt.keras_files.template import WeightsTemplate
from torch_tfckpt.models.findings.semantics import find_semantics
from torch_tfckpt.models.keras_torch import with_paths, without_seeds
from torch_tfckpt.models.load_plan import LoadPlan, plan_load
from torch_tfckpt.models.rules.rule_set import RuleSet, rule_match
from torch_tfckpt.models.source_inverse import Compute, inverse_of
from torch_tfckpt.models.targets import Target, targets_of
from torch_tfckpt.saveables.load_report import Mismatch
from torch_tfckpt.storage.names import AnyPath, fspath
from torch_tfckpt.text import first_lines, listed, printable, quoted

_LISTED: Final = 12  # lines in an error
_FLATTENED: Final = "dense_after_flatten"

_log = logging.getLogger(__name__)


def open_like(like: AnyPath) -> CheckpointReader:
    """Open the Keras file that gives names and order.

    Raises:
        InvalidArgumentError: it is not a file of Keras.
        NotFoundError, DataLossError: it is missing or damaged.
    """
    reader = CheckpointReader(like)
    if reader.keras is None:
        reader.close()
        raise InvalidArgumentError(
            f"like={quoted(fspath(like))}: a TensorFlow checkpoint, not a file of Keras. Pass the .keras file of the "
            f"model, which Keras's model.save writes"
        )
    return reader


def like_model(
    model: nn.Module, reader: CheckpointReader, template: WeightsTemplate, mapper: RuleSet | None
) -> dict[str, Compute]:
    """Return name -> function that computes the value, for all variables of the template, in its order.

    Args:
        reader: The file of the template; it must stay open until the values are computed.
        mapper: Rules as for `load_model` from that file.

    Raises:
        InvalidArgumentError: the module and the Keras model do not agree; the message lists every difference.
    """
    targets = without_seeds(list(_one_for_each_name(model)))
    _check_values(targets)
    rules = with_paths(mapper, reader, targets)
    plan = plan_load(reader, targets, mapper=rules, ema="ignore", prefix=None)
    _check_agree(type(model).__name__, targets, template, plan)
    _report_semantics(model, reader, plan, mapper)
    shapes = {variable.name: variable.shape for variable in template.variables.values()}
    made = inverse_of(plan.loads, plan.filled, shapes)
    kept = [name for name in template.variables if name not in made]
    if set(kept) - template.metrics:
        _log.warning("%s: rules omit these variables, which keep their values: %s", reader.path, listed(kept, _LISTED))
    return {name: made.get(name) or _stored(reader, name) for name in template.variables}


def _one_for_each_name(model: nn.Module) -> Iterator[Target]:
    """Yield a target for each name of a tensor: Keras may have several variables where torch has one tied tensor."""
    for target in targets_of(model):
        for place in target.places:
            origins = [each for each in target.origins if each.name == place.name]
            yield replace(target, places=[place], origins=origins, is_loaded=False)


def _check_values(targets: Sequence[Target]) -> None:
    for target in targets:
        if is_lazy(target.tensor):
            raise InvalidArgumentError(f"{quoted(target.name)} has no shape yet. Run the model once before saving it")
        if target.tensor.is_meta:
            raise InvalidArgumentError(f"{quoted(target.name)} is on the meta device and has no values to save")


def _stored(reader: CheckpointReader, name: str) -> Compute:
    def compute() -> torch.Tensor:
        value = reader.get_tensor(name)
        assert isinstance(value, torch.Tensor), "Keras has no variables of strings"
        return value

    return compute


def _check_agree(kind: str, targets: Sequence[Target], template: WeightsTemplate, plan: LoadPlan) -> None:
    """Raise InvalidArgumentError if a tensor or a variable has no counterpart of the same shape."""
    report = plan.report
    stored = {id(target.tensor) for target, _ in plan.loads}
    tensors = {target.name: target.tensor for target in targets}
    missing = [name for name in report.missing if id(tensors[name]) not in stored and not _is_counter(name)]
    of_loads = {key for _, source in plan.loads for key in source.keys}
    of_others = {part for each in report.mismatched for part in each.key.split(" + ")}
    kept = {*plan.found.left_out, *template.metrics}
    unmade = [name for name in template.variables if name not in of_loads | kept | of_others]
    if not (missing or unmade or report.mismatched):
        return
    lines = [_mismatch_text(each) for each in report.mismatched]
    lines += [f"{quoted(name)} of the module has no variable in the Keras model" for name in missing]
    lines += [_without_tensor(template, name) for name in unmade]
    raise InvalidArgumentError(
        f"this {kind} and the Keras model in {template.path} do not agree:\n  "
        + "\n  ".join(first_lines(lines, _LISTED))
        + f"\nNothing was written. {_fix(template, missing, unmade)}"
    )


def _mismatch_text(each: Mismatch) -> str:
    name, key = quoted(each.name), f"{quoted(each.key)} of the Keras model"
    if "dtype mismatch" in each.reason:
        return f"{name} is {each.dtype}, but {key} is {each.stored_dtype.dtype_name}"
    as_layout = "" if each.layout == "same" else f", in layout {each.layout}"
    return f"{name} is {shape_text(each.shape or ())}, but {key} is {shape_text(each.stored_shape)}{as_layout}"


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] in ("num_batches_tracked", "n_averaged")


def _without_tensor(template: WeightsTemplate, name: str) -> str:
    variable, layer = template.variables[name], template.layer_of(name)
    of_layer = "" if layer is None else f", of the {layer.class_name} layer {quoted(layer.name)},"
    if name in template.unnamed:
        of_layer = ", whose name the file does not record,"
    return f"{quoted(name)} {shape_text(variable.shape)}{of_layer} of the Keras model has no tensor in the module"


def _fix(template: WeightsTemplate, missing: Sequence[str], unmade: Sequence[str]) -> str:
    if missing and unmade:
        own = quoted(printable(template.path))
        rules = f"Name them alike, or pass mapper=KeyMapper.infer({own}, model), or rules for these names"
        return f"{rules}; print(KeyMapper.infer(...).explanations) shows what it found"
    if unmade:
        return "Add these to the module. A variable with the rule {name: None} in mapper= keeps its value in like="
    return "Build the module and the Keras model with the same layers and settings, such as use_bias"


def _report_semantics(model: nn.Module, reader: CheckpointReader, plan: LoadPlan, mapper: RuleSet | None) -> None:
    """Log settings that differ. Raise InvalidArgumentError for a Linear whose inputs may be in another order.

    A rule that gives the layout of the kernel determines the order.
    """
    findings = find_semantics(model, plan.loads, unused_averages={}, trains=False, accept=(), keras=reader.keras)
    ordered = {target.places[0].parent[:-1] for target, source in plan.loads if _has_layout(mapper, source.key)}
    for finding in findings:
        if finding.name != _FLATTENED:
            _log.warning("%s: %s", reader.path, finding)
        elif set(finding.modules) - ordered:
            raise InvalidArgumentError(
                f"{finding}. If the order is the same, pass mapper= with a rule for the kernel and the layout "
                f'"dense"; KeyMapper.infer({quoted(reader.path)}, model) finds the rule if the file has the sizes'
            )


def _has_layout(mapper: RuleSet | None, key: str) -> bool:
    match = None if mapper is None else rule_match(mapper, (key,), None)
    return match is not None and match.rule.given_layout is not None
