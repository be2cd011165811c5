"""Adding and removing name scopes; tests/conformance/test_meta_graph_options.py compares with TensorFlow."""

from pathlib import Path

import pytest
from small_meta_graph import LATER, OTHER_SAVER, SAVER, encoded, meta_graph

from torch_tfckpt._proto.meta_graph_pb2 import MetaGraphDef
from torch_tfckpt._proto.variable_pb2 import VariableDef
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.meta_graph import scopes
from torch_tfckpt.meta_graph.raw import RawMetaGraph
from torch_tfckpt.meta_graph.rescoping import check_unbound, in_import_scope, out_of_scope


def variables(meta: RawMetaGraph) -> list[str]:
    values = meta.collections["variables"].bytes_list.value
    return [VariableDef.FromString(value).variable_name for value in values]


def test_into_a_scope() -> None:
    """Nodes, inputs, colocations, frames, variables, savers, nodes and strings in collections, and the tensors of
    signatures and assets are renamed; functions and everything else are unchanged.
    """
    after = in_import_scope(encoded(meta_graph()), "new/")
    nodes = after.graph.nodes
    assert list(nodes) == [f"new/{name}" for name in encoded(meta_graph()).graph.nodes]
    assert nodes["new/a/mul"].inputs == ("new/a/w", "new/b:1", "^new/a/w", "^new/b")
    location, frame = nodes["new/a/w"].attr("_class"), nodes["new/a/enter"].attr("frame_name")
    assert location is not None and frame is not None
    assert list(location.list.s) == [b"loc:@new/a/w", b"loc:@new/b", b"other"]
    assert frame.s == b"new/a/while"
    assert variables(after) == ["new/a/w:0", "new/b:0"]
    assert after.saver_def == scopes.in_scope(SAVER, "new")
    savers = [scopes.in_scope(saver, "new").SerializeToString() for saver in (SAVER, OTHER_SAVER)]
    assert list(after.collections["savers"].bytes_list.value) == savers
    assert list(after.collections["nodes"].node_list.value) == ["new/a/mul:0", "new/b", "new/a/save/Identity:0"]
    texts = after.collections["strings"].bytes_list.value
    assert list(texts) == [b"new/a/text", b"new/hello", b"new/a/save/SaveV2", b"new/a/\xff"]
    serve = after.signatures["serve"]
    assert serve.inputs["x"].name == "new/a/w:0"
    assert serve.inputs["sparse"].coo_sparse.values_tensor_name == "new/a/values:0"
    assert serve.outputs["y"].composite_tensor.components[0].name == "new/a/mul:0"
    assert after.assets[0].tensor_info.name == "new/a/words:0"
    message, before = after.message(), meta_graph()
    assert message.graph_def.library == before.graph_def.library
    assert message.meta_info_def == before.meta_info_def
    for name in ("ints", "anys", "empty"):
        assert after.collections[name] == before.collection_def[name]
    assert bytes(after.raw).endswith(LATER)


def test_out_of_a_scope() -> None:
    """CASES 79: the nodes in it; objects that are completely in it, e.g. one of two savers; renamed outside inputs."""
    after = out_of_scope(encoded(meta_graph()), "a")
    nodes = after.graph.nodes
    assert list(nodes) == ["w", "mul", "enter", "save/SaveV2", "save/Identity"]
    assert nodes["mul"].inputs == ("w", "$unbound_inputs_b:1", "^w", "^$unbound_inputs_b")
    location, frame = nodes["w"].attr("_class"), nodes["enter"].attr("frame_name")
    assert location is not None and frame is not None
    assert list(location.list.s) == [b"loc:@w", b"other"]
    assert frame.s == b"while"
    assert [op.name for op in after.info.stripped_op_list.op] == ["MatMul", "SaveV2", "VarHandleOp"]
    assert variables(after) == ["w:0"]
    assert list(after.collections["savers"].bytes_list.value) == [
        scopes.out_of_scope(OTHER_SAVER, "a").SerializeToString()
    ]
    assert after.saver_def == SAVER
    assert list(after.collections["nodes"].node_list.value) == ["mul:0", "save/Identity:0"]
    assert list(after.collections["strings"].bytes_list.value) == [b"a/text", b"a/save/SaveV2", b"a/\xff"]
    assert list(after.collections["unbound_inputs"].bytes_list.value) == [b"$unbound_inputs_b:1"]
    assert list(after.signatures) == ["serve"]
    assert after.signatures["serve"].outputs["y"].composite_tensor.components[0].name == "mul:0"
    assert after.assets[0].tensor_info.name == "words:0"


