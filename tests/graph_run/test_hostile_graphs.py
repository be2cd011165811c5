"""Damaged and hostile graphs end in an error that names the node and its operation, in bounded time and memory."""

from typing import Any

import numpy as np
import pytest
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt._proto.graph_pb2 import GraphDef
from torch_tfckpt._proto.meta_graph_pb2 import MetaGraphDef
from torch_tfckpt._proto.node_def_pb2 import NodeDef
from torch_tfckpt.errors import DataLossError, InvalidArgumentError, UnimplementedError

FLOAT, INT32, STRING, BOOL, VARIANT = 1, 3, 7, 10, 21


def node(name: str, op: str, *inputs: str, T: int = FLOAT, **types: int) -> NodeDef:
    made = NodeDef(name=name, op=op, input=inputs)
    for attribute, number in {"T": T, **types}.items():
        made.attr[attribute].type = number  # type: ignore[assignment]  # the stub's own enum
    return made


def placeholder(name: str = "x", dtype: int = FLOAT, shape: list[int] | None = None) -> NodeDef:
    made = node(name, "Placeholder", dtype=dtype)
    made.attr["shape"].shape.unknown_rank = shape is None
    for size in shape or []:
        made.attr["shape"].shape.dim.add(size=size)
    return made


def constant(name: str, values: list[float], shape: list[int], dtype: int = FLOAT) -> NodeDef:
    made = node(name, "Const", dtype=dtype)
    tensor = made.attr["value"].tensor
    tensor.dtype = dtype  # type: ignore[assignment]  # the stub's own enum
    (tensor.int_val if dtype == INT32 else tensor.float_val).extend(values)  # type: ignore[arg-type]  # ints for int_val
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    return made


def call(name: str, op: str, inputs: list[str], **functions: str) -> NodeDef:
    made = NodeDef(name=name, op=op, input=inputs)
    for attribute, function in functions.items():
        made.attr[attribute].func.name = function
    return made


def function(graph: GraphDef, name: str, body: list[NodeDef], result: str) -> None:
    made = graph.library.function.add()
    made.signature.name = name
    made.signature.input_arg.add(name="a", type=FLOAT)
    made.signature.output_arg.add(name="o", type=FLOAT)
    made.node_def.extend(body)
    made.ret["o"] = result


def graph_of(*nodes: NodeDef) -> MetaGraphDef:
    return MetaGraphDef(graph_def=GraphDef(node=nodes))


def run(meta: MetaGraphDef, feeds: dict[str, Any] | None = None, fetch: Any = "y:0") -> Any:
    return tfckpt.import_meta_graph(meta).run(fetch, feeds)


X = placeholder()
FED = {"x:0": 1.0}
without_value = node("y", "Const", dtype=FLOAT)
wrong_bytes = constant("y", [], [3])
wrong_bytes.attr["value"].tensor.tensor_content = b"abc"

