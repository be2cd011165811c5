"""The text form of meta graphs: what is written, and that reading it gives the same message again.

tests/conformance/test_protos.py compares the text with TensorFlow's.
"""

import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.wrappers_pb2 import Int64Value
from hypothesis import given, settings
from hypothesis import strategies as st

import torch_tfckpt as tfckpt
from torch_tfckpt._proto.meta_graph_pb2 import MetaGraphDef
from torch_tfckpt.format.wire import sized_tag
from torch_tfckpt.meta_graph.files import meta_graph_of, meta_graphs_in
from torch_tfckpt.meta_graph.text import META_GRAPH, encode_text, to_text


def test_the_text_of_a_meta_graph() -> None:
    """One field per line; maps sorted by key; the contents of an Any under TensorFlow's name of the message."""
    message = MetaGraphDef()
    message.collection_def["b"].int64_list.value.append(1)
    saver = sized_tag(1, 1) + b"x"
    message.collection_def["a"].any_list.value.add(type_url="type.googleapis.com/tensorflow.SaverDef", value=saver)
    assert to_text(meta_graph_of(message)) == (
        'collection_def {\n  key: "a"\n  value {\n    any_list {\n      value {\n'
        '        [type.googleapis.com/tensorflow.SaverDef] {\n          filename_tensor_name: "x"\n        }\n      }\n'
        '    }\n  }\n}\ncollection_def {\n  key: "b"\n  value {\n    int64_list {\n      value: 1\n    }\n  }\n}\n'
    )


def test_an_unknown_any_stays_bytes() -> None:
    """An Any of an unknown message, or without a type, is unchanged by a round trip."""
    message = MetaGraphDef()
    for any_of in (Any(type_url="a.b/c.D", value=b"\xff"), Any(value=b"\x00"), Any(type_url="no slash")):
        message.collection_def["a"].any_list.value.append(any_of)
    message.collection_def["a"].any_list.value.add().Pack(Int64Value(value=5))
    text = to_text(meta_graph_of(message))
    assert 'type_url: "a.b/c.D"' in text and "[type.googleapis.com/google.protobuf.Int64Value]" in text
    assert MetaGraphDef.FromString(encode_text(text.encode(), META_GRAPH)) == message


def test_real_meta_graphs_survive_a_round_trip(golden: Path) -> None:
    """Of TensorFlow 0.x to 2.x: printing and parsing gives the same message."""
    paths = sorted(path for name in ("*.meta", "saved_model.pb") for path in golden.rglob(name))
    for each in (each for path in paths for each in meta_graphs_in(path) if len(each.raw) < 100_000):
        again = MetaGraphDef.FromString(encode_text(to_text(each).encode(), META_GRAPH))
        if again != each.message():  # the contents of an Any may be encoded in another order
            assert to_text(meta_graph_of(again)) == to_text(each)


@settings(max_examples=60)
@given(
    names=st.lists(st.text(st.characters(exclude_categories=["Cs"]))),
    values=st.lists(st.binary()),
    floats=st.lists(st.floats(width=32, allow_nan=False)),
    numbers=st.lists(st.integers(-(2**63), 2**63 - 1)),
)
def test_any_value_survives_a_round_trip(
    names: list[str], values: list[bytes], floats: list[float], numbers: list[int]
) -> None:
    """Strings of any characters, bytes, floats to the last bit, integers."""
    message = MetaGraphDef()
    message.meta_info_def.tags.extend(names)
    message.collection_def["".join(names)].bytes_list.value.extend(values)
    message.collection_def["floats"].float_list.value.extend(floats)
    message.collection_def["numbers"].int64_list.value.extend(numbers)
    text = to_text(meta_graph_of(message)).encode()
    assert encode_text(text, META_GRAPH) == message.SerializeToString(deterministic=True)


def test_unknown_fields_are_rejected() -> None:
    """Text cannot represent them, neither in the message nor inside an Any."""
    message = MetaGraphDef()
    unknown = sized_tag(99, 3) + b"new"
    message.graph_def.node.add(name="a").MergeFromString(unknown)
    with pytest.raises(tfckpt.UnimplementedError, match="MetaGraphDef: NodeDef has an unknown field 99, which text"):
        to_text(meta_graph_of(message))
    message.Clear()
    message.meta_info_def.any_info.CopyFrom(Any(type_url="x/tensorflow.SaverDef", value=unknown))
    with pytest.raises(tfckpt.UnimplementedError, match="MetaGraphDef: SaverDef has an unknown field 99"):
        to_text(meta_graph_of(message))
    with pytest.raises(tfckpt.UnimplementedError, match="MetaGraphDef: MetaGraphDef has an unknown field 99"):
        to_text(meta_graph_of(unknown))


