"""Opening meta graphs: the file that a path refers to, the choice of a graph, both forms, and the errors."""

import os
from pathlib import Path

import pytest
import torch
from call_memory import needs_proc, peak_memory
from google.protobuf.any_pb2 import Any
from google.protobuf.wrappers_pb2 import Int64Value

import torch_tfckpt as tfckpt
from torch_tfckpt._proto.meta_graph_pb2 import MetaGraphDef
from torch_tfckpt._proto.node_def_pb2 import NodeDef
from torch_tfckpt._proto.saved_model_pb2 import SavedModel
from torch_tfckpt.bundle.writer import BundleWriter
from torch_tfckpt.format.wire import sized_tag
from torch_tfckpt.meta_graph.files import UnreadableMetaGraphError, meta_graph_of, meta_graphs_in, open_meta_graph
from torch_tfckpt.meta_graph.raw import RawMetaGraph
from torch_tfckpt.meta_graph.text import to_text
from torch_tfckpt.storage.local import LOCAL


def meta_graph(*tags: str, node: str = "a") -> MetaGraphDef:
    message = MetaGraphDef()
    message.meta_info_def.tags.extend(tags)
    message.graph_def.node.add(name=node, op="VarHandleOp")
    message.collection_def["strings"].bytes_list.value.append(b"\xff")
    return message


def binary(*tags: str, node: str = "a") -> bytes:
    return meta_graph(*tags, node=node).SerializeToString(deterministic=True)


def text(*tags: str, node: str = "a") -> str:
    return to_text(meta_graph_of(meta_graph(*tags, node=node)))


def saved_model(*tag_sets: tuple[str, ...], version: int = 1) -> SavedModel:
    graphs = [meta_graph(*tags, node=f"node{index}") for index, tags in enumerate(tag_sets)]
    return SavedModel(saved_model_schema_version=version, meta_graphs=graphs)


def saved_model_text(model: SavedModel) -> str:
    parts = [to_text(meta_graph_of(each)).replace("\n", "\n  ") for each in model.meta_graphs]
    return "saved_model_schema_version: 1\n" + "".join(f"meta_graphs {{\n  {part}}}\n" for part in parts)


def node_of(found: RawMetaGraph) -> str:
    (name,) = found.graph.nodes
    return name


def save(prefix: Path) -> None:
    """Write a checkpoint without its meta graph."""
    with BundleWriter(LOCAL, str(prefix)) as writer:
        writer.add("x", torch.ones(3))


def refusal(path: object, *arguments: object) -> tfckpt.CheckpointError:
    with pytest.raises(tfckpt.CheckpointError) as raised:
        open_meta_graph(path, *arguments)  # type: ignore[arg-type]
    return raised.value


# Forms.


def test_binary_and_text_files_open_as_the_same(tmp_path: Path) -> None:
    """CASES 66: both forms are read, with any extension; the text encodes to the same bytes as the binary file."""
    (tmp_path / "binary.pbtxt").write_bytes(binary())
    (tmp_path / "text.meta").write_text(text())
    for name in ("binary.pbtxt", "text.meta"):
        found = open_meta_graph(tmp_path / name)
        assert bytes(found.raw) == binary()
        assert found.place == str(tmp_path / name)


@pytest.mark.parametrize("separator", ["\x1c", "\x1d", "\x1e", "\x1f"])
def test_separators_are_white_space_in_the_text_form(tmp_path: Path, separator: str) -> None:
    """As for the reader of protobuf, so that TensorFlow and this package agree about such a file."""
    (tmp_path / "m.meta").write_text(f"graph_def {{{separator}node {{ name: 'a' op: 'NoOp' }} }}")
    assert node_of(open_meta_graph(tmp_path / "m.meta")) == "a"


def test_text_of_another_message_cannot_be_parsed(tmp_path: Path) -> None:
    """CASES 66: the text of a SaverDef is an OSError as in TensorFlow: "Cannot parse file"."""
    path = tmp_path / "saver.meta"
    path.write_text('filename_tensor_name: "save/Const:0"\nmax_to_keep: 5\n')
    with pytest.raises(OSError, match="Cannot parse file") as raised:
        open_meta_graph(path)
    assert isinstance(raised.value, tfckpt.DataLossError)
    assert str(path) in str(raised.value)
    assert 'no field named "filename_tensor_name"' in str(raised.value)


