"""Pickled modules: torch.fx traces the code of a GraphModule again when it is loaded.

The functions of operations are not traced through: they stay calls, as in the module that was saved.
"""

from typing import Any

from torch import fx

from torch_tfckpt.graph_ops.fused import convolution
from torch_tfckpt.graph_ops.integers import INTEGER_OPS, as_integers, as_tensor
from torch_tfckpt.graph_ops.registry import OPS
from torch_tfckpt.graph_run.runtime import number_of_branch, require_branch
from torch_tfckpt.graph_run.state import CHANGES


class OperationTracer(fx.Tracer):
    """Tracer for which operations and modules are single steps."""

    def __init__(self) -> None:
        operations: set[Any] = {each.function for table in (OPS, INTEGER_OPS) for each in table.values()}
        others: set[Any] = {as_tensor, as_integers, convolution, number_of_branch, require_branch, *CHANGES.values()}
        super().__init__(autowrap_functions=tuple(operations | others))