def test_a_damaged_any_is_an_error() -> None:
    message = MetaGraphDef()
    message.meta_info_def.any_info.CopyFrom(Any(type_url="x/tensorflow.SaverDef", value=b"\xff"))
    with pytest.raises(tfckpt.DataLossError, match="MetaGraphDef: a part of the meta graph is invalid"):
        to_text(meta_graph_of(message))


def test_deeply_nested_messages_are_an_error() -> None:
    """An Any in an Any and so on: neither direction overflows the stack."""
    nested = Any()
    for _ in range(2000):
        nested = Any(type_url="x/google.protobuf.Any", value=nested.SerializeToString())
    message = MetaGraphDef()
    message.meta_info_def.any_info.CopyFrom(nested)
    with pytest.raises(tfckpt.DataLossError, match="too deeply nested"):
        to_text(meta_graph_of(message))
    deep = "graph_def { node { attr { value { func { " + "attr { value { func { " * 9000
    with pytest.raises(tfckpt.DataLossError, match="too deeply nested"):
        encode_text(deep.encode() + b"}" * deep.count("{"), META_GRAPH)


@pytest.mark.parametrize(
    "text",
    [
        "collection_def { value { int64_list { value: 9223372036854775808 } } }",
        "saver_def { max_to_keep: -99999999999999999999 }",
        "graph_def { node { attr { value { type: 4294967296 } } } }",
        f"saver_def {{ max_to_keep: {'9' * 5000} }}",
    ],
    ids=["int64", "int32", "enum", "more digits than Python reads"],
)
def test_numbers_that_do_not_fit_are_an_error(text: str) -> None:
    with pytest.raises(tfckpt.DataLossError):
        encode_text(text.encode(), META_GRAPH)


LONG = {
    " " * 100_000 + "''": b"",
    "\t\r" * 50_000 + "''": b"",
    "'" + "x" * 100_000 + "'": b"x" * 100_000,
    '"' + "\\377\\n\\x41\\0" * 10_000 + '"': b"\xff\nA\0" * 10_000,
    "'größer' " * 10_000: "größer".encode() * 10_000,
    "'\\'\\\"#' '' # '\"" + "#" * 70_000: b"'\"#",
}


@pytest.mark.parametrize(("value", "expected"), LONG.items(), ids=range(len(LONG)))
def test_long_lines_are_read_like_short_ones(value: str, expected: bytes) -> None:
    """They are split while reading, and the value does not change."""
    text = f"collection_def {{ key: 'a' value {{ bytes_list {{ value: 'b' value: {value}\n}} }} }}"
    message = MetaGraphDef.FromString(encode_text(text.encode(), META_GRAPH))
    assert list(message.collection_def["a"].bytes_list.value) == [b"b", expected]


@pytest.mark.parametrize("text", ['value: "abc', "value: 'abc\"", 'value: "\\"\\"', "value: 'a\\"])
def test_a_long_line_with_an_open_string_is_an_error(text: str) -> None:
    """An unterminated string is not terminated by splitting the line."""
    line = "#" * 10 + "\n" + " " * 70_000 + "collection_def { value { bytes_list { " + text
    with pytest.raises(tfckpt.DataLossError, match="2:"):
        encode_text(line.encode(), META_GRAPH)
    with pytest.raises(tfckpt.DataLossError):
        encode_text(f"collection_def {{ value {{ bytes_list {{ {text}{'x' * 70_000}\n}} }} }}".encode(), META_GRAPH)


def test_a_long_string_takes_a_few_times_its_size() -> None:
    """Weights in text form are one line; protobuf's own reader takes a hundred bytes for each escape."""
    weights = bytes(1_000_000)
    message = MetaGraphDef()
    message.graph_def.node.add(name="a").attr["value"].tensor.tensor_content = weights
    text = to_text(meta_graph_of(message)).encode()
    tracemalloc.start()
    try:
        again = encode_text(text, META_GRAPH)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert again == message.SerializeToString()
    assert peak < 6 * len(text)


def test_the_default_pool_is_left_to_tensorflow() -> None:
    """TensorFlow adds its messages to it when it is imported, and fails if another library has already done so."""
    program = (
        "from google.protobuf.descriptor_pool import Default\n"
        "from torch_tfckpt.meta_graph.files import meta_graph_of\n"
        "from torch_tfckpt.meta_graph.text import to_text\n"
        "to_text(meta_graph_of(b''))\n"
        "try: Default().FindMessageTypeByName('tensorflow.MetaGraphDef')\n"
        "except KeyError: print('not there')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("not there\n", "")
