"""Turn off what a graph does only in training: dropout, and statistics of the batch in normalisations.

A `.meta` file usually has the graph for training. Recognised, and replaced before the module is built:

    dropout             x / keep * floor(random + keep), and the forms with `random >= rate`       -> x
    FusedBatchNorm      in training mode, if moving averages of its statistics are updated           -> out of training
    other statistics    means over the batch of which the graph updates moving averages              -> the averages

A moving average is found by its update, `variable -= (variable - statistic) * decay`. What looks like training and is
not recognised is refused: random numbers, and statistics of the batch without moving averages.

Dropout is also turned off in the functions that loops and conditions of TensorFlow 2 run. Statistics in them are
refused, since the variable is an argument there.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from torch_tfckpt._proto.attr_value_pb2 import AttrValue
from torch_tfckpt.errors import UnimplementedError
from torch_tfckpt.format.graph_def import Node
from torch_tfckpt.graph_run.constants import constant_of
from torch_tfckpt.graph_run.steps import (
    VARIABLES,
    GraphStep,
    Region,
    Source,
    known_constant,
    without_identities,
)
from torch_tfckpt.text import listed, quoted

_SHOWN: Final = 5
_RANDOM: Final = frozenset({"RandomUniform", "StatelessRandomUniform", "StatelessRandomUniformV2"})
_DRAWS: Final = ("Random", "TruncatedNormal", "Multinomial")
_SEEDS: Final = "StatelessRandomGet"
_ADD: Final = frozenset({"Add", "AddV2"})
_DIVIDE: Final = frozenset({"RealDiv", "Div"})
_NORMALISATIONS: Final = frozenset({"FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"})
_UPDATES: Final = frozenset({"AssignSub", "AssignSubVariableOp"})
_RESHAPING: Final = frozenset({"Identity", "Squeeze", "Reshape", "Cast", "StopGradient", "ReadVariableOp"})


def turn_off_training(region: Region, nodes: Mapping[str, Node]) -> list[tuple[GraphStep, str]]:
    """Change the steps of a region to those of inference; return the changed steps, each with a description.

    Args:
        nodes: The graph's nodes, among which updates of moving averages are found.
    """
    changes: list[tuple[GraphStep, str]] = []
    averages = dict(_moving_averages(nodes))
    reads: dict[str, GraphStep] = {}
    steps: list[GraphStep] = []

    def average(step: GraphStep, index: int) -> Source | None:
        variable = averages.get((step.name, index))
        if variable is None or nodes.get(step.name) is not step.node:  # a node of a function with such a path
            return None
        if variable not in reads:
            node = nodes[variable]
            handle = GraphStep(variable, node.op, node, attributes=node.attributes())
            read = "ReadVariableOp" if node.op == "VarHandleOp" else "Identity"
            reads[variable] = GraphStep(f"{variable}/read", read, None, [(handle, 0)])
            steps.extend([handle, reads[variable]])
        return reads[variable], 0

    for step in region.steps:
        kept = _kept_by_dropout(step)
        if kept is not None:
            step.alias = kept
            changes.append((step, f"dropout at {quoted(step.name)} passes its input on"))
        elif _is_training(step):
            found = [average(step, index) for index in (1, 2)]
            if found[0] is not None and found[1] is not None:
                step.inputs = [*step.inputs[:3], found[0], found[1]]
                step.attributes = {**step.attributes, "is_training": AttrValue(b=False)}
                names = " and ".join(quoted(source[0].inputs[0][0].name) for source in found if source is not None)
                changes.append((step, f"normalisation {quoted(step.name)} uses {names}"))
        else:
            moved = average(step, 0) if step.op not in _NORMALISATIONS else None
            if moved is not None:
                step.alias = moved
                changes.append((step, f"statistic {quoted(step.name)} is {quoted(moved[0].inputs[0][0].name)}"))
        steps.append(step)
    region.steps = steps
    return changes


def check_inference(regions: Iterable[Region]) -> None:
    """Raise UnimplementedError if needed steps look like training."""
    unsure = []
    for region in regions:
        for step in region.steps:
            if step not in region.live or step.alias is not None:
                continue
            if _gives_random_numbers(step.op):
                unsure.append(f"{step.name} ({step.op}): random numbers that are not those of a known dropout")
            elif _is_training(step):
                unsure.append(f"{step.name} ({step.op}): statistics of the batch without moving averages")
            elif _is_batch_variance(step):
                unsure.append(f"{step.name} ({step.op}): a variance over the batch without moving averages")
    if unsure:
        raise UnimplementedError(
            f"inference=True does not know how to turn off {listed(unsure, _SHOWN, str)}. Give constants for the "
            f"placeholders that decide about training, or feed these tensors"
        )


def _gives_random_numbers(op: str) -> bool:
    """Return whether an operation draws numbers, also from a given seed: seeds of a graph may change with each call."""
    return any(part in op for part in _DRAWS) and not op.startswith(_SEEDS)


def _is_training(step: GraphStep) -> bool:
    if step.op not in _NORMALISATIONS:
        return False
    training = step.attributes.get("is_training")
    return (training is None or training.b) and len(step.inputs) >= 5


def _is_batch_variance(step: GraphStep) -> bool:
    """Return whether a step is the mean of squared differences from a mean over the first axis, as `tf.nn.moments`."""
    if step.op != "Mean" or len(step.inputs) != 2 or not _has_first_axis(step):
        return False
    squares = without_identities(step.inputs[0])[0]
    if squares.op != "SquaredDifference" or squares.alias is not None:
        return False
    return any(
        mean.op == "Mean" and mean.alias is None and _has_first_axis(mean)
        for mean in (without_identities(source)[0] for source in squares.inputs)
    )


def _has_first_axis(step: GraphStep) -> bool:
    axes = known_constant(step.inputs[1])
    return 0 in (axes if isinstance(axes, tuple) else (axes,))


# Dropout.


def _kept_by_dropout(step: GraphStep) -> Source | None:
    """Return what a dropout that ends with this step applies to; None if it is not the end of one."""
    if step.op == "Mul" and len(step.inputs) == 2:
        for mask, scaled in (step.inputs, step.inputs[::-1]):
            for is_keep in _masks(mask):
                kept = _unscaled(scaled, is_keep)
                if kept is not None:
                    return kept
    elif step.op in ("SelectV2", "Select") and len(step.inputs) == 3:
        rate = _compared(step.inputs[0])
        if rate is not None and _number(step.inputs[2]) == 0:
            return _unscaled(step.inputs[1], _keeps(rate))
    return None


def _masks(source: Source) -> Iterator[Callable[[Source], bool]]:
    """Yield tests for the probability to keep an element, if `source` is the mask of a dropout."""
    step = without_identities(source)[0]
    if step.op == "Floor" and step.inputs:
        total = without_identities(step.inputs[0])[0]
        if total.op in _ADD and len(total.inputs) == 2:
            for random, keep in (total.inputs, total.inputs[::-1]):
                if _is_random(random):
                    yield _equals(keep)
    elif step.op == "Cast" and step.inputs:
        rate = _compared(step.inputs[0])
        if rate is not None:
            yield _keeps(rate)


def _compared(source: Source) -> Source | None:
    """Return `rate` of "random >= rate"."""
    step = without_identities(source)[0]
    if step.op == "GreaterEqual" and len(step.inputs) == 2 and _is_random(step.inputs[0]):
        return step.inputs[1]
    return None


def _is_random(source: Source) -> bool:
    """Return whether a value is a random number in [0, 1): as it is, or times (1 - 0) plus 0."""
    step = without_identities(source)[0]
    for operations in (_ADD, frozenset({"Mul"})):
        if step.op in operations and len(step.inputs) == 2:
            step = without_identities(step.inputs[0])[0]
    return step.op in _RANDOM


def _equals(wanted: Source) -> Callable[[Source], bool]:
    def test(source: Source) -> bool:
        ours, theirs = without_identities(source), without_identities(wanted)
        return ours == theirs or (_number(ours) is not None and _close(_number(ours), _number(theirs)))

    return test


def _keeps(rate: Source) -> Callable[[Source], bool]:
    """Return a test for 1 - rate."""
    is_rate = _equals(rate)

    def test(source: Source) -> bool:
        step = without_identities(source)[0]
        if step.op == "Sub" and len(step.inputs) == 2:
            return _number(step.inputs[0]) == 1 and is_rate(step.inputs[1])
        known, dropped = _number(source), _number(rate)
        return known is not None and dropped is not None and _close(known, 1 - dropped)

    return test


def _unscaled(source: Source, is_keep: Callable[[Source], bool]) -> Source | None:
    """Return x of "x / keep" or "x * (1 / keep)"."""
    step = without_identities(source)[0]
    if len(step.inputs) != 2:
        return None
    if step.op in _DIVIDE and is_keep(step.inputs[1]):
        return step.inputs[0]
    if step.op == "Mul":
        for x, factor in (step.inputs, step.inputs[::-1]):
            inverse = without_identities(factor)[0]
            if inverse.op in _DIVIDE and len(inverse.inputs) == 2:
                if _number(inverse.inputs[0]) == 1 and is_keep(inverse.inputs[1]):
                    return x
            elif inverse.op == "Const" and (known := _number(factor)):
                constant = GraphStep("", "Const", None, attributes=_scalar(1 / known))
                if is_keep((constant, 0)):
                    return x
    return None


def _number(source: Source) -> float | None:
    """Return a constant number."""
    source = without_identities(source)
    step, known = source[0], known_constant(source)
    if known is not None and not isinstance(known, tuple):
        return float(known)
    value = step.value if step.op != "Const" else None
    if step.op == "Const" and "value" in step.attributes:
        proto = step.attributes["value"].tensor
        value = constant_of(proto) if not proto.tensor_shape.dim else None
    return float(value) if value is not None and getattr(value, "ndim", 1) == 0 and hasattr(value, "dtype") else None


def _scalar(number: float) -> Mapping[str, AttrValue]:
    value = AttrValue()
    value.tensor.dtype = 2  # type: ignore[assignment]  # DT_DOUBLE
    value.tensor.double_val.append(number)
    return {"value": value}


def _close(first: float | None, second: float | None) -> bool:
    return first is not None and second is not None and abs(first - second) <= 1e-5 * max(1, abs(second))


# Moving averages.


def _moving_averages(nodes: Mapping[str, Node]) -> Iterator[tuple[tuple[str, int], str]]:
    """Yield the statistics of batches whose moving averages are updated, each with the variable."""
    for node in nodes.values():
        data = [each for each in node.inputs if not each.startswith("^")]
        if node.op not in _UPDATES or len(data) != 2 or data[0] not in nodes or nodes[data[0]].op not in VARIABLES:
            continue
        step = _node(nodes, data[1])
        if step is None or step.op != "Mul":
            continue
        for factor in step.inputs:
            difference = _node(nodes, factor)
            if difference is not None and difference.op == "Sub" and len(difference.inputs) >= 2:
                old, new = difference.inputs[:2]
                if _through(nodes, old)[0] == data[0]:
                    statistic = _through(nodes, new)
                    source = nodes.get(statistic[0])
                    if source is not None and source.op in _NORMALISATIONS:
                        yield statistic, data[0]
                    elif source is not None and source.op == "Mean" and _rank(nodes[data[0]]) == 1:
                        direct = new.partition(":")
                        yield (direct[0], int(direct[2] or 0)), data[0]


def _node(nodes: Mapping[str, Node], text: str) -> Node | None:
    return nodes.get(text.partition(":")[0])


def _through(nodes: Mapping[str, Node], text: str) -> tuple[str, int]:
    """Return the output that a chain of operations which keep the values passes on."""
    seen: set[str] = set()
    while (node := _node(nodes, text)) is not None and node.op in _RESHAPING and node.inputs and node.name not in seen:
        seen.add(node.name)
        text = node.inputs[0]
    name, _, index = text.partition(":")
    return name, int(index) if index.isdigit() else 0


def _rank(node: Node) -> int:
    shape = node.attr("shape")
    return len(shape.shape.dim) if shape is not None and not shape.shape.unknown_rank else -1
