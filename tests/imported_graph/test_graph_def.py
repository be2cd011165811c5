"""import_graph_def: frozen graphs and other GraphDef files are imported, and everything else is refused with a hint."""

from pathlib import Path

import pytest
import torch
from google.protobuf import text_format
from tensorflow_process import TensorFlowProcess

import torch_tfckpt as tfckpt
from torch_tfckpt import DataLossError, GraphDef, InvalidArgumentError, MetaGraphDef, NotFoundError, import_graph_def
from torch_tfckpt._proto.saved_model_pb2 import SavedModel
from torch_tfckpt._proto.types_pb2 import DT_FLOAT


def frozen() -> GraphDef:
    """y = x * w, with w as a constant."""
    graph = GraphDef()
    graph.node.add(name="x", op="Placeholder", device="/gpu:0").attr["dtype"].type = DT_FLOAT
    w = graph.node.add(name="w", op="Const").attr["value"].tensor
    w.dtype = DT_FLOAT
    w.float_val.append(2.0)
    graph.node.add(name="y", op="Mul", input=["x", "w"])
    graph.versions.producer = 27
    return graph


def of_training() -> GraphDef:
    """The graph that a training program writes next to its checkpoints: it has a variable."""
    graph = frozen()
    kernel = graph.node.add(name="dense/kernel", op="VarHandleOp")
    kernel.attr["dtype"].type = DT_FLOAT
    kernel.attr["shape"].shape.dim.add(size=3)
    return graph


@pytest.mark.parametrize("name", ["frozen.pb", "frozen.pbtxt", "frozen"])
def test_a_file(tmp_path: Path, name: str) -> None:
    """The content decides whether it is binary or text. A frozen graph has no variables and no saver."""
    text = text_format.MessageToString(frozen()).encode()
    (tmp_path / name).write_bytes(text if name.endswith("txt") else frozen().SerializeToString())
    imported = import_graph_def(tmp_path / name)
    assert (imported.variables, imported.saver, imported.signatures) == ({}, None, {})
    assert imported.op_counts == {"Placeholder": 1, "Const": 1, "Mul": 1}
    assert imported.meta_graph_def == MetaGraphDef(graph_def=frozen())
    assert repr(imported) == f"ImportedMetaGraph({str(tmp_path / name)!r}, 0 variables)"


def test_a_message() -> None:
    """Devices can be cleared, and the graph exported again, in its scope."""
    imported = import_graph_def(frozen(), import_scope="imp", clear_devices=True)
    exported = imported.export_meta_graph().graph_def
    assert [(node.name, node.device) for node in exported.node] == [("imp/x", ""), ("imp/w", ""), ("imp/y", "")]
    assert import_graph_def(frozen()).export_meta_graph().graph_def.node[0].device == "/gpu:0"


def test_registered_variables_are_not_its_own() -> None:
    """import_meta_graph returns a saver of the program's variables for a graph without any; this function does not."""
    with tfckpt.Collections().as_default():
        tfckpt.add_to_collection("variables", tfckpt.Variable(torch.zeros(2), "w"))
        assert import_graph_def(frozen()).saver is None


def test_a_graph_with_variables(tmp_path: Path) -> None:
    """They are restored by the names of their nodes."""
    path = tfckpt.Saver({"dense/kernel": torch.tensor([1.0, 2, 3])}).save(tmp_path / "m")
    (tmp_path / "graph.pbtxt").write_text(text_format.MessageToString(of_training()))
    imported = import_graph_def(tmp_path / "graph.pbtxt")
    assert imported.saver is not None
    imported.saver.restore(path)
    assert imported.variables["dense/kernel"].tolist() == [1, 2, 3]
    with pytest.raises(tfckpt.FailedPreconditionError, match=r"\"dense/kernel\".*imported.saver.restore\(prefix\)"):
        import_graph_def(of_training())._bindings.require(["dense/kernel"])