REFUSED: dict[str, tuple[list[NodeDef], dict[str, Any], type[Exception], str]] = {
    "unfed": ([X, node("y", "Neg", "x")], {}, InvalidArgumentError, 'feed values for "x:0"'),
    "cycle": ([node("a", "Neg", "y"), node("y", "Neg", "a")], {}, DataLossError, 'node "a" .Neg.*cycle'),
    "own input": ([node("y", "Neg", "y")], {}, DataLossError, 'node "y" .Neg.*cycle'),
    "control cycle": (
        [X, node("a", "Neg", "x", "^y"), node("y", "Neg", "a")], FED, DataLossError, 'node "a" .Neg.*cycle',
    ),
    "missing node": ([node("y", "Neg", "nope")], {}, DataLossError, 'node "y" .Neg.*"nope"'),
    "missing output": ([X, node("a", "Neg", "x"), node("y", "Neg", "a:7")], FED, DataLossError, "output 7"),
    "malformed input": ([X, node("y", "Neg", "x:a:b:c")], FED, DataLossError, 'node "y" .Neg.*x:a:b:c'),
    "too many inputs": ([X, node("y", "Neg", "x", "x")], FED, DataLossError, 'node "y" .Neg.*2 inputs'),
    "too few inputs": ([X, node("y", "AddV2", "x")], FED, DataLossError, 'node "y" .AddV2'),
    "no inputs": ([node("y", "Identity")], {}, DataLossError, 'node "y" .Identity.*0 inputs'),
    "switch alone": ([node("y", "Switch")], {}, DataLossError, 'node "y" .Switch'),
    "merge alone": ([node("y", "Merge")], {}, DataLossError, 'node "y" .Merge'),
    "merge of anything": ([X, node("y", "Merge", "x", "x")], FED, UnimplementedError, 'node "y" .Merge'),
    "exit alone": ([X, node("y", "Exit", "x")], FED, UnimplementedError, 'node "y" .Exit'),
    "enter alone": ([X, node("y", "Enter", "x")], FED, UnimplementedError, 'node "y" .Enter'),
    "if alone": ([X, node("y", "If", "x")], FED, DataLossError, 'node "y" .If.*else_branch'),
    "while alone": ([X, node("y", "While", "x")], FED, DataLossError, 'node "y" .While.*cond'),
    "assign to a number": ([X, node("y", "Assign", "x", "x")], FED, UnimplementedError, 'node "y" .Assign'),
    "constant without value": ([without_value], {}, DataLossError, 'node "y" .Const.*value'),
    "constant of three bytes": ([wrong_bytes], {}, DataLossError, 'node "y" .Const.*3 bytes, expected 12'),
    "huge constant": ([constant("y", [1], [10**12])], {}, InvalidArgumentError, 'node "y" .Const.*limit'),
    "negative size": ([constant("y", [1], [-3])], {}, DataLossError, 'node "y" .Const'),
    "variant constant": ([constant("y", [], [], VARIANT)], {}, UnimplementedError, 'node "y" .Const.*VARIANT'),
    "unknown operation": ([X, node("y", "Foo", "x")], FED, UnimplementedError, r'Foo x1 \("y"\).*register_op'),
    "missing attribute": ([X, node("y", "Cast", "x")], FED, DataLossError, 'node "y" .Cast.*DstT'),
    "huge fill": (
        [constant("s", [100000], [3], INT32), X, node("y", "Fill", "s", "x")],
        FED, InvalidArgumentError, 'node "y" .Fill.*limit',
    ),
    "huge range": (
        [*(constant(name, [value], [], INT32) for name, value in (("a", 0), ("b", 2 * 10**9), ("c", 1))),
         node("y", "Range", "a", "b", "c", Tidx=INT32)],
        {}, InvalidArgumentError, 'node "y" .Range.*limit',
    ),
    "huge tile": (
        [placeholder(shape=[1]), constant("s", [2 * 10**9], [1], INT32), node("y", "Tile", "x", "s")],
        {"x:0": [1.0]}, InvalidArgumentError, 'node "y" .Tile.*limit',
    ),
    "failing operation": (
        [placeholder(shape=[-1]), node("a", "Neg", "x"), placeholder("z", shape=[-1]), node("y", "AddV2", "a", "z")],
        {"x:0": [1.0, 2.0], "z:0": [1.0, 2.0, 3.0]}, InvalidArgumentError, 'node "y" .AddV2',
    ),
    "unknown function": ([X, call("y", "PartitionedCall", ["x"], f="g")], FED, DataLossError, '"g"'),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_graphs_are_refused(name: str) -> None:
    """The error is of our own, and names the node and the operation."""
    nodes, feeds, kind, message = REFUSED[name]
    with pytest.raises(kind, match=message):
        run(graph_of(*nodes), feeds)


@pytest.mark.parametrize(
    ("dtype", "shape", "value", "message"),
    [
        (FLOAT, [2], [1.0, 2.0, 3.0], r"expected the shape \[2\], got \[3\]"),
        (FLOAT, [-1, 2], [1.0, 2.0], "expected the shape"),
        (FLOAT, [], "abc", "not a tensor"),
        (FLOAT, [], 3j, "complex"),
        (FLOAT, [], None, "not a tensor"),
        (FLOAT, [-1], [[1], [2, 3]], "not an array"),
        (INT32, [], 0.5, "expected torch.int32"),
        (INT32, [], 1 << 40, "do not fit"),
        (INT32, [], 1 << 80, "not a tensor"),
        (BOOL, [], 1, "expected torch.bool"),
        (STRING, [], 1, "not a string"),
        (STRING, [], torch.ones(()), "STRING"),
    ],
)
def test_feeds_are_checked(dtype: int, shape: list[int], value: Any, message: str) -> None:
    """Types and shapes are those of the placeholder; the error names the tensor."""
    with pytest.raises(InvalidArgumentError, match=f'feed "x:0": .*{message}'):
        run(graph_of(placeholder(dtype=dtype, shape=shape), node("y", "Identity", "x", T=dtype)), {"x:0": value})


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        (FLOAT, 3, torch.tensor(3.0)),
        (FLOAT, np.float64(0.5), torch.tensor(0.5)),
        (FLOAT, np.arange(3.0)[::-1], torch.tensor([2.0, 1, 0])),
        (FLOAT, torch.tensor([1, 2]), torch.tensor([1.0, 2.0])),
        (FLOAT, [], torch.zeros(0)),
        (INT32, [1, 2], torch.tensor([1, 2], dtype=torch.int32)),
        (INT32, np.int64(5), torch.tensor(5, dtype=torch.int32)),
        (BOOL, [True], torch.tensor([True])),
    ],
)
def test_feeds_are_converted(dtype: int, value: Any, expected: torch.Tensor) -> None:
    """As a Session does, if no value is changed."""
    found = run(graph_of(placeholder(dtype=dtype), node("y", "Identity", "x", T=dtype)), {"x:0": value})
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_strings_are_fed() -> None:
    """str and bytes; the result is an array of bytes."""
    found = run(graph_of(placeholder(dtype=STRING), node("y", "Identity", "x", T=STRING)), {"x:0": ["a", b"\xff"]})
    assert found.tolist() == [b"a", b"\xff"]


