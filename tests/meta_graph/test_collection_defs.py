"""Collections as messages: what each kind accepts and rejects. CASES 62 and 63 are in test_meta_graph_cases.py."""

import logging
from collections.abc import Hashable, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message

from torch_tfckpt._proto.meta_graph_pb2 import CollectionDef
from torch_tfckpt._proto.queue_runner_pb2 import QueueRunnerDef
from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt._proto.variable_pb2 import VariableDef
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.meta_graph.collection_defs import (
    PROTO_COLLECTIONS,
    VARIABLE_COLLECTIONS,
    NodeName,
    decode_collection,
    encode_collection,
    encode_collections,
)
from torch_tfckpt.meta_graph.model import GraphVariable

NODES = {"a/w", "b"}
FIRST, SECOND = Any(type_url="x/y", value=b"a"), Any()


def is_message(value: object) -> Message | None:
    return value if isinstance(value, Message) else None


def encoded(*values: object, key: Hashable = "c") -> CollectionDef | None:
    """Return the encoded collection; None if it is not written."""
    return encode_collections({key: values}, is_message, NODES.__contains__).get(key)  # type: ignore[call-overload,no-any-return]


# Kinds.


@pytest.mark.parametrize(
    ("values", "kind", "found"),
    [
        ([3, -(1 << 63), (1 << 63) - 1], "int64_list", [3, -(1 << 63), (1 << 63) - 1]),
        ([3.5, 2, -1.0], "float_list", [3.5, 2.0, -1.0]),
        ([np.float64(0.5), float("inf")], "float_list", [0.5, float("inf")]),
        (["text", b"\xff", "\u00e9", ""], "bytes_list", [b"text", b"\xff", b"\xc3\xa9", b""]),
        ([FIRST, SECOND], "any_list", [FIRST, SECOND]),
        ([NodeName("a/w:0"), NodeName("^b"), NodeName("b")], "node_list", ["a/w:0", "^b", "b"]),
        ([SimpleNamespace(name="b:1")], "node_list", ["b:1"]),
        ([GraphVariable("a/w", DataType.DT_FLOAT, (2,))], "node_list", ["a/w:0"]),
    ],
)
def test_the_first_value_decides(values: Sequence[object], kind: str, found: Sequence[object]) -> None:
    """The first value decides the kind of the list."""
    made = encode_collection("c", values, is_message, NODES.__contains__)
    assert made.WhichOneof("kind") == kind and list(getattr(made, kind).value) == found
    assert encoded(*values) == made


@pytest.mark.parametrize(
    "values",
    [
        (3, 3.5),
        (3, "a"),
        (3, True),
        (True,),
        (3.5, False),
        (3.5, "a"),
        (3.5, 10**400),
        (1 << 63,),
        ("a", 3),
        (b"a", None),
        ("a\udcff",),
        (FIRST, VariableDef()),
        (FIRST, 3),
        (None,),
        (Ellipsis,),
        (VariableDef(),),
        (torch.ones(1),),
        (np.int64(3),),
        (SimpleNamespace(name=3),),
        (NodeName("b"), 3),
    ],
    ids=ascii,
)
def test_values_of_mixed_or_unsupported_kinds(values: Sequence[object], caplog: pytest.LogCaptureFixture) -> None:
    """The whole collection is left out with a warning; `encode_collection` raises."""
    with caplog.at_level(logging.WARNING):
        assert encoded(*values) is None
    assert [record.getMessage()[:30] for record in caplog.records] == ['collection "c" is not written:']
    with pytest.raises((TypeError, ValueError, OverflowError)):
        encode_collection("c", values, is_message, NODES.__contains__)


def test_a_value_whose_name_raises(caplog: pytest.LogCaptureFixture) -> None:
    """Any exception affects only its collection."""

    class Unnamed:
        @property
        def name(self) -> str:
            raise RuntimeError("ask later")

    with caplog.at_level(logging.WARNING):
        found = encode_collections({"c": [Unnamed()], "d": [1]}, is_message, NODES.__contains__)
    assert list(found) == ["d"] and len(caplog.records) == 1


@pytest.mark.parametrize("name", [5, None, b"c", ("c",), "\udcff"], ids=ascii)
def test_names_of_collections(name: Hashable, caplog: pytest.LogCaptureFixture) -> None:
    """A name that is not a str is logged, and the collection is not written."""
    with caplog.at_level(logging.WARNING):
        assert encode_collections({name: [1]}, is_message, NODES.__contains__) == {}
    assert len(caplog.records) == 1


def test_empty_collections() -> None:
    """They are not written."""
    assert encode_collections({"c": [], "variables": []}, is_message, NODES.__contains__) == {}


