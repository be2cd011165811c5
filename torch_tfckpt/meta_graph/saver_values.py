"""Find the values that a saver stores: their keys, and the variable that each value is restored into.

A SaverDef names three nodes; everything else is in the graph. A TensorFlow 1 graph restores like this,

    save/restore_all          NoOp              ^save/Assign ^save/Assign_1 ...
    save/Assign               Assign            w  save/RestoreV2
    save/Assign_1             Assign            b  save/RestoreV2:1
    save/RestoreV2            RestoreV2         save/Const  save/RestoreV2/tensor_names  save/RestoreV2/shape_and_slices
    save/RestoreV2/tensor_names   Const         ["layer/w", "layer/b"]

with AssignVariableOp for resource variables, an Identity or a Reshape in between, several RestoreV2 for a sharded
saver, and one Restore or RestoreSlice per value in the oldest graphs. In a TF2 SavedModel, these nodes are in a
function that is called with the variables. The keys may differ from the variables' names, for example the keys of
moving averages.

Source: BaseSaverBuilder in tensorflow/python/training/saver.py, MultiDeviceSaver in
tensorflow/python/checkpoint/functional_saver.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt._proto.tensor_pb2 import TensorProto
from torch_tfckpt.errors import DataLossError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.graph_def import Function, Graph, Node
from torch_tfckpt.text import counted, quoted

VARIABLE_OPS: Final = frozenset({"Variable", "VariableV2", "VarHandleOp", "AutoReloadVariable"})
_RESTORE_OPS: Final = frozenset({"Restore", "RestoreSlice", "RestoreV2"})
_SAVE_OPS: Final = frozenset({"Save", "SaveSlices", "SaveV2"})
_ASSIGN_OPS: Final = frozenset({"Assign", "AssignVariableOp"})
# Operations that return their first input, possibly reshaped or cast.
_PASSING_OPS: Final = frozenset({"Identity", "Reshape", "EnsureShape", "Cast", "ReadVariableOp", "CheckNumerics"})
# Limits for hostile files: nodes of a function count once per call, and nested calls could multiply them without
# limit. A saver calls a single function, once.
_NODES_TIMES: Final = 10
_NODES_MORE: Final = 10_000
_STEPS: Final = 100  # nodes through which a computed value is traced back


@dataclass(frozen=True, slots=True)
class StoredValue:
    """One value that a saver stores.

    Attributes:
        variables: Names of the nodes of the variables that it is restored into. Usually one; several if each device
            has its own copy (the first is saved); none if it belongs to a table or an iterator, or is unused.
        constant: The value, if it is a constant of the graph, for example the checkpoint's object graph.
        reshaped: Whether the value is reshaped to the variable's shape.
        computing: Names of the nodes of variables that get a value computed from it, for example a sum divided by the
            number of devices. The computation is not performed.
        is_copy: Whether the value is another copy of a variable that is restored from a different key. It is only
            saved.
    """

    key: str
    slice_spec: str
    dtype: DataType
    variables: tuple[str, ...] = ()
    constant: bytes | None = None
    reshaped: bool = False
    computing: tuple[str, ...] = ()
    is_copy: bool = False


def stored_values(graph: Graph, saver_def: SaverDef) -> list[StoredValue] | None:
    """Return the stored values, in the order in which the saver reads them; None if its nodes are missing.

    Raises:
        DataLossError: one of the saver's nodes is damaged.

    Cost: one walk over the graph's nodes, and one over the saver's.
    """
    restore = graph.nodes.get(_node_name(saver_def.restore_op_name))
    if restore is None:
        return None
    origins = _Origins()
    constants = _constants(graph, saver_def, origins)
    targets: dict[_Output, list[str]] = {}
    computing: dict[_Output, list[str]] = {}
    reshaped: set[_Output] = set()
    reads: list[tuple[_Frame, Node]] = []
    for frame, node in _ancestors(graph, restore):
        if node.op in _RESTORE_OPS:
            reads.append((frame, node))
        elif node.op in _ASSIGN_OPS and len(node.inputs) > 1:
            origin, target = origins.of(frame, node.inputs[1]), origins.of(frame, node.inputs[0])
            if origin is None or target is None or target.node.op not in VARIABLE_OPS:
                continue
            if origin.node.op not in _RESTORE_OPS:
                for read in _computed_from(origins, origin):
                    computing.setdefault(read, []).append(target.node.name)
                continue
            read = origin.frame, origin.node.name, origin.output
            targets.setdefault(read, []).append(target.node.name)
            reshaped.update([read] if origin.reshaped else [])
    found = []
    for frame, node in reads:
        for output, (key, slice_spec, dtype) in enumerate(_read_by(origins, frame, node)):
            read = frame, node.name, output
            variables = tuple(dict.fromkeys(targets.get(read, ())))
            constant = None if variables else constants.get(key)
            others = tuple(dict.fromkeys(computing.get(read, ())))
            found.append(StoredValue(key, slice_spec, dtype, variables, constant, read in reshaped, others))
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Frame:
    """Nodes among which a name is looked up: those of the graph, or those of a called function."""

    nodes: Mapping[str, Node]
    functions: Mapping[str, Function]
    call: "tuple[_Frame, Node] | None" = None  # the frame and node of the caller
    function: Function | None = None
    arguments: Mapping[str, int] = field(default_factory=dict)
    called: "dict[str, _Frame | None]" = field(default_factory=dict)  # by node

    def into(self, node: Node) -> "_Frame | None":
        """Return the frame of the function that `node` calls, which is cached; None if it calls no function."""
        if node.name not in self.called:
            function = called_function(self.functions, node)
            inner = None
            if function is not None:
                arguments = {name: index for index, name in enumerate(function.arguments)}
                inner = _Frame(function.nodes, self.functions, (self, node), function, arguments)
            self.called[node.name] = inner
        return self.called[node.name]


# A node's output: its frame, the node's name, the index of the output.
_Output: TypeAlias = tuple[_Frame, str, int]


class _Origin(NamedTuple):
    """The output of a node that computes or stores a value, rather than passing it on."""

    frame: _Frame
    node: Node
    output: int
    reshaped: bool  # whether a Reshape is in between


def _ancestors(graph: Graph, node: Node) -> Iterator[tuple[_Frame, Node]]:
    """Yield `node`, all nodes that run before it, and all nodes of the functions that these call."""
    top = _Frame(graph.nodes, graph.functions)
    most = _NODES_MORE + _NODES_TIMES * (len(top.nodes) + sum(len(each.nodes) for each in graph.functions.values()))
    waiting, seen = [(top, node)], {(top, node.name)}
    found = []
    while waiting:
        frame, here = waiting.pop()
        found.append((frame, here))
        following = [(frame, name) for name in map(_node_name, here.inputs)]
        inner = frame.into(here)
        if inner is not None:
            following += [(inner, name) for name in inner.nodes]
        for place, name in following:
            if name in place.nodes and (place, name) not in seen:
                seen.add((place, name))
                waiting.append((place, place.nodes[name]))
        if len(seen) > most:
            raise DataLossError(
                f"node {quoted(node.name)} calls functions with more than {most} nodes in total, which is more than "
                f"any saver has"
            )
    yield from _in_graph_order(found)


def _in_graph_order(found: Sequence[tuple[_Frame, Node]]) -> list[tuple[_Frame, Node]]:
    """Return the nodes sorted by frame, then in graph order: the order in which the saver was built."""
    frames: dict[_Frame, set[str]] = {}
    for frame, node in found:
        frames.setdefault(frame, set()).add(node.name)
    return [(frame, frame.nodes[name]) for frame, names in frames.items() for name in frame.nodes if name in names]


def called_function(functions: Mapping[str, Function], node: Node) -> Function | None:
    """Return the function that a node calls, if any."""
    if node.op in functions:  # in TensorFlow 1, a call names the function as its operation
        return functions[node.op]
    if node.op in ("PartitionedCall", "StatefulPartitionedCall"):
        called = node.attr("f")
        return functions.get(called.func.name) if called is not None else None
    return None


class _Origins:
    """The nodes that compute or store values, found by tracing values back.

    Results are cached, because chains may be long and shared.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[_Frame, str], _Origin | None] = {}

    def of(self, frame: _Frame, name: str) -> _Origin | None:
        """Return the origin of the value `name`; None if it comes from outside the graph or from a cycle."""
        here = frame, name
        path: dict[tuple[_Frame, str], bool] = {}  # (frame, name) -> whether it is reshaped there
        while here not in self._found:
            if here in path:
                self._found[here] = None
                break
            following, reshaped = self._step(*here)
            if following is None:
                break
            path[here] = reshaped
            here = following
        origin = self._found[here]
        for passed, reshaped in reversed(path.items()):
            if origin is not None and reshaped and not origin.reshaped:
                origin = origin._replace(reshaped=True)
            self._found[passed] = origin
        return origin

    def _step(self, frame: _Frame, name: str) -> tuple[tuple[_Frame, str] | None, bool]:
        """Return the input that `name` passes on, and whether the input is reshaped.

        If `name` does not pass on an input, cache its origin, and return (None, False).
        """
        if name in frame.arguments and frame.call is not None:
            index = frame.arguments[name]
            outer, caller = frame.call
            if index < len(caller.inputs):
                return (outer, caller.inputs[index]), False
            self._found[frame, name] = None
            return None, False
        node = frame.nodes.get(_node_name(name))
        if node is not None and node.op in _PASSING_OPS and node.inputs:
            return (frame, node.inputs[0]), node.op == "Reshape"
        inner = frame.into(node) if node is not None else None
        if inner is not None and inner.function is not None:
            output = _output_index(name)
            if output < len(inner.function.outputs):
                return (inner, inner.function.results.get(inner.function.outputs[output], "")), False
        self._found[frame, name] = None if node is None else _Origin(frame, node, _output_index(name), False)
        return None, False


