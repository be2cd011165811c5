"""The first layer of a module whose output differs from the graph's.

Layers and tensors of the graph are not paired by name. A layer is right if its output is a tensor of the graph, in some
arrangement. A layer is wrong if

    - its inputs are tensors of the graph, or the elements of one in another order, or a padded one;
    - its output is not a tensor of the graph, or one to which the graph adds a bias;
    - with a tensor of the graph in place of its output, the module computes the graph's outputs, or at least a later
      layer with weights, which was wrong, becomes right.

The last condition proves the pairing: a layer whose result the graph never computes, such as a padding, is not blamed.
If no layer meets all three, none is named.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from torch import nn

from torch_tfckpt.comparison.arrangements import arranged, is_uniform, resized
from torch_tfckpt.comparison.graph_tensors import ComputedTensor, ComputedTensors
from torch_tfckpt.comparison.module_calls import LAST_STEP, LayerCall, RecordedRun, Replacement
from torch_tfckpt.text import quoted

_TRIES: Final = 48  # tensors that are tried in place of one layer's output


def first_difference(
    run: RecordedRun,
    graph: ComputedTensors,
    rerun: Callable[[Replacement], RecordedRun],
    is_equal: Callable[[Any], bool],
) -> tuple[str | None, str]:
    """Return the name of the first layer that differs, or None; and an explanation.

    Args:
        run: The module on one sample.
        graph: The graph on that sample.
        rerun: Runs the module again, with one output replaced.
        is_equal: Whether outputs of the module are the graph's.
    """
    right = [_is_right(call, graph) for call in run.calls]
    for number, call in enumerate(run.calls):
        known = _known_inputs(run.calls, call, graph)
        if known is None:
            continue
        replacements = _with_bias(number, call, graph) if right[number] else _replacements(number, call, graph, known)
        for replacement in replacements:
            again = rerun(replacement)
            if again.error is None and is_equal(again.outputs):
                return call.name, _explanation(
                    call, graph, "With the graph's tensor in its place, the outputs are equal"
                )
            better = _becomes_right(run.calls, right, again.calls, number, graph)
            if better is not None:
                text = (
                    f"With the graph's tensor in its place, {quoted(better)} is equal, but layers after it differ, too"
                )
                return call.name, _explanation(call, graph, text)
    return None, _unknown(run, right)


def _explanation(call: LayerCall, graph: ComputedTensors, proof: str) -> str:
    if any(not is_uniform(value) and not graph.equal_to(value) for value in call.inputs):
        proof = f"Its inputs are padded, or in another order than in the graph, which may be the reason. {proof}"
    return (
        f"the inputs of {quoted(call.name)} ({type(call.layer).__name__}) are the graph's, its output is not. {proof}"
    )


def _unknown(run: RecordedRun, right: Sequence[bool]) -> str:
    weighted = [number for number, call in enumerate(run.calls) if call.has_weights]
    wrong = next((number for number in weighted if not right[number]), None)
    before = [number for number in weighted if right[number] and (wrong is None or number < wrong)]
    if before and wrong is not None:
        return (
            f"the layer cannot be told: the output of {quoted(run.calls[before[-1]].name)} is in the graph, and that "
            f"of {quoted(run.calls[wrong].name)} is not"
        )
    if wrong is not None:
        return f"the layer cannot be told: already the output of {quoted(run.calls[wrong].name)} is not in the graph"
    if before:
        return (
            f"the outputs of all layers are in the graph: the difference is after {quoted(run.calls[before[-1]].name)}"
        )
    return "the layer cannot be told: the module has no layers with weights"


def _is_right(call: LayerCall, graph: ComputedTensors) -> bool:
    if not call.outputs:
        return True
    # The graph may compute the activation in the same step as a layer with weights.
    fused = call.has_weights and not isinstance(call.layer, nn.PReLU)
    return any(
        is_uniform(value) or bool(graph.equal_to(value)) or (fused and bool(graph.equal_to(value.relu())))
        for value in call.outputs.values()
    )


def is_in_graph(call: LayerCall, graph: ComputedTensors) -> bool:
    """Return whether an output of a layer is a tensor of the graph, and more than a repeated number."""
    return any(not is_uniform(value) and bool(graph.equal_to(value)) for value in call.outputs.values())


def _known_inputs(calls: Sequence[LayerCall], call: LayerCall, graph: ComputedTensors) -> list[ComputedTensor] | None:
    """Return the tensors of the graph that are inputs of a call; None if an input is not in the graph."""
    found: list[ComputedTensor] = []
    for value, source in zip(call.inputs, call.sources, strict=True):
        if is_uniform(value):
            continue
        same = graph.equal_to(value) or graph.rearranged(value)
        if not same and source is not None:
            if calls[source].only_pads:
                for padded in calls[source].inputs:
                    same = same or graph.equal_to(padded)
            elif any(graph.equal_to(each.relu()) for each in calls[source].outputs.values()):
                same = [near for each in calls[source].outputs.values() for near in graph.equal_to(each.relu())]
        if not same:
            return None
        found.extend(same)
    return found


def _replacements(
    number: int, call: LayerCall, graph: ComputedTensors, known: Sequence[ComputedTensor]
) -> Iterator[Replacement]:
    """Yield what the output may have to be, in the order of the graph."""
    candidates = graph.after(known) if known else graph.all
    tried = 0
    for by_shape in (arranged, resized):
        for place, value in call.outputs.items():
            if by_shape is resized and place[-1:] == (LAST_STEP,):
                continue
            for each in candidates:
                if each.is_uniform:
                    continue
                for turned in by_shape(each.value, value.shape):
                    yield Replacement(number, place, turned)
                    tried += 1
                    if tried >= _TRIES:
                        return


def _with_bias(number: int, call: LayerCall, graph: ComputedTensors) -> Iterator[Replacement]:
    """Yield the output with the bias that the graph adds to it: the layer may lack it."""
    if call.has_weights:
        for place, value in call.outputs.items():
            for each in graph.with_bias(value):
                for turned in arranged(each.value, value.shape):
                    yield Replacement(number, place, turned)


def _becomes_right(
    before: Sequence[LayerCall],
    right: Sequence[bool],
    after: Sequence[LayerCall],
    replaced: int,
    graph: ComputedTensors,
) -> str | None:
    """Return a later layer with weights that was wrong, or did not run, and now is right."""
    for number in range(replaced + 1, len(after)):
        call = after[number]
        was_right = number < len(right) and before[number].name == call.name and right[number]
        if not call.has_weights or was_right or call.layer is after[replaced].layer:
            continue
        if is_in_graph(call, graph):
            return call.name
    return None