def test_nodes_that_do_not_exist(caplog: pytest.LogCaptureFixture) -> None:
    """They are left out, and so is a collection without any other: TensorFlow would not import the graph."""
    with caplog.at_level(logging.WARNING):
        found = encoded(NodeName("absent:0"), NodeName("^absent"), NodeName("b"))
        assert found is not None and list(found.node_list.value) == ["b"]
        assert encoded(NodeName("absent")) is None
    assert ["is not a node of the graph" in record.getMessage() for record in caplog.records] == [True] * 3


@pytest.mark.parametrize("key", PROTO_COLLECTIONS)
def test_collections_of_messages(key: str) -> None:
    """The messages are encoded; a value without one is left out, and the list may be empty."""
    message = PROTO_COLLECTIONS[key]()
    found = encoded(message, 3, "text", key=key)
    assert found is not None and list(found.bytes_list.value) == [message.SerializeToString()]
    nothing = encoded(3, key=key)
    assert nothing is not None and nothing.WhichOneof("kind") == "bytes_list" and not nothing.bytes_list.value


def test_names_of_collections_of_messages() -> None:
    """They are those that TensorFlow registers."""
    assert {PROTO_COLLECTIONS[key] for key in VARIABLE_COLLECTIONS} == {VariableDef}
    others = {key: kind.DESCRIPTOR.name for key, kind in PROTO_COLLECTIONS.items() if key not in VARIABLE_COLLECTIONS}
    assert others == {
        "savers": "SaverDef",
        "queue_runners": "QueueRunnerDef",
        "cond_context": "CondContextDef",
        "while_context": "WhileContextDef",
    }


# Decoding.


@pytest.mark.parametrize("scope", [None, ""])
@pytest.mark.parametrize(
    "values",
    [[3, -1], [0.5], [b"a", b"\xff"], [FIRST], [NodeName("b"), NodeName("a/w:0")]],
    ids=["int", "float", "bytes", "any", "node"],
)
def test_round_trip(values: list[object], scope: str | None) -> None:
    """Without a scope a collection has the same values, and encodes to the same message."""
    made = encoded(*values)
    assert made is not None
    found = decode_collection("c", made, scope)
    assert found == values and list(map(type, found)) == list(map(type, values))
    assert encoded(*found) == made


def test_values_in_a_scope() -> None:
    """Names and strings become str with the scope; numbers, and bytes that are not UTF-8, do not change."""
    texts = CollectionDef()
    texts.bytes_list.value.extend([b"hi", b"^a", b"\xff", b""])
    nodes = CollectionDef()
    nodes.node_list.value.extend(["b:0", "^a/w"])
    numbers = CollectionDef()
    numbers.int64_list.value.append(3)
    assert decode_collection("c", texts, "s") == ["s/hi", "^s/a", b"\xff", "s/"]
    found = decode_collection("c", nodes, "s/")
    assert found == ["s/b:0", "^s/a/w"] and {type(each) for each in found} == {NodeName}
    assert decode_collection("c", numbers, "s") == [3]


def test_messages_in_a_scope() -> None:
    """Their names get the scope."""
    made = CollectionDef()
    runner = QueueRunnerDef(queue_name="q", enqueue_op_name=["e"])
    made.bytes_list.value.append(runner.SerializeToString())
    assert decode_collection("queue_runners", made, None) == [runner]
    assert decode_collection("queue_runners", made, "s") == [QueueRunnerDef(queue_name="s/q", enqueue_op_name=["s/e"])]
    assert decode_collection("other", made, None) == [runner.SerializeToString()]


@pytest.mark.parametrize("scope", [None, "s"])
def test_bytes_that_are_not_the_message(scope: str | None, caplog: pytest.LogCaptureFixture) -> None:
    """They stay bytes, and the warning names the collection."""
    made = CollectionDef()
    made.bytes_list.value.extend([b"\xff", SaverDef(restore_op_name="r").SerializeToString()])
    with caplog.at_level(logging.WARNING):
        first, second = decode_collection("savers", made, scope)
    assert first == b"\xff" and second == SaverDef(restore_op_name="s/r" if scope else "r")
    [record] = caplog.records
    assert record.getMessage().startswith('collection "savers" contains an invalid SaverDef: ')


def test_a_collection_of_unknown_kind(caplog: pytest.LogCaptureFixture) -> None:
    """It is read as empty, with a warning."""
    with caplog.at_level(logging.WARNING):
        assert decode_collection("c", CollectionDef(), None) == []
    assert [record.getMessage()[:14] for record in caplog.records] == ['collection "c"']


def test_a_node_name_is_a_str() -> None:
    """It also has a name."""
    name = NodeName("a:0")
    assert name == "a:0" and name.name == "a:0" and type(name.name) is str
