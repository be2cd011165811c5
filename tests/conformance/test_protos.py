"""Our messages compared with TensorFlow's: the same names, numbers and types, and the same text form."""

from collections.abc import Iterable
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_process import TensorFlowProcess

import torch_tfckpt as tfckpt
from torch_tfckpt._proto import (
    checkpoint_state_pb2,
    control_flow_pb2,
    queue_runner_pb2,
    saved_model_pb2,
    saved_tensor_slice_pb2,
    tensor_bundle_pb2,
    trackable_object_graph_pb2,
)
from torch_tfckpt._proto.meta_graph_pb2 import MetaGraphDef
from torch_tfckpt._proto.types_pb2 import DT_FLOAT
from torch_tfckpt.meta_graph.files import meta_graph_of, meta_graphs_in, open_meta_graph
from torch_tfckpt.meta_graph.text import to_text

OURS = (
    checkpoint_state_pb2, control_flow_pb2, queue_runner_pb2, saved_model_pb2, saved_tensor_slice_pb2,
    tensor_bundle_pb2, trackable_object_graph_pb2,
)  # fmt: skip
SCOPES = (".tensorflow.error.", ".tensorflow.", ".torch_tfckpt.")  # packages of all compared messages


# Descriptors.


def our_files() -> list[FileDescriptorProto]:
    waiting, found = [module.DESCRIPTOR for module in OURS], {}
    while waiting:
        file = waiting.pop()
        found[file.name] = file.serialized_pb
        waiting += file.dependencies
    return [FileDescriptorProto.FromString(each) for each in found.values()]


def shapes(files: Iterable[FileDescriptorProto]) -> dict[str, dict[str, str]]:
    """Message or enum -> field or value -> everything that the wire and JSON depend on, names without packages."""
    found: dict[str, dict[str, str]] = {}
    for file in files:
        scope = f".{file.package}."
        if scope not in SCOPES:
            continue  # protobuf's own
        messages = [(message.name, message) for message in file.message_type]
        enums = [(enum.name, enum) for enum in file.enum_type]
        while messages:
            name, message = messages.pop()
            messages += [(f"{name}.{nested.name}", nested) for nested in message.nested_type]
            enums += [(f"{name}.{nested.name}", nested) for nested in message.enum_type]
            assert name not in found
            found[name] = _fields(message, file.syntax)
        found |= {name: _values(enum) for name, enum in enums}
    return found


def _fields(message: DescriptorProto, syntax: str) -> dict[str, str]:
    shape = {field.name: _field(message, field) for field in message.field}
    options = f"syntax {syntax}{', map entry' if message.options.map_entry else ''}"
    return shape | {"": options}


