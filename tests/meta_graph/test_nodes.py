"""Nodes as bytes: the same as protobuf writes, with unique names."""

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
    colocated_with,
    number_value,
    shape_list,
    shape_value,
    string_value,
    type_list,
    type_value,
)


def test_a_taken_name_gets_the_next_number() -> None:
    """As in TensorFlow, even if the name with the number is taken itself."""
    graph = Nodes(["a", "b_1"])
    assert [graph.unique("a") for _ in range(3)] == ["a_1", "a_2", "a_3"]
    assert [graph.unique("b") for _ in range(3)] == ["b", "b_2", "b_3"]
    assert graph.unique("a_1") == "a_1_1"
    assert graph.unique("A") == "A"


def test_a_graph_is_what_protobuf_writes() -> None:
    """The bytes are those of deterministic serialization."""
    graph = Nodes([])
    graph.add(
        "n" * 2000,
        "VarHandleOp",
        (),
        "/device:GPU:1",
        attributes(b=TRUE, B=number_value(-1), _c=colocated_with("x"), Bc=TRUE),
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
        (string_value("loc"), 's: "loc"'),
        (string_value(""), 's: ""'),
        (shape_value((2, -1)), "shape { dim { size: 2 } dim { size: -1 } }"),
        (shape_value(()), "shape { }"),
        (shape_list(None, (0,)), "list { shape { unknown_rank: true } shape { dim { } } }"),
    ],
)
def test_values_of_attributes(encoded: bytes, text: str) -> None:
    """Each kind, compared in the text format."""
    assert " ".join(str(AttrValue.FromString(encoded)).split()).replace("size: 0 ", "") == text


def test_a_graph_that_protobuf_rejects_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """With TensorFlow's words and a hint."""
    monkeypatch.setattr(nodes, "MAX_MESSAGE", 101)
    graph = Nodes([])
    graph.add("a", "NoOp")
    assert len(graph.encoded_graph()) <= 100
    graph.add("b" * 100, "NoOp")
    with pytest.raises(InvalidArgumentError) as error:
        graph.encoded_graph()
    assert str(error.value) == (
        "GraphDef cannot be larger than 2GB, but 2 nodes take 126 bytes. Save without a meta graph "
        "(write_meta_graph=False), or with several savers"
    )
