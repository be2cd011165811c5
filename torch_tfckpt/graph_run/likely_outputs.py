"""The tensors of a graph that a user probably wants: what is computed from its inputs, and used by nothing else.

In a training graph, gradients, optimizers, summaries and savers do not count as uses.
"""

import re
from collections.abc import Iterable
from typing import Final

from torch_tfckpt.format.graph_def import Graph, Node
from torch_tfckpt.graph_run.declarations import Declarations
from torch_tfckpt.graph_run.handlers import INPUTS
from torch_tfckpt.graph_run.requests import SOURCES
from torch_tfckpt.graph_run.steps import SIZES

_INPUTS: Final = INPUTS | SOURCES | {"PlaceholderWithDefault"}
# Nodes for training: their operations, and the name scopes that TensorFlow's optimizers and gradients choose.
_TRAINING_OPS: Final = re.compile(
    r"Assign.*|.*Assign.*Op|(Resource|Sparse)*Apply.*|Scatter(Add|Sub|Update)|.*Summary(V2)?|Save.*|Restore.*|.*Grad"
    r"|MergeV2Checkpoints|NoOp|Assert|Print(V2)?|.*IsInitialized.*|Queue.*|.*Iterator.*"
)
_NAMED: Final = re.compile(
    r"(^|/)(logits|predictions?|probabilit(y|ies)|probs?|outputs?|softmax|scores?)(_[0-9]+)?$", re.IGNORECASE
)
_TRAINING_SCOPES: Final = re.compile(
    r"(^|/)(gradients|train|training|save|Adam|GradientDescent|Momentum)(_[0-9]+)?/|^saver_filename$"
)


def graph_inputs(graph: Graph) -> list[str]:
    """Return the placeholders, and what hands out training data."""
    return [f"{node.name}:0" for node in graph.iter_nodes() if node.op in _INPUTS and not _is_for_training(node)]


def likely_outputs(graph: Graph, declarations: Declarations) -> list[str]:
    """Return tensors that are computed from inputs and used for nothing but training, or have a usual name.

    The last ones are first.

    Cost: proportional to the size of the graph.
    """
    nodes = [node for node in graph.iter_nodes() if not _is_for_training(node)]
    users: dict[str, list[Node]] = {}
    for node in nodes:
        for source in _sources(node):
            users.setdefault(source, []).append(node)
    reached = {node.name for node in nodes if node.op in _INPUTS}
    waiting = list(reached)
    while waiting:
        for user in users.get(waiting.pop(), ()):
            if user.name not in reached:
                reached.add(user.name)
                waiting.append(user.name)
    computed = [node for node in nodes if node.name in reached and node.op not in _INPUTS and node.op not in SIZES]
    found = [node for node in computed if node.name not in users or _NAMED.search(node.name)]
    return [f"{node.name}:0" for node in reversed(found) if declarations.output_types(node.op, node.attributes())]


def _is_for_training(node: Node) -> bool:
    return _TRAINING_OPS.fullmatch(node.op) is not None or _TRAINING_SCOPES.search(node.name) is not None


def _sources(node: Node) -> Iterable[str]:
    return [each.partition(":")[0] for each in node.inputs if not each.startswith("^")]
