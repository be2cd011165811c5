"""What a request for outputs needs: inputs, operations, and what is missing.

Everything that is missing is reported at once, before anything is built.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError, error_context
from torch_tfckpt.graph_ops.registry import find
from torch_tfckpt.graph_run.attributes import function_name
from torch_tfckpt.graph_run.flattening import Flattener
from torch_tfckpt.graph_run.handlers import HANDLERS, INPUTS
from torch_tfckpt.graph_run.steps import (
    ARGUMENT,
    ASSIGNMENTS,
    CASES,
    CONDITIONS,
    ENTERS,
    LOOPS,
    SWITCHES,
    VARIABLES,
    GraphStep,
    Region,
    needed,
    without_identities,
)
from torch_tfckpt.graph_run.structure import analyse
from torch_tfckpt.text import counted, listed, quoted

_SHOWN: Final = 12  # operations in a message
_CANDIDATES: Final = 5
# Operations that hand out training data: their outputs are inputs of the model.
SOURCES: Final = frozenset({
    "IteratorGetNext", "IteratorGetNextSync", "QueueDequeueV2", "QueueDequeueManyV2", "QueueDequeueUpToV2",
    "QueueDequeue", "QueueDequeueMany", "QueueDequeueUpTo", "PyFunc", "PyFuncStateless", "EagerPyFunc", "ReaderReadV2",
    "ReaderRead", "ReaderReadUpToV2",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Requirements:
    """What must be given and supported to compute outputs of a graph.

    Attributes:
        inputs: Tensors that must be fed.
        ops: Operation -> number of its nodes, counting those of each call of a function.
        missing: Operation that is not supported -> number of its nodes.
        examples: Operation that is not supported -> one of its nodes.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> path = tfckpt.Saver({"w": torch.ones(2)}).save("model.ckpt")
        >>> imported = tfckpt.import_meta_graph("model.ckpt.meta")
        >>> imported.requirements("w/Read/ReadVariableOp").inputs
        ()
    """

    inputs: tuple[str, ...]
    ops: Counter[str]
    missing: Counter[str]
    examples: Mapping[str, str] = field(default_factory=dict)


def regions_of(flattener: Flattener, region: Region, change: Callable[[Region], None] | None = None) -> list[Region]:
    """Analyse a region and the functions that its conditions and loops run; return all of them.

    Args:
        change: Changes the steps of a region before they are analysed.

    An unused result of a function is not needed: graphs that also compute gradients have many.
    """
    found = [region]
    for each in found:  # grows
        if change is not None:
            change(each)
        analyse(each)
        used = _used_outputs(each)
        for step in each.steps:
            if step in each.live:
                with error_context(repr(step)):
                    names = list(_functions(step))
                step.functions = [flattener.function_region(name, step, each.ancestry) for name in names]
                found.extend(step.functions)
                if step.op in LOOPS:
                    _drop_loop_variables(step, used.get(step, set()))
                else:
                    for inner in step.functions:
                        inner.drop_results(used.get(step, set()))
    return found


def _used_outputs(region: Region) -> dict[GraphStep, set[int]]:
    """Return which outputs of conditions and loops are used."""
    found: dict[GraphStep, set[int]] = {}
    sources = [source for source in region.results if source is not None]
    for step in region.live:
        sources += step.inputs
        if step.predicate is not None:
            sources.append(step.predicate)
    for source, index in sources:
        found.setdefault(source, set()).add(index)
    return found


def _drop_loop_variables(step: GraphStep, used: set[int]) -> None:
    """Drop the results of a loop's body that neither its condition nor a used result depends on."""
    condition, body = step.functions
    analyse(condition)
    analyse(body)
    kept = set(used)
    waiting = list(used | _arguments(condition, [0]) | _arguments(condition, []) | _arguments(body, []))
    kept.update(waiting)
    while waiting:
        more = _arguments(body, [waiting.pop()]) - kept
        kept |= more
        waiting += more
    body.drop_results(kept)