def test_a_removed_file_does_not_exist(tmp_path: Path) -> None:
    """CASES 66: an OSError with "does not exist", as in TensorFlow; and a NotFoundError of this package."""
    path = tmp_path / "model.meta"
    path.write_bytes(binary())
    path.unlink()
    with pytest.raises(FileNotFoundError, match="does not exist") as raised:
        open_meta_graph(path)
    assert isinstance(raised.value, tfckpt.NotFoundError)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"# only a comment\n"])
def test_an_empty_file_is_an_empty_meta_graph(tmp_path: Path, content: bytes) -> None:
    """As in TensorFlow."""
    (tmp_path / "empty.meta").write_bytes(content)
    found = open_meta_graph(tmp_path / "empty.meta")
    assert found.message() == MetaGraphDef()
    assert dict(found.graph.nodes) == {}


@pytest.mark.parametrize("name", ["saved_model.pb", "other.pb", "model.meta"])
def test_a_saved_model_is_recognised_by_its_contents(tmp_path: Path, name: str) -> None:
    """Field 1 is a number there and a message in a meta graph; the file name does not matter."""
    (tmp_path / name).write_bytes(saved_model(("serve",)).SerializeToString())
    assert node_of(open_meta_graph(tmp_path / name)) == "node0"
    (tmp_path / name).write_bytes(binary())
    assert node_of(open_meta_graph(tmp_path / name)) == "a"


def test_the_name_decides_if_the_contents_are_ambiguous(tmp_path: Path) -> None:
    """Field 2 alone may be the graph of a meta graph or a meta graph of a SavedModel without a version."""
    model = saved_model((), version=0)
    del model.meta_graphs[0].collection_def["strings"]
    (tmp_path / "saved_model.pb").write_bytes(model.SerializeToString())
    assert node_of(open_meta_graph(tmp_path)) == "node0"
    only_graph = MetaGraphDef(graph_def=meta_graph().graph_def)
    (tmp_path / "x.meta").write_bytes(only_graph.SerializeToString())
    assert node_of(open_meta_graph(tmp_path / "x.meta")) == "a"


def test_a_saved_model_as_text(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pbtxt").write_text("# by hand\n" + saved_model_text(saved_model(("serve",), ("train",))))
    assert [node_of(each) for each in meta_graphs_in(tmp_path / "saved_model.pbtxt")] == ["node0", "node1"]
    assert node_of(open_meta_graph(tmp_path, ["train"])) == "node1"


def test_unknown_fields_survive_the_binary_form(tmp_path: Path) -> None:
    """Fields of later versions and the contents of an Any are preserved in bytes and message."""
    message = meta_graph()
    message.collection_def["any"].any_list.value.add().Pack(Int64Value(value=5))
    message.meta_info_def.any_info.CopyFrom(Any(type_url="a/b.C", value=b"\xff\xff"))
    content = message.SerializeToString(deterministic=True) + sized_tag(99, 3) + b"new"
    (tmp_path / "x.meta").write_bytes(content)
    found = open_meta_graph(tmp_path / "x.meta")
    assert bytes(found.raw) == content
    assert found.message().SerializeToString(deterministic=True) == content


# Paths.


def test_every_type_of_path_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "x.meta").write_bytes(binary())
    path = str(tmp_path / "x.meta")
    for spelling in (path, os.fsencode(path), tmp_path / "x.meta", f"file://{path}"):
        assert node_of(open_meta_graph(spelling)) == "a"


def test_urls_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    files.pipe_file("/meta-graphs/x.meta", binary())
    try:
        assert node_of(open_meta_graph("memory://meta-graphs/x.meta")) == "a"
        assert node_of(open_meta_graph("memory://meta-graphs/x")) == "a"
        assert "does not exist" in str(refusal("memory://meta-graphs/y.meta"))
    finally:
        files.rm("/meta-graphs", recursive=True)


@pytest.mark.parametrize("named", ["m-7", "m-7.index", "m-7.data-00000-of-00001", "m-7.meta"])
def test_the_path_of_a_checkpoint_opens_its_meta_graph(tmp_path: Path, named: str) -> None:
    """Its prefix, and each of its files."""
    save(tmp_path / "m-7")
    (tmp_path / "m-7.meta").write_bytes(binary())
    assert node_of(open_meta_graph(tmp_path / named)) == "a"


@pytest.mark.parametrize("named", ["old", "old-00000-of-00002", "old-?????-of-00002"])
def test_the_path_of_a_version_1_checkpoint_opens_its_meta_graph(tmp_path: Path, golden: Path, named: str) -> None:
    """Its file, or one of its shards, or their pattern."""
    table = (golden / "digits-v1" / "checkpoint-288").read_bytes()
    for name in ("old", "old-00000-of-00002", "old-00001-of-00002"):
        (tmp_path / name).write_bytes(table)
    (tmp_path / "old.meta").write_bytes(binary())
    assert node_of(open_meta_graph(tmp_path / named)) == "a"