@pytest.mark.parametrize("fetch", ["z:0", "y:zero", "", "y:0:0", 3, None, ["y:0", "z"]])
def test_fetches_are_checked(fetch: Any) -> None:
    """Names of tensors that the graph has."""
    with pytest.raises(InvalidArgumentError):
        run(graph_of(X, node("y", "Neg", "x")), FED, fetch)


def test_functions_that_call_themselves() -> None:
    """Directly, and through a condition, whose predicate is not known."""
    meta = graph_of(X, call("y", "PartitionedCall", ["x"], f="f"))
    function(meta.graph_def, "f", [call("c", "PartitionedCall", ["a"], f="f")], "c:output:0")
    with pytest.raises(UnimplementedError, match=r'node "y/c" .PartitionedCall.*"f" calls itself'):
        run(meta, FED)
    meta = graph_of(X, call("y", "PartitionedCall", ["x"], f="f"))
    body = [node("q", "IsNan", "a"), call("c", "If", ["q:y:0", "a"], then_branch="f", else_branch="f")]
    function(meta.graph_def, "f", body, "c:output:0")
    with pytest.raises(UnimplementedError, match='"f" runs inside of itself'):
        run(meta, FED)


def test_calls_inside_calls() -> None:
    """Forty levels are inlined."""
    meta = graph_of(X, call("y", "PartitionedCall", ["x"], f="f0"))
    for level in range(40):
        function(meta.graph_def, f"f{level}", [call("c", "PartitionedCall", ["a"], f=f"f{level + 1}")], "c:output:0")
    function(meta.graph_def, "f40", [node("n", "Neg", "a")], "n:y:0")
    assert float(run(meta, FED)) == -1


