"""What bodies inside another one take and give: loop variables that keep their kind, and results of branches.

A loop variable that starts as Python integers stays integers if the body computes integers; otherwise it is a tensor
from the beginning, and the bodies are built again.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

from torch_tfckpt.graph_run.bodies import Body, BuiltValue, ValueKind
from torch_tfckpt.graph_run.building import ModuleBuilder
from torch_tfckpt.graph_run.runtime import WhileLoop
from torch_tfckpt.graph_run.steps import GraphStep


def build_loop_module(
    builder: ModuleBuilder,
    body: Body,
    step: GraphStep,
    initial: Sequence[BuiltValue],
    new_body: Callable[[str], Body],
    bind: Callable[[Body, int, BuiltValue], None],
    condition_of: Callable[[Body], Any],
    next_of: Callable[[Body], Sequence[BuiltValue]],
) -> list[BuiltValue]:
    """Build a loop; return the last values of its variables.

    Args:
        initial: The first values of the variables.
        new_body: Returns a new body for "condition" or "body".
        bind: Sets a variable in a body.
        condition_of: Builds what decides whether there is another round.
        next_of: Builds the variables of the next round.
    """
    integers = [value.kind is ValueKind.INTEGERS for value in initial]
    while True:
        builder.count_loop(step)
        bodies = []
        for name in ("condition", "body"):
            inner = new_body(name)
            for index, value in enumerate(initial):
                node = inner.own_input(f"variable_{index}")
                is_integer = integers[index]
                bind(inner, index, inner.integers_of(node, value.dtype) if is_integer else inner.value_of(node))
            bodies.append(inner)
        condition = condition_of(bodies[0])
        following = next_of(bodies[1])
        changed = [
            index
            for index, value in enumerate(following)
            if integers[index] and (value.kind is not ValueKind.INTEGERS or value.dtype != initial[index].dtype)
        ]
        if not changed:
            break
        for index in changed:
            integers[index] = False
    results = [
        bodies[1].operand(value) if is_integer else bodies[1].tensor(value)
        for value, is_integer in zip(following, integers, strict=True)
    ]
    captured = _arranged(bodies)
    loop = WhileLoop(bodies[0].finish(condition), bodies[1].finish(tuple(results)), len(initial))
    first = [
        body.operand(value) if is_integer else body.tensor(value)
        for value, is_integer in zip(initial, integers, strict=True)
    ]
    node = body.call_module(step.name, loop, [*first, *captured], step)
    found = []
    for index, (value, is_integer) in enumerate(zip(initial, integers, strict=True)):
        element = body.call(operator.getitem, node, index)
        found.append(body.integers_of(element, value.dtype) if is_integer else body.value_of(element))
    return found


def agreed_results(
    builder: ModuleBuilder,
    body: Body,
    bodies: Sequence[Body],
    values: Sequence[Sequence[BuiltValue]],
    module_of: Callable[[Sequence[torch.nn.Module]], torch.nn.Module],
    selector: Any,
    step: GraphStep,
) -> list[BuiltValue]:
    """Finish the bodies of branches, call one of them, and return its results.

    A result is Python integers if it is in all branches; the same variable in all branches stays one.

    Args:
        values: For each body, its results.
        selector: Argument of the module before the captured values; None if there is none.
    """
    kept: dict[int, BuiltValue] = {}
    kinds: list[Any] = []
    for index, each in enumerate(zip(*values, strict=True)):
        first = each[0]
        if first.kind is ValueKind.REFERENCE and all(
            value.kind is ValueKind.REFERENCE and value.variable == first.variable for value in each
        ):
            kept[index] = first
            kinds.append(None)
            continue
        same = all(value.kind is ValueKind.INTEGERS and value.dtype == first.dtype for value in each)
        kinds.append(first.dtype if same else None)
    results = []
    for inner, found in zip(bodies, values, strict=True):
        made = []
        for index, value in enumerate(found):
            if index in kept:
                continue
            read = builder.reading(inner, value)
            made.append(inner.operand(read) if kinds[index] is not None else inner.tensor(read))
        results.append(tuple(made))
    captured = _arranged(bodies)
    modules = [inner.finish(result) for inner, result in zip(bodies, results, strict=True)]
    arguments = captured if selector is None else [selector, *captured]
    node = body.call_module(step.name, module_of(modules), arguments, step)
    outputs = []
    position = 0
    for index, dtype in enumerate(kinds):
        if index in kept:
            outputs.append(kept[index])
            continue
        element = body.call(operator.getitem, node, position)
        position += 1
        outputs.append(body.value_of(element) if dtype is None else body.integers_of(element, dtype))
    return outputs


def _arranged(bodies: Sequence[Body]) -> list[Any]:
    """Give all bodies the same captured inputs, and return the values that are passed."""
    captured = list(dict.fromkeys(node for inner in bodies for node in inner.captures()))
    for inner in bodies:
        inner.arrange(captured)
    return captured
