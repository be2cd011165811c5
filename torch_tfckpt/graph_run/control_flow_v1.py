"""Loops and conditions of TensorFlow 1, built from the frames and predicates that `structure` has found.

    Enter -> Merge -> Switch -> (body) -> NextIteration -> Merge          a loop variable
               |         |
               v         v
           LoopCond     Exit

    condition   what LoopCond needs, from the Merges
    body        what the NextIterations need, from the Switches

A condition is a Merge whose inputs are in opposite branches of one predicate. All Merges that share computations inside
the branches become one module.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch

from torch_tfckpt.errors import DataLossError, UnimplementedError
from torch_tfckpt.graph_run.bodies import Body, BuiltValue, StepOutputs, known_integers
from torch_tfckpt.graph_run.building import ModuleBuilder
from torch_tfckpt.graph_run.carried import agreed_results, build_loop_module
from torch_tfckpt.graph_run.runtime import OneOfBranches, by_predicate, number_of_branch
from torch_tfckpt.graph_run.steps import (
    ENTERS,
    NEXT_ITERATIONS,
    SWITCHES,
    GraphStep,
    Region,
    Source,
    needed,
    without_identities,
)


def build_condition(builder: ModuleBuilder, body: Body, step: GraphStep) -> StepOutputs:
    """Build the condition that a Merge ends, with the other Merges of it."""
    if step.predicate is None or step.branches is None:
        raise UnimplementedError("it is neither the end of a condition nor the beginning of a loop")
    for branch in (0, 1):
        if (step.predicate, branch) in body.guards:  # decided already
            source = step.branches[branch]
            builder.build(body, [source[0]])
            return _merged(step, builder, body, source)
    merges = [each for each in condition_merges(body.region, step) if body.home(each) is body]
    bodies = []
    for branch in (0, 1):
        inner = Body(body, body.region, body.frame, body.guards | {(step.predicate, branch)})
        builder.build(inner, [each.branches[branch][0] for each in merges if each.branches is not None])
        bodies.append(inner)
    values = [
        [builder.value(inner, each.branches[branch]) for each in merges if each.branches is not None]
        for branch, inner in enumerate(bodies)
    ]
    selector = body.operand(builder.reading(body, builder.value(body, step.predicate)))
    found = agreed_results(
        builder, body, bodies, values, lambda modules: OneOfBranches(modules, by_predicate), selector, step
    )
    for each, value in zip(merges, found, strict=True):
        body.values[each] = StepOutputs({0: value}, functools.partial(_number, each, body, selector))
    return body.values[step]


def _merged(step: GraphStep, builder: ModuleBuilder, body: Body, source: Source) -> StepOutputs:
    return StepOutputs({0: builder.value(body, source), 1: known_integers(step.inputs.index(source), torch.int32)})


def _number(step: GraphStep, body: Body, selector: Any, index: int) -> BuiltValue:
    """Build the second output of a Merge: which of its inputs had a value."""
    if index != 1 or step.branches is None:
        raise DataLossError(f"a Merge has 2 outputs, but output {index} is used")
    node = body.call(number_of_branch, selector, step.branches[0] is not step.inputs[0])
    return body.integers_of(node, torch.int32)


def condition_merges(region: Region, step: GraphStep) -> Sequence[GraphStep]:
    """Return the Merges that end the same condition as `step`: those that share a step inside its branches."""
    if not region.conditions:
        region.conditions.update(_grouped(region))
    return region.conditions.get(step, [step])


def _grouped(region: Region) -> dict[GraphStep, list[GraphStep]]:
    merges = [each for each in region.steps if each.predicate is not None and each in region.live]
    leader = {each: each for each in merges}

    def first(each: GraphStep) -> GraphStep:
        while leader[each] is not each:
            leader[each] = leader[leader[each]]
            each = leader[each]
        return each

    owners: dict[tuple[Source, GraphStep], GraphStep] = {}
    for merge in merges:
        assert merge.predicate is not None
        assert merge.branches is not None
        for branch, source in enumerate(merge.branches):
            guard = (merge.predicate, branch)
            stack = [source[0]]
            while stack:
                each = stack.pop()
                if guard not in each.guards or each.constants is not None:
                    continue
                key = (merge.predicate, each)
                owner = owners.get(key)
                if owner is None:
                    owners[key] = merge
                    stack.extend(needed(each))
                elif owner is not merge and owner.frame is merge.frame and owner.guards == merge.guards:
                    leader[first(merge)] = first(owner)
    groups: dict[GraphStep, list[GraphStep]] = {}
    for merge in merges:
        groups.setdefault(first(merge), []).append(merge)
    return {merge: groups[first(merge)] for merge in merges}


def build_loop(builder: ModuleBuilder, body: Body, step: GraphStep) -> StepOutputs:
    """Build the loop that an Exit leaves, with all its exits."""
    switch = _only(step.inputs, SWITCHES, step)
    condition = without_identities(switch.inputs[1])[0]
    if condition.op != "LoopCond":
        raise UnimplementedError("it leaves something that is not a loop: no LoopCond decides when it ends")
    region, frame = body.region, switch.frame
    inside = region.in_loop.get(frame, [])
    merges = [each for each in inside if each.is_loop_merge()]
    switches: dict[GraphStep, list[GraphStep]] = {merge: [] for merge in merges}
    for each in inside:
        if each.op in SWITCHES and each.inputs[0][0] in switches:
            switches[each.inputs[0][0]].append(each)
    initial, closing = [], []
    for merge in merges:
        if len(merge.inputs) != 2:
            raise UnimplementedError(f"{merge} has {len(merge.inputs)} inputs, expected 2")
        first, last = sorted(merge.inputs, key=lambda source: source[0].op in NEXT_ITERATIONS)
        if first[0].op not in ENTERS or last[0].op not in NEXT_ITERATIONS:
            raise UnimplementedError(f"{merge} is not a loop variable: it merges {first[0]} and {last[0]}")
        initial.append(builder.reading(body, builder.value(body, first[0].inputs[0])))
        closing.append(last[0])

    def bind(inner: Body, index: int, value: BuiltValue) -> None:
        inner.values[merges[index]] = StepOutputs({0: value})
        for each in switches[merges[index]]:
            inner.values[each] = StepOutputs({0: value, 1: value})

    def condition_of(inner: Body) -> Any:
        builder.build(inner, [condition])
        return inner.operand(builder.reading(inner, builder.value(inner, (condition, 0))))

    def next_of(inner: Body) -> list[BuiltValue]:
        builder.build(inner, closing)
        return [builder.reading(inner, builder.value(inner, (each, 0))) for each in closing]

    def new_body(name: str) -> Body:
        return Body(body, region, frame, body.guards)

    found = build_loop_module(builder, body, step, initial, new_body, bind, condition_of, next_of)
    results = dict(zip(merges, found, strict=True))
    for each in region.exits.get(frame, ()):
        left = without_identities(each.inputs[0])[0]
        if left.op in SWITCHES and left.inputs[0][0] in results:
            body.values[each] = StepOutputs({0: results[left.inputs[0][0]]})
    if step not in body.values:
        raise UnimplementedError("it does not leave a loop variable")
    return body.values[step]


def _only(inputs: Sequence[Source], kinds: frozenset[str], step: GraphStep) -> GraphStep:
    if len(inputs) != 1 or without_identities(inputs[0])[0].op not in kinds:
        raise UnimplementedError("it does not leave a loop variable")
    return without_identities(inputs[0])[0]
