"""Damaged or absurd meta graphs: a helpful error, or some value; soon, and in bounded memory."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from claims import MEBIBYTE, assert_helps, confined, within

import torch_tfckpt as tfckpt
from torch_tfckpt._proto.attr_value_pb2 import AttrValue
from torch_tfckpt._proto.meta_graph_pb2 import MetaGraphDef
from torch_tfckpt._proto.types_pb2 import DT_FLOAT
from torch_tfckpt.format.wire import sized_tag
from torch_tfckpt.meta_graph.files import UnreadableMetaGraphError, meta_graph_of, meta_graphs_in, open_meta_graph
from torch_tfckpt.meta_graph.raw import RawMetaGraph
from torch_tfckpt.meta_graph.text import to_text

PARTS: Final = ("info", "saver_def", "collections", "signatures", "assets", "object_graph")


def sound() -> MetaGraphDef:
    """A little of everything that a meta graph may contain."""
    message = MetaGraphDef()
    info, graph = message.meta_info_def, message.graph_def
    info.tensorflow_version = "1.15.0"
    info.stripped_op_list.op.add(name="Add").input_arg.add(name="x", type=DT_FLOAT)
    graph.node.add(name="a", op="VarHandleOp").attr["dtype"].type = DT_FLOAT
    graph.node.add(name="b", op="Const", input=["^a"]).attr["value"].tensor.float_val.append(1.5)
    graph.versions.producer = 27
    function = graph.library.function.add()
    function.signature.name = "f"
    function.signature.input_arg.add(name="x")
    function.node_def.add(name="id", op="Identity", input=["x"])
    function.ret["out"] = "id:output:0"
    message.saver_def.restore_op_name = "save/restore_all"
    message.collection_def["v"].bytes_list.value.append(b"\xff")
    message.collection_def["i"].int64_list.value.append(-1)
    message.signature_def["s"].inputs["x"].name = "a:0"
    message.asset_file_def.add(filename="vocabulary")
    message.object_graph_def.nodes.add().children.add(node_id=0, local_name="me")
    return message


SOUND: Final = sound().SerializeToString(deterministic=True)
FORMS: Final = {"binary": SOUND, "text": to_text(meta_graph_of(SOUND)).encode()}


def use(found: RawMetaGraph) -> None:
    """Access everything."""
    for part in PARTS:
        getattr(found, part)
    for node in found.graph.nodes.values():
        node.attr("value")
    assert sum(found.graph.op_counts().values()) == len(found.graph.nodes)
    assert found.graph.functions.keys() | {""}
    assert found.graph.versions.producer >= -(2**31)


def attempt(path: Path) -> None:
    """Open and use a file; CheckpointErrors are allowed, and those of opening must be helpful OSErrors."""
    try:
        found = open_meta_graph(path)
    except tfckpt.CheckpointError as error:
        assert_helps(error, str(path))
        assert isinstance(error, OSError)
        return
    with contextlib.suppress(tfckpt.CheckpointError):
        use(found)
    for part in (*PARTS, "graph"):
        with contextlib.suppress(tfckpt.CheckpointError):
            getattr(found, part)


def test_the_valid_meta_graph_works_in_both_forms(tmp_path: Path) -> None:
    """Otherwise the rest of this file tests nothing."""
    for content in FORMS.values():
        (tmp_path / "x.meta").write_bytes(content)
        use(open_meta_graph(tmp_path / "x.meta"))


@pytest.mark.parametrize("form", FORMS)
def test_cut_off_anywhere(tmp_path: Path, form: str) -> None:
    """The message is cut off at every byte."""
    with within():
        for end in range(len(FORMS[form])):
            (tmp_path / "x.meta").write_bytes(FORMS[form][:end])
            attempt(tmp_path / "x.meta")


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
@pytest.mark.parametrize("form", FORMS)
def test_a_byte_flipped_anywhere(tmp_path: Path, form: str, flip: int) -> None:
    content = bytearray(FORMS[form])
    with within():
        for at in range(len(content)):
            content[at] ^= flip
            (tmp_path / "x.meta").write_bytes(content)
            attempt(tmp_path / "x.meta")
            content[at] ^= flip


def field(number: int, content: bytes) -> bytes:
    return sized_tag(number, len(content)) + content


def graph(content: bytes) -> bytes:
    return SOUND + field(2, content)


NODE_A: Final = field(1, b"a")
# What is added to the valid one, and the error on accessing everything.
BAD: Final[dict[str, tuple[bytes, str]]] = {
    "two nodes of one name": (graph(field(1, NODE_A)), 'two nodes are named "a"'),
    "a name that is not UTF-8": (graph(field(1, field(1, b"\xff"))), "invalid NodeDef"),
    "an invalid node": (graph(field(1, b"\xff")), "invalid NodeDef"),
    "a group without an end in the graph": (graph(b"\x0b"), "group 1 has no end"),
    "a function without a signature": (graph(field(2, field(1, field(1, b"\xff")))), "signature is not an OpDef"),
    "invalid versions": (graph(field(4, b"\xff")), "not a VersionDef"),
    "invalid objects": (SOUND + field(7, b"\xff"), "invalid SavedObjectGraph"),
}
BROKEN_AT_ONCE: Final[dict[str, bytes]] = {
    "a collection whose name is not UTF-8": SOUND + field(4, field(1, b"\xff")),
    "an invalid collection": SOUND + field(4, field(1, b"x") + field(2, b"\xff")),
    "an invalid signature": SOUND + field(5, field(1, b"x") + field(2, b"\xff")),
    "an invalid saver": SOUND + field(3, b"\xff"),
    "a version that is not UTF-8": SOUND + field(1, field(5, b"\xff")),
    "an invalid asset": SOUND + field(6, b"\xff"),
    "a size beyond the file": SOUND + b"\x12\xff\xff\xff\xff\x7f",
    "a size beyond 64 bits": SOUND + b"\x12" + b"\xff" * 9 + b"\x7f",
    "a group without an end": SOUND + b"\x0b",
    "an end without a group": SOUND + b"\x0c",
    "a million groups": SOUND + b"\x0b" * 1_000_000,
}


@pytest.mark.parametrize("name", BAD)
def test_errors_in_the_graph_are_raised_on_access(tmp_path: Path, name: str) -> None:
    """Everything else is accessible."""
    content, finding = BAD[name]
    (tmp_path / "x.meta").write_bytes(content)
    found = open_meta_graph(tmp_path / "x.meta")
    assert found.info.tensorflow_version == "1.15.0" and set(found.collections) == {"v", "i"}
    with within(), pytest.raises(tfckpt.DataLossError, match=finding):
        use(found)


@pytest.mark.parametrize("name", BROKEN_AT_ONCE)
def test_errors_outside_the_graph_are_raised_on_opening(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.meta"
    path.write_bytes(BROKEN_AT_ONCE[name])
    with within(), pytest.raises(UnreadableMetaGraphError) as raised:
        open_meta_graph(path)
    assert_helps(raised.value, str(path))


def test_odd_but_valid_meta_graphs_are_read(tmp_path: Path) -> None:
    """Map entries without keys, groups, and parts that occur twice and are merged."""
    value = AttrValue(i=7).SerializeToString()
    odd = graph(field(1, field(1, b"odd") + field(5, field(2, value)))) + b"\x0b\x08\x01\x0c" + field(4, b"")
    (tmp_path / "x.meta").write_bytes(odd + field(3, b"\x28\x01"))
    found = open_meta_graph(tmp_path / "x.meta")
    use(found)
    assert list(found.graph.nodes) == ["a", "b", "odd"]
    assert found.graph.nodes["odd"].attr("") == AttrValue(i=7)
    assert found.saver_def is not None
    assert (found.saver_def.sharded, found.saver_def.restore_op_name) == (True, "save/restore_all")
    assert set(found.collections) == {"v", "i", ""}


def test_many_nodes_are_fast(tmp_path: Path) -> None:
    """100,000 nodes: opening is immediate, iterating takes a second or two."""
    nodes = b"".join(
        field(1, field(1, b"scope/node%d" % index) + field(2, b"Identity") + field(3, b"scope/node0") + field(5, b""))
        for index in range(100_000)
    )
    (tmp_path / "x.meta").write_bytes(field(2, nodes))
    with within(0.5):
        found = open_meta_graph(tmp_path / "x.meta")
    with within(5):
        assert len(found.graph.nodes) == 100_000


# Memory.


def opened(path: str) -> int:
    """Return the number of meta graphs in the file."""
    found = meta_graphs_in(path)
    for each in found:
        use(each)
    return len(found)


SIZE: Final = 4 * MEBIBYTE
BOMBS: Final[dict[str, Callable[[], bytes]]] = {
    "empty comment lines": lambda: b"#\n" * (SIZE // 2),
    "a line of blanks": lambda: b" " * SIZE + b"saver_def { }",
    "a comment": lambda: b"# " + b"x" * SIZE,
    "a string of escapes": lambda: b'meta_info_def { tensorflow_version: "' + b"\\101" * (SIZE // 4) + b'" }',
    "a string without an end": lambda: b'meta_info_def { tensorflow_version: "' + b"\\101" * (SIZE // 4),
    "one long name": lambda: b"x" * SIZE,
    "one long number": lambda: b"saver_def { max_to_keep: " + b"9" * SIZE + b" }",
    "braces": lambda: b"graph_def { node { attr { value { func { " + b"attr { value { func { " * (SIZE // 23),
    "a SavedModel of empty meta graphs": lambda: b"\x08\x01" + b"\x12\x00" * (SIZE // 2),
    "a constant": lambda: graph(
        field(1, field(1, b"c") + field(5, field(1, b"value") + field(2, field(2, bytes(SIZE)))))
    ),
    "one large attribute key": lambda: graph(field(1, field(1, b"c") + field(5, field(1, b"k" * SIZE)))),
}


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", BOMBS)
def test_memory_stays_near_the_size_of_the_file(tmp_path: Path, name: str) -> None:
    """Various inputs of 4 MiB take a few times their size, whether or not they are valid."""
    (tmp_path / "x.meta").write_bytes(BOMBS[name]())
    outcome = confined(opened, str(tmp_path / "x.meta"), limit=1024 * MEBIBYTE)
    assert outcome.is_checkpoint_error, outcome.error
    assert outcome.grown < 16 * SIZE, f"{outcome.grown // MEBIBYTE} MiB"