def _field(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    type_name = field.type_name
    for scope in SCOPES:
        type_name = type_name.removeprefix(scope)
    # In proto3, numbers are packed by default.
    packed = field.options.packed if field.options.HasField("packed") else True
    together = [
        other.name
        for other in message.field
        if field.HasField("oneof_index") and other.HasField("oneof_index") and other.oneof_index == field.oneof_index
    ]
    return (
        f"{field.number} type {field.type} {type_name} label {field.label} packed {packed} one of {together} "
        f"json {field.json_name} default {field.default_value} optional {field.proto3_optional}"
    )


def _values(enum: EnumDescriptorProto) -> dict[str, str]:
    return {value.name: str(value.number) for value in enum.value}


def test_messages_and_enums_are_those_of_tensorflow(tensorflow: TensorFlowProcess) -> None:
    """Every message, field, number, type, label, oneof and enum value of the files for meta graphs, SavedModels and
    checkpoints: neither side has one that the other lacks."""
    theirs = shapes(
        FileDescriptorProto.FromString(each) for each in tensorflow.call("tensorflow_protos.file_descriptors")
    )
    ours = shapes(our_files())
    assert ours.keys() == theirs.keys()
    assert {name: ours[name] for name in ours if ours[name] != theirs[name]} == {
        name: theirs[name] for name in ours if ours[name] != theirs[name]
    }
    assert {"MetaGraphDef.MetaInfoDef", "SavedObjectGraph", "DataType", "AttrValue.ListValue"} <= ours.keys()


# Text.


def test_text_is_byte_identical_to_tensorflow(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """CASES 66: graphs with partitions, control flow, queues, functions and all kinds of collections, with known and
    unknown Any: `to_text` of the binary file is TensorFlow's text file, and that file opens as the same graph."""
    for name in tensorflow.call("tensorflow_protos.write_meta_graphs", str(tmp_path)):
        binary, text = (open_meta_graph(tmp_path / f"{name}.{suffix}") for suffix in ("meta", "txt"))
        assert to_text(binary) == (tmp_path / f"{name}.txt").read_text()
        assert text.message() == binary.message()


def test_text_of_real_meta_graphs_is_tensorflows(tensorflow: TensorFlowProcess, golden: Path) -> None:
    """Every meta graph in tests/golden, of TensorFlow 0.x to 2.x."""
    paths = sorted(path for name in ("*.meta", "saved_model.pb") for path in golden.rglob(name))
    found = [each for path in paths for each in meta_graphs_in(path)]
    assert len(found) > 10
    texts = tensorflow.call("tensorflow_protos.texts_of", [bytes(each.raw) for each in found])
    for each, text in zip(found, texts, strict=True):
        assert to_text(each) == text, each.place


def test_a_saved_model_as_text(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """saved_model.pbtxt as TensorFlow writes it, opened by its directory, and chosen by tags."""
    tags = tensorflow.call("tensorflow_protos.write_saved_model_text", str(tmp_path / "m"))
    assert [tuple(each.info.tags) for each in meta_graphs_in(tmp_path / "m")] == tags
    assert open_meta_graph(tmp_path / "m", "train").graph.nodes.keys() >= {"x"}


# Parsing.

MESSAGE = MetaGraphDef()
MESSAGE.meta_info_def.tags.append("serve")
MESSAGE.graph_def.node.add(name="a", op="Const").attr["dtype"].type = DT_FLOAT
MESSAGE.saver_def.max_to_keep = 5
MESSAGE.collection_def["c"].int64_list.value.append(7)
TEXT = to_text(meta_graph_of(MESSAGE)).encode()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A small meta graph as text or binary, with one or two changes."""
    content = bytearray(draw(st.sampled_from((TEXT, MESSAGE.SerializeToString()))))
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, len(content)))
        content[at : at + draw(st.integers(0, 3))] = draw(
            st.binary(max_size=2) | st.sampled_from((b"{", b"}", b"1", b'"'))
        )
    return bytes(content)


def test_parsing_of_damaged_files_agrees_with_tensorflow(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """Damaged text and binary: we accept and reject the same files as TensorFlow. Damage inside the graph is reported
    when the graph is accessed."""
    contents: list[bytes] = [
        b"",
        b"\n",
        b"# nothing\n",
        b"saver_def { max_to_keep: 3 }",
        b"max_to_keep: 3",
        b"node { }",
    ]

    @settings(max_examples=150, database=None)
    @given(damaged())
    def collect(content: bytes) -> None:
        contents.append(content)

    collect()
    paths = [tmp_path / f"{number}.meta" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    theirs = tensorflow.call("tensorflow_protos.read_meta_graphs", list(map(str, paths)))
    for path, expected in zip(paths, theirs, strict=True):
        try:
            ours = open_meta_graph(path).message().SerializeToString(deterministic=True)
        except tfckpt.DataLossError as error:
            assert isinstance(expected, str), f"{path.read_bytes()!r}: {error}"
        else:
            assert isinstance(expected, bytes), path.read_bytes()
            # TensorFlow merges text into what it has already parsed of the file as a binary message.
            assert ours == expected or not _is_message(path.read_bytes())


def _is_message(content: bytes) -> bool:
    try:
        MetaGraphDef.FromString(content)
    except DecodeError:
        return False
    return True


@pytest.mark.parametrize("content", [b"max_to_keep: 3\n", b"\xff\xfe"])
def test_other_files_are_rejected_by_both(tensorflow: TensorFlowProcess, tmp_path: Path, content: bytes) -> None:
    """CASES 66: the text of a SaverDef is not a meta graph: an IOError in TensorFlow, and here."""
    path = tmp_path / "x.meta"
    path.write_bytes(content)
    (theirs,) = tensorflow.call("tensorflow_protos.read_meta_graphs", [str(path)])
    assert theirs in ("OSError", "UnicodeDecodeError")
    with pytest.raises(OSError, match="Cannot parse file"):
        open_meta_graph(path)