@pytest.mark.heavy
def test_calls_that_double_at_each_level() -> None:
    """Forty functions that call the next one twice: refused after a bounded number of nodes."""
    meta = graph_of(X, call("y", "PartitionedCall", ["x"], f="f0"))
    for level in range(40):
        next_one = f"f{level + 1}"
        body = [
            call("c", "PartitionedCall", ["a"], f=next_one),
            call("d", "PartitionedCall", ["c:output:0"], f=next_one),
        ]
        function(meta.graph_def, f"f{level}", body, "d:output:0")
    function(meta.graph_def, "f40", [node("n", "Neg", "a")], "n:y:0")
    with pytest.raises(UnimplementedError, match="counting those of each call"):
        run(meta, FED)


def chain(length: int) -> tuple[MetaGraphDef, str]:
    nodes = [X]
    for number in range(length):
        nodes.append(node(f"n{number}", "Neg", nodes[-1].name))
    return graph_of(*nodes), f"{nodes[-1].name}:0"


@pytest.mark.parametrize("length", [3_001, pytest.param(30_001, marks=pytest.mark.heavy)])
def test_long_chains(length: int) -> None:
    """Nothing recurses over the depth of a graph."""
    meta, last = chain(length)
    assert float(run(meta, FED, last)) == -1


def test_conditions_one_after_the_other() -> None:
    """Two hundred conditions of TensorFlow 1, each of which needs the result of the one before."""
    nodes = [X, placeholder("p", BOOL)]
    last = "x"
    for number in range(200):
        switch, merge = f"s{number}", f"m{number}"
        nodes += [node(switch, "Switch", last, "p"), node(f"t{number}", "Neg", f"{switch}:1")]
        nodes += [node(f"f{number}", "Identity", switch), node(merge, "Merge", f"f{number}", f"t{number}")]
        last = merge
    meta = graph_of(*nodes)
    imported = tfckpt.import_meta_graph(meta)
    assert float(imported.run(f"{last}:0", {"x:0": 1.0, "p:0": True})) == 1
    net = imported.module(["x:0"], ["m0:0"], {"p:0": True})
    assert [each.op for each in net.graph.nodes] == ["placeholder", "call_function", "output"]


def loop(switched: str, left: str) -> MetaGraphDef:
    """Doubles x until it is 10 or more; `switched` is what the Switch gets, `left` what the Exit gets."""
    enters = [node(name, "Enter", source) for name, source in (("first", "x"), ("limit", "ten"))]
    for each in enters:
        each.attr["frame_name"].s = b"loop"
    return graph_of(
        X, constant("ten", [10.0], []), *enters,
        node("merge", "Merge", "first", "next"), node("copy", "Identity", "merge"),
        node("less", "Less", "merge", "limit"), node("again", "LoopCond", "less"),
        node("switch", "Switch", switched, "again"), node("twice", "AddV2", "switch:1", "switch:1"),
        node("next", "NextIteration", "twice"), node("last", "Identity", "switch"), node("y", "Exit", left),
    )  # fmt: skip


def test_identities_in_a_loop() -> None:
    """One before an Exit is passed through; a Switch of something else than a loop variable is refused."""
    for left in ("switch", "last"):
        assert float(run(loop("merge", left), FED)) == 16
    with pytest.raises(UnimplementedError, match=r'node "y" .Exit.: it does not leave a loop variable'):
        run(loop("copy", "switch"), FED)


def test_all_unsupported_operations_are_reported_at_once() -> None:
    """With their numbers and a node of each, and what can be fed instead."""
    nodes = [X, node("a", "Foo", "x"), node("b", "Foo", "x"), node("c", "Bar", "a"), node("y", "AddV2", "b", "c")]
    meta = graph_of(*nodes)
    with pytest.raises(UnimplementedError) as caught:
        run(meta, FED)
    for part in ("2 operations", 'Foo x2 ("b")', 'Bar x1 ("c")', '"b:0"', '"c:0"'):
        assert part in str(caught.value)
    assert float(run(meta, {"b:0": 1.0, "c:0": 2.0})) == 3
