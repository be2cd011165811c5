"""Run requests, and keep the built modules for the next call with the same fetches and feeds."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import fx

from torch_tfckpt.errors import CheckpointError, error_context
from torch_tfckpt.graph_run.attributes import python_value
from torch_tfckpt.graph_run.failures import named_failure
from torch_tfckpt.graph_run.feeds import fed_value
from torch_tfckpt.graph_run.flattening import TensorName
from torch_tfckpt.graph_run.handlers import INPUTS
from torch_tfckpt.graph_run.modules import Built, GraphProgram, GraphRequest
from torch_tfckpt.graph_run.prepared import Preparation
from torch_tfckpt.text import quoted
from torch_tfckpt.values import Value

_FAILURES: Final = (CheckpointError, RuntimeError, ValueError, TypeError, IndexError, KeyError, ArithmeticError)


class _KeptModule:
    """A module that is run again.

    Attributes:
        built: The module.
        buffers: The ids of its variables, constants and prepared values.
    """

    def __init__(self, built: Built, preparation: Preparation) -> None:
        self.built, self._preparation = built, preparation
        self.buffers = frozenset(map(id, built.module.buffers()))

    def refresh(self) -> None:
        """Compute prepared values again if a variable has changed."""
        if self._preparation.refresh():
            self.buffers = frozenset(map(id, self.built.module.buffers()))


class GraphSession:
    """Runs requests of one graph.

    Args:
        program: The graph.
    """

    def __init__(self, program: GraphProgram) -> None:
        self._program, self._variables = program, program.variables
        self._known: dict[Any, _KeptModule] = {}
        self._stored: Mapping[str, tuple[str, str]] | None = None  # see `GraphProgram.stored_tables`
        self._expected: dict[TensorName, tuple[Any, Any]] = {}

    def run(
        self, outputs: Sequence[TensorName], targets: Sequence[str], feeds: Mapping[TensorName, Any]
    ) -> list[Value]:
        """Return the outputs for the values that are fed. Cost: the module is built once per outputs and feeds."""
        names = tuple(feeds)
        key = (tuple(outputs), tuple(targets), names)
        known = self._known.get(key)
        if known is None:
            built = self._program.build(GraphRequest(tuple(outputs), names, targets=tuple(targets)))
            self._variables.require(built.read)  # once is enough: a variable keeps having a value
            known = self._known[key] = _KeptModule(built, Preparation(built.module, built.is_fixed))
        built = known.built
        values = [self._fed(name, value) for name, value in feeds.items()]
        self.fill_tables(built)
        known.refresh()
        found = _computed(built.module, values)
        if built.assigned:
            self._variables.changed(built.assigned)
        kept = known.buffers.union(map(id, values))
        return [_own(value, kept) for value in found]

    def fill_tables(self, built: Built) -> None:
        """Fill the lookup tables that a module uses: from the restored checkpoint, or as the graph initialises them.

        Raises:
            NotFoundError: a file with a vocabulary is missing.
        """
        if not built.tables:
            return
        tables, sources = self._program.tables, self._program.tables.sources
        self._restore_tables(built.tables)
        empty = tuple(name for name in built.tables if not tables.named(name).is_filled)
        nodes = [node for node in sources.initializers if node in self._program.graph.nodes]
        if not empty or not nodes:
            return
        feeds = self._program.asset_feeds()
        request = GraphRequest((), tuple(feeds), targets=tuple(nodes), filled_tables=empty)
        initializer = self._program.build(request)
        self._variables.require(initializer.read)
        _computed(initializer.module, feeds.values())

    def restore_tables(self) -> None:
        """Fill the tables that modules use again, after a checkpoint was restored."""
        self._restore_tables(self._program.tables.names)

    def store_tables(self) -> None:
        """Let the next save write the contents of tables that have changed."""
        tables = self._program.tables
        self._restore_tables(tables.names)  # those that no module has used after the restore
        for name in tables.names:
            keys = self._stored_tables().get(name)
            found = tables.changed(name) if keys is not None else None
            if keys is not None and found is not None:
                tables.sources.store(dict(zip(keys, found, strict=True)))

    def _restore_tables(self, names: Iterable[str]) -> None:
        tables = self._program.tables
        for name in names:
            keys = self._stored_tables().get(name)
            if keys is not None:
                tables.restore(name, tables.sources.stored(keys))

    def _stored_tables(self) -> Mapping[str, tuple[str, str]]:
        if self._stored is None:
            self._stored = self._program.stored_tables()
        return self._stored

    def _fed(self, name: TensorName, value: Any) -> Value:
        expected = self._expected.get(name)
        if expected is None:
            expected = self._expected[name] = expected_of(self._program, name)
        with error_context(f"feed {quoted(f'{name[0]}:{name[1]}')}"):
            return fed_value(value, *expected)


def expected_of(program: GraphProgram, name: TensorName) -> tuple[Any, Any]:
    """Return the dtype and shape of a tensor of the graph, as far as they are known."""
    node = program.graph.nodes.get(name[0])
    if node is None:
        return None, None
    attributes = node.attributes()
    types = program.declarations.output_types(node.op, attributes)
    dtype = types[name[1]] if name[1] < len(types) else None
    shape = None
    if node.op in INPUTS and "shape" in attributes:
        shape = python_value(attributes["shape"])
        if shape == () and node.op == "Placeholder" and program.graph.versions.producer < 24:
            shape = None  # in graphs before TensorFlow 1.0, [] also means an unknown shape
    return dtype, shape


def _computed(module: fx.GraphModule, values: Iterable[Any]) -> Any:
    """Return what a module computes without gradients; an error names the node that failed."""
    with torch.no_grad():
        try:
            return module.forward(*values)
        except _FAILURES as error:
            raise named_failure(module, error) from error


def _own(value: Any, kept: frozenset[int]) -> Value:
    """Return a result that shares no memory with a variable, a constant or a feed."""
    if isinstance(value, torch.Tensor):
        return value.clone() if id(value) in kept or value._is_view() else value
    return value.copy() if isinstance(value, np.ndarray) else value
