"""Plan the conversion of a checkpoint into a state_dict: torch's names and layouts.

The same search as in `load_model` finds the source of every tensor of the module. Without a module, the rules must give
the names and the layouts, and a module made from the rules takes its place.

Contract:

    complete        every stored tensor has an outcome: its new names, or the reason why it is left out
    never a guess   a weight that no rule matches, a tensor of the module that is not stored, and a layout that is not
                    known are errors; the first of these is only reported if `strict` is off
    memory          only counters and strings are read here
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import torch

from torch_tfckpt.conversion.convert_report import TensorOutcome
from torch_tfckpt.conversion.deferred_source import DeferredSource, deferred_tensor
from torch_tfckpt.conversion.torch_optimizer import MODEL, TorchOptimizerState, optimizer_state
from torch_tfckpt.conversion.turning import COUNTER, Turned, TurnRequest
from torch_tfckpt.errors import FailedPreconditionError, InvalidArgumentError
from torch_tfckpt.foreign_files.protocols import TensorSource
from torch_tfckpt.format.object_graph import OBJECT_GRAPH_KEY
from torch_tfckpt.models.auxiliary.averages import stored_averages
from torch_tfckpt.models.auxiliary.named_kinds import VariableKind
from torch_tfckpt.models.factories import factory_text
from torch_tfckpt.models.file_reader import reader_of
from torch_tfckpt.models.findings.semantics import find_semantics
from torch_tfckpt.models.layers.assembly import Source
from torch_tfckpt.models.load_plan import LoadPlan, plan_load
from torch_tfckpt.models.module_of_rules import module_of_rules
from torch_tfckpt.models.rules.rule_set import without_names
from torch_tfckpt.models.stored_names import variable_name_of
from torch_tfckpt.models.targets import Target, targets_of
from torch_tfckpt.text import counted, printable, quoted


def turn_to_torch(source: TensorSource, request: TurnRequest, excluded: Sequence[str]) -> Turned:
    """Return the tensors of a state_dict.

    Args:
        excluded: Names of stored tensors to leave out.

    Raises:
        InvalidArgumentError: a layout is unknown, a name is ambiguous, a factory fails.
        FailedPreconditionError: the tensors do not fit the module, or weights are matched by no rule.
        NotFoundError: moving averages or optimizer state were asked for and are not stored.
    """
    reader = reader_of(source)
    given, model = request.prepared(source.path)
    mapper = without_names(given, {*excluded})
    remarks: list[str] = []
    if model is None:
        assert mapper is not None, "checked with the arguments"
        averages = stored_averages(reader)
        targets = targets_of(module_of_rules(reader, mapper, averages))
        plan = plan_load(reader, targets, mapper=mapper, ema=request.ema, prefix="")
        _leave_out_counters(plan)
        _explain_strays(plan)
        if averages.of and request.ema == "warn":
            remarks.append(
                f"moving averages of {counted(len(averages.of), 'variable')} are stored, but the variables themselves "
                f'were converted. Pass ema="prefer" to convert the averages, with which such models are usually '
                f'evaluated, or ema="ignore" to keep the variables'
            )
    else:
        targets = targets_of(model)
        try:
            plan = plan_load(reader, targets, mapper=mapper, ema=request.ema, prefix=None)
        except InvalidArgumentError as error:
            raise FailedPreconditionError(f"{error}. Nothing was written") from error
    _check(source, plan, request, targets)
    state = None
    if request.optimizer:
        state = optimizer_state(reader, model, plan, strict=request.strict)
        remarks += state.remarks
    remarks += plan.report.remarks
    if model is not None:
        unused = plan.found.stored_averages.of if request.ema == "warn" else {}
        trains = request.optimizer
        config = None if reader.keras is None else reader.keras.config
        findings = find_semantics(
            model,
            plan.loads,
            unused_averages=unused,
            unknown_order=plan.found.unknown_order,
            trains=trains,
            accept=(),
            config=config,
        )
        remarks += map(str, findings)
    remarks += [f"the rule for {quoted(rule)} matches nothing" for rule in plan.report.unused_rules if model is None]
    part = "" if state is None else MODEL
    values, filled = _values(source, plan, targets, part)
    outcomes = list(_outcomes(reader.keys(), source, plan, part, state, {*excluded}))
    if state is not None:
        values |= state.values(lambda key: deferred_tensor(source, key))
    contents = None if state is None else state.contents
    return Turned(DeferredSource(source, values), outcomes, filled, remarks, model, part, contents)


def _leave_out_counters(plan: LoadPlan) -> None:
    """Ignore num_batches_tracked, which checkpoints from torch contain, instead of asking for a rule."""
    counters = [key for key in plan.report.unexpected if variable_name_of(key) == COUNTER]
    plan.report.unexpected[:] = [key for key in plan.report.unexpected if key not in {*counters}]
    plan.report.ignored.extend(counters)


def _explain_strays(plan: LoadPlan) -> None:
    for key, target in plan.found.strays.items():
        if key in plan.report.hints:
            plan.report.hints[key] = (
                f"a rule for modules would map it to {quoted(target)}, but the last part is not the name of a variable "
                f"of a known layer: write a rule for this variable"
            )


def _check(source: TensorSource, plan: LoadPlan, request: TurnRequest, targets: Sequence[Target]) -> None:
    """Raise FailedPreconditionError if the file would not fit, or if weights would be lost."""
    report = plan.report
    lost = report.unexpected if request.strict else []
    if targets and not plan.loads and not lost:
        lost = report.unexpected or list(report.ignored)[:1]
    if not report.missing and not report.mismatched and not lost:
        return
    factory = request.check if request.check is not None else request.infer
    what = (
        "the stored tensors do not fit the rules"
        if factory is None
        else f"the tensors do not fit {factory_text(factory)}"
    )
    lines = "\n  ".join([*report.problems(), *report.advice()])
    fix = "Correct the rules or the module"
    if lost and not report.missing and not report.mismatched:
        what = f"{counted(len(report.unexpected), 'weight')} would be lost"
        fix = (
            'Write rules for them; leave out single ones with a rule that has to = "", or with `exclude`; or pass '
            "strict=False, which lists them in the report"
        )
    raise FailedPreconditionError(f"{printable(source.path)}: {what}:\n  {lines}\nNothing was written. {fix}")


def _values(
    source: TensorSource, plan: LoadPlan, targets: Iterable[Target], part: str
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Return the tensors to write, in the order of the state_dict, and the values of those that are not stored."""
    sources = {target.name: made_of for target, made_of in plan.loads}
    constants = {target.name: number for target, number in plan.filled}
    constants |= {target.name: 0.0 for target in plan.uncounted}
    constants |= {target.name: float(count) for target, count in plan.averaged}
    values: dict[str, torch.Tensor] = {}
    filled: dict[str, float] = {}
    for target in targets:
        value = None
        if target.name in sources:
            made_of = sources[target.name]
            value = made_of.value({key: deferred_tensor(source, key) for key in made_of.read_keys})
        elif target.name in constants:
            number = constants[target.name]
            value = torch.full(tuple(target.tensor.shape), number, dtype=target.tensor.dtype, device="cpu")
            filled.update((part + name, number) for name in target.names)
        if value is not None:
            values.update((part + name, value) for name in target.names)
    return values, filled