def _computed_from(origins: _Origins, origin: _Origin) -> Iterator[_Output]:
    """Yield the values of a checkpoint from which a value is computed, within `_STEPS` nodes."""
    waiting, seen = [origin], {(origin.frame, origin.node.name, origin.output)}
    while waiting and len(seen) < _STEPS:
        here = waiting.pop()
        if here.node.op in _RESTORE_OPS:
            yield here.frame, here.node.name, here.output
            continue
        for name in here.node.inputs:
            found = origins.of(here.frame, name)
            if found is not None and (found.frame, found.node.name, found.output) not in seen:
                seen.add((found.frame, found.node.name, found.output))
                waiting.append(found)


def _read_by(origins: _Origins, frame: _Frame, node: Node) -> Iterator[tuple[str, str, DataType]]:
    """Yield (key, slice, dtype) of each output of a restore node."""
    if node.op == "RestoreV2":
        listed = node.attr("dtypes")
        dtypes = [DataType(number) for number in listed.list.type] if listed is not None else []
    else:
        single = node.attr("dt")
        dtypes = [DataType(single.type)] if single is not None else []
    keys = _strings(origins, frame, node, 1, len(dtypes))
    slices = _strings(origins, frame, node, 2, len(dtypes)) if node.op != "Restore" else [b""] * len(dtypes)
    for key, slice_spec, dtype in zip(keys, slices, dtypes, strict=True):
        yield _text(node, key), _text(node, slice_spec), dtype


