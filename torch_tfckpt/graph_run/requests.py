"""What a request for outputs needs: inputs, operations, and what is missing.

Everything that is missing is reported at once, before anything is built.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError
from torch_tfckpt.graph_ops.registry import find
from torch_tfckpt.graph_run.attributes import function_name
from torch_tfckpt.graph_run.flattening import Flattener
from torch_tfckpt.graph_run.handlers import HANDLERS, INPUTS
from torch_tfckpt.graph_run.steps import (
    ASSIGNMENTS,
    CASES,
    CONDITIONS,
    ENTERS,
    LOOPS,
    SWITCHES,
    VARIABLES,
    GraphStep,
    Region,
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


def regions_of(flattener: Flattener, region: Region) -> list[Region]:
    """Analyse a region and the functions that its conditions and loops run; return all of them."""
    found = [region]
    for each in found:  # grows
        analyse(each)
        for step in each.steps:
            if step in each.live:
                names = list(_functions(step))
                step.functions = [flattener.function_region(name, step, each.ancestry) for name in names]
                found.extend(step.functions)
    return found


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


def check(regions: Sequence[Region], needed: Requirements) -> None:
    """Raise an error that names everything that is missing.

    Raises:
        UnimplementedError: operations are not supported.
        InvalidArgumentError: inputs are not fed.
    """
    if needed.missing:
        named = [f"{op} x{count} ({quoted(needed.examples[op])})" for op, count in needed.missing.most_common()]
        fed = _behind(regions[0], needed.missing)
        hint = f"Feed tensors that are computed from them, for example {listed(fed, _CANDIDATES)}" if fed else ""
        sources = [op for op in needed.missing if op in SOURCES]
        if sources:
            hint = f"{hint or 'Feed their outputs'}. {', '.join(sources)} hand out data: feed their outputs"
        hint = hint or "Feed their outputs"
        raise UnimplementedError(
            f"cannot run {counted(len(named), 'operation')}: {listed(named, _SHOWN, str)}. {hint}, or define the "
            f"operations with register_op"
        )
    if needed.inputs:
        raise InvalidArgumentError(f"feed values for {listed(needed.inputs, _SHOWN)}")


def _behind(region: Region, missing: Mapping[str, int]) -> list[str]:
    """Return tensors that are computed by supported operations directly from unsupported ones."""
    unsupported = {step for step in region.steps if step.op in missing and step in region.live}
    found = []
    for step in region.steps:
        if step in region.live and step not in unsupported and "/" not in step.name.removeprefix(_scope(step)):
            for source, index in step.inputs:
                if source in unsupported:
                    found.append(f"{source.name}:{index}")
    return list(dict.fromkeys(found))


def _scope(step: GraphStep) -> str:
    return step.node.name if step.node is not None else ""


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