def _arguments(region: Region, results: Sequence[int]) -> set[int]:
    """Return the arguments of a function that some results, or its effects if there are none, depend on."""
    sources = [region.results[index] for index in results if index < len(region.results)]
    stack = [source[0] for source in sources if source is not None]
    if not results:
        stack = [each for each in region.targets if each.effectful]
    seen: set[GraphStep] = set()
    while stack:
        each = stack.pop()
        if each not in seen:
            seen.add(each)
            stack.extend(needed(each))
    return {each.index for each in seen if each.op == ARGUMENT}


def _functions(step: GraphStep) -> Iterator[str]:
    if step.constants is not None:
        return
    if step.op in CONDITIONS:
        yield function_name(step.attributes, "else_branch")
        yield function_name(step.attributes, "then_branch")
    elif step.op in LOOPS:
        yield function_name(step.attributes, "cond")
        yield function_name(step.attributes, "body")
    elif step.op in CASES and "branches" in step.attributes:
        yield from (function.name for function in step.attributes["branches"].list.func)


def requirements_of(regions: Iterable[Region]) -> Requirements:
    """Return what the needed steps of regions need."""
    inputs: dict[str, None] = {}
    ops: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for region in regions:
        for step in region.steps:
            if step not in region.live or step.node is None:
                continue
            if step.op in INPUTS:
                inputs[f"{step.name}:0"] = None
            ops[step.op] += 1
            if step.constants is None and step.alias is None and step.op not in HANDLERS and find(step.op) is None:
                missing[step.op] += 1
                examples.setdefault(step.op, step.name)
    return Requirements(tuple(inputs), ops, missing, examples)


def check(regions: Sequence[Region], required: Requirements) -> None:
    """Raise an error that names everything that is missing.

    Raises:
        UnimplementedError: operations are not supported.
        InvalidArgumentError: inputs are not fed.
    """
    if required.missing:
        named = [f"{op} x{count} ({quoted(required.examples[op])})" for op, count in required.missing.most_common()]
        fed = _to_feed(regions[0], required.missing)
        hint = f"Feed tensors that are computed from them, for example {listed(fed, _CANDIDATES)}" if fed else ""
        sources = [op for op in required.missing if op in SOURCES]
        if sources:
            hint = f"{hint or 'Feed their outputs'}. {', '.join(sources)} hand out data: feed their outputs"
        hint = hint or "Feed their outputs"
        raise UnimplementedError(
            f"cannot run {counted(len(named), 'operation')}: {listed(named, _SHOWN, str)}. {hint}, or define the "
            f"operations with register_op"
        )
    if required.inputs:
        raise InvalidArgumentError(f"feed values for {listed(required.inputs, _SHOWN)}")


def _to_feed(region: Region, missing: Mapping[str, int]) -> list[str]:
    """Return the outputs of unsupported operations that supported ones, outside of functions, use."""
    unsupported = {step for step in region.steps if step.op in missing and step in region.live}
    found = []
    for step in region.steps:
        is_inlined = step.node is None or step.name != step.node.name
        if step in region.live and step not in unsupported and not is_inlined:
            for source, index in step.inputs:
                if source in unsupported:
                    found.append(f"{source.name}:{index}")
    return list(dict.fromkeys(found))


def assigned_variables(regions: Iterable[Region]) -> set[GraphStep] | None:
    """Return the steps of the variables that are changed; None if a function changes one of its arguments."""
    found: set[GraphStep] = set()
    for region in regions:
        for step in region.steps:
            if step in region.live and step.op in ASSIGNMENTS and step.inputs:
                target = without_identities(step.inputs[0])[0]
                while (target.op in ENTERS or target.op in SWITCHES) and target.inputs:
                    target = without_identities(target.inputs[0])[0]
                if target.op not in VARIABLES:
                    return None
                found.add(target)
    return found