def _outcomes(
    keys: Sequence[str],
    source: TensorSource,
    plan: LoadPlan,
    part: str,
    state: TorchOptimizerState | None,
    excluded: set[str],
) -> Iterator[TensorOutcome]:
    """Yield what becomes of each stored tensor: once for each new name, or once with a reason."""
    used: dict[str, list[tuple[str, Source]]] = {}
    replaced: dict[str, str] = {}
    for target, made_of in plan.loads:
        for each in made_of.parts:
            used.setdefault(each.read_key, []).extend((part + name, made_of) for name in target.names)
            if each.average is not None:
                replaced[each.key] = each.average
    slots = {} if state is None else state.names
    for key in keys:
        shape = source.info(key).shape
        for name, made_of in used.get(key, ()):
            shapes = {each: source.info(each).shape for each in made_of.read_keys}
            yield TensorOutcome(key, name, _transform(made_of, key), shape, made_of.shape(shapes))
        for name, value_shape, transform in slots.get(key, ()):
            yield TensorOutcome(key, name, transform, shape, value_shape)
        if key not in used and key not in slots:
            reason = _reason(key, plan, replaced, excluded)
            yield TensorOutcome(key, None, "", shape, (), reason)


def _transform(made_of: Source, key: str) -> str:
    layout = next(each.layout for each in made_of.parts if each.read_key == key)
    words = [layout.name]
    if len(made_of.parts) > 1:
        words.append(f"joined with {counted(len(made_of.parts) - 1, 'other')} along axis {made_of.axis}")
    if made_of.bounds is not None:
        words.append(f"{made_of.bounds.start}:{made_of.bounds.stop} of axis {made_of.axis}")
    if made_of.added:
        words.append(f"{made_of.added:+g}")
    return ", ".join(words)


def _reason(key: str, plan: LoadPlan, replaced: Mapping[str, str], excluded: set[str]) -> str:
    """Return why a stored tensor is left out."""
    found, kind = plan.found, plan.kinds.of.get(key)
    if key in excluded:
        return "left out by include and exclude"
    if key in replaced:
        return f"its moving average {quoted(replaced[key])} is used"
    if key in found.left_out:
        return "a rule leaves it out"
    if key in plan.report.hints and key in plan.report.unexpected:
        return plan.report.hints[key]
    if key in plan.report.unexpected:
        return "no rule matches it"
    if key in found.apart:
        return "a further copy of a tensor that has several names"
    if key == OBJECT_GRAPH_KEY:
        return "the object graph"
    if key in plan.kinds.uncertain:
        return f"{VariableKind.OPTIMIZER}, by its name and shape alone"
    if kind is not None and kind is not VariableKind.WEIGHT:
        return _OF_KINDS[kind]
    if key not in found.below_prefix:
        return f"not below {quoted(found.prefix)}, where the module is stored"
    mismatch = next((each for each in plan.report.mismatched if key in each.key), None)
    if mismatch is not None:
        return "does not fit the module"
    return "a counter" if variable_name_of(key) == COUNTER else "a counter of a wrapper"


_OF_KINDS: Final = {
    VariableKind.AVERAGE: "a moving average",
    VariableKind.OPTIMIZER: "optimizer state",
    VariableKind.COUNTER: "a counter",
    VariableKind.OTHER: "not a weight: a string, a metric or auxiliary state",
}
