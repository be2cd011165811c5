"""Run an imported graph, and make modules of it: names of tensors, feeds and fetches as in a TensorFlow Session."""

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import fx

from torch_tfckpt._proto.meta_graph_pb2 import SignatureDef
from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError, error_context
from torch_tfckpt.graph_run.feeds import fed_value
from torch_tfckpt.graph_run.flattening import TensorName
from torch_tfckpt.graph_run.likely_outputs import graph_inputs, likely_outputs
from torch_tfckpt.graph_run.modules import GraphProgram, GraphRequest
from torch_tfckpt.graph_run.requests import Requirements
from torch_tfckpt.graph_run.sessions import GraphSession, expected_of
from torch_tfckpt.graph_run.tables import TableSources
from torch_tfckpt.imported_graph.bindings import NodeVariables
from torch_tfckpt.meta_graph.raw import RawMetaGraph
from torch_tfckpt.meta_graph.scopes import prepend_name_scope, strip_name_scope
from torch_tfckpt.text import did_you_mean, listed, quoted, shortened
from torch_tfckpt.values import Value

_log = logging.getLogger(__name__)
_NAME: Final = re.compile(r"\^?(?P<node>[^:^]+)(:(?P<index>[0-9]{1,9}))?")


class GraphRunner:
    """Runs an imported graph and makes modules of it.

    Args:
        meta: The graph, without the import scope.
        variables: Binds variables.
        scope: The import scope: names of callers include it.
        tables: Where lookup tables get their contents.
    """

    def __init__(
        self, meta: RawMetaGraph, variables: NodeVariables, scope: str, tables: TableSources | None = None
    ) -> None:
        self._meta, self._scope, self._variables = meta, scope, variables
        self._program = GraphProgram(meta.graph, meta.info.stripped_op_list.op, variables, tables)
        self._session = GraphSession(self._program)

    def run(self, fetches: Any, feed_dict: Mapping[Any, Any] | None) -> Any:
        with error_context(self._meta.place):
            feeds = {self._tensor(_text(name)): value for name, value in (feed_dict or {}).items()}
            outputs: dict[TensorName, None] = {}
            targets: dict[str, None] = {}
            pattern = self._flat(fetches, outputs, targets)
            found = self._session.run(tuple(outputs), tuple(targets), feeds)
        return pattern(dict(zip(outputs, found, strict=True)))

    def restore_tables(self) -> None:
        """Fill lookup tables again, after a checkpoint was restored."""
        with error_context(self._meta.place):
            self._session.restore_tables()

    def store_tables(self) -> None:
        """Let the next save write the contents of lookup tables that have changed."""
        with error_context(self._meta.place):
            self._session.store_tables()

    def module(
        self,
        inputs: Sequence[str],
        outputs: Sequence[str],
        constants: Mapping[str, Any] | None,
        when_training: Mapping[str, Any] | None,
        when_evaluating: Mapping[str, Any] | None,
        inference: bool,
        allow_assign: bool,
    ) -> fx.GraphModule:
        with error_context(self._meta.place):
            if (when_training is None) != (when_evaluating is None):
                raise InvalidArgumentError("give both when_training and when_evaluating, or neither")
            request = GraphRequest(
                tuple(self._tensor(name) for name in outputs),
                tuple(self._tensor(name) for name in inputs),
                self._constants(constants),
                self._constants(when_training),
                self._constants(when_evaluating),
                inference=inference,
            )
            return self._module(request, allow_assign)

    def signature_module(
        self,
        name: str,
        constants: Mapping[str, Any] | None,
        inference: bool,
        allow_assign: bool,
    ) -> fx.GraphModule:
        with error_context(self._meta.place):
            signature = signature_of(self._meta.signatures, name)
            for key, info in (*signature.inputs.items(), *signature.outputs.items()):
                if not info.name:
                    raise UnimplementedError(f"signature {quoted(name)}: {quoted(key)} is not one tensor")
            inputs = sorted(signature.inputs)
            bad = [key for key in inputs if not key.isidentifier()]
            if bad:
                raise UnimplementedError(
                    f"signature {quoted(name)}: input {quoted(bad[0])} cannot be the name of a Python parameter. Use "
                    f"module(inputs=[{quoted(signature.inputs[bad[0]].name)}, ...], outputs=[...])"
                )
            outputs = sorted(signature.outputs)
            request = GraphRequest(
                tuple(_parsed(signature.outputs[key].name) for key in outputs),
                tuple(_parsed(signature.inputs[key].name) for key in inputs),
                self._constants(constants),
                names=tuple(inputs),
                inference=inference,
            )
            module = self._module(request, allow_assign)
            _return_dictionary(module, outputs)
            return module

    def requirements(self, outputs: str | Sequence[str] | None, inputs: Iterable[str] = ()) -> Requirements:
        with error_context(self._meta.place):
            if outputs is None:
                signatures = self._meta.signatures.values()
                names = [_parsed(info.name) for each in signatures for info in each.outputs.values() if info.name]
                if not names:
                    raise InvalidArgumentError("the graph has no signatures; name the outputs")
            else:
                names = [self._tensor(name) for name in ([outputs] if isinstance(outputs, str) else outputs)]
            targets = [name[0] for name in names if not self._has_outputs(name[0])]
            wanted = [name for name in names if self._has_outputs(name[0])]
            return self._program.requirements(
                GraphRequest(tuple(wanted), tuple(self._tensor(name) for name in inputs), targets=tuple(targets))
            )

    def inputs_and_outputs(self) -> tuple[list[str], list[str]]:
        """Return the inputs of the graph, and the tensors that are probably wanted."""
        with error_context(self._meta.place):
            found = graph_inputs(self._meta.graph), likely_outputs(self._meta.graph, self._program.declarations)
        scoped = [[prepend_name_scope(name, self._scope) for name in names] for names in found]
        return scoped[0], scoped[1]

    def expected(self, text: str) -> tuple[Any, Any]:
        """Return the dtype and shape of a tensor, None where they are not known. -1 is an unknown size.

        Raises:
            InvalidArgumentError: the graph has no such node.
        """
        with error_context(self._meta.place):
            name = self._tensor(text)
            if name[0] not in self._meta.graph.nodes:
                hint = did_you_mean(name[0], self._meta.graph.nodes)
                raise InvalidArgumentError(f"the graph has no node {quoted(name[0])}. {hint}".rstrip())
            return expected_of(self._program, name)

    def _module(self, request: GraphRequest, allow_assign: bool) -> fx.GraphModule:
        built = self._program.build(request, as_parameters=True, allow_changes=allow_assign)
        self._variables.require(built.read)
        self._session.fill_tables(built)
        for line in built.turned_off:
            _log.info("%s", line)
        built.module.meta["inference"] = list(built.turned_off)
        return built.module

    def _constants(self, constants: Mapping[str, Any] | None) -> dict[TensorName, Value]:
        found = {}
        for text, value in (constants or {}).items():
            name = self._tensor(text)
            with error_context(f"constant {quoted(text)}"):
                given = fed_value(value, *expected_of(self._program, name))
            found[name] = given.detach().clone() if isinstance(given, torch.Tensor) else given
        return found

    def _has_outputs(self, node: str) -> bool:
        found = self._meta.graph.nodes.get(node)
        return found is None or bool(self._program.declarations.output_types(found.op, found.attributes()))

    def _flat(
        self, fetches: Any, outputs: dict[TensorName, None], targets: dict[str, None]
    ) -> Callable[[Mapping[TensorName, Value]], Any]:
        """Collect the tensors and nodes of nested fetches; return what arranges their values in the same way."""
        if isinstance(fetches, Mapping):
            parts = {key: self._flat(each, outputs, targets) for key, each in fetches.items()}
            return lambda values: {key: part(values) for key, part in parts.items()}
        if isinstance(fetches, list | tuple):
            items = [self._flat(each, outputs, targets) for each in fetches]
            if hasattr(fetches, "_fields"):
                return lambda values: type(fetches)(*(item(values) for item in items))
            return lambda values: type(fetches)(item(values) for item in items)
        text = _text(fetches)
        name = self._tensor(text)
        if ":" not in text and not self._has_outputs(name[0]):
            targets[name[0]] = None
            return lambda values: None
        outputs[name] = None
        return lambda values: values[name]

    def _tensor(self, text: str) -> TensorName:
        """Return the node, without the import scope, and the number of the output."""
        node, index = _parsed(text)
        found = strip_name_scope(node, self._scope) if self._scope else node
        return found, index