def _strings(origins: _Origins, frame: _Frame, node: Node, index: int, count: int) -> Sequence[bytes]:
    """Return the `count` strings of the constant that is input `index` of a node."""
    origin = origins.of(frame, node.inputs[index]) if index < len(node.inputs) else None
    value = _constant(origin.node) if origin is not None else None
    strings = list(value.string_val) if value is not None else []
    # TensorFlow omits repetitions of the last string, and all strings if all are empty.
    if value is not None and len(strings) < count:
        strings += (strings[-1:] or [b""]) * (count - len(strings))
    if len(strings) != count:
        raise DataLossError(
            f"node {quoted(node.name)}: input {index} should be a constant of {counted(count, 'string')}, but has "
            f"{len(strings)}"
        )
    return strings


def _constants(graph: Graph, saver_def: SaverDef, origins: _Origins) -> dict[str, bytes]:
    """Return key -> string, for the saved strings that are constants of the graph."""
    save = graph.nodes.get(_node_name(saver_def.save_tensor_name))
    found: dict[str, bytes] = {}
    if save is None:
        return found
    for frame, node in _ancestors(graph, save):
        if node.op not in _SAVE_OPS:
            continue
        first = 2 if node.op == "Save" else 3
        values = [name for name in node.inputs[first:] if not name.startswith("^")]
        for key, name in zip(_strings(origins, frame, node, 1, len(values)), values, strict=True):
            origin = origins.of(frame, name)
            constant = _constant(origin.node) if origin is not None else None
            if constant is not None and len(constant.string_val) == 1 and not constant.tensor_shape.dim:
                found[_text(node, key)] = constant.string_val[0]
    return found


def _constant(node: Node) -> TensorProto | None:
    value = node.attr("value") if node.op == "Const" else None
    return value.tensor if value is not None else None


def _text(node: Node, name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        raise DataLossError(f"node {quoted(node.name)}: the tensor name {name!r} is not UTF-8") from error


def _node_name(name: str) -> str:
    """Return the node of an input: "node" for "node", "node:1", "^node" and "node:output:1"."""
    return name.removeprefix("^").partition(":")[0]


def _output_index(name: str) -> int:
    last = name.rpartition(":")[2]
    return int(last) if ":" in name and last.isdecimal() and last.isascii() and len(last) < 10 else 0