def test_other_files(tmp_path: Path) -> None:
    """Each error says what the file is and what reads it."""
    meta = tfckpt.Saver({"w": torch.zeros(2)}).save(tmp_path / "m.ckpt")
    saved = SavedModel(saved_model_schema_version=1, meta_graphs=[tfckpt.import_meta_graph(meta).meta_graph_def])
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "saved_model.pb").write_bytes(saved.SerializeToString())
    (tmp_path / "model" / "saved_model.pbtxt").write_text(text_format.MessageToString(saved))
    (tmp_path / "pointer.pb").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n")
    (tmp_path / "empty.pb").touch()
    (tmp_path / "readme.txt").write_text("a text")
    (tmp_path / "only versions.pb").write_bytes(GraphDef(versions={"producer": 3}).SerializeToString())
    for name, finding in {
        "m.ckpt.meta": r"m\.ckpt\.meta is a meta graph .*, not a GraphDef\. Import it with import_meta_graph",
        "model/saved_model.pb": "the graph of a SavedModel .* Import it with import_meta_graph",
        "model/saved_model.pbtxt": "the graph of a SavedModel in text form .* Import it with import_meta_graph",
        "model": "model is a SavedModel, not a GraphDef. Import it with import_meta_graph",
        "m.ckpt.index": "the index of a TensorFlow checkpoint .*, not a GraphDef",
        "pointer.pb": "git lfs pull",
        "empty.pb": "an empty file, not a GraphDef. Copy it again",
        "readme.txt": "readme.txt is not a GraphDef: as text: .*; as a binary message: ",
        "only versions.pb": "the graph has no nodes",
        "": r"is a directory, not a GraphDef\. Pass one of its files: ",
    }.items():
        with pytest.raises(DataLossError, match=finding) as caught:
            import_graph_def(tmp_path / name)
        assert isinstance(caught.value, OSError), name


def test_a_missing_file(tmp_path: Path) -> None:
    """The error suggests a file with a similar name."""
    (tmp_path / "frozen.pb").write_bytes(frozen().SerializeToString())
    with pytest.raises(NotFoundError, match=r'does not exist\. Closest: "frozen\.pb"') as caught:
        import_graph_def(tmp_path / "frosen.pb")
    assert isinstance(caught.value, FileNotFoundError)


def test_other_messages() -> None:
    """A meta graph has its own function; any other message is named."""
    with pytest.raises(
        InvalidArgumentError, match=r"expected a GraphDef, got MetaGraphDef\. Import it with import_meta"
    ):
        import_graph_def(MetaGraphDef())
    with pytest.raises(InvalidArgumentError, match=r"expected a GraphDef, got SaverDef$"):
        import_graph_def(tfckpt.SaverDef())


def test_a_graph_def_as_a_meta_graph_or_checkpoint(tmp_path: Path) -> None:
    """The functions for meta graphs and for checkpoints say which function reads it."""
    (tmp_path / "frozen.pb").write_bytes(frozen().SerializeToString())
    (tmp_path / "frozen.pbtxt").write_text(text_format.MessageToString(frozen()))
    for name in ("frozen.pb", "frozen.pbtxt"):
        for read in (tfckpt.import_meta_graph, tfckpt.load_file, tfckpt.load_checkpoint):
            with pytest.raises(DataLossError, match=r"\bimport_graph_def\b"):
                read(tmp_path / name)
        with pytest.raises(DataLossError, match=r"\bimport_graph_def\b"):
            tfckpt.load_model(torch.nn.Linear(1, 1), tmp_path / name)


def test_a_truncated_file(tmp_path: Path) -> None:
    """It is never imported as another graph, except at the end of a node."""
    content = of_training().SerializeToString()
    ends = {len(GraphDef(node=of_training().node[:count]).SerializeToString()) for count in range(1, 5)}
    path = tmp_path / "frozen.pb"
    for size in range(len(content)):
        path.write_bytes(content[:size])
        if size in ends:
            import_graph_def(path)
            continue
        with pytest.raises(DataLossError, match=r"frozen\.pb"):
            import_graph_def(path)


def test_two_nodes_of_one_name() -> None:
    """And nodes without a name or an operation: each error names the node."""
    graph = frozen()
    graph.node.add(name="x", op="NoOp")
    with pytest.raises(DataLossError, match='two nodes are named "x"'):
        import_graph_def(graph)
    graph.node[-1].name, graph.node[-1].op = "z", ""
    with pytest.raises(DataLossError, match='node "z" has no operation'):
        import_graph_def(graph)


def test_graphs_of_tensorflow(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """Frozen graphs have no variables; the graph of a training program has its variables."""
    counts = tensorflow.call("tensorflow_saved_models.write_graphs", str(tmp_path))
    assert len(counts) == 4
    for name, ops in counts.items():
        imported = import_graph_def(tmp_path / name)
        assert imported.op_counts == ops
        assert list(imported.variables) == ([] if name.startswith("frozen") else ["w"])
