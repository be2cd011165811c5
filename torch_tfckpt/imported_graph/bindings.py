"""Which variable each node of an imported graph is, for running the graph.

    bindings = imported._bindings
    bindings.of_node("dense/kernel_1")          # "dense/kernel", a name in imported.variables
    bindings.of_function("__inference_f_7")     # ("dense/kernel", None, "dense/bias"): its last three arguments
    bindings.part("emb/part_1")                 # (slice(4, 8), slice(0, 16)): these rows of imported.variables["emb"]
    bindings.require(["dense/kernel"])          # has a value from now on, or FailedPreconditionError

Names of nodes and functions are those in the file, without the import scope; names of variables are those in
`imported.variables`, with it. `NodeVariables` is the same for `graph_run`, which does not know whole variables.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import numpy as np
import torch

from torch_tfckpt.errors import FailedPreconditionError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.graph_def import Graph
from torch_tfckpt.graph_ops.limits import check_size
from torch_tfckpt.graph_run.attributes import type_attribute
from torch_tfckpt.imported_graph.tensors import GraphTensors
from torch_tfckpt.meta_graph.bound_variables import BoundVariables
from torch_tfckpt.meta_graph.saver_values import VARIABLE_OPS
from torch_tfckpt.meta_graph.variables import shape_of
from torch_tfckpt.text import listed
from torch_tfckpt.values import Value

_LISTED: Final = 10  # names that an error lists


class VariableBindings:
    """The variables that nodes and functions of one graph refer to.

    Args:
        bound: The variables of the graph.
        tensors: Their tensors.
        read: Reads the values of these variables from the files of the SavedModel; None if the graph is not from one.

    Thread safety: as for the tensors.
    """

    def __init__(
        self,
        bound: BoundVariables,
        tensors: GraphTensors,
        read: Callable[[Sequence[str]], None] | None,
    ) -> None:
        self._tensors, self._read = tensors, read
        held = [variable.name for variable in bound.variables if tensors[variable.name] is not None]
        # Names in `bound` have no import scope, and each part of a partitioned variable has its own.
        self._names = {name: tensors.name(name) for name in held}
        self._nodes = {node: name for node, name in bound.of_nodes.items() if name in self._names}
        self._functions = bound.of_functions

    def of_node(self, node: str) -> str | None:
        """Return the variable of a VarHandleOp, VariableV2 or Variable node.

        None if the node is not a variable, or one without a tensor: a local variable, which no checkpoint stores, or
        one of a type that torch lacks. If the node is a part of a partitioned variable, this is the whole variable.
        """
        found = self._nodes.get(node)
        return None if found is None else self._names[found]

    def part(self, node: str) -> tuple[slice, ...] | None:
        """Return the part of `of_node(node)` that the node is; None if it is the whole variable, or not a variable."""
        found = self._nodes.get(node)
        return None if found is None else self._tensors.part(found)

    def value(self, node: str) -> Value | None:
        """Return the tensor of a node, which shares its memory with `imported.variables`; None as for `of_node`."""
        found = self._nodes.get(node)
        return None if found is None else self._tensors.value(found)

    def of_function(self, function: str) -> tuple[str | None, ...]:
        """Return the variables that a function captures, which are its last arguments, in order.

        None stands for a captured value that is not a variable, such as a constant or a table; the inputs of the call
        identify it. Empty if the function captures nothing, or no SavedModel lists it.
        """
        captured = self._functions.get(function, ())
        return tuple(None if name is None else self._names.get(name) for name in captured)

    @property
    def trainable(self) -> Mapping[str, bool]:
        """Name of a variable -> whether it is trainable. Variables of strings and integers may be marked, too."""
        return self._tensors.trainable

    def is_set(self, name: str) -> bool:
        """Return whether a variable has been restored or set, or has a value other than zeros."""
        return self._tensors.is_set(name)

    def read_unless_restored(self) -> bool:
        """Read the values of a SavedModel, unless a checkpoint was restored; return whether they were read."""
        if self._read is None or self._tensors.are_restored:
            return False
        self._read([name for name in self._tensors.values if not self._tensors.is_set(name)])
        return True

    def require(self, names: Iterable[str]) -> None:
        """Make sure that variables have values. Call this before the first run that reads them.

        The first call reads the values of a SavedModel from its files, except variables that were set before. If a
        checkpoint was restored before, nothing is read: the values of two checkpoints are not mixed.

        Raises:
            FailedPreconditionError: variables have neither been restored nor set.
            CheckpointError: the files of the SavedModel are missing or damaged.

        Cost: the first time, a look at each value; later a few steps per name.
        """
        unset = [name for name in dict.fromkeys(names) if not self._tensors.is_set(name)]
        if not unset:
            return
        if self.read_unless_restored():
            unset = [name for name in unset if not self._tensors.is_set(name)]
        if unset:
            raise FailedPreconditionError(
                f"Attempting to use uninitialized value {listed(unset, _LISTED)}: neither restored nor set. Restore a "
                f"checkpoint first: imported.saver.restore(prefix)"
            )


class NodeVariables:
    """The variables of a graph as `graph_run` sees them. A part of a partitioned variable is one of its own.

    Variables that no checkpoint stores, such as the counts of a metric, are created here, and exist as long as this.

    Args:
        bindings: Which variable each node is.
        graph: The graph, without the import scope.
    """

    def __init__(self, bindings: VariableBindings, graph: Graph) -> None:
        self._bindings, self._graph = bindings, graph
        self._nodes: dict[str, str] = {}  # name for graph_run -> node
        self._local: dict[str, Value] = {}
        self._is_set: set[str] = set()  # local variables that have a value

    def name_of(self, node: str) -> str | None:
        name = self._bindings.of_node(node)
        if name is None:
            return self._local_name(node)
        if self._bindings.part(node) is not None:
            name = node
        self._nodes[name] = node
        return name

    def value_of(self, name: str) -> Value:
        if name in self._local:
            return self._local[name]
        found = self._bindings.value(self._nodes[name])
        assert found is not None, "name_of has returned the name"
        return found

    def is_trainable(self, name: str) -> bool:
        return name not in self._local and self._bindings.trainable.get(self._whole(name), False)

    def require(self, names: Sequence[str]) -> None:
        """Make sure that variables have values: read those of a SavedModel, or raise FailedPreconditionError."""
        unset = [name for name in names if name in self._local and name not in self._is_set]
        if unset:
            raise FailedPreconditionError(
                f"Attempting to use uninitialized value {listed(unset, _LISTED)}. No checkpoint stores it: run its "
                f"initializer first"
            )
        self._bindings.require(self._whole(name) for name in names if name not in self._local)

    def changed(self, names: Iterable[str]) -> None:
        self._is_set.update(names)

    def _local_name(self, name: str) -> str | None:
        """Create a variable that no checkpoint stores; None if it is not one, or its size is not known."""
        node = self._graph.nodes.get(name)
        if node is None or node.op not in VARIABLE_OPS:
            return None
        if name not in self._local:
            attributes = node.attributes()
            dtype, shape = type_attribute(attributes, "dtype"), attributes.get("shape")
            sizes = shape_of(shape.shape) if shape is not None else None
            if dtype is None or sizes is None or min(sizes, default=0) < 0:
                return None
            check_size(sizes)
            if isinstance(dtype, torch.dtype):
                self._local[name] = torch.zeros(sizes, dtype=dtype, device="cpu")
            elif dtype == DataType.DT_STRING:
                self._local[name] = np.full(sizes, b"", dtype=object)
            else:
                return None
        return name

    def _whole(self, name: str) -> str:
        found = self._bindings.of_node(self._nodes[name])
        assert found is not None, "name_of has returned the name"
        return found
