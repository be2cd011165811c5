"""Nodes as bytes: those that protobuf writes, under names of which each is there once."""

import pytest

from torch_tfckpt._proto.attr_value_pb2 import AttrValue
from torch_tfckpt._proto.graph_pb2 import GraphDef
from torch_tfckpt._proto.node_def_pb2 import NodeDef
from torch_tfckpt._proto.versions_pb2 import VersionDef
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.meta_graph import nodes
from torch_tfckpt.meta_graph.nodes import (
    TRUE,
    Nodes,
    attributes,
    beside,
    number_value,
    shape_list,
    shape_value,
    text_value,
    type_list,
    type_value,
)


def test_a_name_that_is_taken_gets_the_next_number() -> None:
    """As in TensorFlow: also where the name with the number is taken itself."""
    graph = Nodes(["a", "b_1"])
    assert [graph.unique("a") for _ in range(3)] == ["a_1", "a_2", "a_3"]
    assert [graph.unique("b") for _ in range(3)] == ["b", "b_2", "b_3"]
    assert graph.unique("a_1") == "a_1_1"
    assert graph.unique("A") == "A"


def test_a_graph_is_what_protobuf_writes() -> None:
    """The bytes are those of the message, written so that equal messages have equal bytes."""
    graph = Nodes([])
    graph.add(
        "n" * 2000, "VarHandleOp", (), "/device:GPU:1", attributes(b=TRUE, B=number_value(-1), _c=beside("x"), Bc=TRUE)
    )
    graph.add("y", "Op", ("x:1", "x"), after=["x_2", "x_10"])
    expected = GraphDef(
        node=[
            NodeDef(
                name="n" * 2000,
                op="VarHandleOp",
                device="/device:GPU:1",
                attr={
                    "b": AttrValue(b=True),
                    "B": AttrValue(i=-1),
                    "Bc": AttrValue(b=True),
                    "_c": AttrValue(list=AttrValue.ListValue(s=[b"loc:@x"])),
                },
            ),
            NodeDef(name="y", op="Op", input=["x:1", "x", "^x_10", "^x_2"]),
        ],
        versions=VersionDef(producer=2474),
    )
    assert graph.encoded_graph() == expected.SerializeToString(deterministic=True)
    assert graph.ops == {"VarHandleOp", "Op"}


@pytest.mark.parametrize(
    ("encoded", "text"),
    [
        (type_value(DataType.DT_STRING), "type: DT_STRING"),
        (type_list([DataType.DT_FLOAT, DataType.DT_INT8]), "list { type: DT_FLOAT type: DT_INT8 }"),
        (text_value("loc"), 's: "loc"'),
        (text_value(""), 's: ""'),
        (shape_value((2, -1)), "shape { dim { size: 2 } dim { size: -1 } }"),
        (shape_value(()), "shape { }"),
        (shape_list(None, (0,)), "list { shape { unknown_rank: true } shape { dim { } } }"),
    ],
)
def test_values_of_attributes(encoded: bytes, text: str) -> None:
    """Each kind, in the words of the text format."""
    assert " ".join(str(AttrValue.FromString(encoded)).split()).replace("size: 0 ", "") == text


def test_a_graph_that_no_protobuf_library_takes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorFlow's words, and what to do."""
    monkeypatch.setattr(nodes, "MAX_MESSAGE", 101)
    graph = Nodes([])
    graph.add("a", "NoOp")
    assert len(graph.encoded_graph()) <= 100
    graph.add("b" * 100, "NoOp")
    with pytest.raises(InvalidArgumentError) as error:
        graph.encoded_graph()
    assert str(error.value) == (
        "GraphDef cannot be larger than 2GB, and 2 nodes take 126 bytes. Write no meta graph (write_meta_graph=False), "
        "or save with several savers"
    )