def test_a_directory_of_checkpoints_means_the_latest(tmp_path: Path) -> None:
    """As for all functions that take a checkpoint; the checkpoint without a .meta file is named."""
    saver = tfckpt.Saver({"a": torch.zeros(2)})
    for step in (1, 2):
        saver.save(tmp_path / "model.ckpt", global_step=step)
    assert open_meta_graph(tmp_path).place == f"{tmp_path}/model.ckpt-2.meta"
    (tmp_path / "model.ckpt-2.meta").unlink()
    with pytest.raises(FileNotFoundError) as raised:
        open_meta_graph(tmp_path)
    assert str(raised.value) == (
        f"{tmp_path}: its latest checkpoint, model.ckpt-2, has no .meta file. "
        'This directory contains "model.ckpt-1.meta"'
    )


def test_a_path_that_is_itself_a_meta_graph_takes_precedence(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(binary(node="itself"))
    (tmp_path / "x.meta").write_bytes(binary(node="other"))
    assert node_of(open_meta_graph(tmp_path / "x")) == "itself"


def test_a_directory_is_opened_as_a_saved_model(tmp_path: Path) -> None:
    """The binary file is preferred, as in TensorFlow; without one, the path may also be a checkpoint's prefix."""
    directory = tmp_path / "m"
    directory.mkdir()
    (tmp_path / "m.meta").write_bytes(binary(node="other"))
    assert node_of(open_meta_graph(directory)) == "other"
    (directory / "saved_model.pbtxt").write_text(saved_model_text(saved_model(("text",))))
    assert open_meta_graph(directory).info.tags == ["text"]
    (directory / "saved_model.pb").write_bytes(saved_model(("binary",)).SerializeToString())
    assert open_meta_graph(directory).info.tags == ["binary"]


# Tags.


def test_tags_are_compared_as_a_set(tmp_path: Path) -> None:
    """All of them and no others, in any order; a single tag may be a str."""
    (tmp_path / "saved_model.pb").write_bytes(saved_model(("train", "gpu"), ("train",), ()).SerializeToString())
    assert node_of(open_meta_graph(tmp_path, ["gpu", "train"])) == "node0"
    assert node_of(open_meta_graph(tmp_path, {"train"})) == "node1"
    assert node_of(open_meta_graph(tmp_path, "train")) == "node1"
    assert node_of(open_meta_graph(tmp_path, [])) == "node2"


def test_without_tags_the_only_one_or_the_one_tagged_serve(tmp_path: Path) -> None:
    path = tmp_path / "saved_model.pb"
    path.write_bytes(saved_model(("train",)).SerializeToString())
    assert node_of(open_meta_graph(path)) == "node0"
    path.write_bytes(saved_model(("serve", "gpu"), ("serve",)).SerializeToString())
    assert node_of(open_meta_graph(path)) == "node1"


def test_several_meta_graphs_require_tags(tmp_path: Path) -> None:
    path = tmp_path / "saved_model.pb"
    path.write_bytes(saved_model(("train",), ("serve", "gpu")).SerializeToString())
    error = refusal(path)
    assert isinstance(error, tfckpt.InvalidArgumentError)
    assert str(error) == f'{path} contains 2 meta graphs. Choose one by `tags`: {{"train"}}, {{"gpu", "serve"}}'


def test_tags_that_no_meta_graph_has(tmp_path: Path) -> None:
    path = tmp_path / "saved_model.pb"
    path.write_bytes(saved_model(("train",), ("serve",)).SerializeToString())
    error = refusal(path, ["serve", "tpu"])
    assert isinstance(error, tfckpt.NotFoundError)
    assert str(error) == f'{path}: no meta graph has the tags {{"serve", "tpu"}}. Available: {{"train"}}, {{"serve"}}'


def test_tags_of_a_meta_file(tmp_path: Path) -> None:
    """It usually has none; if it has, they are compared like those of a SavedModel."""
    path = tmp_path / "x.meta"
    path.write_bytes(binary())
    error = refusal(path, ["serve"])
    assert isinstance(error, tfckpt.InvalidArgumentError)
    assert str(error).endswith('the meta graph has no tags, but {"serve"} was requested. Omit `tags`')
    path.write_bytes(binary("serve"))
    assert node_of(open_meta_graph(path, ["serve"])) == "a"
    assert isinstance(refusal(path, ["train"]), tfckpt.NotFoundError)


def test_all_meta_graphs_of_a_file(tmp_path: Path) -> None:
    """Errors name the meta graph that they are about."""
    path = tmp_path / "saved_model.pb"
    path.write_bytes(saved_model(("train",), ("serve",)).SerializeToString())
    assert [each.place for each in meta_graphs_in(path)] == [f"{path}, meta graph 0", f"{path}, meta graph 1"]
    path.write_bytes(binary())
    assert [each.place for each in meta_graphs_in(path)] == [str(path)]


# Errors.


def test_a_missing_file_suggests_the_closest_name(tmp_path: Path) -> None:
    (tmp_path / "model-100.meta").write_bytes(binary())
    assert 'Closest: "model-100.meta".' in str(refusal(tmp_path / "model-10.meta"))
    assert 'This directory contains "model-100.meta"' in str(refusal(tmp_path / "something else"))
    assert f'there is no directory "{tmp_path}/no"' in str(refusal(tmp_path / "no" / "x.meta"))


def test_a_directory_without_a_saved_model_lists_its_files(tmp_path: Path) -> None:
    error = refusal(tmp_path)
    assert isinstance(error, FileNotFoundError)
    assert "is a directory without saved_model.pb. There is no meta graph in this directory" in str(error)
    (tmp_path / "checkpoint").touch()
    assert 'This directory contains "checkpoint"' in str(refusal(tmp_path))
    (tmp_path / "m-1.meta").touch()
    assert 'This directory contains "m-1.meta"' in str(refusal(tmp_path))


def test_a_broken_link_does_not_exist(tmp_path: Path) -> None:
    (tmp_path / "x.meta").symlink_to("nowhere")
    assert "does not exist" in str(refusal(tmp_path / "x.meta"))
    assert isinstance(refusal(tmp_path / "x.meta"), FileNotFoundError)


def test_a_saved_model_in_chunks_is_not_supported(tmp_path: Path) -> None:
    (tmp_path / "saved_model.cpb").touch()
    assert isinstance(refusal(tmp_path), tfckpt.UnimplementedError)


def test_a_git_lfs_pointer_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "x.meta"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    error = refusal(path)
    assert isinstance(error, OSError)
    assert "Cannot parse file" in str(error) and "Run `git lfs pull`" in str(error)


@pytest.mark.parametrize("named", ["m.index", "m.data-00000-of-00001", "old"])
def test_a_checkpoint_is_not_a_meta_graph(tmp_path: Path, golden: Path, named: str) -> None:
    """The error names the missing meta graph."""
    (tmp_path / "old").write_bytes((golden / "digits-v1" / "checkpoint-288").read_bytes())
    for suffix in ("index", "data-00000-of-00001"):
        (tmp_path / f"m.{suffix}").touch()
    error = refusal(tmp_path / named)
    assert isinstance(error, UnreadableMetaGraphError)
    assert f"Cannot parse file {tmp_path / named}: this is a checkpoint" in str(error)
    assert f'Copy its meta graph "{tmp_path / named.split(".")[0]}.meta" to' in str(error)


@pytest.mark.parametrize("form", ["binary", "text"])
def test_a_graph_def_is_recognised(tmp_path: Path, form: str) -> None:
    """Frozen graphs have the same extension."""
    path = tmp_path / "frozen.pb"
    graph = meta_graph().graph_def
    path.write_bytes(graph.SerializeToString() if form == "binary" else str(graph).encode())
    assert "it is a GraphDef, such as a frozen graph" in str(refusal(path))


@pytest.mark.parametrize(
    ("content", "finding"),
    [
        (b"\x00" * 100, "invalid field number 0"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "as a binary message"),
        (binary()[:-1], "ends at byte"),
        (b"\x0a\x03\x12\x01\xff", "invalid MetaInfoDef"),
        (b"graph_def { node { name: 'a' }", "as text: "),
        (b"graph_def { node { name: '\xff' } }", "line 1 is not UTF-8"),
        (b"graph_def { nodes { } }", 'no field named "nodes"'),
        (b"saved_model_schema_version: 1 meta_graphs { x: 1 }", 'no field named "x"'),
        (b"graph_def { node { attr { key: 'T' value { type: DT_NEW } } } }", "has no value named DT_NEW"),
        (b"collection_def { key: 'a' value { any_list { value { [type.googleapis.com/x.Y] { } } } } }", "x.Y"),
        (saved_model().SerializeToString(), "a SavedModel without a meta graph"),
        (b"meta_info_def { tags: " + b"x" * 100_000, "as text: "),
    ],
    ids=[
        "zeros", "HDF5", "cut off", "broken part", "open text", "no UTF-8", "unknown field", "SavedModel text",
        "unknown enum value", "unknown Any", "SavedModel of nothing", "long line",
    ],
)  # fmt: skip
def test_the_error_for_an_unparsable_file(tmp_path: Path, content: bytes, finding: str) -> None:
    path = tmp_path / "x.meta"
    path.write_bytes(content)
    error = refusal(path)
    assert isinstance(error, UnreadableMetaGraphError)
    assert str(error).startswith(f"Cannot parse file {path}: ")
    assert finding in str(error)
    assert len(str(error)) < 1000 and str(error).isprintable()


def test_a_file_larger_than_any_message_is_not_read(tmp_path: Path) -> None:
    """2 GiB is more than protobuf accepts; a sparse file of a terabyte fails immediately."""
    path = tmp_path / "x.meta"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert "1099511627776 bytes are too many for a meta graph, which has at most 2147483647" in str(refusal(path))


# Messages.


def test_messages_and_bytes_are_meta_graphs() -> None:
    """Our class, another library's of that name, and serialised ones; with unknown fields."""
    content = binary() + sized_tag(99, 3) + b"new"
    for source in (MetaGraphDef.FromString(content), content, bytearray(content), memoryview(content)):
        assert bytes(meta_graph_of(source).raw) == content


def test_bytes_are_copied() -> None:
    buffer = bytearray(binary())
    found = meta_graph_of(buffer)
    buffer[:] = b"\xff" * len(buffer)
    assert bytes(found.raw) == binary()


@pytest.mark.parametrize(
    ("source", "finding"),
    [
        (saved_model(()), "expected a MetaGraphDef, got SavedModel. Pass one of its meta_graphs"),
        (meta_graph().graph_def, "expected a MetaGraphDef, got GraphDef"),
        ("model.meta", "expected a MetaGraphDef or its bytes, got str"),
    ],
    ids=["SavedModel", "GraphDef", "path"],
)
def test_other_types_are_rejected(source: object, finding: str) -> None:
    with pytest.raises(tfckpt.InvalidArgumentError, match=finding):
        meta_graph_of(source)  # type: ignore[arg-type]


def test_bytes_of_something_else_are_an_error() -> None:
    with pytest.raises(tfckpt.DataLossError, match="MetaGraphDef: message, byte 0"):
        meta_graph_of(b"\x00")


# Memory.

OPEN = """
found = open_meta_graph(sys.argv[1])
assert len(found.graph.nodes) == 1002
assert found.graph.op_counts()["Const"] == 2
"""


@needs_proc
@pytest.mark.parametrize("size", [100_000_000, pytest.param(1_500_000_000, marks=pytest.mark.heavy)])
def test_a_large_meta_graph_takes_its_size_in_memory(tmp_path: Path, size: int) -> None:
    """Nearly all of it in two constants: opening and walking it takes little more than the file's size in memory."""
    write_large(tmp_path / "large.meta", size)
    imports = "from torch_tfckpt.meta_graph.files import open_meta_graph"
    assert peak_memory(imports, OPEN, str(tmp_path / "large.meta"), timeout=300) < size * 1.1


def write_large(path: Path, size: int) -> None:
    """Write 1000 nodes between two constants of `size` / 2 zeros, which are holes in the file."""
    many = b"".join(
        sized_tag(1, len(node)) + node
        for node in (NodeDef(name=f"node{index}", op="Identity").SerializeToString() for index in range(1000))
    )
    first, last = (_constant_before_its_zeros(name, size // 2) for name in ("first", "last"))
    with path.open("wb") as file:
        file.write(sized_tag(2, len(first) + size // 2 + len(many) + len(last) + size // 2))
        file.write(first)
        file.seek(size // 2, os.SEEK_CUR)
        file.write(many + last)
        file.truncate(file.tell() + size // 2)


def _constant_before_its_zeros(name: str, size: int) -> bytes:
    content = sized_tag(4, size)  # tensor_content
    for number in (8, 2):  # tensor, value
        content = sized_tag(number, len(content) + size) + content
    attr = sized_tag(1, 5) + b"value" + content
    node = NodeDef(name=name, op="Const").SerializeToString() + sized_tag(5, len(attr) + size) + attr
    return sized_tag(1, len(node) + size) + node