def signature_of(signatures: Mapping[str, SignatureDef], name: str) -> SignatureDef:
    """Return the signature with this name; InvalidArgumentError if there is not one."""
    if name not in signatures:
        hint = did_you_mean(name, signatures) or f"There are {listed(sorted(signatures), 10)}."
        raise InvalidArgumentError(f"the graph has no signature {quoted(name)}. {hint}")
    return signatures[name]


def _text(name: Any) -> str:
    if not isinstance(name, str):
        name = getattr(name, "name", name)  # a tensor or operation of TensorFlow
    if not isinstance(name, str):
        raise InvalidArgumentError(f'expected the name of a tensor such as "logits:0", got {shortened(name)}')
    return name


def _parsed(text: str) -> TensorName:
    matched = _NAME.fullmatch(_text(text))
    if matched is None:
        raise InvalidArgumentError(f'{quoted(text)} is not the name of a tensor, such as "logits:0"')
    return matched["node"], int(matched["index"] or 0)


def _return_dictionary(module: fx.GraphModule, names: Sequence[str]) -> None:
    """Change a module's results from a tuple to a dictionary."""
    output = next(node for node in reversed(module.graph.nodes) if node.op == "output")
    (values,) = output.args
    output.args = (dict(zip(names, values, strict=True)),)
    module.recompile()