def test_out_of_a_scope_twice() -> None:
    """The unbound inputs of the first export are not listed again."""
    part = out_of_scope(encoded(meta_graph()), "a")
    assert list(part.collections["unbound_inputs"].bytes_list.value) == [b"$unbound_inputs_b:1"]
    assert "unbound_inputs" not in out_of_scope(part, "no such").collections


def test_out_of_an_empty_scope() -> None:
    """Numbers and messages of any kind are kept, names are not."""
    after = out_of_scope(encoded(meta_graph()), "a/no such")
    assert not after.graph.nodes
    assert not after.signatures
    assert not after.assets
    assert sorted(after.collections) == ["anys", "empty", "floats", "ints"]


@pytest.mark.parametrize("scope", [None, "", "/"])
def test_no_scope(scope: str | None) -> None:
    """The result is the same object."""
    meta = encoded(meta_graph())
    assert out_of_scope(meta, scope) is meta
    if scope != "/":
        assert in_import_scope(meta, scope) is meta


def test_into_a_scope_and_out_again() -> None:
    """The same bytes, except for the saver, which is not renamed, and strings, which are not names."""
    meta = meta_graph()
    meta.ClearField("saver_def")
    del meta.collection_def["strings"]
    before = encoded(meta)
    assert out_of_scope(in_import_scope(before, "a/b.c"), "a/b.c").raw == before.raw


@pytest.mark.parametrize("scope", ["_a", "a b", "/", "-a", "a\n", "a:0", "^a"])
def test_invalid_scopes(scope: str) -> None:
    """TensorFlow rejects them, too."""
    with pytest.raises(InvalidArgumentError, match="is not a valid scope name"):
        in_import_scope(encoded(meta_graph()), scope)


def test_unbound_inputs() -> None:
    """A graph with unbound inputs is rejected, a complete one is not."""
    part = out_of_scope(encoded(meta_graph()), "a")
    with pytest.raises(InvalidArgumentError, match=r"x\.meta: Graph contains unbound inputs: \$unbound_inputs_b:1\."):
        check_unbound(part)
    check_unbound(encoded(meta_graph()))


@pytest.mark.parametrize("kind", ["node_list", "bytes_list"])
def test_unbound_inputs_of_any_kind(kind: str) -> None:
    """The error lists the names, with control characters escaped; an empty list is accepted."""
    meta = MetaGraphDef()
    meta.collection_def["unbound_inputs"].SetInParent()
    check_unbound(encoded(meta))
    name = "x\x1b"
    getattr(meta.collection_def["unbound_inputs"], kind).value.append(name if kind == "node_list" else name.encode())
    with pytest.raises(InvalidArgumentError, match=r"unbound inputs: x\\x1b\. "):
        check_unbound(encoded(meta))


def test_large_nodes_are_not_decoded() -> None:
    """A constant of any size is copied unchanged, even if its node has a colocation."""
    meta = MetaGraphDef()
    node = meta.graph_def.node.add(name="n", op="Const", input=["^m"])
    node.attr["value"].tensor.tensor_content = bytes(1 << 20)
    node.attr["_class"].list.s.append(b"loc:@m")
    after = in_import_scope(encoded(meta), "a").message().graph_def.node[0]
    node.name, node.input[0], node.attr["_class"].list.s[0] = "a/n", "^a/m", b"loc:@a/m"
    assert after == node


def test_frames_of_other_operations() -> None:
    """An attribute of that name is the name of a frame only in a node that enters a loop."""
    meta = MetaGraphDef()
    meta.graph_def.node.add(name="n", op="Mine").attr["frame_name"].s = b"f"
    meta.graph_def.node[0].attr["_class"].s = b"loc:@n"  # not a list
    after = in_import_scope(encoded(meta), "a").message().graph_def.node[0]
    assert (after.name, after.attr["frame_name"].s, after.attr["_class"].s) == ("a/n", b"f", b"loc:@n")


def test_meta_graphs_of_the_corpus(corpus: Path) -> None:
    """Adding and removing a scope gives the same bytes of their graphs."""
    files = sorted(file for file in corpus.rglob("*.meta") if file.stat().st_size < 300_000)
    assert files
    for file in files:
        before = RawMetaGraph(memoryview(file.read_bytes()), str(file))
        after = out_of_scope(in_import_scope(before, "new"), "new")
        assert after.graph.raw == before.graph.raw
        assert sorted(after.collections) == sorted(before.collections)
