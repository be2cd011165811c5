"""Conditions and loops of TensorFlow 2: If, Case and While run functions of the graph.

An input of a While that the body returns unchanged is not a loop variable: it stays what it is outside, so that
weights are captured once and variables stay variables.

Source: tensorflow/core/ops/functional_ops.cc.
"""

from collections.abc import Sequence

from torch_tfckpt.errors import DataLossError
from torch_tfckpt.graph_run.bodies import Body, BuiltValue, StepOutputs
from torch_tfckpt.graph_run.building import ModuleBuilder
from torch_tfckpt.graph_run.carried import agreed_results, build_loop_module
from torch_tfckpt.graph_run.runtime import OneOfBranches, by_index, by_predicate
from torch_tfckpt.graph_run.steps import ARGUMENT, CASES, GraphStep, Region, without_identities


def build_branches(builder: ModuleBuilder, body: Body, step: GraphStep) -> StepOutputs:
    """Build an If or a Case: `step.functions` has the branches in the order of the selector."""
    selector, *inputs = builder.inputs(body, step)
    bodies, values = [], []
    for region in step.functions:
        inner = Body(body, region)
        _bind(inner, region, inputs, step)
        builder.build(inner, [each for each in region.targets if each in region.live])
        builder.build(inner, [source for source, _ in region.wanted()])
        bodies.append(inner)
        values.append([builder.value(inner, source) for source in region.wanted()])
    if len({len(each) for each in values}) != 1:
        raise DataLossError("its branches have different numbers of results")
    choose = by_index if step.op in CASES else by_predicate
    found = agreed_results(
        builder,
        body,
        bodies,
        values,
        lambda modules: OneOfBranches(modules, choose),
        body.operand(builder.reading(body, selector)),
        step,
    )
    positions = [index for index, source in enumerate(step.functions[0].results) if source is not None]
    return StepOutputs(dict(zip(positions, found, strict=True)))


def build_while(builder: ModuleBuilder, body: Body, step: GraphStep) -> StepOutputs:
    """Build a While: `step.functions` has its condition and its body."""
    condition, loop = step.functions
    inputs = builder.inputs(body, step)
    if len(loop.results) != len(inputs) or len(condition.results) != 1:
        raise DataLossError(
            f"it has {len(inputs)} inputs, but its body gives {len(loop.results)} results, and its condition "
            f"{len(condition.results)}"
        )
    wanted = {index: source for index, source in enumerate(loop.results) if source is not None}
    carried = [index for index, source in wanted.items() if not _is_argument(source, loop, index)]
    initial = [builder.reading(body, inputs[index]) for index in carried]

    def new_body(name: str) -> Body:
        region = condition if name == "condition" else loop
        inner = Body(body, region)
        _bind(inner, region, inputs, step)
        return inner

    def bind(inner: Body, index: int, value: BuiltValue) -> None:
        inner.values[inner.region.arguments[carried[index]]] = StepOutputs({0: value})

    def condition_of(inner: Body) -> object:
        (source,) = condition.wanted()
        builder.build(inner, [source[0]])
        return inner.operand(builder.reading(inner, builder.value(inner, source)))

    def next_of(inner: Body) -> Sequence[BuiltValue]:
        builder.build(inner, [each for each in loop.targets if each in loop.live])
        builder.build(inner, [wanted[index][0] for index in carried])
        return [builder.reading(inner, builder.value(inner, wanted[index])) for index in carried]

    found = build_loop_module(builder, body, step, initial, new_body, bind, condition_of, next_of)
    outputs = dict(enumerate(inputs))
    outputs.update(zip(carried, found, strict=True))
    return StepOutputs(outputs)


def _bind(inner: Body, region: Region, inputs: Sequence[BuiltValue], step: GraphStep) -> None:
    if len(region.arguments) != len(inputs):
        raise DataLossError(f"it passes {len(inputs)} values to a function with {len(region.arguments)} arguments")
    for argument, value in zip(region.arguments, inputs, strict=True):
        inner.values[argument] = StepOutputs({0: value})


def _is_argument(source: tuple[GraphStep, int], loop: Region, index: int) -> bool:
    found = without_identities(source)[0]
    return found.op == ARGUMENT and found is loop.arguments[index]
